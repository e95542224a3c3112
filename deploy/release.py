"""What the web site serves, published to a folder or to the storage account of a cluster."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import click

from deploy import Refusal
from deploy.azure.cli import azure_verbs, plain_console
from deploy.azure.state import State, state_of_cluster
from deploy.checkout import CHECKOUT, part
from deploy.files import write_whole
from deploy.settings import Settings
from deploy.userdata import NodesInfo, read_nodes_info


def release_files(nodes_info: NodesInfo) -> dict[str, bytes]:
    """The content of the web site, by path under its root."""
    nodes = {name: for_everybody(entry) for name, entry in nodes_info.items()}
    return {
        "bootstrap/loader.py": part("agent/loader.py").encode(),
        "bootstrap/nodes_info.json": (json.dumps(nodes, indent=2) + "\n").encode(),
    }


def for_everybody(entry: Mapping[str, str]) -> dict[str, str]:
    """A node without its subscription's id: anybody may read the web site, nobody needs it."""
    key = "network_interface_id"
    return {**entry, key: re.sub("(?i)^/subscriptions/[^/]*", "", entry[key])}


def publish(directory: Path, nodes_info: NodesInfo) -> None:
    """Write the release under `directory`, for a web server of any user. Raises `OSError`."""
    for name, content in release_files(nodes_info).items():
        write_whole(directory / name, content)


def publish_to_account(folder: Path, nodes_info: Path | None) -> None:
    """Upload the release to the storage account of the cluster whose state folder this is."""
    state = State(folder)
    endpoints = state.endpoints()
    info = read_nodes_info(nodes_info or state.nodes_file)
    azure_verbs().publish(endpoints, release_files(info), plain_console())


def publish_to_folder(directory: Path, nodes_info: Path) -> None:
    """Write the release to a folder, and say which files."""
    info = read_nodes_info(nodes_info)
    try:
        publish(directory, info)
    except OSError as error:
        raise Refusal(f"{directory}: can't be written: {error}.") from error
    for name in release_files(info):
        click.echo(f"published {directory / name}")


@click.command("publish")
@click.option("--to", "directory", type=Path, help="A web server's folder; without: to Azure.")
@click.option(
    "--cluster",
    type=Path,
    show_default="of the cluster with the default name",
    help="State folder of the cluster on Azure.",
)
@click.option("--nodes-info", type=Path, help="Other nodes than the cluster's, or the lab's.")
def publish_command(directory: Path | None, cluster: Path | None, nodes_info: Path | None) -> None:
    """Build the release and publish it, to a folder or to a cluster's storage account."""
    if directory is None:
        publish_to_account(cluster or state_of_cluster(Settings().name).folder, nodes_info)
    else:
        publish_to_folder(directory, nodes_info or CHECKOUT / "nodes_info.json")
