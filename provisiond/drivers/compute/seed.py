"""The NoCloud seed as an ISO 9660 image, made in memory: what is in it may be secret and touches neither argv nor a temporary file.

Source: cloud-init's documentation of the NoCloud data source: a file system with the volume label ``cidata``.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from pycdlib.pycdlib import PyCdlib


def seed_image(files: Sequence[tuple[str, str]]) -> bytes:
    """An image of ``files`` (name, text), some 360 KiB; names are kept by Rock Ridge and Joliet."""
    iso = PyCdlib()
    iso.new(interchange_level=3, vol_ident="cidata", joliet=3, rock_ridge="1.09")
    for number, (name, text) in enumerate(files):
        data = text.encode()
        iso.add_fp(
            BytesIO(data),
            len(data),
            f"/FILE{number}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
            file_mode=0o100400,
        )
    out = BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()
