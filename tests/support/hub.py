"""A server on this machine that answers like the hub: as much of it as loading models and streaming datasets ask for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b"a commit").hexdigest()
#: Opens gated repositories.
TOKEN = "hf_" + "a" * 34
#: Of somebody who is logged in and has not accepted a licence.
OUTSIDER = "hf_" + "b" * 34


@dataclass(frozen=True)
class Hub:
    """What is served, and what is known about those who asked.

    Attributes:
        repos: folder by name; a dataset's name begins with ``datasets/``.
        gated: names of those that only :data:`TOKEN` opens.
        commit: the only commit of each; ``main`` is another name for it.
        asked: the method and path of each request.
        bearers: the authorisation of each request; None for one without.
        refuse: status to answer a file's GET with instead of sending it, by path in the repository and first byte.
        address: where the server is.
    """

    repos: dict[str, Path]
    gated: frozenset[str] = frozenset()
    commit: str = COMMIT
    asked: list[str] = field(default_factory=list)
    bearers: list[str | None] = field(default_factory=list)
    refuse: Callable[[str, int], int | None] = lambda path, start: None
    address: str = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path).strip("/")
        bearer = self.headers.get("Authorization")
        self.hub.asked.append(f"{self.command} {path}")
        self.hub.bearers.append(bearer)
        of_api = re.fullmatch(r"api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?", path)
        of_file = re.fullmatch(r"((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.*)", path)
        if of_api:
            repo = of_api[2] if of_api[1] == "models" else f"datasets/{of_api[2]}"
        else:
            repo = of_file[1] if of_file else ""
        if repo not in self.hub.repos:
            return self._answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if of_file and repo in self.hub.gated and bearer != f"Bearer {TOKEN}":
            status = 403 if bearer else 401
            return self._answer(status, X_Error_Code="GatedRepo", X_Error_Message=f"Access to {repo} is restricted")
        if of_api:
            what, revision, within = [*(of_api[3] or "").split("/", 2), "", ""][:3]
        else:
            what, revision, within = "resolve", of_file[2], of_file[3]
        if revision not in ("", "main", self.hub.commit):
            return self._answer(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"No revision {revision}")
        if what == "resolve":
            return self._file(self.hub.repos[repo], within)
        found = self._about(repo, what, within, body)
        if found is None:
            return self._answer(404, X_Error_Code="EntryNotFound", X_Error_Message=f"Nothing at {path}")
        self._answer(200, json.dumps(found).encode(), Content_Type="application/json")

    do_HEAD = do_POST = do_GET

    def _about(self, repo: str, what: str, within: str, body: bytes) -> object:
        folder = self.hub.repos[repo]
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if what in ("", "revision"):
            siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
            name = repo.removeprefix("datasets/")
            return {"id": name, "sha": self.hub.commit, "siblings": siblings, "tags": [], "private": False}
        if what == "tree":
            at = folder / within
            return [_entry(folder, path) for path in sorted(at.iterdir())] if at.is_dir() else None
        if what == "paths-info":
            wanted = json.loads(body)["paths"]
            return [_entry(folder, folder / path) for path in wanted if (folder / path).exists()]
        return None

    def _file(self, folder: Path, name: str) -> None:
        if not (folder / name).is_file():
            return self._answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        whole = (folder / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(whole).hexdigest()}"', "Content_Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), int(asked[2] or len(whole) - 1)) if asked else (0, len(whole) - 1)
        if self.command == "GET" and (status := self.hub.refuse(name, start)):
            return self._answer(status)
        if asked:
            part = whole[start : end + 1]
            headers["Content_Range"] = f"bytes {start}-{start + len(part) - 1}/{len(whole)}"
            return self._answer(206, part, **headers)
        self._answer(200, whole, Accept_Ranges="bytes", **headers)

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": self.hub.commit, **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _entry(folder: Path, path: Path) -> dict[str, object]:
    kind = "directory" if path.is_dir() else "file"
    size = 0 if path.is_dir() else path.stat().st_size
    oid = hashlib.sha1(path.name.encode() if path.is_dir() else path.read_bytes()).hexdigest()
    return {"type": kind, "path": path.relative_to(folder).as_posix(), "size": size, "oid": oid}


@contextmanager
def serving(repos: dict[str, Path], **settings: object) -> Iterator[Hub]:
    """Serve these repositories on a free port while the block runs; ``settings`` are fields of :class:`Hub`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(repos, address=f"http://127.0.0.1:{server.server_port}", **settings)
    server.RequestHandlerClass = type("Handler", (_Handler,), {"hub": hub})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
