"""Whether it is Azure that answers: a proxy on the way answers 200 with a page of its own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from azure.core.exceptions import AzureError, DecodeError
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import SansIOHTTPPolicy

from deploy.azure.words import one_line

FIRST_WORDS = 80
"""How much of a foreign answer is told: enough to know whose page it is."""

TAKEN_AS_ANSWERS = (200, 201, 202, 404)
"""Statuses whose body counts: 404 says that something is not there, which a proxy can't know."""


class OfAzure(SansIOHTTPPolicy[Any, Any]):
    """Refuses a body that the resource manager would not send: all of its bodies are objects."""

    def on_response(
        self, request: PipelineRequest[Any], response: PipelineResponse[Any, Any]
    ) -> None:
        """Look at an answer before anything is made of it; one without a body may be Azure's."""
        answer = response.http_response
        if answer.status_code not in TAKEN_AS_ANSWERS:
            return
        data = answer.read()
        if data and not is_object(data):
            kind = answer.headers.get("Content-Type", "no content type")
            words = data[: 4 * FIRST_WORDS].decode(errors="replace")
            raise not_azure(request.http_request.url, f"{kind}: {words}")


def is_object(data: bytes) -> bool:
    """Whether it is a JSON object."""
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


@contextmanager
def azures(url: str) -> Iterator[None]:
    """What the SDK or we stumble over in an answer becomes an `AzureError` that says whose."""
    try:
        yield
    except DecodeError as error:
        raise not_azure(url, str(error.message)) from error
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise not_azure(url, f"{type(error).__name__}: {error}") from error


def not_azure(url: str, what: str) -> AzureError:
    """The one sentence about it."""
    told = one_line(what)[:FIRST_WORDS]
    host = urlsplit(url).netloc or "the other side"
    return AzureError(f"{host} does not answer as Azure does ({told}): a proxy?")
