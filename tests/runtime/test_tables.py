"""Tables are aligned by column, with a rule below the head."""

from dimefm.runtime.tables import aligned, markdown_table

ROWS = [("name", "count", "note"), ("a", "1,000", ""), ("long name", "5", "odd")]


def test_columns_are_aligned_and_lines_have_no_blanks_at_the_end():
    assert aligned(ROWS, left=(0, 2)) == [
        "name       count  note",
        "---------  -----  ----",
        "a          1,000",
        "long name      5  odd",
    ]


def test_the_first_column_alone_is_on_the_left_by_default():
    assert aligned(ROWS[:2]) == ["name  count  note", "----  -----  ----", "a     1,000"]
    assert aligned([("", "b"), ("a", "1")]) == ["   b", "-  -", "a  1"]


def test_markdown_says_how_columns_are_aligned():
    assert markdown_table(ROWS[:2], left=(0, 2)) == [
        "| name | count | note |",
        "|---|---:|---|",
        "| a | 1,000 |  |",
    ]
