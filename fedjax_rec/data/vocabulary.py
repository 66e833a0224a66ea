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

MAX_ID_LENGTH = 1000  # characters
_MAX_BYTES = 2**24  # that a table of ids may take in any case,
_MAX_BYTES_PER_ROW = 64  # and for each row: all ids are as wide as the widest
_EXACT = 2.0**53  # float64 holds every integer up to here
_PLAIN = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_BLOCK = 2**12  # ids moved or decoded at a time
_INT64 = range(-(2**63), 2**63)


class Vocabulary:
    """The ids of one column and their codes: a sorted table, which takes a fifth of the memory of a dict."""

    def __init__(self, name: str) -> None:
        """An empty vocabulary of the column `name`."""
        self.name = name
        self.known: np.ndarray = np.empty(0, np.int64)  # sorted; int64, or text as bytes [N] of equal width
        self.known_codes = np.empty(0, np.int32)  # of these ids, in the same order
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
        refused_names = [not _is_valid(name) for name in names] if isinstance(names, list) else []
        refused = codes < 0
        if any(refused_names):
            refused |= np.array(refused_names)[codes]
        if refused.any():
            row = int(refused.argmax())
            raise DataError(
                f"{where(row)}: {_complaint(str(names[codes[row]]) if codes[row] >= 0 else '', self.name)}"
            )
        if isinstance(names, list):
            self._measure(names, codes, where)
        self.rows += len(codes)
        return self._code(self._as_known(names))[codes]

    def ids(self) -> np.ndarray:
        """The external ids in the order of their codes.

        Returns:
            int64[N] where all are integers in plain decimal form, else str[N].

        Raises:
            DataError: if a few long ids make the table of all far larger than its text.
        """
        count = len(self.known)
        is_integer = self.known.dtype.kind == "i"
        if is_integer or all(_is_plain(name) for name in self.known):
            integers = np.empty(count, np.int64)
            integers[self.known_codes] = (
                self.known if is_integer else np.fromiter(map(int, self.known), np.int64, count)
            )
            return integers
        num_bytes = 4 * count * self.widest
        if num_bytes > max(_MAX_BYTES, _MAX_BYTES_PER_ROW * self.rows):
            raise DataError(
                f"{self.where_widest}: {self.name!r} of {self.widest} characters; all {count:,} ids are kept "
                f"as wide as the widest, which takes {num_bytes / 1e6:,.0f} MB; shorten it"
            )
        names = np.empty(count, f"U{self.widest}")
        for start in range(0, count, _BLOCK):
            block = slice(start, start + _BLOCK)
            names[self.known_codes[block]] = np.char.decode(self.known[block], "utf-8", "surrogatepass")
        return names

    def _as_known(self, names: "np.ndarray | list[str]") -> np.ndarray:
        """Some names as the table holds them; it becomes text as soon as anything is."""
        is_integer = self.known.dtype.kind == "i"
        if not isinstance(names, list) and (is_integer or not len(self.known)):
            return names
        if is_integer and len(self.known):
            width = max(len(str(name)) for name in self.known[[0, -1]])  # the longest are at the ends
            self.widest = max(self.widest, width)
            table = self.known.astype(f"S{width}")
            order = np.argsort(table)
            self.known = table[order]
            self.known_codes = self.known_codes[order]
        return _encoded([str(name).strip() for name in names])

    def _code(self, names: np.ndarray) -> np.ndarray:
        """int32[U], the codes of names [U], of which the new ones get the next in the order of appearance."""
        # Distinct names [D], sorted, and where each stands or would stand in the table; `new` are those not in it.
        distinct, first, inverse = np.unique(names, return_index=True, return_inverse=True)
        known = self.known if len(self.known) else distinct[:0].copy()
        at = np.searchsorted(known, distinct)
        is_known = at < len(known)
        is_known[is_known] = known[at[is_known]] == distinct[is_known]
        new = np.flatnonzero(~is_known)
        # Their codes [D]; new ones by first appearance.
        codes = np.empty(len(distinct), np.int32)
        codes[is_known] = self.known_codes[at[is_known]]
        codes[new[np.argsort(first[new])]] = np.arange(len(known), len(known) + len(new), dtype=np.int32)
        # The table with the new ones, sorted as before.
        if len(new):
            wide = np.promote_types(known.dtype, distinct.dtype)  # inserting would cut longer text off
            self.known = known.astype(wide, copy=False)
            _insert(self.known, at[new], distinct[new])
            _insert(self.known_codes, at[new], codes[new])
        return codes[inverse]

    def _measure(self, names: list[str], codes: np.ndarray, where: Where) -> None:
        """Remember the length of the longest name, and the first row of a long one."""
        if not names:
            return
        longest = max(range(len(names)), key=lambda index: len(names[index]))
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
    old = len(table)
    last = len(at)
    table.resize(old + last, refcheck=False)
    for start in range(old - old % _BLOCK, -1, -_BLOCK):
        first = int(np.searchsorted(at, start))
        stop = min(start + _BLOCK, old)
        in_block = slice(first, last)  # of the values, those that go into this block
        inserted = np.insert(table[start:stop], at[in_block] - start, values[in_block])
        table[start + first : stop + last] = inserted
        last = first


def _as_names(uniques: pd.Series) -> "np.ndarray | list[str]":
    """int64 of integers, also of those that went through a float column; else text without blanks around it."""
    kind = uniques.dtype.kind
    is_integer = False
    if kind in "iu":
        is_integer = not len(uniques) or uniques.max() <= np.iinfo(np.int64).max
    elif kind == "f":
        is_integer = bool((uniques % 1 == 0).all() and uniques.abs().max() <= _EXACT)
    if is_integer:
        return uniques.to_numpy(np.int64)
    return [name.strip() for name in uniques.astype(str).tolist()]


def _encoded(names: list[str]) -> np.ndarray:
    return np.array([name.encode("utf-8", "surrogatepass") for name in names], dtype=np.bytes_)


def _is_valid(name: str) -> bool:
    return 0 < len(name) <= MAX_ID_LENGTH and not any(mark in name for mark in "\n\r\0")


def _complaint(name: str, column: str) -> str:
    if not name:
        return f"empty {column!r}"
    if len(name) > MAX_ID_LENGTH:
        allowed = f"an id has at most {MAX_ID_LENGTH:,}"
        return f"{column!r} of {len(name):,} characters, and {allowed}; is a quote not closed?"
    if "\0" in name:
        return f"{column!r} holds a NUL character, and an id must not; is this text?"
    return f"{column!r} goes on in the next line, and an id must not; is a quote not closed?"


def _is_plain(name: bytes) -> bool:
    return bool(_PLAIN.fullmatch(name)) and int(name) in _INT64
