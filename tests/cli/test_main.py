"""The table of commands, the package as the command line, and what is imported before it is needed."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_rec.cli import main as entry
from fedjax_rec.cli.argument_parser import Parser

HEAVY = {"jax", "jaxlib", "flax", "optax", "numpy", "pandas", "scipy", "matplotlib", "tqdm"}


def test_each_command_has_its_file():
    """A command is the module of its name, and every other file is the entry, parsers, processes or output."""
    files = {path.stem for path in Path(entry.__file__).parent.glob("*.py")}
    assert files == {
        *entry.COMMANDS,
        "__init__",
        "argument_parser",
        "main",
        "output",
        "parser",
        "processes",
        "several_runs",
        "supervisor",
    }


@pytest.mark.parametrize("name", entry.COMMANDS)
def test_the_table_says_what_the_command_says(name):
    """The table of commands, which imports none of them, has their own words."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(parser_class=Parser)
    entry.module_of(name).add_parser(commands)
    assert [(action.dest, action.help) for action in commands._choices_actions] == [
        (name, entry.COMMANDS[name])
    ]


def test_the_package_is_the_command_line():
    """`python -m fedjax_rec` answers as `fedjax-rec` does, errors with status 2."""
    for arguments, status, text in ((["data", "ls"], 0, "ml-100k"), (["run", "--rounds", "0"], 2, "rounds")):
        command = [sys.executable, "-m", "fedjax_rec", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
        assert done.returncode == status
        assert text in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_what_needs_nothing_imports_nothing(tmp_path):
    """Help, versions, a new algorithm and a wrong command are there before jax would be."""
    code = (
        "import sys\n"
        "from fedjax_rec.cli.main import main\n"
        "for arguments in (['--help'], ['version'], ['--version'], ['new', 'mine'], ['rnu'], []):\n"
        "    try:\n"
        "        main(arguments)\n"
        "    except SystemExit as end:\n"
        "        print('status', end.code)\n"
        f"print(sorted({HEAVY} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(  # noqa: S603 - our own module
        command, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]", done.stdout + done.stderr
    assert [line for line in lines if line.startswith("status")] == ["status 0", "status 2", "status 2"]
    assert sum(line.startswith("fedjax-rec 0") for line in lines) == 2
    assert done.stderr.splitlines() == [
        "fedjax-rec: error: unknown command 'rnu'; did you mean run? see fedjax-rec --help",
        "fedjax-rec: error: a command is missing; see fedjax-rec --help",
    ]


def test_help_lists_every_command(capsys):
    """And none of their flags."""
    with pytest.raises(SystemExit) as end:
        entry.main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    words = " ".join(text.split())
    assert all(f" {name} {help_} " in words for name, help_ in entry.COMMANDS.items())
    assert len(text.splitlines()) < 30


def test_nothing_close_is_not_offered(capsys):
    """A word that resembles none is no reason for a guess."""
    for arguments in (
        ["frobnicate"],
        ["run", "--zzz"],
        ["run", "--set", "a=1"],
        ["run", "--algorithm", "qqqqq"],
    ):
        with pytest.raises(SystemExit):
            entry.main(arguments)
        assert "did you mean" not in capsys.readouterr().err
