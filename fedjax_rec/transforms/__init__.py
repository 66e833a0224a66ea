"""Transforms: what a client does to its whole update before it sends it.

Each is written for ONE client, `update(key, Update, Server) -> Update`; the engine vmaps it over the clients of a
wave, inside the compiled round. `clipping` clips and adds noise, `compression` and `sparsification` send fewer
bits, `error_feedback` keeps what was not sent for the next round, `row_hiding` hides which rows a client has, and
`chaining` puts several in a row and refuses orders that are unsound. May import `errors`, `types` and `rows`.
"""

from fedjax_rec.transforms.base import Bound, Transform, Wire
from fedjax_rec.transforms.chaining import chain
from fedjax_rec.transforms.clipping import add_noise, clip
from fedjax_rec.transforms.compression import drive, qsgd, quantise, sign, terngrad
from fedjax_rec.transforms.error_feedback import error_feedback
from fedjax_rec.transforms.row_hiding import all_rows, pseudo_items, random_rows
from fedjax_rec.transforms.sparsification import low_rank, rand_k, top_k

__all__ = [
    "Bound",
    "Transform",
    "Wire",
    "add_noise",
    "all_rows",
    "chain",
    "clip",
    "drive",
    "error_feedback",
    "low_rank",
    "pseudo_items",
    "qsgd",
    "quantise",
    "rand_k",
    "random_rows",
    "sign",
    "terngrad",
    "top_k",
]
