"""Connection: one subscriber's stream, its outbox and why it ended."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from chatsvc import frames
from chatsvc.errors import CloseReason
from chatsvc.feed import Feed, Overflow, Position
from chatsvc.model import LOBBY
from chatsvc.replay import Chunk, Need, Replay, SharedStep, SharedSteps
from chatsvc.senders import TURN_SECONDS, Pulse
from chatsvc.tail import Tail

ALL = 1 << 30
"""More messages than a feed holds."""
BEHIND_RECORDS = 500
"""A replay of less is done at once."""
MAX_FRAME_BYTES = 1024 * 1024
"""How large a Delivery of several batches may be; gRPC's clients take 4 MiB."""


class Stream(Protocol):
    """The transport under a connection; the servicer has the one over gRPC."""

    def send(self, frame: bytes) -> None:
        """Sends one frame. Blocks while the client's window is full; returns quietly once the
        stream is over. One thread at a time."""

    def end(self, reason: CloseReason) -> None:
        """Ends the stream after what was sent, with the status for `reason`. Does not block, and
        may be called while another thread is blocked in `send`. Called once."""

    def cancel(self) -> None:
        """Cuts the stream off; a blocked `send` returns."""


class Past(Protocol):
    """What a connection needs to catch up with its feed; the hub has it. Nothing blocks."""

    tail: Tail
    steps: SharedSteps

    def level(self, feed: "Feed[Connection]") -> tuple[Mapping[int, int], Position]:
        """The positions up to which everything has been broadcast, and the end of a feed at the
        same moment."""

    def replay(self, rooms: frozenset[str], positions: Mapping[int, int]) -> Replay:
        """What brings a connection to these rooms level from some positions."""

    def cursor(self, positions: Mapping[int, int]) -> bytes:
        """A Delivery that says where to go on."""

    def fetch(self, need: Need, connection: "Connection") -> None:
        """Has `take_chunk` called and hands the connection to a sender then."""

    def wait(self, connection: "Connection", live: Mapping[int, int]) -> None:
        """Hands the connection to a sender when more than up to `live` has been broadcast."""


class Connection:
    """One subscriber. With `batched` a frame is a Delivery of all that waits, else a Message.

    A sender thread drains the outbox, which is what the feed holds behind `position`; the outbox
    is bounded as the feed is. A connection with a `replay` is brought level with the feed by it
    first. When the outbox of a batched one overflows it gets a replay again; any other closes as
    SLOW then. So does each if one send takes longer than `send_timeout`: the stream ends at once
    with what was sent, and is cut off if the client does not take even that within another
    `send_timeout`: `on_end` is called when the end has been sent, and from then on somebody has to
    call `check_end` now and then.

    A batched one is sent a heartbeat when `beat` is called and nothing else was sent for a while,
    and is asked to go elsewhere by `send_away`.

    `drain` runs in one sender at a time; all else may be called from any thread and does not
    block.
    """

    __slots__ = (
        "_away_ms",
        "_batched",
        "_beat_due",
        "_ended",
        "_ended_at",
        "_fanned_out_at",
        "_feed",
        "_frames",
        "_heard_at",
        "_left",
        "_lock",
        "_on_end",
        "_past",
        "_position",
        "_positions",
        "_reason",
        "_replay",
        "_send_timeout",
        "_sent",
        "_sent_at",
        "_stream",
        "_taken",
        "asked_away",
        "away_at",
        "rooms",
        "user",
    )

    def __init__(
        self,
        user: str,
        feed: "Feed[Connection]",
        stream: Stream,
        send_timeout: float,
        on_end: "Callable[[Connection], object]",
        *,
        rooms: frozenset[str] = frozenset((LOBBY,)),
        batched: bool = False,
        past: Past | None = None,
        replay: Replay | None = None,
    ) -> None:
        self.user = user
        self.rooms = rooms
        self._feed = feed
        self._stream = stream
        self._send_timeout = send_timeout
        self._on_end = on_end
        self._position: Position = feed.end
        self._batched = batched
        self._past = past
        # Where it is in the log when it has a replay, or would have one.
        self._replay = replay
        self._positions: Mapping[int, int] = {}
        # What is being sent, behind which the position is, and how much of it has been.
        self._frames: Sequence[bytes] = ()
        self._sent = 0
        self._taken = 0
        self._fanned_out_at = 0.0
        # When something was sent last, and when the client was heard of last, if it said that it
        # would be. Monotonic, in seconds.
        self._sent_at = 0.0
        self._heard_at: float | None = None
        self._beat_due = False
        self._away_ms: int | None = None
        self.away_at = 0.0
        """For the hub: when its client is to go elsewhere, or is late to have done so; 0: never."""
        self.asked_away = False
        """Whether its client was asked to go elsewhere."""
        # Guards the step from open to closed and from closed to ended, each of which happens once.
        self._lock = threading.Lock()
        self._reason: CloseReason | None = None
        self._ended = False
        self._ended_at = 0.0
        self._left = False

    @property
    def close_reason(self) -> CloseReason | None:
        """Why the connection closed; None while it is open."""
        return self._reason

    @property
    def start(self) -> Mapping[int, int]:
        """The positions where it begins. Before it is drained, of one that has a replay."""
        assert self._replay is not None  # batched ones begin with it
        return self._replay.positions

    @property
    def backlog(self) -> int:
        """Messages that have not been sent yet."""
        unsent = len(self._frames) - self._sent
        taken = self._taken if self._batched and unsent else unsent
        return taken if self._replay is not None else self._feed.backlog(self._position) + taken

    @property
    def nearly_overflows(self) -> bool:
        """Whether the outbox is more than half full. Not while it is brought level: what the feed
        holds does not matter then."""
        return self._replay is None and self._feed.nearly_overflows(self._position)

    @property
    def catches_up(self) -> bool:
        """Whether it is sent what is in the log, and not yet what is new."""
        return self._replay is not None

    @property
    def is_behind(self) -> bool:
        """Whether it has so much to catch up with that others should not wait for it."""
        if self._replay is None:
            return False
        assert self._past is not None  # who has a replay has this too
        return self._replay.behind(self._past.level(self._feed)[0]) > BEHIND_RECORDS

    def drain(self, pulse: Pulse) -> bool:
        """Sends what is in the outbox now. Then the connection rests at the end of the feed, or
        returns True for another turn, because others wait too: if more has come meanwhile, or
        after TURN_SECONDS. Ends the stream if the connection has closed. Tells `pulse` before each
        send."""
        turn_end = self._feed.end.batches
        deadline = pulse.beat() + TURN_SECONDS
        while not self._left:
            # Before the look into the feed: what was appended before the close is still sent.
            closed = self._reason is not None
            if self._reason is CloseReason.SLOW:
                return self._end(pulse.beat())
            if self._sent == len(self._frames):
                if self._away_ms is not None:
                    self._take_notice()
                elif self._replay is not None:
                    now = pulse.beat()
                    if self._reason is not None:
                        return self._end(now)
                    if now > deadline or (self.is_behind and not pulse.takes_those_behind):
                        return True
                    if not self._catch_up(now):
                        return False
                    continue
                elif not self._take(turn_end):
                    return True
            if not self._frames:
                if closed:
                    return self._end(pulse.beat())
                if self._beat_due:
                    self._take_heartbeat()
                elif self._rest():
                    return False
            elif not self._send_frames(pulse, deadline):
                return not self._left
        return False

    def _catch_up(self, now: float) -> bool:
        """Takes the next frame from the replay. Returns False, as the last thing that this sender
        does with the connection, if it has to wait for it."""
        past, replay = self._past, self._replay
        assert past is not None  # who has a replay has this too
        assert replay is not None  # the caller has looked
        live, position = past.level(self._feed)
        place = replay.place
        shared = past.steps.find(place)
        if shared is not None and _is_within(shared.positions, live):
            replay.follow(shared)
            self._take_replayed(shared.frame, shared.messages, now)
            return True
        step = replay.step(live, past.tail)
        if isinstance(step, Need):
            past.fetch(step, self)
            return False
        caught_up = step.level and not replay.is_ahead(live)
        if not (step.elements or step.gaps or caught_up):
            if step.level:
                past.wait(self, live)
            return not step.level
        cursor = past.cursor(replay.positions)
        frame = frames.replayed(step.elements, step.gaps, cursor, caught_up=caught_up)
        self._take_replayed(frame, len(step.elements), now)
        if step.shared:
            past.steps.keep(place, SharedStep(frame, len(step.elements), dict(replay.positions)))
        if caught_up:
            self._replay, self._position, self._positions = None, position, live
        return True

    def _take_replayed(self, frame: bytes, messages: int, now: float) -> None:
        self._frames, self._sent = (frame,), 0
        self._taken, self._fanned_out_at = messages, now

    def take_chunk(self, chunk: Chunk | None) -> None:
        """What `fetch` of the past was asked for; None if it cannot be had any more."""
        if chunk is not None and self._replay is not None:
            self._replay.take(chunk)

    def _fall_behind(self) -> None:
        """What follows the position is no longer in the feed."""
        if self._past is None:
            self._close_slow()
        else:
            self._replay = self._past.replay(self.rooms, self._positions)

    def _take(self, turn_end: int) -> bool:
        """Takes the next frames from the feed, none if the connection is level or has fallen
        behind. Returns False if there are more, but not for this turn."""
        self._frames, self._sent = (), 0
        try:
            batches, position = self._feed.read(
                self._position, ALL if self._batched else 1, MAX_FRAME_BYTES
            )
        except Overflow:
            self._fall_behind()
            return True
        if not batches:
            return True
        if self._position.batches >= turn_end:
            return False
        if self._batched:
            self._frames = (self._feed.join(batches, position),)
        else:
            self._frames = batches[0].messages
        self._fanned_out_at = batches[0].fanned_out_at
        self._taken = position.messages - self._position.messages
        self._position = position
        self._positions = batches[-1].positions
        return True

    def _take_notice(self) -> None:
        """The next frame asks the client to go elsewhere."""
        assert self._away_ms is not None  # the caller has looked
        self._frames, self._sent = (frames.going_away(self._away_ms),), 0
        self._taken, self._away_ms = 0, None

    def _take_heartbeat(self) -> None:
        """The next frame is the newest cursor, unless there is something to read now."""
        self._beat_due = False
        assert self._past is not None  # only batched ones have heartbeats
        positions, end = self._past.level(self._feed)
        if end.batches == self._position.batches:
            self._frames, self._sent = (self._past.cursor(positions),), 0
            self._taken, self._positions = 0, positions

    def _send_frames(self, pulse: Pulse, deadline: float) -> bool:
        """Sends the rest of what was taken; returns False if there was no time for all of it, or
        the stream is over."""
        while self._sent < len(self._frames):
            now = pulse.beat()
            if self._left or self._reason is CloseReason.SLOW or now > deadline:
                return False
            self._stream.send(self._frames[self._sent])
            self._sent += 1
            self._sent_at = now
        self._beat_due = False
        if self._taken:
            pulse.sent(self._taken, self._fanned_out_at)
        return True

    def _rest(self) -> bool:
        if not self._feed.rest(self, self._position):
            return False
        # What came just before found nobody resting, so nobody would wake this one.
        called = self._reason is not None or self._left or self._away_ms is not None
        return not (called and self._feed.rouse(self))

    def hear(self, now: float) -> None:
        """The client says that it is there, and will go on to say so."""
        self._heard_at = now

    def hear_no_more(self) -> None:
        """The client will not say any more that it is there."""
        self._heard_at = None

    def is_silent(self, now: float, seconds: float) -> bool:
        """Whether the client has not said for so long that it is there, though it should."""
        return self._heard_at is not None and now - self._heard_at > seconds

    def beat(self, now: float, seconds: float) -> bool:
        """Has a heartbeat sent if nothing was sent for so long. Returns whether the caller has to
        hand the connection to a sender."""
        if not self._batched or now - self._sent_at < seconds:
            return False
        self._beat_due = True
        return self._feed.rouse(self)

    def send_away(self, delay_ms: int) -> bool:
        """Has the client asked to go elsewhere after so long. Returns whether the caller has to
        hand the connection to a sender. Only batched connections know how to."""
        assert self._batched, "there is no such frame for others"
        self.asked_away = True
        self._away_ms = delay_ms
        return self._feed.rouse(self)

    @property
    def is_batched(self) -> bool:
        """Whether its frames are Deliveries."""
        return self._batched

    def close(self, reason: CloseReason) -> bool:
        """Closes the connection unless it is closed already. Returns whether the caller has to
        hand it to a sender, because none will come by itself."""
        with self._lock:
            if self._reason is not None:
                return False
            self._reason = reason
        return self._feed.rouse(self)

    def leave(self) -> None:
        """The stream is over: nothing is sent any more."""
        self._left = True
        with self._lock:
            self._ended = True
            if self._reason is None:
                self._reason = CloseReason.LEFT
        self._feed.rouse(self)

    def check_send(self, seconds: float, now: float) -> None:
        """Called now and then while one send has been blocked for `seconds`: closes as SLOW when
        that is too long or the outbox has overflowed."""
        overflowed = self._past is None and self._feed.has_overflowed(self._position)
        if seconds > self._send_timeout or overflowed:
            self._close_slow()
            self._end(now)

    def cut_off(self) -> None:
        """Cuts the stream off."""
        self._stream.cancel()

    def check_end(self, now: float) -> bool:
        """Cuts the stream off if its client does not take the end. Returns whether it is over."""
        if not self._left and now - self._ended_at > self._send_timeout:
            self._stream.cancel()
        return self._left

    def _close_slow(self) -> None:
        with self._lock:
            if self._reason is None or self._reason is CloseReason.SHUTDOWN:
                self._reason = CloseReason.SLOW

    def _end(self, now: float) -> bool:
        """Ends the stream, once; returns False, for a drain that is over."""
        with self._lock:
            if self._ended:
                return False
            self._ended = True
            self._ended_at = now
        assert self._reason is not None  # nobody ends an open connection
        self._stream.end(self._reason)
        self._on_end(self)
        return False


def _is_within(positions: Mapping[int, int], live: Mapping[int, int]) -> bool:
    """Whether a server that has read up to `live` may give out what is before `positions`."""
    return all(end <= live.get(each, 0) for each, end in positions.items())
