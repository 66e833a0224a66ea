"""Central differential privacy: sensitivity, noise, denominators, refusals, an audit that catches broken noise."""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import beta

import fedjax_rec as fr
from fedjax_rec import transforms
from fedjax_rec.cli.main import main
from fedjax_rec.privacy.dp_fedavg import dp_fedavg
from fedjax_rec.samplers.data_independent import everyone
from fedjax_rec.server import aggregators
from fedjax_rec.server.noise import draw_noise
from fedjax_rec.server.soundness import bound_of
from fedjax_rec.testing import KEY, fixed, run, tiny_population
from fedjax_rec.types import Server

CLIP = 0.05
EXPECTED = 10.0
SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10, "learning_rate": 0.3}


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def _moved(population, ids, noise_multiplier=0.0, **settings):
    """How far the model moves in one round of these clients, all numbers in one vector, float64."""
    rule = aggregators.gaussian(noise_multiplier=noise_multiplier, norm=CLIP, expected=EXPECTED)
    given: dict[str, Any] = {
        "sampler": fixed(ids),
        "transform": transforms.clip(CLIP),
        "aggregator": rule,
        **settings,
    }
    algorithm = fr.fedmf(**SMALL, **given)
    start, after = (run(algorithm, population, rounds=rounds).server for rounds in (0, 1))
    parts = jax.tree.map(lambda old, new: np.ravel(np.asarray(new, np.float64) - old), start, after)
    return np.concatenate(jax.tree.leaves(parts))


def test_one_client_moves_the_sum_by_the_clip_at_most(population):
    """|S(D) - S(D without u)| <= C, and = C for whoever was clipped; the denominator stays."""
    everybody = np.arange(population.num_clients)
    whole = _moved(population, everybody)
    reached = []
    for user in (0, 1, 5, 11):
        alive = everybody != user
        without = _moved(population, everybody, sampler=fixed(everybody, alive))
        reached.append(np.linalg.norm(whole - without) * EXPECTED / CLIP)
    assert max(reached) == pytest.approx(1, abs=1e-3)
    assert max(reached) <= 1 + 1e-3
    unclipped = _moved(population, everybody, transform=transforms.clip(1e6), aggregator="sum")
    assert np.linalg.norm(unclipped) > 10 * np.linalg.norm(whole)


def test_noise_is_on_every_row_and_has_its_size(population):
    """Rows that nobody touched move too, by z C / n; the signal is reported."""
    counts = np.diff(population.offsets)
    short = [int(np.argmin(np.where(counts > 0, counts, 99)))]
    calm = _moved(population, short)
    noise = _moved(population, short, noise_multiplier=2.0) - calm
    deviation = 2.0 * CLIP / EXPECTED
    assert (np.abs(calm) == 0).sum() > 20
    assert (noise != 0).all()
    assert noise.std() == pytest.approx(deviation, rel=0.2)
    private = dp_fedavg(24, cohort=12, rounds=5, clip=CLIP, delta=1e-3, noise_multiplier=2.0)
    algorithm = fr.fedmf(**SMALL, **private.federation)
    state = algorithm.init(jax.random.key(0), population)
    _, info = jax.jit(algorithm.round)(jax.random.key(0), state, population)
    assert 0 < float(info.signal) < 1


def test_noise_differs_by_round_and_seed(population):
    """Noise that repeats would cancel out."""
    rule = aggregators.gaussian(noise_multiplier=1.0, norm=1.0, expected=1.0)
    algorithm = fr.fedmf(
        **SMALL, sampler=fixed([3]), transform=transforms.clip(1.0), aggregator=rule
    )  # no data
    one, two = (run(algorithm, population, rounds=n).server.tables["vector"] for n in (1, 2))
    start = run(algorithm, population, rounds=0).server.tables["vector"]
    other = run(algorithm, population, rounds=1, seed=KEY + 1).server.tables["vector"]
    first = np.asarray(one - start)
    second = np.asarray(two - one)
    assert np.abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.3
    assert not np.allclose(one, other)


def test_a_budget_is_met():
    """Calibrated noise spends what was asked for, and one round more is refused by the count."""
    private = dp_fedavg(600, cohort=60, rounds=20, clip=1.0, delta=1e-4, target_epsilon=2.0)
    assert 1.98 < private.epsilon(20) <= 2.0
    assert 20 <= private.rounds_within(2.0) <= 21
    assert private.sampler.capacity >= 60


def _audit(noise_multiplier, claimed, draws=4000):
    """Lower 95 % confidence bound on epsilon from telling canaries that were in from those that were out."""
    rule = aggregators.gaussian(noise_multiplier=claimed, norm=1.0, expected=1.0)
    canary = Server({}, {"vector": jnp.zeros((8, 4)).at[2].set(0.5)})  # norm 1
    keys = jax.random.split(jax.random.key(5), 2 * draws)
    assert rule.noise is not None
    draw = partial(draw_noise, rule.noise)
    drawn = jax.vmap(draw, in_axes=(0, None, None))(keys, jnp.int32(0), canary).tables["vector"]
    noise = drawn * (noise_multiplier / claimed)
    scores = np.asarray((noise * canary.tables["vector"][None]).sum((1, 2)))
    inside = scores[:draws] + 1.0
    outside = scores[draws:]
    threshold = 1.0 + noise_multiplier
    delta = 1e-4
    hits = (inside > threshold).sum()
    alarms = (outside > threshold).sum()
    least = beta.ppf(0.05, hits, draws - hits + 1)
    most = beta.ppf(0.95, alarms + 1, draws - alarms)
    return np.log((least - delta) / most)


def test_an_audit_catches_broken_noise():
    """With z = 2 an attacker's epsilon stays below the claim; with a quarter of the noise it does not."""
    claim = dp_fedavg(100, cohort=100, rounds=1, clip=1.0, delta=1e-4, noise_multiplier=2.0).epsilon(1)
    assert 0 < _audit(2.0, 2.0) < claim
    assert _audit(0.5, 2.0) > claim


def _noisy(**settings):
    return aggregators.gaussian(**({"noise_multiplier": 1.0, "norm": 1.0, "expected": 9.0} | settings))


def _with_smaller_noise(rule):
    return rule._replace(noise=rule.noise._replace(expected=900.0))


REFUSED = {
    "noise without a clip": (lambda: fr.fedmf(aggregator=_noisy()), "without a bound; give transform="),
    "a wider clip": (
        lambda: fr.fedmf(aggregator=_noisy(), transform=transforms.clip(2.0)),
        "too little for those of norm 2.0",
    ),
    "local noise without a clip": (lambda: fr.fedmf(transform=transforms.add_noise(1.0)), "put clip"),
    "a chain of noise alone": (lambda: transforms.chain(transforms.add_noise(1.0)), "put clip"),
    "a clip before what undoes it": (
        lambda: transforms.chain(transforms.clip(1.0), transforms.quantise(4)),
        "put the clip after it",
    ),
    "weights": (lambda: _noisy(base="examples"), "weights let a client count for more"),
    "touchers": (lambda: _noisy(base="touchers"), "touched a row is private"),
    "heat": (lambda: _noisy(base="heat"), "touched a row is private"),
    "the mean": (lambda: _noisy(base="mean"), "took part is private"),
    "a median": (lambda: _noisy(base=fr.server.median()), "are no sums"),
    "a constant weight": (
        lambda: _noisy(base=aggregators.total()._replace(weight=lambda n: 5.0 * jnp.ones(n.shape))),
        "weights let a client count for more",
    ),
    "a sum times five": (
        lambda: _noisy(base=aggregators.total()._replace(finish=lambda totals: totals.deltas)),
        "moves what another normaliser makes",
    ),
    "noise twice": (lambda: _noisy(base=_noisy()), "moves what another normaliser makes"),
    "noise on both sides": (
        lambda: fr.fedmf(
            aggregator=_noisy(), transform=transforms.chain(transforms.clip(1.0), transforms.add_noise(0.5))
        ),
        "let either the clients or the server add noise",
    ),
    "a second noise": (
        lambda: transforms.chain(transforms.clip(1.0), transforms.add_noise(0.5), transforms.add_noise(0.5)),
        "add all of it at once",
    ),
    "a clip before a grid": (
        lambda: fr.fedmf(
            aggregator=_noisy(base=aggregators.fixed_point(aggregators.total(), capacity=1000, limit=4000)),
            transform=transforms.clip(1.0),
        ),
        r"rounding to multiples of 2\^-9 may raise a norm of 1.0",
    ),
    "a scale after the grid": (
        lambda: fr.fedmf(
            aggregator=_noisy(base=aggregators.fixed_point(aggregators.total(), capacity=10), norm=2.0),
            transform=transforms.chain(fr.privacy.clip_to_grid(1.0, 20, numbers=9), transforms.clip(1.0)),
        ),
        "rounding to multiples of",
    ),
    "a start from ratings": (
        lambda: fr.fedmf(loss="mse", aggregator=_noisy(), transform=transforms.clip(1.0)),
        "starts from the mean rating of all clients",
    ),
    "equations of noise": (
        lambda: fr.fedals(aggregator=_noisy(), transform=transforms.clip(1.0)),
        "which noise leaves without a solution",
    ),
    "a delta that publishes somebody": (
        lambda: dp_fedavg(100, cohort=9, rounds=1, clip=1.0, delta=0.01, noise_multiplier=1.0),
        r"delta=0.01 is 1 / 100 clients or more",
    ),
    "a budget that hides nothing": (
        lambda: dp_fedavg(100, cohort=9, rounds=1, clip=1.0, delta=1e-3, target_epsilon=1e6),
        "at most 100, beyond which nothing is hidden",
    ),
    "a sum whose noise is divided by more": (
        lambda: fr.fedmf(aggregator=_with_smaller_noise(_noisy()), transform=transforms.clip(1.0)),
        "so that it is not what the noise multiplier says",
    ),
    "no number": (lambda: _noisy(norm=float("nan")), "norm=nan is out of range"),
    "too many clients": (
        lambda: dp_fedavg(9, cohort=10, rounds=1, clip=1.0, delta=1e-3, noise_multiplier=1.0),
        "between 1 and the 9 clients",
    ),
    "noise and target": (lambda: dp_fedavg(9, cohort=9, rounds=1, clip=1.0, delta=1e-3), "exactly one"),
    "no noise": (
        lambda: dp_fedavg(9, cohort=9, rounds=1, clip=1.0, delta=1e-3, noise_multiplier=0.0),
        "hides nothing",
    ),
    "wrapping sums": (
        lambda: aggregators.fixed_point(aggregators.total(), capacity=2**30),
        "bits behind the point; lower the capacity",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsound_chains_do_not_build(case):
    """Each refusal says why and what to do."""
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build()


def test_neighbourhoods_have_no_private_form(population):
    """What the server makes of others' tables would leave without noise."""
    del population
    assert bound_of(transforms.chain(transforms.clip(2.0), transforms.clip(1.0))).norm == 1.0
    model = fr.fedmf(**SMALL)
    with pytest.raises(ValueError, match="no private form"):
        fr.federate(
            model.model,
            model.work,
            sampler=everyone(),
            aggregator=_noisy(),
            transform=transforms.clip(1.0),
            exchange=lambda totals, server, private: private,  # noqa: ARG005
        )


def test_integer_sums_may_carry_the_noise(population):
    """The plain sum in integers is a plain sum."""
    inner = aggregators.fixed_point(aggregators.total(), capacity=30)
    assert inner.fixed is not None
    to_grid = fr.privacy.clip_to_grid(CLIP, inner.fixed.bits, numbers=200)
    norm = bound_of(to_grid).norm
    assert norm is not None
    rule = aggregators.gaussian(inner, noise_multiplier=0.0, norm=norm, expected=EXPECTED)
    ids = np.arange(population.num_clients)
    found = _moved(population, ids, aggregator=rule, transform=to_grid)
    np.testing.assert_allclose(found, _moved(population, ids), atol=1e-5)


def test_the_command_line_calibrates(tmp_path, capsys):
    """`--target-epsilon` chooses the noise; `result.json` says what was spent, and the table too."""
    short = [
        "--rounds",
        "6",
        "--eval-every",
        "3",
        "--dim",
        "4",
        "--cohort",
        "1000",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["run", *short, "--clip", "0.5", "--target-epsilon", "4", "--delta", "1e-4"]) == 0
    spent = json.loads((tmp_path / "run" / "result.json").read_text())["privacy"]
    assert 3.95 < spent["epsilon"] <= 4
    assert (spent["delta"], spent["unit"], spent["clip"]) == (1e-4, "user", 0.5)
    assert spent["noise_multiplier"] > 1
    assert 0 < spent["signal_to_noise"] < 10
    assert "6 rounds spend epsilon" in capsys.readouterr().out
