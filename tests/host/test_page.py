"""The demo in a real page: loaded as a user loads it, run with the page's own queue, its results looked at."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from anchor4d.core.runs.sample import write_sample

ROOT = Path(__file__).parents[2]
#: The page's settings are kept by the server: no welcome, no tour.
QUIET = {"Comfy.TutorialCompleted": True, "Comfy.Release.Status": "skipped", "Comfy.VueNodes.Enabled": False}
#: The page takes node types in one by one.
READY = f"""() => window.app?.graph && {json.dumps(list(json.loads((ROOT / "tests" / "schemas.json").read_text())))}
  .every((name) => name in (window.LiteGraph?.registered_node_types ?? {{}}))"""
SHRINK = """(tiny) => {
  for (const node of app.graph._nodes)
    for (const [name, value] of Object.entries(tiny[node.type] ?? {}))
      for (const widget of node.widgets.filter((w) => w.name === name)) widget.value = value;
}"""
RUN = """async (seconds) => {
  const ended = new Promise((done) => {
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
      app.api.addEventListener(kind, (event) => done([kind, event.detail]));
    setTimeout(() => done(["timeout", null]), seconds * 1000);
  });
  await app.queuePrompt(0, 1);
  return ended;
}"""
SHOWN = """() => Object.fromEntries(app.graph._nodes.map((node) => [
  node.title, {
    images: (app.nodeOutputs[node.id]?.images ?? []).map((image) => image.filename),
    previews: (app.nodePreviewImages[node.id] ?? []).length,
    said: (node.widgets ?? []).filter((w) => /anchor4d_said|node-text-preview/.test(w.name))
      .map((w) => w.element?.textContent || w.value).join(),
  }
]))"""

#: The graph as the page holds it: node types, those it does not know, and links whose two ends agree.
LOADED = """() => ({
  types: app.graph._nodes.map((node) => node.type).sort(),
  unknown: app.graph._nodes.map((node) => node.type).filter((type) => !(type in LiteGraph.registered_node_types)),
  errors: app.graph._nodes.filter((node) => node.has_errors).map((node) => node.type),
  links: app.graph._nodes.flatMap((node) => (node.inputs ?? []).flatMap((input) => {
    const link = input.link == null ? null : app.graph.getLink?.(input.link) ?? app.graph.links[input.link];
    const origin = link && app.graph.getNodeById(link.origin_id);
    return origin?.outputs[link.origin_slot]?.links?.includes(link.id)
      ? [[Number(link.origin_id), link.origin_slot, Number(node.id), input.name].join(" ")] : [];
  })).sort(),
})"""


@pytest.fixture
def page(host: Any, tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on the path")
    with playwright.sync_playwright() as play:
        flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
        chromium = play.chromium.launch(executable_path=browser, headless=True, args=flags)
        page = chromium.new_page(viewport={"width": 1200, "height": 700})
        page.set_default_timeout(300_000)
        host.post("/settings", QUIET)
        page.goto(host.url, wait_until="domcontentloaded")
        page.wait_for_function(READY)
        yield page
        chromium.close()


def test_demo_runs_in_the_page(host: Any, page: Any, tmp_path: Path):
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    template = page.request.get(f"{host.url}/api/workflow_templates/anchor4d/1_demo.json")
    assert template.ok, "the host's template browser does not offer the demo"
    page.evaluate("async (workflow) => { await app.loadGraphData(workflow); }", template.json())
    saved = json.loads((ROOT / "example_workflows" / "1_demo.json").read_text(encoding="utf-8"))
    types = page.evaluate("() => app.graph._nodes.map((node) => node.type)")
    assert sorted(types) == sorted(node["type"] for node in saved["nodes"])
    assert not page.evaluate("() => app.graph._nodes.filter((node) => node.has_errors).length")

    page.evaluate(SHRINK, host.tiny)
    ended, detail = page.evaluate(RUN, 900)
    assert ended == "execution_success", detail
    page.wait_for_timeout(1500)
    shown = page.evaluate(SHOWN)
    for title in ("Demo Sample", "Focal Alignment", "Fit Gaussians to Mesh and Frame", "Motion Alignment", "Render Scene"):
        assert shown[title]["images"], f"{title} shows nothing"
        assert shown[title]["previews"] == 0, f"{title} still shows a live preview in place of its result"
    assert shown["Motion Alignment"]["images"][0].endswith(".webp")
    # What a node said last stays, also where the page takes its own line of progress away when the job ends.
    for title in ("Focal Alignment", "Motion Alignment"):
        assert "verdict: " in shown[title]["said"] and "at work for" not in shown[title]["said"], shown[title]
    assert "psnr" in shown["Score Against Ground Truth"]["said"].lower()
    page.screenshot(path=tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert not failures


def test_every_workflow_loads_whole(host: Any, page: Any):
    """Also those whose models are not here: no node is missing, no link is lost."""
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    known = {*host.get("/object_info"), "MarkdownNote", "PrimitiveNode"}
    for path in host.workflows():
        saved = json.loads(path.read_text(encoding="utf-8"))
        absent = {node["type"] for node in saved["nodes"]} - known
        if absent:  # ComfyUI's own nodes that this version has not got
            assert path.parent.name == "workflows" and not any(name.startswith("Anchor4D") for name in absent), path.name
            continue
        page.evaluate("async (workflow) => { await app.loadGraphData(workflow); }", saved)
        shown = page.evaluate(LOADED)
        assert shown["types"] == sorted(node["type"] for node in saved["nodes"]), path.name
        assert not shown["unknown"], path.name
        named = {"LoadImage", *(node["type"] for node in saved["nodes"] if node["properties"].get("models"))}
        assert set(shown["errors"]) <= named, path.name  # they are marked since their files are not here
        origins = {link[0]: f"{link[1]} {link[2]}" for link in saved["links"]}
        ends = [
            (origins[slot["link"]], n["id"], slot["name"]) for n in saved["nodes"] for slot in n["inputs"] if slot.get("link")
        ]
        assert len(ends) == len(origins), path.name
        assert shown["links"] == sorted(" ".join(map(str, end)) for end in ends), path.name
    assert not failures


#: What the nodes add to the page: colours of links, words in place of numbers, room for pictures.
LOOKS = """() => {
  const of = (type, name) => app.graph._nodes.find((node) => node.type === type)?.widgets.find((w) => w.name === name);
  const fit = of("Anchor4DFitGaussians", "steps"), shot = of("Anchor4DRenderScene", "shot.frames");
  const types = ["A4D_VIDEO", "A4D_MESH", "A4D_ALIGNMENT", "A4D_OBJECTIVES", "A4D_PRIOR", "A4D_SCENE", "A4D_SCENE,SPLAT"];
  const css = getComputedStyle(document.documentElement);
  const render = app.graph._nodes.find((node) => node.type === "Anchor4DRenderScene");
  const seed = of("Anchor4DFitGaussians", "seed");
  return {
    links: types.map((type) => LGraphCanvas.link_type_colors[type]),
    slots: types.map((type) => app.canvas.default_connection_color_byType[type]),
    css: types.slice(0, 6).map((type) => css.getPropertyValue(`--color-datatype-${type}`).trim()),
    words: [fit._displayValue, shot._displayValue, fit.value, shot.value, seed._displayValue], height: render.size[1],
  };
}"""


#: A blueprint's box on the page: its widgets and slots, and the prompt that comes of it at another preset.
BOX = """async (file) => {
  await app.loadGraphData(file);
  const box = app.graph._nodes[0];
  const preset = box.widgets.find((widget) => widget.name === "preset");
  const before = preset.value;
  preset.value = "paper";
  const { output } = await app.graphToPrompt();
  return {
    before, slots: box.inputs.map((slot) => slot.name), gives: box.outputs.map((slot) => slot.name),
    unknown: box.subgraph.nodes.map((node) => node.type).filter((type) => !(type in LiteGraph.registered_node_types)),
    types: Object.values(output).map((node) => node.class_type),
    presets: Object.values(output).flatMap((node) => ("preset" in node.inputs ? [node.inputs.preset] : [])),
  };
}"""


def test_every_blueprint_is_a_box_that_sets_its_presets(host: Any, page: Any):
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    offered = page.request.get(f"{host.url}/api/global_subgraphs").json()
    ours = {entry["name"]: key for key, entry in offered.items() if "anchor4d" in entry["info"]["node_pack"]}
    assert set(ours) == {path.stem for path in (ROOT / "subgraphs").glob("*.json")}
    for name, key in ours.items():
        file = json.loads(page.request.get(f"{host.url}/api/global_subgraphs/{key}").json()["data"])
        inside = file["definitions"]["subgraphs"][0]
        shown = page.evaluate(BOX, file)
        assert shown["before"] == "draft" and not shown["unknown"], name
        assert shown["slots"] == [end["name"] for end in inside["inputs"]] and shown["gives"] == ["scene"], name
        assert sorted(shown["types"]) == sorted(node["type"] for node in inside["nodes"]), name
        assert shown["presets"] and set(shown["presets"]) == {"paper"}, name
    assert not failures


def test_links_have_colours_numbers_words_and_pictures_room(host: Any, page: Any):
    saved = json.loads((ROOT / "example_workflows" / "1_demo.json").read_text(encoding="utf-8"))
    page.evaluate("async (workflow) => { await app.loadGraphData(workflow); }", saved)
    looks = page.evaluate(LOOKS)
    assert len(set(looks["links"][:6])) == 6 and all(looks["links"])
    assert looks["links"] == looks["slots"]
    assert looks["links"][6] == looks["links"][5]  # a socket that also takes the host's type
    assert looks["css"] == looks["links"][:6]
    assert looks["words"][:4] == ["preset", "scene's own", 0, 0]
    assert looks["words"][4] == "0"
    size = next(node["size"] for node in saved["nodes"] if node["type"] == "Anchor4DRenderScene")
    assert looks["height"] >= size[1]


#: Template 6 with tiny models: without the one of several views, whose pictures have a fixed size. In place of files, paths.
TINY_TEXT = """(models) => {
  for (const node of [...app.graph._nodes]) {
    const widget = (name) => node.widgets?.find((each) => each.name === name);
    if (widget("path")?.value === "mvdream") app.graph.remove(node);
    else if (widget("path")?.value in models) widget("path").value = models[widget("path").value];
    if (widget("steps")) widget("steps").value = 4;
    if (node.type === "Anchor4DTextTo4DScores" || node.type === "Anchor4DTextToGaussians") widget("frames").value = 4;
  }
}"""
#: Brings the player into sight, where it draws; its moment and number of frames, and whether it has a canvas.
PLAYED = """() => {
  const node = app.graph._nodes.find((each) => each.type === "Anchor4DPlayScene");
  Object.assign(app.canvas.ds, { scale: 1, offset: [300 - node.pos[0], 60 - node.pos[1]] });
  app.canvas.setDirty(true, true);
  const root = node.widgets.find((widget) => widget.name === "player").element.shadowRoot;
  return { time: root?.querySelector(".time")?.textContent ?? "", canvas: Boolean(root?.querySelector(".view canvas")) };
}"""


@pytest.mark.parametrize("vue", [False, True])
def test_the_template_from_text_runs_in_the_page(host: Any, page: Any, tmp_path: Path, vue: bool):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny_models
    import tiny_videos

    models = {
        "sd21-base": str(tiny_models.write_stable_diffusion(tmp_path / "sd")),
        "modelscope": str(tiny_videos.write_modelscope(tmp_path / "modelscope")),
    }
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    host.post("/settings", QUIET | {"Comfy.VueNodes.Enabled": vue})
    page.reload(wait_until="domcontentloaded")
    page.wait_for_function(READY)
    page.wait_for_function("() => app.extensionManager?.workflow?.activeWorkflow?.isLoaded && app.graph._nodes.length")
    template = page.request.get(f"{host.url}/api/workflow_templates/anchor4d/6_Align_Your_Gaussians.json")
    page.evaluate("async (workflow) => { await app.loadGraphData(workflow); }", template.json())
    page.evaluate(TINY_TEXT, models)
    ended, detail = page.evaluate(RUN, 900)
    assert ended == "execution_success", detail
    page.wait_for_function(f"() => ({PLAYED})().canvas && / 6/.test(({PLAYED})().time)", timeout=60_000)
    shown = page.evaluate(SHOWN)
    said = {title: each["said"] for title, each in shown.items()}
    assert "of 4" in said["Fit Motion to Text"] and "at work for" not in said["Fit Motion to Text"], said
    page.screenshot(path=tmp_path / "page.png")
    assert not failures


def test_load_mesh_uploads_a_model(host: Any, page: Any, tmp_path: Path):
    model = tmp_path / "triangle.obj"
    model.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", encoding="utf-8")
    saved = json.loads((ROOT / "example_workflows" / "2_your_video_and_3D_model.json").read_text(encoding="utf-8"))
    page.evaluate("async (workflow) => { await app.loadGraphData(workflow); }", saved)
    with page.expect_file_chooser() as chooser:
        page.evaluate("""() => app.graph._nodes.find((node) => node.type === "Anchor4DLoadMesh").widgets
            .find((widget) => widget.type === "button").callback()""")
    chooser.value.set_files(model)
    chosen = """() => app.graph._nodes.find((node) => node.type === "Anchor4DLoadMesh").widgets
        .find((widget) => widget.name === "mesh").value"""
    page.wait_for_function(f"() => ({chosen})() !== 'none'")
    assert page.evaluate(chosen) == "3d/triangle.obj"
    assert (host.folder / "input" / "3d" / "triangle.obj").read_text() == model.read_text()


def test_help_pages_are_served(host: Any, page: Any):
    for name in ("Anchor4DFocalAlignment", "Anchor4DMotionAlignment"):
        answer = page.request.get(f"{host.url}/extensions/anchor4d/docs/{name}.md")
        assert answer.ok
        assert "## Tips" in answer.text()


#: What Load Driving Video shows: its picture's kind and name, and whether a player of the page gave up.
PLAYERS = """() => {
  const node = app.graph._nodes[0], shown = app.nodeOutputs[node.id]?.images?.[0];
  const films = [...document.querySelectorAll("video")];
  return {
    type: shown?.type ?? null, name: shown?.filename ?? "", played: films.filter((film) => film.readyState > 0).length,
    broken: films.filter((film) => film.error).length + (/failed to load/i.test(document.body.innerText) ? 1 : 0),
  };
}"""
FOLDER = """() => {
  app.graph.clear();
  const load = LiteGraph.createNode("Anchor4DLoadVideo"), show = LiteGraph.createNode("PreviewImage");
  app.graph.add(load);
  app.graph.add(show);
  show.pos = [500, 0];
  load.connect(1, show, 0);
  load.widgets.find((widget) => widget.name === "resolution").value = 64;
  const video = load.widgets.find((widget) => widget.name === "video");
  video.value = "frames of a walk";
  video.callback(video.value);
}"""


@pytest.mark.parametrize("vue", [False, True])
def test_a_folder_of_frames_is_shown_by_what_was_read(host: Any, page: Any, tmp_path: Path, vue: bool):
    """The page plays what is chosen in a node with an upload button for videos, and what the node answers: both must play."""
    folder = host.folder / "input" / "frames of a walk"
    if not folder.exists():
        (write_sample(tmp_path / "case", frames=3, size=64) / "front").rename(folder)
    host.post("/settings", QUIET | {"Comfy.VueNodes.Enabled": vue})
    page.reload(wait_until="domcontentloaded")
    page.wait_for_function(READY)
    # The page's own workflow comes last, and would take the place of what is built before.
    page.wait_for_function("() => app.extensionManager?.workflow?.activeWorkflow?.isLoaded && app.graph._nodes.length")
    page.evaluate(FOLDER)
    page.wait_for_timeout(2000)
    before = page.evaluate(PLAYERS)
    assert before["type"] is None
    # In Vue nodes the page 1.44 keeps the player that it began with until there is a result.
    version = page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__ ?? '0.0'").split(".")
    assert not before["broken"] or (vue and (int(version[0]), int(version[1])) < (1, 58))
    ended, detail = page.evaluate(RUN, 300)
    assert ended == "execution_success", detail
    page.wait_for_function(f"() => ({PLAYERS})().played === 1")
    after = page.evaluate(PLAYERS)
    assert after["type"] == "temp" and after["name"].endswith(".webm") and not after["broken"]
