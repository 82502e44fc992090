"""A hub on loopback for the real client: repositories of files in memory, each with a fate of its own.

It answers what huggingface_hub, transformers and datasets ask: about a repository, for a list of its files,
and for a file, whole or from a byte on. Headers and error codes are those of the hub.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote

COMMIT = "c" * 40
ASKED = re.compile(
    r"^/api/(models|datasets)/(?P<repo>.+?)(?:/(?P<what>revision|tree|paths-info)/[^/]+(?:/(?P<under>.+))?)?$"
)
FILE = re.compile(r"^/(?:(datasets)/)?(?P<repo>.+?)/resolve/[^/]+/(?P<file>.+)$")

# How a repository answers instead: a status, a code and a message.
REFUSALS = {
    "private": (401, None, "Invalid username or password."),  # so it says of a name that is not there, too
    "bad token": (401, None, "Invalid credentials in Authorization header"),
    "gated": (403, "GatedRepo", "Access to this repository is restricted."),
    "forbidden": (403, None, "You do not have the rights."),
    "missing": (404, "RepoNotFound", "Repository not found"),
    "busy": (429, None, "We had to rate limit you"),
    "ill": (503, None, "Service Unavailable"),
}


class StubHub:
    """`repositories` maps ("models" or "datasets", id) to {file: bytes}; `fates` ids to what befalls them.

    A fate is a key of `REFUSALS`; "breaks off" (each file ends after half its bytes, whenever it is asked
    for) or "broke once" (then it comes whole); "stalls" (nothing comes) or "stalls midway" (after half);
    "closed" (a port where nobody listens).
    Whoever asks for /befall/ID?FATE changes one.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], dict[str, bytes]] = {}
        self.fates: dict[str, str] = {}
        self.moved: dict[str, str] = {}  # ids that are redirected to others
        self.requests: list[tuple[str, str]] = []  # method and path
        self.broken: set[str] = set()  # etags of the files that broke off
        self.over = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> StubHub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: StubHub, *arguments: object) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path.partition("?")[0])
        if path.startswith("/befall/"):
            self.hub.fates[path.removeprefix("/befall/")] = unquote(self.path.partition("?")[2])
            return self._send(b"{}")
        self.hub.requests.append((self.command, path))
        match = ASKED.match(path) or FILE.match(path)
        if match is None:
            return self._refuse(404, None, "no such page")
        if match["repo"] in self.hub.moved:
            moved = path.replace(match["repo"], self.hub.moved[match["repo"]], 1)
            return self._send(b"", {"Location": moved}, 307)
        repo, fate = (match[1] or "models", match["repo"]), self.hub.fates.get(match["repo"])
        if fate == "stalls":
            self.hub.over.wait(60)
            self.close_connection = True
        elif fate == "closed":
            self._send(b"", {"Location": "http://127.0.0.1:9/"}, 307)
        elif fate in REFUSALS:
            self._refuse(*REFUSALS[fate])
        elif repo not in self.hub.repositories:
            self._refuse(*REFUSALS["private"])
        elif "file" in match.groupdict():
            self._file(self.hub.repositories[repo].get(match["file"]), fate)
        else:
            self._about(match["repo"], self.hub.repositories[repo], match["what"], match["under"])
        return None

    def _about(self, repo: str, files: dict[str, bytes], what: str | None, under: str | None) -> None:
        entries = {
            name: {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
            for name, content in files.items()
        }
        for parent in {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}:
            entries[parent] = {"type": "directory", "path": parent, "oid": COMMIT}
        if what == "paths-info":
            named = parse_qs(self.body.decode())["paths"]
            answer: object = [entries[path] for path in named if path in entries]
        elif what == "tree" and under and under not in entries:
            return self._refuse(404, "EntryNotFound", f"{under} does not exist")
        elif what == "tree":
            deep = "recursive=true" in self.path.lower()
            inside = (path for path in entries if not under or path.startswith(f"{under}/"))
            answer = [
                entries[path] for path in inside if deep or str(PurePosixPath(path).parent) == (under or ".")
            ]
        else:
            answer = {"id": repo, "sha": COMMIT, "private": False, "siblings": []}
        return self._send(json.dumps(answer).encode())

    def _file(self, content: bytes | None, fate: str | None) -> None:
        if content is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        headers = {"ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        stop: Callable[[], object] | None = None
        if fate == "stalls midway":
            stop = partial(self.hub.over.wait, 60)
        elif fate == "breaks off" or (fate == "broke once" and _etag(content) not in self.hub.broken):
            stop = int
        half = max(len(content) // 2 - start, 0) if stop and len(content) > 4096 else None
        self._send(content[start:], headers, 206 if start else 200, half)
        if half is not None and self.command == "GET":
            self.hub.broken.add(_etag(content))
            stop()
            self.close_connection = True
        return None

    def _send(
        self,
        content: bytes,
        headers: dict[str, str] | None = None,
        status: int = 200,
        only: int | None = None,
    ) -> None:
        """An answer that says how long it is, and of its body what `only` allows."""
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:only])
            self.wfile.flush()

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(json.dumps({"error": message}).encode(), headers, status)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
