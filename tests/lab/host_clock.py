"""A stand-in for the host's clock in a virtual machine of the lab: it goes on in a pause.

A page of this computer's memory, where its wall clock is told every few milliseconds, is a device
of the machine. There `/dev/ptp_hyperv` leads to it, and what the agent does is its own: it opens
that name and asks `clock_gettime` for the clock of the descriptor; for such a clock alone Python's
own function is replaced by a look at the page. That systemd lets the agent open a real device is
not seen here.

It is kinder than Hyper-V's clock (`drivers/hv/hv_util.c` of Linux), which is the host's last sample
and what a counter of the machine's has counted since. Samples come every 5 s, and that counter
stops with the machine (the Top Level Functional Specification, Timers): until the first sample
after a pause, the real clock has stood still as the others have. This one is right at once.
"""

import mmap
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.lab import machine, node
from deploy.lab.state import require_lab
from tests.lab.cluster import BootedLab

TICKS = """
import mmap, select, struct, sys, time

with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as page:
    while not select.select([sys.stdin], [], [], 0.005)[0]:
        struct.pack_into("d", page, 0, time.time())
"""
"""Ends with whoever started it. Eight bytes that are aligned are there at once."""

PLUGGED_IN = """
set -e
for _ in $(seq 100); do
    device=$(grep -lx 0x1110 /sys/bus/pci/devices/*/device) && break
    sleep 0.1
done
echo 1 > "${device%/device}/enable"
mkdir -p /run/host-clock /run/systemd/system/loader.service.d
cat > /run/host-clock/sitecustomize.py <<'END'
import mmap, struct, time

of_this_machine = time.clock_gettime

def clock_gettime(clock):
    if clock >= 0:
        return of_this_machine(clock)
    with mmap.mmap(~(clock >> 3), mmap.PAGESIZE, prot=mmap.PROT_READ) as page:
        return struct.unpack_from("d", page)[0]

time.clock_gettime = clock_gettime
END
cat > /run/systemd/system/loader.service.d/host-clock.conf <<'END'
[Service]
Environment=PYTHONPATH=/run/host-clock
END
systemctl daemon-reload
ln -s "${device%/device}/resource2" /dev/ptp_hyperv
"""
"""Waits for the kernel to have the device.

https://www.qemu.org/docs/master/specs/ivshmem-spec.html
"""

TAKEN_AWAY = """
rm -f /dev/ptp_hyperv /run/systemd/system/loader.service.d/host-clock.conf
systemctl daemon-reload
"""


@contextmanager
def host_clock(cluster: BootedLab, name: str) -> Iterator[None]:
    """The agent of a virtual machine reads the host's clock; once between its power on and off."""
    box = node.box(require_lab().node(name))
    with ticking(box.folder / "clock") as page:
        memory = {"qom-type": "memory-backend-file", "mem-path": str(page), "share": True}
        with machine.monitor(box) as tell:
            tell("object-add", id="clock", size=mmap.PAGESIZE, **memory)
            tell("device_add", id="host-clock", driver="ivshmem-plain", memdev="clock")
        cluster.shell(name, "sh", "-c", PLUGGED_IN)
        try:
            cluster.wait(f"{name} reads it", lambda: cluster.status(name).get("host_clock") is True)
            yield
        finally:
            cluster.shell(name, "sh", "-c", TAKEN_AWAY)


@contextmanager
def ticking(path: Path) -> Iterator[Path]:
    """A file of one page that begins with this computer's wall clock: seconds, as a C double."""
    path.write_bytes(bytes(mmap.PAGESIZE))
    # Before all others: what it is late by, the agent takes for a pause.
    command = ["chrt", "--fifo", "1", sys.executable, "-c", TICKS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as ticks:
        try:
            yield path
        finally:
            ticks.terminate()
