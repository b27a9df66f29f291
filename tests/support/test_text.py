"""Strangers' text becomes encodable, and stays as it is where it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lore.support.text import encodable

HALF = st.integers(0xD800, 0xDFFF).map(chr)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("half \ud83d", "half \ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud83d\ud83d\ude00x", "\ufffd\U0001f600x"),
        ("caf\udce9.csv", "caf\ufffd.csv"),
        ("\ufeffé\0", "\ufeffé\0"),
        ("", ""),
    ],
)
def test_half_characters_are_replaced(text, expected):
    assert encodable(text) == expected


@given(st.lists(st.one_of(HALF, st.characters())).map("".join))
def test_every_text_can_be_encoded_and_an_encodable_one_is_unchanged(text):
    once = encodable(text)
    once.encode()
    assert encodable(once) == once
    assert once == text or any("\ud800" <= character <= "\udfff" for character in text)
