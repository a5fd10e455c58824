"""Connections to libvirt: one per URI, used from a bounded pool of threads, opened anew after it broke.

libvirt-python blocks, so every call runs in a thread. A frozen or cut-off hypervisor is noticed by keep-alive messages within
about 20 s; one that does not even accept holds a single thread, however many callers wait for it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import libvirt

from provisiond.drivers.compute import HypervisorTarget
from provisiond.errors import DriverError, DriverRejected, DriverUnavailable

T = TypeVar("T")

THREADS = 16
OPEN_SECONDS = 20.0
KEEPALIVE = (5, 3)  # seconds between probes, how many may go unanswered
CALL_SECONDS = 300.0  # the longest a call may take; keep-alive ends only what libvirt's event thread sees

# Errors that another try would only bring again. All others (a full disk, QEMU's monitor, a busy domain) may pass.
_FINAL = {
    libvirt.VIR_ERR_ACCESS_DENIED,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_INVALID_ARG,
    libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_NO_SUPPORT,
    libvirt.VIR_ERR_OPERATION_DENIED,
    libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    libvirt.VIR_ERR_XML_DETAIL,
    libvirt.VIR_ERR_XML_ERROR,
}
# Trying again opens nothing: wrong credentials, a URI nobody serves.
_NEVER_OPENS = {
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_ARG,
    libvirt.VIR_ERR_NO_SUPPORT,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
}


@dataclass(frozen=True)
class Options:
    """What a hypervisor's URI may say to this driver, as ``provisiond_type=qemu`` and so on in its query."""

    type: str = ""  # kvm | qemu; empty: kvm where the hypervisor offers it
    cache: str = "writeback"  # cache mode of disks, as libvirt names it
    cpu: str = ""  # CPU model, or host-model, host-passthrough, maximum; empty: by type


_CHOICES = {
    "type": {"kvm", "qemu"},
    "cache": {"none", "writeback", "writethrough", "directsync", "unsafe"},
}


def split_uri(uri: str) -> tuple[str, Options]:
    """The URI as libvirt takes it, and this driver's own options. Raises DriverRejected for an option that is not known."""
    base, mark, query = uri.partition("?")
    rest, own = [], {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key.startswith("provisiond_"):
            own[key.removeprefix("provisiond_")] = value
        else:
            rest.append((key, value))
    for key, value in own.items():
        if key not in Options.__dataclass_fields__:
            known = ", ".join(f"provisiond_{name}" for name in Options.__dataclass_fields__)
            raise DriverRejected(
                f"the hypervisor's URI has an unknown option provisiond_{key}; there are: {known}"
            )
        if value not in _CHOICES.get(key, {value}):
            raise DriverRejected(
                f"the hypervisor's URI has provisiond_{key}={value}; it may be {_or(_CHOICES[key])}"
            )
    return base + (mark + urlencode(rest, safe="/:@") if rest else ""), Options(**own)


def _or(words: set[str]) -> str:
    return " or ".join(sorted(words))


def translate(error: libvirt.libvirtError, target: HypervisorTarget, doing: str) -> DriverError:
    """libvirt's error as one of the contract's, saying what was being done and where."""
    text = f"hypervisor {target.name}: {doing}: {error.get_error_message() or error}"
    if error.get_error_code() in _FINAL and error.get_error_domain() != libvirt.VIR_FROM_RPC:
        return DriverRejected(text)
    return DriverUnavailable(text)


class Link:
    """An open connection and the callbacks for events that are registered on it. Its methods block.

    A callback holds a reference to its connection. Were a callback taken away after close() it would be the last one, and
    libvirt (9.0) would close the connection while it holds the very lock that closing takes: that thread and libvirt's event
    thread, and with it every connection of the process, would stand still for ever. So callbacks always go first.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        self._callbacks: set[int] = set()

    def listen(self, heard: Callable[[Any, Any, int, int, Any], None]) -> int:
        """Have ``heard`` called, in libvirt's event thread, with every life-cycle event; the number is for deafen()."""
        with self._lock:
            number: int = self.connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, heard, None
            )
            self._callbacks.add(number)
            return number

    def deafen(self, number: int) -> None:
        """Take a callback away; one that is gone already is fine."""
        with self._lock:
            if number in self._callbacks:
                self._callbacks.discard(number)
                with contextlib.suppress(libvirt.libvirtError):
                    self.connection.domainEventDeregisterAny(number)

    def close(self) -> None:
        """Close it, its callbacks first."""
        with self._lock:
            while self._callbacks:
                with contextlib.suppress(libvirt.libvirtError):
                    self.connection.domainEventDeregisterAny(self._callbacks.pop())
            self.connection.close()


class Connections:
    """The open connections of one driver. ``run`` is how everything else reaches a hypervisor."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(THREADS)
        self._opening: dict[str, asyncio.Task[Link]] = {}

    async def run(self, target: HypervisorTarget, doing: str, work: Callable[[Any], T]) -> T:
        """``work(connection)`` in a thread. ``doing`` completes the sentence of an error ("make web01").

        Raises DriverUnavailable when the hypervisor cannot be reached or broke off, DriverRejected when it said no.
        """
        return await self.on(await self.get(target), target, doing, work)

    async def on(self, link: Link, target: HypervisorTarget, doing: str, work: Callable[[Any], T]) -> T:
        """run(), on a connection that is open."""
        connection = link.connection
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await self.thread(lambda: work(connection))
        except TimeoutError:
            self._opening.pop(split_uri(target.uri)[0], None)  # the next call opens another
            raise DriverUnavailable(
                f"hypervisor {target.name}: {doing}: no answer for {CALL_SECONDS:.0f} s; is libvirtd there hanging?"
            ) from None
        except libvirt.libvirtError as error:
            if not alive(connection):
                raise DriverUnavailable(
                    f"hypervisor {target.name}: {doing}: the connection broke: {error.get_error_message()}"
                ) from error
            raise translate(error, target, doing) from error

    async def thread(self, work: Callable[[], T]) -> T:
        """``work()`` in a thread. At most THREADS run at once, those counted in whose caller was cancelled.

        They are daemon threads and no executor's, which Python would wait for at its end: a hypervisor that hangs must not
        keep the daemon from stopping.
        """
        loop = asyncio.get_running_loop()
        await self._slots.acquire()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            self._slots.release()
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]
            else:
                future.set_exception(error)

        def run() -> None:
            try:
                outcome: tuple[T | None, BaseException | None] = work(), None
            except BaseException as error:
                outcome = None, error
            with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
                loop.call_soon_threadsafe(settle, *outcome)

        threading.Thread(target=run, name="libvirt", daemon=True).start()
        return await future

    async def get(self, target: HypervisorTarget) -> Link:
        """The open connection to ``target``, opened if need be; many callers wait for one attempt."""
        uri, _ = split_uri(target.uri)
        task = self._opening.get(uri)
        if (
            task is not None
            and task.done()
            and (task.cancelled() or task.exception() or not alive(task.result().connection))
        ):
            task = None
        if task is None:
            task = self._opening[uri] = asyncio.create_task(self.thread(lambda: _open(uri)))
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                return await asyncio.shield(task)
        except TimeoutError:
            raise DriverUnavailable(
                f"hypervisor {target.name} does not answer at {uri} for {OPEN_SECONDS:.0f} s"
            ) from None
        except libvirt.libvirtError as error:
            kind = DriverRejected if error.get_error_code() in _NEVER_OPENS else DriverUnavailable
            raise kind(
                f"cannot connect to hypervisor {target.name} at {uri}: {error.get_error_message()}; "
                f"'virsh -c \"{uri}\" list' tells more"
            ) from error

    async def close(self) -> None:
        """Close what is open; calls under way end with an error."""
        tasks, self._opening = list(self._opening.values()), {}
        for task in tasks:
            if task.done() and not task.cancelled() and task.exception() is None:
                with contextlib.suppress(libvirt.libvirtError, TimeoutError):
                    async with asyncio.timeout(5):
                        await self.thread(task.result().close)
            else:
                task.cancel()


def alive(connection: Any) -> bool:
    """Whether the connection still stands, as far as this side knows."""
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _open(uri: str) -> Link:
    start_events()
    connection = libvirt.open(uri)
    with contextlib.suppress(libvirt.libvirtError):  # a driver inside the process has nothing to keep alive
        connection.setKeepAlive(*KEEPALIVE)
    return Link(connection)


# --- libvirt's own event loop ---------------------------------------------------------------------------
# One per process, by libvirt's design; keep-alive, events and console streams need it. It runs in a thread of its own and
# not in asyncio (libvirtaio), which would tie the whole process for good to the asyncio loop that came first.

_events_lock = threading.Lock()
_events_thread: threading.Thread | None = None


def start_events() -> None:
    """Start the event thread unless it runs. Must come before the first connection is opened."""
    global _events_thread
    with _events_lock:
        if _events_thread is not None:
            return
        libvirt.registerErrorHandler(lambda *_: None, None)  # else libvirt prints every error on stderr
        libvirt.virEventRegisterDefaultImpl()
        stopping = threading.Event()
        wake = libvirt.virEventAddTimeout(-1, lambda *_: None, None)

        def loop() -> None:
            while not stopping.is_set():
                libvirt.virEventRunDefaultImpl()

        def stop() -> None:
            stopping.set()
            libvirt.virEventUpdateTimeout(wake, 0)
            thread.join(2)

        thread = _events_thread = threading.Thread(target=loop, name="libvirt-events", daemon=True)
        thread.start()
        atexit.register(stop)
