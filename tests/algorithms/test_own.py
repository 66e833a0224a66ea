"""Algorithms of one's own: found by name, given in Python, and run as built-in ones are."""

import dataclasses
import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec
from experiments.your_algorithm.algorithm import logistic_loss, model, your_algorithm
from fedjax_rec.algorithms import own
from fedjax_rec.algorithms.registry import accepted, entry_of
from fedjax_rec.client import with_negatives
from fedjax_rec.client.local_training import Draws, step_key
from fedjax_rec.runs import Settings, run_experiment, save
from fedjax_rec.runs.settings import complete
from fedjax_rec.testing import tiny_population
from fedjax_rec.types import Algorithm

fr: Any = fedjax_rec  # some of what is called here is wrong on purpose

NAME = "experiments.your_algorithm.algorithm:your_algorithm"
SMALL: dict[str, Any] = {"rounds": 2, "eval_every": 1, "devices": 1, "num_candidates": 9, "cache": False}


def test_names_lead_to_factories(tmp_path, monkeypatch):
    """MODULE:FACTORY, or a one-line error that says what is wrong; nothing else is called."""
    assert entry_of(NAME).factory is your_algorithm
    assert entry_of("fedjax_rec.algorithms.fedease:fedease") is entry_of("fedease")
    (tmp_path / "broken_module.py").write_text("import nowhere_to_be_found")
    (tmp_path / "other_module.py").write_text("VALUE = 3\ndef make(): raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    for name, words in (
        ("fedmff", "unknown algorithm 'fedmff'; did you mean 'fedmf'"),
        ("no_such_module:x", "there is no module 'no_such_module'"),
        ("experiments.your_algorithm.algorithm:your_algoritm", "did you mean 'your_algorithm'?"),
        ("my file.py:x", "names of Python, without .py"),
        ("broken_module:x", "cannot be imported .* ModuleNotFoundError: No module named 'nowhere"),
        ("other_module:VALUE", "of type int"),
        ("other_module:make", r"annotate it: def make\(...\) -> fedjax_rec.types.Algorithm"),
        ("os:system", "does not say that it makes an algorithm"),
    ):
        with pytest.raises(ValueError, match=words):
            Settings(algorithm=name)


def test_packages_offer_algorithms(monkeypatch):
    """By entry points, under names of their own; what they offer is not imported before it is asked for."""
    point = importlib.metadata.EntryPoint("theirs", NAME, own.GROUP)
    monkeypatch.setattr(own, "offered", lambda: {"theirs": point})
    assert entry_of("theirs").factory is your_algorithm
    with pytest.raises(ValueError, match="did you mean 'theirs'"):
        entry_of("their")


def test_the_signature_gives_the_settings():
    """Defaults, required ones, and what the factory has no parameter for."""

    def mine(dim: int, *, temperature: float = 0.5, loss: str = "hinge", **federation: Any) -> Algorithm:
        raise NotImplementedError

    name = own.adopt(mine)
    assert {"dim", "temperature", "cohort", "server_optimizer"} <= set(accepted(name))
    with pytest.raises(ValueError, match="no default for dim; give one"):
        complete(Settings(algorithm=name))
    settings = complete(Settings(algorithm=name, dim=3, options="temperature=0.1", drop_out=0.1))
    assert (settings.dim, settings.loss, settings.own_options()) == (3, None, {"temperature": 0.1})
    for wrong, words in (
        ({"options": "temprature=1"}, "has no setting 'temprature'; did you mean 'temperature'?"),
        ({"learning_rate": 0.1}, "has no learning_rate; leave out"),
        ({"options": "temperature=a"}, "must be of type float"),
    ):
        with pytest.raises(ValueError, match=words):
            complete(Settings(algorithm=name, **({"dim": 3} | wrong)))

    def bare(*, dim: int = 2) -> Algorithm:
        return your_algorithm(dim=dim)

    refused: list[dict[str, Any]] = [
        {"drop_out": 0.1},
        {"clip": 1.0},
        {"sampler": "uniform"},
        {"async_buffer": 5},
        {"devices": 2},
    ]
    for setting in refused:
        with pytest.raises(ValueError, match=r"so no .*; leave it out, or hand \*\*federation on"):
            complete(Settings(algorithm=own.adopt(bare), **setting))
    assert complete(Settings(algorithm=own.adopt(bare), devices=1)).devices == 1  # which it runs on


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A small file of events."""
    path = tmp_path_factory.mktemp("data") / "events.csv"
    rng = np.random.default_rng(0)
    chosen = {(user, item): None for user in range(30) for item in rng.choice(40, 8, replace=False).tolist()}
    path.write_text("user,item\n" + "\n".join(f"{user},{item}" for user, item in chosen))
    return str(path)


@pytest.fixture(scope="module")
def outcome(events):
    """A run of a factory that Python gives."""
    settings = Settings(dataset=events, dim=3, batch_size=20, **SMALL)
    return run_experiment(settings, algorithm=your_algorithm)


def test_runs_as_built_in_ones_do(outcome, tmp_path):
    """A run folder names the factory; it is read, asked and compared as any other."""
    folder = save(outcome, tmp_path / "run")
    loaded = fr.load(folder)
    assert outcome.settings.algorithm == NAME
    np.testing.assert_array_equal(loaded.server.tables["vector"], outcome.state.server.tables["vector"])
    user = loaded.user_ids[0]
    assert len(fr.top_k(loaded, user, 3)) == 3
    rows = fr.runs.compare_runs([str(folder), f"{folder}:popularity"]).rows
    assert rows[0].algorithm == NAME


def test_a_made_algorithm_runs(events, tmp_path):
    """Without a factory it has no settings; whoever reads the folder gives it again."""
    algorithm = your_algorithm(dim=3, batch_size=20)
    settings = Settings(dataset=events, **SMALL)
    with pytest.raises(ValueError, match="own has no dim"):
        run_experiment(dataclasses.replace(settings, dim=2), algorithm=algorithm)
    assert run_experiment(settings, algorithm=algorithm).algorithm is algorithm
    split = fr.leave_one_out(fr.load_dataset(events))
    state, history = fr.simulate(algorithm, split, rounds=1)
    folder = fr.save(tmp_path / "model", algorithm, state, split, history=history)
    with pytest.raises(ValueError, match="made in Python and has no name; give it"):
        fr.load(folder)
    assert fr.load(folder, algorithm).split.num_users == 30
    named = fr.save(tmp_path / "named", your_algorithm, state, split, settings={"dim": 3, "init_scale": 0.3})
    one, other = (fr.top_k(each, "0", 5) for each in (fr.load(named), fr.load(folder, algorithm)))
    assert one == other
    with pytest.raises(ValueError, match="settings are those of a factory"):
        fr.save(tmp_path / "third", algorithm, state, split, settings={"dim": 2})


def test_a_loss_gets_a_key_in_each_step():
    """One of its own, made of the client's and of nothing else."""
    seen = []

    def loss(params, batch, key):
        seen.append(jax.random.key_data(key).tolist())
        return params.tables.sum(), batch.data.sum()

    work = fr.local_training(loss, optax.sgd(0.1), with_negatives(10))
    local = work.start(jax.random.key(3, impl="threefry2x32"), {}, {}, None)
    batch = fr.Batch(jnp.arange(2), jnp.ones(2))
    for _ in range(2):
        local, _, info = work.step(local, work.init_rows(jnp.ones((2, 1))), batch, None)
    assert float(info.examples) == 2
    words = jax.random.key_data(jax.random.key(3, impl="threefry2x32"))
    assert seen == [step_key(Draws(words, jnp.int32(t))).tolist() for t in (0, 1)]
    assert seen[0] != seen[1]


def _batch_of(**changes: Any) -> Any:
    batches = with_negatives(10, labels=True)

    def wrong_batch(client, population, t):
        return batches.batch(client, population, t)._replace(**changes)

    return batches._replace(batch=wrong_batch)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"server": lambda *_: {"vector": jnp.zeros((9, 2))}}, r"\(test_own.py, line .* a dict; .*fr.Server"),
        (
            {"server": lambda *_: fr.Server({}, {"a": jnp.zeros(3), "b": jnp.zeros(4)})},
            "tables .*a float32.3.",
        ),
        ({"loss": lambda p, _: (p.tables["vector"] ** 2).sum()}, r"gives float32\[\]; .* two numbers"),
        ({"loss": lambda p, _: (p.tables["vector"].sum(1), 1.0)}, "it must give two numbers"),
        ({"loss": lambda p, _: (p.tables["vector"].sum().astype(int), 1.0)}, "a sum of int32, which has no"),
        ({"loss": lambda p, _: (float(p.tables["vector"].sum()), 1.0)}, r"without float\(\), int\(\)"),
        (
            {"loss": lambda p, _: (p.tables["vector"].sum().item(), 1.0)},
            "asks for the value of what is traced",
        ),
        ({"loss": lambda p, _: (1.0 if p.tables["vector"].sum() > 0 else 0.0, 1.0)}, "`if` on params"),
        ({"loss": lambda p, _: p.tables["vektor"]}, "the loss .* fails with KeyError: 'vektor'; .*vector"),
        (
            {"loss": lambda _, b: (jnp.zeros(64) @ b.data["mask"], b.data["mask"].sum())},
            "fails with TypeError: .*data {label float32",
        ),
        (
            {"batches": _batch_of(data={"mask": jnp.ones(11)})},
            "wrong_batch .* of 10 ids, whose data are .*11",
        ),
        ({"batches": _batch_of(ids=jnp.zeros((2, 5), jnp.int32))}, "it must give fr.Batch"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change, words):
    """The function, its place, the shapes and the way out, before anything runs."""
    own_model = model(3, 0.3)
    if "server" in change:
        own_model = own_model._replace(init_server=change["server"])
    batches = change.get("batches", with_negatives(10, labels=True))
    work = fr.local_training(change.get("loss", logistic_loss(0.1)), optax.sgd(0.1), batches)
    algorithm = fr.federate(own_model, work, cohort=5)
    with pytest.raises(ValueError, match=words) as caught:
        fr.simulate(algorithm, tiny_population(), rounds=1)
    assert "\n" not in str(caught.value)


def test_a_text_is_no_optimizer():
    """Nor is a number an algorithm."""
    with pytest.raises(
        TypeError, match=r"optimizer is 'sgd', a str; local_training takes an optax .* optax.adam"
    ):
        fr.local_training(logistic_loss(0.1), "sgd", with_negatives(10))
    with pytest.raises(ValueError, match="algorithm is of type int; give a factory"):
        run_experiment(Settings(), algorithm=3)  # type: ignore[arg-type]
