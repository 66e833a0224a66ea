"""Settings of one run: every knob of the command line, with its default and its meaning, as one frozen value."""

import ast
import dataclasses
import math
from typing import Any

from fedjax_rec.aggregators import NAMES as AGGREGATORS
from fedjax_rec.algorithms.registry import ENTRIES, accepted
from fedjax_rec.algorithms.registry import NAMES as ALGORITHMS
from fedjax_rec.asynchronous import FedBuff
from fedjax_rec.data.errors import nearest
from fedjax_rec.data.splits import NEGATIVES
from fedjax_rec.data.splitters import SPLITTERS
from fedjax_rec.device_settings import FAULTS, FEDBUFF, devices_of, flag
from fedjax_rec.evaluation.central.methods import parse_names
from fedjax_rec.row_updates import STRATEGIES
from fedjax_rec.servers import LOCALS, SERVERS

POINTS = {"server": "server", "local": "local-training"}  # flag -> `Protocol.point`
FOLD_IN_EPOCHS = 10
FAIR = (
    "q-fedavg"  # the aggregator that needs the clients' learning rate, and so has no place in `AGGREGATORS`
)
DRAWS = ("uniform", "size-capped", "loss-proportional")
BY_ALGORITHM = ("model", "client", "server")  # groups whose settings are the algorithm's own unless given


def _setting(default: Any, text: str, group: str, choices: tuple[str, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "group": group, "choices": choices})


_RATES = ", ".join(f"{rule.learning_rate} for {name}" for name, rule in SERVERS.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is made of.

    Raises:
        ValueError: on an unknown choice (with the nearest known one) or a number out of range.

    Example:
        >>> Settings(algorithm="fedfm")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: unknown algorithm 'fedfm'; did you mean 'fedmf'? known: ...
    """

    dataset: str = _setting(
        "synthetic", "registered name (see `fedjax-rec data ls`) or path of a file", "data"
    )
    data_dir: str | None = _setting(
        None, "folder that holds the data; the network is then never used", "data"
    )
    user: str | None = _setting(None, "name of the users' column, for a file with a header", "data")
    item: str | None = _setting(None, "name of the items' column", "data")
    rating: str | None = _setting(None, "name of the ratings' column", "data")
    timestamp: str | None = _setting(None, "name of the timestamps' column", "data")
    duplicates: str = _setting("error", "repeated (user, item) pairs", "data", ("error", "first", "last"))
    splitter: str = _setting(
        "leave-one-out",
        "how events are held out; strong holds out clients, which bring a history and never train the server",
        "protocol",
        SPLITTERS,
    )
    validation_share: float | None = _setting(
        None, "share that validates, for global-time and ratio; by default 0.1", "protocol"
    )
    test_share: float | None = _setting(
        None, "share that tests, for strong of the clients; by default 0.1", "protocol"
    )
    core: int = _setting(0, "drop users and items until all have so many events; 0 drops none", "protocol")
    min_user_events: int = _setting(0, "drop users with fewer events; 0 drops none", "protocol")
    min_rating: float | None = _setting(None, "drop events rated lower", "protocol")
    num_candidates: int = _setting(99, "negatives of the sampled ranking", "protocol")
    protocol_seed: int = _setting(0, "fixes splits and candidates", "protocol")
    refit: bool = _setting(False, "then retrain on train + validation for the selected round", "protocol")
    evaluation_point: str = _setting(
        "server",
        "which item table ranks: the server's, or each client's own after its local training",
        "protocol",
        tuple(POINTS),
    )
    fold_in_epochs: int | None = _setting(
        None,
        f"for strong, passes over a held-out client's history before it is ranked; {FOLD_IN_EPOCHS}; clients that "
        "represent themselves, as in fedals, need none",
        "protocol",
    )
    algorithm: str = _setting("fedmf", "the algorithm", "model", ALGORITHMS)
    dim: int | None = _setting(None, "embedding width D", "model")
    loss: str | None = _setting(None, "local loss; mse fits ratings", "model", ("bce", "bpr", "mse"))
    num_negatives: int | None = _setting(None, "sampled negatives per positive", "model")
    negatives: str = _setting(
        "train",
        "items that are never negatives: the user's train ones; paper-leaky spares held-out ones too, an error "
        "that inflates results, to reproduce papers that made it",
        "model",
        NEGATIVES,
    )
    regularisation: float | None = _setting(None, "L2 on the rows of each local batch", "model")
    item_bias: bool | None = _setting(None, "whether items have a bias", "model")
    init_scale: float | None = _setting(None, "vectors start as normal(0, init_scale / sqrt(D))", "model")
    options: str | None = _setting(
        None, "settings of the algorithm without a flag of their own: NAME=VALUE,NAME=VALUE", "model"
    )
    batch_size: int | None = _setting(None, "examples in a local batch, positives and negatives", "client")
    local_epochs: int | None = _setting(None, "local epochs E", "client")
    local_optimizer: str | None = _setting(None, "the client's optimizer", "client", tuple(LOCALS))
    learning_rate: float | None = _setting(None, "the client's learning rate", "client")
    prox: float | None = _setting(None, "FedProx's mu; 0 is FedAvg", "client")
    cohort: int | None = _setting(None, "clients in a round; a tenth of all, between 200 and 1,000", "server")
    aggregator: str | None = _setting(None, "how updates are summed", "server", (*AGGREGATORS, FAIR))
    server: str | None = _setting(None, "server rule", "server", tuple(SERVERS))
    server_learning_rate: float | None = _setting(
        None, "its learning rate; by rule: fedavg 1.0, ...", "server"
    )
    fairness: float | None = _setting(
        None, f"q of --aggregator {FAIR}: 0 is the mean, more helps the worst served; 1", "imbalance"
    )
    sampler: str | None = _setting(
        None,
        "how cohorts are drawn: all alike, by examples up to a cap, or by the last loss",
        "imbalance",
        DRAWS,
    )
    size_cap: int | None = _setting(
        None, "examples beyond which a client is no likelier, for --sampler size-capped", "imbalance"
    )
    drop_out: float | None = _setting(None, "probability that a client fails, in each round anew", "devices")
    awake: float | None = _setting(None, "share of the day in which a client answers", "devices")
    rounds_per_day: int | None = _setting(None, "rounds in such a day; 24", "devices")
    deadline: float | None = _setting(
        None, "when clients are late: local batches of a median device, over all local epochs", "devices"
    )
    partial_work: bool | None = _setting(
        None, "the late send what they have by the deadline, instead of nothing", "devices"
    )
    device_spread: float | None = _setting(
        None, "how unlike devices are: standard deviation of the log of their slowness", "devices"
    )
    device_jitter: float | None = _setting(None, "the same, of one device from round to round", "devices")
    keep_first: int | None = _setting(
        None, "over-selection: only the first so many of a cohort count", "devices"
    )
    minimum_cohort: int | None = _setting(None, "skip a round in which fewer clients arrive", "devices")
    async_buffer: int | None = _setting(
        None, "asynchronous rounds (FedBuff): the server steps after so many arrivals", "asynchronous"
    )
    concurrency: int | None = _setting(
        None, f"clients under way; {FedBuff().concurrency} with --async-buffer", "asynchronous"
    )
    max_staleness: int | None = _setting(
        None,
        "throw away updates that began more steps of the server ago; as many models are kept; "
        f"{FedBuff().max_staleness} with --async-buffer",
        "asynchronous",
    )
    staleness_exponent: float | None = _setting(
        None,
        "scale an update that began t steps ago by (1 + t)^-this; 0.5 with --async-buffer",
        "asynchronous",
    )
    clip: float | None = _setting(None, "largest L2 norm of a client's whole update", "privacy")
    noise_multiplier: float | None = _setting(
        None, "standard deviation of the server's noise, of the clip; needs --clip", "privacy"
    )
    target_epsilon: float | None = _setting(
        None, "choose that noise so that the rounds spend this epsilon; needs --clip", "privacy"
    )
    delta: float | None = _setting(None, "of the privacy guarantee; N^-1.1 for N clients", "privacy")
    rounds: int | None = _setting(None, "rounds; by default by algorithm", "run")
    seed: int = _setting(0, "seed of the run", "run")
    eval_every: int | None = _setting(None, "rounds between validations; by default by algorithm", "run")
    target: float | None = _setting(None, "stop at this validation ndcg@10", "run")
    patience: int | None = _setting(None, "stop after so many rounds without a better one", "run")
    max_seconds: float | None = _setting(None, "stop after so much wall-clock time", "run")
    checkpoint_every: int | None = _setting(
        None, "save the run every so many rounds, a multiple of --eval-every, for `fedjax-rec resume`", "run"
    )
    lanes: int | None = _setting(None, "lanes of the engine; by default one for 8 clients, at most 64", "run")
    devices: int | None = _setting(
        None, "devices to split each cohort over; by default all accelerators, or a core each", "run"
    )
    stream_clients: int | None = _setting(
        None,
        "so many clients on the devices at once, what the others keep waits in host memory; 0 for all; by default "
        "where it would not fit, or copies would take 1 GiB on a CPU",
        "run",
    )
    row_update: str | None = _setting(
        None, "how item rows are added up; by default by back end", "run", tuple(STRATEGIES)
    )
    baselines: str | None = _setting(
        None, "central baselines for the price of federation: names with commas, or all", "run"
    )
    out: str | None = _setting(None, "folder to write; runs/DATASET-ALGORITHM-N by default", "run")

    @property
    def private(self) -> bool:
        """Whether the server adds noise."""
        return self.noise_multiplier is not None or self.target_epsilon is not None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.baselines is not None:
            parse_names(self.baselines)
        _check_together(self)


_LEAST = {
    "dim": 1, "num_negatives": 1, "batch_size": 1, "local_epochs": 1, "cohort": 1, "rounds": 1, "eval_every": 1,
    "lanes": 1, "devices": 1, "num_candidates": 1, "min_user_events": 0, "seed": 0, "protocol_seed": 0,
    "patience": 1, "checkpoint_every": 1, "fold_in_epochs": 0, "stream_clients": 0,
    "fairness": 0, "size_cap": 1,
    "regularisation": 0, "prox": 0, "init_scale": 0, "learning_rate": 0, "max_seconds": 0,
    "server_learning_rate": 0, "core": 0,
}  # fmt: skip
_MOST = {"seed": 2**32 - 1, "protocol_seed": 2**32 - 1, "rounds": 10**6, "eval_every": 10**6}


def _check(field: dataclasses.Field, value: Any) -> None:
    name = field.name
    choices = field.metadata["choices"]
    if choices and value is not None and value not in choices:
        hint = f"did you mean {nearest(str(value), choices)!r}?"
        raise ValueError(f"unknown {name} {value!r}; {hint} known: {', '.join(choices)}")
    if isinstance(value, float) and not math.isfinite(value):
        name = flag(name) if name in FAULTS | FEDBUFF else name
        raise ValueError(f"{name} must be a finite number, not {value}")
    if name in _MOST and value is not None and value > _MOST[name]:
        raise ValueError(f"{name} must be at most {_MOST[name]:,}, not {value:,}")
    if name in _LEAST and value is not None and not value >= _LEAST[name]:
        raise ValueError(f"{name} must be at least {_LEAST[name]}, not {value}")


def _check_together(settings: Settings) -> None:
    """Refuse settings that fit each alone but not together."""
    for name in ("validation_share", "test_share"):
        share = getattr(settings, name)
        if share is not None and settings.splitter == "leave-one-out":
            raise ValueError(
                f"{name}={share} has no meaning for leave-one-out; use --splitter global-time or ratio"
            )
    if settings.splitter == "strong":
        _check_strong(settings)
    elif settings.fold_in_epochs is not None:
        raise ValueError(
            f"fold_in_epochs={settings.fold_in_epochs} is for held-out clients; use --splitter strong"
        )
    _check_privacy(settings)
    if settings.fairness is not None and settings.aggregator != FAIR:
        raise ValueError(f"fairness={settings.fairness} is for {FAIR}; use --aggregator {FAIR}")
    if (settings.size_cap is not None) != (settings.sampler == "size-capped"):
        raise ValueError(
            f"size_cap={settings.size_cap} and sampler={settings.sampler!r} do not fit; --sampler size-capped and "
            "--size-cap go together"
        )
    devices_of(vars(settings), private=settings.private)
    if settings.negatives == "paper-leaky" and settings.loss == "mse":
        raise ValueError("negatives='paper-leaky' has no meaning for --loss mse, which draws no negatives")
    if settings.negatives == "paper-leaky" and settings.baselines is not None:
        raise ValueError(
            "negatives='paper-leaky' inflates the run, not the central baselines; leave one of them out"
        )


def _check_privacy(settings: Settings) -> None:
    """Refuse noise without a clip, two noises, and what noise would not cover."""
    for name in ("clip", "noise_multiplier", "target_epsilon", "delta"):
        value = getattr(settings, name)
        if value is not None and (not value > 0 or (name == "delta" and not value < 1)):
            raise ValueError(f"{name} must be above 0{', and below 1' * (name == 'delta')}, not {value}")
    if settings.noise_multiplier is not None and settings.target_epsilon is not None:
        raise ValueError("noise_multiplier follows from target_epsilon; leave out --noise-multiplier")
    if not settings.private:
        if settings.delta is not None:
            raise ValueError(f"delta={settings.delta} needs --target-epsilon or --noise-multiplier")
        return
    if settings.clip is None:
        raise ValueError("noise hides nothing of updates without a bound; add --clip, such as --clip 0.5")
    if settings.aggregator not in (None, "sum"):
        raise ValueError(
            f"aggregator={settings.aggregator!r} has no private form: its weights or counts would leak; use the "
            "sum, which is divided by the expected cohort"
        )
    if settings.sampler is not None:
        raise ValueError(
            f"sampler={settings.sampler!r} does not fit noise, which needs cohorts of its own; leave out --sampler"
        )
    if settings.refit:
        raise ValueError(
            "refit=True would train twice on the same users, and spend twice; leave out --refit, or choose the "
            "rounds beforehand"
        )


def _check_strong(settings: Settings) -> None:
    """Refuse what has no meaning for clients that never train the server."""
    for name, usual, why in (
        ("validation_share", None, "the training clients' last events validate"),
        ("evaluation_point", "server", "held-out clients are ranked after folding in"),
        ("negatives", "train", "the leak is of clients that train"),
        ("baselines", None, "the central methods here rank users that they were trained on"),
    ):
        if (value := getattr(settings, name)) != usual:
            raise ValueError(
                f"{name}={value!r} has no meaning for splitter='strong': {why}; "
                f"leave out --{name.replace('_', '-')}"
            )


def complete(settings: Settings) -> Settings:
    """Fill in what was not given with the algorithm's own defaults, and refuse what it does not know.

    Args:
        settings: None where nothing was given.

    Returns:
        the settings that a run has.

    Raises:
        ValueError: if a setting was given that the algorithm does not have.

    Example:
        >>> complete(Settings(dim=8)).num_negatives
        4
    """
    entry, known = ENTRIES[settings.algorithm], accepted(settings.algorithm)
    if "local_optimizer" in known:
        known["local_optimizer"] = "sgd"
    mine = [f.name for f in dataclasses.fields(Settings) if f.metadata["group"] in BY_ALGORITHM]
    own = {name: known[name] for name in mine if name in known}
    for name in (
        set(mine) - set(known) - {"algorithm", "negatives", "options", "server", "server_learning_rate"}
    ):
        if getattr(settings, name) is not None:
            raise ValueError(f"{settings.algorithm} has no {name}; leave out --{name.replace('_', '-')}")
    if (settings.server or settings.server_learning_rate) and "server_optimizer" not in known:
        raise ValueError(f"{settings.algorithm} has a server rule of its own; leave out --server")
    parse_options(settings)
    own |= {"rounds": entry.rounds, "eval_every": entry.eval_every}
    missing = {name: value for name, value in own.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, **missing)


def parse_options(settings: Settings) -> dict[str, Any]:
    """The algorithm's settings that have no flag of their own.

    Args:
        settings: of which `options` is read.

    Returns:
        value by name: numbers, booleans, None, or strings.

    Raises:
        ValueError: if one is malformed, or the algorithm does not have it.

    Example:
        >>> parse_options(Settings(options="item_bias=False,init_scale=0.2"))
        {'item_bias': False, 'init_scale': 0.2}
    """
    known, found = accepted(settings.algorithm), {}
    for part in (settings.options or "").split(",") if settings.options else []:
        name, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals or not text:
            raise ValueError(f"option {part!r} is no NAME=VALUE; write --options {name or 'NAME'}=VALUE")
        if name not in known:
            plain = [
                other
                for other, value in known.items()
                if value is None or isinstance(value, int | float | str)
            ]
            raise ValueError(
                f"{settings.algorithm} has no setting {name!r}; did you mean {nearest(name, plain)!r}?"
            )
        found[name] = _literal(text)
    return found


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
