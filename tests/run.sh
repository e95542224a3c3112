#!/bin/sh
# sh tests/run.sh [PYTEST ARGUMENT...]: all set-up, then linters, types and tests. As root it boots
# real nodes too; without root those tests are skipped. With arguments pytest runs once, with those.
set -eu
CDPATH="" cd -- "$(dirname "$0")/.."
. deploy/setup.sh

lab="python3-venv spin gcc systemd-container mmdebstrap nftables iproute2 util-linux curl apache2-bin"
lab="$lab openssh-client openssl" # sign releases, and hand on a key
# Ubuntu has Chromium as a snap alone: there the browser test uses the one that is installed. A node
# that is a virtual machine needs Debian's kernel.
debian=$(sed -n 's/^ID=debian$/chromium qemu-system-x86 e2fsprogs/p' /etc/os-release)
# shellcheck disable=SC2086 - one word a package
set_up test $lab $debian
if [ "$(id -u)" = 0 ] && [ -e /run/azure-active-passive-cluster/lab ]; then
    echo "The lab that is up makes room for the tests' own; deploy/try.sh brings it back."
    "$python" -m deploy lab down
fi
"$python" -m ruff check --no-cache .
"$python" -m ruff format --check --no-cache .
"$python" -m mypy --cache-dir=/dev/null

run_tests() {
    "$python" -m pytest -p no:cacheprovider "$@"
}

# Simulations, the model checker, the fake of Azure and what is written to nodes need a processor; the
# rest mostly waits for nodes. So those run beside it, on what it leaves over: no clock of the rest may
# notice. A session of their own has its own niceness among sessions, and is a group that can be ended as
# one.
start_beside() {
    said=$(mktemp)
    setsid nice -n 19 sh -c '{ echo 19 >/proc/self/autogroup; } 2>/dev/null || :; exec "$@"' sh \
        "$python" -m pytest -p no:cacheprovider "$@" >"$said" 2>&1 &
    beside=$!
    trap 'kill -- "-$beside" 2>/dev/null || :; rm -f "$said"; give_back' EXIT
}

if [ $# -gt 0 ]; then
    run_tests "$@"
    exit
fi
failed=0
start_beside tests/protocol tests/azure tests/deploy tests/docs
run_tests tests/agent tests/lab || failed=$?
echo "What ran beside:"
# Nothing of ours is left that it could disturb; only root may take a niceness back.
{ renice -n 0 -g "$beside" && echo 0 >"/proc/$beside/autogroup"; } >/dev/null 2>&1 || :
wait "$beside" || failed=$?
cat "$said"
exit "$failed"
