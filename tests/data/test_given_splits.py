"""Splits that come with the data: folders of LightGCN, RecBole and NCF, and tables with a column of parts."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.cli.main import main
from fedjax_rec.data import frame_of_parts, given, load_dataset
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.splits import leave_one_out, merge_validation
from fedjax_rec.evaluation.metrics import metrics_from_ranks
from fedjax_rec.evaluation.reference_ranks import popularity_ranks

# user -> items, part by part; the ids are no codes
PARTS: tuple[dict[int, list[int]], ...] = (
    {10: [7, 5, 6], 11: [5, 8], 12: [6, 9, 7, 8]},
    {10: [8], 12: [5]},
    {10: [9, 20], 11: [6], 12: [21]},
)
GOWALLA = Path(__file__).parents[2] / "../shared/data/gowalla"


def write_lists(folder, *, packed=False):
    """LightGCN's files."""
    for name, part in zip(("train", "valid", "test"), PARTS, strict=True):
        text = "".join(f"{user} {' '.join(map(str, items))}\n" for user, items in part.items())
        (folder / f"{name}.txt{'.gz' * packed}").write_bytes(
            gzip.compress(text.encode()) if packed else text.encode()
        )
    return folder


def write_recbole(folder):
    """Its benchmark files, with times that are not those of the lines."""
    for name, part in zip(("train", "valid", "test"), PARTS, strict=True):
        rows = [f"{u}\t{i}\t{100 - i}" for u, items in part.items() for i in items]
        text = "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows])
        (folder / f"games.{name}.inter").write_text(text + "\n")
    return folder


def rows(events, split):
    """External items by external user, in order."""
    return {
        int(user): split.item_ids[events.items[first:last]].tolist()
        for user, first, last in zip(split.user_ids, events.offsets, events.offsets[1:], strict=False)
    }


def check(split, *, order=None):
    """All events are where they were put."""
    for events, part in zip((split, *split.heldout), PARTS, strict=True):
        found = rows(events, split)
        for user in PARTS[0]:
            expected = part.get(user, [])
            assert (found[user] if order else sorted(found[user])) == (
                order(expected) if order else sorted(expected)
            )


@pytest.mark.parametrize("packed", [False, True])
def test_lists_of_lightgcn(tmp_path, packed):
    """Parts are kept, the order is by chance, and other splitters take everything together."""
    dataset = load_dataset(write_lists(tmp_path, packed=packed))
    split = given(dataset, num_candidates=2)
    check(split)
    check(given(dataset, num_candidates=2, order="file"), order=list)
    assert (split.order, split.num_items) == ("random", 7)
    assert split.log == ("given: 9 events train, 2 of 2 users validate, 4 of 3 test",)
    assert split.data_hash != leave_one_out(dataset).data_hash
    assert len(leave_one_out(dataset).items) == 15 - 2 * 3
    candidates = split.candidates_test
    for user, own in enumerate(split.user_ids):
        met = {item for part in PARTS for item in part.get(int(own), [])}
        assert not met & set(split.item_ids[candidates[user][candidates[user] >= 0]].tolist())


def test_recbole_files(tmp_path):
    """Of three files one split, in order of time; without the second an event of each user validates."""
    dataset = load_dataset(write_recbole(tmp_path))
    check(given(dataset), order=lambda items: sorted(items, reverse=True))
    (tmp_path / "games.valid.inter").unlink()
    split = given(load_dataset(tmp_path))
    assert split.heldout is not None
    assert rows(split.heldout.validation, split) == {10: [5], 11: [5], 12: [6]}  # their latest
    assert "without a part that validates" in split.log[0]
    (tmp_path / "games.test.inter").unlink()
    assert load_dataset(tmp_path).parts is None  # one file of events


def test_ncf_files(tmp_path):
    """Leave-one-out with its own candidates; text within tabs, as its authors write it."""
    (tmp_path / "ml.train.rating").write_text(
        "0\t3\t4\t11\n0\t4\t5\t10\n0\t6\t5\t12\n1\t3\t1\t7\n1\t4\t1\t8\n"
    )
    (tmp_path / "ml.test.rating").write_text("0\t5\t4\t13\n1\t6\t3\t9\n")
    (tmp_path / "ml.test.negative").write_text("(0,5)\t7\t8\n(1,6)\t5\t9\n")
    split = leave_one_out(load_dataset(tmp_path), num_candidates=2)
    assert split.name == "ml"
    assert split.item_ids[split.test].tolist() == [5, 6]
    assert split.item_ids[split.validation].tolist() == [6, 4]
    assert split.item_ids[split.candidates_test].tolist() == [[7, 8], [5, 9]]
    for name, text, message in (
        ("ml.test.negative", "0,5\t7\n", r"ml.test.negative:1: expected \(user,item\)"),
        ("ml.test.negative", "(0,5)\t7\n(0,5)\t8\n", "negative:2: user 0 has a line already"),
        ("ml.test.negative", "(8,5)\t7\n", "negative:1: user 8 has neither"),
        ("ml.test.rating", "0\t3\t4\t13\n", "test.rating: item 3 is among the training items of user 0"),
        ("ml.test.rating", "0\t5\t4\t13\n0\t7\t4\t14\n", "test.rating: user 0 has two test items"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=message):
            load_dataset(tmp_path)
        (tmp_path / name).write_text(before)


def as_frame():
    """All parts as one frame."""
    names = ("train", "Valid", "test ")
    listed = [
        (user, item, name)
        for name, part in zip(names, PARTS, strict=True)
        for user, own in part.items()
        for item in own
    ]
    return pd.DataFrame(listed, columns=["user", "item", "fold"])


def test_a_column_of_parts(tmp_path):
    """Of a frame, a csv and parquet; lines are named where something is wrong."""
    frame = as_frame()
    check(given(frame_of_parts(frame, "fold"), order="file"), order=list)
    frame.to_csv(tmp_path / "events.csv", index=False)
    check(given(load_dataset(tmp_path / "events.csv", part="fold"), order="file"), order=list)
    pytest.importorskip("pyarrow")
    frame.to_parquet(tmp_path / "events.parquet")
    check(given(load_dataset(tmp_path / "events.parquet", part="fold"), order="file"), order=list)
    frame.loc[2, "fold"] = "later"
    frame.to_csv(tmp_path / "events.csv", index=False)
    with pytest.raises(DataError, match=r"events.csv:4: 'later' in 'fold' is none of train"):
        load_dataset(tmp_path / "events.csv", part="fold")
    with pytest.raises(
        DataError, match="no column 'split' that says train, valid or test; it has user, item, fold"
    ):
        load_dataset(tmp_path / "events.csv", part="split")


def test_pairs_in_several_parts(tmp_path):
    """They are refused, or stay in the first; users who do not train are dropped, and said."""
    write_lists(tmp_path)
    with (tmp_path / "test.txt").open("a") as file:
        file.write("10 7\n99 5\n")
    with pytest.raises(
        DataError, match="item 7 of user 10 is in several parts; duplicates='first' leaves it"
    ):
        load_dataset(tmp_path)
    split = given(load_dataset(tmp_path, duplicates="first"))
    check(split)
    assert split.log[0] == "1 events of pairs that an earlier part has are left out"
    assert "given: users without a training event: users 4 -> 3" in split.log[1]


def test_what_is_no_split(tmp_path):
    """Data without parts, filters that would change a split, and parts without their splitter."""
    with pytest.raises(ValueError, match="'synthetic' has no parts that train and test"):
        given(fr.data.synthetic(30, 90))
    write_lists(tmp_path)
    for flags in (["--splitter", "given", "--core", "2"], ["--part", "fold"]):
        with pytest.raises(SystemExit):
            main(["run", "--dataset", str(tmp_path), *flags])


def test_the_command_line(tmp_path, capsys):
    """Baselines on a given split, and the protocol that says so."""
    write_lists(tmp_path)
    flags = ["--splitter", "given", "--refit", "--baselines", "popularity", "--num-candidates", "2"]
    assert main(["baselines", "--dataset", str(tmp_path), *flags, "--out", str(tmp_path / "base")]) == 0
    assert "recall@20 full" in capsys.readouterr().out
    assert main(["data", "describe", str(tmp_path)]) == 0
    assert "parts: train 9, validation 2, test 4" in capsys.readouterr().out
    protocol = json.loads((tmp_path / "base" / "protocol.json").read_text())
    assert (protocol["splitter"], protocol["positives"], protocol["order"]) == ("given", "all", "random")


@pytest.mark.skipif(not GOWALLA.is_dir(), reason="needs ../shared/data/gowalla")
def test_popularity_on_gowalla():
    """Recall@20 and NDCG@20 as published; ten seconds, for it is the one anchor of several test items."""
    split = merge_validation(given(load_dataset(GOWALLA), num_candidates=0))
    assert (split.num_users, split.num_items, len(split.items)) == (29_858, 40_981, 810_128)
    found = metrics_from_ranks(popularity_ranks(split).full, [20])
    np.testing.assert_allclose([found["recall@20"], found["ndcg@20"]], [0.0416, 0.0317], atol=5e-5)


def test_fit_asks_what_becomes_of_the_parts():
    """Neither is right without a word: kept apart, or taken together and divided anew."""
    table = {"user": [1, 1, 1, 2, 2, 2], "item": [5, 6, 7, 5, 7, 8], "part": ["train", "valid", "test"] * 2}
    dataset = frame_of_parts(table, "part")
    with pytest.raises(ValueError, match=r"come divided; say .* splitter='given'"):
        fr.fit(dataset, "fedals", rounds=1)
    fitted = fr.fit(dataset, "fedals", rounds=1, dim=2, splitter="given")
    assert fitted.outcome.settings.splitter == "given"
