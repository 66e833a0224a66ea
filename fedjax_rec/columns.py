"""Columns of text for a person. Rich knows how wide a character is; its tables, at 5 ms a row, are not used."""

from collections.abc import Collection, Sequence

_GAP = 2  # blanks between columns


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Lay rows out in columns, as wide as their widest cell.

    Args:
        rows: of cells, as many in each; the heads are a row too.
        left: numbers of the columns that begin at the left; the others, such as numbers, end at the right.

    Returns:
        a line a row, nothing at the ends of lines; no line is broken, whatever the width of the terminal; of no
        rows an empty text.

    Example:
        >>> print(aligned([["metric", "events"], ["hr@10", "94,387"], ["映画", "8"]]))
        metric  events
        hr@10   94,387
        映画         8
    """
    from rich.cells import cell_len

    if not rows:
        return ""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(cell_len, cells)) for cells in columns]

    def padded(cell: str, column: int) -> str:
        room = " " * (widths[column] - cell_len(cell))
        return cell + room if column in left else room + cell

    lines = ((padded(cell, column) for column, cell in enumerate(row)) for row in rows)
    return "\n".join((" " * _GAP).join(line).rstrip() for line in lines)
