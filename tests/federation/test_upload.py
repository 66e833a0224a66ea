"""What a client may send besides its rows' changes, what the server may send back, and who normalises how."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec import transforms
from fedjax_rec.federation.federate import client_update, federate
from fedjax_rec.server import stacked as reducers
from fedjax_rec.server.aggregators import by_change, by_examples, by_heat, mean, named, total
from fedjax_rec.testing import assert_close, fixed, run, tiny_population
from fedjax_rec.types import Algorithm, ClientWork, LossWeighting, RowUpload, Totals
from tests.crosses import crossed

EVERYONE = np.arange(24)


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def halves(epochs: int, **federation: Any) -> Algorithm:
    """fedmf whose clients send half their change under another name and twice over; the server adds the two."""
    plain = fr.fedmf(dim=3, batch_size=10, local_epochs=epochs, loss="mse")

    def send(local, rows, batch, old):
        del local, batch
        change = jax.tree.map(lambda new, old: 0.5 * (new - old), rows.values, old)
        return {"left": change, "right": {"copy": change}}

    def update(updates, state, params=None):
        del params
        tables = jax.tree.map(jnp.add, updates.tables["left"], updates.tables["right"]["copy"])
        return jax.tree.map(jnp.negative, updates._replace(tables=tables)), state

    rule = optax.GradientTransformation(optax.init_empty_state, update)
    work = plain.work._replace(upload=RowUpload(send))
    return federate(plain.model, work, sampler=fixed(EVERYONE), server_optimizer=rule, **federation)


@pytest.mark.parametrize(
    ("way", "epochs"), crossed(["sums", "touchers", "whole", "clip", "mesh", "stack"], [1, 3])
)
def test_sent_rows_of_another_shape(way, epochs, population):
    """Whatever the schedule and the uplink, sending two halves equals sending the change."""
    ways: dict[str, dict[str, Any]] = {
        "sums": {},
        "touchers": {"aggregator": "touchers"},
        "clip": {"transform": transforms.clip(1e9)},
        "whole": {"transform": transforms.chain(transforms.clip(1e9), transforms.clip(1e9))},
        "stack": {"aggregator": reducers.median()},
        "mesh": {"mesh": fr.client_mesh(2), "lanes": 4},
    }
    given = {"aggregator": "sum"} | ways[way]
    whole = fr.fedmf(dim=3, batch_size=10, local_epochs=epochs, loss="mse", sampler=fixed(EVERYONE), **given)
    assert_close(run(halves(epochs, **given), population), run(whole, population), f"{way}, {epochs} epochs")


def test_client_update_has_what_is_sent(population):
    """A single client's update shows the declared structure."""
    algorithm, key = halves(1), jax.random.key(0)
    update = client_update(algorithm, key, algorithm.init(key, population), population, 0)
    assert sorted(update.rows) == ["left", "right"]
    assert update.rows["left"]["vector"].shape == (len(update.ids), 3)


def test_representation_comes_before_scores():
    """Every client does its representing work before it is ranked; nothing else reads it."""
    split = fr.leave_one_out(fr.data.synthetic(60, 80))
    plain = fr.fedmf(dim=3)

    def finish(local, shared):
        del shared
        params, *_ = local
        return jax.tree.map(jnp.ones_like, params.private), {}

    ones: ClientWork = plain.work._replace(finish=finish, upload=RowUpload(lambda *_: {}))
    model = plain.model._replace(represent=ones)
    algorithm = federate(model, plain.work, cohort=20)
    state = algorithm.init(jax.random.key(0), fr.population_of(split))
    found = fr.make_evaluator(algorithm, split)(state)
    expected = fr.make_evaluator(plain, split)(
        state._replace(private=jax.tree.map(jnp.ones_like, state.private))
    )
    np.testing.assert_array_equal(found.full.mid, expected.full.mid)
    other = fr.make_evaluator(plain, split)(state)
    assert not np.array_equal(found.full.mid, other.full.mid)


@pytest.mark.parametrize("devices", [1, 2])
def test_exchange_sees_the_cohort_in_order(devices, population):
    """The server's answer reaches the client whose update it is made of, on any number of devices."""
    plain = fr.fedmf(dim=3, batch_size=10)
    ids = np.random.default_rng(0).permutation(EVERYONE)

    def exchange(stack, server, private):
        del server
        norm = jnp.sqrt((stack.deltas.tables["vector"] ** 2).sum((1, 2)))
        return {"vector": jnp.broadcast_to(norm[:, None], private["vector"].shape)}

    mesh = fr.client_mesh(devices) if devices > 1 else None
    algorithm = federate(
        plain.model,
        plain.work,
        sampler=fixed(ids),
        aggregator=reducers.median(),
        exchange=exchange,
        lanes=4,
        mesh=mesh,
    )
    key = jax.random.key(0)
    start = algorithm.init(key, population)
    updates = [client_update(plain, key, start, population, int(i)).rows["vector"] for i in EVERYONE]
    expected = np.array([np.sqrt((np.asarray(rows) ** 2).sum()) for rows in updates])
    state = jax.jit(algorithm.round)(key, start, population)[0]
    np.testing.assert_allclose(state.private["vector"][:, 0], expected, rtol=1e-5, atol=1e-7)


def _updates(population, ids) -> tuple[np.ndarray, np.ndarray]:
    """Dense vectors' changes [C, I, D] and who touched what [C, I], client by client."""
    plain, key = fr.fedmf(dim=3, batch_size=10, local_epochs=2), jax.random.key(7)
    state = plain.init(key, population)
    deltas = np.zeros((len(ids), population.num_items, 3))
    touched = np.zeros((len(ids), population.num_items), bool)
    for place, client in enumerate(ids):
        update = client_update(plain, key, state, population, int(client))
        deltas[place, np.asarray(update.ids)] = update.rows["vector"]
        touched[place, np.asarray(update.ids)] = True
    return deltas, touched


@pytest.mark.parametrize("name", ["sum", "mean", "touchers", "examples", "heat", "change"])
def test_named_normalisers(name, population):
    """Each normaliser against its formula, in numpy, on a cohort of eight."""
    ids = np.arange(8, 16)
    deltas, touched = _updates(population, ids)
    offsets, items = np.asarray(population.offsets), np.asarray(population.examples["items"])
    counts = np.diff(offsets)[ids]
    heat = np.maximum(np.bincount(items, minlength=population.num_items), 1)
    clients = (np.diff(offsets) > 0).sum()
    sizes = np.abs(deltas).sum(2, keepdims=True) * 1.0
    # the bias is a row's leaf too, so that sizes of changes are taken over both
    plain, key = fr.fedmf(dim=3, batch_size=10, local_epochs=2), jax.random.key(7)
    state = plain.init(key, population)
    for place, client in enumerate(ids):
        update = client_update(plain, key, state, population, int(client))
        sizes[place, np.asarray(update.ids), 0] += np.abs(update.rows["bias"])
    safe = np.maximum(sizes.sum(0), 1e-30)
    expected = {
        "sum": deltas.sum(0),
        "mean": deltas.mean(0),
        "touchers": deltas.sum(0) / np.maximum(touched.sum(0), 1)[:, None],
        "examples": (counts[:, None, None] * deltas).sum(0) / counts.sum(),
        "heat": deltas.mean(0) * (clients / heat)[:, None],
        "change": (sizes * deltas).sum(0) / safe,
    }[name]
    algorithm = fr.fedmf(dim=3, batch_size=10, local_epochs=2, sampler=fixed(ids), aggregator=name)
    after = jax.jit(algorithm.round)(key, state, population)[0]
    change = np.asarray(after.server.tables["vector"] - state.server.tables["vector"])
    np.testing.assert_allclose(change, expected, rtol=2e-4, atol=2e-6)


def test_client_stats_are_summed_over_those_who_take_part(population):
    """Statistics count the clients that train: neither the absent nor those without data (client 3)."""
    ids, seen = np.array([0, 1, 3, 5]), []

    def finish(totals):
        seen.append(totals)
        return mean().finish(totals)

    aggregator = mean()._replace(
        client_stats=lambda n: {"one": jnp.ones(n.shape), "examples": n.astype(jnp.float32)},
        finish=finish,
    )
    algorithm = fr.fedmf(dim=3, sampler=fixed(ids, ids != 5), aggregator=aggregator)
    key = jax.random.key(0)
    algorithm.round(key, algorithm.init(key, population), population)
    counts = np.diff(np.asarray(population.offsets))
    assert float(seen[0].client_stats["one"]) == 2
    assert float(seen[0].client_stats["examples"]) == counts[0] + counts[1]

    # beside a factor by losses, whose statistic is another sum
    by_loss = aggregator._replace(losses=LossWeighting(factor=lambda loss, _: (loss, jnp.ones_like(loss))))
    algorithm = fr.fedmf(dim=3, sampler=fixed(ids, ids != 5), aggregator=by_loss)
    algorithm.round(key, algorithm.init(key, population), population)
    assert float(seen[1].client_stats["one"]) == float(seen[1].loss_statistic) == 2


def test_unknown_normaliser():
    """One line with the known names."""
    with pytest.raises(ValueError, match=r"unknown aggregator 'median'; choose one of sum, mean, .*change"):
        named("median")


def test_normalisers_are_what_their_names_say():
    """Names and functions belong together."""
    assert by_heat().rows.heat
    assert named("heat").rows.heat
    assert by_change().rows.factor is not None
    assert not total().rows.weights
    assert named("touchers").rows.weights
    assert by_examples().weight(jnp.array([3])).tolist() == [3.0]
    assert Totals(None, None, None).client_stats == ()  # type: ignore[arg-type]
