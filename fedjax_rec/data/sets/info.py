"""What is known about a data set before it is loaded."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_rec.data.interactions import Dataset, Interactions

MAX_BYTES = 2**30  # of a download whose size is not published


class Counts(NamedTuple):
    """Sizes of a data set."""

    users: int
    items: int
    interactions: int


class Preset(NamedTuple):
    """Filters with which papers use a data set."""

    name: str
    source: str  # who filters so
    min_rating: float | None = None
    min_user_events: int = 0
    core: int = 0

    @property
    def filters(self) -> dict[str, Any]:
        """What it sets of a splitter's arguments.

        Returns:
            the arguments that are not their defaults.

        Example:
            >>> Preset("positive", "a paper", min_rating=4.0).filters
            {'min_rating': 4.0}
        """
        values = {"min_rating": self.min_rating, "min_user_events": self.min_user_events, "core": self.core}
        return {name: value for name, value in values.items() if value}


class DatasetInfo(NamedTuple):
    """What is known about a data set before it is loaded."""

    name: str
    title: str
    counts: Counts | None  # None where they are not published, or depend on the settings
    licence: str
    citation: str
    redistributable: bool
    url: str = (
        ""  # empty where there is nothing to download; ends with a slash where `files` lie beside each other
    )
    mirrors: tuple[str, ...] = ()
    sha256: str | None = None  # of the download; None where unknown: see the registry's docstring
    size: int | None = None  # of the download, bytes
    file: str = ""  # the ratings, by their full name in the archive; or the folder of a split
    file_sha256: str | None = None  # of the ratings; a copy that differs is logged as a warning
    # (path, *, duplicates) -> events; the paths instead of the path where there are several `files`
    reader: Callable[..., Interactions] | Callable[..., Dataset] | None = None
    kind: str = "ratings"  # what an event is
    homepage: str = ""  # where its publisher describes it
    md5: str | None = None  # of the download, where its host publishes that alone
    max_size: int = MAX_BYTES  # of the download or the largest of `files`, bytes, where `size` is unknown
    files: tuple[str, ...] = ()  # where events are in several files: their full names, instead of `file`
    optional_files: tuple[str, ...] = ()  # further ones that some copies have
    by_hand: str = ""  # what a person has to do first, where nobody may download it without
    counts_are_exact: bool = (
        True  # of what the reader gives; else of what was published, before repeats were dropped
    )
    repeats: str = "error"  # the rule for duplicates that takes effect if none was asked for
    presets: tuple[Preset, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The files that hold the events, by their full names.

        Returns:
            `files`, or the one `file`; empty where there is none.

        Example:
            >>> DatasetInfo("a", "A", None, "", "", True, file="a/u.data").names
            ('a/u.data',)
        """
        return self.files or ((self.file,) if self.file else ())
