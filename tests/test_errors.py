"""What errors of other libraries look like in a user's line."""

import pytest

from resnext_det.errors import one_line


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\n  b\tc"), "a b c"),
        (EOFError(), "EOFError"),
        (
            ValueError("\x1b[31mred\x07"),
            "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}",
        ),
        (ValueError("x" * 301), "x" * 300 + "..."),
        (ValueError("x" * 300), "x" * 300),
    ],
)
def test_an_error_is_one_line_of_bounded_length(error, text):
    assert one_line(error) == text
