"""Meshes from a text or a picture, by Shap-E (Jun and Nichol, arXiv 2305.02463) through diffusers: quick, coarse and open.

Shap-E draws the weights of a small signed-distance network, which is sampled on a grid and coloured at its vertices. Its world
is Blender's: z up, the front towards -y, objects within [-1, 1]^3. A mesh faces the front as far as the training data did, also
that of a picture from another side: find the picture's side with ``core.align.front``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import InputError
from ..mesh import Mesh, linear_to_srgb
from ..priors.checkpoints import Precision, precision_dtypes
from ..priors.pictures import squared
from .pipelines import StepBar, load_pipeline, located
from .sampling import StepProgress

#: From Shap-E's axes to ours: x stays, its z is our y, its -y our z.
TO_WORLD = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
#: Side of the picture that is shown to CLIP, before CLIP's own resampling.
SIDE = 256


def text_to_mesh(
    source: str | Path,
    prompt: str,
    *,
    steps: int = 64,
    guidance: float = 15.0,
    resolution: int = 128,
    seed: int = 0,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: StepProgress | None = None,
) -> Mesh:
    """A coloured mesh of a text, +Y up, its front towards +Z.

    Args:
        source: folder of openai/shap-e, or its name.
        steps: Heun steps; each but the last asks the network twice, which is what ``progress`` counts.
        resolution: cells of the grid along each side.

    Raises:
        InputError: for another model, no prompt, or a shape that came out empty.
    """
    if not prompt.strip():
        raise InputError("prompt: say what the mesh is of")
    return _shap_e(source, "ShapEPipeline", prompt.strip(), steps, guidance, resolution, seed, device, precision, progress)


def image_to_mesh(
    source: str | Path,
    image: Tensor,  # (H, W, 3 | 4) in [0, 1], alpha straight
    *,
    steps: int = 64,
    guidance: float = 3.0,
    resolution: int = 128,
    seed: int = 0,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    progress: StepProgress | None = None,
) -> Mesh:
    """A coloured mesh of the object in a picture, +Y up.

    Args:
        source: folder of openai/shap-e-img2img, or its name.
        image: the object cut out, or on a plain white background, filling most of the picture.
        steps, resolution: as :func:`text_to_mesh`.

    Raises:
        InputError: for another model, or a shape that came out empty.
    """
    from PIL import Image

    if image.ndim != 3 or image.shape[-1] not in (3, 4) or not image.isfinite().all():
        raise InputError(f"image: shape {tuple(image.shape)}, give one picture (height, width, 3 or 4) of finite numbers")
    square = squared(image[None].detach().float().cpu(), SIDE, (1.0, 1.0, 1.0))[0]
    picture = Image.fromarray((square.clamp(0, 1) * 255).round().byte().numpy())
    return _shap_e(source, "ShapEImg2ImgPipeline", picture, steps, guidance, resolution, seed, device, precision, progress)


def _shap_e(
    source: str | Path,
    pipeline: str,
    condition: Any,
    steps: int,
    guidance: float,
    resolution: int,
    seed: int,
    device: str | torch.device,
    precision: Precision,
    progress: StepProgress | None,
) -> Mesh:
    import diffusers

    checkpoint = located(source)
    named = checkpoint.index.get("_class_name")
    if named != pipeline:
        both = {"ShapEPipeline": "starts from text", "ShapEImg2ImgPipeline": "starts from a picture"}
        what = f"this Shap-E {both[named]}" if named in both else f"not a Shap-E; {checkpoint.found()}"
        wanted = "shap-e" if pipeline == "ShapEPipeline" else "shap-e-img2img"
        raise InputError(f"{checkpoint.folder}: {what}, give {wanted}")
    if steps < 2 or resolution < 8:
        raise InputError(f"steps {steps}, resolution {resolution}: give at least 2 and 8")
    # In bfloat16 the grid's coordinates would be coarser than its cells: the renderer stays in float32.
    pipe = load_pipeline(
        getattr(diffusers, pipeline),
        checkpoint,
        dtype=precision_dtypes(precision, device, torch.float16)[0],
        exceptions={"shap_e_renderer": torch.float32},
        device=device,
    )
    pipe.progress_bar = StepBar(progress, lambda: None)
    with torch.no_grad():
        latents = pipe(
            condition,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
        if not latents.isfinite().all():
            raise InputError(f"{checkpoint.folder}: the shape came out as NaN; choose precision fp32")
        decoded = pipe.shap_e_renderer.decode_to_mesh(latents[:1].float(), torch.device(device), resolution)
    if not len(decoded.faces):
        raise InputError(f"{checkpoint.folder}: the shape came out empty; try another seed or prompt")
    colors = torch.stack([decoded.vertex_channels[c] for c in "RGB"], -1)
    name = condition if isinstance(condition, str) else "picture"
    return shap_e_mesh(decoded.verts.float().cpu(), decoded.faces.cpu(), colors.float().cpu(), name)


def shap_e_mesh(
    vertices: Tensor,  # (V, 3) z up
    faces: Tensor,  # (F, 3)
    colors: Tensor,  # (V, 3) linear light
    name: str = "mesh",
) -> Mesh:
    """Shap-E's mesh in our world: +Y up, its front (-y) towards +Z, faces counter-clockwise from outside, colours sRGB."""
    corners = vertices[faces]
    inside_out = (corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum() < 0
    rgba = torch.cat([linear_to_srgb(colors.clamp(0, 1)).clamp(0, 1), torch.ones(len(colors), 1)], -1)
    mesh = Mesh(vertices, faces.flip(-1) if inside_out else faces, vertex_colors=rgba, name=name)
    return mesh.transformed(TO_WORLD)
