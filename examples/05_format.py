"""A plug-in export format: the Gaussians of one moment as lines of text, x y z red green blue."""

from pathlib import Path

import torch

import anchor4d as a4d
from anchor4d.core.files import atomic_path
from anchor4d.core.gaussians import SH_C0
from anchor4d.core.io.export import Export, register_format


@register_format("xyz", "splats", (".xyz",), "points as text: CloudCompare, MeshLab", takes=("moment",))
def write_xyz(scene: a4d.Scene4D, path: Path, export: Export) -> None:
    with torch.no_grad():
        moment = scene.at(export.moment or 0.0)
    colours = (0.5 + SH_C0 * moment.sh[:, 0]).clamp(0, 1)
    rows = torch.cat([moment.means, 255 * colours], 1).tolist()
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{x:.6f} {y:.6f} {z:.6f} {r:.0f} {g:.0f} {b:.0f}\n" for x, y, z, r, g, b in rows))
