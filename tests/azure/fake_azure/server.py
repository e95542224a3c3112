"""The fake on HTTPS: sign-in, resource manager, storage, and the faults that tests ask for."""

import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from tests.azure.fake_azure.azure import TENANT, FakeAzure
from tests.azure.fake_azure.blobs import STORAGE_TOKEN, answer_blob, answer_web
from tests.azure.fake_azure.model import Answer, Fault, Record, Refused, Request
from tests.azure.fake_azure.routes import routes
from tests.azure.fake_azure.rules import retryable
from tests.azure.fake_azure.schemas import validator

TOKEN = "a-token-of-the-fake"  # noqa: S105 - it opens nothing
TOKEN_OF_MACHINE = "a-token-of-the-machine"  # noqa: S105 - as above
TOKEN_WITH_CLAIMS = "a-token-with-claims"  # noqa: S105
STORAGE_SCOPE = "https://storage.azure.com/.default"
CLIENT, SECRET = "the-operator", "the-operators-secret"

BEFORE = ("throttled", "unavailable", "busy", "retryable", "refused", "cut", "kill")
AFTER = ("cut after", "kill after")
OF_A_PROXY = {
    "html": (b"<!DOCTYPE html>\n<title>Access denied</title> by your company.", "text/html"),
    "html as json": (b"<!DOCTYPE html>\n<title>Access denied</title>", "application/json"),
    "nothing": (b"", "application/json"),
    "a list": (b"[1, 2]", "application/json"),
    "an empty object": (b"{}", "application/json"),
    "nested": (b"[" * 30_000, "application/json"),
}
"""What others than Azure answer with a status of 200: bodies and their types."""


BEARER = {"token_type": "Bearer", "expires_in": 3600, "expires_on": 4102444800}


def claims_challenge(claims: str) -> Answer:
    """What the resource manager says to a change by somebody who signed in without MFA.

    https://learn.microsoft.com/entra/identity/authentication/concept-mandatory-multifactor-authentication
    and Azure/azure-dev issue 5425.
    """
    encoded = base64.b64encode(claims.encode()).decode()
    challenge = (
        'Bearer realm="", authorization_uri="https://login.microsoftonline.com/common/oauth2/'
        f'authorize", error="insufficient_claims", claims="{encoded}"'
    )
    message = "Resource was disallowed by Azure: Users must use MFA for Create operation."
    error = {"code": "RequestDisallowedByAzure", "message": message}
    return Answer(401, {"error": error}, {"WWW-Authenticate": challenge})


def wrong_tenant(tenant: str) -> Answer:
    """What it says to a token of another tenant (Azure/azure-dev issue 1409)."""
    message = (
        f"The access token is from the wrong issuer 'https://sts.windows.net/{TENANT}/'. It must"
        f" match the tenant 'https://sts.windows.net/{tenant}/' associated with this subscription."
        f" Please use the authority (URL) 'https://login.windows.net/{tenant}' to get the token."
    )
    challenge = f'Bearer authorization_uri="https://login.windows.net/{tenant}"'
    error = {"code": "InvalidAuthenticationTokenTenant", "message": message}
    return Answer(
        401, {"error": error}, {"WWW-Authenticate": f'{challenge}, error="invalid_token"'}
    )


class Cut(Exception):  # noqa: N818 - it is what happens to the connection
    """The connection ends without an answer."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = 60
    azure: FakeAzure

    def serve(self) -> None:
        """Read a request, answer it, write it down."""
        begun = time.monotonic()
        request = self.request_read()
        if len(request.data) < self.promised_bytes:
            self.close_connection = True  # who sent it was killed: half a request does nothing
            return
        self.azure.gate(request)
        try:
            answer = self.answer_with_faults(request)
        except Refused as refused:
            answer = refused.answer()
        except Cut:
            self.azure.log.add(Record(request, 0, b"", begun, time.monotonic()))
            self.close_connection = True
            return
        data = answer.data()
        self.azure.log.add(Record(request, answer.status, data, begun, time.monotonic()))
        with contextlib.suppress(OSError):  # the client may be gone, or killed by us
            self.write(answer, data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = serve  # noqa: N815 - http.server's names

    @property
    def promised_bytes(self) -> int:
        """How long the body of the request is to be."""
        return int(self.headers.get("Content-Length") or 0)

    def request_read(self) -> Request:
        """The request with its body."""
        url = urlsplit(self.path)
        data = self.rfile.read(self.promised_bytes)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        return Request(self.command, url.path, query, dict(self.headers), data)

    def write(self, answer: Answer, data: bytes) -> None:
        """Send an answer."""
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    def answer_with_faults(self, request: Request) -> Answer:
        """The answer, unless a test wants something to go wrong before or after it."""
        fault = self.azure.take_fault(request, tuple(OF_A_PROXY))
        if fault:
            body, kind = OF_A_PROXY[fault.what]
            return Answer(200, body, {"Content-Type": kind})
        fault = self.azure.take_fault(request, BEFORE)
        if fault:
            refuse_for(fault, request)
            self.end_here(fault.what)
        answer = self.answer(request)
        fault = self.azure.take_fault(request, AFTER)
        self.end_here(fault.what.removesuffix(" after") if fault else "")
        return answer

    def end_here(self, what: str) -> None:
        """Kill the client, or cut its connection."""
        if what == "kill":
            self.azure.kill()
        if what in ("kill", "cut"):
            raise Cut

    def answer(self, request: Request) -> Answer:
        """Who is asked, by the path."""
        if request.path == "/my-address":
            return Answer(200, self.azure.own_address)
        if request.path.startswith(f"/{TENANT}/"):
            return self.sign_in(request)
        if request.path.startswith("/blob/"):
            with self.azure.lock:
                return answer_blob(self.azure.accounts, request, self.azure.may_on_data)
        if request.path.startswith("/web/"):
            return answer_web(self.azure.accounts, request)
        if request.path.startswith("/msi/"):
            return Answer(200, {**BEARER, "access_token": TOKEN_OF_MACHINE, "resource": "x"})
        return self.answer_of_manager(request)

    def answer_of_manager(self, request: Request) -> Answer:
        """The resource manager, to whoever has a token that it takes."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (TOKEN, TOKEN_OF_MACHINE, TOKEN_WITH_CLAIMS):
            raise Refused(401, "AuthenticationFailed", "Authentication failed.")
        if self.azure.tenant != TENANT:
            return wrong_tenant(self.azure.tenant)
        if self.azure.claims and request.method != "GET" and token != TOKEN_WITH_CLAIMS:
            return claims_challenge(self.azure.claims)
        return self.azure.answer(request)

    def sign_in(self, request: Request) -> Answer:
        """Where tokens come from, and a token for who knows the secret."""
        base = f"{self.azure.url}/{TENANT}"
        if request.method == "GET":
            return Answer(
                200,
                {
                    "issuer": f"{base}/v2.0",
                    "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                    "token_endpoint": f"{base}/oauth2/v2.0/token",
                },
            )
        form = dict(parse_qsl(request.data.decode()))
        right = {
            "client_id": CLIENT,
            "client_secret": SECRET,
            "grant_type": "client_credentials",
        }
        scopes = {f"{self.azure.url}/.default": TOKEN, STORAGE_SCOPE: STORAGE_TOKEN}
        if not right.items() <= form.items() or form["scope"] not in scopes:
            error = {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid."}
            return Answer(401, error)
        wanted = json.loads(form.get("claims") or "{}").get("access_token", {})
        demanded = json.loads(self.azure.claims or "{}").get("access_token", {})
        with_claims = bool(demanded) and demanded.items() <= wanted.items()
        token = TOKEN_WITH_CLAIMS if with_claims else scopes[form["scope"]]
        return Answer(200, {**BEARER, "access_token": token})

    def log_message(self, *_: object) -> None:
        """The log is `FakeAzure.log`."""


def refuse_for(fault: Fault, request: Request) -> None:
    """The refusals that tests ask for."""
    if fault.what == "throttled":
        wait = {"Retry-After": str(fault.retry_after)}
        raise Refused(429, "TooManyRequests", "Too many requests.", headers=wait)
    if fault.what == "unavailable":
        raise Refused(503, "ServiceUnavailable", "The service is unavailable.")
    if fault.what == "busy":
        raise Refused(409, "AnotherOperationInProgress", "Another operation is in progress.")
    if fault.what == "retryable":
        raise retryable("RetryableErrorDueToAnotherOperation", request.path, fault.retry_after)
    if fault.what == "refused":
        raise Refused(fault.status, fault.code, fault.message, **fault.more)


class Server(ThreadingHTTPServer):
    """A thread a connection; one that is cut is no news."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that was killed leaves its connections open."""


@contextlib.contextmanager
def fake_azure(certificate: Path, key: Path) -> Iterator[FakeAzure]:
    """A fresh subscription at an address of its own, until the block ends."""
    azure = FakeAzure()
    for route in routes():  # the first use of the SDK's models takes a second: not during a test
        if route.model:
            validator(*route.model)
    handler = type("BoundHandler", (Handler,), {"azure": azure})
    server = Server(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    azure.url = f"https://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield azure
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
