"""Our own schema of Agama's profile (Leap 16, SLES 16), after its documentation; no key that is not in it passes."""

from __future__ import annotations

from typing import Any

from provisiond.templating.validators.schemas import (
    ANY,
    FLAG,
    NUMBER,
    TABLE,
    TEXT,
    either,
    exactly,
    many,
    one_of,
)
from provisiond.templating.validators.trees import Schema

_TEXTS = many(TEXT)
_KEYS = either(TEXT, _TEXTS)
_SIZE = either(NUMBER, {"type": "string", "pattern": r"^[0-9.]+\s*([KMGTPEZY](i?B)?|B)?$"})
_LIMIT = either(_SIZE, {"const": "current"})
_SIZES = either(
    _SIZE, {"type": "array", "items": _LIMIT, "minItems": 1, "maxItems": 2}, exactly("min", min=_LIMIT, max=_LIMIT)
)  # fmt: skip
_PASSWORD = {"password": TEXT}
_LUKS2 = exactly(
    "password", **_PASSWORD, cipher=TEXT, keySize=NUMBER, label=TEXT, tpm=FLAG, pbkdFunction=one_of("pbkdf2", "argon2i", "argon2id")
)  # fmt: skip
_ENCRYPTION = either(
    exactly("luks2", luks2=_LUKS2),
    exactly("luks1", luks1=exactly("password", **_PASSWORD, cipher=TEXT, keySize=NUMBER)),
    exactly("pervasiveLuks2", pervasiveLuks2=exactly("password", **_PASSWORD, apqns=_TEXTS, keyType=TEXT)),
    exactly("tpmFde", tpmFde=exactly("password", **_PASSWORD)),
    one_of("protected_swap", "secure_swap", "random_swap", "protectedSwap", "secureSwap", "randomSwap"),
)
_FILESYSTEMS = one_of(
    "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "nfs", "nilfs2", "ntfs", "reiserfs", "swap", "tmpfs", "vfat", "xfs"
)  # fmt: skip
_FILESYSTEM = exactly(
    reuseIfPossible=FLAG, type=either(_FILESYSTEMS, exactly("btrfs", btrfs=exactly(snapshots=FLAG))), label=TEXT, path=TEXT,
    mountBy=one_of("device", "id", "label", "path", "uuid"), mkfsOptions=_TEXTS, mkfsExtraArguments=TEXT, mountOptions=_TEXTS,
)  # fmt: skip
_SEARCH = either(
    TEXT,
    exactly(condition=TABLE, sort=ANY, max={"type": "integer", "minimum": 1}, ifNotFound=one_of("skip", "error", "create")),
)  # fmt: skip
_GENERATED = one_of("default", "mandatory")
_PARTITION = exactly(
    search=_SEARCH, alias=TEXT, id=one_of("linux", "swap", "lvm", "raid", "esp", "prep", "bios_boot"), size=_SIZES, encryption=_ENCRYPTION,
    filesystem=_FILESYSTEM, delete={"const": True}, deleteIfNeeded={"const": True},
    generate=either(_GENERATED, exactly("partitions", partitions=_GENERATED, encryption=_ENCRYPTION)),
)  # fmt: skip
_VOLUME = exactly(
    name=TEXT, search=_SEARCH, alias=TEXT, size=_SIZES, stripes=NUMBER, stripeSize=_SIZE, encryption=_ENCRYPTION, filesystem=_FILESYSTEM,
    pool={"const": True}, usedPool=TEXT, delete={"const": True}, deleteIfNeeded={"const": True},
    generate=either(
        _GENERATED, exactly("logicalVolumes", logicalVolumes=_GENERATED, encryption=_ENCRYPTION, stripes=NUMBER, stripeSize=_SIZE)
    ),
)  # fmt: skip
_PHYSICAL = either(
    TEXT,
    exactly(
        "generate",
        generate=either(_TEXTS, exactly("targetDevices", targetDevices=_TEXTS, encryption=_ENCRYPTION,
                                        spacePolicy=one_of("useNeeded", "useAvailable"))),
    ),
)  # fmt: skip


def _disk(**more: Any) -> dict[str, Any]:
    return exactly(
        search=_SEARCH, alias=TEXT, encryption=_ENCRYPTION, filesystem=_FILESYSTEM, ptableType=one_of("gpt", "msdos", "dasd"),
        partitions=many(_PARTITION), **more,
    )  # fmt: skip


_STORAGE = exactly(
    boot=exactly("configure", configure=FLAG, device=TEXT),
    drives=many(_disk()),
    volumeGroups=many(
        exactly("name", name=TEXT, search=_SEARCH, extentSize=_SIZE, physicalVolumes=many(_PHYSICAL), logicalVolumes=many(_VOLUME))
    ),
    mdRaids=many(
        _disk(name=TEXT, level=one_of("raid0", "raid1", "raid5", "raid6", "raid10"), parity=TEXT, chunkSize=_SIZE, devices=_TEXTS)
    ),
)  # fmt: skip
_CONNECTION = exactly(
    "id",
    id=TEXT, interface=TEXT, customMacAddress=TEXT, macAddress=TEXT, mtu={"type": "integer", "minimum": 0},
    method4=one_of("auto", "manual", "link-local", "disabled"),
    method6=one_of("auto", "manual", "dhcp", "link-local", "shared", "disabled"), gateway4=TEXT, gateway6=TEXT,
    addresses=many({"type": "string", "pattern": r"^[0-9a-fA-F.:]+(/\d{1,3})?$"}), nameservers=_TEXTS, dnsSearchList=_TEXTS,
    dnsSearchlist=_TEXTS, ignoreAutoDns=FLAG, status=one_of("up", "down", "keep", "removed"), autoconnect=FLAG, persistent=FLAG,
    wireless=TABLE,
    bond=exactly(
        mode=one_of("balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"), options=TEXT,
        ports=_TEXTS,
    ),
    bridge=exactly(stp=FLAG, forwardDelay=NUMBER, priority=NUMBER, maxAge=NUMBER, helloTime=NUMBER, ports=_TEXTS),
    vlan=exactly(
        "id parent", id={"type": "integer", "minimum": 0, "maximum": 4094}, parent=TEXT, protocol=one_of("802.1Q", "802.1ad"),
        flags=many(one_of("reorder-headers", "gvrp", "loose-binding", "mvrp")),
    ),
    match=exactly(kernel=_TEXTS, interface=_TEXTS, driver=_TEXTS, path=_TEXTS),
    **{"ieee-8021x": TABLE},
)  # fmt: skip
_SCRIPT = {"name": TEXT, "content": TEXT, "body": TEXT, "url": TEXT}
_USER = {"password": TEXT, "hashedPassword": FLAG, "sshPublicKey": _KEYS, "sshPublicKeys": _KEYS}

AGAMA = Schema(
    "Agama profile",
    exactly(
        **{"$schema": TEXT},
        product=exactly(
            "id", id=TEXT, mode=TEXT, registrationCode=TEXT, registrationEmail=TEXT, registrationUrl=TEXT,
            addons=many(exactly("id", id=TEXT, version=TEXT, registrationCode=TEXT)),
        ),
        software=exactly(
            patterns=either(_TEXTS, exactly(add=_TEXTS, remove=_TEXTS)), packages=_TEXTS, onlyRequired=FLAG,
            extraRepositories=many(
                exactly("alias url", alias=TEXT, url=TEXT, name=TEXT, priority=NUMBER, productDir=TEXT, enabled=FLAG, allowUnsigned=FLAG,
                        gpgFingerprints=_TEXTS)
            ),
        ),
        bootloader=exactly(stopOnBootMenu=FLAG, timeout={"type": "integer", "minimum": 0}, extraKernelParams=TEXT, updateNvram=FLAG),
        hostname=exactly(static=TEXT, transient=TEXT),
        network=exactly(connections=many(_CONNECTION), state=TABLE),
        user=exactly("fullName userName password", fullName=TEXT, userName=TEXT, **_USER),
        root=exactly(**_USER),
        l10n=exactly(locale=TEXT, keymap=TEXT, timezone=TEXT),
        localization=exactly(language=TEXT, keyboard=TEXT, timezone=TEXT),
        storage=_STORAGE,
        legacyAutoyastStorage=many(TABLE),
        scripts=exactly(
            pre=many(exactly("name", **_SCRIPT)), postPartitioning=many(exactly("name", **_SCRIPT)),
            post=many(exactly("name", **_SCRIPT, chroot=FLAG)), init=many(exactly("name", **_SCRIPT)),
        ),
        files=many(
            exactly("destination", destination=TEXT, content=TEXT, url=TEXT, permissions={"type": "string", "pattern": "^[0-7]{3,4}$"},
                    user=TEXT, group=TEXT)
        ),
        proxy=TABLE, ntp=exactly(sources=many(TABLE)), security=exactly(sslCertificates=many(TABLE)),
        questions=exactly(policy=one_of("auto", "user"), answers=many(TABLE)), access=TABLE, dasd=TABLE, zfcp=TABLE, iscsi=TABLE,
    ),
)  # fmt: skip
