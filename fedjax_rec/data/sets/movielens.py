"""MovieLens, and the synthetic data, which come first as they need no file.

Checksums and sizes are those that TensorFlow Datasets publishes; GroupLens gives none for `ml-10m` and `ml-32m`.
"""

from fedjax_rec.data.loo import read_loo_directory
from fedjax_rec.data.readers import read_movielens_100k, read_movielens_csv, read_movielens_dat
from fedjax_rec.data.sets.info import Counts, DatasetInfo, Preset

_HARPER = (
    "F. M. Harper and J. A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5(4), 19. https://doi.org/10.1145/2827872"
)
_NCF = (
    "X. He, L. Liao, H. Zhang, L. Nie, X. Hu, and T.-S. Chua. 2017. Neural Collaborative Filtering. "
    "Proceedings of the 26th International Conference on World Wide Web. https://arxiv.org/abs/1708.05031"
)
_ASK_FIRST = "GroupLens terms: research use; no redistribution or commercial use without permission"
_SAME_TERMS = "GroupLens terms: research use; redistribution under the same terms; no commercial use"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_MIRROR = "https://huggingface.co/datasets/Recommenders/MovieLens/resolve/main"
LIANG = Preset("vae", "Liang et al. 2018, arXiv:1802.05814", min_rating=4.0, min_user_events=5)


def _movielens(name: str, title: str, counts: tuple[int, int, int], **changes: object) -> DatasetInfo:
    """A MovieLens archive of GroupLens; the settings common to the larger ones are the defaults."""
    info = DatasetInfo(
        name=name,
        title=title,
        counts=Counts(*counts),
        licence=_SAME_TERMS,
        citation=_HARPER,
        redistributable=True,
        url=f"{_GROUPLENS}/{name}.zip",
        file=f"{name}/ratings.csv",
        reader=read_movielens_csv,
        homepage="https://grouplens.org/datasets/movielens/",
        presets=(LIANG,),
    )
    return info._replace(**changes)  # type: ignore[arg-type]


MOVIELENS = (
    DatasetInfo(
        "synthetic",
        "synthetic long-tail population with known preferences",
        Counts(1000, 1200, 94_387),
        licence="none needed: drawn by fedjax_rec",
        citation="",
        redistributable=True,
        kind="synthetic",
    ),
    _movielens(
        "ml-100k",
        "MovieLens 100K (1998)",
        (943, 1682, 100_000),
        licence=_ASK_FIRST,
        redistributable=False,
        mirrors=(f"{_MIRROR}/ml-100k.zip",),
        sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        size=4_924_029,
        file="ml-100k/u.data",
        file_sha256="06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
        reader=read_movielens_100k,
    ),
    _movielens(
        "ml-1m",
        "MovieLens 1M (2003)",
        (6040, 3706, 1_000_209),
        licence=_ASK_FIRST,
        redistributable=False,
        mirrors=(
            f"{_MIRROR}/ml-1m.zip",
            "https://static.preferred.ai/cornac/datasets/movielens/ml-1m.zip",
        ),
        sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        size=5_917_549,
        file="ml-1m/ratings.dat",
        reader=read_movielens_dat,
    ),
    _movielens(
        "ml-10m",
        "MovieLens 10M (2009)",
        (69_878, 10_677, 10_000_054),
        licence=_ASK_FIRST,
        redistributable=False,
        mirrors=(f"{_MIRROR}/ml-10m.zip",),
        file="ml-10M100K/ratings.dat",
        reader=read_movielens_dat,
    ),
    _movielens(
        "ml-20m",
        "MovieLens 20M (2015)",
        (138_493, 26_744, 20_000_263),
        mirrors=(f"{_MIRROR}/ml-20m.zip",),
        sha256="96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
        size=198_702_078,
    ),
    _movielens(
        "ml-25m",
        "MovieLens 25M (2019)",
        (162_541, 59_047, 25_000_095),
        sha256="8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
        size=261_978_986,
    ),
    _movielens("ml-32m", "MovieLens 32M (2023)", (200_948, 84_432, 32_000_204)),
    _movielens(
        "ml-latest-small",
        "MovieLens latest-small (September 2018)",
        (610, 9724, 100_836),
        sha256="696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        size=978_202,
        file_sha256="aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
    ),
    DatasetInfo(
        "ml-1m-loo",
        "MovieLens 1M, leave-one-out with 99 official candidates",
        Counts(6040, 3706, 994_169),
        licence=_ASK_FIRST,
        citation=f"{_HARPER}; {_NCF}",
        redistributable=False,
        file="ml-1m-loo",
        reader=read_loo_directory,
        kind="split",
        homepage="https://github.com/hexiangnan/neural_collaborative_filtering",
    ),
)
