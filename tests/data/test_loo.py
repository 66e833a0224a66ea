"""The pre-split leave-one-out directory: what is kept, what is removed, what is refused."""

import gzip
from typing import Any

import numpy as np
import pytest

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.loo import read_loo_directory

GOOD = {
    "train.tsv": "user\titem\nu1\ta\nu1\tb\nu2\ta\n",
    "test.tsv": "user\titem\trating\ttimestamp\nu2\tc\t5\t7\nu3\ta\t4\t8\n",
    "negatives.tsv": "user\titems\nu3\td a b\nu2\tb d e\n",
}


def write(folder, compress=False, **changed):
    """Writes the three files, with some replaced; None leaves a file out."""
    for name, content in {**GOOD, **{f"{key}.tsv": value for key, value in changed.items()}}.items():
        for file in folder.glob(f"{name}*"):
            file.unlink()
        if content is not None and compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
        elif content is not None:
            (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize("compress", [False, True])
def test_round_trip(tmp_path, compress):
    """Vocabulary by first appearance over the three files; positives leave the lists, slots fill the end."""
    data: Any = read_loo_directory(write(tmp_path, compress))
    events = data.interactions
    assert data.name == tmp_path.name
    assert events.user_ids.tolist() == ["u1", "u2", "u3"]
    assert events.item_ids.tolist() == ["a", "b", "c", "d", "e"]
    assert events.users.tolist() == [0, 0, 1]
    assert events.items.tolist() == [0, 1, 0]
    assert events.ratings is None
    assert events.timestamps is None
    assert data.test.items.tolist() == [-1, 2, 0]
    assert data.test.candidates.tolist() == [[-1, -1, -1], [1, 3, 4], [3, 1, -1]]
    assert data.test.items.dtype == data.test.candidates.dtype == np.int32


def test_without_candidates(tmp_path):
    """The lists may be absent; the other two files may not."""
    data: Any = read_loo_directory(write(tmp_path, negatives=None))
    assert data.test.candidates is None
    for name in ("train", "test"):
        with pytest.raises(DataError, match=rf"no {name}.tsv or {name}.tsv.gz"):
            read_loo_directory(write(tmp_path, **{name: None}))


BAD = {
    "candidate in training": (
        {"negatives": "user\titems\nu3\td\nu2\tb a\n"},
        "negatives.tsv:3: item a is among",
    ),
    "test item in training": ({"test": "user\titem\nu3\tb\nu1\tb\n"}, "test.tsv:3: item b is among"),
    "two test items": ({"test": "user\titem\nu3\tb\nu3\tc\n"}, "test.tsv:3: user u3 has a line already"),
    "two lists": ({"negatives": "user\titems\nu2\tb\nu2\te\n"}, "negatives.tsv:3: user u2 has a line"),
    "list of nobody": ({"negatives": "user\titems\nu9\tb\n"}, "negatives.tsv:2: user u9 has no test item"),
    "list without test": ({"negatives": "user\titems\nu1\tc\n"}, "negatives.tsv:2: user u1 has no test item"),
    "empty list": ({"negatives": "user\titems\nu2\tb\nu3\t\n"}, "negatives.tsv:3: empty 'items'"),
    "short line": ({"train": "user\titem\nu1\n"}, "train.tsv:2: 1 fields instead of 2"),
    "duplicate": ({"train": "user\titem\nu1\ta\nu1\ta\n"}, "train.tsv:3: user u1 already has item a"),
    "wrong header": ({"test": "user\titems\nu1\ta\n"}, "no column 'item'; did you mean 'items'?"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_directories(tmp_path, kind):
    """File and line of whatever would make the evaluation silently wrong."""
    changed, reason = BAD[kind]
    with pytest.raises(DataError) as caught:
        read_loo_directory(write(tmp_path, **changed))
    assert reason in str(caught.value)


def test_integer_ids_stay_integers(tmp_path):
    """Ids of all three files are read alike."""
    files = {
        "train": "user\titem\n7\t10\n",
        "test": "user\titem\n7\t30\n",
        "negatives": "user\titems\n7\t20 30\n",
    }
    events = read_loo_directory(write(tmp_path, **files)).interactions
    assert events.item_ids.tolist() == [10, 30, 20]
    assert events.user_ids.dtype == events.item_ids.dtype == np.int64


def test_movielens_1m(shared_data):
    """The counts of the split, its 156 removed positives, and the popularity that is published for it."""
    data: Any = read_loo_directory(shared_data / "ml-1m-loo")
    events = data.interactions
    (positives, candidates) = data.test
    assert (events.num_users, events.num_items, len(events.users)) == (6040, 3706, 994_169)
    assert candidates.shape == (6040, 99)
    assert (candidates[:, -1] == -1).sum() == (candidates == -1).sum() == 156
    assert not (candidates == positives[:, None]).any()
    counts = np.bincount(events.items, minlength=events.num_items)
    scores = np.where(candidates >= 0, counts[candidates], -1)
    own = counts[positives][:, None]
    rank = (scores > own).sum(1) + (scores == own).sum(1) / 2
    assert abs((rank < 10).mean() - 0.4538) < 0.001


def test_blanks_around_ids(tmp_path):
    """They play no part, in whichever of the files they stand."""
    (tmp_path / "train.tsv").write_text("user\titem\n 7\t1\n8\t1 \n")
    (tmp_path / "test.tsv").write_text("user\titem\n8\t 2\n7 \t2\n")
    (tmp_path / "negatives.tsv").write_text("user\titems\n 8\t3\n7\t4 3\n")
    data: Any = read_loo_directory(tmp_path)
    assert data.interactions.user_ids.tolist() == [7, 8]
    assert data.test.items.tolist() == [1, 1]
    assert data.test.candidates.tolist() == [[3, 2], [2, -1]]
