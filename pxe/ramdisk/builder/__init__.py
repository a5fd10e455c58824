"""Makes the ramdisk: a Debian kernel and an initramfs from Debian packages that are unpacked, never installed. Standard library only."""
