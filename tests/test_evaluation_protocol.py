"""The protocol and its id."""

import dataclasses

import pytest

from fedjax_rec.evaluation.protocol import Protocol, protocol_id

OTHERS: dict[str, object] = {
    "data_hash": "0" * 64,
    "min_user_events": 3,
    "min_rating": 4,
    "candidates": "official",
    "num_candidates": 100,
    "selection": "hr@5",
    "refit": True,
    "seed": 1,
}
SINGLE = {"splitter", "time_ties", "seen_mask", "ties", "negatives"}  # fields with one choice so far


def test_id_is_stable():
    """A literal: a change of it breaks the comparison with all earlier results."""
    assert protocol_id(Protocol()) == "56f81e2ed35f"


def test_id_depends_on_every_field():
    """Each field changes the id, those with one choice too."""
    assert OTHERS.keys() | SINGLE == {field.name for field in dataclasses.fields(Protocol)}
    ids = [protocol_id(Protocol(**{name: value})) for name, value in OTHERS.items()]  # type: ignore[arg-type]
    for name in SINGLE:
        protocol = Protocol()
        object.__setattr__(protocol, name, "another")
        ids.append(protocol_id(protocol))
    assert len({protocol_id(Protocol()), *ids}) == 1 + len(OTHERS) + len(SINGLE)


def test_json_goes_round():
    """Plain values that build the same protocol; 4 and 4.0 are one rating."""
    protocol = Protocol(min_rating=4, seed=2, refit=True)
    assert Protocol(**protocol.to_json()) == protocol  # type: ignore[arg-type]
    assert protocol_id(protocol) == protocol_id(dataclasses.replace(protocol, min_rating=4.0))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("splitter", "random", "splitter='random' is unknown; choose one of 'leave-one-out'"),
        ("candidates", "all", "candidates='all' is unknown; choose one of 'sampled', 'official'"),
        ("negatives", "all", "negatives='all' is unknown; choose one of 'train'"),
        ("ties", "best", "ties='best' is unknown; choose one of 'half'"),
        ("seed", -1, "seed=-1 is negative; choose 0 or more"),
        ("num_candidates", -1, "num_candidates=-1 is negative; choose 0 or more"),
        ("selection", "ndcg@0", "selection='ndcg@0' is unknown; choose one of 'hr@k', 'ndcg@k'"),
        ("selection", "loss", "selection='loss' is unknown; choose one of 'hr@k', 'ndcg@k'"),
    ],
)
def test_unknown_values_are_one_line_errors(field, value, message):
    """They name the value and the known choices."""
    with pytest.raises(ValueError, match="is") as error:
        Protocol(**{field: value})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
