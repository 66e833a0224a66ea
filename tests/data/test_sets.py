"""Every registered data set is read from tiny files of its format, and each says what a user must know."""

import inspect
import io
import re
import tarfile
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedjax_rec.data import registry, splits
from fedjax_rec.data.archives import extract
from fedjax_rec.data.columns import Columns
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.registry import DATASETS, fetch, find_files, load_dataset
from fedjax_rec.data.sets.layouts import (
    Layout,
    read_layout,
    read_lists,
    read_mind,
    read_netflix,
    read_parquet,
    read_steam,
)

# of each data set: its files, and the users, items, ratings and times that they hold
LISTS = (
    {"train.txt": "0 5 6\n1 5\n2\n", "test.txt": "0 7\n1 \n2 7\n"},
    [0, 0, 1, 0, 2],
    [5, 6, 5, 7, 7],
    None,
    None,
)
CHECKINS = "470\t49bb\t4bf5\tCaf\xe9\t40.7\t-74.0\t-240\tTue Apr 03 18:00:09 +0000 2012\n"
CHECKINS += "470\t4a43\t4bf5\tBar\t40.6\t-74.0\t-240\tTue Apr 03 19:00:09 +0000 2012\n"
CHECKINS += "470\t49bb\t4bf5\tCaf\xe9\t40.7\t-74.0\t-240\tTue Apr 03 20:00:09 +0000 2012\n"
APRIL = 1_333_476_009
CHECKED_IN = ([470, 470], ["49bb", "4a43"], None, [APRIL, APRIL + 3600])
VIEWS = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
VIEWS += (
    "14,148,4381,6067,2020-07-05 05:27:48.378,20200705,1593898068.378,0.72\n14,183,1,1,,,1593898069.5,2\n"
)
LOG = "user_id,video_id,date,hourmin,time_ms,is_click\n"


def _kuairand(version, parts=("",)):
    code = version.lower()
    files: dict[str, str] = {}
    for number, days in enumerate(("4_08_to_4_21", "4_22_to_5_08")):
        for part in parts:
            name = f"KuaiRand-{version}/data/log_standard_{days}_{code}{part}.csv"
            files[name] = f"{LOG}{len(files)},{number},20220421,400,165048580{number}500,{number}\n"
    users = list(range(len(files)))
    items = [0] * len(parts) + [1] * len(parts)
    return files, users, items, items, [1_650_485_800.5 + item for item in items]


def _parquet(**columns):
    return pd.DataFrame(columns)


def _vk():
    weeks = [*(f"train/week_{week:02}" for week in range(25)), "validation/week_25", "test/week_26"]
    files = {
        f"{week}.parquet": _parquet(
            user_id=[3, 4], item_id=[number, number], timespent=[9, 20], like=[True, False]
        )
        for number, week in enumerate(weeks)
    }
    numbers = np.repeat(np.arange(27), 2)
    return files, [3, 4] * 27, numbers.tolist(), [9, 20] * 27, (numbers * 7 * 86400).tolist()


def _yambda(path, rating):
    columns = {
        "uid": [100, 100, 200],
        "timestamp": [39420, 39425, 39430],
        "item_id": [8, 9, 8],
        "is_organic": [0, 1, 1],
    }
    extra = {} if rating is None else {"played_ratio_pct": rating}
    return {path: _parquet(**columns, **extra)}, [100, 100, 200], [8, 9, 8], rating, columns["timestamp"]


MIND = {
    "MIND{size}_train/behaviors.tsv": "1\tU7\t11/11/2019 9:05:58 AM\tN9 N8\tN3-1 N4-0 N5-1\n"
    "2\tU8\t11/11/2019 1:05:58 PM\t\tN4-0\n",
    "MIND{size}_dev/behaviors.tsv": "1\tU8\t11/15/2019 12:00:00 AM\tN9\tN3-1\n",
}


def _mind(size):
    files = {name.format(size=size): text for name, text in MIND.items()}
    times = [1_573_463_158, 1_573_463_158, 1_573_776_000]
    return files, ["U7", "U7", "U8"], ["N3", "N5", "N3"], None, times


STEAM = "{u'username': u'Ann', u'hours': 0.1, u'product_id': u'725280', u'date': u'2017-12-17', u'text': u\"'\"}\n"
LASTFM = "userID\tartistID\tweight\n2\t51\t13883\n2\t52\t11690\n"
BOOKS = '"User-ID";"ISBN";"Book-Rating"\n"276725";"034545104X";"0"\n"276726";"0155061224";"5"\n'
GAMES = '151,"Skyrim, V",purchase,1.0,0\n151,"Skyrim, V",play,273.0,0\n152,Dota,purchase,1.0,0\n'
VIDEO = "A1,B00,5.0,1340755200\nA1,B01,4.0,1340755201\n"
AMAZON = "user_id,parent_asin,rating,timestamp\nAE1,B01,5.0,1592678549731\nAE1,B02,1.0,1523093017534\n"
RECIPES: dict[str, Any] = {
    "gowalla": LISTS,
    "yelp2018": LISTS,
    "amazon-book": LISTS,
    "foursquare-nyc": (
        {"dataset_TSMC2014_NYC.txt": CHECKINS.encode("latin-1")},
        *CHECKED_IN,
    ),
    "foursquare-tky": (
        {"dataset_TSMC2014_TKY.txt": CHECKINS.encode("latin-1")},
        *CHECKED_IN,
    ),
    "lastfm-hetrec": ({"user_artists.dat": LASTFM}, [2, 2], [51, 52], [13883, 11690], None),
    "filmtrust": ({"ratings.txt": "1 1 2\n1 2 4\n1 2 3.5\n"}, [1, 1], [1, 2], [2, 3.5], None),
    "netflix": (
        {
            "combined_data_1.txt": "1:\n1488844,3,2005-09-06\n822109,5,2005-05-13\n",
            "combined_data_2.txt": "2:\n822109,4,1970-01-02\n",
            "combined_data_3.txt": "3:\n822109,4,1970-01-03\n",
            "combined_data_4.txt": "4:\n5:\n822109,1,1970-01-04\n",
        },
        [1488844, 822109, 822109, 822109, 822109],
        [1, 1, 2, 3, 5],
        [3, 5, 4, 4, 1],
        [1_125_964_800, 1_115_942_400, 86400, 2 * 86400, 3 * 86400],
    ),
    "book-crossing": (
        {"BX-Book-Ratings.csv": BOOKS},
        [276725, 276726],
        ["034545104X", "0155061224"],
        [0, 5],
        None,
    ),
    "jester": (
        {"jester_ratings.dat": "1\t\t5\t\t0.219\n1\t\t7\t\t-9.281\n"},
        [1, 1],
        [5, 7],
        [0.219, -9.281],
        None,
    ),
    "steam": ({"steam_reviews.json.gz": STEAM}, ["Ann"], [725280], None, [1_513_468_800]),
    "steam-200k": (
        {"steam-200k.csv": GAMES},
        [151, 152],
        ["Skyrim, V", "Dota"],
        None,
        None,
    ),
    "mind-small": _mind("small"),
    "mind-large": _mind("large"),
    "kuairec": ({"big_matrix.csv": VIEWS}, [14, 14], [148, 183], [0.72, 2], [1593898068.378, 1593898069.5]),
    "kuairec-small": (
        {"small_matrix.csv": VIEWS.replace("1593898069.5", "")},
        [14, 14],
        [148, 183],
        [0.72, 2],
        None,
    ),
    "kuairand-pure": _kuairand("Pure"),
    "kuairand-1k": _kuairand("1K"),
    "kuairand-27k": _kuairand("27K", ("_part1", "_part2")),
    "yambda-50m": _yambda("flat/50m/listens.parquet", [100, 40, 60]),
    "yambda-500m": _yambda("flat/500m/listens.parquet", [100, 40, 60]),
    "yambda-5b": _yambda("flat/5b/listens.parquet", [100, 40, 60]),
    "yambda-50m-likes": _yambda("likes.parquet", None),
    "vk-lsvd-small": _vk(),
    "vk-lsvd": _vk(),
    "amazon-instant-video": (
        {"ratings_Amazon_Instant_Video.csv": VIDEO},
        ["A1", "A1"],
        ["B00", "B01"],
        [5, 4],
        [1340755200, 1340755201],
    ),
} | {
    info.name: ({info.file: AMAZON}, ["AE1", "AE1"], ["B01", "B02"], [5, 1], [1592678549.731, 1523093017.534])
    for info in DATASETS.values()
    if info.name.startswith("amazon-2023-")
}
MOVIELENS = [name for name in DATASETS if name.startswith("ml-")]  # tests/data/test_registry.py reads these


def _write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pd.DataFrame):
            content.to_parquet(path)
        elif name.endswith(".gz"):
            import gzip

            path.write_bytes(gzip.compress(content.encode()))
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_every_data_set_has_a_recipe():
    """A data set that is registered is also read here."""
    assert {*RECIPES, *MOVIELENS, "synthetic"} == set(DATASETS)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.usefixtures("_no_network")
def test_tiny_files(tmp_path, monkeypatch, name):
    """Events, ids, ratings and seconds are those of the files, from a folder and from the cache."""
    files, users, items, ratings, times = RECIPES[name]
    info = DATASETS[name]
    monkeypatch.setenv("FEDJAX_REC_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=f"{name}: not found; looked for ") as caught:
        load_dataset(name, data_dir=tmp_path / "here")
    assert (info.by_hand or info.url) in str(caught.value)
    for folder in (tmp_path / "here", tmp_path / "here" / name, tmp_path / "cache" / name):
        _write(folder, files)
    for data in (load_dataset(name, data_dir=tmp_path / "here"), load_dataset(name)):
        events = data.interactions
        assert data.name == name
        assert data.citation == info.citation
        assert events.user_ids[events.users].tolist() == users
        assert events.item_ids[events.items].tolist() == items
        if ratings is None:
            assert events.ratings is None
        else:
            np.testing.assert_allclose(np.asarray(events.ratings), np.float32(ratings))
        if times is None:
            assert events.timestamps is None
        else:
            np.testing.assert_allclose(np.asarray(events.timestamps), times, rtol=0, atol=1e-4)
    fetch(name)  # nothing is left to do


def test_what_each_data_set_says():
    """Who made it, on which terms, where, and, where nobody may just download it, what to do."""
    for info in DATASETS.values():
        if info.name == "synthetic":
            continue
        assert info.citation
        assert info.licence
        assert info.homepage.startswith("http")
        assert bool(info.url) != bool(info.by_hand) or info.name == "ml-1m-loo"
        for url in (info.url, *info.mirrors) if info.url else ():
            assert url.startswith("https://")
            assert url.endswith("/") == (len(info.files) > 0 and not url.endswith((".zip", ".tar.gz")))
        assert info.md5 is None or re.fullmatch("[0-9a-f]{32}", info.md5)
        assert not (info.file and info.files)
        assert info.names
        for preset in info.presets:
            assert preset.source
            assert set(preset.filters) <= set(inspect.signature(splits.leave_one_out).parameters)
            assert preset.filters


@pytest.mark.parametrize("name", ["netflix", "foursquare-nyc", "mind-small", "steam-200k", "book-crossing"])
@pytest.mark.usefixtures("_no_network")
def test_what_needs_a_hand(tmp_path, monkeypatch, name):
    """The line names the page, what to do, the files, and the folder."""
    monkeypatch.setenv("FEDJAX_REC_CACHE", str(tmp_path))
    info = DATASETS[name]
    for ask in (fetch, load_dataset):
        with pytest.raises(DataError) as caught:
            ask(name)
        message = str(caught.value)
        for part in (
            info.homepage,
            info.by_hand,
            info.names[0],
            info.names[-1],
            str(tmp_path / name),
            "--data-dir",
        ):
            assert part in message
        assert "\n" not in message


def test_repeats_take_effect_only_unasked(tmp_path):
    """Check-ins repeat: the first is kept, or what was asked for."""
    _write(tmp_path, RECIPES["foursquare-nyc"][0])
    times = []
    for rule in ("error", "last"):
        data = load_dataset("foursquare-nyc", data_dir=tmp_path, duplicates=rule)
        times.append(np.asarray(data.interactions.timestamps).astype(int).tolist())
    assert times == [[APRIL, APRIL + 3600], [APRIL + 3600, APRIL + 7200]]
    _write(tmp_path, {"user_artists.dat": "userID\tartistID\tweight\n2\t51\t1\n2\t51\t2\n"})
    with pytest.raises(DataError, match="user 2 already has item 51"):
        load_dataset("lastfm-hetrec", data_dir=tmp_path)


def test_parts_of_a_split_that_a_copy_has(tmp_path):
    """What a copy of a split has taken out for validation is read too, gzip or not."""
    _write(tmp_path / "gowalla", {"train.txt.gz": "0 5\n", "valid.txt": "0 6\n", "test.txt": "0 7\n"})
    assert load_dataset("gowalla", data_dir=tmp_path).interactions.item_ids.tolist() == [5, 7, 6]
    (tmp_path / "gowalla" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"gowalla: not found; looked for .*gowalla/test\.txt, "):
        load_dataset("gowalla", data_dir=tmp_path)


def _archive(kind, members):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as bundle:
            for name, content in members.items():
                bundle.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as bundle:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                bundle.addfile(entry, io.BytesIO(content.encode()))
    return buffer.getvalue()


@pytest.mark.usefixtures("_no_network")
def test_archives_in_a_folder(tmp_path):
    """A zip whose folder has another name, and a tar.gz of several logs."""
    (tmp_path / "KuaiRec.zip").write_bytes(
        _archive("zip", {"KuaiRec/data/big_matrix.csv": VIEWS, "README": ""})
    )
    assert load_dataset("kuairec", data_dir=tmp_path).interactions.item_ids.tolist() == [148, 183]
    files = RECIPES["kuairand-pure"][0]
    (tmp_path / "KuaiRand-Pure.tar.gz").write_bytes(
        _archive("tar.gz", {"KuaiRand-Pure/README": "hello", **files})
    )
    assert load_dataset("kuairand-pure", data_dir=tmp_path).interactions.num_users == 2


def test_several_files_are_downloaded_and_verified(tmp_path, monkeypatch):
    """Files that lie beside each other come one by one, members of an archive with one download."""
    served = {
        "https://example.org/lists/train.txt": b"0 5\n",
        "https://example.org/lists/test.txt": b"0 6\n",
        "https://example.org/KuaiRand-Pure.tar.gz": _archive("tar.gz", RECIPES["kuairand-pure"][0]),
    }
    asked = []

    class Answer(io.BytesIO):
        def __init__(self, url):
            super().__init__(served[url])
            self.url = url
            self.headers = {"Content-Length": str(len(served[url]))}

    def urlopen(request, timeout):
        del timeout
        asked.append(request.full_url)
        return Answer(request.full_url)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("FEDJAX_REC_CACHE", str(tmp_path))
    lists = DATASETS["gowalla"]._replace(url="https://example.org/lists/", mirrors=())
    monkeypatch.setitem(registry.DATASETS, "gowalla", lists)
    logs = DATASETS["kuairand-pure"]._replace(url="https://example.org/KuaiRand-Pure.tar.gz", md5=None)
    monkeypatch.setitem(registry.DATASETS, "kuairand-pure", logs)
    for name in ("gowalla", "kuairand-pure"):
        assert fetch(name) == tmp_path / name
        found: Any = find_files(registry.DATASETS[name])
        assert all(Path(f"{path}.sha256").is_file() for path in found)
        load_dataset(name)
    assert asked == list(served)
    (tmp_path / "gowalla" / "test.txt").write_text("0 7\n")
    with pytest.raises(DataError, match="changed since it was downloaded"):
        load_dataset("gowalla")
    monkeypatch.setitem(registry.DATASETS, "kuairand-1k", logs._replace(name="kuairand-1k", md5="0" * 32))
    with pytest.raises(DataError, match=r"wrong md5, [0-9a-f]{32} instead of 0{32}"):
        fetch("kuairand-1k")
    assert not list((tmp_path / "kuairand-1k").iterdir())


def test_tar_archives_that_are_refused(tmp_path):
    """A link, a missing member, a damaged archive; nothing is written."""
    entry = tarfile.TarInfo("a.csv")
    entry.type = tarfile.SYMTYPE
    entry.linkname = "/etc/passwd"
    with tarfile.open(tmp_path / "link.tar.gz", "w:gz") as bundle:
        bundle.addfile(entry)
    whole = _archive("tar.gz", {"b.csv": "x" * 10**5})
    (tmp_path / "other.tar.gz").write_bytes(whole)
    (tmp_path / "cut.tar.gz").write_bytes(whole[:40])
    for name, words in (
        ("link", "not a regular file"),
        ("other", "has no a.csv"),
        ("cut", "damaged tar archive"),
    ):
        with pytest.raises(DataError, match=words):
            extract(tmp_path / f"{name}.tar.gz", "a.csv", tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()


def _named(*names, **more):
    """A reader of a csv with a header."""
    return lambda path: read_layout(path, layout=Layout(Columns(*names), **more))


MALFORMED: list[tuple[Any, Any, str]] = [
    (read_netflix, "1488844,3,2005-09-06\n", "file:1: '1488844,3,2005-09-06' is not of the form movie:"),
    (read_netflix, "1:\n1488844,3\n", "file:2: '1488844,3' is not of the form user,rating,date"),
    (read_netflix, "1:\n1488844,3,2005-13-06\n", "event 1: timestamp nan is not a finite number"),
    (read_netflix, "1:\n2:\n", "no interactions"),
    (read_mind, "1\tU7\t11/11/2019 9:05:58 AM\tN1\n", "file:1: 4 fields instead of 5"),
    (read_mind, "1\tU7\tyesterday\tN1\tN2-1\n", "event 1: timestamp nan"),
    (read_steam, STEAM + "__import__('os').system('true')\n", "file:2: not a dictionary with username"),
    (read_steam, "{'username': 'a'}\n", "file:1: not a dictionary"),
    (read_lists, "0 5 5\n", "file event 2: user 0 already has item 5"),
    (read_lists, "0\n", "no interactions"),
    (_named("u", "i"), "u,item\n1,2\n", "no column 'i'; did you mean 'item'"),
    (_named("u", "i", "r"), "u,i,r\n1,2,x\n", "file:2: rating"),
    (_named("u", "i", None, "t", time="ms"), "u,i,t\n1,2,3\n1,4,\n", "file:3: timestamp"),
    (_named("u", "i", names=("u", "i")), "1,2\n,3\n", "file:2: empty 'u'"),
    (_named("u", "i", names=("u", "i")), b"1,\xe9\n", "codec can't decode"),
    (lambda path: read_parquet(path, columns=Columns("u", "i")), "no parquet", "not a readable parquet file"),
]


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_malformed_files(tmp_path, number):
    """One line names the file and what is wrong; nothing in a file is executed."""
    read, content, words = MALFORMED[number]
    _write(tmp_path, {"file": content})
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        read(tmp_path / "file")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "file") in str(caught.value)


def test_parquet_that_lacks_something(tmp_path):
    """A column, a week in the name, the file."""
    _parquet(user_id=[1], item_id=[2]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: no column 'uid'; did you mean"):
        read_parquet(tmp_path / "rows.parquet", columns=Columns("uid", "item_id"))
    with pytest.raises(DataError, match="does not end with the number of a week"):
        read_parquet(tmp_path / "rows.parquet", columns=Columns("user_id", "item_id"), weeks=True)
    with pytest.raises(DataError, match="no such file"):
        read_lists(tmp_path / "none.txt")


def test_chunks_make_no_difference(tmp_path, monkeypatch):
    """What goes on from one chunk to the next: the film of Netflix' ratings, and the numbers of lines."""
    from fedjax_rec.data.sets import layouts

    text = "1:\n" + "".join(f"{user},3,2005-09-06\n" for user in range(7)) + "2:\n3,4,2005-09-06\n"
    _write(tmp_path, {"a": text, "b": "u,i\n" + "".join(f"{user},1\n" for user in range(7)) + "5,1\n"})
    whole = read_netflix(tmp_path / "a")
    monkeypatch.setattr(layouts, "_ROWS", 2)
    small = read_netflix(tmp_path / "a")
    for one, other in zip(whole, small, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    with pytest.raises(DataError, match=r"b:9: user 5 already has item 1 at .*b:7"):
        read_layout(tmp_path / "b", layout=Layout(Columns("u", "i")))


def test_real_gowalla(shared_data, caplog):
    """The copy at hand has the published numbers of users, items and events."""
    events = load_dataset("gowalla", data_dir=shared_data).interactions
    assert (events.num_users, events.num_items, len(events.users)) == DATASETS["gowalla"].counts
    assert not caplog.text
