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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from fedjax_rec.data.archives import extract
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.files import flush, md5_of, sha256_of
from fedjax_rec.data.sets.info import MAX_BYTES

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without a byte
_PATIENCE = 60.0  # seconds after which a download must have come
_MIN_RATE = 1024  # bytes a second, on the average
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
_FAILURES = (OSError, http.client.HTTPException, DataError)  # urllib's URLError is an OSError


def install(
    urls: Sequence[str],
    target: Path,
    *,
    member: str | None,
    size: int | None = None,
    sha256: str | None = None,
    md5: str | None = None,
    max_size: int = MAX_BYTES,
    progress: bool = False,
) -> str:
    """Downloads a file, or one member of an archive, and installs it under its final name.

    Args:
        urls: where the same bytes can be had; tried in turn.
        target: the final name of the file; its folder is created.
        member: the member's full name where the download is an archive, None where it is the file itself.
        size: bytes of the download, where known;
        sha256: its checksum, where known;
        md5: the same.
        max_size: bytes that it may have where its size is not known.
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
    expected = _Expected(size, max_size, sha256, md5)
    return _install(urls, target.parent, {member: target}, expected, progress)


def install_members(
    urls: Sequence[str],
    folder: Path,
    members: Mapping[str, str],
    *,
    size: int | None = None,
    sha256: str | None = None,
    md5: str | None = None,
    max_size: int = MAX_BYTES,
    progress: bool = False,
) -> str:
    """Downloads an archive and installs several of its members.

    Args:
        urls: as of `install`; so is all that follows.
        folder: of the files.
        members: full name in the archive -> name below the folder.
        size: of the archive.
        sha256: of the archive.
        md5: of the archive.
        max_size: of the archive.
        progress: show a progress bar.

    Returns:
        The sha256 of the download.

    Raises:
        DataError: if no url works, or the archive lacks a member.

    Example:
        >>> install_members(["ftp://example.org/a.zip"], Path(tempfile.mkdtemp()), {"a/b.csv": "b.csv"})
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: ftp://example.org/a.zip: not an https address
    """
    targets: dict[str | None, Path] = {member: folder / name for member, name in members.items()}
    return _install(urls, folder, targets, _Expected(size, max_size, sha256, md5), progress)


class _Expected(NamedTuple):
    """What is known of a download before it comes."""

    size: int | None
    max_size: int
    sha256: str | None
    md5: str | None


def _install(
    urls: Sequence[str],
    folder: Path,
    targets: Mapping[str | None, Path],
    expected: _Expected,
    progress: bool,
) -> str:
    target = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as parts:
            archive = Path(parts) / "download.part"
            digest = _download_from_any(urls, archive, expected, progress)
            ready = {}
            for number, (member, target) in enumerate(targets.items()):
                ready[target] = archive
                if member is not None:
                    ready[target] = Path(parts) / f"member-{number}.part"
                    extract(archive, member, ready[target])
            for target, part in ready.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                record = Path(parts) / "record.part"
                with record.open("w") as sink:
                    sink.write(f"{sha256_of(part)}  {target.name}\n")
                    _flush(sink)
                os.replace(record, _record(target))  # noqa: PTH105 - named in the docstring as the atomic step
                os.replace(part, target)  # noqa: PTH105 - the same
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


def _download_from_any(urls: Sequence[str], target: Path, expected: _Expected, progress: bool) -> str:
    reasons = []
    for url in urls:
        try:
            _download(url, target, expected, progress)
            return _check(target, expected)
        except _FAILURES as error:
            reasons.append(f"{url}: {' '.join(str(error).split()) or type(error).__name__}")
    raise DataError("; ".join(reasons))


def _download(url: str, target: Path, expected: _Expected, progress: bool) -> None:
    size = expected.size
    _refuse_insecure(url)
    request = urllib.request.Request(url, headers={"User-Agent": "fedjax_rec"})  # noqa: S310 - checked above
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, target.open("wb") as sink:  # noqa: S310
        _refuse_insecure(answer.url)
        header = answer.headers.get("Content-Length") or ""
        length = int(header) if header.isdecimal() else None
        if length is not None and length != (length if size is None else size):
            raise DataError(f"wrong size, {length} bytes instead of {size}")
        received = _copy(answer, sink, size or expected.max_size, length, progress)
        _flush(sink)
    if length is not None and received != length:
        raise DataError(f"truncated, {received} of {length} bytes")


def _refuse_insecure(url: str) -> None:
    """Plain http is for this machine itself alone, also at the end of a redirection."""
    address = urllib.parse.urlsplit(url)
    if address.scheme != "https" and not (address.scheme == "http" and address.hostname in _LOCAL_HOSTS):
        raise DataError("not an https address")


def _copy(source: Any, sink: BinaryIO, max_bytes: int, total: int | None, progress: bool) -> int:
    bar = _bar(total) if progress else None
    received = 0
    start = time.monotonic()
    while chunk := source.read1(_CHUNK):
        received += sink.write(chunk)
        if received > max_bytes:
            raise DataError(f"wrong size, more than {max_bytes} bytes")
        if (took := time.monotonic() - start) > _PATIENCE and received < _MIN_RATE * took:
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


def _check(path: Path, expected: _Expected) -> str:
    received = path.stat().st_size
    if expected.size is not None and received != expected.size:
        raise DataError(f"wrong size, {received} bytes instead of {expected.size}")
    digest = sha256_of(path)
    if expected.sha256 is not None and digest != expected.sha256:
        raise DataError(f"wrong sha256, {digest} instead of {expected.sha256}")
    if expected.md5 is not None and (found := md5_of(path)) != expected.md5:
        raise DataError(f"wrong md5, {found} instead of {expected.md5}")
    return digest
