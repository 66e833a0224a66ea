"""Which features do not go together, and which need others: why, and the way out.

Texts are templates of `ParameterError`: `{one}` and `{other}` are what the two features show, such as a number or
a name; every other name in braces is that of a parameter. Of several rows that apply, the first one is told.
"""

from typing import NamedTuple

from fedjax_rec.compatibility.features import AnyFeature, Feature, RunFeature
from fedjax_rec.compatibility.rows_of_runs import (
    ASYNCHRONOUS_RUNS,
    DATA,
    DISTRIBUTED_RUNS,
    OF_COHORTS,
    PRIVATE_RUNS,
    STORES,
    STRONG,
    TUNED_RUNS,
    Rows,
)


class Pair(NamedTuple):
    """Two features that do not go together."""

    one: AnyFeature
    other: AnyFeature
    why: str
    way_out: str


class Need(NamedTuple):
    """A feature that makes no sense without one of some others."""

    one: AnyFeature
    others: tuple[AnyFeature, ...]
    why: str
    way_out: str


_F = Feature
_R = RunFeature

_ASYNCHRONOUS = {
    _F.SAMPLER: (
        "a sampler, since who arrives takes part",
        "leave it out, and say with {FedBuff.concurrency} how many clients are under way",
    ),
    _F.COHORT: (
        "a cohort, since nobody waits for one",
        "leave it out for {FedBuff.buffer}, arrivals of a round",
    ),
    _F.FAULTS: (
        "faults, which are of a cohort and its deadline",
        "leave them out for {FedBuff.spread} and {FedBuff.jitter}, the slowness of devices",
    ),
    _F.EXCHANGE: ("an algorithm that answers a whole cohort at once", "choose another, such as pfedrec"),
    _F.OWN_UPLOAD: (
        "an algorithm whose clients send something else than changes of the model, which must not be scaled",
        "choose another, such as fedmf",
    ),
    _F.COLLUDING: ("malicious clients that plan for the cohort of a round", "leave the adversary out"),
    _F.SERVER_NOISE: (
        "a server that adds noise, for no accountant covers clients who take part as they arrive",
        "train without noise",
    ),
    _F.COARSE: (
        "sums of few bits, for what is stale is scaled after it was rounded without bias",
        "use a modulus of 32 bits, or sums of floats such as aggregator='mean'",
    ),
    _F.LOSSES: (
        "an aggregator that goes by losses, for here they are of different models",
        "use a sum or a mean, such as aggregator='mean'",
    ),
    _F.STACKED: (
        "an aggregator that compares updates, for here they change different models",
        "use a sum or a mean, such as aggregator='mean'",
    ),
}
_SIZES: Rows = {
    (_F.SAMPLER, _F.COHORT): (
        "a sampler has its own size, and would leave cohort={other} unused",
        "give the sampler that size, such as samplers.uniform({other}), or leave one of them out",
    ),
}
_IN_NOISE: Rows = {  # what tells of clients beside noisy updates
    (_F.LOSSES, _F.SERVER_NOISE, _F.CLIENT_NOISE): (
        "clients that tell their losses tell more than noise on their updates hides",
        "average the updates instead, or train without noise",
    ),
    (_F.SAMPLER_BY_DATA, _F.SERVER_NOISE, _F.CLIENT_NOISE): (
        "{one} draws clients by their data, which noise on their updates does not hide",
        "draw cohorts with samplers.poisson, uniform or everyone",
    ),
    (_F.STARTS_FROM_DATA, _F.SERVER_NOISE, _F.CLIENT_NOISE, _F.ADAPTIVE_CLIPPING): (
        "the model starts from {one}, which noise on updates does not hide",
        "start from a constant, such as intercept=3.5",
    ),
    (_F.CLIENT_NOISE, _F.SERVER_NOISE): (
        "noise of clients leaves their updates without a bound, and that of the server hides nothing of such",
        "let either the clients or the server add noise",
    ),
    (_F.SERVER_NOISE, _F.THRESHOLD): (
        (
            "a round that needs {other} clients tells by failing that one was away, which noise for one client's "
            "update does not hide"
        ),
        "leave the threshold at 1, or train without noise",
    ),
    (_F.SERVER_NOISE, _F.EXCHANGE): (
        "this algorithm's server sends clients what it makes of others' updates without noise",
        "it has no private form, choose another algorithm",
    ),
    (_F.SERVER_NOISE, _F.OVER_SELECTION, _F.MINIMUM_COHORT): (
        (
            "{Faults.keep} and {Faults.minimum} make what others send depend on one client, which noise for one "
            "client's update does not hide"
        ),
        "leave them out, or train without noise",
    ),
}
_COLLUDING: Rows = {
    (_F.COLLUDING, _F.OWN_UPLOAD): (
        "clients of this algorithm send something else than changes of rows, which no attack here crafts",
        "",
    ),
    (_F.COLLUDING, _F.LOSSES, _F.SAMPLER_BY_LOSSES): (
        "what losses clients of {one} would tell is not known",
        "leave the rule by losses out",
    ),
}
_STREAMED = {  # what cannot be taken apart
    _F.STACKED: "an aggregator that sees all updates at once",
    _F.LEARNT_WEIGHTS: "weights that the server learns",
    _F.THRESHOLD: "a least number of clients in a round",
    _F.EXCHANGE: "an exchange between clients",
    _F.COLLUDING: "colluding clients",
    _F.ASYNCHRONOUS: "asynchronous rounds",
    _F.SELF_REPRESENTATION: "clients that represent themselves to be scored",
}
_STORED = {  # what needs the histories of all clients at once
    _F.BY_HEAT: "an aggregator that counts in how many histories an item is",
    _F.STARTS_FROM_DATA: "a model that starts from them all",
}
_DISTRIBUTED: Rows = {
    (_F.DISTRIBUTED, _F.LEDGER): (
        "a ledger is asked and written by one process",
        "leave ledger= out, or train in one process",
    ),
    (_F.DISTRIBUTED, _F.LOCAL_POINT): (
        "clients that train before they are ranked do so in one process",
        "leave out the point, or train in one process",
    ),
}
_TOUCHED = {  # what looks at rows that nobody touched, or asks which items rows are of
    _F.SERVER_NOISE: "a server that adds noise to all of them",
    _F.BY_HEAT: "an aggregator that counts in how many histories an item is",
    _F.WHOLE_UPDATES: "a transform that does more to updates than scale them",
    _F.OWN_UPLOAD: "clients that send something else than changes of rows",
    _F.ADVERSARY: "malicious clients, who choose items",
    _F.READS_IDS: "an algorithm whose clients ask which items their rows are of",
    _F.MOVING_ROWS: "a server rule that moves rows that nobody touched",
    _F.ONE_PIECE: "stream_clients=0, for the rows are found between two programs",
}
_SPLIT = {  # what has whole tables besides
    _F.ALL_ROWS: "server_rows='all'",
    _F.DISTRIBUTED: "several processes, each of which has whole tables on its devices",
    _F.LOCAL_POINT: "clients that train before they are ranked, each on a table of its own",
}
_AGGREGATORS: Rows = {  # what an aggregator cannot be made into
    (_F.GAUSSIAN_SUM, _F.STACKED): (
        "medians, Krum and their like are no sums, which the accountant of Gaussian sums does not know",
        "use the plain sum",
    ),
    (_F.GAUSSIAN_SUM, _F.LOSSES): (
        "weights by losses are of the clients' data, and private",
        "use the plain sum",
    ),
    (_F.GAUSSIAN_SUM, _F.BY_ROW): (
        "how many clients touched a row is private, so rows cannot be divided by it",
        "use the plain sum",
    ),
    (_F.GAUSSIAN_SUM, _F.CLIENT_STATS): (
        "facts of clients are summed without noise, and are private",
        "use the plain sum",
    ),
    (_F.GAUSSIAN_SUM, _F.BY_EXAMPLES): (
        "weights let a client count for more than the noise hides, and those by examples are private",
        "use the plain sum",
    ),
    (_F.GAUSSIAN_SUM, _F.BY_COUNT): (
        (
            "how many clients took part is private, so the sum cannot be divided by it; and how far one client "
            "moves what another normaliser makes of it is not known"
        ),
        "use the plain sum, the denominator is the expected number",
    ),
    (_F.INTEGER_SUM, _F.STACKED): (
        "fixed-point sums are for aggregators that sum",
        "a stacked one has no order to hide",
    ),
    (_F.INTEGER_SUM, _F.LOSSES): (
        "weights by losses are floats, whose sum depends on the order of clients",
        "sum or average instead",
    ),
    (_F.SECURE_SUM, _F.BY_ROW, _F.CLIENT_STATS): (
        "a secure sum tells neither who touched a row nor facts of clients",
        "sum or average the updates instead",
    ),
    (_F.STACK_ATTACK, _F.SERVER_NOISE): (
        "what malicious clients make of others' updates is no part of the sum that the noise was made for",
        "attack an aggregator without noise, or give the algorithm an adversary=",
    ),
    (_F.STACK_ATTACK, _F.FIXED_POINT): (
        "an aggregator with `fixed` cannot be attacked: no stack has it",
        "attack a plain one",
    ),
    (_F.STACK_ATTACK, _F.CLIENT_STATS): (
        "an aggregator with `client_stats` cannot be attacked: no stack has it",
        "attack a plain one",
    ),
    (_F.STACK_ATTACK, _F.BY_HEAT): (
        "an aggregator with `heat` cannot be attacked: no stack has it",
        "attack a plain one",
    ),
    (_F.STACK_ATTACK, _F.LOSS_FACTORS): (
        "an aggregator with `losses.factor` cannot be attacked: no stack has it",
        "attack a plain one",
    ),
}
_ALGORITHMS: Rows = {  # of single algorithms, and ways to rank
    (_F.FEDALS, _F.STACKED, _F.BY_ROW): (
        "fedals solves equations that it sums; a normaliser of single rows, or a median, would mix them up",
        "use {aggregator} sum, mean or examples",
    ),
    (_F.FEDALS, _F.SERVER_NOISE, _F.CLIENT_NOISE): (
        (
            "fedals solves equations that it sums, which noise leaves without a solution: every round would be "
            "skipped"
        ),
        "choose another algorithm, such as fedmf",
    ),
    (_F.ADAPTIVE_CLIPPING, _F.OWN_UPLOAD): (
        (
            "adaptive clipping has a server rule of its own, for changes of the model, and clients of this "
            "algorithm send something else"
        ),
        "choose another algorithm, such as fedmf, or privacy.dp_fedavg, whose clip is fixed",
    ),
    (_F.FEDEASE, _F.STACKED, _F.BY_ROW, _F.LOSSES): (
        (
            "fedease inverts a sum; a normaliser of single rows, a median, or weights by losses would make "
            "another matrix of it"
        ),
        "use {aggregator} sum",
    ),
    (_F.FEDRECON, _F.BY_ROW): (
        "fedrecon also sends rows of the support half, unchanged, which a normaliser of single rows would count",
        "use {aggregator} sum, mean or examples",
    ),
    (_F.SCAFFOLD, _F.TRANSFORM): (
        "scaffold's server adds up the very changes that clients keep; a transform would part them for good",
        "leave it out",
    ),
    (_F.DENOISING, _F.AGGREGATOR): (
        "denoise=True takes the virtual gradients out of a mean",
        "leave out the aggregator",
    ),
    (_F.DENOISING, _F.TRANSFORM): (
        "denoise=True takes out what the virtual ratings put in; a transform would change both parts",
        "leave it out",
    ),
    (_F.LOCAL_POINT, _F.SELF_REPRESENTATION, _F.OWN_UPLOAD, _F.COLLUDING): (
        (
            "clients of this algorithm are not scored with the rows that they train: they represent themselves, "
            "or send something else"
        ),
        "leave out the point",
    ),
}
_ROWS: Rows = {  # in the order in which they are met: what is made first is checked first
    **_AGGREGATORS,
    **_ALGORITHMS,
    **{
        (_F.ASYNCHRONOUS, other): (f"asynchronous rounds cannot have {what}", way_out)
        for other, (what, way_out) in _ASYNCHRONOUS.items()
    },
    **_DISTRIBUTED,
    **_SIZES,
    **_IN_NOISE,
    **_COLLUDING,
    **{
        (_F.STREAMED, other): (
            f"stream_clients={{one}} takes cohorts apart, but {what} cannot be",
            "leave it out",
        )
        for other, what in _STREAMED.items()
    },
    **{
        (_F.STORED, other): (
            f"histories in a store are fetched for some clients at a time, which does not go with {what}",
            "leave it out, or load() the population into memory",
        )
        for other, what in (_STREAMED | _STORED).items()
    },
    (_F.STORED, _F.ONE_PIECE): (
        (
            "{stream_clients}=0 asks for rounds in one piece, but histories in a store are fetched for some "
            "clients at a time"
        ),
        "leave it out",
    ),
    (_F.CLIENT_STORE, _F.ONE_PIECE): (
        (
            "{client_store}={one!r} is for what waits for its round, and in rounds in one piece all that clients "
            "keep is on the devices"
        ),
        "give {stream_clients}, such as 1000, or leave it out",
    ),
    (_F.CLIENT_STORE, _F.DISTRIBUTED): (
        "{client_store}={one!r} is for one process, and here are several, each of which keeps all of it",
        "leave it out",
    ),
    **{
        (_F.TABLE_SHARDS, other): (
            f"{{table_shards}}={{one}} is of rounds on rows that a cohort touches, which does not go with {what}",
            "leave it out, or {table_shards}",
        )
        for other, what in (_STREAMED | _TOUCHED | _SPLIT).items()
    },
    **{
        (_F.TOUCHED, other): (
            f"server_rows='touched' works on the rows that a cohort touches, which does not go with {what}",
            "leave it out",
        )
        for other, what in (_STREAMED | _TOUCHED).items()
    },
    **{
        (_R.LEAVE_ONE_OUT, share): (
            f"{share.setting}={{other}} has no meaning for leave-one-out",
            "use {splitter} global-time or ratio",
        )
        for share in (_R.VALIDATION_SHARE, _R.TEST_SHARE, _R.POSITIVES)
    },
    **{
        (_R.GIVEN, other): (
            f"{other.setting}={{other!r}} would change a split that is given",
            f"leave out {{{other.setting}}}, or use another {{splitter}}",
        )
        for other in (_R.VALIDATION_SHARE, _R.TEST_SHARE, _R.MIN_USER_EVENTS, _R.MIN_RATING, _R.CORE)
    },
    (_R.GLOBAL_TIME, _R.ORDER): (
        "order={other!r} has no meaning for splitter='global-time', which goes by dates",
        "leave out {order}",
    ),
    **{
        (_R.STRONG, other): (
            f"{other.setting}={{other!r}} has no meaning for splitter='strong': {why}",
            f"leave out {{{other.setting}}}",
        )
        for other, why in STRONG.items()
    },
    **PRIVATE_RUNS,
    **TUNED_RUNS,
    **{
        (_R.ASYNC_BUFFER, other): (
            f"{{{other.setting}}} is of rounds that wait for a cohort",
            "leave it out, or leave out {async_buffer}",
        )
        for other in OF_COHORTS
    },
    **ASYNCHRONOUS_RUNS,
    **DISTRIBUTED_RUNS,
    **DATA,
    **STORES,
}
_IDLE = {  # settings that change nothing without one of others
    _R.ROUNDS_PER_DAY: (_R.AWAKE,),
    _R.PARTIAL_WORK: (_R.DEADLINE,),
    _R.DEVICE_SPREAD: (_R.DEADLINE, _R.KEEP_FIRST, _R.ASYNC_BUFFER),
    _R.DEVICE_JITTER: (_R.DEADLINE, _R.KEEP_FIRST, _R.ASYNC_BUFFER),
    _R.CONCURRENCY: (_R.ASYNC_BUFFER,),
    _R.MAX_STALENESS: (_R.ASYNC_BUFFER,),
    _R.STALENESS_EXPONENT: (_R.ASYNC_BUFFER,),
}
_NEEDED: Rows = {
    (_R.HELDOUT_SHARE, _R.STRONG): (
        "heldout_share={one} is of the events of held-out clients",
        "use {splitter} strong",
    ),
    (_R.PART, _R.GIVEN): ("part={one!r} is for a split that is given", "use {splitter} given"),
    (_R.FOLD_IN_EPOCHS, _R.STRONG): (
        "fold_in_epochs={one} is for held-out clients",
        "use {splitter} strong",
    ),
    (_R.DELTA, _R.NOISE): ("delta={one} needs {target_epsilon} or {noise_multiplier}", ""),
    (_R.ALLOW_LARGE_DELTA, _R.DELTA): ("{allow_large_delta} changes nothing without {delta}", ""),
    (_R.CAPACITY, _R.NOISE): (
        "{capacity}={one} is of private rounds",
        "add {target_epsilon} or {noise_multiplier}",
    ),
    (_R.SECRET_NOISE, _R.NOISE): (
        "{secret_noise} changes nothing without noise",
        "add {target_epsilon} or {noise_multiplier}",
    ),
    (_R.NOISE, _R.CLIP): (
        "noise hides nothing of updates without a bound",
        "add {clip}, such as {clip} 0.5",
    ),
    (_R.TUNE_BASELINES, _R.TUNE): (
        "{tune_baselines} tries as many settings as {tune} says",
        "add {tune}, such as {tune} 20",
    ),
    (_R.TUNE_BASELINES, _R.BASELINES): (
        "{tune_baselines} changes nothing without {baselines}",
        "add {baselines}, such as {baselines} ease,ials",
    ),
    (_R.FAIRNESS, _R.Q_FEDAVG): ("fairness={one} is for q-fedavg", "use {aggregator} q-fedavg"),
    (_R.SIZE_CAP, _R.SIZE_CAPPED): ("{one} do not fit", "{sampler} size-capped and {size_cap} go together"),
    (_R.SIZE_CAPPED, _R.SIZE_CAP): ("{one} do not fit", "{sampler} size-capped and {size_cap} go together"),
    **{
        (setting, *others): (
            f"{{{setting.setting}}}={{one}} changes nothing without "
            + " or ".join(f"{{{other.setting}}}" for other in others),
            "",
        )
        for setting, others in _IDLE.items()
    },
}

PAIRS = tuple(
    Pair(one, other, why, way_out) for (one, *others), (why, way_out) in _ROWS.items() for other in others
)
NEEDS = tuple(Need(one, tuple(others), why, way_out) for (one, *others), (why, way_out) in _NEEDED.items())
