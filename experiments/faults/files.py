"""Files from elsewhere: ratings, archives, pickles. What is read is right, and all else is refused by name."""

import contextlib
import hashlib
import io
import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np

import fedjax_rec as fr
from experiments.faults import hostile
from experiments.faults.by_hand import CASES, Case
from experiments.faults.fuzz import READERS, compare_readers, draw_file
from experiments.faults.registry import Injection, Outcome, Tally, fault, tally
from fedjax_rec.cli.main import main
from fedjax_rec.data.archives import extract
from fedjax_rec.data.download import install
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.formats import read_any
from fedjax_rec.data.registry import load_dataset
from fedjax_rec.data.text import BLOCK_BYTES
from fedjax_rec.runs.compare import read_run

PATIENCE = 60  # seconds after which a reader counts as hanging


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Ends what hangs with an error that is not the promised one."""

    def ring(*_: object) -> None:
        raise RuntimeError("hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@fault("ratings files by hand", times=40, short=40)
def by_hand(injection: Injection) -> Tally:
    """Each rule kept and broken; every fourth broken one is given to the command line, too."""
    names = list(CASES)[: injection.times]
    return tally(
        _read_by_hand(injection, CASES[name], command_line=n % 4 == 0) for n, name in enumerate(names)
    )


def _read_by_hand(injection: Injection, case: Case, *, command_line: bool) -> Outcome:
    path = injection.folder / f"file{case.suffix}"
    with _alarm():
        outcome = compare_readers(path, case.data, case.duplicates)
    if outcome != "survived":
        return outcome
    try:
        events = READERS[case.suffix](path, duplicates=case.duplicates)
    except DataError as error:
        named = str(error).startswith(f"{path}:{case.expected}: ")
        return "survived" if named and (not command_line or _is_refused_in_one_line(path)) else "lost"
    columns = (
        events.user_ids[events.users],
        events.item_ids[events.items],
        events.ratings,
        events.timestamps,
    )
    found = tuple(zip(*(np.asarray(column).tolist() for column in columns), strict=True))
    return "survived" if found == case.expected else "silent"


def _is_refused_in_one_line(path: Path) -> bool:
    """Whether the command line says it in one line, with status 2 and without a traceback."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            main(["run", "--dataset", str(path), "--out", str(path.parent / "run")])
    except SystemExit as stop:
        *_, last = errors.getvalue().splitlines()
        return stop.code == 2 and f"error: {path}:" in last and "Traceback" not in errors.getvalue()
    return False


@fault("ratings files fuzzed", times=2000, short=200)
def fuzzed(injection: Injection) -> Tally:
    """Files by chance, read in one chunk or in many, against a strict reader in plain Python."""
    return tally(_read_fuzzed(injection, BLOCK_BYTES if n % 2 else 40) for n in range(injection.times))


def _read_fuzzed(injection: Injection, piece: int) -> Outcome:
    data, suffix, duplicates = draw_file(injection.rng)
    with _alarm():
        return compare_readers(injection.folder / f"file{suffix}", data, duplicates, piece)


@fault("hostile archives", times=30, short=30)
def hostile_archives(injection: Injection) -> Tally:
    """Given by hand, and as downloads whose checksum is not known."""
    made = hostile.archives()
    names = list(made)[: injection.times]
    return tally(_refuses(injection.folder, made[name]) for name in names)


def _refuses(parent: Path, data: bytes) -> Outcome:
    home = Path(tempfile.mkdtemp(dir=parent))
    folder = home / "data"
    folder.mkdir()
    (folder / "ml-100k.zip").write_bytes(data)
    target = home / "cache" / "u.data"
    with _alarm(), mock.patch("urllib.request.urlopen", new=_serve(data)):
        tries: tuple[Callable[[], object], ...] = (
            lambda: extract(folder / "ml-100k.zip", hostile.MEMBER, home / "member"),
            lambda: load_dataset("ml-100k", data_dir=folder),
            lambda: install(["https://localhost/a.zip"], target, member=hostile.MEMBER),
            lambda: install(["https://localhost/a.zip"], target, member=None, **_published()),
        )
        outcomes = [_refused(attempt) for attempt in tries]
    left = {path.name for path in home.rglob("*") if path.is_file()} - {"ml-100k.zip", "member"}
    if left or "silent" in outcomes or (home.parent / "evil").exists():
        return "silent"
    return "lost" if "lost" in outcomes else "survived"


def _serve(data: bytes) -> Callable:
    return lambda *_, **__: _Answer(data)


def _published() -> dict:
    sound = hostile.pack(hostile.SOUND)
    return {"size": len(sound), "sha256": hashlib.sha256(sound).hexdigest()}


def _refused(attempt: Callable[[], object], promised: type[ValueError] = DataError) -> Outcome:
    try:
        attempt()
    except promised as error:
        return "survived" if len(str(error).splitlines()) == 1 else "lost"
    except Exception:  # whatever else it is, it is not the promised one
        return "lost"
    return "silent"


class _Answer(io.BytesIO):
    """A web server's answer that does not say how long it is."""

    headers: dict[str, str] = {}  # noqa: RUF012 - nothing writes there
    url = "https://localhost/a.zip"


@fault("pickled arrays", times=5, short=5)
def pickled(injection: Injection) -> Tally:
    """In place of a model, of per-user data and of ratings, under its own name and under those of sound files."""
    sign = injection.folder / "unpickled"
    made = hostile.pickles(sign)
    names = list(made)[: injection.times]
    return tally(_never_unpickled(injection.folder, sign, name, made[name]) for name in names)


def _never_unpickled(parent: Path, sign: Path, name: str, data: bytes) -> Outcome:
    run = Path(tempfile.mkdtemp(dir=parent))
    (run / "config.json").write_text("{}")
    (run / "result.json").write_text("{}")
    (run / "protocol.json").write_text(json.dumps({"protocol_id": "0"}))
    for file in (name, "model.npz", "per_user.npz", "ratings.csv", "ratings.data", "ratings.parquet"):
        (run / file).write_bytes(data)
    tries: tuple[Callable[[], object], ...] = (
        lambda: fr.load(run),
        lambda: read_run(run),
        *((lambda path=path: read_any(path)) for path in (run / name, *run.glob("ratings.*"))),
    )
    with _alarm():
        outcomes = [
            _refused(attempt, ValueError) for attempt in tries
        ]  # a run folder's errors are plain ones
    if sign.exists() or "silent" in outcomes:
        return "silent"
    return "lost" if "lost" in outcomes else "survived"
