"""`fedjax-rec run --dataset STORE`: all clients train, a sample is ranked, what does not go is told in a line."""

import json

import pytest

import fedjax_rec as fr
from fedjax_rec.cli.main import main
from fedjax_rec.data.store import synthesise

SMALL = ["--rounds", "4", "--dim", "4", "--cohort", "20", "--eval-every", "2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """150 clients of 60 items."""
    path = tmp_path_factory.mktemp("stores") / "drawn"
    return synthesise(path, clients=150, items=60, events_per_client=9).path


def test_a_run_on_a_store(store, tmp_path, capsys):
    """Its results are of the sample, which the protocol names; the model is loaded for its clients."""
    out = tmp_path / "run"
    assert main(["run", "--dataset", str(store), "--evaluate-clients", "40", *SMALL, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "40 of 150 clients are ranked, drawn by the protocol's seed 0" in said
    result = json.loads((out / "result.json").read_text())
    assert result["num_compilations"] == 1
    assert 0 < result["metrics"]["test"]["full"]["ndcg@10"] <= 1
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["evaluate_clients"] == 40
    split = fr.open_population(store, evaluate_clients=40).split
    assert split is not None
    model = fr.load(out)
    assert len(model.split.user_ids) == 40
    assert len(fr.top_k(model, int(split.user_ids[0]), 3)) == 3
    assert result["users"] == 150


def test_what_does_not_go_with_a_store(store, capsys):
    """Ends with status 2 and a line that names the flag."""
    given = ["--dataset", str(store)]
    for arguments, told in (
        (
            ["run", "--evaluate-clients", "5"],
            "--evaluate-clients=5 ranks a sample of a store's clients, and synthetic",
        ),
        (["run", *given, "--evaluate-clients", "500"], "150 clients have 3 events or more"),
        (["run", *given, "--evaluate-clients", "0"], "--evaluate-clients 0 must be at least 1"),
        (["run", *given, "--refit"], "leave out --refit"),
        (["run", *given, "--min-rating", "3"], "min_rating would change that"),
        (["run", *given, "--splitter", "ratio"], "splitter would change that"),
        (["run", *given, "--user", "who", "--order", "file"], "order, user would change that"),
        (["run", *given, "--tune", "4"], "leave out --tune"),
        (["run", *given, "--negatives", "paper-leaky"], "leave out --negatives"),
        (["run", *given, "--stream-clients", "0"], "--stream-clients=0 asks for rounds in one piece"),
        (["baselines", *given], "central baselines train on all events at once"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert told in line
    with pytest.raises(ValueError, match="open it with fedjax_rec"):
        fr.load_dataset(str(store))


def test_a_file_becomes_a_store(tmp_path, capsys):
    """By the command, which has no flag for parts, as a store has none."""
    (tmp_path / "events.csv").write_text(
        "user,item\n" + "".join(f"{u},{u + i}\n" for u in range(5) for i in range(4))
    )
    assert main(["data", "convert", str(tmp_path / "events.csv"), str(tmp_path / "store")]) == 0
    assert "clients: 5" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["data", "convert", str(tmp_path / "events.csv"), str(tmp_path / "other"), "--part", "part"])
    assert "unknown setting '--part'" in capsys.readouterr().err
