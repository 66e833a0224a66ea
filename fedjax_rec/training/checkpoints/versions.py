"""Versions of what computes."""

import os
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version

import jax

PACKAGE = Path(__file__).parents[2]  # this one's code


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


@lru_cache(maxsize=8)
def commit_of(folder: str | Path) -> str | None:
    """The commit of code that lies in a git checkout.

    Args:
        folder: of the code.

    Returns:
        its 40 hexadecimal digits, with -dirty behind them if a tracked file of the checkout is another now; None
        where git does not track the folder (an installed package may lie within somebody else's checkout), or
        cannot be asked.

    Example:
        >>> commit_of("/") is None
        True
    """
    folder = Path(folder)
    if _ask_git(folder, "ls-files", "--", "__init__.py") is None:
        return None
    return _ask_git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _ask_git(folder: Path, *question: str) -> str | None:
    """What git says, in a line; None for nothing."""
    command = ["git", "-C", str(folder), *question]
    # within a hook of git, GIT_DIR names the repository of that hook
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(  # noqa: S603 - words of this file, no shell
            command, capture_output=True, text=True, timeout=20, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
