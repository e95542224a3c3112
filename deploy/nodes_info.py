"""`nodes_info.json`: its one reader and its one writer, by the rules of the agent that has it."""

import json
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

from agent.loader import BadInput, parse_nodes_info
from deploy import Refusal
from deploy.files import write_json
from deploy.plan import Node, Plan, zone_of
from deploy.settings import Settings

NodesInfo = Mapping[str, Mapping[str, str]]
"""Node name -> the four texts of an entry, most preferred node first."""

NO_SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"


def nodes_info(plan: Plan, subscription: str = NO_SUBSCRIPTION) -> dict[str, dict[str, str]]:
    """What the file holds for this plan."""
    nic = (
        f"/subscriptions/{subscription}/resourceGroups/"
        f"{plan.name}/providers/Microsoft.Network/networkInterfaces/"
    )
    return {
        node.name: {
            "ip_configuration_name": "default",
            "network_interface_id": f"{nic}{node.name}-nic",
            "private_ip": node.private_ip,
            "public_ip": node.public_ip or "",
        }
        for node in plan.nodes
    }


def read_nodes_info(path: Path) -> dict[str, dict[str, str]]:
    """What the file holds; raises `Refusal` for what an agent would refuse."""
    try:
        return parse_nodes_info(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path}: can't be read: {error}.") from error
    except BadInput as error:
        raise Refusal(str(error)) from error


def require_nodes(nodes: NodesInfo, where: str) -> None:
    """Raise `Refusal` for nodes that an agent would refuse."""
    try:
        parse_nodes_info(json.dumps(nodes), where)
    except BadInput as error:
        raise Refusal(str(error)) from error


def read_nodes(path: Path) -> tuple[Node, ...]:
    """The nodes that the file names; raises `Refusal`, also where an address is a name.

    Zone and size are not in it: they are those of a plan with so many nodes.
    """
    found = read_nodes_info(path)
    for name, entry in found.items():
        for key in ("private_ip", "public_ip"):
            require_address(f"{path}: {name}: {key}", entry[key])
    return tuple(
        Node(name, zone_of(index), entry["private_ip"], entry["public_ip"], Settings.size)
        for index, (name, entry) in enumerate(found.items())
    )


def require_address(where: str, text: str) -> None:
    """Raise `Refusal` for what is no IPv4 address."""
    try:
        IPv4Address(text)
    except AddressValueError as error:
        raise Refusal(f"{where} {text!r}: use an IPv4 address.") from error


def write_nodes_info(path: Path, info: NodesInfo, *, folder_mode: int = 0o755) -> None:
    """Write the file, whole or not at all."""
    write_json(path, info, folder_mode=folder_mode)
