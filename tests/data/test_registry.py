"""The registry: folders, the cache, mirrors, and downloads that go wrong in every way."""

import contextlib
import hashlib
import http.server
import io
import logging
import re
import stat
import threading
import urllib.request
import zipfile
from typing import Any

import numpy as np
import pytest

from fedjax_rec.data import download, registry
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.registry import DATASETS, describe, fetch, list_datasets, load_dataset

U_DATA = b"196\t242\t3\t881250949\n186\t302\t3\t891717742\n"


def archive(*members, mode=0):
    """A zip archive with the given (name, contents)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            bundle.writestr(info, content)
    return buffer.getvalue()


GOOD = archive(("ml-100k/README", b"hello"), ("ml-100k/u.data", U_DATA))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the server's `files`, with a claimed length from `lengths`, and notes what was asked."""

    server: Any
    headerless = False

    def do_GET(self):
        self.server.requested.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        if not self.headerless:
            self.send_header("Content-Length", str(self.server.lengths.get(self.path, len(content))))
        self.end_headers()
        with contextlib.suppress(OSError):  # the other side may have had enough
            self.wfile.write(content)

    def log_message(self, *_):
        """Stay silent."""


@pytest.fixture
def server():
    """A web server on this host."""
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {"/ml-100k.zip": GOOD}
    server.lengths = {}
    server.requested = []
    server.base = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def local(server, tmp_path, monkeypatch):
    """Points ml-100k to the server and the cache to an empty folder; returns a function that changes more."""
    monkeypatch.setenv("FEDJAX_REC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def change(**more):
        info = registry.DATASETS["ml-100k"]._replace(
            url=f"{server.base}/ml-100k.zip",
            mirrors=(),
            sha256=hashlib.sha256(GOOD).hexdigest(),
            size=len(GOOD),
            file_sha256=None,
        )
        monkeypatch.setitem(registry.DATASETS, "ml-100k", info._replace(**more))
        return tmp_path / "cache" / "ml-100k"

    change()
    return change


@pytest.fixture
def no_network(monkeypatch):
    """Any use of the network fails the test."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def failed(name="ml-100k", **kwargs):
    """The one line of an error."""
    with pytest.raises(DataError) as caught:
        load_dataset(name, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_download_once_and_verify_ever_after(server, local):
    """The second load asks nobody; a file that changed is refused."""
    data = load_dataset("ml-100k")
    assert data.name == "ml-100k"
    assert "Harper" in data.citation
    assert data.interactions.user_ids.tolist() == [196, 186]
    load_dataset("ml-100k")
    assert server.requested == ["/ml-100k.zip"]
    folder = local()
    assert sorted(file.name for file in folder.iterdir()) == ["u.data", "u.data.sha256"]
    with (folder / "u.data").open("ab") as file:
        file.write(b"1\t1\t1\t1\n")
    assert "changed since it was downloaded" in failed()


def test_progress_bar_is_optional(local, capsys):
    """Nothing is printed unless asked for."""
    load_dataset("ml-100k")
    assert capsys.readouterr() == ("", "")
    for file in local().iterdir():
        file.unlink()
    load_dataset("ml-100k", progress=True)
    assert "download" in capsys.readouterr().err


def test_unknown_checksum_is_trusted_with_a_warning(local, caplog):
    """The first download is recorded; the log tells."""
    local(sha256=None, size=None)
    with caplog.at_level(logging.WARNING):
        load_dataset("ml-100k")
    assert (
        f"no published checksum; trusted the download with sha256 {hashlib.sha256(GOOD).hexdigest()}"
        in caplog.text
    )
    digest = hashlib.sha256(U_DATA).hexdigest()
    assert (local() / "u.data.sha256").read_text().split()[0] == digest


CORRUPT = bytes([GOOD[0] ^ 1]) + GOOD[1:]
BROKEN = {
    "missing": ({}, {}, "HTTP Error 404"),
    "truncated": ({"/ml-100k.zip": GOOD[:50]}, {"/ml-100k.zip": len(GOOD)}, "truncated, 50 of"),
    "claims to be larger": (
        {"/ml-100k.zip": GOOD},
        {"/ml-100k.zip": 2**40},
        "wrong size, 1099511627776 bytes",
    ),
    "wrong size": ({"/ml-100k.zip": GOOD + b"x"}, {}, "wrong size"),
    "corrupt": ({"/ml-100k.zip": CORRUPT}, {}, "wrong sha256"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_downloads(server, local, kind):
    """The error names the address, the reason and the way out; nothing is left behind; a mirror saves it."""
    files, lengths, reason = BROKEN[kind]
    server.files = {**files, "/mirror/ml-100k.zip": GOOD}
    server.lengths = lengths
    message = failed()
    assert re.search(rf"ml-100k: download failed \(.*{server.base}/ml-100k.zip: .*{reason}", message)
    assert "--data-dir" in message
    assert not list(local().glob("*"))
    local(mirrors=(f"{server.base}/none.zip", f"{server.base}/mirror/ml-100k.zip"))
    assert load_dataset("ml-100k").interactions.num_users == 2
    assert server.requested[-3:] == ["/ml-100k.zip", "/none.zip", "/mirror/ml-100k.zip"]


def test_no_more_is_taken_than_was_published(server, local, monkeypatch):
    """Without an announced length a download ends at the published size or the cap; a slow one ends, too."""
    monkeypatch.setattr(server.RequestHandlerClass, "headerless", True)
    server.files = {"/ml-100k.zip": GOOD + bytes(10**6)}
    assert f"wrong size, more than {len(GOOD)} bytes" in failed()
    local(sha256=None, size=None, max_size=1000)
    assert "wrong size, more than 1000 bytes" in failed()
    local(sha256=None, size=None, max_size=10**7)
    monkeypatch.setattr(download, "_PATIENCE", -1.0)
    monkeypatch.setattr(download, "_MIN_RATE", 1e12)
    assert "too slow" in failed()
    assert not list(local().glob("*"))


def test_no_way_out_of_https(local, monkeypatch):
    """A redirection to plain http elsewhere is refused before its bytes are used."""
    real = urllib.request.urlopen

    def elsewhere(*args, **kwargs):
        answer = real(*args, **kwargs)
        answer.url = "http://example.org/ml-100k.zip"
        return answer

    monkeypatch.setattr(urllib.request, "urlopen", elsewhere)
    assert "not an https address" in failed()
    assert not list(local().glob("*"))


def test_no_connection(local):
    """A refused connection is one line, too."""
    local(url="http://127.0.0.1:9/ml-100k.zip")
    assert "127.0.0.1:9" in failed()
    local(url="file:///etc/hostname")
    assert "not an https address" in failed()
    local(url="http://example.org/ml-100k.zip")
    assert "not an https address" in failed()


EVIL = {
    "no member": archive(("other", b"")),
    "path traversal": archive(("ml-100k/u.data", U_DATA), ("../../ml-100k/u.data", U_DATA)),
    "absolute": archive(("ml-100k/u.data", U_DATA), ("/ml-100k/u.data", U_DATA)),
    "link": archive(("ml-100k/u.data", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777),
    "no archive": b"<html>blocked</html>",
}


EVIL_REASONS = {
    "no member": "has no ml-100k/u.data",
    "path traversal": "a name that leads elsewhere",
    "absolute": "an absolute name",
    "link": "not a regular file",
    "no archive": "damaged zip archive",
}


@pytest.mark.parametrize("kind", EVIL)
def test_evil_archives(server, local, tmp_path, kind):
    """Only a regular member of exactly the right name is ever written, and only in the right place."""
    server.files = {"/ml-100k.zip": EVIL[kind]}
    folder = local(sha256=None, size=None)
    assert EVIL_REASONS[kind] in failed()
    assert not list(folder.glob("*"))
    assert not list(tmp_path.rglob("u.data"))


def test_damaged_member(tmp_path):
    """A checksum inside the archive that does not match is noticed."""
    (tmp_path / "a.zip").write_bytes(GOOD.replace(b"196\t242", b"196\t243"))
    with pytest.raises(DataError, match="damaged zip archive"):
        download.extract(tmp_path / "a.zip", "ml-100k/u.data", tmp_path / "u.data")


@pytest.mark.parametrize(
    ("name", "path", "content"),
    [
        ("ml-100k", "ml-100k/u.data", U_DATA),
        ("ml-100k", "u.data", U_DATA),
        ("ml-100k", "ml-100k.zip", GOOD),
        ("ml-1m", "ratings.dat", b"1::2::3::4\n2::2::3::4\n"),
        ("ml-10m", "ml-10M100K/ratings.dat", b"1::2::3.5::4\n2::2::3::4\n"),
        ("ml-20m", "ml-20m/ratings.csv", b"userId,movieId,rating,timestamp\n1,2,3.5,4\n2,2,3.5,4\n"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_data_dir(tmp_path, caplog, name, path, content):
    """Every place is looked at, never the network; a file that is not the published one is logged."""
    message = failed(name, data_dir=tmp_path)
    assert str(tmp_path / path) in message
    assert f"{name}: not found; looked for" in message
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_bytes(content)
    data = load_dataset(name, data_dir=str(tmp_path))
    assert (data.name, data.interactions.num_users) == (name, 2)
    assert "instead of Counts(users=" in caplog.text
    assert ("differs from the published file" in caplog.text) == (name == "ml-100k")


@pytest.mark.usefixtures("no_network")
def test_split_data_set_comes_from_a_folder_only(tmp_path, monkeypatch):
    """There is no address for it."""
    monkeypatch.setenv("FEDJAX_REC_CACHE", str(tmp_path))
    assert "cannot be downloaded; pass --data-dir" in failed("ml-1m-loo")
    assert "not found; looked for" in failed("ml-1m-loo", data_dir=tmp_path)


@pytest.mark.usefixtures("no_network")
def test_paths(tmp_path):
    """A path to a file or a directory is a data set, with columns named where need be."""
    (tmp_path / "log.csv").write_text("who,what\na,b\n")
    assert "names of columns, or the first event? (who, what)" in failed(tmp_path / "log.csv")
    data = load_dataset(tmp_path / "log.csv", user="who", item="what")
    assert (data.name, data.interactions.item_ids.tolist()) == ("log", ["b"])
    assert "without train.tsv(.gz), train.txt and test.txt" in failed(tmp_path)
    (tmp_path / "u.data").write_bytes(U_DATA)
    assert load_dataset(str(tmp_path)).interactions.num_users == 2
    (tmp_path / "train.tsv").write_text("user\titem\n1\t2\n")
    (tmp_path / "test.tsv").write_text("user\titem\n1\t3\n")
    split: Any = load_dataset(tmp_path).test
    assert split.items.tolist() == [1]
    assert "no such file or directory" in failed(tmp_path / "none")
    assert "no such file or directory" in failed("none.csv")


def test_unknown_names():
    """The nearest name is offered."""
    assert "did you mean 'ml-1m'?" in failed("ML1M")
    assert "did you mean 'synthetic'?" in failed("syntetic")
    with pytest.raises(DataError, match="did you mean 'ml-25m'"):
        fetch("ml-25")
    assert "(user='u' not allowed)" in failed("ml-100k", user="u")


@pytest.mark.usefixtures("no_network")
def test_what_lies_beside_a_path_is_offered(tmp_path, monkeypatch):
    """A store whose name is cut short is no data set of another name; of those that are known some are told."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "STORE").mkdir()
    (tmp_path / "log.csv").write_text("user,item\na,b\n")
    message = failed("STOR")
    assert "unknown data set 'STOR'; did you mean 'STORE'? (known: synthetic, " in message
    assert f"fedjax-rec data ls has all {len(DATASETS)}" in message
    assert len(message) < 300
    assert "lgo.csv: no such file or directory; did you mean 'log.csv'?" in failed("lgo.csv")
    assert failed(tmp_path / "nowhere/log.csv").endswith("nowhere/log.csv: no such file or directory")


def test_a_folder_of_parquet_files_names_its_command(tmp_path):
    """However deep its partitions are."""
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=1/a.parquet").write_bytes(b"PAR1")
    assert f"fedjax-rec data convert {tmp_path} STORE" in failed(tmp_path)


@pytest.mark.usefixtures("no_network")
def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """With the variable that names another."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDJAX_REC_CACHE", str(tmp_path / "file/cache"))
    message = failed("ml-100k")
    assert f"the cache is {tmp_path / 'file/cache'}: name another in the environment variable" in message
    assert "FEDJAX_REC_CACHE, or pass the folder that has the files with --data-dir" in message


def test_registry_is_complete():
    """Each data set says where it comes from and what it may be used for."""
    assert [info.name for info in list_datasets()] == list(DATASETS)
    for info in list_datasets():
        assert info.licence
        assert info.title
        assert (info.sha256 is None) == (info.size is None)
        assert info.sha256 is None or re.fullmatch("[0-9a-f]{64}", info.sha256)
        if info.name != "synthetic":
            assert info.citation
            assert info.file or info.files
    assert not any(DATASETS[name].redistributable for name in ("ml-100k", "ml-1m", "ml-10m", "ml-1m-loo"))


def test_describe_real_data(shared_data, caplog):
    """The copies at hand are the published files, to the byte and to the count."""
    summaries: Any = {
        name: describe(load_dataset(name, data_dir=shared_data))
        for name in ("ml-100k", "ml-latest-small", "ml-1m-loo")
    }
    assert not caplog.text
    small = summaries["ml-100k"]
    assert small["per_user"] == {"min": 20, "median": 65.0, "mean": pytest.approx(106.0445), "max": 737}
    assert small["dates"] == ("1997-09-20T03:05:10", "1998-04-22T23:10:38")
    assert small["ratings"] == (1.0, 5.0)
    assert small["density"] == pytest.approx(100_000 / (943 * 1682))
    split = summaries["ml-1m-loo"]
    assert (split["test_items"], split["candidates"], split["dates"]) == (6040, 99, None)
    assert "Neural Collaborative Filtering" in split["citation"]


def test_describe_a_path(tmp_path):
    """What is not known is said to be unknown; numbers that cannot be seconds give no dates."""
    (tmp_path / "a.csv").write_text(f"user,item,timestamp\n1,2,{10**17}\n")
    summary: Any = describe(load_dataset(tmp_path / "a.csv"))
    assert (summary["licence"], summary["redistributable"], summary["dates"]) == ("unknown", None, None)
    assert summary["density"] == 1.0
    assert np.isfinite(summary["per_user"]["mean"])
