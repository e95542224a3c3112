"""Publishing a release to a folder for any web server; `azure.verbs` publishes to Azure."""

from collections.abc import Mapping
from pathlib import Path

from deploy.files import write_whole


def publish(directory: Path, release: Mapping[str, bytes]) -> None:
    """Write the release under `directory`, for a web server of any user. Raises `OSError`."""
    for name, content in release.items():
        write_whole(directory / name, content)
