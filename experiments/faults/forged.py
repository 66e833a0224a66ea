"""Command lines by chance, run folders and `meta.json` with anything in them: one line each, never a stack."""

import contextlib
import dataclasses
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from experiments.faults.registry import Injection, Outcome, Tally, fault, tally
from experiments.faults.workload import copy_half_done, digests, half_done, run, workload
from fedjax_rec.algorithms.registry import accepted, names
from fedjax_rec.cli import run as run_command
from fedjax_rec.cli.main import main
from fedjax_rec.runs.build import make_algorithm
from fedjax_rec.runs.experiment import run_experiment
from fedjax_rec.runs.recommender import load, top_k
from fedjax_rec.runs.run_folder import save
from fedjax_rec.runs.settings import Settings
from fedjax_rec.training.checkpoints.leaves import digest
from fedjax_rec.training.checkpoints.seal import seal
from fedjax_rec.training.checkpoints.store import find_latest, list_checkpoints, read_arrays

VALUES = (
    *(
        "",
        " ",
        "--",
        "-",
        "-1",
        "0",
        "1",
        "2",
        "5",
        "0.5",
        "1e-9",
        "1e300",
        "-1e300",
        "nan",
        "inf",
        "-inf",
        "1e-320",
    ),
    *(
        "2147483647",
        "2147483648",
        "4294967295",
        "4294967296",
        "9" * 30,
        "True",
        "None",
        "none",
        "x",
        "é",
        "\x1b[2J",
    ),
    *(
        "\0",
        "\n",
        "a=b",
        "a=b,c",
        "=",
        ",",
        "[1]",
        "{}",
        "(" * 300,
        "'",
        '"',
        "\udce9",
        "/",
        "../..",
        "%s",
        "{dim}",
    ),
)
PLAUSIBLE = ("1", "2", "3", "10", "100", "0.5", "0.01", "2147483647")
JSON_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        0.5,
        float("nan"),
        float("inf"),
        2**31,
        2**63,
        10**30,
        "",
        "x",
        "\x1b[2J",
        "\0",
    ),
    *([], {}, [0], [None], {"": 0}, [[[]]], [2**40, 2**40], "float32", "1", [1, {}]),
)
FILES = ("config.json", "protocol.json", "result.json", "per_user.npz", "model.npz")


def draw_command_line(rng: np.random.Generator) -> list[str]:
    """Draw a command and some flags of its own or of others, with values that may suit them or not.

    Args:
        rng: of what is random.

    Returns:
        the arguments.
    """
    command = str(rng.choice(["run"] * 6 + ["compare", "resume"]))
    words = [command] if rng.random() < 0.97 else [str(_choose(VALUES, rng))]
    fields = dataclasses.fields(Settings)
    if rng.random() < 0.5:
        words += ["--algorithm", str(rng.choice(names()))]
    for _ in range(int(rng.integers(1, 5))):
        field = _choose(fields, rng)
        choices = field.metadata["choices"]
        value = _choose(choices or PLAUSIBLE, rng) if rng.random() < 0.7 else _choose(VALUES, rng)
        flag = "--" + field.name.replace("_", "-")
        if field.name == "options" and rng.random() < 0.8:
            value = f"{_choose(list(accepted(str(rng.choice(names())))), rng)}={value}"
        words += [f"{flag}={value}"] if rng.random() < 0.5 else [flag, value]
        if rng.random() < 0.1:
            words.insert(int(rng.integers(len(words) + 1)), _choose(VALUES, rng))
    return words


def _choose(values: Any, rng: np.random.Generator) -> Any:
    return values[int(rng.integers(len(values)))]


@fault("command lines", times=1000, short=60)
def command_lines(injection: Injection) -> Tally:
    """Parsed, checked, and the algorithm built; what would train is not trained."""

    def build(settings: Settings, folder: Path, **_: Any) -> int:
        del folder
        make_algorithm(settings)
        return 0

    with mock.patch.object(run_command, "train", build), contextlib.chdir(injection.folder):
        return tally(_answers(draw_command_line(injection.rng)) for _ in range(injection.times))


def _answers(arguments: list[str]) -> Outcome:
    """Whether a command line ends in order: status 0, or status 2 and one line that a terminal can show."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            return "survived" if main(arguments) == 0 else "lost"
    except SystemExit as stop:
        return "survived" if stop.code in (0, 2) and _is_one_line(errors.getvalue(), stop.code) else "lost"
    except Exception:  # whatever it is, it is not the promised one
        return "lost"


def _is_one_line(text: str, status: object) -> bool:
    last = text.removesuffix("\n").rpartition("\n")[2]
    return status == 0 or (last.startswith("fedjax-rec: error: ") and last.isprintable())


@fault("run folders", times=400, short=20)
def run_folders(injection: Injection) -> Tally:
    """Files cut, flipped, lost, and values put into them that are none: for `compare`, `load` and `top_k`."""
    settings = Settings(rounds=2, eval_every=2, dim=2, num_candidates=9)
    sound = [
        save(run_experiment(dataclasses.replace(settings, seed=seed)), injection.folder / f"sound-{seed}")
        for seed in range(2)
    ]
    return tally(_reads_damaged(injection, sound) for _ in range(injection.times))


def _reads_damaged(injection: Injection, sound: list[Path]) -> Outcome:
    folder = Path(tempfile.mkdtemp(dir=injection.folder)) / "run"
    shutil.copytree(sound[1], folder)
    path = folder / _choose(FILES, injection.rng)
    damage = damage_json if path.suffix == ".json" else damage_arrays
    if injection.rng.random() < 0.2:
        damage = damage_bytes
    damage(path, injection.rng)
    compared = _answers(["compare", str(sound[0]), str(folder)])
    try:
        model = load(folder)
        top_k(model, model.user_ids[0], 3)
    except ValueError as problem:
        named = len(str(problem).splitlines()) == 1 and str(folder) in str(problem)
        return compared if named else "lost"
    except Exception:
        return "lost"
    return compared


def damage_bytes(path: Path, rng: np.random.Generator) -> None:
    """Cut a file, flip a bit, or take it away."""
    data = bytearray(path.read_bytes())
    at = int(rng.integers(len(data)))
    way = int(rng.integers(3))
    if way == 2:
        path.unlink()
        return
    data[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(data[:at] if way else data)


def damage_json(path: Path, rng: np.random.Generator) -> None:
    """Put, replace or take away a value anywhere in a file, or nest it deeply."""
    if rng.random() < 0.05:
        path.write_text('{"a":' * 200_000)
        return
    path.write_text(json.dumps(forge(json.loads(path.read_bytes()), rng)))


def forge(values: Any, rng: np.random.Generator) -> Any:
    """Change a nest of values in one to three places.

    Args:
        values: of JSON.
        rng: of what is random.

    Returns:
        the nest, changed.
    """
    for _ in range(int(rng.integers(1, 4))):
        inner = values
        while isinstance(inner, dict | list) and inner:
            key = _choose(list(inner), rng) if isinstance(inner, dict) else int(rng.integers(len(inner)))
            if not isinstance(inner[key], dict | list) or not inner[key] or rng.random() < 0.4:
                if rng.random() < 0.2:
                    del inner[key]
                else:
                    inner[key] = _choose(JSON_VALUES, rng)
                break
            inner = inner[key]
    return values


def damage_arrays(path: Path, rng: np.random.Generator) -> None:
    """Cut, empty, reshape, retype or lose an array, or put numbers into it that it cannot have."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    name = _choose(list(arrays), rng)
    array = arrays.pop(name)
    huge = np.zeros(3, array.dtype) if array.dtype.kind == "U" else np.full_like(array, 2**30)
    ways: tuple[Callable[[], np.ndarray], ...] = (
        lambda: array[: len(array) // 2] if array.ndim else array[None],
        lambda: array[None],
        lambda: array.astype("U8"),
        lambda: np.zeros(2**25, np.float64),
        lambda: np.full(array.shape, np.nan),
        lambda: -1 - array if array.dtype.kind in "if" else array[::-1],
        lambda: huge,
        lambda: array.reshape(-1)[:0],
    )
    way = int(rng.integers(len(ways) + 1))
    if way < len(ways):
        arrays[name] = ways[way]()
    np.savez_compressed(path, allow_pickle=False, **arrays)


@fault("forged meta", times=200, short=10)
def forged_meta(injection: Injection) -> Tally:
    """`meta.json` of the newest checkpoint changed, and sealed again: refused, or the same numbers."""
    return tally(_goes_on(injection) for _ in range(injection.times))


def _goes_on(injection: Injection) -> Outcome:
    folder = copy_half_done(real=injection.real, parent=injection.folder)
    newest = list_checkpoints(folder)[0]
    damage_json(newest / "meta.json", injection.rng)
    (newest / "seal.json").unlink()
    seal(newest)
    try:
        latest = find_latest(folder)
        expected = digests(half_done(real=injection.real))[latest.path.name] if latest.path else ""
        if latest.path is not None and digest(read_arrays(latest.path, latest.meta)) != expected:
            return "silent"
        run(workload(real=injection.real), folder)
    except ValueError as problem:
        return "survived" if len(str(problem).splitlines()) == 1 else "lost"
    except Exception:
        return "lost"
    return "survived"
