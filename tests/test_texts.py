"""Text of any origin in sentences and names."""

from __future__ import annotations

import json

import pytest

from dreamvideo.safety.names import check_name, is_device
from dreamvideo.safety.texts import one_line, printable, quoted


@pytest.mark.parametrize(
    "text", ["\x1b[2J\x07", "a\x00b", "\u202egpj.exe", "\u2066\u2069", "\x9b31m", "\ud800", "\r", "\u2028"]
)
def test_what_steers_a_terminal_is_written_as_its_escape(text):
    shown = printable(text)
    assert all(character.isprintable() for character in shown) and "\\u" in shown


def test_what_can_be_seen_stays():
    text = "a dog, <my-dog>\n\u72ac \u00e9 \U0001f468\u200d\U0001f469"
    assert printable(text) == text
    assert printable(text, "ascii") == text.split("\n")[0] + "\n\\u72ac \\u00e9 \\ud83d\\udc68\\u200d\\ud83d\\udc69"


def test_json_stays_the_same_json():
    facts = {"class word": "a\x1b\u202e \U0001f600 \x7f"}
    assert json.loads(printable(json.dumps(facts, ensure_ascii=False), "ascii")) == facts


def test_sentences_repeat_no_more_than_a_beginning():
    assert quoted("dog") == "'dog'" and quoted(3) == "'3'"
    assert quoted("1" * 5000) == f"'{'1' * 60}...' (5,000 characters)"
    assert quoted("a\x1bb\n") == r"'a\u001bb\n'"
    assert len(one_line("no " + "x" * 100_000 + " here")) < 200
    assert one_line("a\n b") == "a b"


@pytest.mark.parametrize(
    "name",
    ["a:b", "con", "CON.txt", "aux", "nul .x", "com1.safetensors", "lpt\u00b9", "dog.", "dog ", "a\x00b", "a\u202eb",
     "what?", "a*", "<dog>", "d" * 201, "\u72ac" * 70],
)  # fmt: skip
def test_names_that_some_system_does_not_take(name):
    with pytest.raises(ValueError, match="^The file name ") as error:
        check_name(name)
    assert str(error.value).isprintable() and len(str(error.value)) < 200


@pytest.mark.parametrize("name", ["my-dog", "v1.5 dog", "console", "com", "aux2", ".hidden", "\u72ac", "d" * 200])
def test_names_that_serve(name):
    check_name(name)
    assert not is_device(name)
