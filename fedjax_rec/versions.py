"""Versions of what computes."""

from importlib.metadata import PackageNotFoundError, version
from platform import python_version

import jax


def versions() -> dict[str, str]:
    """Versions of what computed a result.

    Returns:
        name -> version.

    Example:
        >>> "jax" in versions()
        True
    """
    found = {"python": python_version(), "backend": jax.default_backend()}
    for name in ("fedjax_rec", "jax", "jaxlib", "flax", "optax", "numpy", "pandas"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
