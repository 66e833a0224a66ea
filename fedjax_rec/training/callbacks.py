"""Callbacks: what each block of rounds reached, as lines of JSON or in the tracker of your choice.

Each is a value for `on_block` of `simulate`, `fr.fit` and `run_experiment`; `call_all` makes one of several. A
tracker is handed in open, so that its project, name and place are its own business. Where a run is trained again,
on validation items too (`refit`), the numbers of that second training are named `refit/...`.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fedjax_rec.training.history import Progress

Callback = Callable[[Progress], Any]


class ScalarWriter(Protocol):
    """TensorBoard's writer, as tensorboardX and torch have it."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Write one number of one step."""


class WandbRun(Protocol):
    """A run of Weights & Biases, as `wandb.init` returns it."""

    def log(self, data: dict[str, Any]) -> Any:
        """Write the numbers of one step."""


class MetricLogger(Protocol):
    """The module `mlflow`, within a run of its own."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> Any:
        """Write the numbers of one step."""


def numbers_of(progress: Progress) -> dict[str, float]:
    """The numbers of a block of rounds by name.

    Args:
        progress: as callbacks get it.

    Returns:
        the last round's loss, clients of the block and their number a second under `train/`, metrics under
        `validation/` where there was a validation.

    Example:
        >>> numbers_of(Progress(5, 20, 100, 0.5, {"full/ndcg@10": 0.1}, 3000.0, ""))["validation/full/ndcg@10"]
        0.1
    """
    validation = progress.validation or {}
    return {
        "train/loss": float(progress.loss),
        "train/clients": float(progress.clients),
        "train/clients_per_second": float(progress.clients_per_second),
        **{f"validation/{name}": float(value) for name, value in validation.items()},
    }


def call_all(*callbacks: Callback) -> Callback:
    """One callback of several, called in their order.

    Args:
        *callbacks: of runs, such as `fr.progress_bar()`.

    Returns:
        the callback.

    Example:
        >>> seen = []
        >>> call_all(lambda p: seen.append(p.round), lambda p: seen.append(p.loss))(
        ...     Progress(5, 20, 100, 0.5, None, 3000.0, "")
        ... )
        >>> seen
        [5, 0.5]
    """

    def call(progress: Progress) -> None:
        for callback in callbacks:
            callback(progress)

    return call


def write_json_lines(path: str | Path) -> Callback:
    """Append a line of JSON for each block of rounds, at once: a run that is killed leaves those before.

    Args:
        path: of the file; what it has stays.

    Returns:
        the callback; a number that is not finite is written as null.

    Raises:
        OSError: by the callback, if the file cannot be written.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "run.jsonl"
        >>> write_json_lines(file)(Progress(5, 20, 100, 0.5, None, 3000.0, ""))
        >>> json.loads(file.read_text())["train/loss"]
        0.5
    """

    def write(round_: int, numbers: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": round_, **finite}) + "\n")

    return _by_stage(write)


def log_to_tensorboard(writer: ScalarWriter) -> Callback:
    """Write scalars for TensorBoard.

    Args:
        writer: of tensorboardX or torch: `SummaryWriter(folder)`.

    Returns:
        the callback.

    Example:
        >>> class Writer:
        ...     def add_scalar(self, tag, scalar_value, global_step):
        ...         print(tag, scalar_value, global_step)
        >>> log_to_tensorboard(Writer())(Progress(5, 20, 100, 0.5, None, 3000.0, ""))
        train/loss 0.5 5
        train/clients 100.0 5
        train/clients_per_second 3000.0 5
    """

    def write(round_: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, round_)

    return _by_stage(write)


def log_to_wandb(run: WandbRun) -> Callback:
    """Log to a run of Weights & Biases, with the round as a number of its own: its steps only ever rise.

    Args:
        run: `wandb.init(...)`.

    Returns:
        the callback.

    Example:
        >>> class Run:
        ...     def log(self, data):
        ...         print(data["round"], data["train/loss"])
        >>> log_to_wandb(Run())(Progress(5, 20, 100, 0.5, None, 3000.0, ""))
        5 0.5
    """

    def write(round_: int, numbers: Mapping[str, float]) -> None:
        run.log({"round": round_, **numbers})

    return _by_stage(write)


def log_to_mlflow(mlflow: MetricLogger) -> Callback:
    """Log metrics to MLflow's active run; its names know no `@`, which becomes `_at_`.

    Args:
        mlflow: the module, after `mlflow.start_run()`.

    Returns:
        the callback.

    Example:
        >>> class Module:
        ...     def log_metrics(self, metrics, step):
        ...         print(step, list(metrics)[-1])
        >>> log_to_mlflow(Module())(Progress(5, 20, 100, 0.5, {"full/ndcg@10": 0.1}, 3000.0, ""))
        5 validation/full/ndcg_at_10
    """

    def write(round_: int, numbers: Mapping[str, float]) -> None:
        mlflow.log_metrics({name.replace("@", "_at_"): value for name, value in numbers.items()}, step=round_)

    return _by_stage(write)


def _by_stage(write: Callable[[int, Mapping[str, float]], None]) -> Callback:
    """A callback that knows a second training, which begins after the first has stopped, by its rounds."""
    stops: list[str] = []

    def call(progress: Progress) -> None:
        prefix = "refit/" if stops else ""
        write(progress.round, {prefix + name: value for name, value in numbers_of(progress).items()})
        if progress.stopped:
            stops.append(progress.stopped)

    return call
