"""Full ranking of all MovieLens-1M users on device, after compilation: ranks, top-10 lists, and their floor.

    python -m experiments.benchmarks.ranking [--data-dir DIR] [--json FILE]

About 20 seconds on two cores. Scores are those of a matrix factorisation with D = 64 and item biases, in float32;
the rivals of 6,040 test items among 3,706 items are counted exactly, seen items left out, and so are those among
the candidates. The floor computes the scores alone, in the same blocks, and drops them. The aim is 100 ms, the
moonshot 40 ms; what to expect stands in the README beside this file.
Without `--data-dir` histories are drawn with MovieLens-1M's lengths.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

import fedjax_rec as fr
from experiments.benchmarks.task import draw
from fedjax_rec.data.interactions import Dataset, Interactions
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.counting import check_scores
from fedjax_rec.evaluation.ranking import make_ranker
from fedjax_rec.evaluation.recommend import make_recommender
from fedjax_rec.evaluation.user_blocks import make_user_blocks
from fedjax_rec.training.checkpoints.versions import versions

DIM, SEED, AIM = 64, 0, 100.0
Params = tuple[jax.Array, jax.Array, jax.Array]


def load(data_dir: str | None) -> Split:
    """MovieLens-1M's leave-one-out split, or one of drawn histories with its lengths.

    Args:
        data_dir: folder that holds `ml-1m-loo`; None draws.

    Returns:
        the split, with 99 candidates a user.
    """
    if data_dir is not None:
        return fr.leave_one_out(fr.load_dataset("ml-1m-loo", data_dir=Path(data_dir)))
    task = draw(6040, 3706)
    users = np.repeat(np.arange(6040, dtype=np.int32), np.diff(task.offsets))
    table = Interactions(users, task.items, None, None, np.arange(6040), np.arange(3706))
    return fr.leave_one_out(Dataset(task.name, table), order="file")


def score_block(params: Params, users: jax.Array) -> jax.Array:
    """Scores [U, I] of a matrix factorisation.

    Args:
        params: vectors of users [N, D] and items [I, D], biases of items [I].
        users: int32[U].

    Returns:
        the scores.
    """
    vectors, items, bias = params
    return vectors[users] @ items.T + bias[None, :]


def make_floor(split: Split) -> Callable[[Params], jax.Array]:
    """The scores alone, in the blocks of the ranker.

    Args:
        split: the split.

    Returns:
        parameters -> one score of each user.
    """
    user_blocks = make_user_blocks(split, "test", None)
    num_items = split.num_items

    @jax.jit
    def floor(params: Params) -> jax.Array:
        return jax.lax.map(
            lambda block: check_scores(score_block(params, block.users), block.users, num_items)[:, 0],
            user_blocks.blocks,
        )

    return floor


def clock(function: Callable[[Params], Any], params: Params, repeats: int) -> dict[str, float]:
    """Milliseconds a call, compilation apart.

    Args:
        function: what is measured.
        params: its argument.
        repeats: calls on the clock.

    Returns:
        median, min and max in milliseconds, and the seconds of the first call.
    """
    tick = time.perf_counter()
    jax.block_until_ready(function(params))
    first, times = time.perf_counter() - tick, []
    for _ in range(repeats):
        tick = time.perf_counter()
        jax.block_until_ready(function(params))
        times.append(1e3 * (time.perf_counter() - tick))
    return {"median_ms": median(times), "min_ms": min(times), "max_ms": max(times), "first_call_s": first}


def run(split: Split, repeats: int) -> dict[str, Any]:
    """Measure ranks, lists and the floor.

    Args:
        split: the split.
        repeats: calls on the clock.

    Returns:
        the report.
    """
    keys = jax.random.split(jax.random.key(SEED), 3)
    shapes = (split.num_users, DIM), (split.num_items, DIM), (split.num_items,)
    vectors, items, bias = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    params = (vectors, items, bias)
    cases: dict[str, Callable[[Any], Any]] = {
        "ranks": make_ranker(split, score_block),
        "top-10 lists": make_recommender(split, score_block, 10),
        "scores alone": make_floor(split),
    }
    results = {name: clock(function, params, repeats) for name, function in cases.items()}
    return {
        "task": {"data": split.name, "users": split.num_users, "items": split.num_items, "dim": DIM},
        "results": results,
        "aim_ms": AIM,
        "reached": results["ranks"]["median_ms"] <= AIM,
        "versions": versions(),
        "machine": {
            "cores": os.cpu_count(),
            "devices": [device.device_kind for device in jax.devices()],
            "processor": platform.machine(),
        },
    }


def main() -> None:
    """Read the command line, measure, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=100)
    )
    parser.add_argument("--data-dir", help="folder that holds ml-1m-loo; without it histories are drawn")
    parser.add_argument("--repeats", type=int, default=50, help="calls on the clock (default: 50)")
    parser.add_argument("--json", help="write the report to this file")
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error(f"--repeats must be at least 1, not {given.repeats}")
    try:
        split = load(given.data_dir)
    except (ValueError, OSError) as problem:
        parser.error(str(problem))
    report = run(split, given.repeats)
    users, items = split.num_users, split.num_items
    print(f"{split.name}: {users:,} users x {items:,} items, {len(split.items):,} training events, D = {DIM}")
    print(f"{'':<14} {'median':>9} {'min':>9} {'max':>9}   first call")
    for name, result in report["results"].items():
        times = " ".join(f"{result[part]:>6.1f} ms" for part in ("median_ms", "min_ms", "max_ms"))
        print(f"{name:<14} {times}   {result['first_call_s']:.2f} s")
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
