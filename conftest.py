"""Strict settings for the whole suite: 8 host devices, no silent broadcasting, shared compiled programs."""

import os
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import jaxlib
import pytest
from jax._src import compiler  # for want of a public way to set a compiler's option for all programs

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "fedjax_rec-jax-cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

SHARED_DATA = Path(__file__).resolve().parents[1] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data is absent: {SHARED_DATA} is not a directory")
    return SHARED_DATA


def pytest_xdist_make_scheduler(config, log):
    """A module's tests share a worker, and so its fixtures; the laws, the longest module, go case by case."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModuleAndCase(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid):
            """What stays together; a law's id ends with -LAW]."""
            laws = "test_laws.py::test_law[" in nodeid
            return nodeid.rpartition("-")[0] if laws else super()._split_scope(nodeid)

    return ByModuleAndCase(config, log)


@pytest.fixture(scope="module", autouse=True)
def _programs(request):
    """A module's programs: quickly compiled unless it compares bits of different ones, and forgotten at its end.

    jaxlib 0.10 has two sets of CPU emitters, and compiles in half the time with those that are not its default.
    Whoever compares bits is marked `pytest.mark.as_compiled` and has the default; later versions have no choice.
    Kept, programs of one module slow down the next ones, which have no use for them.
    """
    with pytest.MonkeyPatch.context() as patched:
        if jaxlib.__version__.startswith("0.10.") and not request.node.get_closest_marker("as_compiled"):
            patched.setattr(compiler, "get_compile_options", _quick_options)
        yield
    jax.clear_caches()


def _quick_options(*args, default=compiler.get_compile_options, **kwargs):
    """The options of every compilation, with the quicker emitters."""
    options = default(*args, **kwargs)
    options.env_option_overrides = [*options.env_option_overrides, ("xla_cpu_use_fusion_emitters", False)]
    return options
