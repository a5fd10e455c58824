# The door for whoever works on or tries provisiond. `make` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help apt venv lint test test-unit lab lab-full bench golden docs demo clean-lab lock clean

# Everything a fresh Debian 12 lacks. `make apt` installs what is missing.
APT_PACKAGES := ca-certificates curl git make gcc pkg-config python3 python3-dev python3-venv \
  libvirt-daemon-system libvirt-clients libvirt-dev qemu-system-x86 qemu-utils ovmf \
  ipxe ipxe-qemu pxelinux syslinux-common shim-signed grub-efi-amd64-signed grub-pc-bin grub-common grub2-common \
  debian-installer-12-netboot-amd64 dnsmasq-base ipmitool openipmi openssh-client openssh-server \
  postgresql tftp-hpa tftpd-hpa iproute2 procps util-linux debconf-utils gpgv debian-archive-keyring \
  busybox-static dash netplan.io kexec-tools kmod cpio mmdebstrap squashfs-tools e2fsprogs fdisk dosfstools mtools genisoimage zstd xz-utils shellcheck \
  libxml2-utils ignition gir1.2-nm-1.0 python3-gi prometheus

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
# Two workers: the tests start databases and emulated machines, which a larger number would only make slower.
WORKERS ?= 2
SCRIPTS := scripts/apt scripts/venv scripts/demo-ctl .ci/run pxe/image/build pxe/image/recipes/debian pxe/ramdisk/init pxe/ramdisk/udhcpc

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

apt: ## install the Debian packages that are missing (as root)
	@scripts/apt $(APT_PACKAGES)

venv: apt ## .venv with the locked Python packages
	@scripts/venv

lint: venv ## ruff, mypy --strict, the direction of imports, shellcheck
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports --no-cache
	shellcheck $(SCRIPTS)

test: lint ## everything that continuous integration runs, the lab too (as root; under 30 minutes)
	$(PYTEST) -n $(WORKERS) tests/unit tests/contract tests/golden tests/integration
	$(PYTEST) -v -m "not lab_full" tests/lab

test-unit: venv ## the quick tests
	$(PYTEST) -n $(WORKERS) tests/unit tests/golden

lab: venv ## only the tests that boot machines
	$(PYTEST) -v -m "not lab_full" tests/lab

lab-full: venv ## the long lab: Debian's installer (to its end with PROVISIOND_LAB_MIRROR=URL), Secure Boot, Vagrant
	@scripts/apt vagrant vagrant-libvirt
	$(PYTEST) -v -m lab_full tests/lab

bench: venv ## figures, one a line: name value unit peer
	@$(PYTHON) -m tests.bench

golden: venv ## write the expected output of every template anew; look at the difference before you commit it
	$(PYTEST) tests/golden --regen || true
	git --no-pager diff --stat tests/golden

docs: venv ## write the pages anew that are made from the code
	$(PYTHON) -m provisiond.lifecycle.document > docs/lifecycle.md
	$(PYTHON) -m provisiond.templating.reference > docs/templates/parameters.md
	.venv/bin/provisiond check-config --document > docs/configuration.md
	.venv/bin/typer provisiond.ctl.app utils docs --name provisionctl --output docs/cli-reference.md

demo: venv ## bring two machines to service here, before your eyes, and leave everything running
	@$(PYTHON) -m tests.lab.demo

clean-lab: ## end the demo and remove what it left
	@if [ -x $(PYTHON) ]; then $(PYTHON) -m tests.lab.demo clean; else echo "no .venv, so no lab was ever started here"; fi

lock: ## pin the newest Python packages that pyproject.toml allows (needs uv)
	uv pip compile -q --upgrade --all-extras --generate-hashes --no-emit-index-url --no-header --python-version 3.11 pyproject.toml -o requirements.lock

clean: ## remove what was built here; the lab's cache stays (see README)
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
