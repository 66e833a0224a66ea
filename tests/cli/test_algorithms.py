"""Algorithms are listed and described, and new ones begin with a skeleton that keeps the laws."""

import importlib
import json
import sys

import pytest

from fedjax_rec.algorithms.registry import names
from fedjax_rec.cli.main import main
from fedjax_rec.runs.descriptions import describe


def test_every_algorithm_is_listed(capsys):
    """By name, with the first line that it says of itself."""
    assert main(["algorithms"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(names())
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("name", names())
def test_every_algorithm_is_described(name):
    """A paper, a text for each setting of its own, and something that travels."""
    found = describe(name)
    assert len(found.paper) > 30
    assert [setting for setting, (_, text) in found.settings.items() if not text] == []
    assert found.row_bytes + found.dense_bytes > 0


def test_a_description(capsys):
    """As text, and as one JSON object."""
    main(["algorithms", "fedper"])
    text = capsys.readouterr().out
    assert "item rows" not in text.splitlines()[0]
    assert "Arivazhagan" in text
    assert "personal" in text
    main(["algorithms", "fedmf", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["private"] == {"vector": "float32[64]"}
    assert found["settings"]["learning_rate"] == {
        "default": 0.012,
        "help": "of the default local optimizer, SGD.",
    }
    with pytest.raises(SystemExit):
        main(["algorithms", "fedfm"])
    assert "did you mean 'fedmf'" in capsys.readouterr().err


def test_a_new_algorithm_keeps_its_laws(tmp_path, monkeypatch, capsys):
    """The skeleton's own test passes, and the command line knows its settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["new", "my_algorithm"]) == 0
    test = importlib.import_module("test_my_algorithm")
    for law in test.QUICK:
        test.test_law(law)
    capsys.readouterr()
    main(["algorithms", "my_algorithm:my_algorithm", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["dim"] == {"default": 16, "help": "D, width of the vectors."}
    assert found["tables"] == {"bias": "float32[I]", "vector": "float32[I, 16]"}
    for name in ("my_algorithm", "test_my_algorithm"):
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("taken", "exists"),
        ("my-own", "no name"),
        ("class", "no name"),
        ("os", "would hide"),
        ("optax", "would hide"),
    ],
)
def test_a_bad_name_is_refused(name, words, tmp_path, monkeypatch, capsys):
    """And nothing is written, or written over."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_taken.py").write_text("mine")
    with pytest.raises(SystemExit) as end:
        main(["new", name])
    assert end.value.code == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test_taken.py"]
    assert (tmp_path / "test_taken.py").read_text() == "mine"
