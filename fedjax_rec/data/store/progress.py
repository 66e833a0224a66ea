"""A bar for what takes long, where `tqdm` is installed."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_of(total: int | None, unit: str, what: str, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar, which also says how many a second.

    Args:
        total: how many there will be; None if that is not known.
        unit: of what.
        what: is done with them.
        shown: whether there is a bar.

    Yields:
        a function that is told of each further number done.

    Example:
        >>> with progress_of(3, "event", "drawing", shown=False) as advance:
        ...     _ = advance(3)
    """
    try:
        from tqdm import tqdm
    except ImportError:
        shown = False
    if not shown:
        yield int
        return
    with tqdm(total=total, unit=unit, unit_scale=True, desc=what) as bar:
        yield bar.update
