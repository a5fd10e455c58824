"""One Redfish service through sushy: connection, log-in, finding the system, and what its errors mean. Blocks; runs in threads.

Credentials go to the address that was given and nowhere else: no redirect is followed, no link to another origin, no proxy
and no .netrc is taken from the environment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
import sushy
from sushy import auth, connector, exceptions

from provisiond.drivers.power import PowerTarget
from provisiond.drivers.power.options import Options
from provisiond.errors import DriverError, DriverRejected, DriverUnavailable, Unsupported

OPTIONS = ("scheme", "root", "verify_tls", "ca_file", "connect_timeout", "read_timeout", "auth")
NOT_NOW = frozenset(
    {400, 409, 412, 423, 429}
)  # what controllers say to an order that comes too early, or is done already


@dataclass(frozen=True)
class Service:
    """Where, as whom and how to connect; timeouts in seconds."""

    url: str
    root: str
    username: str
    password: str = field(repr=False)
    verify: bool | str
    auth: str
    connect_timeout: float
    read_timeout: float


def service_of(target: PowerTarget) -> Service:
    """From a target's address and options. Raises DriverRejected for a wrong option."""
    options = Options(target, OPTIONS)
    scheme = options.text("scheme", "https", choices=("https", "http"))
    host = f"[{target.address}]" if ":" in target.address else target.address
    return Service(
        url=f"{scheme}://{host}:{target.port or (443 if scheme == 'https' else 80)}",
        root=options.text("root", "/redfish/v1/"),
        username=target.username,
        password=target.password,
        verify=options.flag("verify_tls", True) and (options.text("ca_file") or True),
        auth=options.text("auth", "auto", choices=("auto", "session", "basic")),
        connect_timeout=options.number("connect_timeout", 5.0, 0.1, 60.0),
        read_timeout=options.number("read_timeout", 30.0, 0.1, 300.0),
    )


class Gone(Exception):
    """Nobody answers there; the text says how."""


class Redirected(requests.RequestException):
    """The service points to another address."""


class _Guarded(requests.Session):
    """Sends nothing to another origin."""

    def __init__(self, origin: str, timeouts: tuple[float, float]) -> None:
        super().__init__()
        self.trust_env = False
        self.headers["Connection"] = "close"  # some controllers choke on long-lived connections
        self._origin, self._timeouts = urlsplit(origin), timeouts

    def request(self, method: Any, url: Any, *args: Any, **options: Any) -> requests.Response:
        asked = urlsplit(str(url))
        if (asked.scheme, asked.netloc) != (self._origin.scheme, self._origin.netloc):
            raise Redirected(f"it names a resource at another address, {asked.scheme}://{asked.hostname}")
        options.update(allow_redirects=False, timeout=self._timeouts)
        answer = super().request(method, url, *args, **options)
        if answer.is_redirect:
            there = urlsplit(answer.headers["Location"])
            raise Redirected(
                f"it redirects to {there.scheme or asked.scheme}://{there.hostname or asked.hostname}{there.path}"
            )
        return answer


class Client:
    """One log-in at one service; not for two threads at once."""

    def __init__(self, service: Service) -> None:
        self.service = service
        timeouts = (service.connect_timeout, service.read_timeout)
        # one attempt: trying again is for the caller, who does not hold a thread while it waits
        wire = connector.Connector(
            service.url, verify=service.verify, server_side_retries=1, connect_timeout=timeouts[0]
        )
        wire._session = _Guarded(service.url, timeouts)
        kinds = {"auto": auth.SessionOrBasicAuth, "session": auth.SessionAuth, "basic": auth.BasicAuth}
        self._auth = kinds[service.auth](service.username, service.password)
        self._paths: dict[str, str] = {}
        self._root = sushy.Sushy(service.url, root_prefix=service.root, auth=self._auth, connector=wire)
        self._root._auth = (
            None  # sushy would log out whenever the garbage collector finds it, in whatever thread
        )
        self.wire = wire

    def system(self, host: str, wanted: str) -> Any:
        """The system read now, found by id, UUID, name, serial number or MAC; without ``wanted`` the only one there is."""
        if wanted in self._paths:
            try:
                return self._root.get_system(self._paths[wanted])
            except exceptions.ResourceNotFoundError:
                del self._paths[wanted]
        found = self._find(host, wanted)
        self._paths[wanted] = found.path
        return found

    def json(self, path: str) -> dict[str, Any]:
        """A resource as it stands; empty where there is none."""
        try:
            answer = self.wire.get(path).json()
        except exceptions.ResourceNotFoundError:
            return {}
        return answer if isinstance(answer, dict) else {}

    def _find(self, host: str, wanted: str) -> Any:
        paths = list(self._root.get_system_collection().members_identities)
        direct = [path for path in paths if wanted and path.rstrip("/").rpartition("/")[2] == wanted]
        if direct or (not wanted and len(paths) == 1):
            return self._root.get_system((direct or paths)[0])
        systems = [self._root.get_system(path) for path in paths]
        if wanted:
            low = wanted.lower()
            for system in systems:
                known = (system.identity, system.uuid, system.name, system.serial_number, system.hostname)
                if low in [name.lower() for name in known if name]:
                    return system
            mac = _mac(wanted)
            for system in systems if len(mac) == 12 else ():
                if mac in self._macs(system):
                    return system
        names = ", ".join(f"{system.identity} ({system.name})" for system in systems) or "none"
        raise DriverRejected(
            f"{host}: {self.service.url} has {f'no system {wanted!r}' if wanted else f'{len(systems)} systems'}; "
            f"set the BMC's system to the id, name or a MAC address of one of: {names}"
        )

    def _macs(self, system: Any) -> set[str]:
        try:
            ports = system.ethernet_interfaces.get_members()
        except (exceptions.MissingAttributeError, exceptions.ResourceNotFoundError):
            return set()
        return {_mac(port.mac_address) for port in ports if port.mac_address}

    def close(self) -> None:
        """Log out and disconnect; a service that is gone is no error."""
        with contextlib.suppress(exceptions.SushyError, requests.RequestException):
            self._auth.close()
        self.wire.close()


@contextlib.contextmanager
def judged(target: PowerTarget, service: Service) -> Iterator[None]:
    """What sushy raises, in the words of this room; Gone where nobody answers."""
    where = f"{target.host}: Redfish at {service.url}"
    try:
        yield
    except DriverError:
        raise
    except (exceptions.ConnectionError, OSError) as error:  # requests' own errors are OSErrors
        raise _connection(where, error) from None
    except exceptions.AccessError as error:
        raise DriverRejected(
            f"{where} refuses user {service.username!r} (HTTP {error.status_code}): {error.detail or 'no reason given'}; "
            "set the right user and password, or give it the operator role in the BMC"
        ) from None
    except exceptions.HTTPError as error:
        said = f"HTTP {error.status_code}: {error.detail or 'no reason given'}"
        if error.status_code in NOT_NOW or error.status_code >= 500:
            raise DriverUnavailable(f"{where} does not do this now: {said}") from None
        if error.status_code in (404, 405, 501):
            raise Unsupported(f"{where} cannot do this: {said}") from None
        raise DriverRejected(f"{where} refuses: {said}") from None
    except (
        exceptions.MissingActionError,
        exceptions.MissingAttributeError,
        exceptions.InvalidParameterValueError,
    ) as error:
        raise Unsupported(f"{where} cannot do this: {error}") from None
    except (exceptions.SushyError, LookupError, TypeError, ValueError) as error:
        raise DriverUnavailable(
            f"{where} sent an answer that makes no sense ({type(error).__name__}: {error})"
        ) from None


def _connection(where: str, error: Exception) -> Exception:
    said = str(error)
    if "redirects to" in said or "at another address" in said:
        return DriverRejected(
            f"{where}: {said.rpartition('Error: ')[2]}; credentials are not sent along: set the address it really has"
        )
    if "CERTIFICATE_VERIFY_FAILED" in said or "certificate" in said.lower():
        return DriverRejected(
            f"{where}: its TLS certificate is not trusted; set ca_file to the CA that signed it (or the certificate itself), "
            "or verify_tls=false on a network you trust"
        )
    if "WRONG_VERSION_NUMBER" in said:
        return DriverRejected(f"{where} does not speak TLS; set scheme=http if that is meant")
    if "CA certificate" in said or "invalid path" in said:
        return DriverRejected(f"{where}: the ca_file cannot be read")
    for mark, reason in (
        ("refused", "connection refused"),
        ("No route to host", "no route to it"),
        ("resolve", "its name does not resolve"),
        ("resolution", "its name does not resolve"),
        ("Read timed out", "no answer in time"),
        ("timed out", "no connection in time"),
    ):
        if mark in said:
            return Gone(f"{where} does not answer: {reason}; check its network, power and port")
    return Gone(f"{where} does not answer: {said.rpartition('Error: ')[2]}")


def _mac(text: str) -> str:
    return "".join(character for character in text.lower() if character in "0123456789abcdef")
