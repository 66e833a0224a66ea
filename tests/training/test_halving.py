"""Which settings are searched, and how their number is halved; the runs themselves are those of `sweep`."""

import math
from typing import Any

import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.registry import names
from fedjax_rec.data.defaults import Size, als_weights
from fedjax_rec.training import halving
from fedjax_rec.training.sweep import Sweep, Trial

NO_FACTORY: Any = None  # the sweep that would ask for them is a fake
NO_SPLIT: Any = None
NOISE = 0.1 * np.linspace(
    -1, 1, 50
)  # of users, whose mean has no standard error where it is all the difference
SIZE = Size(943, 1682, 98_114)


def fake_sweep(value_of, seconds_per_round=0.0):
    """A sweep that trains nothing: a trial's metric is a function of its settings and rounds."""
    calls = []

    def sweep(_, __, settings, *, rounds, metric, seeds, **___):
        calls.append((len(settings), rounds))
        trials = tuple(
            Trial(
                each,
                value := value_of(each["x"], rounds),
                0 if math.isnan(value) else rounds,
                0.0,
                tuple((number, value_of(each["x"], number)) for number in range(20, rounds + 1, 20)),
                by_user=value + NOISE,
            )
            for each in settings
        )
        best = max((one for one in trials if one.round), key=lambda one: one.validation)
        seconds = seconds_per_round * rounds * len(trials)
        return Sweep(trials, best, metric, rounds, tuple(seeds), seconds)

    return sweep, calls


def test_the_better_settings_get_more_rounds(monkeypatch):
    """The first and the best others go on, a third at each rung; what diverged does not; all rounds decide."""
    sweep, calls = fake_sweep(lambda x, rounds: math.nan if x > 17 else x if rounds < 400 else -x)
    monkeypatch.setattr(halving, "sweep", sweep)
    rungs = []
    found = halving.halve(
        NO_FACTORY, NO_SPLIT, [{"x": x} for x in range(20)], rounds=400, eval_every=20,
        on_rung=lambda *told: rungs.append(told),
    )  # fmt: skip
    assert calls == [(20, 40), (6, 120), (2, 400)]
    assert rungs == [(1, 3, 20, 40), (2, 3, 6, 120), (3, 3, 2, 400)]
    assert [trial.settings["x"] for trial in found.rungs[1].trials] == [0, 17, 16, 15, 14, 13]
    assert [trial.settings["x"] for trial in found.rungs[2].trials] == [0, 17]
    assert found.best.settings == {"x": 0}
    assert found.num_settings == 20


@pytest.mark.parametrize(
    ("gain", "spread", "wins"),
    [(0.02, 0.1, False), (0.04, 0.1, True), (0.02, 0.01, True), (-0.02, 0.01, False)],
)
def test_a_setting_replaces_the_default_if_it_wins_clearly(monkeypatch, gain, spread, wins):
    """By two standard errors of the paired difference over 50 users: .029 where single ones differ by .1."""
    noise = np.where(np.arange(50) % 2, spread, -spread)

    def sweep(_, __, settings, *, rounds, metric, **___):
        trials = tuple(
            Trial(each, 0.5 + gain * each["x"], rounds, 0.0, (), by_user=0.5 + each["x"] * (gain + noise))
            for each in settings
        )
        return Sweep(trials, trials[0], metric, rounds, (0,), 0.0)

    monkeypatch.setattr(halving, "sweep", sweep)
    trials = [{"x": 0}, {"x": 1}]
    assert halving.halve(NO_FACTORY, NO_SPLIT, trials, rounds=1, eval_every=1).best.settings["x"] == wins
    assert halving.halve(NO_FACTORY, NO_SPLIT, trials, rounds=1, eval_every=1, metric="rmse").best.settings[
        "x"
    ] == (gain < 0)


def test_whatever_does_not_diverge_replaces_a_default_that_does(monkeypatch):
    sweep, calls = fake_sweep(lambda x, rounds: math.nan if x == 0 else x)  # noqa: ARG005
    monkeypatch.setattr(halving, "sweep", sweep)
    trials = [{"x": x} for x in (0, 3, 1, 2)]
    assert halving.halve(NO_FACTORY, NO_SPLIT, trials, rounds=60, eval_every=5).best.settings == {"x": 3}
    assert calls == [(4, 20), (1, 60)]


@pytest.mark.parametrize(
    ("slow", "max_rounds", "max_seconds", "longer", "wins"),
    [
        (9_000, 10_000, math.inf, [1_200], 0),  # the default is ahead after 1,125 rounds
        (20_000, 10_000, math.inf, [1_200, 3_600], 0),
        (math.inf, 10_000, math.inf, [], 1),  # neither improves: nothing to wait for
        (10_000, 0, math.inf, [], 1),  # the run has as many rounds as the last rung
        (20_000, 1_500, math.inf, [1_200], 1),  # it ends before 1,800 more would say anything else
        (20_000, 10_000, 800, [800], 1),
    ],
)
def test_a_fast_setting_has_to_win_at_the_length_of_a_run(
    monkeypatch, slow, max_rounds, max_seconds, longer, wins
):
    sweep, calls = fake_sweep(lambda x, rounds: 0.125 if x else rounds / slow, seconds_per_round=1.0)
    monkeypatch.setattr(halving, "sweep", sweep)
    trials = [{"x": x} for x in range(3)]
    found = halving.halve(
        NO_FACTORY,
        NO_SPLIT,
        trials,
        rounds=400,
        eval_every=20,
        max_rounds=max_rounds,
        max_seconds=max_seconds,
    )
    assert calls == [(3, 120), (2, 400)] + [(2, rounds) for rounds in longer]
    assert found.best.settings["x"] == wins
    assert found.num_settings == 3


@pytest.mark.parametrize(
    ("eval_every", "max_rounds", "max_seconds"),
    [(400, 700, math.inf), (400, 10_000, 700.0), (400, 10_000, 0.0)],
)
def test_no_rung_is_as_long_as_the_last(monkeypatch, eval_every, max_rounds, max_seconds):
    """In whole blocks the run has no more rounds than the rung before: what that one says holds."""
    sweep, calls = fake_sweep(lambda x, rounds: 0.125 if x else rounds / 20_000, seconds_per_round=1.0)
    monkeypatch.setattr(halving, "sweep", sweep)
    found = halving.halve(
        NO_FACTORY, NO_SPLIT, [{"x": 0}, {"x": 1}], rounds=400, eval_every=eval_every,
        max_rounds=max_rounds, max_seconds=max_seconds,
    )  # fmt: skip
    assert calls == [(2, 400)]
    assert found.best.settings["x"] == 1


def test_errors_are_halved_the_other_way(monkeypatch):
    sweep, _ = fake_sweep(lambda x, rounds: float(x))  # noqa: ARG005
    monkeypatch.setattr(halving, "sweep", sweep)
    found = halving.halve(
        NO_FACTORY, NO_SPLIT, [{"x": x} for x in range(6)], rounds=60, eval_every=5, metric="rmse"
    )
    assert [trial.settings["x"] for trial in found.rungs[-1].trials] == [0, 1]


@pytest.mark.parametrize(
    ("count", "rounds", "eval_every", "wanted"),
    [
        (1, 400, 20, [(1, 400)]),
        (20, 1, 1, [(20, 1)]),
        (20, 12, 1, [(20, 4), (6, 12)]),
        (9, 100, 20, [(9, 100)]),
    ],
)
def test_short_runs_have_few_rungs(count, rounds, eval_every, wanted):
    assert halving.rungs_of(count, rounds, eval_every) == wanted


@pytest.mark.parametrize("name", names())
def test_every_algorithm_has_trials(name):
    """The run's own settings come first, all are numbers of the factory, and more trials begin with the same."""
    trials = fr.training.trials_of(name, SIZE, {}, 4)
    assert trials == fr.training.trials_of(name, SIZE, {}, 6)[:4]
    assert set(trials[0]) == set(fr.training.space_of(name, SIZE, {}))
    assert all(isinstance(value, float) and value > 0 for trial in trials for value in trial.values())


def test_a_penalty_is_searched_around_what_fits_the_tried_weight():
    """fedals: its factor is of the penalty that the size and the tried weight of the unobserved have."""
    space = fr.training.space_of("fedals", SIZE, {})
    first, *drawn = fr.training.trials_of("fedals", SIZE, {}, 30)
    assert (
        fr.training.trials_of("fedals", SIZE, als_weights(SIZE)._asdict(), 30)[1:] == drawn
    )  # as runs fill in
    assert {name: first[name] for name in als_weights(SIZE)._fields} == als_weights(SIZE)._asdict()
    factors = [
        trial["regularisation"] / als_weights(SIZE, unobserved=trial["unobserved"]).regularisation
        for trial in drawn
    ]
    low, high = space["regularisation"]
    assert all(0.99 * low <= factor <= 1.01 * high for factor in factors)
    assert max(factors) / min(factors) > 10


def test_what_is_given_is_the_middle_and_what_is_fixed_stays():
    given = {"learning_rate": 5.0, "regularisation": None}
    trials = fr.training.trials_of("fedmf", SIZE, given, 30, fixed=("init_scale",))
    assert trials[0] == {"learning_rate": 5.0, "regularisation": 0.0075}
    assert all(0.5 <= trial["learning_rate"] <= 50 for trial in trials)
    assert fr.training.trials_of("fedals", SIZE, {"regularisation": 3.0}, 5)[0]["regularisation"] == 3.0
