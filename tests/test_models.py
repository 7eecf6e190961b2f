"""Models: the registry, finding what is here, and fetching from a server on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, file_download
from safetensors.torch import load_file

from anchor4d import cli
from anchor4d.core.files import InputError
from anchor4d.core.metrics.perceptual import NETWORKS
from anchor4d.core.priors import downloads, models

ROOT = Path(__file__).parent.parent
UNET = bytes(range(256)) * 9000  # two blocks and a bit
VAE = b"vae" * 500


class Hub:
    """A Hub of one repository: what it holds, what it was asked, and how it misbehaves."""

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        self.repository, self.files = repository, files
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.stop_after: int | None = None  # bytes, once
        self.status: dict[str, int] = {}  # path prefix: answer
        self.code = ""  # X-Error-Code
        self.ranges = True
        self.length: str | None = ""  # in place of Content-Length; None: without
        self.redirect = ""
        self.served: dict[str, bytes] = {}  # instead of what the listing promises

    def listing(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_name(data)}
            if len(data) > 1000:
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {"id": self.repository, "sha": "c0ffee", "siblings": siblings}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        self.asked.append((request.path, {name.title(): value for name, value in request.headers.items()}))
        status = next((status for start, status in self.status.items() if path.startswith(start)), 200)
        if status != 200:
            request.send_response(status)
            request.send_header("X-Error-Code", self.code)
            request.end_headers()
            return
        if path == f"/api/models/{self.repository}/revision/main":
            return self.send(request, json.dumps(self.listing()).encode())
        name = path.removeprefix(f"/{self.repository}/resolve/c0ffee/").removeprefix("/elsewhere/")
        if self.redirect and not path.startswith("/elsewhere/"):
            request.send_response(302)
            request.send_header("Location", f"{self.redirect}/elsewhere/{name}")
            request.end_headers()
            return
        self.send(request, self.served.get(name, self.files[name]))

    def send(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        start = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if start and self.ranges:
            if int(start[1]) >= len(data):
                request.send_response(416)
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            data = data[int(start[1]) :]
            request.send_response(206)
        else:
            request.send_response(200)
        if self.length is not None:
            request.send_header("Content-Length", self.length or str(len(data)))
        request.end_headers()
        if self.stop_after is not None and len(data) > self.stop_after:
            data, self.stop_after = data[: self.stop_after], None
        with contextlib.suppress(ConnectionError):
            request.wfile.write(data)


def git_name(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """zero123-xl on a server here, nothing on this machine, no user's token."""
    files = {"model_index.json": b"{}", "README.md": b"words", "unet/model.py": b"import os"}
    for part in ("clip_camera_projection", "feature_extractor", "image_encoder", "scheduler", "vae"):
        files[f"{part}/config.json"] = part.encode()
    files |= {"unet/config.json": b"unet", "unet/diffusion_pytorch_model.safetensors": UNET}
    files |= {"vae/diffusion_pytorch_model.fp16.safetensors": VAE, "vae/diffusion_pytorch_model.safetensors": VAE + VAE}
    made = Hub("ashawkey/zero123-xl-diffusers", files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("ANCHOR4D_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 18)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_model_is_fetched_whole_and_checked(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.find("zero123-xl") is None
    assert cli.main(["models", "get", "zero123-xl"]) == 0
    folder = tmp_path / "models" / "diffusers" / "zero123-xl-diffusers"
    printed = capsys.readouterr()
    assert printed.out.strip() == str(folder)
    assert "download zero123-xl, MB  3/3" in printed.err
    assert f"zero123-xl: 0.00231 GB to {folder}\n" in printed.err
    assert models.find("zero123-xl") == folder == models.find("ashawkey/zero123-xl-diffusers")
    assert models.folders_for("zero123") == ["zero123-xl"]
    held = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    # One set of weights each, float16 where there is such, under the plain name; no program text.
    wanted = {name: data for name, data in hub.files.items() if name.endswith("json")}
    assert held == wanted | {"unet/diffusion_pytorch_model.safetensors": UNET, "vae/diffusion_pytorch_model.safetensors": VAE}
    hub.asked.clear()
    assert cli.main(["models", "get", "zero123-xl"]) == 0
    assert hub.asked == []


def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.stop_after = 1_500_000
    folder = models.download("zero123-xl")
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == UNET
    ranges = [headers["Range"] for _, headers in hub.asked if "Range" in headers]
    assert len(ranges) == 1 and 1_000_000 < int(ranges[0][6:-1]) <= 1_500_000


def test_an_interrupted_download_keeps_what_it_has_and_goes_on(hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.download("zero123-xl", stop)
    assert models.find("zero123-xl") is None
    part = next((tmp_path / "models").rglob("*.safetensors.part"))
    kept = part.stat().st_size
    assert kept >= 1_000_000
    hub.asked.clear()
    seen.clear()
    folder = models.download("zero123-xl", lambda done, total: seen.append((done, total)))
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == UNET
    assert [headers["Range"] for _, headers in hub.asked if "Range" in headers] == [f"bytes={kept}-"]
    assert not [path for path, _ in hub.asked if path.endswith("scheduler/config.json")]  # whole already
    assert seen == sorted(seen) and seen[-1] == (3, 3)
    assert not list((tmp_path / "models").rglob("*.part"))


def test_a_server_without_ranges_sends_all_again(hub: Hub) -> None:
    hub.ranges = False
    hub.stop_after = 1_500_000
    seen: list[int] = []
    folder = models.download("zero123-xl", lambda done, total: seen.append(done))
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == UNET
    assert seen[-1] == 3


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "scheduler/config.json"])
def test_a_file_with_another_hash_is_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.served = {name: hub.files[name][:-1] + b"!"}
    with pytest.raises(InputError, match=r"not the file its makers describe \((sha256|git) differs\)"):
        models.download("zero123-xl")
    assert models.find("zero123-xl") is None
    assert not list((tmp_path / "models").rglob(f"{name}*"))
    hub.served = {}
    assert models.download("zero123-xl").is_dir()


def test_a_stale_part_is_noticed_by_its_hash(hub: Hub, tmp_path: Path) -> None:
    staging = tmp_path / "models" / "diffusers" / "zero123-xl-diffusers.part" / "unet"
    staging.mkdir(parents=True)
    (staging / "diffusion_pytorch_model.safetensors").write_bytes(b"an older version")
    (staging / "config.json.part").write_bytes(b"far too long to be the beginning of it")
    folder = models.download("zero123-xl")
    assert (folder / "unet" / "config.json").read_bytes() == b"unet"
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == UNET


def refused(capsys: pytest.CaptureFixture[str], *name: str, command: str = "get") -> str:
    assert cli.main(["models", command, *name]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_refusals_say_how_to_proceed(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api = "/api/models/"
    for status, code, words in (
        (401, "GatedRepo", "accept their terms; accept them at http"),
        (403, "", "HF_TOKEN"),
        (401, "RepoNotFound", "has no such model"),
        (404, "", "404"),
        (503, "", "the server answers 503"),
    ):
        hub.status, hub.code = {api: status}, code
        assert words in refused(capsys, "zero123-xl")
    hub.status = {f"/{hub.repository}/resolve/c0ffee/unet/diff": 404}
    assert "diffusion_pytorch_model.safetensors: the server answers 404" in refused(capsys, "zero123-xl")
    hub.status = {}
    del hub.files["scheduler/config.json"]
    assert "has no files in scheduler any more" in refused(capsys, "zero123-xl")
    assert "choose one of zero123-xl, " in refused(capsys, "zero124")
    hub.files["scheduler/config.json"] = b"{}"
    hub.files["scheduler/../../evil.json"] = b"{}"
    assert models.download("zero123-xl").is_dir()
    assert not (tmp_path / "models" / "diffusers" / "evil.json").exists()


def test_a_server_that_says_odd_things(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lengths that are none, more bytes than there should be, and lists that are no lists."""
    name = "unet/diffusion_pytorch_model.safetensors"
    hub.served = {name: hub.files[name] + bytes(50_000_000)}
    held: list[int] = []
    real = downloads._Bar.update  # pyright: ignore[reportPrivateUsage]

    def counting(bar: Any, new: int) -> None:
        held.append(new)
        real(bar, new)

    monkeypatch.setattr(downloads._Bar, "update", counting)  # pyright: ignore[reportPrivateUsage]
    for hub.length in ("", None):
        held.clear()
        assert "not the file its makers describe" in refused(capsys, "zero123-xl")
        assert sum(held) < 2 * sum(map(len, hub.files.values()))
    hub.length = "abc"
    assert "cannot be reached" in refused(capsys, "zero123-xl")
    hub.length = None
    assert not list((tmp_path / "models").rglob(f"{name}*"))
    hub.served = {}
    assert models.download("zero123-xl").is_dir()
    hub.length = ""
    monkeypatch.setenv("ANCHOR4D_MODELS", str(tmp_path / "others"))
    whole = hub.listing()
    for change in (
        {"siblings": None}, {"siblings": [7]}, {"siblings": [{"rfilename": "a"}]}, {"sha": None, "siblings": {}},
        {"siblings": [entry | {"lfs": {"sha256": 5, "size": -1}} for entry in whole["siblings"]]},
        {"siblings": [entry | {"blobId": "z"} for entry in whole["siblings"]]},
        {"siblings": [{**entry, "size": "large", "lfs": None} for entry in whole["siblings"]]},
    ):  # fmt: skip
        monkeypatch.setattr(hub, "listing", lambda change=change: whole | change)
        refused(capsys, "zero123-xl")
    monkeypatch.setattr(hub, "answer", lambda request: hub.send(request, b"[" * 200_000))
    assert "not the Hub's description of a model" in refused(capsys, "zero123-xl")


@pytest.mark.parametrize("token", ["two\nlines", "a b", "caf\u00e9", "x\r\nInjected: 1"])
def test_a_token_that_is_none_is_refused(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert "HF_TOKEN: not an access token" in refused(capsys, "zero123-xl")
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "token").write_bytes(token.encode("latin-1"))
    line = refused(capsys, "zero123-xl")
    assert "not an access token" in line and token not in line
    assert hub.asked == []
    (tmp_path / "none" / "token").write_text("good\n")
    models.download("zero123-xl")
    assert hub.asked[0][1]["Authorization"] == "Bearer good"


def test_addresses_names_and_paths_that_are_none(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "models get NAME: choose one of" in refused(capsys)
    assert hub.asked == []
    assert models.model_named("") is None
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in (str(outside), "../outside", "a/../../outside", "/etc/passwd"):
        assert models.find(name) is None
    for address in ("here", "http://", "http://[", "http://a b"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        refused(capsys, "zero123-xl")


def test_nothing_is_asked_offline_and_nothing_but_the_request_is_said(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "offline mode is enabled" in refused(capsys, "zero123-xl")
    assert hub.asked == []
    models.download("zero123-xl")
    assert {headers["User-Agent"] for _, headers in hub.asked} == {"anchor4d"}
    assert not [path for path, _ in hub.asked if hub.repository not in path]
    assert not [headers for _, headers in hub.asked if "Authorization" in headers]


def test_no_connection_is_said_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9: cannot be reached" in refused(capsys, "zero123-xl")


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    port = os.environ["HF_ENDPOINT"].rsplit(":", 1)[1]
    hub.redirect = f"http://localhost:{port}"
    models.download("zero123-xl")
    told = {path.startswith("/elsewhere/"): headers.get("Authorization") for path, headers in hub.asked}
    assert told == {False: "Bearer secret", True: None}
    # Another path of the same host, as of a renamed repository, does need it.
    hub.asked.clear()
    hub.redirect = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("ANCHOR4D_MODELS", os.environ["ANCHOR4D_MODELS"] + "2")
    models.download("zero123-xl")
    assert {headers.get("Authorization") for path, headers in hub.asked if path.startswith("/elsewhere/")} == {"Bearer secret"}


def test_any_model_of_the_hub_can_be_named(hub: Hub, tmp_path: Path) -> None:
    hub.repository = "someone/finetune"
    hub.files = {
        "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
        "finetune.safetensors": UNET,  # the same once more in one file
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.non_ema.safetensors": UNET,
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors": VAE,
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors": VAE,
        "unet/diffusion_pytorch_model.safetensors.index.json": b"{1}",
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "safety_checker/config.json": b"{}",
        "pictures/a.json": b"{}",
    }
    error = models.missing("someone/finetune")
    assert "models get someone/finetune" in str(error)
    folder = models.download("someone/finetune")
    assert folder == tmp_path / "models" / "diffusers" / "someone--finetune" == models.find("someone/finetune")
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    shards = {f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert held == {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors.index.json"} | shards
    assert models.folders_for("text-to-image") == ["diffusers/someone--finetune"]
    assert models.find("diffusers/someone--finetune") == folder


def test_pickles_are_converted_when_all_is_here(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repository = "cerspense/zeroscope_v2_576w"
    hub.files = {f"{part}/config.json": b"{}" for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae")}
    pickled = BytesIO()
    torch.save({"conv.weight": torch.arange(6.0).reshape(2, 3)}, pickled)
    hub.files["unet/diffusion_pytorch_model.bin"] = pickled.getvalue()
    assert cli.main(["models", "get", "zeroscope"]) == 0
    printed = capsys.readouterr()
    folder = models.find("zeroscope")
    assert folder is not None
    assert printed.out.strip() == str(folder)
    assert "licence: CC-BY-NC 4.0: no commercial use" in printed.err
    made = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert torch.equal(load_file(made)["conv.weight"], torch.arange(6.0).reshape(2, 3))
    assert "is a pickle" not in models.table()
    made.unlink()
    assert models.table().count(f"unet{os.sep}diffusion_pytorch_model.bin is a pickle: run") == 1
    assert cli.main(["models", "convert", str(folder)]) == 0
    assert made.is_file()
    assert "name a file" in refused(capsys, command="convert")


def test_single_files_from_elsewhere(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "home"))
    hub.files["u2net.onnx"] = UNET
    known = {model.name: model for model in models.known_models()}
    url = f"{os.environ['HF_ENDPOINT']}/elsewhere/u2net.onnx"

    def serve(digest: str) -> None:
        model = models.Model("rembg", known["rembg"].roles, "rembg", url=url, md5=digest)
        monkeypatch.setattr(models, "known_models", lambda: (model,))

    serve("0123")
    with pytest.raises(InputError, match="md5 differs"):
        models.download("rembg")
    assert list((tmp_path / "home").iterdir()) == []
    serve(hashlib.md5(UNET).hexdigest()[:8])
    # Left whole but not yet named, as after a power cut, by a server that answers 416.
    (tmp_path / "home" / "u2net.onnx.part").write_bytes(UNET)
    assert models.download("rembg").read_bytes() == UNET
    assert models.find("rembg") == tmp_path / "home" / "u2net.onnx"


def test_a_file_that_git_names_is_checked_and_brings_what_it_needs(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files |= {"network.pth": UNET, "linear.pth": VAE}
    elsewhere = f"{os.environ['HF_ENDPOINT']}/elsewhere"

    def serve(content: bytes) -> None:
        named = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        network = models.Model(
            "net", ("metric",), "metrics/network.pth", url=f"{elsewhere}/network.pth", git=named, brings=("lin",)
        )
        linear = models.Model(
            "lin", ("metric",), "metrics/linear.pth", url=f"{elsewhere}/linear.pth", md5=hashlib.md5(VAE).hexdigest()
        )
        monkeypatch.setattr(models, "known_models", lambda: (network, linear))

    serve(VAE)
    with pytest.raises(InputError, match="git differs"):
        models.download("net")
    serve(UNET)
    folder = tmp_path / "models" / "metrics"
    assert models.download("net") == folder / "network.pth" and (folder / "network.pth").read_bytes() == UNET
    assert (folder / "linear.pth").read_bytes() == VAE
    (folder / "linear.pth").unlink()  # as of one that was here before it brought anything
    models.download("net")
    assert models.find("lin") == folder / "linear.pth"


def test_a_folder_that_lacks_parts_is_not_taken_for_the_model(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "diffusers" / "zero123-xl-diffusers"
    (folder / "unet").mkdir(parents=True)
    assert models.find("zero123-xl") is None
    with pytest.raises(InputError, match=r"has no clip_camera_projection, .* move this folder away"):
        models.download("zero123-xl")


def test_too_little_space_is_said_before_anything_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match="make space, or name a folder on another disk in ANCHOR4D_MODELS"):
        models.download("zero123-xl")
    assert len(hub.asked) == 1


def test_where_models_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANCHOR4D_MODELS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "data"))
    own = models.models_folders()
    assert own[-1].parts[-2:] == ("anchor4d", "models")
    try:
        models.set_models_folder(tmp_path / "host")
        assert models.models_folders() == [tmp_path / "host", own[-1]]
        monkeypatch.setenv("ANCHOR4D_MODELS", str(tmp_path / "mine"))
        assert models.models_folders() == [tmp_path / "mine", tmp_path / "host", own[-1]]
        error = str(models.missing("taesd"))
        assert str(tmp_path / "mine" / "diffusers" / "taesd") in error and "anchor4d models get taesd" in error
        (tmp_path / "host" / "diffusers" / "taesd").mkdir(parents=True)
        for name in ("config.json", "diffusion_pytorch_model.safetensors"):
            (tmp_path / "host" / "diffusers" / "taesd" / name).touch()
        assert models.find("taesd") == tmp_path / "host" / "diffusers" / "taesd"
    finally:
        models.set_models_folder(None)
    assert "no model of that name" in str(models.missing("nothing"))


def test_the_registry_is_whole() -> None:
    known = {model.name: model for model in models.known_models()}
    assert len(known) == len(models.known_models())
    for model in known.values():
        assert model.roles and model.purpose and model.licence and model.folder
        assert bool(model.hub) != bool(model.url)
        assert bool(model.parts or model.files) == bool(model.hub)
        assert [bool(model.md5), bool(model.sha256), bool(model.git)].count(True) == bool(model.url)
        assert {*model.needs, *model.brings} <= set(known)
        forbids = re.search(r"\bNC\b|non-commercial", model.licence)
        assert bool(forbids) == model.warning.startswith("no commercial use")
    assert all(f"lpips-{net}-linear" in known[f"lpips-{net}"].brings for net in NETWORKS)
    roles = {role for listed in models._registry()["pipelines"].values() for role in listed}  # pyright: ignore[reportPrivateUsage]
    assert roles <= set(models._registry()["roles"])  # pyright: ignore[reportPrivateUsage]


def test_the_documentation_shows_the_registry() -> None:
    assert models.markdown_table() in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
