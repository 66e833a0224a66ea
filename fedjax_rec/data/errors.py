"""The one exception of the data layer, and the hints that its messages carry."""

import contextlib
import difflib
from collections.abc import Sequence
from pathlib import Path

from fedjax_rec.errors import ParameterError, printable


class DataError(ValueError):
    """Bad or missing data; the message is one line that names the file, the line and what to try."""

    def __init__(self, message: str) -> None:
        """The message; what it quotes of the data cannot break the line, nor reach a terminal as a command."""
        super().__init__(printable(" ".join(message.splitlines())))


class DataParameterError(ParameterError, DataError):
    """Bad data with a way out that is a parameter, which the command line calls by its flag.

    Example:
        >>> str(DataParameterError("{where}: twice; {duplicates=last} keeps one", where="a.csv:3"))
        "a.csv:3: twice; duplicates='last' keeps one"
    """


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name that resembles `name` most, whatever its case.

    Args:
        name: what was asked for.
        known: the names that exist; at least one.

    Returns:
        One of `known`.

    Example:
        >>> nearest("ML1M", ["ml-100k", "ml-1m"])
        'ml-1m'
    """
    folded = {option.casefold(): option for option in known}
    return folded[difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.0)[0]]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A question about the name that was meant, where one comes close.

    Args:
        name: what was asked for.
        known: the names that exist; there may be none.

    Returns:
        the question with a blank behind it, or nothing.

    Example:
        >>> did_you_mean("fedfm", ["fcf", "fedmf"]), did_you_mean("xyz", ["fcf", "fedmf"])
        ("did you mean 'fedmf'? ", '')
    """
    folded = {option.casefold(): option for option in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.5)
    return f"did you mean {folded[close[0]]!r}? " if close else ""


def no_such_path(path: Path) -> DataError:
    """The error for a file or folder that is not there, with what lies beside it and has nearly its name.

    Args:
        path: that does not exist.

    Returns:
        The exception, to be raised by the caller.

    Example:
        >>> no_such_path(Path("no/such.csv")).args[0]
        'no/such.csv: no such file or directory'
    """
    beside: list[str] = []
    with contextlib.suppress(OSError):
        beside = [each.name for each in path.parent.iterdir()]
    hint = did_you_mean(path.name, beside).strip()
    return DataError(f"{path}: no such file or directory" + (f"; {hint}" if hint else ""))


def unknown_column(where: str, name: str, known: Sequence[str]) -> DataError:
    """The error for a column that is not there.

    Args:
        where: the file or frame.
        name: the column asked for.
        known: the columns that exist.

    Returns:
        The exception, to be raised by the caller.

    Example:
        >>> unknown_column("a.csv", "userid", ["userId", "movieId"]).args[0]
        "a.csv: no column 'userid'; did you mean 'userId'? (columns: userId, movieId)"
    """
    if not known:
        return DataError(f"{where}: no column {name!r}, and no other column either")
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return DataError(
        f"{where}: no column {name!r}; did you mean {nearest(name, known)!r}? (columns: {shown})"
    )
