"""The judge of the demonstration, its collector and its writer, without a lab."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.lab import collector, demo
from deploy.lab.collector import Collector, Server, Write, read_writes
from deploy.lab.writer import TIMEOUT_SECONDS
from deploy.operate import get, writes_of
from tests.lab.roles import FAULTS, kind_of
from tests.lab.writes import longest_silence_seconds, overlaps, tenures


def line(arrival: float, node: str, term: int, *, late: float = 0.0, taken: bool = True) -> Write:
    return Write(arrival, taken, node, 1, arrival - late, term)


TURNS = [(1, 0), (1, 11), (2, 0)]
IN_TURN = [line(1, "node1", 5), line(2, "node1", 5), line(9, "node2", 7), line(10, "node2", 7)]


def test_one_node_after_the_other_is_no_overlap_and_the_silence_between_them_is_measured() -> None:
    assert overlaps(IN_TURN) == []
    assert longest_silence_seconds(IN_TURN, 0.5, 10.5) == 7
    assert tenures(IN_TURN) == [("node1", 5), ("node2", 7)]


@pytest.mark.parametrize(
    ("late", "words"),
    [
        (line(9.5, "node1", 5), "node2 wrote with term 7 for 0.50 s"),
        (line(9.5, "node1", 5, taken=False), "node2 wrote with term 7 for 0.50 s"),
        (line(11, "node1", 7), "term 7 is written by node1 and node2"),
        (line(11, "node1", 6), "node2 wrote with term 7 for 2.00 s"),
        (line(12, "node1", 8, late=2.5), "node1 wrote with term 8 for 0.50 s"),
        (line(12, "node1", 0), "term 0 is written by node1"),
    ],
    ids=["late", "late and refused", "the same term", "a smaller term", "by its clock", "no term"],
)
def test_it_is_an_overlap_when_a_write_comes(late: Write, words: str) -> None:
    assert words in "\n".join(overlaps([*IN_TURN, late]))


@contextmanager
def collecting(file: Path) -> Iterator[int]:
    """A collector on this machine: its port."""
    with Server(("127.0.0.1", 0), Collector(file)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@contextmanager
def writing(port: int, term: int) -> Iterator["subprocess.Popen[str]"]:
    """The demonstration's program."""
    command = [sys.executable, str(demo.WRITER), "127.0.0.1", str(port)]
    env = os.environ | {"CLUSTER_TERM": str(term)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"not {what}"
        time.sleep(0.05)


def test_a_writer_with_an_older_term_is_refused_told_so_and_noted(tmp_path: Path) -> None:
    file = tmp_path / "writes.log"

    def terms(*, taken: bool) -> set[int]:
        return {write.term for write in read_writes(file) if write.taken == taken}

    with collecting(file) as port, writing(port, 5) as old:
        wait("taken", lambda: terms(taken=True) == {5})
        assert old.stdout
        with writing(port, 6):
            assert old.stdout.readline().endswith("is lost: refused: term 5 is before 6\n")
            wait("refused", lambda: terms(taken=False) == {5})
            told = writes_of(get(f"http://127.0.0.1:{port}/"))
    assert (told.term, told.problem) == (6, "")
    assert told.refused.endswith(f"{os.uname().nodename} with term 5, 0 s ago")
    assert len(overlaps(read_writes(file))) == 1
    with collecting(file) as port, writing(port, 5):  # it still knows
        before = len([*read_writes(file)])
        wait("more", lambda: len([*read_writes(file)]) > before)
        assert not [*read_writes(file)][-1].taken


def test_a_writer_tries_a_lost_connection_again_and_sends_no_line_later() -> None:
    sequences = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        with writing(listener.getsockname()[1], 5) as process:
            for answer in (b"taken\n", b"", b"taken\n"):
                link, _ = listener.accept()
                with link:
                    _, sequence, sent, term = link.recv(200).split()
                    link.sendall(answer)
                sequences.append(int(sequence))
                assert time.time() - float(sent) < TIMEOUT_SECONDS
                assert term == b"5"
            assert process.stdout
            assert "is lost: " in process.stdout.readline()
    assert sequences == sorted(set(sequences))


def test_every_kind_of_fault_comes_once_in_a_round_whose_order_the_seed_says() -> None:
    rounds = [[kind_of(seed, number) for number in range(turn, turn + 11)] for seed, turn in TURNS]
    assert all(sorted(kinds) == sorted(FAULTS) for kinds in rounds)
    assert len({tuple(kinds) for kinds in rounds}) == len(TURNS)


def test_what_is_no_line_is_refused_and_noted_nowhere(tmp_path: Path) -> None:
    noted = Collector(tmp_path / "writes.log")
    for text in ("", "node1 1 2.0", "node1 1 soon 3", "node1 one 2.0 3", "a b c d e"):
        with pytest.raises(ValueError, match=r".+"):
            noted.take(text)
    assert [*read_writes(noted.file)] == []


def test_the_file_of_writes_is_bounded_and_the_one_before_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "MOST_BYTES", 1000)
    noted = Collector(tmp_path / "writes.log")
    for sequence in range(100):
        noted.take(f"node1 {sequence} 2.0 3")
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) < 1100
    kept = [write.sequence for write in read_writes(noted.file)]
    assert kept == [*range(kept[0], 100)]
