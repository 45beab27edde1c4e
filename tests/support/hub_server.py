"""A small Hugging Face hub on this machine: the part of its protocol that a download needs, and its refusals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {
    "some/gated": (403, {"X-Error-Code": "GatedRepo"}),
    "some/absent": (404, {"X-Error-Code": "RepoNotFound"}),
    "some/busy": (429, {}),
    "some/broken": (500, {}),
}
"""The status and the headers with which the real hub answers, by repository."""


@contextlib.contextmanager
def serving(folder: Path, repository: str) -> Iterator[str]:
    """Serve a folder as a repository with branches `main` and `v2` at one commit, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path.removeprefix("/").removeprefix("api/models/")
            name = "/".join(path.split("/")[:2])
            if name in REFUSALS:
                self.answer(*REFUSALS[name])
            elif name != repository:
                self.answer(404, {"X-Error-Code": "RepoNotFound"})
            else:
                self.found(path.removeprefix(f"{name}/").split("/"))

        def found(self, parts: list[str]) -> None:
            kind, revision = (*parts, "main")[:2] if parts != [repository] else ("revision", "main")
            if revision not in ("main", "v2", COMMIT):
                self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            elif kind == "tree":
                files = [
                    {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": etag(path)}
                    for path in sorted(folder.iterdir())
                ]
                self.answer(200, {"Content-Type": "application/json"}, json.dumps(files).encode())
            elif kind == "resolve":
                path = folder / parts[2]
                if path.is_file():
                    self.answer(200, {"ETag": f'"{etag(path)}"', "X-Repo-Commit": COMMIT}, path.read_bytes())
                else:
                    self.answer(404, {"X-Error-Code": "EntryNotFound"})
            else:
                described = {"id": repository, "sha": COMMIT, "siblings": []}
                self.answer(200, {"Content-Type": "application/json"}, json.dumps(described).encode())

        def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            for header, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
