"""A node's front page in a real browser, against a web server that stands for the node."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.web import Asked, Page, Site, open_web, status_page

PAGE = (Path(__file__).parents[2] / "agent" / "index.html").read_text()
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PEERS = {
    "node2": {"sees": True, "seen_by": True, "votes_for": "node1"},
    "node3": {"sees": True, "seen_by": False, "votes_for": None},
}

browser = pytest.mark.browser


@pytest.fixture
def node() -> Iterator[Site]:
    """node1, active since its last look three seconds ago."""
    with open_web() as web:
        site = web.site("127.0.0.1")
        site.pages["/"] = Page(PAGE.replace("@NODE@", "node1"))
        site.pages["/status.json"] = status_page("node1", "active", peers=PEERS)
        site.pages["/probe.html"] = Page()
        yield site


@pytest.fixture
def opened(node: Site, tmp_path: Path) -> Callable[..., str]:
    """Opens the page and gives the document as it is then: at first, or by a later moment."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    chromium = CHROMIUM

    def open_page(until: str = "--virtual-time-budget=2500") -> str:
        command = [chromium, *OPTIONS, f"--user-data-dir={tmp_path}", until, "--dump-dom"]
        return subprocess.run(
            [*command, node.url + "/"], capture_output=True, text=True, timeout=60, check=True
        ).stdout

    return open_page


def text(page: str, name: str) -> str:
    """The text of the element with this id."""
    found = re.search(rf'id="{name}"[^>]*>([^<]*)<', page)
    assert found, f"no element {name} in the page"
    return found[1]


def rows(page: str) -> list[list[str]]:
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    return [re.findall(r">([^<>]+)</t[hd]>", row) for row in body.split("<tr>")[1:]]


def shows_details(page: str) -> bool:
    return 'id="more" aria-label="Details">' in page


def test_the_page_is_small_and_needs_nothing_from_elsewhere() -> None:
    assert len(PAGE.encode()) < 6_000
    assert not re.search(r"https?:|//[a-z]|@import|\bsrc=|innerHTML|document\.write", PAGE)
    assert "<h1>@NODE@</h1>" in PAGE


@browser
def test_an_active_node_says_so_with_its_reason_and_links(
    node: Site, opened: Callable[..., str]
) -> None:
    vote = {"candidate": "node1", "seconds": 126.1}
    node.pages["/status.json"] = status_page(
        "node1",
        "active",
        peers=PEERS,
        vote=vote,
        lease_seconds=125.9,
        term=1811793600,
        version="0.2.0",
        generation="3f2a90c1d2e4",
        period_seconds=20,
        look_seconds=2,
        fresh_seconds=4.8,
    )
    page = opened()
    assert text(page, "role") == "● Active"
    assert text(page, "reason") == "because node1"
    assert re.fullmatch(r"Last look \d s ago; it looks every 2 s", text(page, "age"))
    assert re.fullmatch(r"promised to node1 for 12\d s more", text(page, "vote"))
    assert re.fullmatch(r"12\d s more", text(page, "lease"))
    assert text(page, "version") == "0.2.0 3f2a90c1d2e4"
    assert text(page, "term") == "1811793600"
    assert rows(page) == [["node2", "yes", "yes", "node1"], ["node3", "yes", "no", "-"]]
    assert shows_details(page)


@browser
def test_a_node_from_before_there_were_looks_looks_once_in_its_period(
    node: Site, opened: Callable[..., str]
) -> None:
    node.pages["/status.json"] = status_page("node1", "active", age_seconds=35, period_seconds=30)
    page = opened()
    assert text(page, "role") == "● Active"
    assert re.fullmatch(r"Last look 3\d s ago; it looks every 30 s", text(page, "age"))


@browser
def test_a_passive_node_that_has_just_booted_says_so(
    node: Site, opened: Callable[..., str]
) -> None:
    node.pages["/status.json"] = status_page("node1", "passive", holding_seconds=100)
    del node.pages["/probe.html"]
    page = opened()
    assert text(page, "role") == "○ Passive"
    assert re.fullmatch(r"none for 9\d s more: just booted", text(page, "vote"))
    assert (text(page, "lease"), text(page, "version")) == ("-", "-")


UNKNOWN: dict[str, tuple[dict[str, Page | Callable[[Asked], Page]], str]] = {
    "it has not looked for as long as its news is fresh": (
        {
            "/status.json": status_page(
                "node1",
                "active",
                age_seconds=7,
                period_seconds=20,
                look_seconds=2,
                fresh_seconds=4.8,
            )
        },
        "It has not looked for more than 4.8 s. It last said active: because node1",
    ),
    "it is from before there were looks, and has not run for 1.45 periods": (
        {"/status.json": status_page("node1", "active", age_seconds=17, period_seconds=10)},
        "It has not looked for more than 14.5 s. It last said active: because node1",
    ),
    "it says how long its news is fresh in no number": (
        {
            "/status.json": status_page(
                "node1", "active", age_seconds=40, period_seconds="x", fresh_seconds="long"
            )
        },
        "It has not looked for more than 29 s. It last said active: because node1",
    ),
    "its probe has expired": (
        {"/probe.html": Page("forbidden", 403)},
        "It says active, but its probe answers 403.",
    ),
    "its status is missing": (
        {"/status.json": Page("not found", 404)},
        "Its status.json cannot be had (404).",
    ),
    "its status is garbage": (
        {"/status.json": Page("<html>")},
        "Its status.json cannot be read.",
    ),
    "its clock was set back": (
        {"/status.json": status_page("node1", "active", age_seconds=-300)},
        "Its last look lies in the future: its clock was set back. It last said active:"
        " because node1",
    ),
}


@browser
@pytest.mark.parametrize("case", UNKNOWN)
def test_the_role_is_unknown_when(case: str, node: Site, opened: Callable[..., str]) -> None:
    pages, reason = UNKNOWN[case]
    node.pages |= pages
    page = opened()
    assert text(page, "role") == "? Unknown"
    assert text(page, "reason") == reason
    assert not shows_details(page)


@browser
def test_an_open_page_does_not_keep_an_old_role(node: Site, opened: Callable[..., str]) -> None:
    first = status_page("node1", "active", peers=PEERS)
    node.pages["/status.json"] = lambda asked: (
        first(asked) if len(node.asked_for("/status.json")) == 1 else Page("", 500)
    )
    assert text(opened(), "role") == "● Active"
    node.asked.clear()
    page = opened("--virtual-time-budget=12000")
    assert text(page, "role") == "? Unknown"
    assert text(page, "reason") == "Its status.json cannot be had (500)."


@browser
def test_an_answer_that_does_not_end_is_given_up_and_asked_for_again(
    node: Site, opened: Callable[..., str]
) -> None:
    first = status_page("node1", "active", period_seconds=2, age_seconds=0)
    endless = Page("x" * 300, pause_seconds=0.2)
    node.pages["/status.json"] = lambda asked: (
        first(asked) if len(node.asked_for("/status.json")) == 1 else endless
    )
    node.pages["/wait"] = endless  # the browser leaves once everything has loaded
    node.pages["/"] = Page(PAGE + '<iframe src="/wait"></iframe>')
    page = opened("--timeout=8000")  # real time: virtual time waits for answers
    assert text(page, "role") == "? Unknown"
    assert len(node.asked_for("/status.json")) > 2


@browser
def test_without_scripts_the_page_is_the_nodes_name(node: Site, opened: Callable[..., str]) -> None:
    headers = {"Content-Security-Policy": "script-src 'none'"}
    node.pages["/"] = Page(PAGE.replace("@NODE@", "node1"), headers=headers)
    page = opened()
    assert "<h1>node1</h1>" in page
    assert "<title>node1</title>" in page
    assert '<main hidden="">' in page
    assert node.asked_for("/status.json") == []


@browser
def test_behind_the_load_balancer_the_page_names_the_node_that_answers(
    node: Site, opened: Callable[..., str]
) -> None:
    node.pages["/status.json"] = status_page("node2", "active")
    page = opened()
    assert "<h1>node2</h1>" in page
    assert text(page, "reason") == "because node2"


@browser
def test_what_a_node_says_stays_text(node: Site, opened: Callable[..., str]) -> None:
    markup = "<img src=x onerror=alert(1)>"
    peers = {markup: {"sees": markup, "seen_by": None, "votes_for": markup}, "node3": None}
    node.pages["/status.json"] = status_page(
        "node1", "active", reason=markup, version=markup, zone=7, peers=peers, vote=markup
    )
    page = opened()
    assert "<img" not in page
    assert text(page, "reason") == "&lt;img src=x onerror=alert(1)&gt;"
    assert rows(page)[1] == ["node3", "-", "-", "-"]
