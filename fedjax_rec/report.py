"""What a person sees of a run: a progress bar, a table, curves."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_rec.central import Central
from fedjax_rec.evaluation.measure import name_sampled
from fedjax_rec.experiment import Outcome
from fedjax_rec.simulate import History, Progress, frame

LEAKY = (
    "PAPER-LEAKY NEGATIVES: training spared the held-out items, which inflates the model's numbers; compare them "
    "with papers that did the same, and with nothing else"
)
COLUMNS = (("full", "hr@10"), ("full", "ndcg@10"), ("sampled", "hr@10"), ("sampled", "ndcg@10"))


def progress_bar(**options: Any) -> Callable[[Progress], None]:
    """Make a callback for `simulate(on_block=...)` that shows rounds, validation metric and clients/s.

    Args:
        **options: for tqdm.

    Returns:
        the callback; it opens a bar for each run and closes it when the run stops.

    Example:
        >>> import io
        >>> show = progress_bar(file=io.StringIO())
        >>> show(Progress(1, 1, 10, 0.5, {"full/ndcg@10": 0.1}, 100.0, "rounds"))
    """
    with warnings.catch_warnings():  # tqdm warns where a notebook lacks its widgets; the text bar serves
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    bars: list[Any] = []

    def show(progress: Progress) -> None:
        if not bars:
            bars.append(tqdm(total=progress.rounds, unit="round", **options))
        notes = {"loss": f"{progress.loss:.4f}", "clients/s": f"{progress.clients_per_second:,.0f}"}
        if progress.validation is not None:
            notes = {"val ndcg@10": f"{progress.validation['full/ndcg@10']:.4f}"} | notes
        bars[0].set_postfix(notes, refresh=False)
        bars[0].update(progress.round - bars[0].n)
        if progress.stopped:
            bars.pop().close()

    return show


def table(outcome: Outcome) -> str:
    """The table that ends a run: the federated model between its floor and its ceiling.

    Args:
        outcome: of `run_experiment`.

    Returns:
        several lines of text.

    Example:
        >>> from fedjax_rec.experiment import Settings, run_experiment
        >>> "Popularity" in table(run_experiment(Settings(rounds=1, dim=2)))
        True
    """
    sampled = f"sampled{outcome.settings.num_candidates}"
    keys = [(sampled if part == "sampled" else part, metric) for part, metric in COLUMNS]
    leaky = outcome.protocol.negatives == "paper-leaky"
    kind = "federated, LEAKY" if leaky else "federated"
    rows = {f"{outcome.settings.algorithm} ({kind})": outcome.metrics["test"]}
    rows["Popularity"] = outcome.baselines["popularity"]
    centrals = [name for name in outcome.centrals if name != "popularity"]
    rows |= {name: outcome.baselines[name] for name in centrals}
    if "best_reachable" in outcome.baselines:
        rows["best reachable"] = outcome.baselines["best_reachable"]
    head = [f"test, round {outcome.history.selected_round}", *(f"{metric} {part}" for part, metric in keys)]
    body = [
        [name, *(f"{values[part][metric]:.4f}" for part, metric in keys)] for name, values in rows.items()
    ]
    if outcome.price is not None:
        prices = [outcome.price[part][metric] for part, metric in keys]
        body.append(["federated / best central", *(_ratio(price) for price in prices)])
    return f"{LEAKY}\n" * leaky + _lay_out([head, *body]) + _spent(outcome)


def losses(history: History) -> list[str]:
    """What a run lost: clients that did not arrive, updates that are not finite, rounds without a step.

    Args:
        history: of the run.

    Returns:
        a line for each kind; empty where nothing was lost.

    Example:
        see `fedjax_rec.cli`.
    """
    rounds, lines = history.rounds, []
    nobody = int(((rounds.skipped > 0) & (rounds.clients == 0) & (rounds.unsound == 0)).sum())
    left_out, skipped = int(rounds.unsound.sum()), int(rounds.skipped.sum()) - nobody
    if missing := int(rounds.missing.sum()):
        came = missing + int(rounds.clients.sum()) + left_out
        lines.append(
            f"missing: {missing:,} of {came:,} clients; {nobody} rounds were skipped for want of them"
        )
    if left_out or skipped:
        lines.append(
            f"not finite: {left_out} updates of clients were left out, {skipped} rounds were skipped"
        )
    return lines


def _spent(outcome: Outcome) -> str:
    """One more line, where there is a guarantee."""
    private, rounds = outcome.private, len(outcome.history.rounds.loss)
    if private is None:
        return ""
    return (
        f"\n{rounds} rounds spend epsilon {private.epsilon(rounds):.3f} at delta {private.delta:.2e}, per user "
        f"(noise multiplier {private.noise_multiplier:.3f}, clip {private.clip:g}); the metrics are not private"
    )


def _ratio(price: Mapping[str, Any]) -> str:
    return "-" if price["ratio"] is None else f"{price['best']} {price['ratio']:.3f}"


def central_table(central: Central) -> str:
    """The table that ends `fedjax-rec baselines`: a row for each method.

    Args:
        central: of `run_central`.

    Returns:
        several lines of text.

    Example:
        >>> from fedjax_rec.central import run_central
        >>> from fedjax_rec.settings import Settings
        >>> central_table(run_central(Settings(), names=["popularity"])).splitlines()[1].split()[0]
        'popularity'
    """
    sampled = name_sampled(central.split)
    keys = [(sampled if part == "sampled" else part, metric) for part, metric in COLUMNS]
    rows = [["test", *(f"{metric} {part}" for part, metric in keys), "seconds", "settings"]]
    for name, found in central.baselines.items():
        values = [f"{found.metrics[part][metric]:.4f}" for part, metric in keys]
        chosen = ", ".join(f"{key} {value:.4g}" for key, value in found.settings.items())
        rows.append([name, *values, f"{found.seconds:.1f}", chosen])
    if central.ceiling is not None:
        values = [f"{central.ceiling[part][metric]:.4f}" for part, metric in keys]
        rows.append(["best reachable", *values, "", ""])
    return _lay_out([row[:-1] for row in rows], [row[-1] for row in rows])


def _lay_out(rows: list[list[str]], notes: Sequence[str] | None = None) -> str:
    """Columns: the first one to the left, the others to the right, notes behind them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, note in zip(rows, notes or [""] * len(rows), strict=True):
        cells = [
            row[0].ljust(widths[0]),
            *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True)),
            note,
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def draw_curves(history: History, path: Path, *, title: str) -> None:
    """Draw training loss and validation metrics against rounds.

    Args:
        history: of `simulate`.
        path: of the picture; its ending says the format.
        title: above the picture.

    Example:
        see `fedjax_rec.run_folder.save`.
    """
    from matplotlib.figure import Figure

    data = frame(history)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    loss, metric = figure.subplots(1, 2)
    loss.plot(data["round"], data["loss"], color="tab:blue", linewidth=1)
    loss.set(xlabel="round", ylabel="training loss per example", title=title)
    scored = data.dropna() if history.evaluations else data.iloc[:0]
    for name, color in (("hr@10", "tab:orange"), ("ndcg@10", "tab:green")):
        if len(scored):
            metric.plot(
                scored["round"], scored[f"validation/full/{name}"], color=color, marker=".", label=name
            )
    if len(scored):
        metric.axvline(history.selected_round, color="grey", linestyle=":", label="selected round")
        metric.legend(frameon=False)
    metric.set(xlabel="round", ylabel="validation, full ranking", title="validation")
    figure.savefig(path, dpi=120)
