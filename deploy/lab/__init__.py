"""Make this machine the cloud: the plan applied to network namespaces and booted nodes.

The addresses are documentation ranges (RFC 5737), routed only to the lab, and those that Azure's
own services have (169.254.169.254, 168.63.129.16).
"""

from pathlib import Path

from deploy import PROJECT

NAME = "lab"
"""The cluster's name in its releases."""

STATE = Path(f"/run/{PROJECT}/lab")
"""All that a running lab keeps on disk; `lab down` removes it."""

CACHE = Path(f"/var/cache/{PROJECT}")
"""The root file systems, built once; `lab down` leaves them."""

PUBLIC_NETWORK = "198.51.100.0/24"
SERVICE_NETWORK = "203.0.113.0/24"
OPERATOR = "203.0.113.254"
"""This machine's own address in the lab: the plan's firewall knows it as the operator's."""
FABRIC_ADDRESS = "203.0.113.1"
WEB_SITE = "203.0.113.10"
BOOTSTRAP_URL = f"http://{WEB_SITE}/bootstrap"
LOAD_BALANCER = "203.0.113.20"
COLLECTOR = "203.0.113.30"
"""Takes what the demonstration writes."""
METADATA = "169.254.169.254"
PROBE_SOURCE = "168.63.129.16"
