"""The tables and the picture, made of the results and of nothing else."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.honest_benchmark.centrals import PREFIX
from experiments.honest_benchmark.store import Result, read_all

HERE = Path(__file__).parent
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
PICTURE = "benchmark.png"
HEAD = (
    "method", "NDCG@10", "95 % over users", "seeds", "HR@10", "NDCG@10, sampled", "HR@10, sampled", "price",
    "bytes up", "bytes down", "rounds", "tuning s", "run s",
)  # fmt: skip
Runs = dict[tuple[str, str], list[Result]]  # (name, policy) -> its seeds


def update(results: Path, folder: Path) -> None:
    """Write the tables between the markers of README.md, and the picture beside it.

    Args:
        results: folder of the results.
        folder: of README.md; it is begun where it is missing.

    Raises:
        ValueError: if README.md has no markers.
    """
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else f"{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md has no markers; put {BEGIN} and {END} where the tables shall stand")
    found = read_all(results)
    tables = render(found)
    if draw(found, folder / PICTURE):
        tables += f"\n![NDCG@10 of every method, full ranking]({PICTURE})\n"
    pattern = re.escape(BEGIN) + ".*" + re.escape(END)
    whole = re.sub(pattern, lambda _: f"{BEGIN}\n\n{tables}\n{END}", text, flags=re.DOTALL)
    readme.write_text(whole, encoding="utf-8")


def render(results: Iterable[Result]) -> str:
    """All tables, data set by data set.

    Args:
        results: of the store.

    Returns:
        markdown.
    """
    by_dataset: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_dataset[result["dataset"]].append(result)
    if not by_dataset:
        return "No results yet.\n"
    return "\n".join(_dataset(name, found) for name, found in sorted(by_dataset.items()))


def _dataset(dataset: str, results: list[Result]) -> str:
    reference = next((r for r in results if r["name"] == "reference" and "failed" not in r), {})
    runs = _runs(results)
    for leaky in (False, True):
        _one_protocol(dataset, [r for r in results if (r["policy"] == "paper-leaky") == leaky])
    lost = Counter((r["name"], r["policy"]) for r in results if "failed" in r)
    parts = [
        f"## {dataset}\n",
        _ranking(reference, runs, lost),
        _errors(reference.get("ratings", {}), runs),
        _leaks(runs),
        _failures(results),
        _minutes(results),
    ]
    return "\n".join(part for part in parts if part)


def _one_protocol(dataset: str, results: list[Result]) -> None:
    protocols = sorted({r["protocol_id"] for r in results if "failed" not in r})
    if len(protocols) > 1:
        raise ValueError(f"{dataset}: results of the protocols {', '.join(protocols)} share no table")


def _runs(results: list[Result]) -> Runs:
    """What neither failed nor is stale."""
    best, runs = _chosen(results), defaultdict(list)
    for result in results:
        if result["policy"] and "failed" not in result and not _is_stale(result, best):
            runs[result["name"], result["policy"]].append(result)
    return runs


def _chosen(results: list[Result]) -> dict[str, Result]:
    """The trial that tuning chose last, by name."""
    return {r["name"]: r["best"] for r in results if r["policy"] == "tune" and "failed" not in r}


def _is_stale(result: Result, best: dict[str, Result]) -> bool:
    """Whether a run has other settings than tuning chose last."""
    return result["policy"] not in ("", "tune") and result["recipe"].get("tuned") != best.get(result["name"])


def _ranking(reference: Result, runs: Runs, lost: Counter[tuple[str, str]]) -> str:
    """Central methods above, then the federated ones, best first."""
    rows, best = [], 0.0
    if "best_reachable" in reference:
        rows.append(_cells("*best reachable*", reference["best_reachable"], None))
    names = [name for name, policy in runs if policy == "clean" and not _rates(runs[name, policy])]
    for central in (True, False):
        some = [name for name in names if _is_central(name) == central]
        found = [
            _method(name, runs[name, "clean"], runs.get((name, "tune"), []), best, lost[name, "clean"])
            for name in some
        ]
        rows += sorted(found, key=lambda row: row[1], reverse=True)
        if central and not any(_is_central(name) for name, _ in lost):  # else the best may be missing
            best = max((_mean(runs[name, "clean"], "full", "ndcg@10") for name in some), default=0.0)
    return _markdown(HEAD, rows) + _best_over_best(rows) if rows else ""


def _is_central(name: str) -> bool:
    return name.startswith(PREFIX)


def _titled(name: str) -> str:
    return f"{name.removeprefix(PREFIX)} (central)" if _is_central(name) else name


def _best_over_best(rows: list[list[str]]) -> str:
    """The highest federated test score over the highest central one, in each of the two rankings."""
    found = []
    for metric in ("NDCG@10", "HR@10, sampled"):
        column = HEAD.index(metric)
        scores = [(float(row[column]), row[0]) for row in rows if not row[0].startswith("*")]
        central = [each for each in scores if each[1].endswith(" (central)")]
        federated = [each for each in scores if each not in central]
        if central and federated:
            (above, name), (below, other) = max(federated), max(central)
            found.append(f"{metric} {above / below:.3f} ({name} over {other})")
    return f"\nHighest federated test score over highest central one: {'; '.join(found)}.\n" if found else ""


def _method(name: str, seeds: list[Result], tuned: list[Result], best: float, lost: int) -> list[str]:
    """A row; central methods have no price, no traffic, and no rounds."""
    parts = [part for part in seeds[0]["metrics"] if part == "full" or part.startswith("sampled")]
    means = {part: {m: _mean(seeds, part, m) for m in ("ndcg@10", "hr@10")} for part in parts}
    limits = np.mean([seed["intervals"]["full"]["ndcg@10"] for seed in seeds], axis=0)
    row = _cells(_titled(name), means, tuple(limits))
    spread = _spread([seed["metrics"]["full"]["ndcg@10"] for seed in seeds])
    row[3] = f"{len(seeds)}{f' of {len(seeds) + lost}' if lost else ''}{spread}"
    if not _is_central(name):
        priced = best and not lost  # a method gains nothing by failing
        traffic = [f"{np.mean([seed['traffic'][way] for seed in seeds]):,.0f}" for way in ("up", "down")]
        price = f"{means['full']['ndcg@10'] / best:.3f}" if priced else ""
        row[7:11] = [price, *traffic, str(seeds[0]["round"])]
    spent = sum(one["seconds"] for one in tuned)
    row[11:] = [f"{spent:.0f}", f"{np.mean([seed['seconds'] for seed in seeds]):.0f}"]
    return row


def _mean(seeds: list[Result], part: str, metric: str) -> float:
    return float(np.mean([seed["metrics"][part][metric] for seed in seeds]))


def _cells(name: str, metrics: dict[str, Any], limits: Any) -> list[str]:
    sampled = next(part for part in metrics if part.startswith("sampled"))
    between = "" if limits is None else f"{limits[0]:.4f} to {limits[1]:.4f}"
    numbers = [metrics["full"]["hr@10"], metrics[sampled]["ndcg@10"], metrics[sampled]["hr@10"]]
    row = [name, f"{metrics['full']['ndcg@10']:.4f}", between, "", *(f"{n:.4f}" for n in numbers)]
    return row + [""] * (len(HEAD) - len(row))


def _errors(known: dict[str, float], runs: Runs) -> str:
    """Methods that predict ratings, and predictions that need no training."""
    rows = [[f"{name} (central)", f"{value:.4f}", "", ""] for name, value in known.items()]
    for (name, policy), seeds in runs.items():
        if policy == "clean" and _rates(seeds):
            errors = [np.inf if (e := seed["metrics"]["rating"]["rmse"]) is None else e for seed in seeds]
            cells = [f"{len(seeds)}{_spread(errors)}", str(seeds[0]["round"])]
            rows.append([name, f"{np.mean(errors):.4f}", *cells])
    if len(rows) == len(known):
        return ""
    rows.sort(key=lambda row: float(row[1]))
    return "Predicted ratings of the test items, not clipped:\n\n" + _markdown(
        ("method", "RMSE", "seeds", "rounds"), rows
    )


def _leaks(runs: Runs) -> str:
    """What the same settings reach with negatives that spare the held-out items, and no refit."""
    rows = []
    for (name, policy), seeds in runs.items():
        if policy != "paper-leaky":
            continue
        sampled = next(part for part in seeds[0]["metrics"] if part.startswith("sampled"))
        cells = [name, *_means([seed["metrics"] for seed in seeds], sampled)]
        own = [seed["local"]["metrics"] for seed in seeds if "local" in seed]
        spread = _spread([seed["metrics"][sampled]["hr@10"] for seed in seeds])
        rows.append([*cells, *(_means(own, sampled) if own else ["", ""]), f"{len(seeds)}{spread}"])
    if not rows:
        return ""
    head = ("method", "HR@10", "NDCG@10", "HR@10, local table", "NDCG@10, local table", "seeds")
    text = (
        "**LEAKY** (`paper-leaky`, 1 + 99 candidates): training never draws a held-out item as a negative. These "
        "numbers are errors, shown to be recognised; compare them with nothing above.\n\n"
    )
    return text + _markdown(head, sorted(rows))


def _spread(values: list[float]) -> str:
    """The standard deviation over seeds, if there are several."""
    return f", ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""


def _means(metrics: list[dict], part: str) -> list[str]:
    return [f"{np.mean([m[part][name] for m in metrics]):.4f}" for name in ("hr@10", "ndcg@10")]


def _failures(results: list[Result]) -> str:
    best = _chosen(results)
    stale = "of settings that tuning no longer chooses; left out"
    lines = [
        f"* {r['name']}, {r['policy'] or 'all'}, seed {r['seed']}: {r.get('failed', stale)}"
        for r in results
        if "failed" in r or _is_stale(r, best)
    ]
    return "Failed:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _minutes(results: list[Result]) -> str:
    """How long all units took, one after another, and which methods took the most."""
    spent: Counter[str] = Counter()
    for result in results:
        spent["central methods" if _is_central(result["name"]) else result["name"]] += (
            result.get("seconds", 0.0) / 60
        )
    most = ", ".join(f"{name} {minutes:.0f}" for name, minutes in spent.most_common(3))
    return f"Minutes of all units, one after another: {spent.total():.0f}; most of them {most}.\n"


def _rates(seeds: list[Result]) -> bool:
    return "rating" in seeds[0]["metrics"]


def _markdown(head: Iterable[str], rows: list[list[str]]) -> str:
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(results: list[Result], path: Path) -> bool:
    """Draw NDCG@10 of every clean method with its interval, central ones in grey.

    Args:
        results: of the store.
        path: of the picture.

    Returns:
        whether there was anything to draw.
    """
    from matplotlib.figure import Figure

    points = {name: _points([r for r in results if r["dataset"] == name]) for name in _datasets(results)}
    points = {name: found for name, found in points.items() if found}
    if not points:
        return False
    tallest = max(map(len, points.values()))
    figure = Figure(figsize=(4.2 * len(points), 1.2 + 0.24 * tallest), layout="constrained")
    for axes, (dataset, found) in zip(np.ravel(figure.subplots(1, len(points))), points.items(), strict=True):
        ordered = sorted(found, key=lambda point: point[1])
        for place, (_, value, low, high, color) in enumerate(ordered):
            axes.plot([low, high], [place, place], color=color, linewidth=1)
            axes.plot(value, place, marker="o", markersize=4, color=color)
        axes.set_yticks(range(len(ordered)), [point[0] for point in ordered], fontsize=7)
        axes.set(title=dataset, xlabel="NDCG@10, full ranking, test")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def _datasets(results: Iterable[Result]) -> list[str]:
    return sorted({result["dataset"] for result in results})


def _points(results: list[Result]) -> list[tuple[str, float, float, float, str]]:
    """Name, mean, interval and colour of each method of one data set."""
    points = []
    for (name, policy), seeds in _runs(results).items():
        if policy == "clean" and not _rates(seeds):
            low, high = np.mean([seed["intervals"]["full"]["ndcg@10"] for seed in seeds], axis=0)
            color = "0.55" if _is_central(name) else "tab:blue"
            mean = _mean(seeds, "full", "ndcg@10")
            points.append((name.removeprefix(PREFIX), mean, float(low), float(high), color))
    return points
