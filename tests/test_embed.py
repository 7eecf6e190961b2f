"""The player on pages of others, in a headless Chromium: a frame that is asked and heard, an element, a module, bookmarks."""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anchor4d
from anchor4d.bench.moving import moving_sample
from anchor4d.bench.player import chromium, serve
from anchor4d.core.cameras import Cameras
from anchor4d.core.files import InputError
from anchor4d.core.io.html import write_html
from anchor4d.core.io.splats import encode_splats, write_splat_sequence
from anchor4d.core.io.stream import write_stream
from anchor4d.core.render import rasterize

Site = tuple[Any, str, dict[str, Any]]
PLAYER = Path(__file__).parents[1] / "web" / "player"
#: On the page around a frame: ask(call, ...args), and heard, the events so far.
HOST = """() => {
  window.heard = [];
  window.asked = {};
  let last = 0;
  window.addEventListener("message", ({ source, data }) => {
    if (source !== frame.contentWindow || data?.anchor4d !== 1) return;
    if (data.event) heard.push([data.event, data.detail]);
    else asked[data.id]?.(data);
  });
  window.ask = (call, ...args) => new Promise((resolve) => {
    const id = ++last;
    asked[id] = ({ result, error }) => resolve(error === undefined ? result : { error });
    frame.contentWindow.postMessage({ anchor4d: 1, id, call, args }, "*");
  });
}"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A browser, a server of the player and of two clips, and the files that it has."""
    files: dict[str, Any] = {}
    for name, frames in (("a.a4d", 6), ("b.a4d", 4)):
        stream = io.BytesIO()
        write_stream(stream, moving_sample(400, frames))
        files[name] = stream.getvalue()
    try:
        with chromium() as browser, serve(files) as url:
            yield browser, url, files
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def page(site: Site) -> Iterator[Any]:
    browser, url, _ = site
    context = browser.new_context(viewport={"width": 480, "height": 360}, reduced_motion="no-preference")
    page, complaints = context.new_page(), []
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    yield page
    context.close()
    assert not complaints


def framed(page: Any, source: str) -> None:
    page.evaluate(HOST)
    page.evaluate(
        """(src) => {
          window.frame = Object.assign(document.createElement("iframe"), { src, width: 460, height: 320 });
          document.body.append(frame);
        }""",
        source,
    )


def test_a_frame_is_asked_and_heard(page: Any) -> None:
    framed(page, "/player/embed.html?src=/data/a.a4d#time=0.25&background=ffffff")
    page.wait_for_function("heard.some(([event]) => event === 'loaded')")
    state = page.evaluate("ask('state')")
    assert {k: state[k] for k in ("frames", "count", "playing", "ready", "time")} == {
        "frames": 6, "count": 400, "playing": False, "ready": 6, "time": 0.25,
    }  # fmt: skip
    assert page.evaluate("heard.find(([event]) => event === 'ready')[1].frames") == 6
    assert page.evaluate("ask('getView')")["background"] == "#ffffff"
    page.evaluate("heard.length = 0; ask('play')")
    page.wait_for_function("heard.filter(([event]) => event === 'time').length > 3")
    page.evaluate("ask('pause')")
    page.wait_for_function("heard.some(([event]) => event === 'pause')")
    page.evaluate("ask('seek', 0.5)")
    page.wait_for_function("heard.some(([event, detail]) => event === 'view' && detail.time === 0.5)")
    assert page.evaluate("ask('state')")["time"] == 0.5
    assert "no call eval, only play" in page.evaluate("ask('eval', '1')")["error"]
    assert "no call constructor" in page.evaluate("ask('constructor')")["error"]
    page.evaluate("heard.length = 0; ask('load', '/data/b.a4d')")
    page.wait_for_function("heard.some(([event, detail]) => event === 'ready' && detail.frames === 4)")
    page.evaluate("ask('load', '/data/gone.a4d')")
    page.wait_for_function("heard.some(([event, detail]) => event === 'error' && detail.message.includes('404'))")


def test_a_frame_answers_the_page_around_it_alone(page: Any) -> None:
    framed(page, "/player/embed.html?src=/data/a.a4d&paused")
    page.wait_for_function("heard.some(([event]) => event === 'loaded')")
    page.evaluate(
        """() => new Promise((done) => {
          const other = document.body.appendChild(document.createElement("iframe"));
          const call = `parent.frame.contentWindow.postMessage({ anchor4d: 1, id: 1, call: "play" }, "*")`;
          other.srcdoc = `<script>${call}</` + "script>";
          other.onload = () => setTimeout(done, 300);
        })"""
    )
    assert page.evaluate("ask('state')")["playing"] is False


def test_an_exported_page_is_asked_in_a_frame_too(site: Site, tmp_path: Path) -> None:
    browser, _, _ = site
    write_html(tmp_path / "clip.html", moving_sample(300, 5))
    (tmp_path / "around.html").write_text("<!doctype html><body></body>")
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((tmp_path / "around.html").as_uri())
    framed(page, "clip.html#time=0.75")
    page.wait_for_function("heard.some(([event]) => event === 'loaded')")
    assert page.evaluate("ask('state')")["time"] == 0.75
    context.close()


def test_an_element_plays_and_tells(page: Any) -> None:
    page.evaluate(
        """async () => {
          await import("/player/embed.mjs");
          window.heard = [];
          for (const name of ["ready", "loaded", "time", "pause"])
            document.body.addEventListener(name, ({ target, detail }) => heard.push([target.localName, name, detail]));
          document.body.innerHTML = '<anchor4d-player src="/data/a.a4d" background="#808080" style="height: 300px">';
          window.element = document.querySelector("anchor4d-player");
        }"""
    )
    page.wait_for_function("heard.some(([tag, name]) => tag === 'anchor4d-player' && name === 'loaded')")
    page.wait_for_function("element.player.playing && element.player.stats.drawn > 1")
    assert page.evaluate("element.view.background") == "#808080"
    assert page.evaluate("element.getBoundingClientRect().height") == 300
    page.evaluate("element.pause(); element.setAttribute('time', '0.5')")
    assert page.evaluate("element.player.info.time") == 0.5
    page.evaluate("heard.length = 0; element.setAttribute('src', '/data/b.a4d')")
    page.wait_for_function("heard.some(([, name, detail]) => name === 'ready' && detail.frames === 4)")
    page.evaluate("window.old = element.player; element.remove()")
    assert page.evaluate("element.player") is None
    page.evaluate("document.body.append(element)")
    page.wait_for_function("element.player && element.player !== old && element.player.info.ready === 4")


def test_a_module_fills_an_element(page: Any) -> None:
    page.evaluate(
        """async () => {
          const { mount } = await import("/player/embed.mjs");
          const place = document.body.appendChild(document.createElement("div"));
          place.style = "position: relative; height: 200px";
          window.loaded = new Promise((done) => {
            window.player = mount(place, { source: "/data/a.a4d", autoplay: false });
            player.addEventListener("loaded", done);
          });
        }"""
    )
    page.evaluate("loaded")
    assert page.evaluate("[player.info.frames, player.info.playing]") == [6, False]
    page.evaluate("player.dispose()")


def test_a_bookmark_brings_back_view_and_moment(site: Site) -> None:
    browser, url, _ = site
    context = browser.new_context(viewport={"width": 480, "height": 360})
    page = context.new_page()
    page.goto(f"{url}/player/embed.html?src=/data/a.a4d&paused")
    page.wait_for_function("window.player?.info.ready === 6")
    page.keyboard.press("2")  # from the left
    page.keyboard.press("b")
    page.evaluate("player.seek(0.4)")
    page.wait_for_function("location.hash.includes('time=0.4') && location.hash.includes('background=')")
    page.wait_for_timeout(600)
    address, view = page.evaluate("[location.href, player.getView()]")
    again = context.new_page()
    again.goto(address)
    again.wait_for_function("window.player?.info.ready === 6")
    found = again.evaluate("player.getView()")
    assert found["time"] == 0.4 and found["background"] == view["background"]
    for part in ("position", "target"):
        for axis in "xyz":
            assert math.isclose(found["camera"][part][axis], view["camera"][part][axis], abs_tol=1e-3)
    again.evaluate("location.hash = '#time=0.8'")
    again.wait_for_function("player.info.time === 0.8")
    context.close()


def test_what_an_address_says_is_checked(page: Any) -> None:
    read = """async (hash) => (await import("/player/bookmark.mjs")).fromBookmark(hash)"""
    assert page.evaluate(read, "#time=9&speed=x&mode=splats&film=false") == {"time": 1, "mode": "splats", "film": False}
    for camera in (
        "1,2,3",
        "0,0,2,0,0,2,0,0,0,1,40",
        "0,0,2,0,0,0,0,0,0,0,40",
        "a,0,2,0,0,0,0,0,0,1,40",
        "0,0,2,0,0,0,0,0,0,1,",
    ):
        assert page.evaluate(read, f"#camera={camera}") == {}
    assert page.evaluate(read, "#camera=0,0,2,0,0,0,0,0,0,1,40")["camera"]["fov"] == 40
    back = """async (view) => (await import("/player/bookmark.mjs")).toBookmark(view)"""
    assert page.evaluate(back, {"time": 0.5, "background": "#ffffff", "speed": 1}) == "time=0.5&background=ffffff"


def test_views_and_bookmarks_of_version_0_1_open(page: Any) -> None:
    """Their key of the border between two objects was ``wiper``."""
    read = """async (hash) => (await import("/player/bookmark.mjs")).fromBookmark(hash)"""
    assert page.evaluate(read, "#wiper=0.3") == page.evaluate(read, "#split=0.3") == {"split": 0.3}
    assert page.evaluate(read, "#wiper=0.3&split=0.6") == {"split": 0.6}
    shown = """async (view) => {
      const { fresh, take, viewOf } = await import("/player/view.mjs"), state = fresh();
      take(state, view);
      return viewOf(state, 0);
    }"""
    for view, split in (
        ({"wiper": 0.3}, 0.3),
        ({"split": 0.3}, 0.3),
        ({"wiper": 0.3, "split": 0.6}, 0.6),
        ({"wiper": "x"}, 0.5),
    ):
        found = page.evaluate(shown, view)
        assert found["split"] == split and "wiper" not in found


def test_the_package_holds_what_it_exports() -> None:
    package = json.loads((PLAYER / "package.json").read_text())
    assert package["version"] == anchor4d.__version__ and package["type"] == "module"
    for file in package["exports"].values():
        assert (PLAYER / file).is_file()
    imported = {name for file in PLAYER.glob("*.mjs") for name in _imports(file.read_text())}
    assert imported <= {file.name for file in PLAYER.glob("*.mjs")}


def _imports(text: str) -> list[str]:
    import re

    return re.findall(r'(?:from|import)\s*\(?"\./([\w.-]+)"', text)


def test_chosen_points_leave_trails_and_are_measured(page: Any) -> None:
    page.evaluate(
        """async () => {
          const { mount } = await import("/player/embed.mjs");
          const place = document.body.appendChild(document.createElement("div"));
          place.style = "position: relative; width: 400px; height: 400px";
          window.player = mount(place, { source: "/data/a.a4d", autoplay: false });
          await new Promise((done) => player.addEventListener("loaded", done));
          window.marks = place.shadowRoot.querySelector(".marks");
          window.canvas = () => place.shadowRoot.querySelector(".view canvas");
        }"""
    )
    page.wait_for_function("player.stats?.drawn > 0")
    page.evaluate("player.setView({ marks: [10, 200, -1, 'x'] }); player.seek(0.5)")
    page.wait_for_function("marks.querySelectorAll('circle').length === 2")
    assert page.evaluate("marks.querySelectorAll('.trail').length") == 2
    scene = moving_sample(400, 6)
    found = page.evaluate("player.measure()")
    at = scene.at(0.5).means
    for point in found["points"]:
        assert at[point["index"]].tolist() == pytest.approx(point["position"], abs=1e-3)
    assert found["distances"] == [pytest.approx(float((at[10] - at[200]).norm()), abs=1e-3)]
    assert page.evaluate("marks.querySelector('text').textContent") == f"{found['distances'][0]:.3g}".ljust(5, "0")
    assert page.evaluate("player.getView().marks") == [10, 200]
    # The circles stand where the rasteriser's camera sees the points.
    page.evaluate("player.setView({ marks: [] })")
    page.wait_for_function("!marks.firstChild")
    click = """() => {
      const box = canvas().getBoundingClientRect(), init = { bubbles: true, composed: true, altKey: true };
      for (let y = 0.2; y < 0.8; y += 0.02) {
        const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height * y };
        canvas().dispatchEvent(new MouseEvent("click", { ...init, ...at }));
        if (player.getView().marks.length) return [box.width / 2, box.height * y];
      }
    }"""
    x, y = page.evaluate(click)
    page.wait_for_function("marks.querySelector('circle')")
    circle = page.evaluate("['cx', 'cy'].map((name) => Number(marks.querySelector('circle').getAttribute(name)))")
    assert math.hypot(circle[0] - x, circle[1] - y) < 30
    key = "new KeyboardEvent('keydown', { key: 'x', bubbles: true, composed: true })"
    page.evaluate(f"player.element.shadowRoot.querySelector('.root').dispatchEvent({key})")
    page.wait_for_function("player.getView().marks.length === 0")


@pytest.mark.parametrize("autoplay", [True, False])
def test_the_video_plays_before_the_gaussians_are_there(site: Site, page: Any, autoplay: bool) -> None:
    files = site[2]
    film = torch.linspace(0.1, 0.9, 6)[:, None, None, None].expand(6, 24, 32, 3)
    stream = io.BytesIO()
    header = write_stream(stream, moving_sample(400, 6), film=film)
    data, gates = stream.getvalue(), [threading.Event(), threading.Event()]
    cuts = [len(data) - header["bytes"] + place[0] for place in (header["statics"], header["blocks"][2])]

    def slowly() -> Iterator[bytes]:
        yield data[: cuts[0]]
        gates[0].wait(20)
        yield data[cuts[0] : cuts[1]]
        gates[1].wait(20)
        yield data[cuts[1] :]

    files["slow.a4d"] = slowly
    try:
        page.evaluate(
            """async (autoplay) => {
              const { mount } = await import("/player/embed.mjs");
              const place = document.body.appendChild(document.createElement("div"));
              place.style = "position: relative; width: 400px; height: 200px";
              window.heard = [];
              window.player = mount(place, { autoplay });
              for (const name of ["play", "ready", "loaded"]) player.addEventListener(name, () => heard.push(name));
              player.load(["/data/slow.a4d"]);
              window.shade = () => {
                const canvas = place.shadowRoot.querySelector(".film canvas");
                return canvas.getContext("2d").getImageData(5, 5, 1, 1).data[0] / 255;
              };
            }""",
            autoplay,
        )
        page.wait_for_function("shade() > 0.05")
        if autoplay:
            page.wait_for_function("shade() > 0.6")  # the video goes on by itself
            page.wait_for_function("shade() < 0.3")  # and around
            assert page.evaluate("heard") == ["play"] and page.evaluate("player.info.ready") == 0
        else:
            page.evaluate("player.seek(4 / 6)")
            page.wait_for_function("Math.abs(shade() - 0.74) < 0.03")
        gates[0].set()
        page.wait_for_function("heard.includes('ready')")
        page.wait_for_function("player.info.ready === 2")  # the object stands on its last frame, the video goes on
        if autoplay:
            page.wait_for_function("player.info.time > 0.6")
        else:
            assert page.evaluate("[player.info.time, player.playing]") == [pytest.approx(4 / 6, abs=1e-4), False]
    finally:
        for gate in gates:
            gate.set()
    page.wait_for_function("heard.includes('loaded')")
    assert page.evaluate("heard") == (["play"] if autoplay else []) + ["ready", "loaded"]
    page.evaluate("player.dispose()")


def test_small_pictures_over_the_timeline(site: Site, page: Any) -> None:
    film = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 24, 48, 3)
    stream = io.BytesIO()
    write_stream(stream, moving_sample(400, 6), film=film)
    site[2]["film.a4d"] = stream.getvalue()
    page.evaluate(
        """async () => {
          const { mount } = await import("/player/embed.mjs");
          const place = document.body.appendChild(document.createElement("div"));
          place.style = "position: relative; width: 440px; height: 300px";
          window.player = mount(place, { source: "/data/film.a4d", autoplay: false });
          await new Promise((done) => player.addEventListener("loaded", done));
          window.find = (what) => place.shadowRoot.querySelector(what);
          window.small = () => {
            const canvas = find(".thumbnail canvas"), { width, height } = canvas;
            const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
            let sum = 0;
            for (let i = 3; i < data.length; i += 4) sum += data[i] / 255;
            const middle = 4 * (width * (height >> 1) + (width >> 1));
            return { width, height, covered: sum / width / height, green: data[middle + 1] };
          };
        }"""
    )
    box = page.locator(".time-line").bounding_box()

    def hover(frame: int) -> None:
        page.mouse.move(box["x"] + 6 + (box["width"] - 12) * (frame + 0.4) / 6, box["y"] + box["height"] / 2)

    for frame in (0, 3, 5):
        hover(frame)
        page.wait_for_function(f"find('.thumbnail span').textContent.startsWith('{frame + 1} / 6')")
        found = page.evaluate("small()")
        assert (found["width"], found["height"], found["covered"]) == (144, 72, 1.0)
        assert found["green"] == pytest.approx(255 * frame / 5, abs=4)
    assert page.evaluate("player.info.time") == 0  # nothing moves but the small picture
    page.mouse.down()
    page.wait_for_function("player.info.time > 0.8")
    page.mouse.up()
    page.mouse.move(200, 100)
    page.wait_for_function("find('.thumbnail').hidden")
    # Without a video: the object, drawn when it is asked for and not before.
    page.evaluate("new Promise((done) => { player.addEventListener('loaded', done); player.load(['/data/a.a4d']); })")
    page.wait_for_function("player.stats?.drawn > 0")
    for frame in (1, 4, 1):
        hover(frame)
        page.wait_for_function("small().covered > 0.02 && small().covered < 0.6")
    box = page.locator(".thumbnail").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 448


#: A headset that is none: sessions whose frames are stepped by hand, their layer a texture with the left eye left.
HEADSET = """() => {
  const layers = [];
  class Session extends EventTarget {
    requestAnimationFrame(next) { this.next = next; return 1; }
    updateRenderState({ baseLayer }) { this.layer = baseLayer; }
    async requestReferenceSpace(kind) { this.space = kind; return { kind }; }
    async end() { this.ended = true; this.dispatchEvent(new Event("end")); }
  }
  window.XRWebGLLayer = class {
    constructor(session, gl) {
      this.framebuffer = gl.createFramebuffer();
      const texture = gl.createTexture();
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA8, 192, 96);
      gl.bindFramebuffer(gl.FRAMEBUFFER, this.framebuffer);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
      this.gl = gl;
    }
    getViewport({ eye }) { return { x: eye === "left" ? 0 : 96, y: 0, width: 96, height: 96 }; }
    pixels() {
      const { gl } = this, data = new Uint8Array(4 * 192 * 96);
      gl.bindFramebuffer(gl.FRAMEBUFFER, this.framebuffer);
      gl.readPixels(0, 0, 192, 96, gl.RGBA, gl.UNSIGNED_BYTE, data);
      return [...data];
    }
  };
  WebGL2RenderingContext.prototype.makeXRCompatible = async function () { window.compatible = true; };
  window.refuse = false;
  window.asked = [];
  Object.defineProperty(navigator, "xr", { configurable: true, value: {
    isSessionSupported: async (mode) => mode === "immersive-ar",
    requestSession: async (mode, options) => {
      if (refuse) throw new DOMException("the user has refused", "NotAllowedError");
      asked.push([mode, options.requiredFeatures]);
      return (window.session = new Session());
    },
  } });
  window.step = (now, viewer, eyes) => session.next(now, { getViewerPose: () => ({
    transform: { matrix: viewer },
    views: eyes.map(({ eye, inverse, projection }) => (
      { eye, projectionMatrix: projection, transform: { inverse: { matrix: inverse } } })),
  }) });
}"""


def test_the_object_stands_in_the_room(site: Site, page: Any) -> None:
    page.evaluate(HEADSET)
    page.evaluate(
        """async () => {
          const { mount } = await import("/player/embed.mjs");
          const place = document.body.appendChild(document.createElement("div"));
          place.style = "position: relative; width: 640px; height: 300px";
          window.player = mount(place, { source: "/data/a.a4d", autoplay: false });
          await new Promise((done) => player.addEventListener("loaded", done));
          window.find = (what) => place.shadowRoot.querySelector(what);
        }"""
    )
    page.wait_for_function("player.stats?.drawn > 0 && find('[data-id=ar]').offsetWidth > 0")
    page.evaluate("window.refuse = true; find('[data-id=ar]').click()")
    page.wait_for_function("find('.note.small').textContent === 'AR did not start: the user has refused'")
    page.evaluate("window.refuse = false; find('[data-id=ar]').click()")
    page.wait_for_function("window.session?.next && session.layer")
    assert page.evaluate("[asked, session.space, compatible]") == [[["immersive-ar", ["local"]]], "local", True]

    # A viewer who looks 30 degrees to the left and a little down, eyes 64 mm apart, with unlike halves of their field of view.
    yaw, pitch, place = math.radians(30), math.radians(-12), np.array([0.3, 1.6, 0.2])
    turn = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    nod = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    viewer = np.eye(4)
    viewer[:3, :3], viewer[:3, 3] = turn @ nod, place
    eyes, cameras = [], []
    for side, sign in (("left", -1), ("right", 1)):
        pose = viewer.copy()
        pose[:3, 3] += viewer[:3, 0] * 0.032 * sign
        inverse = np.linalg.inv(pose)
        left, right, bottom, top, near, far = -0.6 - 0.1 * sign, 0.6 - 0.1 * sign, -0.65, 0.55, 0.1, 100.0
        wide, tall, deep = right - left, top - bottom, far - near
        projection = np.array([
            [2 / wide, 0, (right + left) / wide, 0], [0, 2 / tall, (top + bottom) / tall, 0],
            [0, 0, -(far + near) / deep, -2 * far * near / deep], [0, 0, -1, 0],
        ])  # fmt: skip
        eyes.append({"eye": side, "inverse": inverse.T.ravel().tolist(), "projection": projection.T.ravel().tolist()})
        K = torch.tensor([[96 / wide, 0, -96 * left / wide], [0, 96 / tall, 96 * top / tall], [0, 0, 1]])
        seen = np.diag([1.0, -1, -1, 1]) @ inverse
        cameras.append(Cameras(torch.tensor(seen, dtype=torch.float32)[None], K[None], 96, 96))
    # 30 cm long, half a metre before the viewer and 10 cm below the eyes, upright and turned to them.
    stands = np.eye(4)
    stands[:3, :3] = 0.3 * turn
    stands[:3, 3] = place + np.array([-0.5 * math.sin(yaw), -0.1, -0.5 * math.cos(yaw)])
    scene = moving_sample(400, 6)
    matrix = viewer.T.ravel().tolist()
    pictures = []
    for time in (0.0, 0.5):
        page.evaluate("time => player.seek(time)", time)
        before = page.evaluate("player.stats.orders")
        page.evaluate("([viewer, eyes]) => step(10, viewer, eyes)", [matrix, eyes])
        page.wait_for_function("before => player.stats.orders > before", arg=before)  # the worker has sorted
        page.evaluate("([viewer, eyes]) => step(20, viewer, eyes)", [matrix, eyes])
        pixels = np.array(page.evaluate("session.layer.pixels()"), np.uint8).reshape(96, 192, 4)[::-1] / 255
        placed = scene.at(time).transformed(torch.tensor(stands, dtype=torch.float32))
        for k, camera in enumerate(cameras):
            with torch.no_grad():
                render = rasterize(placed, camera)
            ours = torch.cat([render.color[0].clamp(0, 1), render.alpha[0][..., None]], -1).numpy()
            theirs = pixels[:, 96 * k : 96 * k + 96]
            assert (ours[..., 3] > 0.5).mean() > 0.02
            assert np.square(ours - theirs).mean() < 1e-4, (time, k)  # 40 dB
            pictures.append(theirs)
    assert np.abs(pictures[0] - pictures[1]).max() > 0.3  # each eye has its own
    centers = [float(camera.K[0, 0, 2]) for camera in cameras]
    columns = [np.nonzero(picture[..., 3] > 0.5)[1].mean() - at for picture, at in zip(pictures, centers)]
    assert columns[0] - columns[1] == pytest.approx(80 * 0.064 / 0.5, abs=1)  # farther right for the left eye, by the distance

    # It stays where it was put when the viewer turns away, the clip goes on, and a tap stops it.
    page.evaluate("session.dispatchEvent(new Event('select'))")
    assert page.evaluate("player.playing") is True
    drawn = page.evaluate("player.stats.drawn")
    for now in (100, 200, 300):
        page.evaluate("([viewer, eyes, now]) => step(now, viewer, eyes)", [matrix, eyes, now])
    assert page.evaluate("player.info.time") == pytest.approx(0.5 + 0.2 * 12 / 6, abs=0.02)
    assert page.evaluate("player.stats.drawn") == drawn + 3  # the page itself draws nothing meanwhile
    page.evaluate("session.dispatchEvent(new Event('select'))")
    assert page.evaluate("player.playing") is False
    # It ends from without, and by the button; the page draws again.
    page.evaluate("session.end()")
    page.wait_for_function("drawn => player.stats.drawn > drawn", arg=drawn + 3)
    page.evaluate("session.next = null; find('[data-id=ar]').click()")
    page.wait_for_function("session.next && session.layer")
    page.evaluate("([viewer, eyes]) => step(10, viewer, eyes)", [matrix, eyes])
    page.evaluate("find('[data-id=ar]').click()")
    page.wait_for_function("session.ended")
    page.evaluate("player.dispose()")


def test_without_a_headset_there_is_no_button(page: Any) -> None:
    page.evaluate(DROPPED)
    page.wait_for_timeout(200)
    assert page.evaluate("find('[data-id=ar]').offsetWidth") == 0
    page.evaluate("find('.root').focus()")
    page.keyboard.press("a")
    page.wait_for_function("find('.note.small').textContent.startsWith('This browser or device does not')")


DROPPED = """async () => {
  const { mount } = await import("/player/embed.mjs");
  const place = document.body.appendChild(document.createElement("div"));
  place.style = "position: relative; width: 640px; height: 300px";
  window.player = mount(place, { source: "/data/a.a4d", autoplay: false });
  await new Promise((done) => player.addEventListener("loaded", done));
  window.find = (what) => place.shadowRoot.querySelector(what);
  window.drop = async (...names) => {
    const dataTransfer = new DataTransfer();
    for (const name of names) {
      const bytes = await (await fetch(`/data/${name.replace(/txt$/, "a4d")}`)).arrayBuffer();
      dataTransfer.items.add(new File([bytes], name));
    }
    const options = { dataTransfer, bubbles: true, cancelable: true, composed: true };
    return find(".view").dispatchEvent(new DragEvent("drop", options));
  };
}"""
LABELS = "[...player.element.shadowRoot.querySelectorAll('.view .tag')].map((tag) => tag.textContent)"


def test_files_are_dropped_onto_a_player(site: Site, page: Any) -> None:
    files = site[2]
    scene = moving_sample(300, 3)
    frames = [scene.at(float(tau)) for tau in scene.taus]
    files |= {f"f{k}.ply": encode_splats(frame, "ply") for k, frame in enumerate(frames)}
    files |= {"c.sog": encode_splats(frames[0], "sog"), "cut.spz": encode_splats(frames[0], "spz")[:-99]}
    page.evaluate(DROPPED)
    assert page.evaluate("drop('b.txt')") is True  # nobody's business here
    assert page.evaluate("player.info.frames") == 6
    assert page.evaluate("drop('b.a4d')") is False
    page.wait_for_function("player.info.frames === 4 && player.info.ready === 4")
    page.evaluate("drop('a.a4d', 'b.a4d')")
    page.wait_for_function("player.info.frames === 6 && player.info.ready === 6")
    assert page.evaluate(LABELS) == ["a", "b"]
    page.evaluate("drop('f1.ply', 'f0.ply', 'f2.ply')")
    page.wait_for_function("player.info.frames === 3 && player.info.ready === 3")
    page.evaluate("drop('c.sog')")
    page.wait_for_function("player.info.frames === 1 && player.info.count === 300")
    page.evaluate("drop('c.sog', 'a.a4d')")  # to compare
    page.wait_for_function("!find('.split').hidden")
    assert page.evaluate(LABELS) == ["c", "a"]
    page.evaluate("drop('cut.spz')")
    page.wait_for_function("find('.note.error')?.textContent === 'cut.spz: a damaged .spz, export or copy it again'")
    page.evaluate("player.load(['/data/c.sog'])")  # by its address, known by its content
    page.wait_for_function("player.info.count === 300 && find('.note').hidden")


def test_files_are_chosen_by_a_button_and_a_key(page: Any, tmp_path: Path) -> None:
    page.evaluate(DROPPED)
    gaussians = moving_sample(120, 2).gaussians
    (tmp_path / "x.spz").write_bytes(encode_splats(gaussians, "spz"))
    (tmp_path / "y.splat").write_bytes(encode_splats(gaussians.map(lambda t: t[:50]), "splat"))
    (tmp_path / "z.txt").write_text("hello")
    files = iter(("x.spz", "y.splat", "z.txt"))
    page.on("filechooser", lambda chooser: chooser.set_files(tmp_path / next(files)))
    page.wait_for_timeout(300)  # the driver takes choosers over from now on
    page.locator("[data-id=open]").click()
    page.wait_for_function("player.info.ready === 1 && player.info.count === 120")
    page.evaluate("find('.root').focus()")
    page.keyboard.press("o")
    page.wait_for_function("player.info.ready === 1 && player.info.count === 50")
    page.keyboard.press("o")
    page.wait_for_function("find('.note.error')?.textContent.startsWith('None of these can be played, choose .a4d')")


def test_a_folder_of_frames_is_dropped(page: Any, tmp_path: Path) -> None:
    scene = moving_sample(200, 5)
    write_splat_sequence(tmp_path / "walk", scene)
    page.evaluate(DROPPED)
    box = page.evaluate("(({ x, y }) => [x, y])(find('.view').getBoundingClientRect())")
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path / "walk")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": box[0] + 50, "y": box[1] + 50, "data": data})
    page.wait_for_function("find('.root').classList.contains('over')")
    session.send("Input.dispatchDragEvent", {"type": "drop", "x": box[0] + 50, "y": box[1] + 50, "data": data})
    page.wait_for_function("player.info.frames === 5 && player.info.ready === 5")
    assert page.evaluate("[player.info.fps, player.info.loop, find('.root').classList.contains('over')]") == [12, True, False]
