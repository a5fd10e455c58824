"""The IPMI controllers: log-in, one kept session each, one user at a time, in a bounded number of threads; and what their errors mean."""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pyghmi.exceptions import IpmiException

from provisiond.drivers.power import PowerTarget
from provisiond.drivers.power.ipmi_account import Account, Crowded, NoAnswer, Refused, Restart
from provisiond.drivers.power.ipmi_session import FIRST_RESEND, SHA256, Session
from provisiond.drivers.power.lanes import Lane, Lanes
from provisiond.drivers.power.options import Options
from provisiond.errors import DriverRejected, DriverUnavailable, Unsupported

T = TypeVar("T")

OPTIONS = ("privilege", "timeout", "spacing", "vendor", "steal_console")
PRIVILEGES = {"": 0, "user": 2, "operator": 3, "administrator": 4}
LOGIN_STARTS = 8  # a key exchange that lost a packet starts anew; each start may cost the controller a session for a minute
LOGIN_TIMEOUTS = 3  # a log-in may take this many times the timeout of one request
KEEP = 30.0  # seconds a session is kept after its last use; controllers drop it after 60 (IPMI v2.0, 6.12.15)
PAUSES = (0.5, 1.0, 2.0, 4.0)  # before a busy or crowded controller is asked again
CIPHER_REFUSALS = frozenset({0x04, 0x05, 0x10, 0x11})  # table 13-15

# completion codes of IPMI v2.0, table 5-2
BUSY = frozenset({0xC0, 0xC3, 0xC5, 0xCE, 0xCF, 0xD0, 0xD1, 0xD2, 0xDF})
NO_SUCH_COMMAND = frozenset({0xC1, 0xC2, 0xD6})
NO_PRIVILEGE = 0xD4
NOT_NOW = 0xD5
UNSPECIFIED = 0xFF


class Completion(Exception):
    """A command's completion code other than success; ``code`` is the byte, the text says it in words."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(text)


def ask(session: Session, netfn: int, command: int, data: tuple[int, ...] = ()) -> bytes:
    """One command; returns the data of its answer. Raises Completion, and IpmiException when the session broke."""
    answer = session.raw_command(netfn=netfn, command=command, data=data)
    if answer["code"]:
        raise Completion(
            answer["code"], f"{answer.get('error') or 'error'} (completion code 0x{answer['code']:02x})"
        )
    return bytes(answer["data"])


@dataclass
class Link(Lane):
    """What is known of one controller. ``memory`` is for the commands: vendor, sensor records."""

    session: Session | None = None
    sha: int = SHA256
    reaper: asyncio.TimerHandle | None = None
    memory: dict[str, Any] = field(default_factory=dict)


class Links:
    """All controllers of a driver. ``threads`` bounds the work at once."""

    def __init__(self, threads: int = 64) -> None:
        self._links: dict[tuple[str, int], Link] = {}
        self._lanes = Lanes("ipmi", NoAnswer, threads)

    async def run(self, target: PowerTarget, work: Callable[[Session, Link], T], *, apart: bool = False) -> T:
        """Run ``work`` in a thread with a session that is logged in, and again when the controller is busy.

        ``work`` may run twice: a session that the controller has forgotten is replaced. ``apart`` True gives it a session of
        its own, which it keeps. Raises DriverUnavailable, DriverRejected, Unsupported.
        """
        account = account_of(target)
        link = self._links.setdefault((account.address, account.port), Link())
        use = _apart if apart else _kept
        for pause in (*PAUSES, None):
            try:
                return await self._turn(link, functools.partial(use, link, account, work))
            except (Crowded, Completion) as error:
                if isinstance(error, Completion) and error.code not in BUSY:
                    raise _judge(target, error) from None
                if pause is None:
                    raise DriverUnavailable(
                        f"{_where(target)} is busy: {error}; it is tried again later"
                    ) from None
                await asyncio.sleep(pause)
            except NoAnswer as error:
                raise DriverUnavailable(
                    f"{_where(target)} does not answer: {error}; check its network, power and port"
                ) from None
            except Refused as error:
                raise DriverRejected(
                    f"{_where(target)}: {error}; set the right user, password or privilege with 'provisionctl host update'"
                ) from None
            except IpmiException as error:
                raise DriverUnavailable(f"{_where(target)} broke off: {error}") from None
            except (LookupError, TypeError, ValueError, NotImplementedError, struct.error) as error:
                raise DriverUnavailable(
                    f"{_where(target)} sent an answer that makes no sense ({type(error).__name__}: {error})"
                ) from error
        raise AssertionError("unreachable")

    async def _turn(self, link: Link, work: Callable[[], T]) -> T:
        if link.reaper:
            link.reaper.cancel()
        try:
            return await self._lanes.run(link, work)
        finally:
            if link.reaper:
                link.reaper.cancel()
            link.reaper = asyncio.get_running_loop().call_later(KEEP, self._reap, link)

    def _reap(self, link: Link) -> None:
        """Give an idle session back: controllers have as few as four."""
        if not link.lock.locked() and (session := link.session):
            link.session = None
            self._lanes.later(session.logout)

    async def close(self) -> None:
        """Log out everywhere and end the threads, once they have ended what they do."""
        for link in self._links.values():
            if link.reaper:
                link.reaper.cancel()
            async with link.lock:
                if link.session:
                    self._lanes.later(link.session.logout)
                    link.session = None
        await self._lanes.close()


def account_of(target: PowerTarget) -> Account:
    """Whom to log in as. Raises DriverRejected for what IPMI cannot carry."""
    options = Options(target, OPTIONS)
    if len(target.password.encode()) > 20:
        raise DriverRejected(
            f"{target.host}: the BMC password is {len(target.password.encode())} bytes long; IPMI carries 20 at most (many BMCs cut it "
            "to 16): set a shorter one in the BMC and here"
        )
    if len(target.username.encode()) > 16:
        raise DriverRejected(
            f"{target.host}: the BMC user name is longer than the 16 bytes IPMI carries: set a shorter one in the BMC and here"
        )
    return Account(
        address=target.address,
        port=target.port or 623,
        username=target.username,
        password=target.password,
        privilege=PRIVILEGES[options.text("privilege", choices=PRIVILEGES)],
        timeout=options.number("timeout", 5.0, 0.5, 60.0),
        spacing=options.number("spacing", 0.0, 0.0, 30.0),
    )


def _kept(link: Link, account: Account, work: Callable[[Session, Link], T]) -> T:
    session, link.session = link.session, None
    if session and (
        session.broken or session.account != account or time.monotonic() - session.used_at > KEEP
    ):
        session.logout()
        session = None
    fresh = 0
    try:
        while True:
            if session is None:
                session = _login(link, account)
                fresh += 1
            try:
                return work(session, link)
            except IpmiException:  # forgotten by the controller, or lost on the way: log in once more
                if fresh > 1 or not session.broken:
                    raise
                session.shut()
                session = None
    finally:
        if session and not session.broken:
            link.session = session


def _apart(link: Link, account: Account, work: Callable[[Session, Link], T]) -> T:
    session = _login(link, account)
    try:
        return work(session, link)
    except BaseException:
        session.logout()
        raise


def login(account: Account, *, sha: int = SHA256) -> Session:
    """Log in; blocks for at most three times ``account.timeout``, for a dead address once.

    ``sha`` SHA1 asks for cipher suite 3 at once, for a controller known to be old. Raises NoAnswer, Crowded, Refused.
    """
    until = time.monotonic() + LOGIN_TIMEOUTS * account.timeout
    try:
        found = socket.getaddrinfo(account.address, account.port, type=socket.SOCK_DGRAM)
    except (socket.gaierror, UnicodeError):
        raise NoAnswer(f"the name {account.address} does not resolve") from None
    patience, error = FIRST_RESEND, NoAnswer("nothing was tried")
    for _start in range(LOGIN_STARTS):
        for family, _kind, _proto, _name, peer in found:
            made = Session(account, family, peer, sha=sha, patience=patience, until=until)
            try:
                made.open()
                return made
            except Restart as why:
                error, sha, patience = NoAnswer(str(why), heard=True), made.sha, made.patience
            except NoAnswer as why:
                error = why
            finally:
                if not made.logged:
                    made.shut()
        if not error.heard or time.monotonic() >= until:
            break
    raise error


def _login(link: Link, account: Account) -> Session:
    try:
        session = login(account, sha=link.sha)
    except Refused as error:
        if link.sha == SHA256 or error.code not in CIPHER_REFUSALS:
            raise
        session = login(account)  # it has learnt SHA-256 since
    link.sha = session.sha
    return session


def _judge(target: PowerTarget, error: Completion) -> Exception:
    where = _where(target)
    if error.code in NO_SUCH_COMMAND:
        return Unsupported(f"{where} cannot do this: {error}")
    if error.code == NO_PRIVILEGE:
        return DriverRejected(
            f"{where}: user {target.username!r} may not do this: {error}; give it operator or administrator privilege in the BMC"
        )
    if error.code in (NOT_NOW, UNSPECIFIED):
        return DriverUnavailable(f"{where} cannot do this now: {error}")
    return DriverRejected(f"{where} refuses: {error}")


def _where(target: PowerTarget) -> str:
    return f"{target.host}: the BMC at {target.address}:{target.port or 623}"
