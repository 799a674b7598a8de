"""The benchmarks' own files, which only :func:`download` fetches, on request, into the user's cache.

They come from the project pages of ROME and MEMIT (Meng et al. 2022, 2023) and the repositories of RippleEdits and
MQuAKE, and are not part of this project. A file is kept in ``cache_dir("datasets")``; it may also be put there by hand.
Every time it is read, it must have the SHA-256 in :data:`FILES`. The pages publish no hashes: those in :data:`FILES`
are what other public projects report for the files that they got from there. Two or more projects report a hash
independently, but only one does for ``multi_counterfact.json``, for the files of RippleEdits and MQuAKE, and for
``attribute_snippets.json``, whose size a second one reports. RippleEdits' repository itself gives the git ids of its
files: a file with that id is right too. A file with another hash is used only if the user asks for it (``sha256``);
that hash is kept beside the file in ``FILE.sha256``.

This module fetches by itself because pooch (1.9) starts an interrupted download from the beginning, and
``attribute_snippets.json`` has 926 MB. Nor does pooch refuse a redirect away from https.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..io.formats import DamagedError, read_json, write_json
from ..io.locks import locked
from ..io.paths import cache_dir
from ..io.tensors import file_hash
from ..io.timing import progress_bar
from ..io.writing import WriteError, atomic_file

_GITHUB = "https://raw.githubusercontent.com"
RIPPLE_EDITS = f"{_GITHUB}/edenbiran/RippleEdits/54f3b88af4895a3aacb580ec63ce7ae857185040/data/benchmark"
MQUAKE = f"{_GITHUB}/princeton-nlp/MQuAKE/main/datasets"
ROME = "https://rome.baulab.info/data/dsets"
MEMIT = "https://memit.baulab.info/data/dsets"
MIRROR = "BLUELIB_DATA_URL"
TIMEOUT = 30  # seconds without a byte
BLOCK = 1 << 20
#: The system's errors when it is this machine that cannot store more.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class File:
    """A file of a project page.

    Attributes:
        name: its name in the cache, and in a mirror's folder.
        about: what is in it.
        size: in bytes; None if no public source was found that says it.
        sha256: in hexadecimal digits.
        fields: the fields that each of its entries has.
        entries: the number of its entries; None if that is not known.
        page: the URL of the folder that has the file.
        there: its name there, if that is different.
        git_id: the id of the file's content in a git repository, in hexadecimal digits, if one is known.
    """

    name: str
    about: str
    size: int | None
    sha256: str
    fields: tuple[str, ...]
    entries: int | None = None
    page: str = ROME
    there: str = ""
    git_id: str = ""

    def source(self, folder: str) -> str:
        """The file's URL in a folder: of its page, or of a mirror."""
        at_home = folder.rstrip("/") == self.page
        return f"{folder.rstrip('/')}/{(self.there if at_home else '') or self.name}"


_COUNTERFACT = ("case_id", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "generation_prompts")
FILES = {
    "counterfact": File(
        "counterfact.json",
        "counterfactual edits (ROME)",
        45_108_470,
        "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f",
        _COUNTERFACT,
        21_919,
    ),
    "multi-counterfact": File(
        "multi_counterfact.json",
        "counterfactual edits that do not contradict each other (MEMIT)",
        None,
        "977a6acce4705507b5fd6bfcea8f61cd78f9ed0f9cd9c9a6bcd6c8a3ed61c833",
        _COUNTERFACT,
        20_877,
        MEMIT,
    ),
    "zsre": File(
        "zsre_mend_eval.json",
        "questions with their answers (zsRE, the evaluation split of MEND)",
        8_091_864,
        "8a371d512f8a6ab175db4ef672181d5c0e52da23298cb51e5a2eeea2f89aa9cd",
        ("subject", "src", "rephrase", "answers", "alt", "loc", "loc_ans"),
        19_086,
    ),
    "attribute-snippets": File(
        "attribute_snippets.json",
        "texts about subjects that have an object by nature, for CounterFact's consistency",
        926_285_719,
        "10b5c1cd105e54d5983c72de1b45bfc88bc7af786f7b99def2557886ff23385b",
        ("relation_id", "target_id", "samples"),
    ),
    "known-facts": File(
        "known_1000.json",
        "facts that GPT2-XL knows (ROME), for hidden-state shift",
        None,
        "61daca55318bb5260c1e62e133debef9102c7b278bbc7b19dd2ac655543f333a",
        ("subject", "attribute", "prompt"),
        1_209,
    ),
    "ripple-edits": File(
        "ripple_edits_popular.json",
        "what follows from edits of facts about popular subjects (RippleEdits)",
        11_152_451,
        "fe668f11871d3e1df8039be89124d5d39a443db0e9d1ded623d190f9e6a3296e",
        ("edit",),
        885,
        RIPPLE_EDITS,
        "popular.json",
        "67a707cc7fb57d83456fe62f767c968d51e4f2e0",
    ),
    "ripple-edits-random": File(
        "ripple_edits_random.json",
        "the same of facts drawn at random",
        11_584_388,
        "f99e625e6b00225498d4843f4e3a688b391cdd98e6f9ee85608f72a1e28c2d40",
        ("edit",),
        None,
        RIPPLE_EDITS,
        "random.json",
        "9da7717ed33c09da181c2dd93fe765c31f97aac2",
    ),
    "ripple-edits-recent": File(
        "ripple_edits_recent.json",
        "the same of facts that were new in 2022",
        19_658_316,
        "bc71807ea72280e2587bd1974fc79ae7e23aa24b1d5887bcdced40d448910547",
        ("edit",),
        None,
        RIPPLE_EDITS,
        "recent.json",
        "cbfd85c428ba5d1c5d227ec91717a0b855033759",
    ),
    "mquake": File(
        "MQuAKE-CF-3k-v2.json",
        "questions over several edits (MQuAKE)",
        15_383_628,
        "f82091cbb668cef8f2537f79f1768af1840184450b347ff8c344336090ddc71e",
        ("requested_rewrite", "questions", "new_answer", "new_single_hops"),
        3_000,
        MQUAKE,
    ),
}


def download(name: str, *, url: str | None = None, sha256: str | None = None, progress: bool | None = None) -> Path:
    """Fetch a file into the cache, or check the one that is there; returns its path.

    What an interrupted call has fetched is kept in ``FILE.part``. The next call continues from there, if the server
    still has the same file (its ETag or date says so) and serves ranges; otherwise it starts from the beginning. The
    file takes its name only after its length, its SHA-256 and its entries have been checked. If several processes ask
    at once, one fetches it and the others wait.

    Args:
        name: one of :data:`FILES`.
        url: the folder that has the files, if not the project's page: a mirror. By default ``$BLUELIB_DATA_URL``, if it
            is set. ``https``, or ``http`` on this machine.
        sha256: the hash that the file must have, in place of the one in :data:`FILES`; it is kept for later reads.
        progress: whether to show a progress bar; by default, if there is a terminal.

    Raises:
        ValueError: for an unknown name, a URL or redirect that may not be followed, or a file that is not the right
            one. A wrong file is removed if it was downloaded here, and left alone if it was there before.
        OSError: if the file cannot be fetched; the message gives its URL, and says where to put it by hand.
    """
    file, path = _file(name), cached(name)
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256 := sha256.lower()):
        raise ValueError(f"a SHA-256 has 64 hexadecimal digits, not {sha256!r}")
    with locked(path):
        part = path.with_name(file.name + ".part")
        if path.exists():
            _check_here(name, sha256)
            _check_entries(path, file)
        else:
            _fetch(name, part, url or os.environ.get(MIRROR) or file.page, progress)
            try:
                _check(part, file, sha256 or file.sha256)
                _check_entries(part, file)
            except ValueError as error:
                _remove_part(part)
                raise ValueError(f"what was downloaded has been removed: {error}") from error
            if sha256 is None:
                _memory(path).unlink(missing_ok=True)
        if sha256 is not None:  # before the file takes its name: it must not be there without its hash
            with atomic_file(_memory(path)) as temporary:
                temporary.write_text(f"{sha256}  {file.name}\n", encoding="ascii")
        if not path.exists():
            os.replace(part, path)
        _remove_part(part)
    return path


def cached(name: str) -> Path:
    """Where a file is in the cache, or would be.

    Raises:
        ValueError: for an unknown name.
    """
    return cache_dir("datasets") / _file(name).name


def downloaded(name: str) -> Path:
    """The path of a file that is in the cache, its hash checked; nothing is fetched.

    Raises:
        FileNotFoundError: if it is not there; the message says how to get it.
        ValueError: for an unknown name, or a file with another hash.
    """
    path = cached(name)
    if not path.exists():
        by_hand = _by_hand(name, FILES[name].page)
        raise FileNotFoundError(f"{name} is not in the cache: run `blue download {name}`, or {by_hand}")
    _check_here(name)
    return path


def expected_hash(name: str) -> str:
    """The hash that a file in the cache must have: the one that the user has given for it, or else the known one."""
    memory = _memory(cached(name))
    if not memory.exists():
        return _file(name).sha256
    given = re.match(rb"[0-9a-f]{64}(?= )", memory.read_bytes())
    if not given:
        raise DamagedError(f"{memory} is damaged: it must begin with a SHA-256; remove it, and give --sha256 again")
    return given[0].decode()


def size_of(file: File) -> str:
    """A file's size as text, in MB (10⁶ bytes)."""
    return f"{file.size / 1e6:.0f} MB" if file.size else "size not known"


def stream_entries(path: Path) -> Iterator[Any]:
    """The entries of a JSON list of objects, one after the other, with no more memory than one of them needs.

    Raises:
        ValueError: if the file is not such a list.
    """
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,]*")
    with open(path, encoding="utf-8") as text:
        block = text.read(BLOCK)
        at = next(gap.finditer(block)).end()
        if block[at : at + 1] != "[":
            raise ValueError(f"{path} must hold a JSON list; it begins with {block[at : at + 20]!r}")
        at += 1
        while True:
            at = next(gap.finditer(block, at)).end()
            if block[at : at + 1] == "]":
                return
            try:
                entry, at = decoder.raw_decode(block, at)
            except json.JSONDecodeError as error:  # cut off by the end of the block, or wrong
                more = text.read(max(BLOCK, len(block) - at))
                if not more:
                    raise ValueError(f"{path} is not JSON: {error}") from error
                block, at = block[at:] + more, 0
                continue
            except (ValueError, RecursionError) as error:  # a number that is too long, or an entry nested too deeply
                raise ValueError(f"{path} is not JSON: {error}") from error
            if not isinstance(entry, dict):
                raise ValueError(f"{path} must hold a list of objects, not {type(entry).__name__}")
            yield entry


def _file(name: str) -> File:
    if name not in FILES:
        raise ValueError(f"{name!r} cannot be downloaded; known: {', '.join(FILES)}")
    return FILES[name]


def _memory(path: Path) -> Path:
    """The file that keeps a hash given by the user, in the format of ``sha256sum``."""
    return path.with_name(path.name + ".sha256")


def _by_hand(name: str, url: str) -> str:
    file = FILES[name]
    return (
        f"put {file.source(url)} ({size_of(file)}, SHA-256 {file.sha256}) by hand at {cached(name)}, "
        "where it is checked like a download"
    )


def _check(path: Path, file: File, sha256: str) -> None:
    found, size = file_hash(path), path.stat().st_size
    if found != sha256 and not (sha256 == file.sha256 and file.git_id and _git_id(path) == file.git_id):
        known = f" and {file.size:,} bytes" if file.size and sha256 == file.sha256 else ""
        raise ValueError(
            f"{path} has SHA-256 {found} and {size:,} bytes, but {file.name} should have "
            f"{sha256}{known}; to use it anyway, give --sha256 {found}"
        )


def _git_id(path: Path) -> str:
    """The id by which git knows a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _check_here(name: str, sha256: str | None = None) -> None:
    path = cached(name)
    try:
        _check(path, FILES[name], sha256 or expected_hash(name))
    except ValueError as error:
        kept = f" and {_memory(path).name}" if _memory(path).exists() else ""
        raise ValueError(
            f"{error} to `blue download {name}`; or remove {path.name}{kept}, and run the command again"
        ) from error


def _check_entries(path: Path, file: File) -> None:
    number = 0
    for number, entry in enumerate(stream_entries(path), 1):
        missing = [field for field in file.fields if field not in entry]
        if missing:
            raise ValueError(f"{path}: entry {number} has no field {missing[0]!r}")
    if not number or file.entries not in (None, number):
        raise ValueError(f"{path} has {number:,} entries; {file.name} should have {file.entries or 'some'}")


def _plan(part: Path) -> Path:
    """The file beside a partial download that says what it is a part of."""
    return part.with_name(part.name + ".json")


def _remove_part(part: Path) -> None:
    part.unlink(missing_ok=True)
    _plan(part).unlink(missing_ok=True)


def _fetch(name: str, part: Path, url: str, progress: bool | None) -> None:
    """Fetch what ``part`` still lacks; it is then as long as the server's file."""
    source = FILES[name].source(url)
    _check_url(source, source)
    try:
        plan = read_json(_plan(part), sealed=True)
        have = part.stat().st_size
    except (FileNotFoundError, DamagedError):  # start again; the hash of what comes decides
        plan, have = {}, 0
    if plan.get("url") != source or not plan.get("version") or have > (plan.get("length") or have):
        plan, have = {}, 0
    if have and have == plan["length"]:
        return
    request = urllib.request.Request(source, headers={"User-Agent": "bluelib"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", plan["version"])
    try:
        with urllib.request.build_opener(_Redirects(source)).open(request, timeout=TIMEOUT) as answer:
            if not (have and _continues(answer, have, plan["length"])):
                have = 0
                _remove_part(part)
                if answer.status != 200:
                    raise ConnectionError(f"the server sent {answer.status} instead of the file")
                plan = {"url": source, "version": _version(answer), "length": answer.length}
                write_json(_plan(part), plan, sealed=True)
            bar = progress_bar(total=plan["length"], initial=have, desc=name, unit="B", unit_scale=True, show=progress)
            with bar, open(part, "ab") as target:
                while block := answer.read1(BLOCK):
                    target.write(block)
                    bar.update(len(block))
        have = part.stat().st_size
        if plan["length"] is not None and have < plan["length"]:
            raise ConnectionError(f"the connection ended after {have:,} of {plan['length']:,} bytes")
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 416:
            _remove_part(part)
        why = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
        resumable = plan.get("version") and part.exists()
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            kept = "; the same command continues from there" if resumable else ""
            raise WriteError(error.errno, f"{os.strerror(error.errno)}{kept}", str(part)) from error
        kept = f"{part} has what was received so far; the same command continues from there. " if resumable else ""
        raise ConnectionError(
            f"{source} could not be fetched: {' '.join(str(why).split())}. {kept}Without a network, "
            f"{_by_hand(name, url)}"
        ) from error


def _version(answer: http.client.HTTPResponse) -> str | None:
    """What identifies this version of the file in a later request: a strong ETag, or the date."""
    tag = answer.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _continues(answer: http.client.HTTPResponse, have: int, length: int | None) -> bool:
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    return answer.status == 206 and span is not None and int(span[1]) == have and span[2] in ("*", str(length))


def _check_url(url: str, base: str) -> None:
    """Allow ``https``, and also ``http`` to this machine, if the user has named such a server.

    Raises:
        ValueError: for any other URL.
    """
    to, asked = urlsplit(url), urlsplit(base)
    if to.scheme != "https" and not (to.scheme == asked.scheme == "http" and to.hostname in THIS_MACHINE):
        by = f", to which {base} redirects," if url != base else ""
        raise ValueError(f"{url}{by} is refused: only https is allowed, and http to a server on this machine")


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, base: str) -> None:
        self.base = base

    def redirect_request(self, request, answer, code, message, headers, url):
        _check_url(url, self.base)
        return super().redirect_request(request, answer, code, message, headers, url)
