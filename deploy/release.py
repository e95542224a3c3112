"""What the web site serves: the agent, published to a folder that any web server can serve."""

import json
from pathlib import Path

import click

from deploy import Refusal
from deploy.userdata import CHECKOUT, NodesInfo, read_nodes_info


def release_files(nodes_info: NodesInfo) -> dict[str, bytes]:
    """The content of the web site, by path under its root."""
    return {
        "bootstrap/loader.py": (CHECKOUT / "agent" / "loader.py").read_bytes(),
        "bootstrap/nodes_info.json": (json.dumps(nodes_info, indent=2) + "\n").encode(),
    }


def publish(directory: Path, nodes_info: NodesInfo) -> None:
    """Write the release under `directory`, each file whole or not at all. Raises `OSError`."""
    for name, content in release_files(nodes_info).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.tmp")
        staged.write_bytes(content)
        staged.replace(path)


@click.command("publish")
@click.option("--to", "directory", type=Path, required=True, help="The web server's folder.")
@click.option("--nodes-info", type=Path, default=CHECKOUT / "nodes_info.json")
def publish_command(directory: Path, nodes_info: Path) -> None:
    """Build the release and publish it to a folder."""
    info = read_nodes_info(nodes_info)
    try:
        publish(directory, info)
    except OSError as error:
        raise Refusal(f"{directory}: can't be written: {error}.") from error
    for name in release_files(info):
        click.echo(f"published {directory / name}")
