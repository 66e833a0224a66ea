"""The data sets known by name: where they come from, what they may be used for, and how to load them.

| what | names |
|---|---|
| made up here, the default; needs no file | `synthetic` |
| MovieLens | `ml-100k`, `ml-1m`, `ml-10m`, `ml-20m`, `ml-25m`, `ml-32m`, `ml-latest-small`; `ml-1m-loo` (split) |
| lists of LightGCN | `gowalla`, `yelp2018`, `amazon-book` |
| check-ins | `foursquare-nyc`, `foursquare-tky` |
| music, films, books | `lastfm-hetrec`, `yambda-50m` ..., `filmtrust`, `netflix`, `book-crossing`, `jester` |
| games, news, videos | `steam`, `steam-200k`, `mind-small` ..., `kuairec` ..., `kuairand-1k` ..., `vk-lsvd` ... |
| Amazon | `amazon-instant-video` of 2014, and `amazon-2023-CATEGORY` |

`sets` says of each what it is and where that is known from. Checksums are those that the host publishes, or
TensorFlow Datasets for MovieLens. Where none is published the first download is trusted, with a warning in the
log. In every case the checksum of the installed file is recorded beside it and verified whenever it is used again.
What nobody may download without a registration or a licence says where to get it and where to put it.
"""

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from fedjax_rec.data.archives import extract
from fedjax_rec.data.download import install, install_members, verify
from fedjax_rec.data.errors import DataError, did_you_mean, no_such_path
from fedjax_rec.data.files import sha256_of
from fedjax_rec.data.interactions import SPLIT_PARTS, Dataset, Interactions
from fedjax_rec.data.loo import read_loo_directory
from fedjax_rec.data.packed import inner_name
from fedjax_rec.data.paths import load_path
from fedjax_rec.data.readers import SUFFIXES
from fedjax_rec.data.sets import DATASETS, Counts, DatasetInfo
from fedjax_rec.data.synthetic import synthetic

_SHOWN = 10  # names of data sets in an error
_log = logging.getLogger(__name__)


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
    columns: str | None = None,
    separator: str | None = None,
    part: str | None = None,
    progress: bool = False,
) -> Dataset:
    """Loads a data set by its registered name, or a file or directory by its path.

    Args:
        name: a registered name, or the path of a file of events or of a leave-one-out directory.
        data_dir: where to find the files of a registered data set; then the network is never used. Looked
            at are `<data_dir>/<name>/<file>`, `<data_dir>/<file>`, the archive's own folder and the archive.
            None: the cache, and the network where the cache lacks it (see `fetch`).
        duplicates: "error", or what becomes of several events of one pair: `duplicates.keep_one` says it. Of a
            registered data set whose events repeat by their nature (`DatasetInfo.repeats`), the default keeps one.
        user: name of the users' column, for the path of a file with a header.
        item: the same for the items.
        rating: the same for the ratings.
        timestamp: the same for the times.
        columns: names of the columns of a text without a header, as in `formats.read_any`.
        separator: between fields of text, the same.
        part: name of the column, of a file, that says whether an event is in train, valid or test, for `given`.
        progress: show a progress bar while downloading.

    Returns:
        The data set.

    Raises:
        DataError: in one line: an unknown name (with the nearest), a file that is nowhere (with all paths that
            were looked at), a path given together with `data_dir`, a download that failed or that needs a hand
            (with what to do), or bad contents (with file and line).

    Example:
        >>> load_dataset("ml-1000k")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: unknown data set 'ml-1000k'; did you mean 'ml-100k'? ...
    """
    named = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    named |= {"columns": columns, "separator": separator}
    info = DATASETS.get(str(name))
    if info is None:
        path = _existing_path(str(name))
        if data_dir is not None:
            raise DataError(
                f"{name}: a path needs no --data-dir (data_dir=...), got {str(data_dir)!r}; leave it out"
            )
        return load_path(path, named, duplicates, part)
    everything = named | {"part": part}
    given = [f"{role}={column!r}" for role, column in everything.items() if column is not None]
    if given:
        raise DataError(f"{name}: a registered data set has its own columns ({', '.join(given)} not allowed)")
    if info.reader is None:
        return synthetic()
    if data_dir is None:
        fetch(info.name, progress=progress)
        return _load_files(info, find_files(info) or [], duplicates)
    return _load_from_folder(info, Path(data_dir).expanduser(), duplicates)


def fetch(name: str, *, progress: bool = False) -> Path:
    """Makes sure that the file of a registered data set is in the cache.

    The cache is the folder named by the environment variable `FEDJAX_REC_CACHE`, or `~/.cache/fedjax_rec`.

    Args:
        name: a registered name.
        progress: show a progress bar while downloading.

    Returns:
        The path of the ratings file, or of the folder of several.

    Raises:
        DataError: if the name is unknown, there is nothing to download, a person has to do something first, every
            address failed, or a cached file has changed since its download.

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
    folder = cache_dir() / name
    found = find_files(info)
    if found is not None:
        for path in found:
            verify(path)
        return folder if info.files else found[0]
    if info.by_hand:
        raise DataError(f"{name}: {_advice(info)}, and put {_listed(info)} into {folder}, or pass --data-dir")
    if not info.url:
        raise DataError(
            f"{name}: cannot be downloaded; pass --data-dir (data_dir=...), the folder that has it"
        )
    try:
        digest = _download(info, folder, progress)
    except DataError as error:
        advice = "get the archive by other means and pass its folder with --data-dir (data_dir=...)"
        if isinstance(error.__cause__, OSError):  # of the cache; what the network does is no cause
            advice = (
                f"the cache is {cache_dir()}: name another in the environment variable FEDJAX_REC_CACHE, or pass "
                "the folder that has the files with --data-dir (data_dir=...)"
            )
        raise DataError(f"{name}: download failed ({error}); {advice}") from error
    if info.sha256 is None and info.md5 is None:
        _log.warning("%s: no published checksum; trusted the download with sha256 %s", name, digest)
    return folder if info.files else folder / _local_name(info, info.file)


def _download(info: DatasetInfo, folder: Path, progress: bool) -> str:
    """Installs the files of a data set; the sha256 of what came last."""
    known: dict[str, Any] = {"sha256": info.sha256, "md5": info.md5, "size": info.size}
    known |= {"max_size": info.max_size, "progress": progress}
    urls = (info.url, *info.mirrors)
    names = {name: _local_name(info, name) for name in info.names}
    if info.url.endswith("/"):
        digest = ""
        for name, local in names.items():
            if not (folder / local).is_file():
                at = [f"{url}{quote(name)}" for url in urls]
                digest = install(at, folder / local, member=None, max_size=info.max_size, progress=progress)
        return digest
    if not _is_archive(info.url):
        return install(urls, folder / names[info.file], member=None, **known)
    if len(names) == 1:
        return install(urls, folder / names[info.file], member=info.file, **known)
    return install_members(urls, folder, names, **known)


def _is_archive(url: str) -> bool:
    return url.endswith((".zip", ".tar.gz"))


def _local_name(info: DatasetInfo, name: str) -> str:
    """Under which name a file lies in its data set's folder: its own, unless several have it."""
    base = Path(name).name
    return base if sum(Path(other).name == base for other in info.names) <= 1 else name


def _listed(info: DatasetInfo) -> str:
    return " and ".join(info.names) if len(info.names) < 3 else f"{info.names[0]} ... {info.names[-1]}"


def _advice(info: DatasetInfo) -> str:
    """How to come by a data set."""
    if info.by_hand:
        return f"see {info.homepage}: {info.by_hand}"
    if info.url:
        return f"download it from {info.url}"
    return f"see {info.homepage}" if info.homepage else "see the documentation of the format"


def find_files(info: DatasetInfo, folder: str | Path | None = None) -> list[Path] | None:
    """Looks for a data set's files, without the network.

    Args:
        info: the data set.
        folder: where to look; None: the cache.

    Returns:
        the files, or the folder of a leave-one-out split; None if they are not there, packed archives aside.

    Example:
        >>> find_files(DATASETS["ml-100k"], "/nowhere") is None
        True
    """
    bases = _bases(info, folder)
    if info.reader is read_loo_directory:
        found = next((base for base in bases if list(base.glob("train.tsv*"))), None)
        return None if found is None else [found]
    for base in bases if info.names else ():
        paths = [_find_file(base, info, name) for name in info.names]
        if None not in paths:
            more = [_find_file(base, info, name) for name in info.optional_files]
            return [path for path in (*paths, *more) if path is not None]
    return None


def _bases(info: DatasetInfo, folder: str | Path | None) -> list[Path]:
    if folder is None:
        return [cache_dir() / info.name]
    return [Path(folder).expanduser() / info.name, Path(folder).expanduser()]


def _candidates(base: Path, info: DatasetInfo, name: str) -> list[Path]:
    plain = [base / _local_name(info, name), base / name]
    packed = (
        [] if name.endswith((".gz", ".parquet")) else [path.with_name(f"{path.name}.gz") for path in plain]
    )
    return list(dict.fromkeys([*plain, *packed]))


def _find_file(base: Path, info: DatasetInfo, name: str) -> Path | None:
    return next((path for path in _candidates(base, info, name) if path.is_file()), None)


def cache_dir() -> Path:
    """The folder of downloads.

    Returns:
        `$FEDJAX_REC_CACHE`, or `~/.cache/fedjax_rec`.

    Example:
        >>> cache_dir().is_absolute()
        True
    """
    return Path(os.environ.get("FEDJAX_REC_CACHE") or "~/.cache/fedjax_rec").expanduser().absolute()


def describe(dataset: Dataset) -> dict[str, Any]:
    """Counts and origin of a data set.

    Args:
        dataset: any data set.

    Returns:
        `name`, `title`, `users`, `items`, `interactions`, `density` (events over pairs), `per_user` (minimum,
        median, mean and maximum number of events), `ratings` (smallest and largest, or None), `dates` (first
        and last, ISO 8601 in UTC, or None), `parts` (events of each, where the data come divided), `test_items`,
        `candidates` (most of any user), `licence`, `citation`, `redistributable` (None where unknown), `kind` (of
        an event), `homepage`, and `presets`, the filters with which papers use it, by name.

    Example:
        >>> summary = describe(synthetic(50, 300))
        >>> summary["users"], summary["items"], summary["per_user"]["max"], summary["ratings"]
        (50, 300, 100, None)
    """
    events = dataset.interactions
    info = DATASETS.get(dataset.name)
    test = dataset.test
    lists = None if test is None else test.candidates
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
        **_counts_of_parts(dataset.parts),
        "test_items": 0 if test is None else int((test.items >= 0).sum()),
        "candidates": 0 if lists is None else int((lists >= 0).sum(1).max()),
        "licence": info.licence if info else "unknown",
        "citation": dataset.citation or (info.citation if info else ""),
        "redistributable": info.redistributable if info else None,
        "kind": info.kind if info else "events",
        "homepage": info.homepage if info else "",
        "presets": {preset.name: preset.filters for preset in info.presets} if info else {},
    }


def _counts_of_parts(parts: np.ndarray | None) -> dict[str, dict[str, int]]:
    """How many events each part of a given split has."""
    if parts is None:
        return {}
    counts = np.bincount(parts, minlength=len(SPLIT_PARTS)).tolist()
    return {"parts": dict(zip(SPLIT_PARTS, counts, strict=True))}


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


def _unknown(name: str, beside: Sequence[str] = ()) -> DataError:
    """The error for a name that is neither registered nor that of a file; `beside` is what lies there."""
    known = list(DATASETS)
    return DataError(
        f"unknown data set {name!r}; {did_you_mean(name, [*beside, *known])}"
        f"(known: {', '.join(known[:_SHOWN])}, ...: fedjax-rec data ls has all {len(known)}; or the path of a "
        "file)"
    )


def _existing_path(name: str) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        return path
    if len(path.parts) > 1 or Path(inner_name(path)).suffix in SUFFIXES:
        raise no_such_path(path)
    raise _unknown(name, [each.name for each in path.parent.iterdir()])


def _load_from_folder(info: DatasetInfo, folder: Path, duplicates: str) -> Dataset:
    """Looks for a data set in a folder, without the network."""
    found = find_files(info, folder)
    if found is not None:
        return _load_files(info, found, duplicates)
    packed = {f"{info.name}.zip", Path(info.url).name} if _is_archive(info.url) else set()
    archives = [base / name for base in _bases(info, folder)[::-1] for name in sorted(packed)]
    for archive in archives:
        if archive.is_file():
            return _load_archive(info, archive, duplicates)
    bases = _bases(info, folder)
    files = bases if info.reader is read_loo_directory else _searched(bases, info)
    searched = ", ".join(dict.fromkeys(str(path) for path in (*files, *archives)))
    raise DataError(f"{info.name}: not found; looked for {searched}; {_advice(info)}")


def _searched(bases: list[Path], info: DatasetInfo) -> list[Path]:
    """Where the first of the missing files was looked for."""
    missing = (name for name in info.names if not any(_find_file(base, info, name) for base in bases))
    first = next(missing, info.names[0])
    return [path for base in bases for path in _candidates(base, info, first)]


def _load_archive(info: DatasetInfo, archive: Path, duplicates: str) -> Dataset:
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, name in enumerate(info.names):
            paths.append(Path(folder) / str(number) / Path(name).name)
            paths[-1].parent.mkdir()
            extract(archive, name, paths[-1])
        return _load_files(info, paths, duplicates)


def _load_files(info: DatasetInfo, paths: list[Path], duplicates: str) -> Dataset:
    path = paths[0]
    if info.file_sha256 is not None and path.suffix != ".gz" and sha256_of(path) != info.file_sha256:
        _log.warning("%s: %s differs from the published file; results may not compare", info.name, path)
    assert info.reader is not None  # noqa: S101 - only the synthetic data have none, and no file either
    rule = info.repeats if duplicates == "error" else duplicates
    loaded = info.reader(paths if info.files else path, duplicates=rule)
    dataset = loaded if isinstance(loaded, Dataset) else Dataset(info.name, loaded)
    events = dataset.interactions
    counts = Counts(events.num_users, events.num_items, len(events.users))
    if info.counts_are_exact and info.counts is not None and counts != info.counts:
        _log.warning("%s: %s has %s instead of %s", info.name, path, counts, info.counts)
    notes = () if rule == duplicates else (f"{info.name}: of events of one pair the {rule} was kept",)
    return dataset._replace(name=info.name, citation=info.citation, notes=notes)
