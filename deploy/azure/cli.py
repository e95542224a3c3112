"""`python -m deploy azure ...`: options in, one of the verbs out."""

import gc
import importlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from deploy import Refusal
from deploy.checkout import CHECKOUT
from deploy.options import settings_options
from deploy.settings import settings_of

WOULD_CHANGE = 3
"""Exit code of `azure plan` where `azure up` would do something; 2 is an error."""

Command = TypeVar("Command", bound=Callable[..., Any])


def place_options(command: Command) -> Command:
    """Give a verb the options that say which Azure, and whose subscription."""
    for option in (
        click.option("--authority", help="Sign-in endpoint of another cloud, as https://HOST."),
        click.option("--arm-endpoint", help="Resource manager of another cloud, as https://HOST."),
        click.option(
            "--subscription",
            envvar="AZURE_SUBSCRIPTION_ID",
            help="Id of the subscription.  [AZURE_SUBSCRIPTION_ID]",
        ),
    ):
        command = option(command)
    return command


@click.group("azure")
def azure() -> None:
    """Create, compare and remove the cluster on Azure."""


@azure.command("up")
@settings_options
@place_options
@click.option("--adopt", is_flag=True, help="Take an empty resource group that is already there.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def up_command(config: Path | None, *, adopt: bool, yes: bool, **options: Any) -> None:
    """Create the cluster, or complete it; a second time changes nothing."""
    verbs = azure_verbs()
    place = place_of(verbs, options)
    verbs.up(place, settings_of(config, options), plain_console(), adopt=adopt, yes=yes)


@azure.command("plan")
@settings_options
@place_options
@click.option("--adopt", is_flag=True, help="As for `azure up`.")
def plan_command(config: Path | None, *, adopt: bool, **options: Any) -> None:
    """Print what `azure up` would do; exits 0 if that is nothing, else 3."""
    verbs = azure_verbs()
    place = place_of(verbs, options)
    if verbs.plan(place, settings_of(config, options), plain_console(), adopt=adopt):
        click.get_current_context().exit(WOULD_CHANGE)


@azure.command("down")
@click.option("--config", type=Path, help="File of settings, for the name.")
@click.option("--name", help="Name of the cluster and of its resource group.")
@place_options
@click.option("--yes", is_flag=True, help="Do not ask for the name.")
def down_command(config: Path | None, *, name: str | None, yes: bool, **options: Any) -> None:
    """Delete the cluster's resource group with everything in it."""
    verbs = azure_verbs()
    place = place_of(verbs, options)
    verbs.down(place, settings_of(config, {"name": name}).name, plain_console(), yes=yes)


def plain_console() -> Console:
    """Azure's words as they are: no markup in them, and lines that a terminal wraps."""
    return Console(markup=False, highlight=False, soft_wrap=True)


def azure_verbs() -> Any:
    """The module that needs Azure's packages, loaded only by the verbs that do.

    The SDK's thousands of classes live as long as the process does: keeping the garbage collector
    off them saves half of the 2 s that loading and leaving them behind would take.
    """
    gc.disable()
    try:
        return importlib.import_module("deploy.azure.verbs")
    except ModuleNotFoundError as error:
        # By path: under the project's name an index may have anybody's code.
        words = [sys.executable, "-m", "pip", "install", "-e", f"{CHECKOUT}[azure]"]
        raise Refusal(f"{error.name} is not installed: run `{shlex.join(words)}`.") from error
    finally:
        gc.freeze()
        gc.enable()


def place_of(verbs: Any, options: dict[str, Any]) -> Any:
    """Which Azure; takes its options out of `options`, which then holds settings alone."""
    subscription = options.pop("subscription")
    endpoint, authority = options.pop("arm_endpoint"), options.pop("authority")
    if not subscription:
        raise Refusal(
            "which subscription? Give --subscription ID or set AZURE_SUBSCRIPTION_ID;"
            " `az account show --query id -o tsv` prints the one you use."
        )
    for option, url in (("--arm-endpoint", endpoint), ("--authority", authority)):
        if url and not url.startswith("https://"):
            raise Refusal(f"{option} {url}: use an address that begins with https://.")
    known = {"arm_endpoint": endpoint, "authority": authority}
    return verbs.Place(subscription, **{key: url for key, url in known.items() if url})
