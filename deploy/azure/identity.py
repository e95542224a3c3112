"""As whom Azure is asked, and what to do where that identity is refused."""

import base64
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from azure.core.credentials import AccessToken, TokenCredential
from azure.core.exceptions import (
    ClientAuthenticationError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import (
    AzureCliCredential,
    AzureDeveloperCliCredential,
    AzurePowerShellCredential,
    CredentialUnavailableError,
    DefaultAzureCredential,
    EnvironmentCredential,
    WorkloadIdentityCredential,
)

from deploy.azure.resources import Scope

AZ_SECONDS = 60
"""Longest wait for a program that knows who signed in; `az` has been seen to take 30 s."""

NOBODY = (
    "nobody is signed in to Azure: run `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and"
    " AZURE_CLIENT_SECRET."
)

REFUSED = frozenset(
    {
        "AuthenticationFailed",
        "AuthorizationFailed",
        "ExpiredAuthenticationToken",
        "InvalidAuthenticationToken",
        "InvalidAuthenticationTokenTenant",
        "LinkedAuthorizationFailed",
        "SubscriptionNotFound",
    }
)
"""Codes of answers that another identity might not get."""

NO_ROLE_ON_DATA = "AuthorizationPermissionMismatch"
DATA_ROLE = "Storage Blob Data Contributor"


NO_ANSWER = (ServiceRequestError, ServiceResponseError)
"""Nobody was refused: the question did not arrive, or its answer did not."""


class Way(NamedTuple):
    """One way to be known to Azure."""

    whose: str
    credential: TokenCredential
    remedy: str


def ways(subscription: str, authority: str | None) -> Iterator[Way]:
    """Every way, in the order in which an operator at a terminal expects them to count.

    What the machine itself may do comes last: whoever says `az login` means that. For the same
    reason AZURE_TOKEN_CREDENTIALS, meant for services, is set aside.
    """
    os.environ.pop("AZURE_TOKEN_CREDENTIALS", None)
    # An authority of the operator's is not one that Microsoft's directory of clouds lists.
    known: dict[str, Any] = {"authority": authority, "disable_instance_discovery": True}
    app = f"service principal {os.environ.get('AZURE_CLIENT_ID')} (AZURE_CLIENT_ID)"
    yield Way(
        app,
        EnvironmentCredential(**(known if authority else {})),
        "correct AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or unset them and run"
        " `az login`",
    )
    if os.environ.get("AZURE_FEDERATED_TOKEN_FILE"):
        federated = WorkloadIdentityCredential(**(known if authority else {}))
        yield Way(app, federated, "look at AZURE_FEDERATED_TOKEN_FILE, or unset it")
    az = AzureCliCredential(subscription=subscription, process_timeout=AZ_SECONDS)
    yield Way("`az login`", az, "run `az login` as somebody who has this subscription")
    shell = AzurePowerShellCredential(process_timeout=AZ_SECONDS)
    yield Way("Connect-AzAccount of PowerShell", shell, "run `az login`")
    azd = AzureDeveloperCliCredential(process_timeout=AZ_SECONDS)
    yield Way("`azd auth login`", azd, "run `azd auth login` again, or `az login`")
    yield Way("managed identity of this machine", OfMachine(), "run `az login`")


class OfMachine:
    """The machine's own identity; asked in the SDK's way that ends soon where there is none."""

    def __init__(self) -> None:
        others = ("environment", "workload_identity", "shared_token_cache", "visual_studio_code")
        more = ("cli", "developer_cli", "powershell", "broker")
        left_out = {f"exclude_{way}_credential": True for way in others + more}
        self.credential = DefaultAzureCredential(**left_out)

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Its token; where there is none, nobody is signed in."""
        try:
            return self.credential.get_token(*scopes, **options)
        except ClientAuthenticationError as error:
            raise CredentialUnavailableError(error.message) from error


class Identity:
    """The credential of all clients: it finds who is signed in once, and keeps a token a scope.

    `az` takes a second for each token, and remembers none between calls.
    """

    def __init__(self, possible: Iterator[Way]) -> None:
        self.possible = possible
        self.way: Way | None = None
        self.lock = threading.Lock()
        self.tokens: dict[tuple[str, ...], AccessToken] = {}

    def get_token(self, *scopes: str, claims: str | None = None, **options: Any) -> AccessToken:
        """The token, while it has five minutes left; claims or a tenant demand another one."""
        with self.lock:
            way = self.way or self.found(scopes)
            token = self.tokens.get(scopes)
            if claims or options.get("tenant_id"):
                token = asked(way, scopes, claims=claims, **options)
            elif token is None or token.expires_on < time.time() + 300:
                token = asked(way, scopes, **options)
            self.tokens[scopes] = token
            return token

    def found(self, scopes: tuple[str, ...]) -> Way:
        """The first way that leads to a token; raises `ClientAuthenticationError`."""
        for way in self.possible:
            try:
                self.tokens[scopes] = asked(way, scopes)
            except CredentialUnavailableError:
                continue
            self.way = way
            return way
        raise ClientAuthenticationError(NOBODY)

    @property
    def whose(self) -> str:
        """Whose identity it is, in the operator's words."""
        name = next(filter(None, map(name_in, self.tokens.values())), "")
        way = self.way.whose if self.way else "nobody"
        return f"{name} ({way})" if name else way


def asked(way: Way, scopes: tuple[str, ...], **options: Any) -> AccessToken:
    """A token got in this way.

    Raises `CredentialUnavailableError` where nobody signed in so, else `ClientAuthenticationError`
    with whose identity was refused, and the one thing to do.
    """
    try:
        return way.credential.get_token(*scopes, **options)
    except CredentialUnavailableError as error:
        if isinstance(error.__cause__, subprocess.TimeoutExpired):
            late = f"{way.whose}: no answer within {error.__cause__.timeout:g} s; try again."
            raise ClientAuthenticationError(late) from error
        if not options.get("claims"):
            raise
        more = f"{way.whose} is not enough for Azure here: {one_line(error)}"
        raise ClientAuthenticationError(more) from error
    except ClientAuthenticationError as error:
        if isinstance(error.__cause__, NO_ANSWER):
            gone = f"signing in as {way.whose}: this computer's network does not get there"
            raise ClientAuthenticationError(f"{gone}. ({one_line(error)})") from error
        raise ClientAuthenticationError(
            f"{way.whose} was refused: {way.remedy}. ({one_line(error)})"
        ) from error


def one_line(error: ClientAuthenticationError) -> str:
    """What was said, whole: what to do often comes last."""
    return " ".join(str(error.message).split())


def name_in(token: AccessToken) -> str:
    """Whom a token names, for the operator alone; "" where it can't be read."""
    try:
        body = token.token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return str(claims.get("upn") or claims.get("unique_name") or claims.get("appid") or "")
    except (IndexError, ValueError, AttributeError):
        return ""


def advice(code: str, words: str, whose: str, scope: Scope) -> str:
    """What follows Azure's words where they are about the identity, else nothing."""
    if code == NO_ROLE_ON_DATA:
        return (
            f" ({whose} needs the role {DATA_ROLE} for the web site's files, which Owner and"
            f' Contributor do not include: `az role assignment create --role "{DATA_ROLE}" --scope'
            f" /subscriptions/{scope.subscription}/resourceGroups/{scope.group} --assignee YOU`;"
            " a new assignment takes up to ten minutes to count.)"
        )
    if code not in REFUSED:
        return ""
    tenant = re.search(r"match the tenant '[^']*/([0-9a-f-]{36})/?'", words)
    do = f": sign in with `az login --tenant {tenant[1]}`" if tenant else ""
    return f" (Azure was asked as {whose}{do}.)"
