"""Compiled programs on the disk: taken by the next process, bounded, and worth no run."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import fedjax_rec as fr
from fedjax_rec.engine import kept_programs
from fedjax_rec.engine.kept_programs import keep_programs

SCRIPT = """
import jax, fedjax_rec as fr
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
fr.use_cores(1, **{options})
print(jax.jit(lambda x: x * 3 + 1)(jax.numpy.arange(3)).tolist(), sum(hits) > 0)
"""


@pytest.fixture
def compute(tmp_path):
    """Computes in a process of its own, and says what it computed, and whether something was in the cache."""

    def compute(folder="kept", options="{}"):
        known = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
        environment = known | {
            "FEDJAX_REC_PROGRAMS": str(tmp_path / folder) if folder else "off",
            "FEDJAX_REC_CACHE": str(tmp_path / "default"),
            "PYTHONPATH": str(Path(fr.__file__).parents[1]),
        }
        script = SCRIPT.replace("{options}", options)
        done = subprocess.run(  # noqa: S603 - our own script
            [sys.executable, "-W", "error", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    return compute


def _files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_next_process_takes_them(compute, tmp_path):
    """Damaged ones are compiled again without a word."""
    assert compute() == "[1, 4, 7] False"
    assert compute() == "[1, 4, 7] True"
    (folder,) = (tmp_path / "kept").iterdir()
    assert jax.__version__ in folder.name
    for number, path in enumerate(_files(folder)):
        path.write_bytes(path.read_bytes()[: number % 2 * 40])
    assert compute() == "[1, 4, 7] False"


def test_where_nothing_is_kept(compute, tmp_path):
    """Switched off, or where no folder can be made, all is computed and nothing written."""
    (tmp_path / "file").write_text("")
    assert compute(folder="") == "[1, 4, 7] False"
    assert compute(folder="unused", options='{"cache": False}') == "[1, 4, 7] False"
    assert compute(folder="file/below") == "[1, 4, 7] False"
    assert _files(tmp_path) == [tmp_path / "file"]


def test_a_folder_of_the_users_own_stays(monkeypatch):
    """Here the suite's."""
    monkeypatch.setenv("FEDJAX_REC_PROGRAMS", "elsewhere")
    assert keep_programs() == Path(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]


def test_the_least_recent_go(tmp_path, monkeypatch):
    """Of all versions together."""
    monkeypatch.setattr(kept_programs, "MOST_BYTES", 100)
    for number, folder in enumerate("abab"):
        path = tmp_path / folder / str(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(40))
        os.utime(path, (number, number))
    kept_programs._prune(tmp_path)
    assert sorted(path.name for path in _files(tmp_path)) == ["2", "3"]
