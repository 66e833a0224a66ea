"""What is to be said of an algorithm before it runs: its paper, its settings, what stays and what travels."""

import inspect
import re
import textwrap
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_rec.algorithms.registry import REQUIRED, Entry, accepted, entry_of
from fedjax_rec.client.keys import key_of
from fedjax_rec.client.population import population_of
from fedjax_rec.data.splits import leave_one_out
from fedjax_rec.data.synthetic import synthetic
from fedjax_rec.errors import ParameterError
from fedjax_rec.federation.federate import FederationSettings
from fedjax_rec.federation.traffic import upload_of
from fedjax_rec.types import PyTree

NUM_ITEMS = 97  # of the population that is looked at; a leaf with so many rows has one an item
_TEXT = re.compile(r"^(\w+): (.*(?:\n[ ]+.*)*)", re.MULTILINE)  # of an argument, of a dedented section Args


class SettingText(NamedTuple):
    """One setting of an algorithm's factory."""

    default: Any  # `REQUIRED` if there is none
    text: str  # its line of the docstring; empty if it has none


class Description(NamedTuple):
    """What is known of an algorithm."""

    name: str
    title: str  # the first line of its module
    paper: str  # the paragraph behind it
    needs: tuple[str, ...]  # of the data
    settings: dict[str, SettingText]  # its own, without those of its federation
    private: dict[str, str]  # leaves of one client, which never leave it: type and shape by name
    shared: dict[str, str]  # dense leaves of the server
    tables: dict[str, str]  # leaves of the server with a row an item
    row_bytes: int  # that a client sends for each row it touches, without the row's id
    dense_bytes: int  # that it sends besides


def title_of(entry: Entry) -> str:
    """The first line that an algorithm's module says of itself, or its factory.

    Args:
        entry: of the registry.

    Returns:
        a line; empty if there is none.

    Example:
        >>> title_of(entry_of("fedper"))
        'Federated learning with personalisation layers (`fedper`).'
    """
    return (_paragraphs(entry) or [""])[0]


def settings_of(name: str) -> dict[str, SettingText]:
    """An algorithm's own settings: default and help, off its factory's signature and docstring.

    Args:
        name: of the algorithm.

    Returns:
        by name; those that it hands on to `federate` are left out.

    Raises:
        ValueError: if there is no such algorithm.

    Example:
        >>> settings_of("fedmf")["num_negatives"]
        SettingText(default=4, text='negatives per positive (not for "mse").')
    """
    texts = _argument_texts(inspect.getdoc(entry_of(name).factory) or "")
    mine = {
        key: value for key, value in accepted(name).items() if key not in FederationSettings.__annotations__
    }
    return {key: SettingText(default, texts.get(key, "")) for key, default in mine.items()}


def describe(name: str) -> Description:
    """All that can be said of an algorithm without training it, at its default settings.

    Args:
        name: of the algorithm.

    Returns:
        the description.

    Raises:
        ValueError: if there is no such algorithm, or it has a setting without a default.

    Example:
        >>> found = describe("fedmf")
        >>> found.private, found.tables["vector"], found.row_bytes, found.dense_bytes
        ({'vector': 'float32[64]'}, 'float32[I, 64]', 260, 0)
    """
    entry = entry_of(name)
    settings = settings_of(name)
    missing = [key for key, (default, _) in settings.items() if default is REQUIRED]
    if missing:
        raise ParameterError("{_name} has no default for {_missing}", _name=name, _missing=missing[0])
    algorithm = entry.factory()
    split = leave_one_out(synthetic(40, NUM_ITEMS))
    ratings = np.ones(len(split.items), np.float32)  # which some need, and none minds
    population = population_of(split._replace(ratings=ratings))
    state = jax.eval_shape(algorithm.init, key_of(0), population)
    sent = upload_of(algorithm, population, state)
    paragraphs = _paragraphs(entry)
    return Description(
        name=name,
        title=(paragraphs or [""])[0],
        paper=" ".join(paragraphs[1:2]),
        needs=("ratings",) * entry.needs_ratings + ("times",) * entry.needs_order,
        settings=settings,
        private=_leaves(state.private, per_client=True),
        shared=_leaves(state.server.shared),
        tables=_leaves(state.server.tables),
        row_bytes=sum(_num_bytes(leaf.shape[1:], leaf.dtype) for leaf in jax.tree.leaves(sent.tables)),
        dense_bytes=sum(_num_bytes(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(sent.shared)),
    )


def _paragraphs(entry: Entry) -> list[str]:
    """What an algorithm's module says of itself, or else its factory: paragraphs, each as one line."""
    module = inspect.getmodule(entry.factory)
    text = inspect.getdoc(module) if module is not None and module.__name__ != "__main__" else None
    text = text or inspect.getdoc(entry.factory) or ""
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def _argument_texts(docstring: str) -> dict[str, str]:
    """The texts of a docstring's section Args, by argument."""
    _, found, rest = docstring.partition("Args:\n")
    if not found:
        return {}
    section = textwrap.dedent(re.split(r"\n(?=\S)", rest)[0])
    return {name: " ".join(text.split()) for name, text in _TEXT.findall(section)}


def _leaves(tree: PyTree, *, per_client: bool = False) -> dict[str, str]:
    """Type and shape of each leaf by name; a length that is that of the catalogue is called I."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        shape = leaf.shape[1:] if per_client else leaf.shape
        sizes = ", ".join("I" if size == NUM_ITEMS else str(size) for size in shape)
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = f"{leaf.dtype}[{sizes}]"
    return found


def _num_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
