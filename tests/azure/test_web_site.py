"""Uploads of a release, against Azurite, Microsoft's emulator of storage."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

pytest.importorskip("azure.storage.blob", reason="needs the packages of the extra `azure`")

from azure.core.credentials import AzureNamedKeyCredential
from azure.storage.blob import ContainerClient

from deploy import Refusal
from deploy.azure.web_site import Account, container
from deploy.publish import stale

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's well-known account, https://learn.microsoft.com/azure/storage/common/storage-use-azurite."""

SIGNED = AzureNamedKeyCredential(ACCOUNT, KEY)
"""On Azure it is the operator's token; the SDK sends those over TLS alone."""

AZURITE = Path.home() / ".cache" / "azure-active-passive-cluster" / "azurite"

INSTALL_TRIES = 3


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
        install(npm)
    return str(command)


def install(npm: str) -> None:
    """Have npm install Azurite: where Node is there, a download that fails is no reason to skip."""
    command = [npm, "install", "--prefix", str(AZURITE), "--no-audit", "--no-fund", "azurite@3"]
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=2000"]
    said = ""
    for _ in range(INSTALL_TRIES):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        except subprocess.TimeoutExpired as late:
            said = str(late)
            continue
        if done.returncode == 0:
            return
        said = done.stderr
    pytest.fail(f"npm cannot install Azurite, tried {INSTALL_TRIES} times: {said}")


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
        yield container(f"http://127.0.0.1:{port}/{ACCOUNT}", SIGNED)
    finally:
        process.terminate()
        process.wait(10)


NPM = """#!/bin/sh
echo once >>"$0.tries"
[ "$(wc -l <"$0.tries")" -ge {good} ] || {{ echo ECONNRESET >&2; exit 1; }}
mkdir -p "$3/node_modules/.bin"
touch "$3/node_modules/.bin/azurite-blob"
"""
"""An npm whose first downloads fail; its third argument is the folder to install to."""


def flaky_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, *, good: int) -> Path:
    npm = folder / "npm"
    npm.write_text(NPM.format(good=good))
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(sys.modules[__name__], "AZURITE", folder / "azurite")
    return npm


def test_a_download_that_fails_once_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky_npm(tmp_path, monkeypatch, good=2)
    assert Path(azurite_command()).exists()


def test_where_node_is_there_a_download_that_always_fails_is_no_reason_to_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = flaky_npm(tmp_path, monkeypatch, good=99)
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match="ECONNRESET") as end:
        azurite_command()
    assert end.type is pytest.fail.Exception
    assert npm.with_name("npm.tries").read_text().count("once") == INSTALL_TRIES


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_only_what_differs_is_uploaded_and_it_is_served_as_it_was(site: ContainerClient) -> None:
    account = Account(site, "the web site")
    assert account.served() == {}  # not even the container is there
    assert account.read("bootstrap/loader.py", 100) is None
    site.create_container(public_access="blob")  # in Azure the web site's switch does that
    files = {"bootstrap/loader.py": b"print('agent')\n", "bootstrap/nodes_info.json": b"{}\n"}
    assert stale(files, account.served()) == list(files)
    for name, data in files.items():
        account.write(name, data)
    assert stale(files, account.served()) == []
    files["bootstrap/loader.py"] = b"print('a newer agent')\n"
    assert stale(files, account.served()) == ["bootstrap/loader.py"]
    account.write("bootstrap/loader.py", files["bootstrap/loader.py"])
    assert stale(files, account.served()) == []
    answer = requests.get(f"{site.url}/bootstrap/loader.py", timeout=5)
    assert answer.content == files["bootstrap/loader.py"]
    assert answer.headers["Cache-Control"] == "no-cache"


def switched_on(site: ContainerClient) -> Account:
    """The web site, its container there."""
    if not site.exists():
        site.create_container(public_access="blob")
    return Account(site, "the web site")


def test_of_two_who_replace_what_both_have_read_one_is_refused(site: ContainerClient) -> None:
    account = switched_on(site)
    name = "bootstrap/release.json"
    assert account.read(name, 100) is None
    assert account.replace(name, b"first", None)
    assert not account.replace(name, b"first of another", None)
    found = account.read(name, 100)
    assert found and found.data == b"first"
    assert account.replace(name, b"second", found.tag)
    assert not account.replace(name, b"second of another", found.tag)
    again = account.read(name, 100)
    assert again and again.data == b"second"
    # An answer that got lost is sent again: what is there is ours.
    assert account.replace(name, b"second", found.tag)
    assert account.create("bootstrap/releases/1/release.json", b"1")
    assert account.create("bootstrap/releases/1/release.json", b"1")
    assert not account.create("bootstrap/releases/1/release.json", b"of another")
    with pytest.raises(Refusal, match="more than 5 bytes"):
        account.read(name, 5)


def test_an_empty_file_is_read_as_one(site: ContainerClient) -> None:
    account = switched_on(site)
    account.write("bootstrap/empty", b"")
    found = account.read("bootstrap/empty", 100)
    assert found and found.data == b""
    assert account.replace("bootstrap/empty", b"no longer", found.tag)
