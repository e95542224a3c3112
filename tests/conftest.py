"""What surrounds every test: default signals, booted nodes, operators of a fake Azure."""

import locale
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import Refusal
from deploy.lab import STATE
from deploy.lab import machine as virtual_machine
from deploy.lab.state import TOOLS
from tests.keys import make_key
from tests.lab.cluster import CHECKOUT, BootedLab, lab

NO_LAB = None
"""As a parameter of `machine`: no lab is up."""

OF_THE_STARTER = re.compile(
    r"LANG|LANGUAGE|LC_.*|TERM|COLUMNS|LINES|FORCE_COLOR|NO_COLOR|CLICOLOR.*|TTY_.*"
    r"|XDG_.*|AZURE_.*|PYTHON(UTF8|IOENCODING|COERCECLOCALE|WARNINGS|PATH)"
)
"""Variables that say who started the run, and from where: no test may depend on them."""

OWN_ADDRESSES = "localhost,127.0.0.0/8,169.254.169.254,198.51.100.0/24,203.0.113.0/24"


def pytest_configure() -> None:
    """Tests find the same surroundings from a terminal, a batch job, cron or a strict shell."""
    hand_on_default_signals()
    os.umask(0o022)
    os.chdir(CHECKOUT)
    for name in filter(OF_THE_STARTER.fullmatch, list(os.environ)):
        del os.environ[name]
    os.environ |= {"LANG": "C.UTF-8", "TERM": "dumb"}
    os.environ |= {"no_proxy": OWN_ADDRESSES, "NO_PROXY": OWN_ADDRESSES}
    os.environ.setdefault("HOME", str(home()))
    locale.setlocale(locale.LC_ALL, "")


def home() -> Path:
    """The user's home, also where nobody says it, or the user has none."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir())


def hand_on_default_signals() -> None:
    """What a test starts ends by any signal, also where this run ignores it (`nohup`, `&`).

    A new program goes on ignoring what is ignored, and begins anew what has a handler.
    """
    by_python = {signal.SIGPIPE, signal.SIGXFSZ}  # which subprocess takes care of
    for number in signal.valid_signals() - by_python:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def why_no_lab() -> str:
    """Why no lab can be made here; empty where one can."""
    if os.geteuid() != 0:
        return "the lab needs root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"the lab needs {', '.join(missing)}" if missing else ""


def skip_without_machines() -> None:
    """Skip what needs a virtual machine where there can be none, with the reason."""
    try:
        virtual_machine.require()
    except Refusal as refusal:
        pytest.skip(str(refusal))


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> Iterator[BootedLab | None]:
    """This machine with the lab of (nodes, period, look[, absorbed pause in seconds[, names of
    those that are virtual machines]]), or with none: its parameter.

    Tests that ask for the same one in a row share it.
    """
    if reason := why_no_lab():
        pytest.skip(reason)
    assert not STATE.exists(), "a lab is up: `lab down` first, the tests make their own"
    try:
        if request.param is NO_LAB:
            yield None
        else:
            cluster = BootedLab(*request.param)
            if cluster.machines:
                skip_without_machines()
            cluster.up()
            yield cluster
    finally:
        lab("down")


@pytest.fixture
def no_lab(machine: None) -> Iterator[None]:
    """No lab is up; what the test brings up goes down at its end."""
    yield machine
    lab("down")


@pytest.fixture
def watched(machine: BootedLab) -> Iterator[BootedLab]:
    """The lab with all its nodes up and the first one active."""
    machine.watch()
    try:
        machine.restore()
        machine.settles_on("node1")
        yield machine
    finally:
        machine.stop_watching()


@pytest.fixture
def cluster(watched: BootedLab) -> Iterator[BootedLab]:
    """The lab as above, and never two were active in the whole test."""
    yield watched
    watched.stop_watching()
    watched.assert_never_two()


@pytest.fixture(scope="session")
def home_with_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an SSH key in it, of which nobody has to say anything."""
    home = tmp_path_factory.mktemp("home")
    make_key(home / ".ssh" / "id_ed25519", "me@home")
    return home


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The fake of Azure's certificate and its key."""
    from tests.azure.fake_azure.certificate import make_certificate  # noqa: PLC0415 - an extra may be absent

    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def operator(certificate: tuple[Path, Path], tmp_path: Path) -> Iterator[Any]:
    """An operator with a fake of Azure of their own."""
    from tests.azure.operators import an_operator  # noqa: PLC0415 - as above

    with an_operator(certificate, tmp_path) as one:
        yield one


@pytest.fixture(scope="module")
def standing(
    certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """An operator whose cluster is there, for tests that only ask."""
    from tests.azure.operators import an_operator, made  # noqa: PLC0415 - as above

    with an_operator(certificate, tmp_path_factory.mktemp("cluster")) as one:
        yield made(one)
