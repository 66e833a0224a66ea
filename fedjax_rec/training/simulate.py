"""Simulation: rounds in compiled blocks, validation between blocks, stopping, history.

One compiled program runs a block of rounds on device (`blocks.run_block`); `simulate` adds what needs the host.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.client.keys import key_of
from fedjax_rec.client.population import Population, check_order
from fedjax_rec.client.stored import StoredPopulation
from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.data.frames import Frame
from fedjax_rec.data.splits import Split
from fedjax_rec.engine.chunks import choose_run, with_best
from fedjax_rec.engine.devices import check_surroundings, replicate
from fedjax_rec.engine.plan import check_fits
from fedjax_rec.engine.table_shards import join_rows, rows_to_host
from fedjax_rec.errors import check_arguments, suggest_names
from fedjax_rec.evaluation.evaluator import EvaluationPoint
from fedjax_rec.federation.blocks import Compilations, check_state, piece_of
from fedjax_rec.federation.host_memory import (
    Block,
    copy_state,
    copy_to_host,
    make_block,
    put_state,
    start_state,
)
from fedjax_rec.training.checkpoints.leaves import digest, to_arrays
from fedjax_rec.training.checkpoints.manager import (
    FINAL,
    Best,
    CheckpointManager,
    Checkpoints,
    RunIdentity,
    Snapshot,
    check_checkpoints,
    fingerprint,
    open_checkpoints,
)
from fedjax_rec.training.checkpoints.signals import StopRequest, defer_interrupt
from fedjax_rec.training.checkpoints.versions import versions
from fedjax_rec.training.client_files import place_clients
from fedjax_rec.training.divergence import LOST, diverged, first_loss, report_losses
from fedjax_rec.training.history import (
    History,
    Interrupted,
    Metrics,
    PrivacyBudget,
    Progress,
    Stop,
    warn_if_diverged,
)
from fedjax_rec.training.identity import (
    describe_leaf,
    digest_values,
    identify_run,
    name_of,
    name_point,
    what_must_match,
)
from fedjax_rec.training.inputs import check_ranges, clients_of
from fedjax_rec.training.team import Team, follow_checkpoints
from fedjax_rec.training.validation import make_validator
from fedjax_rec.types import Algorithm, Key, Plan, RoundInfo, State

TOLD = 2.0  # seconds of a block's piece from which it is reported


@suggest_names
def simulate(
    algorithm: Algorithm,
    data: Split | Population | StoredPopulation | Frame,
    *,
    population: Population | None = None,
    rounds: int = 400,
    seed: int | Key = 0,
    eval_every: int = 10,
    stop: Stop | None = None,
    state: State | None = None,
    keep: str = "best",
    point: EvaluationPoint | None = None,
    on_block: Callable[[Progress], Any] | None = None,
    checkpoint: Checkpoints | None = None,
    resume: bool | None = None,
    ledger: PrivacyBudget | None = None,
    client_store: str | Path | None = None,
) -> tuple[State, History]:
    """Run a federated algorithm, selecting the round on validation.

    Args:
        algorithm: as `federate`, `fedmf` and their like return it.
        data: a split (its validation items are ranked every `eval_every` rounds), a bare population, one in
            a store (`open_population`; its sample is ranked), or a frame or data set for `leave_one_out`.
        population: the split's clients, where `population_of` has made them already; by default made here.
        rounds: the number of rounds to reach (counted from the very start, also with `state`).
        seed: an integer or a key; with the data and the algorithm it decides everything. A key, which may be a
            secret (`privacy.secret_key`), stands in checkpoints, which then only their owner can read.
        eval_every: rounds in a compiled block, and between validations.
        stop: further stopping rules; none by default.
        state: where to go on from; it is used up, so go on with what is returned, or hand over a copy of it.
        keep: "best" returns the state of the best validation round, "last" the last one.
        point: with which parameters validation ranks (`evaluation.evaluation_points`); by default the server's.
        on_block: called with a `Progress` after each block, and after pieces of two seconds of a long one, once it
            is saved if it was time; of several processes (`fr.initialize_distributed`) by process 0 alone.
        checkpoint: where to save the run; it then goes on from the newest sound checkpoint there, bit for bit.
        resume: True if there must be a checkpoint, False if there may not be one; by default either will do.
        ledger: of a privacy budget (`fedjax_rec.privacy.ledger`), asked before each block of rounds, and told
            of it.
        client_store: a folder in whose files what clients keep waits, where rounds run in chunks; by default in
            host memory, or beside the checkpoints where that is too small. The files have no names.

    Returns:
        the state, and the history. A run that diverged warns (`DivergedWarning`). In files, private leaves of a
        store's clients are `ClientRows`: `leaf[ids]` has some rows, `np.asarray(leaf)` all.

    Raises:
        ValueError: if a setting is out of range, the cohort exceeds the population, or the checkpoints are another
            run's, naming what differs; if a ledger is of other rounds than the algorithm's; before the block
            that would overspend a ledger's budget, once the run is saved if it has checkpoints; if processes
            differ in data, versions or settings, naming one that does.
        OSError: if a checkpoint or a file cannot be written; earlier ones are whole. If another process is gone.
        Paused: (an exit with status 0) if a signal stopped a run with checkpoints, once it was saved.
        Interrupted: (a KeyboardInterrupt) if SIGINT stopped one without; `result` is what was done until then.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> state, history = simulate(fr.fedmf(dim=8), split, rounds=3, eval_every=2)
        >>> [r for r, _ in history.evaluations], history.stopped
        ([2, 3], 'rounds')
    """
    check_arguments(simulate, locals())
    check_surroundings()
    check_ranges(rounds, eval_every, keep)
    if checkpoint is not None:
        check_checkpoints(checkpoint, eval_every)
    start_time = time.perf_counter()
    check_arguments(Stop, (stop := stop or Stop())._asdict())
    key = key_of(seed)
    data, population = clients_of(data, population)
    check_order(algorithm, population)
    team = Team(algorithm.mesh, stored=isinstance(data, StoredPopulation))
    evaluate = make_validator(algorithm, data, stop, point)
    keeps_best = keep == "best" and evaluate is not None
    if ledger is not None:
        check_together({Feature.DISTRIBUTED: team.several, Feature.LEDGER: True})
        ledger.admit(algorithm, population.num_clients)
    chunked, plan = choose_run(algorithm, population)
    plan = with_best(algorithm, plan) if keeps_best else plan
    folder, plan = place_clients(client_store, chunked, plan, checkpoint, team)
    check_fits(plan)  # before there is a state
    # Clients and state where the rounds want them: on every device of the mesh.
    population = replicate(population.without_ids(), algorithm.mesh)
    start = "the algorithm's own"
    if state is None:
        state = start_state(algorithm, chunked, key, population, folder)
    else:
        check_state(algorithm, key, state, population)
        start = "" if checkpoint is None else digest(to_arrays(state))[:12]  # rounds consume it
        state = put_state(chunked, algorithm.mesh, state if chunked is None else copy_to_host(state, folder))
    name = "" if ledger is None else name_of(algorithm, key, rows_to_host(state), population, data)
    if ledger is not None:
        ledger.record(int(state.round), name)
    block_size = eval_every if checkpoint is not None else min(eval_every, max(rounds, 1))
    block = make_block(algorithm, chunked, block_size, data if isinstance(data, StoredPopulation) else None)
    run = _Run(
        team,
        block,
        plan,
        evaluate=evaluate,
        stop=stop,
        keeps_best=keeps_best,
        on_block=on_block,
        ledger=ledger,
        name=name,
        start_time=start_time,
        repeats=algorithm.repeats,
    )
    shapes = jax.tree.map(describe_leaf, state)  # rounds consume the state itself

    def decides() -> dict[str, Any]:
        must_match = what_must_match(seed, eval_every, keep, stop, data, population)
        return must_match | {"point": name_point(point), "state": start}

    def computes() -> str:
        return digest_values(algorithm, key, jax.eval_shape(join_rows, shapes), population)

    team.check_same(lambda: versions() | decides() | {"rounds": rounds, "algorithm": computes()})
    if checkpoint is None:
        with defer_interrupt() as run.request, team.working():
            return run.run(key, state, population, rounds, block_size)

    # The same with checkpoints: what they must have been written by, and where to go on.
    def identify() -> RunIdentity:
        program = fingerprint(block.text(key, shapes, population))
        return identify_run(checkpoint, decides(), plan, computes(), program)

    opened: Any = follow_checkpoints(checkpoint)
    if team.leads:
        is_secret = not isinstance(seed, (int, np.integer))
        opened = open_checkpoints(checkpoint, identify, resume, confidential=is_secret)
    with opened as manager, team.working():
        state = run.resume(manager, state, rounds, partial(put_state, chunked, algorithm.mesh))
        return run.run(key, state, population, rounds, block_size)


class _Run:
    """The host's side of one run: the only mutable object of the simulation."""

    def __init__(
        self,
        team: Team,
        block: Block,
        plan: Plan,
        *,
        evaluate: Callable[[State], Metrics] | None,
        stop: Stop,
        keeps_best: bool,
        on_block: Callable[[Progress], Any] | None,
        ledger: PrivacyBudget | None,
        name: str,
        start_time: float,
        repeats: bool,
    ) -> None:
        self.team = team
        self.block = block
        self.plan = plan
        self.evaluate = evaluate
        self.stop = stop
        self.keeps_best = keeps_best
        self.on_block = on_block
        self.ledger = ledger
        self.name = name  # under which the ledger knows it
        self.start_time = start_time
        self.repeats = repeats
        self.all_done = "rounds"  # why a run ends that has nothing left to do
        self.compilations = Compilations(block.name)
        self.compile_seconds = 0.0
        self.train_seconds = 0.0
        self.begun = 0.0, 0  # when this process began to train, and after which round
        self.last_piece = 0, 0.0  # rounds that ran together in this process, and their seconds
        self.told = 0  # of `infos`, those that were reported
        self.first_round = 1
        self.infos: list[RoundInfo] = []  # one a piece of a block
        self.evaluations: list[tuple[int, Metrics]] = []
        self.best = Best()
        self.manager: CheckpointManager | None = None
        self.request = StopRequest()
        self.stopped = ""  # why the run that goes on had ended, if more rounds do not undo it

    def resume(
        self, manager: CheckpointManager, state: State, rounds: int, put: Callable[[State], State]
    ) -> State:
        """Go on from the newest checkpoint; where there is none, the start is the first."""
        self.manager = manager
        self.request = manager.request
        self.first_round = int(state.round) + 1
        snapshot = self.team.share(lambda: manager.restore(rows_to_host(state), rounds), state)
        if snapshot is None:
            if manager.checkpoints.every is not None:
                manager.save(int(state.round), "", partial(self._snapshot, state, ""), force=True)
            return state
        self.infos = [] if snapshot.infos is None else [snapshot.infos]
        self.told = len(self.infos)
        self.evaluations = list(snapshot.evaluations)
        self.best = snapshot.best
        if self.best.state is not None:
            self.best = self.best._replace(state=put(self.best.state))
        self.first_round = snapshot.first_round
        self.stopped = snapshot.stopped if snapshot.stopped in FINAL else ""
        self.start_time -= snapshot.seconds["all"]
        self.train_seconds = snapshot.seconds["train"]
        return put(snapshot.state)

    def run(
        self, key: Key, state: State, population: Population, rounds: int, block_size: int
    ) -> tuple[State, History]:
        """Block after block, until the rounds are reached or a rule stops the run."""
        rounds_done = int(state.round)
        if self.manager is None:
            self.first_round = rounds_done + 1
        if self.repeats and rounds > self.first_round:
            rounds, self.all_done = self.first_round, "repeats"
        stopped = self.stopped or ("" if rounds_done < rounds else self.all_done)
        state = self._compile(key, state, population)
        self.begun = time.perf_counter(), rounds_done
        while not stopped:
            self._stop_if_requested(rounds_done, state)
            # Blocks end at multiples of their size, so that a resumed run validates in the same rounds.
            count = min(block_size - rounds_done % block_size, rounds - rounds_done)
            count = self.team.of_first(partial(piece_of, count, *self.last_piece))
            if self.ledger is not None:
                if self.ledger.would_exceed(rounds, self.name):  # beside what others have spent by now
                    self._ask_ledger(state, rounds_done, rounds_done + count)
                self.ledger.record(rounds_done + count, self.name)  # before anything of it is known
            state = self._train_block(key, state, population, count)
            rounds_done += count
            validation = None
            is_over = rounds_done % block_size == 0 or rounds_done >= rounds
            if self._has_diverged():
                stopped = "diverged"
            elif is_over or self.team.of_first(self._is_late):
                validation = self._validate(rounds_done, state, is_last=rounds_done >= rounds)
                stopped = self.team.of_first(partial(self._stop_reason, rounds_done, rounds, validation))
            if self.manager is not None:
                self.manager.save(rounds_done, stopped, partial(self._snapshot, state, stopped))
            if is_over or stopped or self.last_piece[1] >= TOLD:
                self._report(rounds_done, rounds, block_size, validation, stopped)
        self._stop_if_requested(rounds_done, state, stopped)
        state, history = self._result(rounds_done, state, stopped)
        warn_if_diverged(history)
        return self.team.local(rows_to_host(state)), history

    def _result(self, rounds_done: int, state: State, stopped: str) -> tuple[State, History]:
        if self.best.state is not None:
            return self.best.state, self._history(self.best.round, stopped)
        return state, self._history(rounds_done, stopped)

    def _stop_if_requested(self, rounds_done: int, state: State, stopped: str = "") -> None:
        """End here if a signal asked for it: once all is saved, or with what was done."""
        signal = self.team.of_any(self.request.signal)
        if not signal:
            return
        self.request.signal = signal
        if self.manager is not None:
            self.manager.pause_if_requested(rounds_done, partial(self._snapshot, state, stopped))
        result, history = self._result(rounds_done, state, stopped or "interrupted")
        raise Interrupted(self.team.local(rows_to_host(result)), history)

    def _compile(self, key: Key, state: State, population: Population) -> State:
        """Compile by running a block of no rounds."""
        tick = time.perf_counter()
        with self.compilations:
            state, _ = jax.block_until_ready(self.block.run(key, state, population, jnp.int32(0)))
        self.compile_seconds = time.perf_counter() - tick
        return state

    def _train_block(self, key: Key, state: State, population: Population, count: int) -> State:
        tick = time.perf_counter()
        with self.compilations:
            state, infos = jax.block_until_ready(self.block.run(key, state, population, jnp.int32(count)))
        self.last_piece = count, time.perf_counter() - tick
        self.train_seconds += self.last_piece[1]
        self.infos.append(jax.tree.map(lambda x: np.asarray(x)[:count], infos))
        return state

    def _is_late(self) -> bool:
        return self.stop.seconds is not None and time.perf_counter() - self.start_time >= self.stop.seconds

    def _ask_ledger(self, state: State, rounds_done: int, after: int) -> None:
        """Let the ledger refuse the coming block, once what was done is saved."""
        assert self.ledger is not None  # noqa: S101 - why this is called; this tells the type checker
        if self.manager is not None and self.ledger.would_exceed(after, self.name):
            self.manager.save(rounds_done, "", partial(self._snapshot, state, ""), force=True)
        self.ledger.check(after, rounds_done, self.name)

    def _has_diverged(self) -> bool:
        """By the last blocks: as many as rounds in a row are needed to see that."""
        first = next(filter(math.isfinite, map(first_loss, self.infos)), math.inf)
        return diverged(_concatenate(self.infos[-LOST:]), first)

    def _validate(self, rounds_done: int, state: State, *, is_last: bool) -> Metrics | None:
        if self.evaluate is None:
            return None
        metrics = self.team.of_first(partial(self.evaluate, self.team.local(rows_to_host(state))))
        self.evaluations.append((rounds_done, metrics))
        value = metrics[f"full/{self.stop.metric}"]
        if value > self.best.value:
            spare = self.best.state if self.plan.stream_clients else None
            self.best = Best(value, rounds_done)  # the one before goes first, or is written over
            if self.keeps_best:  # the next block, if there is one, consumes `state`
                self.best = Best(value, rounds_done, state if is_last else copy_state(state, spare))
        return metrics

    def _stop_reason(self, rounds_done: int, rounds: int, validation: Metrics | None) -> str:
        """As `History.stopped`; empty if the run goes on."""
        if validation is not None and (reached := self.stop.reached(self.best.round, self.evaluations)):
            return reached
        cut_off = "seconds" if self._is_late() else ""
        return self.all_done if rounds_done >= rounds else cut_off

    def _report(
        self, rounds_done: int, rounds: int, block_size: int, validation: Metrics | None, stopped: str
    ) -> None:
        if self.on_block is None or not self.team.leads:
            return
        clients = [int(np.sum(info.clients)) for info in self.infos]
        end = None if self.evaluate is None else self.stop.end_after(self.best.round, self.evaluations)
        now = time.perf_counter()
        pace = (now - self.begun[0]) / max(rounds_done - self.begun[1], 1)
        last, rule = self.stop.forecast(rounds_done, rounds, end, block_size, now - self.start_time, pace)
        progress = Progress(
            round=rounds_done,
            rounds=last,
            clients=sum(clients[self.told :]),
            loss=float(report_losses(self.infos[-1]).loss[-1]),
            validation=validation,
            clients_per_second=sum(clients) / max(self.train_seconds, 1e-9),
            stopped=stopped,
            rule=stopped or rule,
            server_rows="all" if self.plan.touched_rows is None else "touched",
        )
        self.told = len(self.infos)
        self.on_block(progress)

    def _snapshot(self, state: State, stopped: str) -> Snapshot:
        seconds = {
            "all": time.perf_counter() - self.start_time,
            "train": self.train_seconds,
            "compile": self.compile_seconds,
        }
        return Snapshot(
            state=rows_to_host(state),
            infos=_concatenate(self.infos) if self.infos else None,
            evaluations=tuple(self.evaluations),
            best=self.best._replace(state=rows_to_host(self.best.state)),
            first_round=self.first_round,
            stopped=stopped,
            seconds=seconds,
        )

    def _history(self, selected_round: int, stopped: str) -> History:
        nothing: Any = (np.zeros(0) for _ in RoundInfo._fields)
        return History(
            rounds=report_losses(_concatenate(self.infos) if self.infos else RoundInfo(*nothing)),
            evaluations=tuple(self.evaluations),
            selected_round=selected_round,
            stopped=stopped,
            seconds=time.perf_counter() - self.start_time,
            train_seconds=self.train_seconds,
            compile_seconds=self.compile_seconds,
            num_compilations=max(self.compilations.count, 1),
            plan=self.plan,
            first_round=self.first_round,
        )


def _concatenate(infos: list[RoundInfo]) -> RoundInfo:
    """Several blocks' reports as one, leaves [T]."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *infos)
