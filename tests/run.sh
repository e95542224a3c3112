#!/bin/sh
# sh tests/run.sh [PYTEST ARGUMENT...]: all set-up, then linters, types and tests. As root it boots
# real nodes too; without root those tests are skipped.
set -eu
CDPATH="" cd -- "$(dirname "$0")/.."
. deploy/setup.sh

lab="python3-venv spin gcc systemd-container mmdebstrap nftables iproute2 util-linux curl apache2-bin"
# Ubuntu has Chromium as a snap alone: there the browser test uses the one that is installed.
browser=$(sed -n 's/^ID=debian$/chromium/p' /etc/os-release)
# shellcheck disable=SC2086 - one word a package
set_up test $lab $browser
if [ "$(id -u)" = 0 ] && [ -e /run/azure-active-passive-cluster/lab ]; then
    echo "The lab that is up makes room for the tests' own; deploy/try.sh brings it back."
    "$python" -m deploy lab down
fi
"$python" -m ruff check --no-cache .
"$python" -m ruff format --check --no-cache .
"$python" -m mypy --cache-dir=/dev/null
"$python" -m pytest -p no:cacheprovider "$@"
