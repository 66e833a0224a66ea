"""What a round takes on a device: constants fitted to measurements, or read off a data sheet.

On a CPU core of here the seconds of a round are a sum of simple counts (`counts_of`), whose coefficients were
fitted by `experiments.scaling` to its committed points. On an accelerator they are a step's fixed cost times the
steps of the longest lane, and bytes over a share of the bandwidth: both from two runs on one H200
(`experiments/benchmarks/NOTES.md`). What is said of other accelerators is a prediction: their bandwidth is that
of their data sheets, the rest is the H200's.
"""

import math
from typing import NamedTuple

from fedjax_rec.data.errors import did_you_mean
from fedjax_rec.engine.devices import host_bytes
from fedjax_rec.errors import ParameterError


class Machine(NamedTuple):
    """One device."""

    name: str
    platform: str  # as `engine.plan.choose_lanes` knows it
    memory: int  # bytes; 0 for those of this host, which its devices share
    bandwidth: float  # bytes a second, of its memory
    link: float  # bytes a second, to other devices in one direction
    basis: str  # where what is said of it comes from

    @property
    def is_cpu(self) -> bool:
        """Whether it is a core of a CPU."""
        return self.platform == "cpu"


_CORE = "of a core of an AMD EPYC, by a model fitted to experiments/scaling/points.csv"
_H200 = "predicted from the bandwidth of the data sheet, and two runs on one H200"
_SHEET = "a prediction that was not measured: bandwidth and memory of the data sheet, all else as on one H200"
MACHINES = {  # bytes, bytes a second, bytes a second
    machine.name: machine
    for machine in (
        Machine("cpu", "cpu", 0, 0.0, 0.0, _CORE),
        Machine("h200", "cuda", 141 * 10**9, 4.8e12, 450e9, _H200),
        Machine("h100", "cuda", 80 * 10**9, 3.35e12, 450e9, _SHEET),
        Machine("a100", "cuda", 80 * 10**9, 2.039e12, 300e9, _SHEET),
        Machine("v5e", "tpu", 16 * 10**9, 0.819e12, 100e9, _SHEET),
        Machine("v6e", "tpu", 32 * 10**9, 1.64e12, 224e9, _SHEET),
    )
}
USABLE = 0.9  # of a device's memory: the rest is for programs and what they need on the way
# One H200, one epoch, D = 64: 7.1 ms a round at C = 1,000, 12.3 ms at 6,040, whose longest client has 178 batches.
STEP_SECONDS = 34e-6
SHARE = 0.13  # of the bandwidth, that rows are read, added and written with
PASS_SHARE = 0.6  # of it, in whole passes over a table: taken, not measured
PASSES = 6  # over the item table in a round: sums cleared, added and stepped
TOUCHES = 3  # of a row in a batch
CACHED = 3 * 2**20  # numbers of a table that caches hold, of several cores that add theirs up: 12 MiB
FETCH_SECONDS = (
    1.5e-7  # of an event from a store, in a thread beside the rounds: 15 ms for 1,000 clients of 100
)


class Work(NamedTuple):
    """What a round does, in counts."""

    cohort: int  # C
    events: float  # of a client, mean
    longest: int  # batches of the longest client
    batches: float  # of the mean client
    slots: float  # rows that a client visits in a local epoch, empty ones included
    dim: int  # numbers in a row
    items: int  # I
    epochs: int  # E
    devices: int
    lanes: int  # on each device


def machine_of(name: str) -> Machine:
    """A device by its name.

    Args:
        name: a key of `MACHINES`.

    Returns:
        the device.

    Raises:
        ValueError: if there is none of that name.

    Example:
        >>> machine_of("h200").bandwidth
        4800000000000.0
    """
    if name not in MACHINES:
        hint = did_you_mean(name, list(MACHINES))
        raise ParameterError(
            "unknown {device} {name!r}; {hint}known: {known}", name=name, hint=hint, known=", ".join(MACHINES)
        )
    return MACHINES[name]


def room_of(machine: Machine, count: int) -> int:
    """Bytes that a plan may take on so many devices.

    Args:
        machine: a device.
        count: how many.

    Returns:
        of all of them together; of a CPU what this host has free.

    Example:
        >>> room_of(machine_of("v5e"), 2)
        28800000000
    """
    return host_bytes() if machine.is_cpu else int(count * USABLE * machine.memory)


def counts_of(work: Work) -> dict[str, float]:
    """What the seconds of a round on CPU cores are a sum of.

    Args:
        work: of a round.

    Returns:
        count by name of its coefficient: rounds, clients, and numbers of rows by schedule; a row costs more where
        the item table is larger than a core's cache of 1 MiB. Clients' work is shared by the devices, the server's
        pass is not; and devices add up their tables, which costs more where these leave the caches.

    Example:
        >>> counts_of(Work(100, 50, 20, 4.7, 300, 32, 1000, 1, 2, 6))["clients"]
        50.0
    """
    share = work.cohort / work.devices
    rows = share * work.slots * work.epochs
    far = math.log2(1 + work.items * work.dim * 4 / 2**20)
    several = work.epochs > 1
    table = float(work.items * work.dim)
    together = work.devices > 1
    return {
        "round": 1.0,
        "round together": float(together),
        "clients": share,
        "rows": 0.0 if several else rows,
        "numbers": 0.0 if several else rows * work.dim,
        "far rows": share * work.slots * far,
        "rows in waves": rows if several else 0.0,
        "numbers in waves": rows * work.dim if several else 0.0,
        "table": table,
        "table together": max(0.0, table - CACHED) if together else 0.0,
    }


def seconds_of(machine: Machine, work: Work) -> float:
    """Seconds of a round.

    Args:
        machine: a device.
        work: of a round on some of them.

    Returns:
        the prediction.

    Example:
        >>> h200 = Work(6040, 166, 178, 13.2, 860, 64, 3706, 1, 1, 755)  # measured: 12.3 ms
        >>> round(1000 * seconds_of(machine_of("h200"), h200), 1)
        12.4
    """
    if machine.is_cpu:
        from fedjax_rec.runs.fitted import COEFFICIENTS

        counts = counts_of(work)
        return sum(COEFFICIENTS[name] * count for name, count in counts.items())
    share = work.cohort / work.devices
    steps = max(work.longest, share * work.batches / work.lanes) * work.epochs
    row_bytes = share * work.slots * work.epochs * work.dim * 4 * TOUCHES
    table = work.items * work.dim * 4
    sent = 0.0 if work.devices == 1 else 2 * table * (work.devices - 1) / work.devices / machine.link
    rows = row_bytes / (SHARE * machine.bandwidth)
    return steps * STEP_SECONDS + rows + PASSES * table / (PASS_SHARE * machine.bandwidth) + sent
