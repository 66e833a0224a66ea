"""Damage to the files of checkpoints: what is not whole is named, and what came before it is used."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.faults.registry import Injection, Outcome, Tally, fault, tally
from experiments.faults.workload import copy_half_done, digests, half_done, reference, run, workload
from fedjax_rec.cli.main import main
from fedjax_rec.runs.folders import CHECKPOINTS
from fedjax_rec.training.checkpoints.leaves import digest
from fedjax_rec.training.checkpoints.seal import SEAL, list_files
from fedjax_rec.training.checkpoints.store import find_latest, list_checkpoints, read_arrays

Damage = Callable[[Path, np.random.Generator], None]  # to one file
ONE_IN = 10  # injections: that one goes on to the end of the run


def flip_bit(path: Path, rng: np.random.Generator) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def truncate(path: Path, rng: np.random.Generator) -> None:
    """Cut a file, perhaps to nothing."""
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def delete(path: Path, _: np.random.Generator) -> None:
    """Remove a file."""
    path.unlink()


def fill_with_zeros(path: Path, rng: np.random.Generator) -> None:
    """Replace a file's end by zeros, as file systems do after a power failure."""
    data = path.read_bytes()
    start = int(rng.integers(max(len(data.rstrip(b"\0")), 1)))  # at least one byte changes
    path.write_bytes(data[:start] + bytes(len(data) - start))


def _damage_newest(injection: Injection, damage: Damage, *, only: str = "") -> Outcome:
    """Damage a file of the newest checkpoint, sometimes of the one before it too."""
    folder = copy_half_done(real=injection.real, parent=injection.folder)
    paths = list_checkpoints(folder)
    expected = digests(half_done(real=injection.real))
    count = 1 + int(injection.rng.random() < 0.2)
    damaged = []
    for path in paths[:count]:
        files = list_files(path)
        name = only or str(injection.rng.choice(list(files)))
        damage(files[name], injection.rng)
        damaged.append(f"{path.name}: {name}")
    latest = find_latest(folder)
    if latest.path in paths[:count]:
        return "silent"
    if latest.path != paths[count] or not all(map(str.startswith, latest.damaged, damaged)):
        return "lost"
    if digest(read_arrays(latest.path, latest.meta)) != expected[latest.path.name]:
        return "silent"
    goes_on = injection.rng.integers(ONE_IN) == 0
    same = not goes_on or run(workload(real=injection.real), folder) == reference(real=injection.real)
    return "survived" if same else "silent"


@fault("bit flip", times=60, short=6)
def flipped(injection: Injection) -> Tally:
    """One bit, anywhere in the newest checkpoint."""
    return tally(_damage_newest(injection, flip_bit) for _ in range(injection.times))


@fault("truncation", times=60, short=6)
def cut(injection: Injection) -> Tally:
    """A file that ends too early."""
    return tally(_damage_newest(injection, truncate) for _ in range(injection.times))


@fault("deletion", times=60, short=6)
def lost_file(injection: Injection) -> Tally:
    """A file that is not there."""
    return tally(_damage_newest(injection, delete) for _ in range(injection.times))


@fault("zero-fill", times=60, short=6)
def zeros(injection: Injection) -> Tally:
    """A file whose end is zeros, of the right length."""
    return tally(_damage_newest(injection, fill_with_zeros) for _ in range(injection.times))


@fault("damaged seal", times=60, short=6)
def broken_seal(injection: Injection) -> Tally:
    """The seal itself: flipped, cut, deleted or zeros."""
    ways = (flip_bit, truncate, delete, fill_with_zeros)
    return tally(_damage_newest(injection, ways[i % len(ways)], only=SEAL) for i in range(injection.times))


@fault("every checkpoint damaged", times=20, short=2)
def all_damaged(injection: Injection) -> Tally:
    """Refused in one line that names each, with an exit status that is not 0."""
    return tally(_refuses(injection) for _ in range(injection.times))


def _refuses(injection: Injection) -> Outcome:
    run_folder = Path(tempfile.mkdtemp(dir=injection.folder))
    folder = run_folder / CHECKPOINTS / "train"
    folder.parent.mkdir()
    copy_half_done(real=injection.real, parent=injection.folder).rename(folder)
    for path in list_checkpoints(folder):
        files = list_files(path)
        flip_bit(files[str(injection.rng.choice(list(files)))], injection.rng)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            main(["resume", str(run_folder)])
    except SystemExit as stop:
        named = all(path.name in errors.getvalue() for path in list_checkpoints(folder))
        return "survived" if stop.code and named and errors.getvalue().count("\n") == 1 else "lost"
    return "silent"
