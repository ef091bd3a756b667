"""Other people's text, made harmless for a terminal: shown, not obeyed."""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping

MAX_MARKS = 5
"""Marks stacked on one character; more are cut to one `…`. Written languages stack up to four,
text that is made to run over its neighbours ("Zalgo") many more."""

_TAB = "    "
_LINE_BREAK = re.compile("\r\n|\n")
_DOTTED_CIRCLE = "\u25cc"
_DELETE = 0x7F
_ZWJ = "\u200d"
_JOINERS = frozenset({"\u200c", _ZWJ})

# England, Scotland and Wales: a black flag, then the region in invisible letters, then an end.
_REGION_FLAG = re.compile("\U0001f3f4[\U000e0061-\U000e007a\U000e0030-\U000e0039]{3,6}\U000e007f")

# The bidirectional controls, joiners and other characters without width are format characters (Cf).
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Invisible although their category is that of a letter or a mark: blank names are made of them.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180f\u3164\uffa0")
# Characters that Unicode has not assigned are shown, as they may be newer than this Python; but
# these stay invisible whatever they become.
_INVISIBLE_UNASSIGNED = ((0x2065, 0x2065), (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF))

# Scripts in which a joiner changes how letters are written: Arabic to Myanmar, Khmer, Mongolian.
_JOINING_SCRIPTS = ((0x0600, 0x109F), (0x1780, 0x18AF))
_VARIATION_SELECTORS = ((0xFE00, 0xFE0F), (0x180B, 0x180D))
_HAN_VARIATION_SELECTORS = ((0xE0100, 0xE01EF),)
_HAN = ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
# Vowels and final consonants of decomposed Korean syllables, which terminals put onto the first.
_STACKING_JAMO = ((0x1160, 0x11FF), (0xD7B0, 0xD7FF))

# What JSON leaves as it is although a terminal may obey or hide it; all fits \uXXXX.
_UNSAFE_IN_JSON = re.compile(
    "[\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def shown(text: str) -> str:
    """`text` in one line that does nothing but show: what a terminal would obey, what reorders or
    breaks lines and what hides is replaced by a visible name of it. Ordinary text of any language
    and emoji come back unchanged, and so does a result."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_capped(_visible(_LINE_BREAK.sub("⏎", text))))


def json_line(fields: Mapping[str, object]) -> str:
    """`fields` as JSON in one line. It keeps every character: those that a terminal would obey are
    `\\uXXXX`."""
    plain = json.dumps(fields, ensure_ascii=False)
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", plain)


def _visible(text: str) -> Iterator[str]:
    """The characters of `text`, or the names of those that must not be shown."""
    before = ""
    position = 0
    while position < len(text):
        if flag := _REGION_FLAG.match(text, position):
            piece = flag[0]
            yield from piece
            position = flag.end()
        else:
            position += 1
            piece = _shown_character(before, text[position - 1], text[position : position + 1])
            yield piece
        before = piece[-1]


def _shown_character(before: str, character: str, after: str) -> str:
    if character in _JOINERS:
        return character if _joins(before, character, after) else _name(character)
    if _within(character, _VARIATION_SELECTORS):
        return character if before and _takes_variation(before) else _name(character)
    if _within(character, _HAN_VARIATION_SELECTORS):
        return character if before and _within(before, _HAN) else _name(character)
    return _name(character) if _is_escaped(character) else character


def _is_escaped(character: str) -> bool:
    category = unicodedata.category(character)
    if category == "Cn":  # unassigned, or one of those that never will be
        return _within(character, _INVISIBLE_UNASSIGNED) or ord(character) & 0xFFFE == 0xFFFE
    return category in _ESCAPED_CATEGORIES or character in _INVISIBLE


def _joins(before: str, joiner: str, after: str) -> bool:
    """Whether a joiner does its work here: in an emoji of several, or in a script that has it."""
    if not before or not after:
        return False
    if joiner == _ZWJ and _is_symbol(after) and (_is_symbol(before) or before == "\ufe0f"):
        return True
    in_script = _within(before, _JOINING_SCRIPTS) and _within(after, _JOINING_SCRIPTS)
    return in_script and unicodedata.category(after)[0] == "L" and after not in _INVISIBLE


def _is_symbol(character: str) -> bool:
    # Skin tones are Sk; emoji newer than this Python are Cn.
    is_new_emoji = 0x1F000 <= ord(character) <= 0x1FAFF
    return unicodedata.category(character) in ("So", "Sk", "Sm") or is_new_emoji


def _takes_variation(character: str) -> bool:
    return unicodedata.category(character)[0] not in "CZM"


def _name(character: str) -> str:
    """How a character that must not be shown itself is written."""
    code = ord(character)
    if character == "\t":
        return _TAB
    if code < 0x20:
        return chr(0x2400 + code)
    if code == _DELETE:
        return "␡"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _capped(pieces: Iterator[str]) -> Iterator[str]:
    """At most MAX_MARKS marks on a character, and none on what is printed before the text."""
    marks = 0
    is_first = True
    for piece in pieces:
        marks = marks + 1 if _stacks(piece) else 0
        if is_first and marks:
            yield _DOTTED_CIRCLE
        is_first = False
        if marks <= MAX_MARKS:
            yield piece
        elif marks == MAX_MARKS + 1:
            yield "…"


def _stacks(piece: str) -> bool:
    if len(piece) > 1:
        return False
    return unicodedata.category(piece) in ("Mn", "Me") or _within(piece, _STACKING_JAMO)


def _within(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in ranges)
