"""When a run is saved, and whether it may go on from what is saved.

A checkpoint is the whole state and all that the host remembers: losses, validations, the best state so far. It is
written by orbax and sealed with SHA-256 (`store`, `seal`). The newest sound one is used; one that is damaged is
named, and so is whatever differs between the run that wrote it and the run that wants to go on:

* configuration, data, the state's shapes, the schema, and the program of a round: refused;
* versions, and what the engine chose for this machine: a message, since the run is sound but its last bits may
  differ.
"""

import contextlib
import copy
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.errors import ParameterError, check_arguments
from fedjax_rec.locks import lock_folder
from fedjax_rec.training.checkpoints.leaves import Leaf, describe_leaves, from_arrays, pack, to_arrays, unpack
from fedjax_rec.training.checkpoints.meta import Meta, check_run
from fedjax_rec.training.checkpoints.signals import StopRequest, catch_stop_signals
from fedjax_rec.training.checkpoints.store import (
    Latest,
    find_latest,
    import_orbax,
    list_checkpoints,
    prune,
    read_arrays,
    remove_leftovers,
    round_of,
    write_checkpoint,
)
from fedjax_rec.training.checkpoints.versions import versions
from fedjax_rec.types import PyTree, RoundInfo, State

UNUSED = ("python", "pandas")  # versions that no round depends on
MOST_TIME = 0.05  # share of a run's time that saving it by the clock may take
FINAL = ("target", "patience", "seconds", "diverged")  # reasons to stop that more rounds do not undo


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


class Checkpoints(NamedTuple):
    """Where and how often `simulate` saves a run: every so many rounds, or only runs that take long, by the clock.

    By rounds, start and end of a run are saved as well, and a checkpoint that cannot be written ends the run. By
    the clock, a run that ends before so many minutes leaves nothing, and what cannot be written is told. A signal
    saves either.

    Raises:
        ValueError: from `simulate`, if a number is out of range.

    Example:
        >>> Checkpoints("runs/mine", every=20).max_to_keep
        3
    """

    folder: str | Path
    every: int | None = None  # rounds between checkpoints, a multiple of `eval_every`
    max_to_keep: int = 3  # newest checkpoints that stay
    must_match: Mapping[str, Any] = MappingProxyType(
        {}
    )  # plain values that may not differ when the run goes on
    custom_metadata: Mapping[str, Any] = MappingProxyType({})  # plain values saved along, for whoever resumes
    on_message: Callable[[str], Any] = _warn  # called with a line about damage or other versions
    minutes: float | None = (
        None  # between checkpoints, looked at after each block of rounds, or ten seconds of it
    )


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


class Best(NamedTuple):
    """The best validation so far."""

    value: float = -math.inf  # of the metric
    round: int = -1
    state: State | None = None  # None: not held, or there is none


class Snapshot(NamedTuple):
    """All that a run goes on from."""

    state: State
    infos: RoundInfo | None  # numpy leaves [T]; None before the first round
    evaluations: tuple[tuple[int, dict[str, float]], ...]
    best: Best
    first_round: int
    stopped: str  # as `History.stopped`, or empty
    seconds: dict[str, float]  # all, train, compile


class RunIdentity(NamedTuple):
    """What a checkpoint must have been written by, for a run to go on from it."""

    must_match: dict[str, Any]  # may not differ
    plan: dict[str, Any]  # the engine's choices: may differ
    values: str  # digest of the algorithm's values, whatever the plan: may differ only if versions do
    program: str  # digest of the compiled rounds: may differ only if versions or the plan do


class CheckpointManager:
    """The one process that writes a folder of checkpoints; `open_checkpoints` makes it."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        identify: Callable[[], RunIdentity],
        latest: Latest,
        request: StopRequest,
    ) -> None:
        self.checkpoints = checkpoints
        self._identify = identify  # takes seconds, which a run that saves nothing does not need
        self.latest = latest
        self.request = request
        self.next_time = time.monotonic() + _seconds_between(checkpoints)
        self.folder = Path(checkpoints.folder)
        self.saved_round = -1 if latest.path is None else latest.meta["round"]
        self.damaged = [text.partition(":")[0] for text in latest.damaged]

    @cached_property
    def identity(self) -> RunIdentity:
        """What the run's checkpoints are written by."""
        return self._identify()

    def restore(self, template: PyTree, rounds: int) -> Snapshot | None:
        """Read the newest sound checkpoint.

        Args:
            template: a state of the run, for its structure, shapes and dtypes.
            rounds: that the run wants to reach.

        Returns:
            what to go on from; None where there is none.

        Raises:
            ValueError: if it was written by another run, naming what differs.
        """
        path = self.latest.path
        meta = self.latest.meta
        if path is None:
            return None
        try:
            check_run(meta)
        except ValueError as problem:
            raise ValueError(
                f"cannot go on from {path}: in its meta.json {problem}; remove that folder"
            ) from None
        # What may not differ is refused, the most telling first.
        other_versions = _other_versions(meta)
        drift = other_versions + _differences(meta["plan"], self.identity.plan)
        _refuse(_differences(meta["must_match"], self.identity.must_match), path)
        _refuse(_shape_differences(meta["leaves"], template), path)
        other_values = meta["values"] != self.identity.values and not other_versions
        if other_values or (meta["program"] != self.identity.program and not drift):
            _refuse(
                ["the program of a round, that is, the algorithm or one of its settings, is another"], path
            )
        if meta["round"] > rounds:
            raise ValueError(f"{path} is of round {meta['round']} already; ask for more than rounds={rounds}")
        # What may differ is said.
        for text in self.latest.damaged:
            self.checkpoints.on_message(f"damaged checkpoint {self.folder}/{text}; going on from {path.name}")
        if drift:
            self.checkpoints.on_message(f"going on from {path}, but not bit for bit: {'; '.join(drift)}")
        return _unpack(meta, read_arrays(path, meta), template)

    def save(
        self, rounds_done: int, stopped: str, take_snapshot: Callable[[], Snapshot], *, force: bool = False
    ) -> None:
        """Save the run if it is time.

        Args:
            rounds_done: so far.
            stopped: why the run ends here; empty if it goes on.
            take_snapshot: what to save.
            force: save it whether or not it is time.

        Raises:
            OSError: if it cannot be written, unless only the clock asked for it: that is told.
        """
        must = force or bool(self.request.signal) or self._is_due_by_rounds(rounds_done, stopped)
        may = time.monotonic() >= self.next_time or (bool(stopped) and self.saved_round >= 0)
        if not (must or may) or rounds_done == self.saved_round:
            return
        start = time.monotonic()
        try:
            self._write(rounds_done, take_snapshot())
        except OSError as problem:
            if must:
                raise
            self.checkpoints.on_message(f"{problem}; going on without it")
        now = time.monotonic()
        self.next_time = now + max(_seconds_between(self.checkpoints), (now - start) / MOST_TIME)

    def _is_due_by_rounds(self, rounds_done: int, stopped: str) -> bool:
        every = self.checkpoints.every
        return every is not None and (bool(stopped) or rounds_done % every == 0)

    def _write(self, rounds_done: int, snapshot: Snapshot) -> None:
        meta, tree = _pack(rounds_done, snapshot)
        meta |= self.identity._asdict()
        meta["custom_metadata"] = dict(self.checkpoints.custom_metadata)
        meta["versions"] = versions()
        path = write_checkpoint(self.folder, meta, list(map(pack, to_arrays(tree))), describe_leaves(tree))
        self.saved_round = rounds_done
        self.damaged = [name for name in self.damaged if name != path.name]
        prune(self.folder, self.checkpoints.max_to_keep, self.damaged)

    def pause_if_requested(self, rounds_done: int, take_snapshot: Callable[[], Snapshot]) -> None:
        """Stop here if a signal asked for it, even one that came after this block was saved or not.

        Args:
            rounds_done: so far.
            take_snapshot: what to save.

        Raises:
            Paused: if so, once the run is saved.
            OSError: if it cannot be saved.
        """
        if self.request.signal:
            self.save(rounds_done, "", take_snapshot, force=True)
            raise Paused(
                f"{self.request.signal}: paused after round {rounds_done}, which is saved in {self.folder}"
            )


def check_checkpoints(checkpoints: Checkpoints, eval_every: int) -> None:
    """Refuse numbers that do not fit, and a missing library, before anything is computed.

    Args:
        checkpoints: of `simulate`.
        eval_every: rounds in a block.

    Raises:
        ValueError: naming the number.
        ImportError: without orbax-checkpoint.

    Example:
        >>> check_checkpoints(Checkpoints("any", every=25), 10)
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: checkpoints every 25 rounds do not fit blocks of eval_every=10; ...
    """
    check_arguments(Checkpoints, checkpoints._asdict())
    every = checkpoints.every
    minutes = checkpoints.minutes
    if every is None and minutes is None:
        raise ValueError("checkpoints need every= so many rounds, or minutes=; give one of them")
    if minutes is not None and not minutes >= 0:
        raise ValueError(f"minutes between checkpoints must be at least 0, not {minutes}")
    if every is not None and (every < 1 or every % eval_every):
        raise ParameterError(
            "checkpoints every {every} rounds do not fit blocks of {eval_every}={block}; choose a multiple, such "
            "as {multiple}",
            every=every,
            block=eval_every,
            multiple=max(every // eval_every, 1) * eval_every,
        )
    if checkpoints.max_to_keep < 1:
        raise ValueError(f"max_to_keep must be at least 1, not {checkpoints.max_to_keep}")
    import_orbax()


@contextlib.contextmanager
def open_checkpoints(
    checkpoints: Checkpoints,
    identify: Callable[[], RunIdentity],
    resume: bool | None,
    *,
    confidential: bool = False,
) -> Iterator[CheckpointManager]:
    """Lock a folder of checkpoints for the life of a run.

    Args:
        checkpoints: which folder.
        identify: gives the identity of the run that wants to write it; called once, when it is first needed.
        resume: True if there must be a checkpoint, False if there may not be, None if either will do.
        confidential: whether nobody but its owner may look into the folder: a run's key is written there.

    Yields:
        the manager.

    Raises:
        OSError: if another process has locked the folder, or it cannot be written.
        ValueError: if there is a checkpoint or none, against `resume`; or all are damaged.
    """
    folder = Path(checkpoints.folder)
    paths = list_checkpoints(folder)
    if resume and not paths:
        raise ValueError(f"{folder} holds no checkpoint to resume")
    if resume is False and paths:
        raise ValueError(
            f"{folder} holds checkpoints up to round {round_of(paths[0])}; resume, or name another folder"
        )
    with lock_folder(folder, required=checkpoints.every is not None), catch_stop_signals() as request:
        remove_leftovers(folder)
        if confidential:
            folder.chmod(0o700)
        yield CheckpointManager(checkpoints, identify, find_latest(folder), request)


def _seconds_between(checkpoints: Checkpoints) -> float:
    """By the clock."""
    return math.inf if checkpoints.minutes is None else 60 * checkpoints.minutes


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


def _pack(rounds_done: int, snapshot: Snapshot) -> tuple[Meta, PyTree]:
    best = snapshot.best
    is_separate = best.state is not None and best.round != rounds_done  # else it is the state itself
    tree = {
        "state": snapshot.state,
        "best": best.state if is_separate else (),
        "rounds": () if snapshot.infos is None else snapshot.infos._asdict(),
    }
    run = {
        "evaluations": snapshot.evaluations,
        "best": {"value": best.value, "round": best.round, "has_state": best.state is not None},
        "first_round": snapshot.first_round,
        "stopped": snapshot.stopped,
        "seconds": snapshot.seconds,
    }
    return {"round": rounds_done, "run": run}, tree


def _unpack(meta: Meta, arrays: list[np.ndarray], template: PyTree) -> Snapshot:
    # Arrays by the first part of their names: "state/...", "best/...", "rounds/loss".
    leaves = [Leaf(**leaf) for leaf in meta["leaves"]]
    names = [leaf.name.split("/") for leaf in leaves]
    groups: dict[str, list[Any]] = {"state": [], "best": [], "rounds": []}
    for (group, *_), array, leaf in zip(names, arrays, leaves, strict=True):
        groups[group].append(unpack(array, leaf))
    run = meta["run"]
    best_state = None
    if run["best"]["has_state"]:
        # where it is the state itself, another copy: rounds may write into numpy leaves
        best_state = from_arrays(groups["best"] or map(copy.copy, groups["state"]), template)
    fields = [field for group, *rest in names if group == "rounds" for field in rest]
    columns: dict[str, Any] = dict(zip(fields, groups["rounds"], strict=True))
    return Snapshot(
        state=from_arrays(groups["state"], template),
        infos=RoundInfo(**columns) if columns else None,
        evaluations=tuple((rounds_done, metrics) for rounds_done, metrics in run["evaluations"]),
        best=Best(run["best"]["value"], run["best"]["round"], best_state),
        first_round=run["first_round"],
        stopped=run["stopped"],
        seconds=run["seconds"],
    )


def _refuse(differences: list[str], path: Path) -> None:
    if differences:
        raise ValueError(f"cannot go on from {path}: {'; '.join(differences[:3])}; or name another folder")


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs by name, the most telling first: in the order of `now`."""
    names = [*now, *(name for name in then if name not in now)]
    return [
        f"{name} is {_shown(name, then)} in the checkpoint and {_shown(name, now)} now"
        for name in names
        if then.get(name) != now.get(name)
    ]


def _shown(name: str, values: Mapping[str, Any]) -> str:
    """A value as messages show it: a key, which may be a secret, is not."""
    value = values.get(name)
    return "a key" if name == "seed" and isinstance(value, list) else repr(value)


def _other_versions(meta: Meta) -> list[str]:
    """What may cost the last bits, and writes the same program in other words."""
    then, now = (
        {name: version for name, version in found.items() if name not in UNUSED}
        for found in (meta["versions"], versions())
    )
    return _differences(then, now)


def _shape_differences(stored: list[dict[str, Any]], template: PyTree) -> list[str]:
    then = {leaf["name"]: str(Leaf(**leaf)) for leaf in stored if leaf["name"].startswith("state/")}
    now = {leaf.name: str(leaf) for leaf in describe_leaves({"state": template})}
    return _differences(then, now)
