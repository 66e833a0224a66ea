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
from unittest import mock

from experiments.faults.kills import PATIENCE, context
from experiments.faults.registry import Injection, Outcome, Tally, fault, tally
from experiments.faults.workload import (
    EVERY,
    copy_half_done,
    digests,
    reference,
    run,
    stop_at,
    use_cache,
    workload,
)
from fedjax_rec.locks import lock_folder
from fedjax_rec.training.checkpoints import store
from fedjax_rec.training.checkpoints.seal import list_files
from fedjax_rec.training.history import Progress

NOBODY = 65534
Break = Callable[[Path], AbstractContextManager[None]]


def _run_while_broken(injection: Injection, folder: Path, broken: Break, text: str) -> Outcome:
    """Go on while the disk fails: one clear line, old checkpoints whole; then go on when it works again."""
    before = digests(folder)
    try:
        with broken(folder):
            run(workload(real=injection.real), folder)
        return "lost"  # it did not fail
    except OSError as problem:
        is_clear = text in str(problem) and str(folder) in str(problem) and "\n" not in str(problem)
    if digests(folder) != before:
        return "lost"
    return _goes_on(injection, folder, is_clear=is_clear)


def _goes_on(injection: Injection, folder: Path, *, is_clear: bool) -> Outcome:
    """Whether the run has the same end when all is well again, and whether the error before was clear."""
    if run(workload(real=injection.real), folder) != reference(real=injection.real):
        return "silent"
    return "survived" if is_clear else "lost"


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as on a disk that is full.

    Args:
        size: bytes.

    Yields:
        nothing.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@fault("disk full", times=20, short=3)
def full(injection: Injection) -> Tally:
    """A limit on files, a file system without room (where one may be mounted), and space that goes meanwhile."""
    ways = (_limit_files, _fill_disk, _limit_files_late)
    return tally(ways[i % len(ways)](injection) for i in range(injection.times))


def _limit_files(injection: Injection) -> Outcome:
    folder = copy_half_done(real=injection.real, parent=injection.folder)
    largest = max(path.stat().st_size for path in list_files(folder).values())
    limit = int(injection.rng.integers(64, largest))  # below 64 bytes not even the lock could be written
    return _run_while_broken(injection, folder, lambda _: file_limit(limit), "File too large")


def _limit_files_late(injection: Injection) -> Outcome:
    """The space was there when it was reserved; in a process of its own, since orbax is loud then."""
    folder = copy_half_done(real=injection.real, parent=injection.folder)
    largest = max(path.stat().st_size for path in list_files(folder).values())
    receiver, sender = context().Pipe(duplex=False)
    limit = int(injection.rng.integers(64, largest))
    arguments = (injection, folder, limit, sender)
    process = context().Process(target=_run_without_reserving, args=arguments, daemon=True)
    process.start()
    outcome: Outcome = receiver.recv() if receiver.poll(PATIENCE) else "lost"
    process.join()
    return outcome


def _run_without_reserving(injection: Injection, folder: Path, limit: int, pipe: Connection) -> None:
    use_cache()
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)

    @contextlib.contextmanager
    def broken(_: Path) -> Iterator[None]:
        with mock.patch.object(store, "_reserve_space"), file_limit(limit):
            yield

    pipe.send(_run_while_broken(injection, folder, broken, "File too large"))


def _fill_disk(injection: Injection) -> Outcome:
    mount = shutil.which("mount")
    umount = shutil.which("umount")
    disk = injection.folder / "disk"
    disk.mkdir(exist_ok=True)
    if mount is None or umount is None or _call(mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)):
        return _limit_files(injection)
    try:
        original = copy_half_done(real=injection.real, parent=injection.folder)
        folder = Path(shutil.copytree(original, disk / "checkpoints"))
        free = int(injection.rng.integers(1, 8)) * 4096  # less than a checkpoint takes
        return _run_while_broken(injection, folder, lambda _: _filled(disk, free), "No space left on device")
    finally:
        _call(umount, str(disk))


def _call(*command: str) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode  # noqa: S603


@contextlib.contextmanager
def _filled(disk: Path, free: int) -> Iterator[None]:
    """Only so many bytes are left."""
    ballast = disk / "ballast"
    statistics = os.statvfs(disk)
    ballast.write_bytes(bytes(statistics.f_bavail * statistics.f_frsize - free))
    try:
        yield
    finally:
        ballast.unlink()


@fault("read-only folder", times=10, short=2)
def read_only(injection: Injection) -> Tally:
    """Nothing may be written there."""
    return tally(_write_protected(injection) for _ in range(injection.times))


def _write_protected(injection: Injection) -> Outcome:
    folder = copy_half_done(real=injection.real, parent=injection.folder)
    return _run_while_broken(injection, folder, _protected, "Permission denied")


@contextlib.contextmanager
def _protected(folder: Path) -> Iterator[None]:
    """As somebody who may read the folder; the superuser would not even notice."""
    own_id = os.geteuid()
    for above in (folder.parent.parent, folder.parent):
        above.chmod(0o755)
    folder.chmod(0o555)
    try:
        if own_id == 0:
            os.seteuid(NOBODY)
        yield
    finally:
        os.seteuid(own_id)
        folder.chmod(0o755)


@fault("vanished folder", times=10, short=2)
def vanished(injection: Injection) -> Tally:
    """It is taken away while the run trains, and comes back later."""
    return tally(_take_folder_away(injection) for _ in range(injection.times))


def _take_folder_away(injection: Injection) -> Outcome:
    folder = copy_half_done(real=injection.real, parent=injection.folder)
    away = folder.with_name("away")
    before = digests(folder)

    def take_away(progress: Progress) -> None:
        if progress.round % EVERY and folder.exists():
            folder.rename(away)

    try:
        run(workload(real=injection.real), folder, on_block=take_away)
        return "lost"
    except OSError as problem:
        is_clear = "No such file or directory" in str(problem) and "\n" not in str(problem)
    away.rename(folder)
    if digests(folder) != before:
        return "lost"
    return _goes_on(injection, folder, is_clear=is_clear)


def _lock_until_killed(folder: Path, pipe: Connection) -> None:
    with lock_folder(folder):
        pipe.send(True)
        signal.pause()


@fault("two writers", times=10, short=2)
def two_writers(injection: Injection) -> Tally:
    """The second is refused and told the first one's number; once that is killed, the second goes on."""
    return tally(_write_twice(injection) for _ in range(injection.times))


def _write_twice(injection: Injection) -> Outcome:
    folder = copy_half_done(real=injection.real, parent=injection.folder)
    before = digests(folder)
    receiver, sender = context().Pipe(duplex=False)
    first = context().Process(target=_lock_until_killed, args=(folder, sender), daemon=True)
    first.start()
    receiver.poll(PATIENCE)
    try:
        run(workload(real=injection.real), folder, on_block=stop_at(1))
        return "silent"
    except OSError as problem:
        is_clear = f"is being written by process {first.pid} on" in str(problem)
    finally:
        first.kill()
        first.join()
    return "silent" if digests(folder) != before else _goes_on(injection, folder, is_clear=is_clear)
