"""The player in Firefox, by its own remote control (Marionette), where a Firefox is installed."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchor4d.bench.moving import moving_sample
from anchor4d.bench.player import serve
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.io.html import write_html
from anchor4d.core.io.splats import decode_splats, encode_splats
from anchor4d.core.io.stream import write_stream
from anchor4d.core.render import rasterize
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.views import scene_cameras

FOUND = shutil.which("firefox-esr") or shutil.which("firefox")
pytestmark = pytest.mark.skipif(FOUND is None, reason="no Firefox on the path")
SIZE = 128


class Firefox:
    """A Firefox that is asked over a socket: messages are their length, a colon and JSON."""

    def __init__(self, profile: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = {
            "marionette.port": port,
            "webgl.force-enabled": True,
            "webgl.forbid-software": False,
            "browser.shell.checkDefaultBrowser": False,
            "datareporting.policy.dataSubmissionEnabled": False,
            "app.update.enabled": False,
        }
        lines = [f"user_pref({json.dumps(key)}, {json.dumps(value)});" for key, value in settings.items()]
        (profile / "user.js").write_text("\n".join(lines))
        assert FOUND is not None
        # Without a screen Firefox has no WebGL: it gets one that nobody sees.
        environment, self.screen = dict(os.environ), None
        if not environment.get("DISPLAY") and (server := shutil.which("Xvfb")):
            command = [server, "-displayfd", "1", "-screen", "0", "1024x768x24"]
            self.screen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert self.screen.stdout is not None
            environment |= {"DISPLAY": f":{self.screen.stdout.readline().strip()}", "LIBGL_ALWAYS_SOFTWARE": "1"}
        shown = [] if environment.get("DISPLAY") else ["--headless"]
        arguments = [FOUND, *shown, "--marionette", "--no-remote", "--profile", str(profile)]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(arguments, env=environment, stdout=null, stderr=null)
        for _ in range(600):
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), 2)
                break
            except OSError:
                time.sleep(0.1)
        self.socket.settimeout(90)
        self.file, self.last = self.socket.makefile("rb"), 0
        self.receive()
        self.ask("WebDriver:NewSession")
        self.ask("WebDriver:SetTimeouts", script=80_000)

    def receive(self) -> Any:
        length = b""
        while not length.endswith(b":"):
            length += self.file.read(1)
        return json.loads(self.file.read(int(length[:-1])))

    def ask(self, command: str, **parameters: Any) -> Any:
        self.last += 1
        text = json.dumps([0, self.last, command, parameters]).encode()
        self.socket.sendall(b"%d:%s" % (len(text), text))
        _, _, error, result = self.receive()
        assert error is None, error
        return result

    def evaluate(self, script: str, *arguments: Any) -> Any:
        """The value that the body of an asynchronous function returns."""
        whole = f"const done = arguments[arguments.length - 1]; (async (...given) => {{ {script} }})(...arguments)"
        whole += ".then((value) => done({ value }), (error) => done({ error: String(error) }));"
        found = self.ask("WebDriver:ExecuteAsyncScript", script=whole, args=list(arguments))["value"]
        assert "error" not in found, found
        return found.get("value")

    def close(self) -> None:
        self.socket.close()
        for process in (self.process, self.screen):
            if process is not None:
                process.terminate()
                process.wait(30)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Firefox, str, dict[str, Any]]]:
    files: dict[str, Any] = {}
    firefox = Firefox(tmp_path_factory.mktemp("profile"))
    try:
        with serve(files) as url:
            firefox.ask("WebDriver:Navigate", url=url)
            if not firefox.evaluate("return Boolean(document.createElement('canvas').getContext('webgl2'));"):
                pytest.skip("this Firefox has no WebGL 2")
            yield firefox, url, files
    finally:
        firefox.close()


def drawn(gaussians: Gaussians, camera: Any) -> np.ndarray:
    with torch.no_grad():
        render = rasterize(gaussians, camera.reshape(1))
    return torch.cat([render.color[0].clamp(0, 1), render.alpha[0][..., None]], -1).numpy()


SHOOT = """
  const { openSource } = await import("/player/files.mjs"), { Renderer } = await import("/player/renderer.mjs");
  const [name, camera, time, size] = given, renderer = new Renderer(document.createElement("canvas"));
  renderer.resize(size, size);
  await new Promise((done, failed) => openSource(name, {
    header: (clip) => renderer.setClip(0, clip), frame: (index) => renderer.frameArrived(0, index), done, error: failed,
  }).catch(failed));
  if (!await renderer.drawSorted({ camera, time: [time, 0] })) return "";
  const found = btoa(String.fromCharCode(...renderer.pixels().data));
  renderer.dispose();
  return found;
"""


@pytest.mark.parametrize("suffix", ["a4d", "sog", "spz", "ply"])
def test_draws_what_the_rasteriser_draws(site: tuple[Firefox, str, dict[str, Any]], suffix: str) -> None:
    firefox, _, files = site
    scene, stream = moving_sample(1500, 4, changing="shape"), io.BytesIO()
    write_stream(stream, scene)
    frame = 2 if suffix == "a4d" else 0
    data = stream.getvalue() if suffix == "a4d" else encode_splats(scene.gaussians, suffix)
    gaussians = scene.at(float(scene.taus[2])) if frame else decode_splats(data, f"x.{suffix}")
    files[f"x.{suffix}"] = data
    camera = scene_cameras(Scene4D(gaussians, front=scene.front), 35.0, 10.0, SIZE)
    pose, K = camera.world_to_camera.reshape(16), camera.K.reshape(3, 3)
    lens = {k: float(K[i]) for k, i in {"fx": (0, 0), "fy": (1, 1), "cx": (0, 2), "cy": (1, 2)}.items()}
    found = firefox.evaluate(SHOOT, f"/data/x.{suffix}", {"worldToCamera": pose.tolist(), **lens}, frame, SIZE)
    theirs = np.frombuffer(base64.b64decode(found), np.uint8).reshape(SIZE, SIZE, 4) / 255
    assert np.square(drawn(gaussians, camera) - theirs).mean() < 1e-4  # 40 dB


def test_an_exported_page_plays_from_disk(site: tuple[Firefox, str, dict[str, Any]], tmp_path: Path) -> None:
    firefox = site[0]
    film = torch.rand(5, 24, 32, 3, generator=torch.Generator().manual_seed(0))
    write_html(tmp_path / "clip.html", moving_sample(600, 5), film=film)
    firefox.ask("WebDriver:Navigate", url=(tmp_path / "clip.html").as_uri())
    wait = "while (!({})) await new Promise((done) => setTimeout(done, 50));"
    firefox.evaluate(wait.format("window.player?.info?.ready === 5 && player.playing && player.stats?.drawn > 2"))
    assert firefox.evaluate("return player.element.shadowRoot.querySelector('.note').hidden;") is True
    assert firefox.evaluate("return player.element.shadowRoot.querySelector('.film').hidden;") is False
    shown = firefox.evaluate("player.seek(0.4); return [player.info.time, player.playing];")
    assert shown == [0.4, False]
