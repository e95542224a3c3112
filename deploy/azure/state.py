"""A cluster's folder on the operator's computer: its key, its nodes, where it answers."""

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from deploy import Refusal

PROJECT = "azure-active-passive-cluster"


@dataclass(frozen=True)
class State:
    """`nodes_info.json`, `endpoints.json` and `cluster.key` (mode 0600) in one folder."""

    folder: Path

    @property
    def key_file(self) -> Path:
        """32 random bytes as hex: authenticates the nodes' markers, never leaves by any log."""
        return self.folder / "cluster.key"

    def key(self) -> str | None:
        """The cluster's key, or None before it was made."""
        try:
            key = self.key_file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise Refusal(f"{self.key_file}: cannot be read: {error}.") from error
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise Refusal(f"{self.key_file}: holds no key; it should be 64 hexadecimal digits.")
        return key

    def key_made_if_missing(self) -> str:
        """The cluster's key; made now if there is none."""
        key = self.key()
        if key is None:
            key = secrets.token_hex(32)
            self.write("cluster.key", f"{key}\n", mode=0o600)
        return key

    @property
    def nodes_file(self) -> Path:
        """The nodes in order of preference."""
        return self.folder / "nodes_info.json"

    @property
    def endpoints_file(self) -> Path:
        """Where the cluster answers."""
        return self.folder / "endpoints.json"

    def endpoints(self) -> dict[str, str]:
        """What `up` wrote about where the cluster answers.

        Raises `Refusal` where there is none, or it does not lead to a storage account on Azure.
        """
        try:
            found = json.loads(self.endpoints_file.read_bytes())
        except (OSError, ValueError) as error:
            raise Refusal(
                f"{self.endpoints_file}: can't be read: run `azure up`, or name a cluster's state"
                " folder with --cluster, or a web server's folder with --to."
            ) from error
        wanted = {"storage", "storage_account", "resource_group", "subscription", "arm_endpoint"}
        missing = sorted(wanted - set(found if isinstance(found, dict) else ()))
        if missing:
            raise Refusal(
                f"{self.endpoints_file}: {missing[0]!r} is not in it: it takes an `azure up` to"
                " write it."
            )
        return {"authority": "", "web_site": "", **found}

    def write_cluster(
        self, nodes: Mapping[str, Mapping[str, str]], endpoints: Mapping[str, str]
    ) -> None:
        """What `status`, `watch` and `publish` read."""
        self.write(self.nodes_file.name, json.dumps(nodes, indent=2) + "\n")
        self.write(self.endpoints_file.name, json.dumps(endpoints, indent=2) + "\n")

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        """A whole file or none; private from its first byte on where the mode says so."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self.folder / f".{name}.{os.getpid()}"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.folder / name)

    def remove(self) -> None:
        """Forget the cluster; the folder goes if nothing else is in it."""
        for file in (self.nodes_file, self.endpoints_file, self.key_file):
            file.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def state_of_cluster(name: str) -> State:
    """The folder of a cluster, below XDG_STATE_HOME (https://specifications.freedesktop.org/basedir-spec)."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return State(Path(home) / PROJECT / name)


def fingerprint(key: str) -> str:
    """Tells two keys apart, and nothing about either."""
    return sha256(f"fingerprint of {key}".encode()).hexdigest()[:16]
