"""What the modules of each paper are worth: with all of them, and without each."""

from __future__ import annotations

from dataclasses import replace

from ...core.methods.stages import MethodConfig
from . import Variant, study


def without(name: str, *parts: str, method: str = "") -> Variant:
    """A row that leaves parts out."""
    return Variant(name, settings={"without": parts} | ({"method": method} if method else {}))


study(
    "pla4d-modules",
    question="What does each module of PLA4D give?",
    paper="PLA4D's ablations, figures only: without focal alignment points turn transparent and detail is lost; without the "
    "mesh there are floaters and a broken back; without motion alignment nothing moves; without reference refinement surfaces "
    "tear as seen from behind.",
    limits="Scores of unseen sides see geometry and motion; the texture that refinement by a large prior adds is not what the "
    "bundled tiny prior can give. Without focal alignment the camera is DreamGaussian4D's fixed one.",
    variants=(
        Variant("whole"),
        without("no focal", "focal"),
        without("no GS-Mesh", "gs-mesh"),
        without("no motion", "motion"),
        without("no refinement", "refinement"),
        without("no motion prior (ours)", "motion-prior"),
    ),
)

study(
    "align4d-modules",
    method="align4d",
    question="What does each module of Align4D give?",
    paper="Align4D, Table III (Consistent4D, PSNR / LPIPS): whole 17.8 / 0.11; without ODA 15.9 / 0.16; without MGJA 15.5 / "
    "0.17; without AO 17.6 / 0.13; DreamGaussian4D 10.7 / 0.28.",
    limits="Each row here searches its own camera and fits its own object; bench.align4d starts all rows from the same one. "
    "With the bundled prior MAOD finds no distance of its own.",
    variants=(
        Variant("whole"),
        without("no ODA", "oda"),
        without("no MAOD", "maod"),
        without("no MGJA", "mgja"),
        without("no AO", "ao"),
        Variant("DreamGaussian4D", settings={"method": "dg4d"}),
    ),
)


def gamma(share: float) -> Variant:
    """STAG4D with another share of the first frame's features in its anchors."""

    def change(config: MethodConfig) -> MethodConfig:
        drawn = config.anchors
        return replace(config, anchors=None if drawn is None else replace(drawn, gamma=share), with_object=None)

    return Variant(f"gamma {share:g}", share, config=change)


def fixed(threshold: float) -> Variant:
    """STAG4D with a fixed threshold of densification."""

    def change(config: MethodConfig) -> MethodConfig:
        density = config.motion.density
        changed = None if density is None else replace(density, top=0.0, threshold=threshold)
        return replace(config, motion=replace(config.motion, density=changed), with_object=None)

    return Variant(f"fixed threshold {threshold:g}", config=change)


study(
    "stag4d-modules",
    method="stag4d",
    with_object=False,
    question="What do STAG4D's anchors, their sharing over time and its densification give?",
    paper="STAG4D (FVD, LPIPS): whole 992 / 0.126; spatial only 1198 / 0.130; cross-frame attention 1053 / 0.129; no "
    "anchors 1370 / 0.135; without adaptive densification 1454 / 0.136.",
    limits="The bundled prior invents sides of anything that is no toy: on the eight cases the order says little, generated "
    "objects (--objects) are its domain. FVD takes a network that does not come with the pack: `measure --metrics fvd`.",
    numbers=("front", "unseen", "gain", "motion", "iou", "jitter", "gaussians", "seconds"),
    variants=(
        Variant("whole"),
        without("spatial only", "fusion"),
        replace(gamma(1.0), name="cross-frame", x=None),
        without("no anchors", "anchors"),
        without("no densification", "densification"),
        fixed(0.08),
        fixed(0.25),
    ),
)

study(
    "stag4d-gamma",
    method="stag4d",
    with_object=False,
    question="How much of the first frame's features should the anchors share (gamma, Eq. 5)?",
    paper="STAG4D takes 0.5; 0 is its spatial-only row, 1 its cross-frame attention.",
    limits="As stag4d-modules.",
    axis="gamma",
    variants=tuple(gamma(share) for share in (0.5, 0.0, 0.25, 0.75, 1.0)),
)

study(
    "stag4d-plus",
    method="stag4d",
    question="Do Align4D's modules help another method?",
    paper="Align4D, Table III: STAG4D 17.0 dB, with ODA and MGJA 17.5, with AO 17.2.",
    limits="The object is the cases' mesh, which published STAG4D does not have.",
    variants=(
        Variant("STAG4D from the mesh"),
        Variant("+ ODA", settings={"plus": ("oda",)}),
        Variant("+ ODA, MGJA", settings={"plus": ("oda", "mgja")}),
        Variant("+ ODA, MGJA, AO", settings={"plus": ("oda", "mgja", "ao")}),
    ),
)

study(
    "turns",
    method="align4d",
    question="Do motion and Gaussians learn better in turns (AO) than at once?",
    paper="Align4D, Table IV, SDS loss at steps 100 to 500: joint 72.3, 174.2, 155.2, 44.0, 3.5; in turns 34.4, 87.7, 85.7, "
    "24.8, 3.2. PSNR 17.6 and 17.8.",
    limits="A distillation loss falls with the annealed diffusion time by itself: curves are to be compared with each other, "
    "and with the scores beside them. The size of the loss depends on the prior's latents.",
    losses="3D to 4D",
    drawn=("unseen", "front"),
    variants=(Variant("in turns"), without("at once", "ao")),
)

study(
    "cost",
    method="align4d",
    question="What does each module cost in time and memory?",
    paper="Align4D, Table V, V100: DreamGaussian4D 15 min and 15.6 GB, Align4D 25 min and 19.4 GB; VAOD 0.15 s and 2.7 GB, "
    "MAOD 12 s and 4.5 GB.",
    limits="The prior decides: the bundled one is small. Times are of a machine that other runs share unless --workers 1; "
    "seconds of processors hardly change by it, and know nothing of a card.",
    numbers=("align", "object", "moving", "seconds", "processors", "memory", "card", "unseen"),
    drawn=("seconds", "memory"),
    variants=(
        Variant("DreamGaussian4D", settings={"method": "dg4d"}),
        without("+ VAOD", "maod", "mgja", "ao"),
        without("+ MAOD", "mgja", "ao"),
        without("+ MGJA", "ao"),
        Variant("+ AO = Align4D"),
    ),
)
