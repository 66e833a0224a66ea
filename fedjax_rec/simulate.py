"""Simulation: rounds in compiled blocks, validation between blocks, stopping, history.

One compiled program runs a whole block of rounds on device (`blocks.run_block`); `simulate` adds what needs the
host: validation, stopping, progress, checkpoints.
"""

import json
import math
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from fedjax_rec.blocks import Compilations, check_state
from fedjax_rec.checkpoints import ENDED, Checkpoints, Keeper, Place, Snapshot, check, fingerprint, keeping
from fedjax_rec.data.splits import Split
from fedjax_rec.devices import replicate
from fedjax_rec.evaluation.evaluator import Point, make_evaluator
from fedjax_rec.evaluation.metrics import KS, metrics_from_ranks
from fedjax_rec.guard import LOST, diverged, first_loss
from fedjax_rec.host_memory import Block, copy_kept, copy_state, make_block, place_state, start_state
from fedjax_rec.leaves import digest
from fedjax_rec.parts import choose_run
from fedjax_rec.plan import check_fits, with_copy
from fedjax_rec.population import Population, population_of
from fedjax_rec.types import Algorithm, Budget, Key, Plan, RoundInfo, State

Metrics = dict[str, float]


class Stop(NamedTuple):
    """When a run ends, besides its number of rounds.

    A run always stops as "diverged" when its loss is no longer finite or a thousand times that of the first round,
    or when three rounds in a row are lost (`fedjax_rec.guard.diverged`).
    """

    metric: str = "ndcg@10"  # full-ranking validation metric
    target: float | None = None  # stop once the metric reaches this
    patience: int | None = None  # stop after so many rounds without a better metric
    seconds: float | None = None  # stop after so much wall-clock time, checked after each block


class Progress(NamedTuple):
    """What a progress callback is told after each block."""

    round: int
    rounds: int
    clients: int  # trained in this block
    loss: float  # of the last round
    validation: Metrics | None
    clients_per_second: float
    stopped: str  # empty while the run goes on, then as `History.stopped`


class History(NamedTuple):
    """What happened, round by round."""

    rounds: RoundInfo  # numpy leaves [T], one entry a round
    evaluations: tuple[tuple[int, Metrics], ...]  # (round, validation metrics; full/..., sampled/...)
    selected_round: int  # the round whose state was returned
    stopped: str  # "rounds", "target", "patience", "seconds" or "diverged"
    seconds: float  # wall clock, everything included
    train_seconds: float  # in compiled blocks of rounds
    compile_seconds: float
    num_compilations: int  # programs that jax compiled for the blocks of rounds
    plan: Plan  # the engine's choices: lanes, devices, ... and the memory they need
    first_round: int = 1  # more than 1 where the run was resumed

    @property
    def clients_per_second(self) -> float:
        """Clients trained per second spent in compiled blocks of rounds."""
        return float(np.sum(self.rounds.clients)) / max(self.train_seconds, 1e-9)

    @property
    def lane_efficiency(self) -> float:
        """Local batches that the clients needed / (lanes x loop steps)."""
        return float(np.sum(self.rounds.batches)) / max(float(np.sum(self.rounds.lane_steps)), 1.0)


def simulate(
    algorithm: Algorithm,
    data: Split | Population,
    *,
    rounds: int = 400,
    seed: int | Key = 0,
    eval_every: int = 10,
    stop: Stop | None = None,
    state: State | None = None,
    keep: str = "best",
    point: Point | None = None,
    on_block: Callable[[Progress], Any] | None = None,
    checkpoint: Checkpoints | None = None,
    resume: bool | None = None,
    ledger: Budget | None = None,
) -> tuple[State, History]:
    """Run a federated algorithm, selecting the round on validation.

    Args:
        algorithm: as `federate`, `fedmf` and their like return it.
        data: a split (its validation items are ranked every `eval_every` rounds) or a bare population.
        rounds: the number of rounds to reach (counted from the very start, also with `state`).
        seed: an integer or a key; with the data and the algorithm it decides everything.
        eval_every: rounds in a compiled block, and between validations.
        stop: further stopping rules; none by default.
        state: where to go on from; consumed.
        keep: "best" returns the state of the best validation round, "last" the last one.
        point: with which parameters validation ranks (`fedjax_rec.points`); by default the server's.
        on_block: called with a `Progress` after each block, once it is saved if it was time.
        checkpoint: where to save the run; it then goes on from the newest sound checkpoint there, bit for bit.
        resume: True if there must be a checkpoint, False if there may not be one; by default either will do.
        ledger: of a privacy budget (`fedjax_rec.privacy.ledger`), asked before each block of rounds.

    Returns:
        the state, and the history.

    Raises:
        ValueError: if a setting is out of range, the cohort exceeds the population, or the checkpoints are another
            run's, naming what differs; before the block that would overspend a ledger's budget, once the run is
            saved if it has checkpoints.
        OSError: if a checkpoint cannot be written; earlier ones are whole.
        Paused: (an exit with status 0) if a signal stopped a run with checkpoints, once it was saved.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> state, history = simulate(fr.fedmf(dim=8), split, rounds=3, eval_every=2)
        >>> [r for r, _ in history.evaluations], history.stopped
        ([2, 3], 'rounds')
    """
    _check(rounds, eval_every, keep)
    if checkpoint is not None:
        check(checkpoint, eval_every)
    stop = stop or Stop()
    cutoffs = _cutoffs(stop)
    began = time.perf_counter()
    key = jax.random.key(seed) if isinstance(seed, (int, np.integer)) else seed
    population = population_of(data) if isinstance(data, Split) else data
    evaluate = _validator(algorithm, data, cutoffs, point)
    parts, plan = choose_run(algorithm, population)
    plan = with_copy(plan) if keep == "best" and evaluate is not None else plan
    check_fits(plan)  # before anything is put on a device
    population = replicate(population, algorithm.mesh)
    if state is None:
        state = start_state(algorithm, parts, key, population)
    else:
        check_state(algorithm, key, state, population)
        state = place_state(parts, algorithm.mesh, state if parts is None else copy_kept(state))
    size = eval_every if checkpoint is not None else min(eval_every, max(rounds, 1))
    block = make_block(algorithm, parts, size)
    run = _Run(block, evaluate, stop, keep, on_block, began, plan, ledger)
    if checkpoint is None:
        return run.go(key, state, population, rounds, size)
    facts = _facts(seed, eval_every, keep, stop, data, population)
    program = fingerprint(block.text(key, state, population))
    with keeping(checkpoint, _place(checkpoint, facts, run.plan, program), resume) as keeper:
        state = run.kept(keeper, state, rounds, partial(place_state, parts, algorithm.mesh))
        return run.go(key, state, population, rounds, size)


def _facts(
    seed: int | Key, eval_every: int, keep: str, stop: Stop, data: Split | Population, population: Population
) -> dict[str, Any]:
    """What decides a run, besides the algorithm, by name."""
    whole = data._asdict() if isinstance(data, Split) else jax.tree.leaves(population)
    arrays = [np.asarray(x) for x in jax.tree.leaves(whole) if hasattr(x, "dtype")]
    whole_seed = isinstance(seed, (int, np.integer))
    return {
        "clients": population.num_clients,
        "items": population.num_items,
        "data hash": digest(arrays)[:12],
        "seed": int(seed) if whole_seed else np.asarray(jax.random.key_data(seed)).tolist(),
        "eval_every": eval_every,
        "keep": keep,
        **{name: value for name, value in stop._asdict().items() if name != "seconds"},
    }


def _place(checkpoint: Checkpoints, facts: dict[str, Any], plan: Plan, program: str) -> Place:
    names = ("devices", "lanes", "schedule", "row_update", "stream_clients")
    chosen = {name: getattr(plan, name) for name in names}
    return Place(json.loads(json.dumps(dict(checkpoint.facts) | facts, default=str)), chosen, program)


def _check(rounds: int, eval_every: int, keep: str) -> None:
    if rounds < 0:
        raise ValueError(f"rounds must be at least 0, not {rounds}")
    if eval_every < 1:
        raise ValueError(f"eval_every must be at least 1, not {eval_every}")
    if keep not in ("best", "last"):
        raise ValueError(f"keep={keep!r} is unknown; choose one of 'best', 'last'")


def _cutoffs(stop: Stop) -> list[int]:
    """The ranking cut-offs to measure: the usual ones and that of the stopping metric."""
    found = re.fullmatch(r"(?:hr|ndcg|mrr)@([1-9]\d*)|mrr", stop.metric)
    if not found:
        raise ValueError(f"stop metric {stop.metric!r} is unknown; use hr@k, ndcg@k, mrr@k or mrr")
    return sorted({*KS, *(int(k) for k in found.groups() if k)})


def _validator(
    algorithm: Algorithm, data: Split | Population, cutoffs: list[int], point: Point | None
) -> Callable[[State], Metrics] | None:
    if not isinstance(data, Split) or not (data.validation >= 0).any():
        return None
    rank = make_evaluator(algorithm, data, which="validation", point=point)

    def evaluate(state: State) -> Metrics:
        ranks = rank(state)
        parts = {part: metrics_from_ranks(values, cutoffs) for part, values in ranks._asdict().items()}
        return {f"{part}/{name}": value for part, found in parts.items() for name, value in found.items()}

    return evaluate


class _Run:
    """The host's side of one run: the only mutable object of the simulation."""

    def __init__(
        self,
        block: Block,
        evaluate: Callable[[State], Metrics] | None,
        stop: Stop,
        keep: str,
        on_block: Callable[[Progress], Any] | None,
        began: float,
        plan: Plan,
        ledger: Budget | None,
    ) -> None:
        self.ledger = ledger
        self.plan, self.compilations = plan, Compilations(block.name)
        self.block, self.evaluate, self.stop, self.on_block = block, evaluate, stop, on_block
        self.keep_best = keep == "best" and evaluate is not None
        self.began, self.compile_seconds, self.train_seconds, self.first_round = began, 0.0, 0.0, 1
        self.infos: list[RoundInfo] = []
        self.evaluations: list[tuple[int, Metrics]] = []
        self.best: tuple[float, int, State | None] = (-math.inf, -1, None)
        self.keeper: Keeper | None = None
        self.ended = ""  # why the run that goes on had ended, if more rounds do not undo it

    def kept(self, keeper: Keeper, state: State, rounds: int, place: Callable[[State], State]) -> State:
        """Take a keeper of checkpoints, and go on from its newest; without one, the start is the first."""
        self.keeper, self.first_round = keeper, int(state.round) + 1
        found = keeper.restore(state, rounds)
        if found is None:
            keeper.save(int(state.round), "", lambda: self._snapshot(state, ""), now=True)
            return state
        self.infos = [] if found.infos is None else [found.infos]
        value, best_round, best = found.best
        self.evaluations, self.best = (
            list(found.evaluations),
            (value, best_round, None if best is None else place(best)),
        )
        self.first_round, self.ended = found.first_round, found.stopped if found.stopped in ENDED else ""
        self.began -= found.seconds["all"]
        self.train_seconds = found.seconds["train"]
        return place(found.state)

    def _snapshot(self, state: State, reason: str) -> Snapshot:
        infos = self._joined() if self.infos else None
        seconds = {"all": time.perf_counter() - self.began, "train": self.train_seconds}
        seconds["compile"] = self.compile_seconds
        return Snapshot(state, infos, tuple(self.evaluations), self.best, self.first_round, reason, seconds)

    def _joined(self) -> RoundInfo:
        """All blocks' reports as one, leaves [T]."""
        return jax.tree.map(lambda *x: np.concatenate(x), *self.infos)

    def go(
        self, key: Key, state: State, population: Population, rounds: int, size: int
    ) -> tuple[State, History]:
        done = int(state.round)
        reason = self.ended or ("" if done < rounds else "rounds")
        if self.keeper is None:
            self.first_round = done + 1
        state = self._compile(key, state, population)
        asks = not reason and self.ledger is not None and self.ledger.would_exceed(rounds)
        while not reason:
            if self.keeper is not None:
                self.keeper.pause(done, partial(self._snapshot, state, ""))
            count = min(size - done % size, rounds - done)
            if asks:
                self._ask(state, done, done + count)
            state = self._train(key, state, population, count)
            done += count
            sound = self._sound()
            validation = self._validate(done, state) if sound else None
            reason = self._ended(done, rounds, validation) if sound else "diverged"
            if self.keeper is not None:
                self.keeper.save(done, reason, partial(self._snapshot, state, reason))
            self._tell(done, rounds, count, validation, reason)
        _, selected, best = self.best
        if best is not None:
            return best, self._history(selected, reason)
        return state, self._history(done, reason)

    def _ask(self, state: State, done: int, after: int) -> None:
        """Let the ledger refuse the coming block, once what was done is saved."""
        assert self.ledger is not None  # noqa: S101 - why this is called; this tells the type checker
        if self.keeper is not None and self.ledger.would_exceed(after):
            self.keeper.save(done, "", partial(self._snapshot, state, ""), now=True)
        self.ledger.check(after, done)

    def _sound(self) -> bool:
        """Whether the last blocks have not diverged; as many as rounds in a row are needed to see that."""
        first = next(filter(math.isfinite, map(first_loss, self.infos)), math.inf)
        return not diverged(jax.tree.map(lambda *x: np.concatenate(x), *self.infos[-LOST:]), first)

    def _compile(self, key: Key, state: State, population: Population) -> State:
        """Compile by running a block of no rounds."""
        tick, none = time.perf_counter(), jnp.int32(0)
        with self.compilations:
            state, _ = jax.block_until_ready(self.block.run(key, state, population, none))
        self.compile_seconds = time.perf_counter() - tick
        return state

    def _train(self, key: Key, state: State, population: Population, count: int) -> State:
        tick, turns = time.perf_counter(), jnp.int32(count)
        with self.compilations:
            state, infos = jax.block_until_ready(self.block.run(key, state, population, turns))
        self.train_seconds += time.perf_counter() - tick
        self.infos.append(jax.tree.map(lambda x: np.asarray(x)[:count], infos))
        return state

    def _validate(self, done: int, state: State) -> Metrics | None:
        if self.evaluate is None:
            return None
        metrics = self.evaluate(state)
        self.evaluations.append((done, metrics))
        value = metrics[f"full/{self.stop.metric}"]
        if value > self.best[0]:
            spare = self.best[2] if self.plan.stream_clients else None
            self.best = (value, done, None)  # the one before goes first, or is written over
            if self.keep_best:  # the next block consumes `state`
                self.best = (value, done, copy_state(state, spare))
        return metrics

    def _tell(self, done: int, rounds: int, count: int, validation: Metrics | None, reason: str) -> None:
        if self.on_block is not None:
            last = self.infos[-1]
            clients = sum(int(np.sum(info.clients)) for info in self.infos)
            rate = clients / max(self.train_seconds, 1e-9)
            trained, loss = int(np.sum(last.clients)), float(last.loss[count - 1])
            self.on_block(Progress(done, rounds, trained, loss, validation, rate, reason))

    def _ended(self, done: int, rounds: int, validation: Metrics | None) -> str:
        stop = self.stop
        if validation is not None:
            value = validation[f"full/{stop.metric}"]
            if stop.target is not None and value >= stop.target:
                return "target"
            if stop.patience is not None and done - self.best[1] >= stop.patience:
                return "patience"
        if stop.seconds is not None and time.perf_counter() - self.began >= stop.seconds:
            return "seconds"
        return "rounds" if done >= rounds else ""

    def _history(self, selected: int, reason: str) -> History:
        none: Any = (np.zeros(0) for _ in RoundInfo._fields)
        rounds = self._joined() if self.infos else RoundInfo(*none)
        return History(
            rounds=rounds,
            evaluations=tuple(self.evaluations),
            selected_round=selected,
            stopped=reason,
            seconds=time.perf_counter() - self.began,
            train_seconds=self.train_seconds,
            compile_seconds=self.compile_seconds,
            num_compilations=self.compilations.count,
            plan=self.plan,
            first_round=self.first_round,
        )


def frame(history: History) -> pd.DataFrame:
    """A history as a data frame, a row a round; validation columns are NaN between evaluations.

    Args:
        history: as `simulate` returns it.

    Returns:
        columns round, loss, clients, ..., validation/full/ndcg@10, ...

    Example:
        >>> import fedjax_rec as fr
        >>> data = pd.DataFrame({"user": [0, 0, 1], "item": [0, 1, 1]})
        >>> _, history = simulate(fr.fedmf(dim=2, cohort=2), fr.Population.from_frame(data), rounds=4)
        >>> frame(history)["round"].tolist()
        [1, 2, 3, 4]
    """
    table = pd.DataFrame({name: np.asarray(values) for name, values in history.rounds._asdict().items()})
    table.insert(0, "round", np.arange(len(table)) + history.first_round)
    if not history.evaluations:
        return table
    scores = pd.DataFrame([{"round": done} | metrics for done, metrics in history.evaluations]).set_index(
        "round"
    )
    return table.join(scores.add_prefix("validation/"), on="round")
