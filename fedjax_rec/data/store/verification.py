"""What a store is checked for: its files are what was sealed, its offsets ascend, and its events are as it says.

A file is what was sealed if its size is, and the sums over some of its blocks; or, of all bytes, its SHA-256.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedjax_rec.data.errors import DataError

if TYPE_CHECKING:
    from fedjax_rec.data.store.format import Column, Store

SAMPLES = 64  # blocks of a file that have sums of their own
SAMPLE_BYTES = 2**16
_DIGITS = 16  # of the sum over a block
_BLOCK = 2**22  # values looked at together


def sample_spans(size: int) -> list[tuple[int, int]]:
    """Which blocks of a file have sums: `SAMPLES` in equal distances, the first and the last among them.

    Args:
        size: bytes of the file.

    Returns:
        of each block, the first byte and the first behind it; those of a small file overlap.

    Example:
        >>> sample_spans(100), len(sample_spans(10**7))
        ([(0, 100)], 64)
    """
    last = max(size - SAMPLE_BYTES, 0)
    starts = sorted({round(last * number / (SAMPLES - 1)) for number in range(SAMPLES)})
    return [(start, min(start + SAMPLE_BYTES, size)) for start in starts]


def sample_sum(block: bytes) -> str:
    """The sum over one block.

    Args:
        block: its bytes.

    Returns:
        16 hexadecimal digits.
    """
    return hashlib.sha256(block).hexdigest()[:_DIGITS]


def sample_sums(path: Path) -> list[str]:
    """The sums over the blocks of a file.

    Args:
        path: of a column.

    Returns:
        one for each of `sample_spans`.
    """
    sums = []
    with path.open("rb") as file:
        for start, stop in sample_spans(path.stat().st_size):
            file.seek(start)
            sums.append(sample_sum(file.read(stop - start)))
    return sums


def check_file(path: Path, column: "Column", *, sampled: bool = True, verify: bool = False) -> None:
    """Refuse a column that is not what the seal says.

    Args:
        path: its file.
        column: as `meta.json` describes it.
        sampled: whether sums over blocks are compared; else the size alone is.
        verify: whether all bytes are.

    Raises:
        DataError: naming the file.
    """
    expected = column.length * np.dtype(column.dtype).itemsize
    try:
        found = path.stat().st_size
    except OSError as problem:
        raise DataError(f"{path}: missing ({problem.strerror}); make the store anew") from problem
    if found != expected:
        raise DataError(
            f"{path}: {found:,} bytes where there were {expected:,}; it was cut off, make the store anew"
        )
    changed = sampled and sample_sums(path) != column.samples
    if verify and not changed:
        with path.open("rb") as file:
            changed = hashlib.file_digest(file, "sha256").hexdigest() != column.sha256
    if changed:
        raise DataError(changed_since(path))


def changed_since(path: Path) -> str:
    """What is said of a file that is not what was sealed.

    Args:
        path: of the file.

    Returns:
        one line.

    Example:
        >>> changed_since(Path("items.bin"))
        'items.bin: was changed after it was sealed; make the store anew'
    """
    return f"{path}: was changed after it was sealed; make the store anew"


def check_offsets(store: "Store") -> None:
    """Refuse offsets that are none.

    Args:
        store: any.

    Raises:
        DataError: naming the file.
    """
    offsets = store.offsets
    falls = any(
        (np.diff(offsets[start : start + _BLOCK + 1]) < 0).any() for start in range(0, len(offsets), _BLOCK)
    )
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != store.num_events or falls:
        raise DataError(
            f"{store.path / 'offsets.bin'}: no offsets of {store.num_events:,} events; make the store anew"
        )


def check_items(store: "Store") -> None:
    """Read all items, and refuse those that there are not.

    Args:
        store: any.

    Raises:
        DataError: naming the file and the range of its items.
    """
    for start in range(0, store.num_events, _BLOCK):
        items = store.read("items", start, min(start + _BLOCK, store.num_events))
        if items.min() < 0 or items.max() >= store.num_items:
            raise DataError(
                f"{store.path / 'items.bin'}: items {items.min()} to {items.max()}, and there are "
                f"{store.num_items:,}; make the store anew"
            )


def check_order(store: "Store", clients: np.ndarray | None = None) -> None:
    """Read times, and refuse clients whose events are not in their order, where the store says that they are.

    Args:
        store: any; without times there is nothing to read.
        clients: int[n], whose; None for all.

    Raises:
        DataError: naming the file and the first such client.
    """
    if store.order != "time" or "timestamps" not in store.columns:
        return
    if clients is None:
        spans = ((max(start - 1, 0), start + _BLOCK) for start in range(0, store.num_events, _BLOCK))
    else:
        bounds = zip(store.offsets[clients], store.offsets[clients + 1], strict=True)
        spans = ((int(start), int(stop)) for start, stop in bounds)
    for start, stop in spans:
        times = store.read("timestamps", start, min(stop, store.num_events))
        earlier = start + 1 + np.flatnonzero(np.diff(times) < 0)  # events that are before the one before them
        owners = np.searchsorted(store.offsets, earlier, side="right") - 1
        wrong = owners[store.offsets[owners] != earlier]  # the first event of a client follows nothing
        if len(wrong):
            raise DataError(
                f"{store.path / 'timestamps.bin'}: events of client {wrong[0]:,} are not in the order of their "
                "times; make the store anew"
            )
