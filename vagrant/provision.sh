#!/bin/bash
# Run by Vagrant inside the daemon's machine: provisiond from the checkout, as a service on the lab's network.
set -euo pipefail
cd /opt/provisiond
export DEBIAN_FRONTEND=noninteractive
command -v make >/dev/null || { apt-get -q update && apt-get -q -y install --no-install-recommends make; }
make venv
pxe/ramdisk/build /var/lib/provisiond/ramdisk
card=$(ip -4 -o addr show to 10.77.0.1 | awk '{ print $2 }')
mkdir -p /etc/provisiond
cat >/etc/provisiond/provisiond.toml <<TOML
[server]
listen = "0.0.0.0"
[boot]
listen = "10.77.0.1"
url = "http://10.77.0.1:8421"
tftp_listen = ["10.77.0.1"]
[dhcp]
driver = "dnsmasq"
interfaces = ["$card"]
TOML
cat >/etc/systemd/system/provisiond.service <<'UNIT'
[Unit]
Description=Provisioning daemon
After=network-online.target
[Service]
ExecStart=/opt/provisiond/.venv/bin/provisiond serve --config /etc/provisiond/provisiond.toml
Restart=on-failure
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --now provisiond
ln -sf /opt/provisiond/.venv/bin/provisionctl /usr/local/bin/provisionctl
for _ in $(seq 60); do curl -sf http://127.0.0.1:8420/readyz >/dev/null && break; sleep 1; done
provisionctl subnet show lab >/dev/null 2>&1 ||
  provisionctl subnet create lab 10.77.0.0/24 --gateway 10.77.0.1 --pool 10.77.0.20-10.77.0.99 --dynamic 10.77.0.200-10.77.0.239
provisionctl os show debian-12 >/dev/null 2>&1 || provisionctl os create debian-12 --family debian --version 12
