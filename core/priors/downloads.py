"""Fetching models with huggingface_hub: resumed where they were left, checked against a hash, in place only when whole.

huggingface_hub lists a repository, follows redirects, keeps the token to its host and takes up broken connections. What it does
not do stays here: which files are worth fetching, an interrupted file that the next call goes on with (its own download throws
it away), a check of every hash, and an end to a server that sends more than the file has.

Imported by ``models get`` and by nothing else: nothing is fetched that was not asked for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, cast
from urllib.parse import quote

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from ..files import InputError
from .models import PICKLES

#: Seconds that the Hub's list of files may take.
TIMEOUT = 30.0
#: What a model's folder holds beside its weights. Python files are never fetched.
TEXTS = (".json", ".txt", ".model", ".jinja")

#: What a connection raises: the base of the HTTP client that this huggingface_hub is built on, which need not be an OSError.
_BROKEN: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)

# One line of progress and one of error, ours; and no word about this machine beyond the request.
constants.HF_HUB_DISABLE_TELEMETRY = True
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


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
    endpoint, token = hub(), _token()
    address = f"{endpoint}/api/models/{repository}"
    try:
        listed = HfApi(endpoint, token=token or False, headers=_headers("")).model_info(
            repository, revision=revision, files_metadata=True, timeout=TIMEOUT
        )
        commit, entries = str(listed.sha or ""), {entry.rfilename: _described(entry) for entry in listed.siblings or []}
        if not re.fullmatch(r"\w{1,64}", commit) or not entries:
            raise ValueError
    except HfHubHTTPError as error:
        _refuse(error, address, repository)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise InputError(f"{address}: the answer is not the Hub's description of a model; try again") from None
    except _BROKEN as error:
        raise InputError(f"{endpoint}: cannot be reached ({_reason(error)}); check the connection and try again") from None
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


def _described(entry: Any) -> tuple[int | None, tuple[str, str]]:
    """A file's size and digest in the Hub's list.

    Raises:
        KeyError, TypeError, ValueError: for an entry without them.
    """
    kind, digits, size = ("sha256", entry.lfs.sha256, entry.lfs.size) if entry.lfs else ("git", entry.blob_id, entry.size)
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


def fetch(file: RemoteFile, folder: Path, progress: Callable[[int], None], name: str) -> Path:
    """Fetch a file into a folder, checking its hash; where a part is there already, only the rest.

    Args:
        progress: called with every number of bytes that are there, whether new or from before, negative to start over.
        name: of the model, for messages; the Hub's id of one that is there.

    Raises:
        InputError: if it cannot be had, or is not what its makers describe; the partial file is kept in the first case, not in
            the second.
    """
    target = folder / file.path
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file() and _matches(target, file):
        progress(target.stat().st_size)
        return target
    most = file.most if file.size is None else file.size
    if part.is_file() and part.stat().st_size > most:
        part.unlink()
    try:
        with open(part, "ab") as out:
            # The bar is an argument for its own retries, and the one that every version counts bytes with.
            bar = cast(Any, _Bar(most, progress))
            bar.update(out.tell())
            http_get(file.url, out, resume_size=out.tell(), headers=_headers(file.url), expected_size=file.size, _tqdm_bar=bar)
    except HfHubHTTPError as error:
        if error.response.status_code != 416:  # else nothing is left of a file whose size was not known
            _refuse(error, file.url, name)
    except _TooLong:
        pass  # another file, as its hash says
    except (ValueError, *_BROKEN) as error:
        raise InputError(
            f"{file.url}: cannot be fetched ({_reason(error)}); run the same command again to go on, or put it at {target}"
        ) from None
    if not _matches(part, file):
        part.unlink()
        raise InputError(
            f"{file.url}: not the file its makers describe ({file.digest[0]} differs); it was not kept, run the command again"
        )
    os.replace(part, target)
    return target


class _TooLong(Exception):
    """A server sends more than the file has."""


class _Bar:
    """What huggingface_hub takes for its progress bar: counts bytes before they are written, and stops a server without end."""

    def __init__(self, most: int, progress: Callable[[int], None]) -> None:
        self.done, self.most, self.progress = 0, most, progress

    def update(self, new: int) -> None:
        self.done += new
        if self.done > self.most:
            raise _TooLong
        self.progress(new)


def hub() -> str:
    """Address of the Hub; HF_ENDPOINT names a mirror.

    Raises:
        InputError: if that is no address.
    """
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if not re.fullmatch(r"https?://(\[[\da-fA-F:]+\]|[\w.-]+)(:\d{1,5})?(/[\w./-]*)?", address):
        raise InputError(f"{address}: not an address; HF_ENDPOINT is one such as https://huggingface.co")
    return address


def _matches(path: Path, file: RemoteFile) -> bool:
    (kind, digits), size = file.digest, path.stat().st_size
    git = kind == "git"
    digest = hashlib.new("sha1" if git else kind, b"blob %d\0" % size if git else b"", usedforsecurity=False)
    with open(path, "rb") as there:
        hashlib.file_digest(there, lambda: digest)  # pyright: ignore[reportArgumentType]
    return file.size in (None, size) and digest.hexdigest().startswith(digits.lower())


def _headers(url: str) -> dict[str, str]:
    """Of a request; the token goes to the Hub alone."""
    # Lengths and places in a compressed answer are not those of the file.
    headers = {"user-agent": "anchor4d", "accept-encoding": "identity"}
    if url.startswith(hub() + "/") and (token := _token()):
        headers["authorization"] = f"Bearer {token}"
    return headers


def _refuse(error: HfHubHTTPError, url: str, name: str) -> NoReturn:
    code = error.response.status_code
    if error.response.headers.get("X-Error-Code", "") == "GatedRepo" or code == 403:
        page = f"{hub()}/{name}" if url.startswith(hub() + "/") else url
        raise InputError(
            f"{name}: its makers hand it out only to those who accept their terms; accept them at {page}, make an access token "
            f"there (Settings, Access Tokens), set it as HF_TOKEN and run the same command again"
        ) from None
    if code == 401:
        raise InputError(
            f"{name}: the Hub has no such model, or only its owners may see it (401); if it is yours, set HF_TOKEN"
        ) from None
    raise InputError(f"{url}: the server answers {code}; try again later, or get it by hand") from None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _token() -> str | None:
    """The user's access token for the Hub, where the Hub's own programs keep it."""
    path, where = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "token", "HF_TOKEN"
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token and path.is_file():
        token, where = path.read_text(encoding="utf-8", errors="replace").strip(), str(path)
    if not re.fullmatch(r"[!-~]*", token):
        raise InputError(f"{where}: not an access token, it holds a space, a line break or other signs; set it again")
    return token or None
