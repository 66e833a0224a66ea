"""Attributes of users: formats, users without a line, malformed files, and where they are looked for."""

import numpy as np
import pytest

from fedjax_rec.data.attributes import find_user_attributes, read_user_attributes
from fedjax_rec.data.errors import DataError

FILES = {
    "users.dat": "1::F::1::10::48067\n2::M::56::16::07072\n",
    "u.user": "1|1|F|10|48067\n2|56|M|16|07072\n",
    "made.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip:token\n"
    "1\t1\tF\t10\t48067\n2\t56\tM\t16\t07072\n",
}


@pytest.mark.parametrize("name", FILES)
def test_formats(name, tmp_path):
    """The same users in three formats; values stay as they are spelled; unknown users have none."""
    (tmp_path / name).write_text(FILES[name])
    found = read_user_attributes(tmp_path / name, np.array([2, 9, 1]))
    assert {attribute: values.tolist() for attribute, values in found.items()} == {
        "gender": ["M", "", "F"],
        "age": ["56", "", "1"],
        "occupation": ["16", "", "10"],
        "zip": ["07072", "", "48067"],
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("users.dat", "1::F::1::10::48067\n2::M\n", r"users\.dat:2: 2 fields instead of 5"),
        ("users.dat", "1::F::1::10::4\n3::F::1::10::4\n1::F::1::10::4\n", r"users\.dat:3: user 1 has a line"),
        ("made.user", "name:token\tage:token\na\t3\n", "no column 'user_id'; its columns are name, age"),
        ("u.user", "", "empty file"),
    ],
)
def test_malformed_files(name, text, message, tmp_path):
    """One line that names the file and the line."""
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_user_attributes(tmp_path / name, np.array([1]))


def test_where_files_are_looked_for(tmp_path):
    """In the folder of a registered data set, and beside a file or in a folder given by its path."""
    for name in (
        "ml-1m-loo/users.dat",
        "ml-100k/ml-100k.user",
        "raw/users.dat",
        "raw/ratings.dat",
        "a/b.user",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "a" / "b.inter").write_text("x")
    assert find_user_attributes("ml-1m-loo", tmp_path) == tmp_path / "ml-1m-loo" / "users.dat"
    assert find_user_attributes("ml-1m-loo", tmp_path / "ml-1m-loo") == tmp_path / "ml-1m-loo" / "users.dat"
    assert find_user_attributes("ml-100k", tmp_path) == tmp_path / "ml-100k" / "ml-100k.user"
    assert find_user_attributes(str(tmp_path / "raw")) == tmp_path / "raw" / "users.dat"
    assert find_user_attributes(str(tmp_path / "raw" / "ratings.dat")) == tmp_path / "raw" / "users.dat"
    assert find_user_attributes(str(tmp_path / "a" / "b.inter")) == tmp_path / "a" / "b.user"
    for nowhere in ("ml-100k", "synthetic", str(tmp_path / "a" / "c.inter")):
        assert find_user_attributes(nowhere) is None
    assert find_user_attributes("ml-20m", tmp_path) is None


def test_movielens(shared_data):
    """All users of both data sets have a gender; an age group, an occupation."""
    for name, users in (("ml-1m-loo", 6040), ("ml-100k", 943)):
        file = find_user_attributes(name, shared_data)
        assert file is not None
        found = read_user_attributes(file, np.arange(1, users + 1))
        assert set(found["gender"]) == {"F", "M"}
        assert len(set(found["occupation"])) == 21
        assert (found["age"] != "").all()
