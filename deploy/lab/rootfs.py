"""The root file system that every node boots: made once by mmdebstrap, from this machine's sources.

Its version and its package sources are those of the machine it is made on, so a Debian machine
boots Debian nodes and an Ubuntu machine Ubuntu nodes.
"""

import hashlib
import platform
from pathlib import Path

from deploy import Refusal
from deploy.files import make_folder
from deploy.lab import CACHE
from deploy.lab.mounts import remove_tree
from deploy.lab.process import output_of, tail

PACKAGES = [
    *("systemd", "systemd-sysv", "dbus", "cloud-init", "netbase", "tzdata", "ca-certificates"),
    *("apache2", "haproxy", "logrotate", "python3", "python3-requests"),
    *("curl", "iproute2", "iputils-ping", "libfaketime", "procps", "openssh-server"),
]

SOURCES = (
    Path("/etc/apt/sources.list.d/debian.sources"),
    Path("/etc/apt/sources.list.d/ubuntu.sources"),
    Path("/etc/apt/sources.list"),
)

# Left out of an image's usual list: SSH keys, locales, users, disks, boot loader, DHCP.
CLOUD_CONFIG = """\
datasource_list: [NoCloud]
network: {config: disabled}
cloud_init_modules: [bootcmd, write-files, set-hostname, update-hostname]
cloud_config_modules: [runcmd]
cloud_final_modules: [package-update-upgrade-install, scripts-user, final-message]
"""

# Nothing that would ask a network that is not there; HAProxy is the load balancer's alone, and ssh
# is for virtual machines, which have a unit of their own for it.
MASKED = [
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "motd-news.timer"),
    *("systemd-networkd.service", "systemd-networkd-wait-online.service"),
    *("systemd-resolved.service", "systemd-timesyncd.service", "haproxy.service"),
    *("ssh.service", "ssh.socket"),
]

HOOKS = (
    f"printf '%s' '{CLOUD_CONFIG}' > \"$1/etc/cloud/cloud.cfg.d/90-lab.cfg\"",
    *(f'ln -sf /dev/null "$1/etc/systemd/system/{unit}"' for unit in MASKED),
    # They look at disks and at init scripts, and would take half of the time of a daemon-reload.
    'mkdir -p "$1/etc/systemd/system-generators"',
    'for generator in "$1"/lib/systemd/system-generators/systemd-*; do'
    ' ln -s /dev/null "$1/etc/systemd/system-generators/$(basename "$generator")"; done',
    # Empty, not "uninitialized": the latter would enable every unit at first boot.
    ': > "$1/etc/machine-id"',
    'rm -f "$1/etc/hostname" "$1/etc/resolv.conf" "$1"/etc/ssh/ssh_host_*',
)

BUILD_SECONDS = 1200


def path() -> Path:
    """Where the root file system of this recipe, this version and these sources is or will be."""
    recipe = "\0".join(
        [
            codename(),
            platform.machine(),
            sources().read_text(encoding="utf-8"),
            *PACKAGES,
            *HOOKS,
        ]
    )
    return CACHE / f"rootfs-{codename()}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def build() -> Path:
    """Build the root file system (about a minute) and remove older ones; returns its path.

    It gets its name only when it is whole, so a build that crashed is not taken for a good one.
    Raises `Refusal` with the end of mmdebstrap's log.
    """
    make_folder(CACHE)
    for old in CACHE.glob("rootfs-*"):
        remove_tree(old)
    building = CACHE / "rootfs-building"
    log = CACHE / "rootfs.log"
    log.unlink(missing_ok=True)
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--logfile={log}"]
    command += ['--aptopt=APT::Install-Recommends "false"', f"--include={','.join(PACKAGES)}"]
    command += [f"--customize-hook={hook}" for hook in HOOKS]
    try:
        output_of(
            [*command, codename(), str(building), str(sources())],
            seconds=BUILD_SECONDS,
            group="rootfs",
        )
    except Refusal as refusal:
        said = tail(log) or str(refusal)
        raise Refusal(f"mmdebstrap could not build {building}; {log} ends:\n{said}") from None
    return building.rename(path())


def codename() -> str:
    """The code name of this machine's system, e.g. `bookworm` or `noble`."""
    name = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    if not name:
        raise Refusal("/etc/os-release has no VERSION_CODENAME: the lab needs Debian or Ubuntu.")
    return name


def sources() -> Path:
    """The package sources of this computer; raises `Refusal` where there are none."""
    for candidate in SOURCES:
        if candidate.exists() and "deb" in candidate.read_text(encoding="utf-8"):
            return candidate
    raise Refusal(f"no package sources in {', '.join(map(str, SOURCES))}: apt needs one of them.")
