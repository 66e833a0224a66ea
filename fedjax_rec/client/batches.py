"""Local batches: how one client's examples are cut, shuffled and completed with negatives.

A batch is a pure function of (client, t), with no host work and no sort. Negatives follow one rule, used by the
engine, its references and its benchmarks alike: they are drawn once per round through a keyed permutation of the
catalogue, so they are **distinct**, and those that fall on one of the client's own *training* positives are
masked out (never replaced). Held-out items are not special: they can be drawn, as they must be, for a protocol
that spares them leaks the answer (`Split.negatives` "paper-leaky" does so, to reproduce papers).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rec.client.population import Population, contains
from fedjax_rec.errors import check_arguments
from fedjax_rec.rows.permutation import domain, permute_index, shuffle_index
from fedjax_rec.rows.tables import read_rows, set_rows
from fedjax_rec.types import Batch, Client, LocalBatches


def positives_per_batch(batch_size: int, num_negatives: int) -> int:
    """Positives in a local batch whose size counts positives and negatives together.

    Args:
        batch_size: wanted number of examples.
        num_negatives: negatives per positive.

    Returns:
        batch_size / (1 + num_negatives), rounded to whole positives, at least 1.

    Example:
        >>> positives_per_batch(64, 4)
        13
    """
    return max(1, round(batch_size / (1 + num_negatives)))


def with_negatives(batch_size: int = 64, num_negatives: int = 4, *, labels: bool = False) -> LocalBatches:
    """Cut a history into batches of P positives and P x num_negatives sampled negatives.

    The first P slots of a batch are positives, the rest their negatives, in order; `data["mask"]` (float32[B])
    is 0 for empty slots.

    Args:
        batch_size: examples in a batch, positives and negatives together; rounded to whole positives.
        num_negatives: negatives drawn per positive.
        labels: whether `data["label"]` (float32[B]) says so too: 1 for a positive's slot, 0 for a negative's.

    Returns:
        local batches with B = P (1 + num_negatives).

    Example:
        >>> with_negatives(10, 4).num_batches(jnp.int32(5)).item()
        3
    """
    check_arguments(with_negatives, locals())
    positives = positives_per_batch(batch_size, num_negatives)

    def num_batches(num_examples: jax.Array) -> jax.Array:
        return -(-num_examples // positives)

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        # ids [B]: P own items, then their P x num_negatives draws of this round
        own = _own_items(client, population, t * positives + jnp.arange(positives))
        width = positives * num_negatives
        draws = _until_domain(t, width, num_negatives, population) * width + jnp.arange(width)
        negatives = _negatives(client, population, draws, num_negatives)
        ids = jnp.concatenate([own, negatives])
        data = {"mask": (ids < population.num_items).astype(jnp.float32)}
        if labels:
            data["label"] = (jnp.arange(len(ids)) < positives).astype(jnp.float32)
        return Batch(ids, data)

    return LocalBatches(num_batches, batch)


def rated(batch_size: int = 64) -> LocalBatches:
    """Cut a rated history into batches; `data` holds `rating` and `mask`, float32[B].

    Args:
        batch_size: examples in a batch.

    Returns:
        local batches with B = batch_size.

    Example:
        >>> rated(10).num_batches(jnp.int32(11)).item()
        2
    """
    check_arguments(rated, locals())

    def num_batches(num_examples: jax.Array) -> jax.Array:
        return -(-num_examples // batch_size)

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        index = t * batch_size + jnp.arange(batch_size)
        ids = _own_items(client, population, index)
        mask = (ids < population.num_items).astype(jnp.float32)
        position = client.offset + _shuffled(client, population, index)
        rating = read_rows(population.examples["ratings"], position)
        return Batch(ids, {"rating": rating * mask, "mask": mask})

    return LocalBatches(num_batches, batch)


def examples(batch_size: int = 32) -> LocalBatches:
    """Cut examples of any kind (images, features and targets) into batches, in a new order each round.

    No item row is touched. `data` has the batch's part of each of the population's leaves, [B, ...], and `mask`
    float32[B], which is 0 for the empty slots of a client's last batch; these are 0 in the leaves, too.

    Args:
        batch_size: examples in a batch, at least 1.

    Returns:
        local batches with B = batch_size.

    Raises:
        ValueError: if the size is below 1.

    Example:
        >>> population = Population.from_arrays({"x": jnp.arange(3.0)}, jnp.array([3]))
        >>> client = Client(jnp.int32(0), jnp.int32(0), jnp.int32(3), jnp.zeros(2, jnp.uint32))
        >>> batch = examples(2).batch(client, population, jnp.int32(1))
        >>> batch.data["mask"].tolist(), batch.data["x"].shape, batch.ids.shape
        ([1.0, 0.0], (2,), (0,))
    """
    check_arguments(examples, locals())
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")

    def num_batches(num_examples: jax.Array) -> jax.Array:
        return -(-num_examples // batch_size)

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        index = t * batch_size + jnp.arange(batch_size)
        is_example = index < client.num_examples
        position = client.offset + _shuffled(client, population, index)
        position = jnp.where(is_example, position, population.size.num_events)
        data = read_rows(population.examples, position)
        return Batch(jnp.zeros(0, jnp.int32), {**data, "mask": is_example.astype(jnp.float32)})

    return LocalBatches(num_batches, batch)


def _shuffled(client: Client, population: Population, index: jax.Array) -> jax.Array:
    """Which of the client's examples stand at some indices of this round's order, int32[n]."""
    return shuffle_index(client.key, index, client.num_examples, population.max_examples)


def _own_items(client: Client, population: Population, index: jax.Array) -> jax.Array:
    """The client's items at some indices of this round's order, int32[n]; I beyond its examples."""
    position = client.offset + _shuffled(client, population, index)
    items = read_rows(population.examples["items"], position)
    return jnp.where(index < client.num_examples, items, population.num_items)


def _negatives(client: Client, population: Population, index: jax.Array, num_negatives: int) -> jax.Array:
    """The client's draws of some indices, int32[n]; I beyond its last one and where it has the item."""
    examples = _until_domain(client.num_examples, num_negatives, num_negatives, population)
    count = jnp.minimum(examples * num_negatives, domain(population.num_items))
    drawn = permute_index(client.key, index, population.num_items)
    is_negative = (index < count) & ~contains(population, client, drawn)
    return jnp.where(is_negative, drawn, population.num_items)


def _until_domain(number: jax.Array, factor: int, num_negatives: int, population: Population) -> jax.Array:
    """The number, or less where draws past 32 bits are asked for: there are none past the domain anyway."""
    if population.max_examples * num_negatives < 2**31:
        return number
    return jnp.minimum(number, -(-domain(population.num_items) // factor))


def catalogue(num_negatives: int = 4) -> LocalBatches:
    """One local batch that is the whole catalogue, for work whose own gradient is dense in the rows.

    Row i stands in slot i. The `data`, over the I items:

    * `label` float32[I]: 1 for the client's training positives;
    * `mask` float32[I]: 1 for its examples, which are its positives and this round's negatives, the same ones as
      `with_negatives` draws;
    * `order` int32[I]: the rank of each example in a keyed random order of the client's examples, from 0, and I
      elsewhere. Mini-batch b of size B holds the examples with `order // B == b`.

    Memory is lanes x I x D, whatever the number of clients.

    Args:
        num_negatives: negatives drawn per positive.

    Returns:
        local batches with B = I; one for each client that has data.

    Example:
        >>> catalogue().num_batches(7), catalogue().num_batches(0)
        (1, 0)
    """
    check_arguments(catalogue, locals())

    def num_batches(num_examples: jax.Array) -> jax.Array:
        return (num_examples > 0) * 1

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        del t  # always 0
        items = population.num_items
        longest = population.max_examples
        # the items of all local batches at once, empty slots among them
        own = _own_items(client, population, jnp.arange(longest))
        draws = jnp.arange(min(domain(items), longest * num_negatives))
        negatives = _negatives(client, population, draws, num_negatives)
        # and what they are, by item [I]
        label = set_rows(jnp.zeros(items), own, 1.0)
        mask = set_rows(label, negatives, 1.0)
        ids = jnp.arange(items)
        return Batch(ids, {"label": label, "mask": mask, "order": _random_ranks(client.key, mask)})

    return LocalBatches(num_batches, batch)


def mini_batches(batch: Batch, size: int) -> Callable[[jax.Array], jax.Array]:
    """Cut the examples of a batch of `catalogue` into mini-batches, in their keyed random order.

    Args:
        batch: of one client.
        size: examples in a mini-batch, B.

    Returns:
        number of the mini-batch int32[] -> its items int32[B], I in its empty slots.

    Example:
        >>> data = {"mask": jnp.array([1.0, 0, 1, 1]), "order": jnp.array([2, 4, 0, 1])}
        >>> cut = mini_batches(Batch(jnp.arange(4), data), 2)
        >>> cut(jnp.int32(0)).tolist(), cut(jnp.int32(1)).tolist()
        ([2, 3], [0, 4])
    """
    empty = batch.ids.shape[0]
    # `order` is one to one on the examples, so that inverting it needs no sort
    ordered = set_rows(jnp.full(empty, empty), batch.data["order"], jnp.arange(empty))
    examples = batch.data["mask"].sum().astype(jnp.int32)

    def items(number: jax.Array) -> jax.Array:
        rank = number * size + jnp.arange(size)
        return jnp.where(
            rank < examples, ordered.at[rank].get(mode="clip", wrap_negative_indices=False), empty
        )

    return items


@jax.custom_batching.custom_vmap
def largest_of_lanes(count: jax.Array) -> jax.Array:
    """The largest number of all lanes: a loop's bound that they share, for a body that does nothing past its own.

    Under `vmap` a loop whose bound differs between lanes copies all that it carries in each step.

    Args:
        count: int32[] of this lane.

    Returns:
        int32[]; without `vmap` the number itself.

    Example:
        >>> jax.vmap(lambda n: n + 10 * largest_of_lanes(n))(jnp.array([1, 3, 2])).tolist()
        [31, 33, 32]
    """
    return count


@largest_of_lanes.def_vmap
def _share_largest(axis_size: int, in_batched: list[bool], count: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size
    return largest_of_lanes(count.max(initial=0) if in_batched[0] else count), False


def _random_ranks(key: jax.Array, mask: jax.Array) -> jax.Array:
    """Ranks 0, 1, ... of the items with mask 1 in a keyed random order, int32[I]; I where the mask is 0."""
    size = mask.shape[0]
    # all items in a random order; not by the negatives' key, else they would be trained in the order of drawing
    sequence = permute_index(key ^ jnp.uint32(0x5BD1E995), jnp.arange(domain(size)), size)
    # along it the examples are counted, and each rank is written where its item stands
    is_example = read_rows(mask, sequence) > 0
    ranks = jnp.where(is_example, jnp.cumsum(is_example) - 1, size)
    return set_rows(jnp.full(size, size), sequence, ranks)


def in_order(batch_size: int = 64) -> LocalBatches:
    """Cut a rated history in the order of the data, the same in every round, for rules that depend on the order.

    Args:
        batch_size: examples in a batch.

    Returns:
        local batches with B = batch_size; `data` holds `rating` and `mask`, float32[B].

    Example:
        >>> in_order(10).num_batches(jnp.int32(11)).item()
        2
    """
    check_arguments(in_order, locals())

    def num_batches(num_examples: jax.Array) -> jax.Array:
        return -(-num_examples // batch_size)

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        index = t * batch_size + jnp.arange(batch_size)
        is_example = index < client.num_examples
        items, ratings = (population.examples[name] for name in ("items", "ratings"))
        position = jnp.where(is_example, client.offset + index, items.shape[0])
        ids = items.at[position].get(
            mode="fill", wrap_negative_indices=False, fill_value=population.num_items
        )
        rating = read_rows(ratings, position)
        return Batch(ids, {"rating": rating, "mask": is_example.astype(jnp.float32)})

    return LocalBatches(num_batches, batch)


def rated_with_negatives(batch_size: int = 64, num_negatives: int = 1) -> LocalBatches:
    """Cut a rated history into batches of P ratings and P x num_negatives sampled items without one.

    The slots, and the items in them, are those of `with_negatives`.

    Args:
        batch_size: examples in a batch, rated and sampled together; in whole ratings.
        num_negatives: sampled items per rating; 0 samples none.

    Returns:
        local batches with B = P (1 + num_negatives); `data` holds, float32[B], `rating` (0 for a sampled item),
        `own` (1 for a rated item) and `mask` (1 for either, 0 for an empty slot).

    Example:
        >>> rated_with_negatives(10, 1).num_batches(jnp.int32(11)).item()
        3
    """
    check_arguments(rated_with_negatives, locals())
    positives = positives_per_batch(batch_size, num_negatives)
    sampled = with_negatives(batch_size, num_negatives)
    ratings = rated(positives)

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        own = ratings.batch(
            client, population, t
        )  # the first P slots of `sampled`, which shuffles as it does
        examples = sampled.batch(client, population, t) if num_negatives else own
        zeros = jnp.zeros(positives * num_negatives)
        mask = (examples.ids < population.num_items).astype(jnp.float32)
        rating, is_own = (jnp.concatenate([own.data[name], zeros]) for name in ("rating", "mask"))
        return Batch(examples.ids, {"rating": rating, "own": is_own, "mask": mask})

    return sampled._replace(batch=batch)


def numbered(batches: LocalBatches) -> LocalBatches:
    """Put its number into each batch, for work that must know where a local epoch begins.

    Args:
        batches: any local batches.

    Returns:
        the same batches; `data` holds `t` besides, int32[B], each batch's number within the epoch.

    Example:
        >>> from fedjax_rec.client.keys import name_clients
        >>> from fedjax_rec.testing import tiny_population
        >>> population = tiny_population()
        >>> client = jax.tree.map(lambda x: x[0], name_clients(jax.random.key(0), jnp.array([0]), population))
        >>> numbered(in_order(2)).batch(client, population, jnp.int32(3)).data["t"].tolist()
        [3, 3]
    """

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        plain = batches.batch(client, population, t)
        return plain._replace(data={**plain.data, "t": jnp.full(plain.ids.shape, t, jnp.int32)})

    return batches._replace(batch=batch)


def first_batches(batches: LocalBatches, max_batches: int) -> LocalBatches:
    """Leave out what comes after each client's first batches.

    Args:
        batches: any local batches.
        max_batches: how many of a client's batches remain.

    Returns:
        the same batches, but not more than `max_batches` of a client.

    Example:
        >>> first_batches(in_order(10), 3).num_batches(25), first_batches(in_order(10), 3).num_batches(99)
        (3, 3)
    """

    def num_batches(num_examples: jax.Array) -> jax.Array:
        count = batches.num_batches(num_examples)
        return count - (count > max_batches) * (count - max_batches)  # the minimum, also of Python integers

    return batches._replace(num_batches=num_batches)
