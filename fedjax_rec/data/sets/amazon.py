"""Reviews of Amazon: a category of 2014, and those of 2023.

The counts of 2023 are of the ratings without repeats, for the categories for which DataRec's registry states them
(https://github.com/sisinflab/DataRec).
"""

from functools import partial

from fedjax_rec.data.columns import Columns
from fedjax_rec.data.sets.info import Counts, DatasetInfo, Preset
from fedjax_rec.data.sets.layouts import Layout, read_layout

_HOU = (
    "Y. Hou, J. Li, Z. He, A. Yan, X. Chen, and J. McAuley. 2024. Bridging Language and Items for Retrieval and "
    "Recommendation. https://arxiv.org/abs/2403.03952"
)
_MCAULEY = (
    "J. McAuley, C. Targett, Q. Shi, and A. van den Hengel. 2015. Image-based Recommendations on Styles and "
    "Substitutes. SIGIR 2015. https://arxiv.org/abs/1506.04757"
)
_UNSTATED = "none stated by the publisher: research use"
_2023 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/benchmark/0core/rating_only"
_LAYOUT_2023 = Layout(Columns("user_id", "parent_asin", "rating", "timestamp"), time="ms")
_NAMES_2014 = ("user", "item", "rating", "timestamp")
_FIVE_CORE = Preset("5-core", "Hou et al. 2024, arXiv:2403.03952", core=5)
_CATEGORIES: dict[str, tuple[int, int, int] | None] = {
    "All_Beauty": None,
    "Amazon_Fashion": None,
    "Appliances": None,
    "Arts_Crafts_and_Sewing": None,
    "Automotive": None,
    "Baby_Products": (3_386_206, 217_654, 5_953_891),
    "Beauty_and_Personal_Care": (11_325_787, 1_028_731, 23_591_312),
    "Books": (10_297_355, 4_446_065, 29_139_329),
    "CDs_and_Vinyl": None,
    "Cell_Phones_and_Accessories": None,
    "Clothing_Shoes_and_Jewelry": (22_553_370, 7_216_886, 65_179_586),
    "Digital_Music": (100_952, 70_511, 128_763),
    "Electronics": None,
    "Gift_Cards": None,
    "Grocery_and_Gourmet_Food": None,
    "Handmade_Products": None,
    "Health_and_Household": None,
    "Health_and_Personal_Care": None,
    "Home_and_Kitchen": None,
    "Industrial_and_Scientific": None,
    "Kindle_Store": None,
    "Magazine_Subscriptions": None,
    "Movies_and_TV": None,
    "Musical_Instruments": None,
    "Office_Products": (7_613_158, 710_403, 12_689_349),
    "Patio_Lawn_and_Garden": None,
    "Pet_Supplies": None,
    "Software": None,
    "Sports_and_Outdoors": (10_331_141, 1_587_219, 19_349_403),
    "Subscription_Boxes": None,
    "Tools_and_Home_Improvement": None,
    "Toys_and_Games": (8_116_226, 890_667, 16_052_440),
    "Video_Games": (2_766_656, 137_249, 4_555_500),
}


def _category(name: str, counts: tuple[int, int, int] | None) -> DatasetInfo:
    return DatasetInfo(
        name=f"amazon-2023-{name.replace('_', '-').lower()}",
        title=f"Amazon reviews of 2023: {name.replace('_', ' ')}",
        counts=None if counts is None else Counts(*counts),
        licence=_UNSTATED,
        citation=_HOU,
        redistributable=False,
        url=f"{_2023}/{name}.csv.gz",
        file=f"{name}.csv.gz",
        reader=partial(read_layout, layout=_LAYOUT_2023),
        homepage="https://amazon-reviews-2023.github.io",
        max_size=2**33,
        repeats="last",
        presets=(_FIVE_CORE,),
    )


AMAZON = (
    DatasetInfo(
        name="amazon-instant-video",
        title="Amazon reviews of 2014: Instant Video",
        counts=Counts(426_922, 23_965, 583_933),
        licence=_UNSTATED,
        citation=_MCAULEY,
        redistributable=False,
        url="https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/ratings_Amazon_Instant_Video.csv",
        file="ratings_Amazon_Instant_Video.csv",
        reader=partial(read_layout, layout=Layout(Columns(*_NAMES_2014), _NAMES_2014)),
        homepage="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        presets=(
            Preset("5-core", "the publisher's 5-core file: 5,130 users, 1,685 items, 37,126 reviews", core=5),
        ),
    ),
    *(_category(name, counts) for name, counts in _CATEGORIES.items()),
)
