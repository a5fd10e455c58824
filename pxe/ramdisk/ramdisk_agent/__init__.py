"""The agent of the ramdisk: asks the daemon what to do with this machine, does it and tells how it went.

Python 3.11 and its standard library only, started as `python3 -I -S` by the ramdisk's init. What only one action needs
is imported when that action begins: under an emulated processor every module costs tens of milliseconds.
"""
