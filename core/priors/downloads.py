"""Fetching files over HTTP: resumed where they were left, checked against a hash, in place only when whole.

Called by ``models get`` and by nothing else: nothing is fetched that was not asked for.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..files import InputError

#: Bytes read at a time, seconds without an answer that count as a broken connection, how often a broken one is taken up again
#: with nothing received in between, and the seconds before each of these attempts.
BLOCK, TIMEOUT, ATTEMPTS, PAUSE = 1 << 20, 30.0, 5, 2.0
#: Bytes of the Hub's list of a model's files at most.
LISTING = 64 << 20

PICKLES = (".bin", ".ckpt", ".pth", ".pt")
#: What a model's folder holds beside its weights. Python files are never fetched.
TEXTS = (".json", ".txt", ".model", ".jinja")

_BROKEN = (URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch.

    Args:
        url: where it is.
        path: below the folder that it goes to, with "/".
        size: bytes, None if not known.
        digest: kind ("sha256", "md5", or "git": SHA-1 as git names files) and hex digits, or as many as are known.
        most: bytes that are taken at most where the size is not known.
    """

    url: str
    path: str
    size: int | None
    digest: tuple[str, str]
    most: int = 1 << 40


def hub_files(
    repository: str, parts: tuple[str, ...], files: tuple[str, ...], revision: str = "main"
) -> tuple[str, list[RemoteFile]]:
    """The files of a model on the Hugging Face Hub that are worth fetching, with the hashes that the Hub reports.

    Args:
        repository: its id, owner/name.
        parts: subfolders to take, with model_index.json; of each, one set of weights (:func:`chosen`).
        files: single files to take. With neither, the repository's root and every subfolder that has a configuration.

    Returns:
        The commit, so that all files are of one version, and the files.

    Raises:
        InputError: if the Hub does not answer, does not know the model, does not hand it out, or lacks a part.
    """
    endpoint = hub()
    address = f"{endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
    try:
        with _open(address, repository) as answer:
            text = answer.read(LISTING)
    except _BROKEN as error:
        raise InputError(f"{endpoint}: cannot be reached ({_reason(error)}); check the connection and try again") from None
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        listed = {}
    try:
        commit = str(listed["sha"])
        entries = {str(entry["rfilename"]): _described(entry) for entry in listed["siblings"]}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{address}: the answer is not the Hub's description of a model; try again") from None
    # What a server names must stay below the folder that it goes to, on every system.
    entries = {n: e for n, e in entries.items() if re.fullmatch(r"[\w.+ -]+(/[\w.+ -]+)*", n) and ".." not in n.split("/")}
    if not parts and not files:
        parts = tuple(sorted({n.split("/")[0] for n in entries if n.count("/") == 1 and n.endswith("config.json")}))
        parts = ("", *(part for part in parts if part != "safety_checker"))
    wanted = {"model_index.json": "model_index.json"} if parts and "model_index.json" in entries else {}
    for part in parts:
        inside = [name for name in entries if name.rpartition("/")[0] == part]
        # A pipeline's root often holds the same weights once more in one file.
        picked = chosen([n for n in inside if part or "model_index.json" not in entries or n.endswith(TEXTS)])
        if not picked and part:
            raise InputError(f"{repository}: has no files in {part} any more; get it by hand")
        wanted |= picked
    for name in files:
        match = chosen([n for n in entries if n in (name, _without_variant(name, insert=True))]) or {name: name}
        if not set(match.values()) <= set(entries):
            raise InputError(f"{repository}: has no file {name} any more; get it by hand")
        wanted |= match
    return commit, [
        RemoteFile(
            f"{endpoint}/{repository}/resolve/{commit}/{quote(source)}",
            path,
            *entries[source],
        )
        for path, source in wanted.items()
    ]


def _described(entry: dict[str, Any]) -> tuple[int | None, tuple[str, str]]:
    """A file's size and digest in the Hub's list.

    Raises:
        KeyError, TypeError, ValueError: for an entry without them.
    """
    lfs = entry.get("lfs") or {}
    kind, digits, size = ("sha256", lfs["sha256"], lfs["size"]) if lfs else ("git", entry["blobId"], entry.get("size"))
    if not re.fullmatch(r"[0-9a-fA-F]{40,64}", digits) or not (size is None or (type(size) is int and 0 <= size < 1 << 50)):
        raise ValueError(entry)
    return size, (kind, digits)


def chosen(names: list[str]) -> dict[str, str]:
    """Which files of one folder to fetch: {name to keep, name there}.

    All texts, and of the weights one set: float16 safetensors where they lie in one file, kept under the plain name so that
    every loader finds them; else plain safetensors; else pickles, in the same order.
    """
    texts = {n: n for n in names if n.endswith(TEXTS) and ".index." not in n}
    for suffixes in ((".safetensors",), PICKLES):
        weights = [n for n in names if n.endswith(suffixes)]
        half, plain = ([n for n in weights if _variant(n) == variant] for variant in ("fp16", ""))
        if len(half) == 1 and "-of-" not in half[0]:
            return texts | {_without_variant(half[0]): half[0]}
        if plain:
            shards = [n for n in names if re.fullmatch(r"[^.]+\.\w+\.index\.json", n) and n.startswith(plain[0].split("-")[0])]
            return texts | {n: n for n in (*plain, *(shards if "-of-" in plain[0] else ()))}
        if half:
            return texts | {n: n for n in (*half, *(n for n in names if ".index." in n and "fp16" in n))}
    return texts


def _variant(name: str) -> str:
    """fp16, non_ema, ...: what stands between a weight file's name and its suffix."""
    return PurePosixPath(name).stem.partition(".")[2]


def _without_variant(name: str, insert: bool = False) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem.partition('.')[0]}{'.fp16' if insert else ''}{path.suffix}"))


def fetch(file: RemoteFile, folder: Path, progress: Callable[[int, int | None], None], name: str) -> Path:
    """Fetch a file into a folder, checking its hash; where a part is there already, only the rest.

    Args:
        progress: called with every number of bytes that are there, whether new or from before, negative to start over, and
            with the file's size where it is known.
        name: of the model, for messages; the Hub's id of one that is there.

    Raises:
        InputError: if it cannot be had, or is not what its makers describe; the partial file is kept in the first case, not in
            the second.
    """
    target = folder / file.path
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file() and _matches(target, file):
        progress(target.stat().st_size, target.stat().st_size)
        return target
    digest, done = _taken_up(part, file)
    size, reached, failures = file.size, False, 0
    progress(done, size)
    while size is None or done < size:
        before = done
        try:
            with _open(file.url, name, start=done) as answer:
                reached = True
                if done and answer.status != 206:  # from the beginning again
                    progress(-done, size)
                    digest, done = _digest(file), 0
                if size is None and answer.status != 416 and re.fullmatch(r"\d{1,15}", answer.headers["Content-Length"] or ""):
                    size = done + int(answer.headers["Content-Length"])
                most = min(file.most if size is None else size, file.most)
                with open(part, "ab" if done else "wb") as out:
                    # A byte more than there should be shows that it is another file; no more of it is taken.
                    while answer.status != 416 and done <= most and (block := answer.read(min(BLOCK, most + 1 - done))):
                        out.write(block)
                        digest.update(block)
                        done += len(block)
                        progress(len(block), size)
                reason = f"the connection ends after {done} bytes" + (f" of {size}" if size else "")
                if (size is None and answer.status != 416) or done > most:
                    break
        except _BROKEN as error:
            reason = _reason(error)
        if size is None or done < size:
            failures = 0 if done != before else failures + 1
            if not reached or failures >= ATTEMPTS:
                raise InputError(
                    f"{file.url}: cannot be fetched ({reason}); run the same command again to go on, or put it at {target}"
                )
            time.sleep(PAUSE * failures)
    if file.size is None and file.digest[0] == "git":  # which hashes the length first
        digest, _ = _taken_up(part, replace(file, size=done))
    if done != (size or done) or done > file.most or not digest.hexdigest().startswith(file.digest[1].lower()):
        part.unlink(missing_ok=True)
        raise InputError(
            f"{file.url}: not the file its makers describe ({file.digest[0]} differs); it was not kept, run the command again"
        )
    os.replace(part, target)
    return target


def hub() -> str:
    """Address of the Hub; HF_ENDPOINT names a mirror."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _digest(file: RemoteFile) -> Any:
    kind = file.digest[0]
    if kind != "git":
        return hashlib.new(kind, usedforsecurity=False)
    return hashlib.sha1(b"blob %d\0" % (file.size or 0), usedforsecurity=False)


def _taken_up(part: Path, file: RemoteFile) -> tuple[Any, int]:
    """The hash and the length of what was fetched before."""
    digest, done = _digest(file), part.stat().st_size if part.is_file() else 0
    if file.size is not None and done > file.size:
        return digest, 0
    if done:
        with open(part, "rb") as before:
            while block := before.read(BLOCK):
                digest.update(block)
    return digest, done


def _matches(path: Path, file: RemoteFile) -> bool:
    digest, done = _taken_up(path, file if file.size is not None else replace(file, size=path.stat().st_size))
    return done == (file.size or done) and digest.hexdigest().startswith(file.digest[1].lower())


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, and tells the token only to the host that it is for."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)  # pyright: ignore[reportArgumentType]
        if new is not None and urlsplit(newurl)[:2] == urlsplit(req.full_url)[:2]:
            new.unredirected_hdrs |= {k: v for k, v in req.unredirected_hdrs.items() if k == "Authorization"}
        return new


def _open(url: str, name: str, start: int = 0) -> Any:
    """An answer, also one that says that there is nothing from ``start`` on (416).

    Raises:
        InputError: where the server refuses, for good.
        OSError: of :data:`_BROKEN`, where another attempt may help.
    """
    try:
        request = Request(url, headers={"User-Agent": "anchor4d"})
    except ValueError:
        raise InputError(f"{url}: not an address; HF_ENDPOINT is one such as https://huggingface.co") from None
    if start:
        request.add_header("Range", f"bytes={start}-")
    if url.startswith(hub() + "/") and (token := _token()):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        return build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and start:
            return error
        with error:
            if error.code == 429 or error.code >= 500:
                raise URLError(f"the server answers {error.code}") from None
            _refuse(error, url, name)


def _refuse(error: HTTPError, url: str, name: str) -> NoReturn:
    code = error.headers.get("X-Error-Code", "")
    if code == "GatedRepo" or error.code == 403:
        page = f"{hub()}/{name}" if url.startswith(hub() + "/") else url
        raise InputError(
            f"{name}: its makers hand it out only to those who accept their terms; accept them at {page}, make an access token "
            f"there (Settings, Access Tokens), set it as HF_TOKEN and run the same command again"
        ) from None
    if error.code == 401:
        raise InputError(
            f"{name}: the Hub has no such model, or shows it only to its owners (401); if it is yours, set HF_TOKEN"
        ) from None
    raise InputError(f"{url}: the server answers {error.code} {error.reason}; it may have moved, get it by hand") from None


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__


def _token() -> str | None:
    """The user's access token for the Hub, where the Hub's own programs keep it."""
    path, where = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "token", "HF_TOKEN"
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token and path.is_file():
        token, where = path.read_text(encoding="utf-8", errors="replace").strip(), str(path)
    if not re.fullmatch(r"[!-~]*", token):
        raise InputError(f"{where}: not an access token, it holds a space, a line break or other signs; set it again")
    return token or None
