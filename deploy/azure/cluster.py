"""One cluster on Azure: what is there, what would change, and the steps that make it so."""

import ipaddress
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeGuard

from azure.core.exceptions import AzureError, HttpResponseError

from deploy import Refusal
from deploy.application import Setup, web_names
from deploy.azure.answers import azures
from deploy.azure.apply import Result, Step, Watch, run_steps
from deploy.azure.cloud import (
    BUSY,
    OPERATION_SECONDS,
    POLL_SECONDS,
    REQUEST_SECONDS,
    Cloud,
    Size,
    may_pass,
    pauses,
)
from deploy.azure.compare import differences, merged
from deploy.azure.resources import (
    BALANCER,
    BALANCER_ADDRESS,
    MADE_BY,
    TYPES,
    Body,
    Resource,
    custom_data,
    resources,
    subnet_id,
    with_any_addresses,
)
from deploy.azure.state import State, fingerprint
from deploy.azure.web_site import Account, container
from deploy.azure.words import code_of
from deploy.nodes_info import nodes_info
from deploy.plan import SUBNET_ID, Node, Plan, peer_rules, with_addresses
from deploy.ports import HTTP_PORT, url_of
from deploy.publish import (
    RELEASE,
    Newest,
    files_beside,
    held_release,
    hold,
    newest,
    publish,
    stale,
)
from deploy.release import (
    Release,
    agent,
    changed_lines,
    first_release,
    of_cluster,
    renewed,
)
from deploy.settings import Settings
from deploy.signing import public_key, signers_text
from deploy.userdata import is_beside, user_data

WEB_SITE = {"properties": {"staticWebsite": {"enabled": True, "indexDocument": "index.html"}}}
CHANGED = "the resource group was changed meanwhile, perhaps by another `azure up`"
ROOM_STEP = "sizes and limits"
SETUP_STEP = "setup files"
NO_KEY = "0" * 64
"""Of a document that is only looked at."""

ASKED = frozenset({"Microsoft.Compute", "Microsoft.Network"})
"""The providers that tell sizes and limits, once they are registered."""

ADDRESS_LIMITS = (
    "publicipaddresses",
    "staticpublicipaddresses",
    "standardskupublicipaddresses",
    "ipv4standardskupublicipaddresses",
)
"""Each of Azure's names for a limit that a new public address comes under."""

SETTLED = frozenset({"Succeeded", "Failed", "Canceled"})

KEPT_BY_AZURE = 5
"""The first four addresses and the last one of each range of a subnet."""


@dataclass(frozen=True)
class Change:
    """What `up` does about one step: `create`, `change`, `wait for`, or nothing (`leave`)."""

    step: str
    verb: str
    details: tuple[str, ...] = ()
    why: str = field(default="", compare=False)  # Azure's words are new in each of its answers


@dataclass
class AzureCluster:
    """The plan, and what Azure has of it; `present` is kept up while steps run."""

    cloud: Cloud
    plan: Plan
    ssh_key: str
    state: State
    signing_key: Path
    setup: Setup
    group: Body | None = None
    present: dict[str, Body] = field(default_factory=dict)
    web_site: Body = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    newest: Newest | None = None  # of the releases on the web site
    unseen: str = ""  # why nobody knows what the web site serves
    unregistered: frozenset[str] = frozenset()

    @property
    def group_step(self) -> str:
        """The name of the step that everything else needs."""
        return f"resource group {self.plan.name}"

    def resources(self) -> dict[str, Resource]:
        """Everything as it should be, with the addresses that are known by now."""
        every = resources(self.plan_now(), self.cloud.scope, self.ssh_key)
        return {resource.key: resource for resource in every}

    def plan_now(self) -> Plan:
        """The plan with the addresses that are known by now."""
        known = {n.name: self.address(f"{n.name}PublicIp") for n in self.plan.nodes}
        taken = {n.name: self.private_address(f"{n.name}-nic") for n in self.plan.nodes}
        return with_addresses(self.plan, {n: ip for n, ip in known.items() if ip}, taken)

    def address(self, name: str) -> str | None:
        """A public address, or None before Azure gave one."""
        body = self.present.get(f"public address {name}", {})
        address: str | None = body.get("properties", {}).get("ipAddress")
        return address

    def private_address(self, nic: str) -> str:
        """The private address of an interface, or nothing before Azure gave one."""
        body = self.present.get(f"network interface {nic}", {})
        first = [*body.get("properties", {}).get("ipConfigurations", []), {}][0]
        return str(first.get("properties", {}).get("privateIPAddress", ""))

    def balancer_address(self) -> str | None:
        """Where the load balancer is reached, or None before Azure gave it an address."""
        if self.plan.frontend == "public":
            return self.address(BALANCER_ADDRESS)
        body = self.present.get(f"load balancer {BALANCER}", {})
        first = [*body.get("properties", {}).get("frontendIPConfigurations", []), {}][0]
        address: str | None = first.get("properties", {}).get("privateIPAddress")
        return address

    def account(self) -> Body | None:
        """The storage account, or None."""
        return self.present.get(f"storage account {self.cloud.scope.storage_account()}")

    def nodes_info(self) -> dict[str, dict[str, str]]:
        """What `nodes_info.json` holds for this cluster."""
        return nodes_info(self.plan_now(), self.cloud.scope.subscription)

    def endpoints(self) -> dict[str, str]:
        """Where the cluster answers, and whatever `publish` needs to reach its web site's files."""
        place, account, plan = self.cloud.place, self.account() or {}, self.plan
        storage = account.get("properties", {}).get("primaryEndpoints", {})
        return {
            "load_balancer": url_of(f"{self.balancer_address()}", plan.ports, plan.probe.port),
            "frontend": plan.frontend,
            "cluster_port": f"{plan.probe.port}",
            "web_site": storage.get("web", "").rstrip("/"),
            "storage": storage.get("blob", ""),
            "storage_account": self.cloud.scope.storage_account(),
            "resource_group": self.cloud.group_name,
            "subscription": place.subscription,
            "arm_endpoint": place.arm_endpoint,
            "authority": place.authority or "",
        }

    def release(self) -> Release | None:
        """What nodes should be told; None while their addresses are not known.

        What the operator's verbs have changed since stays: order, drained nodes, and the like.
        """
        if not all(node.public_ip and node.private_ip for node in self.plan_now().nodes):
            return None
        plan, nodes = self.plan, self.nodes_info()
        if self.newest is None:
            return first_release(plan, nodes, agent(), self.signers(), cluster=plan.name)
        before = renewed(self.newest.release, time.time())
        own = {"peer_address": plan.peer_address, "scheduled_events": plan.scheduled_events}
        return of_cluster(before, nodes, agent(), **own)

    def signers(self) -> str:
        """Who may sign releases: as the newest one says, or this operator."""
        known = self.newest.release if self.newest else held_release(self.state.folder)
        return known.allowed_signers if known else signers_text([public_key(self.signing_key)])

    def account_site(self) -> Account:
        """The web site's files."""
        site = container(storage_of(self), self.cloud.identity)
        return Account(site, self.endpoints()["web_site"])

    def document(self, name: str, key: str) -> str:
        """The first-boot document of a node; raises `Refusal` where no node can be made of it."""
        return user_data(
            name,
            self.nodes_info(),
            bootstrap_url=f"{self.endpoints()['web_site']}/bootstrap",
            cluster_key=key,
            period_seconds=self.plan.period_seconds,
            look_seconds=self.plan.look_seconds,
            pause_seconds=self.plan.pause_seconds,
            peer_address=self.plan.peer_address,
            scheduled_events=self.plan.scheduled_events,
            cluster_port=self.plan.probe.port,
            cluster=self.plan.name,
            allowed_signers=self.signers(),
            setup=self.setup,
            service=self.plan.service,
        )

    def setup_beside(self) -> dict[str, bytes]:
        """What of the application the web site has to serve, by its name: all of it, or nothing."""
        if not self.setup:
            return {}
        documents = (self.document(node.name, NO_KEY) for node in self.plan.nodes)
        beside = any(is_beside(document, self.setup) for document in documents)
        return web_names(self.setup) if beside else {}


# ---------------------------------------------------------------- what is there


def look(cluster: AzureCluster) -> None:
    """Fill in what Azure has of the cluster: one list for each kind, all at the same time."""
    cluster.group = cluster.cloud.group()
    if cluster.group is None:
        return
    account = f"storage account {cluster.cloud.scope.storage_account()}"
    kinds = [Step(kind, partial(look_at_kind, cluster, kind)) for kind in TYPES]
    of_account = [
        Step(
            "web site", partial(look_at_web_site, cluster, account), frozenset({"storage account"})
        ),
        Step("release", partial(look_at_release, cluster, account), frozenset({"storage account"})),
    ]
    raise_first(run_steps([*kinds, *of_account], Watch()), cluster.cloud)


def look_at_kind(cluster: AzureCluster, kind: str) -> None:
    """Fill in the resources of a kind."""
    for name, body in cluster.cloud.all_of(kind).items():
        cluster.present[f"{kind} {name}"] = body


def look_at_web_site(cluster: AzureCluster, account: str) -> None:
    """Fill in whether the web site is switched on."""
    if is_settled(cluster.present.get(account)):
        cluster.web_site = cluster.cloud.web_site(cluster.cloud.scope.storage_account())


def look_at_release(cluster: AzureCluster, account: str) -> None:
    """Fill in what the web site serves; the rest goes on where that can't be looked at."""
    if not is_settled(cluster.present.get(account)):
        return
    site, held = cluster.account_site(), held_release(cluster.state.folder)
    signers = cluster.signers()
    try:
        with azures(storage_of(cluster)):
            cluster.served = site.served()
            if held or RELEASE in cluster.served:
                cluster.newest = newest(site, held, signers)
    except AzureError as error:
        cluster.unseen = cluster.cloud.words(error)


def look_at_providers(cluster: AzureCluster) -> None:
    """Fill in which providers must be registered before the first resource of theirs."""
    every = cluster.resources()
    kinds = {every[key].kind for key in missing(cluster)}
    needed = {TYPES[kind].split("/", maxsplit=1)[0] for kind in kinds}
    asks = [Step(name, partial(cluster.cloud.is_registered, name)) for name in sorted(needed)]
    result = run_steps(asks, Watch())
    raise_first(result, cluster.cloud)
    cluster.unregistered = frozenset(name for name, known in result.done.items() if not known)


def missing(cluster: AzureCluster) -> frozenset[str]:
    """The resources that are to be created."""
    return frozenset(cluster.resources()) - cluster.present.keys()


def storage_of(cluster: AzureCluster) -> str:
    """Where the account's files are; an account without that is not known to be anywhere."""
    return cluster.endpoints()["storage"]


def raise_first(result: Result, cloud: Cloud) -> None:
    """Turn what failed into one sentence of Azure's own words."""
    if result.interrupted:
        raise KeyboardInterrupt
    for name, error in result.failed.items():
        raise Refusal(f"{name}: {cloud.words(error)}") from error


def provisioning(body: Body) -> str:
    """How far Azure is with a resource: Creating, Updating, Deleting, Succeeded, Failed, ..."""
    return str(body.get("properties", {}).get("provisioningState", "Succeeded"))


def is_settled(body: Body | None) -> bool:
    """Whether a resource is there, and Azure does not work on it."""
    return body is not None and provisioning(body) in SETTLED


# ---------------------------------------------------------------- what would change


def changes(cluster: AzureCluster) -> list[Change]:
    """What `up` would do about every step, in the order of the steps."""
    return [
        group_change(cluster),
        *(Change(f"provider {name}", "register") for name in sorted(cluster.unregistered)),
        *room_change(cluster),
        *(change_of(cluster, resource) for resource in cluster.resources().values()),
        web_site_change(cluster),
        *setup_change(cluster),
        release_change(cluster),
    ]


def group_change(cluster: AzureCluster) -> Change:
    """What happens to the resource group."""
    if cluster.group is None:
        return Change(cluster.group_step, "create")
    if not is_ours(cluster.group):
        return Change(cluster.group_step, "adopt")
    lines = tuple(tags_missing(cluster))
    return Change(cluster.group_step, "change" if lines else "leave", lines)


def tags_missing(cluster: AzureCluster) -> list[str]:
    """What the operator's tags would change about the group; Azure may answer it without any."""
    found = (cluster.group or {}).get("tags") or {}
    return differences({"tags": dict(cluster.plan.tags)}, {"tags": found})


def is_ours(body: Body) -> bool:
    """Whether this command made it."""
    return MADE_BY.items() <= (body.get("tags") or {}).items()


def change_of(cluster: AzureCluster, resource: Resource) -> Change:
    """What happens to a resource."""
    body = cluster.present.get(resource.key)
    if body is None:
        return Change(resource.key, "create")
    lines = tuple(differences(resource.body, body))
    if not is_settled(body):
        return Change(resource.key, "wait for", (provisioning(body),))
    if provisioning(body) != "Succeeded":
        return Change(resource.key, "repair", (provisioning(body), *lines))
    return Change(resource.key, "change" if lines and resource.in_place else "leave", lines)


def web_site_change(cluster: AzureCluster) -> Change:
    """Whether the web site must be switched on."""
    lines = tuple(differences(WEB_SITE, cluster.web_site))
    verb = "create" if not cluster.web_site else "change" if lines else "leave"
    return Change("web site", verb, lines if cluster.web_site else ())


def setup_change(cluster: AzureCluster) -> list[Change]:
    """Whether the application's files must be uploaded; none where nodes get them at first boot."""
    files = cluster.setup_beside()
    lines = tuple(stale(files, cluster.served))
    return [Change(SETUP_STEP, "upload" if lines else "leave", lines)] if files else []


def release_change(cluster: AzureCluster) -> Change:
    """What a new release says that the newest does not, or which of its files are missing."""
    if cluster.unseen:
        return Change("release", "upload", why=f"it can't be looked at: {cluster.unseen}")
    if not cluster.release() or not cluster.newest:
        return Change("release", "create")
    lines = release_lines(cluster)
    return Change("release", "change" if lines else "leave", tuple(lines))


def release_lines(cluster: AzureCluster) -> list[str]:
    """What is to be done about the release."""
    wanted, found = cluster.release(), cluster.newest
    if wanted is None or found is None or found.tag is None:
        return ["it is not there"]
    files = stale(files_beside(found, agent()), cluster.served)
    return changed_lines(renewed(found.release, time.time()), wanted) or files


# ---------------------------------------------------------------- making it so


def steps(cluster: AzureCluster) -> list[Step]:
    """Everything `up` does; what is as it should be costs no request."""
    group = frozenset({cluster.group_step})
    account = f"storage account {cluster.cloud.scope.storage_account()}"
    addresses = {f"public address {node.name}PublicIp" for node in cluster.plan.nodes}
    # The operator's copy names where the load balancer is reached.
    internal = cluster.plan.frontend == "internal"
    addresses.add(f"load balancer {BALANCER}" if internal else f"public address {BALANCER_ADDRESS}")
    if cluster.plan.subnet:
        addresses |= {f"network interface {node.name}-nic" for node in cluster.plan.nodes}
    providers = [
        Step(f"provider {name}", partial(register, cluster, name)) for name in cluster.unregistered
    ]
    names = frozenset(step.name for step in providers)
    if cluster.unregistered & ASKED:
        room = partial(refuse_without_room, cluster, missing(cluster))
        providers.append(Step(ROOM_STEP, room, names))
        names |= {ROOM_STEP}
    site = group | {"web site", *addresses}
    return [
        *providers,
        Step(cluster.group_step, partial(ensure_group, cluster), names),
        *(resource_step(cluster, resource) for resource in cluster.resources().values()),
        Step("web site", partial(ensure_web_site, cluster), group | {account}),
        *([Step(SETUP_STEP, partial(ensure_setup, cluster), site)] if cluster.setup else []),
        Step("release", partial(ensure_release, cluster), site),
    ]


def resource_step(cluster: AzureCluster, resource: Resource) -> Step:
    """A resource comes after its group, which comes after its provider, and what it names."""
    needs = {cluster.group_step, *resource.needs}
    if resource.kind == "virtual machine":
        # A node that boots finds the web site as it should be.
        needs |= {"release", *([SETUP_STEP] if cluster.setup else [])}
    return Step(resource.key, partial(ensure, cluster, resource.key), frozenset(needs))


def register(cluster: AzureCluster, namespace: str) -> str:
    """Let the subscription use a provider."""
    cluster.cloud.register(namespace)
    return "registered"


def ensure_group(cluster: AzureCluster) -> str:
    """Create the group, make an empty one ours, or give it the operator's tags."""
    ours = cluster.group is not None and is_ours(cluster.group)
    if ours and not tags_missing(cluster):
        return "left"
    if cluster.cloud.group() != cluster.group:
        raise Refusal(CHANGED)
    key = cluster.state.key_made_if_missing()
    own = {**MADE_BY, **fixed(cluster.plan), "key": fingerprint(key)}
    tags = {**dict(cluster.plan.tags), **own}
    before = cluster.group or {"location": cluster.plan.region}
    kept = {"location": before["location"], "tags": {**before.get("tags", {}), **tags}}
    cluster.cloud.put_group(kept)
    return "changed" if ours else "adopted" if cluster.group else "created"


def fixed(plan: Plan) -> dict[str, str]:
    """What a cluster keeps for its life: all its nodes have to agree about it."""
    return {
        "nodes": str(len(plan.nodes)),
        "period-seconds": str(plan.period_seconds),
        "look-seconds": str(plan.look_seconds),
        "pause-seconds": str(plan.pause_seconds),
        "cluster-port": str(plan.probe.port),
    }


def ensure(cluster: AzureCluster, key: str) -> str:
    """Make one resource as it should be; nothing is sent where nothing differs."""
    resource = cluster.resources()[key]
    before = settled(cluster.cloud, resource, cluster.present.get(key))
    cluster.present[key] = found = made(cluster, resource, before)
    if found is before:
        return "left"
    if before is None:
        return "created"
    return "changed" if provisioning(before) == "Succeeded" else "repaired"


def made(cluster: AzureCluster, resource: Resource, found: Body | None) -> Body:
    """The resource as it should be.

    An answer may get lost, and the request be sent again while Azure is at work on it: what Azure
    then refuses is perhaps what it is making. So it is looked at, waited for and compared again.
    """
    deadline, waits = 0.0, pauses()
    while True:
        if is_as_wanted(found, resource):
            return found
        try:
            return cluster.cloud.put(resource, to_send(cluster, resource, found))
        except HttpResponseError as error:
            deadline = deadline or time.monotonic() + REQUEST_SECONDS
            found = looked_at_again(cluster.cloud, resource, found, error, deadline)
        time.sleep(next(waits))


def is_as_wanted(found: Body | None, resource: Resource) -> TypeGuard[Body]:
    """Whether nothing is to be sent."""
    if found is None or provisioning(found) != "Succeeded":
        return False
    return not (resource.in_place and differences(resource.body, found))


def to_send(cluster: AzureCluster, resource: Resource, found: Body | None) -> Body:
    """The body that makes a resource, or mends what is there."""
    if found is None:
        return creation(cluster, resource)
    body: Body = merged(resource.body, found) if resource.in_place else found
    return body


def looked_at_again(
    cloud: Cloud, resource: Resource, before: Body | None, error: HttpResponseError, deadline: float
) -> Body | None:
    """The resource after a refusal, once it is settled; raises the error where that is no reason.

    A refusal that nothing has happened to since is repeated only where its code says it passes.
    """
    if not may_pass(error) or time.monotonic() > deadline:
        raise error
    now = cloud.get(resource)
    after = settled(cloud, resource, now)
    if now == before and code_of(error) not in BUSY:
        raise error
    return after


def creation(cluster: AzureCluster, resource: Resource) -> Body:
    """The body that creates a resource, with what is sent only then."""
    body: Body = merged(resource.at_creation, resource.body)
    if resource.kind == "virtual machine":
        key = cluster.state.key_made_if_missing()
        require_own_group(cluster, key)
        body = merged(custom_data(cluster.document(resource.name, key)), body)
    return body


def require_own_group(cluster: AzureCluster, key: str) -> None:
    """Refuse to make a machine with a key that is not, by now, the group's: two are no cluster.

    Whoever wrote the group's tag last goes on, be it from another computer.
    """
    tags = (cluster.cloud.group() or {}).get("tags") or {}
    if tags.get("key") != fingerprint(key):
        raise Refusal(CHANGED)


def settled(cloud: Cloud, resource: Resource, body: Body | None) -> Body | None:
    """The resource once Azure has ended what it does to it, as after an `up` that was killed."""
    deadline = time.monotonic() + OPERATION_SECONDS
    while body is not None and not is_settled(body):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{provisioning(body)} for more than {OPERATION_SECONDS:g} s.")
        time.sleep(POLL_SECONDS)
        body = cloud.get(resource)
    return body


def ensure_web_site(cluster: AzureCluster) -> str:
    """Switch the web site on."""
    if cluster.web_site and not differences(WEB_SITE, cluster.web_site):
        return "left"
    body = merged(WEB_SITE, cluster.web_site)
    cluster.cloud.put_web_site(cluster.cloud.scope.storage_account(), body)
    return "changed" if cluster.web_site else "created"


def ensure_setup(cluster: AzureCluster) -> str:
    """Upload what the first-boot documents have no room for and the web site does not serve."""
    files = cluster.setup_beside()
    names = stale(files, cluster.served)
    with azures(storage_of(cluster)):
        for name in names:
            cluster.account_site().write(name, files[name])
    return "uploaded" if names else "left"


def ensure_release(cluster: AzureCluster) -> str:
    """Sign and upload what the web site does not serve yet, and write the operator's copy."""
    cluster.state.write_cluster(cluster.nodes_info(), cluster.endpoints())
    before, folder, site = cluster.newest, cluster.state.folder, cluster.account_site()
    if before and not cluster.unseen and not release_lines(cluster):
        hold(folder, before)
        return "left"
    with azures(storage_of(cluster)):
        if cluster.unseen:
            cluster.newest = newest(site, held_release(folder), cluster.signers())
        if wanted := cluster.release():  # the addresses came first
            key, now = cluster.signing_key, time.time()
            published = publish(site, cluster.newest, wanted, key=key, now=now, code=agent())
            cluster.newest = published.after
            hold(folder, cluster.newest)
    return "uploaded" if cluster.unseen else "changed" if before else "created"


# ---------------------------------------------------------------- what is refused


def refuse_unsound(cluster: AzureCluster, *, adopt: bool) -> None:
    """Raise `Refusal` where going on would touch what is not ours, or break a cluster."""
    if cluster.group is None:
        return
    if provisioning(cluster.group) == "Deleting":
        raise Refusal(f"{cluster.group_step} is being deleted: try again when it is gone.")
    if not is_ours(cluster.group):
        refuse_foreign(cluster, adopt=adopt)
        return
    tags = cluster.group["tags"]
    # Without these tags it was made before there were such settings. Its nodes look once a run, and
    # their agent absorbs what is usual, because nothing there says otherwise.
    usual = {
        "look-seconds": tags.get("period-seconds"),
        "pause-seconds": f"{Settings.pause_seconds}",
        "cluster-port": f"{HTTP_PORT}",
    }
    made_with = {**usual, **tags}
    for name, value in fixed(cluster.plan).items():
        if (known := made_with.get(name)) != value:
            raise Refusal(
                f"{cluster.group_step} was made with {name} = {known}, not {value}: of nodes that"
                " differ in it several could be active, or none, so it is fixed: ask for"
                f" {known}, or `azure down` first."
            )
    for key, body in cluster.present.items():
        if body["location"].lower() != cluster.plan.region and is_ours(body):
            raise Refusal(f"{key} is in {body['location']}, not in {cluster.plan.region}.")
    refuse_moved(cluster)
    refuse_other_key(cluster, tags.get("key"))


def refuse_moved(cluster: AzureCluster) -> None:
    """Refuse to move a cluster to another network, or its load balancer to another kind of address.

    Azure moves no interface to another network, and no front end has addresses of both kinds.
    """
    balancer = cluster.present.get(f"load balancer {BALANCER}")
    if balancer and is_ours(balancer):
        is_public = "publicIPAddress" in str(balancer["properties"].get("frontendIPConfigurations"))
        known = "public" if is_public else "internal"
        if known != cluster.plan.frontend:
            raise Refusal(
                f"{cluster.group_step} was made with frontend = {known}, not"
                f" {cluster.plan.frontend}: ask for {known}, or `azure down` first."
            )
    wanted = subnet_id(cluster.plan, cluster.cloud.scope)
    for key, subnet in places(cluster):
        if subnet.lower() != wanted.lower():
            raise Refusal(
                f"{key} is in {subnet}, not in {wanted}: ask for that, or `azure down` first."
            )


def places(cluster: AzureCluster) -> Iterator[tuple[str, str]]:
    """The interfaces and the internal load balancer by their keys, each with its subnet."""
    keys = {f"network interface {node.name}-nic": "ipConfigurations" for node in cluster.plan.nodes}
    keys[f"load balancer {BALANCER}"] = "frontendIPConfigurations"
    for key, parts in keys.items():
        properties = cluster.present.get(key, {}).get("properties", {})
        for part in properties.get(parts, []):
            if "subnet" in part["properties"]:
                yield key, part["properties"]["subnet"]["id"]


def refuse_subnet(cluster: AzureCluster) -> None:
    """Refuse a subnet of others that the nodes can't be in, or that would go with the cluster.

    A network's machines are of its region and subscription; Azure says of any other network that
    it was not found (MicrosoftDocs/azure-docs issue 81734, Azure/azure-cli issue 13258).
    """
    match = SUBNET_ID.fullmatch(cluster.plan.subnet)
    if match is None:
        return
    told, scope = f"subnet = {cluster.plan.subnet}", cluster.cloud.scope
    subscription, group, network, name = match.groups()
    if subscription.lower() != scope.subscription.lower():
        raise Refusal(f"{told}: use one of the cluster's subscription, {scope.subscription}.")
    if group.lower() == scope.group.lower():
        raise Refusal(
            f"{told}: it is in the cluster's own resource group, which `azure down` deletes: use"
            " one of another group, or leave `subnet` out."
        )
    found = cluster.cloud.network_of(group, network) or {}
    subnets = found.get("properties", {}).get("subnets", [])
    subnet = next((body for body in subnets if body["name"].lower() == name.lower()), None)
    if subnet is None:
        raise Refusal(f"{told}: there is no such subnet, or you may not see it.")
    if found["location"].lower() != cluster.plan.region:
        raise Refusal(
            f"{told}: it is in {found['location']}, and the cluster in {cluster.plan.region}: use"
            " one of the cluster's region."
        )
    refuse_full(cluster, subnet["properties"])
    refuse_detour(cluster.plan, subnet["properties"])


def refuse_full(cluster: AzureCluster, subnet: Body) -> None:
    """Refuse a subnet that has fewer free addresses than are to be taken of it.

    Azure keeps five of each range. What has addresses of both families is listed once for each:
    there it is not known what is free.
    """
    told = subnet.get("addressPrefixes") or [subnet.get("addressPrefix", "::/0")]
    ranges = [ipaddress.ip_network(text) for text in told]
    if any(of_range.version == 6 for of_range in ranges):
        return
    used = len(subnet.get("ipConfigurations") or [])
    room = sum(of_range.num_addresses - KEPT_BY_AZURE for of_range in ranges)
    free = max(0, room - used)
    of_balancer = [f"load balancer {BALANCER}"] if cluster.plan.frontend == "internal" else []
    of_nodes = [f"network interface {node.name}-nic" for node in cluster.plan.nodes]
    needed = len(missing(cluster).intersection([*of_nodes, *of_balancer]))
    if needed > free:
        raise Refusal(
            f"subnet = {cluster.plan.subnet}: it has {free} free addresses, and the cluster needs"
            f" {needed} more: use a larger one."
        )


def refuse_detour(plan: Plan, subnet: Body) -> None:
    """Refuse a subnet where nodes would ask each other from an address that none of them lets in.

    A NAT gateway wins over a machine's own public address:
    https://learn.microsoft.com/azure/virtual-network/ip-services/default-outbound-access, and
    https://www.simonpainter.com/egress-ip-decision-tree has tried it.
    """
    if subnet.get("natGateway") and peer_rules(with_any_addresses(plan)):
        gateway = subnet["natGateway"]["id"].rsplit("/", 1)[-1]
        raise Refusal(
            f"subnet = {plan.subnet}: what the nodes ask each other would come from its NAT gateway"
            f" {gateway}, not from their own public addresses: use peer_address = private."
        )


def refuse_foreign(cluster: AzureCluster, *, adopt: bool) -> None:
    """Refuse a group that is not ours, unless it is empty and the operator gives it to us."""
    inside = cluster.cloud.everything()
    if inside:
        raise Refusal(
            f"{cluster.group_step} was not made by this command and holds {len(inside)} resources"
            f" ({inside[0]['name']}, ...): choose another name."
        )
    if not adopt:
        raise Refusal(
            f"{cluster.group_step} was not made by this command; it is empty:"
            " --adopt takes it, and `azure down` will delete it."
        )


def refuse_other_key(cluster: AzureCluster, wanted: str | None) -> None:
    """Refuse to go on with a key that the cluster's nodes do not have."""
    key = cluster.state.key()
    if key is None or fingerprint(key) != wanted:
        what = "missing" if key is None else "not the key of this cluster"
        raise Refusal(
            f"{cluster.state.key_file}: {what}; copy the file from the computer that made the"
            " cluster (on a node it is /etc/bootstrap/cluster.key), or run `keys rotate` again if"
            " that was interrupted."
        )


def refuse_document(cluster: AzureCluster) -> None:
    """Refuse settings of which no first-boot document can be made, before anything is created."""
    for node in cluster.plan.nodes:
        custom_data(cluster.document(node.name, NO_KEY))


def room_change(cluster: AzureCluster) -> list[Change]:
    """The check of sizes and limits, where it has to wait until Azure may be asked."""
    if not cluster.unregistered & ASKED:
        return []
    return [Change(ROOM_STEP, "check", ("as soon as the providers are registered",))]


def refuse_without_room(cluster: AzureCluster, wanted: frozenset[str]) -> str:
    """Refuse what a zone does not have or the subscription may not, before anything is created."""
    nodes = [node for node in cluster.plan.nodes if f"virtual machine {node.name}" in wanted]
    addresses = sum(key.startswith("public address ") for key in wanted)
    if nodes:
        sizes = cluster.cloud.sizes(cluster.plan.region)
        refuse_sizes(cluster.plan.region, nodes, sizes)
    if nodes or addresses:
        needed = Counter(dict.fromkeys(ADDRESS_LIMITS, addresses))
        for size in (sizes[node.size] for node in nodes):
            needed.update(dict.fromkeys(("cores", size.family), size.cores))
        room = cluster.cloud.room(cluster.plan.region)
        refuse_beyond_limits(cluster.plan.region, needed, room)
    return "checked"


def refuse_sizes(region: str, nodes: list[Node], sizes: Mapping[str, Size]) -> None:
    """Refuse a size that the zone of its node does not have."""
    for node in nodes:
        zones = sizes[node.size].zones if node.size in sizes else frozenset()
        if str(node.zone) in zones:
            continue
        has = ", ".join(sorted(zones)) or "none"
        raise Refusal(
            f"{node.name}: size {node.size} is not available to you in zone {node.zone} of"
            f" {region} (zones that have it: {has}): choose another size or region."
        )


def refuse_beyond_limits(region: str, wanted: Mapping[str, int], room: Mapping[str, int]) -> None:
    """Refuse what is more than the subscription may still have; what has no limit is not told."""
    for name, count in wanted.items():
        if count > room.get(name, count):
            raise Refusal(
                f"{region}: the cluster needs {count} more of {name}, and this subscription may"
                f" have {room[name]} more there: ask Azure for a higher quota, or choose another"
                " size or region."
            )
