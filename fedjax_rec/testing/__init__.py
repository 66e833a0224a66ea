"""The laws that every federated algorithm keeps, as functions that a researcher's own algorithm can run.

A law takes `make`, a function of federation settings that returns the algorithm under test:

    def make(**federation):            # sampler, aggregator, lanes, mesh, ...
        return my_algorithm(**{"dim": 4, "cohort": 12} | federation)

    check_algorithm(make, population)

Each law raises `AssertionError` with a message that says what differed. Laws 5 (row-sparse == dense) and 12
(equal to a plain-numpy reference) need more than a black box: `check_dense` asks for work that descends a loss.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_rec.client.keys import key_of, name_clients, stream
from fedjax_rec.client.local_training import Draws, call_loss, step_key
from fedjax_rec.client.population import Population, build
from fedjax_rec.engine.cohort import Cohort, run_cohort
from fedjax_rec.engine.lane_steps import Uplink, upload_shapes
from fedjax_rec.federation.federate import client_update
from fedjax_rec.rows.tables import read_rows
from fedjax_rec.server.aggregators import total
from fedjax_rec.testing.lists import compare_lists
from fedjax_rec.training.seeds import train, train_seeds
from fedjax_rec.types import Algorithm, ClientStore, Key, Params, PyTree, Sampler, State

Make = Callable[..., Algorithm]
TOLERANCE = 1e-5  # relative, float32
KEY = 7


def tiny_population(num_clients: int = 24, num_items: int = 40, seed: int = 0) -> Population:
    """A ragged population with ratings, whose client 3 has no data.

    Args:
        num_clients: N, at least 4.
        num_items: I.
        seed: of the draw.

    Returns:
        the population; histories of 1 to I / 2 items.

    Example:
        >>> tiny_population().num_clients
        24
    """
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, num_items // 2, num_clients)
    counts[3] = 0
    items = [rng.choice(num_items, count, replace=False) for count in counts]
    ratings = rng.integers(1, 6, counts.sum()).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return build(offsets, np.concatenate(items), ratings, num_items)


def fixed(ids: Any, alive: Any = None) -> Sampler:
    """A sampler that always takes the same cohort.

    Args:
        ids: int[C].
        alive: bool[C]; all by default.

    Returns:
        a sampler.

    Example:
        >>> fixed([2, 0])(jax.random.key(0), 3)[0].tolist()
        [2, 0]
    """
    ids = jnp.asarray(ids, jnp.int32)
    present = jnp.ones(ids.shape, bool) if alive is None else jnp.asarray(alive)
    return lambda key, num_clients: (ids, present)  # noqa: ARG005 - a sampler's signature


def assert_close(
    actual: PyTree, expected: PyTree, what: str, tolerance: float = TOLERANCE, *, largest: float = 0.0
) -> None:
    """Compare two trees leaf by leaf, relative to each leaf's largest value.

    Args:
        actual: leaves.
        expected: the same structure.
        what: named in the error.
        tolerance: 0 asks for equal bits.
        largest: of the numbers whose differences these are, if they are such: they may be one float apart.

    Raises:
        AssertionError: naming the leaf and the largest difference.

    Example:
        >>> assert_close({"w": 1.0}, {"w": 1.0}, "weights", 0)
    """
    paths = jax.tree.leaves_with_path(actual)
    others = jax.tree.leaves(expected)
    assert len(paths) == len(others), f"{what}: {len(paths)} leaves against {len(others)}"  # noqa: S101
    for (path, one), other in zip(paths, others, strict=True):
        found, reference = (np.asarray(x, np.float64) for x in (one, other))
        apart = np.subtract(found, reference, out=np.zeros_like(reference), where=found != reference)
        gap = np.abs(apart).max(initial=0.0)  # equal infinities are not apart
        bound = tolerance * max(np.abs(reference[np.isfinite(reference)]).max(initial=0.0), 1e-3)
        bound = max(bound, largest * np.finfo(np.float32).eps)
        assert gap <= bound, f"{what}: {jax.tree_util.keystr(path)} differs by {gap:.2e}, allowed {bound:.2e}"  # noqa: S101


def run(algorithm: Algorithm, population: Population, rounds: int = 2, seed: int = KEY) -> State:
    """A few rounds from the start, compiled.

    Args:
        algorithm: to run.
        population: its clients.
        rounds: how many.
        seed: of the run.

    Returns:
        the state after them.

    Example:
        >>> import fedjax_rec as fr
        >>> int(run(fr.fedmf(dim=2), tiny_population()).round)
        2
    """
    return _compiled(lambda key, pop: train(key, algorithm, pop, rounds)[0])(key_of(seed), population)


def _bits() -> float:
    """The tolerance of equal bits. A GPU does not repeat its own: its atomic additions have no order."""
    return TOLERANCE if jax.default_backend() == "gpu" else 0.0


def _compiled(function: Callable) -> Callable:
    """Compile in a hurry: the laws run small programs once, and compiling is most of their time."""
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=quick)


class _Program(NamedTuple):
    """A compiled run: (key, state, population, rounds, cohort or None) -> state; and a mark for each trace."""

    run: Callable[[Key, State, Population, int, Any], State]
    traces: list[int]


@lru_cache(maxsize=8)
def _program(make: Make, lanes: int | None = None, mesh: jax.sharding.Mesh | None = None) -> _Program:
    """One program for all laws that ask for it; a cohort (ids, alive) is its argument."""
    federation = {name: value for name, value in (("lanes", lanes), ("mesh", mesh)) if value is not None}
    traces: list[int] = []

    def run_rounds(key: Key, state: State, population: Population, rounds: int, cohort: Any) -> State:
        traces.append(1)
        drawn: dict[str, Any] = {}
        if cohort is not None:  # whose size a sampler has, so that none is given beside it
            drawn = {"sampler": lambda key, num_clients: cohort, "cohort": None}  # noqa: ARG005
        algorithm = make(**federation, **drawn)
        one = algorithm.round
        return jax.lax.fori_loop(0, rounds, lambda _, state: one(key, state, population)[0], state)

    return _Program(_compiled(run_rounds), traces)


@lru_cache(maxsize=8)
def _starter(make: Make) -> Callable[[Key, Population], State]:
    return _compiled(_plain(make).init)


@lru_cache(maxsize=8)
def _plain(make: Make) -> Algorithm:
    return make()


def _cohort(ids: Any, alive: Any = None) -> tuple[jax.Array, jax.Array]:
    return fixed(ids, alive)(key_of(0), 0)


def _after(
    make: Make,
    population: Population,
    lanes: int,
    cohort: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    key: Key | None = None,
) -> State:
    """The state after two rounds, by a shared program."""
    key = key_of(KEY) if key is None else key
    start = _starter(make)(key, population)
    return _program(make, lanes, mesh).run(key, start, population, 2, cohort)


def check_lanes(make: Make, population: Population, counts: Sequence[int] = (1, 3)) -> None:
    """Law 1: the number of lanes is invisible."""
    everyone = _cohort(np.arange(population.num_clients))
    expected = _after(make, population, population.num_clients, everyone)
    for lanes in counts:
        assert_close(_after(make, population, lanes, everyone), expected, f"{lanes} lanes")


def check_mesh(make: Make, population: Population, counts: Sequence[int] = (1, 2, 4, 8)) -> None:
    """Law 2: the number of devices is invisible."""
    expected = _after(make, population, 8)
    for devices in counts:
        if devices <= len(jax.devices()):
            mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("clients",))
            assert_close(_after(make, population, 8, mesh=mesh), expected, f"{devices} devices")


def check_order(make: Make, population: Population) -> None:
    """Law 3: the order of a cohort is invisible."""
    ids = np.arange(population.num_clients)
    shuffled = np.random.default_rng(0).permutation(ids)
    expected, found = (_after(make, population, 3, _cohort(order)) for order in (ids, shuffled))
    assert_close(found, expected, "a shuffled cohort")


def check_padding(make: Make, population: Population) -> None:
    """Law 4: empty slots of a cohort, and the length of clients outside it, are invisible."""
    ids = np.arange(population.num_clients)
    size = population.num_clients
    half = _cohort(ids, ids < size // 2)
    expected = _after(make, population, 3, half)
    padded = np.concatenate([[size], ids[: size // 2], [size] * 3])
    assert_close(_after(make, population, 3, _cohort(padded, padded < size)), expected, "a padded cohort")
    taught = _after(make, _with_long_client(population), 3, half)
    assert_close(taught.private, expected.private, "private leaves beside a longer client")
    assert_close(taught.server.tables, expected.server.tables, "tables beside a longer client")


def check_absent(make: Make, population: Population) -> None:
    """Laws 6 and 7: an absent client's private leaves keep their bits, and no data is the same as absence."""
    empty = int(np.flatnonzero(np.diff(population.offsets) == 0)[0])
    ids = np.arange(population.num_clients)
    some = np.array([0, 1, 2, empty])
    start = _starter(make)(key_of(KEY), population)
    state = _after(make, population, 3, _cohort(ids, np.isin(ids, some)))
    outside = np.setdiff1d(ids, some[:3])
    for before, after in zip(jax.tree.leaves(start.private), jax.tree.leaves(state.private), strict=True):
        np.testing.assert_array_equal(before[outside], after[outside], "an absent client's private leaves")
        # a leaf that represents may be made anew before scoring, and not in training
        if _plain(make).model.represent is None:
            assert not np.array_equal(before[some[:3]], after[some[:3]]), "nobody learnt anything"  # noqa: S101
    absent = _after(make, population, 3, _cohort(ids, np.isin(ids, some[:3])))
    assert_close(state, absent, "a client without data against an absent one", _bits())


def check_resume(make: Make, population: Population) -> None:
    """Law 8: going on from round k equals running straight through, bit for bit (on a GPU to rounding)."""
    key = key_of(KEY)
    go = _program(make, 8).run
    start = _starter(make)(key, population)
    straight = go(key, start, population, 4, None)
    stored = jax.tree.map(np.asarray, go(key, start, population, 2, None))
    resumed = go(key, jax.tree.map(jnp.asarray, stored), population, 2, None)
    assert_close(resumed, straight, "a resumed run", _bits())


def check_one_trace(make: Make, population: Population, rounds: int = 50) -> None:
    """Law 9: one trace serves every round, whatever its cohort."""
    key = key_of(KEY)
    program = _program(make, 8)
    state = _starter(make)(key, population)
    before = len(program.traces)
    for _ in range(rounds):
        state = program.run(key, state, population, 1, None)
    traces = len(program.traces) - before
    assert traces <= 1, f"{traces} traces of {rounds} rounds"  # noqa: S101


def check_seeds(make: Make, population: Population, *, by_vmap: bool = True) -> None:
    """Law 10: a batch of seeds equals the loop over them, with `train_seeds` and with `vmap`."""
    algorithm = make(lanes=8)
    keys = jax.random.split(key_of(KEY), 2)
    each = [_after(make, population, 8, key=key) for key in keys]
    loop = jax.tree.map(lambda *states: jnp.stack(states), *each)
    assert_close(train_seeds(keys, algorithm, population, 2)[0], loop, "seeds by train_seeds")
    if by_vmap:
        batch = jax.vmap(lambda key: train(key, algorithm, population, 2)[0])
        assert_close(_compiled(batch)(keys), loop, "seeds by vmap")


def check_private(make: Make, population: Population) -> None:
    """Law 11: a client sends deltas of shared leaves and table rows, or what its work declares; nothing else."""
    algorithm = _plain(make)
    key = key_of(KEY)
    state = _starter(make)(key, population)
    update = client_update(algorithm, key, state, population, 0)
    sent = jax.tree.map(jnp.shape, (update.shared, update.rows))
    declared = state.server
    if algorithm.work.upload is not None:
        one = jax.tree.map(lambda p: p[0], state.private)
        declared = upload_shapes(algorithm.work, population, state.server, one)
    rows = jax.tree.map(lambda t: (len(update.ids), *t.shape[1:]), declared.tables)
    expected = (jax.tree.map(jnp.shape, declared.shared), rows)
    assert sent == expected, f"a client sends {sent}, declared is {expected}"  # noqa: S101


def check_sum(make: Make, population: Population) -> None:
    """What the server sums is what the clients send: the cohort's totals are the sum of the updates."""
    algorithm = _plain(make)
    key = key_of(KEY)
    state = _starter(make)(key, population)
    ids = np.arange(8)
    clients = name_clients(
        jax.random.fold_in(stream(key, "client"), state.round), jnp.asarray(ids), population
    )
    together = _compiled(partial(run_cohort, algorithm.work, Uplink(total()), lanes=3))
    result = together(
        population, state.server, ClientStore(state.private), Cohort(clients, jnp.ones(8, bool))
    )
    summed = jax.tree.map(np.zeros_like, jax.tree.map(np.asarray, result.totals.deltas))
    for i in ids:
        update = client_update(algorithm, key, state, population, int(i))
        jax.tree.map(lambda t, row, at=update.ids: np.add.at(t, at, row), summed.tables, update.rows)
        summed = summed._replace(shared=jax.tree.map(np.add, summed.shared, update.shared))
    floats = [x for x in jax.tree.leaves(state.server) if jnp.issubdtype(x.dtype, jnp.floating)]
    largest = max(float(np.abs(x).max(initial=0.0)) for x in floats)
    assert_close(result.totals.deltas, summed, "totals against single updates", largest=largest)


def check_dense(make: Make, population: Population) -> None:
    """Law 5: training on touched rows only equals training the whole table, for work that descends a loss."""
    algorithm = _plain(make)
    key = key_of(KEY)
    work = algorithm.work
    assert work.descent is not None, "this algorithm declares no loss to train densely"  # noqa: S101
    loss, optimizer = work.descent
    state = _starter(make)(key, population)
    cohort_key = jax.random.fold_in(stream(key, "client"), 0)
    for i in (0, 1):
        client = jax.tree.map(lambda x: x[0], name_clients(cohort_key, jnp.array([i]), population))
        params = Params(jax.tree.map(lambda p, i=i: p[i], state.private), *state.server)
        params = _train_densely(loss, optimizer, work, client, population, params)
        update = client_update(algorithm, key, state, population, i)
        delta = jax.tree.map(jnp.subtract, params.tables, state.server.tables)
        assert_close(read_rows(delta, update.ids), update.rows, "dense rows", 4 * TOLERANCE)
        dense = jax.tree.map(jnp.subtract, params.shared, state.server.shared)
        assert_close(dense, update.shared, "dense leaves", 4 * TOLERANCE)
        untouched = np.setdiff1d(np.arange(population.num_items), update.ids)
        if len(untouched):
            still = read_rows(delta, jnp.asarray(untouched))
            assert_close(still, jax.tree.map(jnp.zeros_like, still), "untouched rows", 0)


def _train_densely(
    loss: Any,
    optimizer: optax.GradientTransformation,
    work: Any,
    client: Any,
    population: Any,
    params: Params,
) -> Params:
    """Descend the loss on the whole table, step by step, with the optimizer over every row."""

    @jax.jit
    def step(params: Params, opt_state: Any, t: jax.Array, steps: jax.Array) -> tuple[Params, Any]:
        key = step_key(Draws(client.key, steps))
        batch = work.batches.batch(client, population, t)

        def whole(params: Params) -> jax.Array:
            return call_loss(loss, params._replace(tables=read_rows(params.tables, batch.ids)), batch, key)[0]

        updates, opt_state = optimizer.update(jax.grad(whole)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    num_batches = int(work.batches.num_batches(client.num_examples))
    for steps in range(work.epochs * num_batches):
        params, opt_state = step(params, opt_state, jnp.int32(steps % num_batches), jnp.int32(steps))
    return params


def check_lists(make: Make, population: Population) -> None:
    """Law 13: lists and evaluation say the same: a user's item is among the best K exactly where it ranks so."""
    algorithm = _plain(make)
    if algorithm.score is not None:
        key = key_of(KEY)
        state = _program(make, 8).run(key, _starter(make)(key, population), population, 2, None)
        compare_lists(algorithm, state, population)


def _with_long_client(population: Population) -> Population:
    """As many clients and examples; the first of the second half takes all that it lacks from the others there.

    Settings that follow from the size of the data stay as they are, and so does how many clients have an item.
    """
    items, ratings = (np.asarray(population.examples[name]) for name in ("items", "ratings"))
    clients = np.repeat(np.arange(population.num_clients), np.diff(population.offsets))
    long = population.num_clients // 2
    outside = np.flatnonzero(clients >= long)
    taken = outside[np.unique(items[outside], return_index=True)[1]]  # its own come first, and stay
    clients[taken] = long
    order = np.argsort(clients, kind="stable")
    offsets = np.searchsorted(clients[order], np.arange(population.num_clients + 1))
    return build(offsets, items[order], ratings[order], population.num_items)


LAWS: dict[str, Callable[[Make, Population], None]] = {
    "lanes": check_lanes,
    "mesh": check_mesh,
    "order": check_order,
    "padding": check_padding,
    "dense": check_dense,
    "absent": check_absent,
    "resume": check_resume,
    "one trace": check_one_trace,
    "seeds": check_seeds,
    "private": check_private,
    "sum": check_sum,
    "lists": check_lists,
}


def check_algorithm(make: Make, population: Population | None = None) -> None:
    """Check every law.

    Args:
        make: federation settings -> the algorithm under test.
        population: with ratings and a client without data; by default `tiny_population()`.

    Raises:
        AssertionError: if a law is broken, saying which and by how much.
    """
    for law in LAWS.values():
        law(make, tiny_population() if population is None else population)
