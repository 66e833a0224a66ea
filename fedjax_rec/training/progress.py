"""A progress bar for runs of rounds."""

import warnings
from collections.abc import Callable
from typing import Any

from fedjax_rec.training.history import Progress


def progress_bar(**options: Any) -> Callable[[Progress], None]:
    """Make a callback for `simulate(on_block=...)` that shows rounds, validation metric and clients/s.

    Args:
        **options: for tqdm.

    Returns:
        the callback; it opens a bar for each run and closes it when the run stops.

    Example:
        >>> import io
        >>> show = progress_bar(file=io.StringIO())
        >>> show(Progress(1, 1, 10, 0.5, {"full/ndcg@10": 0.1}, 100.0, "rounds"))
    """
    with warnings.catch_warnings():  # tqdm warns where a notebook lacks its widgets; the text bar serves
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    bars: list[Any] = []
    validated: dict[str, str] = {}  # what the last validation found

    def show(progress: Progress) -> None:
        if not bars:
            bars.append(tqdm(total=progress.rounds, unit="round", **options))
            validated.clear()
        postfix = {"loss": f"{progress.loss:.4f}", "clients/s": f"{progress.clients_per_second:,.0f}"}
        if progress.validation is not None:
            validated["val ndcg@10"] = f"{progress.validation['full/ndcg@10']:.4f}"
        postfix = validated | postfix
        if progress.server_rows != "all":
            postfix |= {"rows": progress.server_rows}
        if progress.rule != "rounds":
            postfix |= {"ends by": progress.rule}
        bars[0].total = progress.rounds  # a better validation moves the end of a run that has patience
        bars[0].set_postfix(postfix, refresh=False)
        bars[0].update(progress.round - bars[0].n)
        if progress.stopped:
            bars.pop().close()

    return show
