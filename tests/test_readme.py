"""Every python block of the README runs, in order, in one namespace; the quick start is short."""

import re
from pathlib import Path

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    """The blocks run, and the library itself prints nothing: what appears is what they print."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), space)  # noqa: S102 - our own README
    assert "federated" in capsys.readouterr().out


def test_quick_start_is_short():
    """The first block is the quick start: at most 15 lines."""
    assert len(BLOCKS[0].splitlines()) <= 15


def test_commands_are_the_promised_ones():
    """The two set-up commands stand in the README exactly once each."""
    for command in ("pip install . && fedjax-rec run", "pip install -e '.[dev]' && pytest"):
        assert README.splitlines().count(command) == 1
