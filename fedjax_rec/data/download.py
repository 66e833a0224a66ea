"""Downloads: mirrors in turn, every byte verified, and nothing half-written under the final name.

Only https is used (and plain http of this machine itself). What comes is written to a `.part`, no byte beyond what
was announced or published is taken, and a file appears under its final name by one atomic rename, flushed to disk,
after its archive had the right size and checksum. Beside it lies `<file>.sha256`, the checksum of the file as it
was installed, and `verify` compares with it at every later use.
"""

import http.client
import os
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from fedjax_rec.data.archives import extract
from fedjax_rec.data.disk import flush, sha256_of
from fedjax_rec.data.errors import DataError

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without a byte
_PATIENCE = 60.0  # seconds after which a download must have come
_SLOWEST = 1024  # bytes a second, on the average
_MOST = 2**30  # bytes of a download whose size is not published
_HERE = ("127.0.0.1", "localhost", "::1")
_FAILURES = (OSError, http.client.HTTPException, DataError)  # urllib's URLError is an OSError


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
        size: bytes of the download, where known; else it may have 1 GiB.
        sha256: checksum of the download, where known.
        progress: show a progress bar, where `tqdm` is installed.

    Returns:
        The sha256 of the download.

    Raises:
        DataError: if no url works, with the reason for each, or the archive lacks the member.

    Example:
        >>> install(["ftp://example.org/a.zip"], Path(tempfile.mkdtemp()) / "a", member=None)
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: ftp://example.org/a.zip: not an https address
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as folder:
            archive = Path(folder) / "download.part"
            digest = _first_good(urls, archive, size, sha256, progress)
            ready = archive
            if member is not None:
                ready = Path(folder) / "member.part"
                extract(archive, member, ready)
            record = Path(folder) / "record.part"
            with record.open("w") as sink:
                sink.write(f"{sha256_of(ready)}  {target.name}\n")
                _flush(sink)
            os.replace(record, _record(target))  # noqa: PTH105 - named in the docstring as the atomic step
            os.replace(ready, target)  # noqa: PTH105 - the same
            flush(target.parent)
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


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _first_good(
    urls: Sequence[str], target: Path, size: int | None, sha256: str | None, progress: bool
) -> str:
    reasons = []
    for url in urls:
        try:
            _download(url, target, size, progress)
            return _check(target, size, sha256)
        except _FAILURES as error:
            reasons.append(f"{url}: {' '.join(str(error).split()) or type(error).__name__}")
    raise DataError("; ".join(reasons))


def _download(url: str, target: Path, size: int | None, progress: bool) -> None:
    _refuse_open(url)
    request = urllib.request.Request(url, headers={"User-Agent": "fedjax_rec"})  # noqa: S310 - checked above
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, target.open("wb") as sink:  # noqa: S310
        _refuse_open(answer.url)
        header = answer.headers.get("Content-Length") or ""
        length = int(header) if header.isdecimal() else None
        if length is not None and length != (length if size is None else size):
            raise DataError(f"wrong size, {length} bytes instead of {size}")
        received = _copy(answer, sink, size or _MOST, length, progress)
        _flush(sink)
    if length is not None and received != length:
        raise DataError(f"truncated, {received} of {length} bytes")


def _refuse_open(url: str) -> None:
    """Plain http is for this machine itself alone, also at the end of a redirection."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _HERE):
        raise DataError("not an https address")


def _copy(source: Any, sink: BinaryIO, most: int, total: int | None, progress: bool) -> int:
    bar = _bar(total) if progress else None
    received, began = 0, time.monotonic()
    while chunk := source.read1(_CHUNK):
        received += sink.write(chunk)
        if received > most:
            raise DataError(f"wrong size, more than {most} bytes")
        if (took := time.monotonic() - began) > _PATIENCE and received < _SLOWEST * took:
            raise DataError(f"too slow, {received} bytes in {took:.0f} s")
        if bar is not None:
            bar.update(len(chunk))
    if bar is not None:
        bar.close()
    return received


def _flush(sink: IO) -> None:
    sink.flush()
    os.fsync(sink.fileno())


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
