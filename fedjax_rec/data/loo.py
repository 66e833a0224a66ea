"""The pre-split leave-one-out directory: training pairs, one test item a user, official candidate lists.

| file (plain or `.gz`) | header | one line for each |
|---|---|---|
| `train.tsv` | `user item` | training pair |
| `test.tsv` | `user item ...` (further columns are ignored) | user with a test item |
| `negatives.tsv` (may be absent) | `user items` (space-separated) | user with candidates |

The split that made the format known, MovieLens 1M of He et al. 2017 (https://arxiv.org/abs/1708.05031),
lists the positive itself among the candidates of 156 users. It is removed, as their evaluator does.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedjax_rec.data.columns import Columns, to_interactions
from fedjax_rec.data.errors import DataError, unknown_column
from fedjax_rec.data.interactions import Dataset, Heldout, Interactions
from fedjax_rec.data.text import Table, open_text, parse, read_header
from fedjax_rec.data.vocabulary import Where, encode


def read_loo_directory(path: str | Path, *, duplicates: str = "error") -> Dataset:
    r"""Reads a leave-one-out directory.

    Args:
        path: the directory that holds the three files.
        duplicates: "error", or keep the "first" or the "last" of several training events of one pair.

    Returns:
        The data set named like the directory: training pairs without ratings and times, and the test items
        int32[N] with candidates int32[N, n] (n the longest list; -1 fills the end of shorter ones). Items
        that occur only in the test or the candidates follow the training items in the vocabulary.

    Raises:
        DataError: naming the file and line of whatever is wrong: besides malformed lines, a user with two
            test items or two lists, a list without a test item, and a test item or a candidate that the
            user has in training.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "train.tsv").write_text("user\titem\n7\t1\n")
        >>> _ = (folder / "test.tsv").write_text("user\titem\n7\t2\n")
        >>> _ = (folder / "negatives.tsv").write_text("user\titems\n7\t3 2\n")
        >>> data = read_loo_directory(folder)
        >>> data.test.items, data.test.candidates, data.interactions.item_ids
        (array([1], dtype=int32), array([[ 2, -1]], dtype=int32), array([1, 2, 3]))
    """
    path = Path(path)
    train = _read(path, "train.tsv", "item")
    test = _read(path, "test.tsv", "item")
    lists = _read_lists(path) if _locate(path, "negatives.tsv") else None
    events = to_interactions(train.frame, Columns("user", "item"), train.where, duplicates)
    events = events._replace(
        user_ids=_extend(events.user_ids, test.frame["user"]),
        item_ids=_extend(events.item_ids, test.frame["item"], [] if lists is None else lists.words),
    )
    positives = _positives(test, events)
    candidates = None if lists is None else _candidates(lists, positives, events)
    return Dataset(path.name, events, Heldout(positives, candidates))


class _Lists(NamedTuple):
    """Candidate lists, and their words flattened line after line."""

    table: Table
    words: list[str]
    rows: np.ndarray  # int64, the row of the table that each word stands in


def _locate(path: Path, name: str) -> Path | None:
    return next((file for file in (path / f"{name}.gz", path / name) if file.is_file()), None)


def _read(path: Path, name: str, content: str) -> Table:
    file = _locate(path, name)
    if file is None:
        raise DataError(f"{path}: no {name} or {name}.gz in this directory")
    text = open_text(file, "\t")
    names = read_header(text)
    for needed in ("user", content):
        if needed not in names:
            raise unknown_column(text.where(0), needed, names)
    table = parse(text, names, ids=["user", content], header=True)
    for needed in ("user", content):
        encode(table.frame[needed], needed, table.where)
    return table


def _read_lists(path: Path) -> _Lists:
    table = _read(path, "negatives.tsv", "items")
    lists = [str(items).split() for items in table.frame["items"]]
    rows = np.repeat(np.arange(len(lists)), [len(words) for words in lists])
    return _Lists(table, [word for words in lists for word in words], rows)


def _texts(ids: Iterable) -> pd.Index:
    return pd.Index([str(name).strip() for name in ids], dtype=object)


def _extend(ids: np.ndarray, *others: Iterable) -> np.ndarray:
    """The ids and then the new ones among `others`, by first appearance."""
    texts = [_texts(ids), *map(_texts, others)]
    return encode(pd.Series(np.concatenate(texts), dtype=object), "id", str)[1]


def _codes(ids: np.ndarray, values: Iterable) -> np.ndarray:
    """Codes of external ids, -1 where unknown."""
    return _texts(ids).get_indexer(_texts(values)).astype(np.int32)


def _refuse_repeated(owners: np.ndarray, table: Table) -> None:
    repeated = pd.Series(owners).duplicated().to_numpy()
    if repeated.any():
        row = int(repeated.argmax())
        raise DataError(f"{table.where(row)}: user {table.frame['user'].iloc[row]} has a line already")


def _refuse_trained(pairs: tuple[np.ndarray, np.ndarray], events: Interactions, where: Where) -> None:
    users, items = pairs
    width = np.int64(events.num_items)
    is_trained = pd.Series(users * width + items).isin(events.users * width + events.items).to_numpy()
    if is_trained.any():
        row = int(is_trained.argmax())
        user = events.user_ids[users[row]]
        item = events.item_ids[items[row]]
        raise DataError(f"{where(row)}: item {item} is among the training items of user {user}")


def _positives(test: Table, events: Interactions) -> np.ndarray:
    owners = _codes(events.user_ids, test.frame["user"])
    items = _codes(events.item_ids, test.frame["item"])
    _refuse_repeated(owners, test)
    _refuse_trained((owners, items), events, test.where)
    positives = np.full(events.num_users, -1, np.int32)
    positives[owners] = items
    return positives


def _candidates(lists: _Lists, positives: np.ndarray, events: Interactions) -> np.ndarray:
    """The lists in the order of the users, without the positive; the empty slots come last."""
    # whose lists they are, int64[lists]
    table = lists.table
    rows = lists.rows
    listed = _codes(events.user_ids, table.frame["user"])
    _refuse_repeated(listed, table)
    stray = (listed < 0) | (positives[listed] < 0)
    if stray.any():
        row = int(stray.argmax())
        raise DataError(f"{table.where(row)}: user {table.frame['user'].iloc[row]} has no test item")
    # the items of all lists, one list after the other; the positives go
    codes = _codes(events.item_ids, lists.words)
    _refuse_trained((listed[rows], codes), events, lambda word: table.where(int(rows[word])))
    is_negative = codes != positives[listed[rows]]
    width = int(np.bincount(rows).max())
    codes = codes[is_negative]
    rows = rows[is_negative]
    # each in the row of its user [N, n], from the left
    first = np.searchsorted(rows, np.arange(len(listed)))
    candidates = np.full((events.num_users, width), -1, np.int32)
    candidates[listed[rows], np.arange(len(rows)) - first[rows]] = codes
    return candidates
