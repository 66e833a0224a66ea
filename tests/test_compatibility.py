"""Each pair of features is refused as the table says, or builds; docs show the table; no text has flags."""

import ast
import dataclasses
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.fednova import normalised
from fedjax_rec.attacks.byzantine import attacked, ipm
from fedjax_rec.compatibility import Feature, RunFeature, check_together, goes_with
from fedjax_rec.compatibility.check import as_markdown, text_of
from fedjax_rec.compatibility.features import AnyFeature
from fedjax_rec.compatibility.table import NEEDS, PAIRS
from fedjax_rec.errors import ParameterError, fill
from fedjax_rec.evaluation.evaluation_points import after_local_training
from fedjax_rec.privacy.adaptive_clipping import adaptive_dp
from fedjax_rec.privacy.secure_aggregation import secure_sum
from fedjax_rec.runs.settings import Settings
from fedjax_rec.server.aggregators import fixed_point, gaussian, named
from fedjax_rec.server.soundness import bound_of
from fedjax_rec.testing import tiny_population
from fedjax_rec.types import RowUpload

PAGE = Path(__file__).resolve().parents[1] / "docs/compatibility.md"
MARKS = ("<!-- compatibility -->", "<!-- /compatibility -->")
POPULATION = tiny_population(8, 6)
PLAIN = fr.fedmf(dim=1, loss="mse", batch_size=4, intercept=3.0)
Args = dict[str, Any]


class Recipe(NamedTuple):
    """How an algorithm gets a feature, and what else that brings."""

    brings: set[Feature]
    fills: set[str]  # two recipes that fill the same cannot be had at once
    change: Callable[[Args], Args]


def _given(feature: Feature, name: str, value: Any, *brings: Feature) -> Recipe:
    """An argument of `federate` and of every factory."""
    return Recipe({feature, *brings}, {name}, lambda args: args | {name: value})


def _of_faults(feature: Feature, **fields: Any) -> Recipe:
    def change(args: Args) -> Args:
        return args | {"faults": args.get("faults", fr.Faults())._replace(**fields)}

    return Recipe({feature, Feature.FAULTS}, {"faults." + next(iter(fields))}, change)


def _base(make: Callable[[], Any], *brings: Feature) -> Recipe:
    return Recipe({*brings, Feature.AGGREGATOR}, {"aggregator"}, lambda args: args | {"aggregator": make()})


def _made_of(wrap: Callable[[Any], Any], fills: str, *brings: Feature) -> Recipe:
    """An aggregator made of the one that is there."""

    def change(args: Args) -> Args:
        return args | {"aggregator": wrap(args.get("aggregator", named("sum")))}

    return Recipe({*brings, Feature.AGGREGATOR}, {fills}, change)


def _own_work(name: str, value: Any, feature: Feature) -> Recipe:
    def change(args: Args) -> Args:
        return args | {"make": _federate, name: getattr(PLAIN, name)._replace(**value)}

    return Recipe({feature}, {name}, change)


def _algorithm(make: Callable[..., Any], fills: set[str], *brings: Feature) -> Recipe:
    """A factory, which has a model, work and perhaps an aggregation of its own."""
    own = {"model", "work", "exchange", *fills}
    return Recipe(set(brings), own, lambda args: args | {"make": make})


def _federate(model: Any = PLAIN.model, work: Any = PLAIN.work, **settings: Any) -> fr.types.Algorithm:
    return fr.federate(model, work, **settings)


def _noisy(args: Args) -> Args:
    """Server noise, and the clip that it needs."""
    base = args.get("aggregator", named("sum"))
    transform = args.get("transform", fr.transforms.clip(1.0))
    if base.fixed is not None:
        transform = fr.privacy.clip_to_grid(1.0, base.fixed.bits, numbers=100)
    norm = bound_of(transform).norm or 1.0
    rule = gaussian(base, noise_multiplier=1.0, norm=norm, expected=4)
    return args | {"aggregator": rule, "transform": transform}


def _blurred(args: Args) -> Args:
    transform = fr.transforms.chain(fr.transforms.clip(1.0), fr.transforms.add_noise(1.0))
    return args | {"transform": transform}


def _mesh_of_processes() -> jax.sharding.Mesh:
    """Two devices of this process, which say that they are of several; no other test has just these."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[6:8]), ("clients",))
    mesh.__dict__["is_multi_process"] = True
    return mesh


MOMENTUM = optax.sgd(0.1, momentum=0.9)
OWN_RULE = {"server_optimizer"}
AGGREGATION = {"aggregator", "attack", "integers", "noise", "threshold"}
CHANGES = RowUpload(lambda *given: jax.tree.map(jax.numpy.subtract, given[1].values, given[3]))
RECIPES: dict[Feature, Recipe] = {  # in the order in which their changes are made
    Feature.EXCHANGE: Recipe(
        {Feature.EXCHANGE},
        {"exchange"},
        lambda args: args | {"make": _federate, "exchange": lambda *given: given[-1]},
    ),
    Feature.OWN_UPLOAD: _own_work("work", {"upload": CHANGES}, Feature.OWN_UPLOAD),
    Feature.SELF_REPRESENTATION: _own_work("model", {"represent": PLAIN.work}, Feature.SELF_REPRESENTATION),
    Feature.STARTS_FROM_DATA: _own_work("model", {"starts_from": "a mean"}, Feature.STARTS_FROM_DATA),
    Feature.FEDALS: _algorithm(
        fr.fedals,
        OWN_RULE,
        Feature.FEDALS,
        Feature.OWN_UPLOAD,
        Feature.SELF_REPRESENTATION,
        Feature.READS_IDS,
    ),
    Feature.FEDEASE: _algorithm(
        fr.fedease,
        OWN_RULE,
        Feature.FEDEASE,
        Feature.OWN_UPLOAD,
        Feature.SELF_REPRESENTATION,
        Feature.READS_IDS,
    ),
    Feature.FEDRECON: _algorithm(
        fr.fedrecon, set(), Feature.FEDRECON, Feature.SELF_REPRESENTATION, Feature.READS_IDS
    ),
    Feature.SCAFFOLD: _algorithm(
        fr.scaffold,
        AGGREGATION | OWN_RULE,
        Feature.SCAFFOLD,
        Feature.OWN_UPLOAD,
        Feature.BY_ROW,
        Feature.BY_HEAT,
        Feature.READS_IDS,
    ),
    Feature.DENOISING: _algorithm(
        lambda **given: fr.fedrec(denoise=True, **given),
        OWN_RULE,
        Feature.DENOISING,
        Feature.OWN_UPLOAD,
        Feature.READS_IDS,
    ),
    Feature.READS_IDS: _own_work("work", {"reads_ids": True}, Feature.READS_IDS),
    Feature.STACKED: _base(fr.server.median, Feature.STACKED),
    Feature.BY_ROW: _base(fr.server.mean_of_touchers, Feature.BY_ROW),
    Feature.BY_HEAT: _base(fr.server.by_heat, Feature.BY_ROW, Feature.BY_HEAT),
    Feature.BY_EXAMPLES: _base(fr.server.by_examples, Feature.BY_EXAMPLES),
    Feature.BY_COUNT: _base(fr.server.mean, Feature.BY_COUNT),
    Feature.CLIENT_STATS: _base(lambda: normalised(lambda n: n / 2.0), Feature.CLIENT_STATS),
    Feature.LOSS_FACTORS: _base(
        lambda: fr.server.q_fedavg(1.0, lipschitz=80.0), Feature.LOSSES, Feature.LOSS_FACTORS
    ),
    Feature.LEARNT_WEIGHTS: _base(fr.server.agnostic, Feature.LOSSES, Feature.LEARNT_WEIGHTS),
    Feature.STACK_ATTACK: _made_of(
        lambda rule: attacked(rule, ipm(1.0), [0]), "attack", Feature.STACK_ATTACK, Feature.STACKED
    ),
    Feature.INTEGER_SUM: _made_of(
        lambda rule: fixed_point(rule, capacity=8), "integers", Feature.INTEGER_SUM, Feature.FIXED_POINT
    ),
    Feature.COARSE: _made_of(
        lambda rule: fixed_point(rule, capacity=8, modulus=24),
        "integers",
        Feature.INTEGER_SUM,
        Feature.FIXED_POINT,
        Feature.COARSE,
    ),
    Feature.SECURE_SUM: _made_of(
        lambda rule: secure_sum(rule, capacity=8),
        "integers",
        Feature.SECURE_SUM,
        Feature.INTEGER_SUM,
        Feature.FIXED_POINT,
    ),
    Feature.TRANSFORM: _given(Feature.TRANSFORM, "transform", fr.transforms.clip(1.0)),
    Feature.WHOLE_UPDATES: Recipe(  # noise would need a clip besides
        {Feature.WHOLE_UPDATES, Feature.TRANSFORM},
        {"transform", "noise"},
        lambda args: args | {"transform": fr.transforms.quantise(8)},
    ),
    Feature.CLIENT_NOISE: Recipe(
        {Feature.CLIENT_NOISE, Feature.TRANSFORM, Feature.WHOLE_UPDATES}, {"transform"}, _blurred
    ),
    Feature.SERVER_NOISE: Recipe(
        {Feature.SERVER_NOISE, Feature.GAUSSIAN_SUM, Feature.TRANSFORM, Feature.AGGREGATOR}, {"noise"}, _noisy
    ),
    Feature.THRESHOLD: _made_of(lambda rule: rule._replace(min_clients=2), "threshold", Feature.THRESHOLD),
    Feature.SAMPLER: _given(Feature.SAMPLER, "sampler", fr.samplers.uniform(4)),
    Feature.SAMPLER_BY_DATA: _given(
        Feature.SAMPLER_BY_DATA, "sampler", fr.samplers.size_capped(3, cohort=4), Feature.SAMPLER
    ),
    Feature.SAMPLER_BY_LOSSES: _given(
        Feature.SAMPLER_BY_LOSSES,
        "sampler",
        fr.samplers.loss_proportional(cohort=4),
        Feature.SAMPLER,
        Feature.SAMPLER_BY_DATA,
    ),
    Feature.COHORT: _given(Feature.COHORT, "cohort", 4),
    Feature.FAULTS: _of_faults(Feature.FAULTS, drop_out=0.1),
    Feature.OVER_SELECTION: _of_faults(Feature.OVER_SELECTION, keep=3),
    Feature.MINIMUM_COHORT: _of_faults(Feature.MINIMUM_COHORT, minimum=2),
    Feature.ASYNCHRONOUS: _given(
        Feature.ASYNCHRONOUS, "asynchronous", fr.FedBuff(buffer=2, concurrency=3, max_staleness=2)
    ),
    Feature.COLLUDING: _given(
        Feature.COLLUDING,
        "adversary",
        fr.attacks.colluding(fr.attacks.explicit_boosting([1]), [0]),
        Feature.ADVERSARY,
    ),
    Feature.DISTRIBUTED: _given(Feature.DISTRIBUTED, "mesh", _mesh_of_processes()),
    Feature.ADVERSARY: Recipe(  # of ratings, which not all work has
        {Feature.ADVERSARY},
        {"adversary", "work"},
        lambda args: args | {"adversary": fr.attacks.label_flip([1])},
    ),
    Feature.MOVING_ROWS: _given(Feature.MOVING_ROWS, "server_optimizer", MOMENTUM),
    Feature.ONE_PIECE: _given(Feature.ONE_PIECE, "stream_clients", 0),
    Feature.TOUCHED: _given(Feature.TOUCHED, "server_rows", "touched"),
    Feature.ALL_ROWS: _given(Feature.ALL_ROWS, "server_rows", "all"),
    Feature.TABLE_SHARDS: Recipe(
        {Feature.TABLE_SHARDS},
        {"table_shards"},
        lambda args: {"mesh": fr.client_mesh(2)} | args | {"table_shards": 2},
    ),
    Feature.STREAMED: _given(Feature.STREAMED, "stream_clients", 2),
    Feature.STORED: _given(Feature.STORED, "stored", True),
    Feature.LOCAL_POINT: _given(Feature.LOCAL_POINT, "local_point", True),
    Feature.ADAPTIVE_CLIPPING: Recipe(  # of work alone, which an adversary would have changed
        {Feature.ADAPTIVE_CLIPPING}, {"adaptive", "adversary"}, lambda args: args | {"adaptive": True}
    ),
}


def _build(features: set[Feature]) -> fr.types.Algorithm:
    """An algorithm with all of these features, and what is made of it."""
    args: Args = {"make": _federate}
    for recipe in (recipe for feature, recipe in RECIPES.items() if feature in features):
        args = recipe.change(args)
    make, ranked, adaptive = args.pop("make"), args.pop("local_point", False), args.pop("adaptive", False)
    stored = args.pop("stored", False)
    algorithm = make(**args)
    if args.get("server_rows") or args.get("table_shards"):
        algorithm.streaming(POPULATION)
    if stored:
        algorithm.streaming(dataclasses.replace(POPULATION, stored=True))
    if adaptive:
        clients = POPULATION.num_clients
        adaptive_dp(algorithm, clients, cohort=clients, rounds=2, delta=1e-3, noise_multiplier=0.5)
    if ranked:
        after_local_training(algorithm, POPULATION, jax.random.key(0))
    return algorithm


def _first_row(features: set[AnyFeature]) -> Any:
    """The row of the table that applies, found without the code under test."""
    unmet = [row for row in NEEDS if row.one in features and not features & set(row.others)]
    return next(iter([*unmet, *(row for row in PAIRS if {row.one, row.other} <= features)]), None)


def _brought(features: tuple[Feature, ...]) -> set[AnyFeature]:
    return {brought for feature in features for brought in RECIPES[feature].brings}


EVERY_PAIR = list(combinations(RECIPES, 2))
CLASHING = [(a, b) for a, b in EVERY_PAIR if RECIPES[a].fills & RECIPES[b].fills]
EXPRESSIBLE = [pair for pair in EVERY_PAIR if pair not in CLASHING]
REFUSED = [pair for pair in EXPRESSIBLE if _first_row(_brought(pair)) is not None]
ALLOWED = [pair for pair in EXPRESSIBLE if pair not in REFUSED]


@pytest.mark.parametrize("pair", EXPRESSIBLE, ids=lambda pair: f"{pair[0].name}-{pair[1].name}")
def test_every_pair_is_refused_or_builds(pair):
    """As the table says: when the algorithm is made, in one line, with the row's text. Nothing else is refused."""
    row = _first_row(_brought(pair))
    if row is None:
        _build(set(pair))
        return
    with pytest.raises(ParameterError) as caught:
        _build(set(pair))
    assert caught.value.args == (text_of(row),)
    assert "\n" not in str(caught.value)


def test_other_pairs_are_those_of_one_argument():
    """Nothing is left out but what no call can say: two features that fill the same argument."""
    assert set(EVERY_PAIR) == {*EXPRESSIBLE, *CLASHING}
    assert len({frozenset(pair) for pair in CLASHING}) < len(EVERY_PAIR) / 4
    refused = {frozenset((row.one, row.other)) for row in PAIRS}
    assert [pair for pair in CLASHING if frozenset(pair) in refused] == []


def _covering_sets() -> list[set[Feature]]:
    """Sets of features that go together, few of them, in which each allowed pair is: found greedily."""
    allowed = {frozenset(pair) for pair in ALLOWED}
    left, found = set(allowed), []
    while left:
        chosen: set[Feature] = set(min(left, key=lambda pair: sorted(f.name for f in pair)))
        while True:
            fitting = [
                f for f in RECIPES if f not in chosen and all(frozenset((f, g)) in allowed for g in chosen)
            ]
            gains = {f: sum(frozenset((f, g)) in left for g in chosen) for f in fitting}
            if not gains or not max(gains.values()):
                break
            chosen.add(max(gains, key=lambda f: gains[f]))
        left -= {frozenset(pair) for pair in combinations(chosen, 2)}
        found.append(chosen)
    return found


@pytest.mark.parametrize("features", _covering_sets(), ids=lambda f: "-".join(sorted(x.name for x in f)))
def test_what_goes_together_runs(features):
    """Many allowed pairs at once: the state is made and a round is traced."""
    algorithm = _build(features)
    state = jax.eval_shape(algorithm.init, jax.random.key(0), POPULATION)
    after, _ = jax.eval_shape(algorithm.round, jax.random.key(0), state, POPULATION)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)


def _attacked(rule: Any) -> Any:
    return attacked(rule, ipm(1.0), [0])


DIRECTLY: dict[
    tuple[Feature, Feature], Callable[[], Any]
] = {  # rows that another one precedes in every recipe
    (Feature.LOSSES, Feature.SERVER_NOISE): lambda: fr.fedmf(
        aggregator=gaussian(noise_multiplier=1.0, norm=1.0, expected=4)._replace(
            losses=fr.server.q_fedavg(1.0, lipschitz=80.0).losses
        ),
        transform=fr.transforms.clip(1.0),
    ),
    (Feature.STACK_ATTACK, Feature.FIXED_POINT): lambda: _attacked(fixed_point(named("sum"), capacity=8)),
    (Feature.CLIENT_STORE, Feature.ONE_PIECE): lambda: fr.simulate(
        fr.fedmf(dim=1), POPULATION, rounds=1, client_store="nowhere"
    ),
    (Feature.CLIENT_STORE, Feature.DISTRIBUTED): lambda: check_together(  # as `simulate` does
        {Feature.CLIENT_STORE: "folder", Feature.DISTRIBUTED: True}
    ),
    (Feature.DISTRIBUTED, Feature.LEDGER): lambda: check_together(  # as `simulate` does
        {Feature.DISTRIBUTED: True, Feature.LEDGER: True}
    ),
    (Feature.STACK_ATTACK, Feature.SERVER_NOISE): lambda: _attacked(
        fr.server.gaussian(noise_multiplier=1.0, norm=1.0, expected=8.0)
    ),
}


def test_every_row_is_met():
    """By a pair of recipes or directly: no row is dead, or hidden by those before it."""
    met = {(row.one, row.other) for row in map(_first_row, map(_brought, REFUSED))}
    for names, make in DIRECTLY.items():
        with pytest.raises(ParameterError) as caught:
            make()
        row = next(row for row in PAIRS if (row.one, row.other) == names)
        assert caught.value.args == (text_of(row),)
    of_algorithms = {(row.one, row.other) for row in PAIRS if isinstance(row.one, Feature)}
    assert of_algorithms == met | set(DIRECTLY)


def test_streaming_asks_the_table():
    """What cannot be streamed is not, where nobody asked for it."""
    assert goes_with(
        Feature.STREAMED, {Feature.LOSSES: True, Feature.STACKED: None, Feature.SECURE_SUM: False}
    )
    assert not goes_with(Feature.STREAMED, {Feature.LEARNT_WEIGHTS: True})


class Choice(NamedTuple):
    """Settings that make a feature of a run, and what they need, which another choice may set otherwise."""

    settings: Args
    needs: Args = {}  # noqa: RUF012 - never changed


_R = RunFeature
CHOICES: dict[RunFeature, Choice] = {
    _R.OWN_AGGREGATION: Choice({"algorithm": "scaffold"}),
    _R.LEAVE_ONE_OUT: Choice({"splitter": "leave-one-out"}),
    _R.GLOBAL_TIME: Choice({"splitter": "global-time"}),
    _R.GIVEN: Choice({"splitter": "given"}),
    _R.STRONG: Choice({"splitter": "strong"}),
    _R.MIN_USER_EVENTS: Choice({"min_user_events": 5}),
    _R.MIN_RATING: Choice({"min_rating": 4.0}),
    _R.CORE: Choice({"core": 5}),
    _R.PART: Choice({"part": "fold"}, {"splitter": "given"}),
    _R.POSITIVES: Choice({"positives": "first"}, {"splitter": "ratio"}),
    _R.HELDOUT_SHARE: Choice({"heldout_share": 0.2}, {"splitter": "strong"}),
    _R.VALIDATION_SHARE: Choice({"validation_share": 0.2}, {"splitter": "ratio"}),
    _R.TEST_SHARE: Choice({"test_share": 0.2}, {"splitter": "ratio"}),
    _R.EVALUATION_POINT: Choice({"evaluation_point": "local"}),
    _R.FOLD_IN_EPOCHS: Choice({"fold_in_epochs": 3}, {"splitter": "strong"}),
    _R.NEGATIVES: Choice({"negatives": "paper-leaky"}),
    _R.BASELINES: Choice({"baselines": "ease"}),
    _R.RATINGS_LOSS: Choice({"loss": "mse"}),
    _R.REFIT: Choice({"refit": True}),
    _R.SAMPLER: Choice({"sampler": "uniform"}),
    _R.SIZE_CAPPED: Choice({"sampler": "size-capped"}, {"size_cap": 9}),
    _R.SIZE_CAP: Choice({"size_cap": 9}, {"sampler": "size-capped"}),
    _R.ORDER: Choice({"order": "file"}),
    _R.COHORT: Choice({"cohort": 9}),
    _R.AGGREGATOR: Choice({"aggregator": "mean"}),
    _R.Q_FEDAVG: Choice({"aggregator": "q-fedavg"}),
    _R.FAIRNESS: Choice({"fairness": 2.0}, {"aggregator": "q-fedavg"}),
    _R.CLIP: Choice({"clip": 1.0}),
    _R.NOISE_MULTIPLIER: Choice({"noise_multiplier": 1.0}, {"clip": 1.0}),
    _R.TARGET_EPSILON: Choice({"target_epsilon": 4.0}, {"clip": 1.0}),
    _R.DELTA: Choice({"delta": 1e-5}, {"noise_multiplier": 1.0, "clip": 1.0}),
    _R.ALLOW_LARGE_DELTA: Choice(
        {"allow_large_delta": True}, {"delta": 1e-5, "noise_multiplier": 1.0, "clip": 1.0}
    ),
    _R.CAPACITY: Choice({"capacity": 50}, {"noise_multiplier": 1.0, "clip": 1.0}),
    _R.TUNE: Choice({"tune": 4}),
    _R.TUNE_BASELINES: Choice({"tune_baselines": True}, {"tune": 4}),
    _R.SECRET_NOISE: Choice({"secret_noise": True}, {"noise_multiplier": 1.0, "clip": 1.0}),
    _R.DROP_OUT: Choice({"drop_out": 0.1}),
    _R.AWAKE: Choice({"awake": 0.5}),
    _R.ROUNDS_PER_DAY: Choice({"rounds_per_day": 12}, {"awake": 0.5}),
    _R.DEADLINE: Choice({"deadline": 3.0}),
    _R.PARTIAL_WORK: Choice({"partial_work": True}, {"deadline": 3.0}),
    _R.KEEP_FIRST: Choice({"keep_first": 5}),
    _R.MINIMUM_COHORT: Choice({"minimum_cohort": 2}),
    _R.DEVICE_SPREAD: Choice({"device_spread": 1.0}, {"async_buffer": 5}),
    _R.DEVICE_JITTER: Choice({"device_jitter": 1.0}, {"async_buffer": 5}),
    _R.ASYNC_BUFFER: Choice({"async_buffer": 5}),
    _R.CONCURRENCY: Choice({"concurrency": 50}, {"async_buffer": 5}),
    _R.MAX_STALENESS: Choice({"max_staleness": 5}, {"async_buffer": 5}),
    _R.STALENESS_EXPONENT: Choice({"staleness_exponent": 1.0}, {"async_buffer": 5}),
}
OF_DATA = {  # features that settings alone do not make; what lacks them is refused in `tests/cli`
    _R.ALGORITHM_OF_RATINGS, _R.ALGORITHM_OF_ORDER, _R.NO_RATINGS, _R.NO_TIMESTAMPS, _R.CENTRAL_ONLY, _R.NOISE,
    _R.SWEEP, _R.STORE, _R.NO_STORE, _R.RANKED_SAMPLE, _R.OTHER_EVENTS, _R.DISTRIBUTED, _R.SEVERAL_RUNS,
}  # fmt: skip


def _made(settings: Args) -> set[AnyFeature]:
    """The features of a run with these settings."""
    chosen = {"splitter": "leave-one-out"} | settings
    found: set[AnyFeature] = {
        feature for feature, choice in CHOICES.items() if choice.settings.items() <= chosen.items()
    }
    if "sampler" in chosen:
        found.add(_R.SAMPLER)
    if chosen.get("aggregator", "sum") != "sum":
        found.add(_R.AGGREGATOR)
    if found & {_R.NOISE_MULTIPLIER, _R.TARGET_EPSILON}:
        found |= {_R.NOISE, Feature.SERVER_NOISE}
    if _R.KEEP_FIRST in found:
        found.add(Feature.OVER_SELECTION)
    if _R.MINIMUM_COHORT in found:
        found.add(Feature.MINIMUM_COHORT)
    return found


def test_every_pair_of_settings_is_refused_or_taken():
    """As the table says; so is each alone, without what it needs."""
    assert set(CHOICES) | OF_DATA == set(RunFeature)
    singly = [choice.settings for choice in CHOICES.values()]
    paired = [a.needs | b.needs | a.settings | b.settings for a, b in combinations(CHOICES.values(), 2)]
    met = set()
    for settings in (*singly, *paired):
        row = _first_row(_made(settings))
        if row is None:
            Settings(**settings)
            continue
        with pytest.raises(ParameterError) as caught:
            Settings(**settings)
        assert caught.value.args == (text_of(row),), settings
        met.add(row)
    of_settings = [row for row in PAIRS if {row.one, row.other} <= {*CHOICES, _R.NOISE}]
    assert {*NEEDS, *of_settings} <= met


def test_texts_name_parameters_and_values():
    """Each brace of a row is a value that is given, a setting, or a field of faults or asynchronous rounds."""
    settings = {field.name for field in dataclasses.fields(Settings)}
    fields = {f"Faults.{name}" for name in fr.Faults._fields} | {f"FedBuff.{n}" for n in fr.FedBuff._fields}
    for text in (*map(text_of, PAIRS), *map(text_of, NEEDS)):
        assert set(re.findall(r"{([\w.]+)", text)) <= settings | fields | {"one", "other"}, text


def test_an_error_is_rendered_for_its_reader():
    """By parameters, or by other names for them; values keep their braces; copies are alike."""
    error = ParameterError("{dim}={size!r} is {path}; lower {Faults.keep}", size="9", path="{x}")
    assert str(error) == "dim='9' is {x}; lower Faults.keep"
    assert (
        error.render({"dim": "--dim", "Faults.keep": "--keep-first"})
        == "--dim='9' is {x}; lower --keep-first"
    )
    again = type(error)(*error.args, **error.values)
    assert (str(again), isinstance(again, ValueError)) == (str(error), True)
    assert fill("{a}", {"a": "b"}) == "b"


def _texts(path: Path) -> list[str]:
    """Strings of a module but its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    notes = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in notes]
    return [node.value for node in strings if isinstance(node.value, str)]


SPEAKING_FLAGS = {
    "settings.py",
    "configuration.py",
    "versions.py",  # those of git
    "markup.py",  # none, but variables of a style sheet begin like them
}


@pytest.mark.parametrize("wing", sorted(p.name for p in Path(fr.__file__).parent.iterdir() if p.is_dir()))
def test_only_the_command_line_says_flags(wing):
    """Texts name parameters; help of settings, and commands that repeat a run, say flags; data has both."""
    if wing in {"cli", "data"}:
        return
    folder = Path(fr.__file__).parent / wing
    paths = [path for path in folder.rglob("*.py") if path.name not in SPEAKING_FLAGS]
    assert [(p.name, text) for p in paths for text in _texts(p) if re.search(r"(^|[\s(])--[a-z]", text)] == []


def _with_table(text: str) -> str:
    """The page with the table between its marks."""
    start, _, rest = text.partition(MARKS[0])
    _, _, end = rest.partition(MARKS[1])
    return f"{start}{MARKS[0]}\n{as_markdown()}\n{MARKS[1]}{end}"


def test_the_page_shows_the_table():
    """It is made of the rows that refuse; `python -m tests.test_compatibility` writes it anew."""
    text = PAGE.read_text(encoding="utf-8")
    assert _with_table(text) == text


def test_an_absent_feature_is_none():
    """None and False stand for what is not there, a number of 0 does not."""
    check_together({Feature.STREAMED: None, Feature.EXCHANGE: True})
    check_together({Feature.STREAMED: False, Feature.EXCHANGE: True})
    with pytest.raises(ParameterError, match="stream_clients=0"):
        check_together({Feature.STREAMED: 0, Feature.EXCHANGE: True})


if __name__ == "__main__":
    PAGE.write_text(_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
