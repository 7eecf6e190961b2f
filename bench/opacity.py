"""How opaque surfaces are: alpha inside the true mask, and the share of the far side that shows through, from all around.

    python -m anchor4d.bench.opacity SCENE [SCENE ...] [--azimuths A ...] [--out DIR]

A scene's own mesh, carried by its motion, says where its surface is. With ``--out``, pictures from every side, to look at.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..core.cameras import orbit
from ..core.files import InputError
from ..core.mesh import Mesh
from ..core.methods.backing import within
from ..core.objectives.through import shown_through
from ..core.render import rasterize
from ..core.render.mesh import render_mesh
from ..core.scene.scene import Scene4D
from ..core.scene.surface import carry

AZIMUTHS = (0.0, 60.0, 120.0, 180.0, 240.0, 300.0)
#: Pixels nearer to an outline than this are left out, also to that of a part before another: an edge is half transparent in
#: every picture.
EDGE = 2


@torch.no_grad()
def opacity(scene: Scene4D, taus: list[float], azimuths: tuple[float, ...] = AZIMUTHS, size: int = 256) -> dict[str, float]:
    """Means over pixels well inside the mesh's mask, views and times.

    Returns:
        ``alpha``; ``through``, the share of light from the far side; ``worst``, that share in the 99th percentile of pixels.

    Raises:
        InputError: for a scene without a mesh.
    """
    if scene.surface is None:
        raise InputError("opacity: this scene keeps no mesh that says where its surface is")
    places = carry(scene, scene.surface.vertices, torch.tensor(taus))
    cameras = orbit(torch.tensor(azimuths), 0.0, 2.0, 36.0, size, size)
    alphas, throughs = [], []
    for tau, vertices in zip(taus, places):
        mesh = Mesh(vertices, scene.surface.faces)
        truth = render_mesh(mesh, cameras, supersample=1)
        moved = scene.at(tau)
        inside = within(truth.depth, EDGE)
        alphas.append(rasterize(moved, cameras).alpha[inside])
        throughs.append(shown_through(moved, cameras, truth.depth)[inside])
    alpha, through = torch.cat(alphas), torch.cat(throughs)
    worst = float(through.sort().values[int(0.99 * (len(through) - 1))])
    return {"alpha": float(alpha.mean()), "through": float(through.mean()), "worst": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", type=Path, metavar="SCENE")
    parser.add_argument("--azimuths", nargs="+", type=float, default=AZIMUTHS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for path in args.scenes:
        scene = Scene4D.load(path)
        for name, taus in (("first frame", [0.0]), ("clip", scene.taus[:: max(1, scene.frames // 4)].tolist())):
            found = opacity(scene, taus, tuple(args.azimuths))
            print(f"{path}  {name:11s}  " + "  ".join(f"{key} {value:.4f}" for key, value in found.items()))
        if args.out is not None:
            from ..core.io import write_png

            cameras = orbit(torch.tensor(args.azimuths), 0.0, 2.0, 32.0, 512, 512)
            drawn = rasterize(scene.at(0.0), cameras, torch.ones(3)).color.clamp(0, 1)
            write_png(args.out / f"{path.parent.name}.png", torch.cat([*drawn], 1))


if __name__ == "__main__":
    main()
