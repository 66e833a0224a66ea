"""Frames: tables that are in memory already, of whichever library, as columns of pandas.

| what | how it is read |
|---|---|
| a pandas frame | as it is; its index plays no part |
| a dict of columns | column by column: arrays of any kind, lists, series whose index plays no part |
| polars, pyarrow, DuckDB, Dask, Modin, cuDF, ... | by `narwhals`, lazy ones too; other columns are left alone |
| anything else with an Arrow stream (`__arrow_c_stream__`) | the same, by way of pyarrow |
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedjax_rec.data.errors import DataError

Frame = Any  # of the table above; no library has a type for all of them


class Table(NamedTuple):
    """A frame's columns: their names, and a way to have some of them."""

    names: list[Hashable]
    take: Callable[[Sequence[Hashable]], pd.DataFrame]  # these columns, rows in their order


def open_frame(frame: Frame) -> Table | None:
    """Looks which columns a frame has.

    Args:
        frame: anything.

    Returns:
        its columns, or None if it is no frame.

    Raises:
        DataError: if the library that reads it is not installed; from `take`, if its columns make no table.

    Example:
        >>> table = open_frame({"user": np.array([3, 4]), "item": ["a", "b"], "weight": [1.0, 2.0]})
        >>> table.names, table.take(["item"])["item"].tolist()
        (['user', 'item', 'weight'], ['a', 'b'])
    """
    if isinstance(frame, pd.DataFrame):
        return Table(list(frame.columns), lambda names: frame[list(names)])
    if isinstance(frame, Mapping):
        return Table(list(frame), lambda names: _from_columns({name: frame[name] for name in names}))
    if isinstance(frame, type) or not _may_be_frame(frame):
        return None
    return _open_foreign(frame)


def _may_be_frame(frame: Any) -> bool:
    """Whether `narwhals` is worth being imported; the class is asked, as lazy frames compute what they have."""
    return any(hasattr(type(frame), name) for name in ("__arrow_c_stream__", "columns", "column_names"))


def _from_columns(columns: Mapping[Any, Any]) -> pd.DataFrame:
    """A frame of the values alone: by their indices, series would be put into another order."""
    values = {name: _values(column) for name, column in columns.items()}
    try:
        return pd.DataFrame(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"frame: its columns make no table ({error})") from error


def _values(column: Any) -> Any:
    if isinstance(column, pd.Series | pd.Index):
        return column.array
    return np.asarray(column) if hasattr(column, "__array__") else column


def _open_foreign(frame: Any) -> Table | None:
    kind = f"{type(frame).__module__.split('.')[0]}.{type(frame).__name__}"
    try:
        import narwhals.stable.v2 as nw
    except ImportError as error:
        raise DataError(f"a {kind} is read by narwhals; install it with: pip install narwhals") from error
    try:
        found: Any = nw.from_native(frame)
    except TypeError:
        if not hasattr(frame, "__arrow_c_stream__"):
            return None
        table = _arrow_table(frame, kind)
        if table is None:
            return None
        found = nw.from_native(table)

    def take(names: Sequence[Hashable]) -> pd.DataFrame:
        some = found.select(*dict.fromkeys(names))
        some = some.collect() if isinstance(some, nw.LazyFrame) else some
        if some.implementation.is_pandas_like():
            return some.to_pandas()
        # categories are written out: pyarrow gives a missing one as any other
        texts = [name for name in some.columns if some[name].dtype in (nw.Categorical, nw.Enum)]
        some = some.with_columns(nw.col(*texts).cast(nw.String)) if texts else some
        return pd.DataFrame({name: some[name].to_numpy() for name in some.columns})

    return Table(list(found.collect_schema().names()), take)


def _arrow_table(frame: Any, kind: str) -> Any:
    """What an Arrow stream holds; None if that is no table but one column."""
    try:
        import pyarrow as pa
    except ImportError as error:
        extra = "pip install 'fedjax_rec[parquet]'"
        raise DataError(f"a {kind} is read by pyarrow; install it with: {extra}") from error
    try:
        return pa.table(frame)
    except pa.ArrowException:
        return None
