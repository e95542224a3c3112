"""What the documents name is there: sections, links, paths, tests, modules, commands, words.

A document that names something that has gone misleads whoever needs it at night.
"""

import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from agent import loader
from deploy.settings import Settings
from deploy.verbs import deploy
from tests.protocol.simulate import load_agent
from tests.protocol.test_decide import ROWS, case_of, outcome

CHECKOUT = Path(__file__).parents[2]
FOLDERS = ("agent", "deploy", "systemd", "tests", "docs")
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *sorted(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md")),
]
TEXTS = {".py", ".md", ".conf", ".service", ".timer", ".pml", ".sh", ".toml", ".html", ".txt"}

SECTION = re.compile(r"(?:(docs/[\w-]+\.md|RFC [0-9]+),? )?\bsection ([0-9]+)")
HEADING = re.compile(r"^## ([0-9]+)\. ", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^ *```.*?\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"(?<![\w/.-])(?:\.ci|agent|deploy|systemd|tests|docs)/[\w*./-]*")
TEST_FILE = re.compile(r"\btest_\w+\.py")
DOTTED = re.compile(r"(?<![\w/.-])(?:agent|deploy|tests)(?:\.\w+)+")
COMMAND = re.compile(r"(?:^|[\s/])python3? (-m [\w.]+|[\w./-]+\.py)((?: [\w-]+)*)")


def text_of(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


def code_of(name: str) -> list[str]:
    """What a document shows as code: words between backquotes, and the lines of its blocks."""
    text = text_of(name)
    fenced = [line for block in BLOCK.findall(text) for line in block.splitlines()]
    return [*CODE.findall(text), *fenced, *re.findall("^    .*", text, re.MULTILINE)]


# ---- Sections


def sections_named(name: str) -> Iterator[tuple[str, str]]:
    """(document, number) of each section of ours that a file refers to.

    Without a document's name before it, it is one of the same document; in code, of the protocol.
    """
    itself = name if name.endswith(".md") else "docs/protocol.md"
    joined = re.sub(r"\s*\n\s*[#*]*\s*", " ", text_of(name))  # a reference may be wrapped
    for document, number in SECTION.findall(joined):
        if not document.startswith("RFC"):
            yield document or itself, number


def test_every_section_that_is_referred_to_exists() -> None:
    there = {name: HEADING.findall(text_of(name)) for name in DOCUMENTS}
    files = [path for folder in FOLDERS for path in (CHECKOUT / folder).rglob("*")]
    names = [str(path.relative_to(CHECKOUT)) for path in files if path.suffix in TEXTS]
    references = [(n, *one) for n in {*DOCUMENTS, *names} for one in sections_named(n)]
    assert {"agent/loader.py", "systemd/fence.service"} <= {name for name, *_ in references}
    assert [one for one in references if one[2] not in there.get(one[1], ())] == []


def test_the_sections_of_the_protocol_are_numbered_in_order() -> None:
    numbers = HEADING.findall(text_of("docs/protocol.md"))
    assert numbers == [str(number) for number in range(1, 12)]


# ---- Links and paths


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives the headings of a document."""
    headings = re.findall("^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_somewhere(link: str, document: Path) -> bool:
    name, _, anchor = link.partition("#")
    path = document.parent / name if name else document
    return path.exists() and (not anchor or anchor in anchors(path))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(name: str) -> None:
    ours = [link for link in LINK.findall(text_of(name)) if "://" not in link]
    assert [link for link in ours if not leads_somewhere(link, CHECKOUT / name)] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_and_test_file_that_a_document_names_exists(name: str) -> None:
    words = " ".join(code_of(name))
    paths = [path.rstrip(".") for path in PATH.findall(words)]
    wanted = [*paths, *(f"tests/**/{file}" for file in TEST_FILE.findall(words))]
    assert [path for path in wanted if not any(CHECKOUT.glob(path))] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_table_of_a_document_is_whole(name: str) -> None:
    """GitHub ends a table at an empty line, and shows what comes after it as text."""
    tables = re.findall(r"(?:^\|.*\n)+", text_of(name), re.MULTILINE)
    assert [table for table in tables if "\n|---" not in table] == []
    for table in tables:
        cells = [re.sub(r"`[^`]*`", "", row).count("|") for row in table.splitlines()]
        assert len(set(cells)) == 1, table


# ---- Modules and commands


def is_there(dotted: str) -> bool:
    """Whether this is a module of ours, or what one defines."""
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return False
    return True


def is_program(what: str) -> bool:
    """Whether Python can run this: `-m MODULE`, or a file; of a node's own nothing is known."""
    if not what.startswith("-m "):
        return what.startswith("/") or (CHECKOUT / what).is_file()
    try:
        return find_spec(what[3:]) is not None
    except ImportError:
        return False


def is_verb(words: list[str]) -> bool:
    """Whether `python -m deploy` knows these words; what follows a verb is its own affair."""
    command: click.Command = deploy
    for word in words:
        if word.startswith("-") or word == "VERB" or not isinstance(command, click.Group):
            break
        if word not in command.commands:
            return False
        command = command.commands[word]
    return True


def can_be_run(what: str, words: str) -> bool:
    return is_program(what) and (what != "-m deploy" or is_verb(words.split()))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_module_and_function_that_a_document_names_exists(name: str) -> None:
    named = {dotted for words in code_of(name) for dotted in DOTTED.findall(words)}
    assert [dotted for dotted in sorted(named) if not is_there(dotted)] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_of_a_document_can_be_run(name: str) -> None:
    commands = [found for words in code_of(name) for found in COMMAND.findall(words)]
    assert [found for found in commands if not can_be_run(*found)] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_installs_is_the_checkout_into_its_own_environment(name: str) -> None:
    """Who registers the project's name in a package index would run code on operators' machines.

    Debian 12 and Ubuntu 24.04 install into environments alone: PEP 668.
    """
    installs = [words for words in code_of(name) if "pip install" in words]
    right = ".venv/bin/python -m pip install -e '.[azure]'"
    assert [words for words in installs if right not in words] == []
    assert len(installs) == (name in ("docs/azure.md", "docs/service.md"))


def test_readmes_two_commands_are_there() -> None:
    commands = {"sudo sh deploy/try.sh", "sudo sh tests/run.sh"}
    assert commands <= {line.strip() for line in text_of("README.md").splitlines()}


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("sudo .venv/bin/python -m deploy lab off node1", True),
        ("python -m deploy lab of node1", False),
        ("python -m deploy statsu", False),
        ("python -m tests.docs.timeline", True),
        ("python -m tests.docs.nobody", False),
        ("python tests/protocol/simulate.py --hours 20", True),
        ("python tests/protocol/nobody.py", False),
    ],
)
def test_a_command_that_can_not_be_run_is_told_from_one_that_can(
    words: str, *, right: bool
) -> None:
    assert [can_be_run(*found) for found in COMMAND.findall(words)] == [right]


# ---- Settings and figures


def test_every_setting_is_in_the_documents_with_its_default() -> None:
    section = text_of("docs/azure.md").split("\n## Settings\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    for field in fields(Settings):
        row = next((row for row in rows if f"`{field.name}`" in row.split("|")[1]), "")
        assert row, f"docs/azure.md has no row for {field.name}"
        defaults = field.default if isinstance(field.default, tuple) else (field.default,)
        words = ["true" if one is True else str(one) for one in defaults if one]
        assert [one for one in words if f"`{one}`" not in row] == [], row
    lines = text_of("docs/operate.md").splitlines()
    told = next(line for line in lines if line.startswith("| `/etc/bootstrap/loader.conf`"))
    of_agent = {"period_seconds", *loader.Settings._fields} - {"times"}
    missing = of_agent - set(CODE.findall(told))
    assert not missing, f"docs/operate.md: the row of loader.conf lacks {missing}"


def test_the_figures_in_readmes_table_are_those_that_were_measured() -> None:
    rows = [line for line in text_of("README.md").splitlines() if line.startswith("|")]
    figures = re.findall(r"[0-9.]+ s\b", " ".join(rows[2:]))
    assert len(rows) <= 6 + 11  # those of each kind of fault
    assert figures
    assert [one for one in figures if one not in text_of("docs/measurements.md")] == []


@pytest.mark.parametrize("name", ["README.md", "docs/service.md"])
def test_what_failover_takes_with_a_service_is_what_plan_says(name: str) -> None:
    usual = Settings()
    lengths = usual.period_seconds, usual.look_seconds, usual.pause_seconds, usual.stop_seconds
    longest_seconds = loader.worst_failover_seconds(loader.timing(*lengths))
    assert re.findall(r"\bstart\swithin\s([0-9.]+) s", text_of(name)) == [f"{longest_seconds:.1f}"]


def test_what_a_node_says_in_the_documents_is_what_the_agent_says() -> None:
    table = text_of("docs/operate.md").split("\n## Nobody is active\n")[1].split("\n## ")[0]
    said = [row.split("|")[1].strip(" `") for row in table.splitlines() if row.startswith("| `")]
    assert said
    assert [words for words in said if words not in text_of("agent/loader.py")] == []


def test_the_row_that_a_contributor_adds_fails_for_its_break_as_no_other_row_does() -> None:
    text = text_of("CONTRIBUTING.md")
    ((rule, broken),) = re.findall("make `([^`]+)` into `([^`]+)`", text)
    (paragraph,) = [block for block in BLOCK.findall(text) if "=> ?" in block]
    _, *lines = [line.strip() for line in paragraph.splitlines()]
    added = case_of([line for line in lines if not line.startswith(("=>", "::"))])
    agent = load_agent((rule, broken))
    assert outcome(agent, added) != outcome(load_agent(), added)
    assert [row.place for row in ROWS if outcome(agent, case_of(row.view)) != row.expected] == []


# ---- Words

GLOSSARY = """
node, peer, marker, elector, quorum, vote, promise, stamp, epoch, lease, fence, probe, tick, run,
look, good look, gap, poll, round, calm, ready, yield, rest, hold its vote, failover, failback,
handover,
give up, show, release, publish, version, generation, build, hold, in effect, behind, trial, proven,
drain
"""


def test_the_glossary_says_each_word_once() -> None:
    section = text_of("docs/protocol.md").split("\n## 1. ")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \|", section, re.MULTILINE)[1:]
    told = [word for row in rows for word in row.split(", ")]
    assert len(told) == len(set(told))
    assert {word.strip() for word in GLOSSARY.split(",")} <= set(told)
