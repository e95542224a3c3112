"""What an operator decides about a cluster: `cluster.toml`, and options that win over it."""

import base64
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.loader import BadInput, Timing, timing, usual_look_seconds
from agent.loader import Settings as OfNode
from agent.loader import settings_of as settings_of_node
from deploy import Refusal
from deploy.files import expanded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

SETTINGS_FILE = Path("cluster.toml")

EXAMPLES = {
    "http_from": '["203.0.113.0/24"]',
    "ssh_from": '["203.0.113.0/24"]',
    "ports": '["443", "udp/5060"]',
    "setup": '["setup.sh", "service.tar"]',
}

INTERNET = "Internet"
"""Azure's word for every address."""

DIGITS = 9
SHORT = f"use one of {DIGITS} digits at most"
"""More no setting takes, and what has hundreds of them Python makes no float of."""

USUAL = OfNode()
"""What a node takes without another word."""

OWN_ADDRESS = "https://api.ipify.org"
"""Answers with the caller's own IPv4 address as plain text, https://www.ipify.org."""


@dataclass(frozen=True)
class Settings:
    """One cluster; every setting has a default, and the same name in `cluster.toml`."""

    name: str = "active-passive-cluster"
    region: str = "westeurope"
    nodes: int = 3
    size: str = "Standard_B2als_v2"
    witness_size: str = ""  # empty: as the others
    image: str = "Canonical:ubuntu-24_04-lts:server:latest"
    ssh_key: str = ""  # a file; empty: the first of SSH_KEYS that exists
    http_from: tuple[str, ...] = (INTERNET,)
    ssh_from: tuple[str, ...] = (OWN_ADDRESS,)
    peer_address: str = "public"
    period_seconds: int = 20
    look_seconds: int = 2  # of a file or options that give none: `look_of` the period
    pause_seconds: int = 5
    tags: tuple[str, ...] = ()  # each as KEY=VALUE; a table in the file
    scheduled_events: bool = True
    signing_key: str = ""  # a file; empty: the first of `signing.USUAL_KEYS` that exists
    ports: tuple[str, ...] = ("80",)  # each as NUMBER, tcp/NUMBER or udp/NUMBER; or "all" alone
    frontend: str = "public"
    idle_minutes: int = 4
    tcp_reset: bool = True
    cluster_port: int = 80
    subnet: str = ""  # the id of one that is there; empty: one of the cluster's own
    setup: tuple[str, ...] = ()  # files; the first one is run, the others lie beside it
    start_seconds: int = USUAL.start_seconds  # this and all below: SERVICE
    stop_seconds: int = USUAL.stop_seconds
    health_seconds: int = USUAL.health_seconds
    unhealthy_after: int = USUAL.unhealthy_after
    healthy_after: int = USUAL.healthy_after
    unhealthy: str = USUAL.unhealthy


SERVICE = (
    *("start_seconds", "stop_seconds"),
    *("health_seconds", "unhealthy_after", "healthy_after", "unhealthy"),
)
"""The settings about a service that runs with the role, and its health: the agent's own."""


RSA_BITS = 2048
"""Azure takes no shorter ones, https://learn.microsoft.com/azure/virtual-machines/linux/create-ssh-keys-detailed."""

SSH_KEYS = ("~/.ssh/id_ed25519.pub", "~/.ssh/id_rsa.pub")


USUAL_LOOK = f"{Settings.look_seconds}; if the period is odd 3, or else 5"
"""What `look_of` makes of no answer, in words."""


def look_of(period_seconds: int, look_seconds: int | None) -> int:
    """The time between two looks that was asked for, or the usual one of that period."""
    return int(usual_look_seconds(period_seconds)) if look_seconds is None else look_seconds


def times_of(
    period_seconds: int, look_seconds: int, pause_seconds: int, stop_seconds: int = 0
) -> Timing:
    """Every length of time that follows from the three that a cluster is set to.

    `stop_seconds`: that a service which runs with the role may take to stop; 0 without any.

    Raises `Refusal` for what breaks an inequality of docs/protocol.md section 2.
    """
    try:
        return timing(period_seconds, look_seconds, pause_seconds, stop_seconds)
    except BadInput as error:
        raise Refusal(str(error)) from error
    except OverflowError as error:
        names = "period_seconds, look_seconds or pause_seconds"
        raise Refusal(f"{names} is too long a number: use 60 at most.") from error


def service_of(settings: Settings) -> dict[str, Any]:
    """What nodes are told of a service that runs with the role, by the names of SERVICE.

    Raises `Refusal` for what they would refuse, in their words.
    """
    service = {name: getattr(settings, name) for name in SERVICE}
    service_lines(service)
    return service


def service_lines(service: Mapping[str, Any]) -> str:
    """The same as lines of a node's settings. Raises `Refusal` likewise.

    What a node takes unsaid is not among them: an agent from before refuses what it does not know.
    """
    told = {name: str(value) for name, value in service.items()}
    try:
        settings_of_node({"loader": told})
    except BadInput as error:
        raise Refusal(str(error)) from error
    unsaid = {name: str(getattr(USUAL, name)) for name in told}
    return "".join(f"{name} = {text}\n" for name, text in told.items() if text != unsaid[name])


def settings_of(config: Path | None, options: Mapping[str, Any]) -> Settings:
    """Defaults, then the file, then the options that were given.

    Raises `Refusal` for a file that is missing or no TOML, an unknown key, a value of another type.
    """
    of_file = read_settings(config or SETTINGS_FILE) if config or SETTINGS_FILE.exists() else {}
    given = of_file | {key: value for key, value in options.items() if value not in (None, ())}
    period_seconds = given.get("period_seconds", Settings.period_seconds)
    look_seconds = look_of(period_seconds, given.get("look_seconds"))
    # Whoever reaches an internal load balancer is in its network, which Azure lets through.
    nobody = {"http_from": ()} if given.get("frontend") == "internal" else {}
    return Settings(**nobody | given | {"look_seconds": look_seconds})


def read_settings(path: Path) -> dict[str, Any]:
    """What a TOML file sets; raises `Refusal` naming file, key and what would be right."""
    try:
        return checked_all(path, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror}: give a readable file of settings.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(f"{path}: not TOML: {error}.") from error
    except ValueError as error:  # of Python's: it reads and prints no number of so many digits
        raise Refusal(f"{path}: a number in it is too long: {SHORT}.") from error


def checked_all(path: Path, found: Mapping[str, object]) -> dict[str, Any]:
    """What was found in the file, each as its setting takes it. Raises `Refusal` likewise."""
    defaults = asdict(Settings())
    unknown = sorted(set(found) - set(defaults))
    if unknown:
        raise Refusal(f"{path}: unknown setting {unknown[0]!r}; known are {', '.join(defaults)}.")
    return {key: checked(path, key, value, defaults[key]) for key, value in found.items()}


def checked(path: Path, key: str, value: object, default: object) -> Any:
    """The value as its default's type; a list of one may be written without what is around it."""
    if isinstance(value, int) and abs(value) >= 10**DIGITS:
        raise Refusal(f"{path}: {key} is too long a number: {SHORT}.")
    if key == "tags":
        if isinstance(value, Mapping) and all(isinstance(one, str) for one in value.values()):
            return tuple(f"{name}={one}" for name, one in value.items())
        raise Refusal(f'{path}: tags = {value!r}: use a table of texts like {{ team = "web" }}.')
    if isinstance(default, tuple):
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and texts and all(isinstance(item, str) for item in texts):
            return tuple(texts)
        raise Refusal(f"{path}: {key} = {value!r}: use a list like {EXAMPLES[key]}.")
    if type(value) is not type(default):
        wanted = {bool: "true or false", int: "a whole number", str: 'text in "quotes"'}
        raise Refusal(f"{path}: {key} = {value!r}: use {wanted[type(default)]}.")
    return value


def ssh_public_key(settings: Settings) -> str:
    """The text of the operator's public key.

    Raises `Refusal` if there is none, or none that Azure takes: RSA and Ed25519,
    https://learn.microsoft.com/azure/virtual-machines/linux/mac-create-ssh-keys.
    """
    names = [settings.ssh_key] if settings.ssh_key else list(SSH_KEYS)
    paths = [expanded(name) for name in names]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise Refusal(
            f"SSH public key: no file {' or '.join(map(str, paths))}:"
            " make one with `ssh-keygen -t ed25519`, or name yours with --ssh-key."
        )
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"SSH public key {path}: not readable text: {error}.") from error
    if "PRIVATE KEY" in key:
        raise Refusal(f"SSH public key {path}: this is a private key; give the .pub beside it.")
    kind, _, rest = key.partition(" ")
    if kind not in ("ssh-rsa", "ssh-ed25519") or not rest or "\n" in key:
        raise Refusal(f"SSH public key {path}: use one line of ssh-ed25519 or ssh-rsa.")
    fault = key_fault(kind, rest.split()[0])
    if fault:
        raise Refusal(f"SSH public key {path}: {fault}; Azure would refuse it.")
    return key


def key_fault(kind: str, data: str) -> str:
    """What is wrong with the key itself, or nothing; RFC 4253 section 6.6, RFC 8709 section 4."""
    try:
        name, *numbers = key_parts(base64.b64decode(data, validate=True))
    except ValueError:
        return "it is damaged, its second word is not the base64 of a key: copy it again, whole"
    if name != kind.encode():
        return f"it says {kind}, but holds {name.decode(errors='replace')[:20]!r}: copy it again"
    if [len(number) for number in numbers] == [32] and kind == "ssh-ed25519":
        return ""
    if kind == "ssh-rsa" and len(numbers) == 2:
        bits = int.from_bytes(numbers[1], "big").bit_length()
        return "" if bits >= RSA_BITS else f"RSA of {bits} bits: use {RSA_BITS} or more, or Ed25519"
    return "it is damaged, a part of it is missing: copy it again, whole"


def key_parts(blob: bytes) -> list[bytes]:
    """The texts that a key is made of, each after its length; raises `ValueError`."""
    parts = []
    while blob:
        end = 4 + int.from_bytes(blob[:4], "big")
        if len(blob) < end:
            raise ValueError("cut")
        parts.append(blob[4:end])
        blob = blob[end:]
    return parts or [b""]
