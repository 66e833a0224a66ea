"""FedRAP with and without the leak, beside a null model that only counts.

    python -m experiments.fedrap.run --data-dir DATA                           # ML-100K, 60 rounds, lambda 0
    python -m experiments.fedrap.run --data-dir DATA --independence 0.1        # the README's lambda

The null model learns nothing: it ranks a client's items by how rarely they were drawn as its negatives. The README
beside this file has the numbers to expect.
"""

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_rec as fr
from experiments.pfedrec.run import Best, arguments, measure, peak, row
from fedjax_rec.client.batches import catalogue
from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.data.splits import NEGATIVES, Split
from fedjax_rec.evaluation.evaluator import server_parameters
from fedjax_rec.evaluation.ranking import rank_split


def count_negatives(population: fr.Population, rounds: int, seed: int) -> jax.Array:
    """How often each item was drawn as each client's negative, as the clients of a run draw them.

    Args:
        population: N clients.
        rounds: T.
        seed: of the run.

    Returns:
        float32[N, I], 0 to T; T for a client's own positives.
    """
    key, ids = stream(jax.random.key(seed), "client"), jnp.arange(population.num_clients)
    batches = catalogue()

    def add(turn: jax.Array, counts: jax.Array) -> jax.Array:
        clients = name_clients(jax.random.fold_in(key, turn), ids, population)

        def mask(client: fr.types.Client) -> jax.Array:
            return batches.batch(client, population, jnp.int32(0)).data["mask"]

        return counts + jax.lax.map(mask, clients, batch_size=64)

    return jax.lax.fori_loop(0, rounds, add, jnp.zeros((population.num_clients, population.num_items)))


def rank_by_rarity(split: Split, rounds: int, seed: int) -> Best:
    """The null model: the rarer an item was a negative, the better.

    Args:
        split: with the sampler of negatives.
        rounds: T.
        seed: of the run.

    Returns:
        its test ranks; nothing is chosen by validation.
    """
    counts = jax.jit(count_negatives, static_argnums=(1, 2))(fr.population_of(split), rounds, seed)
    return Best(0.0, rounds, rank_split(lambda users: -counts[users], split))


def common_alone(algorithm: fr.types.Algorithm) -> fr.types.Algorithm:
    """The same training, ranked by the shared table alone: D_u is left out.

    Args:
        algorithm: FedRAP.

    Returns:
        the algorithm with another score.
    """
    score = algorithm.score
    assert score is not None  # noqa: S101 - for the type checker

    def without_own(private: dict, server: fr.Server) -> jax.Array:
        return score({**private, "vector": jnp.zeros_like(private["vector"])}, server)

    return algorithm._replace(score=without_own)


def main() -> None:
    """Print the table of the README."""
    parser = arguments(__doc__)
    parser.set_defaults(rounds=60, every=2)
    parser.add_argument("--independence", type=float, default=0.0)
    given = parser.parse_args()
    split = fr.leave_one_out(fr.load_dataset(given.dataset, data_dir=given.data_dir))
    algorithm = fr.fedrap(independence=given.independence)
    print("| negatives, ranked by | round | sampled HR@10 / NDCG@10 | full HR@10 / NDCG@10 |")
    for negatives in given.negatives or NEGATIVES:
        part = split._replace(negatives=negatives)
        points = {
            "D_u + C": server_parameters(algorithm),
            "C alone": server_parameters(common_alone(algorithm)),
        }
        curve: list[str] = []
        best = measure(
            algorithm,
            part,
            points,
            rounds=given.rounds,
            every=given.every,
            seed=given.seed,
            tell=curve.append,
        )
        for name, found in best.items():
            print(row(f"{negatives}, {name}", found))
        for rounds in (40, 60):
            print(row(f"{negatives}, rarity as a negative", rank_by_rarity(part, rounds, given.seed)))
        print("validation HR@10 of D_u + C:", " ".join(line.split()[-1] for line in curve[::2]))
        print(f"peak {peak():.2f} GiB, {int(np.sum(np.diff(part.offsets) > 0)):,} clients", flush=True)


if __name__ == "__main__":
    main()
