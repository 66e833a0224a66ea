"""Waves: L similar clients in lock step, for several local epochs and for updates that must be seen whole.

A wave's batches and rows stay in its buffer `[L, T, B, ...]`. Where updates are sent whole, the buffer is cut to
one of a few static sizes (T halved again and again) by a `lax.switch`: short clients do not pay for the longest.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.engine.lane_steps import (
    CohortResult,
    CohortTask,
    add_dense_deltas,
    add_row_deltas,
    add_to_report,
    check_sent_rows,
    end_epoch,
    finish_clients,
    have_losses,
    mark_unsound,
    mean_losses,
    models_of,
    most_batches,
    name_batches,
    read_batch_rows,
    sent_rows,
    start_clients,
    step_lanes,
    update_scale,
)
from fedjax_rec.rows.tables import expand, set_rows, take_rows
from fedjax_rec.transforms.base import Transform
from fedjax_rec.types import KEY_IMPL, Batch, PyTree, Rows, Stack, Update


class Wave(NamedTuple):
    """The clients of a wave: constant through it."""

    slot: jax.Array  # int32[L], of the queue; `num_present` = nobody
    num_batches: jax.Array  # int32[L], of each client in an epoch
    steps: jax.Array  # int32[], the most of them
    weight: jax.Array  # float32[L]
    scale: jax.Array | None  # float32[L], of stale updates


class WaveBuffer(NamedTuple):
    """Each lane's batches, leaves [L, T, B, ...]; all `()` where nothing need be kept."""

    batch: Any  # Batch
    rows: Any  # Rows; in the last epoch what is sent takes the place of the values
    sent: Any  # only where what is sent has a shape of its own


class WaveState(NamedTuple):
    """A wave between two of its steps."""

    local: PyTree  # leaves [L, ...]
    result: CohortResult
    buffer: WaveBuffer
    squared_norms: jax.Array  # float32[L], of the rows sent so far


def run_waves(task: CohortTask, result: CohortResult) -> CohortResult:
    """Waves of similar clients in lock step, for any number of local epochs.

    Args:
        task: the queue and what to do with it.
        result: where the sums start.

    Returns:
        the sums over all clients (or their stack), and what they keep.
    """
    queue = task.queue
    epochs = task.work.epochs

    def is_left(carry: tuple[jax.Array, CohortResult, WaveBuffer]) -> jax.Array:
        return carry[0] * task.lanes < queue.num_present

    def run_wave(
        carry: tuple[jax.Array, CohortResult, WaveBuffer],
    ) -> tuple[jax.Array, CohortResult, WaveBuffer]:
        number, result, buffer = carry

        # The next L clients of the queue enter; the first of them has the most batches.
        slot = jnp.minimum(number * task.lanes + jnp.arange(task.lanes), queue.num_present)
        wave = Wave(
            slot=slot,
            num_batches=take_rows(queue.num_batches, slot),
            steps=queue.num_batches[slot[0]],
            weight=take_rows(queue.weight, slot),
            scale=update_scale(task, slot),
        )
        state = WaveState(start_clients(task, slot), result, buffer, jnp.zeros(task.lanes))

        # They train for E epochs. Afterwards the buffer holds what they send, if it was not summed on the way.
        if epochs == 1:
            state = _only_epoch(task, wave, state)
        else:
            state = _first_epoch(task, wave, state)
            if epochs > 2:
                middle_epoch = partial(_middle_epoch, task, wave)
                state = jax.lax.fori_loop(1, epochs - 1, lambda _, state: middle_epoch(state), state)
            state = _last_epoch(task, wave, state)

        # They send it, and leave.
        result, buffer = _send_updates(task, wave, state)
        return number + 1, result, buffer

    return jax.lax.while_loop(is_left, run_wave, (jnp.int32(0), result, _make_buffer(task)))[1]


def _only_epoch(task: CohortTask, wave: Wave, state: WaveState) -> WaveState:
    """The only epoch: each batch is named, trained, and its rows are sent."""

    def step(t: jax.Array, state: WaveState) -> WaveState:
        active = t < wave.num_batches
        batch, rows, missed = _name_and_read(task, wave, t, active)
        left = wave.num_batches - 1 - t
        local, rows, info = step_lanes(task, wave.slot, state.local, rows, batch, active, missed, left)
        result = add_to_report(task, state.result, wave.slot, info, active, new_ids=batch.ids)
        state = state._replace(local=local, result=result)
        return _send_rows(task, wave, state, t, active, batch, rows, is_new=True)

    return jax.lax.fori_loop(0, wave.steps, step, state)


def _first_epoch(task: CohortTask, wave: Wave, state: WaveState) -> WaveState:
    """The first of several epochs: each batch is named, trained, and kept with its rows."""

    def step(t: jax.Array, state: WaveState) -> WaveState:
        active = t < wave.num_batches
        batch, rows, missed = _name_and_read(task, wave, t, active)
        left = jnp.zeros_like(wave.num_batches)
        local, rows, info = step_lanes(task, wave.slot, state.local, rows, batch, active, missed, left)
        result = add_to_report(task, state.result, wave.slot, info, active, new_ids=batch.ids)
        buffer = _keep(state.buffer, t, batch=batch, rows=rows if task.work.keeps_rows else None)
        return state._replace(local=local, result=result, buffer=buffer)

    return _end_epoch(task, wave, jax.lax.fori_loop(0, wave.steps, step, state))


def _middle_epoch(task: CohortTask, wave: Wave, state: WaveState) -> WaveState:
    """An epoch between the first and the last: batches come from the buffer, and their rows go back there."""
    has_loss = have_losses(task, state.result, wave.slot)

    def step(t: jax.Array, state: WaveState) -> WaveState:
        active = t < wave.num_batches
        batch, rows = _read_buffer(task, wave, state.buffer, t)
        missed = wave.num_batches - 1
        left = jnp.zeros_like(wave.num_batches)
        local, rows, info = step_lanes(task, wave.slot, state.local, rows, batch, active, missed, left)
        result = add_to_report(task, state.result, wave.slot, info, active, has_loss=has_loss)
        buffer = _keep(state.buffer, t, rows=rows if task.work.keeps_rows else None)
        return state._replace(local=local, result=result, buffer=buffer)

    return _end_epoch(task, wave, jax.lax.fori_loop(0, wave.steps, step, state))


def _last_epoch(task: CohortTask, wave: Wave, state: WaveState) -> WaveState:
    """The last of several epochs: batches come from the buffer, and their rows are sent."""
    has_loss = have_losses(task, state.result, wave.slot)

    def step(t: jax.Array, state: WaveState) -> WaveState:
        active = t < wave.num_batches
        batch, rows = _read_buffer(task, wave, state.buffer, t)
        missed = wave.num_batches - 1
        left = wave.num_batches - 1 - t
        local, rows, info = step_lanes(task, wave.slot, state.local, rows, batch, active, missed, left)
        result = add_to_report(task, state.result, wave.slot, info, active, has_loss=has_loss)
        state = state._replace(local=local, result=result)
        return _send_rows(task, wave, state, t, active, batch, rows, is_new=False)

    return jax.lax.fori_loop(0, wave.steps, step, state)


def _name_and_read(
    task: CohortTask, wave: Wave, t: jax.Array, active: jax.Array
) -> tuple[Batch, Rows, jax.Array]:
    """Batch `t` of each lane, ids [L, B], its rows, and the steps int32[L] that they missed."""
    each_t = jnp.broadcast_to(t, wave.slot.shape)
    batch = name_batches(task, wave.slot, each_t, active)
    return batch, read_batch_rows(task, wave.slot, batch), each_t


def _read_buffer(task: CohortTask, wave: Wave, buffer: WaveBuffer, t: jax.Array) -> tuple[Batch, Rows]:
    """Batch `t` of each lane and its rows, as the last epoch left them; zeros where rows are not kept.

    In a branch of its own, which is always taken: XLA would read them again wherever they are needed, and copy the
    whole buffer for those who do so after new ones were written.
    """

    def read(buffer: WaveBuffer) -> tuple[Batch, Any]:
        return jax.tree.map(lambda x: x[:, t], (buffer.batch, buffer.rows))

    def never(buffer: WaveBuffer) -> tuple[Batch, Any]:
        return jax.tree.map(lambda x: jnp.zeros_like(x[:, 0]), (buffer.batch, buffer.rows))

    batch, rows = jax.lax.cond(t >= 0, read, never, buffer)
    if task.work.keeps_rows:
        return batch, rows
    shapes = jax.eval_shape(partial(read_batch_rows, task, wave.slot), batch)
    return batch, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _end_epoch(task: CohortTask, wave: Wave, state: WaveState) -> WaveState:
    present = wave.slot < task.queue.num_present
    return state._replace(local=end_epoch(task, wave.slot, state.local, present))


def _send_rows(
    task: CohortTask,
    wave: Wave,
    state: WaveState,
    t: jax.Array,
    active: jax.Array,
    batch: Batch,
    rows: Rows,
    *,
    is_new: bool,
) -> WaveState:
    """Sum what is sent for the rows of batch `t`, or keep it (and a new batch) for the whole update."""
    send = partial(sent_rows, task, wave.slot, state.local, rows, batch)
    sent = send()
    if not task.uplink.sends_after_training:
        result = check_sent_rows(task, state.result, wave.slot, active, send)
        result = add_row_deltas(task, result, wave.weight, batch.ids, sent, wave.scale)
        return state._replace(result=result)

    new_batch = batch if is_new else None
    if task.work.upload is None:
        buffer = _keep(state.buffer, t, batch=new_batch, rows=rows._replace(values=sent))
    else:
        buffer = _keep(state.buffer, t, batch=new_batch, sent=sent)
    squared_norms = state.squared_norms + _squared_norms(sent)
    return state._replace(buffer=buffer, squared_norms=squared_norms)


def _keep(
    buffer: WaveBuffer, t: jax.Array, *, batch: PyTree = None, rows: PyTree = None, sent: PyTree = None
) -> WaveBuffer:
    """Write what is new of batch `t`; what is there already is not written again, which would copy all."""

    def put(kept: PyTree, new: PyTree) -> PyTree:
        return kept if new is None else jax.tree.map(lambda x, new: x.at[:, t].set(new), kept, new)

    return WaveBuffer(put(buffer.batch, batch), put(buffer.rows, rows), put(buffer.sent, sent))


def _make_buffer(task: CohortTask) -> WaveBuffer:
    """Room for each lane's batches, their rows, and what is sent for them."""
    if task.work.epochs == 1 and not task.uplink.sends_after_training:
        return WaveBuffer((), (), ())

    def example(slot: jax.Array) -> WaveBuffer:
        batch = name_batches(task, slot, slot, slot >= 0)
        rows = read_batch_rows(task, slot, batch)
        kept = rows if task.work.keeps_rows else ()
        if task.work.upload is None or not task.uplink.sends_after_training:
            return WaveBuffer(batch, kept, ())
        sent = sent_rows(task, slot, start_clients(task, slot), rows, batch)
        return WaveBuffer(batch, kept if task.work.epochs > 1 else (), sent)

    shapes = jax.eval_shape(example, jnp.zeros(task.lanes, jnp.int32))
    most = most_batches(task.work, task.population)
    # what a wave reads it has written before: zeros would be written for nothing
    return jax.tree.map(lambda s: jax.lax.empty((task.lanes, most, *s.shape[1:]), s.dtype), shapes)


def _squared_norms(deltas: PyTree) -> jax.Array:
    """Squared norm of each lane's deltas, leaves [L, ...] -> [L]."""
    flat = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(deltas)]
    return sum((jnp.sum(jnp.square(x), axis=1) for x in flat), jnp.float32(0))


# Sending ---------------------------------------------------------------------------------------------------


def _send_updates(task: CohortTask, wave: Wave, state: WaveState) -> tuple[CohortResult, WaveBuffer]:
    """Let the wave's clients go: store what they keep, sum or stack what is left to send."""
    buffer = state.buffer
    done = wave.slot < task.queue.num_present
    result, dense = finish_clients(task, state.result, wave.slot, done, state.local)
    if not task.uplink.sends_after_training:
        return add_dense_deltas(task, result, wave.weight, done, dense, wave.scale), buffer

    result = mark_unsound(result, wave.slot, done & ~jnp.isfinite(state.squared_norms))
    if not task.uplink.needs_full_update:
        squared = state.squared_norms + _squared_norms(dense)
        return _send_scaled(task, wave, done, squared, dense, result, buffer), buffer

    # whole updates, of the smallest static size that holds the wave's longest client
    sizes = buffer_sizes(most_batches(task.work, task.population))
    which = (wave.steps > jnp.array(sizes[:-1], jnp.int32)).sum() if len(sizes) > 1 else 0
    branches = [partial(_send_whole, task, size) for size in sizes]
    sent = _sent_rows_of(task, buffer)
    return jax.lax.switch(which, branches, wave, done, dense, buffer.batch.ids, sent, result), buffer


def _sent_rows_of(task: CohortTask, buffer: WaveBuffer) -> PyTree:
    """What is sent for each row, leaves [L, T, B, ...]."""
    return buffer.rows.values if task.work.upload is None else buffer.sent


def _send_scaled(
    task: CohortTask,
    wave: Wave,
    done: jax.Array,
    squared_norms: jax.Array,
    dense: PyTree,
    result: CohortResult,
    buffer: WaveBuffer,
) -> CohortResult:
    """Scale each lane's update by what its norm and its loss ask for, and add it batch by batch."""
    transform = task.uplink.transform
    if transform is None or transform.scale is None:
        factor = jnp.ones_like(squared_norms)
    else:
        factor = jax.vmap(transform.scale)(squared_norms)
    result, weight = _weigh_by_loss(task, wave, result, done, squared_norms * jnp.square(factor))
    factor = factor if wave.scale is None else factor * wave.scale
    result = add_dense_deltas(task, result, weight, done, dense, factor)

    def add_batch(t: jax.Array, result: CohortResult) -> CohortResult:
        ids, deltas = jax.tree.map(lambda x: x[:, t], (buffer.batch.ids, _sent_rows_of(task, buffer)))
        return add_row_deltas(task, result, weight, ids, deltas, scale=factor)

    return jax.lax.fori_loop(0, wave.steps, add_batch, result)


def _weigh_by_loss(
    task: CohortTask, wave: Wave, result: CohortResult, done: jax.Array, squared_norms: jax.Array
) -> tuple[CohortResult, jax.Array]:
    """Weights float32[L] of the lanes' clients; those that go by losses leave their statistic in the totals."""
    loss_factor = task.uplink.aggregator.loss_factor
    if loss_factor is None:
        return result, wave.weight
    losses = mean_losses(result.loss_sums.at[wave.slot].get(mode="clip"))
    factor, statistic = jax.vmap(loss_factor)(losses, squared_norms)
    total = result.totals.loss_statistic + jnp.where(done, wave.weight * statistic, 0.0).sum()
    return result._replace(totals=result.totals._replace(loss_statistic=total)), wave.weight * factor


def buffer_sizes(most: int) -> list[int]:
    """The static sizes to which a buffer of T batches is cut: T, T/2, ..., 1, ascending.

    Args:
        most: T.

    Returns:
        at most log2(T) + 2 sizes.

    Example:
        >>> buffer_sizes(10)
        [1, 2, 3, 5, 10]
    """
    sizes = {most}
    while most > 1:
        most = -(-most // 2)
        sizes.add(most)
    return sorted(sizes)


def _send_whole(
    task: CohortTask,
    size: int,
    wave: Wave,
    done: jax.Array,
    dense: PyTree,
    ids: jax.Array,
    deltas: PyTree,
    result: CohortResult,
) -> CohortResult:
    """Make each lane's whole update of the first `size` batches of the buffer, transform it and send it."""
    # one update a lane, ids [L, R]: the buffer beyond a client's own batches is of an earlier wave
    trained = jnp.arange(size)[None, :] < wave.num_batches[:, None]
    ids = jnp.where(trained[..., None], ids[:, :size], task.num_items)
    deltas = jax.tree.map(lambda x: jnp.where(expand(trained, x[:, :size]), x[:, :size], 0), deltas)
    ids, deltas = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), (ids, deltas))
    update = Update(dense, ids, deltas, wave.weight)

    # what the clients make of it before they send it
    if task.uplink.transform is not None:
        result, update = _transform(task, task.uplink.transform, wave, done, update, result)
    if task.uplink.aggregator.stacked:
        return result._replace(totals=_add_to_stack(result.totals, wave.slot, done, update))

    # sums: a transform may make anything of an empty update, which is not sent
    sent_ids = jnp.where(done[:, None], update.ids, task.num_items)
    sent = jax.tree.map(lambda x: jnp.where(expand(sent_ids < task.num_items, x), x, 0.0), update.rows)
    squared_norms = jax.vmap(Update.squared_norm)(update._replace(rows=sent))
    result, weight = _weigh_by_loss(task, wave, result, done, squared_norms)
    result = add_dense_deltas(task, result, weight, done, update.shared, wave.scale)
    return add_row_deltas(task, result, weight, sent_ids, sent, wave.scale)


def _transform(
    task: CohortTask,
    transform: Transform,
    wave: Wave,
    done: jax.Array,
    update: Update,
    result: CohortResult,
) -> tuple[CohortResult, Update]:
    """What each lane's client makes of its update; those that are done keep their transform's state."""
    keys = jax.random.wrap_key_data(task.queue.transform_keys[wave.slot], impl=KEY_IMPL)
    server, axis = models_of(task, wave.slot)
    if transform.update_with_state is None:
        return result, jax.vmap(transform.update, in_axes=(0, 0, axis))(keys, update, server)
    old = jax.tree.map(lambda m: m.at[wave.slot].get(mode="clip"), result.store.transform_state)
    update, new = jax.vmap(transform.update_with_state, in_axes=(0, 0, 0, axis))(keys, update, old, server)
    target = jnp.where(done, wave.slot, task.num_slots)
    state = set_rows(result.store.transform_state, target, new)
    return result._replace(store=result.store._replace(transform_state=state)), update


def _add_to_stack(stack: Stack, slot: jax.Array, done: jax.Array, update: Update) -> Stack:
    """Put updates into their slots; a client's ids may repeat, and then add up."""
    target = jnp.where(done, slot, stack.sent.shape[0])
    shared = set_rows(stack.deltas.shared, target, update.shared)
    rows = jax.tree.map(
        lambda s, d: s.at[target[:, None], update.ids].add(d, mode="drop"), stack.deltas.tables, update.rows
    )
    return stack._replace(
        deltas=stack.deltas._replace(shared=shared, tables=rows),
        sent=set_rows(stack.sent, target, done),
        touched=stack.touched.at[target[:, None], update.ids].set(True, mode="drop"),
    )
