"""The fake's state, and what each operation does to it."""

import base64
import copy
import functools
import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from tests.azure.fake_azure.blobs import Account
from tests.azure.fake_azure.model import (
    Answer,
    Body,
    Fault,
    Log,
    Operation,
    Refused,
    Request,
    is_poll,
)
from tests.azure.fake_azure.routes import Route, routes
from tests.azure.fake_azure.rules import NAMES, RULES, references, refuse, retryable
from tests.azure.fake_azure.schemas import validator, writable
from tests.azure.fake_azure.shapes import WHEN, completed, guid, shown

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
TENANT = "66666666-7777-8888-9999-000000000000"
REGIONS = ("westeurope", "northeurope")
NAMESPACES = ("Microsoft.Network", "Microsoft.Compute", "Microsoft.Storage")
ALL_ZONES = ["1", "2", "3"]
SIZES = {
    "Standard_B2als_v2": ("standardBasv2Family", 2, ALL_ZONES),
    "Standard_B2ats_v2": ("standardBasv2Family", 2, ALL_ZONES),
    "Standard_D2s_v5": ("standardDSv5Family", 2, ALL_ZONES),
    "Standard_M8ms": ("standardMSFamily", 8, ["1", "3"]),
}
SDKS_OWN_VERSION = "2016-02-01"  # of the requests by which the SDK registers a provider unasked
VOLATILE = frozenset({"etag"})
IN_FLUX = ("Creating", "Updating", "Deleting")
BEGUN = {"Retry-After": "1"}
"""Of the answer that begins an operation, in whole seconds; nobody waits for these."""
GATEWAY = {"X-Ms-Failure-Cause": "gateway"}

LOCATION = "providers/{}/locations/westeurope"
STATUS, RESULT = "Azure-AsyncOperation", "Location"
PLACES = {
    ("Microsoft.Network", STATUS): f"{LOCATION}/operations/{{}}?",
    ("Microsoft.Network", RESULT): f"{LOCATION}/operationResults/{{}}?",
    ("Microsoft.Compute", STATUS): f"{LOCATION}/operations/{{}}?p=1&",
    ("Microsoft.Compute", RESULT): f"{LOCATION}/operations/{{}}?p=1&monitor=true&",
    ("Microsoft.Storage", RESULT): f"{LOCATION}/asyncoperations/{{}}?monitor=true&",
    ("Microsoft.Resources", RESULT): "operationresults/{1}?",
}
"""Where to ask how an operation goes, by who works on it and by style."""

IN_USE = {
    "publicipaddresses": "PublicIPAddressCannotBeDeleted",
    "virtualnetworks": "InUseSubnetCannotBeDeleted",
    "networksecuritygroups": "InUseNetworkSecurityGroupCannotBeDeleted",
    "networkinterfaces": "NicInUse",
    "loadbalancers": "InUse",  # nobody has recorded this one
}

ACTIONS = {
    "put": "{type}/write",
    "get": "{type}/read",
    "list_of_type": "{type}/read",
    "delete": "{type}/delete",
    "account_keys": "Microsoft.Storage/storageAccounts/listKeys/action",
    "get_web_site": "Microsoft.Storage/storageAccounts/blobServices/read",
    "put_web_site": "Microsoft.Storage/storageAccounts/blobServices/write",
    "sizes": "Microsoft.Compute/skus/read",
    "cores_used": "Microsoft.Compute/locations/usages/read",
    "addresses_used": "Microsoft.Network/locations/usages/read",
    "get_group": "Microsoft.Resources/subscriptions/resourceGroups/read",
    "put_group": "Microsoft.Resources/subscriptions/resourceGroups/write",
    "delete_group": "Microsoft.Resources/subscriptions/resourceGroups/delete",
    "everything": "Microsoft.Resources/subscriptions/resourceGroups/resources/read",
    "get_provider": "Microsoft.Resources/subscriptions/providers/read",
    "register": "{namespace}/register/action",
}
"""What a role must allow, https://learn.microsoft.com/azure/role-based-access-control/resource-provider-operations."""


@dataclass
class FakeAzure:
    """One subscription. Everything public is for tests to set and to look at."""

    url: str = ""
    operation_seconds: float = 0.0
    poll_seconds: float = 0.05  # what Retry-After of an operation in progress says; 0: nothing
    web_site_seconds: float = 0.0  # from the web site's switch until its container is there
    allowed: tuple[str, ...] = ("*",)
    allowed_on_data: tuple[str, ...] = ("*",)  # no Actions of a role include it, "*" neither
    actions_used: set[str] = field(default_factory=set)
    data_actions_used: set[str] = field(default_factory=set)
    keys_forbidden: bool = False  # by a policy that changes what accounts say about it
    tags_demanded: tuple[str, ...] = ()  # by a policy that denies what lacks them
    own_address: bytes = b"192.0.2.77"  # what a service that tells one's address answers
    claims: str = ""  # what a token must hold for a change: JSON, like that of MFA
    limits: dict[str, int] = field(
        default_factory=lambda: {
            **{"cores": 20, "standardBasv2Family": 20, "standardDSv5Family": 20},
            **{"PublicIPAddresses": 20, "StaticPublicIPAddresses": 20},
            "StandardSkuPublicIpAddresses": 20,
        }
    )
    tenant: str = TENANT  # whose tokens the subscription takes
    faults: list[Fault] = field(default_factory=list)
    kill: Callable[[], None] = lambda: None
    gate: Callable[[Request], object] = lambda _: None  # each request passes it, several at once
    log: Log = field(default_factory=Log)
    providers: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys(NAMESPACES, "Registered")
    )
    groups: dict[str, Body] = field(default_factory=dict)
    resources: dict[str, Body] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)

    # ------------------------------------------------------------ for tests

    def snapshot(self) -> Body:
        """Everything there is, without what differs from one creation to the next.

        A client that was killed may have asked for something that is still under way.
        """
        deadline = time.monotonic() + 10
        while any(not operation.ended for operation in [*self.operations.values()]):
            assert time.monotonic() < deadline, "an operation takes longer than a test may"
            with self.lock:
                self.advance()
        with self.lock:
            everything = {"groups": self.groups, "resources": self.resources}
            files = {account.name: account.containers for account in self.accounts.values()}
            return {**strip(copy.deepcopy(everything)), "files": copy.deepcopy(files)}

    def body_of(self, kind: str, name: str) -> Body:
        """A resource by the end of its id."""
        end = f"/{kind}/{name}".lower()
        return next(body for key, body in self.resources.items() if key.endswith(end))

    # ------------------------------------------------------------ dispatch

    def answer(self, request: Request) -> Answer:
        """Answer a request to the resource manager, with all that Azure checks first."""
        with self.lock:
            self.advance()
            if is_poll(request.path):
                return self.poll(request)
            route, request = self.route_of(request)
            body = writable(*route.model, request.body) if route.model else {}
            self.check_allowed(route, request, body)
            self.check_registered(request)
            if route.model:
                check_body(route.model, request.body)
            handler: Callable[..., Answer] = getattr(self, route.handler)
            return handler(request, body) if route.model else handler(request)

    def route_of(self, request: Request) -> tuple[Route, Request]:
        """The operation that a request means."""
        known = [(r, r.path.match(request.path)) for r in routes() if r.method == request.method]
        for route, match in known:
            if match is None:
                continue
            version = request.query.get("api-version")
            of_provider = route.handler in ("get_provider", "register")
            refuse(
                version != route.api_version and not (of_provider and version == SDKS_OWN_VERSION),
                "InvalidApiVersionParameter",
                f"The api-version '{version}' is invalid; supported is '{route.api_version}'.",
            )
            names = match.groupdict()
            refuse(
                names["subscription_id"] != SUBSCRIPTION,
                "SubscriptionNotFound",
                f"The subscription '{names['subscription_id']}' could not be found.",
                404,
            )
            return route, Request(**{**vars(request), "names": names})
        raise Refused(404, "InvalidResourceType", f"{request.method} {request.path}")

    def check_allowed(self, route: Route, request: Request, body: Body) -> None:
        """What a role must allow for a request, and for what its body joins."""
        namespace = request.names.get("resource_provider_namespace", "")
        kind = "/".join(request.path.split("/providers/")[-1].split("/")[:2])
        own = ACTIONS[route.handler].format(type=kind, namespace=namespace)
        self.need(own, request.path)
        if route.handler != "put":
            return
        for key, named in references(body.get("properties", {})):
            if key != "managedDisk" and not named.lower().startswith(request.path.lower()):
                parts = named.split("/providers/")[-1].split("/")
                self.need_to_join("/".join([parts[0], *parts[1::2], "join/action"]), named, own)
        if kind.lower().endswith("/virtualmachines"):
            self.need("Microsoft.Compute/disks/write", request.path)

    def check_registered(self, request: Request) -> None:
        """A provider answers nobody whose subscription is not registered, not to look either."""
        namespace = request.path.partition("/providers/")[2].split("/")[0]
        if "resource_provider_namespace" in request.names or not namespace:
            return
        refuse(
            self.providers.get(namespace) != "Registered",
            "MissingSubscriptionRegistration",
            f"The subscription is not registered to use namespace '{namespace}'. See"
            " https://aka.ms/rps-not-found for how to register subscriptions.",
            409,
        )

    def may(self, action: str) -> bool:
        """Whether the operator's role allows an action."""
        self.actions_used.add(action)
        return any(fnmatchcase(action.lower(), pattern.lower()) for pattern in self.allowed)

    def need_to_join(self, action: str, scope: str, own: str) -> None:
        """Refuse to join what the role does not allow; as in cloud-provider-azure issue 1999."""
        refuse(
            not self.may(action),
            "LinkedAuthorizationFailed",
            f"The client has permission to perform action '{own}'; however, it does not have"
            f" permission to perform action '{action}' on the linked scope(s) '{scope}' or the"
            " linked scope(s) are invalid.",
            403,
        )

    def need(self, action: str, scope: str) -> None:
        """Refuse what the role does not allow."""
        refuse(
            not self.may(action),
            "AuthorizationFailed",
            f"The client does not have authorization to perform action '{action}' over scope"
            f" '{scope}' or the scope is invalid.",
            403,
        )

    def check_tags(self, name: str, body: Body) -> None:
        """Refuse what lacks a tag that a policy demands (microsoft/AzureTRE issue 2890)."""
        for tag in self.tags_demanded:
            told = {
                "policyAssignmentDisplayName": f"Require {tag}",
                "evaluationDetails": {"evaluatedExpressions": [{"path": f"tags[{tag}]"}]},
            }
            if tag not in (body.get("tags") or {}):
                message = f"Resource '{name}' was disallowed by policy."
                more = {"additionalInfo": [{"type": "PolicyViolation", "info": told}]}
                raise Refused(403, "RequestDisallowedByPolicy", message, **more)

    def may_on_data(self, action: str) -> bool:
        """Whether the operator's role allows an action on the files of storage."""
        self.data_actions_used.add(action)
        return any(fnmatchcase(action.lower(), one.lower()) for one in self.allowed_on_data)

    # ------------------------------------------------------------ operations that take long

    def advance(self) -> None:
        """End the operations whose time has come."""
        for operation in self.operations.values():
            if not operation.ended and operation.done_at <= time.monotonic():
                operation.ended = True
                operation.end()

    def begin(self, request: Request, namespace: str, end: Callable[[], None]) -> Operation:
        """Start an operation; a fault may have decided that it fails."""
        operation = Operation(
            name=secrets.token_hex(8),
            done_at=time.monotonic() + self.operation_seconds,
            end=end,
            target=request.path,
            namespace=namespace,
            api_version=request.query["api-version"],
        )
        self.operations[operation.name] = operation
        fault = self.take_fault(request, ("fails", "preempted"))
        if fault:
            operation.failure = {"code": fault.code, "message": fault.message, **fault.more}
            operation.preempted = fault.what == "preempted"
        return operation

    def take_fault(self, request: Request, kinds: tuple[str, ...]) -> Fault | None:
        """The first fault of some kinds that is meant for a request; it is used up."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.what in kinds and fault.where(request):
                    fault.times -= 1
                    return fault
        return None

    def links(self, operation: Operation, *styles: str) -> dict[str, str]:
        """Where to ask how an operation goes."""
        query = f"api-version={operation.api_version}"
        who = operation.namespace
        places = {s: PLACES[who, s].format(who, operation.name) + query for s in styles}
        return {s: f"{self.url}/subscriptions/{SUBSCRIPTION}/{at}" for s, at in places.items()}

    def wait(self) -> dict[str, str]:
        """When to ask again."""
        return {"Retry-After": str(self.poll_seconds)} if self.poll_seconds else {}

    def poll(self, request: Request) -> Answer:
        """How an operation goes."""
        operation = self.operations[request.path.rsplit("/", 1)[-1]]
        if operation.namespace in ("Microsoft.Network", "Microsoft.Compute"):
            self.need(f"{operation.namespace}/locations/operations/read", request.path)
        if operation.namespace == "Microsoft.Resources":
            self.need("Microsoft.Resources/subscriptions/operationresults/read", request.path)
        if "/operations/" in request.path and "monitor" not in request.query:
            return self.status_of(operation)
        return self.result_of(operation)

    def status_of(self, operation: Operation) -> Answer:
        """A status within 200; Azure's machines tell times, too."""
        failure = operation.failure or {}
        ends = "Succeeded" if not failure else "Failed"
        ends = "Canceled" if failure.get("code") == "Canceled" else ends
        body: Body = {"status": ends if operation.ended else "InProgress"}
        if operation.namespace == "Microsoft.Compute":
            body |= {"name": operation.name, "startTime": WHEN}
            body |= {"endTime": WHEN} if operation.ended else {}
        if operation.ended and ends == "Failed":
            body["error"] = failure
        return Answer(200, body, {} if operation.ended else self.wait())

    def result_of(self, operation: Operation) -> Answer:
        """202 without a body until it has ended; then what became of it."""
        if not operation.ended:
            return Answer(202, None, self.links(operation, RESULT) | self.wait())
        if operation.failure:
            return Answer(409, {"error": operation.failure})
        body = self.resources.get(operation.target.lower())
        return Answer(200, self.shown(body) if body else None)

    def shown(self, body: Body) -> Body:
        """A resource as Azure answers it."""
        return shown(body, self.resources)

    # ------------------------------------------------------------ resource groups

    def get_group(self, request: Request) -> Answer:
        """A group, or 404."""
        return Answer(200, self.group_of(request))

    def group_of(self, request: Request) -> Body:
        """The group that a request names."""
        name = request.names["resource_group_name"]
        group = self.groups.get(name.lower())
        if group is None:
            message = f"Resource group '{name}' could not be found."
            raise Refused(404, "ResourceGroupNotFound", message, headers=GATEWAY)
        return group

    def put_group(self, request: Request, body: Body) -> Answer:
        """Create a group, or set its tags."""
        name = request.names["resource_group_name"]
        check_region(body)
        self.check_tags(name, body)
        before = self.groups.get(name.lower())
        moved = before is not None and before["location"] != body["location"]
        refuse(moved, "InvalidResourceGroupLocation", name, 409)
        self.groups[name.lower()] = {
            "id": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{name}",
            "name": name,
            "type": "Microsoft.Resources/resourceGroups",
            "location": body["location"],
            "tags": body.get("tags", {}),
            "properties": {"provisioningState": "Succeeded"},
        }
        return Answer(200 if before else 201, self.groups[name.lower()])

    def delete_group(self, request: Request) -> Answer:
        """Delete a group with everything in it; asked again meanwhile, say the same."""
        group = self.group_of(request)
        for running in self.operations.values():
            if not running.ended and running.target == request.path:
                return Answer(202, None, self.links(running, RESULT) | BEGUN)
        group["properties"]["provisioningState"] = "Deleting"
        prefix = group["id"].lower() + "/"

        def end() -> None:
            if operation.failure:
                group["properties"]["provisioningState"] = "Succeeded"
                return
            self.groups.pop(group["name"].lower())
            for key in [key for key in self.resources if key.startswith(prefix)]:
                self.accounts.pop(self.resources.pop(key)["name"], None)

        operation = self.begin(request, "Microsoft.Resources", end)
        return Answer(202, None, self.links(operation, RESULT) | BEGUN)

    def everything(self, request: Request) -> Answer:
        """What a group holds, without properties."""
        prefix = self.group_of(request)["id"].lower() + "/"
        keys = ("id", "name", "type", "location", "tags", "managedBy")
        return Answer(
            200,
            {
                "value": [
                    {key: body[key] for key in keys if key in body}
                    for place, body in self.resources.items()
                    if place.startswith(prefix)
                ]
            },
        )

    # ------------------------------------------------------------ providers and sizes

    def get_provider(self, request: Request) -> Answer:
        """Whether a provider is registered; one that is registering is so the next time."""
        name = request.names["resource_provider_namespace"]
        body = {"namespace": name, "registrationState": self.providers[name]}
        if body["registrationState"] == "Registering":
            self.providers[name] = "Registered"
        return Answer(200, body)

    def register(self, request: Request) -> Answer:
        """Begin to register a provider."""
        name = request.names["resource_provider_namespace"]
        self.providers[name] = "Registering"
        return Answer(200, {"namespace": name, "registrationState": "Registering"})

    def sizes(self, request: Request) -> Answer:
        """VM sizes of a region, on two pages."""
        region = request.query["$filter"].split("'")[1]
        skus = [
            {
                "resourceType": "virtualMachines",
                "name": name,
                "family": family,
                "locations": [region],
                "locationInfo": [{"location": region, "zones": zones}],
                "capabilities": [{"name": "vCPUs", "value": str(cores)}],
                "restrictions": [],
            }
            for name, (family, cores, zones) in SIZES.items()
        ]
        skus.append({"resourceType": "disks", "name": "Standard_LRS", "locations": [region]})
        if "page" in request.query:
            return Answer(200, {"value": skus[2:]})
        query = f"api-version={request.query['api-version']}&$filter=location eq '{region}'&page=2"
        return Answer(200, {"value": skus[:2], "nextLink": f"{self.url}{request.path}?{query}"})

    def used(self, name: str) -> int:
        """How much of something that is limited there is."""
        types = [body["type"].split("/")[1] for body in self.resources.values()]
        if name.endswith("Addresses"):
            return types.count("publicIPAddresses")
        machines = [b for b in self.resources.values() if b["type"].endswith("virtualMachines")]
        sizes = [SIZES[b["properties"]["hardwareProfile"]["vmSize"]] for b in machines]
        return sum(cores for family, cores, _ in sizes if name in (family, "cores"))

    def usages(self, names: list[str]) -> Answer:
        """What is used of what there may be."""
        return Answer(
            200,
            {
                "value": [
                    {
                        "unit": "Count",
                        "currentValue": self.used(name),
                        "limit": self.limits[name],
                        "name": {"value": name, "localizedValue": name},
                    }
                    for name in names
                ]
            },
        )

    def cores_used(self, request: Request) -> Answer:
        """Cores, of all machines in a region and by family."""
        del request
        return self.usages([name for name in self.limits if not name.endswith("Addresses")])

    def addresses_used(self, request: Request) -> Answer:
        """Public addresses in a region."""
        del request
        return self.usages([name for name in self.limits if name.endswith("Addresses")])

    def check_limits(self, own: str, body: Body) -> None:
        """Refuse what is more than the subscription may have (Azure/AKS and others, in public)."""
        if "/publicipaddresses/" in own.lower():
            told = [v for k, v in self.limits.items() if k.endswith("Addresses")]
            limit = min(value for value in told if value >= 0)
            refuse(
                self.used("PublicIPAddresses") >= limit,
                "PublicIPCountLimitReached",
                f"Cannot create more than {limit} public IP addresses for this subscription in"
                " this region.",
            )
        if "/virtualmachines/" in own.lower():
            family, cores, _ = SIZES[body["properties"]["hardwareProfile"]["vmSize"]]
            for name in ("cores", family):
                limit, now = self.limits[name], self.used(name)
                refuse(
                    now + cores > limit,
                    "OperationNotAllowed",
                    f"Operation could not be completed as it results in exceeding approved {name}"
                    f" quota. Additional details - Deployment Model: Resource Manager, Location:"
                    f" {body['location']}, Current Limit: {limit}, Current Usage: {now}, Additional"
                    f" Required: {cores}, (Minimum) New Limit Required: {now + cores}.",
                    409,
                )

    # ------------------------------------------------------------ resources

    def get(self, request: Request) -> Answer:
        """A resource, or 404."""
        self.group_of(request)
        body = self.shown(self.existing(request.path))
        return Answer(200, body, {"ETag": body["etag"]} if "etag" in body else {})

    def existing(self, path: str) -> Body:
        """A resource that is there."""
        body = self.resources.get(path.lower())
        if body is None:
            message = f"The Resource '{path}' was not found."
            raise Refused(404, "ResourceNotFound", message, headers=GATEWAY)
        return body

    def list_of_type(self, request: Request) -> Answer:
        """A group's resources of a type."""
        self.group_of(request)
        prefix = request.path.lower() + "/"
        every = [self.shown(body) for key, body in self.resources.items() if key.startswith(prefix)]
        return Answer(200, {"value": every})

    def put(self, request: Request, body: Body) -> Answer:
        """Create or change a resource, if Azure would."""
        group = self.group_of(request)
        refuse(
            group["properties"]["provisioningState"] == "Deleting",
            "ResourceGroupBeingDeleted",
            f"The resource group '{group['name']}' is in deprovisioning state.",
            409,
        )
        own, (namespace, kind, name) = request.path, request.path.split("/")[-3:]
        full_type = f"{namespace}/{kind}"
        check_name(full_type, name)
        check_region(body)
        self.check_tags(name, body)
        body = completed(own, full_type, {**body, "name": name})
        self.check_references(own, body)
        RULES[full_type.lower()](own, body, self.resources)
        before = self.resources.get(own.lower())
        self.check_before(own, body, before)
        if before is None:
            self.check_limits(own, body)
        self.resources[own.lower()] = self.kept(own, body, before)
        return self.begun(request, namespace, before)

    def check_references(self, own: str, body: Body) -> None:
        """Everything that a body names exists and is ready."""
        inside = {**self.resources, own.lower(): body}
        for key, named in references(body["properties"]):
            if key == "managedDisk":
                continue
            whole, part = split_id(named)
            there = inside.get(whole)
            found = there is not None and (not part or has_part(there, *part))
            refuse(
                not found,
                "InvalidResourceReference",
                f"Resource {named} referenced by resource {own} was not found.",
            )
            far = there and there["location"] != body["location"] and "/subnets/" in named.lower()
            refuse(
                far,
                "InvalidResourceReference",
                f"Resource {named} referenced by resource {own} was not found. Please make sure"
                " that the referenced resource exists, and that both resources are in the same"
                " region.",
            )
            state = (there or {})["properties"].get("provisioningState", "Succeeded")
            if state in IN_FLUX and whole != own.lower():
                message = f"Cannot proceed: {named} is not in Succeeded state but {state}."
                raise retryable("ReferencedResourceNotProvisioned", message)

    def check_before(self, own: str, body: Body, before: Body | None) -> None:
        """A resource in the middle of something cannot be changed, nor moved."""
        if before is None:
            return
        if before["properties"]["provisioningState"] in IN_FLUX:
            self.refuse_busy(before)
        moved = before["location"] != body["location"]
        refuse(moved, "InvalidResourceLocation", f"{own} is in {before['location']}.", 409)

    def refuse_busy(self, body: Body) -> None:
        """Each provider has its own words for: I am still at it."""
        own, state = body["id"], body["properties"]["provisioningState"]
        if "Microsoft.Network" in own:
            message = f"An operation is updating resource {own}."
            raise retryable("RetryableErrorDueToAnotherOperation", message, retry_after=1)
        if "Microsoft.Storage" in own:
            message = "An operation is currently performing on this storage account."
            raise Refused(409, "StorageAccountOperationInProgress", message)
        raise Refused(409, "OperationNotAllowed", f"{own} is {state}.")

    def kept(self, own: str, body: Body, before: Body | None) -> Body:
        """A body as it is kept from now on."""
        body["etag"] = f'W/"{guid(secrets.token_hex(8))}"'
        properties = body["properties"]
        if before and "ipAddress" in before["properties"]:
            properties["ipAddress"] = before["properties"]["ipAddress"]
        if "virtualMachines" in own:
            old = before["properties"]["osProfile"] if before else {}
            properties["osProfile"] = {**old, **properties.get("osProfile", {})}
            self.give_os_disk(body)
        if "storageAccounts" in own:
            properties["primaryEndpoints"] = self.endpoints(body["name"])
            if self.keys_forbidden:
                properties["allowSharedKeyAccess"] = False
        return body

    def endpoints(self, account: str) -> Body:
        """Where a storage account answers; only two of these do here."""
        there = {"blob": f"{self.url}/blob/{account}/", "web": f"{self.url}/web/{account}/"}
        others = ("dfs", "file", "queue", "table")
        return there | {name: f"https://{account}.{name}.example/" for name in others}

    def give_os_disk(self, machine: Body) -> None:
        """A machine's disk is a resource of its own, with the machine's tags and place.

        Its id says the group in capitals, as Azure's do (Azure/bicep issue 2729).
        """
        digest = hashlib.sha256(machine["id"].lower().encode()).hexdigest()[:32]
        name = f"{machine['name']}_OsDisk_1_{digest}"
        parts = machine["id"].split("/")
        own = "/".join([*parts[:4], parts[4].upper(), *parts[5:7], "disks", name])
        self.resources[own.lower()] = {
            **{key: copy.deepcopy(machine.get(key)) for key in ("location", "zones", "tags")},
            **{"id": own, "name": name, "type": "Microsoft.Compute/disks"},
            "managedBy": machine["id"],
            "properties": {"provisioningState": "Succeeded", "diskState": "Attached"},
        }
        os_disk = machine["properties"]["storageProfile"].setdefault("osDisk", {})
        os_disk["name"] = name
        os_disk["managedDisk"] = {**os_disk.get("managedDisk", {}), "id": own}

    def begun(self, request: Request, namespace: str, before: Body | None) -> Answer:
        """The answer to a PUT; what it began ends when its time has come, or has already."""
        body = self.resources[request.path.lower()]
        state = {"Microsoft.Network": "Updating"}.get(
            namespace, "Updating" if before else "Creating"
        )
        body["properties"]["provisioningState"] = state
        operation = self.begin(request, namespace, lambda: self.end_put(body, operation))
        if "networkInterfaces" in request.path or (
            "storageAccounts" in request.path and is_there(before)
        ):
            del self.operations[operation.name]
            self.end_put(body, operation)
            return Answer(200 if before else 201, self.shown(body))
        if namespace == "Microsoft.Storage":
            return Answer(202, None, self.links(operation, RESULT) | BEGUN)
        headers = self.links(operation, STATUS) | {"Azure-AsyncNotification": "Enabled"}
        later = namespace == "Microsoft.Network" or not before
        headers |= BEGUN if later else {}
        return Answer(200 if before else 201, self.shown(body), headers)

    def end_put(self, body: Body, operation: Operation) -> None:
        """The end of a creation or a change."""
        failed = bool(operation.failure) and not operation.preempted
        body["properties"]["provisioningState"] = "Failed" if failed else "Succeeded"
        if failed:
            return
        if "publicIPAddresses" in body["type"]:
            body["properties"]["ipAddress"] = address_of(body["id"])
        if "storageAccounts" in body["type"]:
            key = hashlib.sha256(body["name"].encode()).digest()
            account = self.accounts.setdefault(body["name"], Account(body["name"], key))
            account.shared_keys = body["properties"].get("allowSharedKeyAccess", True)

    def delete(self, request: Request) -> Answer:
        """Delete a resource that nobody uses."""
        self.group_of(request)
        own = request.path.lower()
        if own not in self.resources:
            return Answer(204)
        namespace, kind = request.path.split("/")[-3:-1]
        for other, body in self.resources.items():
            if other != own and any(split_id(n)[0] == own for _, n in references(body)):
                raise Refused(400, IN_USE[kind.lower()], f"{request.path} is in use by {other}.")
        if namespace == "Microsoft.Storage":
            self.forget(own)
            return Answer(200)
        self.resources[own]["properties"]["provisioningState"] = "Deleting"
        operation = self.begin(request, namespace, functools.partial(self.forget, own))
        headers = self.links(operation, STATUS, RESULT) | {"Azure-AsyncNotification": "Enabled"}
        return Answer(202, None, headers | BEGUN)

    def forget(self, own: str) -> None:
        """The end of a deletion; a machine's disk goes along where the machine says so."""
        body = self.resources.pop(own)
        self.accounts.pop(body["name"], None)
        disk = body["properties"].get("storageProfile", {}).get("osDisk", {})
        if disk.get("deleteOption") == "Delete":
            del self.resources[disk["managedDisk"]["id"].lower()]

    # ------------------------------------------------------------ storage accounts

    def account_of(self, request: Request) -> Account:
        """A storage account that is ready."""
        self.group_of(request)
        whole, _, _ = request.path.partition("/listKeys")
        whole, _, part = whole.partition("/blobServices")
        if part and whole.lower() not in self.resources:
            message = f"The parent resource '{whole}' could not be found."
            raise Refused(404, "ParentResourceNotFound", message, headers=GATEWAY)
        self.existing(whole)
        account = self.accounts.get(request.names["account_name"])
        if account is None:
            raise Refused(409, "StorageAccountIsNotProvisioned", request.names["account_name"])
        return account

    def account_keys(self, request: Request) -> Answer:
        """The keys that sign uploads."""
        key = base64.b64encode(self.account_of(request).key).decode()
        return Answer(200, {"keys": [{"keyName": "key1", "value": key, "permissions": "FULL"}]})

    def get_web_site(self, request: Request) -> Answer:
        """The blob service."""
        site = self.account_of(request).web_site
        properties = {
            "staticWebsite": site,
            "cors": {"corsRules": []},
            "deleteRetentionPolicy": {"allowPermanentDelete": False, "enabled": False},
        }
        return Answer(200, blob_service(request) | {"properties": properties})

    def put_web_site(self, request: Request, body: Body) -> Answer:
        """Switch the web site on or off."""
        account = self.account_of(request)
        account.web_site = body["properties"]["staticWebsite"]
        if "$web" not in account.containers:
            account.containers["$web"] = {}
            account.web_site_at = time.monotonic() + self.web_site_seconds
        return Answer(200, blob_service(request) | {"properties": body["properties"]})


def blob_service(request: Request) -> Body:
    """What names the blob service of an account."""
    return {
        "id": request.path,
        "name": "default",
        "type": "Microsoft.Storage/storageAccounts/blobServices",
        "sku": {"name": "Standard_LRS", "tier": "Standard"},
    }


def is_there(body: Body | None) -> bool:
    """Whether a resource was made, and well."""
    return body is not None and body["properties"]["provisioningState"] == "Succeeded"


def check_body(model: tuple[str, str], body: Body) -> None:
    """Refuse a body that does not fit the SDK's model."""
    error = next(iter(validator(*model).iter_errors(body)), None)
    if error is not None:
        message = f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        raise Refused(400, "InvalidRequestContent", message)


def check_region(body: Body) -> None:
    """Refuse a region that is not there."""
    region = body["location"]
    if region not in REGIONS:
        message = f"The provided location '{region}' is not available."
        raise Refused(400, "LocationNotAvailableForResourceGroup", message, headers=GATEWAY)


def check_name(full_type: str, name: str) -> None:
    """Refuse a name that this type of resource can't have."""
    code = "AccountNameInvalid" if "storageAccounts" in full_type else "InvalidResourceName"
    bad = re.fullmatch(NAMES[full_type.lower()], name) is None
    refuse(bad, code, f"Resource name {name} is invalid.")


def split_id(named: str) -> tuple[str, tuple[str, str] | None]:
    """The id of a resource, and the list and name of the part of it that is meant."""
    parts = named.lower().split("/")
    return "/".join(parts[:9]), (parts[9], parts[10]) if len(parts) > 10 else None


def has_part(body: Body, key: str, name: str) -> bool:
    """Whether a resource's list has a member."""
    lists = {k.lower(): v for k, v in body["properties"].items()}
    return any(member["name"].lower() == name for member in lists.get(key, []))


def address_of(own: str) -> str:
    """A public address that depends on nothing but the id (TEST-NET-2 and its neighbours)."""
    digest = hashlib.sha256(own.lower().encode()).digest()
    return f"198.{18 + digest[0] % 2}.{digest[1]}.{digest[2]}"


def strip(value: Any) -> Any:
    """Without what differs from one creation to the next."""
    if isinstance(value, dict):
        return {key: strip(inner) for key, inner in value.items() if key not in VOLATILE}
    return [strip(inner) for inner in value] if isinstance(value, list) else value
