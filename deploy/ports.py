"""What a load balancer forwards, and where the cluster's own web server is: ports and their bounds.

Pure. The bounds are Azure's, those of the REST reference of load balancing rules and of
https://learn.microsoft.com/azure/load-balancer/load-balancer-custom-probe-overview.
"""

import re
from dataclasses import dataclass

from deploy import Refusal
from deploy.settings import INTERNET, Settings

HTTP_PORT, SSH_PORT = 80, 22

MOST_PORT = 65_534
"""Of a rule's front end; its back end could have one more."""

MOST_PORTS = 299
"""Rules that an interface may have at its load balancer (MicrosoftDocs/azure-docs issue 47423)."""

NEVER_PROBED = frozenset({19, 21, 25, 70, 110, 119, 143, 220, 993})
"""No HTTP probe of Azure's asks there."""

IDLE_MINUTES = range(4, 101)
"""https://learn.microsoft.com/azure/load-balancer/load-balancer-tcp-idle-timeout; the reference of
the API still says 30, and takes 100 (hashicorp/terraform-provider-azurerm issue 24729)."""

FRONTENDS = ("public", "internal")
ALL = "all"
PROTOCOLS = {"tcp": "Tcp", "udp": "Udp"}
PORT = re.compile(r"(?:(tcp|udp)/)?([1-9][0-9]{0,4})", re.ASCII)


@dataclass(frozen=True)
class Port:
    """A port that is forwarded, of "Tcp" or "Udp"; every port of both is number 0 of "All"."""

    protocol: str
    number: int

    def __str__(self) -> str:
        """As settings have it."""
        if self.protocol == "All":
            return ALL
        return f"udp/{self.number}" if self.protocol == "Udp" else f"{self.number}"


def port_of(text: str) -> Port:
    """The port that is meant; raises `Refusal` for anything else."""
    if text == ALL:
        return Port("All", 0)
    match = PORT.fullmatch(text)
    if not match or int(match[2]) > MOST_PORT:
        raise Refusal(
            f"ports: {text!r} is no port: use a number from 1 to {MOST_PORT} like 443, udp/5060"
            f" for UDP, or {ALL} alone."
        )
    return Port(PROTOCOLS[match[1] or "tcp"], int(match[2]))


def ports_of(settings: Settings) -> tuple[Port, ...]:
    """What is to be forwarded; raises `Refusal` where the settings about that don't fit together.

    An HA ports rule is one of internal load balancers, which have no other rule then:
    https://learn.microsoft.com/azure/load-balancer/load-balancer-ha-ports-overview.
    """
    found = tuple(map(port_of, settings.ports))
    told = f"ports = {', '.join(settings.ports)}"
    if len(set(found)) < len(found):
        raise Refusal(f"{told}: use each port of a protocol once.")
    if Port("All", 0) in found and len(found) > 1:
        raise Refusal(f"{told}: use {ALL} alone, or the ports without it.")
    if len(found) > MOST_PORTS:
        raise Refusal(
            f"ports: {len(found)} of them, and Azure forwards {MOST_PORTS} at most: use fewer, or"
            f" {ALL} with frontend = internal."
        )
    if settings.frontend not in FRONTENDS:
        raise Refusal(f"frontend = {settings.frontend}: use {' or '.join(FRONTENDS)}.")
    if Port("All", 0) in found and settings.frontend != "internal":
        raise Refusal(f"{told}: name the ports, or use {ALL} with frontend = internal.")
    if settings.frontend == "internal" and INTERNET in settings.http_from:
        raise Refusal(
            f"http_from = {INTERNET}: nobody out there reaches an internal load balancer: leave it"
            " out, its network is let through anyway, or name ranges."
        )
    if settings.idle_minutes not in IDLE_MINUTES:
        bounds = f"{IDLE_MINUTES[0]} to {IDLE_MINUTES[-1]}"
        raise Refusal(f"idle_minutes = {settings.idle_minutes}: use {bounds}.")
    check_cluster_port(settings.cluster_port, found)
    return found


def check_cluster_port(number: int, forwarded: tuple[Port, ...] = ()) -> None:
    """Raise `Refusal` where the cluster's web server can't be: on a port that is somebody else's.

    On port 80, as always, it may serve the application, too.
    """
    if not 1 <= number <= MOST_PORT or number in {SSH_PORT, *NEVER_PROBED}:
        never = ", ".join(map(str, sorted({SSH_PORT, *NEVER_PROBED})))
        raise Refusal(
            f"cluster_port = {number}: use a number from 1 to {MOST_PORT}, but none of {never}."
        )
    if number != HTTP_PORT and Port("Tcp", number) in forwarded:
        raise Refusal(
            f"cluster_port = {number}: it is among ports, for the application: use another one,"
            " which the nodes have to themselves."
        )


def reaches(forwarded: tuple[Port, ...], number: int) -> bool:
    """Whether what is sent to that TCP port of the load balancer gets to a node."""
    return Port("Tcp", number) in forwarded or Port("All", 0) in forwarded


def url_of(address: str, forwarded: tuple[Port, ...], cluster_port: int) -> str:
    """Where a load balancer can be asked.

    http: a node's own web server answers behind it; tcp: the application does, in its own way.
    udp: nothing that could be asked is forwarded.
    """
    if reaches(forwarded, cluster_port):
        return f"http://{address}" + (f":{cluster_port}" if cluster_port != HTTP_PORT else "")
    first = min(forwarded, key=lambda port: port.protocol)  # Tcp before Udp
    return f"{first.protocol.lower()}://{address}:{first.number}"
