"""Camera, front and distances: what it costs to have them wrong, and what searches see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ...core.align import FocalAlignment
from ...core.align.distance import Meaning, ObjectDistance, align_model_distance
from ...core.video import DrivingVideo
from . import Curves, Variant, study


def moved(factor: float) -> Variant:
    """The camera so many times as far away as it was found."""

    def camera(found: FocalAlignment) -> FocalAlignment:
        return replace(found, front=replace(found.front, distance=factor * found.front.distance))

    return Variant(f"{factor:g} of VAOD", factor, camera=camera)


study(
    "object-distance",
    method="align4d",
    settings={"without": ("maod",)},
    question="How exact must the object's distance be (VAOD)?",
    paper="Align4D V-A: the distance at which the front view's error is least is right, those beside it blur and distort; "
    "DreamGaussian4D's fixed 1.5 is wrong for most objects.",
    limits="The lens stays as it was found. Scores are taken under the wrong camera as well, as a user would see the result.",
    axis="distance / VAOD",
    variants=tuple(moved(factor) for factor in (1.0, 0.7, 0.85, 0.95, 1.05, 1.15, 1.3)),
)


def score_curves(video: DrivingVideo, aligned: FocalAlignment, models: Mapping[str, Any]) -> Curves:
    """MAOD's score by distance for early, middle and late diffusion times."""
    prior = models.get("prior")
    if prior is None:
        return {}
    found: Curves = {}
    for times in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (0.7, 0.8, 0.9)):
        curve = align_model_distance(aligned, video, prior, times=times).curve
        found[f"times {times[0]:g} to {times[-1]:g}"] = (curve.x.tolist(), curve.y.tolist())
    return found


def preferred(factor: float, meaning: Meaning = "delta", name: str = "") -> Variant:
    """The prior is given a distance that is so many times the video's."""
    return Variant(
        name or f"{factor:g} of VAOD", factor, distance=lambda visual: ObjectDistance(visual, factor * visual, meaning)
    )


study(
    "model-distance",
    method="align4d",
    question="Which distance should the prior be given (MAOD)?",
    paper="Align4D V-B: the score's local minimum nearer than VAOD is best; near 0 blurs and shifts colours, VAOD itself makes "
    "the object too small, the global minimum beyond has the wrong scale. Times 700 to 900 show it, 100 to 300 do not.",
    limits="The bundled prior was trained on exact distances and prefers none, so its best is VAOD itself. Whether Zero123 has "
    "a preference needs its weights. Meaning of the distance: `delta`; the last row gives the distance itself (`literal`).",
    axis="given distance / VAOD",
    variants=(
        Variant("searched", curves=score_curves),
        *(preferred(factor) for factor in (1.0, 0.6, 0.8, 0.9, 1.1, 1.25)),
        replace(preferred(1.0, "literal", "VAOD, literal"), x=None),
    ),
    numbers=("front", "unseen", "gain", "motion", "iou", "model", "seconds"),
)

study(
    "wrong-front",
    question="How exact must the object's front be?",
    paper="None of the papers says. DreamGaussian4D tries every degree, PLA4D takes the generator's front.",
    limits="The cases' meshes face the camera, so the offset is the whole error; whether a wrong front is noticed is the "
    "verdict's `overlap`. The last row searches.",
    axis="degrees off the front",
    numbers=("front", "unseen", "gain", "motion", "iou", "overlap", "size", "seconds"),
    variants=(
        *(Variant(f"{turn:g} degrees off", turn, settings={"yaw": turn}) for turn in (0.0, 5.0, 10.0, 20.0, 45.0, 90.0, 180.0)),
        Variant("searched", settings={"yaw": "auto"}),
    ),
)


def within(name: str, x: float | None = None, **changes: Any) -> Variant:
    """Random cameras of another distribution, for every objective that draws some."""

    def changed(term: Any) -> Any:
        known = {f.name for f in fields(term)}
        return replace(term, **{key: value for key, value in changes.items() if key in known and "elevation" in known})

    return Variant(name, x, config=lambda config: config.changed(changed))


study(
    "cameras",
    method="align4d",
    question="From where should random cameras look, and how many?",
    paper="DreamGaussian4D and the methods after it: elevations within 30 degrees, all azimuths; Align4D 4 views a frame.",
    limits="Scored from elevation 0 alone, which favours narrow ranges.",
    axis="largest elevation, degrees",
    variants=(
        within("within 30 degrees", 30.0, elevation=(-30.0, 30.0)),
        within("on the equator", 0.0, elevation=(0.0, 0.0)),
        within("within 15 degrees", 15.0, elevation=(-15.0, 15.0)),
        within("within 60 degrees", 60.0, elevation=(-60.0, 60.0)),
        within("1 view", views=1),
        within("4 views", views=4),
    ),
)
