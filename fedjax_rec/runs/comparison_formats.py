"""Comparisons as text: an aligned table, csv, JSON, LaTeX, Markdown."""

import csv
import io
import json
import math
from collections.abc import Callable
from typing import Any

from fedjax_rec.columns import aligned
from fedjax_rec.errors import printable
from fedjax_rec.runs.compare import Comparison, ComparisonRow
from fedjax_rec.runs.markup import escape, table

SIGNIFICANCE_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))  # p below the bound has the stars
NOTE = (
    "95 % intervals: percentile bootstrap over users. p: paired permutation test against the first run, "
    "Holm over the table. * p < .05, ** p < .01, *** p < .001"
)

SHOWN_SCORES = 6  # in a line


def render(comparison: Comparison, form: str = "table") -> str:
    """Write a comparison.

    Args:
        comparison: of `compare_runs`.
        form: a key of `FORMATS`.

    Returns:
        the text, without a line break at its end.

    Raises:
        ValueError: if the form is unknown.

    Example:
        >>> row = ComparisonRow("hr@10", "a", "fedmf", (0,), 0.5, 0.4, 0.6, *[None] * 7)
        >>> render(Comparison("full", "0" * 12, 9, (row,)), "csv").splitlines()[0][:24]
        'metric,run,algorithm,see'
    """
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; choose one of {', '.join(FORMATS)}")
    if form == "json":  # which escapes by itself
        return _json(comparison)
    shown = [
        row._replace(run=printable(row.run), algorithm=printable(row.algorithm)) for row in comparison.rows
    ]
    return FORMATS[form](
        comparison._replace(rows=tuple(shown), protocol_id=printable(comparison.protocol_id))
    )


def to_line(comparison: Comparison) -> str:
    """A comparison in a line, the first scores of which are shown.

    Args:
        comparison: of `compare_runs`.

    Returns:
        the text.

    Example:
        >>> row = ComparisonRow("hr@10", "runs/a", "fedmf", (0,), 0.5, 0.4, 0.6, *[None] * 7)
        >>> Comparison("full", "0" * 12, 9, (row,))
        <Comparison of 9 users, full ranking: a hr@10 0.5000>
    """
    shown = [f"{row.run.rpartition('/')[2]} {row.metric} {row.mean:.4f}" for row in comparison.rows]
    more = ["..."] * (len(shown) > SHOWN_SCORES)
    scores = printable(", ".join(shown[:SHOWN_SCORES] + more))
    return f"<Comparison of {comparison.num_users:,} users, {comparison.ranking} ranking: {scores}>"


def significance_stars(p: float | None) -> str:
    """The stars of a p-value.

    Args:
        p: adjusted, or None where nothing was tested.

    Returns:
        `***`, `**`, `*` or nothing.

    Example:
        >>> significance_stars(0.002), significance_stars(0.05), significance_stars(None)
        ('**', '', '')
    """
    return next((stars for bound, stars in SIGNIFICANCE_STARS if p is not None and p < bound), "")


def _header(comparison: Comparison) -> list[str]:
    seeds = ["over seeds", "deviation"] if _has_seeds(comparison) else []
    return ["metric", "run", "mean", "95 % interval", *seeds, "difference", "95 % interval", "p", ""]


def _cells(row: ComparisonRow, *, seeds: bool) -> list[str]:
    """A row as text, by the columns of the header."""
    deviation = "" if row.seed_deviation is None else f"{row.seed_deviation:.4f}"
    over_seeds = [_range(row.seed_low, row.seed_high), deviation] if seeds else []
    difference = [
        "" if row.difference is None else f"{row.difference:+.4f}",
        _range(row.difference_low, row.difference_high, "+"),
        "" if row.p is None else f"{row.p:.4f}",
        significance_stars(row.p),
    ]
    return [row.metric, row.run, f"{row.mean:.4f}", _range(row.low, row.high), *over_seeds, *difference]


def _range(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None else f"{low:{sign}.4f} to {high:{sign}.4f}"


def _has_seeds(comparison: Comparison) -> bool:
    return any(row.seed_low is not None for row in comparison.rows)


def _title(comparison: Comparison) -> str:
    return f"{comparison.ranking} ranking, {comparison.num_users:,} users, protocol {comparison.protocol_id}"


def _grid(comparison: Comparison) -> list[list[str]]:
    seeds = _has_seeds(comparison)
    return [_header(comparison), *(_cells(row, seeds=seeds) for row in comparison.rows)]


def _table(comparison: Comparison) -> str:
    rows = aligned(_grid(comparison), left=(0, 1))
    return "\n".join([_title(comparison), rows, NOTE, *comparison.warnings])


def _csv(comparison: Comparison) -> str:
    """All fields at full precision; several seeds are separated by blanks."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*ComparisonRow._fields, "mark", "ranking", "protocol_id", "users"])
    for row in comparison.rows:
        fields = row._replace(seeds=" ".join(map(str, row.seeds)))  # type: ignore[arg-type]
        shared = [significance_stars(row.p), comparison.ranking, comparison.protocol_id, comparison.num_users]
        writer.writerow(["" if value is None else value for value in fields] + shared)
    return text.getvalue().rstrip("\n")


def _json(comparison: Comparison) -> str:
    rows = [
        _plain(row._asdict() | {"seeds": list(row.seeds), "mark": significance_stars(row.p)})
        for row in comparison.rows
    ]
    shared = comparison._asdict() | {"rows": rows, "note": NOTE}
    return json.dumps(shared, indent=2, allow_nan=False)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _markdown(comparison: Comparison) -> str:
    grid = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in cells] for cells in _grid(comparison)]
    align = ["---"] * 2 + ["---:"] * (len(grid[0]) - 3) + ["---"]
    lines = [f"| {' | '.join(cells)} |" for cells in (grid[0], align, *grid[1:])]
    notes = ". ".join([_title(comparison), NOTE, *comparison.warnings])
    return "\n".join([*lines, "", notes.replace("*", "\\*")])


def to_html(comparison: Comparison) -> str:
    """A comparison as a notebook shows it.

    Args:
        comparison: of `compare_runs`.

    Returns:
        HTML; names are escaped.

    Example:
        >>> row = ComparisonRow("hr@10", "<b>", "fedmf", (0,), 0.5, 0.4, 0.6, *[None] * 7)
        >>> "<td>&lt;b&gt;</td>" in to_html(Comparison("full", "0" * 12, 9, (row,)))
        True
    """
    header, *rows = [[escape(cell) for cell in cells] for cells in _grid(comparison)]
    notes = "".join(f"<p>{escape(line)}</p>" for line in (NOTE, *comparison.warnings))
    return f"<p>{escape(_title(comparison))}</p>{table(header, rows)}{notes}"


def _latex(comparison: Comparison) -> str:
    """As papers set it: a row a run, a column a metric, the best mean in bold, stars against the first run."""
    metrics = list(dict.fromkeys(row.metric for row in comparison.rows))
    by_metric = [[row for row in comparison.rows if row.metric == metric] for metric in metrics]
    best = [max((row.mean for row in rows), default=math.nan) for rows in by_metric]
    header = f"{' & '.join(['method', *(_escape(_shown(metric)) for metric in metrics)])} \\\\"
    short = [_without_seed(row) for row in by_metric[0]] if by_metric else []
    body = []
    for name, *rows in zip(short, *by_metric, strict=True):
        shown = name if short.count(name) == 1 else _folder(rows[0])
        cells = [_latex_cell(row, bold=row.mean == top) for row, top in zip(rows, best, strict=True)]
        body.append(f"{' & '.join([_latex_name(shown, rows[0].algorithm), *cells])} \\\\")
    columns = "l" + "r" * len(metrics)
    # in a box of no width, which stretches no column
    foot = rf"\makebox[0pt][l]{{\scriptsize $\pm$: {_spread(comparison)}}}"
    spread = rf"\multicolumn{{{len(metrics) + 1}}}{{l}}{{{foot}}} \\"
    rules = [r"\toprule", header, r"\midrule", *body, r"\bottomrule", spread]
    title = f"{_title(comparison)}; needs the package booktabs"
    notes = [f"% {line}" for line in (title, NOTE, *comparison.warnings)]
    return "\n".join([*notes, f"\\begin{{tabular}}{{{columns}}}", *rules, r"\end{tabular}"])


def _spread(comparison: Comparison) -> str:
    """What stands behind the means, for the foot of the table."""
    of_seeds = {row.seed_deviation is not None for row in comparison.rows}
    users = r"half of the 95\,\% interval over users"
    seeds = "standard deviation over seeds"
    if of_seeds == {True, False}:
        return f"{seeds} where there are several, else {users}"
    return seeds if of_seeds == {True} else users


def _shown(metric: str) -> str:
    """The name of a metric as papers write it."""
    name, at, k = metric.partition("@")
    return f"{'Recall' if name == 'recall' else name.replace('_', ' ').upper()}{at}{k}"


def _folder(row: ComparisonRow) -> str:
    return row.run.replace("\\", "/").rpartition("/")[2]


def _without_seed(row: ComparisonRow) -> str:
    """The run's folder; of several seeds it is that of the first one, which often ends with it."""
    folder = _folder(row)
    count = f" ({len(row.seeds)} seeds)"
    if not folder.endswith(count):
        return folder
    name, *method = folder.removesuffix(count).split(":", 1)
    return ":".join([name.removesuffix(f"-{row.seeds[0]}"), *method]) + count


def _latex_name(folder: str, algorithm: str) -> str:
    """The run, by its algorithm where the folder does not say it."""
    known = algorithm in folder or not algorithm
    return rf"\texttt{{{_escape(folder)}}}" + ("" if known else rf" (\texttt{{{_escape(algorithm)}}})")


def _latex_cell(row: ComparisonRow, *, bold: bool) -> str:
    """Mean, stars, half of the interval's width, or the deviation over seeds."""
    mean = rf"\textbf{{{row.mean:.4f}}}" if bold else f"{row.mean:.4f}"
    stars = significance_stars(row.p)
    spread = (row.high - row.low) / 2 if row.seed_deviation is None else row.seed_deviation
    return mean + (f"$^{{{stars}}}$" if stars else "") + rf" {{\scriptsize $\pm$ {spread:.4f}}}"


def _escape(text: str) -> str:
    """Text for LaTeX."""
    special = {letter: f"\\{letter}" for letter in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(letter, letter) for letter in text)


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "table": _table, "csv": _csv, "json": _json, "latex": _latex, "markdown": _markdown
}  # fmt: skip
