"""Evaluation of a federated algorithm: every client scores all items with its own and the server's leaves."""

from collections.abc import Callable

import jax

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.ranking import Ranks, make_ranker
from fedjax_rec.types import Algorithm, PyTree, Server, State


def make_evaluator(algorithm: Algorithm, split: Split, *, which: str = "test") -> Callable[[State], Ranks]:
    """Build a compiled function from a state to the rank of each user's held-out item.

    Args:
        algorithm: gives `score` for one client; it is vmapped over blocks of clients.
        split: names the held-out items, the seen items to mask and the candidates.
        which: "test" or "validation".

    Returns:
        State -> Ranks, float32[N] each.

    Raises:
        ValueError: if the algorithm's model does not score items.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> algorithm = fr.fedmf(dim=4)
        >>> state = algorithm.init(jax.random.key(0), fr.population_of(split))
        >>> make_evaluator(algorithm, split)(state).full.shape == (split.num_users,)
        True
    """
    score = algorithm.score
    if score is None:
        raise ValueError("this algorithm's model has no `score`, so it cannot rank items")

    def score_block(params: tuple[PyTree, Server], users: jax.Array) -> jax.Array:
        private, server = params
        block = jax.tree.map(lambda p: p[users], private)
        return jax.vmap(score, in_axes=(0, None))(block, server)

    rank = make_ranker(split, score_block, which=which)
    return lambda state: rank((state.private, state.server))
