"""The features of an algorithm and of a run, each by its name and by how one asks for it."""

from collections.abc import Mapping
from enum import Enum
from typing import Any


class _Named(Enum):
    """A feature by its name, with one line that says how one asks for it."""

    def __init__(self, title: str, meaning: str = "") -> None:
        self.title = title
        self.meaning = meaning


class Feature(_Named):
    """What an algorithm may be made of."""

    ASYNCHRONOUS = "asynchronous rounds", "`asynchronous=FedBuff(...)`"
    SAMPLER = "a sampler", "`sampler=`"
    SAMPLER_BY_DATA = "a sampler by data", "one that looks at the clients, as `samplers.size_capped` does"
    SAMPLER_BY_LOSSES = "a sampler by losses", "`samplers.loss_proportional`, `power_of_choice`"
    COHORT = "a cohort", "`cohort=`"
    FAULTS = "faults", "`faults=Faults(...)`"
    OVER_SELECTION = "over-selection", "`Faults(keep=...)`"
    MINIMUM_COHORT = "a minimum cohort", "`Faults(minimum=...)`"
    EXCHANGE = "an exchange", "the server answers each client of a cohort, as in `gpfedrec`"
    OWN_UPLOAD = "its own upload", "clients send something else than changes of the model, as in `fedals`"
    SELF_REPRESENTATION = "self-representation", "clients compute their private leaves before they are scored"
    TRANSFORM = "a transform", "`transform=`"
    STARTS_FROM_DATA = (
        "a start from data",
        "the model starts from the clients' data, as `loss='mse'` from a mean",
    )
    CLIENT_NOISE = "client noise", "`transforms.add_noise`"
    SERVER_NOISE = "server noise", "`aggregators.gaussian`"
    ADAPTIVE_CLIPPING = "adaptive clipping", "`privacy.adaptive_dp`"
    COLLUDING = "colluding clients", "`adversary=colluding(...)`"
    ADVERSARY = "an adversary", "`adversary=`"
    WHOLE_UPDATES = (
        "a transform of whole updates",
        "one that does more than scale, as `transforms.quantise` does",
    )
    READS_IDS = "work that reads ids", "it asks which items its rows are of: `ClientWork.reads_ids`"
    MOVING_ROWS = (
        "a server rule that moves all rows",
        "momentum, Adam: what nobody touched moves on, or is forgotten",
    )
    TOUCHED = "touched rows", "`server_rows='touched'`"
    ALL_ROWS = "all rows", "`server_rows='all'`"
    TABLE_SHARDS = "split item tables", "`table_shards=`"
    ONE_PIECE = "rounds in one piece", "`stream_clients=0`"
    STREAMED = "streamed clients", "`stream_clients=`"
    CLIENT_STORE = "what clients keep in files", "`simulate(..., client_store=...)`"
    STORED = "histories in a store", "`open_population(...)`"
    DISTRIBUTED = "several processes", "`mesh=` with devices of several, after `fr.initialize_distributed()`"
    LEDGER = "a privacy ledger", "`simulate(..., ledger=...)`"
    AGGREGATOR = "an aggregator", "`aggregator=`"
    STACKED = "a stacked aggregator", "it compares updates: medians, Krum"
    BY_ROW = "an aggregator by rows", "`touchers`, `heat`, `change`"
    BY_HEAT = "an aggregator by heat", "`heat`"
    BY_EXAMPLES = "weights of clients", "`examples`, or a weight of one's own"
    BY_COUNT = "another normaliser", "`mean`, `rows`, or one of one's own"
    FIXED_POINT = "fixed-point sums", "`aggregators.fixed_point`"
    COARSE = "coarse fixed-point sums", "of less than 32 bits"
    THRESHOLD = "a threshold of clients", "`secure_sum(threshold=...)`"
    CLIENT_STATS = "sums of facts of clients", "as in `fednova`"
    LOSSES = "weights by losses", "`fairness.q_fedavg`, `agnostic`"
    LOSS_FACTORS = "factors by losses", "`fairness.q_fedavg`"
    LEARNT_WEIGHTS = "learnt weights", "`fairness.agnostic`"
    GAUSSIAN_SUM = "a Gaussian sum", "`aggregators.gaussian(base)`"
    INTEGER_SUM = "an integer sum", "`aggregators.fixed_point(base)`"
    SECURE_SUM = "a secure sum", "`privacy.secure_sum(base)`"
    STACK_ATTACK = "an attack on stacks", "`attacks.attacked(base)`"
    LOCAL_POINT = "ranking after local training", "`after_local_training`"
    FEDALS = "`fedals`", "it solves equations that it sums"
    FEDEASE = "`fedease`", "it inverts a sum"
    FEDRECON = "`fedrecon`", "it sends rows that it did not train"
    SCAFFOLD = "`scaffold`", "clients keep what the server adds up"
    DENOISING = "`fedrec(denoise=True)`", "it takes out what virtual ratings put in"


class RunFeature(_Named):
    """What a run may be made of besides: settings, under their names, and properties of its data."""

    ALGORITHM_OF_RATINGS = "an algorithm that fits ratings"
    ALGORITHM_OF_ORDER = "an algorithm of the order of events"
    OWN_AGGREGATION = "an aggregation of its own", "algorithms that take no aggregator"
    NO_RATINGS = "data without ratings"
    NO_TIMESTAMPS = "data without timestamps"
    STORE = "a store as data set", "a folder of `data convert` or `data synthesise`"
    NO_STORE = "a data set that is no store"
    RANKED_SAMPLE = "a ranked sample", "`evaluate_clients`"
    OTHER_EVENTS = "filters, an order, another splitter, or how a file is read"
    CENTRAL_ONLY = "`fedjax-rec baselines`", "central methods alone"
    LEAVE_ONE_OUT = "`splitter='leave-one-out'`", "the usual one"
    GLOBAL_TIME = "`splitter='global-time'`", "everybody is cut at the same dates"
    GIVEN = "`splitter='given'`", "the data say what trains and what tests"
    STRONG = "`splitter='strong'`", "held-out clients"
    MIN_USER_EVENTS = "`min_user_events`"
    MIN_RATING = "`min_rating`"
    CORE = "`core`"
    PART = "`part`", "a column that says train, valid or test"
    ORDER = "`order`", "of a user's events"
    VALIDATION_SHARE = "`validation_share`"
    HELDOUT_SHARE = "`heldout_share`"
    POSITIVES = "`positives`", "of several held-out events all, or the first"
    TEST_SHARE = "`test_share`"
    EVALUATION_POINT = "`evaluation_point='local'`"
    FOLD_IN_EPOCHS = "`fold_in_epochs`"
    NEGATIVES = "`negatives='paper-leaky'`"
    BASELINES = "`baselines`", "central baselines beside the run"
    DISTRIBUTED = "a run on several processes", "`fedjax-rec run` as one of them"
    SEVERAL_RUNS = "several runs of one command", "of several seeds or algorithms"
    TUNE = "`tune`", "settings are tried on validation"
    SWEEP = "`fedjax-rec sweep`", "settings are tried on validation"
    TUNE_BASELINES = "`tune_baselines`"
    RATINGS_LOSS = "`loss='mse'`", "it fits ratings"
    REFIT = "`refit`"
    SAMPLER = "`sampler`"
    SIZE_CAPPED = "`sampler='size-capped'`"
    SIZE_CAP = "`size_cap`"
    COHORT = "`cohort`"
    AGGREGATOR = "an `aggregator` but the sum"
    Q_FEDAVG = "`aggregator='q-fedavg'`"
    FAIRNESS = "`fairness`"
    NOISE = "noise", "`noise_multiplier` or `target_epsilon`"
    CLIP = "`clip`"
    NOISE_MULTIPLIER = "`noise_multiplier`"
    TARGET_EPSILON = "`target_epsilon`"
    DELTA = "`delta`"
    ALLOW_LARGE_DELTA = "`allow_large_delta`"
    CAPACITY = "`capacity`"
    SECRET_NOISE = "`secret_noise`"  # noqa: S105 - the name of a setting
    DROP_OUT = "`drop_out`"
    AWAKE = "`awake`"
    ROUNDS_PER_DAY = "`rounds_per_day`"
    DEADLINE = "`deadline`"
    PARTIAL_WORK = "`partial_work`"
    KEEP_FIRST = "`keep_first`"
    MINIMUM_COHORT = "`minimum_cohort`"
    DEVICE_SPREAD = "`device_spread`"
    DEVICE_JITTER = "`device_jitter`"
    ASYNC_BUFFER = "`async_buffer`", "asynchronous rounds"
    CONCURRENCY = "`concurrency`"
    MAX_STALENESS = "`max_staleness`"
    STALENESS_EXPONENT = "`staleness_exponent`"

    @property
    def setting(self) -> str:
        """The setting of that name, for those features that are one."""
        return self.name.lower()


AnyFeature = Feature | RunFeature
Features = Mapping[
    AnyFeature, Any
]  # feature -> what texts show of it; None, False or no entry where it is not there
