"""Disks that fail: full, read-only, gone; and two processes that want one folder."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path

from experiments.faults.kills import PATIENCE, context
from experiments.faults.registry import Outcome, Setting, Tally, fault, tally
from experiments.faults.work import EVERY, contents, copy, reference, run, stop_at, use_cache, work
from fedjax_rec import steps
from fedjax_rec.lock import hold
from fedjax_rec.seal import list_files
from fedjax_rec.simulate import Progress

NOBODY = 65534
Break = Callable[[Path], AbstractContextManager[None]]


def _breaks(setting: Setting, folder: Path, broken: Break, text: str) -> Outcome:
    """Go on while the disk fails: one clear line, old checkpoints whole; then go on when it works again."""
    known = contents(folder)
    try:
        with broken(folder):
            run(work(real=setting.real), folder)
        return "lost"  # it did not fail
    except OSError as problem:
        clear = text in str(problem) and str(folder) in str(problem) and "\n" not in str(problem)
    if contents(folder) != known:
        return "lost"
    same = run(work(real=setting.real), folder) == reference(real=setting.real)
    return ("survived" if clear else "lost") if same else "silent"


@contextlib.contextmanager
def _file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@fault("disk full", times=20, short=3)
def full(setting: Setting) -> Tally:
    """A limit on files, a file system without room (where one may be mounted), and room that goes meanwhile."""
    ways = (_full_file, _full_disk, _torn)
    return tally(ways[i % len(ways)](setting) for i in range(setting.times))


def _full_file(setting: Setting) -> Outcome:
    folder = copy(real=setting.real, place=setting.place)
    largest = max(path.stat().st_size for path in list_files(folder).values())
    limit = int(setting.rng.integers(64, largest))  # below 64 bytes not even the lock could be written
    return _breaks(setting, folder, lambda _: _file_limit(limit), "File too large")


def _torn(setting: Setting) -> Outcome:
    """The room was there when it was asked for; in a process of its own, since orbax is loud then."""
    folder = copy(real=setting.real, place=setting.place)
    largest = max(path.stat().st_size for path in list_files(folder).values())
    reading, writing = context().Pipe(duplex=False)
    limit = int(setting.rng.integers(64, largest))
    process = context().Process(target=_tear, args=(setting, folder, limit, writing), daemon=True)
    process.start()
    told: Outcome = reading.recv() if reading.poll(PATIENCE) else "lost"
    process.join()
    return told


def _tear(setting: Setting, folder: Path, limit: int, told: Connection) -> None:
    use_cache()
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    made_sure = vars(steps)["_make_sure_of_room"]

    @contextlib.contextmanager
    def broken(_: Path) -> Iterator[None]:
        vars(steps)["_make_sure_of_room"] = lambda *_: None
        with _file_limit(limit):
            yield
        vars(steps)["_make_sure_of_room"] = made_sure

    told.send(_breaks(setting, folder, broken, "File too large"))


def _full_disk(setting: Setting) -> Outcome:
    mount, umount = shutil.which("mount"), shutil.which("umount")
    disk = setting.place / "disk"
    disk.mkdir(exist_ok=True)
    if mount is None or umount is None or _call(mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)):
        return _full_file(setting)
    try:
        folder = Path(shutil.copytree(copy(real=setting.real, place=setting.place), disk / "checkpoints"))
        left = int(setting.rng.integers(1, 8)) * 4096  # less than a checkpoint takes
        return _breaks(setting, folder, lambda _: _filled(disk, left), "No space left on device")
    finally:
        _call(umount, str(disk))


def _call(*command: str) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode  # noqa: S603


@contextlib.contextmanager
def _filled(disk: Path, left: int) -> Iterator[None]:
    """Only so many bytes are left."""
    ballast = disk / "ballast"
    room = os.statvfs(disk)
    ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - left))
    try:
        yield
    finally:
        ballast.unlink()


@fault("read-only folder", times=10, short=2)
def read_only(setting: Setting) -> Tally:
    """Nothing may be written there."""
    return tally(
        _breaks(setting, copy(real=setting.real, place=setting.place), _protected, "Permission denied")
        for _ in range(setting.times)
    )


@contextlib.contextmanager
def _protected(folder: Path) -> Iterator[None]:
    """As somebody who may read the folder; the superuser would not even notice."""
    mine = os.geteuid()
    for place in (folder.parent.parent, folder.parent):
        place.chmod(0o755)
    folder.chmod(0o555)
    try:
        if mine == 0:
            os.seteuid(NOBODY)
        yield
    finally:
        os.seteuid(mine)
        folder.chmod(0o755)


@fault("vanished folder", times=10, short=2)
def vanished(setting: Setting) -> Tally:
    """It is taken away while the run trains, and comes back later."""
    return tally(_vanishes(setting) for _ in range(setting.times))


def _vanishes(setting: Setting) -> Outcome:
    folder = copy(real=setting.real, place=setting.place)
    known, away = contents(folder), folder.with_name("away")

    def take_away(progress: Progress) -> None:
        if progress.round % EVERY and folder.exists():
            folder.rename(away)

    try:
        run(work(real=setting.real), folder, on_block=take_away)
        return "lost"
    except OSError as problem:
        clear = "No such file or directory" in str(problem) and "\n" not in str(problem)
    away.rename(folder)
    if contents(folder) != known:
        return "lost"
    same = run(work(real=setting.real), folder) == reference(real=setting.real)
    return ("survived" if clear else "lost") if same else "silent"


def _hold(folder: Path, told: Connection) -> None:
    with hold(folder):
        told.send(True)
        signal.pause()


@fault("two writers", times=10, short=2)
def two_writers(setting: Setting) -> Tally:
    """The second is refused and told the first one's number; once that is killed, the second goes on."""
    return tally(_two(setting) for _ in range(setting.times))


def _two(setting: Setting) -> Outcome:
    folder = copy(real=setting.real, place=setting.place)
    known, (reading, writing) = contents(folder), context().Pipe(duplex=False)
    first = context().Process(target=_hold, args=(folder, writing), daemon=True)
    first.start()
    reading.poll(PATIENCE)
    try:
        run(work(real=setting.real), folder, on_block=stop_at(1))
        return "silent"
    except OSError as problem:
        clear = f"is being written by process {first.pid} on" in str(problem)
    finally:
        first.kill()
        first.join()
    same = contents(folder) == known and run(work(real=setting.real), folder) == reference(real=setting.real)
    return ("survived" if clear else "lost") if same else "silent"
