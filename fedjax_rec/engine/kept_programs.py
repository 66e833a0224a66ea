"""Compiled programs on the disk: jax's persistent compilation cache, in the user's cache folder and bounded.

A cache is worth no run: where it cannot be read or written, programs are compiled as if there were none.
"""

import contextlib
import hashlib
import os
import platform
import warnings
from pathlib import Path

import jax
import jaxlib

from fedjax_rec.data.registry import cache_dir

VARIABLE = "FEDJAX_REC_PROGRAMS"  # a folder, or off
MOST_BYTES = 2**30  # on the disk; the programs that were not used for the longest time go first
OFF = ("off", "0", "no", "false")


def keep_programs() -> Path | None:
    """Have jax keep what it compiles, and take what another process has compiled.

    Nothing changes where jax has such a folder already (`JAX_COMPILATION_CACHE_DIR`), or `FEDJAX_REC_PROGRAMS` is
    off. That variable may name another folder than `programs` in the cache of data sets.

    Returns:
        the folder; None where nothing is kept.

    Example:
        >>> folder = keep_programs()
    """
    known = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if known:
        return Path(known)
    asked = os.environ.get(VARIABLE, "")
    if asked.lower() in OFF:
        return None
    root = Path(asked).expanduser().absolute() if asked else cache_dir() / "programs"
    folder = root / _version()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _prune(root)
    except OSError:
        if not folder.is_dir():
            return None
    # jax warns of each program that it cannot read or write, and compiles it
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    with contextlib.suppress(
        ImportError, AttributeError
    ):  # where jax has compiled already, it looked for none
        from jax.experimental.compilation_cache import compilation_cache

        compilation_cache.reset_cache()
    return folder


def _version() -> str:
    """What programs depend on besides their text: a folder may be shared by machines of other processors."""
    processor = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")[0].splitlines()
        processor += "".join(line for line in lines if line.startswith(("model name", "flags", "Features")))
    machine = hashlib.sha256(f"{platform.machine()} {processor}".encode()).hexdigest()[:8]
    return f"jax-{jax.__version__}-jaxlib-{jaxlib.__version__}-{machine}"


def _prune(root: Path) -> None:
    """Remove the programs that were not used for the longest time, of all versions, beyond the bound."""
    files = []
    for path in root.glob("*/*"):
        with contextlib.suppress(OSError):  # another process removes, too
            found = path.stat()
            files.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    free = MOST_BYTES
    for _, size, path in sorted(files, reverse=True):
        free -= size
        if free < 0:
            with contextlib.suppress(OSError):
                path.unlink()
