"""Imports go down only, and `import fedjax_rec` needs five packages."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedjax_rec

ROOT = Path(fedjax_rec.__file__).parent
PROJECT = Path(__file__).resolve().parents[1]
FLOORS: list[list[str]] = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "fedjax_rec"
]["floors"]
FLOOR_OF = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}
ALLOWED = {  # what else a wing's modules may not be without: optional libraries are imported where they are used
    "data": {"numpy", "pandas"},
    "rows": {"jax", "numpy"},
}
WHOLE = {"__init__", "__main__"}  # the package itself, above all wings
MAP = PROJECT / "CONTRIBUTING.md"
MARKS = ("<!-- floors -->", "<!-- /floors -->")
MODULES = sorted(ROOT.rglob("*.py"))


def _wing(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(tree: ast.AST):
    """Modules that a file imports, at its top level and in its functions, but not for type checking only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = node.names if node.module == "fedjax_rec" else []
            yield from (f"fedjax_rec.{name.name}" for name in names)
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    """A module imports its own wing and lower floors."""
    wing = _wing(path)
    for module in _imports(ast.parse(path.read_text(encoding="utf-8"))):
        if module.startswith("fedjax_rec."):
            other = module.split(".")[1]
            below = FLOOR_OF[other] < FLOOR_OF[wing]
            assert other == wing or below or wing in WHOLE, f"{wing} imports {module}"
        elif wing in ALLOWED and module.split(".")[0] not in sys.stdlib_module_names:
            known = ALLOWED[wing] | {"narwhals", "pyarrow", "tqdm"}  # readers and bars, where they are used
            assert module.split(".")[0] in known, f"{wing} imports {module}"


def _summary(wing: str) -> str:
    """The first line of a wing's docstring."""
    path = ROOT / wing / "__init__.py"
    path = path if path.is_file() else ROOT / f"{wing}.py"
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def floors_table() -> str:
    """The floors with what each wing is, from the top down, as CONTRIBUTING shows them."""
    rows = [(floor, wing) for floor, wings in enumerate(FLOORS) for wing in wings if wing not in WHOLE]
    rows.sort(key=lambda row: -row[0])
    lines = ["| floor | wing | what it is |", "|---|---|---|"]
    lines += [f"| {floor} | `{wing}` | {_summary(wing)} |" for floor, wing in rows]
    return "\n".join(lines)


def _with_table(text: str) -> str:
    start, rest = text.split(MARKS[0])
    _, end = rest.split(MARKS[1])
    return f"{start}{MARKS[0]}\n{floors_table()}\n{MARKS[1]}{end}"


def test_contributing_shows_the_floors():
    """The map is made of the floors that are checked; `python -m tests.test_architecture` writes it anew."""
    text = MAP.read_text(encoding="utf-8")
    assert _with_table(text) == text


def test_every_wing_is_on_a_floor():
    """Nothing lies flat in the package but types, errors, locks, tables of text and what starts the program."""
    wings = {_wing(path) for path in MODULES}
    assert wings == set(FLOOR_OF)
    flat = {path.stem for path in ROOT.glob("*.py")}
    assert flat == {"__init__", "__main__", "columns", "errors", "locks", "startup", "types"}


def test_wings_say_what_they_are():
    """Each wing's docstring says in a paragraph what lives there."""
    for package in ROOT.rglob("__init__.py"):
        assert len(ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or "") > 80, package


def test_import_needs_five_packages_only():
    """Optional libraries are imported where they are used: without them `import fedjax_rec` still works.

    Nor does it read the command line, or what reads run folders.
    """
    code = (
        "import sys\n"
        "for name in ('tqdm', 'matplotlib', 'pyarrow', 'narwhals', 'orbax', 'nbclient', 'pytest'):\n"
        "    sys.modules[name] = None\n"
        "import fedjax_rec\n"
        "assert not [name for name in sys.modules if name.startswith(('fedjax_rec.cli.', 'fedjax_rec.runs'))]\n"
        "fedjax_rec.load, fedjax_rec.top_k, fedjax_rec.plots.learning_curves\n"
        "assert not [name for name in sys.modules if name.startswith('fedjax_rec.cli.')]\n"
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
    counts = {path.name: _code_lines(path) for path in (ROOT / "algorithms").rglob("*.py")}
    assert {name: count for name, count in counts.items() if count > 125} == {}
    assert counts["fedmf.py"] > 80  # they are counted


if __name__ == "__main__":
    MAP.write_text(_with_table(MAP.read_text(encoding="utf-8")), encoding="utf-8")
