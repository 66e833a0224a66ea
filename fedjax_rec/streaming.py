"""Rounds in parts: private leaves wait in host memory, and the device holds those of a few clients at a time.

What all clients keep is N times what one keeps: whole item tables of their own [N, I, D] (`fedrap`), control
variates, the errors of compressors. A device need not hold it. A round of one cohort is then

    draw the cohort  ->  for S clients at a time: fetch what they keep, train, add up, put back  ->  step

with one step of the server, as ever: `train` gives a part's sums, which add up to the cohort's. The functions here
are pure and compiled; `host_memory` is the loop around them, and holds what waits.

What cannot be taken apart is refused: stacks of updates (medians, Krum), exchanges between clients, fixed-point
sums, weights that a server learns, colluding clients, rounds that wait for nobody, rounds that may be too small.

Departure from rounds in one piece: clients store what they learnt before the server steps. Where its step is then
not finite and so not taken (`RoundInfo.skipped`), they keep it, as devices would.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.clients import stream
from fedjax_rec.cohorts import Cohort
from fedjax_rec.devices import keep_replicated
from fedjax_rec.engine import Result
from fedjax_rec.guard import run_sound
from fedjax_rec.initial import init_memory, private_of
from fedjax_rec.parts import choose_part, copies_are_large
from fedjax_rec.plan import check_fits, fits, with_copy
from fedjax_rec.population import Population
from fedjax_rec.rounds import Rules, attempts, end_round, gather_clients, init_state, plan_rounds
from fedjax_rec.types import Key, PyTree, RoundInfo, Server, State, Streaming


class Trained(NamedTuple):
    """What the clients of a part made."""

    sums: Result  # totals, report and counts; nothing of single clients
    kept: PyTree  # (private leaves, memories), leaves [S, ...]
    sound: jax.Array  # bool[S], who took part with numbers that count
    losses: PyTree  # float32[S], if they tell them


def take_apart(
    rules: Rules, stream_clients: int | None, *, colluding: bool = False
) -> Callable[[Population], Streaming | None]:
    """The same rounds in parts, for populations for which that is wanted.

    Args:
        rules: of the rounds.
        stream_clients: S, clients of a part, rounded up to a multiple of the devices; 0 for rounds in one piece;
            None for parts where they cost no time, or fit where one piece does not.
        colluding: whether malicious clients craft their updates together.

    Returns:
        population -> the parts of a round, or None for one piece.

    Raises:
        ValueError: if S is negative, or on rules that need a whole cohort.

    Example:
        see `fedjax_rec.federate.federate`, which calls it.
    """
    whole = _needs_whole(rules, colluding=colluding)
    if stream_clients is not None and stream_clients < 0:
        raise ValueError(
            f"stream_clients={stream_clients} must be at least 0, which is for rounds in one piece"
        )
    if stream_clients and whole:
        raise ValueError(
            f"stream_clients={stream_clients} takes cohorts apart, but {whole} cannot be; leave it out"
        )

    def parts(population: Population) -> Streaming | None:
        if stream_clients == 0 or whole:
            return None
        if stream_clients is None:
            size = _choose(rules, population)  # of whole slots already
        else:
            size = _whole_slots(rules, population, stream_clients)
        return None if size is None else _parts(rules, population, size)

    return parts


def _whole_slots(rules: Rules, population: Population, size: int) -> int:
    """S, of as many clients for each device, and no more than the cohort needs."""
    plan = plan_rounds(rules, population)
    return -(-min(size, plan.cohort) // plan.devices) * plan.devices


def _needs_whole(rules: Rules, *, colluding: bool) -> str:
    """What cannot be taken apart; empty if all can."""
    rule = rules.uplink.aggregator
    found = {
        "an aggregator that sees all updates at once": rule.stacked,
        "fixed-point sums": rule.fixed is not None,
        "weights that the server learns": rule.mixture is not None,
        "a least number of clients in a round": rule.least > 1,
        "an exchange between clients": rules.exchange is not None,
        "colluding clients": colluding,
        "asynchronous rounds": rules.asynchronous is not None,
        "clients that represent themselves to be scored": rules.model.represent is not None,
    }
    return next((name for name, needed in found.items() if needed), "")


def _choose(rules: Rules, population: Population) -> int | None:
    """S where parts cost no time, or fit where one piece does not; else None."""
    state = jax.eval_shape(lambda: init_state(rules, jax.random.key(0), population))
    whole = plan_rounds(rules, population)
    size = choose_part(whole, (state.private, state.memory))
    if copies_are_large(whole):
        return size
    helps = not fits(with_copy(whole)) and fits(with_copy(plan_rounds(rules, population, size)))
    return size if helps else None


def _parts(rules: Rules, population: Population, size: int) -> Streaming:
    return Streaming(
        plan_rounds(rules, population, size),
        partial(start_clients, rules),
        partial(draw_queue, rules, size),
        partial(train_part, rules, size),
        partial(end_parts, rules),
    )


def start_clients(rules: Rules, key: Key, ids: jax.Array, server: Server) -> PyTree:
    """What clients int32[S] keep before the first round: (private leaves, memories), leaves [S, ...]."""
    private = private_of(rules.model, stream(key, "private"), ids, server)
    return keep_replicated((private, init_memory(rules.uplink.transform, len(ids), server)), rules.mesh)


def draw_queue(rules: Rules, size: int, key: Key, state: State, population: Population) -> Cohort:
    """The cohort, longest client first, so that those of a part are alike; empty slots fill up the last part."""
    present = gather_clients(rules, key, state, population)
    batches = jnp.where(present.alive, rules.work.batches.num_batches(present.clients.num_examples), 0)
    order = jnp.argsort(
        -(batches if present.limit is None else jnp.minimum(batches, present.limit)), stable=True
    )

    def queue(x: jax.Array) -> jax.Array:
        return jnp.pad(x[order], ((0, -len(order) % size), *[(0, 0)] * (x.ndim - 1)))

    parts = present.clients, present.drawn, present.alive, present.limit
    return keep_replicated(Cohort(*jax.tree.map(queue, parts)), rules.mesh)


def train_part(
    rules: Rules,
    size: int,
    key: Key,
    state: State,
    population: Population,
    cohort: Cohort,
    start: jax.Array,
    kept: PyTree,
) -> Trained:
    """Train the S clients of the cohort from slot `start` on, who keep (private leaves, memories) [S, ...]."""

    def cut(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start, size)

    some = Cohort(*jax.tree.map(cut, (cohort.clients, cohort.drawn, cohort.alive, cohort.limit)))
    chosen = plan_rounds(rules, population, size)
    check_fits(chosen)
    whole = state._replace(private=kept[0], memory=kept[1])
    attempt = attempts(rules, chosen, key, whole, population, some, jnp.arange(size))
    result, sound = run_sound(attempt, some.alive)
    sums = result._replace(private=(), memory=(), unsound=(), losses=())
    new = (result.private, result.memory)
    return keep_replicated(Trained(sums, new, sound, result.losses), rules.mesh)


def end_parts(
    rules: Rules,
    key: Key,
    state: State,
    population: Population,
    cohort: Cohort,
    sums: Result,
    sound: jax.Array,
    losses: PyTree,
) -> tuple[State, RoundInfo]:
    """The server's part, once all have trained: `sound` bool[C] and `losses` float32[C] are of all the cohort."""

    def leave(*_: Any) -> PyTree:
        return (), ()

    return end_round(rules, key, state, population, cohort, sums._replace(losses=losses), sound, leave)
