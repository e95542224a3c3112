"""The files of a storage account's static web site."""

import mimetypes
import time
from collections.abc import Callable, Mapping
from hashlib import md5
from typing import Any

from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import ContainerClient, ContentSettings, ExponentialRetry

CONTAINER = "$web"
"""What a static web site serves, https://learn.microsoft.com/azure/storage/blobs/storage-blob-static-website."""

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
    )


def stale(files: Mapping[str, bytes], served: Mapping[str, bytes]) -> list[str]:
    """The names whose bytes are not what the web site serves, by MD5."""
    return [name for name, data in files.items() if served.get(name) != digest(data)]


def served(site: ContainerClient) -> dict[str, bytes]:
    """The MD5 of every file that the web site serves."""
    try:
        blobs = list(site.list_blobs())
    except ResourceNotFoundError:  # the web site is not switched on yet
        return {}
    return {blob.name: bytes(blob.content_settings.content_md5 or b"") for blob in blobs}


def upload(site: ContainerClient, name: str, data: bytes) -> None:
    """Put one file on the web site; visitors see the old bytes or the new ones."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    settings = ContentSettings(
        content_type=kind, cache_control="no-cache", content_md5=bytearray(digest(data))
    )
    once_there(lambda: site.upload_blob(name, data, overwrite=True, content_settings=settings))


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


def digest(data: bytes) -> bytes:
    """Storage keeps an MD5 of every blob: it finds a difference, it does not prove an origin."""
    return md5(data, usedforsecurity=False).digest()
