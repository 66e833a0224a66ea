"""The command line: `fedjax-rec run` and `fedjax-rec data`.

Errors are one line on standard error and exit status 2. Settings become flags by their names, `--learning-rate`
for `learning_rate`, with their defaults in `--help`.
"""

import argparse
import dataclasses
import difflib
import sys
import types
from collections.abc import Sequence
from typing import Any, NoReturn, get_args, get_type_hints

from fedjax_rec.settings import Settings

PROGRAM = "fedjax-rec"


class _Parser(argparse.ArgumentParser):
    """One-line errors that name the nearest known flag or command."""

    def error(self, message: str) -> NoReturn:
        fail(message)

    def known(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]


def fail(message: str) -> NoReturn:
    """End with a one-line error and status 2.

    Args:
        message: what was wrong and what to do; only its first line is shown.

    Raises:
        SystemExit: always.

    Example:
        >>> fail("no")
        Traceback (most recent call last):
        SystemExit: 2
    """
    first = (message.strip().splitlines() or ["unknown error"])[0]
    print(f"{PROGRAM}: error: {first}", file=sys.stderr)
    raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands.

    Returns:
        the parser.

    Example:
        >>> build_parser().parse_args(["run", "--rounds", "3"]).rounds
        3
    """
    parser = _Parser(prog=PROGRAM, description="Simulate federated recommender systems.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    run = commands.add_parser(
        "run",
        help="train, evaluate and write a run folder",
        description="Train a federated recommender, evaluate it and write a run folder. Without arguments it "
        "trains on the embedded synthetic population.",
        allow_abbrev=False,
    )
    _add_settings(run)
    data = commands.add_parser("data", help="list, describe or download data sets", allow_abbrev=False)
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)
    actions.add_parser("ls", help="list the registered data sets", allow_abbrev=False)
    for name, text in (("describe", "counts, origin and licence"), ("fetch", "download into the cache")):
        action = actions.add_parser(name, help=text, allow_abbrev=False)
        action.add_argument("dataset", help="a registered name, or a path")
        if name == "describe":
            action.add_argument("--data-dir", help="folder that holds the data (default: the cache)")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    groups: dict[str, Any] = {}
    hints = get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        title = field.metadata["group"]
        group = (
            groups.setdefault(title, parser.add_argument_group(title))
            if title not in groups
            else groups[title]
        )
        flag = "--" + field.name.replace("_", "-")
        text = f"{field.metadata['help']} (default: {'none' if field.default is None else field.default})"
        kind = _kind(hints[field.name])
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            choices = field.metadata["choices"]
            shown = "{" + ",".join(choices) + "}" if choices else kind.__name__.upper()
            group.add_argument(flag, type=kind, default=field.default, help=text, metavar=shown)


def _kind(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; by default those of the process.

    Returns:
        the exit status.

    Raises:
        SystemExit: with status 2 on bad input.

    Example:
        >>> main(["data", "ls"])  # doctest: +ELLIPSIS
        name ...
        0
    """
    parser = build_parser()
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        fail(f"unknown setting {unknown[0]!r}; {_suggest(unknown[0], given.command)}")
    try:
        return _run(given) if given.command == "run" else _data(given)
    except (ValueError, OSError) as problem:
        fail(str(problem))
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted, nothing was written", file=sys.stderr)
        return 130


def _suggest(flag: str, command: str) -> str:
    known = (
        ["--" + field.name.replace("_", "-") for field in dataclasses.fields(Settings)]
        if command == "run"
        else []
    )
    near = difflib.get_close_matches(flag.split("=", maxsplit=1)[0], known, n=1, cutoff=0.0)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}see {PROGRAM} {command} --help"


def _run(given: argparse.Namespace) -> int:
    settings = Settings(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Settings)})
    from fedjax_rec import report, run_folder
    from fedjax_rec.experiment import ADVICE, run_experiment

    folder = run_folder.choose_folder(settings)
    show = report.progress_bar(file=sys.stderr)
    outcome = run_experiment(settings, on_stage=lambda text: print(text, file=sys.stderr), on_block=show)
    folder = run_folder.save(outcome, folder, renumber=settings.out is None)
    for line in outcome.split.log:
        print(line)
    print(report.table(outcome))
    if outcome.history.stopped == "diverged":
        print(f"training diverged after the best round; {ADVICE}")
    print(f"run folder: {folder}")
    return 0


def _data(given: argparse.Namespace) -> int:
    from fedjax_rec.data import registry

    if given.action == "ls":
        _list(registry.list_datasets())
    elif given.action == "fetch":
        print(registry.fetch(given.dataset, progress=True))
    else:
        dataset = registry.load_dataset(given.dataset, data_dir=given.data_dir, progress=True)
        for name, value in registry.describe(dataset).items():
            print(f"{name:>16}: {_text(value)}")
    return 0


def _list(infos: Sequence[Any]) -> None:
    print(f"{'name':<18} {'users':>8} {'items':>8} {'events':>12}  title")
    for info in infos:
        users, items, events = info.counts[:3]
        print(f"{info.name:<18} {users:>8,} {items:>8,} {events:>12,}  {info.title}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, tuple):
        return " to ".join(_text(part) for part in value)
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
