"""The lab's demonstration: a service that runs with the role, and says in lines who it runs on."""

from pathlib import Path

from deploy.application import FOLDER, Setup
from deploy.lab import COLLECTOR
from deploy.lab.collector import PORT

UNIT = "demo.service"
WRITER = Path(__file__).with_name("writer.py")

SETUP = f"""\
#!/bin/sh
set -e
install -m 644 {UNIT} /etc/systemd/system/
systemctl daemon-reload
systemctl enable {UNIT}
"""

JOINED = f"""\
[Unit]
Description=Writes who runs it to the lab's collector, ten times a second
PartOf=active.target

[Service]
Type=notify
ExecStart=/usr/bin/python3 {FOLDER}/{WRITER.name} {COLLECTOR} {PORT}

[Install]
WantedBy=active.target
"""


def application() -> Setup:
    """What each node gets, and runs once."""
    return {
        "setup.sh": SETUP.encode(),
        UNIT: JOINED.encode(),
        WRITER.name: WRITER.read_bytes(),
    }
