"""Compiled programs that serve again: of the same algorithm and shapes, or of another one with the same text.

jax keeps what it has compiled for a function as long as the function lives, a program for every shape that ever
came. Here the last few stay, so that a loop over data sets does not grow, a second run compiles nothing, and a
notebook's cell that makes the algorithm anew only traces it.
"""

import hashlib
from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any

import jax

RECENT = 8  # programs that are kept; each takes some MB
Program = Callable[..., Any]


def compiled(function: Callable, statics: tuple[Any, ...], *args: Any, donate: int | None = None) -> Program:
    """Compile a function for some arguments, or find it compiled.

    Args:
        function: of a module, pure: `function(*statics, *args)`.
        statics: what the program is made for, such as an algorithm.
        *args: the arguments, for their shapes, dtypes and devices; they are not consumed.
        donate: position among `args` of the one that the program consumes.

    Returns:
        a function of `args`.

    Example:
        >>> import operator
        >>> program = compiled(operator.mul, (3,), jax.numpy.arange(2))
        >>> program(jax.numpy.arange(2)).tolist(), compiled(operator.mul, (3,), jax.numpy.arange(2)) is program
        ([0, 3], True)
    """
    jitted = jax.jit(partial(function, *statics), donate_argnums=() if donate is None else donate)
    leaves, structure = jax.tree.flatten(args)
    wanted = (function.__name__, donate, structure, tuple(map(_describe, leaves)))
    try:
        same = _slot("same", statics, wanted)
    except (
        TypeError
    ):  # something among the statics has no hash, so that nobody can tell whether it is the same
        same = []
    if not same:
        same.append(_compile(jitted.lower(*args), wanted, statics))
    return same[0]


def _compile(lowered: Any, wanted: Hashable, statics: tuple[Any, ...]) -> Program:
    text = lowered.as_text()
    # Callbacks are numbers in a text, and some versions of jax pass constants beside it.
    tells_all = "callback" not in text and not getattr(
        jax.config, "jax_use_simplified_jaxpr_constants", False
    )
    if not tells_all:
        return lowered.compile()
    meshes = tuple(getattr(static, "mesh", None) for static in statics)
    equal = _slot("equal", hashlib.sha256(text.encode()).hexdigest(), (wanted, meshes))
    if not equal:
        equal.append(lowered.compile())
    return equal[0]


@lru_cache(maxsize=2 * RECENT)
def _slot(kind: str, what: Hashable, shapes: Hashable) -> list[Program]:
    """Where a program lies once it is compiled; the one not used for the longest time goes."""
    del kind, what, shapes
    return []


def _describe(leaf: Any) -> Hashable:
    """All of an argument that a program depends on."""
    sharding = leaf.sharding if getattr(leaf, "committed", False) else None
    return jax.numpy.shape(leaf), jax.typeof(leaf).dtype, jax.typeof(leaf).weak_type, sharding
