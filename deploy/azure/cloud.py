"""The one place that talks to Azure: one client a service, waits that end, errors in its words."""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.core.pipeline import PipelineResponse
from azure.core.pipeline.policies import (
    ContentDecodePolicy,
    HeadersPolicy,
    ProxyPolicy,
    RedirectPolicy,
    RequestIdPolicy,
    RetryPolicy,
    SensitiveHeaderCleanupPolicy,
    UserAgentPolicy,
)
from azure.core.polling import LROPoller
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy
from azure.mgmt.network import NetworkManagementClient
from azure.mgmt.resource.resources import ResourceManagementClient
from azure.mgmt.storage import StorageManagementClient
from azure.mgmt.storage.models import BlobServiceProperties

from deploy import PROJECT
from deploy.azure.answers import OfAzure, azures
from deploy.azure.identity import Identity, advice, ways
from deploy.azure.resources import Body, Resource, Scope
from deploy.azure.words import code_of, words_of

Client = TypeVar("Client")
Given = ParamSpec("Given")
Made = TypeVar("Made")

PUBLIC_CLOUD = "https://management.azure.com"

POLL_SECONDS = 1.0
"""Between two looks at an operation, where Azure's Retry-After does not say."""

OPERATION_SECONDS = 1800.0
"""Longest wait for one operation; a group of seven nodes is deleted within half of it."""

REQUEST_SECONDS = 300.0
"""Longest wait for one request, with everything that throttling and retries add to it."""

RETRIES = 10

LONGEST_PAUSE_SECONDS = 15.0

OF_THE_MOMENT = (409, 429)
"""Statuses of an answer that may be about what Azure does just now, not about what was asked."""

BUSY = frozenset(
    {
        "AnotherOperationInProgress",
        "Canceled",
        "NicReservedForAnotherVm",  # a 400, for three minutes
        "OperationPreempted",
        "RetryableError",
        "StorageAccountIsNotProvisioned",
        "StorageAccountOperationInProgress",
    }
)
"""Codes that Azure takes back by itself, even where nothing is to be seen of what keeps it busy."""

REGISTERED = "Registered"
NOT_REGISTERED = "MissingSubscriptionRegistration"


class Verbs(NamedTuple):
    """What the SDK calls the three things we do to every kind of resource."""

    all: Callable[..., Iterable[Any]]
    get: Callable[..., Any]
    put: Callable[..., LROPoller[Any]]


class Size(NamedTuple):
    """A size of machines: where there is one, and what it takes from the limits."""

    zones: frozenset[str]
    family: str
    cores: int


class BoundedRetry(RetryPolicy[Any, Any]):
    """The SDK's retries, except that a Retry-After beyond our patience is an answer, not a wait."""

    def is_retry(self, settings: dict[str, Any], response: PipelineResponse[Any, Any]) -> bool:
        """Whether to try again."""
        if (self.get_retry_after(response) or 0) > REQUEST_SECONDS:
            return False
        return super().is_retry(settings, response)


@dataclass(frozen=True)
class Place:
    """Which Azure, and whose subscription."""

    subscription: str
    arm_endpoint: str = PUBLIC_CLOUD
    authority: str | None = None

    def identity(self) -> Identity:
        """Whoever is signed in here: by the environment, `az login`, ..."""
        return Identity(ways(self.subscription, self.authority))


def understood(
    ask: Callable[Concatenate["Cloud", Given], Made],
) -> Callable[Concatenate["Cloud", Given], Made]:
    """Wraps everything that asks Azure: an answer that is none of Azure's is an `AzureError`."""

    @functools.wraps(ask)
    def asked(cloud: "Cloud", /, *args: Given.args, **options: Given.kwargs) -> Made:
        with azures(cloud.place.arm_endpoint):
            return ask(cloud, *args, **options)

    return asked


class Cloud:
    """What a command may do to one resource group."""

    def __init__(self, place: Place, group: str) -> None:
        logging.getLogger("azure").addHandler(logging.NullHandler())  # errors are told once, by us
        self.place, self.scope = place, Scope(place.subscription, group)
        self.group_name = group
        self.identity = place.identity()
        self.token_scope = f"{place.arm_endpoint.rstrip('/')}/.default"
        self.groups = self.client(ResourceManagementClient)
        self.compute = self.client(ComputeManagementClient)
        self.storage = self.client(StorageManagementClient)
        self.network = network = self.client(NetworkManagementClient)
        accounts = self.storage.storage_accounts
        self.verbs = {
            "network": verbs_of(network.virtual_networks),
            "firewall": verbs_of(network.network_security_groups),
            "public address": verbs_of(network.public_ip_addresses),
            "load balancer": verbs_of(network.load_balancers),
            "network interface": verbs_of(network.network_interfaces),
            "virtual machine": verbs_of(self.compute.virtual_machines),
            "storage account": Verbs(
                accounts.list_by_resource_group, accounts.get_properties, accounts.begin_create
            ),
        }

    def client(self, kind: Callable[..., Client]) -> Client:
        """A client of one service; each has policies of its own, because they are chained."""
        return kind(
            self.identity,
            self.place.subscription,
            base_url=self.place.arm_endpoint.rstrip("/"),
            credential_scopes=[self.token_scope],
            polling_interval=POLL_SECONDS,
            connection_timeout=10,
            read_timeout=60,
            policies=policies(self.identity, self.token_scope),
        )

    def sign_in(self) -> None:
        """Fetch the token now, so that a missing sign-in is the first thing told."""
        self.identity.get_token(self.token_scope)

    def words(self, error: Exception) -> str:
        """Azure's words, and as whom it was asked where that may be why."""
        words = words_of(error)
        code = code_of(error) if isinstance(error, HttpResponseError) else ""
        return words + advice(code, words, self.identity.whose, self.scope)

    # ------------------------------------------------------------ the group

    @understood
    def group(self) -> Body | None:
        """The resource group, or None."""
        return found(lambda: self.groups.resource_groups.get(self.group_name))

    @understood
    def put_group(self, body: Body) -> None:
        """Create the resource group, or change its tags."""
        told(self.groups.resource_groups.create_or_update(self.group_name, body).as_dict())

    @understood
    def delete_group(self) -> None:
        """Delete the resource group with everything in it."""
        try:
            finish(self.groups.resource_groups.begin_delete(self.group_name))
        except HttpResponseError:  # asked again after a cut, Azure may say that it is gone
            if not is_going(self.group()):
                raise
            wait_until(lambda: self.group() is None, f"deletion of {self.group_name}")

    @understood
    def everything(self) -> list[Body]:
        """Id, name, type and tags of every resource in the group, whoever made it."""
        return listed(self.groups.resources.list_by_resource_group(self.group_name))

    # ------------------------------------------------------------ resources

    @understood
    def all_of(self, kind: str) -> dict[str, Body]:
        """The group's resources of a kind, by name."""
        try:
            every = listed(self.verbs[kind].all(self.group_name))
        except HttpResponseError as error:
            if code_of(error) != NOT_REGISTERED:
                raise
            return {}  # nobody in this subscription has any
        return {body["name"]: body for body in every}

    @understood
    def get(self, resource: Resource) -> Body | None:
        """The resource as it is, or None."""
        return found(lambda: self.verbs[resource.kind].get(self.group_name, resource.name))

    @understood
    def put(self, resource: Resource, body: Body) -> Body:
        """Create the resource or change it; returns what Azure made of it."""
        return told(finish(self.verbs[resource.kind].put(self.group_name, resource.name, body)))

    @understood
    def network_of(self, group: str, name: str) -> Body | None:
        """A network of another resource group, which is nobody's here to change; or None."""
        return found(lambda: self.network.virtual_networks.get(group, name))

    # ------------------------------------------------------------ the web site

    @understood
    def web_site(self, account: str) -> Body:
        """The blob service of an account, with its static web site."""
        answer = self.storage.blob_services.get_service_properties(self.group_name, account)
        return told(answer.as_dict())

    @understood
    def put_web_site(self, account: str, body: Body) -> None:
        """Change the blob service of an account."""
        put = self.storage.blob_services.set_service_properties
        unless_busy(lambda: put(self.group_name, account, BlobServiceProperties(body)))

    # ------------------------------------------------------------ the subscription

    @understood
    def is_registered(self, namespace: str) -> bool:
        """Whether the subscription may use a resource provider."""
        return self.groups.providers.get(namespace).registration_state == REGISTERED

    @understood
    def register(self, namespace: str) -> None:
        """Let the subscription use a resource provider, and wait until it may.

        The SDK's own registration does not work for operations that take long.
        """
        self.groups.providers.register(namespace, retry_on_methods=frozenset({"POST"}))
        wait_until(lambda: self.is_registered(namespace), f"registration of {namespace}")

    @understood
    def sizes(self, region: str) -> dict[str, Size]:
        """The VM sizes of the region, as this subscription may use them, by their names."""
        skus = self.compute.resource_skus.list(filter=f"location eq '{region}'")
        machines = (body for body in listed(skus) if body["resourceType"] == "virtualMachines")
        return {body["name"]: size_of(body) for body in machines}

    @understood
    def room(self, region: str) -> dict[str, int]:
        """How much more of each thing the subscription may have in the region, by Azure's names.

        What has no limit, which Azure tells as a negative one, is left out.
        """
        usages = [*self.compute.usage.list(region), *self.network.usages.list(region)]
        return {
            str(body["name"].get("value", "")).lower(): body["limit"] - body["currentValue"]
            for body in listed(usages)
            if body["limit"] >= 0
        }


def size_of(sku: Body) -> Size:
    """A VM size; a capability that is not told counts as none."""
    told = {entry["name"]: entry["value"] for entry in sku.get("capabilities", [])}
    cores = told.get("vCPUsAvailable") or told.get("vCPUs") or "0"
    return Size(frozenset(allowed_zones(sku)), str(sku.get("family", "")).lower(), int(cores))


def policies(identity: Identity, scope: str) -> list[Any]:
    """What every request passes, from the outside in.

    The SDK's own list has a policy more, which registers a provider that is missing: also for who
    only looks.
    """
    return [
        RequestIdPolicy(),
        HeadersPolicy(),
        UserAgentPolicy(PROJECT),
        ProxyPolicy(),
        ContentDecodePolicy(),
        OfAzure(),
        RedirectPolicy(),
        BoundedRetry(retry_total=RETRIES, retry_status=RETRIES, timeout=REQUEST_SECONDS),
        ARMChallengeAuthenticationPolicy(identity, scope),
        SensitiveHeaderCleanupPolicy(),
    ]


def verbs_of(operations: Any) -> Verbs:
    """The usual names: `list`, `get`, `begin_create_or_update`."""
    return Verbs(operations.list, operations.get, operations.begin_create_or_update)


def allowed_zones(sku: Body) -> set[str]:
    """A size's zones without those that are restricted for this subscription."""
    zones = {zone for place in sku.get("locationInfo", []) for zone in place.get("zones", [])}
    for restriction in sku.get("restrictions", []):
        if restriction.get("type") == "Location":
            return set()
        zones -= set(restriction.get("restrictionInfo", {}).get("zones", []))
    return zones


def found(get: Callable[[], Any]) -> Body | None:
    """What a GET answers, or None where there is nothing."""
    try:
        body: Body = get().as_dict()
    except ResourceNotFoundError:
        return None
    return told(body)


def told(body: Body) -> Body:
    """What Azure tells of one thing: with the id that all of it has, else raises `KeyError`."""
    return {"id": body["id"], **body}


def listed(models: Iterable[Any]) -> list[Body]:
    """The members of a list, all pages of it, in Azure's own names."""
    return [model.as_dict() for model in models]


def finish(poller: LROPoller[Any]) -> Body:
    """Wait for an operation; raises `TimeoutError` beyond OPERATION_SECONDS."""
    poller.wait(OPERATION_SECONDS)
    if not poller.done():
        raise TimeoutError(f"Azure still works on it after {OPERATION_SECONDS:g} s.")
    result = poller.result()
    return result.as_dict() if result is not None else {}


def unless_busy(put: Callable[[], object]) -> None:
    """Repeat a request that Azure refuses only while it works on something else."""
    deadline = time.monotonic() + REQUEST_SECONDS
    for pause in pauses():
        try:
            put()
        except HttpResponseError as error:
            if code_of(error) not in BUSY or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(pause)


def pauses() -> Iterator[float]:
    """Between one try and the next: longer and longer, to a limit."""
    pause = POLL_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def may_pass(error: HttpResponseError) -> bool:
    """Whether an error may be about what Azure does just now, perhaps for us.

    Not where an operation of ours was begun and failed: then the code must say so.
    """
    request = getattr(error.response, "request", None)
    refused = getattr(request, "method", "") == "PUT" and error.status_code in OF_THE_MOMENT
    return refused or code_of(error) in {*BUSY, "Conflict"}


def is_going(group: Body | None) -> bool:
    """Whether a group is gone, or will be."""
    return group is None or group.get("properties", {}).get("provisioningState") == "Deleting"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Ask until it is so; raises `TimeoutError` beyond OPERATION_SECONDS."""
    deadline = time.monotonic() + OPERATION_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not done after {OPERATION_SECONDS:g} s.")
        time.sleep(POLL_SECONDS)
