"""The grid: a setting, the attacks, the defences, and one run of each pair.

All runs share the clients' work (FedMF with BPR), the split, the 5 % of fake clients, the target, and the seed.
The server sums; what stands for a mean is multiplied by the cohort, so that all defences take alike steps.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_rec as fr
from fedjax_rec import attacks
from fedjax_rec.data.fake_users import with_fake_users
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation import make_exposure_ratio
from fedjax_rec.federation.blocks import run_block
from fedjax_rec.server import stacked as reducers
from fedjax_rec.transforms.base import Transform
from fedjax_rec.types import Adversary, Aggregator, Algorithm

RATE = 0.05  # of the honest clients


class Setting(NamedTuple):
    """What all runs of a grid share."""

    split: Split  # with the fakes at its end
    real: int  # users that are measured
    target: int
    cohort: int = 128
    every: int = 20  # rounds between two measurements
    times: int = 2
    seed: int = 0
    dim: int = 16

    @property
    def fakes(self) -> np.ndarray:
        """Ids of the malicious clients."""
        return np.arange(self.real, self.split.num_users)


class Defence(NamedTuple):
    """How a server aggregates."""

    aggregator: Aggregator | str = "sum"
    mean: bool = False  # whether the result stands for a mean
    transform: Transform | None = None


# label flip trains as the others do; the other rates were chosen by hand, without defence, on another target
ATTACKS: dict[str, Callable[[Setting], Adversary | None]] = {
    "none": lambda _: None,
    "EB": lambda s: _colluding(s, attacks.explicit_boosting, learning_rate=10.0),
    "PIECK-IPE": lambda s: _colluding(s, attacks.pieck_ipe, learning_rate=100.0),
    "PIECK-UEA": lambda s: _colluding(s, attacks.pieck_uea, learning_rate=10.0, popular=_popular(s)),
    "FedRecAttack": lambda s: _colluding(s, attacks.fedrecattack, learning_rate=1.0, rows=_rows(s)),
    "A-hum": lambda s: _colluding(s, attacks.a_hum, learning_rate=0.3),
    "label flip": lambda s: attacks.label_flip(s.fakes, num_negatives=1),
}
DEFENCES: dict[str, Callable[[Setting], Defence]] = {
    "none": lambda _: Defence(),
    # whole updates to the norm of the median honest client, rows to that of the 90 % quantile, or less
    "norm bound": lambda _: Defence(transform=fr.transforms.clip(0.25)),
    "row norm bound": lambda _: Defence(reducers.row_norm_bound(0.04)),
    "row norm bound, 3/4": lambda _: Defence(reducers.row_norm_bound(0.03)),
    "row norm bound, half": lambda _: Defence(reducers.row_norm_bound(0.02)),
    "multi-Krum": lambda s: Defence(reducers.multi_krum(s.cohort // 10), mean=True),
    "trimmed .3, touchers": lambda _: Defence(reducers.trimmed_mean(0.3, over="touchers"), mean=True),
    "median, touchers": lambda _: Defence(reducers.median(over="touchers"), mean=True),
    "centred clipping": lambda _: Defence(reducers.centred_clipping(0.25, iterations=3), mean=True),
    "median, cohort": lambda _: Defence(reducers.median(), mean=True),
}


def _colluding(setting: Setting, attack: Callable[..., Any], **settings: Any) -> Adversary:
    return attacks.colluding(attack([setting.target], **settings), setting.fakes)


def _popular(setting: Setting) -> int:
    return min(150, setting.split.num_items // 4)


def _rows(setting: Setting) -> int:
    return min(60, setting.split.num_items // 4)


def make_setting(split: Split, *, share: float = 0.05, seed: int = 0, **changes: Any) -> Setting:
    """Add fakes, and draw a target among the colder half of the items."""
    counts = np.bincount(split.items, minlength=split.num_items)
    cold = np.argsort(counts, kind="stable")[: split.num_items // 2]
    target = int(np.random.default_rng(seed).choice(cold[counts[cold] > 0]))
    fakes = int(share * split.num_users)
    return Setting(
        with_fake_users(split, fakes, items=[target], seed=seed),
        split.num_users,
        target,
        seed=seed,
        **changes,
    )


def make_algorithm(setting: Setting, attack: str, defence: str) -> Algorithm:
    """The common clients with this attack among them and this defence on the server."""
    chosen = DEFENCES[defence](setting)
    return fr.fedmf(
        dim=setting.dim,
        loss="bpr",
        cohort=setting.cohort,
        learning_rate=RATE,
        num_negatives=1,
        item_bias=False,
        init_scale=0.1 * setting.dim**0.5,
        regularisation=0.0,
        batch_size=128,
        adversary=ATTACKS[attack](setting),
        aggregator=chosen.aggregator,
        transform=chosen.transform,
        server_optimizer=optax.sgd(float(setting.cohort) if chosen.mean else 1.0),
    )


def measure_run(setting: Setting, algorithm: Algorithm) -> dict[str, Any]:
    """Train, and measure exposure and accuracy of the real users along the way."""
    tick, key = time.perf_counter(), jax.random.key(setting.seed)
    population = fr.population_of(setting.split)
    expose = make_exposure_ratio(
        algorithm, setting.split, [setting.target], ks=(5, 10), exclude=setting.fakes
    )
    rank, state = fr.make_evaluator(algorithm, setting.split), jax.jit(algorithm.init)(key, population)
    block = jax.jit(partial(run_block, algorithm, setting.every))
    found: dict[str, Any] = {name: [] for name in ("round", "er@5", "er@10", "hr@10", "hr@10 full")}
    for turn in range(setting.times + 1):
        if turn:
            state, _ = block(key, state, population, jnp.int32(setting.every))
        ranks = rank(state)
        accuracy = {"hr@10": ranks.sampled, "hr@10 full": ranks.full}
        values = {name: fr.evaluation.metrics_from_ranks(r, [10])["hr@10"] for name, r in accuracy.items()}
        for name, value in ({"round": turn * setting.every} | expose(state) | values).items():
            found[name].append(value)
    return found | {"seconds": round(time.perf_counter() - tick, 1), "target": setting.target}


def reference_algorithm(setting: Setting, *, attacked: bool = True) -> Algorithm:
    """FedRecAttack's own setting: BPR, rate .01, rows bounded by the server, one percent public."""
    attack = attacks.fedrecattack([setting.target], rows=_rows(setting))
    return fr.fedmf(
        dim=setting.dim,
        loss="bpr",
        cohort=setting.cohort,
        learning_rate=0.01,
        num_negatives=1,
        item_bias=False,
        init_scale=0.01 * setting.dim**0.5,
        regularisation=0.001,
        aggregator=reducers.row_norm_bound(0.01),  # their bound of 1 on a gradient's row, times the rate
        adversary=attacks.colluding(attack, setting.fakes) if attacked else None,
    )
