"""Checkpoints: a run that was stopped, killed or damaged goes on as if nothing had happened, bit for bit.

A checkpoint is the whole state and all that the host remembers: losses, validations, the best state so far. It is
written by orbax and sealed with SHA-256 (`steps`, `seal`). The newest sound one is used; one that is damaged is
named, and so is whatever differs between the run that wrote it and the run that wants to go on:

* configuration, data, the state's shapes, the schema, and the program of a round: refused;
* versions, and what the engine chose for this machine: told, since the run is sound but its last bits may differ.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.leaves import Leaf, from_arrays, leaves_of, to_arrays
from fedjax_rec.lock import hold
from fedjax_rec.steps import (
    Found,
    Meta,
    find_step,
    library,
    prune,
    read_arrays,
    round_of,
    step_paths,
    tidy,
    write_step,
)
from fedjax_rec.stopping import Wish, noting_signals
from fedjax_rec.types import PyTree, RoundInfo, State
from fedjax_rec.versions import versions

IDLE = ("python", "pandas")  # versions that no round depends on
ENDED = ("target", "patience", "seconds", "diverged")  # reasons that more rounds do not undo


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)


class Checkpoints(NamedTuple):
    """Where and how often `simulate` saves a run.

    Raises:
        ValueError: from `simulate`, if a number is out of range.

    Example:
        >>> Checkpoints("runs/mine", every=20).keep
        3
    """

    folder: str | Path
    every: int  # rounds between checkpoints; a multiple of `eval_every`. The end of a run is saved as well
    keep: int = 3  # newest checkpoints that stay
    facts: Mapping[str, Any] = MappingProxyType({})  # plain values that may not differ when the run goes on
    notes: Mapping[str, Any] = MappingProxyType({})  # plain values that are saved along, for whoever resumes
    tell: Callable[[str], Any] = _warn  # what is told of damage, of other versions, of a stop


class Paused(SystemExit):
    """A signal stopped a run after its last block was saved; uncaught, it ends the process with status 0.

    Args:
        text: what happened, and how to go on.

    Example:
        >>> str(Paused("paused after round 40")), Paused("").code
        ('paused after round 40', 0)
    """

    def __init__(self, text: str) -> None:
        super().__init__(0)
        self.text = text

    def __str__(self) -> str:
        return self.text


class Snapshot(NamedTuple):
    """All that a run goes on from."""

    state: State
    infos: RoundInfo | None  # numpy leaves [T]; None before the first round
    evaluations: tuple[tuple[int, dict[str, float]], ...]
    best: tuple[float, int, State | None]  # validation metric, round, its state
    first_round: int
    stopped: str  # as `History.stopped`, or empty
    seconds: dict[str, float]  # all, train, compile


class Place(NamedTuple):
    """What a checkpoint must have been written by, for a run to go on from it."""

    facts: dict[str, Any]  # may not differ
    plan: dict[str, Any]  # the engine's choices: may differ
    program: str  # digest of the compiled rounds: may differ only if versions or the plan do


class Keeper:
    """The one process that writes a folder of checkpoints; `keeping` makes it."""

    def __init__(self, checkpoints: Checkpoints, place: Place, found: Found, wish: Wish) -> None:
        self.checkpoints, self.place, self.found, self.wish = checkpoints, place, found, wish
        self.folder = Path(checkpoints.folder)
        self.saved = -1 if found.path is None else found.meta["round"]
        self.spared = [text.partition(":")[0] for text in found.damaged]

    def restore(self, template: PyTree, rounds: int) -> Snapshot | None:
        """Read the newest sound checkpoint.

        Args:
            template: a state of the run, for its structure, shapes and dtypes.
            rounds: that the run wants to reach.

        Returns:
            what to go on from; None where there is none.

        Raises:
            ValueError: if it was written by another run, naming what differs.

        Example:
            see `fedjax_rec.simulate`.
        """
        path, meta = self.found.path, self.found.meta
        if path is None:
            return None
        drift = _drift(meta, self.place)
        _refuse(_differences(meta["facts"], self.place.facts), path)
        _refuse(_reshaped(meta["leaves"], template), path)
        if meta["program"] != self.place.program and not drift:
            _refuse(
                ["the program of a round, that is, the algorithm or one of its settings, is another"], path
            )
        if meta["round"] > rounds:
            raise ValueError(f"{path} is of round {meta['round']} already; ask for more than rounds={rounds}")
        for text in self.found.damaged:
            self.checkpoints.tell(f"damaged checkpoint {self.folder}/{text}; going on from {path.name}")
        if drift:
            self.checkpoints.tell(f"going on from {path}, but not bit for bit: {'; '.join(drift)}")
        return _unpack(meta, read_arrays(path, meta), template)

    def save(self, done: int, reason: str, take: Callable[[], Snapshot], *, now: bool = False) -> None:
        """Save the run if it is time.

        Args:
            done: rounds so far.
            reason: why the run ends here; empty if it goes on.
            take: what to save.
            now: whether or not it is time.

        Raises:
            OSError: if it cannot be written.
        """
        due = now or bool(reason) or bool(self.wish.signal) or done % self.checkpoints.every == 0
        if not due or done == self.saved:
            return
        meta, tree = _pack(done, take())
        meta |= {"facts": self.place.facts, "plan": self.place.plan, "program": self.place.program}
        meta["notes"] = dict(self.checkpoints.notes)
        path = write_step(self.folder, meta | {"versions": versions()}, to_arrays(tree), leaves_of(tree))
        self.saved = done
        self.spared = [name for name in self.spared if name != path.name]
        prune(self.folder, self.checkpoints.keep, self.spared)

    def pause(self, done: int, take: Callable[[], Snapshot]) -> None:
        """Stop here if a signal asked for it, even one that came after this block was saved or not.

        Args:
            done: rounds so far.
            take: what to save.

        Raises:
            Paused: if so, once the run is saved.
            OSError: if it cannot be saved.
        """
        if self.wish.signal:
            self.save(done, "", take, now=True)
            raise Paused(f"{self.wish.signal}: paused after round {done}, which is saved in {self.folder}")


def check(checkpoints: Checkpoints, eval_every: int) -> None:
    """Refuse numbers that do not fit, and a missing library, before anything is computed.

    Args:
        checkpoints: of `simulate`.
        eval_every: rounds in a block.

    Raises:
        ValueError: naming the number.
        ImportError: without orbax-checkpoint.

    Example:
        >>> check(Checkpoints("any", every=25), 10)
        Traceback (most recent call last):
        ValueError: checkpoints every 25 rounds do not fit blocks of eval_every=10; choose a multiple, such as 20
    """
    every, keep = checkpoints.every, checkpoints.keep
    if every < 1 or every % eval_every:
        raise ValueError(
            f"checkpoints every {every} rounds do not fit blocks of eval_every={eval_every}; choose a multiple, "
            f"such as {max(every // eval_every, 1) * eval_every}"
        )
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    library()


@contextlib.contextmanager
def keeping(checkpoints: Checkpoints, place: Place, resume: bool | None) -> Iterator[Keeper]:
    """Hold a folder of checkpoints for the life of a run.

    Args:
        checkpoints: which folder.
        place: who wants to write it.
        resume: True if there must be a checkpoint, False if there may not be, None if either will do.

    Yields:
        the keeper.

    Raises:
        OSError: if another process holds the folder, or it cannot be written.
        ValueError: if there is a checkpoint or none, against `resume`; or all are damaged.

    Example:
        see `fedjax_rec.simulate`.
    """
    folder = Path(checkpoints.folder)
    if resume and not step_paths(folder):
        raise ValueError(f"{folder} holds no checkpoint to resume")
    if resume is False and (steps := step_paths(folder)):
        raise ValueError(
            f"{folder} holds checkpoints up to round {round_of(steps[0])}; resume, or name another folder"
        )
    with hold(folder), noting_signals() as wish:
        tidy(folder)
        yield Keeper(checkpoints, place, find_step(folder), wish)


def fingerprint(program: str) -> str:
    """The digest of a program's text.

    Args:
        program: as jax lowers it, with every constant in it.

    Returns:
        12 hexadecimal digits.

    Example:
        >>> fingerprint("")
        'e3b0c44298fc'
    """
    return hashlib.sha256(program.encode()).hexdigest()[:12]


def _pack(done: int, snapshot: Snapshot) -> tuple[Meta, PyTree]:
    value, best_round, best = snapshot.best
    apart = best is not None and best_round != done  # else it is the state itself
    infos = () if snapshot.infos is None else snapshot.infos._asdict()
    tree = {"state": snapshot.state, "best": best if apart else (), "rounds": infos}
    run = {
        "evaluations": snapshot.evaluations,
        "best": {"value": value, "round": best_round, "kept": best is not None},
        "first_round": snapshot.first_round,
        "stopped": snapshot.stopped,
        "seconds": snapshot.seconds,
    }
    return {"round": done, "run": run}, tree


def _unpack(meta: Meta, arrays: list[np.ndarray], template: PyTree) -> Snapshot:
    parts: dict[str, list[np.ndarray]] = {"best": [], "rounds": [], "state": []}
    names = [Leaf(**leaf).name.split("/") for leaf in meta["leaves"]]
    for (part, *_), array in zip(names, arrays, strict=True):
        parts[part].append(array)
    state, run = from_arrays(parts["state"], template), meta["run"]
    best = None
    if run["best"]["kept"]:
        # where it is the state itself, another copy: rounds may write into numpy leaves
        best = from_arrays(parts["best"] or (np.array(array) for array in parts["state"]), template)
    fields = [name for part, *rest in names if part == "rounds" for name in rest]
    rounds: Any = dict(zip(fields, parts["rounds"], strict=True))
    if fields:  # a report that an older version did not make
        rounds = {name: np.zeros_like(rounds["loss"]) for name in RoundInfo._field_defaults} | rounds
    return Snapshot(
        state,
        RoundInfo(**rounds) if fields else None,
        tuple((done, metrics) for done, metrics in run["evaluations"]),
        (run["best"]["value"], run["best"]["round"], best),
        run["first_round"],
        run["stopped"],
        run["seconds"],
    )


def _refuse(differences: list[str], path: Path) -> None:
    if differences:
        raise ValueError(f"cannot go on from {path}: {'; '.join(differences[:3])}; or name another folder")


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs by name, the most telling first: in the order of `now`."""
    names = [*now, *(name for name in then if name not in now)]
    return [
        f"{name} is {then.get(name)!r} in the checkpoint and {now.get(name)!r} now"
        for name in names
        if then.get(name) != now.get(name)
    ]


def _drift(meta: Meta, place: Place) -> list[str]:
    """What may cost the last bits."""
    then, now = (
        {k: v for k, v in found.items() if k not in IDLE} for found in (meta["versions"], versions())
    )
    return _differences(then, now) + _differences(meta["plan"], place.plan)


def _reshaped(stored: list[dict[str, Any]], template: PyTree) -> list[str]:
    then = {name: str(leaf) for name, leaf in _by_name(stored) if name.startswith("state/")}
    now = {leaf.name: str(leaf) for leaf in leaves_of({"state": template})}
    return _differences(then, now)


def _by_name(stored: list[dict[str, Any]]) -> Iterator[tuple[str, Leaf]]:
    for leaf in stored:
        yield leaf["name"], Leaf(**leaf)
