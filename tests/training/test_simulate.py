"""Simulation: compiled blocks, stopping rules, selection."""

import io
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.data.splitters import ratio
from fedjax_rec.evaluation.evaluator import score_stored_leaves
from fedjax_rec.privacy.adaptive_clipping import clipping_norm
from fedjax_rec.runs.build import make_algorithm
from fedjax_rec.runs.inputs import load_split
from fedjax_rec.runs.settings import Settings
from fedjax_rec.server.optimizers import LOCALS, SERVERS
from fedjax_rec.testing import assert_close, check_one_trace, tiny_population
from fedjax_rec.training.history import Progress

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def split():
    return load_split(Settings())[1]


@pytest.fixture(scope="module")
def algorithm():
    return fr.fedmf(dim=4, cohort=50)


def test_one_trace_over_200_random_cohorts():
    """One compilation of the round serves 200 random cohorts."""
    check_one_trace(
        lambda **federation: fr.fedmf(dim=2, cohort=5, **federation), tiny_population(), rounds=200
    )


def test_simulate_equals_train(split, algorithm):
    """Blocks of 3 rounds, the last one shorter, equal one pure run of 7, and only one block was compiled."""
    state, history = fr.simulate(algorithm, split, rounds=7, eval_every=3, keep="last", seed=5)
    population = fr.population_of(split)
    expected, infos = jax.jit(lambda key: fr.training.train(key, algorithm, population, 7))(jax.random.key(5))
    assert_close(state, expected, "blocks against one run")
    np.testing.assert_allclose(history.rounds.loss, infos.loss, rtol=1e-5)
    assert history.num_compilations == 1
    assert [done for done, _ in history.evaluations] == [3, 6, 7]


def test_long_blocks_are_looked_into(split, algorithm, monkeypatch):
    """Slow rounds run some at a time: the same state, reports and validations, and progress of each piece."""
    streamed = fr.fedmf(dim=4, cohort=50, stream_clients=25)
    for each in (algorithm, streamed):
        expected, history = fr.simulate(each, split, rounds=7, eval_every=4, keep="last")
        with monkeypatch.context() as patched:
            patched.setattr("fedjax_rec.federation.blocks.PIECE", 0.0)
            patched.setattr(import_module("fedjax_rec.training.simulate"), "TOLD", 0.0)
            told: list[Progress] = []
            state, found = fr.simulate(each, split, rounds=7, eval_every=4, keep="last", on_block=told.append)
        assert_close(state, expected, "in pieces", 0)
        assert_close(found.rounds, history.rounds, "reports", 0)
        assert found.evaluations == history.evaluations
        assert [progress.round for progress in told] == list(range(1, 8))
        assert [progress.clients for progress in told] == history.rounds.clients.tolist()
        assert [progress.validation is None for progress in told] == [r not in (4, 7) for r in range(1, 8)]


def test_a_ceiling_of_seconds_within_a_block(split):
    """A run ends behind the first round that is late, with its validation."""
    algorithm = fr.fedmf(dim=4, cohort=50, stream_clients=25)
    _, history = fr.simulate(algorithm, split, rounds=6, eval_every=3, stop=fr.Stop(seconds=1e-9))
    assert (history.stopped, len(history.rounds.loss), [r for r, _ in history.evaluations]) == (
        "seconds",
        1,
        [1],
    )


def test_a_population_is_taken_as_it_is(split, algorithm, monkeypatch):
    """A split's clients that exist already are trained, to the same bits; another population is refused."""
    population = fr.population_of(split)
    expected, _ = fr.simulate(algorithm, split, rounds=2, eval_every=2)
    with monkeypatch.context() as patched:
        patched.setattr(import_module("fedjax_rec.training.inputs"), "population_of", None)
        state, _ = fr.simulate(algorithm, split, population=population, rounds=2, eval_every=2)
    assert_close(state, expected, "a population that exists", 0)
    with pytest.raises(ValueError, match=r"is not that of .*: 24 clients against"):
        fr.simulate(algorithm, split, population=tiny_population(), rounds=1)
    with pytest.raises(ValueError, match="population= goes with a split"):
        fr.simulate(algorithm, population, population=population, rounds=1)


def test_best_state_is_the_best_validation_round(split, algorithm):
    """The returned state is the one that was validated best, not the last."""
    state, history = fr.simulate(algorithm, split, rounds=8, eval_every=2)
    best = max(history.evaluations, key=lambda pair: pair[1]["full/ndcg@10"])
    assert history.selected_round == best[0] == int(state.round)
    ranks = fr.make_evaluator(algorithm, split, which="validation")(state)
    assert fr.evaluation.metrics_from_ranks(ranks.full)["ndcg@10"] == best[1]["full/ndcg@10"]


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        (fr.Stop(target=0.0), "target"),
        (fr.Stop(patience=2), "patience"),
        (fr.Stop(seconds=1e-9), "seconds"),
        (fr.Stop(), "rounds"),
    ],
)
def test_stopping_rules(split, reason, stop):
    """Each rule stops the run, and the history says which."""
    still = fr.fedmf(dim=4, cohort=50, learning_rate=0.0)  # never gets better than at its first validation
    _, history = fr.simulate(still, split, rounds=6, eval_every=1, stop=stop)
    assert history.stopped == reason
    expected = {"target": 1, "patience": 3, "seconds": 1, "rounds": 6}[reason]
    assert len(history.rounds.loss) == expected


def test_a_run_that_has_done_its_rounds_was_not_cut_off(split):
    """Though its time is over, too: the clock ended nothing."""
    still = fr.fedmf(dim=4, cohort=50)
    _, history = fr.simulate(still, split, rounds=1, stop=fr.Stop(seconds=1e-9))
    assert history.stopped == "rounds"


def test_reports_name_the_rule_that_will_end_the_run_and_then_that_which_did(split):
    """As the bar shows them."""
    still = fr.fedmf(dim=4, cohort=50, learning_rate=0.0)  # never gets better than at its first validation
    seen: list[Progress] = []
    said = io.StringIO()
    show = fr.training.progress_bar(file=said, mininterval=0)

    def look(progress: Progress) -> None:
        seen.append(progress)
        show(progress)

    rules = {"patience": fr.Stop(patience=3), "rounds": fr.Stop(patience=9), "seconds": fr.Stop(seconds=1e-9)}
    for rule, stop in rules.items():
        seen.clear()
        fr.simulate(still, split, rounds=6, eval_every=1, stop=stop, on_block=look)
        assert {progress.rule for progress in seen} == {rule}
        assert seen[-1].stopped == rule
    # each of the four reports, and once more when the bar is closed
    assert said.getvalue().count("ends by=patience]") >= 4
    fr.simulate(still, split, rounds=6, eval_every=1, stop=fr.Stop(target=0.0), on_block=look)
    assert said.getvalue().rstrip().endswith("ends by=target]")


def test_divergence_stops(split):
    """A loss that is no longer finite ends the run with a warning, and the best state before it is kept."""
    wild = fr.fedmf(dim=4, cohort=500, learning_rate=0.5)
    with pytest.warns(
        fr.training.DivergedWarning, match="diverged by round .*; the state is the best validated"
    ):
        state, history = fr.simulate(wild, split, rounds=200, eval_every=1)
    assert history.stopped == "diverged"
    assert 0 < history.selected_round < len(history.rounds.loss) < 200
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.server))


@pytest.mark.parametrize(
    "choice",
    [{"server_optimizer": name} for name in SERVERS] + [{"local_optimizer": name} for name in LOCALS],
    ids=str,
)
def test_every_named_rule_learns(choice):
    """Each named server rule and local optimizer lowers the training loss with its default rate."""
    algorithm = make_algorithm(Settings(dim=4, cohort=24, batch_size=20, **choice))
    _, infos = jax.jit(lambda key: fr.training.train(key, algorithm, tiny_population(), 60))(
        jax.random.key(0)
    )
    assert np.mean(infos.loss[-5:]) < 0.95 * np.mean(infos.loss[:5])


def test_resume_from_a_state(split, algorithm):
    """Going on from round 4 equals running straight through, bit for bit."""
    straight, _ = fr.simulate(algorithm, split, rounds=8, eval_every=4, keep="last")
    half, _ = fr.simulate(algorithm, split, rounds=4, eval_every=4, keep="last")
    resumed, history = fr.simulate(algorithm, split, rounds=8, eval_every=4, keep="last", state=half)
    assert_close(resumed, straight, "a resumed run", 0)
    assert fr.frame(history)["round"].tolist() == [5, 6, 7, 8]


def test_unknown_stop_metric(split, algorithm):
    """A stopping metric is checked before any training, and any cut-off can be asked for."""
    with pytest.raises(ValueError, match="'auc' is unknown"):
        fr.simulate(algorithm, split, rounds=1, stop=fr.Stop(metric="auc"))
    _, history = fr.simulate(algorithm, split, rounds=1, stop=fr.Stop(metric="hr@50"))
    assert "full/hr@50" in history.evaluations[0][1]


def test_metrics_of_several_items_stop_runs(algorithm):
    """Recall, precision and MAP, whose names a run of one held-out item takes too."""
    data = fr.data.synthetic(60, 90)
    parts = ratio(data), fr.leave_one_out(data)
    for split, name in zip(parts, ("recall@20", "precision@5"), strict=True):
        stop = fr.Stop(metric=name, target=1e-9)
        _, history = fr.simulate(algorithm, split, rounds=40, eval_every=2, stop=stop)
        assert history.stopped == "target"
        assert history.evaluations[-1][1][f"full/{name}"] > 0


def test_frame_without_validation():
    """A bare population has no validation; the frame has a row a round."""
    frame = pd.DataFrame({"user": [0, 0, 1], "item": [0, 1, 1]})
    _, history = fr.simulate(fr.fedmf(dim=2, cohort=2), fr.Population.from_frame(frame), rounds=3)
    table = fr.frame(history)
    assert table["round"].tolist() == [1, 2, 3]
    assert (table["clients"] == 2).all()


def test_cohort_larger_than_population():
    """The error names both numbers."""
    with pytest.raises(ValueError, match="cohort of 30 exceeds the population of 24"):
        fr.simulate(fr.fedmf(dim=2, cohort=30), tiny_population(), rounds=1)


def test_learning_rates_as_a_batch():
    """A vmap over learning rates equals the loop: settings may be traced."""
    population, key = tiny_population(), jax.random.key(0)

    def final(rate):
        return fr.training.train(key, fr.fedmf(dim=2, cohort=6, lanes=2, learning_rate=rate), population, 2)[
            0
        ]

    rates = np.array([0.01, 0.1], np.float32)
    batch = jax.jit(jax.vmap(final))(rates)
    loop = jax.tree.map(lambda *states: np.stack(states), *(jax.jit(final)(rate) for rate in rates))
    assert_close(batch, loop, "learning rates")


def test_a_state_of_another_algorithm_is_refused():
    """What a state carries must be what the algorithm reads: the error names the part."""
    population = tiny_population()
    plain, late = fr.fedmf(dim=2), fr.fedmf(dim=2, asynchronous=fr.FedBuff(buffer=2, concurrency=4))
    loss = fr.fedmf(dim=2, sampler=fr.samplers.power_of_choice(12, cohort=4))
    for first, second, part in (
        (plain, late, "in_flight"),
        (late, plain, "in_flight"),
        (plain, loss, "tracked"),
    ):
        state, _ = fr.simulate(first, population, rounds=1, keep="last")
        with pytest.raises(ValueError, match=rf"state\.{part} is not that of this algorithm"):
            fr.simulate(second, population, rounds=1, state=state)


USES = {
    "simulate": lambda algorithm, split, state: fr.simulate(algorithm, split, rounds=9, state=state),
    "evaluate": lambda algorithm, split, state: fr.evaluate(algorithm, state, split),
    "make_evaluator": lambda algorithm, split, state: fr.make_evaluator(algorithm, split)(state),
    "make_top_k": lambda algorithm, split, state: fr.evaluation.make_top_k(algorithm, split)(state),
    "score_stored_leaves": lambda algorithm, _, state: score_stored_leaves(algorithm).prepare(state),
    "round": lambda algorithm, split, state: algorithm.round(KEY, state, fr.population_of(split)),
    "client_update": lambda algorithm, split, state: fr.client_update(
        algorithm, KEY, state, fr.population_of(split), 0
    ),
    "save": lambda algorithm, split, state: fr.save("never", algorithm, state, split),
    "adaptive clip": lambda _, __, state: clipping_norm(state),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_state_that_was_used_up_is_refused(split, algorithm, use, tmp_path, monkeypatch):
    """Whatever takes a state says in one line what became of this one; its repr does, too."""
    monkeypatch.chdir(tmp_path)
    state, _ = fr.simulate(algorithm, split, rounds=1)
    kept = jax.tree.map(jnp.copy, state)
    longer, _ = fr.simulate(algorithm, split, rounds=2, state=state)
    assert "used up" in repr(state)
    assert "used up" not in repr(longer) + repr(kept)
    with pytest.raises(
        ValueError, match=r"^this state was handed to simulate, which uses it up; .*state\)\)$"
    ):
        use(algorithm, split, state)
    fr.make_evaluator(algorithm, split)(kept)


def test_a_model_whose_state_was_used_up_is_refused():
    """Of a fit, too, whose state somebody trained on."""
    fitted = fr.fit(fr.data.synthetic(30, 90), "fedmf", dim=2, rounds=2)
    fr.simulate(fitted.outcome.algorithm, fitted.outcome.split, rounds=3, state=fitted.outcome.state)
    for use in (
        lambda: fr.recommend(fitted, "user-00000"),
        lambda: fr.top_k(fitted.model, "user-00000"),
        lambda: fr.evaluate(fitted.outcome.algorithm, fitted.outcome.state, fitted.outcome.split),
    ):
        with pytest.raises(ValueError, match="uses it up"):
            use()


@pytest.mark.parametrize("rounds", [2, 9])
def test_a_loss_that_is_never_finite_looks_like_one(rounds):
    """Rounds without a sound client have no loss, and the warning says that it was all of them."""

    def loss(params, batch):
        del batch
        scores = params.tables["vector"] @ params.private["vector"]
        return jnp.sum(scores) * jnp.nan, jnp.sum(jnp.ones_like(scores))

    work = fr.local_training(loss, optax.sgd(0.1), fr.client.with_negatives(batch_size=4, num_negatives=1))
    algorithm = fr.federate(fr.fedmf(dim=2).model, work, cohort=8)
    losses = []
    with pytest.warns(
        fr.training.DivergedWarning, match=r"^all [78] clients of the cohort returned .*; nothing was learned"
    ):
        _, history = fr.simulate(
            algorithm, tiny_population(), rounds=rounds, on_block=lambda block: losses.append(block.loss)
        )
    assert np.isnan(history.rounds.loss).all()
    assert np.isnan(fr.frame(history)["loss"]).all()
    assert np.isnan(losses).all()
    assert "loss nan" in repr(history)


def test_a_history_of_no_rounds():
    """It does not say that it went backwards."""
    _, history = fr.simulate(fr.fedmf(dim=2), tiny_population(), rounds=0)
    assert repr(history).startswith("<History: no rounds, selected 0")
