"""The formats that images come in. A format is said, or follows from the end of the file's name; never from what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from provisiond.media.fetch import MediaError


@dataclass(frozen=True)
class Format:
    """``content``: disk or tree (a root file system). ``qcow2`` is opened by qemu-img; ``compression`` is '', zst, xz or gz."""

    name: str
    content: str
    compression: str = ""
    qcow2: bool = False


FORMATS = {
    f.name: f
    for f in (
        Format("qcow2", "disk", qcow2=True),
        *(Format(f"raw{'.' * bool(c)}{c}", "disk", c) for c in ("", "zst", "xz", "gz")),
        *(Format(f"tar{'.' * bool(c)}{c}", "tree", c) for c in ("", "zst", "xz", "gz")),
    )
}
_ENDINGS = {**{f".{name}": name for name in FORMATS}, ".tgz": "tar.gz", ".txz": "tar.xz", ".tzst": "tar.zst"}
SAY = "say --format " + ", ".join(FORMATS)

# What files begin with that are no raw disk: a disk's first bytes are a boot loader's, or zeros.
_MAGIC = {
    b"QFI\xfb": "a qcow2 image",
    b"KDMV": "a VMDK image",
    b"vhdxfile": "a VHDX image",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\xfd7zXZ\0": "compressed by xz",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"PK\x03\x04": "a ZIP archive",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}


def format_of(source: str, said: str = "") -> Format:
    """The format that was ``said``, else that of the name of ``source`` (URL or path). Raises MediaError with what there is."""
    if said:
        if said not in FORMATS:
            raise MediaError(f"image format {said!r} is not taken: {SAY}")
        return FORMATS[said]
    path = unquote(urlsplit(source).path) if "://" in source else source
    name = path.rstrip("/").rpartition("/")[2].lower()
    for ending in sorted(_ENDINGS, key=len, reverse=True):
        if name.endswith(ending) and name != ending:
            return FORMATS[_ENDINGS[ending]]
    raise MediaError(
        f"the name {name!r} does not say which format it is in, and formats are not guessed: {SAY}"
    )


def refuse_disguise(raw: Path, source: str) -> None:
    """Raise MediaError when a raw disk begins like something else. Blocks."""
    with raw.open("rb") as file:
        head = file.read(16)
    for magic, what in _MAGIC.items():
        if head.lower().startswith(magic.lower()) if magic.startswith(b"<") else head.startswith(magic):
            raise MediaError(f"{source} is said to be a raw disk and is {what}: {SAY}")
