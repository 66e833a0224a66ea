"""The protocol and its id."""

import dataclasses

import pytest

from fedjax_rec.evaluation.protocol import Protocol, protocol_id

OTHERS: dict[str, object] = {
    "data_hash": "0" * 64,
    "min_user_events": 3,
    "min_rating": 4,
    "core": 5,
    "duplicates": "sum",
    "order": "file",
    "negatives": "paper-leaky",
    "candidates": "official",
    "num_candidates": 100,
    "selection": "hr@5",
    "refit": True,
    "seed": 1,
    "evaluate_clients": 10,
}
POINTS: list[dict[str, object]] = [
    {"point": "local-training"},
    {"point": "fold-in"},
    {"point": "fold-in", "fold_in_epochs": 5},
]
SINGLE = {"time_ties", "seen_mask", "ties"}  # fields with one choice so far
SPLITTERS: list[dict[str, object]] = [  # their fields go together
    {"splitter": "global-time", "validation_share": 0.1, "test_share": 0.1, "positives": "all"},
    {"splitter": "global-time", "validation_share": 0.1, "test_share": 0.1},
    {"splitter": "ratio", "validation_share": 0.1, "test_share": 0.1},
    {"splitter": "ratio", "validation_share": 0.1, "test_share": 0.2},
    {"splitter": "ratio", "validation_share": 0.2, "test_share": 0.1},
    {"splitter": "strong", "test_share": 0.1},
    {"splitter": "strong", "test_share": 0.1, "heldout_share": 0.2, "positives": "all"},
]


def test_id_is_stable():
    """A literal: a change of it breaks the comparison with all earlier results."""
    assert protocol_id(Protocol()) == "56f81e2ed35f"


def test_id_depends_on_every_field():
    """Each field changes the id, those with one choice too."""
    fields = {field.name for field in dataclasses.fields(Protocol)}
    assert (
        OTHERS.keys() | SINGLE | {name for each in SPLITTERS for name in each} | POINTS[-1].keys() == fields
    )
    changes = [{name: value} for name, value in OTHERS.items()] + SPLITTERS + POINTS
    ids = [protocol_id(Protocol(**change)) for change in changes]  # type: ignore[arg-type]
    for name in SINGLE:
        protocol = Protocol()
        object.__setattr__(protocol, name, "another")
        ids.append(protocol_id(protocol))
    assert len({protocol_id(Protocol()), *ids}) == 1 + len(OTHERS) + len(SPLITTERS) + len(POINTS) + len(
        SINGLE
    )


def test_json_goes_round():
    """Plain values that build the same protocol; 4 and 4.0 are one rating."""
    protocol = Protocol(min_rating=4, seed=2, refit=True, core=3, splitter="strong", test_share=0.25)
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
        ("evaluate_clients", 0, "evaluate_clients=0 is too few; choose 1 or more, or None for all"),
        ("num_candidates", -1, "num_candidates=-1 is negative; choose 0 or more"),
        ("selection", "ndcg@0", "selection='ndcg@0' is unknown; choose one of 'hr@k', 'ndcg@k'"),
        ("positives", "some", "positives='some' is unknown; choose one of 'all', 'first'"),
        (
            "positives",
            "all",
            "positives='all' is of several events of a user, and the splitter 'leave-one-out'",
        ),
        ("selection", "loss", "selection='loss' is unknown; choose one of 'hr@k', 'ndcg@k'"),
    ],
)
def test_unknown_values_are_one_line_errors(field, value, message):
    """They name the value and the known choices."""
    with pytest.raises(ValueError, match="is") as error:
        Protocol(**{field: value})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test_share": 0.1}, "test_share=0.1: the splitter 'leave-one-out' takes none"),
        ({"splitter": "ratio", "test_share": 0.1}, "validation_share=None: the splitter 'ratio' needs one"),
        (
            {"splitter": "strong", "test_share": 1.0},
            "test_share=1.0 is out of range; choose above 0 and below 1",
        ),
        ({"fold_in_epochs": 2}, "fold_in_epochs=2 needs point='fold-in', not 'server'"),
        (
            {"splitter": "ratio", "test_share": 0.5, "validation_share": 0.5},
            "validation_share and test_share leave nothing to train on; choose below 1 together",
        ),
    ],
)
def test_fields_fit_together(fields, message):
    """A splitter has the shares that it takes and no others; passes belong to fold-in."""
    with pytest.raises(ValueError, match=r"share|fold-in") as error:
        Protocol(**fields)
    assert str(error.value) == message
