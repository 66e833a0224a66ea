"""Whether what a model and a client's work give has the structure that a round needs: said before anything runs.

Only shapes are looked at. An error names the function, where it stands, what it gave and what it should give.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from fedjax_rec.client.local_training import call_loss
from fedjax_rec.client.population import Population
from fedjax_rec.engine.lane_steps import batch_shapes, client_shapes
from fedjax_rec.errors import ParameterError
from fedjax_rec.types import Batch, ClientWork, Model, Params, PyTree, Server

SHOWN = 3  # leaves of a structure


def check_server(model: Model, server: Any) -> Server:
    """Refuse a global model that is no `Server`, or whose tables are of unequal length.

    Args:
        model: whose `init_server` gave it.
        server: what it gave.

    Returns:
        the same.

    Raises:
        ParameterError: naming the function and what it gave.

    Example:
        >>> def init_server(key, population):
        ...     return {"vector": jax.numpy.zeros((3, 2))}
        >>> model = Model(lambda key: {}, init_server)
        >>> check_server(model, init_server(None, None))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: init_server (..., line 1) gives a dict; it must give fr.Server(...
    """
    if not isinstance(server, Server):
        raise ParameterError(
            "{_where} gives {_kind}; it must give fr.Server(shared, tables): shared for dense leaves, which are "
            "the same for all clients, or {{}}; tables for leaves [I, ...] with a row an item",
            _where=place_of(model.init_server),
            _kind=_describe_kind(server),
        )
    rows = [leaf.shape[:1] for leaf in jax.tree.leaves(server.tables)]
    if any(each != rows[0] or each == () for each in rows):
        raise ParameterError(
            "{_where} gives tables {_tables}; all leaves of tables must be [I, ...], with a row an item, others "
            "belong into shared",
            _where=place_of(model.init_server),
            _tables=shapes_of(server.tables),
        )
    return server


def check_work(work: ClientWork, population: Population, server: Server, private: PyTree) -> None:
    """Refuse batches whose leaves are of unequal length, and a loss that is not a sum and a count.

    Args:
        work: one client's work.
        population: the clients.
        server: the global model; may be shapes.
        private: all clients' leaves [N, ...]; may be shapes.

    Raises:
        ParameterError: naming the function and what it gave.
    """
    batch, tables = batch_shapes(work, population, server)
    where = place_of(work.batches.batch)
    if not isinstance(batch, Batch) or getattr(batch.ids, "ndim", 0) != 1:
        raise ParameterError(
            "{_where} gives {_kind}; it must give fr.Batch(ids, data) with ids int32[B]",
            _where=where,
            _kind=_describe_kind(batch),
        )
    size = batch.ids.shape[0]  # 0 where nothing is an item's, whose data are as long as they like
    if size and any(leaf.shape[:1] != (size,) for leaf in jax.tree.leaves(batch.data)):
        raise ParameterError(
            "{_where} gives a batch of {_size} ids, whose data are {_data}; all leaves of data must be [{_size}, "
            "...], a slot an id",
            _where=where,
            _size=size,
            _data=shapes_of(batch.data),
        )
    if work.descent is not None:
        params = Params(client_shapes(private), _shapes(server.shared), tables)
        _check_loss(work.descent.loss, params, batch)


def _check_loss(loss: Callable[..., Any], params: Params, batch: Batch) -> None:
    """Trace a loss on shapes: it gives two numbers, or says in one line why it gives none."""
    key = jax.ShapeDtypeStruct((2,), jax.numpy.uint32)
    try:
        found = jax.eval_shape(partial(call_loss, loss), params, batch, key)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as problem:
        if f"function {call_loss.__name__} " not in str(problem):
            raise  # something else is traced that stands in the way, such as a setting of a sweep
        raise ParameterError(
            "the loss {_where} asks for the value of what is traced ({_kind}); compute with jax.numpy, without "
            "float(), int(), .item() or `if` on params and batch",
            _where=place_of(loss),
            _kind=type(problem).__name__,
        ) from problem
    except (TypeError, ValueError, LookupError, AttributeError) as problem:
        raise ParameterError(
            "the loss {_where} fails with {_problem}; it was given private {_private}, tables {_tables}, data "
            "{_data}",
            _where=place_of(loss),
            _problem=f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0]}",
            _private=shapes_of(params.private),
            _tables=shapes_of(params.tables),
            _data=shapes_of(batch.data),
        ) from problem
    is_pair = isinstance(found, tuple | list) and len(found) == 2
    if not is_pair or any(getattr(each, "shape", None) != () for each in found):
        raise ParameterError(
            "the loss {_where} gives {_found}; it must give two numbers: the loss summed over the batch's "
            "examples, and how many these are, such as (mask * loss).sum(), mask.sum()",
            _where=place_of(loss),
            _found=shapes_of(found),
        )
    if not jax.numpy.issubdtype(found[0].dtype, jax.numpy.floating):
        raise ParameterError(
            "the loss {_where} gives a sum of {_dtype}, which has no gradient; it must be a sum of floats",
            _where=place_of(loss),
            _dtype=str(found[0].dtype),
        )


def place_of(function: Callable[..., Any]) -> str:
    """A function's name, file and line, for errors.

    Args:
        function: any callable.

    Returns:
        text.

    Example:
        >>> place_of(place_of).rstrip("0123456789)")
        'place_of (structure.py, line '
    """
    inner = inspect.unwrap(function)
    while isinstance(inner, partial):
        inner = inspect.unwrap(inner.func)
    name = getattr(inner, "__qualname__", type(inner).__name__).replace("<locals>.", "")
    code = getattr(inner, "__code__", None)
    return name if code is None else f"{name} ({Path(code.co_filename).name}, line {code.co_firstlineno})"


def shapes_of(tree: PyTree) -> str:
    """The shapes of a structure's first leaves, by name.

    Args:
        tree: of arrays or shapes.

    Returns:
        text.

    Example:
        >>> shapes_of({"a": jax.numpy.zeros((2, 3)), "b": 1.0})
        '{a float32[2, 3], b float}'
    """
    leaves = jax.tree.leaves_with_path(tree)
    told = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {_describe_leaf(leaf)}".strip()
        for path, leaf in leaves[:SHOWN]
    ]
    more = ["..."] * (len(leaves) > SHOWN)
    return told[0] if len(leaves) == 1 and not leaves[0][0] else "{" + ", ".join([*told, *more]) + "}"


def _describe_leaf(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else type(leaf).__name__


def _describe_kind(value: Any) -> str:
    """What something is, with its shapes where it has some."""
    kind = type(value).__name__
    if hasattr(value, "shape"):
        return shapes_of(value)
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
