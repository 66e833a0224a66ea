"""`fedjax-rec new`: write an algorithm of one's own to start from, with a test that passes."""

import argparse
import importlib.util
import keyword
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

SKELETON = {"{name}.py": "algorithm.py.txt", "test_{name}.py": "test.py.txt"}  # file: its template


def add_parser(commands: Any) -> None:
    """Describe `new` and its arguments."""
    parser = commands.add_parser(
        "new",
        help="write an algorithm of your own to start from",
        description="Write NAME.py, a whole algorithm of some 80 lines, and test_NAME.py, the laws that it keeps. "
        "It runs at once: fedjax-rec run --algorithm NAME:NAME",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="of the algorithm, and of its module: my_algorithm")
    parser.add_argument("--folder", default=".", help="where the files go (default: the current folder)")


def call(given: argparse.Namespace) -> int:
    """Write both files, or neither."""
    name: str = given.name
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise ValueError(
            f"{name!r} is no name of a module; take lower-case letters, digits and _: my_algorithm"
        )
    folder = Path(given.folder).expanduser()
    known = None if name in sys.stdlib_module_names else importlib.util.find_spec(name)
    beside = known is not None and known.origin is not None and folder.resolve() in Path(known.origin).parents
    if name in sys.stdlib_module_names or (known is not None and not beside):
        raise ValueError(f"{name!r} is a module that there is, which yours would hide; take another name")
    texts = {folder / file.format(name=name): _filled(template, name) for file, template in SKELETON.items()}
    taken = [str(path) for path in texts if path.exists()]
    if taken:
        raise ValueError(f"{taken[0]} exists; take another name, or another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        print(path)
    print(f"in {folder}: pip install pytest; pytest test_{name}.py; fedjax-rec run --algorithm {name}:{name}")
    return 0


def _filled(template: str, name: str) -> str:
    text = files("fedjax_rec.cli").joinpath("skeleton", template).read_text(encoding="utf-8")
    return text.replace("@NAME@", name)
