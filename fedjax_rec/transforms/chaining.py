"""Chains of transforms, each with a key of its own, and the orders that are refused."""

from collections.abc import Callable

import jax

from fedjax_rec.transforms.base import Bound, Transform, Wire
from fedjax_rec.types import Key, PyTree, Server, Update


def chain(*transforms: Transform) -> Transform:
    """Apply transforms in turn, each with a key of its own.

    Args:
        *transforms: the first acts first.

    Returns:
        a transform.

    Raises:
        ValueError: if there is none, or the order is unsound: noise without a clip before it, or a clip before
            what may raise the norm again.

    Example:
        >>> from fedjax_rec.transforms import clip, quantise
        >>> chain(quantise(8), clip(1.0)).name
        'quantise(8) > clip(1.0)'
    """
    if not transforms:
        raise ValueError("chain needs at least one transform; leave `transform` out for none")

    def bound(known: Bound) -> Bound:
        for transform in transforms:
            known = _next_bound(known, transform)
        return known

    bound(Bound())  # what is unsound does not build
    if len(transforms) == 1:
        return transforms[0]

    def update(key: Key, sent: Update, server: Server) -> Update:
        for number, transform in enumerate(transforms):
            sent = transform.update(jax.random.fold_in(key, number), sent, server)
        return sent

    def wire(cost: Wire) -> Wire:
        for transform in transforms:
            cost = cost if transform.wire is None else transform.wire(cost)
        return cost

    name = " > ".join(transform.name for transform in transforms)
    return _with_states(Transform(name, update, wire=wire, bound=bound), transforms)


def _with_states(plain: Transform, transforms: tuple[Transform, ...]) -> Transform:
    """The chain as one transform that has the states of its elements, each its own."""
    if not any(transform.update_with_state for transform in transforms):
        return plain

    def init(server: Server) -> PyTree:
        return tuple(() if transform.init is None else transform.init(server) for transform in transforms)

    def update_with_state(key: Key, sent: Update, states: PyTree, server: Server) -> tuple[Update, PyTree]:
        new_states = []
        for number, (transform, state) in enumerate(zip(transforms, states, strict=True)):
            transform_key = jax.random.fold_in(key, number)
            if transform.update_with_state is None:
                sent = transform.update(transform_key, sent, server)
                new_states.append(state)
            else:
                sent, new_state = transform.update_with_state(transform_key, sent, state, server)
                new_states.append(new_state)
        return sent, tuple(new_states)

    return plain._replace(init=init, update_with_state=update_with_state)


def _next_bound(known: Bound, transform: Transform) -> Bound:
    """What is known after one more transform; an order that loses a bound is refused."""
    after = known._replace(norm=None, grid=None) if transform.bound is None else transform.bound(known)
    if known.norm is not None and after.norm is None and after.deviation == 0:
        raise ValueError(
            f"{transform.name} may raise the norm to which {' > '.join(known.after)} has bounded an update; put "
            "the clip after it"
        )
    return after._replace(after=(*known.after, transform.name))


def compressed_bound(
    name: str, *, raises: bool, fills: bool, codes: bool = False, sparsifies: bool = False
) -> Callable[[Bound], Bound]:
    """What a compressor does to what is known of an update.

    Args:
        name: of the compressor.
        raises: whether it may raise the norm.
        fills: whether it fills numbers that were left out.
        codes: whether it codes numbers for good, so that nothing may change them afterwards.
        sparsifies: whether it leaves numbers out.

    Returns:
        bound -> bound; it refuses orders whose cost would not be what is declared.

    Example:
        >>> compressed_bound("sign()", raises=False, fills=True)(Bound(norm=1.0)).norm
        1.0
    """

    def bound(known: Bound) -> Bound:
        if known.coded_by:
            raise ValueError(
                f"{name} after {known.coded_by} would send numbers anew that are coded already; drop one"
            )
        if sparsifies and known.hidden_by:
            raise ValueError(
                f"{name} would leave out the rows by which {known.hidden_by} hides the own ones; put it before"
            )
        if fills and known.sparsified_by:
            raise ValueError(
                f"{name} would fill what {known.sparsified_by} left out; take qsgd or terngrad there instead"
            )
        return known._replace(
            norm=None if raises else known.norm,
            grid=None,
            after=(*known.after, name),
            coded_by=name if codes else known.coded_by,
            sparsified_by=name if sparsifies else known.sparsified_by,
        )

    return bound
