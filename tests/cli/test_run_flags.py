"""Files of settings, several runs of one command, what is shown, and flags of algorithms of one's own."""

import contextlib
import io
import json

import pytest

from fedjax_rec.algorithms.own import adopt
from fedjax_rec.cli.main import build_parser, main
from fedjax_rec.cli.run import values_of_run
from fedjax_rec.cli.several_runs import by_run, spent_together
from fedjax_rec.runs.compare import compare_runs
from fedjax_rec.runs.configuration import command_of, read_configuration, repeating
from fedjax_rec.runs.folders import read_json
from fedjax_rec.runs.page import report_page
from fedjax_rec.runs.settings import Settings
from tests.cli.refusals import refuse

OWN = "experiments.your_algorithm.algorithm:your_algorithm"
SMALL = ["--rounds", "2", "--eval-every", "1", "--num-candidates", "9", "--devices", "1", "--no-cache"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a small file of events."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{user},{(user * 3 + step * 7) % 40}" for user in range(30) for step in range(8)]
    (tmp_path / "events.csv").write_text("user,item\n" + "\n".join(rows))
    return tmp_path


def values(*arguments):
    return values_of_run(build_parser("run").parse_args(["run", *arguments]))


def test_flags_go_over_a_file(folder, capsys):
    """A setting of the file holds where no flag says otherwise, a default as well as any other value."""
    (folder / "mine.toml").write_text(
        "rounds = 7\nseed = 3\n[model]\nalgorithm = 'fedncf'\nlearning-rate = 1\noptions = {layers = 2}\n"
    )
    found = {"rounds": 7, "seed": 3, "algorithm": "fedncf", "learning_rate": 1.0, "options": "layers=2"}
    assert values("--config", "mine.toml") == found
    assert values("--config", "mine.toml", "--seed", "0", "--layers", "3") == found | {
        "seed": 0,
        "options": "layers=3",
    }
    assert values("--config", "mine.toml", "--algorithm", "fedals") == {
        "rounds": 7,
        "seed": 3,
        "algorithm": "fedals",
    }
    for text, words in (
        ("round = 1", "unknown setting 'round'; did you mean 'rounds'"),
        ("a b", "is no TOML"),
        ("a = " + "[" * 100_000, "is nested too deeply"),
        ("#" * (2**20 + 1), "more than 1,048,576 bytes"),
        ("dim = 2\n[model]\ndim = 4", "dim is set twice"),
        ("algorithm = 3", "algorithm must be a name, or a list of names, not 3"),
    ):
        (folder / "bad.toml").write_text(text)
        assert words in refuse(["run", "--config", "bad.toml"], capsys)
    (folder / "list.toml").write_text("algorithm = ['fedmf', 'fedals']")
    assert values("--config", "list.toml") == {"algorithm": "fedmf,fedals"}
    assert "no run folder" in refuse(["run", "--config", str(folder)], capsys)
    assert "No such file" in refuse(["run", "--config", "nowhere.toml"], capsys)


def test_own_settings_are_flags(capsys):
    """Of the algorithm that is chosen, whoever wrote it."""
    assert values("--algorithm", "fedncf", "--layers", "2") == {"algorithm": "fedncf", "options": "layers=2"}
    assert "unknown setting '--layers'" in refuse(["run", "--layers", "2"], capsys)
    assert "must be of type int" in refuse(["run", "--algorithm", "fedncf", "--layers", "a"], capsys)


def test_help_fits_two_screens(capsys, monkeypatch):
    """With the defaults of the algorithm that is chosen, and all that it has alone."""
    monkeypatch.setenv("COLUMNS", "80")
    for arguments, words in (
        ([], "by algorithm; fedmf 64"),
        (["--algorithm", "fedncf"], "--layers"),
        ([f"--algorithm={OWN}"], f"by algorithm; {OWN} 16"),
    ):
        with pytest.raises(SystemExit):
            main(["run", *arguments, "--help"])
        text = capsys.readouterr().out
        assert words in " ".join(text.split())
        assert len(text.splitlines()) <= 90
        assert "--staleness-exponent" not in text


def test_a_dry_run_trains_nothing(folder, capsys):
    """The settings with all that is chosen, the plan, and the command."""
    arguments = ["run", "--dataset", "events.csv", "--dim", "4", *SMALL, "--dry-run"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "fedjax-rec run --dataset events.csv" in text
    assert "fedavg" in text
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["clients"], found["settings"]["server_optimizer"]) == (30, "fedavg")
    assert [path.name for path in folder.iterdir()] == ["events.csv"]


def test_several_runs_and_their_repetition(folder, capsys):
    """Seed by seed, one table; quiet, and as JSON; a folder is repeated to the bit."""
    arguments = ["run", "--dataset", "events.csv", "--dim", "2", *SMALL, "--quiet"]
    assert main([*arguments, "--algorithm", OWN, "--seeds", "2", "--out", "all"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    names = ["your_algorithm-0", "your_algorithm-1"]
    assert sorted(path.name for path in (folder / "all").iterdir()) == names
    assert "ndcg@10" in out
    assert "mean of 2 seeds" in out
    assert main(["run", "--config", "all/your_algorithm-1", "--quiet", "--json", "--out", "again"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert (found["algorithm"], found["seed"]) == (OWN, 1)
    assert {"commit", "command"} <= found.keys()
    assert main([*found["command"].split()[1:], "--dry-run"]) == 0
    histories = [(folder / name / "history.csv").read_text() for name in ("again", "all/your_algorithm-1")]
    losses = [[line.split(",")[1] for line in text.splitlines()] for text in histories]
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two algorithms with two seeds and baselines, by one command: where, what it printed, and what it said."""
    folder = tmp_path_factory.mktemp("compared")
    rows = [f"{user},{(user * 3 + step * 7) % 40}" for user in range(30) for step in range(8)]
    (folder / "events.csv").write_text("user,item\n" + "\n".join([*rows, rows[0], "30,1"]))
    arguments = ["run", "--dataset", str(folder / "events.csv"), "--dim", "2", *SMALL, "--seeds", "2"]
    arguments += ["--algorithm", f"fedmf,{OWN}", "--duplicates", "last", "--min-user-events", "3"]
    arguments += ["--baselines", "popularity,ease,random", "--out", str(folder / "all")]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(arguments) == 0
    return folder / "all", out.getvalue(), err.getvalue()


def test_several_runs_end_as_one_does(compared):
    """Baselines are in the table, and below it the price and what is said of data and trainings, each once."""
    folder, out, err = compared
    for method in ("popularity", "ease", "random"):
        assert f"{folder / 'fedmf-0'}:{method} (2 seeds)" in out
    assert "fedmf / best central: ndcg@10 " in out
    assert "your_algorithm / best central: ndcg@10 " in out
    assert out.count("events of a pair that repeats are one") == out.count("min_user_events=3: users") == 1
    improving = [
        run.name for run in sorted(folder.iterdir()) if read_json(run / "result.json")["still_improving"]
    ]
    said = [line for line in out.splitlines() if "still improving" in line]
    assert (said == []) == (improving == [])
    for line in said:
        assert sorted(line.split(":")[0].split(", ")) == improving
    assert "a seed that failed" not in out
    # what draws nothing is fitted once, what draws once a seed
    for line, count in (("ease: fitting", 1), ("popularity: fitting", 1), ("random: fitting", 2)):
        assert err.count(line) == count
    one, other = (read_json(folder / name / "result.json") for name in ("fedmf-0", "your_algorithm-0"))
    assert one["baselines"] == other["baselines"]
    assert one["baselines"]["random"] != read_json(folder / "fedmf-1/result.json")["baselines"]["random"]


def test_baselines_of_all_seeds_share_a_row(compared):
    """In a report as well, and no warning says that seeds are missing."""
    folder, _, _ = compared
    runs = [folder / name for name in ("fedmf-0", "fedmf-1")]
    text = report_page(runs, group_seeds=True)
    assert "ease (central), 2 seeds" in text
    assert "a seed that failed" not in text
    with pytest.raises(ValueError, match=r"it holds runs: name .*/all/\*"):
        compare_runs([folder])
    alone = compare_runs([*runs, f"{runs[0]}:ease"], group_seeds=True)
    assert [row.seeds for row in alone.rows] == [(0, 1), (0,)]
    assert alone.warnings == ()


def test_still_improving_is_said_of_whom_it_is(capsys, folder):
    """Of a single run, of several by their names, and on the page beside what ended it."""
    remarks = [["still improving"], [], ["still improving", "diverged"]]
    assert by_run(["a", "b", "c"], remarks) == ["a, c: still improving", "c: diverged"]
    arguments = ["run", "--dataset", "events.csv", "--dim", "2", *SMALL, "--learning-rate", "1e-3", "--quiet"]
    ends = {}
    for seeds in ("1", "2"):
        assert main([*arguments, "--seeds", seeds, "--out", f"of{seeds}"]) == 0
        out = capsys.readouterr().out
        found = sorted(path for path in (folder / f"of{seeds}").glob("**/result.json"))
        ends[seeds] = [read_json(path)["still_improving"] for path in found]
        line = "still improving in the last validation: raise --rounds"
        assert out.count(line) == any(ends[seeds])
    assert any(ends["2"])
    page = report_page([folder / "of2" / f"fedmf-{seed}" for seed in (0, 1)], group_seeds=True)
    assert "rounds, still improving" in page


def test_private_runs_of_one_command_add_up(tmp_path):
    """They are about the same users; a run without noise spends nothing."""
    runs = {"a": {"epsilon": 4.0, "delta": 1e-4}, "b": {"epsilon": 1.5, "delta": 1e-4}, "c": None}
    for name, privacy in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({"privacy": privacy}))
    (line,) = spent_together([tmp_path / name for name in runs])
    assert "epsilon of each run: 4.000, 1.500;" in line
    assert "up to 5.500 at delta 2.00e-04 to whoever has all 2 models" in line
    assert spent_together([tmp_path / "a", tmp_path / "c"]) == []


def test_algorithms_one_by_one(folder, capsys):
    """A flag for each is the same as commas; none runs twice, and none runs if a folder is taken."""
    assert values("--algorithm", "fedmf", "--algorithm=fedals") == {"algorithm": "fedmf,fedals"}
    assert values("--algorithm", "fedncf", "--algorithm", "fedmf", "--layers", "2")["options"] == "layers=2"
    arguments = ["run", "--dataset", "events.csv", "--out", "all", *SMALL]
    assert "--algorithm fedmf is given twice" in refuse([*arguments, "--algorithm", "fedmf,fedmf"], capsys)
    (folder / "all" / "fedmf-1").mkdir(parents=True)
    (folder / "all" / "fedmf-1" / "kept.txt").write_text("")
    assert "exists and is not empty" in refuse([*arguments, "--seeds", "2"], capsys)
    assert [path.name for path in (folder / "all").iterdir()] == ["fedmf-1"]


def test_several_dry_runs_are_one_object(folder, capsys):
    """Which any parser of JSON reads."""
    arguments = ["run", "--dataset", "events.csv", "--dim", "4", *SMALL, "--dry-run", "--json"]
    assert main([*arguments, "--algorithm", f"fedmf,{OWN}"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert [plan["settings"]["algorithm"] for plan in found] == ["fedmf", OWN]
    assert [path.name for path in folder.iterdir()] == ["events.csv"]


def test_every_algorithm_is_checked_before_the_first_one_runs(folder, capsys):
    """A setting that the second one has not ends the command."""
    arguments = ["run", "--dataset", "events.csv", "--algorithm", "fedmf,fedals", "--learning-rate", "1"]
    assert "fedals has no learning_rate" in refuse(arguments, capsys)
    for seeds in ("0", "99999999999"):
        assert "--seeds must be at least 1, and at most" in refuse([*arguments[:3], "--seeds", seeds], capsys)
    assert [path.name for path in folder.iterdir()] == ["events.csv"]


def test_the_command_of_a_run_makes_it():
    """Every kind of setting comes back from the command's own flags."""
    settings = Settings(dim=8, refit=True, cache=False, learning_rate=0.1, out="a b", algorithm=OWN)
    words = command_of(settings)
    assert words.endswith("--no-cache --out 'a b'")
    assert values(*words.replace("'a b'", "a_b").split()[2:]) == {
        "dim": 8,
        "refit": True,
        "cache": False,
        "learning_rate": 0.1,
        "out": "a_b",
        "algorithm": OWN,
    }


def test_numbers_of_a_command_are_the_run_s_own():
    """To the last digit, and text that begins with - is a value."""
    words = command_of(Settings(learning_rate=0.12345678901234567, dataset="-odd.csv"))
    assert values(*words.split()[2:]) == {"learning_rate": 0.12345678901234567, "dataset": "-odd.csv"}
    assert repeating(Settings(algorithm=adopt(lambda: None), out="a")) is None  # type: ignore[arg-type, return-value]


def test_a_folder_gives_its_settings(folder):
    """Without where it was written."""
    config = {"rounds": 3, "dim": None, "out": "here", "rules": {"server_optimizer": "fedavg(1.0)"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_configuration(folder) == {"rounds": 3}
    tuned = {"learning_rate": 0.3, "before_tuning": {"learning_rate": None, "options": "layers=2"}}
    (folder / "config.json").write_text(json.dumps(config | tuned))
    assert read_configuration(folder) == {"rounds": 3, "options": "layers=2"}
    for wrong, words in (
        ({"before_tuning": 3}, "must have settings"),
        ({"before_tuning": {"rouds": 3}}, "must have settings"),
        ({"given": {}}, "a folder of baselines"),
    ):
        (folder / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(ValueError, match=words):
            read_configuration(folder)
