"""When a server counts as unable to read on."""

import threading

from chatsvc.errors import ChatError, FeedLost, KafkaUnreachable, TopicFailed, TopicReplaced
from chatsvc.feedwatch import FeedState, FeedWatch
from chatsvc.topics import TopicState

from waiting import eventually


def test_a_position_that_does_not_move_is_stuck_after_the_timeout() -> None:
    """As long as there is more to read than where it stands."""
    state = FeedState(30.0)
    assert not state.stuck({0: 5, 1: 9}, {0: 9, 1: 9}, 100.0)
    assert not state.stuck({0: 5, 1: 9}, {0: 12, 1: 9}, 129.0)
    assert state.stuck({0: 5, 1: 9}, {0: 12, 1: 9}, 130.0) == [(0, 5, 12)]
    assert not state.stuck({0: 6, 1: 9}, {0: 12, 1: 9}, 131.0)


def test_one_that_moves_slowly_is_not_stuck() -> None:
    """It is behind all the time, and reads on."""
    state = FeedState(30.0)
    for second in range(0, 300, 20):
        assert not state.stuck({0: second}, {0: 10_000}, float(second))


def test_a_partition_that_is_not_read_at_all_is_stuck() -> None:
    """New ones are to be found in time."""
    state = FeedState(30.0)
    assert not state.stuck({0: 1}, {0: 1, 1: 3}, 0.0)
    assert state.stuck({0: 1}, {0: 1, 1: 3}, 31.0) == [(1, 0, 3)]


def test_what_is_no_record_is_not_waited_for() -> None:
    """What comes behind it is."""
    state = FeedState(30.0)
    assert not state.stuck({0: 5}, {0: 6}, 0.0)
    assert state.stuck({0: 5}, {0: 6}, 31.0)
    state.note_empty(0, 6)
    assert not state.stuck({0: 5}, {0: 6}, 99.0)
    assert not state.stuck({0: 5}, {0: 7}, 100.0)
    assert state.stuck({0: 5}, {0: 7}, 130.0)


class Scene:
    """A watch over a feed and a Kafka that are what the test says."""

    def __init__(self) -> None:
        self.answer: TopicState | ChatError | None = TopicState(b"t", {0: 0})
        self.records: bool | None = True
        self.states: list[str | None] = []
        self.reached: list[bool] = []
        self.replaced: list[ChatError] = []
        self.looked = 0
        self.watch = FeedWatch(
            lambda: {0: 0},
            b"t",
            "chatting",
            self.look,
            lambda partition, start, end: self.records,
            timeout=0.5,
            interval=0.01,
            denied_seconds=0.1,
            on_state=lambda lost: self.states.append(None if lost is None else lost.cause),
            on_reach=self.reached.append,
            on_replaced=self.replaced.append,
        )

    def look(self) -> TopicState | None:
        self.looked += 1
        if isinstance(self.answer, ChatError):
            raise self.answer
        return self.answer

    def __enter__(self) -> "Scene":
        self.watch.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.watch.close()


def test_a_stuck_feed_is_lost_and_found() -> None:
    """Each is told once."""
    with Scene() as scene:
        scene.answer = TopicState(b"t", {0: 5})
        assert eventually(lambda: len(scene.states) == 1)
        scene.answer = TopicState(b"t", {0: 0})
        assert eventually(lambda: len(scene.states) == 2)
    assert scene.states[0] is not None
    assert scene.states[1] is None


def test_a_feed_that_ends_with_no_record_is_not_lost() -> None:
    """Nor one of which nobody can tell."""
    for records in (False, None):
        with Scene() as scene:
            scene.records = records
            scene.answer = TopicState(b"t", {0: 5})
            looked = scene.looked
            assert eventually(lambda at=looked: scene.looked > at + 80)
        assert not scene.states


def test_a_topic_that_is_gone_is_lost() -> None:
    """It is told once."""
    with Scene() as scene:
        scene.answer = TopicFailed("chatting", "no such topic")
        assert eventually(lambda: scene.states)
        looked = scene.looked
        assert eventually(lambda: scene.looked > looked + 3)
    assert scene.states == ["topic chatting: no such topic"]


def test_a_broker_that_knows_no_better_for_a_moment_loses_nobody_his_server() -> None:
    """One that has just started may not have heard of the topic."""
    scene = Scene()
    answers = [TopicFailed("chatting", "no such topic"), TopicState(b"t", {0: 0})]

    def in_turn() -> TopicState | None:
        scene.answer = answers[scene.looked % 2]
        return Scene.look(scene)

    scene.look = in_turn  # type: ignore[method-assign]
    with scene:
        assert eventually(lambda: scene.looked > 30)
    assert not scene.states


def test_brokers_that_are_away_lose_nobody_his_server() -> None:
    """All servers read nothing then; only the health tells, after a while."""
    with Scene() as scene:
        scene.answer = KafkaUnreachable(("localhost:9092",), "connection refused")
        assert eventually(lambda: scene.looked > 3)
    assert not scene.states
    assert all(scene.reached)


def test_brokers_that_do_not_know_lose_nobody_his_server() -> None:
    """While one that would have to be asked is down, others answer: the server serves."""
    with Scene() as scene:
        scene.answer = None
        assert eventually(lambda: scene.looked > 3)
    assert not scene.states
    assert all(scene.reached)


def test_another_topic_of_the_name_is_told_once() -> None:
    """The watch ends with it."""
    with Scene() as scene:
        scene.answer = TopicState(b"another", {0: 0})
        assert eventually(lambda: scene.replaced)
        looked = scene.looked
        threading.Event().wait(0.2)
        assert scene.looked == looked
    assert isinstance(scene.replaced[0], TopicReplaced)
    assert isinstance(FeedLost("x"), ChatError)
