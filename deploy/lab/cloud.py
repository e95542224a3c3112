"""What the cloud does for the nodes: metadata, the web site, the load balancer. Real programs.

Each runs in the fabric's network, at the address it would have for a node or for a user.
"""

import sys
import time
from pathlib import Path

from deploy import Refusal, publish
from deploy.files import write_whole
from deploy.lab import (
    COLLECTOR,
    LOAD_BALANCER,
    PROBE_SOURCE,
    STATE,
    WEB_SITE,
    collector,
    container,
    process,
)
from deploy.lab.container import Container
from deploy.lab.network import FABRIC
from deploy.operate import get
from deploy.plan import Plan
from deploy.ports import url_of

SITE = STATE / publish.SITE
"""What the web site serves: `deploy.publish` fills it."""

STATISTICS_PORT = 8404
STATISTICS = f"http://{LOAD_BALANCER}:{STATISTICS_PORT}/stats;csv"
"""Also of an internal load balancer: they are no business of its network."""

WRITES = STATE / "writes.log"
"""What the collector of a demonstration has noted."""

READY_SECONDS = 15.0

APACHE = f"""\
ServerRoot /etc/apache2
ServerName {WEB_SITE}
Listen {WEB_SITE}:80
PidFile /run/site.pid
ErrorLog /dev/stderr
User www-data
Group www-data
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule mime_module /usr/lib/apache2/modules/mod_mime.so
TypesConfig /etc/mime.types
DocumentRoot /srv/site
<Directory /srv/site>
    Require all granted
</Directory>
"""


def endpoints(plan: Plan, *, demo: bool = False) -> dict[str, str]:
    """Where the lab's services are, as `azure up` writes it of a cluster there."""
    return {
        **({"collector": f"http://{COLLECTOR}:{collector.PORT}"} if demo else {}),
        "load_balancer": url_of(balancer_address(plan), plan.ports, plan.probe.port),
        "load_balancer_stats": STATISTICS,
        "frontend": plan.frontend,
        "cluster_port": str(plan.probe.port),
        "web_site": f"http://{WEB_SITE}",
    }


def balancer_address(plan: Plan) -> str:
    """Where the load balancer is reached: by this machine, or by the nodes' network alone."""
    return plan.balancer_ip if plan.frontend == "internal" else LOAD_BALANCER


def start_metadata(checkout: Path, plan: Plan) -> None:
    """Start the metadata service, unless it runs."""
    if process.is_running("metadata"):
        return
    command = ["ip", "netns", "exec", FABRIC, sys.executable, "-B", "-m", "deploy.lab.metadata"]
    command += [str(STATE / "nodes_info.json"), plan.frontend, *map(str, plan.ports)]
    process.start("metadata", command, log=STATE / "metadata.log", folder=checkout)


def start_collector(checkout: Path) -> None:
    """Start the collector of a demonstration, unless it runs."""
    if process.is_running("collector"):
        return
    command = ["ip", "netns", "exec", FABRIC, sys.executable, "-B", "-m", "deploy.lab.collector"]
    command.append(str(WRITES))
    process.start("collector", command, log=STATE / "collector.log", folder=checkout)


def start_web_site(lower: Path) -> None:
    """Start the web site: Apache with the published folder, unless it runs."""
    box = Container("web-site", FABRIC)
    _serve(box, lower, APACHE, "apache2 -DFOREGROUND -f", f"--bind-ro={SITE}:/srv/site")


def start_load_balancer(lower: Path, plan: Plan) -> None:
    """Start the load balancer: HAProxy with the plan's probe, unless it runs."""
    box = Container("load-balancer", FABRIC)
    _serve(box, lower, balancer(plan), "haproxy -db -f")


def wait_until_served(demo: bool) -> None:
    """Wait until web site and load balancer answer, and our own services run.

    Raises `Refusal` with the end of the log of what does not: the log itself may go with the lab.
    """
    deadline = time.monotonic() + READY_SECONDS
    for url, box in (
        (f"http://{WEB_SITE}/bootstrap/nodes_info.json", "web-site"),
        (STATISTICS, "load-balancer"),
    ):
        while (answer := get(url)).code != 200:
            if time.monotonic() > deadline:
                said = process.tail(Container(box, FABRIC).folder / "console.log")
                raise Refusal(f"{url}: {answer.words}; the log of the {box} ends:\n{said}")
            time.sleep(process.POLL_SECONDS)
    for name in ("metadata", "collector") if demo else ("metadata",):
        if not process.is_running(name):
            said = process.tail(STATE / f"{name}.log")
            raise Refusal(f"the {name} service ended; its log ends:\n{said}")


def probe_seconds(plan: Plan) -> float:
    """How often the load balancer asks: as on Azure, or faster so that it follows a fast lab."""
    return min(plan.probe.interval_seconds, plan.period_seconds / 4)


def balancer(plan: Plan) -> str:
    """HAProxy's configuration: streams, as Azure's; without a node that answers 200, nothing.

    A server without a port gets the one that the client asked for. HAProxy forwards no UDP.
    """
    probe = plan.probe
    every = f"inter {probe_seconds(plan) * 1000:.0f}ms"
    check = f"check port {probe.port} {every} rise {probe.threshold} fall {probe.threshold}"
    headers = f"hdr Host {LOAD_BALANCER} hdr User-Agent 'Load Balancer Agent' hdr Connection close"
    servers = "\n".join(
        f"    server {node.name} {node.private_ip} source {PROBE_SOURCE} {check}"
        for node in plan.nodes
    )
    return f"""\
defaults
    mode tcp
    timeout connect 2s
    timeout client {plan.idle_minutes}m
    timeout server {plan.idle_minutes}m

{frontend(plan)}
backend nodes
    option httpchk
    http-check send meth GET uri {probe.path} ver HTTP/1.1 {headers}
    http-check expect status 200
{servers}

frontend stats
    mode http
    timeout http-request 5s
    bind {LOAD_BALANCER}:{STATISTICS_PORT}
    stats enable
    stats uri /stats
"""


def frontend(plan: Plan) -> str:
    """Where HAProxy takes connections; nothing where UDP alone is forwarded."""
    address = balancer_address(plan)
    ports = [port.number for port in plan.ports if port.protocol == "Tcp"]
    binds = "".join(f"    bind {address}:{port}\n" for port in ports)
    return f"frontend public\n{binds}    default_backend nodes\n" if ports else ""


def _serve(box: Container, lower: Path, config: str, command: str, *options: str) -> None:
    if box.is_running:
        return
    container.mount(box, lower)
    write_whole(box.root / "etc/lab.conf", config.encode())
    container.start(box, *options, "--as-pid2", *command.split(), "/etc/lab.conf")
