"""The wheel that would be published: what it holds and says of itself, and that it trains away from here."""

import email
import os
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import fedjax_rec as fr

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ["jax", "flax", "optax", "numpy", "pandas", "scipy", "tqdm", "matplotlib", "narwhals", "rich"]
ONLY_FIVE = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"scipy", "tqdm", "matplotlib", "narwhals", "pyarrow", "polars"}:
            wants = sys._getframe(1)
            while "importlib" in wants.f_code.co_filename:
                wants = wants.f_back
            if "fedjax_rec" in wants.f_code.co_filename:
                raise ImportError(f"{name} is absent")

sys.meta_path.insert(0, Absent())
import fedjax_rec
print(fedjax_rec.__file__)
"""


ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["fedjax_rec"][
    "address"
]


def setup_functions():
    """Those of `setup.py`, which builds nothing when it is read."""
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the tracked files, as pip builds it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "fedjax_rec"]
    subprocess.run(["cp", "-r", *(ROOT / name for name in names), source], check=True)  # noqa: S603, S607 - our own files
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", built, source]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    assert done.returncode == 0, done.stderr
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel's files alone."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _python(installed, *arguments, cwd):
    env = {**os.environ, "PYTHONPATH": str(installed), "FEDJAX_REC_PROGRAMS": str(cwd / "programs")}
    return subprocess.run(  # noqa: S603 - our own arguments
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    """Each module, the typing marker and the skeleton of `new`; no tests, no experiments."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ROOT / "fedjax_rec"
    wanted = {str(path.relative_to(ROOT)) for path in package.rglob("*.py")}
    skeleton = {str(path.relative_to(ROOT)) for path in (package / "cli/skeleton").glob("*.txt")}
    assert len(skeleton) == 2
    assert names == wanted | skeleton | {"fedjax_rec/py.typed"}


def test_the_wheel_says_what_it_is(wheel):
    """Name, version, licence, Python, what it needs, a command, and the README."""
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        meta = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        licence = archive.read(f"{folder}/licenses/LICENSE").decode()
        entries = archive.read(f"{folder}/entry_points.txt").decode()
    assert meta["Name"] == "fedjax_rec"
    assert meta["Version"] == fr.__version__
    assert meta["License-Expression"] == "Apache-2.0"
    assert meta["Requires-Python"] == ">=3.11"
    assert licence == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "fedjax-rec = fedjax_rec.cli.main:main" in entries
    required = [line.split(">")[0] for line in meta.get_all("Requires-Dist", []) if "extra" not in line]
    assert required == NEEDED
    assert meta["Description-Content-Type"] == "text/markdown"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = str(meta.get_payload())
    described = setup_functions()["describe"](readme, ADDRESS, fr.__version__)
    assert text.strip() == described.strip()
    assert meta.get_all("Project-URL", []) == [
        f"{name}, {url}" for name, url in setup_functions()["addresses"](ADDRESS).items()
    ]


@pytest.mark.parametrize("address", ["", "https://example.org/owner/project"])
def test_links_of_the_description_lead_somewhere(address):
    """With the project's address they lead there, pictures too; without one nothing is left that leads nowhere."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = setup_functions()["describe"](readme, address, "1.2.3")
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert [link for link in links if "://" not in link] == []
    assert text.count("\n") == readme.count("\n")
    if address:
        assert f"[your own data]({address}/blob/v1.2.3/docs/data.md)" in text
        assert f"]({address}/raw/v1.2.3/experiments/honest_benchmark/benchmark.png)" in text
        assert setup_functions()["addresses"](address)["Issues"] == f"{address}/issues"
    else:
        assert "| your own data | files" in text
        assert "![" not in text


def test_the_wheel_works_away_from_the_checkout(installed, tmp_path):
    """A run of two rounds writes its folder, and `new` has its skeleton at hand."""
    run = ["run", "--rounds", "2", "--eval-every", "1", "--dim", "4", "--out", "folder", "--quiet"]
    done = _python(
        installed, "-c", "from fedjax_rec.cli.main import main; raise SystemExit(main())", *run, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "folder/result.json").is_file()
    lines = [
        "import fedjax_rec as fr",
        "from fedjax_rec.cli.main import main",
        "print(fr.__file__)",
        "main(['new', 'mine'])",
    ]
    new = _python(installed, "-c", "\n".join(lines), cwd=tmp_path)
    assert new.stdout.splitlines()[0] == str(installed / "fedjax_rec/__init__.py"), new.stderr
    assert (tmp_path / "mine.py").is_file()
    assert (tmp_path / "test_mine.py").is_file()


def test_the_import_needs_five_libraries(installed, tmp_path):
    """Those that are not jax, flax, optax, numpy and pandas serve commands and formats, and may be absent."""
    done = _python(installed, "-c", ONLY_FIVE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(installed / "fedjax_rec/__init__.py")
