"""`fedjax-rec compare`: numbers, formats, and one-line errors with status 2."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedjax_rec.cli.compare import FORMATS as CHOICES
from fedjax_rec.cli.main import main
from fedjax_rec.evaluation.metrics import user_metrics
from fedjax_rec.evaluation.protocol import Protocol, protocol_id
from fedjax_rec.evaluation.statistics import bootstrap_interval, holm, paired_interval, permutation_test
from fedjax_rec.runs.compare import Comparison, ComparisonRow, compare_runs, read_run, read_runs
from fedjax_rec.runs.comparison_formats import FORMATS, render
from tests.cli.refusals import refusal

USERS = 300


def write_run(folder, ranks, *, protocol=None, seed=0, dim=8, tied=None, without=()) -> str:
    """A run folder of given ranks, as far as `compare` reads it; user 7 has no test item."""
    folder.mkdir()
    protocol = protocol or Protocol()
    identity = {"protocol_id": protocol_id(protocol)} | protocol.to_json()
    settings = {"algorithm": "fedmf", "dim": dim, "seed": seed, "out": str(folder)}
    for name, value in (("config", settings), ("protocol", identity), ("result", {})):
        (folder / f"{name}.json").write_text(json.dumps(value))
    ranks = np.where(np.arange(len(ranks)) == 7, np.nan, ranks).astype(np.float32)
    arrays = {
        "user_ids": np.arange(len(ranks)),
        "test_item_ids": np.where(np.isnan(ranks), "", np.arange(len(ranks)).astype(str)),
        "rank_full": ranks,
        "tied_full": np.zeros(len(ranks), np.int32) if tied is None else tied,
        "rivals_full": np.full(len(ranks), 500),
        "rank_sampled": np.floor(ranks / 5),
        "tied_sampled": np.zeros(len(ranks), np.int32),
        "rivals_sampled": np.full(len(ranks), 99),
    }
    arrays = {name: value for name, value in arrays.items() if name not in without}
    np.savez(folder / "per_user.npz", allow_pickle=False, **arrays)
    return str(folder)


@pytest.fixture
def runs(tmp_path) -> list[str]:
    """A weak run, a clearly better one, and one that differs by chance only; one user has no test item."""
    rng = np.random.default_rng(0)
    weak = rng.integers(0, 60, USERS).astype(float)
    weak[7] = np.nan
    ranks = {
        "weak": weak,
        "strong": np.floor(weak / 2),
        "alike": weak + rng.choice([-1, 1], USERS) * (weak > 0),
    }
    return [write_run(tmp_path / name, rank, dim=dim) for dim, (name, rank) in enumerate(ranks.items(), 1)]


def test_numbers_are_those_of_the_statistics(runs):
    """Means, intervals, differences and adjusted p-values, recomputed from the arrays."""
    table = compare_runs(runs, metrics=["ndcg@10", "hr@5"])
    assert (table.num_users, table.ranking, table.protocol_id) == (USERS - 1, "full", protocol_id(Protocol()))
    assert [(row.metric, row.run) for row in table.rows] == [
        (m, r) for m in ("ndcg@10", "hr@5") for r in runs
    ]
    values = {
        (metric, run): user_metrics(read_run(run).users["rank_full"], [5, 10])[metric]
        for metric in ("ndcg@10", "hr@5")
        for run in runs
    }
    tests = []
    for row in table.rows:
        own = values[row.metric, row.run]
        first = values[row.metric, runs[0]]
        assert (row.low, row.mean, row.high) == bootstrap_interval(own)
        if row.run == runs[0]:
            assert (row.difference, row.p, row.p_wilcoxon) == (None, None, None)
        else:
            gap = (row.difference_low, row.difference, row.difference_high)
            assert gap == pytest.approx(paired_interval(own, first))
            tests.append(permutation_test(own, first))
    assert [row.p for row in table.rows if row.p is not None] == pytest.approx(holm(np.array(tests)))
    strong, alike = table.rows[1:3]
    assert strong.p is not None
    assert strong.p < 0.001
    assert alike.p is not None
    assert alike.p > 0.05


def test_rankings_metrics_and_ties(tmp_path):
    """The sampled ranking, AUC by rivals, and expectations where items tie."""
    one = write_run(tmp_path / "one", [4, 4], tied=np.array([0, 8]))
    two = write_run(tmp_path / "two", [4, 20])
    assert compare_runs([one, two], metrics=["hr@3"]).rows[0].mean == pytest.approx((0 + 3 / 9) / 2)
    assert compare_runs([one, two], metrics=["auc"]).rows[1].mean == 1 - 12 / 500
    for name in ("sampled", "sampled99"):
        assert compare_runs([one, two], metrics=["mrr"], ranking=name).rows[1].mean == (1 + 1 / 5) / 2


def test_seeds_of_one_configuration_share_a_row(tmp_path, runs):
    """Averaged user by user, with a t interval over the seeds; without the flag they stand apart."""
    ranks = np.random.default_rng(1).integers(0, 40, (3, USERS)).astype(float)
    ranks[:, 7] = np.nan  # as in the other runs: the protocol fixes who is tested
    seeds = [write_run(tmp_path / f"s{seed}", rank, seed=seed) for seed, rank in enumerate(ranks)]
    table = compare_runs([seeds[0], runs[0], *seeds[1:]], metrics=["hr@10"], group_seeds=True)
    assert [row.run for row in table.rows] == [f"{seeds[0]} (3 seeds)", runs[0]]
    row, other = table.rows
    assert row.seeds == (0, 1, 2)
    assert row.mean == pytest.approx(np.mean(ranks[~np.isnan(ranks)] < 10))
    assert row.seed_low is not None
    assert row.seed_high is not None
    assert row.seed_low < row.mean < row.seed_high
    assert other.seed_low is None
    assert "over seeds" in render(table)
    assert len(compare_runs(seeds).rows) == 3
    *alone, mean = compare_runs(seeds, metrics=["hr@10"], group_seeds=True).rows
    assert [one.run for one in alone] == seeds
    assert (mean.run, mean.seeds, mean.mean) == ("mean of 3 seeds", (0, 1, 2), row.mean)
    assert mean.seed_deviation == pytest.approx(np.std([one.mean for one in alone], ddof=1))


def test_what_a_search_chose_for_each_seed_makes_no_difference(tmp_path):
    """Seeds of a tuned run share a row, though each has settings of its own."""
    folders = []
    for seed in (0, 1):
        folder = Path(write_run(tmp_path / f"s{seed}", [seed, 2], seed=seed))
        config = json.loads((folder / "config.json").read_text())
        tuned = {"tune": 4, "learning_rate": 0.1 * seed, "before_tuning": {"learning_rate": None}}
        (folder / "config.json").write_text(json.dumps(config | tuned))
        folders.append(folder)
    assert len(compare_runs(folders, group_seeds=True).rows) == 3


def test_table(runs, capsys):
    """One line a run, the first without a difference; stars where p is small; a note that says what is shown."""
    assert main(["compare", *runs]) == 0
    title, head, weak, strong, alike, note = capsys.readouterr().out.splitlines()
    assert title == f"full ranking, 299 users, protocol {protocol_id(Protocol())}"
    assert head.split()[:3] == ["metric", "run", "mean"]
    assert weak.split()[:2] == ["ndcg@10", runs[0]]
    assert len(weak.split()) == 6
    assert strong.endswith("***")
    assert "*" not in alike
    assert "Holm" in note


def test_csv(runs, capsys):
    """Full precision, a header, empty cells where nothing was tested."""
    main(["compare", *runs, "--format", "csv", "--metric", "hr@10,mrr", "--ranking", "sampled99"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["metric"] for row in rows] == ["hr@10"] * 3 + ["mrr"] * 3
    expected = compare_runs(runs, metrics=["hr@10", "mrr"], ranking="sampled99").rows
    for row, one in zip(rows, expected, strict=True):
        assert float(row["mean"]) == one.mean
        assert row["p"] == ("" if one.p is None else str(one.p))
        assert (row["ranking"], row["users"]) == ("sampled99", "299")
    assert rows[1]["mark"] == "***"


def test_json(runs, capsys):
    """Every field, None where nothing was tested."""
    main(["compare", *runs, "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert found["protocol_id"] == protocol_id(Protocol())
    assert [row["run"] for row in found["rows"]] == runs
    assert found["rows"][0]["difference"] is None
    assert found["rows"][1]["difference"] == compare_runs(runs).rows[1].difference
    assert found["rows"][1]["seeds"] == [0]


def test_markdown(runs, capsys):
    """A table with as many cells in every line, stars escaped."""
    main(["compare", *runs, "--format", "markdown"])
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert lines[1].startswith("| --- | --- | ---:")
    assert lines[3].endswith("\\*\\*\\* |")


def test_latex(runs, capsys, tmp_path):
    """A tabular of a row a run and a column a metric, as papers set it, whose special characters are escaped."""
    other = write_run(tmp_path / "a_b&c", np.arange(USERS))
    main(["compare", runs[0], other, "--format", "latex", "--metric", "ndcg@10,hr@5"])
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("%")]
    assert (lines[0], lines[-1]) == (r"\begin{tabular}{lrr}", r"\end{tabular}")
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == 2
    assert all(line.endswith(r"\\") for line in body)
    assert lines[2] == r"method & NDCG@10 & HR@5 \\"
    assert body[1].startswith(r"\texttt{a\_b\&c} (\texttt{fedmf}) & ")
    first, second = compare_runs([runs[0], other]).rows
    assert rf"\textbf{{{first.mean:.4f}}}" in body[0]
    assert rf" & {second.mean:.4f}$^{{***}}$ {{\scriptsize $\pm$ " in body[1]
    assert "*" not in body[0]
    foot = r"\makebox[0pt][l]{\scriptsize $\pm$: half of the 95\,\% interval over users}"
    assert lines[-2] == rf"\multicolumn{{3}}{{l}}{{{foot}}} \\"


def test_latex_of_seeds(runs, tmp_path):
    """A row of several seeds has its configuration's name, and the foot says which spread is whose."""
    ranks = np.random.default_rng(1).integers(0, 40, (2, USERS)).astype(float)
    ranks[:, 7] = np.nan
    seeds = [write_run(tmp_path / f"fedmf-{seed}", rank, seed=seed) for seed, rank in enumerate(ranks)]
    both = render(compare_runs([*seeds, runs[0]], metrics=["hr@10"], group_seeds=True), "latex").splitlines()
    row = next(line for line in both if line.startswith(r"\texttt{fedmf (2 seeds)} & "))
    deviation = np.std([np.nanmean(np.where(np.isnan(r), np.nan, r < 10)) for r in ranks], ddof=1)
    assert row.endswith(rf"$\pm$ {deviation:.4f}}} \\")
    foot = (
        "standard deviation over seeds where there are several, else half of the 95\\,\\% interval over users"
    )
    assert foot in both[-2]
    # Two configurations whose folders end with their first seeds keep names of their own.
    rows = [
        ComparisonRow("hr@10", f"runs/fedmf-{s}:ease (2 seeds)", "ease", (s, s + 1), *[0.5] * 3, *[None] * 7)
        for s in (1, 3)
    ]
    text = render(Comparison("full", "0" * 12, 9, tuple(rows[:1])), "latex")
    assert r"\texttt{fedmf:ease (2 seeds)} & " in text
    text = render(Comparison("full", "0" * 12, 9, tuple(rows)), "latex")
    assert all(rf"\texttt{{fedmf-{s}:ease (2 seeds)}} & " in text for s in (1, 3))


def test_a_notebook_shows_a_table(runs, tmp_path):
    """With names escaped."""
    html = compare_runs([runs[0], write_run(tmp_path / "<b>&", np.arange(USERS))])._repr_html_()
    assert "/&lt;b&gt;&amp;</td>" in html
    assert html.count("<tr>") == 3


def test_the_command_line_knows_all_formats(runs):
    """Its choices are the formats there are; an unknown one is an error in the library too."""
    assert tuple(FORMATS) == CHOICES
    with pytest.raises(ValueError, match="unknown format 'html'; choose one of table, csv"):
        render(compare_runs(runs), "html")


def test_real_runs_can_be_compared(tmp_path, capsys):
    """What `run` writes, `compare` reads; the mean is the reported one."""
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for seed, folder in enumerate(folders):
        main(["run", "--rounds", "1", "--dim", "2", "--seed", str(seed), "--out", folder])
    capsys.readouterr()
    for ranking in ("full", "sampled99"):
        main(["compare", *folders, "--format", "json", "--metric", "hr@10,auc", "--ranking", ranking])
        rows = json.loads(capsys.readouterr().out)["rows"]
        for row in rows:
            result = json.loads((tmp_path / row["run"] / "result.json").read_text())
            assert row["mean"] == pytest.approx(result["metrics"]["test"][ranking][row["metric"]])
            if row["metric"] == "hr@10":
                limits = result["metrics"]["test"]["intervals"][ranking]["hr@10"]
                assert [row["low"], row["high"]] == pytest.approx(limits)


def break_run(folder, kind) -> None:
    """Damage a run folder."""
    if kind == "no users":
        (folder / "per_user.npz").unlink()
    elif kind == "no result":
        (folder / "result.json").unlink()
    elif kind == "cut off":
        (folder / "per_user.npz").write_bytes((folder / "per_user.npz").read_bytes()[:200])
    elif kind == "not json":
        (folder / "protocol.json").write_text("{")
    elif kind == "no id":
        (folder / "protocol.json").write_text("[]")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no users", "strong has no per-user data (per_user.npz is missing)"),
        ("no result", "strong is not a run folder: result.json is missing"),
        ("cut off", "strong is not a sound run folder"),
        ("not json", "strong is not a sound run folder"),
        ("no id", "strong is not a sound run folder: protocol.json holds no names and values"),
    ],
)
def test_damaged_folders(kind, message, runs, tmp_path, capsys):
    """One line that names the folder and what is wrong."""
    break_run(tmp_path / "strong", kind)
    assert message in refuse(runs, capsys)


def refuse(arguments, capsys) -> str:
    """The one error line of a refused comparison."""
    (line,) = refusal(["compare", *arguments], capsys).splitlines()
    return str(line)


def test_different_protocols_are_refused(runs, tmp_path, capsys):
    """Every field that differs is named."""
    protocol = Protocol(min_rating=4, refit=True)
    other = write_run(tmp_path / "other", np.arange(USERS), protocol=protocol)
    line = refuse([runs[0], other], capsys)
    assert "different protocols: min_rating None against 4.0, refit False against True" in line


def test_other_users_are_refused(runs, tmp_path, capsys):
    """The same protocol with another number of users, which only a damaged folder can have."""
    other = write_run(tmp_path / "other", np.arange(USERS - 1))
    assert "do not rank the same users: user_ids differ" in refuse([runs[0], other], capsys)


def test_bad_arguments(runs, tmp_path, capsys):
    """One line with the way out."""
    assert "compare needs 2 runs or more; none was given" in refuse([], capsys)
    assert f"compare needs 2 runs or more; only {runs[0]} was given" in refuse(runs[:1], capsys)
    assert "is given twice" in refuse([runs[0], runs[1], runs[0]], capsys)
    assert "no/such is not a run folder: no such directory" in refuse([runs[0], "no/such"], capsys)
    assert "unknown metric 'ndgc@10'; did you mean 'ndcg@10'?" in refuse(
        [*runs, "--metric", "ndgc@10"], capsys
    )
    assert "unknown metric 'hr@0'" in refuse([*runs, "--metric", "ndcg@10,hr@0"], capsys)
    assert "choose one of 'full', 'sampled99'" in refuse([*runs, "--ranking", "sampled100"], capsys)
    assert "invalid choice: 'html'" in refuse([*runs, "--format", "html"], capsys)
    assert "did you mean --metric?" in refuse([*runs, "--metrik", "hr@10"], capsys)
    old = write_run(tmp_path / "old", np.arange(USERS), without=["tied_full"])
    assert "no per-user data named 'tied_full'" in refuse([runs[0], old], capsys)


def test_baselines_stand_beside_runs(runs, tmp_path, capsys):
    """A folder of baselines is a row for each method; FOLDER:METHOD is one of them, with its own ranks."""
    folder = tmp_path / "central"
    write_run(folder, np.arange(USERS), without=("rank_full", "tied_full", "rank_sampled", "tied_sampled"))
    with np.load(folder / "per_user.npz", allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    ranks = {"ease": np.arange(USERS) % 7, "popularity": np.arange(USERS) % 50}
    for name, places in ranks.items():
        for part in ("full", "sampled"):
            kept[f"{name}_rank_{part}"] = np.where(kept["test_item_ids"] == "", np.nan, places)
            kept[f"{name}_tied_{part}"] = np.zeros(USERS, np.int32)
    np.savez(folder / "per_user.npz", allow_pickle=False, **kept)
    every = compare_runs([runs[0], str(folder)], metrics=["hr@10"])
    assert [row.algorithm for row in every.rows] == ["fedmf", "ease", "popularity"]
    # 60 of the 300 users hit; user 7, one of them, has no test item and is left out
    assert [row.mean for row in every.rows[1:]] == pytest.approx([1.0, 59 / 299])
    (one,) = read_runs(f"{folder}:popularity")
    assert one.name == f"{folder}:popularity"
    np.testing.assert_array_equal(one.users["rank_full"], kept["popularity_rank_full"])
    assert "has no baseline 'eas'; it has: ease, popularity" in refuse([runs[0], f"{folder}:eas"], capsys)
    assert "is given twice" in refuse([runs[0], str(folder), f"{folder}:ease"], capsys)


def _rewrite(folder, **changed):
    """Put other arrays into a run folder, or take some out."""
    with np.load(folder / "per_user.npz") as stored:
        arrays = {**stored, **changed}
    arrays = {name: value for name, value in arrays.items() if value is not None}
    np.savez(folder / "per_user.npz", allow_pickle=False, **arrays)


def test_what_is_no_run_is_refused_in_one_line(runs, tmp_path, capsys):
    """Settings, protocols and per-user arrays that cannot be; each names the folder and what is wrong."""
    ranks = np.arange(USERS, dtype=np.float32) % 40
    ranks[7] = np.nan
    cases: list[tuple[Any, ...]] = [
        ("config.json", '{"seed": null}', "the seed None"),
        ("config.json", "[1]", "config.json holds no names and values"),
        ("config.json", '{"a":' * 100_000, "config.json is nested too deeply"),
        ("protocol.json", '{"protocol_id": 7}', "no protocol_id"),
        ("protocol.json", b"\xff", "protocol.json is no JSON"),
        ({"rank_full": ranks[:-1]}, "rank_full of shape [299], and 300 users"),
        ({"rank_full": ranks[None]}, "rank_full of shape [1, 300]"),
        ({"user_ids": np.zeros((2, 2))}, "and 0 users"),
        ({"rank_full": ranks.astype(str)}, "rank_full of <U32, which is no number"),
        (
            {"rank_full": np.where(ranks == 3, np.nan, ranks)},
            "rank_full of 291 users, and 299 with a test item",
        ),
        ({"rank_full": ranks - 1}, "rank_full -1.0 of user '0'"),
        ({"rank_full": ranks + 480}, "rank_full 501.0 of user '21', with 0 ties among 500 rivals"),
        ({"tied_full": np.full(USERS, 4)}, "rank_full 0.0 of user '0', with 4 ties"),
        ({"ease_rank_full": ranks[:4]}, "ease_rank_full of shape [4]"),
        ({"test_item_ids": None}, "has no test_item_ids"),
        ({"more": np.zeros((9, 2**20))}, "unpacks to"),
    ]
    for number, (*change, message) in enumerate(cases):
        folder = tmp_path / f"damaged-{number}"
        write_run(folder, ranks)
        if isinstance(change[0], dict):
            _rewrite(folder, **change[0])
        else:
            name, text = change
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        if message == "unpacks to":
            with np.load(folder / "per_user.npz") as stored:
                np.savez_compressed(folder / "per_user.npz", **stored)
        with pytest.raises(SystemExit) as stop:
            main(["compare", runs[0], str(folder)])
        text = capsys.readouterr().err
        assert (stop.value.code, text.count("\n")) == (2, 1)
        assert str(folder) in text
        assert message in text


def test_no_format_hands_the_terminal_a_command(tmp_path):
    """Names of folders with escape characters are shown as text."""
    runs = [write_run(tmp_path / f"\x1b[2J{name}", np.arange(USERS) % 40) for name in "ab"]
    for form in FORMATS:
        text = render(compare_runs(runs), form)
        assert all(line.isprintable() for line in text.split("\n")), form


def test_unequal_seeds_are_told(tmp_path, capsys):
    """A seed that failed leaves no run: the table says which row lacks which, in every format."""
    ranks = np.random.default_rng(1).integers(0, 60, (5, USERS))
    seeds = [(1, 0), (1, 1), (1, 2), (2, 0), (2, 2)]
    runs = [
        write_run(tmp_path / f"{dim}-{seed}", rank, dim=dim, seed=seed)
        for rank, (dim, seed) in zip(ranks, seeds, strict=True)
    ]
    told = f"{runs[3]}: 2 of 3 seeds, none of 1; a seed that failed leaves no run"
    for form in ("table", "csv", "json", "latex", "markdown"):
        assert main(["compare", *runs, "--group-seeds", "--format", form]) == 0
        assert told in "".join(capsys.readouterr())
    assert compare_runs([*runs[:2], *runs[3:]], group_seeds=True).warnings != ()
    assert compare_runs([runs[0], runs[2], *runs[3:]], group_seeds=True).warnings == ()


def test_no_baseline_stands_in_for_a_run(runs, tmp_path, capsys):
    """A federated run whose ranks are gone is refused, though it holds those of a baseline."""
    folder = tmp_path / "damaged"
    write_run(folder, np.arange(USERS), without=("rank_full", "tied_full"))
    (folder / "result.json").write_text(json.dumps({"metrics": {}}))
    with np.load(folder / "per_user.npz", allow_pickle=False) as arrays:
        kept = dict(arrays)
    kept |= {"popularity_rank_full": kept["rank_sampled"], "popularity_tied_full": kept["tied_sampled"]}
    np.savez(folder / "per_user.npz", allow_pickle=False, **kept)
    assert "no per-user data named 'rank_full'" in refuse([runs[0], str(folder)], capsys)
    assert [run.method for run in read_runs(f"{folder}:popularity")] == ["popularity"]
