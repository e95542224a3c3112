"""What the operator sees: a plan, a cluster, and what changes in it."""

from collections import deque
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import click
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent.loader import worst_failover_seconds
from deploy.operate import NodeView, View, Writes, changes, late
from deploy.plan import Plan, is_url
from deploy.release import utc_text
from deploy.settings import times_of

# ---- A plan


def print_plan(plan: Plan, console: Console) -> None:
    """The plan as two tables and a line."""
    nodes = Table("node", "zone", "private address", "size", title=f"Plan of {plan.name}")
    for node in plan.nodes:
        nodes.add_row(node.name, str(node.zone), node.private_ip or "as Azure gives", node.size)
    console.print(nodes)
    rules = Table("inbound rule", "priority", "protocol", "port", "from", title="On every node")
    for rule in plan.firewall:
        port = "any" if rule.port is None else str(rule.port)
        source = "your own address" if is_url(rule.source) else rule.source
        rules.add_row(rule.name, str(rule.priority), rule.protocol, port, source)
    console.print(rules)
    lengths = plan.period_seconds, plan.look_seconds, plan.pause_seconds
    start_seconds, stop_seconds = plan.service["start_seconds"], plan.service["stop_seconds"]
    longest_seconds = worst_failover_seconds(times_of(*lengths))
    serving_seconds = worst_failover_seconds(times_of(*lengths, stop_seconds))
    setup = f" Each node runs {Path(plan.setup[0]).name} once." if plan.setup else ""
    console.print(
        f"Region {plan.region}; network {plan.network or plan.subnet}; image {plan.image};"
        f" {'internal ' * (plan.frontend == 'internal')}load balancer for"
        f" {', '.join(map(str, plan.ports))}, idle {plan.idle_minutes} min at most, probe"
        f" {plan.probe.path} at port {plan.probe.port} every"
        f" {plan.probe.interval_seconds} s, threshold {plan.probe.threshold}; nodes ask each"
        f" other's {plan.peer_address} address every {plan.look_seconds} s, in runs of the agent"
        f" that begin every {plan.period_seconds} s."
        f" Pauses of a machine are absorbed up to {plan.pause_seconds} s."
        f" They {'heed' if plan.scheduled_events else 'do not heed'} Azure's scheduled events."
        f" Worst-case failover {longest_seconds:.1f} s, and then the probe's interval."
        f" With a service in active.target that stops within {stop_seconds} s, it begins to start"
        f" within {serving_seconds:.1f} s, and may take {start_seconds} s."
        f" {checks_in_words(plan)}{setup}",
        highlight=False,
    )


def checks_in_words(plan: Plan) -> str:
    """What becomes of a node that has health checks."""
    told = plan.service
    return (
        f"A health check ends within {told['health_seconds']} s; a node is unhealthy after"
        f" {told['unhealthy_after']} failed rounds of them, and well after"
        f" {told['healthy_after']} good ones; an active one for which nobody else could serve"
        f" {told['unhealthy']}s."
    )


# ---- A cluster

CHANGES_SHOWN = 5
COLUMNS = (
    "node\nzone",
    "public\nprivate",
    "role\nversion",
    "vote\nlease",
    "last look\nagent",
    "load balancer",
)
STYLES = {"active": "bold green", "passive": "", "unknown": "bold yellow"}


def picture(view: View) -> RenderableType:
    """The table of the nodes, their reasons, and the one sentence; for 80 columns and more."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in COLUMNS:
        table.add_column(name)
    reasons = Table.grid(padding=(0, 2))
    for node in view.nodes:
        table.add_row(*_cells(node, served=node.node == view.served))
        reasons.add_row(Text(node.node, STYLES[node.role]), Text(node.reason))
    sentence = Text(view.sentence, "bold green" if view.verdict == "served" else "bold red")
    terms = [node.term for node in view.nodes if node.node == view.active and node.term]
    sentence.append("".join(f" Term {term}." for term in terms), "not bold default")
    failover = [node.worst_case_failover_seconds or 0 for node in view.nodes]
    if any(failover):
        sentence.append(f" Worst-case failover {max(failover):g} s.", "not bold default")
    told = (*_writes(view.writes), *_setups(view), *_pauses(view), *_releases(view))
    return Group(table, reasons, "", sentence, *told)


def _writes(writes: Writes | None) -> list[Text]:
    """Whose writes arrive in the lab's demonstration."""
    if not writes:
        return []
    if writes.problem:
        return [Text(f"Demonstration: its collector: {writes.problem}.", "bold yellow")]
    if not writes.node:
        return [Text("Demonstration: nobody has written yet.", "bold yellow")]
    since = f"since {datetime.fromtimestamp(writes.since, timezone.utc):%H:%M:%SZ}"
    told = f"Demonstration: {writes.node} writes {since}, term {writes.term}"
    last = f", the last line {writes.age_seconds:.1f} s ago."
    lines = [Text(told + last, "" if writes.age_seconds < 1 else "bold yellow")]
    return lines + [Text(f"Refused: {writes.refused}.", "yellow")] * bool(writes.refused)


def _setups(view: View) -> list[Text]:
    """Which nodes have no application yet, or could not serve, and why."""
    told = {node.node: f"setup: {node.setup}" if node.setup else node.unfit for node in view.nodes}
    return [Text(f"{name}: {why}", "bold yellow") for name, why in told.items() if why]


def _releases(view: View) -> list[Text]:
    """Which release is in force, who is behind and why, and what was asked for that holds now.

    Nodes whose agent knows of no releases are only worth a word beside others that do.
    """
    known = [node for node in view.nodes if node.release]
    newest = max((node.release.held for node in known if node.release), default=0)
    if not known:
        return []
    behind = late(view, newest) if newest else {}
    refused = {node.node: node.release.refused for node in known if node.release}
    lines = [Text(f"Release {newest}." if newest else "No release is held.", "dim")]
    lines += [Text(f"{name}: release {newest}: {why}.", "yellow") for name, why in behind.items()]
    lines += [
        Text(f"{name} refuses {why}", "bold yellow")
        for name, why in refused.items()
        if why and why != behind.get(name)
    ]
    on_trial = [node.node for node in known if node.release and not node.release.proven]
    lines += [Text(f"{name}: its new agent is on trial.", "yellow") for name in on_trial]
    return lines + [Text(line) for line in _asked_for(known)]


def _asked_for(nodes: list[NodeView]) -> list[str]:
    """What operators have asked for and is not usual, as the nodes say it."""
    drained = [node.node for node in nodes if node.drained]
    preferred = {node.prefer for node in nodes if node.prefer}
    ends = [node.maintenance_until for node in nodes if node.maintenance_until]
    rules = {node.failback for node in nodes if node.failback not in (None, "auto")}
    return [
        *([f"Drained: {', '.join(drained)}."] if drained else []),
        *(f"Preferred for now: {name}." for name in sorted(filter(None, preferred))),
        *([f"Maintenance until {utc_text(max(ends))}: the role stays."] if ends else []),
        *(f"Failback: {rule}." for rule in sorted(filter(None, rules))),
    ]


def _pauses(view: View) -> list[Text]:
    """What becomes of a host's pauses, where a node reads no clock that goes on meanwhile."""
    without = [node.pause_seconds or 0 for node in view.nodes if node.host_clock is False]
    if not without:
        return []
    longer = f"Beyond {min(without):g} s pauses are noticed when the clock is stepped."
    return [Text(longer, "dim")]


def _cells(node: NodeView, *, served: bool) -> list[Text]:
    style = STYLES[node.role]
    role = node.role.upper() if node.role == "active" else node.role
    # An agent from before there were versions told its generation as one.
    version = (node.generation and node.version) or "-"
    generation = node.generation or node.version or "-"
    checks = node.health_check or ("" if served else "-")
    return [
        Text.assemble((node.node, style), f"\nzone {node.zone}"),
        Text(f"{node.public_ip}\n{node.private_ip}"),
        Text.assemble((role, style), f"\n{version[:8]}"),
        Text("\n".join(_promises_in_words(node)) or "-"),
        Text(f"{_ago(node.age_seconds)}\n{generation[:8]}"),
        Text("\n".join(filter(None, [checks, "serves it" if served else ""]))),
    ]


def _promises_in_words(node: NodeView) -> list[str]:
    lines = []
    if node.holding_seconds:
        lines.append(f"no vote {node.holding_seconds:.0f} s")  # it has just booted
    if node.vote:
        lines.append(f"vote {node.vote.candidate} {node.vote.seconds:.0f} s")
    if node.lease_seconds:
        lines.append(f"lease {node.lease_seconds:.0f} s")
    return lines


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s ago" if seconds < 600 else f"{seconds / 60:.0f} min ago"


# ---- What changes


def watch_live(console: Console, views: Iterator[View]) -> None:
    """The table, anew with every view, and the last changes under it."""
    seen: deque[str] = deque([f"{_now()} watching"], maxlen=CHANGES_SHOWN)
    before = None
    with Live(console=console, auto_refresh=False) as live:
        for view in views:
            news: list[str] = changes(before, view) if before else []
            seen.extend(f"{_now()} {line}" for line in news)
            before = view
            last = [Text(line, no_wrap=True, overflow="ellipsis", style="dim") for line in seen]
            live.update(Group(picture(view), "", *last), refresh=True)


def watch_lines(views: Iterator[View]) -> None:
    """One line for every change."""
    before = None
    for view in views:
        for line in changes(before, view):
            click.echo(f"{datetime.now(timezone.utc):%Y-%m-%d} {_now()} {line}")
        before = view


def _now() -> str:
    return f"{datetime.now(timezone.utc):%H:%M:%SZ}"
