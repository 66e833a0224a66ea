"""The figures, each of one run or several."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedjax_rec.errors import check_arguments, wrong_type
from fedjax_rec.runs.compare import Comparison, check_metric
from fedjax_rec.runs.plots.sources import (
    EVALUATED,
    RunRecord,
    bytes_until,
    groups_of,
    metrics_of_groups,
    records_of,
)

WIDTH = 3.3  # inches: a column of a paper of two columns
ASPECT = 0.7  # height of a panel, in widths of a column
BEST = "best_reachable"
UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))


def learning_curves(
    *runs: Any,
    metrics: Sequence[str] = ("ndcg@10",),
    ranking: str = "full",
    loss: bool = False,
    references: bool = True,
    labels: Sequence[str] | None = None,
    group_seeds: bool = False,
    title: str | None = None,
    width: float = WIDTH,
) -> Any:
    """Draw validation against rounds, a panel a metric; the selected round has a ring.

    Horizontal lines are what the baselines and the best reachable score have on *test*; where they are drawn, a
    run's own score on test is a star at its selected round, to be compared with them.

    Args:
        runs: one or several, each as `record_of` takes it, one by one or as a list.
        metrics: that validation measures, such as "hr@10".
        ranking: "full", or "sampled99" by the protocol's number of candidates.
        loss: whether training loss has a panel, too.
        references: whether baselines and the best reachable score are drawn, where the first run has them.
        labels: of the runs, one each; by default their folders or algorithms.
        group_seeds: whether runs that differ in their seed alone are drawn as one, with a band from least to most.
        title: above the first panel.
        width: in inches; panels stand side by side where each has 2.8.

    Returns:
        the figure, of matplotlib.

    Raises:
        ValueError: if a run was not validated in a metric, or something is unknown.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.data.synthetic(30, 90))
        >>> _, history = fr.simulate(fr.fedmf(dim=2), split, rounds=4, eval_every=2)
        >>> [line.get_xdata().tolist() for line in learning_curves(history).axes[0].lines][:1]
        [[2, 4]]
    """
    check_arguments(learning_curves, locals())
    from fedjax_rec.runs.plots.canvas import drawable, sheet

    for metric in metrics:
        check_metric(metric)
    records = records_of(runs, labels, group_seeds=group_seeds, taker="learning_curves")
    with sheet():
        figure, panels = _panels(len(metrics) + loss, width)
        if loss:
            _draw_loss(panels[0], records)
        for axes, metric in zip(panels[loss:], metrics, strict=True):
            _draw_metric(axes, records, ranking, metric, references=references)
        handles, names = panels[-1].get_legend_handles_labels()
        if len(records) > 1 or metrics:
            columns = 2 if width < 6 else 4
            figure.set_figheight(figure.get_figheight() + 0.15 * -(-len(names) // columns))
            figure.legend(handles, names, loc="outside lower center", ncols=columns)
        if title is not None:
            panels[0].set_title(drawable(title, 60))
    return figure


def _panels(count: int, width: float) -> tuple[Any, list[Any]]:
    """Panels side by side where there is room for it, else one below the other."""
    from fedjax_rec.runs.plots.canvas import picture

    columns = max(1, min(count, int(width / 2.8)))
    rows = -(-count // columns)
    figure = picture(width, rows * ASPECT * max(width / columns, 2.8))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in grid[count:]:
        spare.set_visible(False)
    return figure, list(grid[:count])


def _draw_loss(axes: Any, records: Sequence[RunRecord]) -> None:
    from fedjax_rec.runs.plots.canvas import COLORS, drawable, whole_numbers

    for index, record in enumerate(records):
        color = COLORS[index % len(COLORS)]
        rounds = record.history["round"].to_numpy()
        axes.plot(rounds, record.history["loss"], color=color, label=drawable(record.label))
        _draw_band(axes, rounds, [seed.history.set_index("round")["loss"] for seed in record.seeds], color)
    whole_numbers(axes.xaxis)
    axes.set_xlim(left=0)
    axes.set(xlabel="round", ylabel="training loss per example")


def _draw_metric(
    axes: Any, records: Sequence[RunRecord], ranking: str, metric: str, *, references: bool
) -> None:
    from fedjax_rec.runs.plots.canvas import color_of, drawable, whole_numbers

    lines = _references(records, ranking, metric) if references else {}
    named = False  # whether the legend has the ring
    for index, record in enumerate(records):
        style = color_of(index)
        rounds, values = _validation(record, ranking, metric)
        axes.plot(rounds, values, **style, label=drawable(record.label))
        curves = [pd.Series(*_validation(seed, ranking, metric)[::-1]) for seed in record.seeds]
        _draw_band(axes, rounds, curves, style["color"])
        selected = record.result.get("selected_round")
        if selected in rounds and not record.seeds:
            at = values[list(rounds).index(selected)]
            ring = {"markersize": 7, "fillstyle": "none", "clip_on": False}  # whole at the panel's edge, too
            name = "selected round" if not named else None
            named = True
            axes.plot([selected], [at], "o", color=style["color"], label=name, **ring)
        tested = _tested(record, ranking, metric)
        if lines and tested is not None:
            name = "on test, selected round" if index == 0 else ""
            axes.plot(
                [selected],
                [tested],
                "*",
                color=style["color"],
                markersize=7,
                label=name or None,
                clip_on=False,
            )
    _draw_references(axes, lines)
    whole_numbers(axes.xaxis)
    axes.set_xlim(left=0)
    axes.set(xlabel="round", ylabel=f"validation {metric} ({ranking})")
    if any(len(_validation(record, ranking, metric)[0]) for record in records):
        axes.set_ylim(bottom=0)


def _draw_band(axes: Any, rounds: np.ndarray, curves: Sequence[pd.Series], color: str) -> None:
    """From the least to the most of several seeds, at the rounds that all of them have."""
    if not curves:
        return
    values = np.stack([curve.reindex(rounds).to_numpy(float) for curve in curves])
    axes.fill_between(rounds, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)


def _validation(record: RunRecord, ranking: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Rounds that were validated, and what came of it."""
    name = f"validation/{ranking}/{metric}"
    if name not in record.history:
        known = [each for each in record.history if str(each).startswith("validation/")]
        if known:
            names = ", ".join(str(each).removeprefix("validation/") for each in known)
            raise ValueError(f"{record.label} has no validation of {ranking}/{metric}; it has: {names}")
        return np.zeros(0, int), np.zeros(0)
    scored = record.history[["round", name]].dropna()
    return scored["round"].to_numpy(), scored[name].to_numpy()


def _tested(record: RunRecord, ranking: str, metric: str) -> float | None:
    return record.result.get("metrics", {}).get("test", {}).get(ranking, {}).get(metric)


def _references(records: Sequence[RunRecord], ranking: str, metric: str) -> dict[str, float]:
    """Baselines by name of all runs that were measured as the first was, the best reachable score last."""
    found: dict[str, Any] = {}
    for record in records:
        if record.result.get("protocol_id") == records[0].result.get("protocol_id"):
            found = record.result.get("baselines", {}) | found
    found = {name: found[name] for name in sorted(found, key=lambda name: name == BEST)}
    values = {name: metrics.get(ranking, {}).get(metric) for name, metrics in found.items()}
    return {name: value for name, value in values.items() if value is not None}


def _draw_references(axes: Any, lines: dict[str, float]) -> None:
    from fedjax_rec.runs.plots.canvas import FAINT, drawable

    styles = ("--", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (6, 2)))
    for index, (name, value) in enumerate(lines.items()):
        best = name == BEST
        style = ":" if best else styles[index % len(styles)]
        text = "best reachable" if best else drawable(name)
        axes.axhline(value, color=FAINT, linestyle=style, linewidth=1, label=f"{text} (test)", zorder=1)


def client_distribution(
    *runs: Any,
    metric: str = "ndcg@10",
    ranking: str = "full",
    labels: Sequence[str] | None = None,
    group_seeds: bool = False,
    width: float = WIDTH,
) -> Any:
    """Draw which share of the clients has at least so much of a metric: the whole distribution, no bins.

    Args:
        runs: one or several, each as `record_of` takes it, one by one or as a list; a bare history has no clients.
        metric: of the clients' test items.
        ranking: "full", or "sampled99" by the protocol's number of candidates.
        labels: of the runs.
        group_seeds: whether runs that differ in their seed alone are drawn as one, their mean.
        width: in inches.

    Returns:
        the figure, of matplotlib.

    Raises:
        ValueError: if a run has no clients, or something is unknown.
    """
    check_arguments(client_distribution, locals())
    from fedjax_rec.runs.plots.canvas import COLORS, drawable, legend, sheet

    records = records_of(runs, labels, group_seeds=group_seeds, taker="client_distribution")
    with sheet():
        figure, (axes,) = _panels(1, width)
        for index, record in enumerate(records):
            values = np.sort(record.users(metric, ranking))
            levels, first = np.unique(values, return_index=True)
            shares = 100 * (len(values) - first) / len(values)  # of clients with at least that level
            levels, shares = np.append(0.0, levels), np.append(100.0, shares)
            color = COLORS[index % len(COLORS)]
            axes.step(levels, shares, where="pre", color=color, label=drawable(record.label))
        axes.set(xlabel=f"{metric}, {ranking} ranking, at least", ylabel="% of clients")
        axes.set_ylim(bottom=0)
        legend(axes, records)
    return figure


def communication(
    *runs: Any,
    metric: str = "ndcg@10",
    ranking: str = "full",
    labels: Sequence[str] | None = None,
    group_seeds: bool = False,
    width: float = WIDTH,
) -> Any:
    """Draw validation against what all clients together had sent and received by then.

    Args:
        runs: one or several, one by one or as a list: run folders or what `fr.fit` gave; a bare history
            knows no bytes.
        metric: that validation measures.
        ranking: "full", or "sampled99" by the protocol's number of candidates.
        labels: of the runs.
        group_seeds: whether runs that differ in their seed alone are drawn as one, their mean.
        width: in inches.

    Returns:
        the figure, of matplotlib; its axis is logarithmic where the runs' totals differ more than twentyfold.

    Raises:
        ValueError: if a run has no bytes, or something is unknown.
    """
    check_arguments(communication, locals())
    from fedjax_rec.runs.plots.canvas import color_of, drawable, legend, sheet

    check_metric(metric)
    records = records_of(runs, labels, group_seeds=group_seeds, taker="communication")
    curves = []
    for record in records:
        rounds, values = _validation(record, ranking, metric)
        until = dict(zip(record.history["round"].tolist(), bytes_until(record).tolist(), strict=True))
        curves.append((np.array([until[each] for each in rounds.tolist()]), values))
    totals = [sent[-1] for sent, _ in curves if len(sent)] or [1.0]
    unit, size = next(((unit, size) for unit, size in UNITS if max(totals) >= size), UNITS[-1])
    with sheet():
        figure, (axes,) = _panels(1, width)
        for index, (record, (sent, values)) in enumerate(zip(records, curves, strict=True)):
            axes.plot(sent / size, values, **color_of(index), label=drawable(record.label))
        if max(totals) > 20 * max(min(totals), 1e-12):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        else:
            axes.set_xlim(left=0)
        axes.set(xlabel=f"{unit} sent and received, all clients", ylabel=f"{metric}, validation")
        axes.set_ylim(bottom=0)
        legend(axes, records)
    return figure


def lane_occupancy(
    *runs: Any, labels: Sequence[str] | None = None, group_seeds: bool = False, width: float = WIDTH
) -> Any:
    """Draw which share of the engine's slots trained somebody, round by round.

    A slot is one lane in one step of the loop; what is missing to 100 % is lanes that waited for the last clients.

    Args:
        runs: one or several, each as `record_of` takes it, one by one or as a list.
        labels: of the runs.
        group_seeds: whether runs that differ in their seed alone are drawn as one, their mean.
        width: in inches.

    Returns:
        the figure, of matplotlib.

    Raises:
        ValueError: if something is no run.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.data.synthetic(30, 90))
        >>> _, history = fr.simulate(fr.fedmf(dim=2), split, rounds=4)
        >>> len(lane_occupancy(history).axes[0].lines)
        1
    """
    check_arguments(lane_occupancy, locals())
    from fedjax_rec.runs.plots.canvas import COLORS, drawable, legend, sheet, whole_numbers

    records = records_of(runs, labels, group_seeds=group_seeds, taker="lane_occupancy")
    with sheet():
        figure, (axes,) = _panels(1, width)
        for index, record in enumerate(records):
            steps = record.history["lane_steps"].to_numpy(float)
            share = 100 * record.history["batches"].to_numpy(float) / np.maximum(steps, 1)
            color = COLORS[index % len(COLORS)]
            axes.plot(record.history["round"], share, color=color, label=drawable(record.label))
        whole_numbers(axes.xaxis)
        axes.set_xlim(left=0)
        axes.set(xlabel="round", ylabel="% of lanes' slots in use")
        axes.set_ylim(0, 102)
        legend(axes, records)
    return figure


def groups(
    *runs: Any,
    metric: str = "ndcg@10",
    labels: Sequence[str] | None = None,
    group_seeds: bool = False,
    width: float = WIDTH,
) -> Any:
    """Draw means of groups of users: by activity, by head and tail items, by attributes of the data.

    Args:
        runs: one or several, one by one or as a list: run folders or what `fr.fit` gave; a bare history
            has no groups.
        metric: "ndcg@10", "hr@10", or "recall@10" where users have several test items; of full ranking.
        labels: of the runs.
        group_seeds: whether runs that differ in their seed alone are drawn as one, their mean.
        width: in inches.

    Returns:
        the figure, of matplotlib, a line a group.

    Raises:
        ValueError: if no run has groups of this metric.
    """
    check_arguments(groups, locals())
    from fedjax_rec.runs.plots.canvas import FAINT, color_of, drawable, picture, sheet

    records = records_of(runs, labels, group_seeds=group_seeds, taker="groups")
    found = [groups_of(record, metric) for record in records]
    names = list(dict.fromkeys(name for each in found for name in each))
    if not names:
        bare = [record.label for record in records if record.stored is None]
        if bare:
            raise ValueError(
                f"{bare[0]} is a History, which says nothing of groups; groups takes {EVALUATED}"
            )
        known = ", ".join(metrics_of_groups(records)) or "none"
        raise ValueError(f"no run has groups of {metric}; metrics of their groups: {known}")
    with sheet():
        figure = picture(width, 0.8 + 0.17 * len(names) + 0.15 * len(records) * (len(records) > 1))
        axes = figure.subplots()
        places = np.arange(len(names))
        for index, (record, values) in enumerate(zip(records, found, strict=True)):
            rows = [place for place, name in zip(places, names, strict=True) if name in values]
            line = {**color_of(index), "linestyle": "none", "markersize": 5}
            axes.plot([values[names[row]] for row in rows], rows, label=drawable(record.label), **line)
        axes.set_yticks(places, [drawable(name, 26) for name in names])
        axes.grid(axis="y", color=FAINT, linewidth=0.3)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set(xlabel=f"{metric}, full ranking")
        if len(records) > 1:
            figure.legend(loc="outside upper center", ncols=2)
    return figure


def scores(comparison: Comparison, *, labels: Sequence[str] | None = None, width: float = WIDTH) -> Any:
    """Draw the means of a comparison with their 95 % intervals over users, a panel a metric.

    Args:
        comparison: of `fr.runs.compare_runs`.
        labels: of the rows of one metric; by default the runs' names.
        width: in inches.

    Returns:
        the figure, of matplotlib.

    Raises:
        ValueError: if there are not as many labels as rows of a metric.
    """
    if not isinstance(comparison, Comparison):
        raise wrong_type("scores", "comparison", comparison, "what fr.runs.compare_runs([RUN, RUN]) returns")
    check_arguments(scores, locals())
    from fedjax_rec.runs.plots.canvas import COLORS, FAINT, drawable, picture, sheet

    metrics = list(dict.fromkeys(row.metric for row in comparison.rows))
    rows_of = {metric: [row for row in comparison.rows if row.metric == metric] for metric in metrics}
    first = rows_of[metrics[0]]
    if labels is not None and len(labels) != len(first):
        raise ValueError(f"{len(labels)} labels for {len(first)} rows; give one for each")
    names = labels or [row.run.rpartition("/")[2] for row in first]
    with sheet():
        figure = picture(width, 0.6 + 0.2 * len(first))
        panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True).ravel()
        for axes, metric in zip(panels, metrics, strict=True):
            for place, row in enumerate(rows_of[metric]):
                color = COLORS[0] if place == 0 else COLORS[1]
                axes.plot([row.low, row.high], [place, place], color=color)
                axes.plot([row.mean], [place], "o", color=color)
            axes.axvline(rows_of[metric][0].mean, color=FAINT, linewidth=0.5, linestyle=":")
            axes.set(xlabel=metric)
            axes.locator_params(axis="x", nbins=3 if len(metrics) == 1 else 2)
        panels[0].set_yticks(range(len(names)), [drawable(name, 26) for name in names])
        panels[0].set_ylim(len(names) - 0.5, -0.5)
    return figure
