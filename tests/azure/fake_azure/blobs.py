"""Storage accounts' data: signed uploads and lists, and the anonymous web site."""

import base64
import datetime
import hashlib
import hmac
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote
from xml.sax.saxutils import escape

from tests.azure.fake_azure.model import Answer, Refused, Request

SIGNED_HEADERS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)
"""https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key"""

STORAGE_TOKEN = "a-token-for-storage"  # noqa: S105 - it opens nothing
ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>{}</Message></Error>'


@dataclass
class Account:
    """One storage account: its key and its files by container."""

    name: str
    key: bytes
    containers: dict[str, dict[str, bytes]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # a file's content type
    writes: Counter[str] = field(default_factory=Counter)  # of each file: a new ETag each time
    web_site: dict[str, object] = field(default_factory=lambda: {"enabled": False})
    shared_keys: bool = True  # whether a request may be signed with the key
    web_site_at: float = 0.0  # when $web is there, on the monotonic clock


def signature(account: Account, request: Request) -> str:
    """What a request signed with the account's key says in its Authorization."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    if headers.get("content-length") == "0":
        headers["content-length"] = ""
    lines = [request.method, *(headers.get(name, "") for name in SIGNED_HEADERS)]
    lines += [f"{n}:{headers[n]}" for n in sorted(headers) if n.startswith("x-ms-")]
    lines.append(f"/{account.name}{request.path}")
    lines += [f"{name.lower()}:{request.query[name]}" for name in sorted(request.query)]
    digest = hmac.new(account.key, "\n".join(lines).encode(), hashlib.sha256).digest()
    return f"SharedKey {account.name}:{base64.b64encode(digest).decode()}"


DATA = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/"
UNSIGNED = "Server failed to authenticate the request."
NO_KEYS = "Key based authentication is not permitted on this storage account."
NOT_MET = "The condition specified using HTTP conditional header(s) is not met."
TWO_CONDITIONS = "Multiple condition headers are not supported."
DATE = "Mon, 01 Jan 2024 00:00:00 GMT"
NO_ROLE = "This request is not authorized to perform this operation using this permission."

May = Callable[[str], bool]
"""Whether the operator's role allows an action on data."""


def unauthorized(account: Account, request: Request, may: May) -> Answer | None:
    """What storage says to who may not; the codes as in public reports of each.

    hashicorp/terraform-provider-azurerm issue 17341, Azure/azure-sdk-for-js issue 7009.
    """
    scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
    if scheme == "SharedKey" and not account.shared_keys:
        return failure(403, "KeyBasedAuthenticationNotPermitted", NO_KEYS)
    if scheme == "SharedKey":
        wrong = request.headers["Authorization"] != signature(account, request)
        return failure(403, "AuthenticationFailed", "The signature differs.") if wrong else None
    if scheme != "Bearer" or rest != STORAGE_TOKEN:
        return failure(401, "InvalidAuthenticationInfo", UNSIGNED)
    allowed = may(DATA + ("read" if request.method == "GET" else "write"))
    return None if allowed else failure(403, "AuthorizationPermissionMismatch", NO_ROLE)


def answer_blob(accounts: Mapping[str, Account], request: Request, may: May) -> Answer:
    """The blob endpoint: /blob/ACCOUNT/CONTAINER[/FILE]."""
    _, _, name, container, *rest = unquote(request.path).split("/")
    account = accounts.get(name)
    if account is None:
        return failure(404, "ResourceNotFound", "The specified resource does not exist.")
    refusal = unauthorized(account, request, may)
    if refusal is not None:
        return refusal
    late = container == "$web" and time.monotonic() < account.web_site_at
    if late or container not in account.containers:
        return failure(404, "ContainerNotFound", "The specified container does not exist.")
    files = account.containers[container]
    if request.method == "GET" and request.query.get("comp") == "list":
        return Answer(200, listing(container, files), {"Content-Type": "application/xml"})
    return answer_file(account, files, "/".join(rest), request)


def answer_file(account: Account, files: dict[str, bytes], file: str, request: Request) -> Answer:
    """Put Blob and Get Blob."""
    if request.method == "PUT" and request.headers.get("x-ms-blob-type") == "BlockBlob":
        if refusal := unmet(etag(account, files, file), request):
            return refusal
        files[file] = request.data
        account.kinds[file] = request.headers["x-ms-blob-content-type"]
        account.writes[file] += 1
        return Answer(201, b"", {"ETag": str(etag(account, files, file)), "Last-Modified": DATE})
    if request.method == "GET" and file:
        return part_of(files.get(file), etag(account, files, file), request)
    raise Refused(400, "UnsupportedOperation", f"{request.method} {request.path}")


def etag(account: Account, files: Mapping[str, bytes], file: str) -> str | None:
    """What tells this version of a file from any other; None where there is none."""
    if file not in files:
        return None
    digest = hashlib.md5(files[file], usedforsecurity=False).hexdigest()[:12].upper()
    return f'"0x{account.writes[file]:X}{digest}"'


def unmet(tag: str | None, request: Request) -> Answer | None:
    """How Put Blob refuses where the file is not as the request's condition says.

    Azurite's WriteConditionalHeadersValidator; 409 for `*` as in Azure/azure-cli issue 25019, 412
    as in Azure/azure-sdk-for-net issue 33668.
    """
    match, none_match = (request.headers.get(name) for name in ("If-Match", "If-None-Match"))
    if match and none_match:
        return failure(400, "MultipleConditionHeadersNotSupported", TWO_CONDITIONS)
    if none_match == "*" and tag is not None:
        return failure(409, "BlobAlreadyExists", "The specified blob already exists.")
    if (none_match and none_match == tag) or (match and match not in {tag, tag and "*"}):
        return failure(412, "ConditionNotMet", NOT_MET)
    return None


def part_of(data: bytes | None, tag: str | None, request: Request) -> Answer:
    """Get Blob: the whole file, or the part that the request asks for."""
    if data is None:
        return failure(404, "BlobNotFound", "The specified blob does not exist.")
    headers = {"ETag": str(tag), "Last-Modified": DATE, "x-ms-blob-type": "BlockBlob"}
    wanted = request.headers.get("x-ms-range") or request.headers.get("Range")
    if wanted is None:
        return Answer(200, data, headers)
    first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
    if first >= len(data):
        return failure(416, "InvalidRange", "The range specified is invalid.")
    last = min(last, len(data) - 1)
    told = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
    return Answer(206, data[first : last + 1], {**headers, **told})


def listing(container: str, files: Mapping[str, bytes]) -> bytes:
    """A container's files with their MD5."""
    blobs = "".join(
        f"<Blob><Name>{escape(name)}</Name><Properties><Content-MD5>"
        f"{base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}"
        f"</Content-MD5><Content-Length>{len(data)}</Content-Length>"
        "<BlobType>BlockBlob</BlobType></Properties></Blob>"
        for name, data in sorted(files.items())
    )
    text = (
        f'<?xml version="1.0"?><EnumerationResults ContainerName="{container}">'
        f"<Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"
    )
    return text.encode()


def failure(status: int, code: str, message: str) -> Answer:
    """An error as storage tells it: no two answers are the same."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    message = f"{message}\nRequestId:{uuid.uuid4()}\nTime:{now}"
    headers = {"x-ms-error-code": code, "Content-Type": "application/xml"}
    return Answer(status, ERROR.format(code, message).encode(), headers)


def answer_web(accounts: Mapping[str, Account], request: Request) -> Answer:
    """The web site: /web/ACCOUNT/FILE, for everybody, to read."""
    _, _, name, *rest = unquote(request.path).split("/")
    account = accounts.get(name)
    if account is None or not account.web_site.get("enabled") or request.method != "GET":
        return Answer(404, b"The requested content does not exist.")
    data = account.containers["$web"].get("/".join(rest))
    return Answer(404, b"not found") if data is None else Answer(200, data)
