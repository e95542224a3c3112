"""Uploads of a release, against Azurite, Microsoft's emulator of storage."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

pytest.importorskip("azure.storage.blob", reason="needs the packages of the extra `azure`")

from azure.storage.blob import ContainerClient

from deploy.azure.web_site import container, served, stale, upload

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's well-known account, https://learn.microsoft.com/azure/storage/common/storage-use-azurite."""

AZURITE = Path.home() / ".cache" / "azure-active-passive-cluster" / "azurite"


def azurite_command() -> str:
    """Azurite's command, installed outside the checkout where npm can."""
    found = shutil.which("azurite-blob")
    if found:
        return found
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm for Azurite")
    command = AZURITE / "node_modules" / ".bin" / "azurite-blob"
    if not command.exists():
        install = [
            npm,
            "install",
            "--prefix",
            str(AZURITE),
            "--no-audit",
            "--fetch-retries=0",
            "azurite@3",
        ]
        try:
            subprocess.run(install, check=True, capture_output=True, timeout=240)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"npm cannot install Azurite: {error}")
    return str(command)


@pytest.fixture(scope="module")
def site() -> Iterator[ContainerClient]:
    command = azurite_command()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    where = ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
    process = subprocess.Popen([command, *where, *options])
    try:
        deadline = time.monotonic() + 30
        while not answers(port) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield container(f"http://127.0.0.1:{port}/{ACCOUNT}", ACCOUNT, KEY)
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_only_what_differs_is_uploaded_and_it_is_served_as_it_was(site: ContainerClient) -> None:
    assert served(site) == {}  # not even the container is there
    site.create_container(public_access="blob")  # in Azure the web site's switch does that
    files = {"bootstrap/loader.py": b"print('agent')\n", "bootstrap/nodes_info.json": b"{}\n"}
    assert stale(files, served(site)) == list(files)
    for name, data in files.items():
        upload(site, name, data)
    assert stale(files, served(site)) == []
    files["bootstrap/loader.py"] = b"print('a newer agent')\n"
    assert stale(files, served(site)) == ["bootstrap/loader.py"]
    upload(site, "bootstrap/loader.py", files["bootstrap/loader.py"])
    assert stale(files, served(site)) == []
    answer = requests.get(f"{site.url}/bootstrap/loader.py", timeout=5)
    assert answer.content == files["bootstrap/loader.py"]
    assert answer.headers["Cache-Control"] == "no-cache"
