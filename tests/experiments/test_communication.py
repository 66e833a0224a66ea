"""The experiment of accuracy against bytes runs, resumes, and its table says what was measured."""

import json

import pytest

from experiments.communication.__main__ import describe, main, setting_of
from experiments.communication.runs import WAYS
from experiments.keeping import file_name
from fedjax_rec.algorithms.fedmf import fedmf


def test_smoke(tmp_path, monkeypatch, capsys):
    """A run, its file, table and figure; what is there is not run again, and smoke does not mix with it."""
    monkeypatch.setattr("experiments.communication.__main__.SMOKE", ("secure sum",))
    main(["--smoke", "--results", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert found["kilobytes"] > 50 * 5 * 3 / 1e3  # every row, keys and shares
    assert 0 <= found["ndcg@10"] <= found["hr@10"] <= 1
    assert (tmp_path / "bytes.png").stat().st_size > 1000
    path.write_text(json.dumps(found | {"ndcg@10": 0.125}))
    capsys.readouterr()
    main(["--smoke", "--results", str(tmp_path)])
    assert "0.1250" in capsys.readouterr().out
    assert "| secure sum |" in (tmp_path / "table.md").read_text()
    with pytest.raises(SystemExit):
        main(["--smoke"])


def test_every_way_builds():
    """All ways make an algorithm, under names that files can have; the dearest is named first."""
    setting = setting_of(None, smoke=True)
    for name, way in WAYS.items():
        assert fedmf(dim=4, cohort=20, **way(setting)).score is not None, name
    assert len({file_name(name) for name in WAYS}) == len(WAYS)
    runs = [
        {"way": name, "kilobytes": size, "ndcg@10": 0, "hr@10": 0, "round": 1}
        for name, size in (("a", 1), ("b", 2))
    ]
    assert describe(runs).index("| b |") < describe(runs).index("| a |")
