from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatsvc import rules
from chatsvc.errors import InvalidRequest

LETTERS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=7)
CONTROLS = st.characters(categories=["Cc", "Cs", "Zl", "Zp"])
BIDI = st.sampled_from("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def problem(check: Callable[[str, str], None], text: str) -> str:
    """What `check` has against `text`."""
    with pytest.raises(InvalidRequest) as raised:
        check("user.id", text)
    assert raised.value.field == "user.id"
    return raised.value.problem


@given(LETTERS)
def test_names_of_letters_pass(name: str) -> None:
    """Letters and digits of any script make a name."""
    rules.check_name("user.id", name)


@pytest.mark.parametrize(
    "name", ["bob", "Ångström", "김철수", "a b", "👩\u200d🚀", "é" * 32, "x" * 64]
)
def test_names_of_people_pass(name: str) -> None:
    """Names with spaces, joined emoji and up to 64 bytes pass."""
    rules.check_name("user.id", name)


@given(LETTERS, CONTROLS | BIDI, LETTERS)
def test_a_name_has_no_controls(before: str, control: str, after: str) -> None:
    """One control, surrogate, line separator or bidirectional mark refuses the name."""
    found = problem(rules.check_name, before + control + after)
    assert "control" in found or "valid Unicode" in found


@pytest.mark.parametrize("control", ["\0", "\n", "\x7f", "\x85", "\u2028", "\u2029", "\u202e"])
def test_each_kind_of_control_is_refused(control: str) -> None:
    """Control characters, line separators and bidirectional marks are named in the refusal."""
    assert f"U+{ord(control):04X}" in problem(rules.check_name, f"a{control}b")


@pytest.mark.parametrize("name", ["", " ", "\t\n", "\u3000"])
def test_a_name_is_not_blank(name: str) -> None:
    """A name of nothing but white space is refused."""
    assert problem(rules.check_name, name) == "must not be empty"


@pytest.mark.parametrize("name", ["x" * 65, "é" * 33, "👍" * 17])
def test_a_name_is_limited_in_bytes(name: str) -> None:
    """The limit of a name counts bytes, not characters."""
    assert problem(rules.check_name, name) == "must be at most 64 bytes"


@pytest.mark.parametrize("content", ["x", "\x1b[2J\n\u202e", "👍" * 4096])
def test_content_passes(content: str) -> None:
    """Content may have controls and 4,096 characters of any width."""
    rules.check_content("content", content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "must not be empty"),
        ("x" * 4097, "must be at most 4096 characters"),
        ("a\ud800", "must be valid Unicode text"),
    ],
)
def test_content_is_refused(content: str, expected: str) -> None:
    """Empty, long and broken content is refused, each for its own reason."""
    assert problem(rules.check_content, content) == expected


@pytest.mark.parametrize("message_id", ["", "x" * 64, "é" * 32, "a b/c"])
def test_message_ids_pass(message_id: str) -> None:
    """A message id may be empty and has up to 64 bytes."""
    rules.check_message_id("message_id", message_id)


@pytest.mark.parametrize(
    ("message_id", "expected"),
    [
        ("x" * 65, "must be at most 64 bytes"),
        ("é" * 33, "must be at most 64 bytes"),
        ("a\n", "must not have control characters"),
        ("a\u202e", "must not have control characters"),
        ("\udfff", "must be valid Unicode text"),
    ],
)
def test_message_ids_are_refused(message_id: str, expected: str) -> None:
    """A long message id, or one that could break a line of a log, is refused."""
    assert problem(rules.check_message_id, message_id) == expected


def test_rooms() -> None:
    """The empty name is the lobby's; others are as names of users, and not too many at once."""
    rules.check_room("room", "")
    rules.check_room("room", "kitchen")
    rules.check_rooms("rooms", ["", "kitchen"] * (rules.MAX_ROOMS // 2))
    assert "control" in problem(rules.check_room, "kit\nchen")
    with pytest.raises(InvalidRequest, match="at most 64"):
        rules.check_rooms("rooms", ["kitchen"] * (rules.MAX_ROOMS + 1))


@pytest.mark.parametrize("text", ["localhost:1", "kafka-1.example.com:65535", "[::1]:9092"])
def test_addresses(text: str) -> None:
    """A host and a port make an address."""
    assert rules.is_address(text)


@pytest.mark.parametrize(
    "text",
    ["localhost", ":1", "a:", "a:0", "a:65536", "a:٣", "a b:1", "a:1,b:2", "a:1\n", "http://a:1"],
)
def test_what_is_no_address(text: str) -> None:
    """Without a host, with a port out of range or with anything around it, it is none."""
    assert not rules.is_address(text)


@pytest.mark.parametrize("hidden", ["\u200b", "\u2060", "\ufeff", "\u00ad", "\u3164", "\U000e0041"])
def test_a_name_has_nothing_invisible(hidden: str) -> None:
    """Nobody can look like bob and not be bob."""
    assert "invisible" in problem(rules.check_name, f"bob{hidden}")


@pytest.mark.parametrize(
    "name", ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0645\u06cc\u200c\u062e"]
)
def test_a_name_may_have_joiners(name: str) -> None:
    """Emoji families and Persian words need what joins their parts."""
    rules.check_name("name", name)
