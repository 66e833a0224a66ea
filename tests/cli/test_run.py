"""The command line: run folders, help, and one-line errors with status 2."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.cli.main import main
from fedjax_rec.runs.experiment import run_experiment
from fedjax_rec.runs.folders import choose_folder
from fedjax_rec.runs.run_folder import name_of, save
from fedjax_rec.runs.settings import Settings
from tests.cli.refusals import check_refused_at_once

FILES = [
    "config.json",
    "curves.png",
    "history.csv",
    "model.npz",
    "per_user.npz",
    "protocol.json",
    "result.json",
]
SMALL = ["--rounds", "40", "--dim", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run on the embedded default, with a refit."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["run", *SMALL, "--refit", "--out", str(folder)]) == 0
    return folder


def test_run_folder_is_complete(run):
    """All files are there, and nothing else."""
    assert sorted(path.name for path in run.iterdir()) == FILES
    assert [path for path in run.parent.iterdir() if path != run] == []


def test_result_has_every_promised_key(run):
    """`result.json` carries the promised keys, finite and sensible."""
    result = json.loads((run / "result.json").read_text())
    promised = (
        "dataset algorithm protocol_id seed rounds seconds compile_seconds clients_per_second lane_efficiency "
        "num_compilations bytes_up_per_client bytes_down_per_client metrics baselines versions"
    )
    assert set(promised.split()) <= set(result)
    assert result["num_compilations"] == 1
    assert 0.5 < result["lane_efficiency"] <= 1
    assert result["bytes_up_per_client"] > result["bytes_down_per_client"] > 0
    for part in ("full", "sampled99"):
        test, floor = result["metrics"]["test"][part], result["baselines"]["popularity"][part]
        ceiling = result["baselines"]["best_reachable"][part]
        for metric in ("hr@10", "ndcg@10", "mrr@10"):
            assert floor[metric] < test[metric] < ceiling[metric]
        assert result["metrics"]["validation"][part]["hr@10"] > 0
        assert 0.5 < result["metrics"]["validation"][part]["auc"] < 1
    protocol = json.loads((run / "protocol.json").read_text())
    assert protocol["protocol_id"] == result["protocol_id"]
    assert protocol["refit"] is True
    config = json.loads((run / "config.json").read_text())
    assert config.pop("rules")["aggregator"]
    assert Settings(**config).dim == 8


def test_per_user_ranks_give_the_reported_metric(run):
    """HR@10 recomputed from `per_user.npz` is the one in `result.json`."""
    with np.load(run / "per_user.npz", allow_pickle=False) as users:
        ranks = users["rank_full"]
        assert len(users["user_ids"]) == len(ranks) == len(users["test_item_ids"])
    result = json.loads((run / "result.json").read_text())
    assert (ranks < 10).mean() == pytest.approx(result["metrics"]["test"]["full"]["hr@10"])


def test_history_has_a_row_a_round(run):
    """`history.csv` has all rounds, and validation metrics at the evaluated ones."""
    table = pd.read_csv(run / "history.csv")
    assert table["round"].tolist() == list(range(1, 41))
    assert table["validation/full/ndcg@10"].notna().sum() == 2


def test_recommendations_by_external_id(run):
    """`load` and `top_k` give unseen items, best first, as the evaluation ranked them."""
    model = fr.load(run)
    user = str(model.user_ids[5])
    best = fr.top_k(model, user, 7)
    scores = [score for _, score in best]
    assert len(best) == 7
    assert scores == sorted(scores, reverse=True)
    seen = set(model.item_ids[model.items[model.offsets[5] : model.offsets[6]]])
    seen.add(model.item_ids[model.split.test[5]])  # what it watched last, too
    assert not seen & {item for item, _ in best}
    with np.load(run / "per_user.npz", allow_pickle=False) as users:
        hits = [
            users["test_item_ids"][row]
            in {str(i) for i, _ in fr.top_k(model, model.user_ids[row], 10, which="test")}
            for row in range(60)
        ]
        np.testing.assert_array_equal(hits, users["rank_full"][:60] < 10)
    with pytest.raises(ValueError, match="unknown user 'nobody'"):
        fr.top_k(model, "nobody")
    assert len(fr.top_k(model, user, 10**6)) == len(model.item_ids) - len(seen)
    assert len(fr.top_k(model, user, 10**6, which="test")) == len(model.item_ids) - len(seen) + 1
    with pytest.raises(ValueError, match="which='tset' is unknown"):
        fr.top_k(model, user, which="tset")


def test_same_seed_same_result(run, tmp_path):
    """A second run of the same settings has the same numbers; another seed has others."""
    first = json.loads((run / "result.json").read_text())
    for seed, same in ((0, True), (1, False)):
        folder = tmp_path / str(seed)
        main(["run", *SMALL, "--refit", "--seed", str(seed), "--out", str(folder)])
        other = json.loads((folder / "result.json").read_text())
        assert (other["metrics"] == first["metrics"]) is same
        assert other["protocol_id"] == first["protocol_id"]


def test_table_is_printed(tmp_path, capsys):
    """The run ends with the table and its folder; progress goes to standard error."""
    main(["run", "--rounds", "2", "--eval-every", "1", "--dim", "4", "--out", str(tmp_path / "r")])
    out, err = capsys.readouterr()
    assert re.search(r"fedmf \(federated\) +0\.\d{4}", out)
    assert "Popularity" in out
    assert "best reachable" in out
    assert "clients/s" in err
    assert "val ndcg@10" in err


BAD = {
    "unknown data set": (["--dataset", "ml-100"], "did you mean 'ml-100k'"),
    "unknown algorithm": (["--algorithm", "fedfm"], "did you mean 'fedmf'"),
    "unknown setting": (["--round", "5"], "did you mean --rounds?"),
    "unknown loss": (["--loss", "bec"], "did you mean 'bce'"),
    "unknown server": (["--server-optimizer", "fedadm"], "did you mean 'fedadam'"),
    "not a number": (["--rounds", "many"], "invalid int value: 'many'"),
    "too small": (["--dim", "0"], "dim must be at least 1, not 0"),
    "not a finite number": (["--learning-rate", "nan"], "learning_rate must be a finite number, not nan"),
    "large seed": (["--seed", "99999999999999999999"], "seed must be at most 4,294,967,295"),
    "infinite target": (["--target", "inf"], "target must be a finite number"),
    "large cohort": (["--cohort", "5000"], "cohort=5000 exceeds the population of 1000 clients"),
    "divergence": (["--learning-rate", "50", "--rounds", "4", "--dim", "4"], "lower --learning-rate"),
    "no ratings": (["--loss", "mse"], "fits ratings"),
    "devices": (["--devices", "99"], "devices=99, but jax sees 8; choose 1 to 8"),
    "lanes over devices": (["--devices", "2", "--lanes", "3"], "3 lanes do not divide over 2 devices"),
    "a file as parent": (["--out", "/dev/null/run"], "cannot be created"),
    "no such folder": (["--dataset", "ml-100k", "--data-dir", "no/such"], "no/such"),
    "no such file": (["--dataset", "no/such.csv"], "no/such.csv"),
    "a path and a folder": (
        ["--dataset", str(Path(__file__)), "--data-dir", "x"],
        "a path needs no --data-dir",
    ),
    "folding in": (["--fold-in-epochs", "3"], "is for held-out clients; use --splitter strong"),
    "two points": (["--splitter", "strong", "--evaluation-point", "local"], "leave out --evaluation-point"),
    "no leak": (["--splitter", "strong", "--negatives", "paper-leaky"], "leave out --negatives"),
    "price of strangers": (["--splitter", "strong", "--baselines", "ease"], "leave out --baselines"),
    "noise without a clip": (["--target-epsilon", "4"], "add --clip, such as"),
    "two noises": (["--clip", "1", "--target-epsilon", "4", "--noise-multiplier", "1"], "leave out --noise"),
    "a guarantee of nothing": (["--delta", "1e-5"], "needs --target-epsilon"),
    "delta of 1": (
        ["--clip", "1", "--noise-multiplier", "1", "--delta", "1"],
        "delta must be above 0, and below",
    ),
    "counts in private": (
        ["--clip", "1", "--noise-multiplier", "1", "--aggregator", "touchers"],
        "would leak; use the sum",
    ),
    "fairness of a mean": (["--fairness", "2", "--aggregator", "mean"], "use --aggregator q-fedavg"),
    "no fairness": (
        ["--aggregator", "q-fedavg", "--fairness", "-1"],
        "fairness must be at least 0, not -1.0",
    ),
    "steps of nothing": (
        ["--aggregator", "q-fedavg", "--learning-rate", "0"],
        "needs clients with a learning rate above 0",
    ),
    "a cap of nothing": (["--sampler", "size-capped", "--size-cap", "0"], "size_cap must be at least 1"),
    "no cap": (["--sampler", "size-capped"], "--size-cap go together"),
    "a cap for nobody": (["--size-cap", "9"], "--size-cap go together"),
    "unknown sampler": (["--sampler", "size-caped"], "did you mean 'size-capped'"),
    "draws by data in private": (
        ["--clip", "1", "--noise-multiplier", "1", "--sampler", "loss-proportional"],
        "leave out --sampler",
    ),
    "weights by loss in private": (
        ["--clip", "1", "--noise-multiplier", "1", "--aggregator", "q-fedavg"],
        "would leak; use the sum",
    ),
    "a private refit": (["--clip", "1", "--noise-multiplier", "1", "--refit"], "spend twice"),
    "no private form": (
        ["--clip", "1", "--noise-multiplier", "1", "--algorithm", "scaffold"],
        "no private form",
    ),
    "no way to fold in": (["--splitter", "strong", "--algorithm", "pfedrec"], "cannot be folded in"),
    "no table of one's own": (
        ["--algorithm", "fedals", "--evaluation-point", "local"],
        "leave out the point",
    ),
    "a share of leave-one-out": (["--test-share", "0.1"], "has no meaning for leave-one-out"),
    "a large share": (["--splitter", "ratio", "--test-share", "0.9"], "below 1 together"),
    "no positive": (["--splitter", "global-time"], "nobody to validate or to test"),
    "unknown negatives": (["--negatives", "leaky"], "did you mean 'paper-leaky'"),
    "leaky ratings": (["--negatives", "paper-leaky", "--loss", "mse"], "draws no negatives"),
    "leaky price": (["--negatives", "paper-leaky", "--baselines", "ease"], "leave one of them out"),
    "many negatives": (["--num-negatives", "9999"], "num_negatives=9999 exceeds the catalogue of 1200 items"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case, capsys, tmp_path, monkeypatch):
    """One line that names the value and the way out, status 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    check_refused_at_once(["run", *arguments], message, capsys, tmp_path)


FILES_BAD = {
    "missing column": ("user,thing\n1,2\n", ["--item", "itm"], "itm"),
    "bad rating": ("user,item,rating\n1,2,3\n1,3,x\n", [], "data.csv:3"),
    "nan rating": ("user,item,rating\n1,2,3\n1,3,nan\n", [], "data.csv:3"),
    "infinite rating": ("user,item,rating\n1,2,inf\n", [], "data.csv:2"),
    "duplicate pair": ("user,item\n1,2\n1,3\n1,2\n", [], "data.csv:4"),
    "short line": ("user,item,rating\n1,2,3\n1\n", [], "data.csv:3"),
    "empty file": ("", [], "data.csv"),
    "too few events": ("user,item\n1,2\n1,3\n1,4\n2,3\n", [], "--min-user-events 3"),
}


@pytest.mark.parametrize("case", FILES_BAD)
def test_bad_files(case, capsys, tmp_path, monkeypatch):
    """Malformed data is refused with the file and the line; nothing is written."""
    monkeypatch.chdir(tmp_path)
    text, arguments, message = FILES_BAD[case]
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["run", "--dataset", "data.csv", *arguments])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_a_full_folder_is_not_overwritten(tmp_path, capsys):
    """A run folder that holds something is refused before any training."""
    (tmp_path / "note").write_text("mine")
    with pytest.raises(SystemExit):
        main(["run", "--out", str(tmp_path)])
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_load_refuses_what_is_no_run(run, tmp_path):
    """The error names what is missing or damaged, and nothing but ValueError comes out."""
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        fr.load(tmp_path)
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    (tmp_path / "model.npz").write_bytes((run / "model.npz").read_bytes()[:2000])
    with pytest.raises(ValueError, match="is not a sound run folder"):
        fr.load(tmp_path)
    np.savez(tmp_path / "model.npz", user_ids=np.arange(2))
    with pytest.raises(ValueError, match="is not a sound run folder"):
        fr.load(tmp_path)


def test_official_candidates_are_not_relabelled(shared_data, capsys, tmp_path):
    """Official lists hold 99 candidates; another number is refused."""
    data = ["--dataset", "ml-1m-loo", "--data-dir", str(shared_data)]
    with pytest.raises(SystemExit):
        main(["run", *data, "--num-candidates", "50", "--out", str(tmp_path / "run")])
    assert "official lists of 99" in capsys.readouterr().err


def test_two_runs_take_two_folders(tmp_path, monkeypatch):
    """A default folder that another run took meanwhile is left alone: the next number is used."""
    monkeypatch.chdir(tmp_path)
    outcome = run_experiment(Settings(rounds=1, dim=2))
    wanted = choose_folder(None, name_of(outcome.settings))
    assert save(outcome, wanted, renumber=True) == wanted
    assert save(outcome, wanted, renumber=True).name == "synthetic-fedmf-2"


def test_leaky_negatives_are_labelled_everywhere(tmp_path, capsys):
    """The table, `result.json` and the protocol's id say so, and a comparison with a clean run is refused."""
    for negatives in ("train", "paper-leaky"):
        main(
            [
                "run",
                "--rounds",
                "1",
                "--dim",
                "2",
                "--negatives",
                negatives,
                "--out",
                str(tmp_path / negatives),
            ]
        )
    out = capsys.readouterr().out
    assert out.count("PAPER-LEAKY NEGATIVES") == out.count("fedmf (federated, LEAKY)") == 1
    clean, leaky = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("train", "paper-leaky")
    )
    assert (clean["negatives"], leaky["negatives"]) == ("train", "paper-leaky")
    assert clean["protocol_id"] != leaky["protocol_id"]
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "train"), str(tmp_path / "paper-leaky")])
    assert "negatives 'train' against 'paper-leaky'" in capsys.readouterr().err


def test_a_run_on_shares_of_the_histories(tmp_path, capsys):
    """`--splitter ratio` stands in the protocol, with its shares, and its counts in the log."""
    arguments = ["--splitter", "ratio", "--test-share", "0.2", "--core", "5"]
    main(["run", "--rounds", "1", "--dim", "2", *arguments, "--out", str(tmp_path / "run")])
    assert "ratio: 65530 events train, 9469 of 1000 users" in capsys.readouterr().out
    protocol = json.loads((tmp_path / "run" / "protocol.json").read_text())
    assert (protocol["splitter"], protocol["validation_share"], protocol["test_share"]) == ("ratio", 0.1, 0.2)
    assert protocol["core"] == 5


def test_a_huge_batch_is_that_of_the_longest_client():
    """It trains as one batch of the whole history would, without the memory of the empty slots."""
    whole, huge = (run_experiment(Settings(rounds=2, dim=2, batch_size=size)) for size in (1990, 10**9))
    assert huge.settings.batch_size == 10**9
    for name, metrics in whole.metrics["test"]["full"].items():
        assert huge.metrics["test"]["full"][name] == metrics
