"""Files for other programs: one module a format."""

from .film import contact_sheet, side_by_side, write_frames, write_mp4, write_png
from .ply import read_ply, write_ply, write_ply_sequence

__all__ = [
    "contact_sheet",
    "read_ply",
    "side_by_side",
    "write_frames",
    "write_mp4",
    "write_ply",
    "write_ply_sequence",
    "write_png",
]
