"""Runs with several test items a user: results, tables, folders, comparison, stored models."""

import json

import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.cli.main import main
from fedjax_rec.evaluation.metrics import metrics_from_ranks, user_metrics
from fedjax_rec.runs.compare import compare_runs, read_run
from fedjax_rec.runs.recommender import load, top_k


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a run with central baselines, on 24 users of 12 events."""
    parent = tmp_path_factory.mktemp("several")
    rng = np.random.default_rng(0)
    rows = [(user, item, time) for user in range(24) for time, item in enumerate(rng.permutation(40)[:12])]
    lines = ["user,item,timestamp", *(",".join(map(str, row)) for row in rows)]
    (parent / "events.csv").write_text("\n".join(lines) + "\n")
    common = [
        "--dataset",
        str(parent / "events.csv"),
        "--splitter",
        "ratio",
        "--test-share",
        "0.25",
    ]
    common += [
        "--dim",
        "2",
        "--rounds",
        "2",
        "--eval-every",
        "1",
        "--cohort",
        "8",
        "--checkpoint-minutes",
        "0",
    ]
    common += ["--num-candidates", "10", "--baselines", "popularity,random", "--devices", "1"]
    assert main(["run", *common, "--out", str(parent / "run")]) == 0
    return parent / "run"


def test_results_have_the_metrics_of_several_items(folder):
    """Of both rankings, with groups and intervals, and the protocol says that all of them count."""
    result = json.loads((folder / "result.json").read_text())
    test = result["metrics"]["test"]
    assert {"recall@20", "truncated_recall@5", "precision@10", "map", "ndcg@10"} <= test["full"].keys()
    assert test["full"].keys() == test["sampled10"].keys() == result["baselines"]["random"]["full"].keys()
    assert test["groups"]["item_popularity"]["head"]["recall@10"] >= 0
    assert set(test["intervals"]["full"]) == {"recall@10", "ndcg@10", "hr@10"}
    assert result["price_of_federation"]["full"]["recall@10"]["best"] in ("popularity", "random")
    protocol = json.loads((folder / "protocol.json").read_text())
    assert (protocol["positives"], protocol["test_share"]) == ("all", 0.25)
    assert "72 of 24 test" in result["filters"][0]


def test_a_comparison_measures_what_the_run_did(folder):
    """Ranks of all pairs are stored, and give every metric anew, of the run and of its baselines."""
    result = json.loads((folder / "result.json").read_text())
    table = compare_runs([folder, f"{folder}:random"], metrics=["recall@20", "auc"])
    assert table.num_users == 24
    found = {(row.metric, row.algorithm): row.mean for row in table.rows}
    for metric in ("recall@20", "auc"):
        assert found[metric, "fedmf"] == pytest.approx(result["metrics"]["test"]["full"][metric])
        assert found[metric, "random"] == pytest.approx(result["baselines"]["random"]["full"][metric])


def test_a_stored_model_ranks_as_the_run_did(folder):
    """All held-out items come back, and none of them is recommended unless it is asked for."""
    model = load(folder)
    ranks = fr.make_evaluator(model.algorithm, model.split, point=model.point)(model.state).full
    result = json.loads((folder / "result.json").read_text())
    found = metrics_from_ranks(ranks, [10])
    assert found["recall@10"] == pytest.approx(result["metrics"]["test"]["full"]["recall@10"])
    events = read_run(folder).users
    np.testing.assert_array_equal(events["rank_full"], np.asarray(ranks.mid))
    own = events["test_item_ids"][:3].astype(int)
    assert not set(own) & {item for item, _ in top_k(model, 0, 40)}
    recommended = [item for item, _ in top_k(model, 0, 40, which="test")]
    assert set(own) <= set(recommended)
    hits = np.isin(recommended[:10], own).sum()
    assert user_metrics(ranks, [10])["recall@10"][0] == pytest.approx(hits / 3)


def test_a_damaged_folder_is_refused(folder, tmp_path):
    """Bounds that do not divide the test items, and ranks that are not one for each."""
    with np.load(folder / "per_user.npz") as archive:
        arrays = dict(archive)
    for name in ("config.json", "protocol.json", "result.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    faults = {
        "test_offsets": (arrays["test_offsets"][:-1], "do not divide the test items of 24 users"),
        "rank_full": (arrays["rank_full"][:-1], "rank_full of shape .71., and 72 test items"),
        "rivals_full": (arrays["rivals_full"] * 0, "of user '0', with 0.* ties among 0 rivals"),
    }
    for name, (values, message) in faults.items():
        np.savez(tmp_path / "per_user.npz", **(arrays | {name: values}))
        with pytest.raises(ValueError, match=message):
            read_run(tmp_path)


def test_the_first_items_alone(capsys):
    """`--positives` has no meaning where one event is held out."""
    with pytest.raises(SystemExit):
        main(["run", "--positives", "first"])
    assert "positives=first has no meaning for leave-one-out" in capsys.readouterr().err
