"""`decide` alone: tables of views in words, and a dumb oracle over all small views.

A row of tables/*.txt is a paragraph: a sentence of the rules; what I am and was promised; what each
peer's marker says (who is not named is not there); after `=>` what follows, after `::` the reason.
It is the moment 1000 s after my boot, at a period of 20 s: D = 27 s, L = 26.95 s, F = 3.25 s. A
lease ends at what is said of it, and a promise that was given just now lasts 27 s. The words that a
row may use are those of `MY_WORDS`, `TOLD` and `PEER_WORDS`, and of `my_state` and `vote_of`.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.protocol.simulate import load_agent

AGENT = load_agent()
TABLES = Path(__file__).with_name("tables")
NOW = 1000.0  # on my boot clock
MINE = 999_000  # the stamp with which I asked, a second ago
THEIRS = 5000  # the stamp of a peer, of its own clock, that I have read before


# ------------------------------------------------ from words to a view


class Row(NamedTuple):
    """A paragraph of a table: its sentence, the lines of the view, and what is to follow."""

    place: str
    sentence: str
    view: tuple[str, ...]
    expected: str


class Case(NamedTuple):
    """What `decide` takes."""

    members: Any
    state: Any
    view: Any


def rows() -> Iterator[Row]:
    for path in sorted(TABLES.glob("*.txt")):
        text = "\n".join(
            "" if line.startswith("#") else line for line in path.read_text().splitlines()
        )
        for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip()), 1):
            sentence, *lines = (line.strip() for line in paragraph.strip().splitlines())
            view = tuple(line for line in lines if not line.startswith(("=>", "::")))
            expected = "\n".join(line for line in lines if line.startswith(("=>", "::")))
            yield Row(f"{path.stem} {number}", sentence, view, expected)


def mine(names: str, seconds: str, promise: str | None) -> dict[str, tuple[int, float]]:
    """Grants of a request of mine that is so old."""
    stamp = int((NOW - float(seconds)) * 1000)
    return {name: (stamp, float(promise or 27)) for name in names.split("+")}


def promise(me: str, to: str, seconds: str, boot_before: str | None) -> dict[str, Any]:
    """My promise to `to`, which has so many seconds left."""
    epoch, stamp = ("mine", MINE) if to == me else (to, THEIRS)
    earlier = NOW + float(boot_before) if boot_before else 0.0
    vote = AGENT.Vote(to, epoch, stamp, NOW + float(seconds), 27.0, earlier, 1)
    return {"vote": vote, "granted": {to: (epoch, stamp)}}


Said = dict[str, Any]
MY_WORDS: dict[str, Callable[..., tuple[Said, Said]]] = {
    r"ask": lambda: ({"candidate": True}, {}),
    r"active": lambda: ({"active": True}, {"probe_there": True}),
    r"slow clock (\S+) s behind": lambda seconds: ({}, {"slow_seconds": NOW - float(seconds)}),
    r"probe gone": lambda: ({}, {"probe_there": False}),
    r"(\d+) runs?": lambda runs: ({"quorum_runs": int(runs)}, {}),
    r"hold (\S+) s": lambda seconds: ({"hold_until_seconds": NOW + float(seconds)}, {}),
    r"failed (\d+) times?": lambda n: ({"failures": int(n), "trouble": "was killed"}, {}),
    r"voted for (\w+) in vain (\d+) times?": lambda name, n: ({"in_vain": {name: int(n)}}, {}),
    r"gave up (\S+) s ago": lambda s: ({"released": int((NOW - float(s)) * 1000)}, {}),
    r"leave": lambda: ({}, {"leaving": True}),
    r"late": lambda: ({}, {"late": True}),
    r"wall clock jumped": lambda: ({}, {"clock_stepped": True}),
    r"began (\S+) s ago": lambda seconds: ({}, {"started_seconds": NOW - float(seconds)}),
    r"behind for (\S+) s": lambda s: ({"behind_since_seconds": NOW - float(s)}, {}),
    r"term (\d+)": lambda number: ({"term": int(number)}, {}),
    r"kept (\d+) of (\w+)": lambda n, name: ({"kept": AGENT.Term(int(n), name, name)}, {}),
    r"unfit": lambda: ({"unfit": "its disk is full"}, {}),
    r"wall clock (\d+) s": lambda seconds: ({}, {"wall_seconds": float(seconds)}),
    r"make way": lambda: ({}, {"makes_way": "makes way: the operator drained it"}),
}
TOLD: dict[str, Callable[..., Said]] = {  # what the release in effect asks for
    r"(\S+) drained": lambda names: {"drained": frozenset(names.split("+"))},
    r"(\w+) is preferred": lambda name: {"prefer": name},
    r"the role stays": lambda: {"keeps_active": True},
    r"failback after (\d+) runs": lambda runs: {"failback_looks": int(runs)},
    r"release (\d+)": lambda number: {"release": int(number)},
    r"on trial": lambda: {"proven": False},
    r"who is unfit stops": lambda: {"stops_unfit": True},
}
PEER_WORDS: dict[str, Callable[..., Said]] = {
    r"there": lambda: {},
    r"asks": lambda: {"candidate": True},
    r"asks anew": lambda: {"candidate": True, "stamp": THEIRS + 1000},
    r"rebooted": lambda: {"epoch": "another boot", "stamp": 1000},
    r"active": lambda: {"active": True},
    r"(\d+) runs?": lambda runs: {"quorum_runs": int(runs)},
    r"holds": lambda: {"holding": True},
    r"yields to (\w+)": lambda name: {"yields_to": name},
    r"gave up": lambda: {"released": THEIRS, "stamp": THEIRS + 1000},
    r"release (\d+)": lambda number: {"release": int(number)},
    r"term (\d+)": lambda number: {"term": int(number)},
    r"no term": lambda: {"term": None},
    r"unfit": lambda: {"unfit": "its disk is full"},
    r"kept (\d+) of (node\d)": lambda n, name: {"kept": AGENT.Term(int(n), name, name)},
    r"kept (\d+) of mine": lambda n: {"kept": AGENT.Term(int(n), "node1", "mine")},
    r"gave up an older one": lambda: {"released": THEIRS - 1000, "stamp": THEIRS + 1000},
}


def matched(phrase: str, words: dict[str, Callable[..., Any]]) -> Any:
    """What a phrase says. Raises `LookupError` for one that no word is."""
    for pattern, says in words.items():
        if found := re.fullmatch(pattern, phrase):
            return says(*found.groups())
    raise LookupError(f"no such words: {phrase!r}")


def my_state(me: str, phrases: Sequence[str]) -> tuple[Said, Said]:
    state: Said = {"epoch": "mine", "hold_until_seconds": 0.0, "stamp": MINE, "term": 1}
    view: Said = {"started_seconds": NOW - 1}
    for phrase in phrases:
        if found := re.fullmatch(r"granted by (\S+) (\S+) s ago(?: for (\S+) s)?", phrase):
            state["grants"] = {**state.get("grants", {}), **mine(*found.groups())}
        elif found := re.fullmatch(
            r"promised (\w+) (\S+) s(?: and its boot before (\S+) s)?", phrase
        ):
            state |= promise(me, *found.groups())
        else:
            of_state, of_view = matched(phrase, MY_WORDS)
            state |= of_state
            view |= of_view
    return state, view


def vote_of(me: str, phrase: str) -> Any:
    """`votes me`, `votes me of 5 s ago`, `... for 4.5 s`, `... with 3`, `... before my boot`."""
    found = re.fullmatch(
        r"votes (\w+)(?: of (\S+) s ago)?(?: for (\S+) s)?(?: with (\w+))?( before my boot)?",
        phrase,
    )
    if not found:
        return None
    name, ago, seconds, term, before = found.groups()
    name = me if name == "me" else name
    stamp = int((NOW - float(ago or 1)) * 1000) if name == me else THEIRS
    epoch = "before" if before else "mine" if name == me else name
    number = None if term == "none" else int(term or 1)
    return AGENT.Grant(name, epoch, stamp, float(seconds or 27), 20.0, number)


def case_of(lines: Sequence[str]) -> Case:
    """The view of a row. The first line is mine: `I am node2 of 5: active, 2 runs`."""
    found = re.fullmatch(r"I am (\w+)(?: of (\d))?(?:: (.*))?", lines[0])
    assert found, lines[0]
    me, count, phrases = found[1], int(found[2] or 3), re.split(", ", found[3]) if found[3] else []
    order = tuple(f"node{number}" for number in range(1, count + 1))
    told: Said = {}
    for phrase in [p for p in phrases if any(re.fullmatch(words, p) for words in TOLD)]:
        told |= matched(phrase, TOLD)
        phrases.remove(phrase)
    state, seen = my_state(me, phrases)
    markers, live, changed = {}, set(), {}
    for line in lines[1:]:
        name, _, said = line.partition(" ")
        assert name in order and name != me and name not in markers, line
        fields: Said = {"epoch": name, "stamp": THEIRS, "candidate": False, "quorum_runs": 0}
        fields |= {"term": 1}
        fields |= {"holding": False, "vote": None, "released": 0, "active": False}
        changed[name] = NOW - 0.5
        for phrase in said.split(", "):
            if vote := vote_of(me, phrase):
                fields["vote"] = vote
            elif old := re.fullmatch(r"unchanged for (\S+) s", phrase):
                changed[name] = NOW - float(old[1])
            elif phrase == "alive":
                live.add(name)
            else:
                fields |= matched(phrase, PEER_WORDS)
        rest: Said = {"yields_to": None, "heard": {}, "generation": "", "at": ""}
        markers[name] = AGENT.Marker(**{"sender": name, "receiver": me, **rest, **fields})
    said_of_view = {
        "slow_seconds": NOW,
        "probe_there": False,
        "leaving": False,
        "clock_stepped": False,
        **seen,
    }
    view = AGENT.View(
        now_seconds=NOW, markers=markers, live=frozenset(live), asked_seconds=changed,
        **said_of_view,
    )  # fmt: skip
    members = AGENT.Members(me, order, bytes(32), AGENT.timing(20, 20, 0), **told)
    return Case(members, AGENT.State(**state), view)


# ------------------------------------------------ from a decision to words


def decision_of(agent: Any, case: Case) -> Any:
    """The case as that agent's own: what a majority is, is its to say."""
    return agent.decide(agent.Members(*case.members), case.state, case.view)


def seconds_left(until_seconds: float) -> str:
    return f"{until_seconds - NOW:.1f} s"


def outcome(agent: Any, case: Case) -> str:
    """What `decide` makes of it: role, vote, lease, `yields_to`, whether it is settled, reason."""
    decision = decision_of(agent, case)
    state = decision.state
    role = "active" if state.active else "passive"
    if decision.serve_until_seconds is not None:
        role = f"serves for {seconds_left(decision.serve_until_seconds)}"
    facts = [role]
    facts += ["asks"] if state.candidate else []
    facts += ["drops"] if decision.drop else []
    facts += ["gives up"] if state.released > case.state.released else []
    facts += ["new stamp"] if state.stamp > case.state.stamp else []
    given_up = state.released > case.state.released
    facts += [f"term {state.term}"] if state.term != case.state.term + given_up else []
    kept = state.kept  # of 1, with which everybody begins, no word
    facts += [f"keeps {kept.number} of {kept.candidate}"] if kept.number > 1 else []
    facts += [f"failure {state.failures}"] if state.failures != case.state.failures else []
    vote = state.vote
    facts += [
        f"votes {vote.candidate} for {seconds_left(vote.until_seconds)}" if vote else "votes nobody"
    ]
    if vote and vote.earlier_until_seconds > NOW:
        facts[-1] += f" and its boot before for {seconds_left(vote.earlier_until_seconds)}"
    facts += [f"yields to {state.yields_to}"] if state.yields_to else []
    lease = agent.lease_end_seconds(case.members, state)
    facts += [f"lease {seconds_left(lease)}" if lease > 0 else "no lease"]
    facts += ["settled" if decision.settled else "polls on"]
    reason = decision.reason.removeprefix(f"Node {case.members.me} ")
    return f"=> {', '.join(facts)}\n:: {reason}"


ROWS = list(rows())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.place)
def test_each_row_of_the_tables_is_what_the_agent_decides(row: Row) -> None:
    assert outcome(AGENT, case_of(row.view)) == row.expected, row.sentence


# ------------------------------------------------ a dumb oracle over all small views

ORDER = ("node1", "node2", "node3")
D, L = 27.0, 27 * 0.999 / 1.001
F = 1 + 0.0834 * L

# What a peer can say of itself: whether it asks (`again`: with a stamp that I have read), for how
# many runs it saw a majority, whether its agent is known to be alive, whether it is active.
KINDS: dict[str, str] = {
    "idle": "there",
    "asks": "asks anew",
    "asks again": "asks, 2 runs, alive",
    "is ready": "asks anew, 2 runs, alive",
    "may be dead": "asks anew, 2 runs",
    "serves": "asks anew, 5 runs, alive, active",
    "gave up": "gave up",
}
VOTES = ("none", "me", "holds")
PEERS = [None, *itertools.product(KINDS, VOTES, (False, True))]  # last: it yields to somebody
MY_PARTS: dict[str, tuple[str, tuple[str, ...]]] = {  # what I am, and whose vote I may have given
    "passive": ("2 runs", ("", "me", "other", "last", "hold")),
    "voted for": ("ask, 2 runs, granted by last 2 s ago", ("me", "other")),
    "active": ("active, 2 runs, granted by me+other+last 5 s ago", ("", "me")),
    "due": ("active, 2 runs, granted by me+last 26.5 s ago", ("me",)),
}


ASKED_FOR = ("node3 is preferred", "the role stays", "node1 drained", "failback after 3 runs")
PLAIN_PEERS = [peer for peer in PEERS if not (peer and (peer[2] or peer[1] == "holds"))]


class Small(NamedTuple):
    """One small view, in the words above. `other` and `last`: my two peers in order."""

    me: str
    part: str
    voted: str
    peers: tuple[Any, Any]
    told: str = ""  # one of `ASKED_FOR`


def small_views() -> Iterator[Small]:
    """Everything as node2, which has one before it and one after; half of that as the others."""
    for part, (_, votes) in MY_PARTS.items():
        for voted, one, two in itertools.product(votes, PEERS, PEERS):
            yield Small("node2", part, voted, (one, two))
            if not (one and one[2]) and not (two and two[1] == "holds"):
                yield Small("node1", part, voted, (one, two))
                yield Small("node3", part, voted, (one, two))
        sizes = itertools.product(ORDER, ASKED_FOR, votes, PLAIN_PEERS, PLAIN_PEERS)
        for me, told, voted, one, two in sizes:
            yield Small(me, part, voted, (one, two), told)


def named(small: Small, text: str) -> str:
    other, last = (name for name in ORDER if name != small.me)
    names = {"me": small.me, "other": other, "last": last}
    return re.sub(r"\b(me|other|last)\b", lambda found: names[found[0]], text)


def lines_of(small: Small) -> list[str]:
    """The view as a row of a table would have it."""
    mine = named(small, MY_PARTS[small.part][0])
    if small.voted == "hold":
        mine += ", hold 5 s"
    elif small.voted:
        mine += f", promised {named(small, small.voted)} 20 s"
    mine += f", {small.told}" if small.told else ""
    lines = [f"I am {small.me}: {mine}"]
    for place, peer in zip(("other", "last"), small.peers, strict=True):
        if peer:
            kind, votes, yields = peer
            said = [KINDS[kind], *({"me": ["votes me"], "holds": ["holds"]}.get(votes, []))]
            said += ["yields to somebody"] if yields else []
            lines.append(f"{named(small, place)} {', '.join(said)}")
    return lines


class Expected(NamedTuple):
    """What the rules make of a view. Moments count from now."""

    asks: bool
    active: bool
    serves_for: float | None
    drops: bool
    gives_up: bool
    vote: tuple[str, float] | None
    yields_to: str | None


def heeded(small: Small, serving: set[str]) -> list[str]:
    """Who comes before whom, by what the operator asked for."""
    if small.told == "node3 is preferred":
        return ["node3", "node1", "node2"]
    if small.told == "the role stays":
        return [n for n in ORDER if n in serving] + [n for n in ORDER if n not in serving]
    return list(ORDER)


def ruled(small: Small) -> Expected:
    """The rules of docs/protocol.md section 3, read aloud: long, plain, and sharing no code."""
    peers = dict(zip((n for n in ORDER if n != small.me), small.peers, strict=True))
    there = {name: peer for name, peer in peers.items() if peer}
    asking = {n for n, peer in there.items() if peer[0] not in ("idle", "gave up")}
    was_active = small.part in ("active", "due")
    serving = {n for n, peer in there.items() if peer[0] == "serves"}  # it shows five runs
    two_do = small.told != "failback after 3 runs"
    ready = serving | {n for n in there if two_do and there[n][0] in ("asks again", "is ready")}
    yielders = {n for n, peer in there.items() if peer[2]}
    order = heeded(small, serving | {small.me} if was_active else serving)
    other, last = peers
    ages = {  # my grants
        "passive": {},
        "voted for": {last: 2.0},
        "active": {small.me: 5.0, other: 5.0, last: 5.0},
        "due": {small.me: 26.5, last: 26.5},
    }[small.part]
    # See: electors are those not holding, and I if I do not.
    electors = sum(peer[1] != "holds" for peer in there.values()) + (small.voted != "hold")
    quorum = electors >= 2
    # Ask: unless somebody before me does; while I am active only who is ready counts.
    mine = order.index(small.me)
    before = {n for n in asking if order.index(n) < mine and (not was_active or n in ready)}
    voters = set(ages)
    outvoted = bool(voters & yielders) and len(voters - yielders) < 2
    steps_down = was_active and (bool(before) or outvoted)
    asks = quorum and not before and not steps_down
    asks = asks and (was_active or small.told != f"{small.me} drained")
    # Vote.
    promised = {"me": small.me, "other": other, "last": last}.get(small.voted)
    left = 20.0
    if promised and promised != small.me and there.get(promised, ("",))[0] == "gave up":
        promised = None
    yields_to = None
    candidates = [n for n in order if n in asking or (n == small.me and asks)]
    if small.voted != "hold" and not promised and candidates:
        promised, left = candidates[0], D
    elif promised in candidates:
        serves = was_active if promised == small.me else there[promised][0] == "serves"
        for name in candidates[: candidates.index(promised)]:
            if not serves or name in ready or (name == small.me and two_do):
                yields_to = name
                break
        # Mine, and one that asks again, are stamps that I have granted before.
        if not yields_to and promised != small.me and there[promised][0] != "asks again":
            left = D
    # Count: a vote for me is for the stamp of a second ago.
    for name in [n for n, peer in there.items() if peer[1] == "me"]:
        ages[name] = 1.0
    if promised == small.me:
        ages[small.me] = 1.0
    # Who is there and does not vote for me counts no more.
    against = {n for n, peer in there.items() if peer[1] != "me"}
    against |= {small.me} - {promised}
    ages = {n: age for n, age in ages.items() if n not in against}
    lease = L - sorted(ages.values())[1] if len(ages) >= 2 else -1.0
    # Act.
    drops = was_active and (steps_down or lease <= F)
    # All terms are the same: who has just voted for another one's does not begin to serve.
    bound_anew = promised not in (None, small.me) and left == D and not was_active
    serves_for = round(lease - F, 6) if asks and lease > F and not drops | bound_anew else None
    gives_up = drops or (not was_active and bool(ages) and serves_for is None)
    if gives_up and not drops:
        gives_up = not asks or bool(yielders)
    vote = (promised, left) if promised else None
    return Expected(asks, was_active and not drops, serves_for, drops, gives_up, vote, yields_to)


def decided(agent: Any, case: Case) -> Expected:
    decision = decision_of(agent, case)
    state, serve = decision.state, decision.serve_until_seconds
    return Expected(
        state.candidate,
        state.active,
        None if serve is None else round(serve - NOW, 6),
        decision.drop,
        state.released > case.state.released,
        (state.vote.candidate, round(state.vote.until_seconds - NOW, 6)) if state.vote else None,
        state.yields_to,
    )


SmallCases = list[tuple[Small, Case, Expected]]


@pytest.fixture(scope="module")
def small_cases() -> SmallCases:
    return [(small, case_of(lines_of(small)), ruled(small)) for small in small_views()]


def first_disagreement(agent: Any, cases: SmallCases) -> str:
    """The first small view in which agent and oracle differ, "" where there is none."""
    for small, case, expected in cases:
        if (found := decided(agent, case)) != expected:
            return "\n".join([*lines_of(small), f"decided {found}", f"ruled   {expected}"])
    return ""


def test_in_every_small_view_the_agent_decides_what_a_plain_reading_of_the_rules_does(
    small_cases: SmallCases,
) -> None:
    assert len(small_cases) > 20_000
    assert first_disagreement(AGENT, small_cases) == ""
    outcomes = [expected for _, _, expected in small_cases]
    for field in Expected._fields:  # that nothing ever happens would agree with itself as well
        assert len({getattr(expected, field) for expected in outcomes}) > 1, field


# ------------------------------------------------ mutations: each rule, broken, must show

BROKEN: dict[str, tuple[str, str]] = {
    "an active node that leaves is given what it needs": (
        "return marker.candidate  # else",
        "return True  # else",
    ),
    "who holds its vote is an elector": (
        "electors = sum(not m.holding for m in view.markers.values())",
        "electors = sum(True for m in view.markers.values())",
    ),
    "so am I while I hold mine": (
        "electors += not state.holding(view.slow_seconds)",
        "electors += 1",
    ),
    "half of the nodes are a majority": (
        "return len(self.order) // 2 + 1",
        "return (len(self.order) + 1) // 2 - 1",
    ),
    "I ask without a quorum": ("wants = has_quorum and not higher", "wants = not higher"),
    "I ask whoever does before me": (
        "wants = has_quorum and not higher and",
        "wants = has_quorum and",
    ),
    "one run makes ready": ("READY_LOOKS = 2 ", "READY_LOOKS = 1 "),
    "a dead agent is ready": (
        "marker.quorum_runs >= needed and name in view.live",
        "marker.quorum_runs >= needed",
    ),
    "any candidate moves an active node": (" and (not state.active or asking[n].ready)", ""),
    "no candidate moves an active node": (
        "(bool(higher) or view.leaving",
        "(view.leaving",
    ),
    "who comes after me moves me": (
        "    before = order[: order.index(members.me)]",
        "    before = order",
    ),
    "I stay whoever of my voters yields": (
        "return bool(lost) and len(state.grants) - len(lost) < members.majority",
        "return False",
    ),
    "one voter that yields is enough": ("len(state.grants) - len(lost) < members.majority", "True"),
    "who yields counts though it never voted for me": (
        "lost = yielding(members, view) & set(state.grants)",
        "lost = yielding(members, view)",
    ),
    "yielding to me counts against me": (
        "if m.yields_to not in (None, members.me)}",
        "if m.yields_to}",
    ),
    "who leaves stays active": ("bool(higher) or view.leaving or", "bool(higher) or"),
    "who leaves asks": ("kept_back = view.leaving or steps_down", "kept_back = steps_down"),
    "a jump of the wall clock is nothing": (
        "view.leaving or view.clock_stepped or",
        "view.leaving or",
    ),
    "votes that end too soon for me are enough": (
        "return [] if enough or state.active else brief",
        "return []",
    ),
    "a promise ends by the faster clock": (
        "now, vote = view.slow_seconds, state.vote",
        "now, vote = view.now_seconds, state.vote",
    ),
    "a hold ends by the faster clock": (
        "    if state.holding(now):\n        return state, None",
        "    if state.holding(view.now_seconds):\n        return state, None",
    ),
    "a lease ends by the slower clock": (
        "    now, times = view.now_seconds, members.times\n    electors",
        "    now, times = view.slow_seconds, members.times\n    electors",
    ),
    "a promise never runs out": ("(now >= vote.until_seconds or is_given_up(", "(is_given_up("),
    "a promise does not bind": (
        "choice = vote.candidate if vote else next(iter(asking), None)",
        "choice = next(iter(asking), None)",
    ),
    "whatever was given up ends a promise": (
        "vote.epoch and marker.released >= vote.stamp",
        "vote.epoch and marker.released > 0",
    ),
    "what another boot gave up ends a promise": (
        "marker.epoch == vote.epoch and marker.released",
        "marker.released",
    ),
    "nothing that is given up ends a promise": (
        "return marker is not None and marker.epoch == vote.epoch",
        "return False and marker.epoch == vote.epoch",
    ),
    "what I gave up does not free my own vote": (
        "return state.epoch == vote.epoch and state.released >= vote.stamp",
        "return False",
    ),
    "a vote is cast while it is held": (
        "    if state.holding(now):\n        return state, None\n    asking",
        "    asking",
    ),
    "who does not ask is voted for": (
        "        if marker is not None and marker.candidate:\n            ready",
        "        if marker is not None:\n            ready",
    ),
    "the least preferred is voted for": (
        "next(iter(asking), None)",
        "next(reversed(asking), None)",
    ),
    "a stamp is granted twice": ("and stamp >= claim.stamp:", "and stamp > claim.stamp:"),
    "a renewal shortens": ("until = max(until, vote.until_seconds)", "pass"),
    "a promise to the boot before is forgotten": (
        "vote.until_seconds if vote.epoch != claim.epoch else 0.0",
        "0.0",
    ),
    "a promise to the boot before ends with that to the next": (
        "if now < earlier_until else None",
        "if False else None",
    ),
    "nobody is yielded to": ("if not claim.active or rival.ready:", "if False:"),
    "anybody is yielded to": ("if not claim.active or rival.ready:", "if True:"),
    "the first before the promised one is yielded to, ready or not": (
        "                return state, name\n",
        "                return state, next(iter(asking))\n",
    ),
    "a renewal forgets the promise to the boot before": (
        "earlier_until = max(vote.earlier_until_seconds, of_other)",
        "earlier_until = of_other",
    ),
    "a late run costs an active node its role": (
        '    if state.active:\n        return ""\n    if members.me in',
        '    if view.late:\n        return "began this look too late to stand"\n'
        '    if state.active:\n        return ""\n    if members.me in',
    ),
    "in vain twice costs no more than once": (
        "looks_to_prefer(state.in_vain.get(name, 0))",
        "looks_to_prefer(min(1, state.in_vain.get(name, 0)))",
    ),
    "who yields renews": ("                return state, name\n", "                break\n"),
    "my own runs do not make me ready": (
        "ready = state.quorum_runs >= needed",
        "ready = False",
    ),
    "I am always ready": ("ready = state.quorum_runs >= needed", "ready = True"),
    "a promise is shorter than D": (
        "until, earlier_until = now + promise",
        "until, earlier_until = now + promise - 1",
    ),
    "a stamp counts from when it was read": (
        "grants[voter] = (vote.stamp, vote",
        "grants[voter] = (int(view.now_seconds * 1000), vote",
    ),
    "a vote for whomever is mine": (
        "return vote is not None and (vote.candidate, vote.epoch) == (members.me, state.epoch)",
        "return vote is not None",
    ),
    "a vote for another boot of mine is mine": (
        "(vote.candidate, vote.epoch) == (members.me, state.epoch)",
        "vote.candidate == members.me",
    ),
    "who shows another vote is still counted": (
        "            grants.pop(voter, None)",
        "            pass",
    ),
    "what I gave up is counted again": (
        "grants.get(voter, (state.released, 0.0))[0]",
        "grants.get(voter, (0, 0.0))[0]",
    ),
    "an older grant replaces a newer one": (
        "elif vote and newest < vote.stamp <= state.stamp",
        "elif vote and vote.stamp <= state.stamp",
    ),
    "what I have not written is counted": ("< vote.stamp <= state.stamp", "< vote.stamp"),
    "my own vote is not bound": (
        "own and Grant(own[0], own.epoch,",
        "own and Grant(members.me, state.epoch,",
    ),
    "the newest stamp is enough": ("ends[-members.majority] if len", "ends[-1] if len"),
    "the oldest stamp is needed": ("ends[-members.majority] if len", "ends[0] if len"),
    "fewer than a majority is a lease": (
        "ends[-members.majority] if len(ends) >= members.majority else",
        "ends[-min(len(ends), members.majority)] if ends else",
    ),
    "a lease is as long as the promise": (
        "min(times.lease_seconds, lease_of(promise, times.pause_seconds))",
        "times.promise_seconds",
    ),
    "a shorter promise counts like mine": (
        "min(times.lease_seconds, lease_of(promise, times.pause_seconds))",
        "times.lease_seconds",
    ),
    "the probe stays until the lease is over": (
        "- times.margin_seconds\n    drop",
        "- 0\n    drop",
    ),
    "a lease that is over is served on": ("if now >= fence or not (view", "if not (view"),
    "a probe that the fence took is not missed": (
        " or not (view.probe_there or state.starting_since_seconds):",
        ":",
    ),
    "who steps down keeps its votes": (
        "return give_up(state, now)._replace(active=False, stopping",
        "return state._replace(active=False, stopping",
    ),
    "who does not ask serves": ("elif wants and now < fence and", "elif now < fence and"),
    "a lease that is over is good to begin": (
        "elif wants and now < fence and",
        "elif wants and fence > 0 and",
    ),
    "votes that are no longer wanted are kept": (
        "(not wants or yielding(members, view))",
        "yielding(members, view)",
    ),
    "votes of who would rather vote for another are kept": (
        "(not wants or yielding(members, view))",
        "not wants",
    ),
    "votes are given up at every poll": (
        "and state.grants and (not wants or yielding(members, view))",
        "and state.grants",
    ),
    "a passive node keeps its stamp": ("if not state.active and serve is None:", "if False:"),
    "a lost lease is no failure": ("if ends and (has_quorum or ends not in LOST):", "if False:"),
    "a lease lost in a minority is a failure": (
        "if ends and (has_quorum or ends not in LOST):",
        "if ends:",
    ),
    "settled with nobody active": (
        "    if active is None or state.starting_since_seconds or state.stopping:\n"
        "        return False",
        "    if active is None or state.starting_since_seconds or state.stopping:\n"
        "        return True",
    ),
    "who leaves waits for calm": ("    if view.leaving:\n        return True\n", ""),
    "settled though not calm": ("if not calm and now -", "if False and now -"),
    "never settled while not calm": (
        "if not calm and now - view.started_seconds < members.times.stay_seconds",
        "if not calm",
    ),
    "settled before the newest stamp is granted": (
        "return covered >= members.majority",
        "return True",
    ),
    "settled on a stamp of the run before": (
        "if view.now_seconds - view.asked_seconds[active] > members.times",
        "if 0 > members.times",
    ),
    "settled while I yield": ("if state.yields_to or any(", "if any("),
    "settled while somebody yields to me": (
        "if state.yields_to or any(m.yields_to == members.me for m in view.markers.values()):",
        "if state.yields_to:",
    ),
    "who sees an active node is never settled": (
        "return marker.candidate  # else",
        "return False  # else",
    ),
    "a failure costs no preference": ("min(READY_LOOKS + failures - 1, 4) if failures else 0", "0"),
    "a second failure costs no more": ("min(READY_LOOKS + failures - 1, 4)", "READY_LOOKS"),
    "failures cost without bound": (
        "min(READY_LOOKS + failures - 1, 4)",
        "READY_LOOKS + failures - 1",
    ),
    "who failed never stands": ("    return why if waits", "    return why if True"),
    "who failed stands where others do": ("waits = others or view", "waits = view"),
    "who failed stands at once where nobody does": (
        "others or view.now_seconds - view.started_seconds < times.rest_seconds",
        "others",
    ),
    "an active node steps down for its failures": (
        '    if state.active:\n        return ""\n    if members.me in',
        "    if members.me in",
    ),
    "who is drained stands": (
        "    if members.me in members.drained or state.unfit:\n",
        "    if state.unfit:\n",
    ),
    "who could not serve stands": (
        "    if members.me in members.drained or state.unfit:\n",
        "    if members.me in members.drained:\n",
    ),
    "who could not serve never stops": (
        "return members.stops_unfit and bool(unable(state)) and not view.makes_way",
        "return False",
    ),
    "who could not serve stops whatever the operator says": (
        "return members.stops_unfit and bool(unable(state)) and not view.makes_way",
        "return bool(unable(state)) and not view.makes_way",
    ),
    "who could not serve stops before its heir asks": (
        "return members.stops_unfit and bool(unable(state)) and not view.makes_way",
        "return members.stops_unfit and bool(unable(state))",
    ),
    "who could not serve is waited for": (
        "{name for name, marker in view.markers.items() if marker.unfit}",
        "set()",
    ),
    "I am waited for though I could not serve": (
        "    idle |= {members.me} if unable(state) else set()\n",
        "",
    ),
    "who makes way asks on": ("kept_back |= bool(view.makes_way) and not renews", "pass"),
    "who makes way does not renew once more": (
        "bool(view.makes_way) and not renews",
        "bool(view.makes_way)",
    ),
    "nobody is preferred for now": (
        "(n in last, n != members.prefer, n not in stays)",
        "(n in last, n not in stays)",
    ),
    "the role never stays": ("active if members.keeps_active else set()", "set()"),
    "the role always stays": ("active if members.keeps_active else set()", "active"),
    "the role stays with me, whoever is preferred": (
        "(n in last, n != members.prefer, n not in stays)",
        "(n in last, n not in stays, n != members.prefer)",
    ),
    "I don't count as who is active": (
        "active |= {members.me} if state.active else set()",
        "pass",
    ),
    "failback takes K looks whatever the operator says": (
        "READY_LOOKS if name == members.prefer else members.failback_looks",
        "READY_LOOKS",
    ),
    "a preferred node waits as a failback does": (
        "READY_LOOKS if name == members.prefer else members.failback_looks",
        "members.failback_looks",
    ),
    "an older release costs no preference": (
        "late = state.behind_since_seconds > 0 or not members.proven",
        "late = not members.proven",
    ),
    "an older release costs it for good": (
        "    return why if waits",
        "    return why if state.behind_since_seconds or waits",
    ),
    "an agent on trial costs no preference": (
        "late = state.behind_since_seconds > 0 or not members.proven",
        "late = state.behind_since_seconds > 0",
    ),
    "two that are behind give up in turn": (" and not state.candidate:  # two", ":  # two"),
    "another release than mine is newer": (
        "if marker.release > members.release]",
        "if marker.release != members.release]",
    ),
    "who is drained is waited for": (
        "idle = members.drained | ",
        "idle = set() | ",
    ),
    "a look is calm by the order alone": (
        "stand = [n for n in preference(members, state, view) if n not in idle]",
        "stand = [n for n in members.order if n not in idle]",
    ),
    "a late run stands": ("    if view.late:\n", "    if False:\n"),
    "voted for in vain costs no preference": ("key=lambda n: (n in last, ", "key=lambda n: ("),
    "good runs bring no preference back": (
        "if marker.quorum_runs < looks_to_prefer(state.in_vain.get(name, 0)) and",
        "if state.in_vain.get(name, 0) and",
    ),
    "who serves stays last": (" and name not in active\n    }", "\n    }"),
    "a term is voted for twice": (
        "request.number > state.kept.number",
        "request.number >= state.kept.number",
    ),
    "a request is voted for once": (" or request == state.kept", ""),
    "a smaller term gets a vote": (
        "return claim.term is not None and not may_vote(state, request)",
        "return False",
    ),
    "an agent without terms gets no vote": (
        "claim.term is not None and not may_vote(state, request)",
        "not may_vote(state, request)",
    ),
    "what was voted for is not kept": (
        "kept = request if claim.term and choice != members.me else state.kept",
        "kept = state.kept",
    ),
    "who asks in vain keeps its term": ("claim.term and choice != members.me", "claim.term"),
    "who begins to serve does not keep its term": (
        "state = state if state.active else state._replace(kept=own)",
        "pass",
    ),
    "who voted for a greater term begins to serve": (
        " and (state.active or may_begin(state, own, view)):",
        ":",
    ),
    "a vote for another term of mine counts": (" and vote.term in (None, state.term)", ""),
    "a vote without a term counts no more": ("in (None, state.term)", "in (-1, state.term)"),
    "who reads of a greater term asks on with its own": ("1 + max(others, default=0)", "0"),
    "my own term is another's": (" if kept[1:] != (members.me, state.epoch)]", "]"),
    "an active node takes another term": (
        "    if wants and not state.active:\n        state = with_term",
        "    if wants:\n        state = with_term",
    ),
    "a new term keeps the votes for the last": (
        "state._replace(term=term, grants={})",
        "state._replace(term=term)",
    ),
    "no clock is asked for a term": ("0 if state.candidate else int(view.wall_seconds)", "0"),
    "each second has another term": (
        "0 if state.candidate else int(view.wall_seconds)",
        "int(view.wall_seconds)",
    ),
    "who gave up asks with the same term": (", term=state.term + 1)", ")"),
}


def shows(agent: Any, cases: SmallCases) -> str:
    """The place that shows that an agent is not ours: a row of the tables, or a small view."""
    for row in ROWS:
        if outcome(agent, case_of(row.view)) != row.expected:
            return row.place
    return first_disagreement(agent, cases)


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_shows_in_a_row_or_in_a_small_view(
    rule: str, small_cases: SmallCases
) -> None:
    assert shows(load_agent(BROKEN[rule]), small_cases)
