"""What a person sees of a run: a table, what must be known beside it, curves."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_rec.algorithms.own import label_of
from fedjax_rec.columns import aligned
from fedjax_rec.data.splits import Split
from fedjax_rec.errors import fill
from fedjax_rec.evaluation.summary import name_sampled, tell_rivals
from fedjax_rec.runs.baselines import BaselineRun
from fedjax_rec.runs.build import advice
from fedjax_rec.runs.experiment import Outcome
from fedjax_rec.runs.tuning import text_of
from fedjax_rec.training.history import History

LEAKY = (
    "PAPER-LEAKY NEGATIVES: training spared the held-out items, which inflates the model's numbers; compare them "
    "with papers that did the same, and with nothing else"
)
COLUMNS = (("full", "hr@10"), ("full", "ndcg@10"), ("sampled", "hr@10"), ("sampled", "ndcg@10"))
COLUMNS_OF_SEVERAL = (  # where users have several test items
    *(("full", metric) for metric in ("recall@10", "ndcg@10", "recall@20", "ndcg@20")),
    ("sampled", "recall@10"),
)


def result_table(outcome: Outcome) -> str:
    """The table that ends a run: the federated model between its floor and its ceiling.

    Args:
        outcome: of `run_experiment`.

    Returns:
        several lines of text.

    Example:
        >>> from fedjax_rec.runs.experiment import Settings, run_experiment
        >>> "Popularity" in result_table(run_experiment(Settings(rounds=1, dim=2)))
        True
    """
    columns = _columns(outcome.tested, f"sampled{outcome.settings.num_candidates}")
    leaky = outcome.protocol.negatives == "paper-leaky"
    kind = "federated, LEAKY" if leaky else "federated"
    rows = {f"{label_of(outcome.settings.algorithm)} ({kind})": outcome.metrics["test"]}
    rows["Popularity"] = outcome.baselines["popularity"]
    central = [name for name in outcome.centrals if name != "popularity"]
    rows |= {name: outcome.baselines[name] for name in central}
    if "best_reachable" in outcome.baselines:
        rows["best reachable"] = outcome.baselines["best_reachable"]
    header = [
        f"{_test_of(outcome.split)}, round {outcome.history.selected_round}",
        *(f"{metric} {ranking}" for ranking, metric in columns),
    ]
    body = [
        [name, *(f"{values[ranking][metric]:.4f}" for ranking, metric in columns)]
        for name, values in rows.items()
    ]
    if outcome.price is not None:
        prices = [outcome.price[ranking][metric] for ranking, metric in columns]
        body.append(["federated / best central", *(_ratio(price) for price in prices)])
    return (
        f"{LEAKY}\n" * leaky
        + aligned([header, *body])
        + _rivals(outcome.tested)
        + _price_line(outcome)
        + _privacy_line(outcome)
    )


def _columns(split: Split, sampled: str) -> list[tuple[str, str]]:
    """Ranking and metric of each column."""
    columns = COLUMNS if split.heldout is None else COLUMNS_OF_SEVERAL
    return [(sampled if ranking == "sampled" else ranking, metric) for ranking, metric in columns]


def _test_of(split: Split) -> str:
    """What was tested; the order of events is said where it is not that of time."""
    return "test" if split.order == "time" else f"test ({split.order} order)"


def _rivals(split: Split) -> str:
    return "".join(f"\n{line}" for line in tell_rivals(split))


def _price_line(outcome: Outcome) -> str:
    """One more line, where the price of federation is also one of unequal tuning."""
    if outcome.price is None:
        return ""
    found = [outcome.price[ranking] for ranking in outcome.price]
    tried = {
        price["best"]: price["settings_tried"]
        for prices in found
        for price in prices.values()
        if "settings_tried" in price
    }
    unequal = {name: counts for name, counts in tried.items() if counts["central"] != counts["federated"]}
    if not tried:
        return ""
    if not unequal:
        count = next(iter(tried.values()))["federated"]
        return f"\nboth sides were tuned alike: {count} settings on validation" * (count > 1)
    central = ", ".join(f"{counts['central']} of {name}" for name, counts in sorted(unequal.items()))
    own = next(iter(unequal.values()))["federated"]
    return (
        f"\nsettings tried on validation: {own} of {outcome.settings.algorithm}, {central}; the ratio is of "
        "unequal tuning"
    )


def data_notes(outcome: Outcome) -> list[str]:
    """What was done to the data before they were divided, and what no table of ranks shows.

    Args:
        outcome: of `run_experiment`.

    Returns:
        a line for each; the same for all runs of one protocol.
    """
    leaky = [LEAKY] if outcome.protocol.negatives == "paper-leaky" else []
    return [*leaky, *outcome.split.log, *tell_rivals(outcome.tested)]


def tuning_of_price(outcome: Outcome) -> list[str]:
    """What the price of federation says of how both sides were tuned.

    Args:
        outcome: of `run_experiment`.

    Returns:
        a line, or none where nothing was tuned or there is no price.
    """
    return _price_line(outcome).split("\n")[1:]


def remarks(outcome: Outcome, names: Mapping[str, str]) -> list[str]:
    """What must be known of a training beside its scores: what a search chose, what was lost, why it ended.

    Args:
        outcome: of `run_experiment`.
        names: parameter -> what its reader calls it, as of `ParameterError`.

    Returns:
        a line for each.
    """
    history = outcome.history
    lines = [*_what_won(outcome), *lost_updates(history)]
    if history.stopped == "diverged":
        lines.append(f"training diverged after the best round; {fill(advice(outcome.settings), names)}")
    if history.still_improving:
        ceiling = "{max_seconds}" if history.stopped == "seconds" else "{rounds}"
        lines.append(fill(f"still improving in the last validation: raise {ceiling}", names))
    if history.stopped == "repeats":
        lines.append(
            f"all rounds of {outcome.settings.algorithm} with all clients are the same: it stopped after the "
            f"first of {outcome.settings.rounds}"
        )
    return lines


def endings(outcome: Outcome, names: Mapping[str, str]) -> list[str]:
    """Which rule ended a training that had others than a number of rounds.

    Args:
        outcome: of `run_experiment`.
        names: parameter -> what its reader calls it, as of `ParameterError`.

    Returns:
        a line, the same for all seeds that ended alike; none where a remark says it, or rounds were all there was.
    """
    settings, stopped = outcome.settings, outcome.history.stopped
    if stopped == "patience" and settings.patience_share is None:
        return [fill("ended by {patience}: validation had not risen for as many rounds", names)]
    if stopped == "patience":
        share = f"{settings.patience_share:g} of the rounds"
        return [f"ended by patience: mean validation had not risen for {share}"]
    if stopped == "target":
        return [fill("ended by {target}: validation has reached it", names)]
    if stopped == "seconds":
        return [fill("ended by the clock: {max_seconds}", names)]
    rules = (settings.patience, settings.patience_share, settings.target, settings.max_seconds)
    if stopped == "rounds" and any(rule is not None for rule in rules):
        return [fill("ended by its number of rounds: {rounds}", names)]
    return []


def _what_won(outcome: Outcome) -> list[str]:
    """A line on a search: the settings of the run, and what they reached against the defaults."""
    if outcome.tuning is None:
        return []
    best = outcome.tuning.best
    default = outcome.tuning.rungs[0].trials[0].settings
    beside = next((each for each in outcome.tuning.rungs[-1].trials if each.settings == default), None)
    reached = f"validation {outcome.tuning.rungs[0].metric} {best.validation:.4f}"
    if best.settings == default:
        against = ", which nothing else beat by two standard errors"
    elif beside is None or math.isnan(beside.validation):
        against = "; the defaults diverged"
    else:
        against = f" against {beside.validation:.4f} of the defaults"
    whose = "the defaults won" if best.settings == default else "others than the defaults won"
    return [f"tuned, {whose} of {outcome.tuning.num_settings} settings: {text_of(best)}; {reached}{against}"]


def lost_updates(history: History) -> list[str]:
    """The updates that a run lost: of clients that did not arrive, not finite ones, rounds without a step.

    Args:
        history: of the run.

    Returns:
        a line for each kind; empty where nothing was lost.
    """
    rounds = history.rounds
    empty = int(((rounds.skipped > 0) & (rounds.clients == 0) & (rounds.unsound == 0)).sum())
    unsound = int(rounds.unsound.sum())
    skipped = int(rounds.skipped.sum()) - empty
    lines = []
    if missing := int(rounds.missing.sum()):
        drawn = missing + int(rounds.clients.sum()) + unsound
        lines.append(
            f"missing: {missing:,} of {drawn:,} clients; {empty} rounds were skipped for want of them"
        )
    if unsound or skipped:
        lines.append(f"not finite: {unsound} updates of clients were left out, {skipped} rounds were skipped")
    return lines


def _privacy_line(outcome: Outcome) -> str:
    """One more line, where there is a guarantee."""
    spent = outcome.spending
    rounds = len(outcome.history.rounds.loss)
    if spent is None:
        return ""
    holds = "" if spent.noise_seed == "secret" else ", only against those who do not have the seed"
    clipped = "" if spent.clip is None else f", clip {spent.clip:g}"
    return (
        f"\n{rounds} rounds spend epsilon {spent.epsilon:.3f} at delta {spent.delta:.2e}, per user "
        f"(noise multiplier {spent.noise_multiplier:.3f}{clipped}){holds}; the metrics are not private"
    )


def _ratio(price: Mapping[str, Any]) -> str:
    return "-" if price["ratio"] is None else f"{price['best']} {price['ratio']:.3f}"


def baseline_table(run: BaselineRun) -> str:
    """The table that ends `fedjax-rec baselines`: a row for each method.

    Args:
        run: of `run_baseline_experiment`.

    Returns:
        several lines of text.

    Example:
        >>> from fedjax_rec.runs.baselines import run_baseline_experiment
        >>> from fedjax_rec.runs.settings import Settings
        >>> baseline_table(run_baseline_experiment(Settings(), names=["popularity"])).splitlines()[1].split()[0]
        'popularity'
    """
    columns = _columns(run.split, name_sampled(run.split))
    rows = [
        [_test_of(run.split), *(f"{metric} {ranking}" for ranking, metric in columns), "seconds", "settings"]
    ]
    for name, baseline in run.baselines.items():
        values = [f"{baseline.metrics[ranking][metric]:.4f}" for ranking, metric in columns]
        settings = ", ".join(f"{key} {value:.4g}" for key, value in baseline.settings.items())
        rows.append([name, *values, f"{baseline.seconds:.1f}", settings])
    if run.ceiling is not None:
        values = [f"{run.ceiling[ranking][metric]:.4f}" for ranking, metric in columns]
        rows.append(["best reachable", *values, "", ""])
    return aligned(rows, left=(0, len(rows[0]) - 1)) + _rivals(run.split)


def draw_curves(outcome: Outcome, path: Path, *, title: str) -> None:
    """Draw training loss and validation metrics against rounds, with baselines and the best reachable score.

    Args:
        outcome: of `run_experiment`.
        path: of the picture; its ending says the format.
        title: above the picture.
    """
    from fedjax_rec.runs.plots import learning_curves

    metrics = ("hr@10", "ndcg@10") if outcome.history.evaluations else ()
    learning_curves(outcome, metrics=metrics, loss=True, title=title, width=10).savefig(path, dpi=120)
