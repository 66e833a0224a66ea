"""Damage to the files of checkpoints: what is not whole is named, and what came before it is used."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.faults.registry import Outcome, Setting, Tally, fault, tally
from experiments.faults.work import contents, copy, half_done, reference, run, work
from fedjax_rec.cli import main
from fedjax_rec.folders import CHECKPOINTS
from fedjax_rec.leaves import digest
from fedjax_rec.seal import SEAL, list_files
from fedjax_rec.steps import find_step, read_arrays, step_paths

Damage = Callable[[Path, np.random.Generator], None]  # to one file
RUNS = 10  # one trial in so many goes on to the end of the run


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


def _hurt(setting: Setting, damage: Damage, *, only: str = "") -> Outcome:
    """Damage a file of the newest step, sometimes of the one before it too."""
    folder = copy(real=setting.real, place=setting.place)
    steps, known = step_paths(folder), contents(half_done(real=setting.real))
    count = 1 + int(setting.rng.random() < 0.2)
    hit = []
    for step in steps[:count]:
        files = list_files(step)
        name = only or str(setting.rng.choice(list(files)))
        damage(files[name], setting.rng)
        hit.append(f"{step.name}: {name}")
    found = find_step(folder)
    if found.path in steps[:count]:
        return "silent"
    if found.path != steps[count] or not all(map(str.startswith, found.damaged, hit)):
        return "lost"
    if digest(read_arrays(found.path, found.meta)) != known[found.path.name]:
        return "silent"
    goes_on = setting.rng.integers(RUNS) == 0
    same = not goes_on or run(work(real=setting.real), folder) == reference(real=setting.real)
    return "survived" if same else "silent"


@fault("bit flip", times=60, short=6)
def flipped(setting: Setting) -> Tally:
    """One bit, anywhere in the newest checkpoint."""
    return tally(_hurt(setting, flip_bit) for _ in range(setting.times))


@fault("truncation", times=60, short=6)
def cut(setting: Setting) -> Tally:
    """A file that ends too early."""
    return tally(_hurt(setting, truncate) for _ in range(setting.times))


@fault("deletion", times=60, short=6)
def lost_file(setting: Setting) -> Tally:
    """A file that is not there."""
    return tally(_hurt(setting, delete) for _ in range(setting.times))


@fault("zero-fill", times=60, short=6)
def zeros(setting: Setting) -> Tally:
    """A file whose end is zeros, of the right length."""
    return tally(_hurt(setting, fill_with_zeros) for _ in range(setting.times))


@fault("damaged seal", times=60, short=6)
def broken_seal(setting: Setting) -> Tally:
    """The seal itself: flipped, cut, deleted or zeros."""
    ways = (flip_bit, truncate, delete, fill_with_zeros)
    return tally(_hurt(setting, ways[i % len(ways)], only=SEAL) for i in range(setting.times))


@fault("every checkpoint damaged", times=20, short=2)
def all_damaged(setting: Setting) -> Tally:
    """Refused in one line that names each, with an exit status that is not 0."""
    return tally(_refuses(setting) for _ in range(setting.times))


def _refuses(setting: Setting) -> Outcome:
    place = Path(tempfile.mkdtemp(dir=setting.place))
    folder = place / CHECKPOINTS / "train"
    folder.parent.mkdir()
    copy(real=setting.real, place=setting.place).rename(folder)
    for step in step_paths(folder):
        flip_bit(list_files(step)[str(setting.rng.choice(list(list_files(step))))], setting.rng)
    text = io.StringIO()
    try:
        with contextlib.redirect_stderr(text):
            main(["resume", str(place)])
    except SystemExit as stop:
        named = all(step.name in text.getvalue() for step in step_paths(folder))
        return "survived" if stop.code and named and text.getvalue().count("\n") == 1 else "lost"
    return "silent"
