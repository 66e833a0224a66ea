"""Strict settings for the whole suite: 8 host devices, no silent broadcasting, shared compiled programs."""

import os
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "fedjax_rec-jax-cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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
def _forget_programs():
    """Compiled programs of a module are of no use to the next; kept, they slow down a long session."""
    yield
    jax.clear_caches()
