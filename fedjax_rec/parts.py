"""Whether clients stream from host memory by themselves, and how many of them make a part."""

import jax
import numpy as np

from fedjax_rec.types import Plan, PyTree

STREAMED = 2**30  # bytes of a cohort's copies from which parts cost no time on a CPU
PART = 30 * 2**20  # bytes of a part's largest leaf: glibc keeps no buffer of 32 MiB for its next use


def copies_are_large(plan: Plan) -> bool:
    """Whether rounds in parts cost no time: on a CPU, where a round copies 1 GiB of what its cohort keeps.

    There parts stay in buffers that are used again. To and from an accelerator they must be sent.

    Args:
        plan: of rounds in one piece.

    Returns:
        True or False.

    Example:
        >>> copies_are_large(Plan(6040, 2, 4, "lanes", "scatter", {"cohort": 2**26}))
        False
    """
    return jax.default_backend() == "cpu" and plan.memory["cohort"] >= STREAMED


def choose_part(plan: Plan, kept: PyTree) -> int:
    """How many clients of a cohort go to the device at a time, if they stream from host memory.

    Args:
        plan: of rounds in one piece.
        kept: shapes of what clients keep between rounds, leaves [N, ...].

    Returns:
        S, a multiple of the devices, and of the lanes if there are that many; no more than the cohort needs.

    Example:
        >>> kept = jax.ShapeDtypeStruct((6040, 3706, 32), np.float32)
        >>> [choose_part(Plan(cohort, 2, 4, "lanes", "scatter", {}), kept) for cohort in (6040, 11)]
        [64, 12]
    """
    most = min(part_size(kept, plan.devices), -(-plan.cohort // plan.devices) * plan.devices)
    return most - most % plan.lanes if most >= plan.lanes else most  # so that all lanes are busy to the end


def part_size(kept: PyTree, devices: int = 1) -> int:
    """How many clients make a part of 30 MiB, by their largest leaf.

    Args:
        kept: what clients keep between rounds, or its shapes, leaves [N, ...].
        devices: that share a part.

    Returns:
        S, a multiple of the devices.

    Example:
        >>> part_size(jax.ShapeDtypeStruct((943, 1682, 32), np.float32))
        146
    """
    each = max(
        (leaf.dtype.itemsize * int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(kept)), default=1
    )
    return max(1, PART // each // devices) * devices
