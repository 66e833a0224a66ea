"""A ledger refuses the round that would overspend, before it runs, and also in a run that was resumed."""

import json
from typing import Any

import pytest

import fedjax_rec as fr
from fedjax_rec.privacy.accounting import round_event
from fedjax_rec.privacy.dp_fedavg import dp_fedavg
from fedjax_rec.privacy.ledger import Ledger, Overspent, from_json, open_ledger
from fedjax_rec.privacy.local_dp import local_dp
from fedjax_rec.samplers.data_independent import everyone, poisson, uniform
from fedjax_rec.testing import tiny_population


@pytest.fixture(scope="module")
def private():
    """Five rounds of two are allowed."""
    return local_dp(rounds=5, clip=0.1, delta=1e-5, target_epsilon=2.0)


def test_a_budget_has_an_end(private):
    """As many rounds as the noise was chosen for, and not one more; and the error says so in one line."""
    ledger = open_ledger(private, epsilon=2.0)
    assert [ledger.would_exceed(rounds) for rounds in (0, 1, 5, 6, 50)] == [False, False, False, True, True]
    assert ledger.allowed() == ledger.allowed(guess=4) == 5
    ledger.check(5)
    words = r"^8 rounds would spend epsilon=2\.\d+, more than the budget of 2 at delta=1e-05; rounds=5 are allowed"
    with pytest.raises(Overspent, match=words) as caught:
        ledger.check(8, done=4)
    assert "\n" not in str(caught.value)


def test_central_privacy_has_a_ledger():
    """Everybody in every round, so that accounting is fast; the ledger agrees with the value it is made of."""
    private = dp_fedavg(100, cohort=100, rounds=10, clip=0.5, delta=1e-4, noise_multiplier=8.0)
    ledger = Ledger(round_event(everyone(), 8.0, 100), 1e-4, private.epsilon(1) * 2)
    assert ledger.allowed() >= 2
    assert open_ledger(private, epsilon=1.0).per_round == private.per_round


@pytest.mark.parametrize(
    "sampler", [everyone(), poisson(0.1, 30), uniform(10)], ids=lambda s: type(s).__name__
)
def test_json_round_trip(sampler):
    """Every sampler's event comes back equal, whatever it is made of."""
    ledger = Ledger(round_event(sampler, 1.5, 200), 1e-5, 3.0)
    text = ledger.to_json()
    assert from_json(text) == ledger
    assert json.loads(text)["schema"] == 2
    assert hash(from_json(text).per_round) == hash(ledger.per_round)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: "[", "no ledger"),
        (lambda _: "[]", "no ledger"),
        (lambda d: json.dumps(d | {"schema": 3}), "schema 3, this version reads 2"),
        (lambda d: json.dumps({k: x for k, x in d.items() if k != "delta"}), "damaged"),
        (lambda d: json.dumps(d | {"round": d["round"] | {"event": {"type": "Popen"}}}), "no event 'Popen'"),
        (lambda d: json.dumps(d | {"round": d["round"] | {"event": {"type": "pld"}}}), "no event 'pld'"),
    ],
)
def test_other_files_are_refused(private, change, words):
    """What is no ledger, of another schema, damaged, or names what is no event."""
    found = json.loads(open_ledger(private, epsilon=2.0).to_json())
    with pytest.raises(ValueError, match=words):
        from_json(change(found))
    with pytest.raises(ValueError, match="allows nothing"):
        open_ledger(private, epsilon=0.0)


class Counting:
    """A ledger that notes what it is asked."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.asked = list[int]()

        self.admit = ledger.admit
        self.check = ledger.check
        self.record = ledger.record

    def would_exceed(self, rounds: int, run: str = "") -> bool:
        self.asked.append(rounds)
        return self.ledger.would_exceed(rounds, run)


def test_a_run_asks_before_each_block(private, tmp_path):
    """The block that does not fit is not run, and what was done is saved; a run that fits asks once."""
    population = tiny_population()
    seen = []
    algorithm = fr.fedmf(dim=2, cohort=9, **private.federation)
    ledger = Counting(open_ledger(private, epsilon=2.0))
    common: dict[str, Any] = {"eval_every": 2, "ledger": ledger, "on_block": lambda p: seen.append(p.round)}
    checkpoint = fr.Checkpoints(tmp_path / "run", every=8)
    with pytest.raises(Overspent, match=r"6 rounds would spend .* rounds=5 are allowed, 4 done"):
        fr.simulate(algorithm, population, rounds=9, checkpoint=checkpoint, **common)
    assert seen == [2, 4]
    ledger.asked.clear()
    state, history = fr.simulate(algorithm, population, rounds=5, checkpoint=checkpoint, **common)
    assert (seen, ledger.asked, history.stopped) == ([2, 4, 5], [5], "rounds")  # accounting may take seconds
    with pytest.raises(Overspent, match=r"6 rounds would spend .* 5 done"):
        fr.simulate(algorithm, population, rounds=6, state=state, **common)
    assert seen == [2, 4, 5]
