"""What a virtual machine boots, made once: Debian's cloud kernel, the root file system as a disk.

The kernel finds its disks by modules from a small initramfs, which lays the machine's own layer
over the root file system and hands over to systemd.
"""

import hashlib
import re
from pathlib import Path

from deploy import Refusal
from deploy.files import make_folder, write_whole
from deploy.lab import CACHE, rootfs
from deploy.lab.mounts import remove_tree
from deploy.lab.process import output_of

PACKAGES = ("linux-image-cloud-amd64", "busybox-static")
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net", "crc32c_generic", "ext4", "overlay", "rtc_cmos"),
)
DISK_SIZE = "2G"  # sparse: it takes what the files take
BUILD_SECONDS = 600

# The clock's chip says whole seconds: what is right is known when it goes on to the next one.
INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
for module in $(cat /modules); do insmod "/lib/$module"; done
mount -o ro /dev/vda /lower
mount /dev/vdb /layer
mount -t overlay none -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work /root
. /root/etc/lab/network
read -r began < /sys/class/rtc/rtc0/since_epoch
now=$began
while [ "$now" = "$began" ]; do read -r now < /sys/class/rtc/rtc0/since_epoch; done
date -s "@$now"
for folder in dev proc sys; do mount --move "/$folder" "/root/$folder"; done
exec switch_root /root /sbin/init
"""
FOLDERS = ("bin", "dev", "layer", "lib", "lower", "proc", "root", "sys")

FOLDER, PROGRAM, FILE = 0o040755, 0o100755, 0o100644


def path() -> Path:
    """The folder where `vmlinuz`, `initramfs` and `root` (a disk) of this recipe are or will be."""
    recipe = "\0".join([rootfs.path().name, *PACKAGES, *MODULES, INIT, DISK_SIZE])
    return CACHE / f"machine-{rootfs.codename()}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def build() -> Path:
    """Make them (about a minute; the root file system is there) and remove older ones.

    The folder gets its name only when it is whole. Raises `Refusal` with what mmdebstrap said.
    """
    for old in CACHE.glob("machine-*"):
        remove_tree(old)
    building = CACHE / "machine-building"
    packages = building / "packages"
    make_folder(building)
    extract(packages)
    write_whole(building / "vmlinuz", one(packages, "boot/vmlinuz-*").read_bytes())
    write_whole(building / "initramfs", initramfs(packages))
    make_disk(rootfs.path(), building / "root", DISK_SIZE, "-O", "^has_journal")
    remove_tree(packages)
    return building.rename(path())


def extract(folder: Path) -> None:
    """Unpack the packages and what they depend on; nothing is installed, here or there."""
    command = ["mmdebstrap", "--mode=root", "--variant=extract", f"--include={','.join(PACKAGES)}"]
    command += ['--aptopt=APT::Install-Recommends "false"', rootfs.codename(), str(folder)]
    output_of([*command, str(rootfs.sources())], seconds=BUILD_SECONDS, group="kernel")


def make_disk(content: Path, disk: Path, size: str, *options: str) -> None:
    """Make a disk, for root alone, with an ext4 file system that holds what `content` holds."""
    write_whole(disk, b"", mode=0o600)
    command = ["mkfs.ext4", "-q", "-F", *options, "-d", str(content), str(disk), size]
    output_of(command, seconds=BUILD_SECONDS)


def initramfs(packages: Path) -> bytes:
    """The first file system: `INIT`, its shell, and the modules in the order they are loaded in."""
    modules = {file.name.split(".ko")[0]: file for file in packages.glob("lib/modules/**/*.ko")}
    order: list[str] = []
    for name in MODULES:
        add_module(name, modules, order)
    entries = dict.fromkeys(FOLDERS, (FOLDER, b""))
    entries["init"] = PROGRAM, INIT.encode()
    entries["bin/busybox"] = PROGRAM, one(packages, "bin/busybox").read_bytes()
    entries["modules"] = FILE, "\n".join(order).encode()
    entries |= {f"lib/{name}": (FILE, modules[name].read_bytes()) for name in order}
    return archive(entries)


def add_module(name: str, modules: dict[str, Path], order: list[str]) -> None:
    """Add a module after those that it needs; what the kernel has built in is no module."""
    if name in order or name not in modules:
        return
    needs = re.search(rb"\0depends=([^\0]*)\0", modules[name].read_bytes())
    for other in needs[1].decode().split(",") if needs else []:
        add_module(other.replace("-", "_"), modules, order)
    order.append(name)


def archive(entries: dict[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive as the kernel unpacks it, of path -> (mode, content).

    https://docs.kernel.org/driver-api/early-userspace/buffer-format.html
    """
    parts = []
    for number, (name, (mode, content)) in enumerate([*entries.items(), ("TRAILER!!!", (0, b""))]):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = f"070701{''.join(f'{field:08X}' for field in fields)}{name}\0".encode()
        parts += [padded(head), padded(content)]
    return b"".join(parts)


def padded(text: bytes) -> bytes:
    """The text and as many zeros as make it end at a multiple of four."""
    return text + bytes(-len(text) % 4)


def one(folder: Path, pattern: str) -> Path:
    """The one file of that pattern; raises `Refusal` where there is none."""
    for found in folder.glob(pattern):
        return found
    raise Refusal(
        f"no {pattern} in the packages {', '.join(PACKAGES)}: is this Debian 12 or newer?"
    )
