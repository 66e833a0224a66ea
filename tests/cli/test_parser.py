"""Settings as flags, with their defaults."""

import dataclasses

import pytest

from fedjax_rec.cli.main import build_parser, main
from fedjax_rec.runs.settings import Settings
from tests.cli.refusals import refuse


def test_help_shows_every_setting_and_default(capsys):
    """`run --help-all` lists each setting with its default."""
    with pytest.raises(SystemExit):
        main(["run", "--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Settings):
        assert f"--{field.name.replace('_', '-')}" in text
        assert field.default is None or f"(default: {field.default})" in text
    assert "(default: none)" not in text.lower()  # the text itself says what happens then


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["run", "--rounds", "3", "--seed=1", "--rounds=4"],
            "--rounds is given twice; leave one of them out",
        ),
        (["run", "--refit", "--no-refit"], "--refit and --no-refit are both given"),
        (["run", "--algorithm", "fedncf", "--layers", "2", "--layers", "3"], "--layers is given twice"),
        (["recommend", "--run", "a", "--run", "b"], "--run is given twice"),
        (["plan", "--clients", "9", "--items", "9", "--items", "8"], "--items is given twice"),
        (["data", "describe", "x.csv", "--user", "a", "--user", "b"], "--user is given twice"),
    ],
)
def test_a_flag_of_one_value_stands_once(arguments, words, capsys):
    """The last one would win without a word; flags that may stand several times still may."""
    assert words in refuse(arguments, capsys)
    given = build_parser("run").parse_args(["run", "--algorithm", "fedmf", "--algorithm", "fedals"])
    assert given.algorithm == "fedmf,fedals"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cohort=--"], "--cohort needs a value"),
        (["--seed", "--"], "--seed"),
        (["--keep-first", "4294967296"], "--keep-first must be at most 2,147,483,647, not 4,294,967,296"),
        (["--clip", "1e300"], "--clip must be at most"),
        (["--algorithm", "fedncf", "--options", "layers=a"], "--options layers=a must be of type int"),
        (["--options", "x=" + "(" * 500], "x"),
        (["--dataset", "\x1b[2J.csv"], r"\x1b[2J.csv"),
        (["\x1b]0;me\x07"], r"\x1b]0;me\x07"),
    ],
)
def test_odd_arguments_are_refused_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    """No stack, and nothing that a terminal would obey."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["run", *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert message in lines[-1]
    assert all(line.isprintable() for line in lines)


def test_settings_have_the_types_of_their_flags():
    """From Python, or from a stored configuration: refused by name, value and type."""
    for given, message in (
        ({"seed": None}, "seed must be of type int, not None of type NoneType"),
        ({"rounds": 2.0}, "rounds must be of type int, not 2.0 of type float"),
        ({"dim": "4"}, "dim must be of type int, not '4' of type str"),
        ({"cohort": True}, "cohort must be of type int, not True of type bool"),
        ({"refit": 1}, "refit must be of type bool, not 1 of type int"),
        ({"dataset": 5}, "dataset must be of type str, not 5 of type int"),
    ):
        with pytest.raises(ValueError, match=message):
            Settings(**given)
    assert Settings(deadline=5, clip=None).deadline == 5
