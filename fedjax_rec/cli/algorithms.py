"""`fedjax-rec algorithms`: list the algorithms, or describe one: paper, what stays and what travels, settings."""

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

from fedjax_rec.errors import printable

if TYPE_CHECKING:
    from fedjax_rec.runs.descriptions import Description

_WIDTH = 100
_NAME = 14  # of an algorithm
_LABEL = 18


def add_parser(commands: Any) -> None:
    """Describe `algorithms` and its flags."""
    parser = commands.add_parser(
        "algorithms",
        help="list the algorithms, or describe one",
        description="List the algorithms, those that installed packages offer too. With a name, or with "
        "package.module:factory: its paper, what stays with a client and what it sends, and its settings.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the algorithm to describe")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def call(given: argparse.Namespace) -> int:
    """Print the list, or the description."""
    if given.name is None:
        titles = _titles()
        if given.json:
            print(json.dumps(titles, indent=2))
            return 0
        for name, title in titles.items():
            print(printable(f"{name:<{_NAME}} {title}"))
        print(
            "one of yours: --algorithm package.module:factory; fedjax-rec new NAME writes one to start from"
        )
        return 0
    from fedjax_rec.runs.descriptions import describe

    found = describe(given.name)
    print(json.dumps(as_dict(found), indent=2) if given.json else render(found))
    return 0


def as_dict(found: "Description") -> dict[str, Any]:
    """A description as plain values.

    Args:
        found: of `describe`.

    Returns:
        by name; a default that JSON has no value for is text.

    Example:
        >>> from fedjax_rec.runs.descriptions import describe
        >>> as_dict(describe("fedmf"))["settings"]["dim"]["default"]
        64
    """
    plain = (bool, int, float, str, type(None))
    settings = {
        name: {"default": default if isinstance(default, plain) else str(default), "help": text}
        for name, (default, text) in found.settings.items()
    }
    return found._asdict() | {"settings": settings}


def render(found: "Description") -> str:
    """A description as text.

    Args:
        found: of `describe`.

    Returns:
        several lines.

    Example:
        >>> from fedjax_rec.runs.descriptions import describe
        >>> print(render(describe("fedmf")))  # doctest: +ELLIPSIS
        fedmf: ...
    """
    lines = [f"{found.name}: {found.title}", *textwrap.wrap(found.paper, _WIDTH), ""]
    for label, leaves in (
        ("private", found.private),
        ("shared", found.shared),
        ("tables", found.tables),
    ):
        shown = ", ".join(f"{name} {kind}".strip() for name, kind in leaves.items()) or "none"
        lines += _with_label(label, shown)
    sent = f"{found.row_bytes:,} bytes and an id for each row that it touches, {found.dense_bytes:,} bytes besides"
    lines += _with_label("a client sends", sent)
    lines += _with_label("needs", ", ".join(found.needs) or "users and items")
    lines += ["", "settings (flags of run, or --options NAME=VALUE):"]
    for name, (default, text) in found.settings.items():
        lines += _with_label(name, text if default is None else f"{text} (default: {default})".strip())
    return "\n".join(map(printable, lines))


def _with_label(label: str, text: str) -> list[str]:
    first, *more = textwrap.wrap(text, _WIDTH - _LABEL) or [""]
    return [f"  {label:<{_LABEL}} {first}", *(f"  {'':<{_LABEL}} {line}" for line in more)]


def _titles() -> dict[str, str]:
    """The first line of each algorithm; of those that packages offer, where they lie, which imports nothing."""
    from fedjax_rec.algorithms.own import offered
    from fedjax_rec.algorithms.registry import ENTRIES, names
    from fedjax_rec.runs.descriptions import title_of

    own = {name: f"of an installed package: {point.value}" for name, point in sorted(offered().items())}
    return {name: title_of(ENTRIES[name]) for name in names()} | own
