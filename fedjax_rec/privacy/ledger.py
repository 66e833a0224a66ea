"""A ledger: a privacy budget, and the refusal of the round that would overspend it.

    ledger = open_ledger(private, epsilon=4.0)
    fr.simulate(fr.fedmf(**private.federation), split, rounds=400, ledger=ledger)

A run is admitted only if its rounds are those that the ledger counts: the same sampler of as many clients, the
same noise. It asks before each block of rounds, counted from the very start, also if it was resumed; what is
refused was not run. Rounds of several runs add up; a resumed run is the same one. Noise is its key's: two runs of
one key are refused, for the difference of two models with the same noise has none.
`to_json` and `from_json` carry a ledger over to another process.
"""

import json
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from fedjax_rec.privacy.accounting import RoundEvent, epsilon_of, event_of, import_dp_accounting
from fedjax_rec.privacy.calibration import rounds_for
from fedjax_rec.types import Algorithm

SCHEMA = 2  # of the JSON


class PrivateMechanism(Protocol):
    """What a ledger can be opened for: what `dp_fedavg` and `local_dp` return, for instance."""

    @property
    def per_round(self) -> RoundEvent:
        """What one round spends."""

    @property
    def delta(self) -> float:
        """At which epsilon is counted."""


class Overspent(ValueError):  # noqa: N818 - it says what would have happened
    """A run asked for more rounds than its budget allows."""


class Ledger:
    """A budget of epsilon at delta, and the rounds that runs have spent of it, which all spend alike.

    Args:
        per_round: what one round spends.
        delta: of the guarantee.
        budget: epsilon.
        runs: rounds by run, each counted from its very start.
    """

    def __init__(
        self, per_round: RoundEvent, delta: float, budget: float, runs: Mapping[str, int] | None = None
    ) -> None:
        self.per_round = per_round
        self.delta = delta
        self.budget = budget
        self.runs: dict[str, int] = dict(runs or {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Ledger(epsilon={self.budget:g}, delta={self.delta:g}, runs={self.runs})"

    def epsilon(self, rounds: int, run: str = "") -> float:
        """Epsilon of so many rounds of a run, and of what other runs have spent."""
        run = self._known(run)
        lengths = (*(done for name, done in self.runs.items() if name != run), rounds)
        return _epsilon(self.per_round, tuple(sorted(lengths)), self.delta)

    def would_exceed(self, rounds: int, run: str = "") -> bool:
        """Whether a run of so many rounds would spend more than is left of the budget."""
        return self.epsilon(rounds, run) > self.budget

    def allowed(self, guess: int = 0) -> int:
        """How many rounds the whole budget allows one run; a `guess`, if it is allowed, saves time."""
        return rounds_for(self.per_round, epsilon=self.budget, delta=self.delta, guess=guess)

    def admit(self, algorithm: Algorithm, num_clients: int) -> None:
        """Refuse an algorithm whose rounds are not those that this ledger counts.

        Args:
            algorithm: that will run.
            num_clients: N, of its population.

        Raises:
            ValueError: if it adds no noise, or other noise, or draws its cohorts in another way.
        """
        event = event_of(algorithm, num_clients)
        if event is None:
            raise ValueError(
                "the algorithm adds no noise, and the ledger would count what it does not spend; give its factory "
                "all of `private.federation`, or leave out ledger="
            )
        if event != self.per_round:
            raise ValueError(
                f"a round of the algorithm is {_shown(event)} on {num_clients:,} clients, and the ledger counts "
                f"{_shown(self.per_round)}; open one for what runs"
            )

    def check(self, rounds: int, done: int = 0, run: str = "") -> None:
        """Refuse so many rounds if they would overspend.

        Args:
            rounds: of the run, counted from the very start.
            done: of them, already.
            run: which one; what others have spent is added.

        Raises:
            Overspent: naming epsilon, the budget, and the rounds that are allowed.
        """
        if not self.would_exceed(rounds, run):
            return
        others = [spent for name, spent in self.runs.items() if name != self._known(run)]
        whole = _whole_events(self.per_round, others)
        allowed = self._allowed_beside(whole) if whole else self.allowed(done)
        beside = f" beside {sum(others)} of other runs" if whole else ""
        raise Overspent(
            f"{rounds} rounds{beside} would spend epsilon={self.epsilon(rounds, run):.6g}, more than the budget "
            f"of {self.budget:g} at delta={self.delta:g}; rounds={allowed} are allowed, {done} done"
        )

    def record(self, rounds: int, run: str = "") -> None:
        """Note the rounds of a run, counted from its very start: it never gives any back.

        Args:
            rounds: of the run.
            run: which one. Of a name with hyphens, as `simulate` gives them, the first part is that of its noise,
                and the last, which a run that goes on from a state does not know, that of its start.

        Raises:
            ValueError: if another run has spent rounds under the same noise.
        """
        run = self._known(run)
        noise, named, _ = run.partition("-")
        others = [name for name, spent in self.runs.items() if spent and name != run]
        if named and any(name.partition("-")[0] == noise for name in others):
            raise ValueError(
                "another run on this ledger has had this seed, and so the same noise, which the difference of "
                "both models takes off; give another seed, or go on with that run, on the same data"
            )
        self.runs[run] = max(rounds, self.runs.get(run, 0))

    def _known(self, run: str) -> str:
        """The name under which a run that goes on was noted when it began."""
        return next((name for name in self.runs if run and name.startswith(f"{run}-")), run)

    def _allowed_beside(self, others: int) -> int:
        """Rounds that the budget allows a run beside others, whose events were so many rounds long."""
        per_round = self.per_round
        unlimited = per_round._replace(max_rounds=None)
        whole = rounds_for(unlimited, epsilon=self.budget, delta=self.delta, guess=others)
        left = max(0, whole - whole % per_round.rounds_per_event - others)
        return left if per_round.max_rounds is None else min(left, per_round.max_rounds)

    def to_json(self) -> str:
        """The ledger as JSON, with the version of its schema."""
        per_round = self.per_round._asdict() | {"event": _event_to_dict(self.per_round.event)}
        return json.dumps(
            {
                "schema": SCHEMA,
                "epsilon": self.budget,
                "delta": self.delta,
                "round": per_round,
                "runs": self.runs,
            }
        )


def open_ledger(private: PrivateMechanism, *, epsilon: float) -> Ledger:
    """A ledger for a private way to federate.

    Args:
        private: of `dp_fedavg` or `local_dp`.
        epsilon: the budget, above 0, at the delta of `private`.

    Returns:
        a ledger.

    Raises:
        ValueError: if the budget is not above 0.

    Example:
        >>> from fedjax_rec.privacy.local_dp import local_dp
        >>> private = local_dp(rounds=3, clip=1.0, delta=1e-5, target_epsilon=2.0)
        >>> ledger = open_ledger(private, epsilon=2.0)
        >>> ledger.would_exceed(3), ledger.would_exceed(4)
        (False, True)
        >>> ledger.check(4)
        Traceback (most recent call last):
        fedjax_rec.privacy.ledger.Overspent: 4 rounds would spend epsilon=2.34..., more than the budget of 2 at ...
    """
    if not epsilon > 0:
        raise ValueError(f"a budget of epsilon={epsilon} allows nothing; give a number above 0")
    return Ledger(private.per_round, private.delta, float(epsilon))


def from_json(text: str) -> Ledger:
    """Undo `Ledger.to_json`.

    Args:
        text: JSON.

    Returns:
        an equal ledger.

    Raises:
        ValueError: if it is no ledger, or of another schema.

    Example:
        >>> from fedjax_rec.privacy.local_dp import local_dp
        >>> private = local_dp(rounds=3, clip=1.0, delta=1e-5, noise_multiplier=9.0)
        >>> ledger = open_ledger(private, epsilon=2.0)
        >>> from_json(ledger.to_json()) == ledger
        True
    """
    try:
        fields = json.loads(text)
        schema = fields["schema"]
    except (ValueError, TypeError, KeyError) as problem:
        raise ValueError(f"this is no ledger, but {text[:40]!r}; write one with Ledger.to_json") from problem
    if schema != SCHEMA:
        raise ValueError(f"the ledger is of schema {schema}, this version reads {SCHEMA}; open a new ledger")
    try:
        per_round = fields["round"] | {"event": _event_of_dict(fields["round"]["event"])}
        runs = {str(run): int(rounds) for run, rounds in fields["runs"].items()}
        return Ledger(RoundEvent(**per_round), float(fields["delta"]), float(fields["epsilon"]), runs)
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise ValueError(f"the ledger is damaged: {problem}; open a new one") from problem


@lru_cache(maxsize=1024)
def _epsilon(per_round: RoundEvent, lengths: tuple[int, ...], delta: float) -> float:
    """Epsilon of runs of so many rounds: each has events, and noise, of its own."""
    if per_round.max_rounds is not None and lengths[-1] > per_round.max_rounds:
        return math.inf
    return epsilon_of(per_round._replace(max_rounds=None), _whole_events(per_round, lengths), delta)


def _whole_events(per_round: RoundEvent, lengths: Iterable[int]) -> int:
    """Rounds of all events that runs of so many rounds have begun."""
    span = per_round.rounds_per_event
    return sum(-(-rounds // span) for rounds in lengths) * span


def _shown(per_round: RoundEvent) -> str:
    """An event in words: its fields, and for how many rounds it holds."""
    ending = "" if per_round.max_rounds is None else f" for {per_round.max_rounds} rounds"
    return f"{per_round.event}{ending}"


def _event_to_dict(event: Any) -> dict[str, Any]:
    """An event of dp-accounting by the name of its class and its fields, which may be events."""
    fields = {field.name: getattr(event, field.name) for field in type(event).__attrs_attrs__}
    nested = import_dp_accounting().DpEvent
    plain = {name: _event_to_dict(x) if isinstance(x, nested) else x for name, x in fields.items()}
    return {"type": type(event).__name__, **plain}


def _event_of_dict(values: dict[str, Any]) -> Any:
    """Undo `_event_to_dict`: no other class than an event is made."""
    kind = getattr(import_dp_accounting(), values["type"], None)
    if not (isinstance(kind, type) and issubclass(kind, import_dp_accounting().DpEvent)):
        raise TypeError(f"dp-accounting knows no event {values['type']!r}")
    fields = {name: x for name, x in values.items() if name != "type"}
    return kind(**{name: _event_of_dict(x) if isinstance(x, dict) else x for name, x in fields.items()})
