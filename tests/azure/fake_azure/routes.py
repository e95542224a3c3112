"""Which requests the fake knows: method, address and api-version as the installed SDK has them."""

import functools
import importlib
import inspect
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

NETWORK, COMPUTE = "azure.mgmt.network", "azure.mgmt.compute"
STORAGE, RESOURCES = "azure.mgmt.storage", "azure.mgmt.resource.resources"


@dataclass(frozen=True)
class Route:
    """One operation of Azure."""

    method: str
    path: re.Pattern[str]
    api_version: str
    handler: str
    model: tuple[str, str] | None  # package and name of the body's model


OPERATIONS = [
    # package, what its request is built by, our handler, the body's model
    *(
        (NETWORK, f"{group}_{verb}", handler, model if handler == "put" else None)
        for group, model in (
            ("virtual_networks", "VirtualNetwork"),
            ("network_security_groups", "NetworkSecurityGroup"),
            ("public_ip_addresses", "PublicIPAddress"),
            ("load_balancers", "LoadBalancer"),
            ("network_interfaces", "NetworkInterface"),
        )
        for verb, handler in (
            ("create_or_update", "put"),
            ("get", "get"),
            ("list", "list_of_type"),
            ("delete", "delete"),
        )
    ),
    (COMPUTE, "virtual_machines_create_or_update", "put", "VirtualMachine"),
    (COMPUTE, "virtual_machines_get", "get", None),
    (COMPUTE, "virtual_machines_list", "list_of_type", None),
    (COMPUTE, "virtual_machines_delete", "delete", None),
    (COMPUTE, "resource_skus_list", "sizes", None),
    (COMPUTE, "usage_list", "cores_used", None),
    (NETWORK, "usages_list", "addresses_used", None),
    (STORAGE, "storage_accounts_create", "put", "StorageAccountCreateParameters"),
    (STORAGE, "storage_accounts_get_properties", "get", None),
    (STORAGE, "storage_accounts_list_by_resource_group", "list_of_type", None),
    (STORAGE, "storage_accounts_delete", "delete", None),
    (STORAGE, "storage_accounts_list_keys", "account_keys", None),
    (STORAGE, "blob_services_get_service_properties", "get_web_site", None),
    (STORAGE, "blob_services_set_service_properties", "put_web_site", "BlobServiceProperties"),
    (RESOURCES, "resource_groups_get", "get_group", None),
    (RESOURCES, "resource_groups_create_or_update", "put_group", "ResourceGroup"),
    (RESOURCES, "resource_groups_delete", "delete_group", None),
    (RESOURCES, "resources_list_by_resource_group", "everything", None),
    (RESOURCES, "providers_get", "get_provider", None),
    (RESOURCES, "providers_register", "register", None),
]


@functools.cache
def routes() -> list[Route]:
    """Every operation above, with the address that the SDK builds for it."""
    return [route(*operation) for operation in OPERATIONS]


def route(package: str, operation: str, handler: str, model: str | None) -> Route:
    """Build the SDK's own request with marked arguments, and make a pattern of its address."""
    operations = importlib.import_module(f"{package}.operations._operations")
    build = getattr(operations, f"build_{operation}_request")
    names = [
        name
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.default is parameter.empty
    ]
    request = build(**{name: f"zz{name}zz" for name in names})
    url = urlsplit(request.url)
    pattern = re.sub(r"zz(\w+?)zz", r"(?P<\1>[^/]+)", re.escape(url.path).replace(r"\_", "_"))
    version = parse_qs(url.query)["api-version"][0]
    body = (package, model) if model else None
    return Route(request.method, re.compile(f"(?i)^{pattern}$"), version, handler, body)
