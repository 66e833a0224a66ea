"""Paths to data sets: a file of events, a folder that holds one, or a folder of a split that is made."""

from pathlib import Path

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.formats import flags_of, read_file
from fedjax_rec.data.given_splits import read_given, read_table_of_parts
from fedjax_rec.data.interactions import Dataset
from fedjax_rec.data.loo import read_loo_directory
from fedjax_rec.data.readers import PARQUET
from fedjax_rec.data.store.format import is_store


def load_path(path: Path, named: dict[str, str | None], duplicates: str, part: str | None = None) -> Dataset:
    r"""Loads what lies at a path.

    Args:
        path: of a file or a folder that exists.
        named: how a file is read: arguments of `read_file`.
        duplicates: the rule for pairs that repeat.
        part: name of the column that says which part of a split an event is in; None for no such column.

    Returns:
        the data set, named like the path.

    Raises:
        DataError: if a folder does not hold one file of events, or a file is malformed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "log.csv"
        >>> _ = path.write_bytes(b"user,item\n1,2\n")
        >>> load_path(path, {}, "error").name
        'log'
    """
    if part is not None:
        if path.is_dir():
            raise DataError(f"{path}: a column of parts ({part!r}) is of a file, and this is a directory")
        return read_table_of_parts(path, part, named, duplicates)
    if not path.is_dir():
        return _load_file(path, path.name.split(".")[0], named, duplicates)
    if is_store(path):
        raise DataError(f"{path}: a store is not read into memory; open it with fedjax_rec.open_population")
    if any((path / name).is_file() for name in ("train.tsv", "train.tsv.gz")):
        return read_loo_directory(path, duplicates=duplicates)
    if (dataset := read_given(path, named, duplicates)) is not None:
        return dataset
    ratings = sorted(file for file in path.iterdir() if file.name in {"u.data", "ratings.dat", "ratings.csv"})
    files = ratings or sorted(path.glob("*.inter"))
    if not files and any(file.suffix.lower() in PARQUET for file in path.rglob("*")):
        raise DataError(
            f"{path}: a folder of parquet files is read as a store; make one with: fedjax-rec data convert {path} "
            "STORE, or give the path of one file"
        )
    if len(files) != 1:
        known = (
            "train.tsv(.gz), train.txt and test.txt, *.train.inter and *.test.inter, *.train.rating, u.data, "
            "ratings.dat, ratings.csv or one *.inter"
        )
        raise DataError(f"{path}: a directory without {known}; give the path of a file")
    return _load_file(files[0], path.name, named, duplicates)


def _load_file(path: Path, name: str, named: dict[str, str | None], duplicates: str) -> Dataset:
    events, reading = read_file(path, **named, duplicates=duplicates)
    return Dataset(name, events, notes=reading.notes, reading=flags_of(reading))
