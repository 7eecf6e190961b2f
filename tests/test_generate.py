"""Generators of films and meshes: the real pipelines at tiny sizes, saved in the published layouts and run on the CPU."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
import numpy as np
import tiny_videos as tiny
from tiny_models import perturbed

from anchor4d.core.files import InputError
from anchor4d.core.generate.mesh import image_to_mesh, shap_e_mesh, text_to_mesh
from anchor4d.core.generate.video import FAMILIES, NEGATIVE, OBJECT_SUFFIX, _picture, image_to_video, text_to_video
from anchor4d.core.io.video import read_tensors
from anchor4d.core.mesh import linear_to_srgb, srgb_to_linear

PROMPT = "a bear"
PICTURE = torch.rand(20, 30, 4, generator=torch.Generator().manual_seed(0))


def ti2v(folder: Path) -> Path:
    settings = dict(is_residual=True, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=8)
    return tiny.write_wan(folder, settings, expand_timesteps=True)


def cogvideox_image(folder: Path) -> Path:
    return tiny.write_cogvideox(folder, diffusers.CogVideoXImageToVideoPipeline)


def ltx_condition(folder: Path) -> Path:
    return tiny.write_ltx(folder, diffusers.LTXConditionPipeline)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "wan": tiny.write_wan,
    "ti2v": ti2v,
    "ltx": tiny.write_ltx,
    "ltx-condition": ltx_condition,
    "svd": tiny.write_svd,
    "cogvideox": tiny.write_cogvideox,
    "cogvideox-i2v": cogvideox_image,
    "wan-i2v": tiny.write_wan_image,
    "hunyuan": tiny.write_hunyuan,
    "modelscope": tiny.write_modelscope,
    "sd": tiny.write_stable_diffusion,
    "animatediff-motion-adapter-v1-5-2": tiny.write_motion_adapter,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    base = tmp_path_factory.mktemp("generators")

    def folder(name: str) -> Path:
        return base / name if (base / name).is_dir() else WRITERS[name](base / name)

    return folder


class Watch:
    """Keeps what a generator reports."""

    def __init__(self, stop_at: int = 99) -> None:
        self.steps: list[tuple[int, int]] = []
        self.pictures: list[Any] = []
        self.stop_at = stop_at

    def __call__(self, step: int, total: int, picture: Callable[[], Any]) -> None:
        self.steps.append((step, total))
        self.pictures.append(picture())
        if step == self.stop_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "settings", "shape", "fps"),
    [
        ("wan", dict(frames=4, height=32, width=48), (4, 32, 48, 3), 16.0),
        ("ltx", dict(frames=4, height=32, width=64, fps=8), (4, 32, 64, 3), 8.0),
        ("cogvideox", {}, (5, 16, 32, 3), 8.0),
        ("hunyuan", dict(frames=5, height=16, width=16), (5, 16, 16, 3), 24.0),
        ("modelscope", dict(frames=3, height=16, width=24), (3, 16, 24, 3), 8.0),
        ("sd", dict(frames=3, height=16, width=24), (3, 16, 24, 3), 8.0),
    ],
)
def test_text_to_video(name, settings, shape, fps, folders):
    if name == "sd":
        folders("animatediff-motion-adapter-v1-5-2")  # found beside the model
    watch = Watch()
    film = text_to_video(folders(name), PROMPT, steps=2, seed=1, progress=watch, **settings)
    assert (tuple(film.frames.shape), film.fps) == (shape, fps)
    assert film.frames.dtype == torch.float32 and film.frames.min() >= 0 and film.frames.max() <= 1 and film.frames.std() > 0
    assert watch.steps == [(1, 2), (2, 2)]
    assert watch.pictures[1].shape[-1] == 3 and watch.pictures[1].std() > 0
    assert read_tensors(film.frames, fps=film.fps).fps == fps


@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        ("ti2v", dict(frames=5, height=32, width=48), (5, 32, 48, 3)),
        ("ltx", dict(frames=4, height=32, width=64), (4, 32, 64, 3)),
        ("ltx-condition", dict(frames=4, height=32, width=64), (4, 32, 64, 3)),
        ("wan-i2v", dict(frames=5, height=32, width=48), (5, 32, 48, 3)),
        ("cogvideox-i2v", {}, (5, 16, 32, 3)),
        ("svd", dict(height=64, width=64), (3, 64, 64, 3)),
    ],
)
def test_image_to_video(name, settings, shape, folders):
    watch = Watch()
    prompt = None if name == "svd" else PROMPT
    film = image_to_video(folders(name), PICTURE, prompt, steps=2, seed=1, progress=watch, **settings)
    assert tuple(film.frames.shape) == shape and film.frames.std() > 0
    assert watch.steps == [(1, 2), (2, 2)]
    other = image_to_video(folders(name), 1 - PICTURE, prompt, steps=2, seed=1, **settings)
    assert not torch.equal(film.frames, other.frames)  # the picture counts: the seed is the same


def test_same_seed_same_film(folders):
    one, two, three = (
        text_to_video(folders("wan"), PROMPT, steps=2, frames=5, height=32, width=32, seed=s).frames for s in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_interrupt_by_raising(folders):
    watch = Watch(stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        text_to_video(folders("wan"), PROMPT, steps=4, frames=5, height=32, width=32, progress=watch)
    assert watch.steps == [(1, 4), (2, 4)]


def test_what_the_pipeline_is_asked(folders, monkeypatch):
    """Prompts, sizes and frame counts reach the pipeline; surplus frames are cut off."""
    asked: dict[str, Any] = {}
    original = diffusers.LTXPipeline.__call__
    monkeypatch.setattr(
        diffusers.LTXPipeline,
        "__call__",
        # functools.wraps keeps the signature, by which arguments are chosen.
        functools.wraps(original)(lambda self, **call: asked.update(call) or original(self, **call)),
    )
    film = text_to_video(folders("ltx"), f" {PROMPT} ", steps=1, frames=10, height=32, width=32, fps=6, guidance=2.0)
    assert len(film.frames) == 10 and asked["num_frames"] == 17
    assert asked["prompt"] == f"{PROMPT}, {OBJECT_SUFFIX}" and asked["negative_prompt"] == NEGATIVE
    assert (asked["frame_rate"], asked["guidance_scale"], asked["generator"].device.type) == (6, 2.0, "cpu")
    text_to_video(folders("ltx"), PROMPT, steps=1, frames=9, height=32, width=32, suffix="", negative="blur")
    assert (asked["prompt"], asked["negative_prompt"], asked["num_frames"]) == (PROMPT, "blur", 9)


def test_half_precision_keeps_wans_vae_whole(folders):
    film = text_to_video(folders("wan"), PROMPT, steps=2, frames=5, height=32, width=32, seed=1, precision="bf16")
    whole = text_to_video(folders("wan"), PROMPT, steps=2, frames=5, height=32, width=32, seed=1, precision="fp32")
    assert 0 < (film.frames - whole.frames).abs().max() < 0.1


def test_every_family_is_in_diffusers():
    """Each class exists, and takes what its family says it takes."""
    for family in FAMILIES:
        for named in filter(None, (family.text, family.image)):
            call = inspect.signature(getattr(diffusers, named).__call__).parameters
            assert {"num_frames", "num_inference_steps", "generator", "output_type"} <= set(call), named
            assert family.negative <= ("negative_prompt" in call), named
            assert ("image" in call) or named == family.text, named
            assert (family.frames - 1) % family.chunk == 0 and family.height % family.multiple == 0, named


def index(folder: Path, named: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": named}), encoding="utf-8")
    return folder


def test_models_of_the_other_task_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="starts from a picture: use image to video"):
        text_to_video(folders("svd"), PROMPT)
    with pytest.raises(InputError, match="starts from a picture: use image to video"):
        text_to_video(index(tmp_path / "i2v", "CogVideoXImageToVideoPipeline"), PROMPT)
    with pytest.raises(InputError, match="takes text only: use text to video"):
        image_to_video(folders("wan"), PICTURE)
    with pytest.raises(InputError, match=r"not a video model that is known here .*Kandinsky 5.*found a FluxPipeline"):
        text_to_video(index(tmp_path / "flux", "FluxPipeline"), PROMPT)
    with pytest.raises(InputError, match="models get cogvideox-2b"):
        text_to_video("cogvideox-2b", PROMPT)


def test_wrong_requests_are_refused(folders, tmp_path):
    wan = folders("wan")
    for settings, message in (
        (dict(height=40), "multiples of 16"),
        (dict(frames=1), "at least 2"),
    ):
        with pytest.raises(InputError, match=message):
            text_to_video(wan, PROMPT, **settings)
    with pytest.raises(InputError, match="say what the film shows"):
        text_to_video(wan, "  ")
    with pytest.raises(InputError, match="leave the prompt empty"):
        image_to_video(folders("svd"), PICTURE, PROMPT)
    with pytest.raises(InputError, match="heeds no negative prompt"):
        text_to_video(folders("hunyuan"), PROMPT, negative="blur")
    with pytest.raises(InputError, match="give one picture"):
        image_to_video(folders("svd"), PICTURE[None])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for part in wan.iterdir():
        if part.name != "model_index.json":
            (foreign / part.name).symlink_to(part)
    named = json.loads((wan / "model_index.json").read_text(encoding="utf-8")) | {"transformer": ["my_code", "Evil"]}
    (foreign / "model_index.json").write_text(json.dumps(named), encoding="utf-8")
    with pytest.raises(InputError, match=r"Evil of my_code.*code from checkpoints is not run"):
        text_to_video(foreign, PROMPT, frames=5, height=32, width=32)


def test_pictures_are_padded_not_distorted():
    image = torch.ones(10, 20, 3)
    image[3:7, 5:15] = torch.tensor([1.0, 0.0, 0.0])
    drawn = torch.from_numpy(np.array(_picture(image, 40, 40)))
    red = (drawn[..., 1] < 128).nonzero()
    assert (red.amax(0) - red.amin(0) + 1).tolist() == [8, 20]  # 4 x 10 pixels, twice as large
    assert drawn[0, 0].tolist() == [255, 255, 255]


def shap_e(folder: Path, from_picture: bool = False) -> Path:
    from diffusers.pipelines.shap_e.renderer import ShapERenderer
    from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModel

    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=16, num_embeddings=32, additional_embeddings=0,
        time_embed_act_fn="gelu", time_embed_dim=32, embedding_proj_dim=12, clip_embed_dim=32, encoder_hid_proj_type=None,
        added_emb_type=None, embedding_proj_norm_type="layer" if from_picture else None,
    )  # fmt: skip
    renderer = ShapERenderer(
        param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=16, d_hidden=8, n_output=12, background=(255.0, 255.0, 255.0)
    )
    perturbed(renderer, 1)
    # Triangles for corners (x, y, z) that are inside alone, numbered x + 2 y + 4 z; the published tables fill these buffers.
    for case in range(256):
        corners = [c for c in range(8) if case >> c & 1 and not any(case >> (c ^ bit) & 1 for bit in (1, 2, 4))]
        for i, c in enumerate(corners[:5]):
            x, y, z = c & 1, c >> 1 & 1, c >> 2
            renderer.mesh_decoder.cases[case, i] = torch.tensor([y + 2 * z, 4 + x + 2 * z, 8 + x + 2 * y])
            renderer.mesh_decoder.masks[case, i] = True
    shared: dict[str, Any] = dict(
        prior=perturbed(prior), scheduler=diffusers.HeunDiscreteScheduler(beta_schedule="exp", prediction_type="sample"),
        shap_e_renderer=renderer,
    )  # fmt: skip
    sizes: dict[str, Any] = dict(
        hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=12
    )
    if from_picture:
        tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=14))
        extractor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        pipeline = diffusers.ShapEImg2ImgPipeline(image_encoder=perturbed(tower), image_processor=extractor, **shared)
    else:
        config = CLIPTextConfig(**sizes, vocab_size=len(tiny.clip_tokenizer()), bos_token_id=53, eos_token_id=54)
        encoder = perturbed(CLIPTextModelWithProjection(config))
        pipeline = diffusers.ShapEPipeline(text_encoder=encoder, tokenizer=tiny.clip_tokenizer(), **shared)
    pipeline.save_pretrained(folder)
    return folder


def test_shap_e(tmp_path):
    texts, pictures = shap_e(tmp_path / "text"), shap_e(tmp_path / "picture", True)
    watch = Watch()
    settings: dict[str, Any] = dict(steps=3, resolution=12, seed=5)
    mesh = text_to_mesh(texts, PROMPT, progress=watch, **settings)
    assert watch.steps == [(i, 5) for i in range(1, 6)]  # two questions a step, one in the last
    assert len(mesh.faces) and mesh.has_color and mesh.name == PROMPT
    assert mesh.vertices.abs().max() <= 1.2
    again, other = (text_to_mesh(texts, PROMPT, **(settings | {"seed": s})) for s in (5, 6))
    assert torch.equal(mesh.vertices, again.vertices) and torch.equal(mesh.vertex_colors, again.vertex_colors)
    assert mesh.vertices.shape != other.vertices.shape or not torch.equal(mesh.vertices, other.vertices)
    assert len(image_to_mesh(pictures, PICTURE, **settings).faces)
    with pytest.raises(InputError, match=r"starts from a picture, give shap-e$"):
        text_to_mesh(pictures, PROMPT)
    with pytest.raises(InputError, match="starts from text, give shap-e-img2img"):
        image_to_mesh(texts, PICTURE)
    with pytest.raises(InputError, match="not a Shap-E; found a FluxPipeline"):
        text_to_mesh(index(tmp_path / "flux", "FluxPipeline"), PROMPT)
    with pytest.raises(InputError, match="models get shap-e"):
        text_to_mesh("shap-e", PROMPT)


@pytest.mark.parametrize("inside_out", [False, True])
def test_shap_e_axes(inside_out):
    """A box that stands on z, its red end towards Blender's front (-y): it stands on our y, its red end towards +Z."""
    corners = torch.tensor([[x, y, z] for x in (-0.1, 0.1) for y in (-0.3, 0.3) for z in (-0.6, 0.9)])
    faces = torch.tensor(
        [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4],
         [1, 5, 7], [1, 7, 3]]
    )  # fmt: skip
    colors = torch.where(corners[:, 1:2] < 0, torch.tensor([1.0, 0.2, 0.0]), torch.tensor([0.0, 0.2, 1.0]))
    mesh = shap_e_mesh(corners, faces.flip(-1) if inside_out else faces, colors)
    assert mesh.vertices.amin(0).tolist() == pytest.approx([-0.1, -0.6, -0.3])
    assert mesh.vertices.amax(0).tolist() == pytest.approx([0.1, 0.9, 0.3])
    rgba = mesh.vertex_colors
    assert rgba is not None
    front = mesh.vertices[:, 2] > 0
    assert (rgba[front, 0] > 0.999).all() and (rgba[~front, 2] > 0.999).all() and (rgba[:, 3] == 1).all()
    assert torch.allclose(rgba[:, 1], linear_to_srgb(torch.tensor(0.2)).expand(8))  # vertex channels are linear light
    assert torch.allclose(srgb_to_linear(rgba[:, :3]), colors, atol=1e-6)
    outward = mesh.vertices[mesh.faces].mean(1) - mesh.vertices.mean(0)
    assert ((mesh.face_normals() * outward).sum(-1) > 0).all()
