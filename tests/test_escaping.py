"""Other people's text at a terminal: what is harmful is shown, all else is left alone."""

import json
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatsvc.cli.escaping import MAX_MARKS, json_line, shown

ZWJ = "\u200d"
FAMILY = ZWJ.join("👨👩👧👦")
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"

HARMLESS = {
    "ascii": "Hello World! <b>'\"\\ 100% ~",
    "korean": "안녕하세요, 반갑습니다!",
    "decomposed_korean": unicodedata.normalize("NFD", "안녕하세요 값"),
    "single_jamo": "ㅋㅋㅋ ㅠㅠ",
    "japanese_and_chinese": "こんにちは\u3000世界、你好。",
    "ideograph_variation": "葛\U000e0100",
    "hebrew_with_points": "שָׁלוֹם",
    "arabic": "السلام عليكم",
    "persian_with_joiner": "می\u200cخواهم",
    "sinhala_with_joiner": "ශ්\u200dරී",
    "hindi": "नमस्ते",
    "thai": "สวัสดีที่นี่",
    "vietnamese_decomposed": unicodedata.normalize("NFD", "Tiếng Việt"),
    "emoji": "😀 🎉 👍🏽",
    "emoji_family": FAMILY,
    "emoji_couple": f"👩{ZWJ}❤\ufe0f{ZWJ}👨",
    "emoji_with_tone_and_sign": f"🤷🏽{ZWJ}♀\ufe0f",
    "emoji_with_arrow": f"🙂{ZWJ}↔\ufe0f",
    "flags": "🇰🇷🇩🇪",
    "rainbow_flag": f"🏳\ufe0f{ZWJ}🌈",
    "region_flag": ENGLAND,
    "keycap": "1\ufe0f\u20e3",
    "emoji_of_a_later_unicode": "\U0001fae9",
}

HARMFUL = {
    "escape": ("\x1b[31mred", "␛[31mred"),
    "title": ("\x1b]0;owned\x07", "␛]0;owned␇"),
    "c1_sequence": ("\x9b2J", "\\x9b2J"),
    "null": ("\x00", "␀"),
    "backspace": ("no\x08\x08yes", "no␈␈yes"),
    "delete": ("\x7f", "␡"),
    "return": ("alice: hi\r✓ You: bye", "alice: hi␍✓ You: bye"),
    "newline": ("one\ntwo", "one⏎two"),
    "newline_of_windows": ("one\r\ntwo", "one⏎two"),
    "tab": ("a\tb", "a    b"),
    "next_line": ("a\x85b", "a\\x85b"),
    "line_separator": ("a\u2028b", "a\\u2028b"),
    "paragraph_separator": ("a\u2029b", "a\\u2029b"),
    "right_to_left_override": ("\u202eevil", "\\u202eevil"),
    "isolate": ("\u2066x\u2069", "\\u2066x\\u2069"),
    "arabic_letter_mark": ("\u061c", "\\u061c"),
    "zero_width_space": ("ad\u200bmin", "ad\\u200bmin"),
    "joiner_between_latin_letters": (f"ad{ZWJ}min", "ad\\u200dmin"),
    "joiner_between_korean_letters": (f"관{ZWJ}리", "관\\u200d리"),
    "joiner_at_the_end": (f"👨{ZWJ}", "👨\\u200d"),
    "byte_order_mark": ("\ufeffhi", "\\ufeffhi"),
    "soft_hyphen": ("a\xadb", "a\\xadb"),
    "hangul_filler": ("\u3164", "\\u3164"),
    "grapheme_joiner": ("a\u034fb", "a\\u034fb"),
    "hidden_tags": ("hi\U000e0041\U000e0042", "hi\\U000e0041\\U000e0042"),
    "tags_that_are_no_flag": ("\U0001f3f4\U000e0067", "🏴\\U000e0067"),
    "second_variation_selector": ("❤\ufe0f\ufe0f", "❤\ufe0f\\ufe0f"),
    "hidden_variation_selectors": ("a\U000e0110\U000e0111", "a\\U000e0110\\U000e0111"),
    "lone_surrogate": ("\ud83d", "\\ud83d"),
    "noncharacter": ("\uffff", "\\uffff"),
    "mark_on_nothing": ("\u0301a", "\u25cc\u0301a"),
    "jamo_on_nothing": ("\u1161", "\u25cc\u1161"),
}


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS.keys())
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(("text", "expected"), HARMFUL.values(), ids=HARMFUL.keys())
def test_what_a_terminal_obeys_or_hides_is_named(text: str, expected: str) -> None:
    assert shown(text) == expected


@pytest.mark.parametrize("mark", ["\u0300", "\u0489", "\u1161"])
def test_stacked_marks_are_cut(mark: str) -> None:
    """Text can not run over the lines above and below it."""
    assert shown(f"Z{mark * 50}algo") == f"Z{mark * MAX_MARKS}…algo"


def test_marks_behind_a_joiner_are_not_stacked() -> None:
    """A joiner before a mark joins nothing: it shows, and the mark is on what shows."""
    assert shown("ب\u200c\u064b") == "ب\\u200c\u064b"


# All of Unicode, and more often what this is about.
ANY_TEXT = st.text(
    st.characters(categories=None)
    | st.sampled_from("\x1b\x9b\r\n\t\u200c\u200d\ufe0f\u202e\u3164\u0300\u1161🏴👨a가ب\U000e0067")
)


@given(ANY_TEXT)
@example(f"👨{ZWJ}\ud83d")
def test_result_has_nothing_to_obey(text: str) -> None:
    """No control, separator, surrogate, and of the format characters only joiners and flags."""
    result = shown(text).replace(ENGLAND, "")
    assert not {unicodedata.category(character) for character in result} & {"Cc", "Cs", "Zl", "Zp"}
    formats = {character for character in result if unicodedata.category(character) == "Cf"}
    assert all(c in "\u200c\u200d" or 0xE0030 <= ord(c) <= 0xE007F for c in formats)


@given(ANY_TEXT)
def test_result_is_one_line(text: str) -> None:
    assert len(shown(text).splitlines()) <= 1


@given(ANY_TEXT)
def test_result_is_harmless_text(text: str) -> None:
    """What is shown once is left as it is when it is shown again."""
    assert shown(shown(text)) == shown(text)


@given(ANY_TEXT)
def test_json_keeps_every_character(text: str) -> None:
    assert json.loads(json_line({"content": text})) == {"content": text}


@given(ANY_TEXT)
def test_json_has_nothing_that_a_terminal_obeys(text: str) -> None:
    """It is printable in UTF-8, and no control or bidirectional control is in it."""
    line = json_line({"content": text})
    line.encode()
    categories = {unicodedata.category(character) for character in line}
    assert not categories & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(line) & set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2069")


def test_json_keeps_korean_readable() -> None:
    assert json_line({"content": f"안녕 {FAMILY}"}) == f'{{"content": "안녕 {FAMILY}"}}'
