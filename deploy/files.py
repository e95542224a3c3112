"""Files and folders that others read: whole or not at all, with modes that no umask narrows."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy import Refusal


def write_whole(path: Path, content: bytes, *, mode: int = 0o644, folder_mode: int = 0o755) -> None:
    """Write a file so that it appears whole or not at all, in a folder made where there is none."""
    with staged(path, content, mode=mode, folder_mode=folder_mode) as part:
        part.replace(path)


def create_whole(
    path: Path, content: bytes, *, mode: int = 0o644, folder_mode: int = 0o755
) -> bool:
    """Write a file as `write_whole` does, but never in place of another; whether it is this one."""
    with staged(path, content, mode=mode, folder_mode=folder_mode) as part:
        try:
            os.link(part, path)
        except FileExistsError:
            return False
    return True


def write_json(path: Path, content: object, *, folder_mode: int = 0o755) -> None:
    """Write a file of JSON, as `write_whole` does."""
    write_whole(path, json_text(content).encode(), folder_mode=folder_mode)


def json_text(content: object) -> str:
    """JSON as every file of ours has it."""
    return json.dumps(content, indent=2) + "\n"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `Refusal` for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise Refusal(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise Refusal(f"{path} must hold a JSON object.")
    return content


@contextmanager
def staged(path: Path, content: bytes, *, mode: int, folder_mode: int) -> Iterator[Path]:
    """A whole file beside its place, to be moved there; what is not moved does not stay.

    Its name is one that nobody can have known, and it is private until it is whole.
    """
    make_folder(path.parent, mode=folder_mode)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(mode)
        yield part
    except OSError as error:
        error.filename = str(path)  # a full disk does not say of which file
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(file: Path, busy: str) -> Iterator[None]:
    """Let one process at a time do something; raises `Refusal` with `busy` while another one does.

    The file stays, and says nothing; the lock ends with its process.
    """
    create_whole(file, b"")
    descriptor = os.open(file, os.O_RDONLY)
    try:
        try:
            lock(descriptor)
        except (BlockingIOError, PermissionError):
            raise Refusal(busy) from None
        yield
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> None:
    """Lock a file for this process alone; raises `OSError` at once where another has it."""
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415 - each is only there on its own system

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl  # noqa: PLC0415

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def make_folder(folder: Path, *, mode: int = 0o755) -> None:
    """Make a folder and those above it that are missing; what is there keeps its mode."""
    if folder.is_dir():
        return
    make_folder(folder.parent, mode=mode)
    folder.mkdir(exist_ok=True)
    folder.chmod(mode)


def expanded(path: str) -> Path:
    """The path with `~` as the operator's home; raises `Refusal` where there can be none."""
    if "\0" in path:
        raise Refusal(f"{path!r}: no file has a name with a NUL in it: leave that out.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise Refusal(f"{path}: whose home that is, is not known: set HOME to a folder.") from error
