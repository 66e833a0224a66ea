"""Titles of items, for lists that a person reads, from the file of items that lies beside a data set.

| file | lines |
|---|---|
| `movies.dat` (MovieLens 1M), `u.item` (MovieLens 100K) | `item::title::...` and `item|title|...`, no header |
| `NAME.item` (RecBole) | tab-separated, a typed header such as `item_id:token` first |
| `movies.csv` (MovieLens since 2015), any other `.csv` | a header with a column of items and one of titles |

Nothing is learnt from titles, and nothing fails without them.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.registry import DATASETS, find_files

_PLAIN = {"movies.dat": "::", "u.item": "|"}  # files without a header
_ITEMS = ("item", "item_id", "movieid", "itemid", "id")
_TITLES = ("title", "movie_title", "item_name", "name", "titles")


def find_titles(dataset: str, data_dir: str | Path | None = None) -> Path | None:
    """Look for the file of titles beside a data set; nothing is downloaded.

    Args:
        dataset: a registered name, or the path of a file or folder.
        data_dir: the folder that holds the data.

    Returns:
        the file, or None where there is none.

    Example:
        >>> find_titles("synthetic") is None
        True
    """
    path = Path(dataset).expanduser()
    folders = [path if path.is_dir() else path.parent] if path.exists() else []
    if dataset in DATASETS:
        folders = (
            [] if data_dir is None else [Path(data_dir).expanduser() / dataset, Path(data_dir).expanduser()]
        )
        found = find_files(DATASETS[dataset], data_dir)
        folders += [] if not found else [found[0] if found[0].is_dir() else found[0].parent]
    for folder in folders:
        for file in (*(folder / name for name in (*_PLAIN, "movies.csv")), *sorted(folder.glob("*.item"))):
            if file.is_file():
                return file
    return None


def read_titles(path: str | Path) -> dict[str, str]:
    r"""Read titles of items.

    Args:
        path: a file of the kinds above.

    Returns:
        title by external id, both as text; lines without both are passed over.

    Raises:
        DataError: if its header names no items or no titles.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "mine.csv"
        >>> _ = file.write_text('item,title\n7,"Salt, and Pepper"\n')
        >>> read_titles(file)
        {'7': 'Salt, and Pepper'}
    """
    path = Path(path).expanduser()
    rows = _rows(path)
    if path.name in _PLAIN:
        item, title = 0, 1
    else:
        header = [name.split(":")[0].strip().casefold() for name in next(rows, [])]
        item, title = (
            next((header.index(name) for name in names if name in header), -1) for names in (_ITEMS, _TITLES)
        )
        if min(item, title) < 0:
            raise DataError(
                f"{path}: its first line names no columns of items and titles, such as item,title"
            )
    told = {row[item].strip(): row[title].strip() for row in rows if len(row) > max(item, title)}
    return {name: text for name, text in told.items() if text}


def _rows(path: Path) -> Iterator[list[str]]:
    """The fields of each line, in the encoding that the file has."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # MovieLens until 2015
    if path.name in _PLAIN:
        return (line.split(_PLAIN[path.name]) for line in text.splitlines())
    if path.suffix == ".item":
        return (line.split("\t") for line in text.splitlines())
    return csv.reader(text.splitlines())
