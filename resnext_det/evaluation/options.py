"""The options that every way to evaluate has."""

from ..errors import UserError


def parse_limit(value: str | int | None) -> int | None:
    """The number of images that `--limit` says; None for all.

    Raises:
        UserError: if it is no whole number from 1.
    """
    if value is None:
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(f"--limit {value} is no number of images: give a whole number from 1")
    return int(value)


def parse_score(value: str | float | None) -> float | None:
    """The operating point that `--score` says, 0 to 1; None for the config's.

    Raises:
        UserError: if it is none.
    """
    if value is None:
        return None
    try:
        score = float(value)
    except ValueError:
        score = None
    if score is None or not 0 <= score <= 1:
        raise UserError(f"--score {value} is no score: give a number from 0 to 1")
    return score
