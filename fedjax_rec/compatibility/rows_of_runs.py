"""The rows of the table that are of runs: what settings choose around an algorithm."""

from fedjax_rec.compatibility.features import AnyFeature, RunFeature

Rows = dict[tuple[AnyFeature, ...], tuple[str, str]]  # a feature and those it does not go with: why, way out
_R = RunFeature

STRONG = {
    _R.VALIDATION_SHARE: "the training clients' last events validate",
    _R.POSITIVES: "its last event tests a client, or all of a {heldout_share}",
    _R.EVALUATION_POINT: "held-out clients are ranked after folding in",
    _R.NEGATIVES: "the leak is of clients that train",
    _R.BASELINES: "the central methods here rank users that they were trained on",
}
PRIVATE_RUNS: Rows = {
    (_R.NOISE_MULTIPLIER, _R.TARGET_EPSILON): (
        "noise_multiplier follows from target_epsilon",
        "leave out {noise_multiplier}",
    ),
    (_R.NOISE, _R.AGGREGATOR): (
        "aggregator={other!r} has no private form: its weights or counts would leak",
        "use the sum, which is divided by the expected cohort",
    ),
    (_R.NOISE, _R.SAMPLER): (
        "sampler={other!r} does not fit noise, which needs cohorts of its own",
        "leave out {sampler}",
    ),
    (_R.NOISE, _R.REFIT): (
        "refit=True would train twice on the same users, and spend twice",
        "leave out {refit}, or choose the rounds beforehand",
    ),
    (_R.NOISE, _R.OWN_AGGREGATION): (
        "{other} has an aggregation of its own, which has no private form",
        "choose another algorithm",
    ),
}
TUNED_RUNS: Rows = {
    (_R.TUNE, _R.NOISE): (
        "tune={one} would train on the same users again and again, and spend each time",
        "leave out {tune}, and choose the settings beforehand",
    ),
    (_R.TUNE, _R.EVALUATION_POINT): (
        "tune={one} ranks with the server's item table, and the run with the clients' own",
        "leave out {tune} or {evaluation_point}",
    ),
    (_R.SWEEP, _R.NOISE): (
        "a sweep would train on the same users again and again, and spend each time",
        "leave out noise, or choose the settings beforehand",
    ),
    (_R.SWEEP, _R.EVALUATION_POINT): (
        "a sweep ranks with the server's item table, and evaluation_point={other!r} with the clients' own",
        "leave out {evaluation_point}",
    ),
    (_R.SWEEP, _R.TUNE): (
        "a sweep tries the settings that it is given, and tune={other} others",
        "leave out {tune}",
    ),
}
OF_COHORTS = (_R.DROP_OUT, _R.AWAKE, _R.DEADLINE, _R.KEEP_FIRST, _R.MINIMUM_COHORT)
ASYNCHRONOUS_RUNS: Rows = {
    (_R.ASYNC_BUFFER, _R.COHORT): (
        "{cohort} has no meaning for asynchronous rounds, which wait for {async_buffer} arrivals",
        "leave it out for {concurrency}, clients under way",
    ),
    (_R.ASYNC_BUFFER, _R.SAMPLER): (
        "{sampler}={other} has no meaning for asynchronous rounds, where whoever arrives takes part",
        "leave it out",
    ),
    (_R.ASYNC_BUFFER, _R.NOISE): (
        "{async_buffer} lets clients take part as they arrive, for which no accountant covers the noise",
        "leave it out, or train without noise",
    ),
}
_ALONE = {  # what one process does, and the way out
    _R.SEVERAL_RUNS: ("several runs of one command are trained", "give one algorithm and one seed"),
    _R.TUNE: ("settings are tried (tune={other})", "leave out {tune}, and choose the settings beforehand"),
    _R.SECRET_NOISE: ("a secret is known", "leave out {secret_noise}"),
    _R.EVALUATION_POINT: (
        "clients that train before they are ranked (evaluation_point={other!r}) do so",
        "leave out {evaluation_point}",
    ),
    _R.STRONG: ("held-out clients are folded in", "use another {splitter}"),
}
DISTRIBUTED_RUNS: Rows = {
    (_R.DISTRIBUTED, other): (f"{what} by one process, and here are {{one}}", way_out)
    for other, (what, way_out) in _ALONE.items()
}
DATA: Rows = {  # leaks to reproduce, central methods, and what data lacks
    (_R.NEGATIVES, _R.RATINGS_LOSS): (
        "negatives='paper-leaky' has no meaning for {loss} mse, which draws no negatives",
        "",
    ),
    (_R.NEGATIVES, _R.BASELINES): (
        "negatives='paper-leaky' inflates the run, not the central baselines",
        "leave one of them out",
    ),
    (_R.CENTRAL_ONLY, _R.NEGATIVES): (
        "negatives={other!r} is of federated training",
        "central baselines do not leak",
    ),
    (_R.CENTRAL_ONLY, _R.STRONG): (
        "splitter='strong': the central methods rank users that they were trained on",
        "use another splitter",
    ),
    (_R.ALGORITHM_OF_RATINGS, _R.NO_RATINGS): (
        "{one} fits ratings, but {other} has none",
        "choose another data set",
    ),
    (_R.ALGORITHM_OF_ORDER, _R.NO_TIMESTAMPS): (
        "{one} learns from the order of events, but those of {other} have no times or are taken in random order",
        "name the column of times with {timestamp}, or use {order} file if the lines of the file are in order",
    ),
    (_R.RATINGS_LOSS, _R.NO_RATINGS): (
        "loss='mse' fits ratings, but {other} has none",
        "use {loss} bce or bpr",
    ),
}

STORES: Rows = {
    (_R.RANKED_SAMPLE, _R.NO_STORE): (
        "{evaluate_clients}={one} ranks a sample of a store's clients, and {other} is none",
        "leave it out, everybody is ranked",
    ),
    (_R.STORE, _R.OTHER_EVENTS): (
        "a store's events are what they are, the last two of each client held out; {other} would change that",
        "leave it out, or give it to the command that makes the store",
    ),
    (_R.STORE, _R.TUNE): (
        "tune={other} tries settings on all clients in memory, and a store may not fit there",
        "leave out {tune}",
    ),
    (_R.SWEEP, _R.STORE): (
        "a sweep tries settings on all clients in memory, and a store may not fit there",
        "use the file that it was made from",
    ),
    (_R.STORE, _R.NEGATIVES): (
        "negatives={other!r} needs the held-out events of all clients, which a store's fetch does not bring",
        "leave out {negatives}",
    ),
    (_R.STORE, _R.EVALUATION_POINT): (
        "evaluation_point={other!r} trains the clients that are ranked, for which a store fetches nobody",
        "leave out {evaluation_point}",
    ),
    (_R.STORE, _R.BASELINES): (
        "central baselines train on all events at once, and a store may not fit into memory",
        "leave out {baselines}",
    ),
    (_R.STORE, _R.REFIT): (
        "refit=True trains on the validation events of all clients, which a store holds out by position",
        "leave out {refit}",
    ),
    (_R.STORE, _R.CENTRAL_ONLY): (
        "central baselines train on all events at once, and a store may not fit into memory",
        "use the file that it was made from",
    ),
}
