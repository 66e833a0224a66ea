"""Zip and tar.gz archives: one member is copied; a zip is looked through before.

| refused | why |
|---|---|
| a name with `..`, an absolute one, a drive, a NUL | it could lead out of a folder where all of it is unpacked |
| links, devices, encrypted members, a name twice | what is read would not be what was looked at |
| more than 1,000 members, more than 4 GiB in all | bombs |
| a member of over 1 MiB that unpacks to over 100 times its size; members that overlap | bombs |

A tar.gz has no list of its members: it is read from its front until the member comes, of at most 4 GiB in all.
"""

import contextlib
import gzip
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fedjax_rec.data.errors import DataError

MAX_MEMBERS = 1000
MAX_BYTES = 2**32  # of all members, unpacked
MAX_RATIO = 100  # of a member's unpacked and packed size,
MIN_BYTES_FOR_RATIO = 2**20  # bytes, up to which any ratio is allowed
_MAX_DIRECTORY = 2**20  # bytes of the list of members
_TAIL = 2**16 + 42  # bytes that hold the end of the directory: a comment, 22 bytes, and 20 bytes before them
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)  # whose errors are known
_ERRORS_OF_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    struct.error,
)
_CHUNK = 2**20  # bytes
_TOO_LARGE = f"the archive has more than {MAX_MEMBERS:,} members or 4 GiB; unpack it by hand"


def extract(archive: Path, member: str, target: Path) -> None:
    """Copies one member of an archive; no name inside the archive ever becomes a path.

    Args:
        archive: the zip or tar.gz file.
        member: the member's full name; in a zip also the only one that ends like it, in whatever folder.
        target: the file to write; flushed to disk.

    Raises:
        DataError: if it is no such file, is damaged, breaks a rule of the table above, or has no such member.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.zip"
        >>> with zipfile.ZipFile(path, "w") as bundle:
        ...     bundle.writestr("ml/u.data", "196")
        >>> extract(path, "ml/u.data", path.with_name("u.data"))
        >>> path.with_name("u.data").read_text()
        '196'
    """
    if _is_gzip(archive):
        _extract_from_tar(archive, member, target)
        return
    try:
        _refuse_large_directory(archive)
        with zipfile.ZipFile(archive) as bundle:
            _refuse_unsafe(archive, bundle.infolist())
            entry = bundle.getinfo(_full_name(bundle.namelist(), member))
            if entry.is_dir():
                raise DataError(f"{archive}: {member} is not a regular file")
            with bundle.open(entry) as source:
                _copy(source, target)
    except KeyError as error:
        raise DataError(f"{archive}: the archive has no {member}") from error
    except (*_ERRORS_OF_DAMAGE, UnicodeDecodeError) as error:
        raise DataError(f"{archive}: damaged zip archive ({error}); download it again") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(
            f"{archive}: damaged zip archive ({error}); download it again"
        ) from error  # bz2's error


@contextlib.contextmanager
def open_single(archive: Path) -> Iterator[IO[bytes]]:
    """Opens the only file of a zip archive; what macOS and folders add is not counted.

    Args:
        archive: the zip file.

    Yields:
        the file, to be read.

    Raises:
        DataError: if it holds another number of files, is damaged, or breaks a rule of the table above.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.zip"
        >>> with zipfile.ZipFile(path, "w") as bundle:
        ...     bundle.writestr("ml/u.data", "196")
        >>> with open_single(path) as file:
        ...     file.read()
        b'196'
    """
    try:
        _refuse_large_directory(archive)
        with zipfile.ZipFile(archive) as bundle:
            _refuse_unsafe(archive, bundle.infolist())
            files = [
                entry
                for entry in bundle.infolist()
                if not entry.is_dir() and not entry.filename.startswith("__MACOSX/")
            ]
            if len(files) != 1:
                names = ", ".join(entry.filename for entry in files[:8])
                raise DataError(
                    f"{archive}: an archive of {len(files)} files ({names}); unpack the one that holds the events"
                )
            with bundle.open(files[0]) as file:
                yield file
    except (*_ERRORS_OF_DAMAGE, UnicodeDecodeError) as error:
        raise DataError(f"{archive}: damaged zip archive ({error}); download it again") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(
            f"{archive}: damaged zip archive ({error}); download it again"
        ) from error  # bz2's error


def _full_name(names: list[str], member: str) -> str:
    """A member's name in the archive, whose publisher may have put it into another folder since."""
    base = member.rpartition("/")[2]
    others = [name for name in names if name.rpartition("/")[2] == base]
    return others[0] if member not in names and len(others) == 1 else member


def _copy(source: IO[bytes], target: Path) -> None:
    with target.open("wb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK)
        sink.flush()
        os.fsync(sink.fileno())


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _extract_from_tar(archive: Path, member: str, target: Path) -> None:
    unpacked = 0
    try:
        with tarfile.open(archive, "r|gz") as bundle:
            for entry in bundle:
                unpacked += entry.size
                if unpacked > MAX_BYTES:
                    raise DataError(f"{archive}: {_TOO_LARGE}")
                if entry.name.removeprefix("./") != member:
                    continue
                source = bundle.extractfile(entry) if entry.isreg() else None
                if source is None:
                    raise DataError(f"{archive}: {member} is not a regular file")
                _copy(source, target)
                return
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{archive}: damaged tar archive ({error}); download it again") from error
    raise DataError(f"{archive}: the archive has no {member}")


def _refuse_large_directory(archive: Path) -> None:
    """Looks at the end of the archive itself: `zipfile` reads the whole directory before it says anything."""
    with archive.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _TAIL, 0))
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise DataError(
            f"{archive}: damaged zip archive (it has no directory); is it a web page, or cut off?"
        )
    members, length = struct.unpack("<HL", tail[end + 10 : end + 16])
    if tail[max(end - 20, 0) : end].startswith(b"PK\6\7") or members > MAX_MEMBERS or length > _MAX_DIRECTORY:
        raise DataError(f"{archive}: {_TOO_LARGE}")


def _refuse_unsafe(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    """Looks at every member, and at all of them together."""
    names = set()
    for member in members:
        reason = _what_is_unsafe(member) or ("has a name that another has too" * (member.filename in names))
        if reason:
            raise DataError(f"{archive}: member {member.filename!r} {reason}; this is no archive to trust")
        if member.header_offset < 0:  # reading would seek to before the file's start
            raise DataError(f"{archive}: damaged zip archive (a member before its start); download it again")
        names.add(member.filename)
    if sum(member.file_size for member in members) > MAX_BYTES or len(members) > MAX_MEMBERS:
        raise DataError(f"{archive}: {_TOO_LARGE}")
    if sum(member.compress_size for member in members) > archive.stat().st_size:
        raise DataError(f"{archive}: members of the archive overlap; this is no archive to trust")


def _what_is_unsafe(member: zipfile.ZipInfo) -> str:
    """What is wrong with a member, by its entry alone."""
    name = member.orig_filename.replace("\\", "/")
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "has an absolute name"
    if ".." in name.split("/") or "\0" in name:
        return "has a name that leads elsewhere"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is not a regular file"
    if member.flag_bits & 1 or member.compress_type not in _METHODS:
        return "is encrypted, or packed by another method than deflate and bzip2"
    if member.file_size > max(MIN_BYTES_FOR_RATIO, MAX_RATIO * member.compress_size):
        return f"unpacks to {member.file_size:,} bytes, over {MAX_RATIO} times its size"
    return ""
