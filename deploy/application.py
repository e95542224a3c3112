"""The application's files that each node gets: the first of them is run there once (`setup`).

In the first-boot document, as long as that has room for them; else a node fetches them from the web
site, and knows them by their SHA-256, which the document has in any case.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from deploy import Refusal
from deploy.files import expanded

Setup = Mapping[str, bytes]
"""File name -> content; the first one is run, the others lie beside it."""

FOLDER = "/etc/bootstrap/setup"
LIST = "/etc/bootstrap/setup.sha256"
"""A line for each file, as `sha256sum` has it, the one that is run first."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
MOST_BYTES = 16 << 20  # of a file; agent/setup.sh reads no more
PROGRAMS = (b"#!", b"\x7fELF")


def read_setup(paths: Iterable[str]) -> dict[str, bytes]:
    """The operator's files; raises `Refusal` for what no node could have, or could run."""
    found: dict[str, bytes] = {}
    for text in paths:
        path = expanded(text)
        try:
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise Refusal(f"setup: {path}: {error.strerror}: name a file that is there.") from error
        if not NAME.fullmatch(path.name) or path.name in found:
            raise Refusal(
                f"setup: {path}: use a name of letters, digits, '-', '_' and '.', at most 100, and"
                " each once, whatever folder it is in."
            )
        if len(content) > MOST_BYTES:
            raise Refusal(
                f"setup: {path}: more than {MOST_BYTES >> 20} MB: let the first file fetch it."
            )
        found[path.name] = content
    for name, content in [*found.items()][:1]:
        if not content.startswith(PROGRAMS):
            raise Refusal(f"setup: {name}: it is run, so begin it with #!, as in #!/bin/sh.")
    return found


def digests(setup: Setup) -> str:
    """The list of the files, empty without any."""
    return "".join(f"{sha256(data).hexdigest()}  {name}\n" for name, data in setup.items())


def web_names(setup: Setup) -> dict[str, bytes]:
    """Under which names the web site has the files; such a name never gets other content."""
    return {
        f"bootstrap/setup/{sha256(data).hexdigest()}/{name}": data for name, data in setup.items()
    }


def write_files(setup: Setup) -> list[dict[str, Any]]:
    """The files as cloud-init writes them, https://cloudinit.readthedocs.io/en/latest/reference/modules.html#write-files."""
    return [
        {
            "path": f"{FOLDER}/{name}",
            **text_or_base64(data),
            "permissions": "0755" if data.startswith(PROGRAMS) else "0644",
        }
        for name, data in setup.items()
    ]


def text_or_base64(data: bytes) -> dict[str, Any]:
    """Text stays readable; YAML has no other bytes."""
    try:
        return {"content": data.decode()}
    except UnicodeDecodeError:
        return {"encoding": "b64", "content": b64encode(data).decode()}
