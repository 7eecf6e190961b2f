"""Play Scene in a real page: both node styles, the shipped frontend, and a newer one whose files ANCHOR4D_FRONTEND names."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from anchor4d.core.cameras import FrontCamera
from anchor4d.core.gaussians import SH_C0, Gaussians
from anchor4d.core.scene.sequence import scene_from_gaussians

QUIET = {"Comfy.TutorialCompleted": True, "Comfy.Release.Status": "skipped", "Comfy.Minimap.Visible": False}
#: Its own workflow comes last, and would take the place of what a test has built before.
READY = """() => window.app?.graph && "Anchor4DPlayScene" in (window.LiteGraph?.registered_node_types ?? {})
  && app.extensionManager?.workflow?.activeWorkflow?.isLoaded && app.graph._nodes.length"""
RUN = """async (seconds) => {
  const ended = new Promise((done) => {
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
      app.api.addEventListener(kind, (event) => done([kind, event.detail]), { once: true });
    setTimeout(() => done(["timeout", null]), seconds * 1000);
  });
  await app.queuePrompt(0, 1);
  return ended;
}"""
#: Load Scene, and as many players as wanted; a preview of what the first gives.
BUILD = """([path, players, compare]) => {
  app.graph.clear();
  const add = (type, x, y) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    return node;
  };
  const load = add("Anchor4DLoadScene", 40, 60);
  load.widgets.find((widget) => widget.name === "path").value = path;
  window.nodes = Array.from({ length: players }, (_, index) => {
    const node = add("Anchor4DPlayScene", 330 + 440 * index, 60);
    node.setSize([420, 600]);
    load.connect(0, node, 0);
    if (compare) load.connect(0, node, 1);
    return node;
  });
  nodes[0].connect(1, add("PreviewImage", 330 + 440 * players, 60), 0);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [60, 30];
  app.canvas.setDirty(true, true);
}"""
#: What a player shows, and where its parts are, in the page's pixels.
STATE = """(index) => {
  const node = nodes[index];
  const place = node.widgets.find((widget) => widget.name === "player").element, root = place.shadowRoot;
  if (!root) return { time: "", said: place.textContent };  // its modules are still being loaded
  const box = (element) => {
    const { x, y, width, height } = element.getBoundingClientRect();
    return { x, y, width, height, right: x + width, bottom: y + height, name: element.dataset.id ?? element.className };
  };
  return {
    time: root.querySelector(".time").textContent, note: root.querySelector(".note").textContent,
    noted: !root.querySelector(".note").hidden, value: Number(root.querySelector(".time-line").value),
    play: root.querySelector('[data-id="play"]').title, view: node.widgets.find((widget) => widget.name === "view").value,
    stage: box(root.querySelector(".view")), line: box(root.querySelector(".time-line")),
    root: box(root.querySelector(".root")), canvas: Boolean(root.querySelector(".view canvas")),
    tools: [...root.querySelectorAll(".row > *")].filter((tool) => tool.offsetWidth && tool.className !== "space").map(box),
    pos: [...node.pos], count: app.graph._nodes.length,
    ink: getComputedStyle(root.querySelector('[data-id="play"]')).color, dark: place.hasAttribute("data-dark"),
    paper: getComputedStyle(root.querySelector(".root")).backgroundColor,
  };
}"""


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coloured egg that waves, 8 frames."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(1500, 3, generator=generator), dim=-1)
    quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1500, 4)
    sh = (direction / 2 / SH_C0)[:, None]
    sets = []
    for frame in range(8):
        means = direction * torch.tensor([0.5, 0.3, 0.3])
        means[:, 1] += 0.12 * torch.sin(2 * math.pi * frame / 8 + 4 * means[:, 0])
        sets.append(Gaussians(means, quats, torch.full((1500, 3), math.log(0.025)), torch.full((1500,), 2.0), sh))
    scene = replace(scene_from_gaussians(sets, fps=8.0, loop=True), front=FrontCamera(40.0, 2.0, 128, 128))
    path = tmp_path_factory.mktemp("scenes") / "egg.safetensors"
    scene.save(path)
    return path


@pytest.fixture(scope="module", params=["shipped", "newer"])
def served(request: pytest.FixtureRequest, start_host: Callable[..., Any]) -> Any:
    if request.param == "shipped":
        return request.getfixturevalue("host")
    files = os.environ.get("ANCHOR4D_FRONTEND")
    if not files:
        pytest.skip("set ANCHOR4D_FRONTEND to the static folder of an unpacked comfyui-frontend-package")
    return start_host("--front-end-root", files)


@pytest.fixture
def open_page(served: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on the path")
    with playwright.sync_playwright() as play:
        flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
        chromium = play.chromium.launch(executable_path=browser, headless=True, args=flags)

        def opened(vue: bool, scale: float = 1.0, palette: str = "dark") -> Any:
            served.post("/settings", QUIET | {"Comfy.VueNodes.Enabled": vue, "Comfy.ColorPalette": palette})
            page = chromium.new_page(viewport={"width": 1300, "height": 720}, device_scale_factor=scale)
            page.set_default_timeout(300_000)
            page.failures = []
            page.on("pageerror", lambda error: page.failures.append(str(error)))
            page.goto(served.url, wait_until="domcontentloaded")
            page.wait_for_function(READY)
            return page

        yield opened
        chromium.close()


def wait_until_it_plays(page: Any, index: int) -> None:
    for _ in range(600):  # the first run may compile the renderer
        state = page.evaluate(STATE, index)
        if state.get("canvas") and state["value"] > 0:
            return
        page.wait_for_timeout(500)
    pytest.fail(f"player {index} does not play: {state}, {page.failures}")


def luminance(colour: str) -> float:
    """Relative luminance of a CSS colour, as the contrast rules of WCAG have it."""
    parts = [float(part) for part in colour[colour.index("(") + 1 : -1].replace(",", " ").replace("/", " ").split()[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in parts)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def check_layout(state: dict[str, Any]) -> None:
    """No part of the bar covers another or sticks out, and its signs can be read."""
    root, tools = state["root"], state["tools"]
    assert len(tools) >= 4
    for tool in tools:
        assert root["x"] <= tool["x"] and tool["right"] <= root["right"] + 0.5, tool
        assert tool["y"] >= state["line"]["bottom"] - 1 and tool["bottom"] <= root["bottom"] + 0.5, tool
    for a, b in pairwise(tools):
        assert a["right"] <= b["x"] + 0.5, (a, b)
    light, dark = sorted((luminance(state["ink"]), luminance(state["paper"])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def played(page: Any, scene_file: Path, palette: str) -> dict[str, Any]:
    """The state of a player whose graph has run, once it plays: laid out, and in the page's colours."""
    page.evaluate(BUILD, [str(scene_file), 1, False])
    assert page.evaluate(RUN, 600)[0] == "execution_success"
    wait_until_it_plays(page, 0)
    state = page.evaluate(STATE, 0)
    check_layout(state)
    assert state["dark"] == (palette == "dark")
    return state


#: Of nodes, colours and sizes those that the next test has not got.
LOOKS = [
    (False, 1.5, "dark"), (False, 1.0, "light"), (False, 1.5, "light"), (True, 1.0, "dark"), (True, 1.5, "dark"),
    (True, 1.0, "light"),
]  # fmt: skip


@pytest.mark.parametrize(("vue", "scale", "palette"), LOOKS)
def test_its_bar_can_be_read(
    open_page: Callable[..., Any], scene_file: Path, tmp_path: Path, vue: bool, scale: float, palette: str
):
    page = open_page(vue, scale, palette)
    played(page, scene_file, palette)
    page.screenshot(path=tmp_path / "plays.png")
    assert not page.failures


@pytest.mark.parametrize(
    ("vue", "scale", "palette"), [(False, 1.0, "dark"), (True, 1.5, "light")], ids=["classic", "vue at 150 %, light"]
)
def test_it_plays_and_what_it_shows_comes_out(
    served: Any, open_page: Callable[..., Any], scene_file: Path, tmp_path: Path, vue: bool, scale: float, palette: str
):
    page = open_page(vue, scale, palette)
    state = played(page, scene_file, palette)
    page.screenshot(path=tmp_path / "plays.png")
    assert "/ 8" in state["time"]
    assert state["play"].startswith("Pause")
    assert not state["noted"]
    first = picture(served, page)

    # Scrub: it stands still at the moment under the pointer, and says so to the node.
    page.locator(".time-line").click()  # in its middle, once it has come to rest
    page.wait_for_function(f"() => ({STATE})(0).view.includes('time')")
    state = page.evaluate(STATE, 0)
    assert state["play"].startswith("Play")
    assert state["value"] == pytest.approx(0.5, abs=0.03)

    # Orbit by mouse: the camera changes, the node stays.
    page.locator(".view").hover()
    before = page.evaluate(STATE, 0)
    stage = before["stage"]
    x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 90, y + 40, steps=4)
    page.mouse.up()
    page.wait_for_function(f"(view) => ({STATE})(0).view !== view", arg=before["view"])
    state = page.evaluate(STATE, 0)
    assert state["pos"] == before["pos"]
    camera = page.evaluate("(text) => JSON.parse(text).camera.position", state["view"])
    assert math.degrees(math.atan2(camera["x"], camera["z"])) == pytest.approx(36, abs=2)  # 0.4 degrees a pixel
    assert math.degrees(math.atan2(camera["y"], math.hypot(camera["x"], camera["z"]))) == pytest.approx(16, abs=2)

    # Wheel: nearer; the graph does not zoom. Keys: the node is not deleted, frames go on.
    page.mouse.wheel(0, -240)
    page.wait_for_function(f"(view) => ({STATE})(0).view !== view", arg=state["view"])
    near = page.evaluate("(text) => JSON.parse(text).camera.position", page.evaluate(STATE, 0)["view"])
    assert math.hypot(*near.values()) < 0.9 * math.hypot(*camera.values())
    assert page.evaluate("() => app.canvas.ds.scale") == 1
    page.keyboard.press("Delete")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(400)
    state = page.evaluate(STATE, 0)
    assert state["count"] == 3
    assert state["time"].startswith("7 / 8")

    # The second run draws this very view; the clip is not packed again.
    streams = list((served.folder / "temp" / "anchor4d").glob("*.a4d"))
    assert page.evaluate(RUN, 600)[0] == "execution_success"
    assert list((served.folder / "temp" / "anchor4d").glob("*.a4d")) == streams
    assert len(streams) >= 1
    second = picture(served, page)
    assert second.shape[1] / second.shape[0] == pytest.approx(stage["width"] / stage["height"], rel=0.01)
    assert second.shape != first.shape or abs(second - first).mean() > 0.02
    assert (second.min(-1) < 0.9).mean() > 0.1
    assert page.evaluate(STATE, 0)["time"].startswith("7 / 8")  # still there
    page.screenshot(path=tmp_path / "turned.png")

    # A workflow saved and opened again shows the same.
    view = page.evaluate(STATE, 0)["view"]
    page.evaluate("async () => { await app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize()))); }")
    page.evaluate("() => { window.nodes = app.graph._nodes.filter((node) => node.type === 'Anchor4DPlayScene'); }")
    assert page.evaluate(STATE, 0)["view"] == view
    assert page.evaluate(RUN, 600)[0] == "execution_success"
    page.wait_for_function(f"() => ({STATE})(0).time.startsWith('7 / 8')")
    assert page.evaluate(STATE, 0)["view"] == view

    # The node's menu starts anew.
    page.evaluate("() => app.collectNodeMenuItems(nodes[0]).find((item) => item.content === 'Reset the view').callback()")
    assert page.evaluate(STATE, 0)["view"] == ""
    wait_until_it_plays(page, 0)
    assert not page.failures


def picture_of(host: Any, shown: dict[str, str]) -> Any:  # (H, W, 3)
    import numpy as np
    from PIL import Image

    with Image.open(host.file(shown)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def picture(served: Any, page: Any) -> Any:
    """What the preview shows."""
    shown = page.evaluate(
        "() => app.nodeOutputs[app.graph._nodes.find((node) => node.type === 'PreviewImage').id].images.at(-1)"
    )
    return picture_of(served, shown)


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])
def test_two_players_on_a_page_and_one_leaves(open_page: Callable[..., Any], scene_file: Path, tmp_path: Path, vue: bool):
    page = open_page(vue)
    page.evaluate(BUILD, [str(scene_file), 2, True])
    assert page.evaluate(RUN, 600)[0] == "execution_success"
    for index in (0, 1):
        wait_until_it_plays(page, index)
        check_layout(page.evaluate(STATE, index))
    page.screenshot(path=tmp_path / "two.png")
    page.evaluate("""() => {
      window.contexts = nodes.map((node) => {
        const { element } = node.widgets.find((widget) => widget.name === "player");
        return element.shadowRoot.querySelector(".view canvas").getContext("webgl2");
      });
      app.graph.remove(nodes[0]);
    }""")
    page.wait_for_timeout(300)
    assert page.evaluate("() => contexts.map((context) => context.isContextLost())") == [True, False]
    before = page.evaluate(STATE, 1)["value"]
    page.wait_for_function(f"(before) => ({STATE})(1).value !== before", arg=before)
    assert not page.failures


def test_it_runs_without_a_page(host: Any, scene_file: Path):
    """A view given as text: its camera, its moment, its colour and its path come out; pictures lie in the stream."""
    import json

    from anchor4d.core.io.stream import read_stream

    camera = {"position": {"x": 1.4, "y": 0.5, "z": -1.4}, "target": {"x": 0, "y": 0, "z": 0}, "fov": 35, "aspect": 1.5}
    keys = [{"time": t, "scene_time": 0.25, "camera": camera | {"fov": fov}} for t, fov in ((0, 35), (1, 20))]
    view = {"camera": camera, "time": 0.25, "background": "#ff0000", "moments": True}
    prompt: dict[str, Any] = {
        "load": {"class_type": "Anchor4DLoadScene", "inputs": {"file": "none", "path": str(scene_file)}},
        "film": {"class_type": "EmptyImage", "inputs": {"width": 640, "height": 32, "batch_size": 3, "color": 255}},
        "play": {
            "class_type": "Anchor4DPlayScene",
            "inputs": {
                "scene": ["load", 0], "compare": ["load", 0], "video": ["film", 0], "frames": 5, "size": 96,
                "background": "as shown", "view": json.dumps(view | {"trajectory": {"version": 1, "keys": keys}}),
            },
        },
        "shown": {"class_type": "PreviewImage", "inputs": {"images": ["play", 1]}},
        "flown": {
            "class_type": "Anchor4DRenderScene",
            "inputs": {
                "scene": ["play", 0], "shot": "fixed", "shot.azimuth": 0.0, "shot.repeats": 1, "shot.frames": 2,
                "framing": "object", "size": 96, "background": "white", "elevation": 0.0, "trajectory": ["play", 4],
            },
        },
        "pictures": {"class_type": "PreviewImage", "inputs": {"images": ["flown", 0]}},
    }  # fmt: skip
    outcome = host.run(prompt)
    assert outcome.ended == "execution_success", outcome.detail
    shown = outcome.outputs["play"]
    first, second = (read_stream(host.file(clip)) for clip in shown["a4d_clips"])
    assert (len(first.frames), len(first.pictures), len(second.pictures)) == (5, 5, 0)
    assert shown["a4d_filmed"][0]["principal"] == [0.5, 0.5]
    image = picture_of(host, outcome.outputs["shown"]["images"][0])
    assert image.shape == (64, 96, 3)
    assert image[0, 0].tolist() == [1, 0, 0]
    assert 0.05 < (abs(image - image[0, 0]).max(-1) > 0.2).mean() < 0.8
    flown = [picture_of(host, shown) for shown in outcome.outputs["pictures"]["images"]]
    assert [frame.shape for frame in flown] == [(64, 96, 3)] * 2
    sizes = [float((frame.min(-1) < 0.9).mean()) for frame in flown]
    assert sizes[1] > 2 * sizes[0]  # narrower at the second key

    prompt["play"]["inputs"]["view"] = "no JSON"
    outcome = host.run({key: prompt[key] for key in ("load", "film", "play")})
    assert outcome.ended == "execution_error"
    assert outcome.detail["exception_message"].strip() == (
        "Play Scene: view: it is not readable, right-click the node and choose Reset the view"
    )
