"""What a check is, what it finds, and the report of all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Generic, Literal, TypeVar

from scrubjay.core.facts import CacheFacts, Role, ServerFacts, StoreFacts
from scrubjay.core.keys import DEFAULT_PREFIX

F = TypeVar("F")
About = Literal["node", "cache", "library", "store"]
CHANGE: Final = "CONFIG SET "
"""How a line of a change begins that can be sent to the server as it stands."""


class Severity(StrEnum):
    """How much a finding matters, the worst first."""

    CRITICAL = "critical"
    """Something does not work, is open to anybody, or will be lost."""
    WARNING = "warning"
    """It works, and costs much or will not work when something else happens."""
    ADVICE = "advice"
    """It could be better."""

    @property
    def rank(self) -> int:
        """Its place: the worst has the lowest."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Found:
    """What one check found.

    Attributes:
        severity: How much it matters.
        message: What is wrong, and what follows from it.
        change: What to do, a line each; what begins with `CONFIG SET` can be sent to the server as it stands.
        evidence: The figures behind it.
        subject: What it is about; empty for what was looked at.
    """

    severity: Severity
    message: str
    change: tuple[str, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding with its code and its subject; for the rest see `Found`."""

    code: str
    severity: Severity
    subject: str
    message: str
    change: tuple[str, ...]
    evidence: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "code": self.code,
            "severity": str(self.severity),
            "subject": self.subject,
            "evidence": dict(self.evidence),
            "message": self.message,
            "change": "\n".join(self.change),
        }


class Unasked(Exception):
    """A check cannot be made: what it needs could not be asked, or says nothing yet."""


class Elsewhere(Exception):
    """A check is about something else: another topology, a primary and not a replica. It is not listed."""


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What Scrubjay's processes count.

    Attributes:
        stats: As `AsyncScrubjay.stats` gives it.
        deadline_s: The setting `cache_deadline`, in seconds.
    """

    stats: Mapping[str, Any]
    deadline_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known; None for what was not examined, with the reason in `absent`.

    Attributes:
        cache: The cache.
        processes: What the processes that use it count.
        store: The store.
        role: What the cache server is for.
        absent: Why a part is not there, by its name.
        prefix: What the library's keys begin with.
    """

    cache: CacheFacts | None = None
    processes: ProcessFacts | None = None
    store: StoreFacts | None = None
    role: Role = "cache"
    absent: Mapping[str, str] = field(default_factory=dict)
    prefix: str = DEFAULT_PREFIX


@dataclass(frozen=True, slots=True)
class Rule(Generic[F]):
    """One check.

    Attributes:
        code: Its stable name.
        about: What it looks at: each node, the whole cache, the library, or the store.
        what: What it makes sure of, in words.
        check: Yields what it finds; raises `Unasked` where it cannot be made.
    """

    code: str
    about: About
    what: str
    check: Callable[[F, Facts], Iterable[Found]]


RULES: Final[dict[str, Rule[Any]]] = {}
"""All checks, by code, in the order in which they are made."""


def rule(
    code: str, about: About, what: str
) -> Callable[[Callable[[F, Facts], Iterable[Found]]], Callable[[F, Facts], Iterable[Found]]]:
    """Register a check."""

    def register(check: Callable[[F, Facts], Iterable[Found]]) -> Callable[[F, Facts], Iterable[Found]]:
        assert code not in RULES
        RULES[code] = Rule(code, about, what, check)
        return check

    return register


@dataclass(frozen=True, slots=True)
class Skip:
    """A check that could not be made.

    Attributes:
        code: The check.
        subject: What it would have looked at.
        why: Why not, and what would help.
    """

    code: str
    subject: str
    why: str

    def to_dict(self) -> dict[str, str]:
        """Return it as JSON."""
        return {"code": self.code, "subject": self.subject, "why": self.why}


@dataclass(frozen=True, slots=True)
class Report:
    """What all checks found.

    Attributes:
        findings: What is wrong, the worst first.
        checked: The checks that found nothing wrong, on anything that they looked at.
        skipped: Those that could not be made.
    """

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    skipped: tuple[Skip, ...]

    def worst(self) -> Severity | None:
        """Return the severity of the worst finding; None without any."""
        return self.findings[0].severity if self.findings else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON; `ok` if nothing is critical."""
        return {
            "ok": self.worst() is not Severity.CRITICAL,
            "findings": [each.to_dict() for each in self.findings],
            "checked": list(self.checked),
            "skipped": [each.to_dict() for each in self.skipped],
        }


def judge(facts: Facts) -> Report:
    """Make all checks."""
    findings: list[Finding] = []
    checked: list[str] = []
    skipped: list[Skip] = []
    for each in RULES.values():
        subjects, before, made = list(_subjects(each, facts)), (len(findings), len(skipped)), 0
        for subject, what in subjects:
            try:
                found = list(each.check(what, facts))
            except Unasked as reason:
                skipped.append(Skip(each.code, subject, str(reason)))
                continue
            except Elsewhere:
                continue
            made += 1
            findings += [
                Finding(each.code, it.severity, it.subject or subject, it.message, it.change, it.evidence)
                for it in found
            ]
        if not subjects:
            skipped.append(Skip(each.code, each.about, _absent(each.about, facts)))
        elif made and before == (len(findings), len(skipped)):
            checked.append(each.code)
    order = {code: place for place, code in enumerate(RULES)}
    findings.sort(key=lambda it: (it.severity.rank, order[it.code], it.subject))
    return Report(tuple(findings), tuple(checked), tuple(skipped))


def _subjects(each: Rule[Any], facts: Facts) -> Iterator[tuple[str, object]]:
    match each.about:
        case "node" if facts.cache is not None:
            yield from ((node.node, node) for node in facts.cache.nodes)
        case "cache" if facts.cache is not None:
            yield facts.cache.url, facts.cache
        case "library" if facts.processes is not None:
            yield "library", facts.processes
        case "store" if facts.store is not None:
            # What could not be reached has one finding, of the first of these checks.
            if facts.store.error is None or each.code == "store.reachable":
                yield facts.store.where, facts.store


def _absent(about: About, facts: Facts) -> str:
    if about == "node" and facts.cache is not None:
        return "no cache server could be asked"
    if about == "store" and facts.store is not None:
        return "the store could not be asked"
    return facts.absent.get("cache" if about == "node" else about, "not examined")


# --- what rules are written with


def asked(node: ServerFacts, question: str) -> None:
    """Raise unless a node answered a question."""
    if question in node.refused:
        raise Unasked(node.refused[question])


def parameter(node: ServerFacts, name: str) -> str:
    """Return a parameter of a node.

    Raises:
        Unasked: It did not say, or knows none of the name.
    """
    asked(node, "config|get")
    if name not in node.config:
        raise Unasked(f"this server has no parameter {name}")
    return node.config[name]


def count(node: ServerFacts, name: str) -> int:
    """Return a parameter that is a whole number.

    Raises:
        Unasked: The node did not say, knows none of the name, or says something else.
    """
    text = parameter(node, name)
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise Unasked(f"this server has {name} = {text!r:.40}, which is no number")
    return int(text)


def said(facts: Mapping[str, Any], name: str) -> float:
    """Return a number that INFO holds.

    Raises:
        Unasked: It does not.
    """
    value = facts.get(name)
    if not isinstance(value, int | float):
        raise Unasked(f"INFO of this server says nothing of {name}")
    return value


def informed(node: ServerFacts) -> Mapping[str, Any]:
    """Return a node's INFO, the newest.

    Raises:
        Unasked: It did not say.
    """
    asked(node, "info")
    return node.later or node.info


def set_parameter(name: str, value: object) -> tuple[str, str]:
    """Return the lines that change a parameter: now, and in the configuration file."""
    text = str(value)
    word = f'"{text}"' if not text or " " in text else text
    # Values of several words stand in the file as they are.
    return f"{CHANGE}{name} {word}", f"in the configuration file: {name} {text or word}"
