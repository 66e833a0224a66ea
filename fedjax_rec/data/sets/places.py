"""Check-ins, and the splits of LightGCN, whose best known one is of check-ins."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fedjax_rec.data.columns import Columns
from fedjax_rec.data.given_splits import PART_OF, join_parts
from fedjax_rec.data.interactions import Dataset
from fedjax_rec.data.packed import inner_name
from fedjax_rec.data.sets.info import Counts, DatasetInfo
from fedjax_rec.data.sets.layouts import Layout, read_layout, read_lists

_HE = (
    "X. He, K. Deng, X. Wang, Y. Li, Y. Zhang, and M. Wang. 2020. LightGCN: Simplifying and Powering Graph "
    "Convolution Network for Recommendation. SIGIR 2020. https://arxiv.org/abs/2002.02126"
)
_CHO = (
    "E. Cho, S. A. Myers, and J. Leskovec. 2011. Friendship and Mobility: User Movement in Location-Based Social "
    "Networks. KDD 2011. https://snap.stanford.edu/data/loc-gowalla.html"
)
_YANG = (
    "D. Yang, D. Zhang, V. W. Zheng, and Z. Yu. 2015. Modeling User Activity Preference by Leveraging User "
    "Spatial Temporal Characteristics in LBSNs. IEEE Transactions on Systems, Man, and Cybernetics 45(1). "
    "https://doi.org/10.1109/TSMC.2014.2327053"
)
_UNSTATED = "none stated by the publisher: research use"
_TSMC = ("user", "venue", "category", "category name", "latitude", "longitude", "offset", "time")
_LIGHTGCN = "https://raw.githubusercontent.com/kuandeng/LightGCN/master/Data"
_PYTORCH = "https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/master/data"


def _lightgcn(name: str, title: str, counts: tuple[int, int, int], licence: str, source: str) -> DatasetInfo:
    """A split of LightGCN: its parts as one table without times, which `given` divides as they did."""
    return DatasetInfo(
        name=name,
        title=f"{title}, 10-core of LightGCN's split",
        counts=Counts(*counts),
        licence=licence,
        citation=f"{source}; {_HE}" if source else _HE,
        redistributable=False,
        url=f"{_LIGHTGCN}/{name}/",
        mirrors=(f"{_PYTORCH}/{name}/",),
        files=("train.txt", "test.txt"),
        optional_files=("valid.txt",),  # what a copy has taken out of the first
        reader=read_parts,
        kind="lists",
        homepage="https://github.com/kuandeng/LightGCN",
        repeats="first",
    )


def read_parts(paths: Sequence[str | Path] | str | Path, *, duplicates: str = "error") -> Dataset:
    r"""Reads the files of LightGCN: `train.txt`, `test.txt` and perhaps `valid.txt`.

    Args:
        paths: the files, of these names.
        duplicates: as of `read_given`.

    Returns:
        the data set with its parts.

    Raises:
        DataError: naming the file of whatever is wrong.
    """
    listed = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    parts = [PART_OF[inner_name(path).split(".")[0]] for path in listed]
    events = [read_lists(path, duplicates=duplicates) for path in listed]
    return join_parts(listed[0].parent.name, events, parts, str(listed[0].parent), duplicates)


def _foursquare(name: str, city: str, code: str, counts: tuple[int, int, int]) -> DatasetInfo:
    times = "%a %b %d %H:%M:%S %z %Y"
    layout = Layout(Columns("user", "venue", None, "time"), _TSMC, "\t", times, "latin-1")
    return DatasetInfo(
        name=name,
        title=f"Foursquare check-ins in {city}, April 2012 to February 2013",
        counts=Counts(*counts),
        licence=_UNSTATED,
        citation=_YANG,
        redistributable=False,
        file=f"dataset_tsmc2014/dataset_TSMC2014_{code}.txt",
        reader=partial(read_layout, layout=layout),
        kind="check-ins",
        homepage="https://sites.google.com/site/yangdingqi/home/foursquare-dataset",
        by_hand="download dataset_tsmc2014.zip (NYC and Tokyo) there, which is served by plain http only",
        counts_are_exact=False,
        repeats="first",
    )


PLACES = (
    _lightgcn("gowalla", "Gowalla check-ins", (29_858, 40_981, 1_027_370), _UNSTATED, _CHO),
    _lightgcn(
        "yelp2018",
        "Yelp reviews of 2018",
        (31_668, 38_048, 1_561_406),
        "Yelp dataset terms: academic use; no redistribution",
        "",
    ),
    _lightgcn("amazon-book", "Amazon books", (52_643, 91_599, 2_984_108), _UNSTATED, ""),
    _foursquare("foursquare-nyc", "New York", "NYC", (1083, 38_333, 227_428)),
    _foursquare("foursquare-tky", "Tokyo", "TKY", (2293, 61_858, 573_703)),
)
