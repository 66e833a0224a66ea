"""`fedjax-rec bench`: what it prints is what was measured."""

import json
from statistics import median

import pytest

from fedjax_rec.cli.main import main
from fedjax_rec.runs import bench

TINY = bench.BenchShape("tiny", clients=12, items=40, events=5, dim=2, cohort=4, epochs=2)


def test_a_bench_is_medians_and_spread(monkeypatch, capsys):
    """One tiny shape, as JSON and as a table."""
    found = bench.run_bench([TINY], seconds=0.01)
    rate = TINY.cohort / median(found[0].seconds)
    assert found[0].clients_per_second == rate
    assert found[0].examples_per_second == rate * found[0].events * 2
    assert found[0].events == bench.draw(TINY).size.num_events / 12
    monkeypatch.setattr(bench, "run_bench", lambda **_: found)
    assert main(["bench", "--json", "--quiet"]) == 0
    row = json.loads(capsys.readouterr().out)["shapes"][0]
    assert row["clients_per_second"] == rate
    assert row["least_clients_per_second"] <= rate <= row["most_clients_per_second"]
    assert main(["bench"]) == 0
    told = capsys.readouterr()
    assert f"{rate:,.0f}" in told.out
    assert "to compare: two quiet cores" in told.out
    assert "shapes" in told.err


def test_seconds_must_be_some(capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "--seconds", "0"])
    assert end.value.code == 2
    assert "--seconds must be above 0, not 0.0" in capsys.readouterr().err
