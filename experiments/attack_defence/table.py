"""The table and the figure of the runs' files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from experiments.keeping import file_name

Runs = dict[tuple[str, str], dict[str, Any]]  # by attack and defence
REFERENCE = "reference"


def name_run(attack: str, defence: str) -> str:
    """A file's name without its ending."""
    return f"{file_name(attack)}--{file_name(defence)}".lower()


def read_runs(folder: Path) -> Runs:
    """All runs of the grid that are in a folder."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*--*.json"))]
    return {(run["attack"], run["defence"]): run for run in found}


def exposure(run: dict[str, Any]) -> float:
    """ER@10, the mean over the measurements after the start."""
    return float(np.mean(run["er@10"][1:]))


def cost(runs: Runs, attack: str, defence: str) -> float:
    """HR@10 at the end that the defence costs under this attack, as a share of that without it; NaN if unknown."""
    plain, defended = runs.get((attack, "none")), runs.get((attack, defence))
    if plain is None or defended is None or not plain["hr@10"][-1]:
        return math.nan
    return 1 - float(defended["hr@10"][-1] / plain["hr@10"][-1])


def _names(runs: Runs) -> tuple[list[str], list[str]]:
    from experiments.attack_defence.grid import ATTACKS, DEFENCES

    return (
        [name for name in ATTACKS if any(attack == name for attack, _ in runs)],
        [name for name in DEFENCES if any(defence == name for _, defence in runs)],
    )


def passes(runs: Runs, attack: str, defence: str) -> bool:
    """Whether the defence halves the exposure for less than 5 % of HR@10, without an attack and under this one."""
    if (attack, "none") not in runs or (attack, defence) not in runs or exposure(runs[attack, "none"]) < 0.01:
        return False
    halved = exposure(runs[attack, defence]) <= 0.5 * exposure(runs[attack, "none"])
    return halved and cost(runs, "none", defence) < 0.05 and cost(runs, attack, defence) < 0.05


def describe(runs: Runs) -> str:
    """ER@10 / HR@10 of every pair as a Markdown table, and which defences halve which attacks' exposure."""
    attacks, defences = _names(runs)
    lines = [f"| ER@10 / HR@10 | {' | '.join(attacks)} |", "|---" * (len(attacks) + 1) + "|"]
    for defence in defences:
        cells = []
        for attack in attacks:
            run = runs.get((attack, defence))
            mark = " *" if defence != "none" and passes(runs, attack, defence) else ""
            cells.append("" if run is None else f"{exposure(run):.3f} / {run['hr@10'][-1]:.3f}{mark}")
        lines.append(f"| {defence} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(runs: Runs, path: Path) -> None:
    """Exposure of every pair as a heat map, with the defences' accuracy without an attack beside it."""
    from matplotlib.figure import Figure

    attacks, defences = _names(runs)
    values = np.full((len(defences), len(attacks)), np.nan)
    for (attack, defence), run in runs.items():
        values[defences.index(defence), attacks.index(attack)] = exposure(run)
    figure = Figure(figsize=(10, 0.45 * len(defences) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    left.imshow(values, vmin=0, vmax=1, cmap="Reds", aspect="auto")
    for row, column in np.argwhere(~np.isnan(values)):
        value = values[row, column]
        left.text(
            column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black"
        )
    left.set_xticks(range(len(attacks)), attacks, rotation=20)
    left.set_yticks(range(len(defences)), defences)
    left.set_title("ER@10 of the target")
    left.set_xlabel("attack by 5 % of the clients")
    left.set_ylabel("defence")
    quiet = [runs.get(("none", defence), {"hr@10": [0.0]})["hr@10"][-1] for defence in defences]
    right.barh(range(len(defences)), quiet, color="0.6")
    right.set_title("HR@10 without attack")
    right.set_xlabel("among 99 negatives")
    figure.savefig(path, dpi=120, metadata={"Software": None})
