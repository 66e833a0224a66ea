"""A ledger: a privacy budget, and the refusal of the round that would overspend it.

    ledger = open_ledger(private, epsilon=4.0)
    fr.simulate(fr.fedmf(**private.federation), split, rounds=400, ledger=ledger)

A run asks before each block of rounds, counted from the very start, also if it was resumed. What is refused was
not run. A ledger is a value: it holds the event of a round and the budget, and `to_json` and `from_json` carry it
over to another process. It cannot know whether the algorithm is the one that it was opened for.
"""

import json
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from fedjax_rec.privacy.accounting import Round, epsilon_of, library, rounds_for

SCHEMA = 1  # of the JSON


class Spender(Protocol):
    """What a ledger can be opened for: `central.Private`, `local.LocalPrivate`."""

    @property
    def spent(self) -> Round:
        """What one round spends."""

    @property
    def delta(self) -> float:
        """At which epsilon is counted."""


class Overspent(ValueError):  # noqa: N818 - it says what would have happened
    """A run asked for more rounds than its budget allows."""


class Ledger(NamedTuple):
    """A budget of epsilon at delta, for rounds that all spend alike."""

    spent: Round  # by one round
    delta: float
    budget: float  # epsilon

    def epsilon(self, rounds: int) -> float:
        """Epsilon of so many rounds."""
        return _epsilon(self.spent, rounds, self.delta)

    def would_exceed(self, rounds: int) -> bool:
        """Whether so many rounds would spend more than the budget."""
        return self.epsilon(rounds) > self.budget

    def allowed(self, near: int = 0) -> int:
        """How many rounds the budget allows; `near`, if it is allowed, saves time."""
        return rounds_for(self.spent, epsilon=self.budget, delta=self.delta, near=near)

    def check(self, rounds: int, done: int = 0) -> None:
        """Refuse so many rounds if they would overspend.

        Args:
            rounds: counted from the very start.
            done: of them, already.

        Raises:
            Overspent: naming epsilon, the budget, and the rounds that are allowed.
        """
        if self.would_exceed(rounds):
            raise Overspent(
                f"{rounds} rounds would spend epsilon={self.epsilon(rounds):.6g}, more than the budget of "
                f"{self.budget:g} at delta={self.delta:g}; rounds={self.allowed(done)} are allowed, {done} done"
            )

    def to_json(self) -> str:
        """The ledger as JSON, with the version of its schema."""
        spent = self.spent._asdict() | {"event": _event_to_dict(self.spent.event)}
        return json.dumps({"schema": SCHEMA, "epsilon": self.budget, "delta": self.delta, "round": spent})


def open_ledger(private: Spender, *, epsilon: float) -> Ledger:
    """A ledger for a private way to federate.

    Args:
        private: of `dp_fedavg` or `local_dp`.
        epsilon: the budget, above 0, at the delta of `private`.

    Returns:
        a ledger.

    Raises:
        ValueError: if the budget is not above 0.

    Example:
        >>> from fedjax_rec.privacy.local import local_dp
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
    return Ledger(private.spent, private.delta, float(epsilon))


def from_json(text: str) -> Ledger:
    """Undo `Ledger.to_json`.

    Args:
        text: JSON.

    Returns:
        an equal ledger.

    Raises:
        ValueError: if it is no ledger, or of another schema.

    Example:
        >>> from fedjax_rec.privacy.local import local_dp
        >>> private = local_dp(rounds=3, clip=1.0, delta=1e-5, noise_multiplier=9.0)
        >>> ledger = open_ledger(private, epsilon=2.0)
        >>> from_json(ledger.to_json()) == ledger
        True
    """
    try:
        found = json.loads(text)
        schema = found["schema"]
    except (ValueError, TypeError, KeyError) as problem:
        raise ValueError(f"this is no ledger, but {text[:40]!r}; write one with Ledger.to_json") from problem
    if schema != SCHEMA:
        raise ValueError(f"the ledger is of schema {schema}, this version reads {SCHEMA}; open a new ledger")
    try:
        spent = found["round"] | {"event": _event_of_dict(found["round"]["event"])}
        return Ledger(Round(**spent), float(found["delta"]), float(found["epsilon"]))
    except (KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"the ledger is damaged: {problem}; open a new one") from problem


@lru_cache(maxsize=1024)
def _epsilon(spent: Round, rounds: int, delta: float) -> float:
    return epsilon_of(spent, rounds, delta)


def _event_to_dict(event: Any) -> dict[str, Any]:
    """An event of dp-accounting by the name of its class and its fields, which may be events."""
    fields = {field.name: getattr(event, field.name) for field in type(event).__attrs_attrs__}
    nested = library().DpEvent
    plain = {name: _event_to_dict(x) if isinstance(x, nested) else x for name, x in fields.items()}
    return {"type": type(event).__name__, **plain}


def _event_of_dict(found: dict[str, Any]) -> Any:
    kind = getattr(library(), found["type"], None)
    if not (isinstance(kind, type) and issubclass(kind, library().DpEvent)):
        raise TypeError(f"dp-accounting knows no event {found['type']!r}")
    fields = {name: x for name, x in found.items() if name != "type"}
    return kind(**{name: _event_of_dict(x) if isinstance(x, dict) else x for name, x in fields.items()})
