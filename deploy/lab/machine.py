"""A node that is a real virtual machine: QEMU, the containers' root file system, Debian's kernel.

It shows what a container can't: while it is paused, its clocks stand still. Its disks are the root
file system (read only, made once) and its own layer above it, an overlay as a container's is.
"""

import contextlib
import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy import Refusal
from deploy.files import make_folder, read_object, write_json, write_whole
from deploy.lab import kernel, process
from deploy.lab.container import ENVIRONMENT, Container, require_running
from deploy.lab.mounts import remove_tree
from deploy.lab.network import MACHINE_HOST, TAP, gateway, mac_address, prefix_length
from deploy.lab.process import output_of
from deploy.plan import Node, Plan

QEMU = "qemu-system-x86_64"
TOOLS = (QEMU, "mkfs.ext4", "ssh", "ssh-keygen")
PACKAGES = "qemu-system-x86 e2fsprogs openssh-client"
KVM_SECONDS = 5.0
MONITOR_SECONDS = 10.0
CLOCK_SECONDS = 30.0

# `lab shell` comes over a network of its own: neither the firewall nor a cut is on its way.
SHELL = """\
[Unit]
Description=What the lab's own commands talk to
DefaultDependencies=no
After=sysinit.target
Conflicts=shutdown.target
Before=shutdown.target

[Service]
RuntimeDirectory=sshd
ExecStart=/usr/sbin/sshd -D -f /etc/lab/sshd.conf
"""
SSHD = f"""\
HostKey /etc/lab/key
AuthorizedKeysFile /etc/lab/key.pub
AllowUsers root@{MACHINE_HOST}
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
"""

MASKED = (
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount"),
    *("sys-kernel-tracing.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount"),
    *("modprobe@.service", "kmod-static-nodes.service", "systemd-pstore.service", "getty.target"),
    *("e2scrub_reap.service", "e2scrub_all.timer", "fstrim.timer"),
)

SET_CLOCK = """
import time
print("ready", flush=True)
time.clock_settime(time.CLOCK_REALTIME, float(input()))
"""
"""It waits through the pause, and sets the clock as soon as it is told what is right."""


def require() -> None:
    """Raise `Refusal` on a computer that can't have a virtual machine in its lab."""
    if platform.machine() != "x86_64":
        raise Refusal(f"--vm needs an x86-64 computer, this one is {platform.machine()}.")
    if platform.freedesktop_os_release().get("ID") != "debian":
        raise Refusal("--vm needs Debian: the virtual machine's kernel is from its packages.")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise Refusal(
            f"{', '.join(missing)} not found: `apt-get install --no-install-recommends {PACKAGES}`"
            " brings what --vm needs."
        )


def is_machine(box: Container) -> bool:
    """Whether the box is a virtual machine."""
    return _settings(box).exists()


def write_layer(box: Container, plan: Plan, node: Node) -> Path:
    """Begin the machine's own layer with what is the lab's in it; gives the folder it is in.

    One key does for both ends: who has it is root on both.
    """
    upper = box.folder / "layer" / "upper"
    key = box.folder / "key"
    make_folder(upper)
    key.unlink(missing_ok=True)
    output_of(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(key)])
    units = upper / "etc/systemd/system"
    write_whole(upper / "etc/lab/key", key.read_bytes(), mode=0o600)
    write_whole(upper / "etc/lab/key.pub", key.with_suffix(".pub").read_bytes())
    write_whole(upper / "etc/lab/sshd.conf", SSHD.encode())
    write_whole(upper / "etc/lab/network", network_script(plan, node).encode())
    write_whole(upper / "etc/hostname", f"{node.name}\n".encode())
    write_whole(units / "lab-shell.service", SHELL.encode())
    mask(units)
    make_folder(units / "basic.target.wants")
    (units / "basic.target.wants/lab-shell.service").symlink_to("../lab-shell.service")
    return upper


def mask(units: Path) -> None:
    """Take from systemd what it does not do in a container either: it takes time to emulate."""
    for name in MASKED:
        (units / name).symlink_to("/dev/null")


def network_script(plan: Plan, node: Node) -> str:
    """Run before systemd is: the network is there from the start, as a container's is."""
    return (
        f"ip link set lo up\nip address add {node.private_ip}/{prefix_length(plan)} dev eth0\n"
        f"ip link set eth0 up\nip route add default via {gateway(plan)}\n"
    )


def make(box: Container, node: Node) -> None:
    """Make the machine of the layer that was begun: its disk, how it is started and spoken to."""
    make_folder(box.folder / "layer" / "work")
    kernel.make_disk(box.folder / "layer", box.folder / "disk", "1G")
    remove_tree(box.folder / "layer")
    write_whole(box.folder / "ssh.conf", ssh_settings(box, node).encode())
    write_json(_settings(box), {"command": qemu(box, node, accelerator())})


def ssh_settings(box: Container, node: Node) -> str:
    """How ssh reaches the machine under the name `machine`."""
    return f"""\
Host machine
    HostName {node.private_ip}
    User root
    IdentityFile {box.folder}/key
    IdentitiesOnly yes
    KexAlgorithms curve25519-sha256
    Ciphers aes128-gcm@openssh.com
    BatchMode yes
    ConnectTimeout 10
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""


def qemu(box: Container, node: Node, accelerated_by: str) -> list[str]:
    """The command line of the machine."""
    boot = kernel.path()
    return [
        *("ip", "netns", "exec", box.namespace, QEMU, "-nodefaults", "-no-user-config"),
        *("-machine", f"pc,accel={accelerated_by}", "-cpu", "max", "-m", "512"),
        *("-display", "none", "-serial", "stdio", "-qmp", f"unix:{_monitor(box)},server,wait=off"),
        *("-kernel", str(boot / "vmlinuz"), "-initrd", str(boot / "initramfs")),
        *("-append", "console=ttyS0 quiet mitigations=off random.trust_cpu=on"),
        *("-drive", f"file={boot / 'root'},format=raw,if=virtio,readonly=on"),
        # What QEMU has written is there when it is killed; a crash of this computer ends the lab.
        *("-drive", f"file={box.folder / 'disk'},format=raw,if=virtio,cache=unsafe"),
        *("-netdev", f"tap,id=net,ifname={TAP},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=net,mac={mac_address(node)},romfile="),
    ]


def accelerator() -> str:
    """`kvm` where a machine with it runs, else `tcg`, the emulator: a device may be there in vain.

    A kernel without a root panics within a second or two, and the machine ends.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    trial = [QEMU, "-nodefaults", "-no-user-config", "-machine", "pc,accel=kvm", "-cpu", "max"]
    trial += ["-display", "none", "-no-reboot", "-kernel", str(kernel.path() / "vmlinuz")]
    try:
        output_of([*trial, "-append", "panic=-1"], seconds=KVM_SECONDS, group="kvm")
    except Refusal:
        return "tcg"
    return "kvm"


def start(box: Container) -> None:
    """Start the machine with the disk it has."""
    command = read_object(_settings(box))["command"]
    process.start(box.name, command, log=box.folder / "console.log")


def command_inside(box: Container, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in the machine as its root.

    Raises `Refusal` if it is off.
    """
    require_running(box)
    terminal = ["-t"] if sys.stdin.isatty() and sys.stdout.isatty() else []
    words = shlex.join([*ENVIRONMENT, f"TERM={os.environ.get('TERM', 'dumb')}", *command])
    ssh = ["ssh", "-F", str(box.folder / "ssh.conf"), *terminal, "machine", words]
    return ["ip", "netns", "exec", box.namespace, *ssh]


def answers(box: Container) -> bool:
    """Whether the machine has booted so far that it runs commands."""
    with contextlib.suppress(Refusal):
        output_of(command_inside(box, ["true"]))
        return True
    return False


def pause(box: Container, seconds: float, step_clock_after: float | None) -> tuple[float, float]:
    """Let the machine and its clocks stand still; gives from when to when, wall clock, seconds.

    `step_clock_after` so many seconds after it goes on, its wall clock is set right, as a host's
    time sample does it; None: never. Raises `Refusal` if it is off, or is no virtual machine.
    """
    require_running(box)
    if not is_machine(box):
        raise Refusal(
            f"{box.name} is a container, and shares this computer's clocks: `lab up --vm"
            f" {box.name}` makes a virtual machine of it; `lab freeze` stops its processes."
        )
    with contextlib.ExitStack() as at_the_end:
        if step_clock_after is not None:
            within = seconds + step_clock_after
            set_clock = at_the_end.enter_context(clock_setter(box, within))
        tell = at_the_end.enter_context(monitor(box))
        tell("stop")
        began = time.time()
        try:
            time.sleep(seconds)
        finally:
            tell("cont")
        ended = time.time()
        if step_clock_after is not None:
            time.sleep(step_clock_after)
            set_clock()
    return began, ended


def go_on(box: Container) -> None:
    """Undo a pause that was not ended."""
    with monitor(box) as tell:
        tell("cont")


@contextmanager
def monitor(box: Container) -> Iterator[Callable[..., None]]:
    """Commands to QEMU: https://www.qemu.org/docs/master/interop/qmp-spec.html.

    A command's arguments go by their names. Raises `Refusal` where it does not answer, or refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(MONITOR_SECONDS)
            connection.connect(str(_monitor(box)))
            with connection.makefile("rw", encoding="utf-8") as lines:

                def tell(command: str, **arguments: object) -> None:
                    asked = {"execute": command, "arguments": arguments}
                    lines.write(json.dumps(asked) + "\n")
                    lines.flush()
                    while "return" not in (said := json.loads(lines.readline() or "{}")):
                        if "event" not in said and "QMP" not in said:
                            raise Refusal(f"QEMU refuses {command} to {box.name}: {said}.")

                tell("qmp_capabilities")
                yield tell
    except OSError as error:
        raise Refusal(f"the monitor of {box.name} does not answer: {error}.") from error


@contextmanager
def clock_setter(box: Container, seconds: float) -> Iterator[Callable[[], None]]:
    """What sets the machine's wall clock right, within `seconds` from now.

    All that takes time is done before. Raises `Refusal` where it can't be set.
    """
    inside = command_inside(box, ["python3", "-u", "-c", SET_CLOCK])
    command = ["timeout", f"{CLOCK_SECONDS + seconds}", *inside]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as there:
        if next(iter(there.stdout or ()), "") != "ready\n":
            raise Refusal(f"the clock of {box.name} can't be set: it runs no command.")

        def set_clock() -> None:
            there.communicate(f"{time.time()}\n")
            if there.returncode:
                raise Refusal(f"the clock of {box.name} was not set: exit code {there.returncode}.")

        yield set_clock


def _settings(box: Container) -> Path:
    return box.folder / "machine.json"


def _monitor(box: Container) -> Path:
    return box.folder / "monitor"
