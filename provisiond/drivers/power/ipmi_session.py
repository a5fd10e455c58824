"""One IPMI 2.0 session over LAN, on a socket of its own: pyghmi's codec and key exchange, our waiting and resending.

pyghmi processes every session of a process in whichever thread happens to wait, so one slow controller holds up the
others, an exception in one lands in another, and a session that was closed comes back (its table of sessions in the making is
written with text keys and cleared with bytes). Here each session has its connected socket, is driven by the one thread that uses it,
and is in no table. A closed port then answers at once (ECONNREFUSED) instead of by silence.

Source: IPMI v2.0 rev. 1.1, chapter 13 (sessions, RAKP) and 22 (messaging commands).
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections import defaultdict
from typing import Any, ClassVar

from pyghmi.exceptions import IpmiException
from pyghmi.ipmi.private import session as pyghmi_session

from provisiond.drivers.power.ipmi_account import Account, Crowded, NoAnswer, Refused, Restart, SessionError

Socket = socket.socket  # the class below has an attribute of the module's name

SHA1, SHA256 = 1, 256  # as pyghmi numbers them: cipher suites 3 and 17
FIRST_RESEND = 0.4  # seconds; each resend waits GROWTH times longer
GROWTH = 1.5
RMCP_NO_RESOURCES = frozenset({0x01, 0x0B})  # table 13-15: insufficient resources, at all or at this role


class Session(pyghmi_session.Session):  # type: ignore[misc]
    """A pyghmi session whose I/O is its own. Use it from one thread at a time."""

    socketchecking = contextlib.nullcontext()  # nothing is shared, so nothing to lock
    socketpool: ClassVar[dict[Any, int]] = defaultdict(int)
    socket: Socket  # from open() on
    ipmicallback: Any = None
    logged = 0
    logging = broken = False
    lastpayload: Any = None
    sessioncontext: str | None = None
    sol_handler: Any = None

    def __new__(cls, *_args: Any, **_options: Any) -> Session:
        self: Session = object.__new__(cls)
        self.forbidsock = []
        return self

    def __init__(
        self, account: Account, family: int, peer: Any, *, sha: int, patience: float, until: float
    ) -> None:
        self.account, self.sha, self.patience = account, sha, patience
        self.refusal = 0  # the RMCP+ status code of the controller's no
        self.errormsg = ""
        self.used_at = 0.0
        self._family, self._peer = family, peer
        self._login_until = until
        self._tries = 0
        self._sent_at = self._resend_at = self._give_up_at = self._last_command = 0.0
        self._heard = self._closed = self._resending = self._guessed = False

    def open(self) -> None:
        """Log in. Raises NoAnswer, Crowded, Refused, Restart."""
        account = self.account
        super().__init__(
            bmc=account.address,
            userid=account.username,
            password=account.password,
            port=account.port,
            privlevel=account.privilege or None,
            onlogon=lambda _answer: None,  # not waited for in pyghmi's loop but in ours
        )
        while self.logging and not self.broken:
            self.turn()
        if self.logged and not self.broken:
            return
        raise self._why()

    def _why(self) -> SessionError:
        """What a failed log-in means."""
        said, user = self.errormsg or "", self.account.username
        if self.refusal in RMCP_NO_RESOURCES:
            return Crowded(f"it has no free session ({said})")
        if self.refusal and self._guessed:
            self.sha = SHA256
            return Restart("packets are lost")
        if self.refusal or said.startswith(("Incorrect password", "Invalid RAKP4")):
            return Refused(f"it refuses to log in user {user!r}: {said}", self.refusal)
        if said.startswith("no answer"):
            if self.sessioncontext in ("EXPECTINGRAKP2", "EXPECTINGRAKP4"):
                return Restart(
                    f"it began the log-in of user {user!r} and then fell silent: "
                    "the user is unknown to it, or packets are lost"
                )
            return NoAnswer(said, heard=self._heard)
        return Refused(said or "it ended the log-in without a reason")

    # --- our I/O in place of pyghmi's ----------------------------------------------------------------------

    def _assignsocket(self, server: Any = None, forbiddensockets: Any = ()) -> Socket:
        made = socket.socket(self._family, socket.SOCK_DGRAM)
        made.setblocking(False)
        try:
            made.connect(self._peer)
        except OSError as error:
            made.close()
            raise NoAnswer(f"{self.account.address} cannot be reached ({error.strerror})") from None
        return made

    def _initsession(self) -> None:
        super()._initsession()
        self.attemptedhash = self.sha
        self.logontries = 0
        self.sockaddr = self._peer
        self.refusal = 0

    def _xmit_packet(
        self, retry: bool = True, delay_xmit: float | None = None, timeout: float | None = None
    ) -> None:
        if self.sequencenumber:
            self.sequencenumber += 1
        if not self._resending:
            self._tries, self._sent_at = 0, time.monotonic()
            limit = self.account.timeout
            if self.logged:  # a session that fell silent is sooner replaced than waited for
                limit = max(limit / 2, min(3 * self.patience, limit))
            self._give_up_at = self._sent_at + (timeout or limit)
        with contextlib.suppress(BlockingIOError):  # a full queue is a lost packet: the resend mends it
            try:
                self.socket.send(self.netpacket)
            except OSError as error:
                self._fail(f"no answer from port {self.account.port}/udp: {error.strerror}")
                return
        if retry:
            self._resend_at = time.monotonic() + self.patience * GROWTH**self._tries

    def turn(self, timeout: float | None = None) -> None:
        """Wait for the next packet, at most ``timeout`` seconds, and do what it or the clock asks for."""
        due = self.due()
        if timeout is not None:
            due = min(due, time.monotonic() + timeout)
        poller = select.poll()
        poller.register(self.socket, select.POLLIN)
        if poller.poll(max(0.0, due - time.monotonic()) * 1000):
            self.receive()
        self.tick()

    def due(self) -> float:
        """When ``tick`` has something to do, in the time of the monotonic clock."""
        due = time.monotonic() + 3600.0
        if self.lastpayload:
            due = min(due, self._resend_at, self._give_up_at)
        return due if self.logged else min(due, self._login_until)

    def receive(self) -> None:
        """Handle every packet that has come; never blocks, but for the last packet of a log-in."""
        while not self.broken:
            try:
                packet = bytearray(self.socket.recv(4096))
            except BlockingIOError:
                return
            except OSError as error:
                if not self._heard or self.logged:
                    self._fail(f"no answer from port {self.account.port}/udp: {error.strerror}")
                return
            if len(packet) < 5 or packet[0] != 6 or packet[3] != 7:
                continue
            waited, sent_at = self.lastpayload, self._sent_at
            # whatever a stranger's or a broken controller's packet does to the parser, it is only a lost packet
            with contextlib.suppress(
                ArithmeticError, IpmiException, LookupError, TypeError, ValueError, struct.error
            ):
                self._handle_ipmi_packet(packet, sockaddr=self._peer, qent=(packet, self._peer, None))
            if waited and self.lastpayload is not waited and not self._heard:
                self._heard = True
                # a slow controller is asked again only when its own pace says that a packet was lost
                self.patience = min(
                    max(self.patience, 1.5 * (time.monotonic() - sent_at)), self.account.timeout
                )

    def tick(self) -> None:
        """Resend what is overdue, or give up; never blocks."""
        now = time.monotonic()
        if self.broken or now < self.due():
            return
        if now >= self._give_up_at or not self.lastpayload or (not self.logged and now >= self._login_until):
            self._fail(
                f"no answer from port {self.account.port}/udp within {self._give_up_at - self._sent_at:.3g} s"
            )
            return
        if self.sessioncontext in ("EXPECTINGRAKP2", "EXPECTINGRAKP4"):
            self._fail("no answer in the key exchange")
            return
        self._tries += 1
        self._resending = True
        try:
            if self.sessioncontext == "OPENSESSION":
                if self._tries >= 3 and self.sha == SHA256:  # some old controllers drop what they do not know
                    self._guessed, self.sha, self.attemptedhash = True, SHA1, SHA1
                self.lastpayload = None
                self._open_rmcpplus_request()
            else:
                self.hasretried = 1
                self.send_payload()
        finally:
            self._resending = False

    def _fail(self, message: str) -> None:
        self.errormsg = self.errormsg or message
        callback, self.ipmicallback = self.ipmicallback, None
        self._mark_broken(self.errormsg)
        if callback and not self.logging:
            callback({"error": message, "code": 0xFFFF, "command": 0, "netfn": 0})

    def _mark_broken(self, error: str | None = None) -> None:
        self.errormsg = self.errormsg or error or "the session ended"
        self.broken, self.logged, self.logging = True, 0, False
        self.lastpayload = None
        pyghmi_session.Session.keepalive_sessions.pop(self, None)

    def _cmdwait(self) -> None:
        """One thread uses a session, one command at a time: there is nobody to wait for."""

    def awaitresponse(self, retry: bool, netfn: int, command: int) -> None:
        while retry and self.lastresponse is None and not self.broken:
            self.turn()

    def raw_command(self, *args: Any, **options: Any) -> Any:
        """One command, not before ``spacing`` seconds after the last one. Raises pyghmi's IpmiException when the session broke."""
        if self.account.spacing and not options.get("callback"):
            time.sleep(max(0.0, self._last_command + self.account.spacing - time.monotonic()))
        try:
            answer = super().raw_command(*args, **options)
        finally:
            self._last_command = self.used_at = time.monotonic()
        if self.broken:
            raise IpmiException(self.errormsg)
        return answer

    # --- cipher suite 17, else 3 ----------------------------------------------------------------------------

    def _got_rmcp_response(self, data: bytearray) -> Any:
        if data[0] == self.rmcptag and self.sessioncontext == "OPENSESSION":
            if data[1] and self.sha == SHA256:
                return self._fall_back()
            self.refusal = data[1]
            # the algorithm it took stands in byte 17 (table 13-10): one that answers SHA-1 (1) to SHA-256 (3) is
            # older than the question, and its hashes would be too short for what pyghmi expects
            if not data[1] and self.sha == SHA256 and len(data) > 16 and data[16] == 1:
                return self._fall_back()
        return super()._got_rmcp_response(data)

    def _got_rakp2(self, data: bytearray) -> Any:
        if data[0] == self.rmcptag and self.sessioncontext == "EXPECTINGRAKP2":
            if (
                not data[1] and self.sha == SHA256 and len(data) == 40 + 20
            ):  # a SHA-1 hash after promising SHA-256
                return self._fall_back()
            if data[1] not in (0, 2):
                self.refusal = data[1]
        return super()._got_rakp2(data)

    def _got_rakp4(self, data: bytearray) -> Any:
        if data[0] == self.rmcptag and self.sessioncontext == "EXPECTINGRAKP4" and data[1]:
            self.refusal = data[1]
        return super()._got_rakp4(data)

    def _fall_back(self) -> None:
        self.sha = self.attemptedhash = SHA1
        self.lastpayload = None
        self._open_rmcpplus_request()

    def _get_session_challenge(self) -> None:
        self.onlogon(
            {"error": "it speaks IPMI 1.5 only, which has no sound log-in; provisiond needs IPMI 2.0"}
        )

    # --- the end -----------------------------------------------------------------------------------------------

    def logout(self, sessionok: bool = True) -> None:
        """Tell the controller that the session is over (without waiting for its word) and close the socket."""
        if self.logged and not self.broken:
            with contextlib.suppress(IpmiException, OSError):
                if self.sol_handler:
                    self.raw_command(netfn=6, command=0x49, data=(1, 1, 0, 0, 0, 0), retry=False)
                closing = self.sessionid.to_bytes(4, "little")
                self.raw_command(netfn=6, command=0x3C, data=tuple(closing), retry=False)
        self.shut()

    def shut(self) -> None:
        """Close the socket and forget the session."""
        if not self._closed and getattr(self, "socket", None) is not None:
            self._mark_broken("the session was closed")
            self.socket.close()
        self._closed = True
