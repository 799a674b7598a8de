"""Fetching the benchmarks: from a server on this machine, on which everything goes wrong that can."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from bluelib.cli import main
from bluelib.data import Probe
from bluelib.data.download import FILES, File, _Redirects, cached, download, downloaded, stream_entries
from bluelib.studies import shift
from tests.support.folders import files
from tests.support.small import RECORDS, random_model

ENTRIES = [{"subject": f"Subject {i}", "attribute": "tuba", "prompt": f"Subject {i} plays the"} for i in range(4000)]
CONTENT = json.dumps(ENTRIES).encode()
HALF = len(CONTENT) // 2


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Answer(BaseHTTPRequestHandler):
    """Serves ``plan.content`` under every path, as ``plan`` says, and notes what it was asked for."""

    def do_GET(self):
        plan = self.server.plan
        asked = self.headers.get("Range")
        plan.requests.append((self.path, asked))
        if plan.status != 200 and self.path != "/moved":
            self.send_response(plan.status)
            if plan.location:
                self.send_header("Location", plan.location)
            self.end_headers()
            return
        content, begin = plan.content, 0
        if asked and plan.ranges and self.headers.get("If-Range") == plan.version:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin + plan.shift}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if plan.version:
            self.send_header("ETag" if plan.version.endswith('"') else "Last-Modified", plan.version)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        body = content[begin:][: plan.cut]
        for at in range(0, len(body), 20_000):
            self.wfile.write(body[at : at + 20_000])
            plan.sent += len(body[at : at + 20_000])
            time.sleep(plan.pause)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[SimpleNamespace]:
    monkeypatch.setenv("BLUELIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("BLUELIB_DATA_URL", raising=False)
    known = File("known_1000.json", "facts", None, sha(CONTENT), ("subject", "attribute", "prompt"), len(ENTRIES))
    monkeypatch.setitem(FILES, "known-facts", known)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    httpd.plan = SimpleNamespace(
        content=CONTENT,
        version='"one"',
        ranges=True,
        shift=0,
        cut=None,
        status=200,
        location=None,
        pause=0,
        requests=[],
        sent=0,
        folder="/dsets",
    )
    httpd.plan.url = f"http://127.0.0.1:{httpd.server_port}/dsets"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield httpd.plan
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def interrupted(server, cut=HALF):
    """A download that ends after ``cut`` bytes; what was kept."""
    server.cut = cut
    with pytest.raises(ConnectionError, match=f"ended after {cut:,} of {len(CONTENT):,} bytes"):
        download("known-facts", url=server.url)
    server.cut = None
    assert not cached("known-facts").exists()
    return cached("known-facts").with_name("known_1000.json.part")


def left(*names):
    """Nothing is in the cache but these files."""
    return [path.name for path in files(cached("known-facts").parent)] == sorted(names)


def test_a_file_is_fetched_once_and_checked_again(server, monkeypatch):
    monkeypatch.setenv("BLUELIB_DATA_URL", server.url + "/")
    path = download("known-facts")
    assert path.read_bytes() == CONTENT and path == cached("known-facts") == downloaded("known-facts")
    assert left("known_1000.json")
    assert download("known-facts") == path
    assert server.requests == [("/dsets/known_1000.json", None)]
    assert list(stream_entries(path)) == ENTRIES


@pytest.mark.parametrize("version", ['"one"', "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_an_interrupted_download_goes_on_with_the_missing_bytes(server, version):
    server.version = version
    part = interrupted(server)
    assert part.read_bytes() == CONTENT[:HALF]
    server.sent = 0
    assert download("known-facts", url=server.url).read_bytes() == CONTENT
    assert server.requests[1:] == [("/dsets/known_1000.json", f"bytes={HALF}-")]
    assert server.sent == len(CONTENT) - HALF
    assert left("known_1000.json")


def test_a_part_that_is_whole_is_not_asked_for_again(server):
    part = interrupted(server)
    part.write_bytes(CONTENT)  # killed after the last byte, before it was renamed
    assert download("known-facts", url=server.url).read_bytes() == CONTENT
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"ranges": False}, ("/dsets/known_1000.json", f"bytes={HALF}-")),
        ({"version": '"two"'}, ("/dsets/known_1000.json", f"bytes={HALF}-")),
        ({"folder": "/elsewhere"}, ("/elsewhere/known_1000.json", None)),
    ],
    ids=["no ranges", "another file", "another mirror"],
)
def test_a_download_starts_anew(server, change, asked):
    server.content = CONTENT.replace(b"tuba", b"harp")
    interrupted(server)
    server.content, server.sent = CONTENT, 0
    vars(server).update(change)
    assert download("known-facts", url=server.url.replace("/dsets", server.folder)).read_bytes() == CONTENT
    assert server.sent == len(CONTENT) and server.requests[1:] == [asked]


@pytest.mark.parametrize("version", [None, 'W/"weak"'])
def test_without_a_version_to_ask_for_a_download_starts_anew(server, version):
    server.version, server.cut = version, HALF
    with pytest.raises(ConnectionError) as error:
        download("known-facts", url=server.url)
    assert "continues from there" not in str(error.value)
    server.cut = None
    assert download("known-facts", url=server.url).read_bytes() == CONTENT
    assert server.requests[-1][1] is None


def test_another_range_than_the_one_asked_for_is_not_appended(server):
    interrupted(server)
    server.shift = 1
    with pytest.raises(ConnectionError, match="the server sent 206 instead of the file"):
        download("known-facts", url=server.url)
    assert left()
    server.shift = 0
    assert download("known-facts", url=server.url).read_bytes() == CONTENT


def test_a_range_that_the_server_refuses_starts_anew_the_next_time(server):
    interrupted(server)
    server.status = 416
    with pytest.raises(ConnectionError, match="416"):
        download("known-facts", url=server.url)
    server.status = 200
    assert download("known-facts", url=server.url).read_bytes() == CONTENT
    assert server.requests[-1][1] is None


def test_a_corrupt_file_is_refused_and_removed(server):
    server.content = CONTENT.replace(b"tuba", b"harp", 1)
    with pytest.raises(
        ValueError,
        match=f"what was downloaded has been removed: .* has SHA-256 {sha(server.content)} .*"
        f"but known_1000.json should have {sha(CONTENT)}",
    ):
        download("known-facts", url=server.url)
    assert left()
    server.content = CONTENT
    assert download("known-facts", url=server.url).read_bytes() == CONTENT


def test_a_part_that_was_damaged_is_refused_and_the_next_download_is_right(server):
    interrupted(server).write_bytes(bytes(HALF))
    with pytest.raises(ValueError, match="what was downloaded has been removed"):
        download("known-facts", url=server.url)
    assert left()
    assert download("known-facts", url=server.url).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(ENTRIES[:7]).encode(), "has 7 entries; known_1000.json should have 4000"),
        (b"[]", "has 0 entries"),
        (json.dumps([*ENTRIES[:3], {"subject": "x"}]).encode(), "entry 4 has no field 'attribute'"),
        (CONTENT[:-200], "is not JSON"),
        (b"<html>sign in</html>", "must hold a JSON list; it begins with '<html>"),
        (b"[1, 2]", "must hold a list of objects, not int"),
        (b'[{"subject": "\xff"}]', "can't decode byte"),
        (b"", "must hold a JSON list; it begins with ''"),
    ],
)
def test_a_file_with_the_hash_that_was_given_but_other_entries_is_refused(server, content, message):
    server.content = content
    with pytest.raises(ValueError, match=message):
        download("known-facts", url=server.url, sha256=sha(content))
    assert left()


def test_a_hash_that_was_given_is_remembered(server):
    other = CONTENT.replace(b"tuba", b"harp")
    server.content = other
    path = download("known-facts", url=server.url, sha256=sha(other).upper())
    assert left("known_1000.json", "known_1000.json.sha256")
    assert path.with_name("known_1000.json.sha256").read_text() == f"{sha(other)}  known_1000.json\n"
    assert downloaded("known-facts") == path == download("known-facts")
    path.write_bytes(CONTENT)
    with pytest.raises(
        ValueError, match=r"or remove known_1000.json and known_1000.json.sha256, and run the command again"
    ):
        downloaded("known-facts")
    path.unlink()
    server.content = CONTENT
    assert download("known-facts", url=server.url) == path  # the known hash counts again
    assert left("known_1000.json")


def test_a_hash_must_be_one(server):
    with pytest.raises(ValueError, match="a SHA-256 has 64 hexadecimal digits, not 'abc'"):
        download("known-facts", url=server.url, sha256="abc")
    with pytest.raises(
        ValueError, match="'nonsense' cannot be downloaded; known: counterfact, multi-counterfact, zsre"
    ):
        download("nonsense")
    assert main(["download", "known-facts", "zsre", "--sha256", "0" * 64]) == 2
    assert not server.requests


def test_a_file_that_was_put_there_by_hand_is_checked_and_left_alone(server):
    path = cached("known-facts")
    path.write_bytes(CONTENT)
    assert downloaded("known-facts") == download("known-facts", url=server.url) == path
    path.write_bytes(CONTENT + b"\n")
    for read in (downloaded, download):
        with pytest.raises(
            ValueError,
            match=rf"has SHA-256 .* and {len(CONTENT) + 1:,} bytes, but .*; to use it "
            r"anyway, give --sha256 \w+ to `blue download known-facts`",
        ):
            read("known-facts")
    assert path.exists() and not server.requests
    assert download("known-facts", sha256=sha(CONTENT + b"\n")) == downloaded("known-facts")


@pytest.mark.parametrize(
    ("status", "message"), [(404, "HTTP Error 404: Not Found"), (500, "HTTP Error 500"), (204, "the server sent 204")]
)
def test_an_error_of_the_server_is_explained(server, status, message):
    server.status = status
    with pytest.raises(OSError, match=message) as error:
        download("known-facts", url=server.url)
    assert f"{server.url}/known_1000.json could not be fetched" in str(error.value)
    assert left()


def test_without_a_network_the_error_says_what_to_put_where(server, monkeypatch, capsys):
    part = interrupted(server)
    monkeypatch.setenv("BLUELIB_DATA_URL", "http://127.0.0.1:1/dsets")  # nobody listens there
    assert main(["download", "known-facts"]) == 2
    printed = capsys.readouterr().err
    assert "http://127.0.0.1:1/dsets/known_1000.json could not be fetched: [Errno" in printed
    assert f"by hand at {cached('known-facts')}, where it is checked" in printed and sha(CONTENT) in printed
    assert printed.count("\n") == 1
    assert part.read_bytes() == CONTENT[:HALF], "another server's trouble leaves it alone"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc/hostname", "not allowed"),
        ("ftp://127.0.0.1/x", "only https is"),
        ("http://example.com/x", "only https is"),
    ],
)
@pytest.mark.parametrize("status", [302, 308])
def test_a_redirect_away_from_https_is_refused(server, location, message, status):
    server.status, server.location = status, location
    with pytest.raises((ValueError, OSError), match=message):
        download("known-facts", url=server.url)
    assert left()


def test_http_is_for_this_machine_only(server):
    for url in ("http://example.com/dsets", "file:///tmp", "ftp://example.com", "example.com"):
        with pytest.raises(ValueError, match="only https is allowed, and http to a server on this machine"):
            download("known-facts", url=url)


def test_a_redirect_on_this_machine_is_followed_with_its_range(server):
    interrupted(server)
    server.status, server.location = 302, server.url.replace("/dsets", "/moved")
    assert download("known-facts", url=server.url).read_bytes() == CONTENT
    assert server.requests[1:] == [("/dsets/known_1000.json", f"bytes={HALF}-"), ("/moved", f"bytes={HALF}-")]


def test_a_redirect_from_https_to_http_is_refused():
    handler = _Redirects("https://example.org/a")
    request = urllib.request.Request("https://example.org/a")
    assert (
        handler.redirect_request(request, None, 302, "Found", {}, "https://example.com/b").full_url
        == "https://example.com/b"
    )
    with pytest.raises(ValueError, match=r"^http://127.0.0.1/b, to which https://example.org/a redirects, is refused"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://127.0.0.1/b")


@pytest.mark.slow
def test_a_killed_process_is_gone_on_from(server, tmp_path):
    """On the command line, with 21,919 invented records: CounterFact's own file would be refused with another hash."""
    record = {"requested_rewrite": {}, "paraphrase_prompts": [], "neighborhood_prompts": [], "generation_prompts": []}
    server.content = json.dumps([{"case_id": i, **record} for i in range(21_919)]).encode()
    server.pause = 0.01
    command = [
        sys.executable,
        *"-m bluelib.cli download counterfact --url".split(),
        server.url,
        "--sha256",
        sha(server.content),
    ]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = cached("counterfact").with_name("counterfact.json.part")
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 100_000):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = part.stat().st_size
    assert process.returncode == -signal.SIGKILL and 100_000 < kept < len(server.content)
    assert not cached("counterfact").exists()
    server.pause = 0
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{cached('counterfact')}: SHA-256 {sha(server.content)}, as given, not the expected one" in done.stdout
    assert re.fullmatch(r"(counterfact: \S+ of 2.73MB after \S+ \S+ left\n)+", done.stderr), "lines, and no bar"
    assert server.requests == [("/dsets/counterfact.json", None), ("/dsets/counterfact.json", f"bytes={kept}-")]
    assert cached("counterfact").read_bytes() == server.content


def test_datasets_are_listed_with_whether_they_are_here(server, capsys):
    assert main(["datasets"]) == 0
    listed = capsys.readouterr().out
    assert "counterfactual edits (ROME); to download, 45 MB" in listed
    assert main(["download", "known-facts", "--url", server.url]) == 0
    assert f"known_1000.json: SHA-256 {sha(CONTENT)}, as expected" in capsys.readouterr().out
    assert main(["datasets"]) == 0
    assert f"in {cached('known-facts')}" in capsys.readouterr().out


def test_entries_are_read_across_the_ends_of_blocks(tmp_path, monkeypatch):
    entries = [{"text": "é" * n + '"]}\\', "deep": [{"n": n}]} for n in (0, 1, 50, 3)]
    path = tmp_path / "entries.json"
    path.write_text(" \n" + json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    for block in range(3, 40):
        monkeypatch.setattr("bluelib.data.download.BLOCK", block)
        assert list(stream_entries(path)) == entries


def test_entries_are_read_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("bluelib.data.download.BLOCK", 10_000)
    path = tmp_path / "entries.json"
    path.write_text(json.dumps([{"text": "x" * 7_000}] * 2_000))  # 14 MB
    tracemalloc.start()
    assert sum(1 for _ in stream_entries(path)) == 2_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


def test_known_facts_are_the_downloaded_ones_without_edited_subjects(server, monkeypatch):
    model = random_model("pocket-gpt2")
    edits = [replace(RECORDS[0], subject="Subject 7", locality=(Probe("Oslo lies in", "Norway"),))]
    monkeypatch.setattr(shift, "recalled", lambda model, probes: ["3 plays" not in probe.prompt for probe in probes])
    with pytest.raises(ValueError, match="knows 1 of the 1 facts"):
        shift.known_facts(model, "counterfact", edits, 10)
    download("known-facts", url=server.url)
    untouched = [entry["prompt"] for entry in ENTRIES if "Subject 7" not in entry["prompt"]]
    assert len(untouched) == len(ENTRIES) - 111  # 7, 70 to 79, 700 to 799
    found = shift.known_facts(model, "counterfact", edits, len(ENTRIES))
    assert {probe.prompt for probe in found} == {prompt for prompt in untouched if "3 plays" not in prompt}
    assert {probe.answer for probe in found} == {"tuba"}
    assert len(shift.known_facts(model, "some.json", edits, 10)) == 10
    assert shift.known_facts(model, "zsre", edits, 10) != shift.known_facts(model, "zsre", edits, 10, seed=1)
