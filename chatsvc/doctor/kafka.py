"""Kafka as the doctor sees it: the brokers, and the topics on them."""

from collections.abc import Iterator

from chatsvc.doctor.apiversions import NotKafka, release
from chatsvc.doctor.findings import Finding, fail, ok, warn
from chatsvc.errors import ChatError
from chatsvc.topics import MIN_IN_SYNC, REPLICATION, TopicDescription, Topics

_ALTER = "kafka-configs.sh --alter --entity-type topics --entity-name {} --add-config {}"


def examine_brokers(addresses: tuple[str, ...], timeout: float) -> Iterator[Finding]:
    """Each broker by its address, and those that Kafka names beside them."""
    findings = {address: _broker(address, timeout) for address in addresses}
    yield from findings.values()
    if all(finding.advice for finding in findings.values()):
        return
    try:
        brokers = Topics(addresses, "chatsvc-doctor", timeout).brokers()
    except ChatError as error:
        yield fail("cluster", str(error), "look into the brokers' logs")
        return
    for address in sorted(set(brokers.values()) - set(addresses)):
        finding = _broker(address, timeout)
        if not finding.advice:
            yield finding
            continue
        yield finding._replace(
            text=f"Kafka tells clients to go to this address: {finding.text}",
            advice="start that broker, or set its advertised.listeners to an address that can be "
            "reached from here",
        )
    yield _size(len(brokers))


def _broker(address: str, timeout: float) -> Finding:
    subject = f"broker {address}"
    try:
        return ok(subject, release(address, timeout))
    except NotKafka:
        return fail(subject, "what answers is no Kafka broker", "name another port (--brokers)")
    except TimeoutError:
        cause = "no answer in time"
    except ConnectionRefusedError:
        cause = "connection refused"
    except OSError as error:
        cause = error.strerror or str(error)
    return fail(subject, cause, "start it (make kafka-up), or name another (--brokers)")


def _size(brokers: int) -> Finding:
    if brokers >= REPLICATION:
        return ok("cluster", f"{brokers} brokers are alive")
    return warn(
        "cluster",
        f"{brokers} broker{'s' * (brokers > 1)} alive: the loss of one may lose messages, or stop "
        "the chat",
        "run three or more; if there are more, see why Kafka has lost them",
    )


def examine_topic(topic: str, addresses: tuple[str, ...], timeout: float) -> Iterator[Finding]:
    """Partitions, replicas and settings of a topic."""
    subject = f"topic {topic}"
    try:
        description = Topics(addresses, "chatsvc-doctor", timeout).describe(topic)
    except ChatError as error:
        cause = getattr(error, "cause", str(error)).partition(";")[0]
        yield fail(subject, cause, "chatsvc topics create, or another --topic")
        return
    yield from _replicas(subject, description)
    yield from _settings(subject, description)


def _replicas(subject: str, description: TopicDescription) -> Iterator[Finding]:
    partitions = description.partitions
    factor = min(len(each.replicas) for each in partitions)
    least = int(description.config.get("min.insync.replicas", "1"))
    shape = (
        f"{len(partitions)} partitions, replication factor {factor}, min.insync.replicas {least}"
    )
    if factor < REPLICATION:
        yield warn(
            subject,
            f"{shape}: losing one broker may lose messages",
            f"make it anew on {REPLICATION} brokers, or kafka-reassign-partitions.sh",
        )
    elif least < MIN_IN_SYNC:
        yield warn(
            subject,
            f"{shape}: what one broker has alone is confirmed",
            _ALTER.format(description.topic, f"min.insync.replicas={MIN_IN_SYNC}"),
        )
    else:
        yield ok(subject, shape)
    stopped = [
        each.partition for each in partitions if each.leader < 0 or len(each.in_sync) < least
    ]
    behind = [each.partition for each in partitions if len(each.in_sync) < len(each.replicas)]
    if stopped:
        yield fail(
            subject,
            f"partitions {_list(stopped)} have too few in-sync replicas: nothing can be written",
            "start the brokers that are down",
        )
    elif behind:
        yield warn(
            subject,
            f"partitions {_list(behind)} lack replicas",
            "start the broker that is down, or wait until it has caught up",
        )
    else:
        yield ok(subject, "all replicas are in sync")


def _settings(subject: str, description: TopicDescription) -> Iterator[Finding]:
    kind = description.config.get("message.timestamp.type", "unknown")
    if kind == "LogAppendTime":
        yield ok(subject, "message.timestamp.type LogAppendTime")
    else:
        yield warn(
            subject,
            f"message.timestamp.type {kind}: times are those of the servers' clocks",
            _ALTER.format(description.topic, "message.timestamp.type=LogAppendTime"),
        )
    if "compact" in description.config.get("cleanup.policy", ""):
        yield fail(
            subject,
            "cleanup.policy compact: Kafka deletes all but the last message of a room or user",
            _ALTER.format(description.topic, "cleanup.policy=delete"),
        )


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
