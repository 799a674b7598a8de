"""A server on this machine that answers like the model hub: as much of it as loading a model asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = hashlib.sha1(b"a commit").hexdigest()
TOKEN = "hf_" + "a" * 34


class _Handler(BaseHTTPRequestHandler):
    repos: dict[str, Path]
    gated: set[str]
    asked: list[str]

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        self.asked.append(f"{self.command} {path}")
        api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        repo = "/".join(parts[:2])
        if repo not in self.repos:
            return self._answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if repo in self.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, X_Error_Code="GatedRepo", X_Error_Message=f"Access to model {repo} is restricted")
        folder = self.repos[repo]
        if api:
            files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
            whole = {"id": repo, "sha": COMMIT, "siblings": files, "tags": [], "private": False}
            return self._answer(200, json.dumps(whole if len(parts) < 3 or parts[2] == "revision" else []).encode(),
                                Content_Type="application/json")  # fmt: skip
        file = folder / "/".join(parts[4:])
        if parts[2:3] != ["resolve"] or not file.is_file():
            return self._answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        body = file.read_bytes()
        self._answer(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', Content_Type="application/octet-stream")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(repos: dict[str, Path], gated: set[str] = frozenset()) -> Iterator[tuple[str, list[str]]]:
    """Serve these repositories, some of them only to :data:`TOKEN`; gives the address and a list that fills with what
    was asked."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"repos": repos, "gated": set(gated), "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
