"""The faults, a few of each: all survived, none silent; and the README's table has a row for each."""

import re
from pathlib import Path

import pytest

from experiments.faults import __main__ as script
from experiments.faults.registry import FAULTS, Tally, fault, tally

script.register()
README = Path(script.__file__).with_name("README.md").read_text(encoding="utf-8")


DEAR = {  # each starts two runs, and tests/test_hosts.py has them too
    name: pytest.mark.thorough("tests/test_hosts.py does the same")
    for name in (
        "one of two processes killed",
        "two processes that differ",
        "damaged share on one of two processes",
    )
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=DEAR.get(name, ())) for name in FAULTS])
def test_fault(name):
    """Nothing that was acknowledged is lost, and no wrong number is believed."""
    counts = script.inject(name, short=True)
    assert counts == Tally(FAULTS[name].short, FAULTS[name].short, 0, 0)


def test_readme_has_every_row():
    """With the number of times that the script injects it."""
    rows = {
        name.strip(): int(times) for name, times in re.findall(r"^\| (.+?) \| (\d+) \|", README, re.MULTILINE)
    }
    assert rows == {name: row.times for name, row in FAULTS.items()}


def test_report(capsys, monkeypatch):
    """A line for each fault, and status 1 if one was not survived."""
    monkeypatch.setitem(FAULTS, "gremlin", FAULTS["kill -9"]._replace(inject=lambda _: tally(["lost"])))
    assert script.main(["--only", "gremlin"]) == 1
    assert capsys.readouterr().out.startswith("gremlin: injected 1, survived 0, lost 1, silent 0\n")
    with pytest.raises(ValueError, match="there is a fault 'gremlin' already"):
        fault("gremlin", times=1, short=1)(lambda _: tally([]))
