"""Callbacks tell a tracker what each block of rounds reached, once, by name and round."""

import json
from typing import Any

import fedjax_rec as fr
from fedjax_rec.runs import Settings, run_experiment
from fedjax_rec.training.history import Progress


class Tracker:
    """Keeps what it is told, in the words of each tracker."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.told.append((global_step, {tag: scalar_value}))

    def log(self, data: dict[str, Any]) -> None:
        self.told.append((data["round"], data))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.told.append((step, metrics))


def test_a_run_is_told_as_its_history_has_it(tmp_path):
    """Of a run with a refit, whose rounds have names of their own; all callbacks hear of every block."""
    board, wandb, mlflow = Tracker(), Tracker(), Tracker()
    tell = fr.training.call_all(
        fr.training.write_json_lines(tmp_path / "run.jsonl"),
        fr.training.log_to_tensorboard(board),
        fr.training.log_to_wandb(wandb),
        fr.training.log_to_mlflow(mlflow),
    )
    settings = Settings(rounds=4, eval_every=2, dim=2, refit=True)
    outcome = run_experiment(settings, on_block=tell)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    first = [line for line in lines if "train/loss" in line]
    assert [(line["round"], line["validation/full/ndcg@10"]) for line in first] == [
        (round_, metrics["full/ndcg@10"]) for round_, metrics in outcome.history.evaluations
    ]
    second = lines[len(first) :]
    assert second
    assert all("refit/train/loss" in line and "train/loss" not in line for line in second)
    assert [data for _, data in wandb.told] == lines
    assert [step for step, _ in mlflow.told] == [line["round"] for line in lines]
    assert not any("@" in name for _, metrics in mlflow.told for name in metrics)
    scalars = {(step, name): value for step, data in board.told for name, value in data.items()}
    assert scalars == {
        (line["round"], name): value for line in lines for name, value in line.items() if name != "round"
    }


def test_numbers_that_are_none(tmp_path):
    """A loss that is not a number is null: JSON has no word for it; lines that stand there stay."""
    path = tmp_path / "run.jsonl"
    write = fr.training.write_json_lines(path)
    for loss in (float("nan"), float("inf"), 0.5):
        write(Progress(2, 4, 10, loss, None, 5.0, ""))
    losses = [json.loads(line)["train/loss"] for line in path.read_text().splitlines()]
    assert losses == [None, None, 0.5]
