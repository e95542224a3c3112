"""SSH keys for operators that tests make up."""

import subprocess
from pathlib import Path


def make_key(path: Path, comment: str, *, passphrase: str = "", kind: str = "ed25519") -> Path:
    """A new key, with its public half beside it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    words = ["-t", kind, "-N", passphrase, "-C", comment, "-f", str(path)]
    subprocess.run(["ssh-keygen", "-q", *words], check=True, timeout=20)
    return path
