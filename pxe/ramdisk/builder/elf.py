"""What an ELF file says of the libraries it wants: System V ABI, chapters 4 and 5; 64 bit, little endian."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ = 1, 5, 10


@dataclass(frozen=True)
class Wants:
    """Names of shared libraries (DT_NEEDED) and the path of the program interpreter ("" for a library)."""

    libraries: tuple[str, ...]
    interpreter: str


def wants(data: bytes) -> Wants | None:
    """What an ELF file asks the dynamic loader for; None where ``data`` is no ELF file or has no segments (a kernel module)."""
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    offset, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    if not count:
        return None
    loads, dynamic, interpreter = [], (0, 0), ""
    for at in range(offset, offset + size * count, size):
        kind, _, start, address, _, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind == _PT_LOAD:
            loads.append((address, start, length))
        elif kind == _PT_DYNAMIC:
            dynamic = (start, length)
        elif kind == _PT_INTERP:
            interpreter = data[start : start + length].rstrip(b"\0").decode()
    entries = [struct.unpack_from("<qQ", data, at) for at in range(dynamic[0], sum(dynamic), 16)]
    table = next((value for tag, value in entries if tag == _DT_STRTAB), 0)
    for address, start, length in loads:
        if address <= table < address + length:
            table += start - address
            break
    names = (
        data[table + value : data.index(b"\0", table + value)] for tag, value in entries if tag == _DT_NEEDED
    )
    return Wants(tuple(name.decode() for name in names), interpreter)


def modinfo(data: bytes, key: str) -> list[str]:
    """The values of ``key`` in a kernel module's .modinfo, such as firmware."""
    values = data.split(b"\0" + key.encode() + b"=")[1:]
    return [value.split(b"\0", 1)[0].decode(errors="replace") for value in values]
