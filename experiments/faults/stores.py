"""Stores that are not as they were made, disks that fill, two who write one: by the command line.

Each is refused in one line that names the file, with status 2; nothing half-written stays, and nothing hangs.
"""

import contextlib
import io
import json
import shutil
import signal
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from experiments.faults.disk import file_limit
from experiments.faults.kills import context
from experiments.faults.registry import Injection, Outcome, Tally, fault, tally
from fedjax_rec.cli.main import main
from fedjax_rec.data.store.drawn import synthesise
from fedjax_rec.data.store.format import META, open_store, seal_of
from fedjax_rec.data.store.verification import sample_sums
from fedjax_rec.data.store.writer import write_store
from fedjax_rec.training.checkpoints.seal import list_files

PATIENCE = 300  # seconds after which a command counts as hanging
CLIENTS, ITEMS, EVENTS = 60, 40, 9  # of a store, the last in the mean


def _command(*arguments: object) -> tuple[int, str]:
    """A command's exit status, and all that it says on standard error."""
    errors = io.StringIO()
    previous = signal.signal(signal.SIGALRM, _ring)
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = main([str(each) for each in arguments])
    except SystemExit as stop:
        status = int(stop.code or 0)
    except Exception as problem:
        return -1, f"{errors.getvalue()}\nTraceback: {problem!r}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return status, errors.getvalue()


def _ring(*_: object) -> None:
    raise RuntimeError("hangs")


def _is_clear(status: int, said: str, *words: object) -> bool:
    """Whether it ended with status 2 and one line of error, with these words."""
    told = [line for line in said.splitlines() if "error:" in line]
    return (
        status == 2
        and len(told) == 1
        and said.rstrip().endswith(told[0])
        and "Traceback" not in said
        and all(str(word) in told[0] for word in words)
    )


def _make(folder: Path, *, times: bool = True) -> Path:
    """A store of some clients, with times and ratings."""
    rng = np.random.default_rng(0)
    drawn = synthesise(folder / "drawn", clients=CLIENTS, items=ITEMS, events_per_client=EVENTS)
    found = drawn.gather(np.arange(CLIENTS))
    with write_store(folder / "store") as writer:
        writer.append("offsets", np.concatenate([[0], np.cumsum(found.counts)]))
        writer.append("items", found.items)
        writer.append("ratings", rng.uniform(1, 5, len(found.items)).astype(np.float32))
        if times:
            writer.append("timestamps", np.sort(rng.integers(1, 10**6, len(found.items))))
        writer.describe(name="made", num_items=ITEMS, order="time", origin="a fault")
    return folder / "store"


def _reseal(store: Path, **changes: object) -> None:
    """Seal a store again as it is now: by hand, or by another program."""
    meta = json.loads((store / META).read_text()) | changes
    for name, column in meta["columns"].items():
        column["samples"] = sample_sums(store / f"{name}.bin")
    (store / META).write_text(json.dumps(meta | {"seal": seal_of(meta)}))


def _values(store: Path, name: str, dtype: str, change: Callable[[np.ndarray], None]) -> None:
    """Change a column, and seal it again."""
    values = np.fromfile(store / f"{name}.bin", dtype)
    change(values)
    values.tofile(store / f"{name}.bin")
    _reseal(store)


def _lose(store: Path, name: str, _: np.random.Generator) -> str:
    (store / name).unlink()
    return name


def _flip(store: Path, name: str, rng: np.random.Generator) -> str:
    data = bytearray((store / name).read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    (store / name).write_bytes(data)
    return name


def _cut(store: Path, name: str, rng: np.random.Generator) -> str:
    data = (store / name).read_bytes()
    (store / name).write_bytes(data[: rng.integers(len(data))])
    return name


def _lengthen(store: Path, name: str, rng: np.random.Generator) -> str:
    with (store / name).open("ab") as file:
        file.write(rng.bytes(int(rng.integers(1, 99))))
    return name


def _other_version(store: Path, _name: str, rng: np.random.Generator) -> str:
    _reseal(store, version=int(rng.integers(3, 99)))
    return META


def _no_such_item(store: Path, _name: str, rng: np.random.Generator) -> str:
    wrong = int(rng.choice([-1, ITEMS, 2**31 - 1]))
    _values(store, "items", "<i4", lambda items: items.fill(wrong))
    return "items.bin"


def _falling_offsets(store: Path, _name: str, rng: np.random.Generator) -> str:
    place = int(rng.integers(1, CLIENTS))
    _values(store, "offsets", "<i8", lambda offsets: offsets.__setitem__(place, offsets[-1] + 1))
    return "offsets.bin"


def _out_of_order(store: Path, _name: str, _rng: np.random.Generator) -> str:
    _values(store, "timestamps", "<i8", lambda times: times.__setitem__(slice(None), times[::-1].copy()))
    return "timestamps.bin"


_FILES = ("offsets.bin", "items.bin", "ratings.bin", "timestamps.bin")
_DAMAGES = (
    *((damage, name) for name in _FILES for damage in (_lose, _flip, _cut, _lengthen)),
    (_flip, META),
    (_cut, META),
    (_other_version, META),
    (_no_such_item, "items.bin"),
    (_falling_offsets, "offsets.bin"),
    (_out_of_order, "timestamps.bin"),
)


@fault("damaged stores", times=66, short=22)
def damaged_stores(injection: Injection) -> Tally:
    """Files lost, flipped, cut, lengthened; another version; sealed again with impossible numbers."""
    whole = _make(injection.folder)
    return tally(
        _open_damaged(injection, whole, *_DAMAGES[number % len(_DAMAGES)])
        for number in range(injection.times)
    )


def _open_damaged(injection: Injection, whole: Path, damage: Callable, name: str) -> Outcome:
    home = Path(tempfile.mkdtemp(dir=injection.folder))
    store = Path(shutil.copytree(whole, home / "store"))
    named = damage(store, name, injection.rng)
    run = ("run", "--dataset", store, "--rounds", 1, "--dim", 2, "--out", home / "run")
    for command in (run, ("data", "describe", store)):
        status, said = _command(*command)
        if status == 0:
            return "silent"
        if not _is_clear(status, said, named):
            return "lost"
    left = {path.name for path in home.iterdir()} - {"store"}
    shutil.rmtree(home)
    return "lost" if left else "survived"


def _write_events(folder: Path, rng: np.random.Generator) -> Path:
    """A csv of some thousand events, none of which repeats."""
    pairs = rng.permutation(200 * 50)[:4000]
    lines = [f"u{pair // 50},{pair % 50},{number}" for number, pair in enumerate(pairs.tolist())]
    path = folder / "events.csv"
    path.write_text("\n".join(["user,item,timestamp", *lines]) + "\n")
    return path


@fault("disk full while a store is made", times=20, short=4)
def full_while_writing(injection: Injection) -> Tally:
    """Converted or drawn: nothing of it stays, and with room it is made as if nothing had been."""
    events = _write_events(injection.folder, injection.rng)
    convert = ("data", "convert", events)
    draw = ("data", "synthesise", "--clients", 500, "--items", 90, "--events-per-client", 20)
    return tally(
        _make_without_room(injection, (convert, draw)[number % 2]) for number in range(injection.times)
    )


def _make_without_room(injection: Injection, command: tuple) -> Outcome:
    home = Path(tempfile.mkdtemp(dir=injection.folder))
    expected = home / "expected"
    if _command(*command, expected)[0]:
        return "lost"
    largest = max(path.stat().st_size for path in list_files(expected).values())
    with file_limit(int(injection.rng.integers(64, largest))):
        status, said = _command(*command, home / "store")
    if status == 0:
        return "silent"
    clear = _is_clear(status, said, home, "File too large", "nothing was kept")
    left = {path.name for path in home.iterdir()} - {"expected"}
    again = _command(*command, home / "store")[0]
    if again or open_store(home / "store", verify=True).data_hash != open_store(expected).data_hash:
        return "silent"
    shutil.rmtree(home)
    return "survived" if clear and not left else "lost"


def _write_until_killed(store: Path, pipe: Connection) -> None:
    with write_store(store) as writer:
        writer.append("items", np.arange(1000, dtype=np.int32))
        pipe.send(True)
        signal.pause()


@fault("two writers of a store", times=10, short=2)
def two_writers(injection: Injection) -> Tally:
    """The second is refused and told the first one's number; once that is killed, the second makes it."""
    events = _write_events(injection.folder, injection.rng)
    return tally(_write_twice(injection, events) for _ in range(injection.times))


def _write_twice(injection: Injection, events: Path) -> Outcome:
    home = Path(tempfile.mkdtemp(dir=injection.folder))
    store = home / "store"
    receiver, sender = context().Pipe(duplex=False)
    first = context().Process(target=_write_until_killed, args=(store, sender), daemon=True)
    first.start()
    try:
        if not receiver.poll(PATIENCE):
            return "lost"
        before = {path: path.stat().st_size for path in home.rglob("*.bin")}
        status, said = _command("data", "convert", events, store)
        clear = _is_clear(status, said, store, f"is being written by process {first.pid} on")
        untouched = before == {path: path.stat().st_size for path in home.rglob("*.bin")}
    finally:
        first.kill()
        first.join()
    if status == 0 or not untouched:
        return "silent"
    if _command("data", "convert", events, store)[0] or open_store(store, verify=True).num_events != 4000:
        return "lost"
    left = {path.name for path in home.iterdir()} - {"store"}
    return "survived" if clear and not left else "lost"


@fault("disk full under clients in files", times=10, short=2)
def full_under_clients(injection: Injection) -> Tally:
    """A run whose clients wait in files: one line, old checkpoints whole, the same end when there is room."""
    store = synthesise(injection.folder / "drawn", clients=20_000, items=50, events_per_client=5).path
    return tally(_train_without_room(injection, store) for _ in range(injection.times))


def _train_without_room(injection: Injection, store: Path) -> Outcome:
    home = Path(tempfile.mkdtemp(dir=injection.folder))
    waits = home / "files"

    def run(rounds: int, out: Path) -> tuple:
        sizes = ("--rounds", rounds, "--cohort", 40, "--dim", 64, "--eval-every", 1, "--checkpoint-every", 1)
        return (
            "run",
            "--dataset",
            store,
            "--evaluate-clients",
            50,
            *sizes,
            "--client-store",
            waits,
            "--out",
            out,
        )

    if _command(*run(3, home / "expected"))[0] or _command(*run(1, home / "run"))[0]:
        return "lost"
    checkpoints = home / "run" / "checkpoints"
    before = {name: path.read_bytes() for name, path in list_files(checkpoints).items()}
    # of 5 MB that all clients could write; what a run writes else is smaller
    with file_limit(int(injection.rng.integers(10**6, 3 * 10**6))):
        status, said = _command("resume", home / "run", "--rounds", 3)
    if status == 0:
        return "silent"
    clear = _is_clear(status, said, waits, "what clients keep cannot be written", "File too large")
    if {name: path.read_bytes() for name, path in list_files(checkpoints).items()} != before:
        return "lost"
    if _command("resume", home / "run", "--rounds", 3)[0]:
        return "lost"
    results = [
        json.loads((home / name / "result.json").read_text())["metrics"] for name in ("expected", "run")
    ]
    same = results[0] == results[1]
    shutil.rmtree(home)
    return "silent" if not same else "survived" if clear else "lost"
