"""The LAN configuration program of ipmi_sim: what its machine reads and sets in band as the address of its controller.

    lanconf.py FILE get|set|check PARAMETER [VALUE] ...

FILE holds ``parameter:value`` lines; the same are answered. Protocol: ipmi_lan(5), lan_config_program.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(where: str, verb: str, *words: str) -> int:
    file = Path(where)
    known = dict(line.split(":", 1) for line in file.read_text().splitlines())
    if verb == "get":
        for parameter in words:
            if parameter not in known:
                print("unsupported")
                return 1
            print(f"{parameter}:{known[parameter]}")
    elif verb == "set":
        known.update(zip(words[::2], words[1::2], strict=False))
        file.write_text("".join(f"{name}:{value}\n" for name, value in known.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
