"""The examination: all that the doctor looks at, in order."""

import resource
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from chatsvc.config import Config
from chatsvc.doctor.findings import Finding, Level, fail, ok, warn
from chatsvc.doctor.kafka import examine_brokers, examine_topic
from chatsvc.doctor.servers import Exchange, examine_health
from chatsvc.process import OTHER_FILES


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What to look at: brokers, if there are any, with two topics, and servers. `timeout` is how
    many seconds each look may take."""

    brokers: tuple[str, ...]
    topic: str
    connections_topic: str
    servers: tuple[str, ...]
    timeout: float


def examine(patient: Patient) -> list[Finding]:
    """Looks at everything; blocks for seconds, more if much does not answer. Whatever is broken is
    a finding, also what breaks the examination."""
    findings: list[Finding] = []
    findings += _safely("files", lambda: [_files()])
    findings += _safely("kafka", lambda: _kafka(patient))
    findings += _safely("servers", lambda: _servers(patient))
    return findings


def _safely(subject: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except Exception as error:
        name = type(error).__name__
        yield fail(subject, f"could not be examined: {name}: {error}", "report this as a bug")


def _files() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = Config.max_connections + OTHER_FILES
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return ok("files", "enough may be open for a server with the default --max-connections")
    return warn(
        "files",
        f"only {hard} may be open, too few for {Config.max_connections} connections",
        f"ulimit -n {needed}, LimitNOFILE= of systemd, or serve --max-connections "
        f"{max(1, hard - OTHER_FILES)}",
    )


def _kafka(patient: Patient) -> Iterator[Finding]:
    if not patient.brokers:
        yield warn("kafka", "not looked at", "name some brokers (--brokers)")
        return
    brokers = list(examine_brokers(patient.brokers, patient.timeout))
    yield from brokers
    reached = tuple(
        address
        for address in patient.brokers
        if any(each.level is Level.OK and each.subject == f"broker {address}" for each in brokers)
    )
    if reached:
        for topic in (patient.topic, patient.connections_topic):
            yield from examine_topic(topic, reached, patient.timeout)


def _servers(patient: Patient) -> Iterator[Finding]:
    serving = []
    for server in patient.servers:
        finding = examine_health(server, patient.timeout)
        yield finding
        if finding.level is Level.OK:
            serving.append(server)
    exchange = Exchange(serving, patient.timeout)
    yield from exchange.examine()
    yield exchange.examine_clock()
