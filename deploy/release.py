"""What a release contains: all that the web site serves."""

import re
from collections.abc import Mapping

from deploy.checkout import part
from deploy.files import json_text
from deploy.nodes_info import NodesInfo


def release_files(nodes_info: NodesInfo) -> dict[str, bytes]:
    """The content of the web site, by path under its root."""
    nodes = {name: for_everybody(entry) for name, entry in nodes_info.items()}
    return {
        "bootstrap/loader.py": part("agent/loader.py").encode(),
        "bootstrap/nodes_info.json": json_text(nodes).encode(),
    }


def for_everybody(entry: Mapping[str, str]) -> dict[str, str]:
    """A node without its subscription's id: anybody may read the web site, nobody needs it."""
    key = "network_interface_id"
    return {**entry, key: re.sub("(?i)^/subscriptions/[^/]*", "", entry[key])}
