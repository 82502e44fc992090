"""What a user's mistake raises."""


class UserError(ValueError):
    """A mistake in what was asked for: one line saying what is wrong, where, and what to do.

    The command line prints the line and ends with exit status 2; anything else that is raised is a defect of
    this package (or of the machine) and keeps its traceback.
    """


class NotFound(UserError):
    """Neither a file or folder nor the hub nor its cache holds what was named."""


def first_line(error: Exception) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def quoted(*values: object, length: int = 30) -> str:
    """Values of a user's as they stand in a sentence: quoted, on one line, cut where they are long."""
    shown = [value if len(value) <= length else value[: length - 3] + "..." for value in map(str, values)]
    return ", ".join(map(repr, shown[:3])) + ", ..." * (len(shown) > 3)
