"""sushy-emulator: one Redfish service for all domains of a libvirtd.

with SushyEmulator(ns, uri) as redfish:
    redfish.address, redfish.port               # user and password as in vbmc.py, by HTTP basic authentication
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bcrypt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.lab.kit.netns import Netns, end
from tests.lab.kit.part import Part
from tests.lab.kit.vbmc import PASSWORD, USER


class SushyEmulator(Part):
    """One emulator in ``ns`` over the libvirtd at ``uri``; with ``tls`` it has a certificate for ``address`` in ``ca_file``."""

    def __init__(
        self, ns: Netns, uri: str, *, address: str = "10.77.0.1", port: int = 8000, tls: bool = False
    ) -> None:
        self.ns, self.uri, self.address, self.port, self.tls = ns, uri, address, port, tls
        self.username, self.password = USER, PASSWORD
        self.root = Path(tempfile.mkdtemp(prefix="pvsushy-"))
        self.ca_file = self.root / "cert.pem"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 60.0) -> SushyEmulator:
        """Start it and wait until it answers."""
        secret = bcrypt.hashpw(self.password.encode(), bcrypt.gensalt(4)).decode()
        (self.root / "users").write_text(f"{self.username}:{secret}\n")
        if self.tls:
            _certificate(self.address, self.ca_file, self.root / "key.pem")
        settings = {
            "LISTEN_IP": self.address,
            "LISTEN_PORT": self.port,
            "SSL_CERT": str(self.ca_file) if self.tls else None,
            "SSL_KEY": str(self.root / "key.pem") if self.tls else None,
            "AUTH_FILE": str(self.root / "users"),
            "OS_CLOUD": None,
            "LIBVIRT_URI": self.uri,
            "IGNORE_BOOT_DEVICE": False,
            "STATE_DIR": str(self.root),
            "BOOT_LOADER_MAP": {
                "UEFI": {"x86_64": "/usr/share/OVMF/OVMF_CODE_4M.fd"},
                "Legacy": {"x86_64": None},
            },
            "SECURE_BOOT_ENABLED_NVRAM": "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
            "SECURE_BOOT_DISABLED_NVRAM": "/usr/share/OVMF/OVMF_VARS_4M.fd",
            "VMEDIA_VERIFY_SSL": False,
        }
        config = self.root / "conf.py"
        config.write_text("".join(f"SUSHY_EMULATOR_{name} = {value!r}\n" for name, value in settings.items()))
        with (self.root / "log").open("ab") as log:
            self.process = self.ns.exec(
                [Path(sys.executable).with_name("sushy-emulator"), "--config", config],
                env={**os.environ, "TMPDIR": str(self.root)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + timeout
        while True:
            try:
                self.ns.connect(self.address, self.port, timeout=1.0).close()
                return self
            except OSError:
                if time.monotonic() > until or self.process.poll() is not None:
                    said = (self.root / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(
                        f"sushy-emulator does not answer at {self.address}:{self.port}\n{said}"
                    ) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """End it and remove its state."""
        if self.process is not None:
            pid = self.process.pid
            end(lambda: [pid])
            self.process.wait(5)
            self.process = None
        shutil.rmtree(self.root, ignore_errors=True)


def _certificate(address: str, cert: Path, key_file: Path) -> None:
    """A certificate that is its own CA, as a BMC has it, good for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, address)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
