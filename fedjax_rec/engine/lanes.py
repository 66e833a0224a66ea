"""Lanes: continuous batching of a queue of clients, for one local epoch of sums.

A row is visited once, so no working copy is made of it: it is read from the global table, trained, and its delta
added to the totals in the same loop step.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.engine.lane_steps import (
    CohortResult,
    CohortTask,
    add_dense_deltas,
    add_row_deltas,
    add_to_report,
    check_sent_rows,
    finish_clients,
    name_batches,
    read_batch_rows,
    sent_rows,
    start_clients,
    step_lanes,
    update_scale,
)
from fedjax_rec.rows.tables import select, take_rows
from fedjax_rec.types import PyTree


class LaneState(NamedTuple):
    """What each lane is doing."""

    slot: jax.Array  # int32[L], of the queue; `num_present` = nobody
    t: jax.Array  # int32[L], the client's next local batch
    local: PyTree  # leaves [L, ...], its local state


def run_lanes(task: CohortTask, result: CohortResult) -> CohortResult:
    """Continuous batching: a lane that is done hands in and pulls the next client.

    Args:
        task: the queue and what to do with it; one local epoch, and no update need be seen whole.
        result: where the sums start.

    Returns:
        the sums over all clients, and what they keep.
    """
    queue = task.queue

    def is_busy(carry: tuple[jax.Array, LaneState, CohortResult]) -> jax.Array:
        return (carry[1].slot < queue.num_present).any()

    def train_batch(
        carry: tuple[jax.Array, LaneState, CohortResult],
    ) -> tuple[jax.Array, LaneState, CohortResult]:
        head, lane, result = carry
        slot = lane.slot

        # Train one local batch [L, B] on every lane.
        active = slot < queue.num_present
        count = jnp.maximum(take_rows(queue.num_batches, slot), 1)
        batch = name_batches(task, slot, lane.t, active)
        rows = read_batch_rows(task, slot, batch)
        left = count - 1 - lane.t
        local, rows, info = step_lanes(task, slot, lane.local, rows, batch, active, lane.t, left)

        # Its rows are final: add their changes to the totals. The check computes them again: used twice, they
        # would be written to memory before they are added.
        weight = take_rows(queue.weight, slot)
        scale = update_scale(task, slot)
        send = partial(sent_rows, task, slot, local, rows, batch)
        result = add_row_deltas(task, result, weight, batch.ids, send(), scale)
        result = check_sent_rows(task, result, slot, active, send)
        result = add_to_report(task, result, slot, info, active, new_ids=batch.ids)

        # Clients with no batch left hand in their dense deltas [L, ...] and what they keep.
        done = active & (lane.t + 1 >= count)
        result, deltas = finish_clients(task, result, slot, done, local)
        result = add_dense_deltas(task, result, weight, done, deltas, scale)

        # Their lanes pull the next clients, in the order of the queue.
        pulled = jnp.minimum(head + jnp.cumsum(done) - 1, queue.num_present)
        slot = jnp.where(done, pulled, slot)
        t = jnp.where(done, 0, lane.t + active)
        local = select(done, start_clients(task, slot), local)
        head = jnp.minimum(head + done.sum(dtype=jnp.int32), queue.num_present)
        return head, LaneState(slot, t, local), result

    # The first L clients enter; `head` is the slot of the next one.
    slot = jnp.minimum(jnp.arange(task.lanes), queue.num_present)
    first = LaneState(slot, jnp.zeros(task.lanes, jnp.int32), start_clients(task, slot))
    head = jnp.minimum(jnp.int32(task.lanes), queue.num_present)
    return jax.lax.while_loop(is_busy, train_batch, (head, first, result))[2]
