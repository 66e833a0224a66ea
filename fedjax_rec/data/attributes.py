"""What is known about the users besides their events, such as gender, age group or occupation.

| file | lines |
|---|---|
| `users.dat` (MovieLens 1M) | `user::gender::age::occupation::zip`, age groups and occupations as codes |
| `u.user` (MovieLens 100K) | the same columns but age before gender, with bars between them |
| `NAME.user` (RecBole) | tab-separated, a typed header such as `user_id:token` first |

Attributes serve the evaluation by groups only. No algorithm sees them.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.text import open_text, parse, read_header

_COLUMNS = {
    "users.dat": ("::", ("user", "gender", "age", "occupation", "zip")),
    "u.user": ("|", ("user", "age", "gender", "occupation", "zip")),
}
_FILES_OF_DATASET = {
    "ml-100k": ("u.user", "ml-100k.user"),
    "ml-1m": ("users.dat",),
    "ml-1m-loo": ("users.dat",),
}
_FILE_BESIDE = {"ratings.dat": "users.dat", "u.data": "u.user"}


def read_user_attributes(path: str | Path, user_ids: np.ndarray) -> dict[str, np.ndarray]:
    r"""Reads attributes of users.

    Args:
        path: a file of the formats above, told apart by its name.
        user_ids: [N], external ids of the users wanted.

    Returns:
        str[N] by name of the attribute, as the file spells its values; empty for a user without a line.

    Raises:
        DataError: naming the file and line of what is wrong: a line with another number of fields, a user with
            two lines, a header without a column of users.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "users.dat"
        >>> _ = file.write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
        >>> read_user_attributes(file, np.array([2, 7, 1]))["gender"].tolist()
        ['M', '', 'F']
    """
    path = Path(path)
    separator, columns = _COLUMNS.get(path.name, ("\t", ()))
    text = open_text(path, separator)
    text = text._replace(data=text.data.replace(text.separator.encode(), b"\t"), separator="\t")
    names = list(columns) or ["user" if name == "user_id" else name for name in _untyped(read_header(text))]
    if "user" not in names:
        raise DataError(f"{text.where(0)}: no column 'user_id'; its columns are {', '.join(names)}")
    table = parse(text, names, ids=names, header=not columns)
    frame = table.frame.astype(str).apply(lambda column: column.str.strip())
    repeated = frame["user"].duplicated().to_numpy()
    if repeated.any():
        row = int(repeated.argmax())
        raise DataError(f"{table.where(row)}: user {frame['user'].iloc[row]} has a line already")
    rows = pd.Index(frame["user"]).get_indexer(pd.Index(user_ids.astype(str)))  # [N], -1 without a line
    values = {name: frame[name].to_numpy(str) for name in names if name != "user"}
    return {name: np.where(rows >= 0, column[rows], "") for name, column in values.items()}


def find_user_attributes(dataset: str, data_dir: str | Path | None = None) -> Path | None:
    """Looks for the file of attributes beside a data set; nothing is downloaded.

    Args:
        dataset: a registered name, or the path of a file or folder, as `load_dataset` takes it.
        data_dir: the folder that holds the data.

    Returns:
        The file, or None where there is none.

    Example:
        >>> find_user_attributes("synthetic") is None
        True
    """
    path = Path(dataset).expanduser()
    paths: list[Path] = []
    if dataset in _FILES_OF_DATASET:
        folder = None if data_dir is None else Path(data_dir).expanduser()
        parents = [] if folder is None else [folder / dataset, folder]
        paths = [parent / name for parent in parents for name in _FILES_OF_DATASET[dataset]]
    elif path.is_dir():
        paths = [*(path / name for name in _COLUMNS), *sorted(path.glob("*.user"))]
    elif path.is_file():
        plain = path.with_name(path.name.removesuffix(".gz"))
        paths = [plain.with_name(_FILE_BESIDE.get(plain.name, f"{plain.stem}.user"))]
    return next((path for path in paths if path.is_file()), None)


def _untyped(names: list[str]) -> list[str]:
    """RecBole's `age:token` is the column `age`."""
    return [name.split(":")[0] for name in names]
