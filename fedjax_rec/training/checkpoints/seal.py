"""Seals: the SHA-256 of every file of a folder, written last, so that damage is found before anything is believed.

A seal finds bits that flipped, files that were cut, lost or added, and itself damaged. It is no signature: who can
write the folder can write a seal.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fedjax_rec.data.files import flush, sha256_of

SEAL = "seal.json"


def seal(folder: Path) -> None:
    """Flush every file of a folder to the disk, then write `seal.json`, which names them with sizes and digests.

    Args:
        folder: complete but for its seal.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a").write_text("1")
        ...     seal(Path(folder))
        ...     _ = (Path(folder) / "a").write_text("2")
        ...     find_damage(Path(folder))
        ['a has other bytes']
    """
    files = {name: _describe(path) for name, path in list_files(folder).items() if name != SEAL}
    for path in [*list_files(folder).values(), *_folders(folder)]:
        flush(path)
    write_durably(folder / SEAL, json.dumps(_sealed(files), indent=1).encode())


def find_damage(folder: Path) -> list[str]:
    """Compare a folder with its seal.

    Args:
        folder: with or without a seal.

    Returns:
        what is wrong, a phrase for each file; empty if it is sound.
    """
    try:
        files = _read_seal(folder / SEAL)
        found = list_files(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        return [f"{SEAL} is missing or damaged ({type(problem).__name__})"]
    found.pop(SEAL, None)
    damage = [f"{name} is not of it" for name in sorted(set(found) - set(files))]
    for name, known in sorted(files.items()):
        difference = _difference(found[name], known) if name in found else "is missing"
        if difference:
            damage.append(f"{name} {difference}")
    return damage


def _sealed(files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    text = json.dumps(files, sort_keys=True, separators=(",", ":"))
    return {"files": files, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _read_seal(path: Path) -> dict[str, dict[str, Any]]:
    """The files that a seal names; it must be, byte by byte, what `seal` writes."""
    data = path.read_bytes()
    files = json.loads(data)["files"]
    if data != json.dumps(_sealed(files), indent=1).encode():
        raise ValueError("the seal's own digest is another")
    return files


def _describe(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def _difference(path: Path, known: dict[str, Any]) -> str:
    """How a file differs from what the seal says; empty if it does not."""
    try:
        if (size := path.stat().st_size) != known["size"]:
            return f"has {size:,} bytes, not {known['size']:,}"
        return "" if _describe(path) == known else "has other bytes"
    except OSError as problem:
        return f"cannot be read ({problem.strerror})"


def list_files(folder: Path) -> dict[str, Path]:
    """Every file below a folder; links count as files.

    Args:
        folder: to look into.

    Returns:
        path by name, relative and with "/", in order of the names.

    Example:
        >>> list_files(Path("no/such"))
        {}
    """
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths)}


def _folders(folder: Path) -> list[Path]:
    return [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and have the disk hold it.

    Args:
        path: of the file; an older one is replaced.
        data: its bytes.

    Raises:
        OSError: if it cannot be written; the older one is then as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_durably(Path(folder) / "a", b"1")
        ...     list(list_files(Path(folder)))
        ['a']
    """
    draft = path.with_name(f"{path.name}.part")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    flush(path.parent)
