"""Mounts of the lab, and the removal of folders that may have some below them."""

import shutil
from pathlib import Path

from deploy import Refusal
from deploy.files import make_folder
from deploy.lab.process import output_of


def mount_overlay(lower: Path, folder: Path) -> Path:
    """Mount `folder`/root: what `lower` holds, with what was changed kept in `folder`/upper."""
    root, upper, work = folder / "root", folder / "upper", folder / "work"
    for path in (root, upper, work):
        make_folder(path)
    if root not in mounts_below(folder):
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        output_of(["mount", "-t", "overlay", "overlay", "-o", options, str(root)])
    return root


def mounts_below(folder: Path) -> list[Path]:
    """What is mounted at `folder` or below it, the innermost first."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    mounted = [Path(line.split()[1].replace("\\040", " ")) for line in lines]
    return [path for path in reversed(mounted) if path.is_relative_to(folder)]


def remove_tree(folder: Path) -> None:
    """Unmount everything below `folder`, then delete it; absent is fine.

    Raises `Refusal` rather than delete through a mount that stays.
    """
    for path in mounts_below(folder):
        output_of(["umount", "--lazy", str(path)])
    if mounts_below(folder):
        raise Refusal(f"{mounts_below(folder)[0]} cannot be unmounted: see `fuser -vm` on it.")
    if folder.exists():
        shutil.rmtree(folder)
