"""The data sets known by name: where they come from, what they may be used for, and how to load them.

| name | users | items | interactions |
|---|---|---|---|
| `synthetic` (the default; needs no file) | 1,000 | 1,200 | about 94,000 |
| `ml-100k` | 943 | 1,682 | 100,000 |
| `ml-1m` | 6,040 | 3,706 | 1,000,209 |
| `ml-10m` | 69,878 | 10,677 | 10,000,054 |
| `ml-20m` | 138,493 | 26,744 | 20,000,263 |
| `ml-25m` | 162,541 | 59,047 | 25,000,095 |
| `ml-32m` | 200,948 | 84,432 | 32,000,204 |
| `ml-latest-small` | 610 | 9,724 | 100,836 |
| `ml-1m-loo` (split; from a folder only) | 6,040 | 3,706 | 994,169 and 6,040 test items |

Checksums and sizes of the archives are those that TensorFlow Datasets publishes. Where none is published
(`ml-10m`, `ml-32m`) the first download is trusted, with a warning in the log. In every case the checksum of
the installed file is recorded beside it and verified whenever it is used again.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_rec.data.archives import extract
from fedjax_rec.data.disk import sha256_of
from fedjax_rec.data.download import install, verify
from fedjax_rec.data.errors import DataError, nearest
from fedjax_rec.data.interactions import Dataset, Interactions
from fedjax_rec.data.loo import read_loo_directory
from fedjax_rec.data.readers import (
    SUFFIXES,
    read_any,
    read_movielens_100k,
    read_movielens_csv,
    read_movielens_dat,
)
from fedjax_rec.data.synthetic import synthetic

_log = logging.getLogger(__name__)

_HARPER = (
    "F. M. Harper and J. A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5(4), 19. https://doi.org/10.1145/2827872"
)
_NCF = (
    "X. He, L. Liao, H. Zhang, L. Nie, X. Hu, and T.-S. Chua. 2017. Neural Collaborative Filtering. "
    "Proceedings of the 26th International Conference on World Wide Web. https://arxiv.org/abs/1708.05031"
)
_ASK_FIRST = "GroupLens terms: research use; no redistribution or commercial use without permission"
_SAME_TERMS = "GroupLens terms: research use; redistribution under the same terms; no commercial use"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_MIRROR = "https://huggingface.co/datasets/Recommenders/MovieLens/resolve/main"


class Counts(NamedTuple):
    """Sizes of a data set."""

    users: int
    items: int
    interactions: int


class DatasetInfo(NamedTuple):
    """What is known about a data set before it is loaded."""

    name: str
    title: str
    counts: Counts | None  # None where they depend on the settings
    licence: str
    citation: str
    redistributable: bool
    url: str = ""  # empty where there is nothing to download
    mirrors: tuple[str, ...] = ()
    sha256: str | None = None  # of the download; None where unknown: see the module's docstring
    size: int | None = None  # of the download, bytes
    file: str = ""  # the ratings, by their full name in the archive; or the folder of a split
    file_sha256: str | None = None  # of the ratings; a copy that differs is logged as a warning
    reader: Callable[..., Interactions] | Callable[..., Dataset] | None = None


def _movielens(name: str, title: str, counts: tuple[int, int, int], **more: object) -> DatasetInfo:
    """A MovieLens archive of GroupLens; the settings common to the larger ones are the defaults."""
    info = DatasetInfo(
        name=name,
        title=title,
        counts=Counts(*counts),
        licence=_SAME_TERMS,
        citation=_HARPER,
        redistributable=True,
        url=f"{_GROUPLENS}/{name}.zip",
        file=f"{name}/ratings.csv",
        reader=read_movielens_csv,
    )
    return info._replace(**more)  # type: ignore[arg-type]


_ALL = (
    DatasetInfo(
        "synthetic",
        "synthetic long-tail population with known preferences",
        Counts(1000, 1200, 94_387),
        licence="none needed: drawn by fedjax_rec",
        citation="",
        redistributable=True,
    ),
    _movielens(
        "ml-100k",
        "MovieLens 100K (1998)",
        (943, 1682, 100_000),
        licence=_ASK_FIRST,
        redistributable=False,
        mirrors=(f"{_MIRROR}/ml-100k.zip",),
        sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        size=4_924_029,
        file="ml-100k/u.data",
        file_sha256="06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
        reader=read_movielens_100k,
    ),
    _movielens(
        "ml-1m",
        "MovieLens 1M (2003)",
        (6040, 3706, 1_000_209),
        licence=_ASK_FIRST,
        redistributable=False,
        mirrors=(
            f"{_MIRROR}/ml-1m.zip",
            "https://static.preferred.ai/cornac/datasets/movielens/ml-1m.zip",
        ),
        sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        size=5_917_549,
        file="ml-1m/ratings.dat",
        reader=read_movielens_dat,
    ),
    _movielens(
        "ml-10m",
        "MovieLens 10M (2009)",
        (69_878, 10_677, 10_000_054),
        licence=_ASK_FIRST,
        redistributable=False,
        mirrors=(f"{_MIRROR}/ml-10m.zip",),
        file="ml-10M100K/ratings.dat",
        reader=read_movielens_dat,
    ),
    _movielens(
        "ml-20m",
        "MovieLens 20M (2015)",
        (138_493, 26_744, 20_000_263),
        mirrors=(f"{_MIRROR}/ml-20m.zip",),
        sha256="96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
        size=198_702_078,
    ),
    _movielens(
        "ml-25m",
        "MovieLens 25M (2019)",
        (162_541, 59_047, 25_000_095),
        sha256="8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
        size=261_978_986,
    ),
    _movielens("ml-32m", "MovieLens 32M (2023)", (200_948, 84_432, 32_000_204)),
    _movielens(
        "ml-latest-small",
        "MovieLens latest-small (September 2018)",
        (610, 9724, 100_836),
        sha256="696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        size=978_202,
        file_sha256="aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
    ),
    DatasetInfo(
        "ml-1m-loo",
        "MovieLens 1M, leave-one-out with 99 official candidates",
        Counts(6040, 3706, 994_169),
        licence=_ASK_FIRST,
        citation=f"{_HARPER}; {_NCF}",
        redistributable=False,
        file="ml-1m-loo",
        reader=read_loo_directory,
    ),
)

DATASETS = {info.name: info for info in _ALL}


def list_datasets() -> list[DatasetInfo]:
    """The registered data sets, the default first.

    Returns:
        What is known about each.

    Example:
        >>> [info.name for info in list_datasets()][:3]
        ['synthetic', 'ml-100k', 'ml-1m']
    """
    return list(DATASETS.values())


def load_dataset(
    name: str | Path = "synthetic",
    *,
    data_dir: str | Path | None = None,
    duplicates: str = "error",
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    timestamp: str | None = None,
    progress: bool = False,
) -> Dataset:
    """Loads a data set by its registered name, or a file or directory by its path.

    Args:
        name: a registered name, or the path of a file that `read_any` knows or of a leave-one-out directory.
        data_dir: where to find the files of a registered data set; then the network is never used. Looked
            at are `<data_dir>/<name>/<file>`, `<data_dir>/<file>`, the archive's own folder and the archive.
            None: the cache, and the network where the cache lacks it (see `fetch`).
        duplicates: "error", or keep the "first" or the "last" of several events of one pair.
        user: name of the users' column, for the path of a file with a header.
        item: the same for the items.
        rating: the same for the ratings.
        timestamp: the same for the times.
        progress: show a progress bar while downloading.

    Returns:
        The data set.

    Raises:
        DataError: in one line: an unknown name (with the nearest), a file that is nowhere (with the places),
            a path given together with `data_dir`,
            a download that failed (with what to do), or bad contents (with file and line).

    Example:
        >>> load_dataset("ml-1000k")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: unknown data set 'ml-1000k'; did you mean 'ml-100k'? ...
    """
    named = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    info = DATASETS.get(str(name))
    if info is None:
        path = _existing(str(name))
        if data_dir is not None:
            raise DataError(
                f"{name}: a path needs no --data-dir (data_dir=...), got {str(data_dir)!r}; leave it out"
            )
        return _load_path(path, named, duplicates)
    given = [f"{part}={column!r}" for part, column in named.items() if column is not None]
    if given:
        raise DataError(f"{name}: a registered data set has its own columns ({', '.join(given)} not allowed)")
    if info.reader is None:
        return synthetic()
    if data_dir is None:
        return _load_file(info, fetch(info.name, progress=progress), duplicates)
    return _load_from(info, Path(data_dir).expanduser(), duplicates)


def fetch(name: str, *, progress: bool = False) -> Path:
    """Makes sure that the file of a registered data set is in the cache.

    The cache is the folder named by the environment variable `FEDJAX_REC_CACHE`, or `~/.cache/fedjax_rec`.

    Args:
        name: a registered name.
        progress: show a progress bar while downloading.

    Returns:
        The path of the ratings file.

    Raises:
        DataError: if the name is unknown, there is nothing to download, every address failed, or the cached
            file has changed since its download.

    Example:
        >>> fetch("synthetic")
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: synthetic: there is nothing to download
    """
    info = DATASETS.get(name)
    if info is None:
        raise _unknown(name)
    if info.reader is None:
        raise DataError(f"{name}: there is nothing to download")
    if not info.url:
        raise DataError(
            f"{name}: cannot be downloaded; pass --data-dir (data_dir=...), the folder that has it"
        )
    target = cache_dir() / name / Path(info.file).name
    if target.is_file():
        verify(target)
        return target
    member = info.file if info.url.endswith(".zip") else None
    urls = (info.url, *info.mirrors)
    try:
        digest = install(urls, target, member=member, size=info.size, sha256=info.sha256, progress=progress)
    except DataError as error:
        advice = "get the archive by other means and pass its folder with --data-dir (data_dir=...)"
        raise DataError(f"{name}: download failed ({error}); {advice}") from error
    if info.sha256 is None:
        _log.warning("%s: no published checksum; trusted the download with sha256 %s", name, digest)
    return target


def cache_dir() -> Path:
    """The folder of downloads.

    Returns:
        `$FEDJAX_REC_CACHE`, or `~/.cache/fedjax_rec`.

    Example:
        >>> cache_dir().is_absolute()
        True
    """
    return Path(os.environ.get("FEDJAX_REC_CACHE") or "~/.cache/fedjax_rec").expanduser().absolute()


def describe(dataset: Dataset) -> dict[str, object]:
    """Counts and origin of a data set.

    Args:
        dataset: any data set.

    Returns:
        `name`, `title`, `users`, `items`, `interactions`, `density` (events over pairs), `per_user` (minimum,
        median, mean and maximum number of events), `ratings` (smallest and largest, or None), `dates` (first
        and last, ISO 8601 in UTC, or None), `test_items`, `candidates` (most of any user), `licence`,
        `citation`, `redistributable` (None where unknown).

    Example:
        >>> summary = describe(synthetic(50, 300))
        >>> summary["users"], summary["items"], summary["per_user"]["max"], summary["ratings"]
        (50, 300, 100, None)
    """
    events, info = dataset.interactions, DATASETS.get(dataset.name)
    held = None if dataset.test is None else dataset.test
    lists = None if held is None else held.candidates
    return {
        "name": dataset.name,
        "title": info.title if info else dataset.name,
        "users": events.num_users,
        "items": events.num_items,
        "interactions": len(events.users),
        "density": len(events.users) / max(1, events.num_users * events.num_items),
        "per_user": _per_user(events),
        "ratings": None
        if events.ratings is None
        else (events.ratings.min().item(), events.ratings.max().item()),
        "dates": None if events.timestamps is None else _dates(events.timestamps),
        "test_items": 0 if held is None else int((held.items >= 0).sum()),
        "candidates": 0 if lists is None else int((lists >= 0).sum(1).max()),
        "licence": info.licence if info else "unknown",
        "citation": dataset.citation or (info.citation if info else ""),
        "redistributable": info.redistributable if info else None,
    }


def _per_user(events: Interactions) -> dict[str, float]:
    counts = np.bincount(events.users, minlength=events.num_users)
    return {
        "min": int(counts.min()),
        "median": float(np.median(counts)),
        "mean": float(counts.mean()),
        "max": int(counts.max()),
    }


def _dates(times: np.ndarray) -> tuple[str, str] | None:
    """First and last second; None where the numbers cannot be seconds since 1970."""
    ends = times.min(), times.max()
    if not all(-(2**36) < end < 2**36 for end in ends):  # about the years -200 to 4100
        return None
    first, last = (str(np.datetime64(int(end), "s")) for end in ends)
    return first, last


def _unknown(name: str) -> DataError:
    known = list(DATASETS)
    return DataError(
        f"unknown data set {name!r}; did you mean {nearest(name, known)!r}? "
        f"(known: {', '.join(known)}; or the path of a file)"
    )


def _existing(name: str) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        return path
    if len(path.parts) > 1 or Path(name.lower().removesuffix(".gz")).suffix in SUFFIXES:
        raise DataError(f"{name}: no such file or directory")
    raise _unknown(name)


def _load_path(path: Path, named: dict[str, str | None], duplicates: str) -> Dataset:
    if not path.is_dir():
        return Dataset(path.name.split(".")[0], read_any(path, **named, duplicates=duplicates))
    if any((path / name).is_file() for name in ("train.tsv", "train.tsv.gz")):
        return read_loo_directory(path, duplicates=duplicates)
    ratings = sorted(file for file in path.iterdir() if file.name in {"u.data", "ratings.dat", "ratings.csv"})
    found = ratings or sorted(path.glob("*.inter"))
    if len(found) != 1:
        wanted = "train.tsv(.gz), u.data, ratings.dat, ratings.csv or one *.inter"
        raise DataError(f"{path}: a directory without {wanted}; give the path of a file")
    return Dataset(path.name, read_any(found[0], **named, duplicates=duplicates))


def _load_from(info: DatasetInfo, folder: Path, duplicates: str) -> Dataset:
    """Looks for a data set in a folder, without the network."""
    base = Path(info.file).name
    files = [folder / info.name / base, folder / base, folder / info.file]
    if info.reader is read_loo_directory:
        files = [folder / info.name, folder]
        found = next((path for path in files if list(path.glob("train.tsv*"))), None)
    else:
        files += [path.with_name(f"{base}.gz") for path in files]
        found = next((path for path in files if path.is_file()), None)
    if found:
        return _load_file(info, found, duplicates)
    archives = [folder / f"{info.name}.zip", folder / info.name / f"{info.name}.zip"] if info.url else []
    for archive in archives:
        if archive.is_file():
            return _load_archive(info, archive, duplicates)
    places = ", ".join(dict.fromkeys(str(path) for path in (*files, *archives)))
    advice = f"download it from {info.url}" if info.url else "see the documentation of the format"
    raise DataError(f"{info.name}: not found; looked for {places}; {advice}")


def _load_archive(info: DatasetInfo, archive: Path, duplicates: str) -> Dataset:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(info.file).name
        extract(archive, info.file, file)
        return _load_file(info, file, duplicates)


def _load_file(info: DatasetInfo, path: Path, duplicates: str) -> Dataset:
    if info.file_sha256 is not None and path.suffix != ".gz" and sha256_of(path) != info.file_sha256:
        _log.warning("%s: %s differs from the published file; results may not compare", info.name, path)
    assert info.reader is not None  # noqa: S101 - only the synthetic data have none, and no file either
    loaded = info.reader(path, duplicates=duplicates)
    dataset = loaded if isinstance(loaded, Dataset) else Dataset(info.name, loaded)
    events = dataset.interactions
    counts = Counts(events.num_users, events.num_items, len(events.users))
    if counts != info.counts:
        _log.warning("%s: %s has %s instead of %s", info.name, path, counts, info.counts)
    return dataset._replace(name=info.name, citation=info.citation)
