"""Strict settings for the whole suite: 8 host devices, no silent broadcasting, shared compiled programs.

A program is compiled in a third of the time without LLVM's optimisations, without two passes over loops and, in
jaxlib 0.10, by the set of CPU emitters that is not its default. All workers of pytest-xdist but the last one do
so, and the last one compiles as a user does, and takes the tests that compare bits of different programs
(`pytest.mark.as_compiled`, on a test or a module) before any other. Where it is one of three or more it then ends,
because the others do the rest in less time. With one worker, or none, everything is compiled as a user's is.

Most of the time goes into compiling, so without `--thorough` a cross of settings is tried by some of its cells, of
which each row and each column has one: what is left out is marked `pytest.mark.thorough`, with the reason why the
rest guards the same. A release passes them all.
"""

import ast
import os
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / "fedjax_rec-jax-cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

ROOT = Path(__file__).resolve().parent
SHARED_DATA = ROOT.parent / "shared" / "data"
QUICK_FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_disable_hlo_passes=while-loop-invariant-code-motion,simplify-while-loops",
]
if version("jaxlib").startswith("0.10."):  # later ones refuse to start with a flag that they don't know
    QUICK_FLAGS.append("--xla_cpu_use_fusion_emitters=false")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data is absent: {SHARED_DATA} is not a directory")
    return SHARED_DATA


def pytest_addoption(parser):
    """Offer the cells of crosses that others cover."""
    parser.addoption("--thorough", action="store_true", help="run the tests that are marked as thorough, too")


def pytest_collection_modifyitems(config, items):
    """Leave thorough tests out unless they are asked for; each says why the others guard the same."""
    thorough = [item for item in items if item.get_closest_marker("thorough")]
    for item in thorough:
        if not item.get_closest_marker("thorough").args:
            raise pytest.UsageError(f"{item.nodeid} is marked as thorough without a reason: thorough(why)")
    if thorough and not config.getoption("--thorough"):
        config.hook.pytest_deselected(items=thorough)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]


def pytest_xdist_setupnodes(specs):
    """All workers but the last one, and those that replace them after a crash, compile quickly."""
    for spec in specs[:-1]:
        spec.env["XLA_FLAGS"] = " ".join([os.environ["XLA_FLAGS"], *QUICK_FLAGS])


def pytest_xdist_make_scheduler(config, log):
    """A module's tests share a worker, and so its fixtures; the laws, the longest module, go case by case."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModuleAndCase(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid):
            """What stays together: a module but for its marked tests; a law's id ends with -LAW]."""
            laws = "test_laws.py::test_law[" in nodeid
            scope = nodeid.rpartition("-")[0] if laws else super()._split_scope(nodeid)
            return f"{scope}::as_compiled" if _as_compiled(nodeid) else scope

        def schedule(self):
            """Put the worker that is needed first: where there is less work than workers, those behind it go."""
            ids = next(iter(self.registered_collections.values()))
            needed = any(map(_as_compiled, ids))
            for node in sorted(self.assigned_work, key=lambda node: _compiles_quickly(node) == needed):
                self.assigned_work[node] = self.assigned_work.pop(node)
            super().schedule()

        def _assign_work_unit(self, node):
            """Give marked tests to who compiles as a user does, and before any other; to nobody else."""
            quick = _compiles_quickly(node)
            marked_only = not quick and sum(map(_compiles_quickly, self.assigned_work)) > 1
            scopes = [
                scope
                for scope in self.workqueue
                if not (quick and _is_marked(scope)) and not (marked_only and not _is_marked(scope))
            ]
            if scopes:
                self.workqueue.move_to_end(max(scopes, key=_is_marked), last=False)
                super()._assign_work_unit(node)
            else:
                node.shutdown()  # it ends what it has

    return ByModuleAndCase(config, log)


def _compiles_quickly(node) -> bool:
    """Whether `pytest_xdist_setupnodes` gave a worker the flags for it."""
    return "XLA_FLAGS" in node.gateway.spec.env


def _is_marked(scope: str) -> bool:
    """Whether a group of tests is of those that are marked."""
    return scope.endswith("::as_compiled")


def _as_compiled(nodeid: str) -> bool:
    """Whether a test is marked as comparing bits of programs, itself or with its module."""
    path, _, name = nodeid.partition("::")
    marked = _marked_in(ROOT / path)
    return "pytestmark" in marked or name.partition("[")[0] in marked


@cache
def _marked_in(path: Path) -> set[str]:
    """The functions of a module that are marked, and `pytestmark` where all are."""
    if path.suffix != ".py" or "pytest.mark.as_compiled" not in (text := path.read_text(encoding="utf-8")):
        return set()
    mark = "pytest.mark.as_compiled"
    return {
        node.name if isinstance(node, ast.FunctionDef) else "pytestmark"
        for node in ast.parse(text).body
        if (isinstance(node, ast.FunctionDef) and mark in map(ast.unparse, node.decorator_list))
        or (isinstance(node, ast.Assign) and ast.unparse(node) == f"pytestmark = {mark}")
    }


@pytest.fixture(scope="module", autouse=True)
def _programs():
    """Forget a module's programs at its end: kept, they slow down the next ones, which have no use for them."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _compiled_as_marked(request):
    """Refuse to compare programs that are not compiled as a user's are."""
    if request.node.get_closest_marker("as_compiled") and QUICK_FLAGS[0] in os.environ["XLA_FLAGS"]:
        pytest.fail("marked as_compiled, but not compiled as a user's is")
