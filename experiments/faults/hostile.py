"""Archives that must not be unpacked, and files that would run code if they were."""

import io
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

RATINGS = b"196\t242\t3\t881250949\n186\t302\t3\t891717742\n"
MEMBER = "ml-100k/u.data"
SOUND = (MEMBER, RATINGS)
UNTRUE = b"<html><body>Please log in</body></html>"


def pack(*members: tuple[str, bytes], mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Make a zip archive.

    Args:
        members: name and content of each.
        mode: of the last one, as Unix has it.
        method: of compression.

    Returns:
        its bytes.
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as bundle:
        for name, content in members:
            entry = zipfile.ZipInfo("placeholder")
            entry.filename = entry.orig_filename = name
            entry.external_attr = mode << 16 if (name, content) == members[-1] else 0
            bundle.writestr(entry, content, method)
    return file.getvalue()


def patch(data: bytes, field: int, form: str, *values: int) -> bytes:
    """Change an archive's last entry in the directory.

    Args:
        data: of an archive.
        field: offset in the entry.
        form: of `struct`.
        values: to put there.

    Returns:
        the changed bytes.
    """
    changed = bytearray(data)
    struct.pack_into(form, changed, data.rfind(b"PK\1\2") + field, *values)
    return bytes(changed)


def _twice() -> bytes:
    """Two members of one name, without the warning of `zipfile`."""
    return pack(SOUND, ("ml-100k/u.dat_", b"1\t1\t1\t1\n")).replace(b"u.dat_", b"u.data")


def _end(members: int, length: int) -> bytes:
    """An archive whose end claims so many members and bytes of directory."""
    data = bytearray(pack(SOUND))
    struct.pack_into("<HHL", data, data.rfind(b"PK\5\6") + 8, members, members, length)
    return bytes(data)


def _overlapping() -> bytes:
    """Many members that are all the same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as bundle:
        bundle.writestr(MEMBER, RATINGS * 1000)
        for n in range(20):
            entry = zipfile.ZipInfo(f"{n}")
            first = bundle.filelist[0]
            entry.header_offset, entry.CRC = first.header_offset, first.CRC
            entry.file_size, entry.compress_size = first.file_size, first.compress_size
            bundle.filelist.append(entry)
    return file.getvalue()


def _zip64() -> bytes:
    data = pack(SOUND)
    end = data.rfind(b"PK\5\6")
    return data[:end] + b"PK\6\7" + bytes(16) + data[end:]


def _links() -> dict[str, bytes]:
    kinds = {"symbolic link": stat.S_IFLNK, "device": stat.S_IFCHR, "pipe": stat.S_IFIFO}
    return {kind: pack((MEMBER, b"/etc/passwd"), mode=mode | 0o777) for kind, mode in kinds.items()} | {
        "symbolic link beside": pack(SOUND, ("ml-100k/link", b"/etc"), mode=stat.S_IFLNK | 0o777),
        "encrypted": patch(pack(SOUND), 8, "<H", 1),
    }


def _names() -> dict[str, bytes]:
    names = (
        "../evil",
        "ml-100k/../../evil",
        "..",
        "..\\evil",
        "/evil",
        "\\evil",
        "C:/evil",
        "c:evil",
        "//host/evil",
    )
    return {f"member {name}": pack(SOUND, (name, b"evil")) for name in names}


def archives() -> dict[str, bytes]:
    """Make the hostile archives.

    Returns:
        their bytes by what is wrong with them.
    """
    sound, zeros = pack(SOUND), bytes(2**22)
    return (
        _names()
        | _links()
        | {
            "bomb by ratio": pack((MEMBER, zeros)),
            "bomb by ratio beside": pack(SOUND, ("ml-100k/zeros", zeros)),
            "bomb by total": patch(pack(SOUND, ("large", b"1")), 20, "<LL", 2**32 - 2, 2**32 - 2),
            "bomb by count": pack(SOUND, *((str(n), b"") for n in range(1001)), method=zipfile.ZIP_STORED),
            "bomb by claimed count": _end(65535, 46),
            "bomb by claimed directory": _end(1, 2**31),
            "bomb by zip64": _zip64(),
            "bomb by overlap": _overlapping(),
            "a name twice": _twice(),
            "a false size": patch(sound, 24, "<L", len(RATINGS) - 7),
            "a false checksum": patch(sound, 16, "<L", 7),
            "wrong offset": patch(sound, 42, "<L", 2**31),
            "bit flip": sound[:50] + bytes([sound[50] ^ 4]) + sound[51:],
            "cut off": sound[: len(sound) // 2],
            "a web page": UNTRUE,
            "without the member": pack(("ml-100k/README", b"hello")),
        }
    )


class Alarm:
    """Unpickled, it leaves a file."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Callable, tuple]:
        """What pickle would do."""
        return Path.touch, (self.sign,)


def pickles(sign: Path) -> dict[str, bytes]:
    """Make files of pickled objects, each of which would touch a file.

    Args:
        sign: the file.

    Returns:
        their bytes by the name that they would have.
    """
    objects, array, bundle = (io.BytesIO() for _ in range(3))
    hidden = np.array([Alarm(sign)], dtype=object)
    np.save(array, hidden, allow_pickle=True)
    np.savez(objects, user_ids=np.arange(2), item_ids=hidden, allow_pickle=True)
    with zipfile.ZipFile(bundle, "w") as torch:
        torch.writestr("archive/data.pkl", pickle.dumps(Alarm(sign)))
        torch.writestr("archive/version", "3")
    plain = pickle.dumps(Alarm(sign))
    return {
        "objects.npz": objects.getvalue(),
        "objects.npy": array.getvalue(),
        "model.pt": bundle.getvalue(),
        "model.pkl": plain,
        "protocol0.pkl": pickle.dumps(Alarm(sign), protocol=0),
    }
