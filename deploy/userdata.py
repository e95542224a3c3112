"""The one first-boot document (cloud-init) that a node gets, on Azure and in the lab alike.

With it, the web site and the metadata service any Debian or Ubuntu machine becomes that node. What
the network may refuse on first boot is asked for by install.service, which systemd starts again
until it has succeeded.
"""

import shlex
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from agent.loader import MOST
from deploy import PROJECT, Refusal
from deploy.application import FOLDER, LIST, Setup, digests, write_files
from deploy.checkout import part
from deploy.files import json_text
from deploy.nodes_info import NodesInfo
from deploy.ports import HTTP_PORT
from deploy.settings import service_lines, times_of

DOCUMENT_BYTES = 65_535
"""As much as Azure takes, https://learn.microsoft.com/azure/virtual-machines/custom-data."""

KEY_PATH = "/etc/bootstrap/cluster.key"
GENERATOR = "/etc/systemd/system-generators/bootstrap"
MODES = {KEY_PATH: "0600", GENERATOR: "0755"}
"""Of what is not to be read by all, and by root alone to be changed."""
UNITS = (
    *("bootup.service", "loader.service", "loader.timer"),
    *("fence.service", "fence-clock.timer", "handover.service"),
    *("rollback.service", "rollback.timer"),
    *("health.service", "health.timer", "health.path"),
    *("active.target", "start-active.service", "stop-active.service"),
)
"""Nodes get these as they are; what depends on the period stands beside them."""

OWN_WEB_SERVER = {
    "/var/www/html": "/var/www/bootstrap",
    "apache2.service": "apache2@bootstrap.service",
    "mkdir -p /var/log/bootstrap": "mkdir -p /var/log/bootstrap /var/www/bootstrap",
    "a2enconf -q bootstrap": "systemctl --no-reload enable apache2@bootstrap.service",
}
"""What units and install.sh say of the usual Apache, and what of an instance of the cluster's own.

Debian has a name and a place for such: /usr/share/doc/apache2/README.multiple-instances.
"""

INSTANCE = "/etc/apache2-bootstrap"
"""The configuration of that instance; the agent knows by it where its pages are."""

# Until the node is installed, each boot is its first one for cloud-init: power that is lost while
# it writes the files below must not leave a node without some of them.
EACH_BOOT = [
    [
        *("sh", "-c"),
        "cd /var/lib/cloud/instance/sem && [ ! -e /etc/bootstrap/installed ]"
        " && rm -f config_write_files config_runcmd config_scripts_user || true",
    ]
]


def first_commands(setup: Setup) -> list[list[str]]:
    """What cloud-init runs at first boot."""
    more = ["setup.service"] if setup else []  # enabled for later boots; install.service starts it
    return [
        # Once, for all units and drop-ins: it takes longer than anything else here.
        ["systemctl", "daemon-reload"],
        ["systemctl", "--no-reload", "enable", "install.service", *more],
        ["systemctl", "start", "--no-block", "install.service"],
    ]


def period_dropins(period_seconds: int) -> dict[str, str]:
    """The units' files that hold the period and the time limits derived from it, by their path."""
    trial_seconds = 3 * period_seconds
    leave_seconds = 2 * period_seconds + 1 + MOST["stop_seconds"]  # a node's may be changed by hand
    ticks = "*:*:00" if period_seconds == 60 else f"*:*:0/{period_seconds}"
    return {
        "loader.timer.d/period.conf": f"[Timer]\nOnCalendar=\nOnCalendar={ticks}\n",
        "loader.service.d/period.conf": (
            f"[Unit]\nStartLimitIntervalSec={0.9 * period_seconds:g}\n"
            f"[Service]\nRuntimeMaxSec={period_seconds}\n"
        ),
        "rollback.timer.d/period.conf": f"[Timer]\nOnActiveSec=\nOnActiveSec={trial_seconds}\n",
        "handover.service.d/period.conf": f"[Service]\nTimeoutStopSec={leave_seconds}\n",
    }


def units(period_seconds: int, cluster_port: int) -> dict[str, str]:
    """Every unit and drop-in of a node, by its path."""
    repository = {name: part(f"systemd/{name}") for name in UNITS}
    found = {
        **repository,
        **period_dropins(period_seconds),
        # A timer starts the service of its own name: the fence's carries its deadline in it.
        "fence@.service": repository["fence.service"],
        "install.service": part("systemd/install.service"),
        "apache2.service.d/bootstrap.conf": part("systemd/apache2.conf"),
    }
    by_path = {f"/etc/systemd/system/{name}": text for name, text in found.items()}
    return served_at(cluster_port, by_path)


def served_at(cluster_port: int, files: dict[str, str]) -> dict[str, str]:
    """The same files where that port has a web server of its own: of that one, not the usual."""
    if cluster_port == HTTP_PORT:
        return files

    def of_its_own(text: str) -> str:
        for usual, own in OWN_WEB_SERVER.items():
            text = text.replace(usual, own)
        return text

    return {of_its_own(path): of_its_own(text) for path, text in files.items()}


def web_server(cluster_port: int) -> dict[str, str]:
    """The configuration of the Apache that serves markers and probe, by path.

    The usual one gets the probe's limit alone; it may be the application's, too.
    """
    limit = part("agent/apache.conf")
    if cluster_port == HTTP_PORT:
        return {"/etc/apache2/conf-available/bootstrap.conf": limit}
    return {
        f"{INSTANCE}/apache2.conf": part("agent/web-server.conf", PORT=str(cluster_port)),
        f"{INSTANCE}/bootstrap.conf": limit,
        f"{INSTANCE}/envvars": (
            "export APACHE_RUN_DIR=/run/apache2-bootstrap\n"
            "export APACHE_LOCK_DIR=/run/lock/apache2-bootstrap\n"
        ),
    }


def application(setup: Setup, bootstrap_url: str) -> dict[str, str]:
    """What sets the application up on a node, by path; nothing where there is none."""
    if not setup:
        return {}
    own = "/etc/systemd/system"
    return {
        LIST: digests(setup),
        "/etc/bootstrap/setup.sh": part("agent/setup.sh", URL=shlex.quote(bootstrap_url)),
        f"{own}/setup.service": part("systemd/setup.service"),
        f"{own}/install.service.d/setup.conf": "[Unit]\nOnSuccess=setup.service\n",
    }


def install_script(bootstrap_url: str) -> str:
    """What install.service runs until it has succeeded; our page is known by our name in it."""
    return part("agent/install.sh", URL=shlex.quote(bootstrap_url), OURS=PROJECT)


def parts(node: str, bootstrap_url: str, cluster_port: int) -> dict[str, str]:
    """What comes from the checkout as it is, by path: the same on all nodes but for a name."""
    return {
        "/etc/bootstrap/index.html": part("agent/index.html", NODE=node),
        **served_at(cluster_port, {"/etc/bootstrap/install.sh": install_script(bootstrap_url)}),
        "/etc/bootstrap/health.sh": part("agent/health.sh"),
        "/etc/bootstrap/stop.sh": part("agent/stop.sh"),
        GENERATOR: part("agent/generator.sh"),
        **web_server(cluster_port),
        "/etc/logrotate.d/bootstrap": part("agent/logrotate.conf"),
    }


def common(
    node: str, bootstrap_url: str, period_seconds: int, cluster_port: int, setup: Setup
) -> dict[str, str]:
    """What is not a cluster's own, by path: parts, units, and what sets the application up."""
    files = parts(node, bootstrap_url, cluster_port) | units(period_seconds, cluster_port)
    return files | application(setup, bootstrap_url)


def fitting(node: str, files: dict[str, str], setup: Setup) -> str:
    """The document with the application's files, or without where it has no room for them."""
    whole = cloud_config(node, files, setup, write_files(setup))
    fits = len(whole.encode()) <= DOCUMENT_BYTES
    return whole if fits else cloud_config(node, files, setup, [])


def user_data(
    node: str,
    nodes_info: NodesInfo,
    *,
    bootstrap_url: str,
    cluster_key: str,
    period_seconds: int,
    look_seconds: int,
    pause_seconds: int,
    peer_address: str,
    scheduled_events: bool,
    cluster_port: int,
    cluster: str,
    allowed_signers: str,
    setup: Setup,
    service: Mapping[str, Any],
) -> str:
    """The cloud-config document of `node`; no setting has a default, lest a caller forget one.

    `cluster_key`: 64 hexadecimal digits; `allowed_signers`: of releases (`signing.signers_text`);
    `setup`: files that may find no room (`is_beside`); `service`: `SERVICE`. Raises `Refusal`.
    """
    if node not in nodes_info:
        raise Refusal(f"{node!r} is not in nodes_info.json: it names {', '.join(nodes_info)}.")
    times_of(period_seconds, look_seconds, pause_seconds)
    conf = (
        f"[loader]\nperiod_seconds = {period_seconds}\nlook_seconds = {look_seconds}\n"
        f"pause_seconds = {pause_seconds}\npeer_address = {peer_address}\n"
        f"bootstrap_url = {bootstrap_url}\nscheduled_events = {str(scheduled_events).lower()}\n"
    )
    more = f"cluster_port = {cluster_port}\n" * (cluster_port != HTTP_PORT)
    files = {
        "/etc/bootstrap/nodes_info.json": json_text(nodes_info),
        "/etc/bootstrap/loader.conf": conf + more + service_lines(service),
        KEY_PATH: cluster_key + "\n",
        "/etc/bootstrap/cluster": cluster + "\n",
        "/etc/bootstrap/allowed_signers": allowed_signers,
    }
    unchanged = common(node, bootstrap_url, period_seconds, cluster_port, setup)
    return fitting(node, files | unchanged, setup)


def is_beside(document: str, setup: Setup) -> bool:
    """Whether nodes with such a document fetch the application's files from the web site."""
    return bool(setup) and f"- path: {FOLDER}/" not in document


def cloud_config(
    hostname: str, files: dict[str, str], setup: Setup, more: list[dict[str, Any]]
) -> str:
    """The document that writes these files, the key for root alone, and starts the installation."""
    document = {
        "hostname": hostname,
        "bootcmd": EACH_BOOT,
        "write_files": [
            {"path": path, "content": text, "permissions": MODES.get(path, "0644")}
            for path, text in files.items()
        ]
        + more,
        "runcmd": first_commands(setup),
    }
    return "#cloud-config\n" + yaml.safe_dump(document, sort_keys=False, width=sys.maxsize)
