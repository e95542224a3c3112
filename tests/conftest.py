"""Fixtures: booted nodes on this machine, and operators of a fake Azure, where tests say so."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.lab import STATE
from deploy.lab.state import TOOLS
from tests.cluster import Cluster, lab

NO_LAB = None
"""As a parameter of `machine`: no lab is up."""


def why_no_lab() -> str:
    """Why no lab can be made here; empty where one can."""
    if os.geteuid() != 0:
        return "the lab needs root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"the lab needs {', '.join(missing)}" if missing else ""


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> Iterator[Cluster | None]:
    """This machine with the lab of (nodes, period in seconds), or with none: its parameter.

    Tests that ask for the same one in a row share it.
    """
    if reason := why_no_lab():
        pytest.skip(reason)
    assert not STATE.exists(), "a lab is up: `lab down` first, the tests make their own"
    try:
        if request.param is NO_LAB:
            yield None
        else:
            cluster = Cluster(*request.param)
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
def cluster(machine: Cluster) -> Iterator[Cluster]:
    """The lab with all its nodes up and the first one active; never two were, in the whole test."""
    machine.watch()
    try:
        machine.restore()
        machine.settles_on("node1")
        yield machine
    finally:
        machine.stop_watching()
    machine.assert_never_two()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The fake of Azure's certificate and its key."""
    from tests.fake_azure.certificate import make_certificate  # noqa: PLC0415 - an extra may be absent

    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def operator(certificate: tuple[Path, Path], tmp_path: Path) -> Iterator[Any]:
    """An operator with a fake of Azure of their own."""
    from tests.azure_cluster import an_operator  # noqa: PLC0415 - as above

    with an_operator(certificate, tmp_path) as one:
        yield one
