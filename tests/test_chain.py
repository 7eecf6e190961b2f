"""Anything to a video and an object: the real pipelines at tiny sizes, every entry, links swapped, interrupted and resumed."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
import numpy as np
import tiny_models as tiny
import tiny_videos
from PIL import Image
from safetensors.torch import save_file
from test_generate import cogvideox_image, shap_e
from test_lgm import SMALL, tiny_network
from test_mvdream import TINY, TINY_IMAGE, write_folder
from transformers import CLIPTextModelWithProjection

from anchor4d import cli
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import from_points
from anchor4d.core.generate.chain import Links, complete
from anchor4d.core.generate.image import NEGATIVE, OBJECT_SUFFIX, PIPELINES, text_to_image
from anchor4d.core.io import write_ply, write_png
from anchor4d.core.io.meshes import load_mesh, write_glb
from anchor4d.core.io.objects import load_object
from anchor4d.core.io.video import load_video, read_picture
from anchor4d.core.mesh import Mesh
from anchor4d.core.runs.session import Settings
from anchor4d.core.scene.object3d import SplatObject

PROMPT = "a bear"
#: Steps and sizes of a fraction of a second.
QUICK: dict[Any, dict[str, Any]] = {
    "image": {"steps": 1, "size": 32},
    "video": {"steps": 1, "height": 64, "width": 64},
    "object": {"steps": 2},
}
SHAP_E: dict[Any, dict[str, Any]] = QUICK | {"object": {"steps": 3, "resolution": 12}}


def write_xl(folder: Path) -> Path:
    second = CLIPTextModelWithProjection(tiny_videos.clip_text(hidden_size=20, num_attention_heads=4, projection_dim=10).config)
    diffusers.StableDiffusionXLPipeline(
        vae=tiny.vae(1, force_upcast=True),
        text_encoder=tiny_videos.clip_text(2),
        text_encoder_2=tiny.perturbed(second, 3),
        tokenizer=tiny_videos.clip_tokenizer(),
        tokenizer_2=tiny_videos.clip_tokenizer(),
        unet=tiny.unet(
            cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=10 + 6 * 4,
        ),
        scheduler=tiny.scheduler(),  # pyright: ignore[reportArgumentType]
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write_flux(folder: Path) -> Path:
    """Latents packed as a row of cells."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=12, axes_dims_rope=(2, 2, 4), guidance_embeds=True,
    )  # fmt: skip
    diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny.vae(1, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=tiny_videos.clip_text(2),
        tokenizer=tiny_videos.clip_tokenizer(),
        text_encoder_2=tiny_videos.t5_encoder(3),
        tokenizer_2=tiny_videos.t5_tokenizer(),
        transformer=tiny.perturbed(transformer),
    ).save_pretrained(folder)
    return folder


def write_pixart(folder: Path) -> Path:
    """With diffusers' older callback."""
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=12,
        in_channels=4, cross_attention_dim=16, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    diffusers.PixArtSigmaPipeline(
        tokenizer=tiny_videos.t5_tokenizer(),
        text_encoder=tiny_videos.t5_encoder(2),
        vae=tiny.vae(1),
        transformer=tiny.perturbed(transformer),
        scheduler=diffusers.DPMSolverMultistepScheduler(),  # pyright: ignore[reportArgumentType]
    ).save_pretrained(folder)
    return folder


def write_imagedream(folder: Path) -> Path:
    """Eight cells a side in pictures of 256 pixels."""
    write_folder(folder, TINY_IMAGE)
    blocks = {f"{way}_block_types": (f"{name}coderBlock2D",) * 6 for way, name in (("down", "DownEn"), ("up", "UpDe"))}
    tiny.vae(2, block_out_channels=(4,) * 6, **blocks).save_pretrained(folder / "vae")
    return folder


def write_lgm(folder: Path) -> Path:
    folder.mkdir()
    save_file(dict(tiny_network(4, **SMALL).state_dict()), folder / "model_fp16_fixrot.safetensors")
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "sd": tiny_videos.write_stable_diffusion,
    "xl": write_xl,
    "flux": write_flux,
    "pixart": write_pixart,
    "svd": tiny_videos.write_svd,
    "cogvideox": cogvideox_image,
    "modelscope": tiny_videos.write_modelscope,
    "lgm": write_lgm,
    "imagedream": write_imagedream,
    "mvdream": lambda folder: write_folder(folder, TINY),
    "shap-e": shap_e,
    "shap-e-img2img": lambda folder: shap_e(folder, True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    base = tmp_path_factory.mktemp("models")
    return lambda name: str(base / name if (base / name).is_dir() else WRITERS[name](base / name))


@pytest.fixture(scope="module")
def links(folder: Callable[[str], str]) -> Links:
    return Links(folder("xl"), folder("svd"), folder("lgm"), folder("imagedream"))


@pytest.fixture
def rembg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the package's two entry points that finds a disc: what tiny models draw has no plain background."""
    (tmp_path / "rembg.py").write_text(
        "from PIL import Image, ImageDraw\n"
        "def new_session(name): pass\n"
        "def remove(image, session, only_mask):\n"
        "    mask = Image.new('L', image.size)\n    w, h = image.size\n"
        "    ImageDraw.Draw(mask).ellipse((w / 4, h / 4, w * 3 / 4, h * 3 / 4), 255)\n    return mask\n"
    )
    (tmp_path / "u2net.onnx").write_bytes(b"model")
    monkeypatch.delitem(sys.modules, "rembg", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))


def box() -> Mesh:
    """A box of its own colour on each side: red in front (+Z), green to the left (+X)."""
    corners = torch.tensor([[x, y, z] for x in (-0.2, 0.2) for y in (-0.5, 0.5) for z in (-0.3, 0.3)])
    sides = {(1, 3, 7, 5): (1, 0, 0), (0, 4, 6, 2): (0, 0, 1), (4, 5, 7, 6): (0, 1, 0), (0, 2, 3, 1): (1, 1, 0)}
    sides |= {(2, 6, 7, 3): (0, 1, 1), (0, 1, 5, 4): (1, 0, 1)}
    faces = torch.tensor([[4 * i, 4 * i + a, 4 * i + b] for i in range(6) for a, b in ((1, 2), (2, 3))])
    colors = torch.tensor([(*color, 1) for color in sides.values() for _ in range(4)]).float()
    return Mesh(corners[torch.tensor([i for side in sides for i in side])], faces, vertex_colors=colors)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A picture and a video on white, a mesh, splats."""
    base = tmp_path_factory.mktemp("inputs")
    picture = torch.ones(60, 80, 3)
    picture[15:45, 20:40] = torch.tensor([0.2, 0.6, 0.1])
    write_png(base / "image.png", picture)
    for t in range(3):
        write_png(base / "video" / f"{t}.png", picture.roll(2 * t, 1))
    write_glb(base / "mesh.glb", box())
    points = torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    write_ply(base / "splats.ply", from_points(points, points + 0.5, opacity=0.9))
    return {"image": base / "image.png", "video": base / "video", "object": base / "mesh.glb", "splats": base / "splats.ply"}


def given(names: str, inputs: dict[str, Path]) -> dict[str, Any]:
    """Arguments of "prompt", "image", ... separated by blanks."""
    return {name.replace("splats", "object"): PROMPT if name == "prompt" else inputs[name] for name in names.split()}


# Text to image


@pytest.mark.parametrize("name", ["sd", "xl", "flux", "pixart"])
def test_text_to_image(name: str, folder: Callable[[str], str]) -> None:
    seen: list[tuple[int, int, Any]] = []
    picture = text_to_image(PROMPT, folder(name), steps=2, size=32, progress=lambda *done: seen.append((*done[:2], done[2]())))
    assert picture.shape == (32, 32, 3) and picture.min() >= 0 and picture.max() <= 1 and picture.std() > 0
    assert [done[:2] for done in seen] == [(1, 2), (2, 2)]
    assert seen[1][2].shape == ((8, 8, 3) if name == "flux" else (16, 16, 3)) and seen[1][2].std() > 0
    again, other, another = (
        text_to_image(*asked, steps=2, size=32, seed=seed)
        for asked, seed in (((PROMPT, folder(name)), 0), ((PROMPT, folder(name)), 1), (("a cat", folder(name)), 0))
    )
    assert torch.equal(picture, again) and not torch.equal(picture, other) and not torch.equal(picture, another)


def test_what_the_pipeline_is_asked(folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    original = diffusers.StableDiffusionPipeline.__call__

    @functools.wraps(original)
    def call(self: Any, **told: Any) -> Any:
        asked.clear()
        asked.update(told)
        return original(self, **told)

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "__call__", call)
    assert text_to_image(f" {PROMPT} ", folder("sd"), steps=1).shape == (16, 16, 3)
    assert asked["prompt"] == f"{PROMPT}, {OBJECT_SUFFIX}" and asked["negative_prompt"] == NEGATIVE
    assert not {"height", "width", "guidance_scale"} & asked.keys()
    text_to_image(PROMPT, folder("sd"), steps=1, suffix="", negative="", guidance=3.0)
    assert asked["prompt"] == PROMPT and "negative_prompt" not in asked and asked["guidance_scale"] == 3.0


def test_wrong_requests_for_a_picture(folder: Callable[[str], str]) -> None:
    assert all(hasattr(diffusers, name) for name in PIPELINES)
    for source, words, settings in (
        ("svd", "not a text-to-image model that is known here", {}),
        ("sd", "prompt: say what", {"prompt": " "}),
        ("sd", "size 40: choose a multiple of 16", {"size": 40}),
        ("flux", "heeds no negative prompt", {"negative": "blur"}),
    ):
        with pytest.raises(InputError, match=words):
            text_to_image(settings.pop("prompt", PROMPT), folder(source), **settings)
    with pytest.raises(InputError, match="models get sdxl"):
        text_to_image(PROMPT, "sdxl")


# Every entry


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        ("prompt", ["image of prompt by xl", "video of image by svd", "object of image by lgm and imagedream"]),
        ("image", ["video of image by svd", "object of image by lgm and imagedream"]),
        ("video", ["object of video by lgm and imagedream"]),
        ("object", ["image of object by render", "video of image by svd"]),
        ("splats", ["image of object by render", "video of image by svd"]),
        ("prompt image", ["video of image by svd", "object of image by lgm and imagedream"]),
        ("prompt video", ["object of video by lgm and imagedream"]),
        ("prompt object", ["image of object by render", "video of image by svd"]),
        ("image video", ["object of image by lgm and imagedream"]),
        ("image object", ["video of image by svd"]),
        ("video object", []),
        ("prompt image object", ["video of image by svd"]),
        ("prompt image video splats", []),
    ],
)
@pytest.mark.usefixtures("rembg")
def test_every_entry(names: str, steps: list[str], links: Links, inputs: dict[str, Path], tmp_path: Path) -> None:
    out, told = tmp_path / "out", given(names, inputs)
    made = complete(out, **told, links=links, frames=2, options=QUICK)
    found = [f"{s.what} of {s.of} by {' and '.join(Path(name).name for name in s.by.split(' and '))}" for s in made.steps]
    assert found == steps
    assert len(load_video(made.video, fps=made.fps)) == (3 if "video" in told else 2)
    assert load_object(made.object).has_color
    assert made.video == told.get("video", out / "made" / "video")
    assert made.object == told.get("object", out / "made" / "object.ply")
    assert made.fps == (None if "video" in told else 7.0)
    assert made.yaw == (0.0 if "render" in " ".join(steps) else None)
    assert {p.name for p in (out / "made").glob("*")} == {s.path.name for s in made.steps} | ({"made.json"} if steps else set())


def test_an_object_is_drawn_from_its_front(links: Links, inputs: dict[str, Path], tmp_path: Path) -> None:
    """At distance 1.5 in a lens of 49.1 degrees, on nothing; --yaw brings another side to the front."""

    def drawn(item: Path, **settings: Any) -> tuple[torch.Tensor, float | None]:
        made = complete(tmp_path / "out", object=item, links=links, frames=2, options=QUICK, **settings)
        return read_picture(made.steps[0].path).frames[0].float() / 255, made.yaw

    picture, yaw = drawn(inputs["object"])
    assert yaw == 0 and picture[384, 384].tolist() == [1, 0, 0, 1] and picture[10, 10, 3] == 0
    rows, columns = (picture[..., 3].amax(dim) > 0.5 for dim in (1, 0))
    # The front side, 0.4 by 1, at distance 1.2.
    pixels = 384 / (1.2 * np.tan(np.radians(49.1 / 2)))
    assert int(rows.sum()) == pytest.approx(pixels, abs=2) and int(columns.sum()) == pytest.approx(0.4 * pixels, abs=2)
    picture, yaw = drawn(inputs["object"], yaw=-90)
    assert yaw == -90 and picture[384, 384].tolist() == [0, 1, 0, 1]
    # Without colours: shaded, the edges of a ball darker than its middle.
    import trimesh

    trimesh.creation.icosphere(4, 0.5).export(tmp_path / "ball.stl")
    picture, _ = drawn(tmp_path / "ball.stl")
    assert not load_object(tmp_path / "ball.stl").has_color
    assert picture[384, 384, 0] > 1.5 * picture[384, (picture[384, :, 3] > 0.99).nonzero()[2, 0], 0] > 0


# Links


@pytest.mark.usefixtures("rembg")
def test_links_are_swapped_by_folder(
    links: Links, folder: Callable[[str], str], inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Films of text need no picture, meshes of text neither; the order of the chain follows."""
    direct = replace(links, video=folder("modelscope"))
    quick = QUICK | {"video": {"steps": 1, "height": 16, "width": 24}}
    made = complete(tmp_path / "a", prompt=PROMPT, links=direct, frames=3, options=quick)
    assert [(s.what, s.of) for s in made.steps] == [("video", "prompt"), ("object", "video")]
    assert len(load_video(made.video)) == 3 and isinstance(load_object(made.object), SplatObject)
    for name, told, of in (("shap-e", "prompt video", "prompt"), ("shap-e-img2img", "video", "video")):
        meshes = replace(links, object=folder(name))
        made = complete(tmp_path / name, **given(told, inputs), links=meshes, options=SHAP_E)
        assert [(s.what, s.of, s.by) for s in made.steps] == [("object", of, folder(name))]
        assert made.object.suffix == ".glb" and len(load_mesh(made.object).faces)


@pytest.mark.usefixtures("rembg")
def test_links_are_swapped_by_name(
    links: Links, folder: Callable[[str], str], inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of the registry and ids of the Hub, found in the models folder."""
    monkeypatch.setenv("ANCHOR4D_MODELS", str(tmp_path))
    (tmp_path / "diffusers").mkdir()
    for name, source in (("shap-e-img2img", "shap-e-img2img"), ("someone--film", "svd")):
        (tmp_path / "diffusers" / name).symlink_to(folder(source))
    named = replace(links, object="shap-e-img2img", video="someone/film")
    made = complete(tmp_path / "out", image=inputs["image"], links=named, frames=2, options=SHAP_E)
    assert [s.by for s in made.steps] == ["someone/film", "shap-e-img2img"]


def test_the_text_goes_to_whoever_takes_one(
    links: Links, folder: Callable[[str], str], inputs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: dict[str, Any] = dict(image=inputs["image"], object=inputs["object"])
    for name, heeds, options in (("cogvideox", True, {"video": {"steps": 2}}), ("svd", False, QUICK)):
        films = []
        for index, text in enumerate((PROMPT, "a zebra jumps")):
            out, swapped = tmp_path / f"{name}{index}", replace(links, video=folder(name))
            with caplog.at_level("INFO"):
                caplog.clear()
                made = complete(out, **told, prompt=text, links=swapped, options=options)
            assert ("prompt: left aside" in caplog.text) != heeds
            films.append(load_video(made.video, torch.ones(read_picture(made.video / "000.png").frames.shape[1:3])).frames)
        assert torch.equal(*films) != heeds


@pytest.mark.parametrize(
    ("told", "swapped", "words"),
    [
        ("image", {"video": "modelscope"}, "starts from text, but the film has to show the image that is .* svd$"),
        ("prompt object", {"video": "modelscope"}, "the film has to show the object that is given"),
        ("video", {"object": "shap-e"}, "starts from text; give a prompt too, or choose lgm"),
        ("video", {"object": "svd"}, "svd: not a model that makes objects here"),
        ("video", {"views": "mvdream"}, "mvdream: not an ImageDream"),
        ("image", {"video": "shap-e"}, "shap-e: not a video model that is known here"),
        ("prompt", {"image": "svd"}, "svd: not a text-to-image model"),
    ],
)
def test_models_that_cannot_do_their_part(
    told: str, swapped: dict[str, str], words: str, links: Links, folder: Callable[[str], str], inputs: dict[str, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    others = replace(links, **{link: folder(name) for link, name in swapped.items()})
    with pytest.raises(InputError, match=words):
        complete(tmp_path / "out", **given(told, inputs), links=others)
    assert not (tmp_path / "out").exists()


def test_models_that_are_not_here_are_all_named_before_any_work(
    folder: Callable[[str], str], inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANCHOR4D_MODELS", str(tmp_path / "none"))
    monkeypatch.setattr("anchor4d.core.priors.models._user_folder", lambda: tmp_path / "none either")

    def refused(links: Links = Links(), names: str = "prompt") -> str:
        with pytest.raises(InputError) as error:
            complete(tmp_path / "out", **given(names, inputs), links=links)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    line, get = refused(), "python -m anchor4d models get"
    assert line.endswith(" && ".join(f"{get} {name}" for name in ("sdxl", "svd")))
    assert "sdxl (pictures from text, 6.9 GB)" in line and "\n" not in line
    assert refused(names="object").endswith(f"get it with: {get} svd")
    assert refused(Links(object="shap-e"), "prompt video").endswith(f"get it with: {get} shap-e")
    assert refused(Links(object="shap-e-img2img", video=folder("svd")), "image").endswith(f"{get} shap-e-img2img")
    # A film of text needs no picture; a model of the Hub is asked for by its id.
    assert refused(Links(video="zeroscope", object="lgm")).endswith(
        " && ".join(f"{get} {n}" for n in ("zeroscope", "lgm", "imagedream"))
    )
    assert refused(Links(video="someone/film"), "object").endswith(f"{get} someone/film")
    assert "no model of that name" in refused(Links(video="sdv"))
    assert "svd: this model makes films from a picture; as the object model choose" in refused(Links(object="svd"))


def test_a_video_alone_is_inflated_where_no_model_is_here(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ANCHOR4D_MODELS", str(tmp_path / "none"))
    monkeypatch.setattr("anchor4d.core.priors.models._user_folder", lambda: tmp_path / "none either")
    with caplog.at_level("INFO"):
        made = complete(tmp_path / "out", video=inputs["video"])
    assert (made.video, made.yaw, [step.by for step in made.steps]) == (inputs["video"], 0.0, ["inflate"])
    assert "models get lgm" in caplog.text and made.inflated
    settings = Settings("pla4d", "draft")
    assert settings.of_guessed_depth().without == ("depth-motion",) and Settings("align4d").of_guessed_depth().without == ()
    for nothing in (replace(settings, preset="paper"), replace(settings, preset="preview"), settings.of_guessed_depth()):
        assert nothing.of_guessed_depth() is nothing
    mesh = load_object(str(made.object))
    assert isinstance(mesh, Mesh) and mesh.has_color
    assert [step.reused for step in complete(tmp_path / "out", video=inputs["video"]).steps] == [True]
    pictured = complete(tmp_path / "other", video=inputs["video"], image=inputs["image"], links=Links(object="inflate"))
    assert [(step.what, step.of) for step in pictured.steps] == [("object", "image")]


def test_inputs_that_are_not_here(links: Links, inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for told, words in (
        ({}, "nothing to start from"),
        ({"prompt": " "}, "nothing to start from"),
        ({"image": tmp_path / "gone.png"}, r"gone\.png: no such image"),
        ({"video": tmp_path / "gone"}, "gone: no such video"),
        ({"object": tmp_path / "gone.glb"}, r"gone\.glb: no such object"),
        ({"image": inputs["object"]}, r"mesh\.glb: not a readable picture"),
        ({"image": inputs["image"], "fps": 0.0}, "choose a rate above 0"),
        ({"image": inputs["image"], "frames": 1}, "1 frames asked for"),
    ):
        with pytest.raises(InputError, match=words):
            complete(out, **told, links=links)  # type: ignore[arg-type]
        assert not out.exists()


# Again, interrupted, resumed


@pytest.mark.usefixtures("rembg")
def test_only_what_has_changed_is_made_again(links: Links, folder: Callable[[str], str], tmp_path: Path) -> None:
    out = tmp_path / "out"

    def again(**changed: Any) -> tuple[str, ...]:
        told: dict[str, Any] = dict(prompt=PROMPT, links=links, frames=2, options=QUICK) | changed
        return tuple(step.what for step in complete(out, **told).steps if not step.reused)

    assert again() == ("image", "video", "object")
    before = {path: path.stat().st_mtime_ns for path in (out / "made").rglob("*")}
    assert again() == again(resume=True) == ()
    assert before == {path: path.stat().st_mtime_ns for path in (out / "made").rglob("*")}
    assert again(frames=3) == ("video",)
    assert again(links=replace(links, object=folder("shap-e-img2img")), frames=3, options=SHAP_E) == ("object",)
    with pytest.raises(InputError, match="made: was made of other inputs or models; give the same or drop --resume"):
        again(prompt="a cat", resume=True)
    # A picture that was touched up counts; what follows from it is made anew.
    picture = Image.open(out / "made" / "image.png")
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(out / "made" / "image.png")
    assert again() == ("video", "object")
    assert again(seed=1) == ("image", "video", "object")


@pytest.mark.usefixtures("rembg")
def test_an_interrupted_chain_leaves_whole_files_and_goes_on(links: Links, tmp_path: Path) -> None:
    def run(out: Path, stop: str = "", **settings: Any) -> Any:
        stages.clear()

        def progress(stage: str, step: int, steps: int, losses: dict[str, float], preview: Callable[[], torch.Tensor]) -> None:
            assert not losses and 1 <= step <= steps and preview().shape[-1] == 3
            stages.append(stage.split(",")[0])
            if stage.startswith(stop or "-"):
                raise KeyboardInterrupt

        return complete(out, prompt=PROMPT, links=links, frames=2, options=QUICK, progress=progress, **settings)

    stages: list[str] = []
    whole = run(tmp_path / "whole")
    assert list(dict.fromkeys(stages)) == ["prompt to image", "image to video", "image to object"]
    out = tmp_path / "out"
    for stop, left in (("image to video", {"image.png"}), ("image to object", {"image.png", "video"})):
        with pytest.raises(KeyboardInterrupt):
            run(out, stop, resume=stop == "image to object")
        assert {p.name for p in (out / "made").iterdir()} == left | {"made.json"}
    resumed = run(out, resume=True)
    assert set(stages) == {"image to object"} and [s.reused for s in resumed.steps] == [True, True, False]
    assert resumed.object.read_bytes() == whole.object.read_bytes()
    assert all((resumed.video / p.name).read_bytes() == p.read_bytes() for p in whole.video.iterdir())
    # Interrupted in a second run with another text: what is void is forgotten, so that this run too can go on.
    with pytest.raises(KeyboardInterrupt):
        complete(out, prompt="a cat", links=links, frames=2, options=QUICK, progress=_stop_at_video)
    assert set(json.loads((out / "made" / "made.json").read_text())) == {"image"}
    made = complete(out, prompt="a cat", links=links, frames=2, options=QUICK, resume=True)
    assert [s.reused for s in made.steps] == [True, False, False]


def _stop_at_video(stage: str, *rest: Any) -> None:
    if stage.startswith("image to video"):
        raise KeyboardInterrupt


def test_without_a_background_remover_the_error_says_what_to_do_and_the_picture_stays(
    links: Links, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(InputError, match=r"image\.png: the background is not plain and rembg.*pip install rembg\[cpu\]"):
        complete(tmp_path / "out", prompt=PROMPT, links=links, options=QUICK)
    assert (tmp_path / "out" / "made" / "image.png").is_file()


# The command line


def test_the_help_tells_the_links(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for link, name in vars(Links()).items():
        assert f"--{link}-model" in told and f"(default: {name}" in told


def test_the_command_line_refuses_in_one_line(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANCHOR4D_MODELS", str(tmp_path / "none"))
    monkeypatch.setattr("anchor4d.core.priors.models._user_folder", lambda: tmp_path / "none either")
    for argv, words in (
        ([], "at least one of --prompt, --image, --video and --object"),
        (["--prompt", PROMPT], "models get sdxl && "),
        (["--image", inputs["image"]], "get it with: python -m anchor4d models get svd"),
        (["--image", inputs["image"], "--object-model", "lgm"], "models get svd && python -m anchor4d models get lgm && "),
        (["--object", inputs["object"], "--video-model", "ltx-video"], "get it with: python -m anchor4d models get ltx-video"),
        (["--prompt", PROMPT, "--prior", "no-such-prior"], "no-such-prior"),
        (["--prompt", PROMPT, "--yaw", "left"], "choose degrees"),
    ):
        assert cli.main(["fit", *(str(a) for a in argv), "--out", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and words in lines[0], lines
        assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("rembg")
def test_a_text_becomes_a_scene(
    links: Links, folder: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from test_cli import tiny as tiny_method

    from anchor4d.core.methods import pla4d

    monkeypatch.setitem(pla4d._OURS, "draft", lambda refinement: tiny_method())  # pyright: ignore[reportPrivateUsage]
    swapped = replace(links, video=folder("cogvideox"))
    models = [text for link, name in vars(swapped).items() for text in (f"--{link}-model", name)]
    argv = ["fit", "--prompt", PROMPT, *models, "--preset", "draft", "--prior", "none", "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(tmp_path / "out" / "scene.safetensors")
    assert "prompt to image, xl  50/50" in told.err and "made of the image by lgm and imagedream" in told.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["video"]["fps"] == 8.0
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"made", "scene.safetensors", "report.json", "preview.mp4"}
    assert cli.main([*argv, "--resume"]) == 0
    assert "already finished" in capsys.readouterr().err
