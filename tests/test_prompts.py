"""Weights that brackets give, and what a placeholder may be called."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamvideo.encoders.prompts import DEEPEST, check_placeholder, read_weights, unknown_placeholders


def weights(prompt, names=()):
    return [(piece.text, round(piece.weight, 6)) for piece in read_weights(prompt, names)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red ball", [("a red ball", 1.0)]),
        ("a (red) ball", [("a ", 1.0), ("red", 1.1), (" ball", 1.0)]),
        ("a (red:1.4) ball", [("a ", 1.0), ("red", 1.4), (" ball", 1.0)]),
        ("((red))", [("red", 1.21)]),
        ("(a (red:0.5) ball:2)", [("a ", 2.0), ("red", 0.5), (" ball", 2.0)]),
        ("(a (red) ball:2)", [("a ", 2.0), ("red", 2.2), (" ball", 2.0)]),
        (r"a \(red\) ball", [("a (red) ball", 1.0)]),
        (r"(a \(red:2\):1.5)", [("a (red:2)", 1.5)]),
        ("(a: red)", [("a: red", 1.1)]),
        ("(:2)", [(":2", 1.1)]),
        ("(red:-0.5)", [("red", -0.5)]),
        ("a (red ball", [("a ", 1.0), ("(red ball", 1.0)]),
        ("a) (red:2)", [("a) (red:2)", 1.0)]),
        ("()", []),
        ("", []),
    ],
)
def test_brackets_are_weights(prompt, expected):
    assert weights(prompt) == expected


def test_placeholders_in_brackets_weigh_and_their_own_brackets_do_not():
    assert weights("a (<my-dog>'s ball:1.3)", ["<my-dog>"]) == [("a ", 1.0), ("<my-dog>", 1.3), ("'s ball", 1.3)]
    assert weights("a <dog(2)> runs", ["<dog(2)>"]) == [("a ", 1.0), ("<dog(2)>", 1.0), (" runs", 1.0)]
    assert [piece.learned for piece in read_weights("(*:2) x", ["*"])] == [True, False]


@given(st.text(alphabet="a (:).1\\<>", max_size=60))
@settings(deadline=None, derandomize=True)
def test_any_text_is_read_and_nothing_is_added(prompt):
    try:
        found = "".join(piece.text for piece in read_weights(prompt))
    except ValueError as error:
        assert "finite" in str(error)
        return
    rest = iter(prompt)
    assert all(character in rest for character in found)  # in order


def test_depth_and_numbers_have_limits():
    assert weights("(" * DEEPEST + "a:1" + ")" * DEEPEST) == [("a", 1.0)]
    with pytest.raises(ValueError, match="more than 50 brackets"):
        read_weights("(" * 100_000 + "a" + ")" * 100_000)
    for number in ("nan", "inf", "1e999"):
        with pytest.raises(ValueError, match="no finite number"):
            read_weights(f"a (red:{number})")


@pytest.mark.parametrize(
    "name", ["<my\x1b[31mdog>", "<my\x00dog>", "<my\u202edog>", "<my\u200bdog>", "<my\ud800dog>", "<my\x7fdog>"]
)
def test_a_placeholder_has_nothing_that_is_not_seen(name):
    with pytest.raises(ValueError, match="not seen; take a name such as <") as error:
        check_placeholder(name)
    assert str(error.value).isprintable()


def test_a_placeholder_has_a_length():
    check_placeholder(f"<{'d' * 48}>")
    with pytest.raises(ValueError, match=r"longer than 50; take a name such as <d{20}>") as error:
        check_placeholder(f"<{'d' * 298}>")
    assert len(str(error.value)) < 200
    check_placeholder("<\U0001f468\u200d\U0001f469x>")  # emoji are joined by a character that is not seen


def test_unknown_placeholders_are_found():
    assert unknown_placeholders("a <my-dog> and <b>, <my-dog> *", ["<b>"]) == ["<my-dog>", "*"]
