"""A run without a number of rounds goes on until it has converged, and one that diverged is tried once more."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.cli.parser import FLAGS
from fedjax_rec.evaluation.convergence import peak_round
from fedjax_rec.runs import report
from fedjax_rec.runs.experiment import run_experiment
from fedjax_rec.runs.settings import CEILING, Settings, complete
from fedjax_rec.training.history import Stop


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A small file of events in two groups of users and items."""
    rng = np.random.default_rng(0)
    rows = [(user, 25 * (user % 2) + item) for user in range(40) for item in rng.choice(25, 8, replace=False)]
    path = tmp_path_factory.mktemp("data") / "events.csv"
    pd.DataFrame(rows, columns=["user", "item"]).to_csv(path, index=False)
    return str(path)


def test_rounds_are_a_number_or_until_it_has_converged():
    """Without a number there is a ceiling, patience and a least number; with one, or with noise, none."""
    open_ended = complete(Settings())
    assert open_ended.min_rounds is not None
    assert open_ended.rounds == CEILING * open_ended.min_rounds
    assert open_ended.patience_share is not None
    assert (open_ended.max_seconds, complete(Settings(refit=True)).max_seconds) == (480, 240)
    assert complete(open_ended) == open_ended
    assert complete(Settings(patience=40)).patience_share is None
    noisy = Settings(noise_multiplier=1.0, clip=1.0)
    for settings in (Settings(rounds=7), noisy):
        fixed = complete(settings)
        assert (fixed.min_rounds, fixed.patience_share, fixed.max_seconds) == (None, None, None)
    assert complete(noisy).rounds == open_ended.min_rounds


def test_patience_grows_with_the_rounds():
    """The later of all rules counts; without any there is no end."""
    assert Stop().ends_at(10) is None
    assert Stop(patience=30).ends_at(10) == 40
    assert Stop(patience_share=0.5, min_rounds=100).ends_at(10) == 100
    assert Stop(patience_share=0.5, min_rounds=100).ends_at(90) == 180
    assert Stop(patience_share=0.5, patience=200).ends_at(90) == 290
    assert Stop(patience_share=0.5, patience=200).ends_at(90, 300) == 600


def test_an_early_stroke_of_luck_does_not_end_a_run():
    """A rising curve goes on beside its best value; a falling one does not; what is no number is no peak."""
    rising = [(20 * n, 0.01 * n**0.5) for n in range(1, 31)]
    lucky = [
        (done, 0.04 if done == 100 else value) for done, value in rising[:15]
    ]  # the best until round 300
    assert (peak_round(rising), peak_round(lucky)) == (600, 300)
    assert peak_round([(done, -value) for done, value in rising]) == 20
    assert peak_round([(20, 0.1), (40, math.nan), (60, 0.2)]) == 20
    assert peak_round([]) == 0


def test_a_run_ends_when_it_has_converged(events):
    """At the first validation at which its patience has ended; the bar knows before which round that will be."""
    seen: list[fr.training.Progress] = []
    settings = Settings(
        dataset=events,
        dim=2,
        learning_rate=0.2,
        rounds=400,
        eval_every=2,
        patience_share=0.5,
        min_rounds=8,
        num_candidates=9,
    )
    outcome = run_experiment(settings, on_block=seen.append)
    history = outcome.history
    best = max(history.evaluations, key=lambda found: found[1]["full/ndcg@10"])[0]
    assert (history.stopped, history.selected_round, history.still_improving) == ("patience", best, False)
    curve = [(done, found["full/ndcg@10"]) for done, found in history.evaluations]
    assert history.evaluations[-1][0] == max(8, 2 * math.ceil(2 * peak_round(curve) / 2))
    assert [progress.rule for progress in seen] == ["patience"] * len(seen)
    assert (seen[0].rounds, seen[-1].rounds) == (8, history.evaluations[-1][0])
    ended = ["ended by patience: mean validation had not risen for 0.5 of the rounds"]
    assert report.endings(outcome, {}) == ended


@pytest.mark.parametrize(
    ("ending", "rule", "said"),
    [
        ({"rounds": 2}, "rounds", []),
        ({"rounds": 2, "patience": 50}, "rounds", ["ended by its number of rounds: --rounds"]),
        ({"rounds": 2, "max_seconds": 1e6}, "rounds", ["ended by its number of rounds: --rounds"]),
        ({"rounds": 9, "max_seconds": 1e-3}, "seconds", ["ended by the clock: --max-seconds"]),
        ({"rounds": 9, "target": 0.0}, "target", ["ended by --target: validation has reached it"]),
        (
            {"rounds": 9, "patience": 1, "learning_rate": 1e-9},
            "patience",
            ["ended by --patience: validation had not risen for as many rounds"],
        ),
    ],
)
def test_the_end_says_which_rule_it_was(ending, rule, said, events):
    """A number of rounds that was asked for, and nothing else, needs no word."""
    settings = Settings(dataset=events, dim=2, eval_every=1, num_candidates=9)
    outcome = run_experiment(dataclasses.replace(settings, **ending))
    assert outcome.history.stopped == rule
    assert report.endings(outcome, FLAGS) == said


def test_the_bar_knows_when_the_clock_comes_first():
    """By the pace so far; what is left of patience ends at a validation."""
    stop = Stop(patience_share=0.25, seconds=100.0)
    assert stop.forecast(100, 1000, 131, 10, 50.0, 1.0) == (140, "patience")
    assert stop.forecast(100, 1000, 131, 10, 70.0, 1.0) == (140, "seconds")
    assert stop.forecast(100, 1000, None, 10, 10.0, 0.0) == (1000, "rounds")
    assert stop.forecast(100, 1000, 2000, 10, 10.0, 0.0) == (1000, "rounds")
    assert stop.forecast(100, 1000, 1000, 10, 10.0, 0.0) == (1000, "patience")
    assert Stop().forecast(100, 1000, None, 10, 1e9, 1.0) == (1000, "rounds")


def test_a_run_that_diverges_is_tried_once_more(events):
    """At a third of the rate, which is said and stands in the settings; if that diverges too, it is an error."""
    told: list[str] = []
    small = {"dataset": events, "dim": 2, "rounds": 6, "eval_every": 2, "num_candidates": 9}
    outcome = run_experiment(Settings(**small, learning_rate=1.5, local_epochs=1), on_stage=told.append)
    assert outcome.settings.learning_rate == pytest.approx(0.5)
    assert outcome.history.stopped == "rounds"
    assert any("once more at 0.5" in line for line in told)
    with pytest.raises(ValueError, match="diverged within"):
        run_experiment(Settings(**small, learning_rate=1e6))
