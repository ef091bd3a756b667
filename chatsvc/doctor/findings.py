"""Findings: what was looked at, how it is, and what to do."""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple


class Level(enum.Enum):
    """How it is; the value is what people and programs read."""

    OK = "ok"
    WARN = "warn"
    """It works, and something may be lost or refused one day."""
    FAIL = "fail"
    """It does not work."""


class Finding(NamedTuple):
    """One line: `subject` is what was looked at, `advice` what to do unless it is ok."""

    level: Level
    subject: str
    text: str
    advice: str = ""


def ok(subject: str, text: str) -> Finding:
    """It is as it should be."""
    return Finding(Level.OK, subject, text)


def warn(subject: str, text: str, advice: str) -> Finding:
    """It works and should be changed."""
    return Finding(Level.WARN, subject, text, advice)


def fail(subject: str, text: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(Level.FAIL, subject, text, advice)


def has_failed(findings: Sequence[Finding]) -> bool:
    """Whether any of it does not work."""
    return any(finding.level is Level.FAIL for finding in findings)


def text_of(findings: Sequence[Finding]) -> str:
    """Aligned lines for people, and how many are not ok."""
    width = max((len(finding.subject) for finding in findings), default=0)
    lines = []
    for level, subject, text, advice in findings:
        lines.append(f"{level.value:<4}  {subject:<{width}}  {text}")
        if advice:
            lines.append(f"{'':{4 + 2 + width + 2}}-> {advice}")
    return "\n".join((*lines, "", _summary(findings)))


def _summary(findings: Sequence[Finding]) -> str:
    failures = _count(findings, Level.FAIL)
    warnings = _count(findings, Level.WARN)
    if not failures and not warnings:
        return "All is well."
    counts = [(failures, "failure"), (warnings, "warning")]
    named = [f"{count} {word}{'s' * (count > 1)}" for count, word in counts if count]
    return f"{', '.join(named)}."


def json_of(findings: Sequence[Finding]) -> dict[str, Any]:
    """One object for programs."""
    return {
        "ok": not has_failed(findings),
        "failures": _count(findings, Level.FAIL),
        "warnings": _count(findings, Level.WARN),
        "findings": [{**finding._asdict(), "level": finding.level.value} for finding in findings],
    }


def _count(findings: Sequence[Finding], level: Level) -> int:
    return sum(finding.level is level for finding in findings)
