"""Downloads: mirrors in turn, every byte verified, and nothing half-written under the final name.

A file appears under its final name by one atomic rename, after its archive had the right size and checksum.
Beside it lies `<file>.sha256`, the checksum of the file as it was installed, and `verify` compares with it at
every later use.
"""

import hashlib
import http.client
import os
import shutil
import stat
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from fedjax_rec.data.errors import DataError

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without a byte
_FAILURES = (OSError, http.client.HTTPException, DataError)  # urllib's URLError is an OSError


def sha256_of(path: Path) -> str:
    """Checksum of a file.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "empty"
        >>> path.touch()
        >>> sha256_of(path)[:16]
        'e3b0c44298fc1c14'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def install(
    urls: Sequence[str],
    target: Path,
    *,
    member: str | None,
    size: int | None = None,
    sha256: str | None = None,
    progress: bool = False,
) -> str:
    """Downloads a file, or one member of a zip archive, and puts it in its place.

    Args:
        urls: where the same bytes can be had; tried in turn.
        target: the final name of the file; its folder is created.
        member: the member's full name where the download is a zip archive, None where it is the file itself.
        size: bytes of the download, where known.
        sha256: checksum of the download, where known.
        progress: show a progress bar, where `tqdm` is installed.

    Returns:
        The sha256 of the download.

    Raises:
        DataError: if no url works, with the reason for each, or the archive lacks the member.

    Example:
        >>> install(["ftp://example.org/a.zip"], Path(tempfile.mkdtemp()) / "a", member=None)
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: ftp://example.org/a.zip: not an http or https address
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as folder:
            archive = Path(folder) / (urls[0].rsplit("/", 1)[-1] or "download")
            digest = _first_good(urls, archive, size, sha256, progress)
            ready = archive
            if member is not None:
                ready = Path(folder) / "member"
                extract(archive, member, ready)
            _record(target).write_text(f"{sha256_of(ready)}  {target.name}\n")
            os.replace(ready, target)  # noqa: PTH105 - named in the docstring as the atomic step
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror or error})") from error
    return digest


def verify(path: Path) -> None:
    """Compares an installed file with the checksum recorded beside it.

    Args:
        path: the file; without a record beside it nothing is compared.

    Raises:
        DataError: if the file has changed since.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "u.data"
        >>> _ = path.write_text("196"), path.with_name("u.data.sha256").write_text("00  u.data")
        >>> verify(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: ...u.data: changed since it was downloaded; delete it to ...
    """
    record = _record(path)
    if record.is_file() and record.read_text().split()[:1] != [sha256_of(path)]:
        raise DataError(f"{path}: changed since it was downloaded; delete it to download it again")


def extract(archive: Path, member: str, target: Path) -> None:
    """Copies one member of a zip archive; no name inside the archive ever becomes a path.

    Args:
        archive: the zip file.
        member: the member's full name, matched exactly.
        target: the file to write.

    Raises:
        DataError: if it is no zip file, is damaged, or has no such regular file.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "a.zip"
        >>> with zipfile.ZipFile(path, "w") as bundle:
        ...     bundle.writestr("ml/u.data", "196")
        >>> extract(path, "ml/u.data", path.with_name("u.data"))
        >>> path.with_name("u.data").read_text()
        '196'
    """
    try:
        with zipfile.ZipFile(archive) as bundle:
            found = bundle.getinfo(member)
            if found.is_dir() or stat.S_IFMT(found.external_attr >> 16) not in (0, stat.S_IFREG):
                raise DataError(f"{archive}: {member} is not a regular file")
            with bundle.open(found) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, _CHUNK)
    except KeyError as error:
        raise DataError(f"{archive}: the archive has no {member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive}: damaged zip archive ({error})") from error


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _first_good(
    urls: Sequence[str], target: Path, size: int | None, sha256: str | None, progress: bool
) -> str:
    reasons = []
    for url in urls:
        try:
            _download(url, target, progress)
            return _check(target, size, sha256)
        except _FAILURES as error:
            reasons.append(f"{url}: {' '.join(str(error).split()) or type(error).__name__}")
    raise DataError("; ".join(reasons))


def _download(url: str, target: Path, progress: bool) -> None:
    if not url.startswith(("https://", "http://")):
        raise DataError("not an http or https address")
    request = urllib.request.Request(url, headers={"User-Agent": "fedjax_rec"})  # noqa: S310 - checked above
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, target.open("wb") as sink:  # noqa: S310
        length = answer.headers.get("Content-Length")
        received = _copy(answer, sink, int(length) if length else None, progress)
    if length and received != int(length):
        raise DataError(f"truncated, {received} of {length} bytes")


def _copy(source: BinaryIO, sink: BinaryIO, total: int | None, progress: bool) -> int:
    bar = _bar(total) if progress else None
    received = 0
    while chunk := source.read(_CHUNK):
        received += sink.write(chunk)
        if bar is not None:
            bar.update(len(chunk))
    if bar is not None:
        bar.close()
    return received


def _bar(total: int | None):  # type: ignore[no-untyped-def]  # noqa: ANN202 - tqdm is optional and untyped
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit="B", unit_scale=True, desc="download")


def _check(path: Path, size: int | None, sha256: str | None) -> str:
    received = path.stat().st_size
    if size is not None and received != size:
        raise DataError(f"wrong size, {received} bytes instead of {size}")
    digest = sha256_of(path)
    if sha256 is not None and digest != sha256:
        raise DataError(f"wrong sha256, {digest} instead of {sha256}")
    return digest
