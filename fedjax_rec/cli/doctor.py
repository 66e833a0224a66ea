"""`fedjax-rec doctor`: what this machine has, and how fast it adds up item rows.

The engine's innermost work is the row update, `table[ids] += rows`, and popular items stand in many rows at once.
So it is timed with ids of a long tail, where writes contend, and with distinct ids, where none do.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jaxlib

from fedjax_rec.engine.devices import available_cores
from fedjax_rec.rows.scatter import PATTERNS, STRATEGIES, Measurement, choose, measure
from fedjax_rec.training.checkpoints.versions import versions

CONTENTION = 10.0  # times slower than distinct ids: native atomics stay below
OPTION = "-nvptx-allow-ftz-atomics"  # of LLVM, given in XLA_FLAGS: see `warn`


def add_parser(commands: Any) -> None:
    """Describe `doctor` and its flag."""
    parser = commands.add_parser(
        "doctor",
        help="versions, devices, and how fast item rows are added up here",
        description="Show versions and devices, time two ways of adding item rows on the default device, and "
        "warn of what makes runs slow here. Takes a few seconds.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def call(given: argparse.Namespace) -> int:
    """Examine and print the report; progress goes to standard error."""
    report = examine(on_stage=lambda text: print(text, file=sys.stderr))
    print(json.dumps(as_dict(report), indent=2) if given.json else render(report))
    return 0


class Device(NamedTuple):
    """Devices that are alike."""

    platform: str  # "cpu", "cuda", "rocm", "tpu"
    kind: str
    num_devices: int
    memory: int | None  # bytes that jax may use on each, where it says so


class Report(NamedTuple):
    """All that the doctor found."""

    versions: dict[str, str]
    devices: tuple[Device, ...]
    num_cores: int  # that this process may use
    num_rows: int  # of an update, n
    dim: int  # numbers in a row
    measurements: tuple[Measurement, ...]
    rule: str  # the strategy of `scatter.choose`
    warnings: tuple[str, ...]
    advice: tuple[str, ...]


def examine(
    sizes: Sequence[int] = (4096, 131_072),
    *,
    num_rows: int = 4096,
    dim: int = 64,
    seconds: float = 0.3,
    on_stage: Callable[[str], Any] = str,
) -> Report:
    """Look at versions and devices, and time the row update on the default device.

    Args:
        sizes: numbers of items I of the tables.
        num_rows: n, rows of an update, at most the smallest I (distinct ids).
        dim: numbers in a row, float32.
        seconds: to spend on each timing; a slow loop is repeated five times all the same.
        on_stage: called with a line of text before each table is timed.

    Returns:
        the report; `render` shows it.

    Raises:
        ValueError: more rows than distinct ids, or no device that jax can start.

    Example:
        >>> report = examine(sizes=[8], num_rows=4, dim=2, seconds=0.0)
        >>> [m.strategy for m in report.measurements if m.pattern == "popular"]
        ['scatter', 'sorted']
    """
    if not 1 <= num_rows <= min(sizes):
        raise ValueError(f"num_rows={num_rows} must be 1 to {min(sizes)}, the smallest table; lower it")
    devices = _devices()
    num_devices = sum(device.num_devices for device in devices)
    platform = devices[0].platform
    num_cores = available_cores()
    measurements: list[Measurement] = []
    for number, size in enumerate(sizes, start=1):
        on_stage(f"timing the row update: {size:,} items ({number} of {len(sizes)})")
        measurements += [
            measure(strategy, size, pattern, num_rows, dim=dim, seconds=seconds)
            for strategy in STRATEGIES
            for pattern in PATTERNS
        ]
    xla_flags = os.environ.get("XLA_FLAGS", "")
    advice = advise_devices(platform, num_devices, num_cores)
    return Report(
        versions=versions(),
        devices=devices,
        num_cores=num_cores,
        num_rows=num_rows,
        dim=dim,
        measurements=tuple(measurements),
        rule=choose(platform, jaxlib.__version__),
        warnings=warn(platform, jaxlib.__version__, measurements, xla_flags=xla_flags),
        advice=() if advice is None else (advice,),
    )


def _devices() -> tuple[Device, ...]:
    try:
        found = jax.devices()
    except (RuntimeError, AssertionError) as problem:  # the latter where a platform's plugin is not installed
        first = (str(problem).strip().splitlines() or ["is its plugin installed?"])[0]
        raise ValueError(f"jax starts no device, try JAX_PLATFORMS=cpu: {first}") from problem
    alike = Counter((_platform(device), device.device_kind, _memory(device)) for device in found)
    return tuple(Device(platform, kind, count, memory) for (platform, kind, memory), count in alike.items())


def _platform(device: jax.Device) -> str:
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


def _memory(device: jax.Device) -> int | None:
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # some plugins do not implement it
        return None


def _fastest(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The lowest median of each table and kind of ids."""
    cases = dict.fromkeys((m.num_items, m.pattern) for m in measurements)
    return [
        min((m for m in measurements if (m.num_items, m.pattern) == case), key=lambda m: m.median_ns)
        for case in cases
    ]


def warn(
    platform: str, jaxlib_version: str, measurements: Sequence[Measurement], *, xla_flags: str = ""
) -> tuple[str, ...]:
    """Say what makes row updates needlessly slow, by the versions and by the clock.

    Args:
        platform: "cpu", "cuda", "rocm" or "tpu".
        jaxlib_version: such as "0.11.1".
        measurements: of `examine`.
        xla_flags: the environment's XLA_FLAGS; with the remedy among them the version is not warned of.

    Returns:
        warnings, each one line that says what to do.

    Raises:
        ValueError: the version does not begin with three numbers.

    Example:
        >>> warn("cuda", "0.11.1", [])
        ()

    Source: https://github.com/jax-ml/jax/issues/38806, https://github.com/openxla/xla/issues/46225; what the LLVM
    option does: https://github.com/llvm/llvm-project/pull/206154.
    """
    found = []
    if choose(platform, jaxlib_version) == "sorted" and OPTION not in xla_flags:
        found.append(
            f"jaxlib {jaxlib_version} on NVIDIA adds float32 rows in a compare-and-swap loop, slow where many "
            "clients touch one item (jax-ml/jax#38806, openxla/xla#46225): upgrade to jaxlib 0.11.1 or later, or "
            f"add --xla_backend_extra_options={OPTION} to XLA_FLAGS; the engine avoids it by --row-update sorted"
        )
    medians = {(m.strategy, m.num_items, m.pattern): m.median_ns for m in measurements}
    for best in _fastest([m for m in measurements if m.pattern == "popular"]):
        popular, distinct = (medians.get(("scatter", best.num_items, pattern), 0.0) for pattern in PATTERNS)
        if popular > CONTENTION * distinct > 0:
            found.append(
                f"scatter is {popular / distinct:.0f} times slower on popular than on distinct items "
                f"({best.num_items:,} items), where {best.strategy} takes {best.median_ns:.1f} ns a row: try "
                "another jaxlib"
            )
    return tuple(found)


def advise_devices(platform: str, num_devices: int, num_cores: int) -> str | None:
    """Say when most of a CPU is left idle.

    Args:
        platform: "cpu" or another, of which nothing is said.
        num_devices: that jax sees.
        num_cores: that the process may use.

    Returns:
        one line, or None.

    Example:
        >>> advise_devices("cpu", 1, 8)  # doctest: +ELLIPSIS
        '8 cores but 1 CPU device: ...'
    """
    if platform != "cpu" or num_devices > 1 or num_cores < 2:
        return None
    return (
        f"{num_cores} cores but 1 CPU device: the engine runs on one core; `fedjax-rec run` gives each core a "
        "device, a script does so by fedjax_rec.use_cores() before anything else"
    )


def as_dict(report: Report) -> dict[str, Any]:
    """Turn a report into what JSON knows.

    Args:
        report: of `examine`.

    Returns:
        the fields by name; a measurement also says whether it was the `fastest` of its kind.

    Example:
        >>> as_dict(examine(sizes=[8], num_rows=4, dim=2, seconds=0.0))["measurements"][0]["num_items"]
        8
    """
    best = _fastest(report.measurements)
    return report._asdict() | {
        "devices": [device._asdict() for device in report.devices],
        "measurements": [m._asdict() | {"fastest": m in best} for m in report.measurements],
    }


def render(report: Report) -> str:
    """Lay a report out as text.

    Args:
        report: of `examine`.

    Returns:
        several lines; warnings and advice come last.

    Example:
        >>> "row update" in render(examine(sizes=[8], num_rows=4, dim=2, seconds=0.0))
        True
    """
    best = _fastest(report.measurements)
    wins = Counter(m.strategy for m in best).most_common()
    lines = [f"{name:<11} {value}" for name, value in report.versions.items()]
    lines += [
        f"{'device':<11} {d.num_devices} x {d.kind} ({d.platform}), "
        + ("memory unknown" if d.memory is None else f"{d.memory / 2**30:,.1f} GiB each")
        for d in report.devices
    ]
    lines += [
        f"{'cores':<11} {report.num_cores}",
        "",
        f"row update: {report.num_rows:,} rows of {report.dim} float32, ns a row: median (min to max), * fastest",
        f"{'items':>9}  {'ids':<9} {'strategy':<9} {'median':>9}",
    ]
    lines += [
        f"{m.num_items:>9,}  {m.pattern:<9} {m.strategy:<9} {m.median_ns:>9,.1f} "
        f"({m.min_ns:,.1f} to {m.max_ns:,.1f}){' *' if m in best else ''}"
        for m in sorted(report.measurements, key=lambda m: (m.num_items, PATTERNS.index(m.pattern)))
    ]
    lines += [
        "fastest here: " + ", ".join(f"{name} ({count} of {len(best)})" for name, count in wins),
        f"by the rule for this platform and jaxlib: {report.rule}",
    ]
    lines += [f"warning: {text}" for text in report.warnings] + [f"advice: {text}" for text in report.advice]
    return "\n".join(lines)
