"""The verbs that talk to Azure, `azure up`, `plan` and `down` and `publish`, to their last line."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import click
import requests
from azure.core.exceptions import AzureError, ClientAuthenticationError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy import Refusal
from deploy.application import read_setup
from deploy.azure.answers import azures
from deploy.azure.apply import Result, Watch, run_steps
from deploy.azure.cloud import Cloud, Place
from deploy.azure.cluster import (
    ASKED,
    AzureCluster,
    Change,
    changes,
    is_ours,
    look,
    look_at_providers,
    missing,
    refuse_document,
    refuse_subnet,
    refuse_unsound,
    refuse_without_room,
    steps,
)
from deploy.azure.resources import ADMIN_NAME, TYPES, Body
from deploy.azure.state import State, fingerprint, state_of_cluster
from deploy.azure.web_site import Account, container
from deploy.azure.words import words_of
from deploy.plan import Plan, is_url, plan_of
from deploy.publish import hold
from deploy.settings import Settings, ssh_public_key
from deploy.signing import operators_key, public_key

OWN_ADDRESS_SECONDS = 10
KINDS = frozenset(kind.lower() for kind in TYPES.values())
MACHINES = TYPES["virtual machine"].lower()


class Keys(NamedTuple):
    """The operator's: the text of that which logs in to machines, the file that signs releases."""

    ssh_public: str
    signing: Path


def keys_of(settings: Settings) -> Keys:
    """The operator's keys; raises `Refusal` before anything is touched."""
    signing = operators_key(settings.signing_key)
    public_key(signing)
    return Keys(ssh_public_key(settings), signing)


def up(place: Place, settings: Settings, console: Console, *, adopt: bool, yes: bool) -> None:
    """Create what is missing, change what differs, leave the rest; one `up` at a time."""
    wanted = plan_of(settings)
    with state_of_cluster(wanted.name).locked():
        wanted = plan_of(resolved_once(settings))
        keys = keys_of(settings)
        up_alone(place, wanted, keys, console, adopt=adopt, yes=yes)


def up_alone(
    place: Place, wanted: Plan, keys: Keys, console: Console, *, adopt: bool, yes: bool
) -> None:
    """As `up`, with the cluster's lock held."""
    cluster, planned = compared(place, wanted, keys, adopt=adopt)
    if all(change.verb == "leave" for change in planned):
        cluster.state.write_cluster(cluster.nodes_info(), cluster.endpoints())
        if cluster.newest:
            hold(cluster.state.folder, cluster.newest)
        print_changes(cluster, planned, console)
        print_cluster(cluster, console)
        return
    print_changes(cluster, planned, console)
    if not yes:
        click.confirm("Go on?", abort=True)
        cluster, now = compared(place, wanted, keys, adopt=adopt)  # who knows how long it took
        if now != planned:
            raise Refusal(
                "what there is changed while you were asked: nothing was done; run `azure up`"
                " again to see what it would do now."
            )
    begun = time.monotonic()
    with shown_progress(console) as progress:
        result = run_steps(steps(cluster), Report(progress))
    if result.failed or result.interrupted:
        stop(result, planned, cluster.cloud, console)
    console.print(f"Done in {time.monotonic() - begun:.0f} s.")
    print_cluster(cluster, console)


def plan(place: Place, settings: Settings, console: Console, *, adopt: bool) -> bool:
    """Print what `up` would do; True where that is anything at all."""
    plan_of(settings)  # what is wrong with them is told before anybody is asked for an address
    wanted = plan_of(resolved_once(settings))
    cluster, planned = compared(place, wanted, keys_of(settings), adopt=adopt)
    print_changes(cluster, planned, console)
    return any(change.verb != "leave" for change in planned)


def compared(
    place: Place, wanted: Plan, keys: Keys, *, adopt: bool
) -> tuple[AzureCluster, list[Change]]:
    """The cluster as Azure has it, and what `up` would do; refuses before anything is touched."""
    setup = read_setup(wanted.setup)
    cloud = signed_in(place, wanted.name)
    state = state_of_cluster(wanted.name)
    cluster = AzureCluster(cloud, wanted, keys.ssh_public, state, keys.signing, setup)
    refuse_document(cluster)
    try:
        look(cluster)
        if cluster.newest and state.key():  # another operator may have rotated it
            hold(state.folder, cluster.newest)
        refuse_unsound(cluster, adopt=adopt)
        refuse_subnet(cluster)
        look_at_providers(cluster)
        if not cluster.unregistered & ASKED:
            refuse_without_room(cluster, missing(cluster))
    except (AzureError, OSError) as error:
        raise Refusal(f"Azure: {cloud.words(error)}") from error
    return cluster, changes(cluster)


def signed_in(place: Place, group: str) -> Cloud:
    """A connection to Azure, with a token."""
    try:
        cloud = Cloud(place, group)
        cloud.sign_in()
    except ClientAuthenticationError as error:
        raise Refusal(words_of(error)) from error
    except (AzureError, ValueError) as error:
        raise Refusal(f"signing in to Azure: {words_of(error)}") from error
    return cloud


def resolved_once(settings: Settings) -> Settings:
    """Without URLs for addresses: one may differ at a second look, as behind many NATs."""
    return replace(settings, ssh_from=tuple(map(resolved, dict.fromkeys(settings.ssh_from))))


def resolved(source: str) -> str:
    """An address range; a URL becomes the address from which this computer reaches it."""
    if not is_url(source):
        return source
    try:
        answer = requests.get(source, timeout=OWN_ADDRESS_SECONDS)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise Refusal(
            f"ssh_from: {source} did not tell this computer's address ({type(error).__name__}):"
            " give the range that may reach SSH, like --ssh-from 203.0.113.7/32."
        ) from error
    return f"{answer.text.strip()[:40]}/32"


# ---------------------------------------------------------------- publish


@contextmanager
def web_site(endpoints: Mapping[str, str]) -> Iterator[Account]:
    """The files of a cluster's web site, to read and to publish; `endpoints` as `up` wrote them."""
    cloud = cloud_of(endpoints)
    try:
        with azures(endpoints["storage"]):
            site = container(endpoints["storage"], cloud.identity)
            yield Account(site, endpoints["web_site"])
    except (AzureError, OSError) as error:
        account = endpoints["storage_account"]
        raise Refusal(f"publishing to {account}: {cloud.words(error)}") from error


def cloud_of(endpoints: Mapping[str, str]) -> Cloud:
    """A connection to the Azure that a cluster is on."""
    authority = endpoints["authority"] or None
    place = Place(endpoints["subscription"], endpoints["arm_endpoint"], authority)
    return signed_in(place, endpoints["resource_group"])


def tag_key(endpoints: Mapping[str, str], key: str) -> None:
    """Say in the group's tags which key the cluster has now, for the next `up`."""
    cloud = cloud_of(endpoints)
    try:
        group = cloud.group()
        if group is None:
            raise Refusal(f"there is no resource group {cloud.group_name} any more.")
        tags = {**group.get("tags", {}), "key": fingerprint(key)}
        cloud.put_group({"location": group["location"], "tags": tags})
    except AzureError as error:
        raise Refusal(f"Azure: {cloud.words(error)}") from error


# ---------------------------------------------------------------- down


def down(place: Place, name: str, console: Console, *, yes: bool) -> None:
    """Delete the resource group, if it is ours and everything in it is."""
    state = state_of_cluster(name)
    with state.locked():
        down_alone(signed_in(place, name), state, console, yes=yes)


def down_alone(cloud: Cloud, state: State, console: Console, *, yes: bool) -> None:
    """As `down`, with the cluster's lock held."""
    name = cloud.group_name
    inside = deletable(cloud)
    if inside is None:  # perhaps it is in another subscription: its key stays
        console.print(f"There is no resource group {name}: nothing to remove.")
        return
    print_inside(name, inside, console)
    if not yes:
        if click.prompt("Its name, to delete all of this") != name:
            raise Refusal("that is not the group's name: nothing was deleted.")
        refuse_more(inside, deletable(cloud) or [])
    begun = time.monotonic()
    try:
        with console.status(f"deleting {name} ..."):
            cloud.delete_group()
    except (AzureError, TimeoutError) as error:
        raise Refusal(f"deleting {name}: {cloud.words(error)}") from error
    state.remove()
    console.print(f"Deleted in {time.monotonic() - begun:.0f} s.")


def deletable(cloud: Cloud) -> list[Body] | None:
    """What the group holds, None without one; raises `Refusal` where something is not ours."""
    try:
        group = cloud.group()
        if group is None:
            return None
        inside = cloud.everything()
        has_machines = any(body["type"].lower() == MACHINES for body in inside)
        machines = [*cloud.all_of("virtual machine").values()] if has_machines else []
    except AzureError as error:
        raise Refusal(f"Azure: {cloud.words(error)}") from error
    refuse_to_delete(group, inside, machines)
    return inside


def refuse_to_delete(group: Body, inside: list[Body], machines: list[Body]) -> None:
    """Refuse a group that is not ours, or that holds what we did not make."""
    name = group["name"]
    if not is_ours(group):
        raise Refusal(f"resource group {name} was not made by `azure up`: nothing was deleted.")
    ours = [machine for machine in machines if is_ours(machine)]
    foreign = [body for body in inside if not belongs(body, ours)]
    if foreign:
        kind = foreign[0]["type"]
        raise Refusal(
            f"resource group {name} holds {foreign[0]['name']} ({kind}), which `azure up` did not"
            " make: move or delete it first; nothing was deleted."
        )


def refuse_more(shown: list[Body], now: list[Body]) -> None:
    """Refuse what came after the operator was shown what would go."""
    before = {body["id"].lower() for body in shown}
    more = [body for body in now if body["id"].lower() not in before]
    if more:
        raise Refusal(
            f"{more[0]['name']} ({more[0]['type']}) came while you were asked: nothing was"
            " deleted; run `azure down` again to see all of it."
        )


def belongs(body: Body, machines: Iterable[Body]) -> bool:
    """Of a kind that we make and with our tag, or our machine's system disk or extension.

    The tag alone says little: what is made with a machine, like a new data disk, inherits it.
    """
    if body["type"].lower() in KINDS:
        return is_ours(body)
    own = body["id"].lower()
    return any(
        own == system_disk(machine) or own.startswith(f"{machine['id'].lower()}/extensions/")
        for machine in machines
    )


def system_disk(machine: Body) -> str:
    """The id of the disk that a machine boots from; Azure gives one disk's in two letter cases."""
    disk = machine["properties"].get("storageProfile", {}).get("osDisk", {})
    return str(disk.get("managedDisk", {}).get("id", "")).lower()


def print_inside(name: str, inside: list[Body], console: Console) -> None:
    """What `down` deletes."""
    table = Table("name", "type", title=f"To be deleted with resource group {name}")
    for body in sorted(inside, key=lambda body: (body["type"], body["name"])):
        table.add_row(body["name"], body["type"])
    console.print(table)


# ---------------------------------------------------------------- what the operator sees


class Report(Watch):
    """One line for each step that ends, a clock for each that runs."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks = {}  # type: ignore[var-annotated]

    def started(self, name: str) -> None:
        """Show its clock."""
        self.tasks[name] = self.progress.add_task(name, total=None)

    def ended(self, name: str, outcome: object, elapsed_seconds: float) -> None:
        """Its clock becomes a line; what was left as it is, is not worth one."""
        self.progress.remove_task(self.tasks.pop(name))
        if outcome == "left":
            return
        word = "FAILED" if isinstance(outcome, Exception) else str(outcome)
        self.progress.console.print(f"{elapsed_seconds:6.1f} s  {word:10}  {name}")


def shown_progress(console: Console) -> Progress:
    """Clocks of what runs, below the lines of what is done; lines alone where nobody looks."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def print_changes(cluster: AzureCluster, planned: Iterable[Change], console: Console) -> None:
    """Where, what will be done, and how much is left as it is."""
    subscription, whose = cluster.cloud.scope.subscription, cluster.cloud.identity.whose
    console.print(f"In {cluster.plan.region}, subscription {subscription}, as {whose}:")
    left = 0
    for change in planned:
        left += change.verb == "leave"
        if change.verb != "leave":
            console.print(f"{change.verb:9} {change.step}")
        for line in filter(None, (*change.details, change.why)):
            note = "" if change.verb != "leave" else f"{change.step} stays, though it differs: "
            console.print(f"          {note}{line}")
    if left:
        console.print(f"{left} are left as they are.")


def stop(result: Result, planned: list[Change], cloud: Cloud, console: Console) -> None:
    """Say what exists, what failed and in whose words, what is under way; then end the command."""
    names = [change.step for change in planned]
    never = [n for n in names if n not in {*result.done, *result.failed, *result.running}]
    for title, these in (
        ("There and as it should be", list(result.done)),
        ("Under way at Azure", list(result.running)),
        ("Not begun", never),
    ):
        if these:
            console.print(f"{title}: {', '.join(these)}.")
    (name, error), *others = [*result.failed.items()] or [("", Refusal())]
    for other, why in others:
        console.print(f"Failed: {other}: {cloud.words(why)}")
    console.print("Run `azure up` again: it goes on from here.")
    if result.interrupted:
        raise click.Abort
    raise Refusal(f"{name}: {cloud.words(error)}")


def print_cluster(cluster: AzureCluster, console: Console) -> None:
    """Where the cluster answers, and what to try."""
    url, first = cluster.endpoints()["load_balancer"], cluster.plan_now().nodes[0]
    ports, address = ", ".join(map(str, cluster.plan.ports)), cluster.balancer_address()
    where = f"{url}/" if url.startswith("http:") else f"{address}, ports {ports},"
    if is_internal := cluster.plan.frontend == "internal":
        where = f"{where.rstrip(',')}, within its network alone,"
    asks = [f"  curl {url}/"] if url.startswith("http:") and not is_internal else []
    for line in (
        f"Cluster {cluster.plan.name} answers at {where} once a node is active: a new node installs"
        " itself in about three minutes. Try:",
        *asks,
        f"  python -m deploy status --cluster {cluster.state.folder}",
        f"  ssh {ADMIN_NAME}@{first.public_ip}",
    ):
        console.print(line)
