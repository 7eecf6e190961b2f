"""Camera alignment: where the driving video's camera stood around a mesh."""

from .curve import AlignmentCurve, draw_curve
from .focal import FocalAlignment, align_camera, literal_search, overlay, robust_search
from .front import detect_yaw
from .solve import Target
from .texture import color_from_frame
from .together import align_together

__all__ = [
    "AlignmentCurve",
    "FocalAlignment",
    "Target",
    "align_camera",
    "align_together",
    "color_from_frame",
    "detect_yaw",
    "draw_curve",
    "literal_search",
    "overlay",
    "robust_search",
]
