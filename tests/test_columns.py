"""Columns of text: what a person sees in every table of the command line."""

import pytest

from fedjax_rec.columns import aligned


def test_numbers_end_and_words_begin_at_one_place():
    rows = [["run", "note", "events"], ["a", "", "94,387"], ["long name", "x", "8"]]
    assert aligned(rows, left=(0, 1)).splitlines() == [
        "run        note  events",
        "a                94,387",
        "long name  x          8",
    ]


@pytest.mark.parametrize("cell", ["[red]x[/red]", ":smile:", "\\[b]", "https://example.org", "'1.5'"])
def test_a_cell_is_text_and_nothing_else(cell):
    """Ids come from data: markup, emoji codes and colours in them mean nothing."""
    assert aligned([[cell, "1"]]) == f"{cell}  1"


def test_no_line_is_broken_or_cut_however_long():
    assert aligned([["x" * 5_000, "1"], ["y", "22"]]).splitlines() == [
        "x" * 5_000 + "   1",
        "y" + " " * 5_001 + "22",
    ]


def test_a_wide_character_takes_two_columns():
    assert aligned([["映画", "1"], ["film", "2"]]).splitlines() == ["映画  1", "film  2"]


def test_no_rows_are_no_text():
    assert aligned([]) == ""


def test_lines_end_where_their_text_does():
    assert aligned([["a", ""], ["b", "note"]], left=(0, 1)) == "a\nb  note"
