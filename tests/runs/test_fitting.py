"""`fr.fit`, `fr.evaluate`, `fr.recommend`: what runs give, in three lines; and reprs that fit one."""

import signal
from typing import Any

import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.errors import ArgumentError, ParameterError

USERS = 30
EVIL = "<script>"


def frame():
    rng = np.random.default_rng(0)
    events = [(f"{EVIL}{u}", f"i{i}", t) for u in range(USERS) for t, i in enumerate(rng.permutation(25)[:7])]
    return pd.DataFrame(events, columns=["who", "what", "timestamp"])


CHOSEN: dict[str, Any] = {
    "user": "who",
    "item": "what",
    "rounds": 4,
    "dim": 2,
    "eval_every": 2,
    "num_candidates": 5,
}


@pytest.fixture(scope="module")
def fitted():
    return fr.fit(frame(), fr.fedmf, learning_rate=0.5, **CHOSEN)


def test_scores_are_those_of_the_run(fitted, tmp_path):
    """The same as by hand, and as the folder that is written of it; it lists what the loaded model lists."""
    test = fitted.outcome.metrics["test"]
    assert fitted.scores.loc["fedmf", "full/ndcg@10"] == test["full"]["ndcg@10"]
    assert fitted.scores.index.tolist() == ["fedmf", "popularity"]
    by_hand = fr.evaluate(fitted.outcome.algorithm, fitted.outcome.state, fitted.outcome.split)
    assert by_hand.index.tolist() == ["full", "sampled5"]
    np.testing.assert_allclose(by_hand.loc["full", "hr@10"], test["full"]["hr@10"])
    assert len(fitted.history.rounds.loss) == 4
    loaded = fr.load(fitted.save(tmp_path / "run"))
    user = f"{EVIL}3"
    listed = fitted.recommend(user, 4)
    assert listed["item"].tolist() == [item for item, _ in fr.top_k(loaded, user, 4)]
    pd.testing.assert_frame_equal(fr.recommend(tmp_path / "run", [user], 4), listed)
    assert not set(listed["item"]) & set(frame().query("who == @user")["what"])
    assert fr.recommend(fitted, k=2)["user"].nunique() == USERS
    # no command leads to a frame
    assert fr.plots.record_of(tmp_path / "run").result["command"] is None
    assert len(fr.plots.learning_curves(fitted, tmp_path / "run").axes[0].lines) > 2


def test_an_interrupted_fit_keeps_and_measures_what_was_done():
    """Ctrl-C ends it after the block, without the refit; the model is the error's."""

    def stop(progress):
        if progress.round == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(fr.runs.FitInterrupted, match="interrupted after round 2") as end:
        fr.fit(frame(), "fedmf", on_block=stop, refit=True, learning_rate=0.5, **CHOSEN)
    kept = end.value.result
    assert kept.history.stopped == "interrupted"
    assert kept.scores.loc["fedmf", "full/hr@10"] >= 0
    assert len(kept.recommend(f"{EVIL}1", 3)) == 3


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"rouds": 3}, ParameterError, "did you mean 'rounds'"),
        ({"out": "here"}, ParameterError, "fitted.save"),
        ({"data": 5}, ArgumentError, "fit takes"),
        (
            {"data": fr.from_frame({"user": [1], "item": [2]}), "user": "who"},
            ParameterError,
            "the data are read already",
        ),
        ({"data": "no-such-set"}, ValueError, "no-such-set"),
        ({"algorithm": "fedfm"}, ValueError, "did you mean 'fedmf'"),
    ],
)
def test_errors_say_what_to_do(settings, kind, words):
    """In one line, before anything is trained."""
    with pytest.raises(kind, match=words) as problem:
        fr.fit(**({"data": {"user": [1], "item": [2]}} | settings))
    assert "\n" not in str(problem.value)


def test_what_things_are_fits_a_line(fitted):
    """However large they are; and tables of notebooks escape what data bring."""
    outcome = fitted.outcome
    dataset = fr.from_frame(frame().rename(columns={"who": "user", "what": "item"}))
    things = [fitted, outcome.split, outcome.state, outcome.algorithm, dataset, fr.Dataset(EVIL, dataset)]
    ranks = fr.make_evaluator(outcome.algorithm, outcome.split)(outcome.state)
    things += [outcome.history, ranks, fr.population_of(outcome.split)]
    assert [len(repr(thing).splitlines()) for thing in things] == [1] * len(things)
    assert max(len(repr(thing)) for thing in things) < 200
    assert repr(outcome.split) == "<Split of frame: 30 users, 25 items, 150 training events, 60 held out>"
    assert repr(things[-1]) == "<Population: 30 clients, 25 items, 150 examples>"
    assert repr(outcome.state).startswith("<State: Server(shared=")
    assert repr(ranks) == "<Ranks: full <MidRanks of 30 users>, sampled <MidRanks of 30 users>>"
    assert "full/ndcg@10" in outcome.history._repr_html_()
    assert "<table" not in outcome.history._replace(evaluations=())._repr_html_()
    named = outcome._replace(split=outcome.split._replace(name=EVIL))
    html = fitted._replace(outcome=named)._repr_html_()
    assert "&lt;script&gt;" in html
    assert EVIL not in html
    assert "<table" in html


def test_a_private_fit_says_what_it_spent():
    """In its line and in notebooks; one without noise says nothing of it."""
    data = fr.data.synthetic(60, 90)
    private = fr.fit(data, "fedmf", rounds=2, dim=2, target_epsilon=4.0, clip=0.1)
    spent = private.outcome.spending
    assert spent is not None
    words = f"epsilon {spent.epsilon:.3f} at delta {spent.delta:.2e}"
    assert spent.epsilon <= 4.0
    assert words in repr(private)
    assert words in private._repr_html_()
    assert "epsilon" not in repr(fr.fit(data, "fedmf", rounds=2, dim=2))
