"""Signatures by OpenSSH: who may sign a release, signing, verifying. No cryptography of ours.

`ssh-keygen -Y` is in OpenSSH since 8.1 (its PROTOCOL.sshsig); the key may be in an agent or on a
security key. The file of allowed signers is that of ssh-keygen(1), section ALLOWED SIGNERS.
"""

import base64
import binascii
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from deploy import PROJECT, Refusal
from deploy.files import expanded, write_whole

PRINCIPAL = "operator"
SIGNING_SECONDS = 120.0
"""Somebody types a passphrase, or touches a security key."""

CHECK_SECONDS = 10.0
SIGNATURE_BYTES = 16_384  # one of RSA with 16,384 bits is 5 KB
USUAL_KEYS = ("~/.ssh/id_ed25519.pub", "~/.ssh/id_ecdsa.pub", "~/.ssh/id_rsa.pub")
OWN_KEY = "operator_key"
"""In a cluster's state folder: the key of a lab, which nobody had to make."""

NO_OPTION = re.compile(r"(unknown|illegal|invalid) option")
PUBLIC_KEY = re.compile(r"(?P<key>[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2})(?: (?P<comment>.*))?")
SIGNER = re.compile(
    rf'{PRINCIPAL} namespaces="{PROJECT}" (?P<key>[a-z0-9@.-]+ [A-Za-z0-9+/]+=*)( [\x20-\x7e]*)?'
)


# ---- Keys


def operators_key(given: str, folder: Path | None = None) -> Path:
    """The file of the operator's key: the one given, a lab's own, or the first of `USUAL_KEYS`.

    Raises `Refusal` where there is none.
    """
    own = folder / OWN_KEY if folder else None
    if not given and own and own.is_file():
        return own
    paths = [expanded(name) for name in ([given] if given else USUAL_KEYS)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise Refusal(
            f"operator's key: no file {' or '.join(map(str, paths))}: make one with"
            " `ssh-keygen -t ed25519`, or name yours with --key or signing_key in cluster.toml."
        )
    return path


def public_key(path: Path) -> str:
    """The public half, as its type and its base64 and a comment of plain characters.

    `path`: of either half; the public one stands beside a private one. Raises `Refusal`.
    """
    public = path if path.suffix == ".pub" else path.with_name(f"{path.name}.pub")
    if not public.is_file():
        raise Refusal(f"{public}: not there: `ssh-keygen -y -f {path} > {public}` makes it.")
    try:
        found = PUBLIC_KEY.fullmatch(public.read_text(encoding="utf-8").strip())
    except UnicodeDecodeError:
        found = None
    except OSError as error:
        raise Refusal(f"{public}: {error.strerror}: name a readable public key.") from error
    if not found or ssh_keygen("-l", "-f", str(public)).returncode:
        raise Refusal(f"{public}: not a public SSH key: use one line like `ssh-ed25519 AAAA...`.")
    comment = re.sub(r"[^\x21-\x7e]+", " ", found["comment"] or "").strip()
    return f"{found['key']} {comment[:100]}".strip()


def make_key(folder: Path) -> None:
    """Make the key of a lab, mode 0600, unless it is there."""
    key = folder / OWN_KEY
    if not key.exists():
        comment = f"operator of {folder}"
        ran = ssh_keygen("-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key))
        if ran.returncode:
            raise Refusal(f"{key}: can't be made: {last_line(ran)}.")


# ---- Who may sign


def signers_text(keys: Iterable[str]) -> str:
    """A file of allowed signers: each public key as one who may sign releases, and nothing else."""
    return "".join(f'{PRINCIPAL} namespaces="{PROJECT}" {key}\n' for key in keys)


def signers_keys(text: str) -> list[str]:
    """The public keys of such a file; raises `ValueError` where a line is not as we write it."""
    lines = text.splitlines()
    if not lines or any(SIGNER.fullmatch(line) is None for line in lines):
        raise ValueError("a line of the allowed signers is none of ours")
    return [line.split(" ", 2)[2] for line in lines]


def same_key(one: str, other: str) -> bool:
    """Whether two lines hold one key; their comments do not count."""
    return one.split(" ")[:2] == other.split(" ")[:2]


# ---- Signing and verifying


def sign(key: Path, data: bytes) -> bytes:
    """The signature of `data`; ssh-keygen asks for a passphrase on the terminal, if need be.

    Raises `Refusal` in one sentence: no ssh-keygen, an old one, a key that can't be used here.
    """
    with tempfile.TemporaryDirectory(prefix=PROJECT) as folder:
        message = Path(folder) / "release.json"
        write_whole(message, data)
        words = ("-Y", "sign", "-f", str(key), "-n", PROJECT, str(message))
        ran = ssh_keygen(*words, seconds=SIGNING_SECONDS)
        if ran.returncode:
            raise Refusal(f"signing with {key}: {why_unsigned(key, ran)}.")
        return message.with_name("release.json.sig").read_bytes()


def why_unsigned(key: Path, ran: "subprocess.CompletedProcess[bytes]") -> str:
    """What ssh-keygen did not like, and what to do about it."""
    said = last_line(ran)
    if "passphrase" in said:
        return f"{said}: type it on a terminal, or give the key to an agent before: `ssh-add {key}`"
    if "No private key found" in said:
        return f"its private half is neither beside it nor in an agent: `ssh-add` that ({said})"
    return said


def why_unverified(data: bytes, signature: bytes, signers: str) -> str:
    """Why nobody of `signers` has signed `data`, in words; "" where somebody has."""
    with tempfile.TemporaryDirectory(prefix=PROJECT) as folder:
        files = Path(folder) / "allowed_signers", Path(folder) / "release.json.sig"
        for path, content in zip(files, (signers.encode(), signature), strict=True):
            write_whole(path, content)
        words = ("-I", PRINCIPAL, "-n", PROJECT, "-s", str(files[1]))
        ran = ssh_keygen("-Y", "verify", "-f", str(files[0]), *words, data=data)
    return "" if ran.returncode == 0 else "its signature is no operator's"


def ssh_keygen(
    *words: str, data: bytes | None = None, seconds: float = CHECK_SECONDS
) -> "subprocess.CompletedProcess[bytes]":
    """Run ssh-keygen to its end; raises `Refusal` without it, with an old one, or after `seconds`.

    Its standard input is `data` or the operator's own: it may ask there.
    """
    try:
        ran = subprocess.run(
            ["ssh-keygen", *words], input=data, capture_output=True, timeout=seconds, check=False
        )
    except FileNotFoundError as error:
        raise Refusal(
            "ssh-keygen is not installed, and releases are signed with it: install OpenSSH's"
            " client, 8.1 or newer (on Debian and Ubuntu: apt-get install openssh-client)."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise Refusal(
            f"ssh-keygen did not end within {seconds:g} s: it waits for a passphrase, an agent"
            " or a touch; try again."
        ) from error
    if ran.returncode and NO_OPTION.search(ran.stderr.decode("utf-8", "replace")):
        raise Refusal("this ssh-keygen can't sign (no -Y): use OpenSSH 8.1 or newer.")
    return ran


def last_line(ran: "subprocess.CompletedProcess[bytes]") -> str:
    """The last thing that a program said, for a sentence."""
    said = (ran.stderr or ran.stdout).decode("utf-8", "replace").strip().splitlines() or ["nothing"]
    return "".join(c if c.isprintable() else " " for c in said[-1]).strip().rstrip(".")[:300]


# ---- The cluster's key, from one to the next


def wrapped(new: str, old_file: Path) -> str:
    """The cluster's new key for whoever has the old one, as base64.

    `new`: 64 hexadecimal digits; `old_file`: of the old key. The release around it is signed: this
    hides, it does not prove.
    """
    return base64.b64encode(openssl("-e", old_file, f"{new}\n".encode())).decode()


def unwrapped(text: str, old_file: Path) -> str | None:
    """The new key, or None where the old one is another: then this is not for us."""
    try:
        said = openssl("-d", old_file, base64.b64decode(text, validate=True))
    except (binascii.Error, Refusal):
        return None
    found = re.fullmatch(rb"([0-9a-f]{64})\n", said)
    return found[1].decode() if found else None


def openssl(direction: str, key_file: Path, data: bytes) -> bytes:
    """`openssl enc` with the key of a file; raises `Refusal`."""
    words = ("-aes-256-cbc", "-pbkdf2", "-iter", "100000", "-salt", "-pass", f"file:{key_file}")
    try:
        ran = subprocess.run(
            ["openssl", "enc", direction, *words],
            input=data,
            capture_output=True,
            timeout=CHECK_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise Refusal(
            "openssl is not installed, and the cluster's key is handed on with it."
        ) from error
    if ran.returncode:
        raise Refusal(f"{key_file}: openssl can't use it: {last_line(ran)}.")
    return ran.stdout
