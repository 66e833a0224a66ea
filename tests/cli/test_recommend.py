"""Lists of a stored model, for its users and for somebody new, and files for other programs."""

import io
import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.cli.main import main
from fedjax_rec.data.titles import find_titles, read_titles
from fedjax_rec.errors import ArgumentError
from fedjax_rec.runs.lists import best_lists, rows_of, with_new_user
from tests.cli.refusals import refuse

USERS = 12
ITEMS = 30


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A stored model of two dozen numbers that nobody trained."""
    events = [
        {"user": f"u {u}", "item": f"i{(u * 5 + 3 * t) % ITEMS}"} for u in range(USERS) for t in range(8)
    ]
    split = fr.leave_one_out(fr.from_frame(pd.DataFrame(events)), num_candidates=5)
    algorithm = fr.fedmf(dim=2, init_scale=3.0)
    state = algorithm.init(jax.random.key(0), fr.population_of(split))
    return fr.save(tmp_path_factory.mktemp("runs") / "run", "fedmf", state, split, settings={"dim": 2})


@pytest.fixture
def call(run, capsys):
    """Call a command on the run, and give what it printed."""

    def command(name, *arguments):
        assert main([name, "--run", str(run), *arguments]) == 0
        return capsys.readouterr().out

    return command


def test_lists_are_those_of_python(run, call, tmp_path):
    """For one user or all, in every format; nothing known is in them."""
    model = fr.load(run)
    expected = fr.top_k(model, "u 3", 4)
    frame = pd.read_csv(io.StringIO(call("recommend", "--user", "u 3", "-k", "4", "--format", "csv")))
    assert frame["item"].tolist() == [item for item, _ in expected]
    np.testing.assert_allclose(frame["score"], [score for _, score in expected], rtol=1e-5)
    (tmp_path / "users.txt").write_text("u 3\nu 5\n\n")
    (tmp_path / "titles.csv").write_text('item,title\ni1,"One, \x1b[2J two"\n')
    table = call(
        "recommend", "--users", str(tmp_path / "users.txt"), "--titles", str(tmp_path / "titles.csv")
    )
    assert table.splitlines()[0].split() == ["user", "rank", "item", "score", "title"]
    assert "\x1b" not in table
    whole = json.loads(call("recommend", "--all-users", "-k", "99", "--format", "json"))
    owned: dict[str, set[str]] = {user: set() for user in model.user_ids.tolist()}
    for user, start, end in zip(model.user_ids, model.known[0], model.known[0][1:], strict=False):
        owned[user] = set(model.item_ids[model.known[1][start:end]])
    assert all(row["item"] not in owned[row["user"]] for row in whole)
    assert len(whole) == USERS * len(model.item_ids) - sum(map(len, owned.values()))
    call("recommend", "--all-users", "--out", str(tmp_path / "lists.parquet"))
    assert len(pd.read_parquet(tmp_path / "lists.parquet")) == 10 * USERS


def test_somebody_new(run, tmp_path, capsys):
    """Gets what the history suggests and not what is in it; the server's parameters stay."""
    model = fr.load(run)
    with pytest.warns(
        UserWarning, match="^1 of 3 items are unknown to the model and passed over, such as nothing$"
    ):
        one = with_new_user(model, ["i1", "i2", "nothing"])
    two = with_new_user(model, ["i7", "i9"])
    np.testing.assert_array_equal(one.server.tables["vector"], model.server.tables["vector"])
    lists = [best_lists(each, np.array([0]), 28) for each in (one, two)]
    names = [set(model.item_ids[each.items[0]]) for each in lists]
    assert names[0].isdisjoint({"i1", "i2"})
    assert names[1].isdisjoint({"i7", "i9"})
    assert lists[0].scores.tolist() != lists[1].scores.tolist()
    (tmp_path / "items.csv").write_text("item\ni1\ni2\nnothing\n")
    assert main(["recommend", "--run", str(run), "--new-user", str(tmp_path / "items.csv")]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 11
    assert "1 of 3 items are unknown" in err
    for name, text in {
        "bad.csv": b"i1\ni2\n",
        "short.csv": b"rating,item\n5,i1\n3\n",
        "word.csv": b"item,rating\ni1,nan\n",
        "bytes.csv": b"item\n\xff\xfe\n",
        "long.csv": b"item\n" + b"i" * 200_000,
    }.items():
        (tmp_path / name).write_bytes(text)
    for file, words in (
        ("bad.csv", "must name a column item"),
        ("no.csv", "No such file"),
        ("short.csv", "short.csv, line 3: 1 fields, and 2 in the first line"),
        ("word.csv", "line 2: rating 'nan' is no number"),
        ("bytes.csv", "is no text in UTF-8"),
        ("long.csv", "line 2: field larger than field limit"),
    ):
        line = refuse(["recommend", "--run", str(run), "--new-user", str(tmp_path / file)], capsys)
        assert words in line
    with pytest.raises(ValueError, match="knows none of the 1 items, such as 'x'; those"):
        with_new_user(model, ["x"])
    with pytest.raises(ArgumentError, match=r"items is 'i1', a str; with_new_user takes a sequence of ids"):
        with_new_user(model, "i1")
    with pytest.raises(ArgumentError, match=r"users is 'u1', a str; rows_of takes a sequence of ids"):
        rows_of(model, "u1")
    with pytest.raises(ValueError, match="1 ratings for 2 items"):
        with_new_user(model, ["i1", "i2"], [5.0])


def test_several_who_are_new_have_a_list_each(run, tmp_path, capsys):
    """By the users' column, between semicolons, by the names that the run was given; a refusal names the user."""
    model = fr.load(run)
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps(config | {"user": "Customer", "item": "sku"}))
    file = tmp_path / "new.csv"
    file.write_text("customer;sku\nann;i1\nbob;i7\nann;i2\nbob;i9\n")
    arguments = ["recommend", "--run", str(mine), "--new-user", str(file), "-k", "3", "--format", "json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["user"] for row in found] == ["ann"] * 3 + ["bob"] * 3
    for user, items in (("ann", ["i1", "i2"]), ("bob", ["i7", "i9"])):
        one = with_new_user(model, items)
        expected = model.item_ids[best_lists(one, np.array([0]), 3).items[0]].tolist()
        assert [row["item"] for row in found if row["user"] == user] == expected
    file.write_text("customer;sku\nann;i1\nbob;nothing\n")
    assert "user 'bob': the model knows none of the 1 items" in refuse(arguments, capsys)
    file.write_text("who;what\nann;i1\n")
    assert "must name a column sku" in refuse(arguments, capsys)


def test_why_a_user_of_the_data_is_unknown(run, tmp_path, capsys):
    """By what the run was told to leave out."""
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    config = json.loads((mine / "config.json").read_text())
    changed = {"min_user_events": 3, "core": 0, "evaluate_clients": 12}
    (mine / "config.json").write_text(json.dumps(config | changed))
    line = refuse(["recommend", "--run", str(mine), "--user", "nobody"], capsys)
    assert "others may have been dropped by --min-user-events 3;" in line
    assert "others were not sampled to be ranked: --evaluate-clients 12" in line
    assert "others" not in refuse(["recommend", "--run", str(run), "--user", "nobody"], capsys)


def test_ratings_of_somebody_new_are_for_models_that_learn_from_them(tmp_path):
    """Others take a history without them, though the data had some."""
    rows = [(user, (user * 3 + step) % 9, 1.0 + step % 5) for user in range(6) for step in range(5)]
    split = fr.leave_one_out(pd.DataFrame(rows, columns=["user", "item", "rating"]))
    assert split.ratings is not None
    for loss, known in (("bce", True), ("mse", False)):
        algorithm = fr.fedmf(dim=2, loss=loss, batch_size=8)
        state, _ = fr.simulate(algorithm, split, rounds=1)
        settings = {"dim": 2, "loss": loss, "batch_size": 8}
        model = fr.load(fr.save(tmp_path / loss, "fedmf", state, split, settings=settings))
        if known:
            assert best_lists(with_new_user(model, ["1", "2"]), np.array([0]), 3).items.shape == (1, 3)
        else:
            with pytest.raises(ValueError, match="give one for each item"):
                with_new_user(model, ["1", "2"])


def test_exports(run, call, tmp_path, capsys):
    """The lists that a test ranks, its items, and the parameters with their ids."""
    model = fr.load(run)
    for kind in ("trec", "ranx"):
        with_blanks = ["export", "--run", str(run), "--what", kind, "--out", str(tmp_path / kind)]
        if kind == "trec":
            assert "an id of users has one" in refuse(with_blanks, capsys)
        else:
            main([*with_blanks, "--qrels", str(tmp_path / "qrels")])
    ranked, relevant = (json.loads((tmp_path / name).read_text()) for name in ("ranx", "qrels"))
    assert set(relevant) == set(ranked) == set(model.user_ids.tolist())
    assert all(set(relevant[user]) <= set(ranked[user]) for user in ranked)
    call("export", "--what", "vectors", "--out", str(tmp_path / "v.npz"))
    with np.load(tmp_path / "v.npz") as archive:
        arrays = dict(archive)
    np.testing.assert_array_equal(arrays["item/vector"], model.server.tables["vector"])
    assert arrays["user/vector"].shape == (USERS, 2)
    call("export", "--out", str(tmp_path / "lists.csv"), "-k", "2")
    assert len(pd.read_csv(tmp_path / "lists.csv")) == 2 * USERS
    same = ["--what", "ranx", "--out", str(tmp_path / "a"), "--qrels", str(tmp_path / "a")]
    assert "are both" in refuse(["export", "--run", str(run), *same], capsys)
    assert not (tmp_path / "a").exists()
    assert "exists; name a new file" in refuse(
        ["export", "--run", str(run), "--out", str(tmp_path / "lists.csv")], capsys
    )


def test_a_trec_run(tmp_path):
    """Six fields a line, ranks from 1."""
    split = fr.leave_one_out(fr.data.synthetic(10, 90))
    algorithm = fr.fedmf(dim=2)
    state = algorithm.init(jax.random.key(0), fr.population_of(split))
    folder = fr.save(tmp_path / "run", "fedmf", state, split, settings={"dim": 2})
    files = [str(tmp_path / name) for name in ("run.trec", "qrels.trec")]
    main(
        ["export", "--run", str(folder), "--what", "trec", "-k", "3", "--out", files[0], "--qrels", files[1]]
    )
    lines = [line.split(" ") for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert {len(line) for line in lines} == {6}
    assert [line[3] for line in lines[:3]] == ["1", "2", "3"]
    assert len((tmp_path / "qrels.trec").read_text().splitlines()) == 10


def test_what_cannot_be_asked(run, capsys, tmp_path):
    """One line each."""
    recommend = ["recommend", "--run", str(run)]
    for arguments, words in (
        ([*recommend, "--user", "nobody"], "unknown user 'nobody'"),
        ([*recommend, "--user", "u 1", "-k", "0"], "k must be at least 1"),
        ([*recommend, "--user", "u 1", "--format", "parquet"], "name a file"),
        ([*recommend], "required"),
        (["recommend", "--run", str(tmp_path), "--user", "1"], "is not a run folder"),
        (["export", "--run", str(run), "--out", str(tmp_path / "x"), "--qrels", "y"], "leave it out"),
    ):
        assert words in refuse(arguments, capsys)


def test_titles_of_every_kind(tmp_path):
    """With and without a header, in the encodings that MovieLens has had."""
    texts = {
        "movies.dat": ("1::Am\xe9lie (2001)::Comedy\n2::B::x\n", "latin-1"),
        "u.item": ("1|Am\xe9lie (2001)|x\n2|B\n\n", "latin-1"),
        "movies.csv": ("movieId,title,genres\n1,Am\xe9lie (2001),x\n2,B,y\n", "utf-8"),
        "ml.item": ("item_id:token\tmovie_title:token_seq\n1\tAm\xe9lie (2001)\n2\tB\n", "utf-8"),
    }
    for name, (text, encoding) in texts.items():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_text(text, encoding=encoding)
        (folder / "events.csv").write_text("")
        assert find_titles(str(folder / "events.csv")) == folder / name
        assert read_titles(folder / name) == {"1": "Am\xe9lie (2001)", "2": "B"}
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="such as item,title"):
        read_titles(tmp_path / "t.csv")
