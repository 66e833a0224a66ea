"""A sweep as a folder: a grid of settings tried on validation over several seeds, saved on its way.

========================  ==============================================================================
`sweep.json`              what was asked for, and by rung all trials that are finished, to go on
`trials.csv`              a row a trial: settings, rounds, mean and spread over seeds, and each seed
`sweep.png`               the same as a picture, with the curves of validation
`best.toml`               the best settings, for `fedjax-rec run --config`
========================  ==============================================================================
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from fedjax_rec.algorithms.registry import entry_of
from fedjax_rec.compatibility import RunFeature, check_together
from fedjax_rec.errors import ParameterError
from fedjax_rec.evaluation.protocol import protocol_id
from fedjax_rec.runs.build import with_values
from fedjax_rec.runs.folders import fill_folder, read_json, to_json_values
from fedjax_rec.runs.inputs import with_absolute_paths
from fedjax_rec.runs.ranges import MAX_SEEDS
from fedjax_rec.runs.search_plan import TrialFactory, in_chunks, trials_of_grid
from fedjax_rec.runs.settings import Settings, complete
from fedjax_rec.runs.setup import Setup, set_up, spending_after
from fedjax_rec.training.halving import KEPT, ranked, rungs_of
from fedjax_rec.training.search_spaces import TrialSettings
from fedjax_rec.training.sweep import Trial, sweep

STATE = "sweep.json"
MAY_DIFFER = ("out", "cache")  # between a sweep and what goes on with it
SAVED_TOGETHER = 8  # trials: one compiled program trains them, and a stop loses at most these
_FEWEST_VALIDATIONS = 10  # of a trial, where nobody says how often


class Asked(NamedTuple):
    """What a sweep is."""

    settings: Settings  # that all trials share; `rounds` and `eval_every` are those of a trial
    space: dict[str, list[Any]]  # values by setting
    seeds: int  # runs of each trial
    halving: bool


class Rung(NamedTuple):
    """Trials of so many rounds."""

    rounds: int
    trials: tuple[Trial, ...]  # in the order in which they were tried


class Swept(NamedTuple):
    """What a sweep found."""

    asked: Asked
    metric: str
    rungs: tuple[Rung, ...]

    @property
    def best(self) -> Trial:
        """The best trial of the last rung, whose trials alone had all rounds."""
        return ranked(self.rungs[-1].trials, 1.0)[0]

    @property
    def rows(self) -> list[tuple[int, Trial]]:
        """Rounds and trial: of each setting its longest trial, the last rung first, in each the best first."""
        found: list[tuple[int, Trial]] = []
        for rung in reversed(self.rungs):
            known = [trial.settings for _, trial in found]
            order = sorted(rung.trials, key=lambda trial: -trial.validation if trial.round else math.inf)
            found += [(rung.rounds, trial) for trial in order if trial.settings not in known]
        return found


def ask(
    settings: Settings, space: Mapping[str, Sequence[Any]], *, seeds: int, budget: int | None, halving: bool
) -> Asked:
    """Check what a sweep shall be, before anything is read.

    Args:
        settings: that all trials share.
        space: values by setting.
        seeds: runs of each trial, from the seed of the settings on.
        budget: rounds of a trial; with halving, of those of the last rung. None: the algorithm's least number.
        halving: whether a third of the trials goes on from each rung to the next, longer one.

    Returns:
        the same, with rounds and rounds between validations.

    Raises:
        ValueError: if a number is out of range, or a combination of settings is refused.

    Example:
        >>> asked = ask(Settings(), {"learning_rate": [0.1, 0.2, 0.3]}, seeds=1, budget=20, halving=True)
        >>> asked.settings.eval_every, rungs(asked)
        (2, [(3, 6), (1, 20)])
    """
    entry = entry_of(settings.algorithm)
    rounds = entry.rounds if budget is None else budget
    if rounds < 1:
        raise ParameterError("{budget} must be at least 1 round, not {value}", value=rounds)
    if not 1 <= seeds <= MAX_SEEDS:
        raise ParameterError(
            "{seeds} must be at least 1, and at most {most:,}, not {value:,}", most=MAX_SEEDS, value=seeds
        )
    often = settings.eval_every or min(entry.eval_every, max(1, rounds // _FEWEST_VALIDATIONS))
    settings = dataclasses.replace(settings, rounds=rounds, eval_every=often)
    check_together(
        {
            RunFeature.SWEEP: True,
            RunFeature.NOISE: settings.private,
            RunFeature.TUNE: settings.tune,
            RunFeature.EVALUATION_POINT: None
            if settings.evaluation_point == "server"
            else settings.evaluation_point,
        }
    )
    asked = Asked(settings, {name: list(values) for name, values in space.items()}, seeds, halving)
    count = len(trials_of_grid(settings, space))
    wanted = 1 + int(math.log(count, KEPT) + 1e-9)
    if halving and rounds < wanted:
        raise ParameterError(
            "{budget}={rounds} is less than the {wanted} rungs of {count} settings, each of a round at least; "
            "raise it, or leave out {halving}",
            rounds=rounds,
            wanted=wanted,
            count=count,
        )
    return asked


def rungs(asked: Asked) -> list[tuple[int, int]]:
    """How many trials each rung has, and for how many rounds.

    Args:
        asked: of `ask`.

    Returns:
        pairs of trials and rounds.

    Example:
        >>> rungs(ask(Settings(), {"dim": [2, 4]}, seeds=1, budget=5, halving=False))
        [(2, 5)]
    """
    count = len(trials_of_grid(asked.settings, asked.space))
    rounds, often = cast("int", asked.settings.rounds), cast("int", asked.settings.eval_every)
    return rungs_of(count, rounds, often) if asked.halving else [(count, rounds)]


def run_sweep(
    asked: Asked,
    folder: Path,
    *,
    on_stage: Callable[[str], Any] = str,
    on_rounds: Callable[[int, int], Any] | None = None,
) -> Swept:
    """Try all settings, or go on with those that the folder does not hold, and fill it.

    Args:
        asked: of `ask`.
        folder: that this process has to itself.
        on_stage: called with a line of text where something new begins.
        on_rounds: called with the rounds that are done of a rung, over all its runs, and their number.

    Returns:
        what was found.

    Raises:
        ValueError: if the folder holds another sweep, data or settings cannot work, or no trial reached a metric.
        SweepInterrupted: (a KeyboardInterrupt) if a signal stopped it; what was saved until then is kept.
    """
    asked = asked._replace(settings=with_absolute_paths(asked.settings))
    base = complete(asked.settings)
    on_stage(f"reading {base.dataset}")
    setup = set_up(base, on_stage)
    if spending_after(base, setup, 0) is not None:  # of an algorithm that adds noise by itself
        check_together({RunFeature.SWEEP: True, RunFeature.NOISE: True, RunFeature.CLIP: True})
    if setup.stored is not None:
        check_together({RunFeature.SWEEP: True, RunFeature.STORE: base.dataset})
    identity = _identity(asked, protocol_id(setup.protocol), setup.protocol.selection)
    finished = _read(folder, identity)
    trials = trials_of_grid(base, asked.space)
    factory = TrialFactory(base, setup.split.size, setup.population.max_examples, trials)
    plan = [(len(trials), 1)] if setup.algorithm.repeats else rungs(asked)
    found: list[Rung] = []
    for number, (count, rounds) in enumerate(plan):
        if found:
            going = [trial.settings for trial in ranked(found[-1].trials, 1.0)[:count]]
            trials = [trial for trial in trials if trial in going]
        known = finished.setdefault(rounds, [])
        left = [trial for trial in trials if trial not in [one.settings for one in known]]
        kept = f", {len(trials) - len(left)} of them kept from before" * (len(left) < len(trials))
        what = f"{len(trials)} setting{'s' * (len(trials) > 1)} x {asked.seeds} seed{'s' * (asked.seeds > 1)}"
        on_stage(f"rung {number + 1} of {len(plan)}: {what}, {rounds:,} rounds each{kept}")
        for trial in _try(asked, setup, factory, left, rounds, on_rounds):
            known.extend(trial)
            _write(folder, identity, finished)
        by_settings = [(one.settings, one) for one in known]
        found.append(Rung(rounds, tuple(next(t for s, t in by_settings if s == trial) for trial in trials)))
        if not ranked(found[-1].trials, 1.0):
            raise ParameterError(
                f"all {len(trials)} trials diverged before their first validation; try lower {{learning_rate}}"
            )
    swept = Swept(asked, setup.protocol.selection, tuple(found))
    from fedjax_rec.runs.sweep_files import write_files

    fill_folder(folder, lambda draft: write_files(swept, draft), "best.toml")
    return swept


def _try(
    asked: Asked,
    setup: Setup,
    factory: TrialFactory,
    left: Sequence[TrialSettings],
    rounds: int,
    on_rounds: Callable[[int, int], Any] | None,
) -> Any:
    """Trials of one rung, in chunks that are worth saving."""
    first = asked.settings.seed
    total = len(left) * asked.seeds * rounds
    before = 0
    for chunk in in_chunks(left, SAVED_TOGETHER):
        done = before

        def count(now: int, _: int, done: int = done) -> None:
            if on_rounds is not None:
                on_rounds(done + now, total)

        found = sweep(
            factory,
            setup.split,
            factory.with_followers(chunk),
            rounds=rounds,
            eval_every=min(rounds, cast("int", asked.settings.eval_every)),
            seeds=range(first, first + asked.seeds),
            metric=setup.protocol.selection,
            on_block=count,
        )
        before += len(chunk) * asked.seeds * rounds
        yield [trial._replace(settings=own) for trial, own in zip(found.trials, chunk, strict=True)]


def best_settings(swept: Swept) -> dict[str, Any]:
    """What makes the run of the best trial: all that was asked for, with the best values.

    Args:
        swept: of `run_sweep`.

    Returns:
        value by setting, without those at their defaults.
    """
    found = with_values(swept.asked.settings, swept.best.settings)
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    return {
        name: value
        for name, value in dataclasses.asdict(found).items()
        if value != defaults[name] and name not in MAY_DIFFER
    }


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds a sweep, finished or not.

    Args:
        folder: any path.

    Returns:
        True or False.

    Example:
        >>> is_sweep(Path("no/such"))
        False
    """
    return (folder / STATE).is_file()


def spread(trial: Trial) -> float:
    """The standard deviation of a trial's metric over its seeds.

    Args:
        trial: with the metric of each seed.

    Returns:
        of the sample; NaN for a single seed.

    Example:
        >>> round(spread(Trial({}, 0.5, 1, 0.0, (), (0.4, 0.6))), 4)
        0.1414
    """
    return float(np.std(trial.by_seed, ddof=1)) if len(trial.by_seed) > 1 else math.nan


def _identity(asked: Asked, protocol: str, metric: str) -> dict[str, Any]:
    """What may not differ when a sweep goes on."""
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    values = {
        n: v
        for n, v in dataclasses.asdict(asked.settings).items()
        if v != defaults[n] and n not in MAY_DIFFER
    }
    return {
        "settings": values, "set": asked.space, "seeds": asked.seeds, "halving": asked.halving,
        "metric": metric, "protocol_id": protocol,
    }  # fmt: skip


def _write(folder: Path, identity: dict[str, Any], finished: Mapping[int, Sequence[Trial]]) -> None:
    """The state of a sweep, whole or not at all."""
    listed = [
        {"rounds": rounds, "trials": [to_json_values(_plain(trial)) for trial in trials]}
        for rounds, trials in finished.items()
        if trials
    ]
    draft = folder / f".{STATE}"
    draft.write_text(json.dumps(identity | {"rungs": listed}, indent=1) + "\n", encoding="utf-8")
    draft.replace(folder / STATE)


def _plain(trial: Trial) -> dict[str, Any]:
    kept = {name: value for name, value in trial._asdict().items() if name != "by_user"}
    return kept | {"curve": [list(point) for point in trial.curve], "by_seed": list(trial.by_seed)}


def _read(folder: Path, identity: dict[str, Any]) -> dict[int, list[Trial]]:
    """What a sweep has finished, by rounds; refused if it was another one."""
    if not is_sweep(folder):
        return {}
    try:
        found = read_json(folder / STATE)
        for name, value in identity.items():
            if found[name] != value:
                raise ParameterError(
                    "{folder} holds a sweep with another {name}; name a new folder, or repeat its command",
                    folder=folder,
                    name=name,
                )
        return {rung["rounds"]: [_trial(each) for each in rung["trials"]] for rung in found["rungs"]}
    except (KeyError, TypeError, AttributeError) as problem:
        raise ParameterError(
            "{folder}/sweep.json is malformed ({problem!r}); name a new folder by {out}",
            folder=folder,
            problem=problem,
        ) from problem


def _trial(each: Mapping[str, Any]) -> Trial:
    def number(value: float | None) -> float:
        return math.nan if value is None else float(value)

    curve = tuple((int(rounds), number(value)) for rounds, value in each["curve"])
    by_seed = tuple(number(value) for value in each["by_seed"])
    return Trial(
        dict(each["settings"]),
        number(each["validation"]),
        int(each["round"]),
        each["seconds"],
        curve,
        by_seed,
    )
