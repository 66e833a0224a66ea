"""Splits that somebody else made: which events train, validate and test is read with the events.

| what | files | validation |
|---|---|---|
| LightGCN's lists | `train.txt`, `test.txt`, perhaps `valid.txt`; `user item item ...` | as given, or drawn |
| RecBole's files | `NAME.train.inter`, `NAME.test.inter`, perhaps `NAME.valid.inter` | as given, or drawn |
| NCF's files | `NAME.train.rating`, `NAME.test.rating`, `NAME.test.negative` | a user's last training event |
| a column of parts | one file or frame; its values are train, valid or validation, test | as given, or drawn |

All but NCF's give a `Dataset` whose `parts` say where each event belongs: `splitters.given` divides by them, and
other splitters take all events together. NCF's files hold out one item a user with its candidates, which is a data
set with official test items, for leave-one-out. Text is plain or packed.

A pair of a user and an item in several parts is refused, or, where `duplicates` says something else than "error",
stays in the first part that it is in: train before validation before test.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from fedjax_rec.data.columns import Columns, check_rule, to_interactions
from fedjax_rec.data.errors import DataError, DataParameterError
from fedjax_rec.data.formats import read_file
from fedjax_rec.data.frames import Frame, open_frame
from fedjax_rec.data.interactions import SPLIT_PARTS, Dataset, Heldout, Interactions
from fedjax_rec.data.naming import guess
from fedjax_rec.data.packed import inner_name
from fedjax_rec.data.readers import open_parquet
from fedjax_rec.data.text import open_text, parse, read_header
from fedjax_rec.data.vocabulary import Where

PART_OF = {
    "train": 0,
    "training": 0,
    "valid": 1,
    "validation": 1,
    "val": 1,
    "dev": 1,
    "test": 2,
    "testing": 2,
}
_LISTS = re.compile(r"(train|valid|val|test)\.txt")
_RECBOLE = re.compile(r".+\.(train|valid|test)\.inter")
_NCF = re.compile(r"(.+)\.(train\.rating|test\.rating|test\.negative)")
_PAIR = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)")


def read_given(folder: Path, named: Mapping[str, str | None], duplicates: str) -> Dataset | None:
    r"""Reads a folder that holds a split.

    Args:
        folder: that holds the files.
        named: how the files are read: arguments of `formats.read_file`.
        duplicates: the rule for pairs that repeat within a part; above for those of several parts.

    Returns:
        the data set, named like the folder; None if the folder holds no split.

    Raises:
        DataError: naming the file of whatever is wrong, such as a part that is missing.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "train.txt").write_text("0 5 6\n1 5\n"), (folder / "test.txt").write_text("0 7\n1 6 7\n")
        >>> read_given(folder, {}, "error").parts
        array([0, 0, 0, 2, 2, 2], dtype=int8)
    """
    names = {inner_name(path): path for path in sorted(folder.iterdir()) if path.is_file()}
    ncf = {found[2]: path for name, path in names.items() if (found := _NCF.fullmatch(name))}
    if "train.rating" in ncf:
        return _read_ncf(folder, ncf, named, duplicates)
    for pattern, is_lists in ((_RECBOLE, False), (_LISTS, True)):
        files: dict[int, Path] = {}
        for name, path in names.items():
            if found := pattern.fullmatch(name):
                part = PART_OF[found[1]]
                if part in files:
                    raise DataError(
                        f"{folder}: {files[part].name} and {path.name} are both {SPLIT_PARTS[part]} events"
                    )
                files[part] = path
        if 0 in files and len(files) > 1:
            return _read_files(folder, files, is_lists, named, duplicates)
    return None


def read_table_of_parts(
    path: str | Path, part: str, named: Mapping[str, str | None], duplicates: str = "error"
) -> Dataset:
    r"""Reads a table whose rows say which part of a split they belong to.

    Args:
        path: of a csv, of other text with a header, or of parquet.
        part: name of the column that says it.
        named: names of columns by role, the others None, as arguments of `formats.read_file`.
        duplicates: as of `read_given`.

    Returns:
        the data set with its parts, named like the file.

    Raises:
        DataError: naming the file, and the line, of whatever is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "log.csv"
        >>> _ = path.write_text("user,item,fold\n1,5,train\n1,6,test\n")
        >>> read_table_of_parts(path, "fold", {}).parts
        array([0, 2], dtype=int8)
    """
    path = Path(path)
    if named.get("columns") is not None:
        raise DataError(
            f"{path}: a column of parts needs a header, so that columns (--columns) has no meaning"
        )
    if Path(inner_name(path)).suffix.lower() in (".parquet", ".pq"):
        return _of_frame(open_parquet(path), part, named, duplicates, str(path), path.name.split(".")[0])
    text = open_text(path, named.get("separator"))
    names = read_header(text)
    columns = _columns(str(path), names, part, named)
    table = parse(text, names, ids=[*columns[:2], part], header=True)
    return _divide(table.frame, columns, part, table.where, duplicates, path.name.split(".")[0])


def frame_of_parts(frame: Frame, part: str, *, duplicates: str = "error", **named: str | None) -> Dataset:
    """Makes a data set of a frame whose rows say which part of a split they belong to.

    Args:
        frame: of pandas, polars, pyarrow, or a dict of columns.
        part: name of the column that says it: train, valid or validation, and test.
        duplicates: as of `read_given`.
        **named: names of columns by role: user, item, rating, timestamp; found by their usual names if left out.

    Returns:
        the data set with its parts, for `splitters.given`.

    Raises:
        DataError: if it is no frame, a column is missing, or a row is malformed.

    Example:
        >>> frame_of_parts({"user": [1, 1], "item": [5, 6], "fold": ["train", "test"]}, "fold").parts
        array([0, 2], dtype=int8)
    """
    table = open_frame(frame)
    if table is None:
        raise DataError(
            f"frame: {type(frame).__name__} is no frame of pandas, polars or pyarrow, and no dict"
        )
    return _of_frame(table.take(table.names), part, named, duplicates, "frame", "frame")


def _of_frame(
    frame: pd.DataFrame, part: str, named: Mapping[str, str | None], duplicates: str, source: str, name: str
) -> Dataset:
    frame = frame.rename(columns=str).reset_index(drop=True)
    columns = _columns(source, list(frame.columns), part, named)
    return _divide(frame, columns, part, lambda row: f"{source}: row {row}", duplicates, name)


def _columns(source: str, names: list[str], part: str, named: Mapping[str, str | None]) -> Columns:
    if part not in names:
        raise DataError(
            f"{source}: no column {part!r} that says train, valid or test; it has {', '.join(names)}"
        )
    said = {role: name for role, name in named.items() if role in Columns._fields and name is not None}
    given = {role: None if name == "none" else name for role, name in said.items()}
    return guess(source, [name for name in names if name != part], given)


def _row_of(where: Where, rows: np.ndarray, row: int) -> str:
    """The place in the whole file of a part's row."""
    return where(int(rows[row]))


def _divide(
    frame: pd.DataFrame, columns: Columns, part: str, where: Where, duplicates: str, name: str
) -> Dataset:
    """A data set of a frame's rows, part by part."""
    words = frame[part].astype(str).str.strip().str.casefold()
    codes = words.map(PART_OF)
    if (unknown := codes.isna().to_numpy()).any():
        row = int(unknown.argmax())
        raise DataError(
            f"{where(row)}: {frame[part].iloc[row]!r} in {part!r} is none of {', '.join(PART_OF)}"
        )
    events = []
    present = sorted(set(codes.astype(int)))
    for code in present:
        rows = np.flatnonzero(codes == code)
        own = frame.iloc[rows].reset_index(drop=True)
        events.append(to_interactions(own, columns, partial(_row_of, where, rows), duplicates))
    return join_parts(name, events, present, name, duplicates)


def _read_files(
    folder: Path, files: Mapping[int, Path], is_lists: bool, named: Mapping[str, str | None], duplicates: str
) -> Dataset:
    options = dict(named)
    parts = sorted(files)
    events = []
    for part in parts:
        found, reading = read_file(files[part], **options, duplicates=duplicates)
        events.append(found)
        if is_lists and part == 0 and reading.kind == "lists":
            options["columns"] = "user,items"  # the others are lists too, however short their lines are
    dataset = join_parts(folder.name, events, parts, str(folder), duplicates)
    notes = () if reading.kind == "lists" else reading.notes
    return dataset._replace(notes=(*dataset.notes, *notes))


def join_parts(
    name: str, events: Sequence[Interactions], parts: Sequence[int], source: str, duplicates: str
) -> Dataset:
    """Makes one table of the events of several parts, none of which has a pair of an earlier one.

    Args:
        name: of the data set.
        events: of each part.
        parts: the index of each in `SPLIT_PARTS`.
        source: what it is called in messages.
        duplicates: as of `read_given`.

    Returns:
        the data set.

    Raises:
        DataError: if there is nothing to train or to test, or a pair is in several parts and that is an error.

    Example:
        >>> one = Interactions(*np.zeros((2, 1), np.int32), None, None, np.array([7]), np.array([8]))
        >>> join_parts("tiny", [one, one._replace(item_ids=np.array([9]))], [0, 2], "here", "error").parts
        array([0, 2], dtype=int8)
    """
    check_rule(duplicates)
    for part, needed in ((0, "train"), (2, "test")):
        if part not in parts:
            raise DataError(f"{source}: no {needed} events; a split needs train and test, and may have valid")
    joined = _concatenate(events)
    codes = np.repeat(np.array(parts, np.int8), [len(each.users) for each in events])
    pairs = joined.users.astype(np.int64) * joined.num_items + joined.items
    order = np.argsort(codes, kind="stable")
    repeated = np.zeros(len(codes), bool)
    repeated[order] = pd.Series(pairs[order]).duplicated().to_numpy()
    if not repeated.any():
        return Dataset(name, joined, parts=codes)
    if duplicates == "error":
        row = int(repeated.argmax())
        user, item = joined.user_ids[joined.users[row]], joined.item_ids[joined.items[row]]
        raise DataParameterError(
            "{source}: item {item_id} of user {user_id} is in several parts; {duplicates=first} leaves it in the "
            "first of them",
            source=source,
            item_id=item,
            user_id=user,
        )
    note = f"{repeated.sum():,} events of pairs that an earlier part has are left out"
    kept = ~repeated
    table = Interactions(
        joined.users[kept],
        joined.items[kept],
        None if joined.ratings is None else joined.ratings[kept],
        None if joined.timestamps is None else joined.timestamps[kept],
        joined.user_ids,
        joined.item_ids,
    )
    return Dataset(name, table, parts=codes[kept], notes=(note,))


def _concatenate(events: Sequence[Interactions]) -> Interactions:
    """Tables one behind the other, in one vocabulary; a column that one of them lacks is left out."""

    def join(ids: Sequence[np.ndarray], codes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        texts = any(each.dtype.kind not in "iu" for each in ids)
        known = pd.concat([pd.Series(each.astype(str) if texts else each) for each in ids], ignore_index=True)
        new, names = pd.factorize(known)
        starts = np.cumsum([0, *(len(each) for each in ids)])
        joined = [new[start:][own] for start, own in zip(starts, codes, strict=False)]
        names = np.asarray(names)
        return np.concatenate(joined).astype(np.int32), names.astype(str) if texts else names

    def column(name: str) -> np.ndarray | None:
        columns = [getattr(each, name) for each in events]
        return None if any(own is None for own in columns) else np.concatenate(columns)

    users, user_ids = join([each.user_ids for each in events], [each.users for each in events])
    items, item_ids = join([each.item_ids for each in events], [each.items for each in events])
    return Interactions(users, items, column("ratings"), column("timestamps"), user_ids, item_ids)


def _read_ncf(
    folder: Path, files: Mapping[str, Path], named: Mapping[str, str | None], duplicates: str
) -> Dataset:
    """Training events and, of each user, a test item with its candidates."""
    for needed in ("test.rating",):
        if needed not in files:
            raise DataError(f"{folder}: {files['train.rating'].name} without a file NAME.{needed}")
    options = {"columns": "user,item,rating,timestamp", "separator": "tab"} | {
        name: value for name, value in named.items() if value is not None
    }
    train, _ = read_file(files["train.rating"], **options, duplicates=duplicates)
    test, _ = read_file(files["test.rating"], **options, duplicates=duplicates)
    if (twice := np.bincount(test.users) > 1).any():
        user = test.user_ids[int(twice.argmax())]
        raise DataError(f"{files['test.rating']}: user {user} has two test items; NCF's files hold out one")
    lists = _negatives(files["test.negative"]) if "test.negative" in files else {}

    # One vocabulary: training items first, then those of the test and of the lists.
    nothing = np.zeros(0, np.int32)
    listed = np.array(sorted({item for _, items in lists.values() for item in items}), np.int64)
    extra = Interactions(
        nothing, nothing, None, None, train.user_ids[:0], listed.astype(train.item_ids.dtype)
    )
    joined = _concatenate([train, test, extra])
    number = len(train.users)
    owners, positives = joined.users[number:], joined.items[number:]
    trained = np.isin(
        owners.astype(np.int64) * joined.num_items + positives,
        joined.users[:number].astype(np.int64) * joined.num_items + joined.items[:number],
    )
    if trained.any():
        row = int(trained.argmax())
        item, user = joined.item_ids[positives[row]], joined.user_ids[owners[row]]
        raise DataError(f"{files['test.rating']}: item {item} is among the training items of user {user}")
    heldout = np.full(joined.num_users, -1, np.int32)
    heldout[owners] = positives
    candidates = _candidates(lists, joined, files["test.negative"]) if lists else None
    events = Interactions(
        joined.users[:number],
        joined.items[:number],
        train.ratings,
        train.timestamps,
        joined.user_ids,
        joined.item_ids,
    )
    name = re.sub(r"\.train\.rating$", "", inner_name(files["train.rating"]))
    return Dataset(name, events, Heldout(heldout, candidates))


def _negatives(path: Path) -> dict[str, tuple[int, list[int]]]:
    """By user: the line, and the items, of `(user,item)<tab>item<tab>item...`."""
    lists: dict[str, tuple[int, list[int]]] = {}
    for line, fields in open_text(path, "\t").records():
        match = _PAIR.fullmatch(fields[0].strip())
        items = [field.strip() for field in fields[1:] if field.strip()]
        if match is None or not all(item.isdecimal() for item in items):
            raise DataError(f"{path}:{line}: expected (user,item) and items between tabs, as NCF writes them")
        if match[1] in lists:
            raise DataError(f"{path}:{line}: user {match[1]} has a line already")
        lists[match[1]] = (line, [int(item) for item in items])
    return lists


def _candidates(lists: Mapping[str, tuple[int, list[int]]], events: Interactions, path: Path) -> np.ndarray:
    """int32[N, n], -1 behind shorter lists."""
    users = pd.Index(events.user_ids.astype(str))
    codes = pd.Index(events.item_ids.astype(str))
    width = max(len(items) for _, items in lists.values())
    candidates = np.full((events.num_users, width), -1, np.int32)
    owners = users.get_indexer(pd.Index(list(lists)))
    for owner, (user, (line, items)) in zip(owners, lists.items(), strict=True):
        if owner < 0:
            raise DataError(f"{path}:{line}: user {user} has neither a training nor a test item")
        candidates[owner, : len(items)] = codes.get_indexer(pd.Index(list(map(str, items))))
    return candidates
