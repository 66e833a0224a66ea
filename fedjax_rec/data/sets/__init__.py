"""The data sets that are known by name: what each is, where it comes from, and how its files are read.

`info` has the record of a data set; `movielens`, `amazon`, `media` and `places` list them by what they are about;
`layouts` reads what no general reader does. `fedjax_rec.data.registry` finds, downloads and loads them.
"""

from fedjax_rec.data.sets.amazon import AMAZON
from fedjax_rec.data.sets.info import Counts, DatasetInfo, Preset
from fedjax_rec.data.sets.media import MEDIA
from fedjax_rec.data.sets.movielens import MOVIELENS
from fedjax_rec.data.sets.places import PLACES

DATASETS = {info.name: info for info in (*MOVIELENS, *PLACES, *MEDIA, *AMAZON)}

__all__ = ["DATASETS", "Counts", "DatasetInfo", "Preset"]
