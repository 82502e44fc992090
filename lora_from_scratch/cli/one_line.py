"""What people read on a terminal: one line for each mistake, and the name that they may have meant."""

import io
import os
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 200  # characters of a line, where it quotes something long
QUOTED = re.compile(r"(?<!\w)(['\"])(.*?)\1(?!\w)")
WORD = re.compile(r"\S{256,}")  # longer than a file's name can be


def one_line(error: object) -> str:
    """What an error says, in one line; long values that it quotes are cut, nothing else is."""
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = QUOTED.sub(_cut, text)
        text = WORD.sub(lambda found: f"{found[0][:30]}...{found[0][-10:]}", text)
    return text


def _cut(found: re.Match[str]) -> str:
    mark, value = found.groups()
    return found[0] if len(value) <= 40 else f"{mark}{value[:30]}...{mark}"


def speaks() -> bool:
    """Whether this is the only process, or the first of several, which says what is the same for all."""
    return os.environ.get("RANK", "0") == "0"


def nearest(word: str, names: Iterable[str], lead: str = "") -> str:
    """ "; did you mean NAME?", or nothing where no name is like it.

    Names in capitals are like small ones; that both are flags does not make two names alike.
    """
    small = {name.lower().lstrip("-"): name for name in names}
    found = get_close_matches(word.lower().lstrip("-"), small, n=1, cutoff=0.6)
    return f"; did you mean {lead}{small[found[0]]}?" if found else ""


def escape_what_cannot_be_encoded() -> None:
    r"""Let a terminal that knows no e-acute show \xe9 instead of ending in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def speaks_utf8() -> bool:
    """Whether standard output can encode every character."""
    return (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf8sig")
