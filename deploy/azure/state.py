"""A cluster's folder on the operator's computer: its key, its nodes, where it answers."""

import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from deploy import PROJECT, Refusal
from deploy.files import create_whole, expanded, lock, make_folder, write_json
from deploy.nodes_info import NodesInfo, write_nodes_info
from deploy.publish import HELD


@dataclass(frozen=True)
class State:
    """`nodes_info.json`, `endpoints.json`, `release.json` and `cluster.key` (mode 0600)."""

    folder: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is kept of a cluster."""
        return self.nodes_file, self.endpoints_file, self.key_file, self.folder / HELD

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
        """The cluster's key; made now if there is none, and never in place of another."""
        key = self.key()
        if key is not None:
            return key
        new = f"{secrets.token_hex(32)}\n".encode()
        create_whole(self.key_file, new, mode=0o600, folder_mode=0o700)  # made meanwhile, it counts
        return self.key() or self.key_made_if_missing()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one command at a time work on the cluster; raises `Refusal` while another one does.

        The lock ends with its process, however that ends. A folder with nothing else in it goes.
        """
        try:
            descriptor = self.lock_taken()
        except OSError as error:
            raise Refusal(f"{self.folder}: can't be locked: {error}.") from error
        try:
            self.sweep()
            yield
        finally:
            self.remove_if_empty()  # while the lock is held, so that nobody waits for a lost file
            os.close(descriptor)
            if sys.platform == "win32":  # which removes no file that is open
                self.remove_if_empty()

    def sweep(self) -> None:
        """Remove what a killed process left half-written: whoever holds the lock is alone."""
        for file in self.files:
            for part in self.folder.glob(f".{file.name}.*"):
                part.unlink(missing_ok=True)

    def lock_taken(self) -> int:
        """The descriptor of the lock; a file that was removed before it was locked is no lock."""
        while True:
            make_folder(self.folder, mode=0o700)
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                lock(descriptor)
            except OSError as error:
                os.close(descriptor)
                if not isinstance(error, BlockingIOError | PermissionError):
                    raise
                raise Refusal(
                    f"{self.folder}: another `azure up` or `down` is at work on this cluster:"
                    " wait until it ends."
                ) from None
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)

    @property
    def lock_file(self) -> Path:
        """Says nothing; it is there to be locked."""
        return self.folder / ".lock"

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
        except (OSError, ValueError, RecursionError) as error:
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

    def write_cluster(self, nodes: NodesInfo, endpoints: Mapping[str, str]) -> None:
        """What `status`, `watch` and `publish` read."""
        write_nodes_info(self.nodes_file, nodes, folder_mode=0o700)
        write_json(self.endpoints_file, endpoints, folder_mode=0o700)

    def remove(self) -> None:
        """Forget the cluster; the folder goes with the lock, if nothing else is in it."""
        for file in self.files:
            file.unlink(missing_ok=True)

    def remove_if_empty(self) -> None:
        """Remove a folder that holds nothing but the lock."""
        with suppress(OSError):
            if [*self.folder.iterdir()] == [self.lock_file]:
                self.lock_file.unlink()
                self.folder.rmdir()


def state_of_cluster(name: str) -> State:
    """The folder of a cluster, where this computer keeps the state of programs.

    On Linux https://specifications.freedesktop.org/basedir-spec says where that is.
    """
    home = os.environ.get("XDG_STATE_HOME")
    if sys.platform == "win32":
        home = home or os.environ.get("LOCALAPPDATA")
    return State((Path(home) if home else expanded("~/.local/state")) / PROJECT / name)


def fingerprint(key: str) -> str:
    """Tells two keys apart, and nothing about either."""
    return sha256(f"fingerprint of {key}".encode()).hexdigest()[:16]
