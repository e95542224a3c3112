"""Azure's errors in its own words: all of them, on one line, the shortest first."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from azure.core.exceptions import AzureError, HttpResponseError

OF_ONE_ANSWER = re.compile(r"^(RequestId|Time):.*\n?", re.MULTILINE)
"""Lines of storage's messages that are new in each answer, and of no use to the operator."""


def words_of(error: Exception) -> str:
    """What Azure says of an error: its message, and what only details and further facts tell.

    The network's messages have their reason in `details`, a policy its name in `additionalInfo`.
    """
    if not isinstance(error, AzureError):
        return one_line(error)
    told = {*sentences(body_of(error))} or {message_of(error)}
    return " ".join(sorted(told, key=lambda sentence: (len(sentence), sentence)))


def code_of(error: HttpResponseError) -> str:
    """Azure's code of an error, or an empty text."""
    code = getattr(error, "error_code", None) or getattr(error.error, "code", None)
    # Storage has an enumeration of its codes.
    return str(getattr(code, "value", code) or body_of(error).get("code") or "")


def message_of(error: AzureError) -> str:
    """The message of an error whose answer is not the resource manager's, with its code."""
    message = getattr(getattr(error, "error", None), "message", None) or error.message
    code = code_of(error) if isinstance(error, HttpResponseError) else ""
    return with_code(code, one_line(OF_ONE_ANSWER.sub("", message)))


def body_of(error: AzureError) -> Mapping[str, Any]:
    """The error within an answer of the resource manager; empty where there is none."""
    try:
        body = json.loads(error.response.text())  # type: ignore[attr-defined]
        inside = body.get("error") or ended(body)
    except (AttributeError, TypeError, ValueError, AzureError):
        return {}
    return inside if isinstance(inside, Mapping) and "message" in inside else {}


def ended(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error of an operation that ended with a status alone, like Canceled."""
    if "message" in body or "status" not in body:
        return body
    return {"code": body["status"], "message": f"Azure ended the operation as {body['status']}."}


def sentences(error: Mapping[str, Any]) -> Iterator[str]:
    """One for an error, for each of its details, and for each further fact."""
    if error.get("message") or error.get("code"):
        yield with_code(str(error.get("code") or ""), one_line(error.get("message") or ""))
    for detail in members(error, "details"):
        yield from sentences(detail)
    for fact in members(error, "additionalInfo"):
        values = sorted(leaves(fact.get("info")), key=lambda value: (len(value), value))
        yield f"{fact.get('type')}: {', '.join(values)}."


def members(error: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The objects of a list that may be null, or something else altogether."""
    found = error.get(key)
    return [m for m in found if isinstance(m, Mapping)] if isinstance(found, list) else []


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Every value inside, as `path = value`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)
    elif value is not None:
        yield f"{path} = {one_line(value)}"


def with_code(code: str, text: str) -> str:
    """A message with its code, where it does not begin with that."""
    return f"{code}: {text}" if code and not text.startswith(code) else text


def one_line(value: object) -> str:
    """Text without line ends."""
    return " ".join(str(value).split())
