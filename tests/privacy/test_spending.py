"""What is reported of privacy is read off the algorithm and the population that ran."""

import dataclasses
import json
import math
import stat
from typing import Any

import jax
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.own import adopt
from fedjax_rec.attacks.adversary import colluding
from fedjax_rec.attacks.byzantine import attacked, ipm
from fedjax_rec.attacks.fedrecattack import fedrecattack
from fedjax_rec.cli.main import main
from fedjax_rec.privacy.accounting import epsilon_of, event_of, round_event
from fedjax_rec.privacy.calibration import poisson_sampler
from fedjax_rec.privacy.dp_fedavg import dp_fedavg
from fedjax_rec.privacy.ledger import Overspent, from_json, open_ledger
from fedjax_rec.privacy.local_dp import local_dp
from fedjax_rec.privacy.secure_aggregation import clip_to_grid, secure_sum
from fedjax_rec.privacy.spending import BY_EVENTS, Spending, spending_of
from fedjax_rec.runs.settings import Settings, complete
from fedjax_rec.runs.setup import set_up, spending_after
from fedjax_rec.runs.sweeps import ask, run_sweep
from fedjax_rec.samplers.data_independent import Poisson, everyone, poisson, uniform
from fedjax_rec.server.aggregators import by_examples, gaussian, mean_of_touchers, uniform_weight
from fedjax_rec.server.fairness import agnostic
from fedjax_rec.server.noise import draw_noise
from fedjax_rec.testing import tiny_population
from fedjax_rec.training.checkpoints.manager import Checkpoints
from fedjax_rec.training.checkpoints.seal import seal
from fedjax_rec.transforms.chaining import chain
from fedjax_rec.transforms.clipping import add_noise, clip

MANY = tiny_population().num_clients
ROUNDS = 4
KEY = jax.random.key(0)
SMALL: dict[str, Any] = {"dim": 2, "batch_size": 10}


def _private(num_clients: int = MANY, **changes: Any) -> Any:
    settings = {"cohort": 6, "rounds": ROUNDS, "clip": 0.1, "delta": 1e-3, "noise_multiplier": 2.0}
    return dp_fedavg(num_clients, **(settings | changes))


def _spent(algorithm: fr.types.Algorithm, rounds: int, delta: float) -> Spending:
    spent = spending_of(algorithm, MANY, rounds, delta)
    assert spent is not None
    return spent


@pytest.fixture(scope="module")
def private():
    return _private()


def test_the_event_is_that_of_what_runs(private):
    """Of the sampler, noise and clip in the algorithm, whoever put them there; of none without noise."""
    algorithm = fr.fedmf(**SMALL, **private.federation)
    assert event_of(algorithm, MANY) == private.per_round
    assert _spent(algorithm, ROUNDS, 1e-3).epsilon == private.epsilon(ROUNDS)

    by_hand = fr.fedmf(
        **SMALL,
        sampler=uniform(6),
        transform=clip(0.1),
        aggregator=gaussian(noise_multiplier=2.0, norm=0.1, expected=6),
    )
    assert event_of(by_hand, MANY) == round_event(uniform(6), 2.0, MANY)
    assert event_of(by_hand, 2 * MANY) != event_of(by_hand, MANY)

    mine = local_dp(rounds=3, clip=0.3, delta=1e-5, noise_multiplier=7.0)
    local = fr.fedmf(**SMALL, **mine.federation)
    assert event_of(local, MANY) == mine.per_round
    spent = _spent(local, 3, 1e-5)
    assert spent.epsilon == mine.epsilon(3)
    assert "who takes part" in spent.not_covered

    silent = gaussian(noise_multiplier=0.0, norm=0.1, expected=6)
    assert event_of(fr.fedmf(**SMALL), MANY) is None
    assert event_of(fr.fedmf(**SMALL, transform=clip(0.1), aggregator=silent), MANY) is None
    assert event_of(fr.fedmf(**SMALL, transform=chain(clip(0.1), add_noise(0.0))), MANY) is None


@pytest.mark.parametrize("meant", [MANY // 2, 2 * MANY])
def test_the_number_of_clients_is_part_of_it(meant):
    """Rounds for more or fewer clients are not built, by no way."""
    algorithm = fr.fedmf(**SMALL, **_private(meant).federation)
    population = tiny_population()
    words = f"drawn from {meant} clients, but the population has {MANY}"
    state = fr.fedmf(**SMALL).init(KEY, population)
    for build in (
        lambda: fr.simulate(algorithm, population, rounds=1),
        lambda: algorithm.plan(population),
        lambda: algorithm.round(KEY, state, population),
    ):
        with pytest.raises(ValueError, match=words):
            build()
    with pytest.raises(ValueError, match="make another one"):
        spending_of(algorithm, MANY, ROUNDS, 1e-3)


def test_noise_goes_with_its_sampler(private):
    """That of `dp_fedavg` was chosen for its own cohorts."""
    given = private.federation
    for sampler in (everyone(), uniform(6), poisson(0.9, MANY), None):
        with pytest.raises(ValueError, match="the noise was chosen for cohorts of"):
            fr.fedmf(**SMALL, **(given | {"sampler": sampler}))


def test_a_ledger_admits_what_it_counts(private):
    """No algorithm without noise, with other noise, or other cohorts."""
    ledger = open_ledger(private, epsilon=5.0)
    population = tiny_population()
    ledger.admit(fr.fedmf(**SMALL, **private.federation), MANY)
    others = {
        "adds no noise": fr.fedmf(**SMALL),
        "the ledger counts": fr.fedmf(**SMALL, **_private(noise_multiplier=1.0).federation),
        "make another one": fr.fedmf(**SMALL, **_private(2 * MANY).federation),
    }
    for words, algorithm in others.items():
        with pytest.raises(ValueError, match=words):
            fr.simulate(algorithm, population, rounds=1, ledger=ledger)
    assert ledger.runs == {}


@pytest.fixture(scope="module")
def whole() -> tuple[Any, fr.types.Algorithm]:
    """Everybody in every round, so that accounting is fast; one algorithm, so that its rounds compile once."""
    private = _private(cohort=MANY)
    return private, fr.fedmf(**SMALL, **private.federation)


def test_runs_add_up_on_a_ledger(whole):
    """Another seed is another release; going on is not; in JSON too."""
    private, algorithm = whole
    population = tiny_population()
    ledger = open_ledger(private, epsilon=private.epsilon(5))
    state, _ = fr.simulate(algorithm, population, rounds=2, ledger=ledger, keep="last")
    fr.simulate(algorithm, population, rounds=3, ledger=ledger, state=state)
    assert list(ledger.runs.values()) == [3]
    ledger = from_json(ledger.to_json())
    with pytest.raises(Overspent, match=r"3 rounds beside 3 of other runs.*rounds=2 are allowed"):
        fr.simulate(algorithm, population, rounds=3, seed=1, ledger=ledger, eval_every=3)
    fr.simulate(algorithm, population, rounds=2, seed=1, ledger=ledger)
    assert sorted(ledger.runs.values()) == [2, 3]
    assert ledger.epsilon(2, max(ledger.runs, key=lambda run: -ledger.runs[run])) == private.epsilon(5)


def test_two_runs_of_one_ledger_never_share_their_noise(whole):
    """The difference of two models of one key has no noise: other rates, other data, another start are refused."""
    private, algorithm = whole
    population = tiny_population()
    ledger = open_ledger(private, epsilon=private.epsilon(50))
    for _ in range(2):  # the same again tells nothing new
        fr.simulate(algorithm, population, rounds=1, ledger=ledger)
    fewer = dataclasses.replace(population, examples={"items": population.examples["items"][::-1]})
    elsewhere = algorithm.init(jax.random.key(9), population)
    slower = fr.fedmf(**SMALL, learning_rate=0.01, **private.federation)
    for other, data, start in (
        (slower, population, None),
        (algorithm, fewer, None),
        (algorithm, population, elsewhere),
    ):
        with pytest.raises(ValueError, match="another run on this ledger has had this seed"):
            fr.simulate(other, data, rounds=1, ledger=ledger, state=start)
    assert list(ledger.runs.values()) == [1]


def test_a_ledger_is_asked_again_where_others_spend_meanwhile(whole):
    """A run that fitted when it began does not fit any more."""
    private, algorithm = whole
    ledger = open_ledger(private, epsilon=private.epsilon(5))

    def spend(_: Any) -> None:
        ledger.record(4, "other")

    with pytest.raises(Overspent, match="beside 4 of other runs"):
        fr.simulate(algorithm, tiny_population(), rounds=2, eval_every=1, ledger=ledger, on_block=spend)


class Favourites(Poisson):
    """It says of itself what another sampler does, and always draws the same."""

    def __call__(self, key: Any, num_clients: int) -> tuple[jax.Array, jax.Array]:
        del key, num_clients
        return jax.numpy.arange(3), jax.numpy.ones(3, bool)


def test_only_samplers_of_its_own_are_accounted_for(private):
    """What is made of one, or equal to one in its numbers, may draw in another way."""
    mine = Favourites(*private.sampler)
    assert mine == private.sampler
    with pytest.raises(ValueError, match="the noise was chosen for cohorts of"):
        fr.fedmf(**SMALL, **(private.federation | {"sampler": mine}))
    noisy = gaussian(noise_multiplier=2.0, norm=0.1, expected=6)
    algorithm = fr.fedmf(**SMALL, sampler=mine, transform=clip(0.1), aggregator=noisy)
    with pytest.raises(ValueError, match="nothing is known of what"):
        event_of(algorithm, MANY)


def test_what_is_made_of_a_private_sum_is_none(private):
    """Weights, normalisers and attacks around it; what is accounted for is what is drawn."""
    rule = private.aggregator
    for changed in (
        rule._replace(weight=by_examples().weight),
        rule._replace(weight=lambda n: 5.0 * uniform_weight(n)),
        rule._replace(finish=lambda totals: jax.tree.map(lambda x: 9 * x, rule.finish(totals))),
        rule._replace(rows=mean_of_touchers().rows),
        rule._replace(client_stats=lambda n: n),
        rule._replace(losses=agnostic().losses),
    ):
        with pytest.raises(ValueError, match=r"use the plain sum|that tell their losses"):
            fr.fedmf(**SMALL, **(private.federation | {"aggregator": changed}))
    with pytest.raises(ValueError, match="attack an aggregator without noise"):
        attacked(rule, ipm(10.0), [0])
    more = rule.noise._replace(multiplier=20.0)
    shapes = fr.types.Server(jax.numpy.zeros(5), ())
    once, ten_times = (
        draw_noise(noise, KEY, jax.numpy.int32(0), shapes).shared for noise in (rule.noise, more)
    )
    np.testing.assert_allclose(ten_times, 10 * once, rtol=1e-6)
    masked = secure_sum(rule, capacity=MANY, masked=True)
    assert masked.fixed is not None
    grid = masked.fixed.bits
    limited = clip_to_grid(0.05, grid, numbers=5000)
    fr.fedmf(**SMALL, **(private.federation | {"aggregator": masked, "transform": limited}))


def test_noise_hides_nothing_that_everything_starts_from(private):
    """A model, or attackers, that read the data before the first round, whatever they say of it."""
    plain = fr.fedmf(**SMALL)
    population = tiny_population()

    def init_server(key: Any, population: Any) -> Any:
        server = plain.model.init_server(key, population)
        return jax.tree.map(lambda x: x + population.examples["items"].mean(), server)

    model = plain.model._replace(init_server=init_server)
    fr.federate(model, plain.work).init(KEY, population)
    own = local_dp(rounds=3, clip=0.3, delta=1e-5, noise_multiplier=7.0).federation
    for hidden in (private.federation, own):
        with pytest.raises(ValueError, match="the model starts from the clients' items"):
            fr.federate(model, plain.work, **hidden).init(KEY, population)
    count = plain.model._replace(
        init_server=lambda key, p: init_server(key, p)._replace(shared=p.offsets[1:])
    )
    with pytest.raises(ValueError, match="the model starts from the clients'"):
        fr.federate(count, plain.work, **private.federation).init(KEY, population)
    fr.federate(plain.model, plain.work, **private.federation).init(KEY, population)
    adversary = colluding(fedrecattack([0], rows=5), [1])
    with pytest.raises(ValueError, match="which noise on updates does not hide"):
        fr.fedmf(**SMALL, adversary=adversary, **private.federation).init(KEY, population)


def test_weak_noise_is_refused_in_a_moment():
    """Where epsilon is beyond 100 nobody counts on, for minutes and gigabytes."""
    sampler = poisson_sampler(943, 94, 400, 1e-4)
    for multiplier in (0.1, 0.05, 1e-9, 1e-200):
        assert math.isinf(epsilon_of(round_event(sampler, multiplier, 943), 400, 1e-4))
    assert 60 < epsilon_of(round_event(everyone(), 0.22, 943), 4, 1e-4) <= 100


def _run(tmp_path: Any, name: str, *flags: str) -> tuple[int, dict[str, Any]]:
    """A private run of few rounds on the synthetic population."""
    folder = tmp_path / name
    short = ["--rounds", "2", "--eval-every", "1", "--dim", "2", "--cohort", "1000", "--clip", "0.5"]
    status = main(["run", *short, "--out", str(folder), *flags])
    path = folder / "result.json"
    return status, json.loads(path.read_text())["privacy"] if path.exists() else {}


def test_options_cannot_take_the_noise_away(tmp_path, capsys):
    """What has a flag, or is the business of `federate`, is refused before anything runs."""
    for option, words in {
        "aggregator=sum": "use --aggregator",
        "sampler=None": "use --sampler",
        "transform=None": "cohorts, sums, noise and devices",
        "dim=4": "use --dim",
        "intercept=1,intercept=2": "given twice",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            _run(tmp_path, "refused", "--target-epsilon", "4", "--options", option)
        assert words in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_a_secret_seed_stays_secret(tmp_path, capsys):
    """A run of the same seed differs; a resume goes on with the same noise; the table says which seed it was."""
    noisy = ["--noise-multiplier", "8", "--checkpoint-every", "1"]
    status, public = _run(tmp_path, "public", *noisy)
    assert (status, public["noise_seed"]) == (0, "public")
    assert "whoever has the seed" in public["not_covered"][0]
    assert "only against those who do not have the seed" in capsys.readouterr().out
    status, secret = _run(tmp_path, "one", *noisy, "--secret-noise")
    assert (status, secret["noise_seed"], secret["epsilon"]) == (0, "secret", public["epsilon"])
    assert "seed" not in secret["not_covered"][0]
    assert "who do not have the seed" not in capsys.readouterr().out
    first, second = (fr.load(tmp_path / name).server.tables["vector"] for name in ("one", "public"))
    assert (np.asarray(first) != np.asarray(second)).all()
    train = tmp_path / "one" / "checkpoints" / "train"
    assert stat.S_IMODE(train.stat().st_mode) == 0o700
    meta = json.loads(max(train.glob("round-*")).joinpath("meta.json").read_text())
    written = (path.read_bytes() for path in (tmp_path / "one").iterdir() if path.is_file())
    assert not any(str(word).encode() in text for text in written for word in meta["custom_metadata"]["key"])

    # Going on for more rounds: with the cohorts' room of the first rounds, which is accounted for, and the key.
    assert main(["resume", str(tmp_path / "one"), "--rounds", "3"]) == 0
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert (result["rounds"], result["privacy"]["capacity"]) == (3, public["capacity"])
    assert result["privacy"]["epsilon"] > public["epsilon"]

    # A key that somebody else wrote there.
    newest = max(train.glob("round-*"))
    meta = json.loads((newest / "meta.json").read_text())
    meta["custom_metadata"]["key"] = ["x", -1]
    (newest / "meta.json").write_text(json.dumps(meta))
    seal(newest)
    with pytest.raises(SystemExit, match="2"):
        main(["resume", str(tmp_path / "one"), "--rounds", "4"])
    assert "holds no key of a run with secret noise" in capsys.readouterr().err


def test_a_key_stands_in_checkpoints_that_only_their_owner_reads(tmp_path, private):
    """In Python: `seed=privacy.secret_key()`, and the same key to go on."""
    population = tiny_population()
    algorithm = fr.fedmf(**SMALL, **private.federation)
    key = fr.privacy.secret_key()
    saved = Checkpoints(tmp_path / "saved", every=1)
    fr.simulate(algorithm, population, rounds=1, eval_every=1, seed=key, checkpoint=saved)
    state, _ = fr.simulate(algorithm, population, rounds=2, eval_every=1, seed=key, checkpoint=saved)
    whole, _ = fr.simulate(algorithm, population, rounds=2, eval_every=1, seed=key)
    assert stat.S_IMODE((tmp_path / "saved").stat().st_mode) == 0o700
    rounds = list((tmp_path / "saved").glob("round-*"))  # wherever one of them is moved to
    assert {stat.S_IMODE(path.stat().st_mode) for path in rounds} == {0o700}
    assert {stat.S_IMODE((path / "meta.json").stat().st_mode) for path in rounds} == {0o600}
    other = fr.privacy.secret_key()
    with pytest.raises(ValueError, match="seed is a key in the checkpoint and a key now"):
        fr.simulate(algorithm, population, rounds=3, eval_every=1, seed=other, checkpoint=saved)
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), state, whole)
    assert all(jax.tree.leaves(same))


def test_what_follows_from_the_number_of_events_is_not_covered():
    """Nor is it where the run goes on with the number that followed; a number of one's own is named by nobody."""
    noisy: dict[str, Any] = {"algorithm": "fedease", "clip": 1.0, "noise_multiplier": 30.0, "rounds": 1}
    for regularisation, named in ((None, True), (7.0, False)):
        settings = complete(Settings(**noisy, regularisation=regularisation))
        setup = set_up(settings, str)
        spent = spending_after(settings, setup, 1)
        assert spent is not None
        told = f"{BY_EVENTS}: regularisation"
        assert (told in spent.not_covered) is named
        assert set_up(setup.settings, str).by_events == setup.by_events


def _wastes_noise(
    *, dim: int = 2, aggregator="sum", sampler=None, transform=None, **federation
) -> fr.types.Algorithm:
    """Takes what makes a run private, and hands it on to nobody."""
    del aggregator, sampler, transform
    return fr.fedmf(dim=dim, **federation)


def _lowers_noise(*, dim: int = 2, aggregator="sum", **federation) -> fr.types.Algorithm:
    lower = aggregator._replace(noise=aggregator.noise._replace(multiplier=aggregator.noise.multiplier * 0.9))
    return fr.fedmf(dim=dim, aggregator=lower, **federation)


def _adds_noise(*, dim: int = 2) -> fr.types.Algorithm:
    """Hides its clients by itself, whatever the settings say."""
    private = dp_fedavg(1000, cohort=100, rounds=2, clip=0.5, delta=5e-4, noise_multiplier=4.0)
    return fr.fedmf(dim=dim, **private.federation)


@pytest.mark.parametrize(
    ("factory", "settings", "told"),
    [
        (_wastes_noise, {"clip": 0.5, "target_epsilon": 4.0}, "adds no noise, though it was given some"),
        (_lowers_noise, {"clip": 0.5, "target_epsilon": 4.0}, "adds less noise than it was given"),
        (_adds_noise, {"refit": True}, "would train twice on the same users"),
        (_adds_noise, {"tune": 2}, "would train on the same users again and again"),
    ],
)
def test_a_run_is_private_as_its_algorithm_is(factory, settings, told):
    with pytest.raises(ValueError, match=told):
        set_up(complete(Settings(algorithm=adopt(factory), rounds=2, **settings)), str)


def test_a_sweep_of_an_algorithm_that_adds_noise_by_itself(tmp_path):
    asked = ask(Settings(algorithm=adopt(_adds_noise)), {"dim": [2, 3]}, seeds=1, budget=2, halving=False)
    with pytest.raises(ValueError, match="spend each time"):
        run_sweep(asked, tmp_path)


@pytest.mark.parametrize("name", ["init", "round", "streaming"])
def test_rounds_that_were_replaced(name):
    """What stands beside them tells of others, which may hide nobody."""
    replaced = _adds_noise()._replace(**{name: getattr(fr.fedmf(dim=2), name)})
    with pytest.raises(ValueError, match="was replaced after"):
        spending_of(replaced, 1000, 2, 5e-4)
