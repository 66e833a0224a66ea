"""The central baselines of one data set: settings in, outcome out, and the folder that holds it.

======================  =============================================================================
`config.json`           every setting, and the methods' own ones that were given
`protocol.json`         how they were evaluated, and the protocol's id: that of a run with the same flags
`result.json`           the numbers: `baselines.NAME.full[metric]` and `baselines.NAME.sampled99[metric]`
`per_user.npz`          external user ids, rivals, and for each method rank and ties of the test items
======================  =============================================================================
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.data.splits import Split, merge_validation
from fedjax_rec.evaluation.baselines import truth_ranks
from fedjax_rec.evaluation.central import NAMES, Baseline, run_baselines
from fedjax_rec.evaluation.measure import Metrics, measure
from fedjax_rec.evaluation.protocol import Protocol, protocol_id
from fedjax_rec.folders import dump_json, dump_protocol, plain, rank_arrays, user_arrays, write_folder
from fedjax_rec.inputs import load_split, protocol_of
from fedjax_rec.settings import Settings
from fedjax_rec.versions import versions


class Central(NamedTuple):
    """All that the central methods reached on one split."""

    settings: Settings
    given: dict[str, dict[str, float]]  # by method, the settings that were not left to validation
    protocol: Protocol
    split: Split  # what the tested models were trained on: with refit, train + validation
    baselines: dict[str, Baseline]
    ceiling: dict[str, Metrics] | None  # of the true preferences, where the data is synthetic
    seconds: float


def run_central(
    settings: Settings,
    *,
    names: Sequence[str] = NAMES,
    given: Mapping[str, Mapping[str, float]] | None = None,
    on_stage: Callable[[str], Any] = str,
) -> Central:
    """Run the central baselines on the split that a federated run with the same settings has.

    Args:
        settings: of a run; those of data and protocol and the seed are used.
        names: of the methods.
        given: by method, settings to use as they are instead of choosing on validation.
        on_stage: called with a line of text when something new begins that may take seconds.

    Returns:
        the outcome.

    Raises:
        ValueError: on data, names or settings that cannot work.

    Example:
        >>> list(run_central(Settings(), names=["popularity"]).baselines)
        ['popularity']
    """
    began = time.perf_counter()
    if settings.negatives != "train":
        raise ValueError(
            f"negatives={settings.negatives!r} is of federated training; central baselines do not leak"
        )
    if settings.splitter == "strong":
        raise ValueError(
            "splitter='strong': the central methods rank users that they were trained on; use another splitter"
        )
    on_stage(f"reading {settings.dataset}")
    dataset, split = load_split(settings)
    protocol = protocol_of(settings, dataset, split)
    baselines = run_baselines(
        split,
        names=names,
        seed=settings.seed,
        refit=settings.refit,
        settings=given,
        selection=protocol.selection,
        on_stage=on_stage,
    )
    tested = merge_validation(split) if settings.refit else split
    return Central(
        settings=settings,
        given={name: dict(changes) for name, changes in (given or {}).items()},
        protocol=protocol,
        split=tested,
        baselines=baselines,
        ceiling=None if dataset.truth is None else measure(truth_ranks(dataset, tested), tested),
        seconds=time.perf_counter() - began,
    )


def result_of_central(central: Central) -> dict[str, Any]:
    """The numbers, as `result.json` holds them.

    Args:
        central: of `run_central`.

    Returns:
        a dict of plain values; what is not finite is None.

    Example:
        >>> sorted(result_of_central(run_central(Settings(), names=["popularity"]))["baselines"])
        ['best_reachable', 'popularity']
    """
    ceiling = {} if central.ceiling is None else {"best_reachable": central.ceiling}
    return plain(
        {
            "dataset": central.settings.dataset,
            "protocol_id": protocol_id(central.protocol),
            "protocol": central.protocol.to_json(),
            "seed": central.settings.seed,
            "seconds": central.seconds,
            "users": central.split.num_users,
            "items": central.split.num_items,
            "filters": list(central.split.log),
            "baselines": {name: found.metrics for name, found in central.baselines.items()} | ceiling,
            "details": details_of(central.baselines),
            "versions": versions(),
        }
    )


def details_of(baselines: Mapping[str, Baseline]) -> dict[str, Any]:
    """How each baseline came about.

    Args:
        baselines: of `run_baselines`.

    Returns:
        by name: `seconds`, `settings`, and `trials`, each with its settings and validation metric.

    Example:
        >>> found = details_of(run_central(Settings(), names=["ease"]).baselines)["ease"]
        >>> found["settings"], len(found["trials"])
        ({'regularisation': 304.0}, 3)
    """
    return {
        name: {
            "seconds": found.seconds,
            "settings": found.settings,
            "trials": [trial._asdict() for trial in found.trials],
        }
        for name, found in baselines.items()
    }


def arrays_of(baselines: Mapping[str, Baseline]) -> dict[str, np.ndarray]:
    """Per-user ranks of each baseline.

    Args:
        baselines: of `run_baselines`.

    Returns:
        by name, [N] each: `NAME_rank_full`, `NAME_tied_full`, `NAME_rank_sampled`, `NAME_tied_sampled`.

    Example:
        >>> sorted(arrays_of(run_central(Settings(), names=["ease"]).baselines))[0]
        'ease_rank_full'
    """
    arrays: dict[str, np.ndarray] = {}
    for name, found in baselines.items():
        arrays |= rank_arrays(found.ranks, f"{name}_")
    return arrays


def save_central(central: Central, folder: str | Path, *, renumber: bool = False) -> Path:
    """Write the folder, atomically, as `run_folder.save` does.

    Args:
        central: of `run_central`.
        folder: where; it may not exist, or be empty.
        renumber: if the folder, NAME-NUMBER, is taken by now, use the next number that is free.

    Returns:
        the folder.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = save_central(run_central(Settings(), names=["popularity"]), Path(place) / "base")
        ...     sorted(path.name for path in folder.iterdir())
        ['config.json', 'per_user.npz', 'protocol.json', 'result.json']
    """
    return write_folder(folder, lambda draft: _write(central, draft), renumber=renumber)


def _write(central: Central, folder: Path) -> None:
    given = {"given": central.given, "baselines": ",".join(central.baselines)}
    dump_json(folder / "config.json", dataclasses.asdict(central.settings) | given)
    dump_protocol(folder / "protocol.json", central.protocol)
    dump_json(folder / "result.json", result_of_central(central))
    arrays = user_arrays(central.split) | arrays_of(central.baselines)
    np.savez_compressed(folder / "per_user.npz", allow_pickle=False, **arrays)
