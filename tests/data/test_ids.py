"""Ids of tables: whole numbers written as floats are the same ids, other texts stay apart, and joins say what they missed."""

import math

import pytest

from lore.data.tables.ids import JoinCount, id_text, known_as
from lore.support.errors import LoreError


@pytest.mark.parametrize(
    "written",
    ["100001", "100001.0", "100001.00", "1.00001e5", "1.00001e+05", "1.00001E+05", 100001, 100001.0, b"100001.0", " 100001 "],
)
def test_one_number_is_one_id(written):
    assert id_text(written) == "100001"


@pytest.mark.parametrize("text", ["0012", "0012.0", "12E4", "1.5", "1.5e+00", "B000123", "1e5", "-", "", "1.0.0", "1.0a", "10,0"])
def test_other_texts_stay_as_they_are(text):
    assert id_text(text) == text


def test_large_and_missing_ids():
    assert id_text("1e+16") == "1" + "0" * 16 and id_text(1e16) == "1" + "0" * 16
    assert id_text(None) == id_text(math.nan) == ""


def test_a_known_id_keeps_its_spelling():
    spelled = known_as(["7.0", "8", "0012"])
    assert [spelled(one) for one in ("7.0", "7", "8.0", 8.0, "0012", "12")] == ["7.0", "7.0", "8", "8", "0012", "12"]


def test_a_join_that_matches_nothing_is_an_error_and_one_that_matches_little_a_warning(capsys):
    join = JoinCount("attributes.csv", "product_uid")
    join.has("100001")
    join.looked_up("x1", False)
    with pytest.raises(LoreError, match="No product_uid of 1 rows is in attributes.csv .such as 'x1'.*'100001'"):
        join.check()
    join.looked_up("x2", False)
    join.looked_up("100001", True)
    join.check()
    assert "the product_uid of 2 of 3 rows is not in attributes.csv" in capsys.readouterr().out
    join.looked_up("100001", True)
    join.check()
    assert capsys.readouterr().out == ""
