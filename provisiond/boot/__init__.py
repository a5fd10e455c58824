"""The machines' door: what a machine boots now (target), with which programs (loader), over TFTP and HTTP, and what it reports back."""
