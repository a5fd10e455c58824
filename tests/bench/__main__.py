"""Every benchmark, one after the other: ``python -m tests.bench [NAME...]``. One figure a line: ``name value unit peer``."""

from __future__ import annotations

import subprocess
import sys
import time

BENCHES = {
    "lives": "whole lives of hosts on fake drivers; 10,000 that wait",
    "api": "creates, reads and lists over HTTP",
    "power_poll": "50 controllers at once, five of them dead",
    "tftp": "TFTP beside tftpd-hpa and dnsmasq",
    "stream": "one image to fifty machines beside aiohttp's and nginx's ways to send it",
    "rollback": "a rollback at 10,000 hosts, on both databases",
    "render": "kickstarts beside plain Jinja2",
    "shadow": "a shadow run of a release over 10,000 hosts",
    "reports": "200 machines come up at once: claims, plans and reports",
    "ramdisk": "a blank machine: power-on to facts and to SSH, beside the image booted directly",
    "in_service": "power-on to in service beside the same image booted by hand",
}


def main() -> int:
    wanted = sys.argv[1:] or list(BENCHES)
    if unknown := set(wanted) - BENCHES.keys():
        sys.exit(f"there is no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(BENCHES)}")
    failed = []
    for name in wanted:
        print(f"# {name}: {BENCHES[name]}", flush=True)
        begun = time.monotonic()
        if subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=False).returncode:
            failed.append(name)
        print(f"# {name} took {time.monotonic() - begun:.0f} s", flush=True)
    if failed:
        print(f"# failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
