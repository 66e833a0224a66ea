"""Imports go down only, and `import fedjax_rec` needs five packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_rec

ROOT = Path(fedjax_rec.__file__).parent
FLOORS = {
    "types": 0, "permutation": 0, "tables": 0, "row_updates": 0, "data": 0,
    "membership": 0, "spaces": 0, "seal": 0, "lock": 0, "stopping": 0, "versions": 0,
    "population": 1, "batches": 1, "cutters": 1, "local": 1, "exactness": 1, "soundness": 1,
    "engine": 1, "schedules": 1,
    "lanes": 1, "waves": 1, "clients": 1, "guard": 1, "stepping": 1, "faults": 1, "asynchronous": 1, "cohorts": 1,
    "layout": 1, "compression": 1, "sparsifiers": 1, "feedback": 1,
    "secure": 1, "masks": 1, "secure_cost": 0,
    "devices": 1, "plan": 1, "parts": 1, "samplers": 1, "aggregators": 1, "noise": 1, "transforms": 1,
    "reducers": 1, "servers": 1,
    "robust": 1, "attacks": 1, "adversary": 1, "promotion": 1, "fedrecattack": 1,
    "knowledge": 1, "fairness": 1, "informed": 1,
    "targets": 1, "pieck": 1, "flipping": 1, "row_hiding": 1, "inference": 0,
    "evaluation": 1, "leaves": 1, "initial": 1,
    "rounds": 2, "streaming": 2, "federate": 2, "traffic": 2, "steps": 2,
    "blocks": 3, "host_memory": 3, "simulate": 3, "algorithms": 3, "points": 3, "sweep": 3, "trials": 3,
    "checkpoints": 3,
    "privacy": 4, "settings": 4, "device_settings": 4, "inputs": 4, "from_settings": 4, "experiment": 4,
    "report": 4, "run_folder": 4, "doctor": 4, "compare": 4, "formats": 4,
    "testing": 4, "central": 4, "folders": 4, "resume": 4,
    "cli": 5, "__main__": 5, "__init__": 5,
}  # fmt: skip
MODULES = sorted(ROOT.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path):
    """Modules that a file imports at its top level (functions may import what they need late)."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    """A module imports its own floor or lower ones, and the data room only numpy and pandas."""
    room = _room(path)
    for module in _imports(path):
        if module.startswith("fedjax_rec."):
            other = module.split(".")[1]
            assert FLOORS[other] <= FLOORS[room], f"{room} (floor {FLOORS[room]}) imports {module}"
            assert room != "data" or other == "data"
        if room == "data":
            assert module.split(".")[0] not in {"jax", "flax", "optax"}, f"data imports {module}"


def test_import_needs_five_packages_only():
    """Optional libraries are imported where they are used: without them `import fedjax_rec` still works."""
    code = (
        "import sys\n"
        "for name in ('tqdm', 'matplotlib', 'pyarrow', 'orbax', 'nbclient', 'pytest'): sys.modules[name] = None\n"
        "import fedjax_rec"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr


def test_no_long_files():
    """A file of more than 450 lines has a second room in it."""
    assert [p.name for p in MODULES if len(p.read_text(encoding="utf-8").splitlines()) > 450] == []


def _code_lines(path: Path) -> int:
    """Lines without docstrings, comments, imports and blank ones."""
    tree, text = ast.parse(path.read_text(encoding="utf-8")), path.read_text(encoding="utf-8").splitlines()
    told = (ast.Module, ast.ClassDef, ast.FunctionDef)
    notes = [node.body[0] for node in ast.walk(tree) if isinstance(node, told) and ast.get_docstring(node)]
    notes += [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    left_out = {line for node in notes for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#") and number not in left_out
        for number, line in enumerate(text, 1)
    )


def test_algorithms_are_short():
    """An algorithm is one client's work and some values; more than 125 lines have a second subject in them."""
    counts = {path.name: _code_lines(path) for path in (ROOT / "algorithms").glob("*.py")}
    assert {name: count for name, count in counts.items() if count > 125} == {}
    assert counts["fedmf.py"] > 80  # they are counted
