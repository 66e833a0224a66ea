"""Data: files, frames and a synthetic population, all as columnar `Interactions`, and their splits.

`registry` finds the known `sets` (by `download`, `archives`, `files`), `paths` whatever lies at a path; `formats`
(by `sniffing`, `naming`, `packed`) and `readers` read files and `frames` into events (by `text`, `times`,
`columns`, `vocabulary`, `duplicates`), `loo` and `given_splits` what is split already, `attributes` what is known
of users. `inputs` takes whatever holds events; `filters`, `order`, `splits`, `splitters` and `candidates` hold
some of them out, `heldout` says which; `synthetic` and `fake_users` make some up; `store` keeps populations of any
size on disk. Imports numpy and pandas; narwhals, pyarrow and tqdm where they are used.
"""

from fedjax_rec.data import store
from fedjax_rec.data.given_splits import frame_of_parts
from fedjax_rec.data.interactions import Dataset, Interactions
from fedjax_rec.data.readers import from_frame, read_table
from fedjax_rec.data.registry import describe, fetch, list_datasets, load_dataset
from fedjax_rec.data.splits import Split, leave_one_out, merge_validation
from fedjax_rec.data.splitters import given, global_time, ratio, strong_generalisation
from fedjax_rec.data.synthetic import synthetic

__all__ = [
    "Dataset",
    "Interactions",
    "Split",
    "describe",
    "fetch",
    "frame_of_parts",
    "from_frame",
    "given",
    "global_time",
    "leave_one_out",
    "list_datasets",
    "load_dataset",
    "merge_validation",
    "ratio",
    "read_table",
    "store",
    "strong_generalisation",
    "synthetic",
]
