"""Fit the seconds of a round to the points of `measure`, and say how far the held-out ones are off.

    python -m experiments.scaling.fit [--write]

Least squares of relative errors with coefficients of at least 0 (`scipy.optimize.nnls`). `--write` puts the
coefficients into `fedjax_rec/runs/fitted.py`; without it they are compared with what stands there, the errors and
exponents printed, and `scaling.png` and `roofline.png` drawn (Williams, Waterman & Patterson 2009, "Roofline",
doi:10.1145/1498765.1498785).
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from fedjax_rec.runs.machines import PASSES, TOUCHES, Work, counts_of

HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "fedjax_rec" / "runs" / "fitted.py"
BATCH, WIDTH = 64, 5  # slots of a local batch of `fedmf`, and rows of a positive with its negatives
ROW_FLOPS = 10  # of a number of a visited row: a score, two gradients and two steps
TABLE_FLOPS = 3  # of a number of the table: a sum and a step of the server
VARIED = ("cohort", "dim", "items", "clients", "events", "epochs")


class Fit(NamedTuple):
    """What the model is, and how far off."""

    coefficients: dict[str, float]
    fitted: pd.DataFrame  # points with `predicted` and `error`, relative
    held_out: pd.DataFrame


def points() -> pd.DataFrame:
    """The committed points, with `measured`: processor seconds of a core and round.

    Returns:
        a row a point.
    """
    table = pd.read_csv(HERE / "points.csv")
    return table.assign(measured=table["processor"] / table["devices"])


def work_of(row: pd.Series) -> Work:
    """What a round of a point does.

    Args:
        row: of `points`.

    Returns:
        the counts' arguments.
    """
    batches = row["mean_events"] / (BATCH // WIDTH) + 0.5
    return Work(
        cohort=int(row["cohort"]),
        events=row["mean_events"],
        longest=1,
        batches=batches,
        slots=batches * BATCH,
        dim=int(row["dim"]),
        items=int(row["items"]),
        epochs=int(row["epochs"]),
        devices=int(row["devices"]),
        lanes=1,
    )


def fit() -> Fit:
    """Fit the model to the points that are not held out.

    Returns:
        coefficients and errors.
    """
    table = points()
    counts = pd.DataFrame([counts_of(work_of(row)) for _, row in table.iterrows()])
    chosen = (table["role"] == "fit").to_numpy()
    scaled = counts.to_numpy() / table["measured"].to_numpy()[:, None]
    found, _ = nnls(scaled[chosen], np.ones(chosen.sum()))
    table = table.assign(predicted=counts.to_numpy() @ found)
    table = table.assign(error=table["predicted"] / table["measured"] - 1)
    coefficients = {name: float(f"{value:.4g}") for name, value in zip(counts.columns, found, strict=True)}
    return Fit(coefficients, table[chosen], table[~chosen])


def exponents() -> dict[str, float]:
    """The slopes of log(seconds) over log(what is varied), all else as in the first point.

    Returns:
        exponent by name.
    """
    table = points()
    table = table[table["role"] == "fit"]
    found = {}
    for name in VARIED:
        others = [other for other in (*VARIED, "devices") if other != name]
        line = table[(table[others] == table[others].iloc[0]).all(axis=1)]
        found[name] = float(np.polyfit(np.log(line[name]), np.log(line["measured"]), 1)[0])
    return found


def draw(found: Fit) -> None:
    """The points and the model, log-log, a panel for each thing that is varied.

    Args:
        found: of `fit`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    table = found.fitted
    for axes, name in zip(figure.subplots(2, 3).flat, VARIED, strict=True):
        others = [other for other in (*VARIED, "devices") if other != name]
        line = table[(table[others] == table[others].iloc[0]).all(axis=1)].sort_values(name)
        axes.loglog(line[name], 1000 * line["measured"], "o", label="measured")
        axes.loglog(line[name], 1000 * line["predicted"], "-", label="model")
        axes.set(xlabel=name, ylabel="ms a round, of a core")
    axes.legend(frameon=False)
    figure.suptitle(
        "fedmf on two cores: processor time of a round (N = 20,000, I = 10,000, D = 32, C = 1,000)"
    )
    figure.savefig(HERE / "scaling.png", dpi=110)


def roof_of(intensity: np.ndarray, column: str) -> np.ndarray:
    """The most that a core can compute, by how much of it there is for a byte.

    Args:
        intensity: numbers computed for a byte moved.
        column: of `ceilings.csv`: where the bytes are, in memory or in the cache.

    Returns:
        numbers a second.
    """
    ceiling = pd.read_csv(HERE / "ceilings.csv").set_index("cores").loc[1]
    return np.minimum(ceiling["flops"], intensity * ceiling[column])


def roofline() -> pd.DataFrame:
    """How near rounds come to what a core can do, by the numbers that they must compute and move.

    Returns:
        the points with `intensity` (numbers computed for a byte moved), `rate` (numbers a second of a core) and
        `share` of the roof over them, that of a core's cache.
    """
    table = points()
    works = [work_of(row) for _, row in table.iterrows()]
    rows = np.array([work.cohort * work.slots * work.epochs * work.dim for work in works])
    tables = np.array([work.items * work.dim for work in works])
    flops = ROW_FLOPS * rows + TABLE_FLOPS * tables
    moved = 4 * (TOUCHES * rows + PASSES * tables)
    rate = flops / table["processor"].to_numpy()
    roof = roof_of(flops / moved, "cached bytes")
    return table.assign(intensity=flops / moved, rate=rate, share=rate / roof)


def draw_roofline(table: pd.DataFrame) -> None:
    """The points under the roof of a core.

    Args:
        table: of `roofline`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    intensity = np.geomspace(0.05, 50, 200)
    for column, style, place in (("bytes", "-", "memory"), ("cached bytes", "--", "its cache")):
        roof = roof_of(intensity, column)
        axes.loglog(intensity, roof / 1e9, style, label=f"a core: {place}, then arithmetic")
    axes.loglog(table["intensity"], table["rate"] / 1e9, ".", label="rounds of fedmf")
    axes.set(xlabel="numbers computed for a byte moved", ylabel="10⁹ numbers computed a second of a core")
    axes.legend(frameon=False)
    figure.savefig(HERE / "roofline.png", dpi=110)


def text_of(found: Fit) -> str:
    """The module that holds the coefficients.

    Args:
        found: of `fit`.

    Returns:
        Python.
    """
    rows = "\n".join(f'    "{name}": {value!r},' for name, value in found.coefficients.items())
    errors = found.held_out["error"].abs()
    return f'''"""Fitted constants of `runs.machines`, written by `python -m experiments.scaling.fit --write`."""

POINTS = {len(found.fitted)}
HELD_OUT = {len(found.held_out)}
MEDIAN_ERROR = {float(errors.median()):.3f}  # relative, on the points held out
WORST_ERROR = {float(errors.max()):.3f}
COEFFICIENTS = {{  # seconds a count of `machines.counts_of`
{rows}
}}
'''


def main() -> None:
    """Fit, print, draw, and perhaps write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    found = fit()
    if given.write:
        TARGET.write_text(text_of(found), encoding="utf-8")
    for name, value in found.coefficients.items():
        print(f"{name:>18}  {value:.3e}")
    shown = [*VARIED, "devices", "measured", "predicted", "error"]
    print(found.fitted[shown].to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    print(found.held_out[shown].to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    print({name: round(value, 2) for name, value in exponents().items()})
    errors = found.held_out["error"].abs()
    print(f"held out: median error {errors.median():.1%}, worst {errors.max():.1%}")
    draw(found)
    near = roofline()
    shares = near["share"].quantile([0, 0.5, 1])
    print("share of the roof: " + ", ".join(f"{share:.1%}" for share in shares) + " (least, median, most)")
    draw_roofline(near)


if __name__ == "__main__":
    main()
