"""Frames of any library stand where a data set is asked for, and what is none is told in one line."""

import datetime as dt
import sys
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import fedjax_rec
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.inputs import as_dataset
from fedjax_rec.data.splits import data_hash
from fedjax_rec.data.splitters import as_split
from fedjax_rec.errors import ArgumentError

fr: Any = fedjax_rec  # what is called here is wrong on purpose

EVENTS: dict[str, Any] = {
    "userId": ["b", "b", "b", "a", "a", "a"],
    "movieId": [7, 2**60 + 1, 9, 9, 7, 8],
    "rating": [1.0, 2.0, 3.5, 4.0, 5.0, 0.5],
    "timestamp": [30, 10, 20, 5, 6, 40],
}


def _of_polars(events, *, lazy=False):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(events)
    return frame.lazy() if lazy else frame


class Stream:
    """A table that only an Arrow stream gets out."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


KINDS = {
    "pandas": pd.DataFrame,
    "dict": dict,
    "dict of arrays": lambda events: {name: np.array(column) for name, column in events.items()},
    "dict of series": lambda events: {
        name: pd.Series(column, index=np.roll(range(6), place))
        for place, (name, column) in enumerate(events.items())
    },
    "pyarrow": pa.table,
    "stream": lambda events: Stream(pa.table(events)),
    "polars": _of_polars,
    "lazy polars": lambda events: _of_polars(events, lazy=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_frame(kind):
    """The same events, to the bit, whatever holds them; usual names of columns are known."""
    found = fr.from_frame(KINDS[kind](EVENTS))
    assert data_hash(found) == data_hash(fr.from_frame(pd.DataFrame(EVENTS)))
    assert found.user_ids.tolist() == ["b", "a"]
    assert found.item_ids.tolist() == [7, 2**60 + 1, 9, 8]
    assert found.ratings.tolist() == EVENTS["rating"]
    assert found.timestamps.tolist() == EVENTS["timestamp"]
    split = fr.leave_one_out(KINDS[kind](EVENTS))
    assert split.item_ids[split.test].tolist() == [7, 8]  # the last by time, not by place
    assert split.item_ids[split.items].tolist() == [2**60 + 1, 9]
    if kind in ("pandas", "dict", "pyarrow", "polars"):
        other = fr.from_frame(KINDS[kind](EVENTS | {"who": EVENTS["userId"]}), user="who", rating=None)
        assert other.ratings is None
        assert other.user_ids.tolist() == ["b", "a"]


@pytest.mark.parametrize("kind", ["pyarrow", "polars", "lazy polars"])
def test_columns_of_other_libraries(kind):
    """Dates are seconds, categories are their names, and what is missing is told with its row."""
    days = [dt.date(1970, 1, day) for day in (3, 1, 2, 4, 5, 6)]
    moments = [dt.datetime(1970, 1, 1, 9, tzinfo=dt.timezone(dt.timedelta(hours=9)))] * 6
    make = KINDS[kind]
    assert fr.from_frame(make(EVENTS | {"timestamp": days})).timestamps.tolist()[:2] == [2 * 86400, 0]
    assert fr.from_frame(make(EVENTS | {"timestamp": moments})).timestamps.tolist() == [0] * 6
    missing = {**EVENTS, "userId": ["b", "b", "b", "a", None, "a"]}
    for column in ("userId", "movieId", "rating"):
        gap = {**EVENTS, column: [*EVENTS[column][:4], None, EVENTS[column][5]]}
        with pytest.raises(DataError, match="frame row 4: "):
            fr.from_frame(make(gap))
    if kind == "pyarrow":  # a missing category, too
        table = pa.table({**missing, "userId": pa.array(missing["userId"]).dictionary_encode()})
    else:
        import polars as pl

        table = make(missing).with_columns(pl.col("userId").cast(pl.Categorical))
    with pytest.raises(DataError, match="frame row 4: empty 'userId'"):
        fr.from_frame(table)


def test_lazy_frames_compute_only_what_is_asked():
    """A column that cannot be computed does not matter as long as nobody asks for it."""
    polars = pytest.importorskip("polars")

    def fail(_):
        raise AssertionError("a column that nobody asked for was computed")

    lazy = polars.LazyFrame(EVENTS).with_columns(
        other=polars.col("rating").map_batches(fail, return_dtype=polars.Float64)
    )
    assert fr.from_frame(lazy).num_users == 2


def test_frames_stand_where_data_sets_do():
    """In every splitter, and where a split is asked for; the split is that of leave_one_out."""
    frame = pd.DataFrame(EVENTS)
    events = fr.from_frame(frame)
    for data in (frame, events, fr.Dataset("frame", events)):
        for splitter in (fr.leave_one_out, fr.data.ratio, fr.data.strong_generalisation):
            found = splitter(data)
            named = splitter(fr.Dataset("frame", events))
            found, named = (getattr(each, "training", each) for each in (found, named))
            np.testing.assert_array_equal(found.items, named.items)
            assert found.data_hash == named.data_hash
        assert fr.data.global_time(data, validation_share=0.17, test_share=0.33).num_users == 2
        assert as_split(data, "simulate").data_hash == fr.leave_one_out(frame).data_hash
    split = fr.leave_one_out(frame)
    assert as_split(split, "simulate") is split
    assert isinstance(events, fr.Interactions)
    assert as_dataset(frame, "f").name == "frame"
    assert fr.Population.from_frame(pa.table(EVENTS)).num_clients == 2
    names = ["popularity"]
    one, other = (fr.baselines(data, names=names)["popularity"].metrics for data in (frame, split))
    assert one == other


def test_simulate_and_sweep_take_frames():
    """A run on a frame is the run on its split."""
    data = fr.data.synthetic(20, 80)
    events = data.interactions
    frame = {"user": events.user_ids[events.users], "item": events.item_ids[events.items]}
    split = fr.leave_one_out(frame)
    runs = [fr.simulate(fr.fedmf(dim=2, cohort=20), each, rounds=2)[1] for each in (split, frame)]
    assert runs[0].rounds.loss.tolist() == runs[1].rounds.loss.tolist()
    assert runs[0].evaluations == runs[1].evaluations
    assert len(runs[1].evaluations) == 1
    found = [fr.sweep(fr.fedmf, each, {"dim": [2]}, rounds=2, eval_every=2) for each in (split, frame)]
    assert found[0].best.validation == found[1].best.validation


def test_what_is_no_frame_is_told_in_one_line(monkeypatch):
    """The line names the argument and what is taken; texts, splits and single columns are among the wrong ones."""
    split = fr.leave_one_out(EVENTS)
    wrong = [
        (5, "dataset is 5, an int; leave_one_out takes a Dataset, Interactions, or a frame"),
        ("ml-100k", "load_dataset('ml-100k') reads it"),
        (None, "takes a Dataset"),
        ([1, 2], "takes a Dataset"),
        (np.ones((2, 2)), "takes a Dataset"),
        (split, "takes a Dataset"),
        (pd.Series([1]), "takes a Dataset"),
        (Stream(pa.chunked_array([[1]])), "takes a Dataset"),
        (pd.DataFrame, "takes a Dataset"),
    ]
    for value, words in wrong:
        with pytest.raises(ArgumentError) as caught:
            fr.leave_one_out(value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    malformed = [
        ({"a": [1], "b": [2]}, r"from_frame: no column looks like the users; name it with user=\.\.\."),
        ({}, "no column looks like the users"),
        ({"user": 1, "item": 2}, "its columns make no table"),
        ({"user": [1], "item": [1, 2]}, "its columns make no table"),
        ({"user": np.ones((2, 2)), "item": [1, 2]}, "its columns make no table"),
        ({"user": [], "item": []}, "frame: no interactions"),
        ({"user": [1, 1], "item": [2, 2]}, "frame row 1: user 1 already has item 2"),
    ]
    for value, pattern in malformed:
        with pytest.raises(DataError, match=pattern):
            fr.leave_one_out(value)
    for call, words in (
        (lambda: fr.simulate(fr.fedmf(), 5), "data is 5, an int; simulate takes a Split, a Dataset"),
        (lambda: fr.sweep(fr.fedmf, 5, {"dim": [2]}), "split is 5, an int; sweep takes a Split"),
        (lambda: fr.baselines(5), "split is 5, an int; run_baselines takes a Split"),
        (lambda: fr.from_frame(5), "df is 5, an int; from_frame takes a frame"),
        (lambda: fr.from_frame(EVENTS, user=2.5), "user is 2.5, a float"),
        (lambda: fr.data.ratio("a.csv"), "load_dataset('a.csv')"),
        (
            lambda: fr.simulate(fr.fedmf(), {"user": [1], "item": [2]}),
            "min_user_events=3 drops them; simulate takes what leave_one_out(data, ...) returns",
        ),
    ):
        with pytest.raises(ValueError, match="; ") as refused:
            call()
        assert words in str(refused.value)
    monkeypatch.setitem(sys.modules, "narwhals.stable.v2", None)
    with pytest.raises(DataError, match=r"a pyarrow.Table is read by narwhals; install it with: pip install"):
        fr.leave_one_out(pa.table(EVENTS))
