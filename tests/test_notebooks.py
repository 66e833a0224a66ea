"""Every notebook runs from top to bottom, and is committed as that run left it.

In the smoke mode it has a tenth of the rounds, and its programs compile as quickly as tests do. The first one,
which every reader runs, always runs as it is; a thorough run of the tests has all of them so.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.processes import user_environment

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
LARGEST = 300_000  # bytes, outputs included
OF_ONE_MACHINE = re.compile(r"(/home/|/root/|/Users/|/tmp/|site-packages|ipykernel_\d|[A-Z]:\\\\)")
ROUNDS = re.compile(r"""(\brounds(?:=|": ))(\d+)""")  # as an argument, and in a table of them


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    """A committed notebook."""
    return Path(request.param)


def read(path: Path) -> Any:
    """The notebook, valid."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    """Its code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook: Any) -> list[list[str]]:
    """What kinds of output each code cell has: a picture, a text, ...; not what is in it, which may vary."""
    return [
        sorted(
            kind
            for output in cell.outputs
            for kind in output.get("data", {output.get("name", "error"): None})
        )
        for cell in code_cells(notebook)
    ]


def test_there_are_notebooks():
    """The glob finds some; without one, the tests below would pass for want of a case."""
    assert NOTEBOOKS


def test_committed_outputs(path: Path):
    """Committed outputs come from one run, from top to bottom; they are small and free of errors and of paths."""
    notebook = read(path)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(
        output.output_type == "error" or output.get("name") == "stderr" for c in cells for output in c.outputs
    )
    assert path.stat().st_size < LARGEST
    texts = (
        str(value)
        for c in cells
        for output in c.outputs
        for kind, value in parts(output)
        if kind != "image/png"
    )
    assert not [text for text in texts if OF_ONE_MACHINE.search(text)]
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


def parts(output: Any) -> list[tuple[str, Any]]:
    """(kind, contents) of an output."""
    return list(output.get("data", {"text/plain": output.get("text", "")}).items())


MODES = [
    pytest.param(
        path,
        smoke,
        id=f"{path.stem}{', smoke' * smoke}",
        marks=pytest.mark.thorough("its smoke mode") if path != NOTEBOOKS[0] and not smoke else (),
    )
    for path in NOTEBOOKS
    for smoke in (False, True)
    if path != NOTEBOOKS[0] or not smoke
]


@pytest.mark.parametrize(("path", "smoke"), MODES)
def test_runs(path: Path, smoke: bool, monkeypatch: pytest.MonkeyPatch):
    """The notebook runs without an error in any cell, and shows what the committed one shows."""
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the suite's backend draws nothing inline
    if smoke:
        monkeypatch.setenv("XLA_FLAGS", user_environment()["XLA_FLAGS"])
    else:
        monkeypatch.delenv("XLA_FLAGS")  # a user has one device
    committed, notebook = read(path), read(path)
    for cell in code_cells(notebook) if smoke else ():
        cell.source = ROUNDS.sub(lambda found: f"{found[1]}{-(-int(found[2]) // 10)}", cell.source)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", coalesce_streams=True, record_timing=False
    )
    client.execute()
    assert shown(notebook) == shown(committed)
