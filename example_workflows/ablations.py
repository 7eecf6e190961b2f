"""Ablations as graphs: a whole method with nodes bypassed, or with one value that leaves a part out. Nothing else differs.

``build.py`` writes them into ``docs/workflows``. Each part is left out by ``--without`` of the command line as well.
"""

from __future__ import annotations

from typing import Any

from graph import Graph, Output


def ablations(build: Any) -> list[Graph]:
    """Those of the four methods.

    Args:
        build: the module with the parts that graphs share and with the templates.
    """
    return [*of_align4d(build), *of_pla4d(build), *of_stag4d(build), *of_ayg(build)]


def of_align4d(build: Any) -> list[Graph]:
    """Align4D on the sample without each of its parts."""
    whole = build.align4d_sample()
    return [
        whole.without(
            "align4d_no_oda",
            "# Align4D without object distance (ODA)\n\nThe template *4 Align4D* with *Object Distance* and *Model Distance* "
            "bypassed: the camera stays at DreamGaussian4D's distance. Select both and press Ctrl+B to put them back.",
            "Anchor4DObjectDistance", "Anchor4DModelDistance",
        ),
        whole.without(
            "align4d_no_mgja",
            "# Align4D without joint alignment (MGJA)\n\nThe template *4 Align4D* with *Motion and Geometry* bypassed: the prior "
            "is asked about the video's frames alone, as in DreamGaussian4D and at its weight. Press Ctrl+B to put it back.",
            "Anchor4DMotionGeometry",
        ),
        whole.without(
            "align4d_no_ao",
            "# Align4D without asynchronous optimisation (AO)\n\nThe template *4 Align4D* with *Asynchronous Optimisation* "
            "bypassed: motion and Gaussians are trained at once. Press Ctrl+B to put it back.",
            "Anchor4DAsynchronousOptimisation",
        ),
    ]  # fmt: skip


WHOLE = """
# PLA4D, part by part

**Press Run**: the demo's creature by PLA4D, every objective a node of its own, with the values of preset *draft*. Bypass a part's node (select, Ctrl+B) to leave it out:

- *Focal Alignment* (Eq. 4): the graph *pla4d_no_focal* has *Fixed Camera* in its place.
- *GS-Mesh* (Eq. 9): the static object is compared with the mesh from random sides.
- *Motion alignment* (Eq. 10): the moving object is compared with the video.
- *Reference Refinement* (Eq. 11): a prior compares the moving object with the static one from random sides.
- Ours: *Rigidity*, *Smoothness* and the *Motion Prior*.

*Score* compares with how the creature really looks from a side that the video does not show.
"""
LOSS_3D, LOSS_4D = "Reference View Loss: static object", "Motion alignment: Reference View Loss"


def pla4d_parts(build: Any, name: str = "pla4d_parts", note: str = WHOLE, *, focal: bool = True) -> Graph:
    """PLA4D on the sample, every objective a node; without ``focal``, with DreamGaussian4D's fixed camera."""
    g = Graph(name, note)
    preset = g.preset("draft")
    made, video = build.sample(g, frames=8)
    prior = g.add("Anchor4DLoadPrior", build.PRIORS, prior="tiny")["prior"]
    kind = "Anchor4DFocalAlignment" if focal else "Anchor4DFixedCamera"
    alignment = g.add(kind, build.ALIGN, driving_video=video, mesh=made["mesh"])["alignment"]
    group = f"{build.FIT}: static object"
    terms: Output = g.add("Anchor4DFrontMatch", group, title=LOSS_3D, weight=1e4, mask=0.3, perceptual=0.0)["objectives"]
    terms = g.add(
        "Anchor4DMeshMatch", group, title="GS-Mesh: Mesh Match", objectives=terms, weight=1e4, views=4, mask=0.3, perceptual=0.0
    )["objectives"]  # fmt: skip
    scene = g.add(
        "Anchor4DFitGaussians", group, driving_video=video, alignment=alignment, objectives=terms, preset=preset, column=True
    )["scene"]  # fmt: skip
    group = f"{build.FIT}: motion"
    terms = g.add("Anchor4DFrontMatch", group, title=LOSS_4D, weight=3.0, mask=0.33, perceptual=0.0, levels=4)["objectives"]
    terms = g.add("Anchor4DRigidity", group, objectives=terms)["objectives"]
    terms = g.add("Anchor4DSmoothness", group, objectives=terms)["objectives"]
    terms = g.add("Anchor4DMotionPrior", group, objectives=terms, column=True)["objectives"]
    terms = g.add("Anchor4DReferenceRefinement", group, prior=prior, objectives=terms)["objectives"]
    scene = g.add(
        "Anchor4DMotionAlignment", group, driving_video=video, scene=scene, alignment=alignment, objectives=terms, preset=preset,
        column=True,
    )["scene"]  # fmt: skip
    build.view(g, scene, video, size=384)
    build.score(g, made, scene)
    return g


def of_pla4d(build: Any) -> list[Graph]:
    """PLA4D part by part, and without each."""
    whole = pla4d_parts(build)
    return [
        whole,
        pla4d_parts(
            build,
            "pla4d_no_focal",
            "# PLA4D without focal alignment\n\nThe graph *pla4d_parts* with *Fixed Camera* in place of *Focal Alignment*: the "
            "camera of DreamGaussian4D, whatever the video shows. The command line: `--without focal`.",
            focal=False,
        ),
        whole.without(
            "pla4d_no_gs_mesh",
            "# PLA4D without GS-Mesh\n\nThe graph *pla4d_parts* with *GS-Mesh* bypassed: the static object sees the first frame "
            "alone. The command line: `--without gs-mesh`.",
            "Anchor4DMeshMatch",
        ),
        whole.without(
            "pla4d_no_motion",
            "# PLA4D without motion alignment\n\nThe graph *pla4d_parts* with *Motion alignment* and *Motion Prior* bypassed: "
            "nothing follows the video. The command line: `--without motion`.",
            LOSS_4D, "Anchor4DMotionPrior",
        ),
        whole.without(
            "pla4d_no_refinement",
            "# PLA4D without reference refinement\n\nThe graph *pla4d_parts* with *Reference Refinement* bypassed: sides that the "
            "video does not show are held by rigidity alone. The command line: `--without refinement`.",
            "Anchor4DReferenceRefinement",
        ),
    ]  # fmt: skip


def of_stag4d(build: Any) -> list[Graph]:
    """STAG4D without anchors, and with each frame's drawn by themselves."""
    alone = build.stag4d(gamma=0.0)
    return [
        build.stag4d().without(
            "stag4d_no_anchors",
            "# STAG4D without anchors\n\nThe template *5 STAG4D* with *Temporal Anchors* bypassed: the prior is shown the video's "
            "frames alone. The command line: `--without anchors`.",
            "Anchor4DTemporalAnchors",
        ),
        alone.without(
            "stag4d_spatial_only",
            "# STAG4D, spatial only\n\nThe template *5 STAG4D* with *gamma* 0 in *Temporal Anchors*: each frame's views are drawn "
            "by themselves. The command line: `--without fusion`. With 1 they take all from the first frame (cross-frame "
            "attention). Densification is part of the preset: `--without densification`.",
        ),
    ]  # fmt: skip


def of_ayg(build: Any) -> list[Graph]:
    """Align Your Gaussians without each of its parts."""
    whole, said = build.ayg_text(), "The template *6 Align Your Gaussians*"
    return [
        whole.without(
            "ayg_no_jsd",
            f"# Align Your Gaussians without JSD\n\n{said} with *Position Regulariser* bypassed: the object may drift. The command "
            "line: `--without jsd`.",
            "Anchor4DStayInPlace",
        ),
        whole.without(
            "ayg_no_rigidity",
            f"# Align Your Gaussians without rigidity\n\n{said} with *Local Rigidity* bypassed: neighbours may part. The command "
            "line: `--without rigidity`.",
            "Anchor4DTogetherness",
        ),
        build.ayg_text(moving={"amplification": 1.0}).without(
            "ayg_no_amplification",
            f"# Align Your Gaussians without motion amplification\n\n{said} with *amplification* 1 in *Text to 4D Scores*. The "
            "command line: `--without amplification`.",
        ),
        build.ayg_text(still={"view_guidance": 0.0}).without(
            "ayg_no_view_guidance",
            f"# Align Your Gaussians without view guidance\n\n{said} with *view_guidance* 0 in *Text to 3D Scores*. The command "
            "line: `--without view-guidance`.",
        ),
        whole.without(
            "ayg_no_image_model",
            f"# Align Your Gaussians without a text-to-image model\n\n{said} with its *Load Prior* bypassed: MVDream alone shapes "
            "the object, the text-to-video model alone moves it. The command line: `--without image`.",
            "Load Prior: text to image",
        ),
    ]  # fmt: skip
