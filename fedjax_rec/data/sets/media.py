"""Music, films, books, jokes, games, news and videos."""

from functools import partial

from fedjax_rec.data.columns import Columns
from fedjax_rec.data.sets.info import Counts, DatasetInfo, Preset
from fedjax_rec.data.sets.layouts import (
    Layout,
    read_layout,
    read_mind,
    read_netflix,
    read_parquet,
    read_steam,
)
from fedjax_rec.data.sets.movielens import LIANG

_CANTADOR = (
    "I. Cantador, P. Brusilovsky, and T. Kuflik. 2011. 2nd Workshop on Information Heterogeneity and Fusion in "
    "Recommender Systems (HetRec 2011). RecSys 2011. https://doi.org/10.1145/2043932.2044016"
)
_GUO = (
    "G. Guo, J. Zhang, and N. Yorke-Smith. 2013. A Novel Bayesian Similarity Measure for Recommender Systems. "
    "IJCAI 2013, 2619-2625"
)
_BENNETT = "J. Bennett and S. Lanning. 2007. The Netflix Prize. KDD Cup and Workshop 2007"
_ZIEGLER = (
    "C.-N. Ziegler, S. M. McNee, J. A. Konstan, and G. Lausen. 2005. Improving Recommendation Lists Through Topic "
    "Diversification. WWW 2005. https://doi.org/10.1145/1060745.1060754"
)
_GOLDBERG = (
    "K. Goldberg, T. Roeder, D. Gupta, and C. Perkins. 2001. Eigentaste: A Constant Time Collaborative Filtering "
    "Algorithm. Information Retrieval 4(2), 133-151. https://doi.org/10.1023/A:1011419012209"
)
_KANG = (
    "W.-C. Kang and J. McAuley. 2018. Self-Attentive Sequential Recommendation. ICDM 2018. "
    "https://arxiv.org/abs/1808.09781"
)
_WU = "F. Wu et al. 2020. MIND: A Large-scale Dataset for News Recommendation. ACL 2020, 3597-3606"
_GAO_REC = (
    "C. Gao et al. 2022. KuaiRec: A Fully-observed Dataset and Insights for Evaluating Recommender Systems. CIKM "
    "2022. https://arxiv.org/abs/2202.10842"
)
_GAO_RAND = (
    "C. Gao et al. 2022. KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos. "
    "CIKM 2022. https://arxiv.org/abs/2208.08696"
)
_YAMBDA = (
    "A. Ploshkin et al. 2025. Yambda-5B: A Large-Scale Multi-modal Dataset for Ranking And Retrieval. "
    "https://arxiv.org/abs/2505.22238"
)
_LSVD = "deep vk. 2025. VK-LSVD: Large Short-Video Dataset. https://huggingface.co/datasets/deepvk/VK-LSVD"
_UNSTATED = "none stated by the publisher: research use"
_CC_BY_SA = "CC BY-SA 4.0"
_APACHE = "Apache-2.0"

_TRIPLE = ("user", "item", "rating")
_BLANKS = Layout(Columns(*_TRIPLE), _TRIPLE, r"\s+")
_PURCHASES = Layout(
    Columns("user", "game"), ("user", "game", "behaviour", "hours", "zero"), only=("behaviour", "purchase")
)
_WATCHED = Preset("liked", "Gao et al. 2022, arXiv:2202.10842: watched for twice its length", min_rating=2.0)
_LISTENED = Preset("listen+", "Ploshkin et al. 2025, arXiv:2505.22238: half of the track", min_rating=50.0)
_CLICKED = Preset("clicks", "Gao et al. 2022, arXiv:2208.08696: is_click", min_rating=1.0)
_LOOKED_AT = Preset("watched", "the publisher's baselines: more than ten seconds", min_rating=11.0)


def _kuairec(
    name: str, matrix: str, title: str, counts: tuple[int, int, int], times: str | None
) -> DatasetInfo:
    columns = Columns("user_id", "video_id", "watch_ratio", times)
    return DatasetInfo(
        name=name,
        title=title,
        counts=Counts(*counts),
        licence=_CC_BY_SA,
        citation=_GAO_REC,
        redistributable=True,
        url="https://zenodo.org/records/18164998/files/KuaiRec.zip",
        md5="261550d472c48eff4990fb13c0e5bcf7",
        file=f"KuaiRec 2.0/data/{matrix}",
        reader=partial(read_layout, layout=Layout(columns)),
        kind="views",
        homepage="https://kuairec.com",
        counts_are_exact=False,
        repeats="last",
        presets=(_WATCHED,),
    )


def _kuairand(
    version: str, md5: str, counts: tuple[int, int, int], by_hand: str = "", parts: tuple[str, ...] = ("",)
) -> DatasetInfo:
    """The standard feed, without the log of random exposure; what was shown and not clicked has the rating 0."""
    code = version.lower()
    logs = [
        f"log_standard_{days}_{code}{part}.csv" for days in ("4_08_to_4_21", "4_22_to_5_08") for part in parts
    ]
    layout = Layout(Columns("user_id", "video_id", "is_click", "time_ms"), time="ms")
    return DatasetInfo(
        name=f"kuairand-{code}",
        title=f"KuaiRand-{version}: videos shown in April and May 2022, and whether they were clicked",
        counts=Counts(*counts),
        licence=_CC_BY_SA,
        citation=_GAO_RAND,
        redistributable=True,
        url="" if by_hand else f"https://zenodo.org/records/10439422/files/KuaiRand-{version}.tar.gz",
        md5=None if by_hand else md5,
        max_size=2**31,
        files=tuple(f"KuaiRand-{version}/data/{log}" for log in logs),
        reader=partial(read_layout, layout=layout),
        kind="views",
        homepage="https://kuairand.com",
        by_hand=by_hand,
        counts_are_exact=False,
        repeats="last",
        presets=(_CLICKED,),
    )


def _yambda(size: str, event: str, counts: tuple[int, int, int], gib: int) -> DatasetInfo:
    listens = event == "listens"
    rating = "played_ratio_pct" if listens else None
    return DatasetInfo(
        name=f"yambda-{size}" if listens else f"yambda-{size}-{event}",
        title=f"Yambda-{size.upper()}: {event} at Yandex Music, seconds from a start that is not told",
        counts=Counts(*counts),
        licence=_APACHE,
        citation=_YAMBDA,
        redistributable=True,
        url=f"https://huggingface.co/datasets/yandex/yambda/resolve/main/flat/{size}/{event}.parquet",
        max_size=gib * 2**30,
        file=f"flat/{size}/{event}.parquet",
        reader=partial(read_parquet, columns=Columns("uid", "item_id", rating, "timestamp")),
        kind="plays" if listens else event,
        homepage="https://huggingface.co/datasets/yandex/yambda",
        counts_are_exact=False,
        repeats="first",
        presets=(_LISTENED,) if listens else (),
    )


def _vk(name: str, folder: str, title: str, counts: Counts | None) -> DatasetInfo:
    weeks = (*(f"train/week_{week:02}" for week in range(25)), "validation/week_25", "test/week_26")
    return DatasetInfo(
        name=name,
        title=title,
        counts=counts,
        licence=_APACHE,
        citation=_LSVD,
        redistributable=True,
        url=f"https://huggingface.co/datasets/deepvk/VK-LSVD/resolve/main/{folder}/",
        max_size=2**36,
        files=tuple(f"{week}.parquet" for week in weeks),
        reader=partial(read_parquet, columns=Columns("user_id", "item_id", "timespent"), weeks=True),
        kind="views",
        homepage="https://huggingface.co/datasets/deepvk/VK-LSVD",
        counts_are_exact=False,
        repeats="first",
        presets=(_LOOKED_AT,),
    )


MEDIA = (
    DatasetInfo(
        name="lastfm-hetrec",
        title="Last.fm of HetRec 2011: how often users played artists",
        counts=Counts(1892, 17_632, 92_834),
        licence="HetRec terms: non-commercial use",
        citation=_CANTADOR,
        redistributable=False,
        url="https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",
        file="user_artists.dat",
        reader=partial(read_layout, layout=Layout(Columns("userID", "artistID", "weight"), separator="\t")),
        kind="plays",
        homepage="https://grouplens.org/datasets/hetrec-2011/",
    ),
    DatasetInfo(
        name="filmtrust",
        title="FilmTrust, crawled in June 2011",
        counts=Counts(1508, 2071, 35_497),
        licence=_UNSTATED,
        citation=_GUO,
        redistributable=False,
        url="https://guoguibing.github.io/librec/datasets/filmtrust.zip",
        mirrors=("https://static.preferred.ai/cornac/datasets/filmtrust/filmtrust.zip",),
        file="ratings.txt",
        reader=partial(read_layout, layout=_BLANKS),
        homepage="https://guoguibing.github.io/librec/datasets.html",
        counts_are_exact=False,
        repeats="last",
    ),
    DatasetInfo(
        name="netflix",
        title="Netflix prize (1999 to 2005)",
        counts=Counts(480_189, 17_770, 100_480_507),
        licence="Netflix prize terms: research use; no redistribution or commercial use without permission",
        citation=_BENNETT,
        redistributable=False,
        files=tuple(f"combined_data_{part}.txt" for part in (1, 2, 3, 4)),
        reader=read_netflix,
        homepage="https://www.kaggle.com/datasets/netflix-inc/netflix-prize-data",
        by_hand="register at Kaggle, and download and unpack the archive there",
        presets=(LIANG,),
    ),
    DatasetInfo(
        name="book-crossing",
        title="Book-Crossing (2004); a rating of 0 says that the book was met without a rating",
        counts=Counts(105_283, 340_556, 1_149_780),
        licence="free for research with an acknowledgement",
        citation=_ZIEGLER,
        redistributable=False,
        file="BX-Book-Ratings.csv",
        reader=partial(
            read_layout,
            layout=Layout(Columns("User-ID", "ISBN", "Book-Rating"), separator=";", encoding="latin-1"),
        ),
        homepage="http://www2.informatik.uni-freiburg.de/~cziegler/BX/",
        by_hand="download BX-CSV-Dump.zip there, which is served by plain http only",
        counts_are_exact=False,
        repeats="last",
        presets=(Preset("explicit", "Ziegler et al. 2005", min_rating=1.0),),
    ),
    DatasetInfo(
        name="jester",
        title="Jester, dataset 2: jokes rated from -10 to 10 (2006 to 2009)",
        counts=Counts(59_132, 140, 1_761_439),
        licence="free for research with a citation",
        citation=_GOLDBERG,
        redistributable=False,
        url="https://eigentaste.berkeley.edu/dataset/archive/jester_dataset_2.zip",
        file="jester_ratings.dat",
        reader=partial(read_layout, layout=_BLANKS),
        homepage="https://eigentaste.berkeley.edu/dataset/",
        counts_are_exact=False,
        repeats="last",
    ),
    DatasetInfo(
        name="steam",
        title="Steam reviews, October 2010 to January 2018",
        counts=Counts(2_567_538, 15_474, 7_793_069),
        licence=_UNSTATED,
        citation=_KANG,
        redistributable=False,
        url="https://mcauleylab.ucsd.edu/public_datasets/data/steam/steam_reviews.json.gz",
        mirrors=("https://cseweb.ucsd.edu/~wckang/steam_reviews.json.gz",),
        max_size=2**31,
        file="steam_reviews.json.gz",
        reader=read_steam,
        kind="reviews",
        homepage="https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data",
        counts_are_exact=False,
        repeats="first",
        presets=(Preset("sasrec", "Kang and McAuley 2018, arXiv:1808.09781", core=5),),
    ),
    DatasetInfo(
        name="steam-200k",
        title="Steam-200K: games that users bought",
        counts=Counts(12_393, 5155, 129_511),
        licence="as stated at Kaggle",
        citation="T. Bunker. 2016. Steam Video Games. https://www.kaggle.com/datasets/tamber/steam-video-games",
        redistributable=False,
        file="steam-200k.csv",
        reader=partial(read_layout, layout=_PURCHASES),
        kind="purchases",
        homepage="https://www.kaggle.com/datasets/tamber/steam-video-games",
        by_hand="register at Kaggle, and download and unpack the archive there",
        counts_are_exact=False,
        repeats="first",
    ),
    *(
        DatasetInfo(
            name=f"mind-{size}",
            title=f"MIND-{size}: news clicked in the training and validation weeks, November 2019",
            counts=None,
            licence="Microsoft Research terms: non-commercial research",
            citation=_WU,
            redistributable=False,
            files=tuple(f"MIND{size}_{part}/behaviors.tsv" for part in ("train", "dev")),
            reader=read_mind,
            kind="clicks",
            homepage="https://msnews.github.io",
            by_hand="accept the licence there, and unpack both archives, each into a folder of its name",
            repeats="first",
        )
        for size in ("small", "large")
    ),
    _kuairec("kuairec", "big_matrix.csv", "KuaiRec: the big matrix", (7176, 10_728, 12_530_806), "timestamp"),
    _kuairec(
        "kuairec-small",
        "small_matrix.csv",
        "KuaiRec: the small matrix, almost fully observed; not all of its events have times, which are left out",
        (1411, 3327, 4_676_570),
        None,
    ),
    _kuairand("Pure", "0820331067a3784d9691136f772b35a7", (27_285, 7551, 1_436_609)),
    _kuairand("1K", "6b0b9c8222d67fcd4c676218edca3f1f", (1000, 4_369_953, 11_713_045)),
    _kuairand(
        "27K",
        "",
        (27_285, 32_038_725, 322_278_385),
        "download KuaiRand-27K.tar.gz (9.2 GB) from Zenodo, record 10439422, and unpack it (46 GB)",
        ("_part1", "_part2"),
    ),
    _yambda("50m", "listens", (9238, 877_168, 46_467_212), 2),
    _yambda("500m", "listens", (100_000, 3_004_578, 466_512_103), 16),
    _yambda("5b", "listens", (1_000_000, 9_390_623, 4_649_567_411), 128),
    _yambda("50m", "likes", (8283, 181_304, 881_456), 1),
    _vk(
        "vk-lsvd-small",
        "subsamples/ur0.01_ir0.01",
        "VK-LSVD: short videos, a hundredth of the users and of the items",
        None,
    ),
    _vk(
        "vk-lsvd",
        "interactions",
        "VK-LSVD: short videos, six months of 2025",
        Counts(10_000_000, 19_627_601, 40_774_024_903),
    ),
)
