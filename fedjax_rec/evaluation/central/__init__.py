"""Central baselines: what a model reaches that sees all training events at once, on the same split.

| name | method | settings chosen on validation | file |
|---|---|---|---|
| `random` | a score drawn for each user and item | none | `nonpersonalised` |
| `popularity` | number of training events | none | `nonpersonalised` |
| `itemknn` | cosine of items, shrunk, nearest neighbours (Sarwar et al. 2001) | neighbours, shrink | `itemknn` |
| `ease` | linear autoencoder in closed form (Steck 2019) | regularisation | `ease` |
| `ials` | alternating least squares on the whole table (Rendle 2021) | regularisation, unobserved | `ials` |
| `mf` | logistic matrix factorisation by SGD (Rendle et al. 2020) | none | `mf` |

Each `fit_...` takes a split, sees its training events only, and returns a `Scorer` for `make_ranker`.
`registry` knows the methods by name; `run_baselines` chooses settings on validation, fits and measures;
`try_baseline` is for a search over one method's settings; `price_of_federation` divides a federated result by the
best central one.
"""

from fedjax_rec.evaluation.central.ease import fit_ease
from fedjax_rec.evaluation.central.ials import fit_ials
from fedjax_rec.evaluation.central.itemknn import fit_itemknn
from fedjax_rec.evaluation.central.mf import fit_mf
from fedjax_rec.evaluation.central.nonpersonalised import fit_popularity, fit_random
from fedjax_rec.evaluation.central.price import price_of_federation
from fedjax_rec.evaluation.central.registry import (
    METHOD_NAMES,
    METHODS,
    Method,
    parse_method_names,
    parse_method_settings,
)
from fedjax_rec.evaluation.central.runner import BaselineResult, BaselineTrial, run_baselines, try_baseline
from fedjax_rec.evaluation.central.scorers import DivergedError, Scorer

__all__ = [
    "METHODS",
    "METHOD_NAMES",
    "BaselineResult",
    "BaselineTrial",
    "DivergedError",
    "Method",
    "Scorer",
    "fit_ease",
    "fit_ials",
    "fit_itemknn",
    "fit_mf",
    "fit_popularity",
    "fit_random",
    "parse_method_names",
    "parse_method_settings",
    "price_of_federation",
    "run_baselines",
    "try_baseline",
]
