"""Lanes: continuous batching of a queue of clients, for one local epoch of sums.

A row is visited once, so no working copy is made of it: it is read from the global table, trained, and its delta
added to the totals in the same loop step.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.schedules import (
    Job,
    Outcome,
    add_dense_deltas,
    add_row_deltas,
    enter,
    hear,
    leave,
    name_batch,
    note,
    scale_of,
    sent_rows,
    step_lanes,
    touch_rows,
    watch,
)
from fedjax_rec.tables import select
from fedjax_rec.types import PyTree


class Lanes(NamedTuple):
    """What each lane is doing."""

    place: jax.Array  # int32[L], its client's place in the queue; `waiting` = none
    t: jax.Array  # int32[L], the next local batch
    local: PyTree  # leaves [L, ...], the client's local state


def run_lanes(job: Job, outcome: Outcome) -> Outcome:
    """Continuous batching: a lane that is done hands in and pulls the next client.

    Args:
        job: the queue and what to do with it; `job.work.epochs` is 1 and no update need be seen whole.
        outcome: where the sums start.

    Returns:
        the sums over all clients, and their new private leaves.

    Example:
        see `fedjax_rec.engine.run_cohort`, which calls it.
    """
    queue = job.queue

    def busy(carry: tuple[jax.Array, Lanes, Outcome]) -> jax.Array:
        return (carry[1].place < queue.waiting).any()

    def body(carry: tuple[jax.Array, Lanes, Outcome]) -> tuple[jax.Array, Lanes, Outcome]:
        head, lane, outcome = carry
        active, count = lane.place < queue.waiting, jnp.maximum(queue.batches[lane.place], 1)
        batch = name_batch(job, lane.place, lane.t, active)
        rows = touch_rows(job, lane.place, batch)
        local, rows, info = step_lanes(job, lane.local, rows, batch, active, lane.t, count - 1 - lane.t)
        weight, scale = queue.weight[lane.place], scale_of(job, lane.place)
        sent = sent_rows(job, lane.place, local, rows, batch)
        outcome = add_row_deltas(job, outcome, weight, batch.ids, sent, scale)
        again = partial(
            sent_rows, job, lane.place, local, rows, batch
        )  # looked at, `sent` would be stored before it is added
        outcome = watch(job, outcome, lane.place, active, again)
        outcome = hear(job, note(job, outcome, info, active, batch.ids), lane.place, info, active)
        done = active & (lane.t + 1 >= count)
        outcome, deltas = leave(job, outcome, lane.place, done, local)
        outcome = add_dense_deltas(job, outcome, weight, done, deltas, scale)
        place = jnp.where(done, jnp.minimum(head + jnp.cumsum(done) - 1, queue.waiting), lane.place)
        lane = Lanes(place, jnp.where(done, 0, lane.t + active), select(done, enter(job, place), local))
        return jnp.minimum(head + done.sum(dtype=jnp.int32), queue.waiting), lane, outcome

    place = jnp.minimum(jnp.arange(job.lanes), queue.waiting)
    first = Lanes(place, jnp.zeros(job.lanes, jnp.int32), enter(job, place))
    start = jnp.minimum(jnp.int32(job.lanes), queue.waiting)
    return jax.lax.while_loop(busy, body, (start, first, outcome))[2]
