"""What an image needs to know at its first start: the NoCloud seed. SSH host keys that the daemon has are in its vendor-data.

Files of the seed: cloud-init's documentation, Datasources, NoCloud (/var/lib/cloud/seed/nocloud).
"""

import os

from ramdisk_agent.work import Failed, Work

SEED = "var/lib/cloud/seed/nocloud"
NAMES = ("user-data", "meta-data", "network-config", "vendor-data")


def write(work: Work, root: str) -> None:
    """Fetch the files of the plan's `seed` and write them below `root`. Raises Failed."""

    def idle() -> None:
        work.progress(95, "fetching the seed")

    idle()
    files: dict[str, bytes] = {}
    for name, url in (work.plan.get("seed") or {}).items():
        if name not in NAMES:
            raise Failed(
                f"the plan's seed has a file {name!r}, which NoCloud does not know: build the ramdisk anew"
            )
        files[f"{SEED}/{name}"] = work.client.fetch(url, idle)
    for path, content in files.items():
        try:
            put(root, path, content, 0o600)
        except OSError as error:
            raise Failed(f"cannot write /{path} of the image: {error.strerror}") from None
    work.say(f"seed: {', '.join(path.rpartition('/')[2] for path in files) or 'none'}")


def put(root: str, path: str, content: bytes, mode: int) -> None:
    """A file below `root`, there whole or not at all, that never leaves it through a link of the image. Raises OSError."""
    folder, name = root, path.rpartition("/")[2]
    for part in path.split("/")[:-1]:
        above, folder = folder, f"{folder}/{part}"
        if os.path.islink(folder):
            folder = _inside(root, folder)
        if not os.path.isdir(folder):
            os.mkdir(folder, 0o755 if part != "nocloud" else 0o700)
            _label(above, folder)
    target = f"{folder}/{name}"
    fd = os.open(f"{target}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, mode)
        file.write(content)
    _label(folder, f"{target}.new")
    os.rename(f"{target}.new", target)


def _inside(root: str, link: str) -> str:
    """Where a link of the image points, as the image sees it once it runs."""
    for _ in range(8):
        if not os.path.islink(link):
            break
        to = os.readlink(link)
        link = f"{root}{to}" if to.startswith("/") else f"{link.rpartition('/')[0]}/{to}"
    if not os.path.realpath(link).startswith(os.path.realpath(root) + "/"):
        raise OSError(40, f"{link} points out of the image")
    return link


def _label(above: str, path: str) -> None:
    """SELinux: a new file without a label could not be read by cloud-init; the ramdisk's kernel gives none."""
    try:
        os.setxattr(path, "security.selinux", os.getxattr(above, "security.selinux"))
    except OSError:
        pass  # no labels in this image
