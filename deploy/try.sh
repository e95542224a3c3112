#!/bin/sh
# sudo sh deploy/try.sh: three booted nodes on this machine, one of them active.
set -eu
CDPATH="" cd -- "$(dirname "$0")/.."
. deploy/setup.sh

if [ "$(id -u)" != 0 ]; then
    echo "try.sh makes networks and boots nodes: run it as root, sudo sh deploy/try.sh" >&2
    exit 2
fi
set_up lab python3-venv systemd-container mmdebstrap nftables iproute2 util-linux curl \
    openssh-client openssl
"$python" -m deploy lab up
echo "Waiting until one node is active and served"
tries=60
until "$python" -m deploy status >/dev/null || [ "$tries" = 0 ]; do
    tries=$((tries - 1))
    sleep 1
done
"$python" -m deploy status
