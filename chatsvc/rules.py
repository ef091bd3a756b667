"""What a name, a message and an id must look like, for requests and for the command line."""

import re
import unicodedata
from collections.abc import Collection

from chatsvc.errors import InvalidRequest

MAX_NAME_BYTES = 64
MAX_CONTENT_CHARACTERS = 4096
MAX_MESSAGE_ID_BYTES = 64
MAX_ROOMS = 64
MAX_LAST = 10_000
MAX_PAGE = 1_000

# Control, formatting (bidirectional and invisible), surrogate and line characters: with them a
# name could pass for another, or break a line of a log.
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# What joins the parts of an emoji, or of a word in Persian or Hindi.
_JOINERS = frozenset("\u200c\u200d")
# Letters and symbols that show as nothing.
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


def check_name(field: str, name: str) -> None:
    """Raises InvalidRequest unless `name` is 1 to 64 bytes of UTF-8 that show as themselves."""
    if name.isascii() and name.isprintable() and 0 < len(name) <= MAX_NAME_BYTES and name[0] != " ":
        return  # nearly all
    if not name or name.isspace():
        raise InvalidRequest(field, "must not be empty")
    if _size(field, name) > MAX_NAME_BYTES:
        raise InvalidRequest(field, f"must be at most {MAX_NAME_BYTES} bytes")
    for character in name:
        if not character.isascii() or not character.isprintable():
            _check_name_character(field, character)


def _check_name_character(field: str, character: str) -> None:
    forbidden = unicodedata.category(character) in _FORBIDDEN_CATEGORIES
    if (forbidden and character not in _JOINERS) or character in _FILLERS:
        name = f"U+{ord(character):04X}"
        raise InvalidRequest(field, f"must not have control or invisible characters ({name})")


def check_content(field: str, content: str) -> None:
    """Raises InvalidRequest unless `content` has 1 to 4,096 characters.

    Control characters pass: programs send what they like, and whoever shows text to a person
    makes it harmless there.
    """
    if not content:
        raise InvalidRequest(field, "must not be empty")
    if len(content) > MAX_CONTENT_CHARACTERS:
        raise InvalidRequest(field, f"must be at most {MAX_CONTENT_CHARACTERS} characters")
    if not content.isascii():
        _size(field, content)


def check_message_id(field: str, message_id: str) -> None:
    """Raises InvalidRequest if `message_id` has more than 64 bytes or control characters."""
    if _size(field, message_id) > MAX_MESSAGE_ID_BYTES:
        raise InvalidRequest(field, f"must be at most {MAX_MESSAGE_ID_BYTES} bytes")
    if not message_id.isprintable():
        raise InvalidRequest(field, "must not have control characters")


def check_room(field: str, room: str) -> None:
    """Raises InvalidRequest unless `room` is empty, for the lobby, or a name as those of users."""
    if room:
        check_name(field, room)


def check_rooms(field: str, rooms: Collection[str]) -> None:
    """Raises InvalidRequest unless there are at most 64 rooms and each has a good name."""
    if len(rooms) > MAX_ROOMS:
        raise InvalidRequest(field, f"must be at most {MAX_ROOMS}")
    for room in rooms:
        check_room(field, room)


def check_count(field: str, count: int, most: int) -> None:
    """Raises InvalidRequest unless `count` is at most `most`."""
    if count > most:
        raise InvalidRequest(field, f"must be at most {most}")


def is_address(text: str) -> bool:
    """Whether `text` is `HOST:PORT` with a port from 1 to 65535."""
    found = re.fullmatch(r"[^\s,/]+:([0-9]{1,5})", text)
    return found is not None and 1 <= int(found[1]) <= 65_535


def _size(field: str, text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(field, "must be valid Unicode text") from error
