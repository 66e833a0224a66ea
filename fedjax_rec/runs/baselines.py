"""The central baselines of one data set: settings in, outcome out, and the folder that holds it.

======================  =============================================================================
`config.json`           every setting, and the methods' own ones that were given
`protocol.json`         how they were evaluated, and the protocol's id: that of a run with the same flags
`result.json`           the numbers: `baselines.NAME.full[metric]` and `baselines.NAME.sampled99[metric]`
`per_user.npz`          external user ids, rivals, and for each method rank and ties of the test items
======================  =============================================================================
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_rec.compatibility import RunFeature, check_together
from fedjax_rec.data.splits import Split, merge_validation
from fedjax_rec.evaluation.central import METHOD_NAMES, BaselineResult, run_baselines
from fedjax_rec.evaluation.central.registry import draws, parse_method_names
from fedjax_rec.evaluation.protocol import Protocol, protocol_id
from fedjax_rec.evaluation.reference_ranks import truth_ranks
from fedjax_rec.evaluation.summary import Metrics, result_metrics
from fedjax_rec.runs.configuration import repeating
from fedjax_rec.runs.folders import (
    dump_json,
    dump_protocol,
    fill_folder,
    rank_arrays,
    to_json_values,
    user_arrays,
    write_folder,
)
from fedjax_rec.runs.inputs import load_split, protocol_of, with_absolute_paths
from fedjax_rec.runs.settings import Settings
from fedjax_rec.training.checkpoints.versions import PACKAGE, commit_of, versions

FittedBaselines = dict[tuple[Any, ...], BaselineResult]  # by all that they depend on


class BaselineRun(NamedTuple):
    """All that the central methods reached on one split."""

    settings: Settings
    fixed_settings: dict[str, dict[str, float]]  # by method, those that were not left to validation
    protocol: Protocol
    split: Split  # what the tested models were trained on: with refit, train + validation
    baselines: dict[str, BaselineResult]
    ceiling: dict[str, Metrics] | None  # of the true preferences, where the data is synthetic
    seconds: float


def run_baseline_experiment(
    settings: Settings,
    *,
    names: Sequence[str] = METHOD_NAMES,
    fixed_settings: Mapping[str, Mapping[str, float]] | None = None,
    on_stage: Callable[[str], Any] = str,
) -> BaselineRun:
    """Run the central baselines on the split that a federated run with the same settings has.

    Args:
        settings: of a run; those of data and protocol and the seed are used.
        names: of the methods.
        fixed_settings: by method, settings to use as they are instead of choosing on validation.
        on_stage: called with a line of text when something new begins that may take seconds.

    Returns:
        the outcome.

    Raises:
        ValueError: on data, names or settings that cannot work.

    Example:
        >>> list(run_baseline_experiment(Settings(), names=["popularity"]).baselines)
        ['popularity']
    """
    started = time.perf_counter()
    check_together(
        {
            RunFeature.CENTRAL_ONLY: True,
            RunFeature.NEGATIVES: None if settings.negatives == "train" else settings.negatives,
            RunFeature.STRONG: settings.splitter == "strong",
        }
    )
    on_stage(f"reading {settings.dataset}")
    dataset, split = load_split(settings)
    protocol = protocol_of(settings, dataset, split)
    baselines = run_baselines(
        split,
        names=names,
        seed=settings.seed,
        refit=settings.refit,
        settings=fixed_settings,
        selection=protocol.selection,
        tune=settings.tune,
        on_stage=on_stage,
    )
    tested = merge_validation(split) if settings.refit else split
    return BaselineRun(
        settings=settings,
        fixed_settings={name: dict(changes) for name, changes in (fixed_settings or {}).items()},
        protocol=protocol,
        split=tested,
        baselines=baselines,
        ceiling=None if dataset.truth is None else result_metrics(truth_ranks(dataset, tested), tested),
        seconds=time.perf_counter() - started,
    )


def run_centrals(
    settings: Settings,
    protocol: Protocol,
    split: Split,
    on_stage: Callable[[str], Any],
    fitted: FittedBaselines | None = None,
) -> dict[str, BaselineResult]:
    """The central baselines that the settings of a run name: before any training, so that they fail early.

    Args:
        settings: of the run.
        protocol: of the run.
        split: of the run.
        on_stage: called with a line of text when something new begins that may take seconds.
        fitted: of earlier runs, which are not fitted again where all that they depend on is the same; those of
            this run are added.

    Returns:
        the baselines by name, in the order of the names; none where the settings name none.

    Raises:
        ValueError: as `run_baselines`.
    """
    if settings.baselines is None:
        return {}
    names = parse_method_names(settings.baselines)
    tune = settings.tune if settings.tune_baselines else None
    fit = partial(
        run_baselines,
        split,
        seed=settings.seed,
        refit=settings.refit,
        selection=protocol.selection,
        tune=tune,
        on_stage=on_stage,
    )
    if fitted is None:
        return fit(names=names)
    same = (_fingerprint(split), settings.refit, protocol.selection, tune)
    keys = {name: (name, settings.seed if draws(name, tune) else None, *same) for name in names}
    known = [name for name in names if keys[name] in fitted]
    if known:
        on_stage(f"{', '.join(known)}: fitted by an earlier run")
    left = [name for name in names if name not in known]
    found = fit(names=left) if left else {}
    fitted |= {keys[name]: result for name, result in found.items()}
    return {name: fitted[keys[name]] for name in names}


def _fingerprint(split: Split) -> str:
    """A hash of all that a method can read of a split."""
    digest = hashlib.sha256(repr([*(value for value in split if isinstance(value, str)), split.log]).encode())
    for leaf in jax.tree.leaves(split):
        if isinstance(leaf, np.ndarray):
            values = leaf.astype(str) if leaf.dtype == object else leaf
            digest.update(f"{values.dtype}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def baseline_result(run: BaselineRun) -> dict[str, Any]:
    """The numbers, as `result.json` holds them.

    Args:
        run: of `run_baseline_experiment`.

    Returns:
        a dict of plain values; what is not finite is None.

    Example:
        >>> sorted(baseline_result(run_baseline_experiment(Settings(), names=["popularity"]))["baselines"])
        ['best_reachable', 'popularity']
    """
    ceiling = {} if run.ceiling is None else {"best_reachable": run.ceiling}
    return to_json_values(
        {
            "dataset": run.settings.dataset,
            "protocol_id": protocol_id(run.protocol),
            "protocol": run.protocol.to_json(),
            "seed": run.settings.seed,
            "seconds": run.seconds,
            "users": run.split.num_users,
            "items": run.split.num_items,
            "filters": list(run.split.log),
            "baselines": {name: baseline.metrics for name, baseline in run.baselines.items()} | ceiling,
            "details": baseline_details(run.baselines),
            "versions": versions(),
            "commit": commit_of(PACKAGE),
            "command": repeating(
                with_absolute_paths(run.settings),
                "baselines",
                {"only": ",".join(run.baselines), "set": _fixed_texts(run.fixed_settings)},
            ),
        }
    )


def _fixed_texts(fixed: Mapping[str, Mapping[str, float]]) -> list[str]:
    """As `--set` takes them."""
    return [f"{name}.{key}={value}" for name, changes in fixed.items() for key, value in changes.items()]


def baseline_details(baselines: Mapping[str, BaselineResult]) -> dict[str, Any]:
    """How each baseline came about.

    Args:
        baselines: of `run_baselines`.

    Returns:
        by name: `seconds`, `settings`, and `trials`, each with its settings and validation metric.

    Example:
        >>> details = baseline_details(run_baseline_experiment(Settings(), names=["ease"]).baselines)["ease"]
        >>> list(details["settings"]), len(details["trials"])
        (['regularisation'], 3)
    """
    return {
        name: {
            "seconds": baseline.seconds,
            "settings": baseline.settings,
            "trials": [trial._asdict() for trial in baseline.trials],
        }
        for name, baseline in baselines.items()
    }


def baseline_arrays(baselines: Mapping[str, BaselineResult]) -> dict[str, np.ndarray]:
    """Per-user ranks of each baseline.

    Args:
        baselines: of `run_baselines`.

    Returns:
        by name, [N] each: `NAME_rank_full`, `NAME_tied_full`, `NAME_rank_sampled`, `NAME_tied_sampled`.

    Example:
        >>> sorted(baseline_arrays(run_baseline_experiment(Settings(), names=["ease"]).baselines))[0]
        'ease_rank_full'
    """
    arrays: dict[str, np.ndarray] = {}
    for name, baseline in baselines.items():
        arrays |= rank_arrays(baseline.ranks, f"{name}_")
    return arrays


def save_baseline_run(run: BaselineRun, folder: str | Path, *, renumber: bool = False) -> Path:
    """Write the folder, atomically, as `run_folder.save` does.

    Args:
        run: of `run_baseline_experiment`.
        folder: where; it may not exist, or be empty.
        renumber: if the folder, NAME-NUMBER, is taken by now, use the next number that is free.

    Returns:
        the folder.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     run = run_baseline_experiment(Settings(), names=["popularity"])
        ...     folder = save_baseline_run(run, Path(parent) / "base")
        ...     sorted(path.name for path in folder.iterdir())
        ['config.json', 'per_user.npz', 'protocol.json', 'result.json']
    """
    return write_folder(folder, lambda draft: _write(run, draft), renumber=renumber)


def fill_baseline_folder(run: BaselineRun, folder: str | Path) -> Path:
    """Write the files into a folder that is reserved for them; `result.json` is missing until all are there.

    Args:
        run: of `run_baseline_experiment`.
        folder: where.

    Returns:
        the folder.

    Raises:
        OSError: if it cannot be written.
    """
    return fill_folder(Path(folder), lambda draft: _write(run, draft), "result.json")


def _write(run: BaselineRun, folder: Path) -> None:
    methods = {"given": run.fixed_settings, "baselines": ",".join(run.baselines)}
    dump_json(folder / "config.json", dataclasses.asdict(run.settings) | methods)
    dump_protocol(folder / "protocol.json", run.protocol)
    dump_json(folder / "result.json", baseline_result(run))
    arrays = user_arrays(run.split) | baseline_arrays(run.baselines)
    np.savez_compressed(folder / "per_user.npz", allow_pickle=False, **arrays)
