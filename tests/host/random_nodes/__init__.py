"""Nodes that stand in for loaders whose files tests have not got, small, with random weights; and for those of newer hosts."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import torch
import torch.nn.functional as F
from comfy_api.latest import io
from server import PromptServer

#: random_models lies beside this folder, or beside its original where that is a link or a copy.
HERE = [Path(__file__).resolve().parents[1], Path(__file__).parents[1] / "anchor4d" / "tests" / "host"]
sys.path.extend(map(str, HERE))
import random_models  # noqa: E402

KINDS = ["zero123", "wan22", "hunyuan3d", "triposplat"]


class RandomModel:
    """MODEL, CLIP_VISION and VAE, in the order of Load Checkpoint Image Only."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "make", ("MODEL", "CLIP_VISION", "VAE")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"kind": (KINDS,)}}

    def make(self, kind: str) -> tuple[Any, Any, Any]:
        path = Path(folder_paths.get_temp_directory()) / f"random_{kind}.safetensors"  # must stay: the host reads it again
        path.parent.mkdir(exist_ok=True)
        if kind == "zero123":
            made = comfy.sd.load_checkpoint_guess_config(str(random_models.zero123(path)), output_clip=False)
            return made[0], random_models.clip_vision(), made[2]
        if kind == "triposplat":
            return random_models.triposplat(path), random_models.clip_vision(), random_models.triposplat_decoder()
        if kind == "wan22":
            vae, path = random_models.wan22_vae(), random_models.wan(path, 48)
        else:
            vae, path = random_models.hunyuan3d_vae(), random_models.hunyuan3d(path)
        return comfy.sd.load_diffusion_model(str(path)), random_models.clip_vision(), vae


class RandomText:
    """CONDITIONING of a text encoder with so many features."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "make", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"features": ("INT", {"default": 768, "max": 8192})}}

    def make(self, features: int) -> tuple[Any]:
        return ([[torch.randn(1, 5, features, generator=torch.Generator().manual_seed(0)), {}]],)


class SeveralCameras:
    """Two LOAD3D_CAMERA values as one, the way ComfyUI 0.46 hands over a batch."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "make", ("LOAD3D_CAMERA",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"a": ("LOAD3D_CAMERA",), "b": ("LOAD3D_CAMERA",)}}

    def make(self, a: Any, b: Any) -> tuple[Any]:
        return ([a, b],)


class TextureFromViews:
    """The part of ComfyUI 0.46's Bake Texture From Views that its manual describes: pictures of a mesh, one a camera in their
    order, onto its UV layout, weighed by the cosine of the view's angle to a power where the camera sees the surface. Outside a
    chart the nearest texel's colour; what no view sees stays grey."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "bake", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "mesh": ("MESH",),
                "images": ("IMAGE",),
                "resolution": ("INT", {"default": 1024, "max": 8192}),
                "blend_exponent": ("FLOAT", {"default": 4.0}),
            },
            "optional": {"camera_info": ("LOAD3D_CAMERA",)},
        }

    def bake(self, mesh: Any, images: torch.Tensor, resolution: int, blend_exponent: float, camera_info: Any) -> tuple[Any]:
        from comfy_extras import nodes_mesh_postprocess as host
        from scipy.ndimage import distance_transform_edt

        vertices, faces, uvs = mesh.vertices[0].float(), mesh.faces[0].long(), mesh.uvs[0].float()
        normals = torch.from_numpy(host._smooth_vertex_normals(vertices.numpy(), faces.numpy()))
        face, weights, inside = host._rasterize_uv_barycentric(faces.numpy(), uvs.numpy(), resolution)
        point, normal = (host._interp_vertex_attr(each, faces, face, weights, inside)[inside] for each in (vertices, normals))
        triangles = vertices[faces]
        tree = host._build_triangle_bvh(triangles)
        colours, total = torch.zeros(len(point), 3), torch.full((len(point), 1), 1e-9)
        for info, image in zip(camera_info, images, strict=True):
            eye, target = (torch.tensor([info[key][axis] for axis in "xyz"]) for key in ("position", "target"))
            forward, right, up = host._camera_basis(eye, target, torch.tensor([0.0, 1.0, 0.0]))
            to = point - eye
            depth = to @ forward
            spread = depth * math.tan(math.radians(info["fov"]) / 2)
            place = torch.stack([to @ right / spread * image.shape[0] / image.shape[1], -(to @ up) / spread], -1)
            seen = F.grid_sample(image[None, ..., :3].permute(0, 3, 1, 2), place[None, None], align_corners=False)[0, :, 0].T
            away = to.norm(dim=-1, keepdim=True)
            first = host._closest_hit_rays_bvh(eye.expand_as(to), to / away, triangles, tree, tmin=1e-5, tmax=1e30)[0]
            cosine = (-(to / away) * normal).sum(-1, keepdim=True).clamp(min=0)
            weight = cosine**blend_exponent * (first[:, None] > away - 0.005)
            colours, total = colours + weight * seen, total + weight
        texture = torch.full((resolution, resolution, 3), 0.5)
        texture[inside] = torch.where(total > 1e-6, colours / total, torch.tensor(0.5))
        nearest: Any = distance_transform_edt(~inside.numpy(), return_distances=False, return_indices=True)
        return (texture[tuple(nearest)][None],)


#: A node as an earlier release might have had it: other ids of its inputs, and its outputs the other way round.
FORMER = io.NodeReplace(
    new_node_id="Anchor4DRenderScene",
    old_node_id="Anchor4DFormerRender",
    old_widget_ids=["side"],
    input_mapping=[
        {"new_id": "scene", "old_id": "moving"},
        {"new_id": "size", "old_id": "side"},
        {"new_id": "shot", "set_value": "orbit"},
        {"new_id": "shot.time", "set_value": 0.5},
        {"new_id": "shot.azimuth", "set_value": 0.0},
        {"new_id": "shot.sweep", "set_value": 90.0},
        {"new_id": "shot.frames", "set_value": 2},
        {"new_id": "framing", "set_value": "object"},
        {"new_id": "background", "set_value": "white"},
        {"new_id": "elevation", "set_value": 0.0},
    ],
    output_mapping=[{"new_idx": 1, "old_idx": 0}, {"new_idx": 0, "old_idx": 1}],
)
PromptServer.instance.node_replace_manager.register(FORMER)

NODE_CLASS_MAPPINGS = {"RandomModel": RandomModel, "RandomText": RandomText, "SeveralCameras": SeveralCameras}
NODE_CLASS_MAPPINGS["TextureFromViews"] = TextureFromViews
