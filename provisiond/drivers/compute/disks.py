"""The files of a machine, as volumes of a libvirt storage pool.

libvirtd makes them, so the daemon needs no rights in the pool's directory and the hypervisor may be another machine. Every
function here blocks and raises libvirtError besides what it names.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from provisiond.drivers.compute import DiskSpec, HypervisorTarget
from provisiond.errors import DriverRejected, DriverUnavailable

GIB = 1 << 30
FILE_POOLS = {"dir", "fs", "netfs"}
# libvirt has no error code of its own for these
_AT_WORK = ("asynchronous jobs running", "still being allocated", "still in use")
_looking: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def prefix(uuid: str) -> str:
    """What the names of all volumes of a machine begin with: whatever happens, they can be found again."""
    return f"provisiond-{uuid}-"


def open_pool(connection: Any, target: HypervisorTarget) -> Any:
    """The pool of ``target``, started if it was not. Raises DriverRejected when there is none, or it keeps no files."""
    pool = find_pool(connection, target.pool)
    if pool is None:
        virsh = f"virsh -c '{connection.getURI()}'"
        raise DriverRejected(
            f"hypervisor {target.name} has no storage pool {target.pool!r}; make one: {virsh} pool-define-as {target.pool} dir "
            f"--target /var/lib/libvirt/images && {virsh} pool-start {target.pool} && {virsh} pool-autostart {target.pool}"
        )
    kind = _parse(pool.XMLDesc(0)).get("type")
    if kind not in FILE_POOLS:
        raise DriverRejected(
            f"storage pool {target.pool!r} of hypervisor {target.name} is of type {kind}; "
            f"machines need one that keeps files: {', '.join(sorted(FILE_POOLS))}"
        )
    return pool


def find_pool(connection: Any, name: str) -> Any:
    """The pool of this name, started if it was not; None if there is none."""
    try:
        pool = connection.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
            return None
        raise
    if not pool.isActive():
        pool.create()
    return pool


def pool_path(pool: Any) -> PurePosixPath:
    """The directory of the pool."""
    return PurePosixPath(_parse(pool.XMLDesc(0)).findtext("target/path", ""))


def names(pool: Any, uuid: str) -> set[str]:
    """The volumes in the pool that were made for this machine, whole or half-made."""
    return {name for name in pool.listVolumes() if name.startswith(prefix(uuid))}


def remove(pool: Any, name: str) -> None:
    """Delete a volume; absent is fine."""
    try:
        _patiently(lambda: pool.storageVolLookupByName(name).delete(0))
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise


def make_disk(pool: Any, name: str, disk: DiskSpec) -> None:
    """A new qcow2 volume, blank or laid over an image whose format is written down, never guessed."""
    root = _volume(name, disk.gib * GIB, "qcow2")
    _sub(_find(root, "target"), "compat", "1.1")
    if disk.image is not None:
        backing = _sub(root, "backingStore")
        _sub(backing, "path", disk.image)
        ET.SubElement(backing, "format", type=disk.image_format)
    _create(pool, name, root)


def make_seed(connection: Any, pool: Any, name: str, content: bytes) -> None:
    """A new raw volume of mode 0600 that holds ``content``."""
    root = _volume(name, len(content), "raw")
    volume = _create(pool, name, root)
    stream = connection.newStream(0)
    try:
        volume.upload(stream, 0, len(content), 0)
        view = memoryview(content)
        while view:
            view = view[stream.send(bytes(view[: 256 << 10])) :]
        stream.finish()
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise


def check_image(connection: Any, target: HypervisorTarget, disk: DiskSpec) -> None:
    """Refuse an image that cannot be laid under a disk of ``disk.gib``, or that would lead QEMU to other files.

    Reads only the header, as the format that was declared. Raises DriverRejected. See CVE-2024-44082 and CVE-2024-32498: a
    qcow2 may name a backing file or an external data file, any file of the hypervisor.
    """
    assert disk.image is not None
    if disk.image_format not in ("qcow2", "raw"):
        raise DriverRejected(
            f"image {disk.image}: format {disk.image_format!r} is not taken; convert it to qcow2 or raw"
        )
    with _volume_at(connection, target, disk.image) as volume:
        size = volume.info()[1]
        if disk.image_format == "qcow2":
            stream = connection.newStream(0)
            volume.download(stream, 0, 112, 0)
            header = b""
            while len(header) < 112 and (more := stream.recv(112 - len(header))):
                header += more
            stream.finish()
            size = qcow2_size(disk.image, header)
    if size > disk.gib * GIB:
        raise DriverRejected(
            f"image {disk.image} is of {size / GIB:.1f} GiB and does not fit on a disk of {disk.gib} GiB; take a larger flavor"
        )


def qcow2_size(path: str, header: bytes) -> int:
    """The virtual size in bytes that a qcow2 header tells (QEMU docs/interop/qcow2.txt); DriverRejected if it is not alone."""
    if len(header) < 72 or header[:4] != b"QFI\xfb":
        raise DriverRejected(f"image {path} is declared as qcow2 but is none")
    version, backing = struct.unpack(">IQ", header[4:16])
    features = struct.unpack(">Q", header[72:80])[0] if version >= 3 and len(header) >= 80 else 0
    if backing:
        raise DriverRejected(
            f"image {path} has a backing file, which is not taken: flatten it with 'qemu-img convert -O qcow2'"
        )
    if features & 0x4:
        raise DriverRejected(
            f"image {path} has an external data file, which is not taken: flatten it with 'qemu-img convert'"
        )
    return int(struct.unpack(">Q", header[24:32])[0])


@contextlib.contextmanager
def _volume_at(connection: Any, target: HypervisorTarget, path: str) -> Iterator[Any]:
    """The image as a volume. A directory that is no pool is made one for the moment, which changes nothing on disk."""
    file = PurePosixPath(path)
    if not file.is_absolute() or ".." in file.parts:
        raise DriverRejected(f"image {path}: an absolute path on hypervisor {target.name} is needed")
    made = None
    with _looking[
        target.name
    ]:  # libvirt knows a directory as one pool only: the first to finish would take it from the others
        try:
            pool = _pool_of(connection, file.parent)
            if pool is None:
                root = ET.Element("pool", type="dir")
                _sub(
                    root,
                    "name",
                    f"provisiond-look-{hashlib.sha256(str(file.parent).encode()).hexdigest()[:16]}",
                )
                _sub(_sub(root, "target"), "path", str(file.parent))
                try:
                    pool = made = connection.storagePoolCreateXML(_text(root), 0)
                except libvirt.libvirtError as error:
                    raise DriverRejected(
                        f"image {path} cannot be looked at on hypervisor {target.name}: {error.get_error_message()}"
                    ) from error
            yield _image_volume(pool, target, file)
        finally:
            if made is not None:
                with contextlib.suppress(libvirt.libvirtError):
                    made.destroy()


def _image_volume(pool: Any, target: HypervisorTarget, file: PurePosixPath) -> Any:
    try:
        return _lookup(pool, file.name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise
        raise DriverRejected(
            f"there is no image {file} on hypervisor {target.name}; copy it there"
        ) from error


def _lookup(pool: Any, name: str) -> Any:
    """A volume by name; what came into the directory by another way is seen only after a refresh."""
    try:
        return pool.storageVolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise
        _patiently(lambda: pool.refresh(0))
        return pool.storageVolLookupByName(name)


def _patiently(work: Callable[[], Any], seconds: float = 5.0) -> Any:
    """``work()`` again and again while libvirt refuses it only because the pool is at work for somebody else."""
    until = time.monotonic() + seconds
    while True:
        try:
            return work()
        except libvirt.libvirtError as error:
            text = error.get_error_message() or ""
            if not any(words in text for words in _AT_WORK):
                raise
            if time.monotonic() > until:
                raise DriverUnavailable(f"the storage pool is busy: {text}") from error
            time.sleep(0.05)


def _pool_of(connection: Any, directory: PurePosixPath) -> Any:
    for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        with contextlib.suppress(libvirt.libvirtError):
            if pool_path(pool) == directory:
                return pool
    return None


def _create(pool: Any, name: str, root: ET.Element) -> Any:
    """Make the volume in place of any that has its name, also one that the pool has not noticed yet."""
    remove(pool, name)
    try:
        return pool.createXML(_text(root), 0)
    except libvirt.libvirtError:
        _patiently(lambda: pool.refresh(0))
        if name not in pool.listVolumes():
            raise
        remove(pool, name)
        return pool.createXML(_text(root), 0)


def _volume(name: str, size: int, kind: str) -> ET.Element:
    root = ET.Element("volume")
    _sub(root, "name", name)
    _sub(root, "capacity", str(size))
    _sub(root, "allocation", "0")
    target = _sub(root, "target")
    ET.SubElement(target, "format", type=kind)
    _sub(_sub(target, "permissions"), "mode", "0600")
    return root


def _sub(parent: ET.Element, tag: str, text: str | None = None) -> ET.Element:
    child = ET.SubElement(parent, tag)
    child.text = text
    return child


def _find(parent: ET.Element, tag: str) -> ET.Element:
    found = parent.find(tag)
    assert found is not None
    return found


def _text(root: ET.Element) -> str:
    return ET.tostring(root, encoding="unicode")


def _parse(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - from libvirtd
