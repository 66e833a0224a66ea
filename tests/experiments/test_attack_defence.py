"""The experiment of attacks against defences runs, resumes, and its table says what was measured."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.attack_defence import grid, rows, table
from experiments.attack_defence.__main__ import main, settings_of
from fedjax_rec.types import Server, State, Update


def a_run(attack: str, defence: str, exposure: list[float], accuracy: float):
    return {"attack": attack, "defence": defence, "er@10": [0.5, *exposure], "hr@10": [0.1, accuracy]}


@pytest.fixture
def runs():
    found = [
        a_run("none", "none", [0.0, 0.0], 0.50), a_run("EB", "none", [0.6, 0.4], 0.48),
        a_run("none", "norm bound", [0.0, 0.0], 0.49), a_run("EB", "norm bound", [0.1, 0.3], 0.47),
        a_run("none", "multi-Krum", [0.0, 0.0], 0.40), a_run("EB", "multi-Krum", [0.0, 0.0], 0.47),
        a_run("none", "centred clipping", [0.0, 0.0], 0.50), a_run("EB", "centred clipping", [0.3, 0.4], 0.48),
    ]  # fmt: skip
    return {(run["attack"], run["defence"]): run for run in found}


def test_a_defence_passes_if_it_halves_exposure_for_less_than_five_percent(runs):
    """Neither one that costs too much without an attack nor one that leaves too much exposure does."""
    assert table.exposure(runs["EB", "none"]) == pytest.approx(0.5)
    assert table.passes(runs, "EB", "norm bound")
    assert not table.passes(runs, "EB", "multi-Krum")
    assert not table.passes(runs, "EB", "centred clipping")
    assert not table.passes(runs, "none", "norm bound")
    assert not table.passes(runs, "A-hum", "norm bound")
    text = table.describe(runs)
    assert "| norm bound | 0.000 / 0.490 | 0.200 / 0.470 * |" in text
    assert "| multi-Krum | 0.000 / 0.400 | 0.000 / 0.470 |" in text


def test_smoke(tmp_path, monkeypatch, capsys):
    """A run, its file, table and figure; what is there is not run again, and smoke does not mix with it."""
    monkeypatch.setattr("experiments.attack_defence.__main__.SMOKE", (("PIECK-UEA",), ("none",)))
    settings = settings_of(None, smoke=True)[0]
    (tmp_path / "reference.json").write_text("{}")
    main(["--smoke", "--results", str(tmp_path)])
    found = json.loads((tmp_path / "pieck-uea--none.json").read_text())
    assert found["round"] == [0, 2, 4]
    assert all(0 <= value <= 1 for name in ("er@5", "er@10", "hr@10") for value in found[name])
    assert found["target"] == settings.target
    assert (tmp_path / "exposure.png").stat().st_size > 1000
    assert "PIECK-UEA" in (tmp_path / "table.md").read_text()
    capsys.readouterr()
    main(["--smoke", "--results", str(tmp_path)])
    assert capsys.readouterr().out == (tmp_path / "table.md").read_text() + "\n"
    with pytest.raises(SystemExit):
        main(["--smoke"])


def test_every_pair_builds():
    """All attacks and defences make an algorithm for the experiment's setting."""
    setting = settings_of(None, smoke=True)[0]
    for attack in grid.ATTACKS:
        assert grid.make_algorithm(setting, attack, "none").plan is not None
    for defence in grid.DEFENCES:
        assert grid.make_algorithm(setting, "none", defence).plan is not None
    names = [table.name_run(a, d) for a in grid.ATTACKS for d in grid.DEFENCES]
    assert len(set(names)) == len(names)


def test_what_rows_tell():
    """A client that always sends its items and others now and then is found out, unless it sends all rows."""
    items, table_of = np.arange(4), {"vector": jnp.ones((20, 2))}
    state = State(jnp.int32(0), Server({}, table_of), (), ())
    updates = []
    for number in range(3):
        ids = jnp.asarray([*items, 5 + number, 20])
        values = jnp.where(ids[:, None] < 20, jnp.where(ids[:, None] < 4, 1.0, -1.0), 0.0) * jnp.ones((1, 2))
        updates.append(Update({}, ids, {"vector": values}, jnp.float32(1)))
    found = {}
    for name, transform in rows.hidings(20).items():
        if name in ("none", "all rows", "pseudo-items, rho 1, fixed, zeros"):
            found[name] = rows.attack(rows.hide(transform, updates, state, 0), items, np.ones((20, 2)))
    assert found["none"][0] < found["none"][1] == found["none"][2] == 1
    assert found["all rows"][:3] == pytest.approx([1 / 3] * 3)
    zeros = found["pseudo-items, rho 1, fixed, zeros"]
    assert zeros[1] < 0.9
    assert zeros[2] == 1
