"""Zip archives: looked through before anything is unpacked, and then one member copied.

| refused | why |
|---|---|
| a name with `..`, an absolute one, a drive, a NUL | it could lead out of a folder where all of it is unpacked |
| links, devices, encrypted members, a name twice | what is read would not be what was looked at |
| more than 1,000 members, more than 4 GiB in all | bombs |
| a member of over 1 MiB that unpacks to over 100 times its size; members that overlap | bombs |
"""

import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from fedjax_rec.data.errors import DataError

MOST_MEMBERS = 1000
MOST_BYTES = 2**32  # of all members, unpacked
MOST_RATIO = 100  # of a member's unpacked and packed size,
ANY_RATIO = 2**20  # bytes, up to which any ratio is allowed
_DIRECTORY = 2**20  # bytes of the list of members
_TAIL = 2**16 + 42  # bytes that hold the end of the directory: a comment, 22 bytes, and 20 bytes before them
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error)
_CHUNK = 2**20  # bytes
_TOO_MUCH = f"the archive has more than {MOST_MEMBERS:,} members or 4 GiB; unpack it by hand"


def extract(archive: Path, member: str, target: Path) -> None:
    """Copies one member of a zip archive; no name inside the archive ever becomes a path.

    Args:
        archive: the zip file.
        member: the member's full name, matched exactly.
        target: the file to write; flushed to disk.

    Raises:
        DataError: if it is no zip file, is damaged, breaks a rule of the table above, or has no such member.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.zip"
        >>> with zipfile.ZipFile(path, "w") as bundle:
        ...     bundle.writestr("ml/u.data", "196")
        >>> extract(path, "ml/u.data", path.with_name("u.data"))
        >>> path.with_name("u.data").read_text()
        '196'
    """
    try:
        _refuse_large_directory(archive)
        with zipfile.ZipFile(archive) as bundle:
            _refuse_evil(archive, bundle.infolist())
            found = bundle.getinfo(member)
            if found.is_dir():
                raise DataError(f"{archive}: {member} is not a regular file")
            with bundle.open(found) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
                sink.flush()
                os.fsync(sink.fileno())
    except KeyError as error:
        raise DataError(f"{archive}: the archive has no {member}") from error
    except (*_DAMAGE, UnicodeDecodeError) as error:
        raise DataError(f"{archive}: damaged zip archive ({error}); download it again") from error


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
    if tail[max(end - 20, 0) : end].startswith(b"PK\6\7") or members > MOST_MEMBERS or length > _DIRECTORY:
        raise DataError(f"{archive}: {_TOO_MUCH}")


def _refuse_evil(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    names = set()
    for member in members:
        reason = _evil(member) or ("has a name that another has too" * (member.filename in names))
        if reason:
            raise DataError(f"{archive}: member {member.filename!r} {reason}; this is no archive to trust")
        names.add(member.filename)
    if sum(member.file_size for member in members) > MOST_BYTES or len(members) > MOST_MEMBERS:
        raise DataError(f"{archive}: {_TOO_MUCH}")
    if sum(member.compress_size for member in members) > archive.stat().st_size:
        raise DataError(f"{archive}: members of the archive overlap; this is no archive to trust")


def _evil(member: zipfile.ZipInfo) -> str:
    """What is wrong with a member, by its entry alone."""
    name = member.orig_filename.replace("\\", "/")
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "has an absolute name"
    if ".." in name.split("/") or "\0" in name:
        return "has a name that leads elsewhere"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is not a regular file"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.file_size > max(ANY_RATIO, MOST_RATIO * member.compress_size):
        return f"unpacks to {member.file_size:,} bytes, over {MOST_RATIO} times its size"
    return ""
