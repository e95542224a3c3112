"""`python -m deploy VERB`: the one command of the operator."""

import sys

import click

from deploy import Refusal
from deploy.azure.cli import azure
from deploy.lab.commands import lab_command
from deploy.operate import status_command, watch_command
from deploy.plan import plan_command
from deploy.release import publish_command
from deploy.userdata import user_data_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def deploy() -> None:
    """One active node out of three on Azure, or on this machine."""


for command in (
    plan_command,
    azure,
    lab_command,
    publish_command,
    user_data_command,
    status_command,
    watch_command,
):
    deploy.add_command(command)


def main() -> int:
    """Run one verb and give its exit code; a refusal is one sentence on standard error and 2."""
    try:
        return deploy(standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return 2
    except Refusal as refusal:
        click.echo(f"deploy: {refusal}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("deploy: stopped at your request.", err=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
