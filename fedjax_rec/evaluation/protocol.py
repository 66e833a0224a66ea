"""The protocol: everything about an evaluation that makes two numbers comparable, and a hash of it.

Two results may stand in one table if, and only if, they were measured in the same way on the same data. A
`Protocol` writes that way down; `protocol_id` is its short name, which every result carries. The protocol's
seed fixes splits and candidates and is *not* the run's seed, so several seeds of one experiment share an id.

| field | choices |
|---|---|
| `splitter` | `leave-one-out`: last event tests, last but one validates, the rest trains; others below |
| `validation_share`, `test_share` | what the other splitters hold out; None where they take no such share |
| `heldout_share` | of `strong`: what a held-out client must find of its events; None for the last one |
| `positives` | `first`: a user's one held-out event counts, of several the first; `all`: all of them do |
| `core` | users and items with fewer events are dropped until none is left; 0 drops none |
| `duplicates` | `error`: no pair repeats; else what became of those that do: `fedjax_rec.data.duplicates` |
| `order` | of a user's events: `time`; `file`, by lines; `random`, the default without times: what is held out |
| | is drawn. Official test items without times leave it at `time` |
| `time_ties` | `file-order`: events with equal timestamps keep the order of the file |
| `candidates` | `sampled`: `num_candidates` frozen random negatives; `official`: the data's own lists |
| `seen_mask` | `train+validation`: masked from test rankings; validation rankings mask train only |
| `ties` | `half`: a rank is the number of better items plus half of the tied ones; NaN is worst |
| | HR, NDCG and MRR are expectations over the order of the tied items |
| `negatives` | `train`: training negatives exclude train positives only, so held-out items can be drawn |
| | `paper-leaky`: they exclude the user's validation and test items too |
| `point` | `server`: with the server's parameters; `local-training`, `fold-in`: those of `evaluation_points` |
| `evaluate_clients` | clients that are ranked, drawn by the seed, of a store that may hold many more |
| `fold_in_epochs` | passes over a held-out client's history; 0 but for `fold-in` |
| `selection` | the metric of the full-ranking validation that selects the round, such as `ndcg@10` |
| `refit` | whether the tested model is retrained on train + validation for the selected number of rounds |

The splitters `global-time`, `ratio`, `given` and `strong` are those of `fedjax_rec.data.splitters`. With
`paper-leaky` the held-out items are the only untrained ones that are never pushed down, so that a model need not
know anything to find them: the code that PFedRec, GPFedRec and FedRAP share does this
(github.com/Zhangcx19/IJCAI-23-PFedRec, issue 3). It exists to reproduce such numbers.
"""

import dataclasses
import hashlib
import json
import re

from fedjax_rec.data.duplicates import KEEP
from fedjax_rec.data.heldout import POSITIVES
from fedjax_rec.data.order import ORDERS
from fedjax_rec.data.splits import NEGATIVES
from fedjax_rec.data.splitters import SPLITTERS

CHOICES: dict[str, tuple[str, ...]] = {
    "splitter": SPLITTERS,
    "positives": POSITIVES,
    "duplicates": KEEP,
    "order": ORDERS,
    "time_ties": ("file-order",),
    "candidates": ("sampled", "official"),
    "seen_mask": ("train+validation",),
    "ties": ("half",),
    "negatives": NEGATIVES,
    "point": ("server", "local-training", "fold-in"),
}
_COUNTS = ("min_user_events", "core", "num_candidates", "fold_in_epochs", "seed")
_SHARES = {  # by splitter, the shares that it takes
    "leave-one-out": (),
    "global-time": ("validation_share", "test_share"),
    "ratio": ("validation_share", "test_share"),
    "given": (),
    "strong": ("test_share",),
}
_YOUNGER_FIELDS: dict[
    str, object
] = {  # fields younger than the first results: unset, they leave the id alone
    "validation_share": None,
    "test_share": None,
    "heldout_share": None,
    "positives": "first",
    "duplicates": "error",
    "order": "time",
    "core": 0,
    "point": "server",
    "fold_in_epochs": 0,
    "evaluate_clients": None,
}
_METRIC = re.compile(r"(hr|ndcg|mrr|recall|truncated_recall|precision|map)@[1-9]\d*|mrr|map|auc")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a model is evaluated; the module's docstring explains the choices.

    Args:
        data_hash: hash of the unfiltered data, from `fedjax_rec.data.splits.data_hash`.
        splitter: how events are divided.
        validation_share: of the events, for `global-time` and `ratio`; above 0.
        test_share: of the events, or for `strong` of the clients; above 0, and together below 1.
        heldout_share: of the events of a held-out client, for `strong`; None for its last event.
        positives: which of a user's held-out events count.
        duplicates: the rule for pairs that repeat.
        order: of a user's events.
        time_ties: order of a user's events with equal timestamps.
        min_user_events: users with fewer events are dropped; 0 drops none.
        min_rating: events rated lower are dropped; None drops none.
        core: k of the k-core; 0 drops none.
        candidates: where the candidates of the sampled ranking come from.
        num_candidates: how many candidates a user's positive is ranked against; 0 or more.
        seen_mask: which of a user's items are masked from test rankings.
        ties: the tie rule.
        negatives: the pool of training negatives.
        point: with which parameters users are ranked.
        fold_in_epochs: passes over a history before it is ranked; only with `fold-in`.
        evaluate_clients: how many clients of a store are ranked, drawn by the seed; None for all.
        selection: `hr@k`, `ndcg@k`, `mrr@k`, `recall@k`, `truncated_recall@k`, `precision@k`, `map@k`, `mrr`,
            `map` or `auc`, on the full-ranking validation.
        refit: whether the tested model was retrained on train + validation.
        seed: fixes splits and candidates, 0 or more.

    Raises:
        ValueError: if a value is unknown or out of range.

    Example:
        >>> Protocol(negatives="all")
        Traceback (most recent call last):
        ValueError: negatives='all' is unknown; choose one of 'train', 'paper-leaky'
    """

    data_hash: str = ""
    splitter: str = "leave-one-out"
    validation_share: float | None = None
    test_share: float | None = None
    heldout_share: float | None = None
    positives: str = "first"
    duplicates: str = "error"
    order: str = "time"
    time_ties: str = "file-order"
    min_user_events: int = 0
    min_rating: float | None = None
    core: int = 0
    candidates: str = "sampled"
    num_candidates: int = 99
    seen_mask: str = "train+validation"
    ties: str = "half"
    negatives: str = "train"
    point: str = "server"
    fold_in_epochs: int = 0
    selection: str = "ndcg@10"
    refit: bool = False
    seed: int = 0
    evaluate_clients: int | None = None

    def __post_init__(self) -> None:
        for field, choices in CHOICES.items():
            if (value := getattr(self, field)) not in choices:
                raise ValueError(
                    f"{field}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}"
                )
        for field in _COUNTS:
            if (value := getattr(self, field)) < 0:
                raise ValueError(f"{field}={value!r} is negative; choose 0 or more")
        if self.evaluate_clients is not None and self.evaluate_clients < 1:
            raise ValueError(
                f"evaluate_clients={self.evaluate_clients!r} is too few; choose 1 or more, or None for all"
            )
        self._check_shares()
        if self.heldout_share is not None and (self.splitter != "strong" or not 0 < self.heldout_share < 1):
            raise ValueError(
                f"heldout_share={self.heldout_share!r} is above 0 and below 1, and of the splitter 'strong' alone"
            )
        one = self.splitter == "leave-one-out" or (self.splitter == "strong" and self.heldout_share is None)
        if self.positives == "all" and one:
            raise ValueError(
                f"positives='all' is of several events of a user, and the splitter {self.splitter!r} holds out one"
            )
        if self.fold_in_epochs and self.point != "fold-in":
            raise ValueError(
                f"fold_in_epochs={self.fold_in_epochs} needs point='fold-in', not {self.point!r}"
            )
        if not _METRIC.fullmatch(self.selection):
            kinds = ("hr", "ndcg", "mrr", "recall", "truncated_recall", "precision", "map")
            known_metrics = ", ".join([*(f"'{kind}@k'" for kind in kinds), "'mrr'", "'map'", "'auc'"])
            raise ValueError(
                f"selection={self.selection!r} is unknown; choose one of {known_metrics}, with k from 1 up"
            )

    def _check_shares(self) -> None:
        shares = _SHARES[self.splitter]
        for field in ("validation_share", "test_share"):
            value = getattr(self, field)
            if (value is not None) != (field in shares):
                wanted = "needs one" if field in shares else "takes none"
                raise ValueError(f"{field}={value!r}: the splitter {self.splitter!r} {wanted}")
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{field}={value!r} is out of range; choose above 0 and below 1")
        if (self.validation_share or 0) + (self.test_share or 0) >= 1:
            raise ValueError(
                "validation_share and test_share leave nothing to train on; choose below 1 together"
            )

    def to_json(self) -> dict[str, str | int | float | bool | None]:
        """The protocol as a dict of plain values that `Protocol(**values)` reads back.

        Returns:
            A dict with one entry per field, less those of `_YOUNGER_FIELDS` that are unset; numbers have one form
            each, so that 4 and 4.0 hash alike.

        Example:
            >>> Protocol(**Protocol(min_rating=4).to_json()) == Protocol(min_rating=4.0)
            True
        """
        min_rating = None if self.min_rating is None else float(self.min_rating)
        values = dataclasses.asdict(self) | {name: int(getattr(self, name)) for name in _COUNTS}
        values |= {"min_rating": min_rating, "refit": bool(self.refit)}
        return {name: value for name, value in values.items() if _YOUNGER_FIELDS.get(name, ...) != value}


def protocol_id(protocol: Protocol) -> str:
    """Name a protocol by the hash of its canonical JSON: sorted keys, no spaces, ASCII.

    Args:
        protocol: the protocol.

    Returns:
        The first 12 hexadecimal digits of the sha256.

    Example:
        >>> protocol_id(Protocol()) == protocol_id(Protocol(seed=1))
        False
    """
    text = json.dumps(protocol.to_json(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]
