"""Waves: L alike clients in lock step, for several local epochs and for updates that must be seen whole.

A wave's batches and rows stay in its room `[L, T, B, ...]`. Where updates are sent whole, the room is cut to one
of a few static sizes (T halved again and again) by a `lax.switch`: short clients do not pay for the longest.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.schedules import (
    Job,
    Outcome,
    add_dense_deltas,
    add_row_deltas,
    enter,
    have_told,
    hear,
    held_models,
    leave,
    mark,
    mean_losses,
    most_batches,
    name_batch,
    note,
    scale_of,
    sent_rows,
    step_lanes,
    touch_rows,
    watch,
)
from fedjax_rec.tables import expand, num_rows
from fedjax_rec.transforms import squared_norm
from fedjax_rec.types import Batch, PyTree, Stack, Transform, Update


class Room(NamedTuple):
    """Each lane's batches, leaves [L, T, B, ...]; all `()` where nothing need be kept."""

    batch: Any  # Batch
    rows: Any  # Rows; in the last epoch what is sent takes the place of the values
    sent: Any  # only where what is sent has a shape of its own


WaveState = tuple[PyTree, Outcome, Room, jax.Array]  # local states, sums so far, room, squared norms [L]


def run_waves(job: Job, outcome: Outcome) -> Outcome:
    """Waves of similar clients in lock step, for any number of local epochs.

    Args:
        job: the queue and what to do with it.
        outcome: where the sums start.

    Returns:
        the sums over all clients (or their stack), and their new private leaves.

    Example:
        see `fedjax_rec.engine.run_cohort`, which calls it.
    """
    queue, epochs = job.queue, job.work.epochs

    def again(place: jax.Array, steps: jax.Array, state: WaveState, *, last: bool) -> WaveState:
        visit = _visit(job, place, first=False, last=last, told=have_told(job, state[1], place))
        return jax.lax.fori_loop(0, steps, visit, state)

    def wave(carry: tuple[jax.Array, Outcome, Room]) -> tuple[jax.Array, Outcome, Room]:
        number, outcome, room = carry
        place = jnp.minimum(number * job.lanes + jnp.arange(job.lanes), queue.waiting)
        steps = queue.batches[place[0]]  # the longest: the queue is sorted
        state = (enter(job, place), outcome, room, jnp.zeros(job.lanes))
        state = jax.lax.fori_loop(0, steps, _visit(job, place, first=True, last=epochs == 1), state)
        if epochs > 2:
            state = jax.lax.fori_loop(1, epochs - 1, lambda _, s: again(place, steps, s, last=False), state)
        if epochs > 1:
            state = again(place, steps, state, last=True)
        return number + 1, *_send(job, place, steps, state)

    def busy(carry: tuple[jax.Array, Outcome, Room]) -> jax.Array:
        return carry[0] * job.lanes < queue.waiting

    return jax.lax.while_loop(busy, wave, (jnp.int32(0), outcome, _room(job)))[1]


def _visit(
    job: Job, place: jax.Array, *, first: bool, last: bool, told: jax.Array | bool = False
) -> Callable[[jax.Array, WaveState], WaveState]:
    """The body of a wave's loop over its batches, in its first, a middle, or its last epoch.

    Lanes that have `told` bool[L] their loss in an earlier epoch do not tell it again.
    """
    count = job.queue.batches[place]
    weight, scale = job.queue.weight[place], scale_of(job, place)

    def body(t: jax.Array, state: WaveState) -> WaveState:
        local, outcome, room, norms = state
        active = t < count
        if first:
            batch = name_batch(job, place, jnp.broadcast_to(t, place.shape), active)
            rows, missed = touch_rows(job, place, batch), jnp.broadcast_to(t, place.shape)
        else:
            batch, rows = jax.tree.map(lambda x: x[:, t], (room.batch, room.rows))
            missed = count - 1
        left = count - 1 - t if last else jnp.zeros_like(count)
        local, rows, info = step_lanes(job, local, rows, batch, active, missed, left)
        outcome = note(job, outcome, info, active, batch.ids if first else None)
        outcome = hear(job, outcome, place, info, active & ~jnp.asarray(told))
        if not last:
            return local, outcome, _keep(room, t, batch if first else None, rows, room.sent), norms
        sent = sent_rows(job, place, local, rows, batch)
        if not job.uplink.later:
            again = partial(sent_rows, job, place, local, rows, batch)
            outcome = watch(job, outcome, place, active, again)
            return local, add_row_deltas(job, outcome, weight, batch.ids, sent, scale), room, norms
        kept = (rows._replace(values=sent), ()) if job.work.send is None else (room.rows, sent)
        return local, outcome, _keep(room, t, batch if first else None, *kept), norms + _squared(sent)

    return body


def _keep(room: Room, t: jax.Array, batch: Batch | None, rows: PyTree, sent: PyTree) -> Room:
    """Write what is new of batch `t`: a batch that is there already is not written again, which would copy all."""

    def put(kept: PyTree, new: PyTree) -> PyTree:
        return kept if new is kept else jax.tree.map(lambda x, new: x.at[:, t].set(new), kept, new)

    return Room(
        room.batch if batch is None else put(room.batch, batch), put(room.rows, rows), put(room.sent, sent)
    )


def _room(job: Job) -> Room:
    """Room for each lane's batches, their rows, and what is sent for them."""
    if job.work.epochs == 1 and not job.uplink.later:
        return Room((), (), ())

    def example(place: jax.Array) -> Room:
        batch = name_batch(job, place, place, place >= 0)
        rows = touch_rows(job, place, batch)
        if job.work.send is None or not job.uplink.later:
            return Room(batch, rows, ())
        sent = sent_rows(job, place, enter(job, place), rows, batch)
        return Room(batch, rows if job.work.epochs > 1 else (), sent)

    shapes = jax.eval_shape(example, jnp.zeros(job.lanes, jnp.int32))
    most = most_batches(job.work, job.population)
    # what a wave reads it has written before: zeros would be written for nothing
    return jax.tree.map(lambda s: jax.lax.empty((job.lanes, most, *s.shape[1:]), s.dtype), shapes)


def _squared(deltas: PyTree) -> jax.Array:
    """Squared norm of each lane's deltas, leaves [L, ...] -> [L]."""
    flat = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(deltas)]
    return sum((jnp.sum(jnp.square(x), axis=1) for x in flat), jnp.float32(0))


def _send(job: Job, place: jax.Array, steps: jax.Array, state: WaveState) -> tuple[Outcome, Room]:
    """Let the wave's clients go: store what they keep, sum or stack what is left to send."""
    local, outcome, room, norms = state
    done = place < job.queue.waiting
    outcome, dense = leave(job, outcome, place, done, local)
    if not job.uplink.later:
        weight, scale = job.queue.weight[place], scale_of(job, place)
        return add_dense_deltas(job, outcome, weight, done, dense, scale), room
    outcome = mark(outcome, place, done & ~jnp.isfinite(norms))
    if not job.uplink.whole:
        return _send_scaled(job, steps, place, done, norms, dense, outcome, room), room
    sizes = room_sizes(most_batches(job.work, job.population))
    which = (steps > jnp.array(sizes[:-1], jnp.int32)).sum() if len(sizes) > 1 else 0
    branches = [partial(_send_whole, job, size) for size in sizes]
    return jax.lax.switch(which, branches, place, done, dense, room.batch.ids, _sent(room), outcome), room


def _sent(room: Room) -> PyTree:
    """What is sent for each row, leaves [L, T, B, ...]."""
    return room.rows.values if isinstance(room.sent, tuple) and room.sent == () else room.sent


def _send_scaled(
    job: Job,
    steps: jax.Array,
    place: jax.Array,
    done: jax.Array,
    norms: jax.Array,
    dense: PyTree,
    outcome: Outcome,
    room: Room,
) -> Outcome:
    """Scale each lane's update by what its norm and its loss ask for, and add it batch by batch."""
    transform, squared = job.uplink.transform, norms + _squared(dense)
    if transform is None or transform.scale is None:
        factor = jnp.ones_like(squared)
    else:
        factor = jax.vmap(transform.scale)(squared)
    outcome, weight = _weigh(job, outcome, place, done, squared * jnp.square(factor))
    scale = scale_of(job, place)
    factor = factor if scale is None else factor * scale
    outcome = add_dense_deltas(job, outcome, weight, done, dense, factor)

    def add(t: jax.Array, outcome: Outcome) -> Outcome:
        ids, deltas = jax.tree.map(lambda x: x[:, t], (room.batch.ids, _sent(room)))
        return add_row_deltas(job, outcome, weight, ids, deltas, scale=factor)

    return jax.lax.fori_loop(0, steps, add, outcome)


def _weigh(
    job: Job, outcome: Outcome, place: jax.Array, done: jax.Array, squared: jax.Array
) -> tuple[Outcome, jax.Array]:
    """Weights float32[L] of the lanes' clients; those that go by losses leave their fact in the totals."""
    weight, rule = job.queue.weight[place], job.uplink.aggregator.by_loss
    if rule is None:
        return outcome, weight
    factor, fact = jax.vmap(rule)(mean_losses(outcome.heard.at[place].get(mode="clip")), squared)
    facts = outcome.totals.facts + jnp.where(done, weight * fact, 0.0).sum()
    return outcome._replace(totals=outcome.totals._replace(facts=facts)), weight * factor


def room_sizes(most: int) -> list[int]:
    """The static sizes to which a room of T batches is cut: T, T/2, ..., 1, ascending.

    Args:
        most: T.

    Returns:
        at most log2(T) + 2 sizes.

    Example:
        >>> room_sizes(10)
        [1, 2, 3, 5, 10]
    """
    sizes = {most}
    while most > 1:
        most = -(-most // 2)
        sizes.add(most)
    return sorted(sizes)


def _send_whole(
    job: Job,
    size: int,
    place: jax.Array,
    done: jax.Array,
    dense: PyTree,
    ids: jax.Array,
    deltas: PyTree,
    outcome: Outcome,
) -> Outcome:
    """Make each lane's whole update of the first `size` batches of the room, transform it and send it."""
    # the room beyond is of an earlier wave
    trained = jnp.arange(size)[None, :] < job.queue.batches[place][:, None]
    ids = jnp.where(trained[..., None], ids[:, :size], num_rows(job.server.tables))
    deltas = jax.tree.map(lambda x: jnp.where(expand(trained, x[:, :size]), x[:, :size], 0), deltas)
    ids, deltas = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), (ids, deltas))
    weight = job.queue.weight[place]
    update = Update(dense, ids, deltas, weight)
    if job.uplink.transform is not None:
        outcome, update = _transform(job, job.uplink.transform, place, done, update, outcome)
    if job.uplink.aggregator.stacked:
        return outcome._replace(totals=_stack(outcome.totals, place, done, update))
    items = num_rows(job.server.tables)
    present = jnp.where(done[:, None], update.ids, items)  # a transform may make anything of an empty update
    sent = jax.tree.map(lambda x: jnp.where(expand(present < items, x), x, 0.0), update.rows)
    squared = jax.vmap(squared_norm)(update._replace(rows=sent))
    outcome, weight = _weigh(job, outcome, place, done, squared)
    scale = scale_of(job, place)
    outcome = add_dense_deltas(job, outcome, weight, done, update.shared, scale)
    return add_row_deltas(job, outcome, weight, present, sent, scale)


def _transform(
    job: Job, transform: Transform, place: jax.Array, done: jax.Array, update: Update, outcome: Outcome
) -> tuple[Outcome, Update]:
    """What each lane's client makes of its update; those that are done remember what their transforms do."""
    keys, (server, axis) = jax.random.wrap_key_data(job.queue.noise[place]), held_models(job, place)
    if transform.remember is None:
        return outcome, jax.vmap(transform.update, in_axes=(0, 0, axis))(keys, update, server)
    old = jax.tree.map(lambda m: m.at[place].get(mode="clip"), outcome.memory)
    update, new = jax.vmap(transform.remember, in_axes=(0, 0, 0, axis))(keys, update, old, server)
    at = jnp.where(done, place, job.queue.batches.shape[0])
    memory = jax.tree.map(lambda m, x: m.at[at].set(x, mode="drop"), outcome.memory, new)
    return outcome._replace(memory=memory), update


def _stack(stack: Stack, place: jax.Array, done: jax.Array, update: Update) -> Stack:
    """Put updates in their places; a client's ids may repeat, and then add up."""
    at = jnp.where(done, place, stack.sent.shape[0])
    shared = jax.tree.map(lambda s, d: s.at[at].set(d, mode="drop"), stack.server.shared, update.shared)
    rows = jax.tree.map(
        lambda s, d: s.at[at[:, None], update.ids].add(d, mode="drop"), stack.server.tables, update.rows
    )
    return stack._replace(
        server=stack.server._replace(shared=shared, tables=rows),
        sent=stack.sent.at[at].set(done, mode="drop"),
        touched=stack.touched.at[at[:, None], update.ids].set(True, mode="drop"),
    )
