"""deploy/ is a house of floors: who may import whom, and that each fact stands in one place."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from agent import loader
from deploy import PROJECT, lab
from deploy.plan import NETWORK
from deploy.settings import SERVICE, Settings, service_of

CHECKOUT = Path(__file__).parents[2]

FLOORS = {
    "what all need": ("deploy", "deploy.files", "deploy.checkout"),
    "settings and plan": (
        *("deploy.settings", "deploy.ports", "deploy.plan", "deploy.nodes_info", "deploy.signing"),
    ),
    "what a node gets": (
        *("deploy.release", "deploy.publish", "deploy.userdata", "deploy.application"),
    ),
    "who makes a cluster, who looks at it": ("deploy.lab", "deploy.azure", "deploy.operate"),
    "showing, and options": ("deploy.show", "deploy.options"),
    "verbs of one place": ("deploy.azure.cli", "deploy.azure.verbs", "deploy.lab.commands"),
    "every verb": ("deploy.releases", "deploy.verbs"),
    "the command": ("deploy.__main__",),
}
"""From the bottom up. A module imports from its own floor or from lower ones; of a package, those
that are not named stand where it does.
"""

TALKS = "showing, and options"
"""From this floor on modules may print, ask and read a command line."""


def name_of(path: Path) -> str:
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    name_of(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(CHECKOUT.glob("deploy/**/*.py"))
}


def named(node: ast.AST) -> Iterator[str]:
    """What a statement or a call imports, by full names: of `from a import b` both a and a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"line {node.lineno}: name the package"
        yield str(node.module)
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from (str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))


def imports(code: ast.Module) -> set[str]:
    """Everything that a module imports anywhere, in its functions too."""
    return {name for node in ast.walk(code) for name in named(node)}


def packages(name: str) -> set[str]:
    """The packages around a module: importing it imports them."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def needs(name: str, code: ast.Module) -> set[str]:
    """The modules of deploy/ that one of them needs."""
    found = imports(code) & SOURCES.keys()
    return set().union(found, packages(name), *map(packages, found)) - {name}


NEEDS = {name: needs(name, code) for name, code in SOURCES.items()}


def floor_of(name: str) -> int:
    """The floor that names a module, else the one of the package around it."""
    numbers = {module: n for n, modules in enumerate(FLOORS.values()) for module in modules}
    package = name.rpartition(".")[0]
    assert name in numbers or package in numbers.keys() - {"deploy"}, f"{name} is on no floor"
    return numbers[name] if name in numbers else numbers[package]


# ------------------------------------------------ imports


def test_no_module_needs_one_that_needs_it() -> None:
    try:
        order = [*TopologicalSorter(NEEDS).static_order()]
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))
    assert set(order) == SOURCES.keys()


def test_an_import_is_seen_wherever_it_stands() -> None:
    code = """
import deploy.files
def later():
    from deploy.lab import cloud
    return importlib.import_module("deploy.azure.verbs")
"""
    assert needs("deploy.plan", ast.parse(code)) == {
        *("deploy", "deploy.files", "deploy.lab", "deploy.lab.cloud"),
        *("deploy.azure", "deploy.azure.verbs"),
    }


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_imports_from_no_higher_floor(name: str) -> None:
    assert [other for other in NEEDS[name] if floor_of(other) > floor_of(name)] == []


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_below_the_verbs_neither_prints_nor_reads_a_command_line(name: str) -> None:
    if floor_of(name) < [*FLOORS].index(TALKS):
        roots = {imported.partition(".")[0] for imported in imports(SOURCES[name])}
        assert roots.isdisjoint({"click", "rich"})


# ------------------------------------------------ facts


def facts(name: str) -> Iterator[tuple[str, object]]:
    """Every number and text of a module's code, and the words around it; no docstrings."""
    for statement in ast.walk(SOURCES[name]):
        if isinstance(statement, ast.stmt) and not is_text(statement):
            parts = [p for p in ast.iter_child_nodes(statement) if not isinstance(p, ast.stmt)]
            words = " ".join(map(ast.unparse, parts)).lower()
            inside = (node for part in parts for node in ast.walk(part))
            yield from ((words, node.value) for node in inside if isinstance(node, ast.Constant))


def is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


FACTS = [(name, words, value) for name in SOURCES for words, value in facts(name)]


def places(fact: str) -> list[str]:
    """The modules with a text that has the fact in it as a word, once for each."""
    word = re.compile(rf"(?<![\w.-]){re.escape(fact)}(?![\w-])")
    return [name for name, _, value in FACTS if isinstance(value, str) and word.search(value)]


DEFAULTS = {
    f"the default of {field.name}": str(field.default)
    for field in fields(Settings)
    if isinstance(field.default, str)
    and field.default not in ("", "public", "stay")  # of many uses
}


@pytest.mark.parametrize(
    ("fact", "place"),
    [
        *((fact, "deploy.settings") for fact in DEFAULTS.values()),
        (NETWORK, "deploy.plan"),
        (PROJECT, "deploy"),
        (lab.OPERATOR, "deploy.lab"),
        (lab.WEB_SITE, "deploy.lab"),
        (lab.LOAD_BALANCER, "deploy.lab"),
        (lab.PUBLIC_NETWORK, "deploy.lab"),
        ("/lab", "deploy.lab"),  # the end of the folder of its state
    ],
)
def test_a_name_or_an_address_stands_in_one_place(fact: str, place: str) -> None:
    assert places(fact) == [place]


def test_the_default_times_stand_in_one_place_and_are_the_agents(tmp_path: Path) -> None:
    period, look, pause = Settings.period_seconds, Settings.look_seconds, Settings.pause_seconds
    for default, word in ((period, "period"), (look, "look_seconds"), (pause, "pause_seconds")):
        number = re.compile(rf"(?<![\w.]){default}(?![\w.])")
        found = [
            name for name, words, value in FACTS if word in words and number.search(str(value))
        ]
        assert found == ["deploy.settings"], word
    without = loader.read_settings(tmp_path / "loader.conf")
    assert (without.times.period_seconds, without.peer_address) == (period, Settings.peer_address)
    assert without.times.look_seconds == loader.usual_look_seconds(period) == look
    assert without.times.pause_seconds == pause
    of_service = {name: getattr(without, name) for name in SERVICE}
    assert service_of(Settings()) == of_service


def test_how_old_news_may_be_is_the_agents_to_say() -> None:
    fresh = loader.timing(20, 20, 0).fresh_seconds / 20
    assert [name for name, _, value in FACTS if value == fresh] == []


# ------------------------------------------------ one reader, one writer


def users(*names: str) -> set[str]:
    """The modules that call, or import, one of these."""
    return {
        module
        for module, code in SOURCES.items()
        for node in ast.walk(code)
        if getattr(node, "attr", getattr(node, "id", getattr(node, "name", None))) in names
    }


def test_nodes_info_has_one_reader_and_its_names_one_pattern() -> None:
    assert users("parse_nodes_info") == {"deploy.nodes_info"}
    assert not users("NODE_NAME")


def test_files_have_one_writer() -> None:
    assert users("mkstemp", "NamedTemporaryFile") == {"deploy.files"}
    # The kernel's files of control groups are no files of ours.
    assert users("write_text", "write_bytes") == {"deploy.lab.process"}
