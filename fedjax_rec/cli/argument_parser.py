"""What parses arguments, before anything heavy is imported: one-line errors that name the nearest known word."""

import argparse
import difflib
import itertools
import math
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from fedjax_rec.errors import printable
from fedjax_rec.startup import PROGRAM

_OF_ONE_VALUE = (argparse._StoreAction, argparse.BooleanOptionalAction)  # noqa: SLF001 - it has no other name
_MISSING = ("the following arguments are required", "one of the arguments")  # how argparse begins
CUTOFF = 0.65  # of `difflib`: what resembles no known word more than that is not taken for one


def suggest(word: str, known: Collection[str]) -> str:
    """A question about the word that was meant, where one comes close.

    Args:
        word: that is unknown.
        known: what there is.

    Returns:
        the question with a blank behind it, or nothing.

    Example:
        >>> suggest("--rouds", ["--rounds", "--seed"]), suggest("xyz", ["run"])
        ('did you mean --rounds? ', '')
    """
    plain = {each.lstrip("-"): each for each in known}  # dashes that all flags have make none of them alike
    close = difflib.get_close_matches(word.lstrip("-"), list(plain), n=1, cutoff=CUTOFF)
    return f"did you mean {plain[close[0]]}? " if close else ""


def whole_number(text: str) -> int:
    """A whole number, also as 10e6; a `type` of arguments.

    Args:
        text: of the argument.

    Returns:
        the number.

    Raises:
        ArgumentTypeError: if it is none.

    Example:
        >>> whole_number("10e6"), whole_number("12345678901234567891")
        (10000000, 12345678901234567891)
        >>> whole_number("50M")
        Traceback (most recent call last):
        argparse.ArgumentTypeError: '50M' is no whole number, such as 50000000 or 50e6
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, such as 50000000 or 50e6")
    return int(text) if text.lstrip("+-").isdigit() else int(number)


class HelpAll(argparse.Action):
    """Show the help of all flags: those too whose help is kept in `full_help`."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print it and end.

        Raises:
            SystemExit: always, with status 0.
        """
        for action in parser._actions:  # noqa: SLF001 - argparse has no other way to them
            action.help = getattr(action, "full_help", action.help)
        parser.print_help()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """One-line errors, and the nearest known flag to a wrong one.

    `before_parse`, where a command sets it, gets the arguments before they are parsed.
    """

    before_parse: Callable[[Sequence[str]], None] | None = None
    _given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """End with a one-line error and status 2.

        Args:
            message: what was wrong and what to do; only its first line is shown.

        Raises:
            SystemExit: always.

        Example:
            >>> Parser().error("no")
            Traceback (most recent call last):
            SystemExit: 2
        """
        known = {name for action in self._actions for name in action.option_strings}
        unknown = [
            each for each in self._given if each[:2] == "--" < each and each.partition("=")[0] not in known
        ]
        if unknown and message.startswith(_MISSING):  # a flag that is misspelt is missing, too
            message = f"unknown setting {unknown[0]!r}; {self.did_you_mean(unknown[0])}"
        first = (message.strip().splitlines() or ["unknown error"])[0]
        print(f"{PROGRAM}: error: {printable(first)}", file=sys.stderr)
        raise SystemExit(2)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, which fails on a flag whose value is "--", and on what it cannot split.

        Example:
            >>> Parser().parse_known_args(["--rounds=--"])
            Traceback (most recent call last):
            SystemExit: 2
        """
        self._given = given = sys.argv[1:] if args is None else list(args)
        for argument in given:
            name, equals, value = argument.partition("=")
            if name.startswith("-") and equals and value == "--":
                self.error(f"{name} needs a value, and -- is none")
        if self.before_parse is not None:
            self.before_parse(given)
        self._check_given_once(given)
        return super().parse_known_args(given, namespace)

    def _check_given_once(self, arguments: Sequence[str]) -> None:
        """Refuse a flag of one value that stands twice: argparse would take the last one without a word."""
        known = {name: action for action in self._actions for name in action.option_strings}
        seen: dict[str, str] = {}
        for argument in itertools.takewhile(lambda each: each != "--", arguments):
            name = argument.partition("=")[0]
            action = known.get(name)
            if not isinstance(action, _OF_ONE_VALUE):
                continue
            if action.dest in seen:
                before = seen[action.dest]
                twice = f"{name} is given twice" if before == name else f"{before} and {name} are both given"
                self.error(f"{twice}; leave one of them out")
            seen[action.dest] = name

    def flags(self) -> list[str]:
        """The flags of this command, each by its first name."""
        flags = [action.option_strings[0] for action in self._actions if action.option_strings]
        return [flag for flag in flags if flag != "-h"]

    def subparser(self, command: str) -> "Parser":
        """The parser of one command."""
        return next(action.choices[command] for action in self._actions if isinstance(action.choices, dict))

    def did_you_mean(self, argument: str) -> str:
        """Where to go on from an argument that this command does not know.

        Example:
            >>> parser = Parser(prog="fedjax-rec run")
            >>> _ = parser.add_argument("--rounds")
            >>> parser.did_you_mean("--rouds=5")
            'did you mean --rounds? see fedjax-rec run --help'
        """
        name = argument.split("=", maxsplit=1)[0]
        return f"{suggest(name, self.flags())}see {self.prog} --help"
