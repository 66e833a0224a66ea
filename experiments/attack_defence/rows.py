"""What the rows of an update tell of a client's items, on MovieLens 100K, and what hiding them costs.

    python -m experiments.attack_defence.rows --data-dir DATA            # two minutes on an idle core
    python -m experiments.attack_defence.rows --smoke                    # a tiny population: it proves nothing

FedMF with four negatives for each positive, after 20 rounds. For some clients the updates of eight rounds are
made, hidden, and attacked: by the rows of one round, by the rows that came up in every round, and the same with
rows of zeros left out; by the sign of the rows; and by IMIA. The F1 is of the client's training items, mean over
clients.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_rec as fr
from fedjax_rec.attacks.inference import drop_empty_slots, guess_by_rows, guess_by_signs, imia, score_guess
from fedjax_rec.federation.blocks import run_block
from fedjax_rec.federation.traffic import count_traffic
from fedjax_rec.transforms.base import Transform
from fedjax_rec.transforms.row_hiding import all_rows, pseudo_items, random_rows
from fedjax_rec.types import State, Update

Sent = list[tuple[np.ndarray, np.ndarray]]  # a client's rounds, ids and rows


def hidings(items: int) -> dict[str, Transform | None]:
    """The transforms to compare."""
    return {
        "none": None,
        "pseudo-items, rho 1, fresh": pseudo_items(1.0, fixed=False, pseudo_scale=1.0),
        "pseudo-items, rho 1, fixed, zeros": pseudo_items(1.0),
        "pseudo-items, rho 1, fixed": pseudo_items(1.0, pseudo_scale=1.0),
        "pseudo-items, rho 3, fixed": pseudo_items(3.0, pseudo_scale=1.0),
        "randomised response .9 / .3, fixed": random_rows(0.9, 0.3, items, pseudo_scale=1.0),
        "all rows": all_rows(items, pseudo_scale=1.0),
    }


def updates_of(
    algorithm: fr.types.Algorithm, state: State, population: fr.Population, client: int, rounds: int = 8
) -> list[Update]:
    """What a client would send in several rounds, in as many slots as there are items."""
    found = []
    for number in range(rounds):
        later = state._replace(round=jnp.int32(number))
        sent = fr.client_update(algorithm, jax.random.key(1), later, population, client)
        free = population.num_items - len(sent.ids)
        ids = jnp.pad(sent.ids, (0, free), constant_values=population.num_items)
        rows = jax.tree.map(lambda x, n=free: jnp.pad(x, [(0, n), *[(0, 0)] * (x.ndim - 1)]), sent.rows)
        found.append(sent._replace(ids=ids, rows=rows))
    return found


def hide(transform: Transform | None, updates: list[Update], state: State, client: int) -> Sent:
    """What the server sees of them."""
    items, key = len(state.server.tables["vector"]), jax.random.fold_in(jax.random.key(2), client)
    memory = None if transform is None or transform.init is None else transform.init(state.server)
    seen = []
    for number, sent in enumerate(updates):
        out, own = sent, jax.random.fold_in(key, number)
        if transform is not None and transform.update_with_state is not None:
            out, memory = _run(transform.update_with_state)(own, sent, memory, state.server)
        elif transform is not None:
            out = _run(transform.update)(own, sent, state.server)
        seen.append(drop_empty_slots(np.asarray(out.ids), np.asarray(out.rows["vector"]), items))
    return seen


@lru_cache(maxsize=32)
def _run(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled once."""
    return jax.jit(function)


def attack(seen: Sent, truth: np.ndarray, before: np.ndarray) -> list[float]:
    """F1 of five attackers: rows of one round, of all, of all by value, signs of rows, IMIA (one round each)."""
    ids, rows = seen[0]
    guesses = [
        guess_by_rows(seen[:1]),
        guess_by_rows(seen),
        guess_by_rows(seen, read_values=True),
        guess_by_signs(ids, rows),
        imia(before, ids, rows, share=0.2, learning_rate=1.0),
    ]
    return [score_guess(guess, truth).f1 for guess in guesses]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets")
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--smoke", action="store_true", help="a tiny population, two clients")
    given = parser.parse_args(arguments)
    if given.smoke:
        data = fr.data.synthetic(60, 50, seed=1, min_events=4, median_events=10)
    else:
        data = fr.load_dataset("ml-100k", data_dir=given.data_dir)
    population = fr.population_of(fr.leave_one_out(data))
    algorithm = fr.fedmf(
        dim=16, cohort=min(128, population.num_clients), num_negatives=4, learning_rate=0.05, item_bias=False,
        batch_size=4096, init_scale=0.4,
    )  # fmt: skip
    state = algorithm.init(jax.random.key(0), population)
    state, info = jax.jit(partial(run_block, algorithm, 20))(
        jax.random.key(0), state, population, jnp.int32(20)
    )
    chosen = np.linspace(0, population.num_clients - 1, 2 if given.smoke else given.clients).astype(int)
    print(
        "| hiding | KB up | rows, 1 round | rows, 8 rounds | 8, by value | signs | IMIA |\n"
        + "|---" * 7
        + "|"
    )
    offsets, items = np.asarray(population.offsets), np.asarray(population.examples["items"])
    made = {int(c): updates_of(algorithm, state, population, int(c)) for c in chosen}
    for name, transform in hidings(population.num_items).items():
        before = np.asarray(state.server.tables["vector"])
        found = [
            attack(hide(transform, sent, state, c), items[offsets[c] : offsets[c + 1]], before)
            for c, sent in made.items()
        ]
        kilobytes = count_traffic(state.server, info, None, transform).up / 1e3
        print(
            f"| {name} | {kilobytes:.1f} | " + " | ".join(f"{x:.3f}" for x in np.mean(found, axis=0)) + " |"
        )


if __name__ == "__main__":
    main()
