"""The player's renderer, stream reader and camera in a headless Chromium, against our own rasteriser."""

from __future__ import annotations

import base64
import io
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from anchor4d.bench.moving import moving_sample
from anchor4d.bench.player import chromium, serve
from anchor4d.core.cameras import Cameras, from_camera_info, intrinsics, orbit, orbit_poses, to_camera_info
from anchor4d.core.deformation.frames import FrameField, blend
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.io.stream import read_stream, write_stream
from anchor4d.core.render import rasterize
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.views import scene_cameras

SIZE = 160

#: In the page: load(name) plays a stream into a fresh renderer, shoot(renderer, shot) gives its sorted picture.
HELPERS = """async () => {
  const [{ openStream }, { Renderer }, camera, { Sorter }] = await Promise.all(
    ["stream", "renderer", "camera", "sort"].map((name) => import(`/player/${name}.mjs`)));
  window.told = [];
  window.open_ = (source, renderer, slot = 0, options) => new Promise((resolve) => openStream(source, {
    header: (clip) => { window.clip = clip; renderer?.setClip(slot, clip); told.push("header"); },
    frame: (index) => { renderer?.frameArrived(slot, index); told.push(index); },
    picture: (index, picture) => told.push([index, picture.width, picture.height]),
    done: () => { told.push("done"); resolve("done"); },
    error: (error) => { told.push(error.message); resolve(error.message); },
  }, options).catch(() => {}));
  window.made = (size, on) => {
    const renderer = new Renderer(document.body.appendChild(document.createElement("canvas")), on);
    renderer.canvas = document.body.lastChild;
    renderer.resize(size, size);
    return renderer;
  };
  window.load = async (names, size) => {
    document.body.replaceChildren();
    window.renderer?.dispose();
    window.told = [];
    window.renderer = made(size, { onLost: () => told.push("lost"), onRestored: () => told.push("restored") });
    for (const [slot, name] of names.entries()) await open_(`/data/${name}`, renderer, slot);
  };
  window.text = ({ data }) => {
    let text = "";
    for (let i = 0; i < data.length; i += 32768) text += String.fromCharCode(...data.subarray(i, i + 32768));
    return btoa(text);
  };
  window.shoot = async (shot, from = renderer) => await from.drawSorted({ time: [0, 0], ...shot }) ? text(from.pixels()) : null;
  Object.assign(window, { openStream, Renderer, Sorter, camera });
}"""


@dataclass
class Player:
    """The page with its helpers, the server's files, and what the page complained of."""

    page: Any
    files: dict[str, Any]
    complaints: list[str]

    def add(self, name: str, scene: Scene4D, **options: Any) -> dict[str, Any]:
        file = io.BytesIO()
        header = write_stream(file, scene, **options)
        self.files[name] = file.getvalue()
        return header

    def load(self, *names: str, size: int = SIZE) -> None:
        self.page.evaluate("([names, size]) => load(names, size)", [list(names), size])

    def shoot(self, camera: Any, time: Any = 0.0, size: int = SIZE, **options: Any) -> np.ndarray:  # (H, W, 4) premultiplied
        times = time if isinstance(time, list) else [time, 0]
        shot = {"camera": shown(camera), "time": times, **options}
        return self.picture("shot => shoot(shot)", shot, size)

    def picture(self, script: str, argument: Any = None, size: int = SIZE) -> np.ndarray:
        return np.frombuffer(base64.b64decode(self.page.evaluate(script, argument)), np.uint8).reshape(size, size, 4) / 255


@pytest.fixture(scope="module")
def browser() -> Iterator[Player]:
    files: dict[str, Any] = {}
    complaints: list[str] = []
    try:
        with chromium() as found, serve(files) as url:
            page = found.new_page()
            # The driver remarks that reading pixels waits: so it should.
            page.on("console", lambda m: None if "ReadPixels" in m.text else complaints.append(m.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(url)
            page.evaluate(HELPERS)
            yield Player(page, files, complaints)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def player(browser: Player) -> Iterator[Player]:
    browser.complaints.clear()
    yield browser
    assert not browser.complaints


@pytest.fixture(scope="module")
def scene() -> Scene4D:
    return moving_sample(3000, 8, changing="shape")


def of_version_1(data: bytes) -> bytes:
    """A play stream as version 1 has it: its pictures behind its frames."""
    length = int.from_bytes(data[8:12], "little")
    header, body = json.loads(data[12 : 12 + length]), data[12 + length :]
    blocks = [body[start : start + size] for start, size in (header["statics"], *header["blocks"], *header["pictures"])]
    ends = [0, *itertools.accumulate(map(len, blocks))]
    places = [[start, len(block)] for start, block in zip(ends, blocks)]
    frames = 1 + header["frames"]
    header |= {"version": 1, "statics": places[0], "blocks": places[1:frames], "pictures": places[frames:]}
    text = json.dumps(header).encode()
    return data[:7] + b"\x01" + len(text).to_bytes(4, "little") + text + b"".join(blocks)


def shown(camera: Any) -> dict[str, Any]:
    """A camera as the renderer takes it: an orbit camera as it is, one of ours as a view."""
    if isinstance(camera, dict):
        return camera
    pose, K = camera.world_to_camera.reshape(16), camera.K.reshape(3, 3)
    return dict(
        worldToCamera=pose.tolist(), **{k: float(K[i]) for k, i in dict(fx=(0, 0), fy=(1, 1), cx=(0, 2), cy=(1, 2)).items()}
    )


def drawn(gaussians: Gaussians, camera: Cameras) -> np.ndarray:  # (H, W, 4) premultiplied
    with torch.no_grad():
        render = rasterize(gaussians, camera.reshape(1))
    return torch.cat([render.color[0].clamp(0, 1), render.alpha[0][..., None]], -1).numpy()


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Inside the object's box, over white and of the alpha, the lower."""
    rows, columns = np.nonzero(ours[..., 3] > 0.01)
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    a, b = ours[box], theirs[box]
    parts = [(a[..., :3] + 1 - a[..., 3:], b[..., :3] + 1 - b[..., 3:]), (a[..., 3], b[..., 3])]
    return min(-10 * float(np.log10(np.square(x - y).mean() + 1e-12)) for x, y in parts)


def test_draws_what_the_rasteriser_draws(player: Player, scene: Scene4D):
    player.add("shape.a4d", scene)
    player.load("shape.a4d")
    cameras = scene_cameras(scene, [0.0, 70.0, 160.0, 250.0], 15.0, SIZE)
    for time in (0, 3, 6):
        gaussians = scene.at(float(scene.taus[time]))
        for view in range(4):
            ours, theirs = drawn(gaussians, cameras[view]), player.shoot(cameras[view], time)
            assert psnr(ours, theirs) >= 46, (time, view)
    assert player.page.evaluate("() => renderer.stats.halfFloat && !renderer.stats.localSort")


@pytest.mark.parametrize("changing", ["motion", "color"])
def test_draws_every_layout(player: Player, changing: str):
    scene = moving_sample(2500, 4, changing=changing)  # more than one row of the textures
    player.add("layout.a4d", scene)
    player.load("layout.a4d")
    camera = scene_cameras(scene, 35.0, 10.0, SIZE)
    assert psnr(drawn(scene.at(float(scene.taus[2])), camera), player.shoot(camera, 2)) >= 46


def shiny(scene: Scene4D, degree: int) -> Scene4D:
    """The scene with colours that depend on the view, the constant part in places below 0."""
    generator = torch.Generator().manual_seed(5)
    rest = 0.2 * torch.randn(len(scene.gaussians), (degree + 1) ** 2 - 1, 3, generator=generator)
    sh = torch.cat([scene.gaussians.sh - 0.2, rest], 1)
    return replace(scene, gaussians=replace(scene.gaussians, sh=sh))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_colours_depend_on_the_view(player: Player, degree: int):
    scene = shiny(moving_sample(2500, 4), degree)
    header = player.add("shiny.a4d", scene)
    assert header["harmonics"]["coefficients"] == (degree + 1) ** 2 - 1
    player.load("shiny.a4d")
    cameras = scene_cameras(scene, [0.0, 100.0, 220.0], 20.0, SIZE)
    plain = replace(scene.at(float(scene.taus[2])), sh=scene.gaussians.sh[:, :1])
    for view in range(3):
        ours, theirs = drawn(scene.at(float(scene.taus[2])), cameras[view]), player.shoot(cameras[view], 2)
        assert psnr(ours, theirs) >= 46, view
        assert psnr(drawn(plain, cameras[view]), theirs) < 35, view
    player.page.evaluate("renderer.setClip(0, null)")


def test_draws_close_ups_and_odd_gaussians(player: Player):
    """Needles, flat and wide ones across the picture's edge and behind the camera, colours beyond 1: where semantics part."""
    generator = torch.Generator().manual_seed(3)
    count = 400
    gaussians = Gaussians(
        means=torch.rand(count, 3, generator=generator) * 2 - 1,
        quats=torch.randn(count, 4, generator=generator),
        log_scales=torch.rand(count, 3, generator=generator) * 4 - 6,
        opacity_logits=torch.randn(count, generator=generator) * 3,
        sh=torch.randn(count, 1, 3, generator=generator) * 1.5,
    )
    player.add("odd.a4d", Scene4D(gaussians))
    player.load("odd.a4d")
    for distance in (0.3, 0.9, 3.0):
        camera = orbit(20.0, 10.0, distance, 60.0, SIZE, SIZE, cx=60.0, cy=95.0)
        assert psnr(drawn(gaussians, camera), player.shoot(camera)) >= 40, distance


def test_time_between_frames_is_the_mean_pose(player: Player, scene: Scene4D):
    player.add("shape.a4d", scene)
    player.load("shape.a4d")
    camera = scene_cameras(scene, 30.0, 10.0, SIZE)
    poses = scene.at(scene.taus)
    for first, second, share in ((2, 3, 0.5), (5, 6, 0.25), (7, 0, 0.5)):  # the last of a loop goes on to the first
        a, b = (poses.map(lambda t, i=i: t[i : i + 1]) for i in (first, second))
        mean = blend(a, b, torch.tensor([share])).map(lambda t: t[0])
        logits = torch.lerp(a.opacities, b.opacities, share).logit()[0]  # opacities themselves are mixed, not their logits
        ours, theirs = drawn(replace(mean, opacity_logits=logits), camera), player.shoot(camera, first + share)
        assert psnr(ours, theirs) >= 40, (first, share)
    assert np.array_equal(player.shoot(camera, 8 + 2), player.shoot(camera, 2))

    held = FrameField.of([scene.gaussians, scene.at(0.5)], interpolation="hold")
    player.add("held.a4d", Scene4D(scene.gaussians, held, 2))
    player.load("held.a4d")
    assert np.array_equal(player.shoot(camera, 0.9), player.shoot(camera, 0))
    assert not np.array_equal(player.shoot(camera, 1), player.shoot(camera, 0))


def test_background_and_transparency(player: Player, scene: Scene4D):
    player.add("shape.a4d", scene)
    player.load("shape.a4d")
    camera = scene_cameras(scene, 0.0, 0.0, SIZE)
    clear = player.shoot(camera)
    over = player.shoot(camera, background=[0.2, 0.4, 0.6, 1.0])
    half = player.shoot(camera, background=[1.0, 1.0, 1.0, 0.5])
    assert (over[..., 3] == 1).all()
    expected = clear[..., :3] + (1 - clear[..., 3:]) * [0.2, 0.4, 0.6]
    assert np.abs(expected.clip(0, 1) - over[..., :3]).max() < 2.1 / 255
    assert np.abs((clear + (1 - clear[..., 3:]) * 0.5).clip(0, 1) - half).max() < 2.1 / 255
    # As the page's compositor sees the canvas: straight colours of what is premultiplied.
    straight = player.picture(
        """async (shot) => {
          await renderer.drawSorted({ time: [0, 0], ...shot });
          const flat = new OffscreenCanvas(renderer.canvas.width, renderer.canvas.height).getContext("2d");
          flat.drawImage(renderer.canvas, 0, 0);
          return text(flat.getImageData(0, 0, renderer.canvas.width, renderer.canvas.height));
        }""",
        {"camera": shown(camera)},
    )
    assert np.abs(straight[..., 3] - clear[..., 3]).max() < 1.1 / 255
    seen = np.minimum(clear[..., :3], clear[..., 3:])  # no colour is brighter than white
    assert np.abs(straight[..., :3] * straight[..., 3:] - seen).max() < 3.1 / 255


def test_orders_are_right_and_never_older_than_two_frames(player: Player, scene: Scene4D):
    player.add("shape.a4d", scene)
    player.load("shape.a4d")
    pose = np.frombuffer(
        base64.b64decode(player.page.evaluate("() => text({ data: new Uint8Array(clip.poses[5].buffer) })")), "<u2"
    )
    order, axis = player.page.evaluate("""async () => {
      const { worldToCamera: m } = camera.view({ target: [0, 0, 0], distance: 2, azimuth: 77, elevation: -30, fovy: 40 }, 1, 1);
      const order = await new Promise((resolve) => {
        const sorter = new Sorter((slot, order) => resolve([slot, sorter.local, ...order]));
        sorter.setClip(1, clip);
        sorter.request(1, { first: 5, next: 6, blend: 0, x: m[8], y: m[9], z: m[10] });
      });
      return [order, [...m.slice(8, 11)]];
    }""")
    assert order[:2] == [1, False]
    header = player.page.evaluate("() => [clip.low, clip.step]")
    depth = (header[0] + pose.reshape(-1, 4)[:, :3] * np.array(header[1])) @ np.array(axis)
    assert sorted(order[2:]) == list(range(3000))
    assert (np.diff(depth[order[2:]]) < 2 * 1.8 / 65536).all()  # farthest first, to the width of a bin

    age, drawn_frames, exact = player.page.evaluate("""async () => {
      const shot = { camera: { target: [0, 0, 0], distance: 2, azimuth: 0, elevation: 0, fovy: 40 }, time: [0, 0] };
      const begin = renderer.stats.drawn;
      while (renderer.stats.drawn < begin + 40) {
        shot.camera.azimuth += 3;
        shot.time[0] += 0.3;
        renderer.draw(shot);
        renderer.draw(shot);  // more than the worker can follow
        await new Promise(requestAnimationFrame);
      }
      await renderer.drawSorted(shot);
      return [renderer.stats.maxOrderAge, renderer.stats.drawn - begin, renderer.settled];
    }""")
    assert 1 <= age <= 2
    assert drawn_frames >= 40
    assert exact


def test_page_without_workers_sorts_itself(player: Player, scene: Scene4D):
    player.add("shape.a4d", scene)
    player.load("shape.a4d")
    camera = scene_cameras(scene, 30.0, 0.0, SIZE)
    expected = player.shoot(camera, 1)
    broken = {
        "refused": "window.Worker = class { constructor() { throw new DOMException('no', 'SecurityError'); } }",
        "dies": "window.Worker = class { postMessage() { setTimeout(() => this.onerror?.()); } terminate() {} }",
    }
    player.page.evaluate("() => { window.Worker_ = Worker; }")
    try:
        for name, script in broken.items():
            player.page.evaluate(f"() => {{ {script} }}")
            player.load("shape.a4d")
            assert np.array_equal(player.shoot(camera, 1), expected), name
    finally:
        player.page.evaluate("() => { window.Worker = Worker_; }")


def test_poorer_graphics(player: Player, scene: Scene4D):
    """Without half floats, with few layers, and with too few."""
    player.add("shape.a4d", scene)
    camera = scene_cameras(scene, 30.0, 0.0, SIZE)
    player.page.evaluate("""() => {
      const { getExtension, getParameter } = WebGL2RenderingContext.prototype;
      const undo = () => Object.assign(WebGL2RenderingContext.prototype, { getExtension, getParameter });
      window.poor = { undo, MAX_TEXTURE_SIZE: 8192, MAX_ARRAY_TEXTURE_LAYERS: 3 };
      Object.assign(WebGL2RenderingContext.prototype, {
        getExtension(name) { return name.startsWith("EXT_color") ? null : getExtension.call(this, name); },
        getParameter(name) {
          const limit = Object.keys(poor).find((key) => this[key] === name);
          return limit ? poor[limit] : getParameter.call(this, name);
        },
      });
    }""")
    try:
        player.load("shape.a4d")
        for time in (0, 7):
            assert psnr(drawn(scene.at(float(scene.taus[time])), camera), player.shoot(camera, time)) >= 38
        assert player.page.evaluate("() => renderer.stats.halfFloat") is False
        player.page.evaluate("() => Object.assign(poor, { MAX_ARRAY_TEXTURE_LAYERS: 1, MAX_TEXTURE_SIZE: 10 })")
        player.load("shape.a4d")
        tried = "shot => { try { renderer.draw(shot); } catch (error) { return error.message; } }"
        message = player.page.evaluate(tried, {"camera": shown(camera), "time": [0, 0]})
        assert "3000 Gaussians x 8 frames do not fit" in message
        assert player.page.evaluate(tried, {"camera": shown(camera), "time": [0, 0]}) is None  # said once
    finally:
        player.page.evaluate("() => poor.undo()")


def test_context_lost_and_restored(player: Player, scene: Scene4D):
    player.add("shape.a4d", scene)
    player.load("shape.a4d")
    camera = scene_cameras(scene, 45.0, 0.0, SIZE)
    before = player.shoot(camera, 3)
    refused = player.page.evaluate(
        """async (shot) => {
          const gl = renderer.canvas.getContext("webgl2"), context = gl.getExtension("WEBGL_lose_context");
          told.length = 0;
          context.loseContext();
          const at_once = renderer.draw(shot);
          while (!told.includes("lost")) await new Promise(requestAnimationFrame);
          const later = [renderer.draw(shot), await renderer.drawSorted(shot), renderer.lost];
          later.push(renderer.pixels(), renderer.pick(50, 50));
          context.restoreContext();
          while (!told.includes("restored")) await new Promise(requestAnimationFrame);
          return [at_once, ...later];
        }""",
        {"camera": shown(camera), "time": [3, 0]},
    )
    assert refused == [False, False, False, True, None, None]
    assert np.array_equal(player.shoot(camera, 3), before)


def test_resized_to_nothing_and_back(player: Player, scene: Scene4D):
    player.add("shape.a4d", scene)
    player.load("shape.a4d")
    camera = scene_cameras(scene, 45.0, 0.0, SIZE)
    before = player.shoot(camera, 3)
    found = player.page.evaluate(
        """async (shot) => {
          const found = [];
          for (const [width, height] of [[0, 0], [0, 50], [1, 1]]) {
            renderer.resize(width, height);
            found.push(renderer.draw(shot), await renderer.drawSorted(shot));
          }
          renderer.resize(160, 160);
          return found;
        }""",
        {"camera": shown(camera), "time": [3, 0]},
    )
    assert found[:4] == [False] * 4
    assert found[5] is True
    assert np.array_equal(player.shoot(camera, 3), before)


def test_dispose_frees_the_context(player: Player, scene: Scene4D):
    player.add("shape.a4d", scene)
    player.load("shape.a4d")
    player.shoot(scene_cameras(scene, 45.0, 0.0, SIZE))
    # Browsers drop the oldest context, with a warning, beyond about 16.
    found = player.page.evaluate("""async () => {
      const clip_ = clip, view = { target: [0, 0, 0], distance: 2, azimuth: 0, elevation: 0, fovy: 40 };
      const shot = { camera: view, time: [0, 0] };
      for (let i = 0; i < 18; i++) {
        const other = made(16);
        other.setClip(0, clip_);
        if (!await other.drawSorted(shot)) return "nothing drawn";
        const gl = other.canvas.getContext("webgl2");
        other.dispose();
        other.dispose();
        if (!gl.isContextLost()) return "kept";
        if (other.draw(shot) || await other.drawSorted(shot)) return "draws";
        other.setClip(0, null);
        other.canvas.remove();
      }
      return renderer.canvas.getContext("webgl2").isContextLost();
    }""")
    assert found is False
    lazy = (
        "() => { const other = made(16); const lost = other.draw({ camera: {}, time: [0, 0] }); other.dispose(); return lost; }"
    )
    assert player.page.evaluate(lazy) is False


def test_first_frame_shows_before_the_rest_has_arrived(player: Player, scene: Scene4D):
    header = player.add("shape.a4d", scene)
    data, gate = player.files["shape.a4d"], threading.Event()
    start = len(data) - header["bytes"]
    second = start + header["blocks"][1][0]

    def slowly() -> Iterator[bytes]:
        for begin in range(0, second, 5000):  # of any length, cutting through everything
            yield data[begin : min(begin + 5000, second)]
        gate.wait(20)
        yield data[second:]

    player.files["slow.a4d"] = slowly
    camera = scene_cameras(scene, 0.0, 0.0, SIZE)
    player.page.evaluate("async (size) => { await load([], size); window.all = open_('/data/slow.a4d', renderer); }", SIZE)
    player.page.wait_for_function("told.includes(0)")
    try:
        assert psnr(drawn(scene.at(0.0), camera), player.shoot(camera, 5.0)) >= 46  # what is there stands in
        assert player.page.evaluate("() => [clip.ready, clip.frames, told]") == [1, 8, ["header", 0]]
    finally:
        gate.set()
    assert player.page.evaluate("() => all") == "done"
    assert psnr(drawn(scene.at(float(scene.taus[5])), camera), player.shoot(camera, 5.0)) >= 46
    assert player.page.evaluate("() => told") == ["header", *range(8), "done"]


def test_reads_what_python_reads(player: Player, scene: Scene4D):
    film = torch.rand(8, 6, 10, 3, generator=torch.Generator().manual_seed(0))
    player.add("film.a4d", scene, film=film)
    player.files["old.a4d"] = of_version_1(player.files["film.a4d"])
    for name in ("film.a4d", "old.a4d"):
        player.load(name)
        told = player.page.evaluate("() => told")
        assert (told[0], told[-1]) == ("header", "done")
        assert [event for event in told if isinstance(event, list)] == [[i, 10, 6] for i in range(8)]
        assert [event for event in told if isinstance(event, int)] == list(range(8))
    stream = read_stream(io.BytesIO(player.files["film.a4d"]))
    old = read_stream(io.BytesIO(player.files["old.a4d"]))
    assert old.pictures == stream.pictures and torch.equal(old.frames[7].means, stream.frames[7].means)
    pose = player.page.evaluate("() => text({ data: new Uint8Array(clip.poses[7].buffer) })")
    box = stream.header["box"]
    low, high = np.array(box["low"]), np.array(box["high"])
    position = low + np.frombuffer(base64.b64decode(pose), "<u2").reshape(-1, 4)[:, :3] * (high - low) / 65535
    assert np.abs(position - stream.frames[7].means.numpy()).max() < 1e-6


def test_the_video_comes_before_the_gaussians(player: Player, scene: Scene4D):
    film = torch.rand(8, 6, 10, 3, generator=torch.Generator().manual_seed(0))
    header = player.add("film.a4d", scene, film=film)
    assert header["pictures"][0][0] == 0 and header["statics"][0] == sum(length for _, length in header["pictures"])
    data, gate = player.files["film.a4d"], threading.Event()

    def slowly() -> Iterator[bytes]:
        yield data[: len(data) - header["bytes"] + header["statics"][0]]
        gate.wait(20)
        yield data[len(data) - header["bytes"] + header["statics"][0] :]

    player.files["slow.a4d"] = slowly
    player.page.evaluate("async (size) => { await load([], size); window.all = open_('/data/slow.a4d', renderer); }", SIZE)
    try:
        player.page.wait_for_function("told.filter(Array.isArray).length === 8")
        assert player.page.evaluate("() => [clip.ready, told]") == [0, ["header", *([i, 10, 6] for i in range(8))]]
    finally:
        gate.set()
    assert player.page.evaluate("() => all") == "done"


def test_bad_streams_tell_so(player: Player, scene: Scene4D):
    header = player.add("shape.a4d", scene)
    data = player.files["shape.a4d"]
    place = len(data) - header["bytes"] + header["blocks"][3][0]
    flipped = bytearray(data)
    flipped[place + 50] ^= 255
    cases = {
        "foreign": (b"glTF" * 100, "not a play stream", 0),
        "newer": (data[:7] + b"\x05" + data[8:], "version 5", 0),
        "garbled": (data[:12] + b"[" + data[13:], "header cannot be read", 0),
        "empty": (b"", "breaks off", 0),
        "short": (data[: place + 10], "breaks off", 3),
        "flipped": (bytes(flipped), "damaged", 3),
    }
    for name, (content, message, ready) in cases.items():
        player.files[name] = content
        player.page.evaluate("() => { told.length = 0; }")
        assert message in player.page.evaluate("name => open_(`/data/${name}`)", name), name
        told = player.page.evaluate("() => told")
        assert told[-1] != "done" and sum(isinstance(event, int) for event in told) == ready, name
    assert "404" in player.page.evaluate("() => open_('/data/nothing')")
    assert any("404" in player.complaints.pop() for _ in list(player.complaints))

    told = player.page.evaluate("""async () => {
      told.length = 0;
      const stop = new AbortController();
      open_("/data/shape.a4d", null, 0, { signal: stop.signal });
      while (!told.includes(1)) await new Promise((resolve) => setTimeout(resolve));
      stop.abort();
      await new Promise((resolve) => setTimeout(resolve, 100));
      return told;
    }""")
    assert told[:3] == ["header", 0, 1]
    assert not any(isinstance(event, str) for event in told[1:])


def test_every_kind_of_source(player: Player, scene: Scene4D):
    player.add("shape.a4d", scene)
    player.load("shape.a4d")
    answers = player.page.evaluate("""async () => {
      const blob = await (await fetch("/data/shape.a4d")).blob(), bytes = new Uint8Array(await blob.arrayBuffer());
      async function* pieces() { for (let i = 0; i < bytes.length; i += 70001) yield bytes.subarray(i, i + 70001); }
      const url = new URL("/data/shape.a4d", location);
      return Promise.all([blob, blob.stream(), bytes, bytes.buffer, pieces(), url].map((source) => open_(source)));
    }""")
    assert answers == ["done"] * 6


def test_split_divides_two_clips(player: Player, scene: Scene4D):
    player.add("left.a4d", scene)
    player.add("right.a4d", moving_sample(1000, 4))
    camera = scene_cameras(scene, 0.0, 0.0, SIZE)
    player.load("right.a4d")
    right = player.shoot(camera, 1)
    player.load("left.a4d", "right.a4d")
    left = player.shoot(camera, [2, 1])
    both = player.shoot(camera, [2, 1], split=0.4)
    edge = round(0.4 * SIZE)
    assert np.array_equal(both[:, :edge], left[:, :edge])
    assert np.array_equal(both[:, edge:], right[:, edge:])
    assert np.array_equal(player.shoot(camera, [2, 1], split=0.0), right)
    assert np.array_equal(player.shoot(camera, [2, 1], split=1.0), left)
    player.page.evaluate("() => renderer.setClip(1, null)")
    assert not player.shoot(camera, [2, 1], split=0.0).any()


def test_thumbnails_show_other_moments(player: Player, scene: Scene4D):
    player.add("shape.a4d", scene)
    player.load("shape.a4d")
    camera = scene_cameras(scene, 25.0, 20.0, SIZE)
    before = player.shoot(camera, 2)
    script = """async ([shot, width, height]) => {
      const begin = renderer.stats.drawn, orders = renderer.stats.orders;
      const found = await renderer.thumbnail(shot, width, height);
      if (renderer.stats.drawn !== begin || renderer.stats.orders !== orders) return null;
      const flat = new Uint8ClampedArray(found.data);
      for (let i = 0; i < flat.length; i += 4) for (let k = 0; k < 3; k++) flat[i + k] = flat[i + k] * flat[i + 3] / 255;
      return text({ data: flat });
    }"""
    small = scene_cameras(scene, 25.0, 20.0, 64)
    for time in (2, 5, 7):
        shot = {"camera": shown(small), "time": [time, 0]}
        ours = drawn(scene.at(float(scene.taus[time])), small)
        theirs = player.picture(script, [shot, 64, 64], 64)
        others = [drawn(scene.at(float(scene.taus[other])), small) for other in (0, 3, 6)]
        assert psnr(ours, theirs) > 42 and max(psnr(other, theirs) for other in others) < 30, time
    assert player.page.evaluate("at => renderer.pick(...at)", [SIZE / 2, SIZE / 2]) is not None
    assert np.array_equal(player.shoot(camera, 2), before)
    gone = "async () => { renderer.setClip(0, null); return renderer.thumbnail(null, 8, 8); }"
    assert player.page.evaluate(gone) is None


def test_pick_finds_the_surface(player: Player, scene: Scene4D):
    player.add("shape.a4d", scene)
    player.load("shape.a4d")
    camera = scene_cameras(scene, 25.0, 20.0, SIZE)
    before = player.shoot(camera, 2)
    with torch.no_grad():
        render = rasterize(scene.at(float(scene.taus[2])), camera.reshape(1))
    K, pose = camera.K.reshape(3, 3), camera.world_to_camera.reshape(4, 4)
    solid = (render.alpha[0] > 0.99).nonzero()
    for row, column in solid[:: len(solid) // 12].tolist():
        z = render.expected_depth[0, row, column]
        seen = torch.stack([(column + 0.5 - K[0, 2]) / K[0, 0] * z, (row + 0.5 - K[1, 2]) / K[1, 1] * z, z])
        expected = pose[:3, :3].T @ (seen - pose[:3, 3])
        found = player.page.evaluate("at => renderer.pick(...at)", [column + 0.5, row + 0.5])
        assert found == pytest.approx(expected.tolist(), abs=0.01)
    assert player.page.evaluate("() => renderer.pick(1, 1)") is None
    assert player.page.evaluate("() => renderer.pick(-5, 1000)") is None
    assert np.array_equal(player.shoot(camera, 2), before)


def test_points_and_ellipsoids(player: Player, scene: Scene4D):
    player.add("shape.a4d", scene)
    ball = Gaussians(
        means=torch.tensor([[0.1, 0.05, 0.0], [0.1, 0.05, -0.5]]),
        quats=torch.tensor([[0.9, 0.1, 0.3, 0.2]] * 2),
        log_scales=torch.full((2, 3), 0.1).log(),
        opacity_logits=torch.full((2,), 4.0),
        sh=torch.tensor([[[1.0, 0.0, -1.0]], [[-1.0, 1.0, 1.0]]]),
    )
    player.add("ball.a4d", Scene4D(ball))
    camera = orbit(0.0, 0.0, 2.0, 40.0, SIZE, SIZE)
    player.load("ball.a4d")
    shot = player.shoot(camera, mode="ellipsoids")
    focal = SIZE / 2 / np.tan(np.radians(20))
    rows, columns = np.nonzero(shot[..., 3])
    # The outline of a sphere of radius r at distance d is a cone of half angle asin(r / d); nearly on the axis here.
    radius = focal * np.tan(np.arcsin(0.15 / 2.0))
    assert len(rows) == pytest.approx(np.pi * radius**2, rel=0.03)
    assert (columns + 0.5).mean() == pytest.approx(SIZE / 2 + focal * 0.05, abs=0.3)
    assert (SIZE - rows - 0.5).mean() == pytest.approx(SIZE / 2 + focal * 0.025, abs=0.3)
    middle = shot[int(rows.mean()), int(columns.mean())]
    assert middle[:3] == pytest.approx(
        ball.colors[0].clamp(0, 1).numpy(), abs=0.02
    )  # the near one hides the other, lit head-on
    facing = np.sqrt(1 - ((rows.mean() - rows.min() - 1) / radius) ** 2)  # darker where it turns away
    assert shot[rows.min() + 1, int(columns.mean()), 0] == pytest.approx((0.35 + 0.65 * facing) * middle[0], abs=0.05)

    player.load("shape.a4d")
    splats = player.shoot(camera, 1)[..., 3] > 0.5
    for mode, overlap in (("ellipsoids", 0.85), ("points", 0.5)):
        alpha = player.shoot(camera, 1, mode=mode)[..., 3]
        assert set(np.unique(alpha)) == {0.0, 1.0}
        assert (splats & (alpha > 0)).sum() / (splats | (alpha > 0)).sum() > overlap, mode


def test_camera_agrees_with_ours(player: Player):
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        azimuth, elevation, roll, fovy = (
            (torch.rand(4, generator=generator) * 2 - 1) * torch.tensor([180, 89, 170, 25])
        ).tolist()
        target = (torch.rand(3, generator=generator) - 0.5).tolist()
        camera = dict(target=target, distance=1.7, azimuth=azimuth, elevation=elevation, fovy=40 + fovy)
        seen = player.page.evaluate(
            "c => { const v = camera.view(c, 300, 200); return [[...v.worldToCamera], v.fx, v.fy, v.cx, v.cy]; }", camera
        )
        ours = Cameras(
            orbit_poses(azimuth, elevation, 1.7, target)[None], intrinsics(torch.tensor([40 + fovy]), 300, 200), 300, 200
        )
        assert seen[0] == pytest.approx(ours.world_to_camera.flatten().tolist(), abs=1e-5)
        assert seen[1:] == pytest.approx([float(ours.K[0, i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))], rel=1e-5)

        info = player.page.evaluate("c => camera.toCameraInfo(c, 1.5)", {**camera, "roll": roll})
        rolled = from_camera_info(info, 300, 200)
        seen = player.page.evaluate("c => [...camera.view(c, 300, 200).worldToCamera]", {**camera, "roll": roll})
        assert seen == pytest.approx(rolled.world_to_camera.flatten().tolist(), abs=1e-5)
        back = player.page.evaluate("info => camera.fromCameraInfo(info)", info)
        for key, value in {**camera, "roll": roll}.items():
            assert back[key] == pytest.approx(value, abs=1e-3), key
        # A camera of ours, whose target is the point nearest to the origin; and one without a quaternion.
        other = player.page.evaluate(
            "info => [...camera.view(camera.fromCameraInfo(info), 300, 200).worldToCamera]", to_camera_info(ours)
        )
        assert other == pytest.approx(ours.world_to_camera.flatten().tolist(), abs=1e-4)
        plain = {k: v for k, v in to_camera_info(ours).items() if k != "quaternion"} | {"zoom": 2.0}
        other = player.page.evaluate(
            "info => { const v = camera.view(camera.fromCameraInfo(info), 300, 200); return [...v.worldToCamera, v.fy]; }",
            plain,
        )
        expected = from_camera_info(plain, 300, 200)
        assert other[:16] == pytest.approx(expected.world_to_camera.flatten().tolist(), abs=1e-4)
        assert other[16] == pytest.approx(float(expected.K[0, 1, 1]), rel=1e-4)


def test_front_camera_keeps_the_framing(player: Player, scene: Scene4D):
    header = player.add("shape.a4d", scene)
    player.load("shape.a4d")
    camera = player.page.evaluate("header => camera.frontCamera(header)", header)
    assert psnr(drawn(scene.at(0.0), scene_cameras(scene, size=SIZE)), player.shoot(camera)) >= 46
