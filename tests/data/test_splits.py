"""Leave-one-out, its filters and its frozen candidates."""

import numpy as np
import pandas as pd
import pytest

from fedjax_rec.data import candidates as drawing
from fedjax_rec.data.interactions import Dataset, Heldout, Interactions
from fedjax_rec.data.splits import Split, data_hash, leave_one_out, merge_validation


@pytest.fixture
def rng():
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


def make_dataset(users, items, *, times=None, ratings=None, num_items=None, **kwargs) -> Dataset:
    """A data set of codes, whose external ids are 100 + user and 1000 + item."""
    users = np.asarray(users, np.int32)
    items = np.asarray(items, np.int32)
    table = Interactions(
        users=users,
        items=items,
        ratings=None if ratings is None else np.asarray(ratings, np.float32),
        timestamps=None if times is None else np.asarray(times),
        user_ids=np.arange(users.max() + 1) + 100,
        item_ids=np.arange(num_items or items.max() + 1) + 1000,
    )
    return Dataset("made", table, **kwargs)


def make_random(rng, num_users=30, num_items=40, **kwargs) -> Dataset:
    """Distinct items per user, 3 to 20 of them, in a shuffled file with many equal timestamps."""
    rows = [(u, i) for u in range(num_users) for i in rng.permutation(num_items)[: rng.integers(3, 21)]]
    users, items = rng.permutation(rows).T
    times = rng.integers(0, 5, len(users))
    ratings = rng.integers(1, 6, len(users))
    return make_dataset(users, items, times=times, ratings=ratings, num_items=num_items, **kwargs)


def make_official(rng, **kwargs) -> Dataset:
    """Random training events without timestamps, and one unseen test item for each user."""
    dataset = make_random(rng)
    table = dataset.interactions._replace(timestamps=None, ratings=None)
    histories = [set(table.items[table.users == user]) for user in range(table.num_users)]
    test = [next(item for item in range(table.num_items) if item not in seen) for seen in histories]
    return dataset._replace(interactions=table, test=Heldout(np.array(test, np.int32), **kwargs))


def rows_of(split: Split) -> list[list[int]]:
    """Each user's training items."""
    return [list(row) for row in np.split(split.items, split.offsets[1:-1])]


def test_last_two_events_are_held_out_in_order_of_time():
    """Events sort by time within a user, wherever they stand in the file, and carry their ratings."""
    dataset = make_dataset(
        [0, 1, 0, 1, 0, 1, 0],
        [0, 1, 2, 3, 4, 5, 1],
        times=[4, 1, 3, 3, 2, 2, 1],
        ratings=[1, 2, 3, 4, 5, 1, 2],
    )
    split = leave_one_out(dataset, num_candidates=1)
    assert rows_of(split) == [[1, 4], [1]]
    assert split.validation.tolist() == [2, 5]
    assert split.test.tolist() == [0, 3]
    assert split.ratings is not None
    assert split.validation_ratings is not None
    assert split.test_ratings is not None
    assert split.ratings.tolist() == [2, 5, 2]
    assert split.validation_ratings.tolist() == [3, 1]
    assert split.test_ratings.tolist() == [1, 4]


def test_equal_timestamps_and_the_order_of_lines():
    """The last line of the file is the test item, whatever its id, where times are equal or it is asked for."""
    for times, order in (([7, 7, 7, 7], None), (None, "file"), ([4, 3, 2, 1], "file")):
        split = leave_one_out(make_dataset([0] * 4, [3, 1, 2, 0], times=times), order=order)
        assert (rows_of(split), split.validation.tolist(), split.test.tolist()) == ([[3, 1]], [2], [0])
        assert (split.order, split.log) == (order or "time", ())


def test_without_times_held_out_events_are_drawn():
    """Each of four events validates or tests a quarter of 4,000 users, within 5 standard errors; by the seed."""
    num_users = 4000
    dataset = make_dataset(np.repeat(np.arange(num_users), 4), np.tile(np.arange(4), num_users))
    split = leave_one_out(dataset)
    assert (split.order, len(split.log)) == ("random", 1)
    assert "drawn at random" in split.log[0]
    for items in (split.validation, split.test):
        assert np.abs(np.bincount(items) / num_users - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / num_users)
    assert (split.validation != split.test).all()
    all_items = np.column_stack([split.items.reshape(-1, 2), split.validation, split.test])
    assert (np.sort(all_items) == np.arange(4)).all()
    again = leave_one_out(dataset, order="random")
    np.testing.assert_array_equal(again.test, split.test)
    assert again.log == ()
    assert (leave_one_out(dataset, seed=1).test != split.test).mean() > 0.5
    timed = make_dataset(
        dataset.interactions.users, dataset.interactions.items, times=dataset.interactions.items
    )
    assert (leave_one_out(timed).test == 3).all()
    np.testing.assert_array_equal(leave_one_out(timed, order="random").test, split.test)


def test_an_order_that_is_not_there_is_refused():
    """Of times without times, or unknown."""
    dataset = make_dataset([0, 0, 0], [0, 1, 2])
    with pytest.raises(ValueError, match="order='time' needs timestamps, and 'made' has none; use file"):
        leave_one_out(dataset, order="time")
    with pytest.raises(ValueError, match="order 'line' is unknown; choose one of 'time', 'file', 'random'"):
        leave_one_out(dataset, order="line")


def test_split_agrees_with_a_plain_oracle(rng):
    """On random data with many ties, against pandas' stable sort."""
    dataset = make_random(rng)
    table = dataset.interactions
    split = leave_one_out(dataset)
    frame = pd.DataFrame({"user": table.users, "item": table.items, "time": table.timestamps})
    expected = [list(rows["item"]) for _, rows in frame.sort_values("time", kind="stable").groupby("user")]
    per_user = zip(rows_of(split), split.validation, split.test, strict=True)
    assert [[*train, validation, test] for train, validation, test in per_user] == expected


def test_types_are_those_of_the_contract(rng):
    """Whatever the path through filters and merging."""
    for split in (leave_one_out(make_random(rng)), leave_one_out(make_official(rng, candidates=None))):
        for made in (split, merge_validation(split)):
            codes = (made.items, made.validation, made.test, made.candidates_test, made.candidates_validation)
            assert all(column.dtype == np.int32 for column in codes)
            assert made.offsets.dtype == np.int64
            floats = (made.ratings, made.validation_ratings, made.test_ratings)
            assert all(column is None or column.dtype == np.float32 for column in floats)


def test_short_users_are_an_error_with_a_way_out():
    """The error names the first such user; the way out drops them and logs the counts."""
    dataset = make_dataset([0, 0, 1, 1, 1, 2], [0, 1, 2, 3, 4, 5])
    message = (
        "leave-one-out needs 3 events of each user; 2 of 3 users have fewer, the first of them '100' with 2; "
        "min_user_events=3 drops them"
    )
    with pytest.raises(ValueError, match=message):
        leave_one_out(dataset)
    with pytest.raises(ValueError, match=message):
        leave_one_out(dataset, min_user_events=1)
    split = leave_one_out(dataset, min_user_events=3, order="file")
    assert split.log == ("min_user_events=3: users 3 -> 1, items 6 -> 3, events 6 -> 3",)
    assert (split.user_ids.tolist(), split.item_ids.tolist()) == ([101], [1002, 1003, 1004])
    assert (rows_of(split), split.validation.tolist(), split.test.tolist()) == ([[0]], [1], [2])


def test_ratings_are_filtered_before_users():
    """A user whose high ratings are too few goes; an item that never had an event stays."""
    dataset = make_dataset(
        [0] * 4 + [1] * 3, [0, 1, 2, 3, 0, 1, 2], ratings=[5, 1, 4, 5, 5, 5, 1], num_items=5
    )
    split = leave_one_out(dataset, min_rating=4, min_user_events=3, order="file")
    assert split.log == (
        "min_rating=4: users 2 -> 2, items 5 -> 5, events 7 -> 5",
        "min_user_events=3: users 2 -> 1, items 5 -> 4, events 5 -> 3",
    )
    assert split.item_ids[split.items].tolist() == [1000]
    assert split.item_ids[split.test].tolist() == [1003]
    assert split.item_ids.tolist() == [1000, 1002, 1003, 1004]
    assert split.data_hash == leave_one_out(dataset, min_user_events=3).data_hash


def test_filters_that_cannot_work_say_so(rng):
    """No ratings, and nobody left."""
    with pytest.raises(ValueError, match="min_rating=3 needs ratings, and 'made' has none"):
        leave_one_out(make_dataset([0, 0, 0], [0, 1, 2]), min_rating=3)
    with pytest.raises(ValueError, match="no user of 'made' is left; min_user_events=99: users 30 -> 0"):
        leave_one_out(make_random(rng), min_user_events=99)


def test_candidates_are_distinct_and_unseen(rng):
    """They exclude training, validation and test items, and fill up unless too few items are unseen."""
    dataset = make_random(rng)
    table = dataset.interactions
    split = leave_one_out(dataset, num_candidates=30)
    assert not np.array_equal(split.candidates_validation, split.candidates_test)
    for candidates in (split.candidates_validation, split.candidates_test):
        for user, row in enumerate(candidates):
            seen = set(table.items[table.users == user])
            drawn = row[row >= 0]
            assert len(drawn) == len(set(drawn)) == min(30, table.num_items - len(seen))
            assert not seen & set(drawn)
            assert drawn.max() < table.num_items


def test_candidates_are_frozen(rng):
    """Equal seeds, equal draws; other seeds, other draws."""
    dataset = make_random(rng)
    drawn = [leave_one_out(dataset, num_candidates=5, seed=seed).candidates_test for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).mean() > 0.5
    literal = leave_one_out(make_dataset([0, 0, 0], [0, 1, 2], num_items=100), num_candidates=4, seed=3)
    assert literal.candidates_test.tolist() == [[39, 92, 98, 14]]  # another draw would be another protocol


def test_candidates_do_not_depend_on_other_users(rng):
    """Neither on their presence nor on what they do."""
    dataset = make_random(rng)
    table = dataset.interactions
    first = table.users < 10
    users, items = (
        np.concatenate(pair) for pair in ((table.users[first], [10] * 3), (table.items[first], [7, 8, 9]))
    )
    fewer = make_dataset(users, items, num_items=table.num_items)
    all_users = leave_one_out(dataset)
    some_users = leave_one_out(fewer)
    np.testing.assert_array_equal(all_users.candidates_test[:10], some_users.candidates_test[:10])
    np.testing.assert_array_equal(all_users.candidates_validation[:10], some_users.candidates_validation[:10])


def test_candidates_do_not_depend_on_how_many_are_drawn_together(rng, monkeypatch):
    """Some users at a time, and all at once."""
    seen = np.flatnonzero(rng.random(11 * 30) < 0.4)
    together = drawing.draw_candidates(seen, (11, 20), 30, 5, 1)
    monkeypatch.setattr(drawing, "_BLOCK", 4)
    np.testing.assert_array_equal(drawing.draw_candidates(seen, (11, 20), 30, 5, 1), together)


def test_candidates_are_uniform():
    """Each of 17 unseen items is a candidate of 5/17 of 4,000 users, within 5 standard errors."""
    num_users = 4000
    num_items = 20
    dataset = make_dataset(
        np.repeat(np.arange(num_users), 3), np.tile([0, 9, 19], num_users), num_items=num_items
    )
    drawn = leave_one_out(dataset, num_candidates=5).candidates_test
    shares = np.bincount(drawn.ravel(), minlength=num_items) / num_users
    assert shares[[0, 9, 19]].tolist() == [0, 0, 0]
    error = np.sqrt(5 / 17 * 12 / 17 / num_users)
    assert np.abs(np.delete(shares, [0, 9, 19]) - 5 / 17).max() < 5 * error


def test_official_test_items_and_candidates_are_kept():
    """Less repeated candidates and the positive; the validation item is one of the training events."""
    heldout = Heldout(np.array([5, -1], np.int32), np.array([[6, 5, 6, 7], [0, -1, -1, 0]], np.int32))
    dataset = make_dataset([0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5], num_items=9, test=heldout)
    split = leave_one_out(dataset, num_candidates=2)
    assert split.test.tolist() == [5, -1]
    assert split.candidates_test.tolist() == [[6, -1, -1, 7], [0, -1, -1, -1]]
    for row, validation, events in zip(rows_of(split), split.validation, ([0, 2, 4], [1, 3, 5]), strict=True):
        assert sorted([*row, validation]) == events
    assert split.candidates_validation.shape == (2, 2)
    assert not np.isin(split.candidates_validation[0], [0, 2, 4, 5]).any()


def test_random_validation_items_come_from_anywhere(rng):
    """They follow the seed and are uniform over each user's events; official ones need no timestamps."""
    dataset = make_official(rng, candidates=None)
    splits = [leave_one_out(dataset, seed=seed) for seed in range(50)]
    counts = np.bincount(dataset.interactions.users)
    events = dataset.interactions.items[dataset.interactions.users == 0]
    shares = np.mean([split.validation[0] == events for split in splits], axis=0)
    assert shares.sum() == pytest.approx(1)
    assert shares.max() < 1 / counts[0] + 5 * np.sqrt(1 / counts[0] / 50)
    np.testing.assert_array_equal(splits[0].validation, leave_one_out(dataset).validation)


def test_official_test_items_survive_the_filters(rng):
    """The test item counts as an event, and its code follows the catalogue."""
    dataset = make_official(rng, candidates=None)
    table = dataset.interactions
    heldout = dataset.test
    assert heldout is not None
    split = leave_one_out(dataset, min_user_events=12)
    remains = np.bincount(table.users) + 1 >= 12
    assert 0 < remains.sum() < table.num_users
    np.testing.assert_array_equal(split.user_ids, table.user_ids[remains])
    np.testing.assert_array_equal(split.item_ids[split.test], table.item_ids[heldout.items[remains]])


def test_official_split_with_timestamps_validates_on_the_last_event():
    """The last training event by time."""
    dataset = make_dataset(
        [0] * 3, [0, 1, 2], times=[1, 3, 2], num_items=4, test=Heldout(np.array([3], "i4"), None)
    )
    assert leave_one_out(dataset).validation.tolist() == [1]


def test_merge_validation_appends_to_each_user(rng):
    """Training rows grow by the validation item, ratings too; a second merge changes only the log."""
    split = leave_one_out(make_random(rng))
    merged = merge_validation(split)
    expected = [[*row, item] for row, item in zip(rows_of(split), split.validation, strict=True)]
    assert rows_of(merged) == expected
    assert split.validation_ratings is not None
    assert merged.ratings is not None
    np.testing.assert_array_equal(merged.ratings[merged.offsets[1:] - 1], split.validation_ratings)
    assert (merged.validation == -1).all()
    assert (merged.candidates_validation == -1).all()
    assert merged.log[-1] == f"merge_validation: training events {len(split.items)} -> {len(merged.items)}"
    again = merge_validation(merged)._replace(log=merged.log)
    for one, other in zip(merged, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_data_hash_sees_every_column():
    """And the order of events, but neither the width of a column nor the name."""
    dataset = make_dataset([0, 0, 0], [0, 1, 2], times=[1, 2, 3], ratings=[1, 2, 3])
    table = dataset.interactions
    heldout = Heldout(np.array([2], "i4"), None)
    changed = [
        table._replace(users=np.array([0, 0, 1], "i4")),
        table._replace(items=table.items[::-1]),
        table._replace(ratings=None),
        table._replace(timestamps=None),
        table._replace(user_ids=table.user_ids + 1),
        table._replace(item_ids=table.item_ids + 1),
        table._replace(**{name: getattr(table, name)[::-1] for name in ("items", "ratings", "timestamps")}),
    ]
    hashes = [data_hash(table), *map(data_hash, changed), data_hash(table, heldout)]
    hashes.append(data_hash(table, heldout._replace(candidates=np.array([[1]], "i4"))))
    assert len(set(hashes)) == len(hashes)
    wide = table._replace(users=table.users.astype(np.int64), timestamps=np.array([1.0, 2.0, 3.0]))
    assert data_hash(wide) == data_hash(table) == leave_one_out(dataset).data_hash


def test_ratings_that_are_no_likes_are_said():
    """Those of 0 or below that are left after the filter count as positives, which the log says."""
    dataset = make_dataset([0] * 5, range(5), times=range(5), ratings=[1, 0, 1, -1, 1])
    (line,) = leave_one_out(dataset).log
    assert line.startswith("2 of 5 events are rated 0 or below and count as positives; min_rating")
    split = leave_one_out(dataset, min_rating=0.5)
    assert (rows_of(split), len(split.log)) == ([[0]], 1)
    noted = leave_one_out(dataset._replace(notes=("no header",)), min_rating=0.5)
    assert noted.log == ("no header", *split.log)
