"""The files of a storage account's static web site."""

import mimetypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import (
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import ContainerClient, ContentSettings, ExponentialRetry

from deploy import Refusal
from deploy.publish import Found, digest

CONTAINER = "$web"
"""What a static web site serves, https://learn.microsoft.com/azure/storage/blobs/storage-blob-static-website."""

NOT_THERE = ("BlobNotFound", "ContainerNotFound")
"""What storage says of a file that is not there; another 404 is an account that is not."""

CONTAINER_SECONDS = 120.0
"""Longest wait for it after the web site was switched on."""


def container(endpoint: str, credential: Any) -> ContainerClient:
    """The web site's files, as whom the credential is: many forbid the account's own keys."""
    return ContainerClient(
        endpoint,
        CONTAINER,
        credential=credential,
        retry_policy=ExponentialRetry(initial_backoff=1, increment_base=2, retry_total=6),
        connection_timeout=10,
        read_timeout=60,
        max_single_get_size=1 << 20,  # of a file that is too large no more is read
    )


@dataclass(frozen=True)
class Account:
    """A storage account as a place for releases; its methods raise `AzureError`.

    A condition is one header of Put Blob, see
    https://learn.microsoft.com/rest/api/storageservices/specifying-conditional-headers-for-blob-service-operations.
    The SDK sends a request again whose answer got lost: what is there counts, not who was refused.
    """

    site: ContainerClient
    where: str

    def read(self, name: str, limit_bytes: int) -> Found | None:
        """A file and its ETag; None also where there is no web site yet."""
        blob = self.site.get_blob_client(name)
        try:
            answer = blob.download_blob()  # not a range: an empty file has none, and is refused
        except ResourceNotFoundError as error:
            if getattr(error, "error_code", None) not in NOT_THERE:
                raise
            return None
        if answer.size > limit_bytes:
            raise Refusal(f"{self.where}/{name}: more than {limit_bytes} bytes: not what we write.")
        return Found(answer.readall(), str(answer.properties.etag))

    def create(self, name: str, data: bytes) -> bool:
        """Put a file where there is none: `If-None-Match: *`, answered 409 where there is one."""
        try:
            upload(self.site, name, data, overwrite=False)
        except (ResourceExistsError, ResourceModifiedError):
            return self._is(name, data)
        return True

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        """Put a file in the place of that version: `If-Match`, answered 412 where it is another."""
        if tag is None:
            return self.create(name, data)
        condition = {"etag": tag, "match_condition": MatchConditions.IfNotModified}
        try:
            upload(self.site, name, data, overwrite=True, **condition)
        except ResourceModifiedError:
            return self._is(name, data)
        return True

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, whatever was there."""
        upload(self.site, name, data, overwrite=True)

    def served(self) -> dict[str, bytes]:
        """The MD5 of every file."""
        return served(self.site)

    def _is(self, name: str, data: bytes) -> bool:
        found = self.read(name, len(data))
        return found is not None and found.data == data


def served(site: ContainerClient) -> dict[str, bytes]:
    """The MD5 of every file that the web site serves."""
    try:
        blobs = list(site.list_blobs())
    except ResourceNotFoundError:  # the web site is not switched on yet
        return {}
    return {blob.name: bytes(blob.content_settings.content_md5 or b"") for blob in blobs}


def upload(site: ContainerClient, name: str, data: bytes, **how: Any) -> None:
    """Put one file on the web site; visitors see the old bytes or the new ones."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    settings = ContentSettings(
        content_type=kind, cache_control="no-cache", content_md5=bytearray(digest(data))
    )
    once_there(lambda: site.upload_blob(name, data, content_settings=settings, **how))


def once_there(send: Callable[[], object]) -> None:
    """Send once the container is there: a web site's comes a while after its switch."""
    deadline = time.monotonic() + CONTAINER_SECONDS
    while True:
        try:
            send()
        except ResourceNotFoundError as error:
            missing = getattr(error, "error_code", None) == "ContainerNotFound"
            if not missing or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(1)
