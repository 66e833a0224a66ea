"""Item rows: the padding rule, adding rows to tables, and keyed permutations of ids.

A row id equal to `I` is an empty slot: reading it gives 0, writing it does nothing. `tables` states that rule
once, `scatter` adds rows up in the way that is fast on a back end, and `permutation` names the t-th of a client's
items, or of the catalogue, without a sort. Imports jax and numpy only.
"""

from fedjax_rec.rows.permutation import permute_index, shuffle_index
from fedjax_rec.rows.tables import add_rows, expand, num_rows, read_rows, select

__all__ = ["add_rows", "expand", "num_rows", "permute_index", "read_rows", "select", "shuffle_index"]
