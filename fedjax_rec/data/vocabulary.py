"""Vocabularies: external ids to dense codes, by first appearance, a chunk of a file at a time.

An id is a name. Negative numbers, fractions, gaps and numbers beyond 2^31 are names like others, and nothing is
ever allocated by their size. Blanks around an id play no part.
"""

import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from fedjax_rec.data.errors import DataError

Where = Callable[[int], str]

LONGEST = 1000  # characters of an id
_ROOM = 2**24  # bytes that a table of ids may take in any case,
_ROOM_OF_ROW = 64  # and for each row: all ids are as wide as the widest
_EXACT = 2.0**53  # float64 holds every integer up to here
_PLAIN = re.compile(r"0|-?[1-9][0-9]{0,18}")
_INT64 = range(-(2**63), 2**63)


class Vocabulary:
    """The ids of one column and their codes."""

    def __init__(self, name: str) -> None:
        """An empty vocabulary of the column `name`."""
        self.name = name
        self.known: dict[object, int] = {}
        self.rows = 0
        self.widest = 0
        self.where_widest = ""

    def codes(self, values: pd.Series, where: Where) -> np.ndarray:
        """Code some more rows.

        Args:
            values: [M] ids; all integers, or all text, in every call but that text may follow integers.
            where: names a row of these in messages.

        Returns:
            int32[M].

        Raises:
            DataError: naming the first row whose id is empty, too long, or spans lines.

        Example:
            >>> names = Vocabulary("user")
            >>> names.codes(pd.Series([7, 8]), str), names.codes(pd.Series(["b ", "8"]), str)
            (array([0, 1], dtype=int32), array([2, 1], dtype=int32))
            >>> names.ids()
            array(['7', '8', 'b'], dtype='<U1')
        """
        if values.dtype == object:
            values = values.map(str, na_action="ignore")
        codes, uniques = pd.factorize(values)
        names = self._names(uniques.tolist())
        bad = [not _is_sound(name) for name in names] if names and isinstance(names[0], str) else []
        wrong = codes < 0
        if any(bad):
            wrong |= np.array(bad)[codes]
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{where(row)}: {_complaint(names[codes[row]] if codes[row] >= 0 else '', self.name)}"
            )
        self._measure(names, codes, where)
        known = self.known
        places = np.fromiter((known.setdefault(name, len(known)) for name in names), np.int32, len(names))
        self.rows += len(codes)
        return places[codes]

    def ids(self) -> np.ndarray:
        """The external ids in the order of their codes.

        Returns:
            int64[N] where all are integers in plain decimal form, else str[N].

        Raises:
            DataError: if a few long ids make the table of all far larger than its text.
        """
        names = list(self.known)
        if not any(isinstance(name, str) for name in names):
            return _external(pd.Series(names))
        if all(map(_is_plain, names)):
            return np.array(names, dtype=np.str_).astype(np.int64)
        room = 4 * len(names) * self.widest
        if room > max(_ROOM, _ROOM_OF_ROW * self.rows):
            raise DataError(
                f"{self.where_widest}: {self.name!r} of {self.widest} characters; all {len(names):,} ids are kept "
                f"as wide as the widest, which takes {room / 1e6:,.0f} MB; shorten it"
            )
        return np.array(names, dtype=np.str_)

    def _names(self, names: list) -> list:
        """Text without blanks around it; everything becomes text as soon as anything is."""
        texts = bool(names) and isinstance(names[0], str)
        kept = next(iter(self.known), None)
        if texts and self.known and not isinstance(kept, str):
            self.known = {str(name): code for name, code in self.known.items()}
        if texts or isinstance(kept, str):
            return [str(name).strip() for name in names]
        return names

    def _measure(self, names: list, codes: np.ndarray, where: Where) -> None:
        if not names or not isinstance(names[0], str):
            return
        longest = max(range(len(names)), key=lambda place: len(names[place]))
        if len(names[longest]) > max(self.widest, 64):
            self.where_widest = where(int((codes == longest).argmax()))
        self.widest = max(self.widest, len(names[longest]))


def encode(values: pd.Series, name: str, where: Where) -> tuple[np.ndarray, np.ndarray]:
    """Codes a column of ids densely, in the order of first appearance.

    Args:
        values: [M] ids of any type.
        name: the column's name, for messages.
        where: names a row in messages.

    Returns:
        int32[M] codes, and the external ids: int64 where all are integers in plain decimal form, else str.

    Raises:
        DataError: naming the first row whose id is empty, too long, or spans lines.

    Example:
        >>> encode(pd.Series(["7", "07", "7"]), "user", str)
        (array([0, 1, 0], dtype=int32), array(['7', '07'], dtype='<U2'))
    """
    vocabulary = Vocabulary(name)
    return vocabulary.codes(values, where), vocabulary.ids()


def _is_sound(name: str) -> bool:
    return 0 < len(name) <= LONGEST and "\n" not in name and "\r" not in name


def _complaint(name: str, column: str) -> str:
    if not name:
        return f"empty {column!r}"
    if len(name) > LONGEST:
        return f"{column!r} of {len(name):,} characters, and an id has at most {LONGEST:,}; is a quote not closed?"
    return f"{column!r} goes on in the next line, and an id must not; is a quote not closed?"


def _is_plain(name: object) -> bool:
    return bool(_PLAIN.fullmatch(str(name))) and int(str(name)) in _INT64


def _external(uniques: pd.Series) -> np.ndarray:
    """Ids that are not text: integers, integers that went through a float column, or else their text."""
    if uniques.dtype.kind in "iu" and uniques.max() <= np.iinfo(np.int64).max:
        return uniques.to_numpy(np.int64)
    if uniques.dtype.kind == "f" and (uniques % 1 == 0).all() and uniques.abs().max() <= _EXACT:
        return uniques.to_numpy(np.int64)
    return np.array(uniques.astype(str).tolist(), dtype=np.str_)
