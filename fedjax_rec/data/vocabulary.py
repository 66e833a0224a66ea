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
_PLAIN = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_BLOCK = 2**12  # ids moved or decoded at a time
_INT64 = range(-(2**63), 2**63)


class Vocabulary:
    """The ids of one column and their codes: a sorted table, which takes a fifth of the room of a dict."""

    def __init__(self, name: str) -> None:
        """An empty vocabulary of the column `name`."""
        self.name = name
        self.known: np.ndarray = np.empty(0, np.int64)  # sorted; int64, or text as bytes [N] of equal width
        self.places = np.empty(0, np.int32)  # their codes
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
            DataError: naming the first row whose id is empty, too long, spans lines, or holds a NUL character.

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
        names = _as_names(pd.Series(uniques))
        texts = isinstance(names, list)
        bad = [not _is_sound(name) for name in names] if texts else []
        wrong = codes < 0
        if any(bad):
            wrong |= np.array(bad)[codes]
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{where(row)}: {_complaint(str(names[codes[row]]) if codes[row] >= 0 else '', self.name)}"
            )
        if isinstance(names, list):
            self._measure(names, codes, where)
        self.rows += len(codes)
        return self._code(self._alike(names))[codes]

    def ids(self) -> np.ndarray:
        """The external ids in the order of their codes.

        Returns:
            int64[N] where all are integers in plain decimal form, else str[N].

        Raises:
            DataError: if a few long ids make the table of all far larger than its text.
        """
        count, whole = len(self.known), self.known.dtype.kind == "i"
        if whole or all(_is_plain(name) for name in self.known):
            found = np.empty(count, np.int64)
            found[self.places] = self.known if whole else np.fromiter(map(int, self.known), np.int64, count)
            return found
        room = 4 * count * self.widest
        if room > max(_ROOM, _ROOM_OF_ROW * self.rows):
            raise DataError(
                f"{self.where_widest}: {self.name!r} of {self.widest} characters; all {count:,} ids are kept "
                f"as wide as the widest, which takes {room / 1e6:,.0f} MB; shorten it"
            )
        names = np.empty(count, f"U{self.widest}")
        for start in range(0, count, _BLOCK):
            block = slice(start, start + _BLOCK)
            names[self.places[block]] = np.char.decode(self.known[block], "utf-8", "surrogatepass")
        return names

    def _alike(self, names: "np.ndarray | list[str]") -> np.ndarray:
        """Some names as the table holds them; it becomes text as soon as anything is."""
        whole = self.known.dtype.kind == "i"
        if not isinstance(names, list) and (whole or not len(self.known)):
            return names
        if whole and len(self.known):
            width = max(len(str(name)) for name in self.known[[0, -1]])  # the longest are at the ends
            self.widest, table = max(self.widest, width), self.known.astype(f"S{width}")
            order = np.argsort(table)
            self.known, self.places = table[order], self.places[order]
        return _encoded([str(name).strip() for name in names])

    def _code(self, names: np.ndarray) -> np.ndarray:
        """int32[U], the codes of names [U], of which the new ones get the next in the order of appearance."""
        wanted, first, back = np.unique(names, return_index=True, return_inverse=True)
        known = self.known if len(self.known) else wanted[:0].copy()
        at = np.searchsorted(known, wanted)
        met = at < len(known)
        met[met] = known[at[met]] == wanted[met]
        fresh = np.flatnonzero(~met)
        codes = np.empty(len(wanted), np.int32)
        codes[met] = self.places[at[met]]
        codes[fresh[np.argsort(first[fresh])]] = np.arange(
            len(known), len(known) + len(fresh), dtype=np.int32
        )
        if len(fresh):
            wide = np.promote_types(known.dtype, wanted.dtype)  # inserting would cut longer text off
            self.known = known.astype(wide, copy=False)
            _insert(self.known, at[fresh], wanted[fresh])
            _insert(self.places, at[fresh], codes[fresh])
        return codes[back]

    def _measure(self, names: list[str], codes: np.ndarray, where: Where) -> None:
        if not names:
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


def _insert(table: np.ndarray, at: np.ndarray, values: np.ndarray) -> None:
    """`np.insert` in place: block by block from the end, so that no second table is held."""
    old, last = len(table), len(at)
    table.resize(old + last, refcheck=False)
    for start in range(old - old % _BLOCK, -1, -_BLOCK):
        first, stop = int(np.searchsorted(at, start)), min(start + _BLOCK, old)
        here = slice(first, last)
        table[start + first : stop + last] = np.insert(table[start:stop], at[here] - start, values[here])
        last = first


def _as_names(uniques: pd.Series) -> "np.ndarray | list[str]":
    """int64 of integers, also of those that went through a float column; else text without blanks around it."""
    kind, whole = uniques.dtype.kind, False
    if kind in "iu":
        whole = not len(uniques) or uniques.max() <= np.iinfo(np.int64).max
    elif kind == "f":
        whole = bool((uniques % 1 == 0).all() and uniques.abs().max() <= _EXACT)
    if whole:
        return uniques.to_numpy(np.int64)
    return [name.strip() for name in uniques.astype(str).tolist()]


def _encoded(names: list[str]) -> np.ndarray:
    return np.array([name.encode("utf-8", "surrogatepass") for name in names], dtype=np.bytes_)


def _is_sound(name: str) -> bool:
    return 0 < len(name) <= LONGEST and not any(mark in name for mark in "\n\r\0")


def _complaint(name: str, column: str) -> str:
    if not name:
        return f"empty {column!r}"
    if len(name) > LONGEST:
        return f"{column!r} of {len(name):,} characters, and an id has at most {LONGEST:,}; is a quote not closed?"
    if "\0" in name:
        return f"{column!r} holds a NUL character, and an id must not; is this text?"
    return f"{column!r} goes on in the next line, and an id must not; is a quote not closed?"


def _is_plain(name: bytes) -> bool:
    return bool(_PLAIN.fullmatch(name)) and int(name) in _INT64
