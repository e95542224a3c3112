"""The storage of the lab's demonstration: takes lines of `writer`, and refuses an older term.

    python -m deploy.lab.collector FILE

Each line goes into FILE, behind the moment of its arrival (wall clock, seconds) and whether it was
"taken" or "refused". What is refused is answered and hung up on: a storage that compares the term
stops a writer from before, even one that slept through everything. A GET at the same port tells in
JSON who writes.
"""

import json
import socketserver
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from deploy.lab import COLLECTOR

PORT = 7001
READ_SECONDS = 5.0
MOST_BYTES = 4 << 20
"""Of the file, an hour and a half of ten lines a second; the one before it is kept, too."""
LINE_BYTES = 200


class Write(NamedTuple):
    """A line, and when it arrived; times in seconds of the wall clock."""

    arrival: float
    taken: bool
    node: str
    sequence: int
    time: float  # the node's own
    term: int

    def __str__(self) -> str:
        verdict = "taken" if self.taken else "refused"
        sent = f"{self.node} {self.sequence} {self.time:.3f} {self.term}"
        return f"{self.arrival:.3f} {verdict} {sent}\n"


def parsed(line: str, arrival: float, *, taken: bool = True) -> Write:
    """A line of `writer`; raises `ValueError` for any other."""
    node, sequence, sent, term = line.split()
    if not node.isprintable():
        raise ValueError(f"{node!r} is no name")
    return Write(arrival, taken, node, int(sequence), float(sent), int(term))


def before(file: Path) -> Path:
    """The file that was full."""
    return file.with_name(f"{file.name}.1")


def read_writes(file: Path) -> Iterator[Write]:
    """All that the collector has noted, as it arrived."""
    for path in (before(file), file):
        for line in (
            path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ()
        ):
            if line.endswith("\n"):  # else it is being written
                arrival, verdict, words = line.split(" ", 2)
                yield parsed(words, float(arrival), taken=verdict == "taken")


class Collector:
    """What was taken and refused so far, in a file of bounded size."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.term = 0  # the greatest seen
        self.since = 0.0  # the first line taken of it
        self.last: dict[bool, Write] = {}  # taken or not -> the newest
        self._lock = Lock()
        for write in read_writes(file):
            self._count(write)
        self._log = file.open("a", encoding="utf-8")

    def take(self, line: str) -> Write:
        """Note a line; raises `ValueError` for what is none of `writer`."""
        with self._lock:
            write = parsed(line, time.time())
            write = write._replace(taken=write.term >= self.term)
            self._count(write)
            self._log.write(str(write))
            self._log.flush()
            if self._log.tell() > MOST_BYTES:
                self._log.close()
                self.file.replace(before(self.file))
                self._log = self.file.open("a", encoding="utf-8")
        return write

    def _count(self, write: Write) -> None:
        if write.taken and write.term > self.term:
            self.term, self.since = write.term, write.arrival
        self.last[write.taken] = write

    def told(self) -> dict[str, object]:
        """Who writes, since when, how old the last line is; and whom it refused last, in words."""
        with self._lock:
            now, taken, refused = time.time(), self.last.get(True), self.last.get(False)
        told: dict[str, object] = {}
        if taken:
            told = {"node": taken.node, "term": taken.term, "since": self.since}
            told["age_seconds"] = round(now - taken.arrival, 3)
        if refused:
            ago = f"{now - refused.arrival:.0f} s ago"
            told["refused"] = f"{refused.node} with term {refused.term}, {ago}"
        return told


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], collector: Collector) -> None:
        self.collector = collector
        super().__init__(address, Connection)


class Connection(socketserver.StreamRequestHandler):
    """Lines of one writer, or one question."""

    server: Server
    timeout = READ_SECONDS
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer each line, until one is refused or none comes."""
        try:
            while line := self.rfile.readline(LINE_BYTES).decode("utf-8", "replace"):
                if line.startswith("GET "):
                    return self._tell()
                write = self.server.collector.take(line)
                term = self.server.collector.term
                answer = "taken" if write.taken else f"refused: term {write.term} is before {term}"
                self.wfile.write(f"{answer}\n".encode())
                if not write.taken:
                    return None
        except ValueError:
            self.wfile.write(b"refused: use node, sequence, seconds, term\n")
        except OSError:
            pass  # it is gone, or silent for too long
        return None

    def _tell(self) -> None:
        while self.rfile.readline(LINE_BYTES).strip():
            pass
        body = json.dumps(self.server.collector.told())
        head = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nConnection: close"
        self.wfile.write(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


if __name__ == "__main__":
    Server((COLLECTOR, PORT), Collector(Path(sys.argv[1]))).serve_forever()
