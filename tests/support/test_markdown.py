"""Cells of Markdown tables."""

from lore.support.markdown import table_cell


def test_a_cell_stays_one_cell_of_one_row():
    assert table_cell("a | b") == r"a \| b"
    assert table_cell("a\\|b") == r"a\\\|b"  # an escaped backslash must not free the bar behind it
    assert table_cell("first\nsecond <b>") == "first second &lt;b>"
    assert table_cell("0.87 [0.85, 0.89]") == "0.87 [0.85, 0.89]"
    assert table_cell("[free](javascript:alert(1)) `x`") == r"[free]\(javascript:alert(1)) \`x\`"
    assert table_cell("\u202egnp.exe\x1b[2J") == "\ufffdgnp.exe\ufffd[2J"
