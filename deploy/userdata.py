"""The one first-boot document (cloud-init) that a node gets, on Azure and in the lab alike.

With it, the web site and the metadata service any Debian or Ubuntu machine becomes that node. What
the network may refuse on first boot is asked for by install.service, which systemd starts again
until it has succeeded.
"""

import json
import secrets
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import yaml

from agent.loader import BadInput, check, parse_nodes_info, read_key, timing
from deploy import Refusal

CHECKOUT = Path(__file__).resolve().parent.parent
NodesInfo = Mapping[str, Mapping[str, str]]
LAB_WEB_SITE = "http://203.0.113.10/bootstrap"
KEY_PATH = "/etc/bootstrap/cluster.key"
UNITS = (
    *("bootup.service", "loader.service", "loader.timer"),
    *("fence.service", "handover.service", "rollback.service", "rollback.timer"),
)

INSTALL_SERVICE = """\
[Unit]
Description=Cluster agent: install Apache where it is missing, and the agent from the web site
After=network-online.target
Wants=network-online.target
ConditionPathExists=!/etc/bootstrap/installed
StartLimitIntervalSec=0

[Service]
Type=oneshot
ExecStart=/bin/sh /etc/bootstrap/install.sh
Restart=on-failure
RestartSec=5
TimeoutStartSec=600

[Install]
WantedBy=multi-user.target
"""

OUR_PAGE = "azure-active-passive-cluster"
"""What agent/index.html holds."""

INSTALL_SCRIPT = """\
# Brings this node's agent up; install.service starts it again until it has succeeded. A run may die
# at any line: the next one does all of them again. Of what the journal shows, the last command
# is the one that failed.
set -eux
umask 022
cd /etc/bootstrap
packages="apache2 logrotate python3-requests"
# Not just whether their programs are there: an installation that died leaves packages half set up.
if [ "$(dpkg-query --show --showformat='${db:Status-Status} ' $packages)" != \
    "installed installed installed " ]; then
    export DEBIAN_FRONTEND=noninteractive
    dpkg --configure -a || :  # it waits for no other installer, as the two below do
    apt-get -o DPkg::Lock::Timeout=120 update
    apt-get -o DPkg::Lock::Timeout=120 install -y $packages
fi
# An agent that is here and well stays: it asks the web site for a newer one itself.
passed="self-check passed"
if [ ! -e loader.py ] || [ "$(timeout 30 python3 -B loader.py --self-check)" != "$passed" ]; then
    python3 - @URL@/loader.py loader.tmp.py <<'END'
import http.client, os, sys, urllib.request
url, path = sys.argv[1:]
try:
    with urllib.request.urlopen(url, timeout=10) as answer:
        content = answer.read(1 << 20)
        promised = int(answer.headers.get("Content-Length") or len(content))
    if len(content) != promised:
        raise ValueError(f"not whole, {len(content)} bytes of {promised}")
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
except (OSError, ValueError, http.client.HTTPException) as error:
    sys.exit(f"{url}: {error}")
END
    [ "$(timeout 30 python3 -B loader.tmp.py --self-check)" = "$passed" ]
    mv loader.tmp.py loader.py
fi
mkdir -p /var/log/bootstrap
# Not a page that is neither ours nor the one that Apache came with: that is an application's. The
# folder may be somebody else's, who could plant a link or a folder where something is staged.
front=/var/www/html/index.html
if [ ! -e $front ] || grep -qs -e @OURS@ -e "Default Page: It works" $front; then
    cp index.html page.tmp
    mv -fT page.tmp $front
fi
a2enconf -q bootstrap
systemctl --no-reload enable bootup.service loader.timer rollback.timer
systemctl start bootup.service
systemctl restart apache2.service || {
    systemctl status --no-pager --full --lines=20 apache2.service
    exit 1
}
systemctl start loader.timer handover.service rollback.timer
sync -f /etc /var
touch installed
"""

# Until the node is installed, each boot is its first one for cloud-init: power that is lost while
# it writes the files below must not leave a node without some of them.
EACH_BOOT = [
    [
        *("sh", "-c"),
        "cd /var/lib/cloud/instance/sem && [ ! -e /etc/bootstrap/installed ]"
        " && rm -f config_write_files config_runcmd config_scripts_user || true",
    ]
]

FIRST_COMMANDS = [
    # Once, for all units and drop-ins: it takes longer than anything else here.
    ["systemctl", "daemon-reload"],
    ["systemctl", "--no-reload", "enable", "install.service"],
    ["systemctl", "start", "--no-block", "install.service"],
]

APACHE_DROPIN = """\
[Unit]
After=bootup.service

[Service]
# lease_until is written in UTC, agent/apache.conf compares it with Apache's own clock.
Environment=TZ=UTC
"""


def period_dropins(period_seconds: int) -> dict[str, str]:
    """The units' files that hold the period and the time limits derived from it, by their path.

    Raises `Refusal` for a period that breaks an inequality of docs/protocol.md section 2.
    """
    try:
        check(timing(period_seconds))
    except BadInput as error:
        raise Refusal(str(error)) from error
    trial_seconds = 3 * period_seconds
    ticks = "*:*:00" if period_seconds == 60 else f"*:*:0/{period_seconds}"
    return {
        "loader.timer.d/period.conf": f"[Timer]\nOnCalendar=\nOnCalendar={ticks}\n",
        "loader.service.d/period.conf": f"[Service]\nTimeoutStartSec={0.95 * period_seconds:g}\n",
        "rollback.timer.d/period.conf": f"[Timer]\nOnActiveSec=\nOnActiveSec={trial_seconds}\n",
        "handover.service.d/period.conf": f"[Service]\nTimeoutStopSec={2 * period_seconds:g}\n",
    }


def part_of_checkout(name: str) -> str:
    """A text of the checkout that nodes get, with their line ends, whatever the checkout's are."""
    return (CHECKOUT / name).read_text(encoding="utf-8")


def units(period_seconds: int) -> dict[str, str]:
    """Every unit and drop-in of a node, by its path."""
    repository = {name: part_of_checkout(f"systemd/{name}") for name in UNITS}
    found = {
        **repository,
        **period_dropins(period_seconds),
        # A timer starts the service of its own name: the fence's carries its deadline in it.
        "fence@.service": repository["fence.service"],
        "install.service": INSTALL_SERVICE,
        "apache2.service.d/bootstrap.conf": APACHE_DROPIN,
    }
    return {f"/etc/systemd/system/{name}": text for name, text in found.items()}


def install_script(bootstrap_url: str) -> str:
    """What install.service runs until it has succeeded."""
    return INSTALL_SCRIPT.replace("@URL@", shlex.quote(bootstrap_url)).replace("@OURS@", OUR_PAGE)


def user_data(
    node: str,
    nodes_info: NodesInfo,
    *,
    bootstrap_url: str,
    cluster_key: str,
    period_seconds: int = 20,
    peer_address: str = "public",
) -> str:
    """The cloud-config document of `node`.

    `bootstrap_url`: where the web site keeps loader.py; `cluster_key`: 64 hexadecimal digits.
    Raises `Refusal` where no node can be made of it.
    """
    if node not in nodes_info:
        raise Refusal(f"{node!r} is not in nodes_info.json: it names {', '.join(nodes_info)}.")
    conf = (
        f"[loader]\nperiod_seconds = {period_seconds}\npeer_address = {peer_address}\n"
        f"bootstrap_url = {bootstrap_url}\n"
    )
    files = {
        "/etc/bootstrap/nodes_info.json": json.dumps(nodes_info, indent=2) + "\n",
        "/etc/bootstrap/loader.conf": conf,
        KEY_PATH: cluster_key + "\n",
        "/etc/bootstrap/index.html": part_of_checkout("agent/index.html").replace("@NODE@", node),
        "/etc/bootstrap/install.sh": install_script(bootstrap_url),
        "/etc/apache2/conf-available/bootstrap.conf": part_of_checkout("agent/apache.conf"),
        "/etc/logrotate.d/bootstrap": part_of_checkout("agent/logrotate.conf"),
    } | units(period_seconds)
    document = {
        "hostname": node,
        "bootcmd": EACH_BOOT,
        "write_files": [
            {"path": path, "content": text, "permissions": "0600" if path == KEY_PATH else "0644"}
            for path, text in files.items()
        ],
        "runcmd": FIRST_COMMANDS,
    }
    return "#cloud-config\n" + yaml.safe_dump(document, sort_keys=False, width=sys.maxsize)


def read_nodes_info(path: Path) -> dict[str, dict[str, str]]:
    """The nodes of a nodes_info.json, by the agent's own rules. Raises `Refusal`."""
    try:
        return parse_nodes_info(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path}: can't be read: {error}.") from error
    except BadInput as error:
        raise Refusal(str(error)) from error


@click.command("user-data")
@click.argument("node")
@click.option("--nodes-info", type=Path, default=CHECKOUT / "nodes_info.json")
@click.option("--bootstrap-url", default=LAB_WEB_SITE, show_default=True)
@click.option("--cluster-key", "key_file", type=Path, help="A file; without: a new key.")
@click.option("--period-seconds", type=int, default=20, show_default=True)
def user_data_command(
    node: str, nodes_info: Path, bootstrap_url: str, key_file: Path | None, period_seconds: int
) -> None:
    """Print the first-boot document of NODE; it holds the cluster's key."""
    if key_file is None:
        key = secrets.token_hex(32)
    else:
        try:
            key = read_key(key_file).hex()
        except BadInput as error:
            raise Refusal(str(error)) from error
    document = user_data(
        node,
        read_nodes_info(nodes_info),
        bootstrap_url=bootstrap_url,
        cluster_key=key,
        period_seconds=period_seconds,
    )
    if key_file is None:
        click.echo("user-data: made a new cluster key; all nodes need the same one.", err=True)
    click.echo(document.encode(), nl=False)  # bytes: Windows would end its lines in its own way
