"""Names of columns: the usual ones of users, items, ratings and times, and those that are given."""

from collections.abc import Hashable, Sequence
from typing import Any

from fedjax_rec.data.columns import Columns
from fedjax_rec.data.errors import DataError, unknown_column

_ALIASES = {  # in lower case; of several that are there the first is taken
    role: tuple(names.split())
    for role, names in {
        "user": "user user_id userid uid reviewerid reviewer_id customer_id customerid visitorid "
        "visitor_id member_id",
        "item": "item item_id itemid iid movie_id movieid asin parent_asin product_id productid artist_id "
        "artistid track_id trackid song_id songid venue_id venueid poi_id business_id book_id bookid isbn "
        "game_id anime_id video_id news_id",
        "rating": "rating overall stars",
        "timestamp": "timestamp time datetime date ts unixreviewtime event_time eventtime utc unix_time unixtime "
        "time_ms timestamp_ms created_at review_time reviewtime",
    }.items()
}
ID_NAMES = (*_ALIASES["user"], *_ALIASES["item"])


def resolve(where: str, known: Sequence[Hashable], columns: Columns, *, optional: bool = False) -> Columns:
    """Checks the names of columns.

    Args:
        where: names the file or frame in messages.
        known: the names that there are.
        columns: those that are asked for.
        optional: whether a rating or timestamp under its default name may be absent.

    Returns:
        the columns, None for what is absent.

    Raises:
        DataError: if one is missing or there twice.
    """
    names = columns._asdict()
    for role in ("rating", "timestamp") if optional else ():
        if names[role] == role and role not in known:
            names[role] = None
    if names["user"] == names["item"]:
        raise DataError(f"{where}: column {names['user']!r} cannot be both the users and the items")
    for name in names.values():
        if name is not None and name not in known:
            raise unknown_column(where, str(name), [str(column) for column in known])
        if known.count(name) > 1:
            raise DataError(f"{where}: column {name!r} stands there more than once")
    return Columns(**names)


def guess(where: str, known: Sequence[Hashable], given: dict[str, Any]) -> Columns:
    """Finds columns by their usual names.

    Args:
        where: names the file or frame in messages.
        known: the names that there are.
        given: role -> name, of those that need not be found.

    Returns:
        the columns, None for what is absent.

    Raises:
        DataError: if none looks like users or items, two differ in case alone, or a given one is missing.
    """
    folded: dict[str, str] = {}
    for name in map(str, known):
        alias = folded.setdefault(name.casefold(), name)
        if alias != name and not given and any(name.casefold() in aliases for aliases in _ALIASES.values()):
            raise DataError(
                f"{where}: columns {alias!r} and {name!r} differ in case only; say which with user=..."
            )
    names = {
        role: next((folded[alias] for alias in aliases if alias in folded), None)
        for role, aliases in _ALIASES.items()
    } | given
    for role in ("user", "item"):
        if names[role] is None:
            shown = ", ".join(map(str, known[:12]))
            raise DataError(
                f"{where}: no column looks like the {role}s; name it with {role}=... (--{role}) (columns: {shown})"
            )
    return resolve(where, known, Columns(**names))
