"""Global time, ratio, held-out clients and the k-core, against plain oracles."""

import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.data.filters import filter_events
from fedjax_rec.data.interactions import Heldout
from fedjax_rec.data.splits import leave_one_out
from fedjax_rec.data.splitters import global_time, ratio, strong_generalisation
from fedjax_rec.evaluation.metrics import user_metrics
from fedjax_rec.evaluation.summary import result_metrics
from fedjax_rec.runs.baselines import run_baseline_experiment
from fedjax_rec.runs.settings import Settings
from tests.data.test_splits import make_dataset, make_random, rows_of


@pytest.fixture
def rng():
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


def histories(dataset) -> list[list[tuple[int, int]]]:
    """Each user's (time, item), by time, equal times in the order of the file."""
    table = dataset.interactions
    rows = []
    for user in range(table.num_users):
        own = np.flatnonzero(table.users == user)
        own = own[np.argsort(table.timestamps[own], kind="stable")]
        rows.append([(int(table.timestamps[at]), int(table.items[at])) for at in own])
    return rows


def heldout_rows(split, user: int) -> list[np.ndarray]:
    """The validation and the test items of a user."""
    return [events.items[events.offsets[user] : events.offsets[user + 1]] for events in split.heldout]


def make_dated(rng):
    """Random events with 200 dates, still many of them shared."""
    dataset = make_random(rng)
    times = rng.integers(0, 200, len(dataset.interactions.users))
    return dataset._replace(interactions=dataset.interactions._replace(timestamps=times))


def test_global_time_agrees_with_a_plain_oracle(rng):
    """No training event is later than any held-out one; the first event of each window counts."""
    dataset = make_dated(rng)
    split = global_time(dataset, validation_share=0.25, test_share=0.25)
    first_alone = global_time(dataset, validation_share=0.25, test_share=0.25, positives="first")
    ordered = np.sort(dataset.interactions.timestamps)
    first = ordered[int(len(ordered) * 0.5)]
    second = ordered[int(len(ordered) * 0.75)]
    ids = split.item_ids - 1000
    code = 0
    for user, row in enumerate(histories(dataset)):
        train = [item for time, item in row if time < first]
        if not train:
            assert user + 100 not in split.user_ids
            continue
        assert split.user_ids[code] == user + 100
        assert ids[rows_of(split)[code]].tolist() == train
        for heldout_items, window in (
            (split.validation, [i for t, i in row if first <= t < second]),
            (split.test, [i for t, i in row if t >= second]),
        ):
            assert (ids[heldout_items[code]] == window[0]) if window else (heldout_items[code] == -1)
        held = [ids[items].tolist() for items in heldout_rows(split, code)]
        assert held[0] == list(dict.fromkeys(i for t, i in row if first <= t < second))
        assert held[1] == list(dict.fromkeys(i for t, i in row if t >= second))
        code += 1
    assert code == split.num_users
    assert f"train before {first}, test from {second}" in split.log[-1]
    np.testing.assert_array_equal(first_alone.test, split.test)
    assert "later events not used" in first_alone.log[-1]


def test_ratio_agrees_with_a_plain_oracle(rng):
    """Each user's shares, rounded down, and at least one event in each part."""
    dataset = make_random(rng)
    split = ratio(dataset, validation_share=0.2, test_share=0.3)
    for user, row in enumerate(histories(dataset)):
        items = [item for _, item in row]
        n = len(row)
        first = min(max(1, int(n * 0.5 + 1e-9)), n - 2)
        second = min(max(first + 1, int(n * 0.7 + 1e-9)), n - 1)
        assert rows_of(split)[user] == items[:first]
        assert (split.validation[user], split.test[user]) == (items[first], items[second])
        held = [own.tolist() for own in heldout_rows(split, user)]
        assert held == [list(dict.fromkeys(part)) for part in (items[first:second], items[second:])]


def test_candidates_exclude_every_event(rng):
    """Also the held-out events that are not used."""
    dataset = make_random(rng)
    split = ratio(dataset, validation_share=0.3, test_share=0.3, num_candidates=10)
    for user, row in enumerate(histories(dataset)):
        for candidates in (split.candidates_test, split.candidates_validation):
            assert not np.isin(candidates[user], [item for _, item in row]).any()


def test_held_out_clients_are_apart(rng):
    """Every user is in one group; fold-in histories and positives are whole; one catalogue; the seed decides."""
    dataset = make_random(rng)
    split = strong_generalisation(dataset, test_share=0.3)
    training, heldout = split
    assert (training.num_users, heldout.num_users) == (21, 9)
    assert sorted([*training.user_ids, *heldout.user_ids]) == list(range(100, 130))
    assert training.item_ids.tolist() == heldout.item_ids.tolist() == list(range(1000, 1040))
    every = histories(dataset)
    for group, last in ((training, training.validation), (heldout, heldout.test)):
        for code, user in enumerate(group.user_ids):
            assert [*rows_of(group)[code], last[code]] == [item for _, item in every[user - 100]]
    assert (training.test == -1).all()
    assert (heldout.validation == -1).all()
    assert training.log == heldout.log == ("strong: 21 clients train, 9 are held out",)
    again, other = (strong_generalisation(dataset, test_share=0.3, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.heldout.user_ids, heldout.user_ids)
    assert other.heldout.user_ids.tolist() != heldout.user_ids.tolist()


def test_core_is_what_is_left_when_nothing_can_be_dropped(rng):
    """Against dropping one user or item at a time; all its users and items have k events."""
    dataset = make_random(rng, num_users=40, num_items=90)
    pairs = set(zip(dataset.interactions.users.tolist(), dataset.interactions.items.tolist(), strict=True))
    while True:
        count: dict[tuple[str, int], int] = {}
        for user, item in pairs:
            for name in (("user", user), ("item", item)):
                count[name] = count.get(name, 0) + 1
        weak = [name for name, number in count.items() if number < 6]
        if not weak:
            break
        kind, code = weak[0]
        pairs = {pair for pair in pairs if pair[kind == "item"] != code}
    table, _, log = filter_events(dataset, core=6)
    left = set(zip(table.user_ids[table.users] - 100, table.item_ids[table.items] - 1000, strict=True))
    assert left == pairs
    assert 0 < len(pairs) < len(dataset.interactions.users)
    assert min(np.bincount(table.users).min(), np.bincount(table.items).min()) >= 6
    sizes = f"users 40 -> {table.num_users}, items 90 -> {table.num_items}"
    assert log == (f"core=6: {sizes}, events {len(dataset.interactions.users)} -> {len(table.users)}",)


def test_users_without_a_positive_are_no_obstacle(rng):
    """A federated run and its metrics take a split where only some users have held-out events."""
    split = global_time(make_dated(rng), validation_share=0.1, test_share=0.1)
    assert 0 < (split.test >= 0).sum() < split.num_users
    algorithm = fr.fedmf(dim=2)
    state, history = fr.simulate(algorithm, split, rounds=2, eval_every=1)
    assert len(history.evaluations) == 2
    ranks = fr.make_evaluator(algorithm, split)(state)
    assert (np.isnan(user_metrics(ranks.full)["hr@10"]) == (split.test < 0)).all()
    assert 0 <= result_metrics(ranks, split)["full"]["ndcg@10"] <= 1


@pytest.mark.parametrize("splitter", [global_time, ratio])
def test_shares_out_of_range(splitter, rng):
    """One line that names them."""
    for shares in ((0.5, 0.5), (0.0, 0.1), (0.1, -0.1), (float("nan"), 0.1)):
        with pytest.raises(ValueError, match="must be above 0, and below 1 together"):
            splitter(make_random(rng), validation_share=shares[0], test_share=shares[1])


def test_data_that_does_not_fit():
    """No timestamps, one date, official test items, short histories, one user: one line each."""
    plain = make_dataset([0] * 4 + [1], [0, 1, 2, 3, 0])
    with pytest.raises(ValueError, match="global-time needs timestamps, and 'made' has none; use ratio"):
        global_time(plain)
    with pytest.raises(ValueError, match="need different dates, but they begin at 5, 5 and 5"):
        global_time(make_dataset([0] * 4, [0, 1, 2, 3], times=[5] * 4))
    with pytest.raises(ValueError, match="ratio needs 3 events of each user; 1 of 2 users have fewer"):
        ratio(plain)
    with pytest.raises(ValueError, match="strong needs 2 events of each user; 1 of 2 users have fewer"):
        strong_generalisation(plain)
    with pytest.raises(ValueError, match="strong needs 2 users or more"):
        strong_generalisation(make_dataset([0] * 4, [0, 1, 2, 3]))
    official = make_dataset([0] * 3, [0, 1, 2], num_items=4, test=Heldout(np.array([3], "i4"), None))
    for splitter in (global_time, ratio, strong_generalisation):
        with pytest.raises(ValueError, match="'made' has official test items"):
            splitter(official)
    with pytest.raises(ValueError, match="core=2 would change the official test of 'made'"):
        leave_one_out(official, core=2)
    with pytest.raises(ValueError, match="no user of 'made' is left; core=9: users 2 -> 0"):
        leave_one_out(plain, core=9)


def test_central_baselines_do_not_leak():
    """They refuse the label of a leak that they do not have."""
    with pytest.raises(ValueError, match="negatives='paper-leaky' is of federated training"):
        run_baseline_experiment(Settings(negatives="paper-leaky"), names=["popularity"])


def test_without_times_shares_are_drawn(rng):
    """A ratio's segments, and the last events of clients; the lines are in order only where that is asked for."""
    dataset = make_random(rng)
    dataset = dataset._replace(interactions=dataset.interactions._replace(timestamps=None))
    plain, drawn = ratio(dataset, order="file"), ratio(dataset)
    assert (plain.order, drawn.order, len(drawn.log) - len(plain.log)) == ("file", "random", 1)
    assert (plain.test != drawn.test).mean() > 0.5
    np.testing.assert_array_equal(plain.offsets, drawn.offsets)
    for own, other in zip(rows_of(plain), rows_of(drawn), strict=True):
        assert len(set(other)) == len(own)
    clients = strong_generalisation(dataset)
    in_lines = strong_generalisation(dataset, order="file")
    assert {clients.training.order, clients.heldout.order} == {"random"}
    np.testing.assert_array_equal(clients.heldout.user_ids, in_lines.heldout.user_ids)
    assert (clients.training.validation != in_lines.training.validation).mean() > 0.5
    with pytest.raises(ValueError, match="global-time needs timestamps"):
        global_time(dataset)
