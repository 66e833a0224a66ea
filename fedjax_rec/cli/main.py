"""The entry of `fedjax-rec`: the table of commands, and errors as one line with exit status 2.

Nothing heavy is imported before it is known what is asked for: `--help` and `version` need nothing but Python.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from fedjax_rec.cli.argument_parser import Parser, suggest
from fedjax_rec.cli.supervisor import obey_supervisor, supervise, wants_supervisor
from fedjax_rec.startup import PROGRAM, leave, open_streams


class Command(Protocol):
    """What the module of a command offers."""

    def add_parser(self, commands: Any) -> None:
        """Describe the command and its flags.

        Args:
            commands: what `add_subparsers` returns; the command adds its parser there.
        """

    def call(self, given: argparse.Namespace) -> int:
        """Do the command's work.

        Args:
            given: the parsed arguments.

        Returns:
            the exit status.

        Raises:
            ValueError, OSError, ImportError: on bad input; the first line of the message is shown.
        """


COMMANDS = {  # each is the module of its name; in the order of `--help`, with what its parser says, too
    "run": "train, evaluate and write a run folder",
    "resume": "go on with a run that was saved on its way",
    "data": "list, describe or download data sets, make stores",
    "baselines": "fit central baselines on the split of a run",
    "sweep": "try settings on validation, over several seeds",
    "plan": "predict memory and time of a run, also on devices that are not here",
    "compare": "compare finished runs of one protocol",
    "report": "write one HTML page about runs",
    "recommend": "list what a trained model recommends",
    "export": "write vectors, lists, or runs for ranx and trec_eval",
    "algorithms": "list the algorithms, or describe one",
    "new": "write an algorithm of your own to start from",
    "bench": "measure how fast rounds are on this machine",
    "doctor": "versions, devices, and how fast item rows are added up here",
    "version": "show the versions of this program and of what it stands on",
}
LIGHT = {"new", "version"}  # commands that answer before anything heavy is imported


def build_parser(command: str | None = None) -> Parser:
    """The parser of the command line, in which one command has its flags.

    Args:
        command: whose module is imported; None for the table of commands alone.

    Returns:
        the parser.

    Example:
        >>> build_parser("run").parse_args(["run", "--rounds", "3"]).rounds
        3
    """
    parser = Parser(
        prog=PROGRAM,
        description="Simulate federated recommender systems.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=18),
    )
    parser.add_argument("--version", action="store_true", help="as `version`")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, text in COMMANDS.items():
        if name == command:
            module_of(name).add_parser(commands)
        else:
            commands.add_parser(name, help=text, add_help=False)
    return parser


def module_of(command: str) -> Command:
    """The module of a command.

    Args:
        command: one of `COMMANDS`.

    Returns:
        the module.

    Example:
        >>> module_of("version").__name__
        'fedjax_rec.cli.version'
    """
    module: Any = importlib.import_module(f"fedjax_rec.cli.{command}")
    return module


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
    open_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        if wants_supervisor(given):
            return supervise(given)
        obey_supervisor()
    if given[:1] == ["--version"]:
        given[0] = "version"
    command = given[0] if given else ""
    if command not in COMMANDS:
        build_parser().parse_known_args(
            [each for each in given if each in ("-h", "--help")]
        )  # ends with the help
        what = f"unknown command {command!r}" if command else "a command is missing"
        Parser().error(f"{what}; {suggest(command, COMMANDS)}see {PROGRAM} --help")
    if command in LIGHT:
        return _run(command, given)
    status = _run_until_stopped(command, given)
    return status if arguments is not None else leave(status)


def _run_until_stopped(command: str, given: Sequence[str]) -> int:
    """A command that signals end in order."""
    from fedjax_rec.cli.output import tell
    from fedjax_rec.training.checkpoints.signals import StopSignal, catch_stop_signals

    module_of(command)  # while a signal still ends the process at once
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)  # behind all others: where `--algorithm my_module:my_algorithm` may lie
    with catch_stop_signals(defer=False) as request:
        try:
            return _run(command, given)
        except KeyboardInterrupt as stop:
            if request.number and not isinstance(stop, StopSignal):  # it was noted, and ended what computes
                stop = StopSignal(request.number)
            by = f" by {stop}" if isinstance(stop, StopSignal) else ""
            tell(f"interrupted{by}")
            return stop.status if isinstance(stop, StopSignal) else 130


def _run(command: str, arguments: Sequence[str]) -> int:
    parser = build_parser(command)
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        hint = parser.subparser(command).did_you_mean(unknown[0])
        parser.error(f"unknown setting {unknown[0]!r}; {hint}")
    try:
        return module_of(command).call(given)
    except (ValueError, OSError, ImportError) as problem:
        if command in LIGHT:
            parser.error(str(problem))
        from fedjax_rec.cli.parser import in_flags

        parser.error(in_flags(problem))
