"""Server: builds the parts, starts and stops them in order; the only file where all meet."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import grpc
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from chatsvc import metrics as metric
from chatsvc.archive import Archive
from chatsvc.backfill import STRETCH_RECORDS, Backfill
from chatsvc.config import Config
from chatsvc.consumer import OnPositions, OnRecords, PartitionWatch, TopicConsumer
from chatsvc.cursor import CursorFormat
from chatsvc.duplicates import Duplicates
from chatsvc.embedded import EMBEDDED_FETCH_WAIT_MS, EmbeddedBroker
from chatsvc.errors import (
    ChatError,
    CloseReason,
    FeedLost,
    PortTaken,
    ServerStopping,
    TopicFailed,
)
from chatsvc.fanout import Fanout
from chatsvc.feedwatch import FeedWatch
from chatsvc.health import Health
from chatsvc.hub import Hub
from chatsvc.listening import Listening
from chatsvc.logclient import LogClient
from chatsvc.memory import MemoryTrim
from chatsvc.metrics import Metrics
from chatsvc.periodic import Periodic
from chatsvc.presence import Presence
from chatsvc.producer import Producer
from chatsvc.reader import LogReader
from chatsvc.registrar import BEATS_PER_LISTING, Registrar
from chatsvc.requests import RequestWatch
from chatsvc.seats import Seats
from chatsvc.senders import SenderPool
from chatsvc.servicer import Pools, Servicer
from chatsvc.sideport import Readiness, SidePort
from chatsvc.statistics import PRODUCER, Statistics
from chatsvc.tail import Tail
from chatsvc.topics import Topics
from chatsvc.watchdog import Watchdog

_log = logging.getLogger(__name__)

CHAT_PARTITIONS = 2
CONNECTIONS_PARTITIONS = 3
REPLY_SENDERS = 2
SLOW_SENDERS = 2
REPLAY_SENDERS = 2
HISTORY_THREADS = 4
REFLECTION_THREADS = 2
BEATS = 30
"""How often streams are looked at in the time of a heartbeat: so those that are due together, since
they were sent the same message, are not sent to all at once."""
LOOK_SECONDS = 2.0
"""How long Kafka may take to tell where the topic ends."""
SPREAD_SECONDS = 2.0
"""Over how long clients are sent elsewhere at most."""
LEAVE_SECONDS = 0.5
"""How long a client may take to go when it is time."""

MAX_MESSAGE_BYTES = 64 * 1024


class Server:
    """A chat server in this process.

    `start` and `stop` are called once each, from one thread; `stop` also after a failed start.
    """

    def __init__(
        self,
        config: Config,
        registry: CollectorRegistry | None = None,
        *,
        seats: Seats | None = None,
        embedded: tuple[str, ...] = (),
        on_failure: Callable[[ChatError], None] = lambda error: None,
    ) -> None:
        """`seats` are what its streams take, by default `max_connections` of its own. `embedded`
        is the embedded broker of another process, which has the topics: without Kafka it is used
        instead of one in this process. `on_failure` is called, in a thread of the server's, when
        it can be of no more use and has to be stopped."""
        self._config = config
        self._seats = seats or Seats(config.max_connections)
        self._embedded = embedded
        self._on_failure = on_failure
        self.health = Health()
        self.metrics = Metrics(registry or CollectorRegistry())
        self._statistics = Statistics()
        self.metrics.observe(self._statistics.collect)
        self._publish_streams: Callable[[], int] = lambda: 0
        self.presence = Presence(config.server_id, config.server_timeout)
        self._feed_lost: FeedLost | None = None
        self._kafka_answers = True
        self._running = ExitStack()
        self._deadline = 0.0

    def start(self) -> Listening:
        """Starts everything and returns when clients can connect; blocks for seconds while Kafka
        is looked for and positions are resolved.

        Raises KafkaUnreachable, TopicFailed, PublishFailed or PortTaken; what had started has
        been stopped then.
        """
        try:
            return self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> Listening:
        config = self._config
        port = SidePort(
            self.metrics.registry, config.metrics_host, config.metrics_port, self._readiness
        )
        metrics_url = port.start()
        self._running.callback(port.close)
        brokers, identity, warnings = self._reach_kafka()
        producer = self._start_producer(brokers)
        self._build(brokers, producer, CursorFormat(identity))
        self._start_threads()
        chat = self._start_reading(brokers, producer)
        listening_port = self._listen(producer)
        self.health.set_serving()
        if config.brokers:
            self._watch_feed(chat, identity)
        return Listening(listening_port, metrics_url, brokers, not config.brokers, warnings)

    def _reach_kafka(self) -> tuple[tuple[str, ...], bytes, tuple[str, ...]]:
        """The brokers, the chat topic's identity, and warnings."""
        config = self._config
        topics = default_partitions(config)
        if not config.brokers:
            brokers = self._embedded or self._start_broker(topics)
            admin = Topics(brokers, config.server_id, config.kafka_timeout)
            return brokers, admin.identity(config.topic), ()
        admin = Topics(config.brokers, config.server_id, config.kafka_timeout)
        admin.reach()
        missing = admin.missing(topics)
        warnings = tuple(admin.create(missing)) if missing else ()
        return config.brokers, admin.identity(config.topic), warnings

    def _start_broker(self, topics: Iterable[str]) -> tuple[str, ...]:
        broker = EmbeddedBroker()
        self._running.callback(broker.close)
        brokers = broker.start()
        for topic in topics:
            broker.make_topic(topic)
        return brokers

    def _start_producer(self, brokers: tuple[str, ...]) -> Producer:
        config = self._config
        producer = Producer(
            brokers,
            config.server_id,
            config.publish_timeout,
            observe_ack=self.metrics.produce_latency.observe,
            count_error=lambda name: self.metrics.produce_errors.labels(name).inc(),
            on_statistics=self._statistics.of(PRODUCER),
            on_listing=self._statistics.note_listing,
        )
        self._running.callback(lambda: self._report_left(producer.close(self._time_left(1))))
        producer.start()
        return producer

    def _build(self, brokers: tuple[str, ...], producer: Producer, cursors: CursorFormat) -> None:
        config = self._config
        metrics = self.metrics
        self._cursors = cursors
        self._watchdog = Watchdog()
        observe = metrics.delivery_latency.observe
        self._slow_senders = SenderPool("slow-sender", SLOW_SENDERS, self._watchdog.wake, observe)
        self._replay_senders = SenderPool(
            "replay-sender", REPLAY_SENDERS, self._watchdog.wake, observe, self._slow_senders
        )
        self._senders = SenderPool(
            "sender",
            config.senders,
            self._watchdog.wake,
            observe,
            self._slow_senders,
            self._replay_senders,
        )
        self._replies = SenderPool("reply", REPLY_SENDERS, self._watchdog.wake)
        self._requests = RequestWatch(
            config.rpc_threads, config.request_timeout, self._watchdog.wake
        )
        self._duplicates = Duplicates()
        # Streams that wait for their first request take none of the few threads of the calls.
        self._stream_requests = RequestWatch(
            config.stream_threads, config.request_timeout, self._watchdog.wake
        )
        self._log_reader = LogReader(brokers, config.server_id, config.topic, self._duplicates)
        self._hub = Hub(
            self._senders,
            seats=self._seats,
            tail=Tail(config.tail_bytes),
            cursors=cursors,
            fetch=self._log_reader.fetch,
            outbox_messages=config.outbox_messages,
            outbox_bytes=config.outbox_bytes,
            send_timeout=config.send_timeout,
            heartbeat_seconds=config.stream_heartbeat,
            max_age_seconds=config.max_stream_age,
            on_change=lambda user, count: self._registrar.note(user, count),
            on_leave=self._count_leave,
        )
        self._registrar = Registrar(
            config.server_id,
            self.presence,
            partial(producer.publish, config.connections_topic),
            self._hub.users,
            heartbeat_interval=config.heartbeat_interval,
            count_invalid=lambda reason: metrics.records_invalid.labels(
                config.connections_topic, reason
            ).inc(),
        )
        pools = (self._senders, self._replay_senders, self._slow_senders, self._replies)
        self._watchdog.add(pool.check for pool in pools)
        self._watchdog.add((self._hub.check, self._requests.check, self._stream_requests.check))
        self._watchdog.add((MemoryTrim(self._hub.__len__).check,))
        metrics.observe(self._observe)

    def _start_threads(self) -> None:
        self._running.callback(self._watchdog.close)
        self._watchdog.start()
        # Stopped in the opposite order: what the senders hand to the slow lane is drained there.
        self._running.callback(self._log_reader.close)
        self._log_reader.start()
        for pool in (self._slow_senders, self._replay_senders, self._senders, self._replies):
            self._running.callback(self._close_pool, pool)
            pool.start()
        heartbeats = Periodic(
            "heartbeats",
            self._config.stream_heartbeat / BEATS,
            lambda: self._hub.beat(time.monotonic()),
        )
        self._running.callback(heartbeats.close)
        heartbeats.start()

    def _close_pool(self, pool: SenderPool) -> None:
        pool.close(self._time_left(0.5))

    def _start_reading(self, brokers: tuple[str, ...], producer: Producer) -> TopicConsumer:
        config = self._config
        now_ms = self._registrar.introduce(config.kafka_timeout)
        # Far enough back to find a listing of every server that is alive.
        listed = (BEATS_PER_LISTING + 3) * config.heartbeat_interval
        since_ms = max(0, now_ms - int(listed * 1_000))
        fanout = self._fanout()
        backfill = Backfill(
            LogClient(brokers, config.server_id, config.topic, STRETCH_RECORDS),
            config.topic,
            fanout,
            self._duplicates,
            now_ms if now_ms > 0 else int(time.time() * 1_000),
        )

        chat = self._consumer(
            brokers,
            config.topic,
            fanout.on_records,
            None,
            on_positions=fanout.on_positions,
            before_reading=lambda positions: backfill.run(positions, config.kafka_timeout),
        )
        connections = self._consumer(
            brokers, config.connections_topic, self._registrar.on_records, since_ms
        )
        for consumer in (chat, connections):
            self._running.callback(consumer.close)
            consumer.start(config.kafka_timeout)
        watch = PartitionWatch(
            (chat, connections), producer.count_partitions, config.partitions_interval
        )
        self._running.callback(watch.close)
        watch.start()
        if not connections.wait_caught_up(config.kafka_timeout):
            raise TopicFailed(config.connections_topic, "could not be read to its end in time")
        self._running.callback(lambda: self._registrar.close(self._time_left(1)))
        self._registrar.start()
        return chat

    def _fanout(self) -> Fanout:
        metrics = self.metrics
        return Fanout(
            self._hub,
            self._hub.tail,
            self._duplicates,
            count_received=metrics.messages_received.inc,
            count_invalid=lambda reason: metrics.records_invalid.labels(
                self._config.topic, reason
            ).inc(),
            count_duplicate=metrics.messages_duplicate.labels("log").inc,
            observe_latency=metrics.message_latency.observe,
        )

    def _consumer(
        self,
        brokers: tuple[str, ...],
        topic: str,
        on_records: OnRecords,
        since_ms: int | None,
        on_positions: OnPositions = lambda positions: None,
        before_reading: OnPositions = lambda positions: None,
    ) -> TopicConsumer:
        metrics = self.metrics
        return TopicConsumer(
            brokers,
            self._config.server_id,
            topic,
            on_records,
            since_ms=since_ms,
            on_positions=on_positions,
            before_reading=before_reading,
            fetch_wait_ms=500 if self._config.brokers else EMBEDDED_FETCH_WAIT_MS,
            report_lag=lambda partition, lag: metrics.consumer_lag.labels(topic, partition).set(
                lag
            ),
            count_gap=metrics.records_lost.labels(topic).inc,
            on_statistics=self._statistics.of(topic),
        )

    def _watch_feed(self, chat: TopicConsumer, identity: bytes) -> None:
        config = self._config
        admin = Topics(config.brokers, config.server_id, LOOK_SECONDS)
        client = LogClient(config.brokers, config.server_id, config.topic, 1)
        self._running.callback(client.close)

        def has_records(partition: int, start: int, end: int) -> bool | None:
            stretch = client.read(partition, start, end)
            client.rest()
            return None if stretch is None else bool(stretch.records)

        watch = FeedWatch(
            chat.positions,
            identity,
            config.topic,
            lambda: admin.state(config.topic),
            has_records,
            timeout=config.feed_timeout,
            interval=config.partitions_interval,
            on_state=self._set_feed,
            on_reach=self._set_reach,
            on_replaced=self._on_failure,
        )
        self._running.callback(watch.close)
        watch.start()

    def _set_feed(self, lost: FeedLost | None) -> None:
        """Sends clients elsewhere while messages cannot be read, and takes them in again."""
        self._feed_lost = lost
        self._tell_health()
        self._hub.refuse(lost)
        if lost is not None:
            self._hub.send_away(SPREAD_SECONDS, CloseReason.MOVED)

    def _set_reach(self, reached: bool) -> None:
        self._kafka_answers = reached
        self._tell_health()

    def _tell_health(self) -> None:
        if self._feed_lost is not None:
            self.health.set_not_serving(f"cannot read on in Kafka: {self._feed_lost.cause}")
        elif not self._kafka_answers:
            self.health.set_not_serving("no Kafka broker answers")
        else:
            self.health.set_serving()

    def _readiness(self) -> Readiness:
        reason = self.health.reason
        return Readiness(not reason, reason or "ok")

    def _pool(self, threads: int, name: str) -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._running.callback(pool.shutdown)
        return pool

    def _listen(self, producer: Producer) -> int:
        config = self._config
        # Some threads more than streams, to refuse those above the limit at once.
        pools = Pools(
            publish=self._pool(config.max_publish_streams + 4, "pub"),
            subscribe=self._pool(config.stream_threads, "sub"),
            history=self._pool(HISTORY_THREADS, "history"),
        )
        server = grpc.server(
            self._pool(config.rpc_threads, "rpc"),
            options=channel_options(config),
            maximum_concurrent_rpcs=config.max_pending_rpcs,
        )
        servicer = Servicer(
            config.server_id,
            self._hub,
            partial(producer.publish, config.topic),
            self._replies,
            self._requests,
            self._stream_requests,
            self._cursors,
            self._duplicates,
            Archive(
                self._hub.tail,
                self._log_reader.fetch,
                # The embedded broker knows no times; what it keeps is in the tail.
                self._log_reader.locate if config.brokers else self._locate_in_tail,
                lambda: self._hub.positions,
            ),
            self.metrics,
            pools,
            send_timeout=config.send_timeout,
            publish_timeout=config.publish_timeout,
            max_publish_streams=config.max_publish_streams,
        )
        server.add_generic_rpc_handlers(servicer.handlers())
        self._publish_streams = lambda: servicer.publish_streams
        self.health.add_to(server)
        if config.reflection:
            server.add_generic_rpc_handlers([self._reflection()])
        address = f"[{config.host}]" if ":" in config.host else config.host
        try:
            port: int = server.add_insecure_port(f"{address}:{config.port}")
        except RuntimeError as error:
            cause = "address already in use or not of this machine"
            raise PortTaken("--port", f"{address}:{config.port}", cause) from error
        self._running.callback(lambda: self._stop_serving(server, servicer, producer))
        server.start()
        return port

    def _reflection(self) -> grpc.GenericRpcHandler:
        # Not at the top: most servers have none, and need not have it in memory.
        from chatsvc import reflection

        return reflection.handler(self._pool(REFLECTION_THREADS, "reflection"))

    def _locate_in_tail(
        self,
        positions: Mapping[int, int],
        time_ms: int,
        done: Callable[[Mapping[int, int] | None], None],
    ) -> None:
        done({**positions, **self._hub.tail.locate(time_ms)})

    def stop(self) -> None:
        """Stops everything within about `stop_timeout` seconds: streams end with UNAVAILABLE
        after what is in their outboxes, what was accepted is acked or refused, and this server
        says that it leaves. Idempotent."""
        self._deadline = time.monotonic() + self._config.stop_timeout
        self._running.close()

    def _stop_serving(self, server: grpc.Server, servicer: Servicer, producer: Producer) -> None:
        self._send_clients_elsewhere()
        stopped = server.stop(grace=self._time_left(0.1 * self._config.stop_timeout))
        self._requests.close()
        self._stream_requests.close()
        servicer.stop()
        self._hub.close(CloseReason.SHUTDOWN)
        self._log_reader.close()
        if not stopped.wait(self._time_left(0.4 * self._config.stop_timeout)):
            producer.give_up()  # Kafka is away: refuse what waits for it while there is time
        if not stopped.wait(self._time_left(0.5)):
            _log.warning("Some calls could not be ended in time")

    def _send_clients_elsewhere(self) -> None:
        """Asks clients to go, and serves those that are still here meanwhile."""
        self.health.leave()
        self._hub.refuse(ServerStopping())
        spread = 0.3 * self._config.stop_timeout
        spread = self._hub.send_away(spread, CloseReason.SHUTDOWN)
        self._hub.wait_empty(spread + LEAVE_SECONDS)

    def _time_left(self, reserved: float) -> float:
        """Seconds of a stop that are left but for `reserved`."""
        return max(0.1, self._deadline - time.monotonic() - reserved)

    def _report_left(self, refused: int) -> None:
        if refused:
            _log.warning("%d records were not confirmed by Kafka before the stop", refused)

    def _count_leave(self, reason: CloseReason, undelivered: int) -> None:
        self.metrics.disconnects.labels(reason.value).inc()
        if undelivered and reason is not CloseReason.LEFT:
            self.metrics.messages_dropped.labels(reason.value).inc(undelivered)

    def _observe(self) -> Iterable[Metric]:
        backlogs = self._hub.backlogs()
        servers = self.presence.servers()
        yield metric.gauge("connections_active", "Streams open now", len(backlogs))
        yield metric.gauge(
            "connections_limit",
            "Streams that may be open at once, of all workers together",
            self._config.max_connections,
        )
        yield metric.gauge(
            "replays_active", "Streams that catch up from the log", self._hub.replays()
        )
        yield metric.gauge(
            "publish_streams_active", "Streams of Publish open now", self._publish_streams()
        )
        yield metric.gauge(
            "duplicates_remembered",
            "Messages whose repetition would be noticed",
            len(self._duplicates),
        )
        yield metric.gauge("outbox_depth_messages", "Messages in all outboxes", sum(backlogs))
        yield metric.gauge(
            "outbox_depth_max_messages", "Messages in the fullest outbox", max(backlogs, default=0)
        )
        pools = (self._senders, self._replay_senders, self._slow_senders)
        sent = sum(pool.messages_sent for pool in pools)
        yield metric.count("messages_delivered", "Messages handed to the transport", sent)
        threads = sum(pool.threads for pool in pools)
        yield metric.gauge("sender_threads", "Threads that send to streams", threads)
        yield metric.gauge("servers_known", "Servers alive, this one too", len(servers))
        users = {user for here in servers.values() for user in here}
        yield metric.gauge("users_known", "Users connected to any server", len(users))


def default_partitions(config: Config) -> dict[str, int]:
    """The topics that a server needs and how many partitions they are created with."""
    return {
        config.topic: CHAT_PARTITIONS,
        config.connections_topic: CONNECTIONS_PARTITIONS,
    }


def channel_options(config: Config) -> list[tuple[str, int]]:
    """gRPC's channel arguments for a server; wrong names would be ignored silently.

    Sources: keepalive.md of gRPC core and channel_arg_names.h.
    """
    return [
        # A second server on the same port must fail, not take half of the connections. Workers are
        # meant to share it; their supervisor keeps others out.
        ("grpc.so_reuseport", int(config.workers > 1)),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Clients may ping as often as ours do, every 20 s, also without messages.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # How much a client may have on its way, instead of a ping now and then that finds out how
        # much that should be: with many quiet clients there is little else to do than to send them.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 256 * 1024),
        ("grpc.max_concurrent_streams", 128),
        ("grpc.max_metadata_size", 8 * 1024),
        ("grpc.absolute_max_metadata_size", 16 * 1024),
        (
            "grpc.max_allowed_incoming_connections",
            config.max_connections + config.max_connections // 4 + 16,
        ),
        # A peer that connects and does not speak HTTP/2.
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 300_000),
    ]
