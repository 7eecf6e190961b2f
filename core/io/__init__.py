"""Files for other programs: one module a format."""

from .film import contact_sheet, side_by_side, write_film, write_frames, write_mp4, write_png
from .ply import read_ply, write_ply
from .splats import SPLAT_SUFFIXES, read_splats, write_ply_sequence, write_splat_sequence, write_splats

__all__ = [
    "SPLAT_SUFFIXES",
    "contact_sheet",
    "read_ply",
    "read_splats",
    "side_by_side",
    "write_film",
    "write_frames",
    "write_mp4",
    "write_ply",
    "write_ply_sequence",
    "write_png",
    "write_splat_sequence",
    "write_splats",
]
