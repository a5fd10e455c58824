"""Options in a hypervisor's URI."""

from __future__ import annotations

import pytest

from provisiond.drivers.compute.connection import Options, split_uri
from provisiond.errors import DriverRejected


@pytest.mark.parametrize(
    ("uri", "plain", "options"),
    [
        ("qemu:///system", "qemu:///system", Options()),
        ("qemu:///system?provisiond_type=qemu", "qemu:///system", Options(type="qemu")),
        (
            "qemu+unix:///system?socket=/run/x/sock&provisiond_cache=unsafe&provisiond_cpu=max",
            "qemu+unix:///system?socket=/run/x/sock",
            Options(cache="unsafe", cpu="max"),
        ),
        (
            "qemu+ssh://me@hv/system?no_tty=1&keyfile=/k",
            "qemu+ssh://me@hv/system?no_tty=1&keyfile=/k",
            Options(),
        ),
    ],
)
def test_own_options_are_taken_out(uri: str, plain: str, options: Options) -> None:
    """libvirt gets its own part of the URI, unchanged."""
    assert split_uri(uri) == (plain, options)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("qemu:///system?provisiond_kind=kvm", "unknown option provisiond_kind; there are: provisiond_type"),
        ("qemu:///system?provisiond_type=xen", "may be kvm or qemu"),
        ("qemu:///system?provisiond_cache=fast", "may be directsync or none"),
    ],
)
def test_wrong_options_are_refused(uri: str, why: str) -> None:
    """A typing error is not silently ignored; the message tells what there is."""
    with pytest.raises(DriverRejected, match=why):
        split_uri(uri)
