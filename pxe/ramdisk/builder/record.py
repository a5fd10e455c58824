"""What is said of a ramdisk beside it: manifest.json for the daemon, sbom.spdx.json (SPDX 2.3) for whoever audits it."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from builder.packages import Package, about, opened

FORMAT = 1  # of manifest.json
AGENT_FORMAT = re.compile(r"^VERSION\b[^=]*=\s*(\d+)", re.MULTILINE)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sbom(packages: list[Package], name: str, made_at: int) -> dict[str, Any]:
    """The packages that something in the ramdisk came from: name, version, architecture, source, licences."""
    moment = datetime.fromtimestamp(made_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    listed = []
    for package in packages:
        control = about(package)
        source, _, version = control.get("Source", package.name).partition(" ")
        licences = _licences(package)
        listed.append(
            {
                "SPDXID": f"SPDXRef-Package-{re.sub(r'[^A-Za-z0-9.-]', '-', package.name)}",
                "name": package.name,
                "versionInfo": package.version,
                "sourceInfo": f"built from Debian source {source} {version.strip('()') or package.version}",
                "supplier": f"Organization: {control.get('Maintainer', 'Debian').split(' <')[0]}",
                "downloadLocation": "NOASSERTION",
                "filesAnalyzed": False,
                "checksums": [{"algorithm": "SHA256", "checksumValue": package.sha256}],
                "licenseConcluded": "NOASSERTION",
                "licenseDeclared": "NOASSERTION",
                "copyrightText": "NOASSERTION",
                "comment": f"licences named in Debian's copyright file: {', '.join(licences) or 'not in machine-readable form'}",
                "externalRefs": [
                    {
                        "referenceCategory": "PACKAGE-MANAGER",
                        "referenceType": "purl",
                        "referenceLocator": f"pkg:deb/debian/{package.name}@{package.version.replace('+', '%2B').replace(':', '%3A')}"
                        f"?arch={package.architecture}",
                    }
                ],
            }
        )
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"https://provisiond.invalid/ramdisk/{name}",
        "creationInfo": {"created": moment, "creators": ["Tool: provisiond-ramdisk-build"]},
        "packages": listed,
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": package["SPDXID"],
            }
            for package in listed
        ],
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def agent_version(agent: Path) -> int:
    """The agent's version of what it speaks with the daemon: VERSION in its client.py; 0 when it says none."""
    client = agent / "client.py"
    found = AGENT_FORMAT.search(client.read_text()) if client.is_file() else None
    return int(found[1]) if found else 0


def _licences(package: Package) -> list[str]:
    """Short names in a machine-readable copyright file (Debian, DEP-5), sorted."""
    with opened(package) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(f"/usr/share/doc/{package.name}/copyright"):
                stream = archive.extractfile(member)
                text = stream.read().decode(errors="replace") if stream else ""
                return sorted(set(re.findall(r"^License:[ \t]*(\S.*?)\s*$", text, re.MULTILINE)))
    return []
