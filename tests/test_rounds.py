from chatsvc.rounds import AWAY_SECONDS, PAUSE_SECONDS, Round, Rounds

NOW = 100.0


def begun(rounds: Rounds, now: float) -> Round:
    """A round of one record that librdkafka has."""
    round_ = rounds.begin(now, 1)
    round_.handed_over = True
    return round_


def test_a_lone_record_goes_at_once() -> None:
    assert Rounds().may_begin(NOW)


def test_the_others_wait_until_a_round_is_over() -> None:
    """That is, until the last of its records has its outcome."""
    rounds = Rounds()
    first = rounds.begin(NOW, 2)
    first.handed_over = True
    rounds.settle(first)
    assert not rounds.may_begin(NOW)
    rounds.settle(first)
    assert rounds.may_begin(NOW)


def test_no_round_overtakes_one_that_is_being_handed_over() -> None:
    """Else the records of a sender could change places."""
    rounds = Rounds()
    rounds.begin(NOW, 1)
    assert not rounds.may_begin(NOW + 2 * AWAY_SECONDS)


def test_slow_brokers_get_one_round_at_a_time() -> None:
    """Whatever waits: a second one would make them slower yet."""
    rounds = Rounds()
    first = begun(rounds, NOW)
    assert not rounds.may_begin(NOW + AWAY_SECONDS)
    rounds.settle(first)
    assert rounds.may_begin(NOW + AWAY_SECONDS)


def test_a_broker_that_is_away_is_not_waited_for() -> None:
    """The records of the others go on in rounds of their own, until it is back."""
    rounds = Rounds()
    lost = [begun(rounds, NOW)]
    later = NOW + 1.1 * AWAY_SECONDS
    assert rounds.may_begin(later)
    lost.append(begun(rounds, later))
    assert not rounds.may_begin(later + PAUSE_SECONDS)
    assert rounds.may_begin(later + 2 * PAUSE_SECONDS)
    for each in lost:
        rounds.settle(each)
    begun(rounds, later + 1)
    assert not rounds.may_begin(later + 1 + AWAY_SECONDS)
