"""Talos machine configuration: YAML documents checked for their structure here, and by ``talosctl validate`` where it is installed.

Keys are those of the v1alpha1 reference (machine, cluster) and the documents with apiVersion and kind that may follow.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from provisiond.templating.validators.schemas import (
    ANY,
    FLAG,
    NUMBER,
    TABLE,
    TEXT,
    either,
    exactly,
    many,
    named,
    one_of,
)
from provisiond.templating.validators.trees import NO_JSONSCHEMA, Schema, Tree, by_schema, read_yaml
from provisiond.templating.validators.verdict import Problem, Target, Verdict, as_files, run

NAME = "Talos structure"
TALOSCTL = "talosctl"
_SCALARS = named(either(TEXT, NUMBER, FLAG))
_ROUTE = exactly(network=TEXT, gateway=TEXT, source=TEXT, metric=NUMBER, mtu=NUMBER)
_VLAN = exactly(
    "vlanId", vlanId={"type": "integer", "minimum": 1, "maximum": 4094}, addresses=many(TEXT), routes=many(_ROUTE), dhcp=FLAG, mtu=NUMBER,
    vip=TABLE, dhcpOptions=TABLE, cidr=TEXT,
)  # fmt: skip
_INTERFACE = exactly(
    interface=TEXT, deviceSelector=TABLE, addresses=many(TEXT), routes=many(_ROUTE), bond=TABLE, bridge=TABLE, bridgePort=TABLE,
    vlans=many(_VLAN), mtu=NUMBER, dhcp=FLAG, ignore=FLAG, dummy=FLAG, dhcpOptions=TABLE, wireguard=TABLE, vip=TABLE, cidr=TEXT,
)  # fmt: skip
_MACHINE = exactly(
    "type",
    type=one_of("controlplane", "worker", "init"), token=TEXT, ca=exactly(crt=TEXT, key=TEXT), acceptedCAs=many(TABLE), certSANs=many(TEXT),
    controlPlane=TABLE, kubelet=TABLE, pods=many(TABLE),
    network=exactly(hostname=TEXT, interfaces=many(_INTERFACE), nameservers=many(TEXT), searchDomains=many(TEXT), extraHostEntries=many(TABLE),
                    kubespan=TABLE, disableSearchDomain=FLAG),
    disks=many(TABLE),
    install=exactly(disk=TEXT, diskSelector=TABLE, extraKernelArgs=many(TEXT), image=TEXT, extensions=many(TABLE), wipe=FLAG, bootloader=FLAG,
                    legacyBIOSSupport=FLAG, grubUseUKICmdline=FLAG),
    files=many(exactly("path op", content=TEXT, permissions=either(NUMBER, TEXT), path=TEXT, op=one_of("create", "append", "overwrite"))),
    env=_SCALARS, time=exactly(disabled=FLAG, servers=many(TEXT), bootTimeout=TEXT), sysctls=_SCALARS, sysfs=_SCALARS, registries=TABLE,
    systemDiskEncryption=TABLE, features=TABLE, udev=TABLE, logging=TABLE, kernel=TABLE, seccompProfiles=many(TABLE), baseRuntimeSpecOverrides=ANY,
    nodeLabels=_SCALARS, nodeAnnotations=_SCALARS, nodeTaints=_SCALARS, persist=FLAG,
)  # fmt: skip
_CLUSTER = exactly(
    "controlPlane",
    id=TEXT, secret=TEXT, clusterName=TEXT, token=TEXT, aescbcEncryptionSecret=TEXT, secretboxEncryptionSecret=TEXT,
    controlPlane=exactly("endpoint", endpoint={"type": "string", "pattern": "^https://"}, localAPIServerPort=NUMBER),
    ca=exactly(crt=TEXT, key=TEXT), acceptedCAs=many(TABLE), aggregatorCA=exactly(crt=TEXT, key=TEXT), serviceAccount=exactly(key=TEXT),
    network=TABLE, apiServer=TABLE, controllerManager=TABLE, proxy=TABLE, scheduler=TABLE, discovery=TABLE, etcd=TABLE, coreDNS=TABLE,
    externalCloudProvider=TABLE, extraManifests=many(TEXT), extraManifestHeaders=_SCALARS,
    inlineManifests=many(exactly("name", name=TEXT, contents=TEXT)),
    adminKubeconfig=TABLE, allowSchedulingOnMasters=FLAG, allowSchedulingOnControlPlanes=FLAG,
)  # fmt: skip
V1ALPHA1 = Schema(
    "Talos v1alpha1",
    exactly(
        "version machine cluster",
        version={"const": "v1alpha1"}, debug=FLAG, persist=FLAG, machine=_MACHINE, cluster=_CLUSTER,
    ),
)  # fmt: skip


def check(texts: Sequence[str], target: Target) -> list[Verdict]:
    """Structure of each; talosctl, a process for each text, only where it is installed: without it the verdict says so."""
    verdicts = []
    for text in texts:
        try:
            verdicts.append(Verdict(NAME, tuple(_problems(read_yaml(text)))))
        except ImportError:
            verdicts.append(Verdict(NAME, skipped=(NO_JSONSCHEMA,)))
    if shutil.which(TALOSCTL) is None:
        return verdicts
    with as_files(texts, [".yaml"] * len(texts)) as paths, ThreadPoolExecutor(2) as pool:
        return [v.with_more(more) for v, more in zip(verdicts, pool.map(_talosctl, paths), strict=True)]


def _problems(trees: Sequence[Tree]) -> Iterator[Problem]:
    machines = 0
    for tree in trees:
        yield from tree.problems
        if tree.value is None:
            continue
        if not isinstance(tree.value, dict):
            yield Problem("a document of it is no mapping", tree.line([]))
        elif "apiVersion" in tree.value or "kind" in tree.value:
            for key in ("apiVersion", "kind"):
                if not isinstance(tree.value.get(key), str):
                    yield Problem(f"a document beside the machine's needs {key}", tree.line([]))
        else:
            machines += 1
            yield from by_schema(tree, V1ALPHA1)
            install = tree.value.get("machine") if isinstance(tree.value.get("machine"), dict) else {}
            inner = install.get("install") if isinstance(install, dict) else None
            if isinstance(inner, dict) and not {"disk", "diskSelector"} & inner.keys():
                yield Problem(
                    "machine.install: neither disk nor diskSelector", tree.line(["machine", "install"])
                )
    if machines != 1 and not any(tree.problems for tree in trees):
        yield Problem(f"there must be one document with machine and cluster, not {machines}")


def _talosctl(path: str) -> list[Problem]:
    done = run([TALOSCTL, "validate", "--mode", "metal", "--config", path])
    if not done.returncode:
        return []
    said = [line.strip(" \t*") for line in done.stderr.splitlines() if line.strip(" \t*")]
    return [Problem(f"talosctl: {line}") for line in said or ["validate failed"]]
