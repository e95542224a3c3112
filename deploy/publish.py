"""Publishing: the newest release of a web site, and the next one, signed and put in its place.

A web site is a folder (of any web server, of the lab) or a storage account (`deploy.azure`). What
nodes take has a name that never gets other content: `releases/SHA256/loader.py`,
`releases/GENERATION/release.json` and its signature. The one name that changes, `release.json`, is
put there after these, and only if it still is what the new one was made from. So whoever asks finds
a whole release, and of two operators at the same moment one is refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import md5
from pathlib import Path
from typing import NamedTuple, Protocol

from deploy import Refusal
from deploy.files import create_whole, json_text, locked, write_whole
from deploy.release import (
    AGENT,
    RELEASE_BYTES,
    Release,
    check,
    check_change,
    check_ends,
    key_words,
    release_of,
    release_text,
    renewed,
    utc_text,
)
from deploy.signing import (
    SIGNATURE_BYTES,
    public_key,
    sign,
    signers_keys,
    signers_text,
    unwrapped,
    why_unverified,
)

RELEASE, SIGNATURE = "bootstrap/release.json", "bootstrap/release.json.sig"
HELD = "release.json"
"""In a cluster's state folder: the newest release that was seen there. Whose signature counts is in
it, and that no older one is taken for the newest."""

SITE = "site"
"""In a cluster's state folder: its web site, where that is a folder."""

MOST_STEPS = 200  # releases that are looked at between the one that was seen and the newest
TAKEN = "another operator publishes at this moment: look at `status`, and try again."


class Found(NamedTuple):
    """A file of a web site, and what tells this version of it from any other."""

    data: bytes
    tag: str


class Site(Protocol):
    """Where the files of a web site are."""

    @property
    def where(self) -> str:
        """For a sentence."""

    def read(self, name: str, limit_bytes: int) -> Found | None:
        """A file; None where there is none."""

    def create(self, name: str, data: bytes) -> bool:
        """Put a file where there is none; whether it is there now, with this content."""

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        """Put a file in the place of the one with that tag, None: of none; whether it is there."""

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, whatever was there."""

    def served(self) -> Mapping[str, bytes]:
        """The MD5 of the files: it finds a difference, it does not prove an origin."""


# ---- What is published


@dataclass(frozen=True)
class Newest:
    """The release that nodes are told of, its signature, and how it came to be."""

    release: Release
    data: bytes
    tag: str | None  # None: the web site has lost it
    signature: bytes
    since: tuple[Release, ...] = ()  # those that came after the one that was seen last, and it


def signature_name(generation: int) -> str:
    """Where the signature of a generation is."""
    return f"bootstrap/releases/{generation}/release.json.sig"


def release_name(generation: int) -> str:
    """Where a generation stays."""
    return f"bootstrap/releases/{generation}/release.json"


def newest(site: Site, held: Release | None, signers: str) -> Newest | None:
    """The newest release, verified; None where there is none.

    `held`: the one that was seen last, which counts where the web site has lost it; without:
    `signers` may sign. Releases between that and the newest are followed one by one, because each
    says who may sign the next. Raises `Refusal` for what nobody has signed who may, and for one
    that is older than what was seen.
    """
    found = site.read(RELEASE, RELEASE_BYTES)
    if found is None:
        return Newest(held, release_text(held), None, b"") if held else None
    where = f"{site.where}/{RELEASE}"
    release = release_of(found.data, where)
    refuse_older(release, held, where)
    chain = [*followed(site, release.generation, held, signers)]
    signers = chain[-1].allowed_signers if chain else held.allowed_signers if held else signers
    signature = site.read(signature_name(release.generation), SIGNATURE_BYTES)
    why = (
        why_unverified(found.data, signature.data, signers) if signature else "it has no signature"
    )
    if held and release == held:
        why = ""  # it was verified before, and may have changed who signs the next
    if why:
        raise Refusal(
            f"{where}: generation {release.generation}: {why}: copy {HELD} from the state folder of"
            " an operator who knows better, or find out who wrote it."
        )
    steps = (*chain, release) if release != held else ()
    return Newest(release, found.data, found.tag, signature.data if signature else b"", steps)


def refuse_older(release: Release, held: Release | None, where: str) -> None:
    """Refuse what is no successor of a release that was seen."""
    if held is None:
        return
    same = release.generation == held.generation
    if release.generation < held.generation or (same and release != held):
        raise Refusal(
            f"{where}: generation {release.generation} of {release.published!r}, but generation"
            f" {held.generation} of {held.published} was seen before: somebody put"
            f" {'another' if same else 'an older'} one there; nodes do not take it."
        )


def followed(site: Site, last: int, held: Release | None, signers: str) -> Iterator[Release]:
    """The verified releases after `held` and before generation `last`, in order.

    A number may have been left out, by a publication that came to no end.
    """
    first = max(held.generation if held else 0, last - MOST_STEPS) + 1
    signers = held.allowed_signers if held else signers
    for generation in range(first, last):
        found = site.read(release_name(generation), RELEASE_BYTES)
        signature = site.read(signature_name(generation), SIGNATURE_BYTES) if found else None
        if not found or not signature or why_unverified(found.data, signature.data, signers):
            continue
        release = release_of(found.data, f"{site.where}/{release_name(generation)}")
        if release.generation == generation:
            signers = release.allowed_signers
            yield release


# ---- What was seen of a cluster


def held_release(folder: Path | None) -> Release | None:
    """The newest release that was seen, of a cluster's state folder."""
    file = folder / HELD if folder else None
    if file is None or not file.exists():
        return None
    return release_of(file.read_bytes(), str(file))


def hold(folder: Path | None, found: Newest, *, folder_mode: int = 0o700) -> None:
    """Remember a release in the cluster's state folder, and a new key of the cluster."""
    if folder is None:
        return
    key_file = folder / "cluster.key"
    for release in found.since:
        key = unwrapped(release.cluster_key, key_file) if release.cluster_key else None
        if key:
            write_whole(key_file, f"{key}\n".encode(), mode=0o600, folder_mode=folder_mode)
    write_whole(folder / HELD, found.data, folder_mode=folder_mode)


def found_on(site: Site, folder: Path | None, key: Path) -> Newest | None:
    """The newest release of a cluster, remembered in its state folder.

    Where none was seen before, it has to be one that this operator's key has begun.
    """
    found = newest(site, held_release(folder), signers_text([public_key(key)]))
    if found and found.since:
        hold(folder, found)
    return found


# ---- The next one


@dataclass(frozen=True)
class Publication:
    """What was published, from what; `after` is `before` where there was nothing to change."""

    before: Newest | None
    after: Newest
    written: tuple[str, ...]  # the names of the files


def publish(
    site: Site,
    before: Newest | None,
    wanted: Release,
    *,
    key: Path,
    now: float,
    code: bytes | None = None,
) -> Publication:
    """Make `wanted` the newest release, and mend what the web site lacks of it.

    `before`: the newest of now, from which `wanted` was made; nothing is signed where they say the
    same. `code`: the agent, where it may be new. Raises `Refusal` for what breaks a rule, for what
    can't be signed, and where another operator was faster.
    """
    if before and is_published(before, wanted, now):
        return Publication(before, before, tuple(mend(site, before, code)))
    if before:
        check_change(before.release, wanted)
    check_ends(wanted, now)
    number = next_generation(site, before.release.generation if before else 0)
    wanted = replace(wanted, generation=number, published=utc_text(now))
    check(wanted)
    data = release_text(wanted)
    after = Newest(wanted, data, None, sign(key, data), (wanted,))
    refuse_stranger(after, before.release if before else wanted, key)
    written = [*put(site, after, before, code)]
    return Publication(before, after, (*written, *mend(site, after, code)))


def refuse_stranger(new: Newest, before: Release, key: Path) -> None:
    """Refuse to publish what no node would take."""
    if why_unverified(new.data, new.signature, before.allowed_signers):
        names = ", ".join(map(key_words, signers_keys(before.allowed_signers)))
        raise Refusal(
            f"{key}: no operator's of this cluster, who are {names}: let one of them run"
            f" `keys add` with your public key first."
        )


def is_published(before: Newest, wanted: Release, now: float) -> bool:
    """Whether the newest release says what is wanted."""
    same = renewed(before.release, now) == renewed(wanted, now)
    return same and before.tag is not None and wanted.cluster_key is None


def next_generation(site: Site, last: int) -> int:
    """The next number that nobody has begun to publish."""
    for number in range(last + 1, last + MOST_STEPS):
        if site.read(signature_name(number), SIGNATURE_BYTES) is None:
            return number
    raise Refusal(f"{site.where}: has {MOST_STEPS} releases that nobody finished: remove them.")


def put(site: Site, new: Newest, before: Newest | None, code: bytes | None) -> Iterator[str]:
    """Put a release in the place of the one before, so that it is whole for whoever asks.

    The signature takes its number. The release itself is there under it afterwards (`mend`): who
    follows what was published meets nothing that was put aside.
    """
    release = new.release
    if code is not None:
        name = f"bootstrap/releases/{release.files[AGENT].sha256}/{AGENT}"
        site.write(name, code)
        yield name
    generation = release.generation
    if not site.create(signature_name(generation), new.signature):
        raise Refusal(f"{site.where}: {TAKEN}")
    yield signature_name(generation)
    if before:  # its publication may have been cut short just there
        site.create(release_name(before.release.generation), before.data)
    if not site.replace(RELEASE, new.data, before.tag if before else None):
        raise Refusal(f"{site.where}: {TAKEN}")
    yield RELEASE


def mend(site: Site, found: Newest, code: bytes | None) -> Iterator[str]:
    """Write what belongs to a release and is not there: also a publication that was cut short.

    Under its number a release is for nodes that missed it; the names without one are for people,
    for first boots, and for nodes from before there were releases.
    """
    files = files_beside(found, code)
    for name in stale(files, site.served()):
        site.write(name, files[name])
        yield name


def files_beside(found: Newest, code: bytes | None) -> dict[str, bytes]:
    """What is served beside `release.json`, by its name; the agent where its bytes are at hand."""
    release = found.release
    agents = {f"releases/{release.files[AGENT].sha256}/{AGENT}": code, AGENT: code}
    beside = {
        **{f"bootstrap/{name}": content for name, content in agents.items() if content is not None},
        "bootstrap/nodes_info.json": json_text(release.nodes).encode(),
        release_name(release.generation): found.data,
        **({SIGNATURE: found.signature} if found.signature else {}),
    }
    return {name: beside[name] for name in sorted(beside)}


def stale(files: Mapping[str, bytes], served: Mapping[str, bytes]) -> list[str]:
    """The names whose bytes are not what the web site serves, by MD5."""
    return [name for name, data in files.items() if served.get(name) != digest(data)]


def digest(data: bytes) -> bytes:
    """Storage keeps an MD5 of every blob: it finds a difference, it does not prove an origin."""
    return md5(data, usedforsecurity=False).digest()


# ---- A folder


@dataclass(frozen=True)
class Folder:
    """A folder that any web server serves, of any user. Its methods raise `OSError`."""

    path: Path

    @property
    def where(self) -> str:
        """Its name."""
        return str(self.path)

    def read(self, name: str, limit_bytes: int) -> Found | None:
        """A file, with its content for a tag."""
        try:
            with (self.path / name).open("rb") as file:
                data = file.read(limit_bytes + 1)
        except FileNotFoundError:
            return None
        if len(data) > limit_bytes:
            raise Refusal(f"{self.path / name}: more than {limit_bytes} bytes: not what we write.")
        return Found(data, digest(data).hex())

    def create(self, name: str, data: bytes) -> bool:
        """Put a file where there is none, as whole as any."""
        return create_whole(self.path / name, data) or (self.path / name).read_bytes() == data

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        """Compare and write while nobody else does."""
        with locked(self.path / "bootstrap" / ".lock", TAKEN):
            found = self.read(name, RELEASE_BYTES)
            if (found.tag if found else None) != tag:
                return False
            self.write(name, data)
            return True

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, whole."""
        write_whole(self.path / name, data)

    def served(self) -> dict[str, bytes]:
        """The MD5 of every file that is not hidden."""
        files = (file for file in (self.path / "bootstrap").rglob("[!.]*") if file.is_file())
        return {file.relative_to(self.path).as_posix(): digest(file.read_bytes()) for file in files}
