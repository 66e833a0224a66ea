"""A trained model of a run folder: written as plain arrays, read back with each one checked, asked for lists.

`model.npz` holds the split that the model was trained on (held-out clients behind the training ones), the server's
parameters, and the private leaves *with which clients are scored*: after they have represented themselves, and of
held-out clients after they were folded in. So whoever reads it scores as the evaluation did, by the same function.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.algorithms.own import MADE, adopt
from fedjax_rec.client.keys import key_of
from fedjax_rec.client.membership import Membership
from fedjax_rec.client.population import Population, population_of
from fedjax_rec.data.files import read_arrays
from fedjax_rec.data.heldout import PARTS, Events, heldout_events, hold_out_all
from fedjax_rec.data.splits import Split
from fedjax_rec.errors import check_arguments, check_not_used_up, suggest_names, wrong_type
from fedjax_rec.evaluation.evaluator import EvaluationPoint, score_stored_leaves
from fedjax_rec.evaluation.recommend import TopK
from fedjax_rec.evaluation.recommend import top_k as best_items
from fedjax_rec.federation.initial import init_private
from fedjax_rec.runs.build import clip_batch_size, make_algorithm, point_of
from fedjax_rec.runs.configuration import NO_SETTINGS
from fedjax_rec.runs.folders import RESUME_COMMAND, has_checkpoints, read_json
from fedjax_rec.runs.settings import Settings
from fedjax_rec.types import Algorithm, Model, PyTree, Server, State

SEPARATOR = "/"


class Recommender(NamedTuple):
    """A trained model with its users, as `load` reads it from a run folder.

    `make_evaluator(model.algorithm, model.split, point=model.point)(model.state)` ranks as the run did.
    """

    algorithm: Algorithm
    state: State  # its private leaves [N, ...] are those with which clients are scored
    split: Split  # what each user has; without candidates
    known: tuple[
        np.ndarray, np.ndarray
    ]  # offsets int64[N + 1] and items int32[K], all that a user has ever met
    point: EvaluationPoint  # with which parameters users are ranked

    @property
    def server(self) -> Server:
        """The global model."""
        return self.state.server

    @property
    def private(self) -> PyTree:
        """Private leaves [N, ...]."""
        return self.state.private

    @property
    def user_ids(self) -> np.ndarray:
        """External ids [N]; those of held-out clients come last."""
        return self.split.user_ids

    @property
    def item_ids(self) -> np.ndarray:
        """External ids [I]."""
        return self.split.item_ids

    @property
    def offsets(self) -> np.ndarray:
        """Where each user's training items start, int64[N + 1]."""
        return self.split.offsets

    @property
    def items(self) -> np.ndarray:
        """Training items, int32[M]."""
        return self.split.items


def model_arrays(
    split: Split, known: tuple[np.ndarray, np.ndarray], state: State, scored_leaves: PyTree
) -> dict[str, np.ndarray]:
    """What `model.npz` holds.

    Args:
        split: of the users that can be asked for.
        known: what they have met, of `data.splits.known_items`.
        state: the trained model.
        scored_leaves: private leaves [N, ...] with which the split's users are scored.

    Returns:
        arrays by name.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.data.synthetic(30, 90))
        >>> state, _ = fr.simulate(fr.fedmf(dim=2), split, rounds=1)
        >>> known = split.offsets, split.items
        >>> sorted(model_arrays(split, known, state, state.private))[:3]
        ['item_ids', 'items', 'known_items']
    """
    names = ("user_ids", "item_ids", "offsets", "items", "ratings", "validation", "test")
    arrays = {name: getattr(split, name) for name in names if getattr(split, name) is not None}
    arrays |= {"known_offsets": known[0], "known_items": known[1]}
    for which in PARTS if split.heldout is not None else ():
        held = heldout_events(split, which)
        arrays |= {f"{which}_offsets": held.offsets, f"{which}_items": held.items}
    check_not_used_up(state)
    params = {"server": state.server, "private": scored_leaves}
    leaves = {_name(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(params)}
    return arrays | {"round": np.asarray(state.round)} | leaves


def _name(path: tuple) -> str:
    return "params/" + jax.tree_util.keystr(path, simple=True, separator=SEPARATOR)


def load(folder: str | Path, algorithm: Algorithm | Callable[..., Algorithm] | None = None) -> Recommender:
    """Read a trained model from a run folder; nothing is unpickled, and nothing is believed before it is checked.

    Args:
        folder: of a run.
        algorithm: that was trained, or its factory, where it is one of your own that no name leads to.

    Returns:
        the model with its users.

    Raises:
        ValueError: if the folder is not that of a run, or its files do not fit together.

    Example:
        >>> load("no/such/run")
        Traceback (most recent call last):
        ValueError: no/such/run is not a run folder: config.json is missing
    """
    folder = Path(folder)
    for name in ("config.json", "model.npz"):
        if not (folder / name).is_file():
            hint = f"; go on with: {RESUME_COMMAND} {folder}" * has_checkpoints(folder)
            raise ValueError(f"{folder} is not a run folder: {name} is missing{hint}")
    try:
        values = read_json(folder / "config.json")
        values = {name: value for name, value in values.items() if name not in NO_SETTINGS}
        if algorithm is not None:
            values["algorithm"] = adopt(algorithm)
        elif values.get("algorithm") == MADE:  # whatever this process made last need not be it
            raise ValueError(
                "its algorithm was made in Python and has no name; give it: load(folder, algorithm)"
            )
        settings = Settings(**values)
        return read_model(settings, read_arrays(folder / "model.npz"))
    except (ValueError, LookupError, TypeError, AttributeError, OSError, MemoryError) as problem:
        raise ValueError(f"{folder} is not a sound run folder: {problem}") from problem


def read_model(settings: Settings, arrays: dict[str, np.ndarray]) -> Recommender:
    """Put a model together of what `model_arrays` gave.

    Args:
        settings: of the run.
        arrays: by name.

    Returns:
        the model with its users.

    Raises:
        ValueError: naming the first array that is missing, or does not fit the others or the algorithm.
    """
    split = split_of_arrays(arrays)._replace(negatives=settings.negatives)
    known = _read_lists(arrays, "known_offsets", "known_items", split.num_users, split.num_items)
    # the devices of the machine that trained need not be here
    alone = dataclasses.replace(
        clip_batch_size(settings, int(np.diff(split.offsets).max(initial=1))), devices=1, table_shards=None
    )
    algorithm = make_algorithm(alone)
    state = _read_state(algorithm.model, arrays, split)
    if settings.evaluation_point == "server":
        return Recommender(algorithm, state, split, known, score_stored_leaves(algorithm))
    state = jax.tree.map(jnp.asarray, state)
    point = point_of(alone, algorithm, population_of(split))
    return Recommender(algorithm, state, split, known, point)


def split_of_arrays(arrays: dict[str, np.ndarray]) -> Split:
    """Users, items and who has what, each array checked against the others.

    Args:
        arrays: by name, those of `model_arrays` that are no parameters.

    Returns:
        the split, without candidates.

    Raises:
        ValueError: naming the first array that is missing, or does not fit the others.
    """
    user_ids = _read(arrays, "user_ids", "iufUS", None)
    item_ids = _read(arrays, "item_ids", "iufUS", None)
    for name, ids in (("user_ids", user_ids), ("item_ids", item_ids)):
        _require(len(np.unique(ids)) == len(ids) > 0, name, "must be one or more ids, each once")
    num_users = len(user_ids)
    num_items = len(item_ids)

    offsets, items = _read_lists(arrays, "offsets", "items", num_users, num_items)
    ratings = None
    if "ratings" in arrays:
        ratings = _read(arrays, "ratings", "f", len(items))
        _require(bool(np.isfinite(ratings).all()), "ratings", "must be finite")

    heldout: dict[str, Any] = {}
    for name in ("validation", "test"):
        heldout[name] = _read(arrays, name, "i", num_users)
        within = _in_range(heldout[name], -1, num_items)
        _require(within, name, f"must be codes of 0..{num_items - 1}, or -1 for none")
    nothing = np.full((num_users, 0), -1, np.int32)
    split = Split(
        offsets=offsets,
        items=items,
        ratings=ratings,
        **heldout,
        validation_ratings=None,
        test_ratings=None,
        candidates_validation=nothing,
        candidates_test=nothing,
        user_ids=user_ids,
        item_ids=item_ids,
        name="the stored split",
        data_hash="",
        log=(),
    )
    if "test_offsets" not in arrays:
        return split
    several = (
        Events(*_read_lists(arrays, f"{which}_offsets", f"{which}_items", num_users, num_items))
        for which in PARTS
    )
    return hold_out_all(split, *several)


def _read_lists(
    arrays: dict[str, np.ndarray], starts: str, codes: str, num_users: int, num_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where each user's items start, and the items: in range, none twice."""
    offsets = _read(arrays, starts, "i", num_users + 1).astype(np.int64)
    items = _read(arrays, codes, "i", None).astype(np.int32)
    ascends = offsets[0] == 0 and offsets[-1] == len(items) and bool((np.diff(offsets) >= 0).all())
    _require(ascends, starts, f"must ascend from 0 to the {len(items)} of {codes}")
    _require(_in_range(items, 0, num_items), codes, f"must be codes of 0..{num_items - 1}")
    pairs = np.repeat(np.arange(num_users), np.diff(offsets)) * num_items + items
    _require(bool((np.diff(np.sort(pairs)) > 0).all()), codes, "must not name an item twice for one user")
    return offsets, items


def _read(arrays: dict[str, np.ndarray], name: str, kinds: str, length: int | None) -> np.ndarray:
    """One column, of the kinds of numbers or text that it may have."""
    if name not in arrays:
        raise ValueError(f"model.npz has no {name}; train the run again with this version")
    found = arrays[name]
    fits = found.ndim == 1 and found.dtype.kind in kinds and length in (None, len(found))
    wanted = f"[{'n' if length is None else length}]"
    _require(fits, name, f"must have the shape {wanted}, not {found.dtype}{list(found.shape)}")
    return found


def _require(holds: bool, name: str, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} of model.npz {rule}")


def _in_range(codes: np.ndarray, least: int, end: int) -> bool:
    return not len(codes) or bool(codes.min() >= least and codes.max() < end)


def _read_state(model: Model, arrays: dict[str, np.ndarray], split: Split) -> State:
    """The stored parameters, in the structure and the shapes of what the algorithm makes for these users."""
    paths, structure = jax.tree.flatten_with_path(_shapes_of(model, split))
    names = [_name(path) for path, _ in paths]
    extra = sorted(name for name in arrays if name.startswith("params/") and name not in names)
    if extra:
        raise ValueError(f"model.npz holds {extra[0]}, which this algorithm does not have")
    leaves = []
    for name, (_, shape) in zip(names, paths, strict=True):
        if name not in arrays:
            raise ValueError(f"model.npz has no {name}; train the run again with this version")
        leaf = arrays[name]
        same = leaf.shape == shape.shape and leaf.dtype == shape.dtype
        described = f"{shape.dtype}{list(shape.shape)}, not {leaf.dtype}{list(leaf.shape)}"
        _require(same, name, f"must be {described}")
        leaves.append(leaf)
    params = jax.tree.unflatten(structure, leaves)
    rounds = arrays.get("round", np.zeros(()))
    _require(rounds.shape == () and rounds.dtype.kind == "i", "round", "must be a whole number")
    return State(
        round=jnp.int32(rounds),
        server=jax.tree.map(jnp.asarray, params["server"]),
        opt_state=(),
        private=params["private"],
    )


def _shapes_of(model: Model, split: Split) -> dict[str, Any]:
    """Shapes of the parameters for this many users, items and events: no population is made."""
    num_users = split.num_users
    events = len(split.items)
    examples: Any = {"items": jax.ShapeDtypeStruct((events,), np.int32)}
    offsets: Any = jax.ShapeDtypeStruct((num_users + 1,), np.int32)
    if split.ratings is not None:
        examples["ratings"] = jax.ShapeDtypeStruct((events,), np.float32)
    nobody = Membership(np.zeros(0, np.uint32), np.zeros(0, np.int32))
    population = Population(
        examples=examples,
        offsets=offsets,
        membership=nobody,
        num_items=split.num_items,
        max_examples=int(np.diff(split.offsets).max(initial=0)),
    )

    def init(key: jax.Array, population: Population) -> dict[str, Any]:
        server = model.init_server(key, population)
        return {"server": server, "private": init_private(model, key, num_users, server)}

    return jax.eval_shape(init, key_of(0), population)


@suggest_names
def top_k(model: Recommender, user: Any, k: int = 10, *, which: str | None = None) -> list[tuple[Any, float]]:
    """Recommend items that one user does not have yet, by external id.

    Args:
        model: as `load` returns it.
        user: external id of the user.
        k: how many items, at most.
        which: None leaves out all that is known of the user, held-out items too. To look at what the evaluation
            saw, "test" leaves out what it had seen in testing, "validation" in validating.

    Returns:
        (external item id, score), best first; ties in the order of the vocabulary.

    Raises:
        ValueError: if the user or `which` is unknown, or k is below 1.
    """
    if not isinstance(model, Recommender):
        raise wrong_type("top_k", "model", model, "what fr.load returned, or `model` of what fr.fit did")
    check_arguments(top_k, locals())
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    matches = np.flatnonzero(model.user_ids.astype(str) == as_id(user))
    if not len(matches):
        raise ValueError(
            f"unknown user {user!r}; known are {len(model.user_ids):,}, such as {str(model.user_ids[0])!r}"
        )
    row = int(matches[0])
    hidden = hidden_items(model, row, which)
    scores = score_user(model, row)
    found = _list_best(scores, jnp.asarray(hidden), min(k, model.split.num_items))
    pairs = zip(np.asarray(found.items[0]), np.asarray(found.scores[0]), strict=True)
    return [(model.item_ids[item].item(), float(score)) for item, score in pairs if item >= 0]


def as_id(given: Any) -> str:
    """The text of an external id.

    Args:
        given: of a user or an item; a whole number is one whatever its type, as pandas makes floats of integers.

    Returns:
        the text.

    Example:
        >>> as_id(5.0), as_id("5 "), as_id(5.5)
        ('5', '5', '5.5')
    """
    is_whole = isinstance(given, float | np.floating) and float(given).is_integer()
    return str(int(given) if is_whole else given).strip()


def score_user(model: Recommender, row: int) -> jax.Array:
    """Score all items for one user, as the evaluation does.

    Args:
        model: as `load` returns it.
        row: of the user.

    Returns:
        float32[I].
    """
    state = model.state
    check_not_used_up(state)
    if model.point.population is None:  # the user's own leaves are all that it needs
        state = state._replace(private=jax.tree.map(lambda leaf: jnp.asarray(leaf[row, None]), state.private))
        row = 0
    score = _compiled(model.point.score)
    return score(model.point.prepare(state), jnp.array([row]))[0]


@lru_cache(maxsize=4)
def _compiled(score: Any) -> Any:
    return jax.jit(score)


def hidden_items(model: Recommender, row: int, which: str | None) -> np.ndarray:
    """What is not recommended to one user.

    Args:
        model: as `load` returns it.
        row: of the user.
        which: as in `top_k`.

    Returns:
        bool[I].
    """
    split = model.split
    hidden = np.zeros(split.num_items, bool)
    if which is None:
        offsets, items = model.known
        hidden[items[offsets[row] : offsets[row + 1]]] = True
        return hidden
    positives = heldout_events(split, which)
    hidden[split.items[split.offsets[row] : split.offsets[row + 1]]] = True
    if which == "test":
        hidden[_items_of(heldout_events(split, "validation"), row)] = True
    hidden[_items_of(positives, row)] = False  # candidates, even where the user had met them before
    return hidden


def _items_of(events: Events, row: int) -> np.ndarray:
    """The items of one user."""
    return events.items[events.offsets[row] : events.offsets[row + 1]]


@partial(jax.jit, static_argnames="k")
def _list_best(scores: jax.Array, hidden: jax.Array, k: int) -> TopK:
    num_items = len(scores)
    items = jnp.where(hidden, jnp.arange(num_items), num_items)  # behind the last one nothing is marked
    return best_items(scores[None], k, seen=(jnp.zeros(num_items, int), items))
