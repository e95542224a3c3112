"""Fixtures that several files of tests share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


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
