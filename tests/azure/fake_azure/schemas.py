"""JSON Schemas of request bodies, read from the models of the installed SDK.

Azure refuses a body with an unknown key, a value of another type, or without what is required.
"""

import datetime
import enum
import functools
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]

SCALARS: Mapping[object, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bytes: {"type": "string"},
    datetime.datetime: {"type": "string"},
    datetime.date: {"type": "string"},
    datetime.time: {"type": "string"},
    datetime.timedelta: {"type": "string"},
}

READ_ONLY = {"readOnly": True}
"""Azure takes it back as it gave it, and ignores it."""

ECHOED: Mapping[str, tuple[str, ...]] = {
    "NetworkInterface": ("kind",),
    "NetworkInterfacePropertiesFormat": ("allowPort25Out",),
    "LoadBalancingRulePropertiesFormat": (
        "allowBackendPortConflict",
        "enableDestinationServiceEndpoint",
    ),
    "StorageAccountCreateParameters": ("id", "name", "type"),
    "StorageAccountPropertiesCreateParameters": (
        "creationTime",
        "keyCreationTime",
        "primaryEndpoints",
        "primaryLocation",
        "privateEndpointConnections",
        "provisioningState",
        "statusOfPrimary",
    ),
}
"""What Azure answers beyond a model; it must take it back, or no client could change anything."""

OPEN_LISTS = frozenset({"VirtualMachineSizeTypes"})
"""Enumerations that Azure outgrew: it takes values the SDK does not list."""


@functools.cache
def validator(package: str, model: str) -> Draft202012Validator:
    """Checks a request body of one SDK model, e.g. `azure.mgmt.network`, `LoadBalancer`."""
    models = importlib.import_module(f"{package}.models")
    definitions: dict[str, Schema] = {}
    define(getattr(models, model), models, definitions)
    return Draft202012Validator({"$ref": f"#/$defs/{model}", "$defs": definitions})


def define(model: type, models: types.ModuleType, definitions: dict[str, Schema]) -> None:
    """Add a model, and every model it holds, to the definitions."""
    if model.__name__ in definitions:
        return
    schema: Schema = {"type": "object", "additionalProperties": False}
    definitions[model.__name__] = schema
    hints = typing.get_type_hints(model, localns={**vars(models), "_models": models})
    properties: Schema = {}
    required: list[str] = []
    for attribute, field in fields(model).items():
        hint = hints[attribute]
        name = getattr(field, "_rest_name_input", None) or attribute
        if getattr(field, "_visibility", None) == ["read"]:
            properties[name] = dict(READ_ONLY)
            continue
        properties[name] = schema_of(hint, models, definitions)
        if type(None) not in typing.get_args(hint):
            required.append(name)
    properties |= {name: dict(READ_ONLY) for name in ECHOED.get(model.__name__, ())}
    schema |= {"properties": properties, "required": required}


def writable(package: str, model: str, body: Any) -> Any:
    """A body without what only Azure writes."""
    whole = typing.cast(Schema, validator(package, model).schema)
    return without_read_only(body, whole, whole["$defs"])


def without_read_only(value: Any, schema: Schema, definitions: Schema) -> Any:
    """A value without what its schema calls read-only."""
    schema = definitions[schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else schema
    if isinstance(value, list):
        items = schema.get("items", {})
        return [without_read_only(inner, items, definitions) for inner in value]
    if not isinstance(value, dict):
        return value
    known = schema.get("properties", {})
    return {
        key: without_read_only(inner, known.get(key, {}), definitions)
        for key, inner in value.items()
        if not known.get(key, {}).get("readOnly")
    }


def fields(model: type) -> dict[str, object]:
    """The REST fields of a model and its bases, by attribute."""
    return {
        attribute: value
        for base in reversed(model.__mro__)
        for attribute, value in vars(base).items()
        if type(value).__name__ == "_RestField"
    }


def schema_of(hint: Any, models: types.ModuleType, definitions: dict[str, Schema]) -> Schema:
    """The schema of a type annotation."""
    if isinstance(hint, str):  # Python 3.10 leaves a model's name within list[...] as it is
        hint = getattr(models, hint.removeprefix("_models."))
    arguments = typing.get_args(hint)
    if arguments:
        return schema_of_generic(hint, models, definitions)
    if hint in SCALARS:
        return dict(SCALARS[hint])
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return one_of(hint)
    if inspect.isclass(hint) and fields(hint):
        define(hint, models, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return {}


def schema_of_generic(
    hint: Any, models: types.ModuleType, definitions: dict[str, Schema]
) -> Schema:
    """The schema of Optional, list, dict and Literal."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return {"enum": [getattr(argument, "value", argument) for argument in arguments]}
    if origin is typing.Union:
        return schema_of_union([a for a in arguments if a is not type(None)], models, definitions)
    inner = schema_of(arguments[-1], models, definitions)
    if origin is list:
        return {"type": "array", "items": inner}
    return {"type": "object", "additionalProperties": inner}


def schema_of_union(
    arguments: list[Any], models: types.ModuleType, definitions: dict[str, Schema]
) -> Schema:
    """`Union[str, SomeEnum]` is how the SDK says enumeration."""
    for argument in arguments:
        if inspect.isclass(argument) and issubclass(argument, enum.Enum):
            return one_of(argument)
    schemas = [schema_of(argument, models, definitions) for argument in arguments]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def one_of(values: type[enum.Enum]) -> Schema:
    """An enumeration, in any letter case, as Azure takes it."""
    if values.__name__ in OPEN_LISTS:
        return {"type": "string"}
    names = "|".join(re.escape(str(value.value)) for value in values)
    return {"type": "string", "pattern": f"(?i)^({names})$"}


# python -m tests.azure.fake_azure.schemas azure.mgmt.network LoadBalancer
if __name__ == "__main__":
    import json

    print(json.dumps(validator(sys.argv[1], sys.argv[2]).schema, indent=1))
