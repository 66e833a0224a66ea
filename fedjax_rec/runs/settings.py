"""Settings of one run: every knob of the command line, with its default and its meaning, as one frozen value."""

import dataclasses
from typing import Any

from fedjax_rec.algorithms.registry import REQUIRED, accepted, entry_of, sized_defaults
from fedjax_rec.compatibility import Feature, Features, RunFeature, check_together
from fedjax_rec.data.defaults import Size
from fedjax_rec.data.duplicates import KEEP
from fedjax_rec.data.heldout import POSITIVES
from fedjax_rec.data.order import ORDERS
from fedjax_rec.data.splits import NEGATIVES
from fedjax_rec.data.splitters import SPLITTERS
from fedjax_rec.errors import ParameterError
from fedjax_rec.evaluation.central.registry import parse_method_names
from fedjax_rec.evaluation.convergence import CEILING, PATIENCE_SHARE
from fedjax_rec.federation.asynchronous import FedBuff
from fedjax_rec.federation.touched import SERVER_ROWS
from fedjax_rec.privacy.accounting import MAX_EPSILON
from fedjax_rec.rows.scatter import STRATEGIES
from fedjax_rec.runs.availability import devices_of
from fedjax_rec.runs.options import check_taken, parse_options
from fedjax_rec.runs.ranges import check_value
from fedjax_rec.server.aggregators import NAMES as AGGREGATORS
from fedjax_rec.server.optimizers import LOCALS, SERVERS

POINTS = {"server": "server", "local": "local-training"}  # flag -> `Protocol.point`
FOLD_IN_EPOCHS = 10
FAIR = "q-fedavg"  # the aggregator that needs the clients' learning rate, and has no place in `AGGREGATORS`
DRAWS = ("uniform", "size-capped", "loss-proportional")
_PART = "quarter"  # `PATIENCE_SHARE` in words
MAX_SECONDS = 480
BY_ALGORITHM = ("model", "client", "server")  # groups whose settings are the algorithm's own unless given


def _setting(default: Any, text: str, group: str, choices: tuple[str, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "group": group, "choices": choices})


_RATES = ", ".join(f"{rule.learning_rate} for {name}" for name, rule in SERVERS.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is made of.

    Raises:
        ValueError: on an unknown choice (with the nearest known one), a number out of range, or settings that do
            not go together (`compatibility.table`).

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
    rating: str | None = _setting(None, "name of the ratings' column, or none", "data")
    timestamp: str | None = _setting(None, "name of the timestamps' column, or none", "data")
    columns: str | None = _setting(
        None,
        "columns of a text without a header: user,item,-,timestamp; user,items for lines of a user and its items",
        "data",
    )
    separator: str | None = _setting(
        None, "between fields of text: tab, comma, semicolon, bar, blank or ::; by default found", "data"
    )
    part: str | None = _setting(
        None, "column of a file that says train, valid or test, for --splitter given", "data"
    )
    duplicates: str = _setting(
        "error", "repeated (user, item) pairs; count and sum rate the last by all of them", "data", KEEP
    )
    splitter: str = _setting(
        "leave-one-out",
        "how events are held out; given divides as the data say; strong holds out clients, which bring a history "
        "and never train the server",
        "protocol",
        SPLITTERS,
    )
    validation_share: float | None = _setting(
        None, "share that validates, for global-time and ratio; by default 0.1", "protocol"
    )
    test_share: float | None = _setting(
        None, "share that tests, for strong of the clients; by default 0.1", "protocol"
    )
    heldout_share: float | None = _setting(
        None, "for strong, share of a held-out client's events to find; by default its last event", "protocol"
    )
    positives: str | None = _setting(
        None,
        "which of a user's held-out events count, for global-time, ratio and given: all, or the first; all",
        "protocol",
        POSITIVES,
    )
    order: str | None = _setting(
        None,
        "of a user's events: by time, by lines of the file, or random; by default time where the data have times, "
        "else random",
        "protocol",
        ORDERS,
    )
    core: int = _setting(0, "drop users and items until all have so many events; 0 drops none", "protocol")
    min_user_events: int = _setting(0, "drop users with fewer events; 0 drops none", "protocol")
    min_rating: float | None = _setting(None, "drop events rated lower", "protocol")
    num_candidates: int = _setting(99, "negatives of the sampled ranking", "protocol")
    evaluate_clients: int | None = _setting(
        None,
        "clients of a store that are ranked, drawn by the protocol's seed; by default 10,000",
        "protocol",
    )
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
    algorithm: str = _setting(
        "fedmf", "name (see `fedjax-rec algorithms`), or one of yours as package.module:factory", "model"
    )
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
    learning_rate: float | None = _setting(None, "the client's learning rate; fedmf's by data size", "client")
    prox: float | None = _setting(None, "FedProx's mu; 0 is FedAvg", "client")
    cohort: int | None = _setting(None, "clients in a round; a tenth of all, between 200 and 1,000", "server")
    aggregator: str | None = _setting(None, "how updates are summed", "server", (*AGGREGATORS, FAIR))
    server_optimizer: str | None = _setting(None, "server rule", "server", tuple(SERVERS))
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
    allow_large_delta: bool = _setting(
        False, "take a delta of 1/N or more, which allows to publish one client's data whole", "privacy"
    )
    capacity: int | None = _setting(
        None,
        "most clients of a private round, of which surplus ones are dropped; so many that this costs a "
        "hundredth of delta",
        "privacy",
    )
    secret_noise: bool = _setting(
        False,
        "draw noise and cohorts from the system's entropy, which only checkpoints hold; else whoever has the "
        "seed can take the noise off",
        "privacy",
    )
    rounds: int | None = _setting(
        None,
        f"rounds at most; by default until validation has not risen for a {_PART} of the rounds so far, after "
        f"a least number by algorithm, and for {CEILING} times that or --max-seconds at most; with noise that",
        "run",
    )
    min_rounds: int | None = _setting(None, "rounds before which no patience ends; by algorithm", "run")
    patience_share: float | None = _setting(
        None,
        f"stop once mean validation has not risen for so large a share of the rounds; {PATIENCE_SHARE}",
        "run",
    )
    seed: int = _setting(0, "seed of the run", "run")
    eval_every: int | None = _setting(None, "rounds between validations; by algorithm and size", "run")
    target: float | None = _setting(None, "stop at this validation ndcg@10", "run")
    patience: int | None = _setting(None, "stop after so many rounds without a better one", "run")
    max_seconds: float | None = _setting(
        None,
        f"stop after so much wall-clock time; without --rounds {MAX_SECONDS}, half of it before a --refit",
        "run",
    )
    checkpoint_every: int | None = _setting(
        None, "save every so many rounds, a multiple of --eval-every, for `fedjax-rec resume`", "run"
    )
    checkpoint_minutes: float = _setting(
        5.0, "without --checkpoint-every, save a longer run every so many minutes; 0 for never", "run"
    )
    pause_exit_code: int = _setting(
        0, "exit status of a run that a signal stopped once it was saved, for batch systems", "run"
    )
    lanes: int | None = _setting(None, "lanes of the engine; by default one for 8 clients, at most 64", "run")
    devices: int | None = _setting(
        None, "devices to split each cohort over; by default accelerators, or a core each, that help", "run"
    )
    stream_clients: int | None = _setting(
        None,
        "so many clients on the devices at once, what the others keep waits in host memory; 0 for all; by default "
        "where it would not fit, or copies would take 1 GiB on a CPU",
        "run",
    )
    client_store: str | None = _setting(None, "folder for files of what clients keep between rounds", "run")
    row_update: str | None = _setting(
        None, "how item rows are added up; by default by back end", "run", tuple(STRATEGIES)
    )
    server_rows: str | None = _setting(None, "item rows that a server steps; by size", "run", SERVER_ROWS)
    table_shards: int | None = _setting(None, "devices that share the rows of item tables", "run")
    baselines: str | None = _setting(
        None, "central baselines for the price of federation: names with commas, or all", "run"
    )
    tune: int | None = _setting(
        None,
        "first try so many settings of the algorithm on validation, the better ones for more rounds, and run with "
        "the best",
        "run",
    )
    tune_baselines: bool = _setting(False, "try as many settings of each central baseline", "run")
    cache: bool = _setting(
        True, "keep compiled programs for the next run, in the folder $FEDJAX_REC_PROGRAMS", "run"
    )
    out: str | None = _setting(None, "folder to write; runs/DATASET-ALGORITHM-N by default", "run")

    @property
    def private(self) -> bool:
        """Whether the server adds noise."""
        return self.noise_multiplier is not None or self.target_epsilon is not None

    def own_options(self) -> dict[str, Any]:
        """The algorithm's settings that have no flag of their own, by name."""
        return parse_options(self.options, self.algorithm, self.__dataclass_fields__)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(field, getattr(self, field.name))
        entry_of(self.algorithm)
        if self.baselines is not None:
            parse_method_names(self.baselines)
        _check_privacy(self)
        check_together(_features_of(self))
        devices_of(vars(self))


def _features_of(settings: Settings) -> Features:
    """What a run is made of; most features are settings of the same name."""
    values = vars(settings)
    features: dict[Feature | RunFeature, Any] = {
        feature: values.get(feature.setting) for feature in RunFeature
    }
    sizes = f"size_cap={settings.size_cap} and sampler={settings.sampler!r}"
    sums_plainly = {"sampler", "transform", "aggregator"} <= set(accepted(settings.algorithm))
    return features | {
        RunFeature.OWN_AGGREGATION: None if sums_plainly else settings.algorithm,
        RunFeature.LEAVE_ONE_OUT: settings.splitter == "leave-one-out",
        RunFeature.GLOBAL_TIME: settings.splitter == "global-time",
        RunFeature.GIVEN: settings.splitter == "given",
        RunFeature.STRONG: settings.splitter == "strong",
        RunFeature.MIN_USER_EVENTS: settings.min_user_events or None,
        RunFeature.CORE: settings.core or None,
        RunFeature.ALLOW_LARGE_DELTA: settings.allow_large_delta or None,
        RunFeature.SECRET_NOISE: settings.secret_noise or None,
        RunFeature.EVALUATION_POINT: _other_than("server", settings.evaluation_point),
        RunFeature.NEGATIVES: _other_than("train", settings.negatives),
        RunFeature.RATINGS_LOSS: settings.loss == "mse",
        RunFeature.SIZE_CAPPED: sizes if settings.sampler == "size-capped" else None,
        RunFeature.SIZE_CAP: None if settings.size_cap is None else sizes,
        RunFeature.AGGREGATOR: _other_than("sum", settings.aggregator),
        RunFeature.Q_FEDAVG: settings.aggregator == FAIR,
        RunFeature.NOISE: settings.private,
        Feature.SERVER_NOISE: settings.private,
        Feature.OVER_SELECTION: settings.keep_first,
        Feature.MINIMUM_COHORT: (settings.minimum_cohort or 1) > 1,
    }


def _is_choice(field: dataclasses.Field, default: Any) -> bool:
    """Whether a factory's default is a value of the setting; one of an own algorithm may be of another kind."""
    try:
        check_value(field, default)
    except ValueError:
        return False
    return default is not REQUIRED


def _other_than(usual: str, value: str | None) -> str | None:
    return None if value == usual else value


def _check_privacy(settings: Settings) -> None:
    for name in ("clip", "noise_multiplier", "target_epsilon", "delta"):
        value = getattr(settings, name)
        if value is not None and (not value > 0 or (name == "delta" and not value < 1)):
            raise ValueError(f"{name} must be above 0{', and below 1' * (name == 'delta')}, not {value}")
    if settings.target_epsilon is not None and settings.target_epsilon > MAX_EPSILON:
        raise ValueError(
            f"target_epsilon must be at most {MAX_EPSILON:g}, beyond which nothing is hidden, not "
            f"{settings.target_epsilon:g}"
        )


def sized_names(settings: Settings) -> set[str]:
    """The settings that will follow from the size of the data, of which the factory has numbers of its own.

    Those of `fedmf` are for summed changes of SGD on positives and negatives (a penalty goes with any rule);
    elsewhere, and where noise hides how many events there are, the factory's hold.

    Args:
        settings: None where nothing was given.

    Returns:
        their names.

    Example:
        >>> sorted(sized_names(Settings())), sized_names(Settings(loss="mse"))
        (['dim', 'learning_rate', 'num_negatives'], set())
    """
    usual = {"loss": "bce", "local_optimizer": "sgd", "aggregator": "sum", "server_optimizer": "fedavg"}
    known, sized = accepted(settings.algorithm), sized_defaults(settings.algorithm, Size(1, 1, 1))
    names = set() if settings.private else {name for name in sized if known[name] is not None}
    is_usual = all(getattr(settings, name) in (None, value) for name, value in usual.items())
    return names if is_usual else names & {"regularisation"}


def without_size(settings: Settings) -> Settings:
    """Fill in what would follow from the size of data, where there is none, with the factory's own numbers.

    Args:
        settings: completed.

    Returns:
        the settings that the factory alone has.

    Example:
        >>> without_size(Settings(dim=8)).num_negatives
        4
    """
    own = {name: accepted(settings.algorithm)[name] for name in sized_names(settings)}
    own["eval_every"] = entry_of(settings.algorithm).eval_every
    missing = {name: value for name, value in own.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, **missing)


def complete(settings: Settings) -> Settings:
    """Fill in what was not given with the algorithm's own defaults, and refuse what it does not know.

    Args:
        settings: None where nothing was given.

    Returns:
        the settings that a run has, but for those that follow from the size of its data.

    Raises:
        ValueError: if a setting was given that the algorithm does not have.

    Example:
        >>> complete(Settings(dim=8)).batch_size
        64
    """
    entry, known = entry_of(settings.algorithm), accepted(settings.algorithm)
    if "learning_rate" in known and known.get("local_optimizer", REQUIRED) is None:
        known["local_optimizer"] = "sgd"
    fields = [field for field in dataclasses.fields(Settings) if field.metadata["group"] in BY_ALGORITHM]
    own = {f.name: known[f.name] for f in fields if f.name in known and _is_choice(f, known[f.name])}
    for name in sized_names(settings):
        own.pop(name, None)
    others = {field.name for field in fields} - set(known)
    for name in others - {"algorithm", "negatives", "options", "server_optimizer", "server_learning_rate"}:
        if getattr(settings, name) is not None:
            raise ParameterError(f"{settings.algorithm} has no {name}; leave out {{{name}}}")
    if (settings.server_optimizer or settings.server_learning_rate) and "server_optimizer" not in known:
        raise ParameterError(
            f"{settings.algorithm} has a server rule of its own; leave out {{server_optimizer}}"
        )
    check_taken(vars(settings), settings.own_options(), known)
    own |= {"rounds": entry.rounds}
    if settings.rounds is None and not settings.private:
        seconds = MAX_SECONDS / 2 if settings.refit else MAX_SECONDS  # a refit takes as long again
        own |= {"rounds": CEILING * entry.rounds, "min_rounds": entry.rounds, "max_seconds": seconds}
        own |= {"patience_share": PATIENCE_SHARE} if settings.patience is None else {}
    missing = {name: value for name, value in own.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, **missing)
