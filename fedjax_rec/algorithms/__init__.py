"""Algorithms: one file a paper, each in the same order: departures, factory, model, client work, server's part.

What several share stands in `common`; `registry` knows them by name, for whoever chooses one by a string. May
import `federation` and all below it.
"""

from fedjax_rec.algorithms.colr import colr
from fedjax_rec.algorithms.fcf import fcf
from fedjax_rec.algorithms.fedals import fedals
from fedjax_rec.algorithms.fedease import fedease
from fedjax_rec.algorithms.fedgnn import fedgnn
from fedjax_rec.algorithms.fedmf import fedmf
from fedjax_rec.algorithms.fedncf import fedncf
from fedjax_rec.algorithms.fednova import fednova
from fedjax_rec.algorithms.fedper import fedper
from fedjax_rec.algorithms.fedrap import fedrap
from fedjax_rec.algorithms.fedrec import fedrec
from fedjax_rec.algorithms.fedrecon import fedrecon
from fedjax_rec.algorithms.fedsasrec import fedsasrec
from fedjax_rec.algorithms.fedsgd_mf import fedsgd_mf
from fedjax_rec.algorithms.fedtwotower import fedtwotower
from fedjax_rec.algorithms.gpfedrec import gpfedrec
from fedjax_rec.algorithms.pfedrec import pfedrec
from fedjax_rec.algorithms.scaffold import scaffold

__all__ = [
    "colr",
    "fcf",
    "fedals",
    "fedease",
    "fedgnn",
    "fedmf",
    "fedncf",
    "fednova",
    "fedper",
    "fedrap",
    "fedrec",
    "fedrecon",
    "fedsasrec",
    "fedsgd_mf",
    "fedtwotower",
    "gpfedrec",
    "pfedrec",
    "scaffold",
]
