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

from tests.fake_azure.blobs import Account
from tests.fake_azure.model import Answer, Body, Fault, Log, Operation, Refused, Request
from tests.fake_azure.routes import Route, routes
from tests.fake_azure.rules import NAMES, RULES, references, refuse
from tests.fake_azure.schemas import validator

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
TENANT = "66666666-7777-8888-9999-000000000000"
REGIONS = ("westeurope", "northeurope")
NAMESPACES = ("Microsoft.Network", "Microsoft.Compute", "Microsoft.Storage")
ALL_ZONES = ["1", "2", "3"]
SIZES = {
    "Standard_B2als_v2": ALL_ZONES,
    "Standard_B2ats_v2": ALL_ZONES,
    "Standard_D2s_v5": ALL_ZONES,
    "Standard_M8ms": ["1", "3"],
}
OPERATIONS_PATH = f"/subscriptions/{SUBSCRIPTION}/providers/{{}}/locations/westeurope/operations/"
VOLATILE = frozenset({"etag", "vmId"})

ACTIONS = {
    "put": "{type}/write",
    "get": "{type}/read",
    "list_of_type": "{type}/read",
    "delete": "{type}/delete",
    "account_keys": "Microsoft.Storage/storageAccounts/listKeys/action",
    "get_web_site": "Microsoft.Storage/storageAccounts/blobServices/read",
    "put_web_site": "Microsoft.Storage/storageAccounts/blobServices/write",
    "sizes": "Microsoft.Compute/skus/read",
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
    allowed: tuple[str, ...] = ("*",)
    actions_used: set[str] = field(default_factory=set)
    own_address: bytes = b"192.0.2.77"  # what a service that tells one's address answers
    claims: str = ""  # what a token must hold for a change: JSON, like that of MFA
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
        """Everything there is, without what differs from one creation to the next."""
        with self.lock:
            self.advance()
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
            if "/operations/" in request.path:
                return self.poll(request)
            route, request = self.route_of(request)
            self.check_allowed(route, request)
            body = request.body if route.model else {}
            if route.model:
                check_body(route.model, body)
            handler: Callable[..., Answer] = getattr(self, route.handler)
            return handler(request, body) if route.model else handler(request)

    def route_of(self, request: Request) -> tuple[Route, Request]:
        """The operation that a request means."""
        known = [(r, r.path.match(request.path)) for r in routes() if r.method == request.method]
        for route, match in known:
            if match is None:
                continue
            version = request.query.get("api-version")
            refuse(
                version != route.api_version,
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

    def check_allowed(self, route: Route, request: Request) -> None:
        """What a role must allow for a request, and for what its body joins."""
        namespace = request.names.get("resource_provider_namespace", "")
        kind = "/".join(request.path.split("/providers/")[-1].split("/")[:2])
        self.need(ACTIONS[route.handler].format(type=kind, namespace=namespace), request.path)
        if route.handler != "put":
            return
        for key, named in references(request.body.get("properties", {})):
            if key != "managedDisk" and not named.lower().startswith(request.path.lower()):
                parts = named.split("/providers/")[-1].split("/")
                self.need("/".join([parts[0], *parts[1::2], "join/action"]), named)
        if kind.lower().endswith("/virtualmachines"):
            self.need("Microsoft.Compute/disks/write", request.path)

    def need(self, action: str, scope: str) -> None:
        """Refuse what the role does not allow."""
        self.actions_used.add(action)
        allowed = any(fnmatchcase(action.lower(), pattern.lower()) for pattern in self.allowed)
        refuse(
            not allowed,
            "AuthorizationFailed",
            f"The client does not have authorization to perform action '{action}' over scope"
            f" '{scope}' or the scope is invalid.",
            403,
        )

    # ------------------------------------------------------------ operations that take long

    def advance(self) -> None:
        """End the operations whose time has come."""
        for operation in self.operations.values():
            if not operation.ended and operation.done_at <= time.monotonic():
                operation.ended = True
                operation.end()

    def begin(self, request: Request, end: Callable[[], None]) -> Operation:
        """Start an operation; a fault may have decided that it fails."""
        name = secrets.token_hex(8)
        done_at = time.monotonic() + self.operation_seconds
        operation = Operation(name, done_at, end, request.path)
        self.operations[name] = operation
        fault = self.take_fault(request, ("fails",))
        if fault:
            operation.failure = (fault.code, fault.message)
        return operation

    def take_fault(self, request: Request, kinds: tuple[str, ...]) -> Fault | None:
        """The first fault of some kinds that is meant for a request; it is used up."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.what in kinds and fault.where(request):
                    fault.times -= 1
                    return fault
        return None

    def headers_of(self, operation: Operation, style: str, namespace: str) -> dict[str, str]:
        """Where to ask how it goes; Azure has two styles."""
        path = OPERATIONS_PATH.format(namespace) + f"{operation.name}?style={style}"
        return {style: self.url + path}

    def poll(self, request: Request) -> Answer:
        """How an operation goes."""
        operation = self.operations[request.path.rsplit("/", 1)[-1]]
        namespace = request.path.split("/")[4]
        if namespace in ("Microsoft.Network", "Microsoft.Compute"):
            self.need(f"{namespace}/locations/operations/read", request.path)
        failure = None
        if operation.ended and operation.failure:
            failure = dict(zip(("code", "message"), operation.failure, strict=True))
        wait = {"Retry-After": str(self.poll_seconds)} if self.poll_seconds else {}
        if request.query["style"] == "Azure-AsyncOperation":
            status = "InProgress" if not operation.ended else "Failed" if failure else "Succeeded"
            error = {"error": failure} if failure else {}
            return Answer(200, {"status": status, **error}, {} if operation.ended else wait)
        if not operation.ended:
            return Answer(202, None, self.headers_of(operation, "Location", namespace) | wait)
        if failure:
            return Answer(409, {"error": failure})
        body = self.resources.get(operation.target.lower())
        return Answer(200, shown(body)) if body else Answer(204)

    # ------------------------------------------------------------ resource groups

    def get_group(self, request: Request) -> Answer:
        """A group, or 404."""
        return Answer(200, self.group_of(request))

    def group_of(self, request: Request) -> Body:
        """The group that a request names."""
        name = request.names["resource_group_name"]
        group = self.groups.get(name.lower())
        if group is None:
            raise Refused(
                404, "ResourceGroupNotFound", f"Resource group '{name}' could not be found."
            )
        return group

    def put_group(self, request: Request, body: Body) -> Answer:
        """Create a group, or set its tags."""
        name = request.names["resource_group_name"]
        check_region(body)
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
        """Delete a group with everything in it."""
        group = self.group_of(request)
        group["properties"]["provisioningState"] = "Deleting"
        prefix = group["id"].lower() + "/"

        def end() -> None:
            if operation.failure:
                group["properties"]["provisioningState"] = "Succeeded"
                return
            self.groups.pop(group["name"].lower())
            for key in [key for key in self.resources if key.startswith(prefix)]:
                self.accounts.pop(self.resources.pop(key)["name"], None)

        operation = self.begin(request, end)
        return Answer(202, None, self.headers_of(operation, "Location", "Microsoft.Resources"))

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
                "locations": [region],
                "locationInfo": [{"location": region, "zones": zones}],
                "restrictions": [],
            }
            for name, zones in SIZES.items()
        ]
        skus.append({"resourceType": "disks", "name": "Standard_LRS", "locations": [region]})
        if "page" in request.query:
            return Answer(200, {"value": skus[2:]})
        query = f"api-version={request.query['api-version']}&$filter=location eq '{region}'&page=2"
        return Answer(200, {"value": skus[:2], "nextLink": f"{self.url}{request.path}?{query}"})

    # ------------------------------------------------------------ resources

    def get(self, request: Request) -> Answer:
        """A resource, or 404."""
        self.group_of(request)
        return Answer(200, shown(self.existing(request.path)))

    def existing(self, path: str) -> Body:
        """A resource that is there."""
        body = self.resources.get(path.lower())
        if body is None:
            raise Refused(404, "ResourceNotFound", f"The Resource '{path}' was not found.")
        return body

    def list_of_type(self, request: Request) -> Answer:
        """A group's resources of a type."""
        self.group_of(request)
        prefix = request.path.lower() + "/"
        every = [shown(body) for key, body in self.resources.items() if key.startswith(prefix)]
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
        refuse(
            self.providers.get(namespace) != "Registered",
            "MissingSubscriptionRegistration",
            f"The subscription is not registered to use namespace '{namespace}'.",
            409,
        )
        full_type = f"{namespace}/{kind}"
        pattern = NAMES[full_type.lower()]
        refuse(not_name(pattern, name), "InvalidResourceName", f"Resource name {name} is invalid.")
        check_region(body)
        body = {**body, "name": name}
        self.check_references(own, body)
        RULES[full_type.lower()](own, body, self.resources)
        before = self.resources.get(own.lower())
        self.check_before(own, body, before)
        self.resources[own.lower()] = self.completed(own, full_type, body, before)
        return self.begun(request, namespace, created=before is None)

    def check_references(self, own: str, body: Body) -> None:
        """Everything that a body names exists and is ready."""
        inside = {**self.resources, own.lower(): body}
        for _, named in references(body["properties"]):
            whole, part = split_id(named)
            there = inside.get(whole)
            found = there is not None and (not part or has_part(there, *part))
            refuse(
                not found,
                "InvalidResourceReference",
                f"Resource {named} referenced by resource {own} was not found.",
            )
            state = (there or {})["properties"].get("provisioningState", "Succeeded")
            refuse(
                state in ("Updating", "Creating", "Deleting") and whole != own.lower(),
                "ReferencedResourceNotProvisioned",
                f"{named} is {state}.",
                409,
            )

    def check_before(self, own: str, body: Body, before: Body | None) -> None:
        """A resource in the middle of something cannot be changed, nor moved."""
        if before is None:
            return
        state = before["properties"]["provisioningState"]
        busy = state in ("Updating", "Creating", "Deleting")
        refuse(busy, "OperationNotAllowed", f"{own} is {state}.", 409)
        moved = before["location"] != body["location"]
        refuse(moved, "InvalidResourceLocation", f"{own} is in {before['location']}.", 409)

    def completed(self, own: str, full_type: str, body: Body, before: Body | None) -> Body:
        """A body with what Azure adds to it."""
        body = copy.deepcopy(body) | {"id": own, "type": full_type}
        properties = body["properties"]
        properties["provisioningState"] = "Updating" if before else "Creating"
        for key, members in properties.items():
            if isinstance(members, list) and all(isinstance(m, dict) for m in members):
                for member in members:
                    if "name" in member:
                        member |= {
                            "id": f"{own}/{key}/{member['name']}",
                            "etag": secrets.token_hex(4),
                        }
        if "publicIPAddresses" in full_type:
            properties["ipAddress"] = address_of(own)
        if "virtualMachines" in full_type:
            old = before["properties"]["osProfile"] if before else {}
            properties["osProfile"] = {**old, **properties.get("osProfile", {})}
            properties["vmId"] = secrets.token_hex(8)
            self.give_os_disk(body)
        if "storageAccounts" in full_type:
            properties["primaryEndpoints"] = {
                "blob": f"{self.url}/blob/{body['name']}/",
                "web": f"{self.url}/web/{body['name']}/",
            }
        return body

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

    def begun(self, request: Request, namespace: str, *, created: bool) -> Answer:
        """The answer to a PUT; what it began ends when its time has come."""
        body = self.resources[request.path.lower()]

        def end() -> None:
            failed = bool(operation.failure)
            body["properties"]["provisioningState"] = "Failed" if failed else "Succeeded"
            if namespace == "Microsoft.Storage" and not failed:
                key = hashlib.sha256(body["name"].encode()).digest()
                self.accounts.setdefault(body["name"], Account(body["name"], key))

        operation = self.begin(request, end)
        if namespace == "Microsoft.Storage":
            return Answer(202, None, self.headers_of(operation, "Location", namespace))
        headers = self.headers_of(operation, "Azure-AsyncOperation", namespace)
        return Answer(201 if created else 200, shown(body), headers)

    def delete(self, request: Request) -> Answer:
        """Delete a resource that nobody uses."""
        own = request.path.lower()
        if own not in self.resources:
            return Answer(204)
        for other, body in self.resources.items():
            if other != own and any(split_id(n)[0] == own for _, n in references(body)):
                raise Refused(400, "InUse", f"{request.path} is in use by {other}.")
        self.resources[own]["properties"]["provisioningState"] = "Deleting"
        operation = self.begin(request, functools.partial(self.forget, own))
        namespace = request.path.split("/")[-3]
        return Answer(202, None, self.headers_of(operation, "Location", namespace))

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
        self.existing(request.path.partition("/listKeys")[0].partition("/blobServices")[0])
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
        return Answer(200, {"name": "default", "properties": {"staticWebsite": site}})

    def put_web_site(self, request: Request, body: Body) -> Answer:
        """Switch the web site on or off."""
        account = self.account_of(request)
        account.web_site = body["properties"]["staticWebsite"]
        account.containers.setdefault("$web", {})
        return self.get_web_site(request)


def check_body(model: tuple[str, str], body: Body) -> None:
    """Refuse a body that does not fit the SDK's model."""
    error = next(iter(validator(*model).iter_errors(body)), None)
    if error is not None:
        message = f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        raise Refused(400, "InvalidRequestContent", message)


def check_region(body: Body) -> None:
    """Refuse a region that is not there."""
    region = body["location"]
    refuse(
        region not in REGIONS,
        "LocationNotAvailableForResourceGroup",
        f"The provided location '{region}' is not available.",
    )


def not_name(pattern: str, name: str) -> bool:
    """Whether Azure refuses a name."""
    return re.fullmatch(pattern, name) is None


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


def shown(body: Body | None) -> Body:
    """A resource as a GET answers it: custom data never comes back."""
    body = copy.deepcopy(body or {})
    body.get("properties", {}).get("osProfile", {}).pop("customData", None)
    return body


def strip(value: Any) -> Any:
    """Without what differs from one creation to the next."""
    if isinstance(value, dict):
        return {key: strip(inner) for key, inner in value.items() if key not in VOLATILE}
    return [strip(inner) for inner in value] if isinstance(value, list) else value
