"""Every verb of `python -m deploy`, in one group."""

import contextlib
import json
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from agent.loader import BadInput, __version__, read_key
from deploy import Refusal
from deploy.application import Setup, read_setup, web_names
from deploy.azure.cli import azure
from deploy.checkout import NODES_FILE
from deploy.lab import BOOTSTRAP_URL
from deploy.lab import NAME as LAB_NAME
from deploy.lab import STATE as LAB_STATE
from deploy.lab.commands import lab_command
from deploy.nodes_info import read_nodes_info
from deploy.operate import look, looks, read_cluster
from deploy.options import HELP, service_options, settings_options
from deploy.plan import plan_of
from deploy.ports import check_cluster_port
from deploy.publish import held_release
from deploy.releases import COMMANDS, key_of, key_option
from deploy.settings import USUAL_LOOK, Settings, look_of, settings_of
from deploy.show import picture, print_plan, watch_lines, watch_live
from deploy.signing import public_key, signers_text
from deploy.userdata import is_beside, user_data


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def deploy() -> None:
    """One active node out of three on Azure, or on this machine."""


deploy.add_command(azure)
deploy.add_command(lab_command)
for command in COMMANDS:
    deploy.add_command(command)


# ---- Before there is a cluster


@deploy.command("plan")
@settings_options
@click.option("--json", "as_json", is_flag=True, help="The whole plan as JSON.")
def plan_command(config: Path | None, *, as_json: bool, **options: Any) -> None:
    """Print what `azure up` would create; needs no credentials."""
    plan = plan_of(settings_of(config, options))
    if as_json:
        click.echo(json.dumps(asdict(plan), indent=2))
    else:
        print_plan(plan, Console())


CLUSTER_KEY_HELP = (
    "A file; without: a new key. A release.json beside it, as in a cluster's state folder, says"
    " whose signatures count; without: your key's."
)


@deploy.command("user-data")
@click.argument("node")
@click.option("--nodes-info", type=Path, default=NODES_FILE)
@click.option("--bootstrap-url", default=BOOTSTRAP_URL, show_default=True)
@click.option("--cluster-key", "key_file", type=Path, help=CLUSTER_KEY_HELP)
@click.option("--period-seconds", type=int, default=Settings.period_seconds, show_default=True)
@click.option(
    "--look-seconds",
    type=int,
    show_default=USUAL_LOOK,
)
@click.option("--pause-seconds", type=int, default=Settings.pause_seconds, show_default=True)
@click.option(
    "--scheduled-events", type=bool, default=Settings.scheduled_events, show_default="true"
)
@click.option("--cluster-port", type=int, default=Settings.cluster_port, show_default=True)
@click.option("--name", default=LAB_NAME, show_default=True, help="The cluster's, in its releases.")
@click.option("--setup", metavar="FILE", multiple=True, help=HELP["setup"])
@service_options
@key_option
def user_data_command(
    node: str,
    nodes_info: Path,
    bootstrap_url: str,
    key_file: Path | None,
    period_seconds: int,
    *,
    look_seconds: int | None,
    pause_seconds: int,
    scheduled_events: bool,
    cluster_port: int,
    name: str,
    setup: tuple[str, ...],
    key: str,
    **service: Any,
) -> None:
    """Print the first-boot document of NODE; it holds the cluster's key."""
    check_cluster_port(cluster_port)
    held, files = held_release(key_file.parent) if key_file else None, read_setup(setup)
    ours = held.allowed_signers if held else signers_text([public_key(key_of(key, LAB_STATE))])
    document = user_data(
        node,
        read_nodes_info(nodes_info),
        bootstrap_url=bootstrap_url,
        cluster_key=read_cluster_key(key_file) if key_file else secrets.token_hex(32),
        period_seconds=period_seconds,
        look_seconds=look_of(period_seconds, look_seconds),
        pause_seconds=pause_seconds,
        peer_address=Settings.peer_address,
        scheduled_events=scheduled_events,
        cluster_port=cluster_port,
        cluster=name,
        allowed_signers=ours,
        setup=files,
        service={name: value for name, value in service.items() if value is not None},
    )
    if key_file is None:
        click.echo("user-data: made a new cluster key; all nodes need the same one.", err=True)
    tell_beside(document, files, bootstrap_url)
    click.echo(document.encode(), nl=False)  # bytes: Windows would end its lines in its own way


def tell_beside(document: str, setup: Setup, bootstrap_url: str) -> None:
    """Say where nodes fetch the application's files, if the document has no room for them."""
    if is_beside(document, setup):
        base = bootstrap_url.rstrip("/")
        urls = [base + path.removeprefix("bootstrap") for path in web_names(setup)]
        click.echo(f"user-data: it has no room for setup; serve {', '.join(urls)}.", err=True)


def read_cluster_key(path: Path) -> str:
    """The key in a file, by the agent's rules; raises `Refusal`."""
    try:
        return read_key(path).hex()
    except BadInput as error:
        raise Refusal(str(error)) from error


# ---- A cluster that is there

cluster_option = click.option(
    "--cluster",
    "state",
    type=Path,
    default=LAB_STATE,
    show_default=True,
    help="The cluster's state folder, with nodes_info.json and endpoints.json.",
)


@deploy.command("status")
@cluster_option
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.pass_context
def status_command(context: click.Context, state: Path, as_json: bool) -> None:
    """Print each node as seen from here, and whether one is active and served.

    Exit code 0: exactly one node is active and the load balancer serves it; 3: not so; 2: error.
    """
    view = look(read_cluster(state))
    if as_json:
        click.echo(json.dumps(asdict(view), indent=2))
    else:
        Console().print(picture(view))
    context.exit(0 if view.verdict == "served" else 3)


@deploy.command("watch")
@cluster_option
@click.option("--seconds", type=click.FloatRange(min=0), help="Stop after that many; else Ctrl-C.")
def watch_command(state: Path, seconds: float | None) -> None:
    """Show the table of `status` live, and the last changes.

    Into a pipe or a file: one line for every change.
    """
    views = looks(read_cluster(state), seconds)
    console = Console()
    with contextlib.suppress(KeyboardInterrupt):
        if console.is_terminal:
            watch_live(console, views)
        else:
            watch_lines(views)
