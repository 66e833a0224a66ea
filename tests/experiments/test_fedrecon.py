"""The experiment with users that never took part, in small: figures for all, and what diverges says so."""

import numpy as np
import pytest

from experiments.fedrecon import run


def _table():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(30), 24)
    items = np.concatenate([rng.choice(40, 24, replace=False) for _ in range(30)])
    return run.Table(users, items, rng.integers(1, 6, len(users)).astype(float), 40)


@pytest.mark.filterwarnings("ignore::fedjax_rec.training.history.DivergedWarning")
def test_every_method_is_measured(monkeypatch, capsys):
    """Means over the seeds that did not diverge, and how many these are."""
    monkeypatch.setattr(run, "VARIANTS", {"fedrecon": {}, "too fast": {"learning_rate": 1e9}})
    monkeypatch.setattr(run, "KNOWN", 5)
    found = [run.run_seed(_table(), seed, rounds=8) for seed in range(2)]
    for name, values in found[0].items():
        assert np.isfinite(values).all() == (name != "too fast"), name
    assert 0.5 < found[0]["fedrecon"][0] < 5
    run.show("small", [*found, {name: np.full(4, np.nan) for name in found[0]}])
    rows = {row.split(" | ")[1]: row for row in capsys.readouterr().out.splitlines()}
    means = np.mean([each["fedrecon"][0] for each in found])
    assert f"| 2 of 3 | {means:.4f} +- " in rows["fedrecon"]
    assert "| 0 of 3 | diverged | diverged |" in rows["too fast"]
