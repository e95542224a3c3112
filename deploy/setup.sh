# Sourced by deploy/try.sh and tests/run.sh, in the checkout: the packages of this machine, and a
# Python environment in .venv with this checkout in it. What is there already is left alone.
#
#   set_up lab|test [DEBIAN-PACKAGE...]
#
# Run by sudo, it leaves nothing in the checkout that the checkout's owner can't delete.

# shellcheck shell=dash
export PYTHONDONTWRITEBYTECODE=1
umask 022                                          # others use what is made here
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" # `su` leaves them out, and apt needs them
python=.venv/bin/python

set_up() {
    purpose=$1
    shift
    trap give_back EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    if [ "$(id -u)" = 0 ]; then
        install_packages "$@"
    fi
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "python3 is older than 3.10: use Debian 12, Ubuntu 22.04 or newer." >&2
        exit 2
    }
    make_environment "$purpose"
}

install_packages() {
    missing=
    for package in "$@"; do
        dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>&1 |
            grep -q '^installed' || missing="$missing $package"
    done
    if [ -n "$missing" ]; then
        echo "Installing$missing"
        export DEBIAN_FRONTEND=noninteractive
        apt-get -qq -o DPkg::Lock::Timeout=120 update
        # shellcheck disable=SC2086 - one word a package
        apt-get -qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends $missing
    fi
}

make_environment() {
    made_for=.venv/made-for-$1
    recipe=$(cat deploy/setup.sh pyproject.toml | cksum)
    if [ "$(cat "$made_for" 2>/dev/null)" = "$recipe" ]; then
        return
    fi
    echo "Making the Python environment .venv"
    "$python" -m pip --version >/dev/null 2>&1 || python3 -m venv --clear .venv
    # A later `sudo .venv/bin/python -m deploy` leaves no byte code of root's either.
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo 'import sys; sys.dont_write_bytecode = True' >"$site/no-byte-code.pth"
    case $1 in test) this='.[test]' ;; *) this=. ;; esac
    "$python" -m pip --quiet --disable-pip-version-check --no-input install --editable "$this"
    echo "$recipe" >"$made_for"
}

give_back() {
    if [ "$(id -u)" = 0 ]; then
        for made in .venv build ./*.egg-info; do
            [ ! -e "$made" ] || chown -R --no-dereference "$(stat -c %u:%g .)" "$made"
        done
    fi
}
