"""Whatever stands in a file, archive or array: it is read right, or refused in one line that names it."""

import ast
import contextlib
import gzip
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fedjax_rec
from experiments.faults import fuzz, hostile, strict
from fedjax_rec.data import packed, text, vocabulary
from fedjax_rec.data.archives import extract
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.files import read_arrays
from fedjax_rec.data.formats import read_any
from tests.crosses import sampled

steady = settings(derandomize=True, max_examples=60, deadline=None, database=None)
suffixes = st.sampled_from(list(fuzz.MARKS))
rules = st.sampled_from(["error", "first", "last"])
block_sizes = st.sampled_from([text.BLOCK_BYTES, 40])
fields = st.one_of(
    st.sampled_from(fuzz.FIELDS), st.integers().map(str), st.floats().map(str), st.text(max_size=5)
)
rows = st.lists(st.lists(fields | st.integers(0, 3).map(str), min_size=3, max_size=5), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all examples of a test."""
    return tmp_path_factory.mktemp("fuzz")


@steady
@given(rows=rows, suffix=suffixes, end=st.sampled_from(fuzz.LINE_ENDS), rule=rules, block_size=block_sizes)
def test_fields(folder, rows, suffix, end, rule, block_size):
    """Rows of any fields, read like the strict reader, in one chunk or in several."""
    header = [list(fuzz.HEADERS[suffix])] if suffix in fuzz.HEADERS else []
    data = end.join(fuzz.MARKS[suffix].join(row) for row in header + rows).encode("utf-8", "replace")
    assert fuzz.compare_readers(folder / f"a{suffix}", data, rule, block_size) == "survived"


@steady
@given(data=st.binary(max_size=60), suffix=suffixes, rule=rules)
def test_bytes(folder, data, suffix, rule):
    """Any bytes, and the same behind a sound line."""
    header = fuzz.MARKS[suffix].join(fuzz.HEADERS.get(suffix, ("1", "2", "3", "4"))).encode() + b"\n"
    for content in (data, header + data):
        assert fuzz.compare_readers(folder / f"a{suffix}", content, rule) == "survived"


@steady
@given(seed=st.integers(0, 2**32 - 1), block_size=block_sizes)
def test_hurt_files(folder, seed, block_size):
    """A sound file, and what may happen to it."""
    data, suffix, rule = fuzz.draw_file(np.random.default_rng(seed))
    assert fuzz.compare_readers(folder / f"a{suffix}", data, rule, block_size) == "survived"


@steady
@example(offset=30006, byte=1, cut=False)  # a member before the start of the file
@example(offset=92, byte=4, cut=False)  # bzip2's data, it seems
@example(offset=92, byte=6, cut=False)  # LZMA's
@given(offset=st.integers(0, 10**6), byte=st.integers(1, 255), cut=st.booleans())
def test_hurt_archives_and_arrays(folder, offset, byte, cut):
    """What is damaged is refused, or was not damaged where it matters."""
    arrays = {"ids": np.arange(5), "names": np.array(["a", "bc"]), "floats": np.eye(2, dtype=np.float32)}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    for name, sound in (("a.zip", hostile.pack(hostile.SOUND)), ("a.npz", file.getvalue())):
        at = offset % len(sound)
        (folder / name).write_bytes(
            sound[:at] + bytes([sound[at] ^ byte]) * (not cut) + sound[at + 1 :] * (not cut)
        )
    with contextlib.suppress(DataError):
        extract(folder / "a.zip", hostile.MEMBER, folder / "u.data")
        assert (folder / "u.data").read_bytes() == hostile.RATINGS
    with contextlib.suppress(DataError):
        for name, array in read_arrays(folder / "a.npz").items():
            wanted = next(a for a in arrays.values() if a.shape == array.shape)
            np.testing.assert_array_equal(array, wanted, name)


@steady
@given(
    head=st.sampled_from(
        ["", "user,item\n", "1 2\n", "% c\n", "@relation r\n@attribute a string\n@data\n", "{"]
    ),
    rows=rows,
    mark=st.sampled_from(["\t", ",", ";", "|", " ", "::"]),
    named=st.sampled_from(
        [{}, {"columns": "user,item,rating"}, {"columns": "user,items"}, {"user": "1", "item": "0"}]
    ),
)
def test_anything_is_read_or_refused(folder, head, rows, mark, named):
    """Whatever the format is taken for: events, or one line that names the file."""
    path = folder / "any.txt"
    path.write_bytes((head + "\n".join(mark.join(row) for row in rows)).encode("utf-8", "replace"))
    told = ""
    try:
        events = read_any(path, **named, duplicates="last")
    except DataError as error:
        told = str(error)
    if told:
        assert told.startswith(f"{path}:")
        assert len(told.splitlines()) == 1
        return
    assert len(events.users) == len(events.items) > 0
    assert events.users.max() < events.num_users
    assert events.items.max() < events.num_items


def test_the_judge_is_not_blind(tmp_path, monkeypatch):
    """A reader that believes too much is silent, one that refuses too much is lost."""
    data = b"1\t2\t3\t0.5\n1\t3\t3\t9007199254740993\n"
    assert fuzz.compare_readers(tmp_path / "a.data", data) == "survived"
    assert fuzz.compare_readers(tmp_path / "a.data", b"1\t2\t3\t4\n") == "survived"
    monkeypatch.setattr("fedjax_rec.data.times._refuse_large", lambda *_: None)
    assert fuzz.compare_readers(tmp_path / "a.data", data) == "silent"
    monkeypatch.setattr(text, "LONGEST_LINE", 2)
    assert fuzz.compare_readers(tmp_path / "a.data", b"1\t2\t3\t4\n") == "lost"
    with pytest.raises(strict.RefusedError, match="fields"):
        strict.read(b"1\t2\t3\n", ".data")


def test_sound_archives_are_unpacked(tmp_path):
    """Only what is hostile is refused: folders, and members that are packed well, are not."""
    ratings = hostile.RATINGS * 10_000
    (tmp_path / "a.zip").write_bytes(
        hostile.pack(("ml-100k/", b""), ("ml-100k/zeros", bytes(2**20)), (hostile.MEMBER, b"x"))
    )
    extract(tmp_path / "a.zip", hostile.MEMBER, tmp_path / "u.data")
    assert (tmp_path / "u.data").read_bytes() == b"x"
    (tmp_path / "a.zip").write_bytes(
        hostile.pack((hostile.MEMBER, ratings[:50_000]), method=zipfile.ZIP_STORED)
    )
    extract(tmp_path / "a.zip", hostile.MEMBER, tmp_path / "u.data")
    assert (tmp_path / "u.data").read_bytes() == ratings[:50_000]


def test_arrays_claim_no_memory(tmp_path):
    """The shape in a header allocates nothing that the file does not hold."""
    header = (
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (10**13,), }".replace(
            b"10**13", b"9" * 13
        ).ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as bundle:
        bundle.writestr("a.npy", header)
    with pytest.raises(DataError, match=r"a\.npz: a\.npy: damaged, its size is not that of its shape"):
        read_arrays(tmp_path / "a.npz")


def test_gzip_bombs_and_endless_lines(tmp_path, monkeypatch):
    """Text that no ratings could be is refused before it is parsed."""
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"user,item\n" + b"1,2\n" * 10**6))
    monkeypatch.setattr(packed, "MIN_BYTES_FOR_RATIO", 10**5)
    with pytest.raises(DataError, match=r"a\.csv\.gz: gzip of more than .* bytes of text"):
        read_any(path)
    for line in (
        b"," * 10**6,
        b"user,item\n1,2\n\n" + b"x" * 10**6,
        b"user,item\r\n1,2\r\n" + b"7" * 10**6 + b"\r\n",
    ):
        (tmp_path / "a.csv").write_bytes(line)
        with pytest.raises(DataError, match=r"a\.csv:[134]: 1,000,000 bytes in a line"):
            read_any(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(b"user" + b"," * 5000)
    with pytest.raises(DataError, match=r"a\.csv:1: 5,001 columns"):
        read_any(tmp_path / "a.csv")


def test_a_few_long_ids_do_not_make_a_large_table(tmp_path):
    """All ids are kept as wide as the widest, so that a long one among many is refused."""
    lines = [f"user-{n},{n % 7}" for n in range(20_000)]
    (tmp_path / "a.csv").write_text("\n".join(["user,item", *lines, "x" * 900 + ",1"]))
    with pytest.raises(DataError, match=r"a\.csv:20002: 'user' of 900 characters; all 20,001 ids"):
        read_any(tmp_path / "a.csv")


MEASURE = """
import sys
from fedjax_rec.data.formats import read_any
def memory(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what)) * 1024
for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    events = read_any(path)
    print(len(events.users), memory("VmHWM") - before)
    del events
"""


@steady
@given(
    chunks=st.lists(
        st.lists(st.integers(-12, 60) | st.sampled_from(["b", "ab", "-0", "é" * 3]), max_size=12)
    ),
    block=st.integers(1, 5),
)
def test_ids_in_pieces(chunks, block):
    """Any chunks of ids are coded by first appearance, as a dict does, however few are moved at a time."""
    expected: dict[str, int] = {}
    names = vocabulary.Vocabulary("user")
    with mock.patch.object(vocabulary, "_BLOCK", block):
        for chunk in chunks:
            integers = all(isinstance(name, int) for name in chunk)
            codes = names.codes(pd.Series(chunk, dtype="int64" if integers else object), str)
            assert codes.tolist() == [expected.setdefault(str(name), len(expected)) for name in chunk]
        assert names.ids().astype(str).tolist() == list(expected)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
@pytest.mark.parametrize(
    "name",
    sampled(
        ["numbers.csv", "names.csv", "once.csv", "letters.csv", "alone.csv", "a.data.gz"],
        ["names.csv", "a.data.gz"],
        "these two have numbers, names and gzip",
    ),
)
def test_memory_is_bounded(tmp_path, name):
    """Over 16 MB of ratings add at most 4 times their size: numbers, names, gzip, and ids that never recur."""
    count = 800_000
    letters = np.random.default_rng(0).integers(97, 123, (count, 11), np.uint8).view("S11")[:, 0].astype(str)
    pairs = [(n // 150, n * 7919 % 30_011, 900_000_000 + n * 37) for n in range(count)]
    head = "userId,movieId,rating,timestamp\n"
    texts = {
        "small.csv": lambda: head + "1,2,3,4\na,b,3,4\n",  # loads what is loaded late
        "numbers.csv": lambda: head + "".join(f"{user},{item},3.5,{time}\n" for user, item, time in pairs),
        "names.csv": lambda: (
            head + "".join(f"{user},item-{item:05d},3.5,{time}\n" for user, item, time in pairs)
        ),
        "once.csv": lambda: (
            head + "".join(f"{n},{item},3.5,{time}\n" for n, (_, item, time) in enumerate(pairs))
        ),
        "letters.csv": lambda: (
            head
            + "".join(f"{n},{item},3.5,{time}\n" for n, (_, item, time) in zip(letters, pairs, strict=True))
        ),
        "alone.csv": lambda: (
            "userId,movieId\n" + "".join(f"{n},{n * 7 % 2_000_003}\n" for n in range(1_200_000))
        ),
        "a.data.gz": lambda: "".join(f"{user}\t{item}\t4\t{time}\n" for user, item, time in pairs),
    }
    content = texts[name]()
    for file in ("small.csv", name):
        data = (content if file == name else texts[file]()).encode()
        (tmp_path / file).write_bytes(gzip.compress(data, 1) if file.endswith(".gz") else data)
    # each in a process of its own: freed memory would hide the next one's
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small.csv"), str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own code
    events, added = map(int, done.stdout.splitlines()[1].split())
    size = len(content)
    assert events == content.count("\n") - content.startswith("user")
    assert size > 2**24, name
    assert added <= 4 * size, f"{name}: {added / size:.1f} times"


def test_nothing_unpickles():
    """No module imports what unpickles, and numpy is always told not to."""
    root = Path(fedjax_rec.__file__).parent
    files = [*root.rglob("*.py"), *(root.parent / "experiments").rglob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            where = f"{file}:{getattr(node, 'lineno', 0)}"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            banned = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & {
                n.split(".")[0] for n in names
            }
            assert not banned or file.name == "hostile.py", f"{where} imports {banned}"
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in {"np.load", "numpy.load", "npy.read_array"}:
                assert "allow_pickle=False" in ast.unparse(node), where
            assert called not in {"pd.read_pickle", "torch.load"}, where
