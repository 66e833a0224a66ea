"""Rounds of an algorithm that trains the whole catalogue at once: its states, and the mini-batches behind them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.client.population import Population, build
from fedjax_rec.types import Algorithm, RoundInfo, State

KEY = jax.random.key(3)
ITEMS = 23
HISTORIES = (9, 1, 5, 0, 3, 7)  # client 3 has no data

Batches = dict[int, list[list[tuple[int, float]]]]  # by client: mini-batches of items, each with its label


def population() -> Population:
    """Six clients, the longest of whom asks for more negatives than there are."""
    random = np.random.default_rng(0)
    items = np.concatenate([random.permutation(ITEMS)[:n] for n in HISTORIES])
    return build(np.concatenate([[0], np.cumsum(HISTORIES)]), items, None, ITEMS)


def play(
    algorithm: Algorithm, size: int, rounds: int = 3
) -> tuple[list[State], list[RoundInfo], list[Batches]]:
    """States, the first included, reports, and each round's mini-batches of `size` examples."""
    people = population()
    states, infos, drawn = [algorithm.init(KEY, people)], [], []
    one_round = jax.jit(algorithm.round)
    for turn in range(rounds):
        state, info = one_round(KEY, states[-1], people)
        states.append(state)
        infos.append(info)
        drawn.append(_draw(algorithm, people, turn, size))
    return states, infos, drawn


def _draw(algorithm: Algorithm, people: Population, turn: int, size: int) -> Batches:
    ids = jnp.array([n for n, length in enumerate(HISTORIES) if length])
    clients = name_clients(jax.random.fold_in(stream(KEY, "client"), turn), ids, people)
    cut = jax.jit(jax.vmap(algorithm.work.batches.batch, in_axes=(0, None, None)))
    data = jax.tree.map(np.asarray, cut(clients, people, jnp.int32(0)).data)
    return {n: _deal(jax.tree.map(lambda x, i=i: x[i], data), size) for i, n in enumerate(ids.tolist())}


def _deal(data: Any, size: int) -> list[list[tuple[int, float]]]:
    held = np.flatnonzero(data["mask"])
    held = held[np.argsort(data["order"][held])]
    pairs = [(int(item), float(data["label"][item])) for item in held]
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def double(leaves: Any) -> Any:
    """The same leaves in float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), leaves)
