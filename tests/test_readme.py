"""README and docs: blocks run, commands parse, links lead somewhere, tables are those of what they show.

`python -m tests.test_readme` writes the README's table of the honest benchmark anew.
"""

import re
import shlex
from pathlib import Path

import pytest

from fedjax_rec.algorithms.registry import names
from fedjax_rec.cli.main import build_parser
from fedjax_rec.runs.configuration import read_configuration

PROJECT = Path(__file__).resolve().parents[1]
README = PROJECT / "README.md"
PAGES = [README, *sorted((PROJECT / "docs").glob("*.md"))]
BENCHMARK = PROJECT / "experiments/honest_benchmark/README.md"
SPEED = PROJECT / "experiments/benchmarks/NOTES.md"
MARKS = ("<!-- honest -->", "<!-- /honest -->")
DATASETS = ("ml-100k", "ml-1m-loo")


def blocks(page, language):
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands():
    """Every line of the shell blocks that calls the command line."""
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if "fedjax-rec " in part[:12]]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """A page's blocks run in order in one namespace of its own, as a reader of this page alone would have it."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), space)  # noqa: S102 - our own pages


def test_the_quick_start_is_short():
    """The README is one page and a half, its first block at most 15 lines."""
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150
    assert len(blocks(README, "python")[0].splitlines()) <= 15


def test_commands_are_the_promised_ones():
    """The two set-up commands stand in the README exactly once each."""
    for command in ("pip install . && fedjax-rec run", "pip install -e '.[dev]' && pytest"):
        assert README.read_text(encoding="utf-8").splitlines().count(command) == 1


def test_every_command_parses():
    """Commands and flags of all pages exist."""
    assert len(commands()) > 40
    for line in commands():
        _, *words = shlex.split(line, comments=True)
        build_parser(words[0]).parse_args(words)


def test_files_of_settings_are_read(tmp_path):
    """The example of a file of settings names real ones."""
    (found,) = blocks(PROJECT / "docs/commands.md", "toml")
    (tmp_path / "settings.toml").write_text(found)
    assert read_configuration(tmp_path / "settings.toml")["dim"] == 32


def test_links_lead_somewhere():
    """Every relative link names a file, and the README has one to every page."""
    links = {page: re.findall(r"\]\(([^):#]+)\)", page.read_text(encoding="utf-8")) for page in PAGES}
    for page, targets in links.items():
        assert [target for target in targets if not (page.parent / target).exists()] == []
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(links[README])


def test_every_algorithm_has_a_row():
    """The table of algorithms names each registered one."""
    text = (PROJECT / "docs/algorithms.md").read_text(encoding="utf-8")
    rows = {
        name for line in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in line.split("`")[1::2]
    }
    assert set(names()) <= rows


def honest_table():
    """The README's table, of the benchmark's tables: both data sets side by side, as they are ordered there."""
    text = BENCHMARK.read_text(encoding="utf-8")
    rows: dict[str, list[str]] = {}
    for place, dataset in enumerate(DATASETS):
        section = text.split(f"\n## {dataset}\n\n", 1)[1].split("\n\n")[0]
        for line in section.splitlines()[2:]:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            name, ndcg, interval, price = cells[0], cells[1], cells[2], cells[7]
            row = rows.setdefault(name, [""] * 2 * len(DATASETS))
            row[2 * place : 2 * place + 2] = f"{ndcg} ({interval.replace(' to ', ', ')})", price
    head = ["", *(title for dataset in DATASETS for title in (f"{dataset}: NDCG@10 (95 %)", "price"))]
    lines = [head, ["---", *["---:"] * 2 * len(DATASETS)], *([name, *row] for name, row in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_table(text):
    """The README with the table between its marks."""
    start, _, rest = text.partition(MARKS[0])
    return f"{start}{MARKS[0]}\n{honest_table()}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


def test_the_honest_table_is_the_benchmarks():
    """It is made of the benchmark's own tables; `python -m tests.test_readme` writes it anew."""
    text = README.read_text(encoding="utf-8")
    assert with_table(text) == text
    assert honest_table().count("\n") > 20


def test_speeds_are_the_measured_ones():
    """Every number of the README's table of speed stands in the benchmark's notes."""
    section = README.read_text(encoding="utf-8").split("## How fast")[1]
    found = re.findall(r"\| ([\d,]+) \|$", section, re.MULTILINE)
    assert len(found) == 8
    notes = SPEED.read_text(encoding="utf-8")
    assert [number for number in found if f"| {number} " not in notes] == []


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
