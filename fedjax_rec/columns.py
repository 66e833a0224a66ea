"""Columns of text for a person: laid out by rich, which knows how wide a character is."""

import io
from collections.abc import Collection, Sequence

_GAP = 2  # blanks between columns


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Lay rows out in columns, as wide as their widest cell.

    Args:
        rows: of cells, as many in each; the heads are a row too.
        left: numbers of the columns that begin at the left; the others, such as numbers, end at the right.

    Returns:
        a line a row, nothing at the ends of lines; no line is broken, whatever the width of the terminal.

    Example:
        >>> print(aligned([["metric", "events"], ["hr@10", "94,387"], ["映画", "8"]]))
        metric  events
        hr@10   94,387
        映画         8
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, _GAP, 0, 0))
    for column in range(len(rows[0])):
        table.add_column(justify="left" if column in left else "right", no_wrap=True, overflow="crop")
    for row in rows:
        table.add_row(*map(Text, row))
    widest = sum(_GAP + max(map(cell_len, cells)) for cells in zip(*rows, strict=True))
    console = Console(width=widest + 1, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(table, highlight=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
