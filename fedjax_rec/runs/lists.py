"""Lists of a stored model: of many users at once, and of somebody who is new to it."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from fedjax_rec.client.keys import key_of
from fedjax_rec.client.population import Population, population_of
from fedjax_rec.data.heldout import heldout_events
from fedjax_rec.engine.lane_steps import batch_shapes
from fedjax_rec.errors import check_not_used_up, wrong_type
from fedjax_rec.evaluation.evaluation_points import after_fold_in
from fedjax_rec.evaluation.recommend import top_k as best_items
from fedjax_rec.runs.recommender import Recommender, as_id, hidden_items, split_of_arrays
from fedjax_rec.runs.settings import FOLD_IN_EPOCHS

BLOCK = 256  # users that are scored at once
NEW = "new"  # the id of somebody new


class Lists(NamedTuple):
    """The best items of some users; slots are empty where a user has no more items left."""

    users: np.ndarray  # [U], external ids
    items: np.ndarray  # int32[U, K], codes; -1 for an empty slot
    scores: np.ndarray  # float32[U, K]


def rows_of(model: Recommender, users: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Where users stand in a model.

    Args:
        model: as `load` returns it.
        users: external ids, compared as text.

    Returns:
        int[U].

    Raises:
        ArgumentError: if the users are one text.
        ValueError: naming the first user that the model does not know.
    """
    given = _ids_of("rows_of", "users", users)
    rows = pd.Index(model.user_ids.astype(str)).get_indexer(pd.Index(given))
    if (rows < 0).any():
        unknown = given[int((rows < 0).argmax())]
        raise ValueError(
            f"unknown user {unknown!r}; known are {len(model.user_ids):,}, such as {str(model.user_ids[0])!r}"
        )
    return rows


def _ids_of(function: str, name: str, given: Sequence[Any] | np.ndarray) -> list[str]:
    """External ids as text; one text is no sequence of its letters."""
    if isinstance(given, str | bytes):
        raise wrong_type(function, name, given, f"a sequence of ids, such as [{given!r}]")
    return [as_id(each) for each in given]


def best_lists(model: Recommender, rows: np.ndarray, k: int = 10, *, which: str | None = None) -> Lists:
    """Recommend to many users, each what it does not have yet.

    Args:
        model: as `load` returns it.
        rows: int[U], of `rows_of`.
        k: K, how many items at most.
        which: as in `top_k`.

    Returns:
        the lists.

    Raises:
        ValueError: if k is below 1.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.runs.saving import save_model
        >>> import tempfile
        >>> split = fr.leave_one_out(fr.data.synthetic(30, 90))
        >>> state, _ = fr.simulate(fr.fedmf(dim=2), split, rounds=1)
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     folder = save_model(f"{parent}/mine", "fedmf", state, split, settings={"dim": 2})
        ...     model = fr.load(folder)
        >>> best_lists(model, np.arange(30), 5).items.shape
        (30, 5)
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    k = min(k, model.split.num_items)
    check_not_used_up(model.state)
    prepared = model.point.prepare(jax.tree.map(jnp.asarray, model.state))
    best_unseen = _best_unseen(model.point.score, k)
    items, scores = [], []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        full = np.resize(block, min(BLOCK, len(rows)))  # of one shape, so that it compiles once
        hidden = np.stack([hidden_items(model, int(row), which) for row in full])
        found = best_unseen(prepared, jnp.asarray(full), jnp.asarray(hidden))
        items.append(np.asarray(found.items)[: len(block)])
        scores.append(np.asarray(found.scores)[: len(block)])
    empty = np.zeros((0, k))
    return Lists(
        users=model.user_ids[rows],
        items=np.concatenate([empty.astype(np.int32), *items]),
        scores=np.concatenate([empty.astype(np.float32), *scores]),
    )


def _best_unseen(score: Any, k: int) -> Any:
    @jax.jit
    def best(prepared: Any, rows: jax.Array, hidden: jax.Array) -> Any:
        found = best_items(jnp.where(hidden, -jnp.inf, score(prepared, rows)), k)
        return found._replace(items=jnp.where(jnp.isneginf(found.scores), -1, found.items))

    return best


def with_new_user(
    model: Recommender, items: Sequence[Any], ratings: Sequence[float] | None = None
) -> Recommender:
    """A model of one user who is new to it, whose private leaves come from a history; the server learns nothing.

    Clients that represent themselves by their history do so; others train their private leaves on it
    (`evaluation_points.after_fold_in`).

    Args:
        model: as `load` returns it.
        items: external ids that the user has; those that the model does not know are passed over, with a warning.
        ratings: of these items, for models of ratings.

    Returns:
        the model, whose only user is "new".

    Raises:
        ArgumentError: if the items are one text.
        ValueError: if the model knows none of the items, cannot take new users, or needs ratings and gets none, or
            not one for each item.

    Warns:
        UserWarning: naming an item that the model does not know.

    Example:
        >>> import fedjax_rec as fr
        >>> fitted = fr.fit(fr.data.synthetic(30, 90), "fedmf", dim=2, rounds=2)
        >>> visitor = with_new_user(fitted.model, ["item-00003", "item-00009"])
        >>> visitor.user_ids.tolist()
        ['new']
    """
    given = _ids_of("with_new_user", "items", items)
    if ratings is not None and len(ratings) != len(given):
        raise ValueError(f"{len(ratings)} ratings for {len(given)} items; give one for each")
    codes = pd.Index(model.item_ids.astype(str)).get_indexer(pd.Index(given))
    known, first = np.unique(codes[codes >= 0], return_index=True)
    unknown = [item for item, code in zip(given, codes, strict=True) if code < 0]
    if not len(known):
        example = f", such as {unknown[0]!r}" if unknown else ""
        raise ValueError(
            f"the model knows none of the {len(given)} items{example}; those that it knows are like "
            f"{str(model.item_ids[0])!r}"
        )
    if unknown:
        told = f"{len(unknown)} of {len(given)} items are unknown to the model and passed over"
        warnings.warn(f"{told}, such as {unknown[0]}", stacklevel=2)
    arrays: dict[str, np.ndarray] = {
        "user_ids": np.array([NEW]),
        "item_ids": model.item_ids,
        "offsets": np.array([0, len(known)]),
        "items": known.astype(np.int32),
        "validation": np.array([-1], np.int32),
        "test": np.array([-1], np.int32),
    }
    if model.split.ratings is not None and ratings is not None:
        arrays["ratings"] = np.asarray(ratings, np.float32)[codes >= 0][first]
    split = split_of_arrays(arrays)._replace(negatives=model.split.negatives)
    population = population_of(split)
    if model.split.ratings is not None and ratings is None:
        _check_needs_no_ratings(model, population)
    point = after_fold_in(model.algorithm, population, key_of(0), epochs=FOLD_IN_EPOCHS)
    return model._replace(split=split, known=(split.offsets, split.items), point=point)


def _check_needs_no_ratings(model: Recommender, population: Population) -> None:
    """Refuse a history without ratings where clients learn from them; that the data had some does not say so."""
    problem: Exception | None = None
    try:
        batch_shapes(model.algorithm.work, population, model.server)
    except (LookupError, ValueError, TypeError) as found:
        problem = found
    if model.algorithm.model.predicts_ratings or problem is not None:
        raise ValueError("this model was trained on ratings; give one for each item") from problem


def table_of(model: Recommender, lists: Lists, titles: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Lists as a table: a row for each user and rank.

    Args:
        model: whose item ids the lists use.
        lists: of `best_lists`.
        titles: of items, by id.

    Returns:
        columns user, rank, item, score, and title where there are some.
    """
    users, ranks = np.nonzero(lists.items >= 0)
    items = model.item_ids[lists.items[users, ranks]]
    frame = pd.DataFrame(
        {"user": lists.users[users], "rank": ranks + 1, "item": items, "score": lists.scores[users, ranks]}
    )
    if titles:
        frame["title"] = [titles.get(item, "") for item in items.astype(str)]
    return frame


def relevant_items(model: Recommender) -> Iterator[tuple[str, str]]:
    """The test items, as (user, item) of external ids.

    Args:
        model: as `load` returns it.

    Yields:
        a pair for each of them.
    """
    held = heldout_events(model.split, "test")
    rows = np.repeat(np.arange(len(model.user_ids)), np.diff(held.offsets))
    for row, item in zip(rows, held.items, strict=True):
        yield str(model.user_ids[row]), str(model.item_ids[item])
