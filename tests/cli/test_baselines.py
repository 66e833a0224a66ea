"""`fedjax-rec baselines`, and the price of federation at the end of a run."""

import json

import numpy as np
import pytest

from fedjax_rec.cli.main import main
from fedjax_rec.evaluation.central import METHOD_NAMES, price_of_federation
from fedjax_rec.evaluation.metrics import user_metrics
from fedjax_rec.evaluation.ranking import MidRanks

FEW = "popularity,itemknn,ease"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All methods on the embedded default, small where they would take seconds."""
    folder = tmp_path_factory.mktemp("central") / "base"
    small = ["--options", "ials.dim=8,ials.epochs=4,mf.epochs=8,mf.dim=16"]
    assert main(["baselines", "--refit", *small, "--out", str(folder)]) == 0
    return folder


def read(folder, name="result"):
    return json.loads((folder / f"{name}.json").read_text())


def test_folder_is_complete(folder):
    """Every promised key, finite; chance, Popularity, the personalised, the ceiling in their order."""
    names = ["config.json", "per_user.npz", "protocol.json", "result.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    found = read(folder)
    promised = "dataset protocol_id protocol seed seconds users items filters baselines details versions"
    assert set(promised.split()) <= set(found)
    assert found["protocol_id"] == read(folder, "protocol")["protocol_id"]
    assert found["protocol"]["refit"] is True
    assert list(found["baselines"]) == [*METHOD_NAMES, "best_reachable"]
    for part in ("full", "sampled99"):
        value = {name: parts[part]["ndcg@10"] for name, parts in found["baselines"].items()}
        assert value["random"] < value["popularity"]
        assert max(value[name] for name in METHOD_NAMES) < value["best_reachable"]
        assert all(value["popularity"] < value[name] for name in METHOD_NAMES[2:])
    assert found["details"]["ials"]["settings"]["dim"] == 8
    assert found["details"]["ials"]["trials"] == []
    assert len(found["details"]["ease"]["trials"]) == 3
    assert read(folder, "config")["given"]["mf"] == {"epochs": 8, "dim": 16}


def test_per_user_ranks_give_the_reported_metrics(folder):
    """HR@10 and NDCG@10 recomputed from `per_user.npz` are those of `result.json`."""
    found = read(folder)["baselines"]
    with np.load(folder / "per_user.npz", allow_pickle=False) as users:
        assert len(users["user_ids"]) == len(users["test_item_ids"]) == len(users["rivals_full"])
        for name in METHOD_NAMES:
            for part, column in (("full", "full"), ("sampled", "sampled99")):
                mid_ranks = MidRanks(users[f"{name}_rank_{part}"], users[f"{name}_tied_{part}"])
                values = user_metrics(mid_ranks, [10])
                for metric in ("hr@10", "ndcg@10"):
                    assert values[metric].mean() == pytest.approx(found[name][column][metric])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run that ends with the price of federation."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    short = ["--rounds", "40", "--dim", "8", "--refit", "--baselines", FEW]
    assert main(["run", *short, "--out", str(folder)]) == 0
    return folder


def test_run_reports_the_price_of_federation(run, folder):
    """The run's price is that of its own table, and of a folder of baselines with the same flags."""
    ours, theirs = read(run), read(folder)
    assert ours["protocol_id"] == theirs["protocol_id"]
    assert set(ours["baselines"]) == {*FEW.split(","), "best_reachable"}
    price = ours["price_of_federation"]["full"]["ndcg@10"]
    central = {name: ours["baselines"][name]["full"]["ndcg@10"] for name in FEW.split(",")}
    assert price["best"] == max(central, key=lambda name: central[name])
    value = ours["metrics"]["test"]["full"]["ndcg@10"]
    assert price["ratio"] == pytest.approx(value / max(central.values()))
    assert set(ours["price_of_federation"]) == {"full", "sampled99"}
    for name in FEW.split(","):
        assert ours["baselines"][name]["full"] == pytest.approx(theirs["baselines"][name]["full"])
    across = price_of_federation(ours, {**theirs, "baselines": {"ease": theirs["baselines"]["ease"]}})
    assert 0 < across["full"]["hr@10"]["ratio"] < 1.5
    with np.load(run / "per_user.npz", allow_pickle=False) as users:
        assert len(users["ease_rank_full"]) == len(users["user_ids"])
    with pytest.raises(ValueError, match="needs one protocol"):
        price_of_federation(ours, theirs | {"protocol_id": "other"})


def test_a_run_has_no_price_by_default(tmp_path):
    folder = tmp_path / "run"
    main(["run", "--rounds", "1", "--dim", "2", "--out", str(folder)])
    found = read(folder)
    assert "price_of_federation" not in found
    assert set(found["baselines"]) == {"popularity", "best_reachable"}


def test_tables_are_printed(tmp_path, monkeypatch, capsys):
    """A row for each method with its settings, the price of a run; stages go to standard error."""
    monkeypatch.chdir(tmp_path)
    main(["baselines", "--baselines", "ease,popularity"])
    out, err = capsys.readouterr()
    rows = [line.split()[0] for line in out.splitlines()]
    assert rows == ["test", "popularity", "ease", "best", "folder:"]
    assert "seconds  settings" in out
    assert "regularisation" in out
    assert "ease: trying" in err
    assert (tmp_path / "runs" / "synthetic-baselines-1" / "result.json").is_file()
    main(["run", "--rounds", "1", "--dim", "2", "--baselines", "popularity", "--out", "r"])
    out, _ = capsys.readouterr()
    assert "federated / best central" in out
    assert out.count("opularity") == 2 + 4 - 1  # one row, and the best of four columns


BAD = {
    "unknown method": (["--baselines", "ease,eazi"], "unknown baseline 'eazi'; did you mean 'ease'"),
    "unknown flag": (["--baselinez", "ease"], "did you mean --baselines?"),
    "a flag of run": (["--rounds", "3"], "unknown setting '--rounds'"),
    "no number": (["--options", "ease.regularisation=big"], "METHOD.SETTING=NUMBER"),
    "no such setting": (["--options", "ease.reg=3"], "ease has no setting 'reg'"),
    "not run": (
        ["--baselines", "mf", "--options", "ease.regularisation=3"],
        "not among the baselines to run: mf",
    ),
    "bad value": (
        ["--baselines", "ease", "--options", "ease.regularisation=-3"],
        "must be a finite number above 0",
    ),
    "unknown data set": (["--dataset", "ml-100"], "did you mean 'ml-100k'"),
    "a file as parent": (["--out", "/dev/null/x"], "cannot be created"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, capsys, tmp_path, monkeypatch):
    """One line that names the value and the way out, status 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    with pytest.raises(SystemExit) as stop:
        main(["baselines", *arguments])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_bad_names_of_a_run_are_refused_at_once(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--baselines", "eazi"])
    assert "unknown baseline 'eazi'" in capsys.readouterr().err
