"""Every verb of `python -m deploy`, in one group."""

import click

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
