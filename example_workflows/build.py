"""Writes the workflows, the subgraph blueprints, and in the help pages what nodes take and give: ``python example_workflows/build.py --host http://127.0.0.1:8188``.

The templates lie beside this file, in the order in which the page lists them; ablations and graphs that need large models of
other makers lie in ``docs/workflows``. A workflow is never edited by hand: change it here and build again.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from ablations import ablations
from blueprints import Blueprint
from graph import File, Graph, Node, Output, text_of
from help_pages import page

HERE = Path(__file__).parent
ELSEWHERE = HERE.parent / "docs" / "workflows"
HELP = HERE.parent / "web" / "docs"
#: Where ComfyUI looks for a pack's subgraph blueprints.
BOXES = HERE.parent / "subgraphs"

PREPARE, ALIGN, FIT, PRIORS, VIEW, MEASURE = (
    "Prepare", "Align", "Fit", "Priors", "View and export", "Measure",
)  # fmt: skip
SVD = File("checkpoints", "stabilityai/stable-video-diffusion-img2vid", "svd.safetensors")


# --- parts that graphs share ---------------------------------------------------------------------------------------------


def sample(g: Graph, frames: int = 14) -> tuple[Node, Output]:
    """The demo's creature and its driving video."""
    made = g.add("Anchor4DSample", PREPARE, frames=frames, truth_azimuth="15")
    video = g.add(
        "Anchor4DPrepareVideo", PREPARE, source=made["images"], mask=made["masks"], fps=made["fps"], resolution=256, column=True
    )
    return made, video["driving_video"]


def load_video(g: Graph, group: str = PREPARE, frames: int = 24) -> Node:
    return g.add("Anchor4DLoadVideo", group, video="", frames=frames)


def pla4d(
    g: Graph, video: Output, mesh: Output, preset: Output, prior: Output | None = None, yaw: float | None = None,
    depth: bool = True,
) -> Output:  # fmt: skip
    """PLA4D from a video and an object: its camera, its two fits. With ``yaw`` its front is known; ``depth``: it moves there."""
    front: dict[str, Any] = {} if yaw is None else {"front": "degrees", "front__yaw": yaw}
    alignment = g.add("Anchor4DFocalAlignment", ALIGN, driving_video=video, mesh=mesh, **front)["alignment"]
    terms = g.add("Anchor4DPLA4DObjectives3D", FIT, preset=preset)["objectives"]
    scene = g.add(
        "Anchor4DFitGaussians", FIT, driving_video=video, alignment=alignment, objectives=terms, preset=preset
    )["scene"]  # fmt: skip
    more: dict[str, Any] = {} if prior is None else {"prior": prior}
    more |= {} if depth else {"depth": False}
    terms = g.add("Anchor4DPLA4DObjectives4D", FIT, preset=preset, column=True, **more)["objectives"]
    return g.add(
        "Anchor4DMotionAlignment", FIT, driving_video=video, scene=scene, alignment=alignment, objectives=terms, preset=preset
    )["scene"]  # fmt: skip


def align4d(g: Graph, video: Output, mesh: Output, preset: Output, prior: str = "", yaw: float | None = 0.0) -> Output:
    """Align4D: DreamGaussian4D's way with object distance (ODA), joint alignment (MGJA) and turns (AO)."""
    front: dict[str, Any] = {} if yaw is None else {"front": "degrees", "front__yaw": yaw}
    fixed = g.add("Anchor4DFixedCamera", ALIGN, driving_video=video, mesh=mesh, distance=1.5, **front)["alignment"]
    distance = f"{ALIGN}: object distance (ODA)"
    alignment = g.add("Anchor4DObjectDistance", distance, driving_video=video, alignment=fixed)["alignment"]
    asked = g.add("Anchor4DLoadPrior", PRIORS, prior="tiny", path=prior)["prior"]
    model = g.add("Anchor4DModelDistance", distance, driving_video=video, alignment=alignment, prior=asked, column=True)
    match = g.add("Anchor4DMeshMatch", FIT, views=4, mask=0.3, perceptual=0.0)["objectives"]
    scene = g.add(
        "Anchor4DFitGaussians", FIT, driving_video=video, alignment=alignment, objectives=match, preset=preset, method="align4d"
    )["scene"]  # fmt: skip
    terms = g.add(
        "Anchor4DAlign4DObjectives", FIT, title="Align4D Objectives: video and motion", method="dg4d", prior=asked,
        distance=model["distance"], preset=preset, column=True,
    )["objectives"]  # fmt: skip
    terms = g.add(
        "Anchor4DMotionGeometry", FIT, title="Motion and Geometry (MGJA)", prior=asked, objectives=terms,
        distance=model["distance"], weight=0.1, views=2, ask="motion and geometry",
    )["objectives"]  # fmt: skip
    turns = g.add("Anchor4DAsynchronousOptimisation", FIT, title="Asynchronous Optimisation (AO)")["turns"]
    return g.add(
        "Anchor4DMotionAlignment", FIT, driving_video=video, scene=scene, alignment=alignment, objectives=terms, turns=turns,
        preset=preset, method="align4d", column=True,
    )["scene"]  # fmt: skip


def dreamgaussian4d(g: Graph, video: Output, mesh: Output, preset: Output) -> Output:
    """DreamGaussian4D, the baseline: from a fixed camera, Gaussians that match the model, video and prior at once."""
    alignment = g.add("Anchor4DFixedCamera", ALIGN, driving_video=video, mesh=mesh, distance=1.5)["alignment"]
    asked = g.add("Anchor4DLoadPrior", PRIORS, prior="tiny")["prior"]
    match = g.add("Anchor4DMeshMatch", FIT, views=4, mask=0.3, perceptual=0.0)["objectives"]
    scene = g.add(
        "Anchor4DFitGaussians", FIT, driving_video=video, alignment=alignment, objectives=match, preset=preset, method="dg4d"
    )["scene"]  # fmt: skip
    terms = g.add("Anchor4DAlign4DObjectives", FIT, method="dg4d", prior=asked, preset=preset, column=True)["objectives"]
    return g.add(
        "Anchor4DMotionAlignment", FIT, driving_video=video, scene=scene, alignment=alignment, objectives=terms, preset=preset,
        method="dg4d", column=True,
    )["scene"]  # fmt: skip


def view(g: Graph, scene: Output, video: Output | None = None, *, size: int = 512, film: bool = True) -> None:
    """The player, a film from all around, the scene as a file."""
    beside: dict[str, Any] = {} if video is None else {"video": video}
    g.add("Anchor4DPlayScene", VIEW, scene=scene, **beside)
    if film:
        shot = g.add("Anchor4DRenderScene", VIEW, scene=scene, size=size, column=True)
        g.add("SaveVideo", VIEW, video=shot["video"], filename_prefix=f"video/{g.name}", column=True)
    g.add("Anchor4DSaveScene", VIEW, scene=scene, filename_prefix=f"3d/{g.name}")


def export(g: Graph, scene: Output) -> None:
    g.add("Anchor4DExportScene", VIEW, scene=scene, format="glb", filename_prefix=f"3d/{g.name}", column=True)


def score(g: Graph, made: Node, scene: Output) -> None:
    """Against how the sample really looks from a side that the video does not show."""
    shot = g.add(
        "Anchor4DRenderScene", MEASURE, scene=scene, shot="fixed", shot__azimuth=made["azimuth"], shot__repeats=1,
        framing="video", size=256,
    )  # fmt: skip
    g.add(
        "Anchor4DScore", MEASURE, images=shot["images"], truth=made["truth"], masks=shot["masks"],
        truth_masks=made["truth_masks"], column=True,
    )  # fmt: skip


def svd(g: Graph, image: Output) -> Output:
    """A film of a picture by Stable Video Diffusion, run by the host's own nodes."""
    group = f"{PREPARE}: film from the picture (Stable Video Diffusion)"
    model = g.add(
        "ImageOnlyCheckpointLoader", group, title="Load Stable Video Diffusion", ckpt_name="svd.safetensors"
    )  # fmt: skip
    condition = g.add(
        "SVD_img2vid_Conditioning", group, clip_vision=model["CLIP_VISION"], init_image=image, vae=model["VAE"], width=576,
        height=576, video_frames=14, motion_bucket_id=127, fps=7, augmentation_level=0.0,
    )  # fmt: skip
    guided = g.add("VideoLinearCFGGuidance", group, model=model["MODEL"], min_cfg=1.0)
    drawn = g.add(
        "KSampler", group, title="Make the film", model=guided["MODEL"], positive=condition["positive"],
        negative=condition["negative"], latent_image=condition["latent"], steps=25, cfg=2.5, sampler_name="euler",
        scheduler="karras", column=True,
    )  # fmt: skip
    frames = g.add("VAEDecode", group, samples=drawn["LATENT"], vae=model["VAE"])
    return g.add("Anchor4DPrepareVideo", group, source=frames["IMAGE"], fps=7.0)["driving_video"]


def lgm(g: Graph, image: Output) -> Output:
    """Gaussians of a picture by ImageDream and LGM."""
    return g.add(
        "Anchor4DImageToGaussians", f"{PREPARE}: object from the picture (LGM)", image=image, lgm="none", lgm_path="lgm",
        imagedream="none", imagedream_path="imagedream",
    )["splat"]  # fmt: skip


def hunyuan(g: Graph, video: Node) -> Output:
    """A mesh of the first frame by Hunyuan3D 2.1, run by the host's own nodes."""
    group = f"{PREPARE}: mesh from the first frame (Hunyuan3D 2.1)"
    first = g.add("ImageFromBatch", group, title="First frame", image=video["images"], batch_index=0, length=1)
    model = g.add(
        "ImageOnlyCheckpointLoader", group, title="Load Hunyuan3D 2.1", ckpt_name="hunyuan_3d_v2.1.safetensors"
    )  # fmt: skip
    seen = g.add("CLIPVisionEncode", group, clip_vision=model["CLIP_VISION"], image=first["IMAGE"], crop="center")
    condition = g.add("Hunyuan3Dv2Conditioning", group, clip_vision_output=seen["CLIP_VISION_OUTPUT"])
    latent = g.add("EmptyLatentHunyuan3Dv2", group, resolution=4096)
    shifted = g.add("ModelSamplingAuraFlow", group, model=model["MODEL"], shift=1.0)
    drawn = g.add(
        "KSampler", group, model=shifted["MODEL"], positive=condition["positive"], negative=condition["negative"],
        latent_image=latent["LATENT"], steps=30, cfg=5.0, sampler_name="euler", scheduler="normal", column=True,
    )  # fmt: skip
    voxel = g.add(
        "VAEDecodeHunyuan3D", group, samples=drawn["LATENT"], vae=model["VAE"], num_chunks=8000, octree_resolution=256
    )
    return g.add("VoxelToMesh", group, voxel=voxel["VOXEL"], algorithm="surface net", threshold=0.6)["MESH"]


def triposplat(g: Graph, video: Node) -> Output:
    """Splats of the first frame by TripoSplat, run by the host's own nodes."""
    group = f"{PREPARE}: splats from the first frame (TripoSplat)"
    first = g.add("ImageFromBatch", group, title="First frame", image=video["images"], batch_index=0, length=1)
    cut = g.add("TripoSplatPreprocessImage", group, image=first["IMAGE"], mask=video["masks"], erode_radius=1, size=1024)
    clip = g.add("CLIPVisionLoader", group, clip_name="dino_v3_vit_h.safetensors")
    vae = g.add("VAELoader", group, vae_name="flux2-vae.safetensors")
    decoder = g.add(
        "VAELoader", group, title="Load VAE (splat decoder)", vae_name="triposplat_vae_decoder_fp16.safetensors"
    )  # fmt: skip
    model = g.add("UNETLoader", group, unet_name="triposplat_fp16.safetensors")
    condition = g.add("TripoSplatConditioning", group, clip_vision=clip["CLIP_VISION"], vae=vae["VAE"], image=cut["image"])
    drawn = g.add(
        "KSampler", group, model=model["MODEL"], positive=condition["positive"], negative=condition["negative"],
        latent_image=condition["latent"], steps=20, cfg=3.0, sampler_name="dpmpp_2m", scheduler="simple", column=True,
    )  # fmt: skip
    return g.add("VAEDecodeTripoSplat", group, samples=drawn["LATENT"], vae=decoder["VAE"], num_gaussians=65536)["splat"]


HUNYUAN = File("checkpoints", "Comfy-Org/hunyuan3D_2.1_repackaged", "hunyuan_3d_v2.1.safetensors")
TRIPOSPLAT = [
    File(path.split("/")[0], "VAST-AI/TripoSplat", path)
    for path in (
        "diffusion_models/triposplat_fp16.safetensors", "clip_vision/dino_v3_vit_h.safetensors", "vae/flux2-vae.safetensors",
        "vae/triposplat_vae_decoder_fp16.safetensors",
    )
]  # fmt: skip
SDXL = File("checkpoints", "stabilityai/stable-diffusion-xl-base-1.0", "sd_xl_base_1.0.safetensors")


# --- templates -----------------------------------------------------------------------------------------------------------


def demo() -> Graph:
    g = Graph(
        "1_demo",
        """
# 1 Demo

**Press Run.** No files, no downloads: the program makes a small creature, its video and its mesh, and PLA4D turns the two into a moving 3D object made of Gaussians. With the preset *draft* this takes about a minute on two CPU cores, seconds on a graphics card; the very first run compiles the renderer.

1. **Prepare**: the creature is cut out of the video.
2. **Priors**: a small diffusion model that comes with the pack refines what the video does not show.
3. **Align**: the camera that filmed it is found.
4. **Fit**: Gaussians are fitted to mesh and first frame, then made to follow the video. What is minimised are the *objectives*: unplug one to see what it does.
5. **View and export**: the player (drag to turn, wheel to zoom, space to stop, **?** for all keys), a film from all around, the scene as a file.
6. **Measure**: scores against how the creature really looks from a side that the video does not show.

**Preset** sets *draft*, *standard* or *paper* everywhere.
""",
    )
    preset = g.preset("draft")
    made, video = sample(g)
    prior = g.add("Anchor4DLoadPrior", PRIORS, prior="tiny")["prior"]
    scene = pla4d(g, video, made["mesh"], preset, prior)
    view(g, scene, video, size=384)
    score(g, made, scene)
    return g


def your_video_and_mesh() -> Graph:
    g = Graph(
        "2_your_video_and_3D_model",
        """
# 2 Your video and 3D model

1. **Load Driving Video**: choose or upload a clip of 1 to 5 seconds of one object, filmed by a camera that stands still. Transparency is used where there is some; a plain backdrop is keyed out; anything else needs the *rembg* package. Images that another node cut out go through *Prepare Driving Video* instead.
2. **Load Mesh**: choose or upload a mesh or splats in the pose of the **first frame**. A MESH, SPLAT or 3D file of any other node plugs straight into *Focal Alignment*.
3. Press **Run** and look at *Focal Alignment*: a sharp overlay is a good alignment. If it shows the wrong side, set *front* to *degrees*.

**Preset**: try *draft* first, then *standard*. Film and files are in ComfyUI's output folder.
""",
    )
    preset = g.preset("draft")
    video = load_video(g)["driving_video"]
    mesh = g.add("Anchor4DLoadMesh", PREPARE, mesh="none")["mesh"]
    prior = g.add("Anchor4DLoadPrior", PRIORS, prior="tiny")["prior"]
    scene = pla4d(g, video, mesh, preset, prior)
    view(g, scene, video)
    export(g, scene)
    return g


def your_video_alone() -> Graph:
    g = Graph(
        "3_your_video_alone",
        """
# 3 Your video alone

No 3D model and no downloads: *Inflate Object* makes a closed object from the outline of the first frame, with the frame's colours in front and plain sides and back, and PLA4D makes it follow the video.

1. **Load Driving Video**: a clip of 1 to 5 seconds of **one object**, filmed from its front by a camera that stands still, with transparency or on a plain backdrop.
2. Press **Run**.

Sides and back are guesses. For a real object plug a MESH, SPLAT or 3D file of the first frame (Trellis 2, Hunyuan3D, TripoSplat, ...) into *Focal Alignment* in place of *Inflate Object*; *docs/workflows* holds graphs that do.

**depth** in *PLA4D Objectives (3D to 4D)* is off: a guessed shape moves in the picture alone. Switch it on with an object whose shape is known.

**Preset**: try *draft* first, then *standard*.
""",
    )
    preset = g.preset("draft")
    loaded = load_video(g)
    video = loaded["driving_video"]
    mesh = g.add("Anchor4DInflateObject", PREPARE, driving_video=video, column=True)["mesh"]
    scene = pla4d(g, video, mesh, preset, yaw=0.0, depth=False)
    view(g, scene, video)
    export(g, scene)
    return g


def align4d_sample() -> Graph:
    g = Graph(
        "4_Align4D",
        """
# 4 Align4D

**Press Run**: the demo's creature by Align4D, a few minutes on a CPU. DreamGaussian4D's way with the three parts that Align4D adds; bypass a part's nodes (select, Ctrl+B) to leave it out:

- **ODA**, object distance: *Object Distance* moves the camera to where the object looks as large as in the video, *Model Distance* searches the distance that the prior prefers.
- **MGJA**, joint alignment: *Motion and Geometry* asks the prior about the video's frames and about the static object.
- **AO**, asynchronous optimisation: motion and Gaussians are trained in turns.

*docs/workflows* holds this graph without each of them, and Align4D from a text, an image, a video or a 3D model with large models.

**Preset** sets *draft*, *standard* or *paper* everywhere. *Score* compares with how the creature really looks from a side that the video does not show.
""",
    )
    preset = g.preset("draft")
    made, video = sample(g, frames=8)
    scene = align4d(g, video, made["mesh"], preset)
    view(g, scene, video, size=384)
    score(g, made, scene)
    return g


def stag4d(gamma: float | None = None) -> Graph:
    g = Graph(
        "5_STAG4D",
        """
# 5 STAG4D: a video and a multi-view prior

No 3D model: a prior draws six views of every frame that agree over time, and Gaussians follow them.

1. **Load Driving Video**: a short clip of **one object**, filmed by a camera that stands still, with transparency or on a plain backdrop.
2. Press **Run** and look at *Temporal Anchors*: the fit is no better than these views.

The prior *tiny* comes with the pack and knows toys alone. For anything else load *zero123plus-v1.1* into the *Load Prior* of the anchors and *zero123-xl* into the other.

**With a 3D model** put *Object Distance* in place of *Start without Object* and switch *from_object* on.

**Preset**: try *draft* first.
""",
        commands=("zero123plus-v1.1", "zero123-xl"),
    )
    preset = g.preset("draft")
    video = load_video(g)["driving_video"]
    start = g.add("Anchor4DStartWithoutObject", ALIGN, driving_video=video)["alignment"]
    asked = g.add("Anchor4DLoadPrior", PRIORS, prior="tiny")["prior"]
    drawing = g.add("Anchor4DLoadPrior", f"{PRIORS}: anchors", title="Load Prior for the anchors", prior="tiny")["prior"]
    scene = followed(g, video, start, preset, asked, drawing, gamma)
    view(g, scene, video, film=False)
    return g


def followed(
    g: Graph, video: Output, start: Output, preset: Output, asked: Output, drawing: Output, gamma: float | None = None
) -> Output:
    """STAG4D behind its camera: anchors of every frame, and the two fits that follow them."""
    shared: dict[str, Any] = {} if gamma is None else {"gamma": gamma}
    anchors = g.add(
        "Anchor4DTemporalAnchors", f"{PRIORS}: anchors", driving_video=video, alignment=start, prior=drawing, **shared
    )["anchors"]  # fmt: skip
    terms = g.add(
        "Anchor4DSTAG4DObjectives", FIT, title="STAG4D Objectives: canonical", prior=asked, anchors=anchors, stage="canonical",
        preset=preset,
    )["objectives"]  # fmt: skip
    scene = g.add(
        "Anchor4DFitGaussians", FIT, driving_video=video, alignment=start, objectives=terms, preset=preset, method="stag4d"
    )["scene"]  # fmt: skip
    terms = g.add(
        "Anchor4DSTAG4DObjectives", FIT, title="STAG4D Objectives: motion", prior=asked, anchors=anchors, stage="motion",
        preset=preset, column=True,
    )["objectives"]  # fmt: skip
    return g.add(
        "Anchor4DMotionAlignment", FIT, driving_video=video, scene=scene, alignment=start, objectives=terms, preset=preset,
        method="stag4d",
    )["scene"]  # fmt: skip


AYG_MODELS = ("mvdream", "sd21-base", "modelscope")


def priors(g: Graph, **paths: str) -> dict[str, Output]:
    """Models named by their paths, each in a Load Prior of its own."""
    titles = {"views": "several views", "images": "text to image", "films": "text to video"}
    return {
        key: g.add("Anchor4DLoadPrior", PRIORS, title=f"Load Prior: {titles[key]}", prior="tiny", path=path)["prior"]
        for key, path in paths.items()
    }


def text_terms(
    g: Graph, group: str, prompt: str | Output, asked: dict[str, Output], column: bool = False, **scores: Any
) -> Output:
    """The scores of a motion and its two regularisers."""
    terms = g.add(
        "Anchor4DTextTo4DScores", group, video_prior=asked["films"], image_prior=asked["images"], prompt=prompt, column=column,
        **scores,
    )["objectives"]  # fmt: skip
    terms = g.add("Anchor4DStayInPlace", group, objectives=terms)["objectives"]
    return g.add("Anchor4DTogetherness", group, objectives=terms)["objectives"]


def ayg_text(*, still: dict[str, Any] | None = None, moving: dict[str, Any] | None = None) -> Graph:
    """Align Your Gaussians; with other values of its scores for the static object and for the motion."""
    g = Graph(
        "6_Align_Your_Gaussians",
        """
# 6 Align Your Gaussians: text to 4D

No video and no 3D model: a text alone. MVDream and Stable Diffusion shape a static object; a text-to-video model and Stable Diffusion move it, clip after clip, until the motion loops.

1. Get the models, see the note below. A graphics card is needed: each of thousands of steps asks large models.
2. Describe **one object** in *Text to 3D Scores*, and what it does in each *Text to 4D Scores*. Leave surroundings out.
3. Press **Run** with *Preset* on *draft*. Where object and motion please you, go on with *standard*: finished steps are kept.

Each *Extend Motion* adds half a clip with a text of its own; the last one closes the loop. Bypass them for a single clip.

Other models: another name in *path* of *Load Prior*, for the motion *zeroscope*, *ltx-video* or *wan-1.3b*; or any text-to-video model of ComfyUI through *Prior from Model*, with *prompt* left empty.
""",
        commands=AYG_MODELS,
    )
    preset = g.preset("draft")
    asked = priors(g, views="mvdream", images="sd21-base", films="modelscope")
    group = f"{FIT}: text to a static object"
    terms = g.add(
        "Anchor4DTextTo3DScores", group, views_prior=asked["views"], image_prior=asked["images"], prompt="a panda",
        **(still or {}),
    )["objectives"]  # fmt: skip
    scene = g.add("Anchor4DTextToGaussians", group, objectives=terms, preset=preset)["scene"]
    group = f"{FIT}: motion of the first clip"
    first = text_terms(g, group, "a panda dancing", asked, **(moving or {}))
    scene = g.add("Anchor4DTextMotion", group, scene=scene, objectives=first, preset=preset, column=True)["scene"]
    group = f"{FIT}: two more clips, the last closes the loop"
    second = text_terms(g, group, "a panda jumping", asked, **(moving or {}))
    scene = g.add("Anchor4DExtendMotion", group, scene=scene, objectives=second, preset=preset, column=True)["scene"]
    scene = g.add("Anchor4DExtendMotion", group, scene=scene, objectives=first, preset=preset, close_loop=True)["scene"]
    view(g, scene, film=False)
    return g


def edit_and_export() -> Graph:
    g = Graph(
        "7_edit_play_export",
        """
# 7 Edit, play, export

**Choose a scene** in *Load Scene* (the demo saves one), then press Run.

1. **Edit**: *Loop Scene* closes the clip's end into its beginning, *Prune Scene* keeps the Gaussians that matter. There are more: retime, trim, transform, crop, merge, colours.
2. **Play**: before and after the edits in a split view, with a border that you drag. Press **K** to record camera keys; connect *trajectory* to *Render Scene* to film along them.
3. **Film**: a camera that spirals around the object. Switch *maps* on for *depth* and *normals*.
4. **Export**: a moving mesh for Blender and engines (shown here in ComfyUI's own viewer), splats frame by frame for SuperSplat and others, and a page with the player that opens anywhere, offline.

Splats of other nodes, one or a batch of frames, go in place of *Load Scene* just as well; *Load Splats* reads files.
""",
    )
    loaded = g.add("Anchor4DLoadScene", "Load and edit", file="none")["scene"]
    looped = g.add("Anchor4DLoopScene", "Load and edit", scene=loaded, mode="close the loop")["scene"]
    pruned = g.add("Anchor4DPruneScene", "Load and edit", scene=looped, keep="share", keep__share=0.5)["scene"]
    g.add("Anchor4DPlayScene", "Play", scene=loaded, compare=pruned)
    path = g.add("Anchor4DSpiralTrajectory", "Film", scene=pruned, sweep=720.0, elevation_start=-15.0, elevation_end=45.0)
    shot = g.add("Anchor4DRenderScene", "Film", scene=pruned, trajectory=path["trajectory"], size=512)
    g.add("SaveVideo", "Film", video=shot["video"], filename_prefix=f"video/{g.name}", column=True)
    mesh = g.add("Anchor4DExportScene", "Export", scene=looped, format="glb", filename_prefix=f"3d/{g.name}")
    g.add("Preview3D", "Export", model_file=mesh["model_3d"])
    g.add(
        "Anchor4DExportScene", "Export", scene=pruned, format="ply", format__what="zip", filename_prefix=f"3d/{g.name}",
        column=True,
    )  # fmt: skip
    g.add("Anchor4DExportScene", "Export", scene=pruned, format="html", filename_prefix=f"3d/{g.name}")
    return g


# --- elsewhere: docs/workflows ---------------------------------------------------------------------------------------------

CHECK = "Press **Run** and look at the alignment: a sharp overlay is a good one. If it shows the wrong side, set *front* to *degrees*."


def align4d_from(what: str) -> Graph:
    """Align4D's four pipelines with large models."""
    notes = {
        "text": "Stable Diffusion XL draws what you describe, Stable Video Diffusion films the picture, LGM makes Gaussians of it, "
        "and Align4D makes them move like the film. Describe **one object** in *What the picture shows*, whole, seen from the "
        "front, on a **plain backdrop**.",
        "image": "Stable Video Diffusion films your picture, LGM makes Gaussians of it, and Align4D makes them move like the film. "
        "Load a picture of **one object**, whole, seen from the front, on a **plain backdrop**.",
        "video": "LGM makes Gaussians of the video's first frame, and Align4D makes them move like the video. Load a short clip of "
        "**one object**, filmed by a camera that stands still, with transparency or on a plain backdrop.",
        "3d": "Your 3D model is drawn from its front, Stable Video Diffusion films the picture, and Align4D makes the model move "
        "like the film. The front is +Z; for another, turn *azimuth* of *Render Object* and give *Fixed Camera* the same number "
        "with a minus.",
    }
    files = {"text": [SDXL, SVD], "image": [SVD], "3d": [SVD]}
    g = Graph(
        f"align4d_{what}",
        f"""
# Align4D from {"a 3D model" if what == "3d" else "an image" if what == "image" else f"a {what}"}

{notes[what]}

Get the models, see the list below. {CHECK}

Every link can be swapped: any node that ends in IMAGE or VIDEO, SPLAT, MESH or a 3D file. The prior is *zero123-xl*, as in the paper; for a first look, empty *path* in *Load Prior*: *tiny* comes with the pack.

**Preset**: try *draft* first.
""",
        files=files.get(what, ()),
        commands=(() if what == "3d" else ("lgm", "imagedream")) + ("zero123-xl",),
    )
    preset = g.preset("draft")
    if what == "video":
        loaded = load_video(g, f"{PREPARE}: your video")
        video = loaded["driving_video"]
        group = f"{PREPARE}: object from the picture (LGM)"
        first = g.add("ImageFromBatch", group, title="First frame", image=loaded["images"], batch_index=0, length=1)
        mesh = lgm(g, first["IMAGE"])
    elif what == "3d":
        group = f"{PREPARE}: your object and its front"
        mesh = g.add("Anchor4DLoadMesh", group, mesh="none")["mesh"]
        image = g.add("Anchor4DRenderObject", group, mesh=mesh, size=768)["image"]
        video = svd(g, image)
    else:
        if what == "image":
            image = g.add("LoadImage", f"{PREPARE}: your picture", image="example.png")["IMAGE"]
        else:
            image = sdxl(g)
        video = svd(g, image)
        mesh = lgm(g, image)
    scene = align4d(g, video, mesh, preset, prior="zero123-xl")
    view(g, scene, video)
    return g


def sdxl(g: Graph) -> Output:
    """A picture from a text by Stable Diffusion XL, run by the host's own nodes."""
    group = f"{PREPARE}: picture from text (SDXL)"
    model = g.add("CheckpointLoaderSimple", group, ckpt_name="sd_xl_base_1.0.safetensors")
    yes = g.add(
        "CLIPTextEncode", group, title="What the picture shows", clip=model["CLIP"],
        text="a small wooden toy robot, its whole body in view, seen from the front, plain light grey studio backdrop, soft light",
    )  # fmt: skip
    no = g.add(
        "CLIPTextEncode", group, title="What it does not show", clip=model["CLIP"],
        text="cropped, several objects, busy background, text, blurry",
    )  # fmt: skip
    latent = g.add("EmptyLatentImage", group, width=1024, height=1024)
    drawn = g.add(
        "KSampler", group, model=model["MODEL"], positive=yes["CONDITIONING"], negative=no["CONDITIONING"],
        latent_image=latent["LATENT"], steps=25, cfg=7.0, sampler_name="euler", scheduler="normal", column=True,
    )  # fmt: skip
    return g.add("VAEDecode", group, samples=drawn["LATENT"], vae=model["VAE"])["IMAGE"]


def video_to_4d(maker: str) -> Graph:
    """PLA4D with an object that the host's own models make of the first frame."""
    kind, files = ("a mesh by Hunyuan3D", [HUNYUAN]) if maker == "hunyuan3d" else ("splats by TripoSplat", TRIPOSPLAT)
    g = Graph(
        f"video_to_4d_{maker}",
        f"""
# Your video, {kind}

No 3D model at hand: ComfyUI's own nodes make one of the video's first frame, so it has that pose by itself.

1. Get the models, see below.
2. **Load Driving Video**: a short clip of **one object**, filmed by a camera that stands still, with transparency or on a plain backdrop.
3. {CHECK}

Any other node that gives MESH, SPLAT or a 3D file does as well. **Preset**: try *draft* first.
""",
        files=files,
    )
    preset = g.preset("draft")
    loaded = load_video(g)
    mesh = (hunyuan if maker == "hunyuan3d" else triposplat)(g, loaded)
    scene = pla4d(g, loaded["driving_video"], mesh, preset)
    view(g, scene, loaded["driving_video"])
    return g


def text_to_4d() -> Graph:
    g = Graph(
        "text_to_4d_wan_hunyuan3d",
        f"""
# Text to 4D with ComfyUI's own models

Wan 2.2 films what you describe, Hunyuan3D 2.1 makes a mesh of the film's first frame, and PLA4D aligns moving Gaussians with both.

1. Get the models, see the list below.
2. Describe **one object** on a **plain backdrop**, filmed by a camera that stands still. To start from a picture, connect *Load Image* to *start_image*.
3. {CHECK}

**Preset**: try *draft* first.
""",
        files=(
            *(
                File(path.split("/")[0], f"Comfy-Org/Wan_2.{minor}", f"split_files/{path}")
                for minor, path in (
                    ("2_ComfyUI_Repackaged", "diffusion_models/wan2.2_ti2v_5B_fp16.safetensors"),
                    ("1_ComfyUI_repackaged", "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
                    ("2_ComfyUI_Repackaged", "vae/wan2.2_vae.safetensors"),
                )
            ),
            HUNYUAN,
        ),
    )
    preset = g.preset("draft")
    group = f"{PREPARE}: film from text (Wan 2.2)"
    model = g.add("UNETLoader", group, unet_name="wan2.2_ti2v_5B_fp16.safetensors")
    clip = g.add("CLIPLoader", group, clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan")
    vae = g.add("VAELoader", group, vae_name="wan2.2_vae.safetensors")
    shifted = g.add("ModelSamplingSD3", group, model=model["MODEL"], shift=8.0)
    latent = g.add("Wan22ImageToVideoLatent", group, vae=vae["VAE"], width=704, height=704, length=49)
    yes = g.add(
        "CLIPTextEncode", group, title="What the film shows", clip=clip["CLIP"], column=True,
        text="A small wooden toy robot dances on the spot, its whole body in view, seen from the front. The camera stands still. "
        "Plain light grey studio backdrop, soft even light, no shadows on the floor.",
    )  # fmt: skip
    no = g.add(
        "CLIPTextEncode", group, title="What it does not show", clip=clip["CLIP"],
        text="camera movement, zoom, cropped, several objects, busy background, text, subtitles, blurry, low quality, still picture",
    )  # fmt: skip
    drawn = g.add(
        "KSampler", group, model=shifted["MODEL"], positive=yes["CONDITIONING"], negative=no["CONDITIONING"],
        latent_image=latent["LATENT"], steps=20, cfg=5.0, sampler_name="uni_pc", scheduler="simple", column=True,
    )  # fmt: skip
    frames = g.add("VAEDecode", group, samples=drawn["LATENT"], vae=vae["VAE"])
    video = g.add("Anchor4DPrepareVideo", group, source=frames["IMAGE"], frames=24, fps=24.0)
    scene = pla4d(g, video["driving_video"], hunyuan(g, video), preset)
    view(g, scene, video["driving_video"])
    return g


def stable_zero123() -> Graph:
    g = Graph(
        "stable_zero123_refines",
        """
# Stable Zero123 refines the unseen sides

A diffusion model that ComfyUI loads refines the motion: **Reference Refinement** (PLA4D Eq. 11) compares the moving object with the static one from random sides and closes the tearing artefacts that the video cannot see.

1. Get the model, see below. Its licence forbids commercial use without an agreement.
2. **Load Driving Video** and **Load Mesh** as in *2 Your video and 3D model*.
3. Press **Run**. The last pass of *Motion Alignment* is the refinement; *refine_steps* there sets its length.

Without a graphics card take **Load Prior** with *tiny* in place of *Prior from Model*. For Zero123-XL, set *camera* there to *zero123*.

**Preset**: try *draft* first.
""",
        files=[File("checkpoints", "stabilityai/stable-zero123", "stable_zero123.ckpt")],
    )
    preset = g.preset("draft")
    video = load_video(g)["driving_video"]
    mesh = g.add("Anchor4DLoadMesh", PREPARE, mesh="none")["mesh"]
    model = g.add("ImageOnlyCheckpointLoader", PRIORS, ckpt_name="stable_zero123.ckpt")
    prior = g.add(
        "Anchor4DPriorFromModel", PRIORS, model=model["MODEL"], vae=model["VAE"], clip_vision=model["CLIP_VISION"]
    )["prior"]  # fmt: skip
    alignment = g.add("Anchor4DFocalAlignment", ALIGN, driving_video=video, mesh=mesh)["alignment"]
    terms = g.add("Anchor4DPLA4DObjectives3D", FIT, preset=preset)["objectives"]
    scene = g.add(
        "Anchor4DFitGaussians", FIT, driving_video=video, alignment=alignment, objectives=terms, preset=preset
    )["scene"]  # fmt: skip
    terms = g.add("Anchor4DPLA4DObjectives4D", FIT, preset=preset, column=True)["objectives"]
    terms = g.add("Anchor4DReferenceRefinement", FIT, prior=prior, objectives=terms)["objectives"]
    scene = g.add(
        "Anchor4DMotionAlignment", FIT, driving_video=video, scene=scene, alignment=alignment, objectives=terms, preset=preset
    )["scene"]  # fmt: skip
    view(g, scene, video)
    return g


def ayg_scene() -> Graph:
    g = Graph(
        "ayg_two_objects",
        """
# Your object moves as a text says, two in one scene

Align Your Gaussians with an object that you have: its motion alone is made of the text. Then two of them, each with its own motion and clock, are placed in one scene, one on a path.

1. Get the models, see the note below. A graphics card is needed.
2. Put your own mesh or splats in place of the sample. It should face +Z; else set *yaw*.
3. Say what each does in its *Text to 4D Scores*, and press **Run**.

*Transform Scene* places an object; with *moving* on *to* it goes from one place to another while its clip plays. *Merge Scenes* puts them together.
""",
        commands=AYG_MODELS[1:],
    )
    preset = g.preset("draft")
    made = g.add("Anchor4DSample", PREPARE)
    asked = priors(g, images="sd21-base", films="modelscope")
    still = g.add("Anchor4DTextToGaussians", f"{FIT}: Gaussians of the object", object=made["mesh"], preset=preset)["scene"]
    group, moving = f"{FIT}: two motions", []
    for index, prompt in enumerate(("a bear dancing", "a bear walking")):
        terms = text_terms(g, group, prompt, asked, column=index > 0)
        moving.append(g.add("Anchor4DTextMotion", group, scene=still, objectives=terms, preset=preset, column=True)["scene"])
    group = f"{VIEW}: one scene"
    looped = g.add("Anchor4DLoopScene", group, scene=moving[0], mode="ping-pong")["scene"]
    left = g.add("Anchor4DTransformScene", group, scene=looped, translate_x=-0.4)["scene"]
    right = g.add(
        "Anchor4DTransformScene", group, scene=moving[1], translate_x=0.6, translate_z=-0.8, scale=0.6, moving="to",
        moving__to_translate_x=0.6, moving__to_translate_z=0.8, moving__to_scale=0.6, column=True,
    )["scene"]  # fmt: skip
    merged = g.add("Anchor4DMergeScenes", group, scenes__scene_0=left, scenes__scene_1=right, column=True)["scene"]
    g.add("Anchor4DPlayScene", group, scene=merged, column=True)
    g.add("Anchor4DSaveScene", group, scene=merged, filename_prefix=f"3d/{g.name}")
    return g


def several_objects() -> Graph:
    g = Graph(
        "several_objects",
        """
# Several objects of one clip

Two objects that pass each other, each with its own 3D model, become one moving scene.

1. **Load Video**: the clip, and a film of its label masks: each object in a colour of its own on black, as a tracker such as SAM 2 writes them. Where the objects never touch, leave the masks out (bypass *Label masks*): the parts before the backdrop are taken, from the left.
2. **Load Mesh**: the model of each object, in the order of the objects. Without one, put *Inflate Object* in its place.
3. Press **Run**.

*Split Objects* gives each object a driving video in which whatever another may hide is unknown, and holds it in place. *Focal Alignment* of the second takes the camera of the first. *Compose Objects* puts both where the clip shows them: by the ground on which they stand, and whoever covers the other in front.
""",
    )
    preset = g.preset("standard")
    clip = g.add("LoadVideo", PREPARE, title="The clip")
    masks = g.add("LoadVideo", PREPARE, title="Label masks")
    labels = g.add("GetVideoComponents", PREPARE, video=masks["VIDEO"], column=True)["images"]
    split = g.add("Anchor4DSplitObjects", PREPARE, source=clip["VIDEO"], labels=labels, frames=24, column=True)
    made: dict[str, Any] = {}
    first: Output | None = None
    for k in (1, 2):
        mesh = g.add("Anchor4DLoadMesh", f"{FIT}: object {k}", mesh="none", column=k > 1)["mesh"]
        video, group = split[f"object_{k}"], f"{FIT}: object {k}"
        shared: dict[str, Any] = {} if first is None else {"same_camera": first}
        alignment = g.add("Anchor4DFocalAlignment", group, driving_video=video, mesh=mesh, **shared)["alignment"]
        first = first or alignment
        terms = g.add("Anchor4DPLA4DObjectives3D", group, preset=preset, column=True)["objectives"]
        scene = g.add(
            "Anchor4DFitGaussians", group, driving_video=video, alignment=alignment, objectives=terms, preset=preset
        )["scene"]  # fmt: skip
        terms = g.add("Anchor4DPLA4DObjectives4D", group, preset=preset, column=True)["objectives"]
        moving = g.add(
            "Anchor4DMotionAlignment", group, driving_video=video, scene=scene, alignment=alignment, objectives=terms,
            preset=preset,
        )["scene"]  # fmt: skip
        made |= {f"scenes__scene_{k - 1}": moving, f"driving_videos__driving_video_{k - 1}": video}
    composed = g.add("Anchor4DComposeObjects", VIEW, **made)["scene"]
    view(g, composed)
    return g


def player() -> Graph:
    g = Graph(
        "play_a_scene",
        """
# Play a scene

1. **Load Scene**: choose a scene that Save Scene or the command line wrote, or splats of other programs: one file, or a folder or zip with one a frame. Press **Run**.
2. **Play Scene**: drag turns, the wheel zooms, space plays; press **?** for all keys. *What the player shows* is its picture at the next run: camera, moment and background.
3. **Camera path**: press **K** at a view, move on, press **K** again. The next run films the way from view to view.
4. **Compare**: right-click *Load Scene to compare*, choose *Bypass* to switch it on, and drag the border of the split view.
5. **Page to send to anybody**: one HTML file in ComfyUI's *output/3d* folder that plays the scene offline, in any browser.
""",
    )
    scene = g.add("Anchor4DLoadScene", "Load", file="none")["scene"]
    other = g.add("Anchor4DLoadScene", "Load", title="Load Scene to compare", bypass=True, file="none")["scene"]
    played = g.add("Anchor4DPlayScene", "Play", scene=scene, compare=other)
    g.add("PreviewImage", "Play", title="What the player shows", images=played["image"], column=True, shown=330)
    shot = g.add(
        "Anchor4DRenderScene", "Film", title="Film along the camera path", scene=played["scene"],
        trajectory=played["trajectory"], shot="fixed",
    )  # fmt: skip
    g.add("SaveVideo", "Film", video=shot["video"], filename_prefix=f"video/{g.name}", column=True)
    g.add(
        "Anchor4DExportScene", "Film", title="Page to send to anybody", scene=played["scene"], format="html",
        filename_prefix=f"3d/{g.name}",
    )  # fmt: skip
    return g


def preview() -> Graph:
    g = Graph(
        "8_preview_in_seconds",
        """
# 8 Preview in seconds

**Press Run.** *Motion Preview* moves the 3D model by tracking alone: points of the video are followed by optical flow and the model moves with them as rigidly as it can. Nothing is fitted; it takes seconds, most of them for the camera.

1. **Prepare**: the demo's creature. Put *Load Driving Video* and *Load Mesh* in its place, or any MESH, SPLAT or 3D file that another node makes of the first frame.
2. **Align**: the camera that filmed it is found.
3. **Fit**: the preview, as the player shows it at once.

**To refine it**, select the bypassed nodes *PLA4D Objectives (3D to 4D)* and *Motion Alignment* (Ctrl+B) and press Run again: the fit starts with the preview's motion. In sharper graphs *Fit Gaussians to Mesh and Frame* goes before the preview, into its *scene*.

**Preset** says how long that fit takes: *draft* or *standard*.
""",
    )
    preset = g.preset("draft")
    made, video = sample(g)
    alignment = g.add("Anchor4DFocalAlignment", ALIGN, driving_video=video, mesh=made["mesh"])["alignment"]
    scene = g.add("Anchor4DMotionPreview", FIT, driving_video=video, alignment=alignment)["scene"]
    group = f"{FIT}: refine it"
    terms = g.add("Anchor4DPLA4DObjectives4D", group, preset=preset, bypass=True)["objectives"]
    scene = g.add(
        "Anchor4DMotionAlignment", group, driving_video=video, scene=scene, alignment=alignment, objectives=terms,
        preset=preset, bypass=True,
    )["scene"]  # fmt: skip
    view(g, scene, video, film=False)
    return g


def quadruplet() -> Graph:
    g = Graph(
        "x4d_quadruplet",
        """
# A quadruplet for a set

Text, image, video and 3D of one object, aligned to the pixel, as Align4D's X4D has them: one in a set that *Load Quadruplet* and `a4d.X4D` read.

1. **Load Driving Video**: a short clip of one object, filmed by a camera that stands still.
2. **Save Quadruplet**: say what the object is and does, or plug the text of any captioner into *text*; name the licence of the clip. Press **Run**.
3. The set is the folder *x4d* in ComfyUI's output folder. **Load Quadruplet** shows what is in it: switch its group on (select it, Ctrl+B) once there is one.

For a 3D model of the first frame in place of the inflated outline, plug it into *Focal Alignment*. Many at once: `python -m anchor4d x4d build` (docs/x4d.md).
""",
    )
    preset = g.preset("draft")
    video = load_video(g)["driving_video"]
    mesh = g.add("Anchor4DInflateObject", PREPARE, driving_video=video, column=True)["mesh"]
    scene = pla4d(g, video, mesh, preset, yaw=0.0, depth=False)
    alignment = next(node for node in g.nodes if node.kind == "Anchor4DFocalAlignment")["alignment"]
    g.add(
        "Anchor4DSaveQuadruplet", VIEW, scene=scene, driving_video=video, alignment=alignment, text="", set_folder="x4d",
        name="object",
    )  # fmt: skip
    loaded = g.add("Anchor4DLoadQuadruplet", "Load: a quadruplet of a set", bypass=True, set_folder="x4d", index=0)
    g.add("Anchor4DPlayScene", "Load: a quadruplet of a set", bypass=True, scene=loaded["scene"], video=loaded["driving_video"])
    return g


def around() -> Graph:
    """The host's own cameras, splats and meshes before and after a scene."""
    g = Graph(
        "comfyui_cameras_and_splats",
        """
# ComfyUI's own cameras, splats and meshes around a scene

1. **Load Scene**: choose a scene that Save Scene or the command line wrote, or splats of other programs. Press **Run**.
2. **Cameras in**: two *Create Camera Info* nodes are where *Render Scene* films from and to. Any camera of ComfyUI does as well: *Load 3D*, *Camera Angle*, and from 0.46 on *Create Camera Orbit* and *Batch Cameras*, one picture a camera.
3. **Cameras out**: *Orbit Trajectory* gives a camera to *Render Splat* and *Render Mesh*, which draw the same moment from the same side as ours.
4. **Splats**: *Transform Splat* and *Merge Splat* put a second, turned copy beside the first; any node of ours takes what comes out.
5. **Mesh**: *Scene at Time to Mesh* for ComfyUI's mesh tools, and back as an object by *Render Object*. *Render Mesh* is in ComfyUI newer than 0.33.0.
""",
    )
    scene = g.add("Anchor4DLoadScene", "Load", file="none")["scene"]
    group = "Film: ComfyUI's cameras in"
    common: dict[str, Any] = {"mode": "orbit", "mode__pitch": 10.0, "mode__distance": 2.5, "fov": 35.0}
    ends = [
        g.add("CreateCameraInfo", group, title=title, mode__yaw=yaw, **common)["camera_info"]
        for title, yaw in (("Create Camera Info: start", -20.0), ("Create Camera Info: end", 110.0))
    ]
    path = g.add("Anchor4DKeyframeTrajectory", group, cameras__camera_0=ends[0], cameras__camera_1=ends[1], column=True)
    film = g.add("Anchor4DRenderScene", group, scene=scene, trajectory=path["trajectory"], shot="fixed", background="white")
    g.add("SaveVideo", group, video=film["video"], filename_prefix=f"video/{g.name}", column=True)
    group = "Draw: our camera out"
    out = g.add("Anchor4DOrbitTrajectory", group, scene=scene, azimuth=30.0, elevation=10.0, time=0.0)["camera_info"]
    common = {"width": 512, "height": 512, "background": "#ffffff"}
    g.add("Anchor4DRenderScene", group, scene=scene, camera_info=out, shot="orbit", shot__frames=1, background="white")
    splat = g.add("Anchor4DSceneAtTime", group, scene=scene, time=0.0, column=True)["splat"]
    drawn = g.add("RenderSplat", group, splat=splat, camera_info=out, sharpen=1.0, **common)
    g.add("PreviewImage", group, title="Render Splat's picture", images=drawn["image"], shown=330)
    mesh = g.add("Anchor4DSceneToMesh", group, scene=scene, time=0.0, column=True)["mesh"]
    cast = g.add("RenderMesh", group, mesh=mesh, camera_info=out, **common)
    g.add("PreviewImage", group, title="Render Mesh's picture", images=cast["image"], shown=330)
    group = "Play: ComfyUI's splats and meshes in"
    turned = g.add(
        "TransformSplat", group, splat=splat, translate_x=0.8, rotate_y=90.0, scale_x=0.7, scale_y=0.7, scale_z=0.7
    )["splat"]  # fmt: skip
    both = g.add("MergeSplat", group, splats__splat0=splat, splats__splat1=turned)["splat"]
    g.add("Anchor4DPlayScene", group, scene=both, column=True)
    back = g.add("Anchor4DRenderObject", group, mesh=mesh, azimuth=30.0, elevation=10.0, column=True)
    g.add("PreviewImage", group, title="The mesh as an object", images=back["image"], shown=330)
    return g


def templates() -> list[Graph]:
    """In the order in which the page lists them."""
    return [
        demo(), your_video_and_mesh(), your_video_alone(), align4d_sample(), stag4d(), ayg_text(), edit_and_export(),
        preview(),
    ]  # fmt: skip


def elsewhere() -> list[Graph]:
    """Graphs that are not templates."""
    return [
        *ablations(sys.modules[__name__]), *(align4d_from(what) for what in ("text", "image", "video", "3d")), video_to_4d("hunyuan3d"),
        video_to_4d("triposplat"), text_to_4d(), stable_zero123(), ayg_scene(), several_objects(),
        player(), quadruplet(), around(),
    ]  # fmt: skip


def prepared(g: Blueprint) -> Output:
    """A box's pictures or film, as driving video."""
    made = g.add("Anchor4DPrepareVideo", PREPARE, source=g.takes("source"), mask=g.takes("mask"))
    return made["driving_video"]


def blueprints() -> list[Blueprint]:
    """A method each."""
    where = "Anchor4D"
    one = Blueprint("PLA4D (Video + 3D to 4D)", where, "Moves a 3D model or splats as a video shows it, by PLA4D.")
    video = prepared(one)
    one.gives("scene", pla4d(one, video, one.takes("mesh"), one.preset("draft")))
    alone = Blueprint("PLA4D (Video to 4D)", where, "Moves an object that is inflated from the video's first frame, by PLA4D.")
    video = prepared(alone)
    mesh = alone.add("Anchor4DInflateObject", PREPARE, driving_video=video, column=True)["mesh"]
    alone.gives("scene", pla4d(alone, video, mesh, alone.preset("draft"), yaw=0.0, depth=False))
    two = Blueprint("Align4D (Video + 3D to 4D)", where, "Moves a 3D model or splats as a video shows it, by Align4D.")
    video = prepared(two)
    two.gives("scene", align4d(two, video, two.takes("mesh"), two.preset("draft"), yaw=None))
    three = Blueprint("STAG4D (Video to 4D)", where, "Makes a moving object of a video and a multi-view prior, by STAG4D.")
    video = prepared(three)
    start = three.add("Anchor4DStartWithoutObject", ALIGN, driving_video=video)["alignment"]
    asked, drawing = three.takes("prior"), three.takes("anchors_prior")
    three.gives("scene", followed(three, video, start, three.preset("draft"), asked, drawing))
    four = Blueprint("Align Your Gaussians (Text to 4D)", where, "Makes a moving object of two texts, by Align Your Gaussians.")
    asked = {key: four.takes(f"{key}_prior") for key in ("views", "images", "films")}
    object_, motion, preset = four.takes("object_prompt"), four.takes("motion_prompt"), four.preset("draft")
    group = f"{FIT}: text to a static object"
    terms = four.add(
        "Anchor4DTextTo3DScores", group, views_prior=asked["views"], image_prior=asked["images"], prompt=object_
    )["objectives"]  # fmt: skip
    scene = four.add("Anchor4DTextToGaussians", group, objectives=terms, preset=preset)["scene"]
    group = f"{FIT}: its motion"
    terms = text_terms(four, group, motion, asked)
    four.gives("scene", four.add("Anchor4DTextMotion", group, scene=scene, objectives=terms, preset=preset)["scene"])
    base = Blueprint("DreamGaussian4D (Video + 3D to 4D)", where, "Moves a 3D model as a video shows it, by DreamGaussian4D.")
    video = prepared(base)
    base.gives("scene", dreamgaussian4d(base, video, base.takes("mesh"), base.preset("draft")))
    return [one, alone, two, base, three, four]


def built(schema: dict[str, Any]) -> dict[Path, str]:
    """Every workflow's and every help page's file and text."""
    placed = [(HERE, g) for g in templates()] + [(ELSEWHERE, g) for g in elsewhere()]
    placed += [(BOXES, box) for box in blueprints()]
    graphs = {folder / f"{g.name}.json": text_of(g.build(schema)) for folder, g in placed}
    pages = {HELP / f"{name}.md": info for name, info in schema.items() if name.startswith("Anchor4D")}
    return graphs | {path: page(path.read_text("utf-8") if path.is_file() else "", info) for path, info in pages.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="http://127.0.0.1:8188", help="a running ComfyUI with this pack")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file differs")
    args = parser.parse_args()
    with urllib.request.urlopen(f"{args.host}/object_info", timeout=60) as answer:
        files = built(json.load(answer))
    differing = [path for path, text in files.items() if not path.is_file() or path.read_text("utf-8") != text]
    if not args.check:
        for path in differing:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path], "utf-8")
    for path in differing:
        print(path.relative_to(HERE.parent))
    return int(args.check and bool(differing))


if __name__ == "__main__":
    raise SystemExit(main())
