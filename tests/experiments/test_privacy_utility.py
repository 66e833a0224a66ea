"""The experiment of accuracy against epsilon runs, resumes, and its table says what was measured and spent."""

import json

import pytest

from experiments.privacy_utility.__main__ import describe, main, setting_of
from experiments.privacy_utility.runs import Choice, choices, rounds_of


def test_smoke(tmp_path, capsys):
    """Tuning, seeds, files, table and figure; what is there is not run again, and smoke does not mix with it."""
    main(["--smoke", "--results", str(tmp_path)])
    private = json.loads((tmp_path / "60-8.json").read_text())
    plain = json.loads((tmp_path / "60-plain.json").read_text())
    assert len(private["trials"]) == len(private["tests"]) == 2
    assert all(7 < test["epsilon"] <= 8 for test in private["tests"])
    assert all(0 < test["signal"] < float("inf") for test in private["tests"])
    best = max(private["trials"], key=lambda trial: trial["hr@10"])
    assert private["choice"] == best["choice"]
    assert private["delta"] == pytest.approx(60**-1.1)
    assert "epsilon" not in plain["tests"][0]
    assert (tmp_path / "utility.png").stat().st_size > 1000
    (tmp_path / "60-8.json").write_text(
        json.dumps(private | {"tests": [t | {"hr@10": 0.125} for t in private["tests"]]})
    )
    capsys.readouterr()
    main(["--smoke", "--results", str(tmp_path)])
    assert "| 60 | 8 | 0.1250 ± 0.0000 |" in capsys.readouterr().out
    assert "| 60 | none |" in (tmp_path / "table.md").read_text()
    with pytest.raises(SystemExit):
        main(["--smoke"])


def test_all_budgets_try_the_same():
    """The settings do not depend on cohort or budget, and smaller cohorts have more rounds."""
    setting = setting_of(None, smoke=True)
    assert choices(5)[:3] == choices(3)
    assert choices(1) == [Choice()]
    assert rounds_of(setting, 20, Choice()) == 6
    assert rounds_of(setting, 60, Choice(share=0.5)) == 1


def test_table():
    """A row says mean and spread over seeds, and the noise where there is some."""
    test = {"hr@10": 0.5, "ndcg@10": 0.25, "noise_multiplier": 2.0, "signal": 0.5, "rounds": 7}
    other = test | {"hr@10": 0.52}
    run = {"cohort": 9, "epsilon": 1.0, "choice": {"clip": 0.1}, "tests": [test, other]}
    text = describe([run, run | {"epsilon": None}], 0.4)
    assert "| 9 | 1 | 0.5100 ± 0.0141 | 0.2500 ± 0.0000 | 2.00 | 0.50 | 7 | 0.100 |" in text
    assert "| 9 | none | 0.5100 ± 0.0141 | 0.2500 ± 0.0000 | - | - | 7 | - |" in text
    assert "HR@10 0.4000" in text
