"""Is the Hugging Face hub there? Asked once, briefly, before the libraries that would ask at length."""

import os
import sys
import threading
import time
import urllib.error
import urllib.request

PROBE_SECONDS = 3.0
# The client's errors are told in one line: its own warnings would only tell them twice. Its second way to
# download, Xet, has errors and patience of its own; GPT-2's few files gain nothing by it.
SETTINGS = {
    "HF_HUB_DOWNLOAD_TIMEOUT": "5",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_VERBOSITY": "critical",
    "DATASETS_VERBOSITY": "critical",
}
BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")  # for a terminal alone


def go_offline_if_unreachable() -> None:
    """Probe the hub once; if it does not answer, let `transformers` and `datasets` use their caches alone.

    They read HF_HUB_OFFLINE when they are imported, so this comes first. With it set they neither retry nor
    warn: what is in the cache loads, anything else is an error at once. What else they read there is set
    too, as far as it is not: how long the client waits, and what it writes on stderr.
    """
    for name in SETTINGS:
        os.environ.setdefault(name, SETTINGS[name])
    if not sys.stderr.isatty():
        for name in BARS:
            os.environ.setdefault(name, "1")
    if "HF_HUB_OFFLINE" not in os.environ and not _reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"


def _reachable() -> bool:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answered = threading.Event()

    def probe() -> None:
        try:
            request = urllib.request.Request(f"{endpoint}/api/models/gpt2", method="HEAD")
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # an answer all the same
        except (OSError, ValueError):
            return
        answered.set()

    # In a thread, because urllib's timeout does not bound the name lookup.
    thread, started = threading.Thread(target=probe, daemon=True), time.monotonic()
    thread.start()
    import torch  # noqa: F401 - reads nothing of the hub, and is wanted next: its seconds are the hub's

    thread.join(max(0.0, PROBE_SECONDS - (time.monotonic() - started)))
    return answered.is_set()
