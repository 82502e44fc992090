"""What the hub answers, what that means to whoever asked, and how long it is waited for.

The client's own way is to ask again for a minute or more, and then to raise what its last attempt ended in,
or that its cache is empty. Here its answers are watched while it works: trouble that lasts ends it, and what
the hub said decides the sentence. Models and datasets share this.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from threading import get_ident

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import _http

from lora_from_scratch.errors import NotFound, UserError, first_line, quoted

LOGIN = "`hf auth login`, or HF_TOKEN"
ASIDE = ("//datasets-server.", "//s3.amazonaws.com/")  # figures and a counter: the client does without
TROUBLE = {408, 429, 500, 502, 503, 504}  # what the client asks again after


class GaveUp(Exception):
    """The hub's trouble lasts: not an error of the client's kind, which it would answer by asking again."""


class Answers:
    """What the hub said while something was asked of it."""

    def __init__(self) -> None:
        self.patience = constants.HF_HUB_DOWNLOAD_TIMEOUT
        self.refusal: str | None = None  # "gated", "login", "forbidden", "private" or "missing"
        self._failing: dict[int, tuple[float, str]] = {}  # by thread: since when in a row, and how

    @property
    def trouble(self) -> str | None:
        """How the exchanges of some thread failed, if none of its later ones went well."""
        return next((how for _, how in [*self._failing.values()]), None)

    def failure(self, what: str, name: str, error: Exception) -> UserError:
        """One line for what kept a model or dataset from coming: NotFound if the user cannot help it.

        Nothing can be done about a hub that does not answer, or that lacks what it should have; a login can
        be given, or put right.
        """
        named, instead = f"{what} {quoted(name, length=40)}", f"or use --{what} bundled"
        if self.refusal in REFUSALS:
            return UserError(REFUSALS[self.refusal].format(named=named))
        if self.refusal == "missing":
            return NotFound(
                f"{named} is neither here nor on the hub: check the name, {instead}",
                "the hub does not have it",
            )
        if self.trouble:
            return NotFound(f"{named}: {self.trouble}: try again later, {instead}", self.trouble)
        if isinstance(error, HFValidationError):
            return NotFound(
                f"{named} is neither here nor a name of the hub's kind, owner/name: check it, {instead}"
            )
        while error.__cause__:  # what reads the files says last what is wrong with them
            error = error.__cause__
        reason = first_line(error)[:70]
        return UserError(f"{named} does not load ({reason}): a file may be empty or damaged; {instead}")

    def watched(self, client: object) -> object:
        """The client with its two ways of asking watched, and with no wait longer than the patience."""
        modules = (kind.__module__.partition(".")[0] for kind in type(client).__mro__)
        lost = import_module(next(name for name in modules if name.startswith("httpx"))).TransportError
        request, stream = client.request, client.stream

        def watched_request(*arguments: object, **options: object) -> object:
            options = self._bounded(options)
            if any(host in str(options.get("url", arguments[-1:])) for host in ASIDE):
                return request(*arguments, **options)
            with self._exchange(lost) as began:
                response = self._noted(request(*arguments, **options), began)
                if response.is_success:
                    self._went_well()
                return response

        @contextmanager
        def watched_stream(*arguments: object, **options: object) -> Iterator[object]:
            with self._exchange(lost) as began, stream(*arguments, **self._bounded(options)) as response:
                if response.is_success:  # the body of a refusal is no success
                    response.iter_bytes = partial(self._body, lost, response.iter_bytes)
                yield self._noted(response, began)

        client.request, client.stream = watched_request, watched_stream
        return client

    def _bounded(self, options: dict[str, object]) -> dict[str, object]:
        seconds = options.get("timeout")
        known = isinstance(seconds, int | float)
        return {**options, "timeout": min(seconds, self.patience) if known else self.patience}

    @contextmanager
    def _exchange(self, lost: type[Exception]) -> Iterator[float]:
        """When a request begins; GaveUp instead of its failure if that lasts too long."""
        began = time.monotonic()
        try:
            yield began
        except lost as error:
            silent = "Timeout" in type(error).__name__
            _, how = self._failing.get(get_ident(), (began, None))
            how = how or f"the hub {'does not answer' if silent else 'cannot be reached'}"
            self._judge(how, began, error)
            raise

    def _body(
        self, lost: type[Exception], chunks: Callable[..., Iterator[bytes]], **options: object
    ) -> Iterator[bytes]:
        """The body of an answer, which the client asks for again from where the last whole chunk ended."""
        began = time.monotonic()
        try:
            for chunk in chunks(**options):
                began = time.monotonic()
                self._went_well()
                yield chunk
        except lost as error:
            self._judge("the download broke off (whole files are kept)", began, error)
            raise

    def _noted(self, response: object, began: float) -> object:
        """The response, after what it says of the hub is kept. GaveUp for trouble that lasts."""
        status, headers = response.status_code, response.headers
        code = headers.get("X-Error-Code")
        if status in TROUBLE:
            busy = status == 429
            how = (
                "the hub takes no more requests from here for now (429)"
                if busy
                else f"the hub has trouble of its own ({status})"
            )
            asks_to_wait = busy or "Retry-After" in headers
            self._judge(how, float("-inf") if asks_to_wait else began, None)
        elif code == "GatedRepo":
            self.refusal = "gated"
        elif "Invalid credentials" in headers.get("X-Error-Message", ""):
            self.refusal = "login"
        elif status == 403:
            self.refusal = "forbidden"
        elif status == 401:  # also where there is no such name: who is not logged in is not told which
            self.refusal = "private"
        elif status == 404 and code == "RepoNotFound":
            self.refusal = "missing"
        return response

    def _judge(self, how: str, began: float, error: Exception | None) -> None:
        """Let the client ask again, unless trouble lasts. Its threads download at once, each a file."""
        since, _ = self._failing.get(get_ident(), (began, how))
        since = min(since, began)
        self._failing[get_ident()] = since, how
        if time.monotonic() - since >= self.patience:
            raise GaveUp(how) from error

    def _went_well(self) -> None:
        self._failing.pop(get_ident(), None)


REFUSALS = {
    "gated": "{named} is gated: agree to its terms on its page of the hub, then log in: " + LOGIN,
    "login": "{named}: the hub does not know the token that it was sent: log in again: " + LOGIN,
    "forbidden": "{named}: the hub does not show it to this token: log in as somebody who may see it: "
    + LOGIN,
    "private": "{named}: the hub shows it to nobody without a login: check the name, and if it is private, "
    "log in: " + LOGIN,
}


@contextmanager
def asking() -> Iterator[Answers]:
    """While something is asked of the hub, its answers; the client is as it was before afterwards."""
    answers, before = Answers(), getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    set_client_factory(lambda: answers.watched(before()))
    try:
        yield answers
    finally:
        set_client_factory(before)


def is_offline() -> bool:
    return constants.HF_HUB_OFFLINE


def out_of_reach(what: str, name: str, part: str = "") -> NotFound:
    """What is not in the cache, or only in part, while nothing can be asked."""
    named = f"{what} {quoted(name, length=40)}"
    there = f"{named} is in the hub's cache without {part}" if part else f"{named} is neither here nor cached"
    return NotFound(
        f"{there}, and the hub is out of reach: check the network and HF_HUB_OFFLINE, "
        f"or use --{what} bundled",
        "the hub is out of reach",
    )
