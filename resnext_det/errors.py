"""The one exception for mistakes that a user can make and mend, and what its line quotes."""

_NAME = "UserError"


class UserError(ValueError):
    """A mistake in what the user gave: a path, a name, a value. Its text is one line, and after it
    at most lines to paste into a config.

    Command-line tools print it and exit with status 1; a traceback would not help. Anything
    else that goes wrong is a bug and keeps its traceback.
    """


def user_message(error: BaseException) -> str | None:
    """Find the line of a `UserError` in `error`, also where another process wrapped it.

    Data loader workers and spawned training processes hand an exception on as text, with the
    original traceback inside the message.

    Returns:
        The user's line, or None where `error` is not a user's mistake.
    """
    marker = f"{__name__}.{_NAME}: "
    text = str(error)
    if marker in text:
        return text.rsplit(marker, 1)[1].strip().split("\n\n")[0]
    return text if isinstance(error, UserError) else None


def one_line(error: object, most: int = 300) -> str:
    """What an error of another library says, in one line of at most `most` characters and "..."."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= most else f"{text[:most]}..."
