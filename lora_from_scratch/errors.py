"""What a user's mistake raises."""


class UserError(ValueError):
    """A mistake in what was asked for: one line saying what is wrong, where, and what to do.

    The command line prints the line and ends with exit status 2; anything else that is raised is a defect of
    this package (or of the machine) and keeps its traceback.
    """


class NotFound(UserError):
    """Neither a file or folder nor the hub nor its cache gives what was named; `why` completes "the hub"."""

    def __init__(self, message: str, why: str = "") -> None:
        super().__init__(message)
        self.why = why


def first_line(error: Exception) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def printable(text: str) -> str:
    """A text as a terminal can show it, on one line: other characters as Python writes them."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def quoted(*values: object, length: int = 30) -> str:
    """Values of a user's as they stand in a sentence: quoted, on one line, cut where they are long."""
    shown = [repr(str(value)[: length + 1]) for value in values[:3]]  # repr may write a character as ten
    shown = [f"{one[: length - 2]}...{one[0]}" if len(one) > length + 2 else one for one in shown]
    return ", ".join(shown) + ", ..." * (len(values) > 3)
