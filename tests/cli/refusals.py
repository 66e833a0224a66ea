"""How a command refuses bad input: status 2, and what it says."""

import pytest

from fedjax_rec.cli.main import main


def refusal(arguments, capsys):
    """What a command that ends with status 2 has told."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def refuse(arguments, capsys):
    """The line with the error, which is the last one that such a command tells."""
    line = refusal(arguments, capsys).splitlines()[-1]
    assert "error" in line
    return line


def check_refused_at_once(arguments, message, capsys, folder):
    """One error line with the message, and nothing written."""
    lines = [line for line in refusal(arguments, capsys).splitlines() if "error" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert list(folder.iterdir()) == []
