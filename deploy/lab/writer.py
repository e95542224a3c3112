"""The lab's demonstration of a service, on the node that has the role: it writes to the collector.

    python3 writer.py HOST PORT

Ten times a second a line of words: node, sequence, wall clock in seconds, term; and waits for the
answer. What is not answered is lost, like a lost connection it is tried again with the next line.
Nothing in it knows of the cluster, but for the term that systemd hands on (CLUSTER_TERM).
"""

import os
import socket
import struct
import sys
import time

INTERVAL_SECONDS = 0.1
TIMEOUT_SECONDS = 1.0


def connected(host: str, port: int) -> socket.socket:
    """A connection that sends nothing more once it is closed, as it is when this is killed."""
    link = socket.create_connection((host, port), timeout=TIMEOUT_SECONDS)
    # Else the kernel goes on with what was under way, for minutes and after a power-on in the lab.
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def write(link: socket.socket, line: str) -> None:
    """Write one line; raises `OSError` where it is not taken."""
    link.sendall(f"{line}\n".encode())
    answer = link.recv(200).decode().strip()
    if answer != "taken":
        raise OSError(answer or "the collector hung up")


def tell_ready() -> None:
    """Tell systemd that this has started: sd_notify(3)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.connect(address.replace("@", "\0", 1))
            link.send(b"READY=1")


def main(host: str, port: int) -> None:
    """Write until somebody ends it."""
    node, term = socket.gethostname(), os.environ.get("CLUSTER_TERM", "0")
    link, sequence, ready, trouble = None, 0, False, ""
    while True:
        sequence += 1
        try:
            link = link or connected(host, port)
            write(link, f"{node} {sequence} {time.time():.3f} {term}")
        except OSError as error:
            if str(error) != trouble:
                print(f"line {sequence} is lost: {error}", flush=True)
            trouble = str(error)
            if link:
                link.close()
            link = None
        else:
            trouble = ""
            if not ready:
                tell_ready()
            ready = True
        time.sleep(INTERVAL_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
