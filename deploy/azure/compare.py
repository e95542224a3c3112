"""What differs between a resource as it is and as it should be, and the body that mends it.

Only what we state is compared: what Azure or somebody else added stays.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from deploy.plan import RULE_NAMES

SYNONYMS = {
    "addressPrefix": "addressPrefixes",
    "backendAddressPool": "backendAddressPools",
    "destinationAddressPrefix": "destinationAddressPrefixes",
    "destinationPortRange": "destinationPortRanges",
    "sourceAddressPrefix": "sourceAddressPrefixes",
    "sourcePortRange": "sourcePortRanges",
}
"""Two names of one value, which Azure refuses where they disagree: stating one drops the other."""

RANGES = "addressPrefixes"
"""Of a network: others may add ranges, with subnets of their own, as for clients that are near."""

BALANCING_RULE = re.compile(r"http|all-ports|(tcp|udp)-\d+")
"""Every name that a rule of our load balancer may have."""


def differences(wanted: Any, found: Any, path: str = "") -> list[str]:
    """One line for each value that is not as wanted, as `path: found -> wanted`."""
    if isinstance(wanted, Mapping):
        inside = found if isinstance(found, Mapping) else {}
        return [
            line
            for key, value in wanted.items()
            for line in differences(value, inside.get(key), path_to(path, key))
        ]
    if isinstance(wanted, list) and wanted and isinstance(wanted[0], Mapping):
        gone = [
            f"{path}[{shown(label(value))}]: there -> nothing" for value in retired(wanted, found)
        ]
        return gone + [
            line
            for value, same in pairs(wanted, found)
            for line in member_differences(value, same, f"{path}[{shown(label(value))}]")
        ]
    there = path.endswith(f".{RANGES}") and set(wanted) <= set(found or ())
    return [] if there or equal(wanted, found) else [f"{path}: {shown(found)} -> {shown(wanted)}"]


def member_differences(wanted: Any, found: Any, path: str) -> list[str]:
    """The lines of a member of a list; one that is not there is told as a whole."""
    if found is None:
        return [f"{path}: nothing -> new"]
    return differences(wanted, found, path)


def path_to(path: str, key: str) -> str:
    """The path of an inner value; Azure's `properties` say nothing to the reader."""
    return path if key == "properties" else f"{path}.{key}" if path else key


def merged(wanted: Any, found: Any) -> Any:
    """`found` with every value that is wanted, and everything else as it was."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        stale = {
            other
            for pair in SYNONYMS.items()
            for name, other in (pair, pair[::-1])
            if name in wanted
        }
        kept = {key: value for key, value in found.items() if key not in stale}
        ours = {key: merged(value, found.get(key)) for key, value in wanted.items()}
        if RANGES in ours:
            ours[RANGES] = [*dict.fromkeys([*ours[RANGES], *(found.get(RANGES) or [])])]
        return {**kept, **ours}
    if isinstance(wanted, list) and wanted and isinstance(wanted[0], Mapping):
        names = {label(value) for value in [*wanted, *retired(wanted, found)]}
        others = [value for value in found or [] if label(value) not in names]
        return [*(merged(value, same) for value, same in pairs(wanted, found)), *others]
    return wanted


def retired(wanted: list[Any], found: list[Any] | None) -> list[Any]:
    """Rules of ours that the plan no longer has; rules of others are not ours to take."""
    names = {label(value) for value in wanted}
    return [value for value in found or [] if is_our_rule(value) and label(value) not in names]


def is_our_rule(member: Mapping[str, Any]) -> bool:
    """Whether it is a rule of the firewall's, or the load balancer's, under a name of ours."""
    if "frontendPort" in member.get("properties", {}):
        return BALANCING_RULE.fullmatch(label(member)) is not None
    return label(member) in RULE_NAMES


def pairs(wanted: list[Any], found: list[Any] | None) -> Iterator[tuple[Any, Any]]:
    """Each wanted member of a list, with the one that is there under the same name or id."""
    by_label = {label(value): value for value in found or []}
    for value in wanted:
        yield value, by_label.get(label(value))


def label(member: Mapping[str, Any]) -> str:
    """What a member of a list is known by: its name, else its id, which has no letter case."""
    return str(member.get("name") or str(member.get("id", "")).lower())


def equal(wanted: object, found: object) -> bool:
    """Azure answers ids, regions and enumerations in letter cases of its own."""
    if isinstance(wanted, str) and isinstance(found, str):
        return wanted.lower() == found.lower()
    if isinstance(wanted, list) and isinstance(found, list):
        return sorted(map(str, wanted)) == sorted(map(str, found))
    return wanted == found


def shown(value: object) -> str:
    """A value within a line: the end of an id is enough."""
    if value is None:
        return "nothing"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.rsplit("/", 1)[-1] if text.startswith("/subscriptions/") else text
