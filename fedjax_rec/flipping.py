"""Label flip: malicious clients that train as all others do, on the opposite of their labels."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.adversary import distinct_ids
from fedjax_rec.population import Population
from fedjax_rec.types import Adversary, Batch, Client, ClientWork


def label_flip(
    clients: Sequence[int] | np.ndarray,
    *,
    num_negatives: int | None = None,
    scale: tuple[float, float] = (1.0, 5.0),
) -> Adversary:
    """Label flip: clients that train honestly on the opposite of their labels.

    * ratings: r becomes least + most - r;
    * batches of the whole catalogue: a label y of an example becomes 1 - y;
    * batches of P positives with n negatives each: every positive changes places with the first of its negatives.
      The other n - 1 negatives are left out: as positives, which they became, a batch has no room for them.

    Args:
        clients: int[M], their ids.
        num_negatives: n, of algorithms with sampled negatives, as they were told themselves.
        scale: the least and the most rating.

    Returns:
        an adversary.

    Raises:
        ValueError: if there is no client, or one twice or below 0; in the first round, if batches are of sampled
            negatives and `num_negatives` is missing or does not fit.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import run, tiny_population
        >>> algorithm = fr.fedmf(dim=2, cohort=9, num_negatives=4, adversary=label_flip([0], num_negatives=4))
        >>> int(run(algorithm, tiny_population()).round)
        2

    Source: Biggio et al. 2012, "Poisoning attacks against support vector machines"; as an attack on federated
    learning, Tolpegin et al. 2020, "Data poisoning attacks against federated learning systems".
    """
    ids = distinct_ids(clients)

    def wrap(work: ClientWork) -> ClientWork:
        def batch(client: Client, population: Population, t: Any) -> Batch:
            own = work.batches.batch(client, population, t)
            flipped = _flip(own, population.num_items, num_negatives, scale)
            bad = jnp.isin(client.id, jnp.asarray(ids))
            return jax.tree.map(lambda new, old: jnp.where(bad, new, old), flipped, own)

        return work._replace(batches=work.batches._replace(batch=batch), sums=None)

    return Adversary("label_flip", wrap)


def _flip(batch: Batch, items: int, negatives: int | None, scale: tuple[float, float]) -> Batch:
    """The batch with the opposite labels."""
    data = batch.data
    if "rating" in data:
        return batch._replace(data=data | {"rating": (sum(scale) - data["rating"]) * data["mask"]})
    if "label" in data:
        return batch._replace(data=data | {"label": (1.0 - data["label"]) * data["mask"]})
    size = batch.ids.shape[0]
    if negatives is None or size % (1 + negatives):
        raise ValueError(
            f"num_negatives={negatives} does not divide a batch of {size} into positives and their negatives; "
            "give the algorithm's own"
        )
    positives = size // (1 + negatives)
    drawn = batch.ids[positives:].reshape(positives, negatives)
    both = (batch.ids[:positives] < items) & (
        drawn[:, 0] < items
    )  # else there is nothing to change places with
    rest = jnp.full_like(drawn, items).at[:, 0].set(jnp.where(both, batch.ids[:positives], items))
    ids = jnp.concatenate([jnp.where(both, drawn[:, 0], items), rest.reshape(-1)])
    return Batch(ids, data | {"mask": (ids < items).astype(jnp.float32)})
