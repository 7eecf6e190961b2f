"""Times of the Gaussian rasteriser, forward and backward: python -m anchor4d.bench.rasterize [--device D] [--backend NAMES].

The scene: anisotropic Gaussians of random turn, size and opacity on a bumpy, coloured sphere that covers about half of each
picture, 20,000 of them with about 58,600 intersections with 16-pixel tiles a view at 256 x 256.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

import torch

from ..core.cameras import Cameras, orbit
from ..core.gaussians import SH_C0, Gaussians
from ..core.render import Render, available_backends, rasterize, resolve_backend
from ..core.render.nvrtc.backend import overflowed
from ..core.render.torch_backend import EPS2D, NEAR, project

CASES = ((20000, 7, 128), (20000, 7, 256), (20000, 7, 512), (20000, 1, 256), (5000, 7, 128), (5000, 7, 256), (100000, 7, 256))
ITSELF = "gsplat itself"
#: On a graphics card: numbers of Gaussians, views and sizes.
CARD_CASES = tuple(
    (n, views, size) for n, sizes in ((20000, (128, 256, 512)), (100000, (256,))) for size in sizes for views in (1, 7, 32)
)
FRAMES = ((5000, 16, 128), (10000, 16, 160), (20000, 16, 200))


def bumpy_sphere(count: int, seed: int = 0) -> Gaussians:
    """Random anisotropic Gaussians on a bumpy sphere of radius about 0.63; their size keeps the cover whatever the count."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    bump = 1 + 0.1 * torch.sin(6 * direction).prod(-1, keepdim=True)
    size = 0.0113 * (20000 / count) ** 0.5 * (0.3 + 1.4 * torch.rand(count, 3, generator=generator))
    return Gaussians(
        means=0.63 * bump * direction,
        quats=torch.randn(count, 4, generator=generator),
        log_scales=size.log(),
        opacity_logits=torch.randn(count, generator=generator),
        sh=(0.5 * torch.sin(12 * direction) / SH_C0)[:, None],
    )


def tile_intersections(gaussians: Gaussians, cameras: Cameras, tile: int = 16) -> float:
    """Mean number of (Gaussian, tile) pairs a view, by bounding boxes of the region where alpha >= 1/255."""
    each_view = gaussians.map(lambda t: t.expand(len(cameras), *t.shape))
    centers, _, covariances, _, inside = project(each_view.means, each_view.quats, each_view.log_scales, cameras)
    reach = (2 * (gaussians.opacities * 255).log()).clamp_min(0).sqrt()
    extents = reach[:, None] * covariances[..., [0, 2]].sqrt()
    limit = torch.tensor([-(-cameras.width // tile), -(-cameras.height // tile)])
    low, high = (((centers + s * extents) / tile + o).floor().clamp_min(0).minimum(limit) for s, o in ((-1, 0), (1, 1)))
    return float(((high - low).clamp_min(0).prod(-1) * inside).sum()) / len(cameras)


def measure(gaussians: Gaussians, cameras: Cameras, backend: str, repeat: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of the forward pass, of both passes, and of processor time of both, a number a repetition, after three more.

    ``backend``: one of ours, or "gsplat itself", its own function as its users call it.
    """

    def draw() -> Render:
        return gsplat_itself(gaussians, cameras) if backend == ITSELF else rasterize(gaussians, cameras, backend=backend)

    leaves = [x.requires_grad_() for x in gaussians.tensors().values()]
    forward, both, processor = [], [], []
    grads: list[torch.Tensor] = []
    for round_ in range(repeat + 3):
        begin, busy = time.perf_counter(), time.process_time()
        render = draw()
        if round_ == 0:
            generator = torch.Generator().manual_seed(0)
            grads = [torch.randn(x.shape, generator=generator).to(x) for x in (render.color, render.alpha, render.depth)]
            begin, busy = time.perf_counter(), time.process_time()
            render = draw()
        _wait(gaussians)
        middle = time.perf_counter()
        torch.autograd.grad([render.color, render.alpha, render.depth], leaves, grads)
        _wait(gaussians)
        forward.append(middle - begin)
        both.append(time.perf_counter() - begin)
        processor.append(time.process_time() - busy)
    return forward[3:], both[3:], processor[3:]


def gsplat_itself(gaussians: Gaussians, cameras: Cameras) -> Render:
    """Pictures by gsplat's own rasterization, single precision throughout; the gsplat backend projects in double."""
    from gsplat import rasterization  # pyright: ignore[reportMissingImports]

    colors = (gaussians.sh[:, 0] * SH_C0 + 0.5).clamp_min(0)
    picture, alpha, _ = rasterization(
        gaussians.means, gaussians.quats, gaussians.log_scales.exp(), gaussians.opacities, colors, cameras.world_to_camera,
        cameras.K, cameras.width, cameras.height, near_plane=NEAR, eps2d=EPS2D, packed=False, render_mode="RGB+D",
    )  # fmt: skip
    return Render(picture[..., :3], alpha[..., 0], picture[..., 3])


def measure_graph(gaussians: Gaussians, cameras: Cameras, repeat: int) -> list[float]:
    """Seconds of both passes of the nvrtc backend replayed as one CUDA graph."""
    leaves = [x.detach().clone().requires_grad_() for x in gaussians.tensors().values()]
    scene, cameras = Gaussians(*leaves), cameras.to(leaves[0])
    grads: list[torch.Tensor] = []

    def step() -> None:
        render = rasterize(scene, cameras, backend="nvrtc")
        pictures = [render.color, render.alpha, render.depth]
        if not grads:
            grads.extend(torch.randn_like(x) for x in pictures)
        torch.autograd.grad(pictures, leaves, grads)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph, seconds = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        step()
    for _ in range(repeat):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    assert not overflowed(leaves[0].device)
    return seconds


def compare(backends: list[str], device: torch.device, repeat: int) -> None:
    """All backends side by side, each case once for all of them, in alternation with the others."""
    sys.stdout.write(f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}, medians of {repeat} in ms\n")
    titles = [f"{name} forward / both" for name in backends] + (["nvrtc, CUDA graph"] if "nvrtc" in backends else [])
    sys.stdout.write(f"{'Gaussians':>9s}  {'pictures':12s}" + "".join(f"{x:>24s}" for x in titles) + "\n")
    for count, views, size in CARD_CASES:
        gaussians = bumpy_sphere(count).to(device)
        cameras = orbit(torch.arange(views) * 360 / views, 15.0, 2.0, 49.1, size, size).to(device)
        cells = []
        for backend in backends:
            forward, both, _ = measure(gaussians, cameras, backend, repeat if backend != "torch" else 3)
            cells.append(f"{1e3 * statistics.median(forward):.3f} / {1e3 * statistics.median(both):.3f}")
        if "nvrtc" in backends:
            cells.append(f"{1e3 * statistics.median(measure_graph(gaussians, cameras, repeat)):.3f}")
        sys.stdout.write(f"{count:9d}  {f'{views} x {size}^2':12s}" + "".join(f"{x:>24s}" for x in cells) + "\n")
        sys.stdout.flush()


def _wait(gaussians: Gaussians) -> None:
    if gaussians.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="auto", help="a name; on a card several with commas, or all (but torch)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=30)
    arguments = parser.parse_args()
    if torch.device(arguments.device).type == "cuda":
        here = available_backends(arguments.device)[:-1]
        names = [*here, *([ITSELF] if "gsplat" in here else [])] if arguments.backend == "all" else arguments.backend.split(",")
        names = [x if x == ITSELF else resolve_backend(x, arguments.device) for x in names]
        return compare(names, torch.device(arguments.device), arguments.repeat)
    backend = resolve_backend(arguments.backend, arguments.device)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    sys.stdout.write(f"{backend} on {arguments.device}, medians (minima) of {arguments.repeat} in ms{load}\n")

    small = orbit(torch.arange(7) * 360 / 7, 15.0, 2.0, 49.1, 64, 64)
    begin = time.perf_counter()
    measure(bumpy_sphere(500).to(arguments.device), small.to(arguments.device), backend, 0)
    sys.stdout.write(f"first call, forward and backward: {time.perf_counter() - begin:.2f} s\n")

    sys.stdout.write("Gaussians  pictures      intersections   forward             forward + backward  processor time\n")
    for count, views, size in (*CASES, *FRAMES):
        gaussians, cameras = bumpy_sphere(count), orbit(torch.arange(views) * 360 / views, 15.0, 2.0, 49.1, size, size)
        crossings = tile_intersections(gaussians, cameras)
        label = f"{views} x {size}^2"
        if (count, views, size) in FRAMES:  # one moving set a frame, colours and opacities shared, one camera each
            label, time_ = f"{views} frames {size}^2", torch.arange(views)[:, None, None] * 1.0
            moved, turned = gaussians.means + 0.01 * time_.sin(), gaussians.quats + 0.01 * time_
            gaussians = gaussians.map(lambda t, n=views: t.expand(n, *t.shape))
            gaussians = Gaussians(moved, turned, gaussians.log_scales, gaussians.opacity_logits, gaussians.sh)
            cameras = cameras.reshape(views, 1)
        gaussians, cameras = gaussians.to(arguments.device), cameras.to(arguments.device)
        times = measure(gaussians, cameras, backend, arguments.repeat)
        figures = "   ".join(f"{1e3 * statistics.median(x):7.1f} ({1e3 * min(x):6.1f})" for x in times)
        sys.stdout.write(f"{count:9d}  {label:16s} {crossings:10.0f}   {figures}\n")


if __name__ == "__main__":
    main()
