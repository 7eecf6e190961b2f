"""Pages with the player in a headless Chromium, offline and from disk; and the player's own parts."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchor4d.bench.moving import moving_sample
from anchor4d.bench.player import chromium, serve
from anchor4d.core.cameras import from_camera_info, spherical
from anchor4d.core.files import InputError
from anchor4d.core.io import html
from anchor4d.core.io.html import write_html
from anchor4d.core.io.stream import write_stream
from anchor4d.core.render import rasterize
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.trajectory import Trajectory
from anchor4d.core.scene.views import straight_alpha

TITLE = "A </title><script>broken = 1</script> & {scripts} clip"
#: Resolves when a change of size has been drawn.
LAID_OUT = """async () => {
  for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
  await new Promise((done) => setTimeout(done, 150));
}"""
#: The parts of the bar that can be seen, and the player itself, in the page's pixels.
BOXES = """() => {
  const root = document.getElementById("player").shadowRoot;
  const box = (part) => {
    const { left, top, right, bottom } = part.getBoundingClientRect();
    return { left, top, right, bottom, name: part.dataset.id ?? part.className };
  };
  const parts = [...root.querySelectorAll(".row > *")].filter((part) => part.offsetWidth && part.className !== "space");
  return { parts: parts.map(box), root: box(root.querySelector(".root")) };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        with chromium() as found:
            yield found
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def scene() -> Scene4D:
    return moving_sample(600, 6)


@pytest.fixture(scope="module")
def film() -> torch.Tensor:
    """A square that goes from left to right, on nothing."""
    frames = torch.zeros(6, 48, 64, 4)
    for t in range(6):
        frames[t, 10:30, 8 * t : 8 * t + 16] = torch.tensor([1.0, 0.4, 0.1, 1.0])
    return frames


class Opened:
    """A page from disk, without a network; what it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, width: int = 480, height: int = 360, scheme: str = "light") -> None:
        viewport = {"width": width, "height": height}
        self.context = browser.new_context(viewport=viewport, offline=True, color_scheme=scheme, reduced_motion="no-preference")
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())

    def wait(self, condition: str) -> None:
        self.page.wait_for_function(f"() => window.player?.getView && ({condition})")

    def picture(self) -> np.ndarray:  # (H, W, 3)
        from PIL import Image

        with Image.open(io.BytesIO(self.page.screenshot())) as image:
            return np.asarray(image.convert("RGB"), np.float64) / 255

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: Any) -> None:
        self.context.close()


def test_one_file_plays_offline(browser: Any, scene: Scene4D, tmp_path: Path):
    file = write_html(tmp_path / "clip.html", scene, title=TITLE)
    with Opened(browser, file) as opened:
        opened.wait("player.stats?.drawn > 2 && player.playing")
        before = opened.page.evaluate("player.position")
        opened.page.wait_for_function("(before) => Math.abs(player.position - before) > 1", arg=before)
        assert opened.page.title() == TITLE
        assert opened.page.locator("h1").inner_text() == TITLE
        assert opened.page.evaluate("typeof broken") == "undefined"
        assert [url for url in opened.requests if not url.startswith(("blob:", "data:"))] == [file.as_uri()]
        assert not opened.complaints
        opened.page.keyboard.press("b")  # white behind the object
        opened.page.keyboard.press(" ")
        opened.wait("!player.playing && player.getView().background === '#ffffff'")
        opened.page.wait_for_timeout(200)
        stage = opened.picture()[60:280]
        assert 0.03 < (stage.min(-1) < 0.8).mean() < 0.9


def test_a_folder_plays_before_it_is_read_and_names_what_is_missing(
    browser: Any, scene: Scene4D, film: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(html, "PIECE", 6000)
    seen: list[tuple[int, int]] = []
    index = write_html(tmp_path / "clip", scene, film=film, progress=lambda done, total: seen.append((done, total)))
    assert index == tmp_path / "clip" / "index.html"
    assert seen == [(i, 6) for i in range(1, 7)]
    pieces = sorted((tmp_path / "clip" / "data").iterdir())
    assert len(pieces) > 4
    assert {path.name for path in (tmp_path / "clip").iterdir()} == {"index.html", "player.js", "data"}
    with Opened(browser, index) as opened:
        opened.wait("player.position > 2 && !document.getElementById('player').shadowRoot.querySelector('.film').hidden")
        assert not opened.complaints
        assert all(url.startswith(("blob:", "data:", index.parent.as_uri())) for url in opened.requests)
    pieces[-2].unlink()
    with Opened(browser, index) as opened:
        note = opened.page.locator(".note.error")
        note.wait_for()
        assert f"data/{pieces[-2].name} is missing" in note.inner_text()
        opened.wait("player.stats?.drawn > 0")  # what had come is shown all the same
    write_html(tmp_path / "clip", scene)  # anew, over the old one
    assert (tmp_path / "clip" / "data" / pieces[-2].name).is_file()


def test_every_tool_is_in_reach_at_240_pixels(browser: Any, scene: Scene4D, film: torch.Tensor, tmp_path: Path):
    file = write_html(tmp_path / "clip.html", scene, film=film, compare=moving_sample(500, 4), labels=("ours", "theirs"))
    with Opened(browser, file, 240, 320, "dark") as opened:
        opened.wait("player.stats?.drawn > 0")
        for width in (240, 360, 640):
            opened.page.set_viewport_size({"width": width, "height": 320})
            opened.page.evaluate(LAID_OUT)
            boxes = opened.page.evaluate(BOXES)
            parts, root = boxes["parts"], boxes["root"]
            assert all(root["left"] <= part["left"] and part["right"] <= root["right"] for part in parts), width
            assert all(a["right"] <= b["left"] for a, b in pairwise(parts)), width
            in_bar = {part["name"] for part in parts} - {"play", "time", "more"}
            folded: set[str] = set()
            if any(part["name"] == "more" for part in parts):
                opened.page.click("[data-id=more]")
                folded = set(opened.page.locator(".popup button").all_inner_texts())
                opened.page.keyboard.press("Escape")
            assert len(in_bar) + len(folded) == 13, (width, in_bar, folded)
        labels = opened.page.locator(".tag:visible").all_inner_texts()
        assert labels == ["Driving video", "ours", "theirs"]
        opened.page.keyboard.press("?")
        assert "turn around the object" in opened.page.locator(".help").inner_text()


def test_picture_and_film_are_those_of_the_rasteriser(browser: Any, scene: Scene4D, tmp_path: Path):
    from PIL import Image

    av = pytest.importorskip("av")
    file = write_html(tmp_path / "clip.html", scene, title="Creature")
    with Opened(browser, file, 160, 210) as opened:
        opened.wait("player.stats?.drawn > 0")
        opened.page.keyboard.press("Home")
        opened.page.keyboard.press("2")
        opened.wait("Math.abs(player.getView().camera.position.z) < 0.01")
        opened.page.wait_for_timeout(500)
        with opened.page.expect_download() as download:
            opened.page.keyboard.press("p")
        assert download.value.suggested_filename == "Creature.png"
        with Image.open(download.value.path()) as image:
            shown = np.asarray(image, np.float64) / 255
        assert shown.shape[-1] == 4
        view = opened.page.evaluate("player.getView()")
        height, width = shown.shape[:2]
        with torch.no_grad():
            drawn = straight_alpha(rasterize(scene.at(0.0), from_camera_info(view["camera"], width, height))).numpy()[0]
        error = ((shown[..., :3] * shown[..., 3:] - drawn[..., :3] * drawn[..., 3:]) ** 2).mean()
        assert -10 * math.log10(error) > 38
        assert np.abs(shown[..., 3] - drawn[..., 3]).mean() < 0.004

        opened.page.keyboard.press("r")
        with opened.page.expect_download() as download:
            opened.page.keyboard.press("Enter")
        with av.open(download.value.path()) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height) == (width - width % 2, height - height % 2)
            frames = [frame.to_ndarray(format="rgb24").astype(np.float64) / 255 for frame in container.decode(stream)]
            assert stream.metadata.get("alpha_mode") == "1"
            assert container.duration == pytest.approx(1e6 * scene.frames / scene.fps, rel=0.1)
        assert len(frames) == round(scene.frames / scene.fps * stream.average_rate)
        inside = drawn[: frames[0].shape[0], : frames[0].shape[1], 3] > 0.98
        first = shown[: frames[0].shape[0], : frames[0].shape[1], :3]
        assert np.abs(frames[0] - first)[inside].mean() < 0.05
        assert np.abs(frames[len(frames) // 2] - frames[0]).mean() > 0.005


def test_mouse_touch_and_keys_move_the_camera(browser: Any, scene: Scene4D, tmp_path: Path):
    file = write_html(tmp_path / "clip.html", scene)
    with Opened(browser, file, 400, 400) as opened:
        opened.wait("player.stats?.drawn > 0")
        opened.page.keyboard.press(" ")

        def camera() -> tuple[float, float, float, dict[str, float]]:
            info = opened.page.evaluate("player.getView().camera")
            return *(float(x) for x in spherical(from_camera_info(info, 400, 400))), info["target"]

        azimuth, elevation, distance, _ = camera()
        opened.page.keyboard.press("Shift+ArrowLeft")
        assert camera()[0] == pytest.approx(azimuth - 10, abs=0.01)
        opened.page.keyboard.press("Shift+ArrowUp")
        assert camera()[1] == pytest.approx(elevation + 10, abs=0.01)
        opened.page.keyboard.press("+")
        assert camera()[2] == pytest.approx(0.9 * distance, rel=1e-3)
        opened.page.mouse.move(200, 150)
        opened.page.mouse.down(button="right")
        opened.page.mouse.move(240, 150)
        opened.page.mouse.up(button="right")
        target = camera()[3]
        assert math.hypot(*target.values()) > 0.05  # moved sideways ...
        assert target["x"] < 0  # ... so that the object followed the pointer to the right
        opened.page.keyboard.press("f")
        opened.page.wait_for_timeout(500)
        assert math.hypot(*camera()[3].values()) < 1e-3
        opened.page.mouse.dblclick(200, 170)  # the body is there
        opened.page.wait_for_timeout(500)
        assert 0.05 < math.hypot(*camera()[3].values()) < 0.7

        # Two fingers apart: nearer.
        before = camera()[2]
        session = opened.context.new_cdp_session(opened.page)

        def touch(kind: str, *points: tuple[int, int]) -> None:
            at = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

        touch("touchStart", (180, 160), (220, 160))
        touch("touchMove", (160, 160), (240, 160))
        touch("touchEnd")
        assert camera()[2] == pytest.approx(before / 2, rel=0.05)
        assert not opened.complaints


def test_the_camera_path_is_that_of_the_trajectory(browser: Any):
    """Keys anywhere, open and closed: the preview flies where a film of the same keys does."""
    generator = torch.Generator().manual_seed(2)
    keys = []
    for azimuth in (0.0, 80.0, 200.0, 170.0):
        a, e = math.radians(azimuth), math.radians(-20 + 60 * float(torch.rand((), generator=generator)))
        target, distance = torch.randn(3, generator=generator) * 0.1, 1.5 + float(torch.rand((), generator=generator))
        back = torch.tensor([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
        position = target + distance * back
        info = {"position": dict(zip("xyz", position.tolist())), "target": dict(zip("xyz", target.tolist()))}
        keys.append(
            {
                "time": 0,
                "scene_time": round(float(torch.rand((), generator=generator)), 3),
                "camera": info | {"fov": 30 + azimuth / 10},
            }
        )
    with serve({}) as url:
        page = browser.new_page()
        page.goto(url)
        for count, loop in ((4, False), (4, True), (2, False), (3, True), (1, False)):
            path = Trajectory.from_camera_infos(
                [key["camera"] for key in keys[:count]], scene_times=[key["scene_time"] for key in keys[:count]], loop=loop
            )
            shares = path.times(9).tolist()
            infos, moments = page.evaluate(
                """async ([keys, loop, shares]) => {
                  const [{ pathCamera, pathMoment }, { toInfo }] = await Promise.all([
                    import("/player/path.mjs"), import("/player/lens.mjs"),
                  ]);
                  return [
                    shares.map((share) => toInfo(pathCamera(keys, loop, share), 1)),
                    shares.map((share) => pathMoment(keys, loop, share)),
                  ];
                }""",
                [keys[:count], loop, shares],
            )
            wanted = path.cameras(9, 100, 100)
            for index, info in enumerate(infos):
                found = from_camera_info(info, 100, 100)
                torch.testing.assert_close(found.world_to_camera[0], wanted.world_to_camera[index], atol=2e-4, rtol=0)
                torch.testing.assert_close(found.K[0], wanted.K[index], atol=0.02, rtol=0)
            taus = path.taus(9)
            assert taus is not None
            assert moments == pytest.approx(taus.tolist(), abs=1e-5)
        page.close()


def test_players_of_a_page_share_eight_contexts(browser: Any):
    stream = io.BytesIO()
    write_stream(stream, moving_sample(200, 3))
    with serve({"clip.a4d": stream.getvalue()}) as url:
        page = browser.new_page(viewport={"width": 700, "height": 500})
        page.goto(url)
        page.evaluate(
            """async () => {
              const { Player } = await import("/player/player.mjs");
              document.body.replaceChildren();
              window.players = Array.from({ length: 20 }, () => {
                const place = document.body.appendChild(document.createElement("div"));
                place.style = "position: relative; height: 240px; width: 300px";
                return new Player(place, { source: "/data/clip.a4d" });
              });
              window.held = () => players.filter((player) => player.stats).length;
              window.drawn = (index) => players[index].stats?.drawn ?? 0;
            }"""
        )
        page.wait_for_function("drawn(0) > 0 && drawn(1) > 0")
        assert page.evaluate("held()") <= 3  # those on screen
        for index in (4, 8, 12, 16, 19):
            page.evaluate("(index) => players[index].element.scrollIntoView()", index)
            page.wait_for_function("(index) => drawn(index) > 0", arg=index)
            assert page.evaluate("held()") <= 8
        assert page.evaluate("held()") == 8
        # The first has lost its own, but not its picture; back on screen it plays on.
        assert page.evaluate("players[0].stats") is None
        assert page.evaluate("players[0].element.shadowRoot.querySelector('.view canvas').width") > 0
        page.evaluate("players[0].element.scrollIntoView()")
        page.wait_for_function("drawn(0) > 0")
        # A context lost by the graphics driver comes back.
        page.evaluate(
            """() => {
              const canvas = players[0].element.shadowRoot.querySelector(".view canvas");
              window.driver = canvas.getContext("webgl2").getExtension("WEBGL_lose_context");
              driver.loseContext();
            }"""
        )
        page.locator(".note.small", has_text="waiting").first.wait_for()
        before = page.evaluate("drawn(0)")
        page.evaluate("driver.restoreContext()")
        page.wait_for_function("(before) => drawn(0) > before + 1", arg=before)
        # Off screen, hidden or of no size: nothing is drawn.
        page.evaluate("players[0].element.style.height = '0'")
        page.evaluate(LAID_OUT)
        before = page.evaluate("drawn(0)")
        page.wait_for_timeout(300)
        assert page.evaluate("drawn(0)") == before
        page.evaluate("players[0].element.style.height = '240px'")
        page.wait_for_function("(before) => drawn(0) > before", arg=before)
        page.evaluate("for (const player of players) player.dispose()")
        assert page.evaluate("held()") == 0
        assert page.evaluate("document.body.children[0].shadowRoot.children.length") == 0
        page.close()


def test_what_cannot_be_played_is_said_in_words(browser: Any):
    with serve({"clip.a4d": b"not a clip at all"}) as url:
        page = browser.new_page()
        page.goto(url)
        for source, words in (("/data/none.a4d", "404"), ("/data/clip.a4d", "not a play stream")):
            page.evaluate(
                """async (source) => {
                  const { Player } = await import("/player/player.mjs");
                  const place = document.createElement("div");
                  document.body.replaceChildren(place);
                  place.style = "position: relative; height: 240px";
                  new Player(place, { source });
                }""",
                source,
            )
            page.locator(".note.error").wait_for()
            assert words in page.locator(".note.error").inner_text()
        page.close()


def test_a_page_holds_its_settings_as_data(scene: Scene4D, tmp_path: Path):
    """Nothing in a name or a view ends the script that holds it."""
    view = {"background": "#000000", "mode": "</script><script>broken = 1"}
    file = write_html(tmp_path / "a b.html", scene, frames=2, labels=("</script>", "<!--"), view=view)
    text = file.read_text(encoding="utf-8")
    assert text.count("</script>") == text.count("<script")
    start = text.index("settings: ") + len("settings: ")
    settings, _ = json.JSONDecoder().raw_decode(text[start:])
    assert settings == {"clips": 1, "labels": ["</script>", "<!--"], "name": "a b", "view": view}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(InputError, match="other files"):
        write_html(tmp_path / "other", scene)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match="folder of this name"):
        write_html(tmp_path / "folder.html", scene)
