"""The site's pages, from where they lie in the checkout: mkdocs calls `on_config` and `on_files`.

A page of an algorithm is made of its description, one of a wing of what it offers (`__all__`).
"""

import ast
import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

from fedjax_rec.algorithms.registry import entry_of, names
from fedjax_rec.runs.descriptions import Description, describe

ROOT = Path(__file__).resolve().parents[1]
WINGS = (
    "algorithms", "attacks", "client", "data", "engine", "evaluation", "federation", "privacy", "runs", "samplers",
    "server", "testing", "training", "transforms", "types",
)  # fmt: skip
PAGES = {  # in the order of a reader: title, and where it lies
    "Concepts": "docs/concepts.md",
    "Your own data": "docs/data.md",
    "Commands": "docs/commands.md",
    "In Python": "docs/library.md",
    "Algorithms": "docs/algorithms.md",
    "Protocols": "docs/protocols.md",
    "Baselines": "docs/baselines.md",
    "Privacy": "docs/privacy.md",
    "What goes with what": "docs/compatibility.md",
    "Performance and sizing": "docs/performance.md",
    "What to expect": "docs/numbers.md",
    "Questions": "docs/faq.md",
    "Coming from FedJAX, TFF, Flower, RecBole": "docs/coming_from.md",
}
ABOUT = {"Contributing": "CONTRIBUTING.md", "Changelog": "CHANGELOG.md", "Security": "SECURITY.md"}
HEADS = (
    "method",
    "NDCG@10",
    "95 % over users",
    "seeds",
    "HR@10",
    "NDCG@10, sampled",
    "HR@10, sampled",
    "price",
)
SERVED = ("README.md", "NOTES.md", "*.png", "results/**/*.png")  # of an experiment


def address() -> str:
    """The project's public address, "" until there is one: the one setting of links that leave the checkout."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["tool"]["fedjax_rec"]["address"])


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the navigation, and the link to the project where it has an address."""
    notebooks = [f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    experiments = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "experiments").glob("*/*.md"))]
    config.repo_url = address() or None
    config.nav = [
        {"Quick start": "README.md"},
        {"Guide": [{title: path} for title, path in PAGES.items()]},
        {"Notebooks": notebooks},
        {"Algorithms": [f"algorithms/{name}.md" for name in names()]},
        {"API": [{f"fr.{wing}": f"api/{wing}.md"} for wing in WINGS]},
        {"Experiments": experiments},
        {"About": [{title: path} for title, path in ABOUT.items()]},
    ]
    return config


@event_priority(100)  # before the plugin that looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put all pages and pictures where their links expect them."""
    for file in list(files.documentation_pages()) + list(files.media_files()):
        files.remove(file)
    paths = [ROOT / name for name in ("README.md", "CITATION.cff", *ABOUT.values())]
    paths += [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".svg")]
    paths += (ROOT / "notebooks").glob("*.ipynb")
    paths += [path for kind in SERVED for path in (ROOT / "experiments").glob(f"*/{kind}")]
    for path in paths:
        name = str(path.relative_to(ROOT))
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    pages = {f"algorithms/{name}.md": algorithm_page(describe(name)) for name in names()}
    pages |= {f"api/{wing}.md": wing_page(wing) for wing in WINGS}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def algorithm_page(found: Description) -> str:
    """What `fedjax-rec algorithms NAME` says, as a page.

    Args:
        found: of the algorithm.

    Returns:
        Markdown.
    """
    rows = "\n".join(
        f"| `{name}` | {_cell(default)} | {_cell(text)} |" for name, (default, text) in found.settings.items()
    )
    return (
        f"# {found.name}\n\n```sh\nfedjax-rec run --algorithm {found.name}\n```\n\n{_facts(found)}\n\n"
        f"## One round\n\n```text\n{_round_of(found)}\n```\n\n"
        f"## Settings\n\n| setting | default | |\n|---|---|---|\n{rows}\n\n"
        f"{_numbers_of(found.name)}"
        f"## As it is written\n\n```python\n{_code_of(found.name)}\n```\n\n"
        f"## In full\n\n"
        f"::: fedjax_rec.algorithms.{found.name}\n"
        f"    options: {{show_root_heading: false, members: [{found.name}]}}\n"
    )


def wing_page(wing: str) -> str:
    """What a wing offers.

    Args:
        wing: its name.

    Returns:
        Markdown, of which mkdocstrings makes the rest.
    """
    folder = ROOT / "fedjax_rec" / wing
    source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    about = f"# fedjax_rec.{wing}\n\n{ast.get_docstring(tree)}\n\n"
    offered = _offered(tree)
    if not offered:
        options = "{show_root_heading: false, show_docstring_description: false}"
        return f"{about}::: fedjax_rec.{wing}\n    options: {options}\n"
    # by the module that defines it: some are named as their modules, which the package's name would mean
    places = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return about + "".join(f"::: {places.get(name, f'fedjax_rec.{wing}.{name}')}\n\n" for name in offered)


def _offered(tree: ast.Module) -> list[str]:
    """Names of `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _facts(found: Description) -> str:
    """What stays and what travels, a row each."""
    rows = []
    for label, leaves in (("private", found.private), ("shared", found.shared), ("tables", found.tables)):
        rows.append((label, ", ".join(f"`{name}` {kind}" for name, kind in leaves.items()) or "none"))
    sent = f"{found.row_bytes:,} bytes and an id for each row that it touches, {found.dense_bytes:,} bytes besides"
    rows += [("a client sends", sent), ("needs", ", ".join(found.needs) or "users and items")]
    return "| | |\n|---|---|\n" + "\n".join(f"| {label} | {_cell(text)} |" for label, text in rows)


def _round_of(found: Description) -> str:
    """A round at the default settings as pseudocode: what is kept, trained, sent and summed."""
    algorithm = entry_of(found.name).factory()
    work = algorithm.work
    server = ", ".join([*found.tables, *found.shared])
    keeps = f"its {', '.join(found.private)}" if found.private else "nothing between rounds"
    lines = [
        f"server has {server}; client u has its history, and keeps {keeps}",
        "for the cohort's clients u, all at once:"
        if algorithm.repeats
        else "for round t = 1, 2, ..., for the clients u of the cohort, all at once:",
        f"    receive {server} (of tables the rows that u's examples name)",
    ]
    if work.epochs > 1:
        lines += [f"    {work.epochs} local epochs, for each local batch of u's examples:"]
    else:
        lines += ["    for each local batch of u's examples:"]
    how = " by the gradient of one loss" if work.descent is not None else ""
    lines += [f"        step: u's own leaves and rows change{how}"]
    if work.end_epoch is not None:
        lines += ["        at the end of an epoch u's own leaves are settled"]
    sent = [f"{found.row_bytes:,} bytes a touched row"] * bool(found.row_bytes)
    sent += [f"{found.dense_bytes:,} bytes besides"] * bool(found.dense_bytes)
    lines += [f"    send delta_u ({', '.join(sent)}); u's own leaves stay"]
    lines += ["server: M(t + 1) = M(t) + server_optimizer(aggregate over u of delta_u)"]
    if algorithm.model.represent is not None:
        lines += ["before it is scored, u trains its own leaves on its history and sends nothing"]
    return "\n".join(lines)


def _code_of(name: str) -> str:
    """The module of an algorithm without its docstrings and imports."""
    module = sys.modules[entry_of(name).factory.__module__]
    source = inspect.getsource(module)
    tree = ast.parse(source)
    dropped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and node.col_offset == 0:
            dropped |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            text = node.body[0]
            dropped |= set(range(text.lineno, (text.end_lineno or 0) + 1))
    lines = [line for number, line in enumerate(source.splitlines(), start=1) if number not in dropped]
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines)).strip()


def _numbers_of(name: str) -> str:
    """Its rows of the honest benchmark, by data set."""
    text = (ROOT / "experiments/honest_benchmark/README.md").read_text(encoding="utf-8")
    rows = []
    for part in text.partition("<!-- tables: begin -->")[2].split("\n## ")[1:]:
        data, _, body = part.partition("\n")
        for line in body.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if re.fullmatch(rf"{name}(-\w+)?", cells[0]) and len(cells) > len(HEADS):
                rows.append([data, *cells[: len(HEADS)]])
    if not rows:
        return ""
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"## Numbers\n\n| data | {' | '.join(HEADS)} |\n|{'---|' * (len(HEADS) + 1)}\n{table}\n\n"
        "Tuned, full ranking and 99 sampled negatives; the price is over the best central method: "
        "[the honest benchmark](../experiments/honest_benchmark/README.md).\n\n"
    )


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
