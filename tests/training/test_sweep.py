"""A batch of settings equals the loop over them, budgets are equal, and test items are never looked at."""

import math
import signal
from functools import partial
from importlib import import_module
from typing import Any

import jax
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.data.synthetic import synthetic
from fedjax_rec.federation.blocks import Compilations
from fedjax_rec.testing import tiny_population
from fedjax_rec.training import trials
from fedjax_rec.training.sweep import (
    SweepInterrupted,
    Trial,
    _group_trials,
    _rests,
    _trials_side_by_side,
    sweep,
)
from fedjax_rec.training.trials import plan_swaps
from fedjax_rec.types import Plan

SMALL: dict[str, Any] = {"dim": 4, "batch_size": 20, "cohort": 20, "lanes": 4}
TRIALS = [{"learning_rate": 0.02, "regularisation": 0.0}, {"learning_rate": 0.1, "regularisation": 0.05}]
ROUNDS, EVERY = 7, 3


@pytest.fixture(scope="module")
def split():
    return fr.leave_one_out(synthetic(60, 90))


def make(**settings):
    return fr.fedmf(**SMALL, **settings)


def stubborn(*, learning_rate, regularisation, prox):
    """A factory that wants to know one of its numbers: it cannot be traced."""
    return make(learning_rate=learning_rate * float(1 + prox), regularisation=regularisation)


def by_hand(factory, split, settings, seed, metric="ndcg@10"):
    """The same trial by `simulate`: its best metric, its round, its curve."""
    stop = fr.Stop(metric=metric)
    history = fr.simulate(factory(**settings), split, rounds=ROUNDS, eval_every=EVERY, seed=seed, stop=stop)[
        1
    ]
    return [(done, found[f"full/{metric}"]) for done, found in history.evaluations]


def test_batch_equals_loop(split):
    """Every trial has the curve of `simulate` with its settings and seed, averaged over seeds."""
    seeds = (0, 5)
    found = sweep(make, split, TRIALS, rounds=ROUNDS, eval_every=EVERY, seeds=seeds)
    assert [trial.settings for trial in found.trials] == TRIALS
    for trial in found.trials:
        curves = [by_hand(make, split, trial.settings, seed) for seed in seeds]
        means = np.mean([[value for _, value in curve] for curve in curves], axis=0)
        assert [done for done, _ in trial.curve] == [done for done, _ in curves[0]] == [3, 6, 7]
        np.testing.assert_allclose([value for _, value in trial.curve], means, rtol=1e-5)
        assert trial.validation == max(value for _, value in trial.curve)
        assert dict(trial.curve)[trial.round] == trial.validation
    assert found.best.validation == max(trial.validation for trial in found.trials)


def test_one_program_serves_a_group(split):
    """Four trials that differ in numbers share one program for start and one for blocks."""
    counted = Compilations("batch")
    with counted:
        grid = {"learning_rate": [0.02, 0.1], "regularisation": [0.0, 0.05]}
        found = sweep(make, split, grid, rounds=4, eval_every=2)
    assert counted.count == 2
    assert [trial.settings for trial in found.trials] == fr.training.grid(grid)


def test_shapes_make_groups(split):
    """Trials of other shapes are other programs, and the table keeps their order."""
    trials = [{"dim": d, "learning_rate": r} for r in (0.02, 0.05) for d in (2, 4)]

    def by_width(**settings):
        return fr.fedmf(**(SMALL | settings))

    algorithms = [by_width(**each) for each in trials]
    groups = _group_trials(by_width, algorithms, trials, fr.population_of(split))
    assert [group.members for group in groups] == [[0, 2], [1, 3]]
    found = sweep(by_width, split, trials[:3], rounds=ROUNDS, eval_every=EVERY)
    assert [trial.settings for trial in found.trials] == trials[:3]
    np.testing.assert_allclose(found.trials[2].curve, by_hand(by_width, split, trials[2], 0), rtol=1e-5)


def test_what_cannot_be_traced_is_looped_over(split):
    """A factory that asks for a number gets it, and the result is that of the loop."""
    trials = [
        {"learning_rate": r, "regularisation": 0.01, "prox": p} for r in (0.02, 0.1) for p in (0.0, 0.5)
    ]
    algorithms = [stubborn(**each) for each in trials]
    groups = _group_trials(stubborn, algorithms, trials, fr.population_of(split))
    assert [(group.members, group.traced) for group in groups] == [
        ([0, 2], ("learning_rate",)),
        ([1, 3], ("learning_rate",)),
    ]
    found = sweep(stubborn, split, trials[:2], rounds=ROUNDS, eval_every=EVERY)
    expected = by_hand(stubborn, split, trials[1], 0)
    np.testing.assert_allclose(found.trials[1].curve, expected, rtol=1e-5)


def test_moving_rows_are_replayed_under_a_batch(split):
    """SGD's rows rest and momentum's move, and a batch of learning rates knows it."""

    def heavy(learning_rate):
        return make(local_optimizer=optax.sgd(learning_rate, momentum=0.9), local_epochs=2)

    population = tiny_population()
    assert _rests(make(learning_rate=0.1), population)
    assert not _rests(heavy(0.1), population)
    found = sweep(heavy, split, {"learning_rate": [0.0, 0.02]}, rounds=ROUNDS, eval_every=EVERY)
    expected = by_hand(heavy, split, {"learning_rate": 0.02}, 0)
    np.testing.assert_allclose(found.trials[1].curve, expected, rtol=1e-5)


def test_a_mesh_of_the_algorithm_is_left_alone(split):
    """Devices are for trials here, and what an algorithm's own would share is not shared."""
    space = {"unobserved": [0.1, 0.2]}
    own, none = (
        sweep(partial(fr.fedals, dim=2, mesh=mesh), split, space, rounds=2, eval_every=1)
        for mesh in (fr.client_mesh(2), None)
    )
    for with_mesh, without in zip(own.trials, none.trials, strict=True):
        assert with_mesh.validation == pytest.approx(without.validation, rel=1e-3)


def test_budgets_are_equal(split):
    """Every trial that does not diverge is trained and measured as often as every other."""
    calls: list[tuple[int, int]] = []
    finished: list[Trial] = []
    found = sweep(
        make,
        split,
        {"learning_rate": [1e-6, 0.05, 0.5]},
        rounds=ROUNDS,
        eval_every=EVERY,
        seeds=(1, 2),
        on_block=lambda done, budget: calls.append((done, budget)),
        on_trial=finished.append,
    )
    assert {len(trial.curve) for trial in found.trials} == {3}
    assert calls[-1] == (3 * 2 * ROUNDS, 3 * 2 * ROUNDS)
    assert tuple(finished) == found.trials


def test_patience_ends_each_trial_by_its_own_curve(split):
    """A trial's curve is the head of the one without patience, up to where that lost it, whatever runs beside."""
    rates, seeds = [1e-6, 0.05, 1.0], (1, 2)
    settings = [{"learning_rate": rate} for rate in rates]
    calls: list[tuple[int, int]] = []

    def go(trials, patience):
        budget = {"rounds": 8, "eval_every": 1, "patience": patience}
        found = sweep(make, split, trials, seeds=seeds, on_block=lambda *pair: calls.append(pair), **budget)
        return [trial.curve for trial in found.trials]

    whole, short = go(settings, None), go(settings, 2)
    assert len({len(curve) for curve in short}) > 1
    for full, cut in zip(whole, short, strict=True):
        values = [value for _, value in full]
        stale = (n for n in range(1, 9) if n - 1 - int(np.argmax(values[:n])) >= 2)
        assert cut == full[: next(stale, 8)]
    assert go(settings[:1], 2) == short[:1]
    assert calls[-1] == (16, 16)


def test_ended_trials_make_room_on_other_devices(split, monkeypatch):
    """Runs change slots so that every device has as many left, and curves stay what they are, bit for bit."""
    moved = []
    swap = trials._swap_slots

    def count(states, *slots):
        moved.append(slots)
        return swap(states, *slots)

    monkeypatch.setattr(trials, "_swap_slots", count)
    # the first half ends at once: its rates leave the model as it is
    rates = [{"learning_rate": rate} for rate in (*[1e-12] * 8, *np.linspace(0.01, 0.2, 8))]
    budget: dict[str, Any] = {"rounds": 12, "eval_every": 2, "patience": 4, "seeds": (0, 1)}
    found = sweep(make, split, rates, **budget)
    assert moved
    moved.clear()
    monkeypatch.setattr(trials, "choose_devices", lambda _: 1)
    assert [trial.curve for trial in sweep(make, split, rates, **budget).trials] == [
        trial.curve for trial in found.trials
    ]
    assert not moved
    assert {len(trial.curve) for trial in found.trials} > {3}


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_swaps_share_active_runs_evenly(devices):
    """No device has two more than another, and only as many are moved as need be."""
    rng = np.random.default_rng(devices)
    for _ in range(50):
        active = rng.random(8) < 0.5
        after = active.copy()
        moves = plan_swaps(active, devices)
        for one, other in moves:
            assert after[one]
            assert not after[other]
            after[[one, other]] = after[[other, one]]
        shares = after.reshape(devices, -1).sum(1)
        assert np.ptp(shares) <= 1
        before = active.reshape(devices, -1).sum(1)
        assert len(moves) == max(
            np.maximum(before - -(-active.sum() // devices), 0).sum(),
            np.maximum(active.sum() // devices - before, 0).sum(),
        )


def test_diverged_trials_are_worst(split):
    """A run that loses three rounds in a row has no metric from then on, as in `simulate`."""
    found = sweep(make, split, {"learning_rate": [1e18, 0.05]}, rounds=6, eval_every=3)
    assert math.isnan(found.trials[0].curve[-1][1])
    assert found.best is found.trials[1]
    with pytest.raises(ValueError, match="all 1 trials diverged"):
        sweep(make, split, {"learning_rate": [1e30]}, rounds=6, eval_every=3)


def test_test_items_are_never_looked_at(split):
    """Other test items and candidates leave every bit of the table as it is."""
    rng = np.random.default_rng(0)
    other = split._replace(
        test=rng.permutation(split.test), candidates_test=rng.permutation(split.candidates_test)
    )
    runs = [sweep(make, each, TRIALS, rounds=4, eval_every=2) for each in (split, other)]
    assert [trial[:3] for trial in runs[0].trials] == [trial[:3] for trial in runs[1].trials]
    blind = split._replace(validation=rng.permutation(split.validation))  # and the check can fail
    changed = sweep(make, blind, TRIALS, rounds=4, eval_every=2)
    assert [trial[:3] for trial in runs[0].trials] != [trial[:3] for trial in changed.trials]


def test_errors_of_ratings_are_minimised(split):
    """With RMSE the least wins, and it is that of the validation ratings."""
    rated = split._replace(
        ratings=np.resize([1.0, 4.0, 5.0], len(split.items)).astype(np.float32),
        validation_ratings=np.resize([2.0, 4.0], split.num_users).astype(np.float32),
    )

    def rating(**settings):
        return make(loss="mse", **settings)

    found = sweep(rating, rated, {"learning_rate": [1e-3, 0.1]}, rounds=4, eval_every=2, metric="rmse")
    assert found.best.validation == min(trial.validation for trial in found.trials)
    algorithm = rating(**found.trials[0].settings)
    state = fr.training.train(jax.random.key(0), algorithm, fr.population_of(rated), 4)[0]
    scores = jax.vmap(algorithm.score, in_axes=(0, None))(state.private, state.server)
    own = np.asarray(scores)[np.arange(rated.num_users), rated.validation]
    expected = np.sqrt(np.mean((own - rated.validation_ratings) ** 2))
    np.testing.assert_allclose(found.trials[0].curve[-1][1], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("available", "seeds", "devices", "trials"),
    [(200, 1, 1, 4), (100, 1, 1, 3), (100, 2, 1, 1), (20, 1, 1, 0), (200, 1, 2, 0)],
)
def test_large_trials_side_by_side(monkeypatch, available, seeds, devices, trials):
    """A run for each device, as far as states (twice) and work fit; none where devices are for clients."""
    module = import_module("fedjax_rec.training.sweep")  # its name in the package is that of the function
    monkeypatch.setattr(module, "choose_devices", lambda _: 4)
    plan = Plan(1, devices, 1, "waves", "scatter", {"private": 10, "cohort": 5})
    assert _trials_side_by_side(plan, seeds, available) == trials


def test_sample_settings():
    """Draws depend on the seed, a larger budget begins with the smaller one, and ranges are kept."""
    space = {"rate": fr.training.log_uniform(1e-3, 1.0), "dim": fr.training.choice(8, 16), "loss": "bce"}
    sample = fr.training.sample_settings
    found = sample(space, 200, seed=3)
    assert found[:5] == sample(space, 5, seed=3) != sample(space, 5, seed=4)
    logs = np.log10([each["rate"] for each in found])
    assert logs.min() >= -3
    assert logs.max() <= 0
    assert abs(logs.mean() + 1.5) < 0.2
    assert {each["dim"] for each in found} == {8, 16}
    assert {each["loss"] for each in found} == {"bce"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"eval_every": 0}, "eval_every must be at least 1"),
        ({"settings": []}, "0 trials"),
        ({"seeds": ()}, "of 0 seeds"),
        ({"metric": "ndcg"}, "ndcg"),
        ({"metric": "rmse"}, "rmse"),
        ({"settings": {"learning_rate": [-1.0]}}, "learning_rate must be at least 0"),
        ({"split": None}, "no validation items"),
    ],
)
def test_errors(split, changes, words):
    """Bad input is refused in one line before anything runs."""
    given = {"factory": make, "split": split, "settings": TRIALS} | changes
    given["split"] = given["split"] or fr.data.merge_validation(split)
    with pytest.raises(ValueError, match=words) as caught:
        sweep(**given)
    assert "\n" not in str(caught.value)


def test_bad_spaces():
    """Ranges that are none are refused."""
    for low, high in ((0, 1), (2, 1), (1, math.inf)):
        with pytest.raises(ValueError, match="0 < low <= high"):
            fr.training.log_uniform(low, high)
    with pytest.raises(ValueError, match="nothing to choose from"):
        fr.training.choice()


def test_an_interrupted_sweep_keeps_what_was_done(split):
    """Finished trials whole, those under way with their curves so far, and the best of the finished ones."""
    settings = [{"num_negatives": 1}, {"num_negatives": 2}]  # a program each

    def interrupt(done: int, _: int) -> None:
        if done == 6:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(SweepInterrupted, match="after 2 of 2 trials, the last ones perhaps in part") as stop:
        sweep(make, split, settings, rounds=4, eval_every=2, on_block=interrupt)
    found = stop.value.result
    assert isinstance(stop.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert found is not None
    assert [[done for done, _ in trial.curve] for trial in found.trials] == [[2, 4], [2]]
    assert [trial.settings for trial in found.trials] == settings
    assert found.best == found.trials[0]
