"""What an installed system is told of its disks, as text: fstab, crypttab, mdadm.conf, kernel arguments. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

KEYS = "/etc/cryptsetup-keys.d"  # where systemd looks for the key of a device by itself: crypttab(5)


def supports(layout: Mapping[str, Any], name: str) -> set[str]:
    """The names of a block and of all blocks below it: members of its RAID, of its volume group, and so on down."""
    below: dict[str, list[str]] = {}
    for raid in layout["raids"]:
        below[raid["name"]] = [*raid["members"], *raid["spares"]]
    for group in layout["volume_groups"]:
        for volume in group["volumes"]:
            below[volume["name"]] = list(group["members"])
    found, left = set[str](), [name]
    while left:
        one = left.pop()
        found.add(one)
        left += below.get(one, [])
    return found


def mounted(layout: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The blocks with a mount point, / first, each after those it is mounted in."""
    return sorted(
        (b for b in layout["blocks"] if b["mount"]), key=lambda b: b["mount"].rstrip("/").split("/")
    )


def fstab(layout: Mapping[str, Any], uuids: Mapping[str, str], old: str = "") -> str:
    """The new /etc/fstab; `uuids` of file systems by the block's name. Of the old one remain lines that are about no disk (tmpfs, nfs)."""
    rows = []
    for block in mounted(layout):
        usual = {
            "/": "errors=remount-ro" if block["filesystem"] == "ext4" else "defaults",
            # nofail: the disk it is on may have died, which the others carry on without
            "/boot/efi": "umask=0077,nofail",
        }
        options = block["options"] or usual.get(block["mount"], "defaults")
        check = 0 if block["filesystem"] in ("xfs", "btrfs") else 1 if block["mount"] == "/" else 2
        rows.append(
            [f"UUID={uuids[block['name']]}", block["mount"], block["filesystem"], options, "0", str(check)]
        )
    rows += [[f"UUID={uuids[b['name']]}", "none", "swap", "sw", "0", "0"] for b in layout["swap"]]
    taken = {row[1] for row in rows}
    kept = [line for line in old.splitlines() if _of_no_disk(line, taken)]
    return "\n".join([*(" ".join(row) for row in rows), *kept]) + "\n"


def _of_no_disk(line: str, taken: set[str]) -> bool:
    words = line.split()
    if len(words) < 3 or words[0].startswith("#"):
        return False
    disk = words[0].startswith(("UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "/"))
    return not disk and words[1] not in taken


def crypttab(
    layout: Mapping[str, Any], uuids: Mapping[str, str], mapping: Mapping[str, str], old: str = ""
) -> str:
    """The new /etc/crypttab; `uuids` of the LUKS headers, `mapping` the mapped names, by the block's name.

    What / needs is opened early and asks for the passphrase. The others have a key file where / is encrypted itself.
    """
    early = supports(layout, layout["root"]["name"])
    lines = []
    for block in layout["blocks"]:
        if not block["encrypt"]:
            continue
        name = mapping[block["name"]]
        if block["name"] in early:  # `initramfs` is Debian's word, `x-initrd.attach` systemd's
            key, options = "none", "luks,discard,initramfs,x-initrd.attach"
        else:
            key, options = f"{KEYS}/{name}.key" if keyed(layout, block["name"]) else "none", "luks,discard"
        lines.append(f"{name} UUID={uuids[block['name']]} {key} {options}")
    ours = set(mapping.values())
    kept = [line for line in old.splitlines() if line.split() and line.split()[0] not in ours]
    return "\n".join([*(line for line in kept if line.startswith("#")), *lines]) + "\n"


def keyed(layout: Mapping[str, Any], name: str) -> bool:
    """Whether an encrypted block is opened by a key file: where that file lies on / which is encrypted, and is not below / itself."""
    early = supports(layout, layout["root"]["name"])
    secret = any(b["encrypt"] for b in layout["blocks"] if b["name"] in early)
    return secret and name not in early


def mdadm_conf(arrays: Iterable[Mapping[str, str]]) -> str:
    """/etc/mdadm.conf of arrays {name, metadata, uuid}."""
    lines = ["HOMEHOST <system>", "MAILADDR root"]
    lines += [f"ARRAY /dev/md/{a['name']} metadata={a['metadata']} UUID={a['uuid']}" for a in arrays]
    return "\n".join(lines) + "\n"


def kernel_arguments(
    layout: Mapping[str, Any], root: str, luks: Mapping[str, str], arrays: Mapping[str, str], *, dracut: bool
) -> list[str]:
    """How the kernel finds /. `root` is its device or UUID=...; `luks` and `arrays` are UUIDs by the block's name.

    dracut starts nothing that it was not told of (dracut.cmdline(7)); Debian's initramfs reads mdadm.conf and crypttab instead.
    """
    words = [f"root={root}"]
    if not dracut:
        return words
    below = supports(layout, layout["root"]["name"]) | {
        name
        for block in layout["blocks"]
        if block["mount"] == "/usr"
        for name in supports(layout, block["name"])
    }
    words += [f"rd.md.uuid={uuid}" for name, uuid in arrays.items() if name in below]
    words += [f"rd.luks.uuid=luks-{uuid}" for name, uuid in luks.items() if name in below]
    for group in layout["volume_groups"]:
        words += [f"rd.lvm.lv={group['name']}/{v['name']}" for v in group["volumes"] if v["name"] in below]
    return words


def grub_defaults(old: str, arguments: Sequence[str]) -> str:
    """/etc/default/grub with the arguments in GRUB_CMDLINE_LINUX, and without the root= and rd.* that the image had there."""
    lines, done = [], False
    for line in old.splitlines():
        name, _, value = line.partition("=")
        if name.strip() != "GRUB_CMDLINE_LINUX":
            lines.append(line)
            continue
        words = [
            w for w in value.strip().strip("\"'").split() if not w.startswith(("root=", "rd.", "resume="))
        ]
        lines.append(f'GRUB_CMDLINE_LINUX="{" ".join([*words, *arguments])}"')
        done = True
    if not done:
        lines.append(f'GRUB_CMDLINE_LINUX="{" ".join(arguments)}"')
    return "\n".join(lines) + "\n"
