"""A running ComfyUI with this pack alone, the workflows as prompts, and a client that follows a run.

It runs on the CPU; with ANCHOR4D_HOST_CARD=1 on what it finds. ANCHOR4D_HOST_ARGUMENTS are further arguments of its main.py,
such as ``--front-end-root`` with the ``static`` folder of another version of comfyui-frontend-package.

Nothing is written into the user's checkout: the pack is linked into a folder of its own, and every other folder is temporary.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TINY = {
    "Anchor4DSample": {"frames": 4, "size": 80},
    "Anchor4DLoadVideo": {"frames": 4, "resolution": 64},
    "Anchor4DPrepareVideo": {"resolution": 64},
    "Anchor4DFitGaussians": {"preset": "draft", "gaussians": 800, "steps": 12, "resolution": 48},
    "Anchor4DMotionAlignment": {
        "preset": "draft",
        "steps": 6,
        "tracking_steps": 3,
        "fine_steps": 4,
        "control_nodes": 40,
        "resolution": 48,
        "refine_steps": 2,
    },
    "Anchor4DRenderScene": {"size": 80},
    "Anchor4DPriorFromModel": {"size": 64},
    "Anchor4DReferenceRefinement": {"views": 2},
    "Anchor4DMotionGeometry": {"views": 1},
    "Anchor4DAsynchronousOptimisation": {"field_steps": 1, "gaussian_steps": 1},
    "Anchor4DRenderObject": {"size": 80},
    "Anchor4DStartWithoutObject": {"points": 600},
    "Anchor4DTemporalAnchors": {"steps": 3},
    "Anchor4DSTAG4DObjectives": {"preset": "draft"},
    "KSampler": {"steps": 1},
    "Wan22ImageToVideoLatent": {"width": 64, "height": 64, "length": 5},
    "EmptyLatentHunyuan3Dv2": {"resolution": 32},
    "VAEDecodeHunyuan3D": {"octree_resolution": 16},
    "TripoSplatPreprocessImage": {"size": 256},
    "VAEDecodeTripoSplat": {"num_gaussians": 32768},
}
#: What stands in for a file that a workflow names, see random_nodes; and at which of the stand-in's outputs its first is.
STAND_INS = {
    "stable_zero123.ckpt": ("zero123", 0),
    "wan2.2_ti2v_5B_fp16.safetensors": ("wan22", 0),
    "wan2.2_vae.safetensors": ("wan22", 2),
    "hunyuan_3d_v2.1.safetensors": ("hunyuan3d", 0),
    "triposplat_fp16.safetensors": ("triposplat", 0),
    "dino_v3_vit_h.safetensors": ("triposplat", 1),
    "triposplat_vae_decoder_fp16.safetensors": ("triposplat", 2),
    "flux2-vae.safetensors": ("zero123", 2),
}

WATCHER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
if sys.stdin.read() != "ended":
    os.kill(int(sys.argv[1]), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
"""

#: A node's mode in a workflow: what comes in goes out.
BYPASSED = 4


def as_prompt(workflow: dict[str, Any]) -> dict[str, Any]:
    """The page's graph as the server takes it: widget values by name, links as (node, output)."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2], link[5]) for link in workflow["links"]}

    def source(link: int | None) -> tuple[int, int] | None:
        """Where a link comes from; through a bypassed node, from what its first input of the same type is linked to."""
        if link is None:
            return None
        node, output, kind = links[link]
        if nodes[node]["mode"] != BYPASSED:
            return node, output
        return next((source(slot["link"]) for slot in nodes[node]["inputs"] if slot["type"] == kind), None)

    prompt = {}
    for node in nodes.values():
        if node["type"] in ("MarkdownNote", "PrimitiveNode") or node["mode"] == BYPASSED:
            continue
        values = {slot["name"]: node["widgets_values_named"][slot["name"]] for slot in node["inputs"] if "widget" in slot}
        for slot in node["inputs"]:
            if (origin := source(slot.get("link"))) is not None:
                primitive = nodes[origin[0]]["type"] == "PrimitiveNode"
                values[slot["name"]] = nodes[origin[0]]["widgets_values"][0] if primitive else [str(origin[0]), origin[1]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": values}
    return prompt


@dataclass
class Outcome:
    """What a run ended with: its last event, its nodes' outputs, which nodes ran and which values were kept from an earlier
    prompt, and how many previews and which lines of text came."""

    ended: str = "timeout"
    detail: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    previews: int = 0
    texts: list[str] = field(default_factory=list)


@dataclass
class Host:
    """The server's address, its folders, and its log so far."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]
    tiny: dict[str, dict[str, Any]] = field(default_factory=lambda: TINY)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def post(self, route: str, value: Any) -> Any:
        data = json.dumps(value).encode()
        request = urllib.request.Request(self.url + route, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            pytest.fail(f"{route}: {error.read().decode()[:2000]}")

    def get(self, route: str) -> Any:
        with urllib.request.urlopen(self.url + route, timeout=60) as answer:
            return json.load(answer)

    def file(self, picture: dict[str, str]) -> Path:
        """Where a file that a node showed lies."""
        return self.folder / picture["type"] / picture["subfolder"] / picture["filename"]

    @staticmethod
    def workflows() -> list[Path]:
        """Templates and the other graphs."""
        return [path for folder in ("example_workflows", "docs/workflows") for path in sorted((ROOT / folder).glob("*.json"))]

    @staticmethod
    def workflow(name: str) -> dict[str, Any]:
        """A workflow of this pack as a prompt, at sizes that take seconds."""
        path = next(path for path in Host.workflows() if path.stem == name)
        prompt = as_prompt(json.loads(path.read_text(encoding="utf-8")))
        for node in prompt.values():
            node["inputs"] |= TINY.get(node["class_type"], {})
        return prompt

    @staticmethod
    def random(prompt: dict[str, Any]) -> None:
        """Puts small models with random weights in place of the files that a workflow names, and of its text encoders."""
        outputs = {}
        for key, node in prompt.items():
            named = [STAND_INS[value] for value in node["inputs"].values() if isinstance(value, str) and value in STAND_INS]
            if named:
                ((kind, outputs[key]),) = named
                node |= {"class_type": "RandomModel", "inputs": {"kind": kind}}
            elif node["class_type"] == "CLIPTextEncode":
                node |= {"class_type": "RandomText", "inputs": {"features": 4096}}
        for node in prompt.values():
            for value in node["inputs"].values():
                if isinstance(value, list) and value[0] in outputs:
                    value[1] += outputs[value[0]]
        for key in [key for key, node in prompt.items() if node["class_type"] == "CLIPLoader"]:
            del prompt[key]

    @staticmethod
    def only(prompt: dict[str, Any], kind: str) -> tuple[str, dict[str, Any]]:
        """The id and inputs of the one node of a type."""
        found = [(key, node["inputs"]) for key, node in prompt.items() if node["class_type"] == kind]
        assert len(found) == 1, kind
        return found[0]

    def run(
        self, prompt: dict[str, Any], *, interrupt: Callable[[Outcome], bool] | None = None, timeout: float = 900
    ) -> Outcome:
        """Queues a prompt and follows it to its end; interrupts it once ``interrupt`` says so."""
        return asyncio.run(self._run(prompt, interrupt, timeout))

    async def _run(self, prompt: dict[str, Any], interrupt: Callable[[Outcome], bool] | None, timeout: float) -> Outcome:
        import aiohttp

        outcome, asked, client = Outcome(), False, uuid.uuid4().hex
        deadline = time.monotonic() + timeout
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as socket_,
        ):
            queued = await asyncio.to_thread(self.post, "/prompt", {"prompt": prompt, "client_id": client})
            assert not queued["node_errors"], queued["node_errors"]
            while time.monotonic() < deadline:
                message = await socket_.receive(deadline - time.monotonic())
                if message.type == aiohttp.WSMsgType.BINARY:
                    kind = int.from_bytes(
                        message.data[:4], "big"
                    )  # 1 and 4: preview, 3: text after the node's id and its length
                    if kind == 3:
                        length = int.from_bytes(message.data[4:8], "big")
                        outcome.texts.append(message.data[8 + length :].decode())
                    else:
                        outcome.previews += 1
                elif message.type == aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    if event["data"].get("prompt_id") not in (None, queued["prompt_id"]):
                        continue
                    if event["type"] == "executed":
                        outcome.outputs[event["data"]["node"]] = event["data"]["output"]
                    elif event["type"] == "execution_cached":
                        outcome.kept = event["data"]["nodes"]
                    elif event["type"] == "executing" and event["data"].get("prompt_id") and event["data"]["node"]:
                        outcome.ran.append(event["data"]["node"])
                    elif event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                        outcome.ended, outcome.detail = event["type"], event["data"]
                        break
                else:
                    pytest.fail(f"the host closed the connection:\n{self.log[-3000:]}")
                if interrupt is not None and not asked and interrupt(outcome):
                    asked = True
                    await asyncio.to_thread(self.post, "/interrupt", {})
        return outcome


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--host") or os.environ.get("ANCHOR4D_HOST"):
        return
    skip = pytest.mark.skip(reason="starts a ComfyUI: ask for it with --host or ANCHOR4D_HOST=1")
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def start_host(comfyui: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Host]]:
    """Starts a host with further arguments; each stops when the tests are over."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed, it follows the host's runs")
    with ExitStack() as stack:
        yield lambda *more: stack.enter_context(running(comfyui, tmp_path_factory.mktemp("host"), more))


@pytest.fixture(scope="session")
def host(start_host: Callable[..., Host]) -> Host:
    return start_host()


@contextmanager
def running(comfyui: Any, folder: Path, more: Sequence[Any]) -> Iterator[Host]:
    """A host with further arguments, its folders below ``folder``."""
    for name in ("input/3d", "output", "temp", "user", "models"):
        (folder / name).mkdir(parents=True)
    # A place that stays: compiled kernels are kept by the name that the host gives the pack, which is its path.
    place = Path(tempfile.gettempdir()) / f"anchor4d-host-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}" / "custom_nodes"
    place.mkdir(parents=True, exist_ok=True)
    for link, target in (("anchor4d", ROOT), ("random_nodes", ROOT / "tests" / "host" / "random_nodes")):
        if os.name == "nt":
            shutil.copytree(target, place / link, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        elif not (place / link).is_symlink():
            (place / link).symlink_to(target, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processor = () if os.environ.get("ANCHOR4D_HOST_CARD") else ("--cpu",)
    command = [
        comfyui.python, comfyui.path / "main.py", *processor, "--listen", "127.0.0.1", "--port", port, "--disable-auto-launch",
        "--base-directory", place.parent, "--disable-all-custom-nodes", "--whitelist-custom-nodes", "anchor4d", "random_nodes",
        "--input-directory", folder / "input", "--output-directory", folder / "output", "--temp-directory", folder,
        "--user-directory", folder / "user", "--database-url", f"sqlite:///{folder / 'host.db'}",
        *shlex.split(os.environ.get("ANCHOR4D_HOST_ARGUMENTS", "")), *more,
    ]  # fmt: skip
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(list(map(str, command)), cwd=comfyui.path, stdout=log, stderr=subprocess.STDOUT)
    # However this test run ends, the pipe to the watcher closes then, and the watcher ends the host.
    watcher = subprocess.Popen([sys.executable, "-c", WATCHER, str(process.pid)], stdin=subprocess.PIPE)
    running = Host(f"http://127.0.0.1:{port}", folder, process)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{running.url}/system_stats", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, f"the host did not start:\n{running.log[-3000:]}"
                time.sleep(0.5)
        else:
            pytest.fail(f"the host did not answer:\n{running.log[-3000:]}")
        yield running
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        watcher.communicate(b"ended")
