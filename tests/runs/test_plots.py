"""Figures: what is drawn is what the history and the run say, in formats of papers."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import style

import fedjax_rec as fr
from fedjax_rec.runs.compare import Comparison, ComparisonRow, StoredRun, compare_runs
from fedjax_rec.runs.plots.canvas import drawable
from fedjax_rec.runs.plots.sources import bytes_until, merge_seeds

RANKS = np.array([0.0, 0.0, 1.0, 50.0, np.nan])


def record(label, rounds=4, cohort=10, validated=(2, 4)):
    """A run of which all is known, without training."""
    table = pd.DataFrame({"round": np.arange(1, rounds + 1), "loss": 1.0, "clients": cohort})
    table["batches"], table["lane_steps"] = 6.0, 8.0
    values = {at: at / 100 for at in validated}
    table["validation/full/ndcg@10"] = table["round"].map(values)
    metrics = {"test": {"full": {"ndcg@10": 0.5}, "groups": {"item_popularity": {"head": {"ndcg@10": 0.25}}}}}
    baselines = {"best_reachable": {"full": {"ndcg@10": 0.9}}, "popularity": {"full": {"ndcg@10": 0.1}}}
    result = {"selected_round": 4, "metrics": metrics, "baselines": baselines, "protocol_id": "p"}
    result |= {"bytes_up_per_client": 100, "bytes_down_per_client": 50.0}
    arrays = {"rank_full": RANKS, "tied_full": np.zeros(5), "user_ids": np.arange(5)}
    return fr.plots.RunRecord(label, table, result, StoredRun(fr.runs, {}, {"num_candidates": 9}, arrays))  # type: ignore[arg-type]


def test_curves_show_the_history_and_what_is_reachable():
    """Runs are overlaid; rounds are whole numbers; baselines once, the best reachable score last."""
    figure = fr.plots.learning_curves(record("one"), record("_two"), loss=True)
    loss, metric = figure.axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[1.0] * 4] * 2
    curves = [line for line in metric.lines if len(line.get_xdata()) == 2 and line.get_marker() in "os"]
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in curves] == [
        ([2, 4], [0.02, 0.04])
    ] * 2
    stars = [line.get_ydata() for line in metric.lines if line.get_marker() == "*"]
    assert stars == [[0.5], [0.5]]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [
        "one",
        "selected round",
        "on test, selected round",
        " _two",
        "popularity (test)",
        "best reachable (test)",
    ]
    rings = [line for line in metric.lines if line.get_fillstyle() == "none"]
    assert [line.get_clip_on() for line in rings] == [
        False,
        False,
    ]  # whole where the best round is at the top
    assert metric.get_ylabel() == "validation ndcg@10 (full)"
    assert (figure.get_figwidth(), len(figure.axes)) == (3.3, 2)
    for axes in (loss, metric):
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


def of_seed(seed, rounds, value, **settings):
    """A run of a seed, validated in every second round, always the same."""
    made = record(f"run{seed}", rounds=rounds, validated=range(2, rounds + 1, 2))
    made.history["validation/full/ndcg@10"] *= value / made.history["validation/full/ndcg@10"]
    config = {"algorithm": "fedmf", "seed": seed} | settings
    result = made.result | {"seed": seed, "bytes_up_per_client": 100 + seed}
    return made._replace(result=result, stored=made.stored._replace(config=config))


def test_seeds_of_one_configuration_are_one_curve_with_a_band():
    """The mean at the rounds that all have, from least to most; other settings, protocols and histories apart."""
    runs = [of_seed(0, 6, 0.1), of_seed(1, 4, 0.4), of_seed(0, 6, 0.7, dim=2), of_seed(2, 8, 0.1)]
    elsewhere = of_seed(3, 4, 0.2)
    elsewhere = elsewhere._replace(result=elsewhere.result | {"protocol_id": "q"})
    bare = runs[0]._replace(stored=None, label="bare")
    merged = merge_seeds([*runs, elsewhere, bare])
    first = merged[0]
    assert [each.label for each in merged] == ["run0, 3 seeds", "run0", "run3", "bare"]
    assert [len(each.seeds) for each in merged] == [3, 0, 0, 0]
    assert first.history["round"].tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(
        first.history["validation/full/ndcg@10"].to_numpy(), [np.nan, 0.2, np.nan, 0.2]
    )
    assert (first.result["bytes_up_per_client"], first.result["protocol_id"]) == (101, "p")
    np.testing.assert_array_equal(first.users("ndcg@10", "full"), runs[0].users("ndcg@10", "full"))

    figure = fr.plots.learning_curves(*runs, group_seeds=True, references=False, loss=True)
    _, metric = figure.axes
    ((band,),) = [[path.vertices for path in shape.get_paths()] for shape in metric.collections]
    assert (band[:, 0].min(), band[:, 0].max()) == (2, 4)
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [0.1, 0.4])
    assert metric.lines[0].get_ydata().tolist() == pytest.approx([0.2, 0.2])
    (sent,) = fr.plots.communication(*runs, group_seeds=True).axes
    assert sent.lines[0].get_xdata()[0] == pytest.approx(
        2 * 10 * (101 + 50) / 1000
    )  # kB of two rounds of ten


def test_a_history_draws_itself():
    """And is a frame of its own; without validation its loss is all there is."""
    split = fr.leave_one_out(fr.data.synthetic(30, 90))
    _, history = fr.simulate(fr.fedmf(dim=2), split, rounds=4, eval_every=2)
    pd.testing.assert_frame_equal(history.frame(), fr.frame(history))
    loss, metric = history.plot().axes
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), history.rounds.loss)
    scored = [values["full/ndcg@10"] for _, values in history.evaluations]
    np.testing.assert_allclose(metric.lines[0].get_ydata(), scored)
    assert len(history._replace(evaluations=()).plot().axes) == 1


def test_panels_stand_side_by_side_where_there_is_room():
    """One below the other in a column of a paper."""
    narrow, wide = (fr.plots.learning_curves(record("a"), loss=True, width=width) for width in (3.3, 7))
    assert narrow.get_figheight() > wide.get_figheight()
    places = [[axes.get_position().x0 for axes in figure.axes] for figure in (narrow, wide)]
    assert places[0][0] == places[0][1]
    assert places[1][0] < places[1][1]


def test_distribution_is_that_of_the_users():
    """The share of clients with at least so much: whoever has no test item is none of them."""
    (line,) = fr.plots.client_distribution(record("a"), metric="hr@1").axes[0].lines
    assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == {0.0: 100.0, 1.0: 50.0}


def test_communication_adds_up():
    """Bytes of all clients by the rounds that were validated; a run of many more makes the axis logarithmic."""
    assert bytes_until(record("a")).tolist() == [1500.0, 3000.0, 4500.0, 6000.0]
    figure = fr.plots.communication(record("a"), record("b", rounds=400, cohort=100, validated=(200, 400)))
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0.003, 0.006])
    assert (axes.get_xlabel(), axes.get_xscale()) == ("MB sent and received, all clients", "log")


def test_the_rest_is_what_the_results_say():
    """Groups, lanes, intervals."""
    axes = fr.plots.groups(record("a")).axes[0]
    assert axes.lines[0].get_xdata() == [0.25]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["head items"]
    (line,) = fr.plots.lane_occupancy(record("a")).axes[0].lines
    assert line.get_ydata().tolist() == [75.0] * 4
    rows = [
        ComparisonRow("hr@10", name, "fedmf", (0,), 0.5, 0.4, 0.7, *[None] * 7) for name in ("x/a", "x/b")
    ]
    axes = fr.plots.scores(Comparison("full", "p", 9, tuple(rows))).axes[0]
    assert [np.ravel(line.get_xdata()).tolist() for line in axes.lines[:2]] == [[0.4, 0.7], [0.5]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_files_of_papers(tmp_path):
    """Vectors with text that stays text, whatever names there are and whatever style the reader has set."""
    with style.context({"font.size": 40, "axes.facecolor": "black", "text.usetex": True}):
        figure = fr.plots.learning_curves(record("$\\frac 漢 <b>\udcff"), title="$5 & 6$")
        for name in ("a.pdf", "a.svg"):
            figure.savefig(tmp_path / name)
        assert figure._repr_png_()[:4] == b"\x89PNG"
    assert (tmp_path / "a.pdf").read_bytes()[:5] == b"%PDF-"
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "$\\frac 漢 &lt;b&gt;\\udcff" in text
    assert "$5 &amp; 6$" in text


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (fr.plots.learning_curves, "nothing to draw"),
        (lambda: fr.plots.learning_curves(record("a"), metrics=["hr@7"]), "no validation of full/hr@7"),
        (lambda: fr.plots.learning_curves(record("a"), metrics=["ndgc@10"]), "did you mean 'ndcg@10'"),
        (lambda: fr.plots.learning_curves(record("a"), labels=["a", "b"]), "2 labels for 1 runs"),
        (lambda: fr.plots.learning_curves(5), "run is 5, an int; learning_curves takes a run folder"),
        (lambda: fr.plots.groups(5), "run is 5, an int; groups takes a run folder"),
        (lambda: fr.plots.lane_occupancy([record("a"), 5]), "run is 5, an int; lane_occupancy takes a run"),
        (lambda: fr.plots.scores("a"), r"scores takes what fr.runs.compare_runs\(\[RUN, RUN\]\) returns"),  # type: ignore[arg-type]
        (lambda: fr.plots.learning_curves([]), "nothing to draw"),
        (lambda: fr.plots.learning_curves(record("a"), width=0.0), "inches above 0"),
        (
            lambda: fr.plots.groups(record("a"), metric="mrr"),
            "no run has groups of mrr; metrics of their groups: ndcg@10",
        ),
        (
            lambda: fr.plots.groups(record("a")._replace(stored=None, result={})),
            "a is a History, which says nothing of groups; groups takes run folders",
        ),
        (
            lambda: fr.plots.communication(record("a")._replace(stored=None, result={})),
            "a is a History, which says nothing of bytes per client; communication takes run folders",
        ),
        (
            lambda: fr.plots.client_distribution(record("a")._replace(stored=None)),
            "says nothing of single users",
        ),
        (lambda: fr.plots.communication(record("a")._replace(result={})), "has no bytes per client"),
    ],
)
def test_errors_say_what_to_do(draw, words):
    """In one line."""
    with pytest.raises((ValueError, TypeError), match=words) as problem:
        draw()
    assert "\n" not in str(problem.value)


def test_runs_come_one_by_one_or_as_a_list():
    """Both draw the same."""
    runs = [record("a"), record("b")]
    for draw in (fr.plots.learning_curves, fr.plots.communication, fr.plots.groups, fr.plots.lane_occupancy):
        one_by_one, listed, in_a_tuple = draw(*runs), draw(runs), draw(tuple(runs))
        for other in (listed, in_a_tuple):
            assert len(other.axes[0].lines) == len(one_by_one.axes[0].lines)


def test_a_comparison_fits_a_line():
    """In a console, too; there are as many scores as can be read."""
    rows = [ComparisonRow("hr@10", f"x/run{n}", "fedmf", (0,), 0.5, 0.4, 0.7, *[None] * 7) for n in range(9)]
    text = repr(Comparison("full", "p", 1234, tuple(rows)))
    assert text.startswith("<Comparison of 1,234 users, full ranking: run0 hr@10 0.5000, run1 hr@10 0.5000, ")
    assert len(text) < 250
    with pytest.raises(TypeError, match="folders is 'runs/a', a str; compare_runs takes a sequence"):
        compare_runs("runs/a")
    with pytest.raises(TypeError, match="names is 'popularity', a str; run_baselines takes a sequence"):
        fr.baselines(fr.data.synthetic(30, 90), names="popularity")


def test_long_names_lose_their_middle():
    """So that a legend is no wider than its figure."""
    assert drawable("a" * 20 + "b" * 30) == "a" * 16 + "…" + "b" * 15
