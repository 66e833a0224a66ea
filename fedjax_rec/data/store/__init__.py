"""Stores: populations on disk, of any size, as columns that are mapped into memory and read client by client.

`format` says what lies in a store's folder and opens it; `writer` makes one, all or nothing; `convert` sorts
events of any number into one, as `sources` reads them; `drawn` makes up a population of any size as a stream;
`sampling` draws clients to rank; `shares` lets several processes read one; `verification` says whether it is
sound; `progress` shows how far it is. Imports numpy and pandas; pyarrow where parquet is read.
"""

from fedjax_rec.data.store.convert import convert
from fedjax_rec.data.store.drawn import Preferences, synthesise
from fedjax_rec.data.store.format import Store, describe_store, is_store, open_store
from fedjax_rec.data.store.shares import share_bounds

__all__ = [
    "Preferences",
    "Store",
    "convert",
    "describe_store",
    "is_store",
    "open_store",
    "share_bounds",
    "synthesise",
]
