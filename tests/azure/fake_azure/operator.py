"""Runs `python -m deploy` against the fake, as a process, the way an operator would."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.azure.fake_azure.azure import SUBSCRIPTION, TENANT, FakeAzure
from tests.azure.fake_azure.server import CLIENT, SECRET
from tests.keys import make_key

CHECKOUT = Path(__file__).resolve().parents[3]
LIMIT_SECONDS = 60
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN7r0v4m3xkPz0Jm2m8cQwq6k1YdVtV5b0m3uH5o9Wpe me@home"
NAME = "active-passive-cluster"

FORKS = multiprocessing.get_context("forkserver")
"""A process a command, without the second that loading the SDK takes."""
FORKS.set_forkserver_preload(
    ["deploy.verbs", "deploy.azure.verbs", "tests.azure.fake_azure.operator"]
)
START = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    output: str
    seconds: float
    cpu_seconds: float = 0.0


@dataclass
class Operator:
    """Somebody with a folder, an SSH key, a sign-in and a file of settings."""

    azure: FakeAzure
    folder: Path
    certificate: Path
    environment: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        """Set everything up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "id.pub").write_text(SSH_KEY + "\n")
        for name, content in signing_key().items():
            write_private(self.folder / ".ssh" / name, content)
        self.settings()
        clean = {k: v for k, v in os.environ.items() if not k.startswith("AZURE_")}
        self.environment = clean | {
            "AZURE_TENANT_ID": TENANT,
            "AZURE_CLIENT_ID": CLIENT,
            "AZURE_CLIENT_SECRET": SECRET,
            "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
            "REQUESTS_CA_BUNDLE": str(self.certificate),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "HOME": str(self.folder),
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(CHECKOUT),
            "COLUMNS": "160",
        }

    @property
    def state(self) -> Path:
        """The cluster's folder."""
        return self.folder / "state" / "azure-active-passive-cluster" / NAME

    def settings(self, **changed: object) -> None:
        """Write the file of settings."""
        values = {
            "ssh_key": str(self.folder / "id.pub"),
            "ssh_from": f"{self.azure.url}/my-address",
            **changed,
        }
        lines = [f"{key} = {toml(value)}" for key, value in values.items()]
        (self.folder / "cluster.toml").write_text("\n".join(lines) + "\n")

    def arguments(self, verb: str, *more: str) -> list[str]:
        """A verb of `azure` with the options that lead it to the fake."""
        url = self.azure.url
        config = str(self.folder / "cluster.toml")
        where = ["--arm-endpoint", url, "--authority", url, "--config", config]
        return ["azure", verb, *where, *more]

    def run(self, verb: str, *more: str) -> Outcome:
        """Run a verb in a process of its own, to its end."""
        begun = time.monotonic()
        process, output = self.start(verb, *more)
        process.join(LIMIT_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            raise TimeoutError(output.read_text())
        return Outcome(process.exitcode or 0, output.read_text(), time.monotonic() - begun)

    def start(self, verb: str, *more: str) -> tuple[Any, Path]:
        """Start a verb; `azure.kill` now means its process."""
        with START:
            self.count += 1
            output = self.folder / f"output-{self.count}"
            process = FORKS.Process(
                target=run_deploy,
                args=(self.arguments(verb, *more), self.environment, str(output)),
            )
            process.start()
        self.azure.kill = lambda: kill(process)
        return process, output

    def execute(self, verb: str, *more: str, typed: str = "") -> Outcome:
        """Run a verb of `azure` as `python -m deploy`, with something typed at its questions."""
        return self.deploy(*self.arguments(verb, *more), typed=typed)

    def answer_late(
        self, verb: str, question: str, meanwhile: Callable[[], None], answer: str = NAME
    ) -> Outcome:
        """Run a verb that asks; what happens meanwhile happens before the answer."""
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy", *self.arguments(verb)],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        limit = threading.Timer(LIMIT_SECONDS, process.kill)
        limit.start()
        assert process.stdout is not None
        asked = b""
        while not asked.endswith(question.encode()) and (more := process.stdout.read(1)):
            asked += more
        meanwhile()
        rest, _ = process.communicate(f"{answer}\n".encode())
        limit.cancel()
        output = (asked + rest).decode()
        return Outcome(process.returncode, output, time.monotonic() - begun)

    def deploy(self, *words: str, typed: str = "") -> Outcome:
        """Run `python -m deploy` with these words."""
        begun, used = time.monotonic(), cpu_seconds()
        done = subprocess.run(
            [sys.executable, "-m", "deploy", *words],
            env=self.environment,
            cwd=self.folder,
            input=typed,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        seconds = time.monotonic() - begun
        return Outcome(done.returncode, done.stdout + done.stderr, seconds, cpu_seconds() - used)


@cache
def signing_key() -> dict[str, bytes]:
    """The key in the operator's home that signs releases, and its public half."""
    with tempfile.TemporaryDirectory() as folder:
        key = make_key(Path(folder) / "id_ed25519", "me@home")
        return {path.name: path.read_bytes() for path in (key, key.with_suffix(".pub"))}


def write_private(path: Path, content: bytes) -> None:
    """A file as ssh-keygen wants a private key to be."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)


def cpu_seconds() -> float:
    """What the processes that we waited for have used of a processor."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def kill(process: Any) -> None:
    """Kill -9, and be sure of it."""
    os.kill(process.pid, signal.SIGKILL)
    process.join(LIMIT_SECONDS)


def toml(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def run_deploy(arguments: list[str], environment: Mapping[str, str], output: str) -> None:
    """The child's part: be `python -m deploy` with these arguments."""
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.argv = ["deploy", *arguments]
    from deploy.__main__ import main  # noqa: PLC0415 - loaded before the fork

    sys.exit(main())
