"""`fedjax-rec data`: lists and descriptions of data sets."""

import re
import shlex

import pytest

from fedjax_rec.cli.main import main


def test_data_commands(capsys):
    """`data ls` and `data describe` print counts."""
    assert main(["data", "ls"]) == 0
    assert "ml-1m-loo" in capsys.readouterr().out
    assert main(["data", "describe", "synthetic"]) == 0
    assert "interactions" in capsys.readouterr().out


def test_a_file_is_described_as_it_was_understood(tmp_path, capsys):
    """Its first events, notes, repeats, and flags that read it just so."""
    texts = {
        "lists.txt": "7 3 1\n8 1\n9 1 3 4 5\n",
        "bars.dat": "u0|i0|3.5|1260759144\nu0|i1|4.5|1260759145\n",
        "dates.csv": "who,what,score,visit_date\na,x y,1,2024-01-31\na,x y,2,2024-02-01\n",
    }
    flags = {"dates.csv": ["--user", "who", "--item", "what", "--timestamp", "visit_date"]}
    shown = {
        "lists.txt": ["--columns user,items", "a user and its items", "  7, 3"],
        "bars.dat": [
            "--columns user,item,rating,timestamp --separator bar",
            "no header",
            "2009-12-14 02:52:24",
        ],
        "dates.csv": ["--duplicates last", "2 -> 1", "  a, x y, 2024-02-01 00:00:00"],
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.write_text(text)
        assert main(["data", "describe", str(path), *flags.get(name, [])]) == 0
        said = capsys.readouterr().out
        for part in shown[name]:
            assert part in said
        assert not re.search(r": *(None)?$", said.partition("read with")[0], re.MULTILINE)
        found = said.partition("read with: ")[2].splitlines()[0]
        assert main(["data", "describe", str(path), *shlex.split(found)]) == 0
        assert [line for line in capsys.readouterr().out.splitlines() if "note: " not in line] == [
            line for line in said.splitlines() if "note: " not in line
        ]


def test_what_is_described_runs(tmp_path, capsys):
    """By the command that is printed, with pairs that repeat and users of few events, and with given parts."""
    rows = [(f"u{user}", f"i{(user * 3 + step * 7) % 20}", step) for user in range(20) for step in range(6)]
    path = tmp_path / "my plays.csv"
    path.write_text(
        "who;what;when\n" + "".join(f"{u};{i};{t}\n" for u, i, t in [*rows, rows[0], ("x", "i1", 3)])
    )
    parts = tmp_path / "parts.csv"
    names = ["train"] * 4 + ["valid", "test"]
    lines = [f"{u},{i},{names[t]}\n" for u, i, t in [*rows, rows[0]]]
    parts.write_text("who,what,part\n" + "".join(lines))
    columns = ["--user", "who", "--item", "what"]
    for file, flags, needed in (
        (path, ["--timestamp", "when"], ["--duplicates last", "--min-user-events 3"]),
        (parts, ["--part", "part"], ["--duplicates last", "--splitter given"]),
    ):
        assert main(["data", "describe", str(file), *columns, *flags]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "run with: " in line]
        command = shlex.split(line.partition("run with: ")[2])
        assert command[:3] == ["fedjax-rec", "run", "--dataset"]
        assert all(flag in line for flag in needed)
        assert main([*command[1:], "--dry-run"]) == 0
        capsys.readouterr()


def test_a_file_that_cannot_be_told_is_refused_in_one_line(tmp_path, capsys):
    """With the flags that say what it is."""
    path = tmp_path / "pairs.csv"
    path.write_text("u0,i0\nu1,i1\n")
    with pytest.raises(SystemExit) as stop:
        main(["data", "describe", str(path)])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert "--columns user,item" in said


def test_what_cannot_be_ranked_ends_in_one_line(tmp_path, capsys):
    """Status 2 and a reason, for runs and for baselines."""
    path = tmp_path / "all.csv"
    path.write_text("user,item\n" + "".join(f"{user},{item}\n" for user in range(6) for item in range(7)))
    for command in ("run", "baselines"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--dataset", str(path), "--out", str(tmp_path / command)])
        assert stop.value.code == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert "all has nothing to rank: everybody has met all other items" in last
        assert not (tmp_path / command).exists()


def test_ways_out_are_flags(tmp_path, capsys):
    """Where the command line refuses, it names what it takes, and not the spelling of Python."""
    rows = [f"{user},{(user * 3 + step) % 9}" for user in range(8) for step in range(5)]
    path = tmp_path / "plays.csv"
    for more, flags, told in (
        ([rows[0]], [], "--duplicates first or --duplicates last keeps one"),
        ([rows[0]], ["--duplicates", "sum"], "--duplicates sum adds up ratings"),
        (["9,1"], [], "--min-user-events 3 drops them"),
        (["9,1"], ["--splitter", "strong", "--min-rating", "4"], "--min-rating 4 needs ratings"),
        ([], ["--order", "time"], "--order time needs timestamps"),
    ):
        path.write_text("user,item\n" + "\n".join([*rows, *more]) + "\n")
        with pytest.raises(SystemExit, match="2"):
            main(["run", "--dataset", str(path), *flags, "--out", str(tmp_path / "run")])
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert told in last
        assert "='" not in last


def test_list_says_what_each_is(tmp_path, monkeypatch, capsys):
    """Sizes, kind, licence, and whether it is here; a family is one line until it is asked for."""
    monkeypatch.setenv("FEDJAX_REC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "ratings.txt").write_text("1 1 2\n")

    def rows(*arguments):
        assert main(["data", "ls", *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        return {line.split()[0]: line for line in lines[1:-1]}

    everything = rows()
    for part in ("plays", "1,892", "17,632", "92,834", "no", "HetRec terms: non-commercial use"):
        assert f" {part}" in everything["lastfm-hetrec"]
    assert " 5 MB " in everything["ml-100k"]
    assert " manual " in everything["netflix"]
    assert " yes " in everything["synthetic"]
    assert " no " in everything["filmtrust"]
    assert " yes " in rows("--data-dir", str(tmp_path))["filmtrust"]
    assert sum(name.startswith("amazon-2023-") for name in everything) == 1
    assert len(rows("amazon-2023-")) == 33
    assert list(rows("KuaiRand")) == ["kuairand-pure", "kuairand-1k", "kuairand-27k"]
    with pytest.raises(SystemExit, match="2"):
        main(["data", "ls", "nothing"])
    assert "no data set has 'nothing' in its name or title" in capsys.readouterr().err


def test_what_a_paper_filters_is_shown_as_flags(tmp_path, capsys):
    """`data describe` prints the presets as `run` takes them; what needs a hand is told with status 2."""
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,3.5,4\n")
    assert main(["data", "describe", "ml-20m", "--data-dir", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "presets: vae --min-rating 4 --min-user-events 5" in output
    assert "homepage: https://grouplens.org/datasets/movielens/" in output
    with pytest.raises(SystemExit, match="2"):
        main(["data", "fetch", "netflix"])
    error = capsys.readouterr().err
    assert "register at Kaggle" in error
    assert "combined_data_1.txt ... combined_data_4.txt" in error


def test_a_store_is_drawn_and_described(tmp_path, capsys):
    """With sizes as people write them; a spoilt one, one that is there and a wrong size end in one line."""
    path = str(tmp_path / "drawn")
    sizes = ["--clients", "1e2", "--items", "0.2e3", "--events-per-client", "9"]
    assert main(["data", "synthesise", *sizes, path]) == 0
    said = capsys.readouterr().out
    assert "clients: 100" in said
    assert "events a client: least 5" in said
    assert main(["data", "describe", path]) == 0
    assert capsys.readouterr().out == said
    items = tmp_path / "drawn" / "items.bin"
    items.write_bytes(items.read_bytes()[:-4])
    for arguments, told in (
        (["data", "describe", path], "items.bin: "),
        (["data", "synthesise", *sizes, path], "is there already; remove it"),
        (["data", "synthesise", *sizes[:2], "--items", "1.5", path], "1.5"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert told in line
