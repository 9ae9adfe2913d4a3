"""What libraries say of an error is repeated on one line, and no longer than a person reads."""

import pytest

from schemas.errors import first_line, one_line


@pytest.mark.parametrize(
    ("said", "first", "whole"),
    [
        ("It is\tso.\nAnd  so.\n", "It is so", "It is so. And so"),
        ("", "ValueError", "ValueError"),
        ("\n \n", "ValueError", "ValueError"),
        ("1" * 5000 + " is too large", "1" * 500 + "…", "1" * 500 + "…"),
    ],
)
def test_what_is_repeated_of_an_error(said, first, whole):
    assert (first_line(ValueError(said)), one_line(ValueError(said))) == (first, whole)
