"""Clients that stream from host memory: rounds in parts are the rounds, and no program holds what all keep."""

import json
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.attacks import colluding, explicit_boosting
from fedjax_rec.cli.main import main
from fedjax_rec.engine.chunks import plan_run
from fedjax_rec.engine.devices import client_mesh
from fedjax_rec.engine.plan import check_fits, with_copy
from fedjax_rec.evaluation.evaluator import (
    make_evaluator,
    make_rating_predictor,
    make_top_k,
    server_parameters,
)
from fedjax_rec.federation.federate import client_update
from fedjax_rec.federation.host_memory import copy_state, make_block, put_state
from fedjax_rec.privacy.dp_fedavg import dp_fedavg
from fedjax_rec.samplers.data_dependent import power_of_choice
from fedjax_rec.server.aggregators import named, total
from fedjax_rec.server.fairness import agnostic, q_fedavg
from fedjax_rec.server.robust import norm_bound
from fedjax_rec.testing import assert_close, tiny_population
from fedjax_rec.training.checkpoints.leaves import digest, to_arrays
from fedjax_rec.training.checkpoints.manager import Checkpoints
from fedjax_rec.transforms.error_feedback import error_feedback
from fedjax_rec.transforms.sparsification import top_k
from tests.crosses import crossed

KEY = jax.random.key(3)
SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10}
PRIVATE = dp_fedavg(24, cohort=8, rounds=5, clip=0.5, delta=1e-3, noise_multiplier=2.0)
MAKES: dict[str, Any] = {  # private tables, memories, losses, absent clients, weights by row
    "fedrap": partial(fr.fedrap, dim=3, batch_size=8),
    "pfedrec": partial(fr.pfedrec, dim=3),
    "scaffold": partial(fr.scaffold, dim=3, cohort=10),
    "server optimizer": partial(
        fr.fedmf, cohort=10, local_epochs=2, server_optimizer=optax.adam(0.1), **SMALL
    ),
    "error feedback": partial(fr.fedmf, cohort=10, transform=error_feedback(top_k(0.2)), **SMALL),
    "losses": partial(fr.fedmf, sampler=power_of_choice(16, cohort=9), **SMALL),
    "faults": partial(
        fr.fedmf, cohort=12, faults=fr.Faults(drop_out=0.2, spread=0.5, deadline=8.0, partial=True), **SMALL
    ),
    "rows": partial(fr.fedmf, cohort=10, aggregator="heat", **SMALL),
    "fair": partial(fr.fedmf, cohort=10, aggregator=q_fedavg(0.5, lipschitz=2.0), **SMALL),
    "private": partial(fr.fedmf, **PRIVATE.federation, **SMALL),
}


@pytest.fixture(scope="module")
def split():
    return fr.leave_one_out(fr.data.synthetic(num_users=50, num_items=80, seed=1))


def run(make, size, devices=1, rounds=4):
    """Some rounds of the tiny population: the state and the reports."""
    algorithm = make(stream_clients=size, mesh=client_mesh(devices))
    state, history = fr.simulate(algorithm, tiny_population(), rounds=rounds, seed=KEY, eval_every=2)
    assert history.num_compilations == 1
    assert history.plan.stream_clients == (
        min(size, history.plan.cohort + history.plan.cohort % devices) or None
    )
    return state, history.rounds


@lru_cache(maxsize=1)  # cells of a name follow one another
def in_one_piece(name):
    return run(MAKES[name], 0)


@pytest.mark.parametrize(("name", "parts"), crossed(list(MAKES), [(5, 1), (8, 2), (24, 1)]))
def test_parts_are_the_rounds(name, parts):
    """In whatever parts, over whatever devices; all in one part, to the last bits."""
    size, devices = parts
    expected, infos = in_one_piece(name)
    found, reports = run(MAKES[name], size, devices)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found.store))
    tolerance = 1e-6 if size == 24 else 2e-5  # one part adds in the same order, in another program
    assert_close(found, expected, f"{name}, {size} at a time", tolerance)
    same = infos._replace(lane_steps=reports.lane_steps)  # how lanes were filled is another matter
    assert_close(reports, same, f"reports of {name}, {size} at a time", tolerance)


@pytest.mark.parametrize("name", ["fedrap", "scaffold", "error feedback"])
def test_no_program_holds_what_all_clients_keep(name):
    """Neither the argument nor a copy: the size of all N clients is in no program but that of one piece."""
    population = tiny_population()
    algorithm = MAKES[name](stream_clients=5)
    state = algorithm.init(KEY, population)
    texts = {}
    for size, parts in ((0, None), (5, algorithm.streaming(population))):
        placed = put_state(parts, None, state)
        texts[size] = make_block(algorithm, parts, 2).text(KEY, placed, population)
    assert "tensor<24x40x3xf32>" in texts[0]
    assert "tensor<24x40x3xf32>" not in texts[5]
    assert "tensor<5x40x3xf32>" in texts[5]


def test_unsound_clients_are_absent():
    """They keep what they had, and the round is that of the others."""
    algorithm, population = fr.fedrap(dim=3, stream_clients=5), tiny_population()
    whole = fr.fedrap(dim=3, stream_clients=0)
    start = algorithm.init(KEY, population)
    vectors = start.private["vector"].at[jnp.array([1, 7])].set(jnp.nan)
    start = start._replace(private=start.private | {"vector": vectors})
    (found, history), (expected, other) = (
        fr.simulate(each, population, rounds=1, seed=KEY, eval_every=1, state=copy_state(start))
        for each in (algorithm, whole)
    )
    assert_close(found.server, expected.server, "of the others", 1e-5)
    assert np.isnan(found.private["vector"][[1, 7]]).all()
    assert not np.isnan(found.private["vector"][[0, 2]]).any()
    assert history.rounds.unsound.tolist() == other.rounds.unsound.tolist() == [2]


def test_a_step_that_is_not_taken():
    """The model stays; what clients learnt stays with them, which is the departure that `streaming` names."""
    broken = total()._replace(finish=lambda totals: jax.tree.map(lambda x: x / 0.0, totals.deltas))
    model, work = fr.fedmf(**SMALL)[3:5]
    algorithm, population = (
        fr.federate(model, work, cohort=8, aggregator=broken, stream_clients=3),
        tiny_population(),
    )
    start = algorithm.init(KEY, population)
    after, history = fr.simulate(
        algorithm, population, rounds=1, seed=KEY, eval_every=1, state=copy_state(start)
    )
    assert history.rounds.skipped.tolist() == [1]
    assert_close(after.server, start.server, "the model", 0.0)
    moved = (after.private["vector"] != np.asarray(start.private["vector"])).any(1)
    assert 0 < moved.sum() <= 8


def test_a_state_that_is_given_stays_as_it_is(split):
    """Though rounds in parts write into host memory."""
    algorithm = fr.fedrap(dim=3, stream_clients=8)
    state, _ = fr.simulate(algorithm, split, rounds=2, eval_every=2)
    before = digest(to_arrays(state))
    onward, _ = fr.simulate(algorithm, split, rounds=4, eval_every=2, state=state)
    assert digest(to_arrays(state)) == before
    straight, _ = fr.simulate(algorithm, split, rounds=4, eval_every=2)
    assert digest(to_arrays(onward)) == digest(to_arrays(straight))


def test_a_run_goes_on_bit_for_bit(split, tmp_path):
    """From a checkpoint, whose best state is another than its last; and the best round is that of one piece."""
    options: dict[str, Any] = {"seed": 3, "eval_every": 3}
    algorithm = fr.pfedrec(dim=3, stream_clients=8)
    straight, expected = fr.simulate(algorithm, split, rounds=7, **options)
    kept = Checkpoints(tmp_path / "run", every=3)
    fr.simulate(algorithm, split, rounds=6, **options, checkpoint=kept)
    state, history = fr.simulate(algorithm, split, rounds=7, **options, checkpoint=kept, resume=True)
    assert digest(to_arrays(state)) == digest(to_arrays(straight))
    assert history.evaluations == expected.evaluations
    assert history.selected_round == 3
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state.private))
    _, whole = fr.simulate(fr.pfedrec(dim=3, stream_clients=0), split, rounds=7, **options)
    assert history.selected_round == whole.selected_round
    for (_, found), (_, wanted) in zip(history.evaluations, whole.evaluations, strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    "other",
    [{"server_optimizer": optax.sgd(0.5)}, {"aggregator": "mean"}, {"faults": fr.Faults(drop_out=0.5)}],
    ids=["end", "aggregator", "draw"],
)
def test_another_algorithm_is_refused(other, split, tmp_path):
    """Wherever in a round it differs."""
    given: dict[str, Any] = {"cohort": 8, "stream_clients": 4, **SMALL}
    kept = Checkpoints(tmp_path / "run", every=1)
    fr.simulate(fr.fedmf(**given), split, rounds=1, eval_every=1, checkpoint=kept)
    with pytest.raises(ValueError, match="the program of a round"):
        fr.simulate(fr.fedmf(**given, **other), split, rounds=2, eval_every=1, checkpoint=kept)


@pytest.mark.parametrize(
    ("make", "by_parts"),
    [
        (partial(fr.fedrap, dim=3), True),
        (partial(fr.fedmf, dim=3), False),
        (partial(fr.scaffold, dim=3), False),
    ],
    ids=["tables", "vectors", "tables that no score reads"],
)
def test_ranks_of_leaves_in_host_memory(make, by_parts, split):
    """The same, whether all scores are smaller than the leaves, and so computed part by part, or not."""
    algorithm, population = make(), fr.population_of(split)
    state = algorithm.init(KEY, population)
    waiting = state._replace(private=jax.tree.map(np.asarray, state.private))
    assert isinstance(server_parameters(algorithm).prepare(waiting), np.ndarray) == by_parts
    for build in (make_evaluator, make_top_k, make_rating_predictor):
        assert_close(build(algorithm, split)(waiting), build(algorithm, split)(state), build.__name__, 1e-6)


def test_one_client_of_a_state_in_host_memory(split):
    """Its update is that of the state on the device, and the others' leaves stay where they are."""
    algorithm, population = fr.fedrap(dim=3), fr.population_of(split)
    state = algorithm.init(KEY, population)
    own = state.private["vector"].at[7].add(0.5)
    state = state._replace(private=state.private | {"vector": own})
    waiting = state._replace(private=jax.tree.map(np.asarray, state.private))
    found, wanted = (client_update(algorithm, KEY, each, population, 7) for each in (waiting, state))
    assert_close(found, wanted, "the update", 1e-6)


REFUSED: dict[str, tuple[Any, str]] = {
    "stack": (partial(fr.fedmf, aggregator=norm_bound(1.0)), "an aggregator that sees all updates at once"),
    "mixture": (partial(fr.fedmf, aggregator=agnostic()), "weights that the server learns"),
    "least": (
        partial(fr.fedmf, aggregator=named("mean")._replace(min_clients=5)),
        "a least number of clients",
    ),
    "exchange": (
        partial(fr.federate, *fr.fedmf()[3:5], exchange=lambda *given: given[-1]),
        "an exchange between clients",
    ),
    "colluding": (
        partial(fr.fedmf, adversary=colluding(explicit_boosting([7]), [0, 1])),
        "colluding clients",
    ),
    "asynchronous": (
        partial(fr.fedmf, asynchronous=fr.FedBuff(buffer=4, concurrency=8)),
        "asynchronous rounds",
    ),
    "represent": (fr.fedals, "clients that represent themselves"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_a_whole_cohort_is_refused(name, monkeypatch):
    """By name; and where nobody asked for parts, it runs in one piece, however large."""
    make, why = REFUSED[name]
    with pytest.raises(ValueError, match=f"stream_clients=5 .*{why}"):
        make(stream_clients=5)
    monkeypatch.setattr("fedjax_rec.engine.chunks.STREAMED", 0)
    assert plan_run(make(), tiny_population()).stream_clients is None


def test_the_size_of_a_part():
    """Whole slots for each device, and no more than the cohort needs; never a negative number."""
    for asked, cohort, devices, size in ((5, 12, 1, 5), (5, 12, 2, 6), (99, 12, 1, 12), (99, 11, 2, 12)):
        algorithm = fr.fedmf(**SMALL, cohort=cohort, stream_clients=asked, mesh=client_mesh(devices))
        assert plan_run(algorithm, tiny_population()).stream_clients == size
    with pytest.raises(ValueError, match="stream_clients=-1 must be at least 0"):
        fr.fedmf(stream_clients=-1)


def test_where_memory_asks_for_it(split, monkeypatch):
    """On a CPU where copies are large, elsewhere where it would not fit; the results are the same."""
    algorithm, population = fr.fedrap(dim=3), fr.population_of(split)
    plan = with_copy(algorithm.plan(population))
    assert plan_run(algorithm, population).stream_clients is None
    expected, whole = fr.simulate(algorithm, split, rounds=3, eval_every=3)
    monkeypatch.setattr("fedjax_rec.engine.chunks.CHUNK", 7 * 4 * 3 * split.num_items)
    with monkeypatch.context() as patch:
        patch.setattr("fedjax_rec.engine.chunks.STREAMED", plan.num_bytes["cohort"])
        assert plan_run(fr.fedrap(dim=3, stream_clients=0), population).stream_clients is None
        state, history = fr.simulate(algorithm, split, rounds=3, eval_every=3)
    assert (whole.plan.stream_clients, history.plan.stream_clients) == (None, 6)
    assert_close(state, expected, "by itself", 2e-5)
    need = sum(plan.num_bytes.values())
    with monkeypatch.context() as patch:
        patch.setattr("fedjax_rec.engine.plan.device_bytes", lambda devices: devices * need)
        assert plan_run(algorithm, population).stream_clients is None
        patch.setattr("fedjax_rec.engine.plan.device_bytes", lambda devices: devices * need - 1)
        assert plan_run(algorithm, population).stream_clients == 6


def test_what_waits_is_counted_once(split, monkeypatch):
    """In the host's memory, with the best state; devices hold parts. An accelerator's memory is not the host's."""
    population = fr.population_of(split)
    one, two = (plan_run(fr.fedrap(dim=3, stream_clients=4, mesh=client_mesh(n)), population) for n in (1, 2))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(fr.fedrap(dim=3).init(KEY, population).private))
    assert one.num_bytes["host"] == two.num_bytes["host"] == kept
    assert one.num_bytes["cohort"] < kept < fr.fedrap(dim=3).plan(population).num_bytes["cohort"]
    both = with_copy(one)
    assert (both.num_bytes["host best"], both.num_bytes["best"]) == (kept, one.num_bytes["model"])
    rest = sum(both.num_bytes.values()) - 2 * kept
    monkeypatch.setattr("fedjax_rec.engine.plan.host_bytes", lambda: 2 * kept - 1)
    monkeypatch.setattr(
        "fedjax_rec.engine.plan.device_bytes", lambda devices: devices * (rest + 2 * kept - 1)
    )
    with pytest.raises(ValueError, match=r"the best state so far takes in host memory .*keep='last'"):
        check_fits(both)
    check_fits(one)
    monkeypatch.setattr("fedjax_rec.engine.plan.device_bytes", lambda devices: devices * rest)
    with pytest.raises(ValueError, match="what all clients keep in host memory takes"):
        check_fits(one)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match=r"the best state so far takes in host memory .*keep='last'"):
        check_fits(both)
    monkeypatch.setattr("fedjax_rec.engine.plan.host_bytes", lambda: 2 * kept)
    check_fits(both)
    monkeypatch.setattr("fedjax_rec.engine.plan.device_bytes", lambda devices: devices * rest // 2)
    with pytest.raises(ValueError, match=r"; lower .*stream_clients"):
        check_fits(both)


def test_command_line(tmp_path):
    """The flag, its record, and the same metrics."""
    common = ["run", "--algorithm", "pfedrec", "--rounds", "2", "--eval-every", "1", "--devices", "1"]
    results = {}
    for size in ("0", "50"):
        folder = tmp_path / size
        assert main([*common, "--stream-clients", size, "--out", str(folder)]) == 0
        results[size] = json.loads((folder / "result.json").read_text())
    assert [results[size]["engine"]["stream_clients"] for size in results] == [None, 50]
    assert results["50"]["num_compilations"] == 1
    whole, parts = (results[size]["metrics"]["test"]["full"] for size in results)
    assert parts == pytest.approx(whole, abs=1e-6)
