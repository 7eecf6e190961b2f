"""Sets of quadruplets: aligned to the pixel, measured, captioned, filtered, chosen, loaded; harmful manifests refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import anchor4d as a4d
from anchor4d import cli
from anchor4d.bench.batch import SUITE, read_jobs
from anchor4d.bench.player import chromium
from anchor4d.bench.x4d import bounds_of, given_to, of_one
from anchor4d.core.cameras import Cameras, Crop, FrontCamera
from anchor4d.core.deformation import ControlNodes
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import from_points
from anchor4d.core.io import write_frames
from anchor4d.core.io.video import load_video, read_picture
from anchor4d.core.mesh import Mesh
from anchor4d.core.runs.quadruplets import FILES, framing, write_quadruplet
from anchor4d.core.runs.sample import sample_meshes
from anchor4d.core.runs.sheets import write_sheets
from anchor4d.core.runs.x4d import (
    MANIFEST,
    REJECTED,
    Limits,
    Source,
    add,
    choose,
    credits,
    digest,
    gather,
    read_choice,
    read_clip_tensors,
    read_manifest,
    read_set,
    write_lines,
)  # fmt: skip
from anchor4d.core.runs.x4d_set import X4D
from anchor4d.core.scene.object3d import render_object
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.views import render_frames
from anchor4d.core.video import DrivingVideo

FRONT = FrontCamera(fovy=40.0, distance=2.2, width=64, height=48, cx=30.0, cy=25.0)
CROP = Crop(10, 4, 40, 64, 48)
NOTES = {"licence": "CC0-1.0", "credit": "nobody", "source": "a test"}


def moving(shift: float = 0.1, seed: int = 0) -> Scene4D:
    """A cloud of Gaussians that moves to the right, with its camera and window."""
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(200, 3, generator=generator) - 0.5) * torch.tensor([0.5, 0.7, 0.5])
    gaussians = from_points(points, torch.rand(200, 3, generator=generator), opacity=0.9)
    field = ControlNodes.on_surface(gaussians, 3, nodes=4)
    with torch.no_grad():
        field.translations[:, :, 0] += torch.linspace(0, shift, 3)[:, None]
    return Scene4D(gaussians, field, frames=3, fps=6.0, front=FRONT, crop=CROP, meta={"method": "test", "prior": "none"})


def seen(scene: Scene4D, size: int = 40) -> DrivingVideo:
    """The video that a perfect fit was made of."""
    assert scene.front is not None
    drawn = render_frames(scene, scene.front.cropped(CROP, size), scene.taus, backend="torch")[0]
    return DrivingVideo(drawn[..., :3], drawn[..., 3], scene.fps, CROP, source="film")


@pytest.fixture(scope="module")
def set_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three quadruplets: one with a mesh, one with Gaussians, one without a video."""
    folder = tmp_path_factory.mktemp("set")
    scene = moving()
    mesh = sample_meshes(2)[0].normalized()[0]
    add(folder, "mesh", scene, seen(scene), mesh, text="a  toy\nthat moves", notes=NOTES, backend="torch")
    add(folder, "splats", moving(0.2, 1), seen(moving(0.2, 1)), text="a cloud", notes=NOTES, backend="torch")
    add(folder, "text", moving(0.3, 2), text="a third", backend="torch")
    return folder


# A quadruplet


def test_text_image_video_and_3d_are_one_object_to_the_pixel(set_folder: Path) -> None:
    found = a4d.X4D(set_folder, verify=True)
    at = found.index("splats")
    item = found[at]
    assert item["text"] == "a cloud" and item["video"].shape == (3, 40, 40, 4) and item["fps"] == 6.0
    assert torch.equal(item["image"], item["video"][0]) and item["taus"].tolist() == [0, 0.5, 1]
    picture = read_picture(found.path(at, "image")).frames[0]
    assert torch.equal(torch.as_tensor(picture), (item["image"] * 255).round().byte())
    film = load_video(found.path(at, "video"), resolution=64, background="white")
    assert len(film) == 3
    camera = Cameras(item["world_to_camera"][None], item["K"][None], 40, 40)
    truth = seen(moving(0.2, 1))
    assert (item["video"][..., 3] - truth.masks).abs().max() < 1 / 255
    # The 3D, seen by the item's camera, is the image; the 4D is the video.
    drawn = render_object(found.object(at), camera, supersample=1, backend="torch")
    assert (drawn.color[0] - item["image"][..., :3] * item["image"][..., 3:]).abs().mean() < 0.01
    frames = render_frames(found.scene(at), camera, item["taus"], backend="torch")[0]
    assert (frames[..., 3] - item["video"][..., 3]).abs().max() < 0.02


def test_the_3d_keeps_its_kind(set_folder: Path) -> None:
    found = X4D(set_folder)
    mesh = found.object(found.index("mesh"))
    given = sample_meshes(2)[0].normalized()[0]
    assert isinstance(mesh, Mesh) and len(mesh.faces) == len(given.faces)
    for end in (torch.amin, torch.amax):
        assert torch.allclose(end(mesh.vertices, 0), end(given.vertices, 0), atol=1e-5)
    entries = {entry["id"]: entry for entry in found.entries}
    assert [entries[name]["object"] for name in ("mesh", "splats", "text")] == ["mesh", "gaussians", "gaussians"]
    assert [entries[name]["from"] for name in ("mesh", "splats", "text")] == ["video+3d", "video", "text"]
    assert entries["mesh"]["text"] == "a toy that moves" and entries["mesh"]["licence"] == "CC0-1.0"


def test_a_perfect_fit_measures_so(set_folder: Path) -> None:
    measures = {entry["id"]: entry["measures"] for entry in X4D(set_folder).entries}
    assert measures["splats"]["iou"] == 1.0 and measures["splats"]["psnr"] > 39.9 and measures["splats"]["motion"] > 0.99
    assert measures["splats"]["gain"] == pytest.approx(measures["splats"]["psnr"] - measures["splats"]["frozen"])
    assert "iou" not in measures["text"] and measures["text"]["size"] > 0


def test_an_item_has_the_frames_and_the_size_that_are_asked(set_folder: Path) -> None:
    batch = next(iter(DataLoader(X4D(set_folder, frames=2, size=16), batch_size=3)))
    assert (
        batch["video"].shape == (3, 2, 16, 16, 4) and batch["K"].shape == (3, 3, 3) and batch["taus"].tolist() == [[0, 1]] * 3
    )
    assert batch["text"] == ["a toy that moves", "a cloud", "a third"]
    whole, small = X4D(set_folder)[1], X4D(set_folder, size=20)[1]
    assert torch.allclose(small["K"][:2], whole["K"][:2] / 2) and float(small["K"][2, 2]) == 1
    area = whole["video"][..., 3].unflatten(1, (20, 2)).unflatten(3, (20, 2)).mean((2, 4))
    faint = area < 1 / 255  # too little to carry a colour: becomes 0
    assert torch.allclose(small["video"][..., 3], area.masked_fill(faint & (small["video"][..., 3] == 0), 0), atol=1e-5)
    assert len(X4D(set_folder, where=lambda entry: entry["from"] == "text")) == 1


def test_the_clip_is_a_driving_video_again(set_folder: Path) -> None:
    found = X4D(set_folder)
    video = found.driving_video(found.index("splats"))
    assert video.crop == CROP and video.fps == 6.0
    assert (video.masks - seen(moving(0.2, 1)).masks).abs().max() < 1 / 255


def test_a_video_of_other_frames_is_refused(tmp_path: Path) -> None:
    video = seen(moving())
    with pytest.raises(InputError, match="video of 2 frames, scene of 3"):
        write_quadruplet(tmp_path, moving(), replace(video, frames=video.frames[:2], masks=video.masks[:2]), backend="torch")


def test_a_scene_that_was_fitted_to_no_video_takes_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scene: has no camera of the video"):
        write_quadruplet(tmp_path, replace(moving(), front=None), seen(moving()), backend="torch")


def test_framing_says_how_large_the_object_is_and_what_it_touches() -> None:
    # A window of 40 of a picture of 64 x 48, drawn at 20: a unit is two pixels of the picture.
    masks = torch.zeros(2, 20, 20)
    masks[0, 5:9, 5:10] = 1
    assert framing(masks, CROP) == {"size": pytest.approx(20 * 4 / 2 / (64 * 48)), "pixels": 10.0, "border": 0.0}
    # The window begins 10 to the left of the picture: the border is in its column 5.
    beyond = Crop(-10, 4, 40, 64, 48)
    assert framing(masks, beyond)["border"] == pytest.approx(4 * 2 / (2 * (64 + 48)))
    masks[0, 5:9, :7] = 0
    assert framing(masks, beyond)["border"] == 0.0
    # Without a crop the pictures are the whole.
    full = torch.ones(1, 10, 10)
    assert framing(full, None) == {"size": 1.0, "pixels": 10.0, "border": 1.0}
    assert framing(torch.zeros(1, 10, 10), None) == {"size": 0.0, "pixels": 0.0, "border": 0.0}


# Filters


def test_every_reason_is_named() -> None:
    limits = Limits({"iou": (0.8, np.inf), "border": (0, 0.01), "motion": (0.2, np.inf)}, ("good",))
    entry: dict[str, Any] = {"measures": {"iou": 0.61234, "border": 0.5}, "verdict": "wrong"}
    assert limits.reasons(entry) == ["verdict wrong", "iou 0.6123 below 0.8", "border 0.5 above 0.01"]
    assert limits.reasons({"measures": {"iou": 0.8, "border": 0.01, "motion": 0.2}, "verdict": None}) == []


def test_limits_of_the_command_line() -> None:
    bounds = bounds_of(["iou=0.9", "clip-text=0.2", "frozen=none"], ["border=none", "jitter=0.3"])
    assert bounds["iou"] == (0.9, np.inf) and bounds["clip-text"] == (0.2, np.inf) and bounds["jitter"] == (-np.inf, 0.3)
    assert bounds["frozen"] == (-np.inf, 35) and bounds["border"] == (0, np.inf)
    assert "border" not in bounds_of(["border=none"], ["border=none"])
    for text in ("iou", "iou=", "=3", "iou=much", "iou=nan"):
        with pytest.raises(InputError, match=f"--least {text}: write NAME=VALUE"):
            bounds_of([text], [])


def test_limits_that_cannot_be_measured_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="limit 'colour': no measure of this name; choose of size, pixels"):
        Limits({"colour": (0, 1)}).check()
    monkeypatch.setenv("ANCHOR4D_MODELS", str(tmp_path))
    monkeypatch.setattr("anchor4d.core.priors.models._user_folder", lambda: tmp_path)
    with pytest.raises(InputError, match=r"limit 'clip-text': .*models get clip-vit-b32"):
        Limits({"clip-text": (0.2, 1)}).check()
    Limits({"jitter-error": (0, 1), "size": (0, 1)}).check()


# Gathering


class Says:
    """What stands where a captioner of transformers does; those are tested below."""

    name, identity, licence = "says", "says 1", "MIT"

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, frames: torch.Tensor) -> str:
        assert frames.shape == (3, 40, 40, 3) and float(frames.max()) <= 1
        self.asked += 1
        return "what it shows"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The folders of two finished runs, as x4d build leaves them."""
    out = tmp_path / "built"
    for name, scene in (("good", moving()), ("still", moving(0.0))):
        video = seen(scene)
        (out / name).mkdir(parents=True)
        scene.save(out / name / "scene.safetensors")
        (out / name / "report.json").write_text(json.dumps({"method": "pla4d", "prior": "zero123-xl", "preset": "draft"}))
        write_quadruplet(out / name / "quadruplet", scene, video, backend="torch")
    (tmp_path / "film").mkdir()
    write_frames(tmp_path / "film", torch.rand(2, 8, 8, 3))
    return out


def sources(runs: Path, **notes: str) -> list[Source]:
    given = {"video": str(runs.parent / "film")}
    return [
        Source("good", given, NOTES | notes), Source("still", given, NOTES | notes),
        Source("broken", given, notes, failed="film: no such video"), Source("gone", given, notes),
    ]  # fmt: skip


def test_the_manifest_has_what_is_kept_and_the_reasons_for_the_rest(runs: Path) -> None:
    kept, rejected = gather(runs, sources(runs))
    assert kept == read_manifest(runs / MANIFEST) and rejected == read_manifest(runs / REJECTED)
    (good,) = kept
    assert good["text"] == "good" and good["text_by"] == "name"
    assert good["from"] == "video" and good["made"]["method"] == "pla4d"
    assert good["models"] == [{"of": "4d", "name": "zero123-xl", "licence": "MIT"}]
    assert good["inputs"] == {"video": {"name": "film", "sha256": digest(runs.parent / "film")}}
    assert set(good["files"]) == set(FILES)
    for file in good["files"].values():
        assert digest(runs / file["path"]) == file["sha256"] and (runs / file["path"]).stat().st_size == file["bytes"]
    reasons = {entry["id"]: entry["reasons"] for entry in rejected}
    assert reasons["broken"] == ["film: no such video"]
    assert re.fullmatch(r"frozen (40|39\.\d+) above 35", reasons["still"][0])
    assert "gone/quadruplet: no quadruplet there" in reasons["gone"][0]


def test_other_limits_need_no_new_run(runs: Path) -> None:
    kept, _ = gather(runs, sources(runs), Limits({"frozen": (0.0, 40.0), "jitter-error": (0.0, 1.0)}))
    assert [entry["id"] for entry in kept] == ["good", "still"]
    assert kept[0]["measures"]["jitter-error"] < 0.01
    before = (runs / "good" / "quadruplet" / "measures.json").stat().st_mtime_ns
    gather(runs, sources(runs), Limits({"jitter-error": (0.0, 1.0)}))
    assert (runs / "good" / "quadruplet" / "measures.json").stat().st_mtime_ns == before  # measured once


def test_a_text_is_the_caption_the_prompt_the_captioners_or_the_name(runs: Path) -> None:
    says = Says()

    def texts(captioner: Any, **notes: str) -> list[tuple[str, str]]:
        kept, _ = gather(runs, sources(runs, **notes), Limits({}), captioner=captioner)
        return [(entry["text"], entry["text_by"]) for entry in kept]

    assert texts(says, caption="a row says it") == [("a row says it", "caption")] * 2
    assert says.asked == 0
    assert texts(says) == [("what it shows", "says")] * 2
    assert texts(says) == [("what it shows", "says")] * 2
    assert says.asked == 2  # once each
    says.identity = "says 2"
    texts(says)
    assert says.asked == 4
    kept, _ = gather(runs, sources(runs), Limits({}), captioner=says)
    assert {"of": "text", "name": "says", "licence": "MIT"} in kept[0]["models"]
    prompt = [replace(source, given={"prompt": "a panda"}) for source in sources(runs)[:1]]
    kept, _ = gather(runs, prompt, Limits({}), captioner=says)
    assert (kept[0]["text"], kept[0]["text_by"], kept[0]["from"]) == ("a panda", "prompt", "text")


# Captioners


def write_blip(folder: Path) -> Path:
    """BLIP of the real classes, with a vocabulary of words; it never ends its sentence."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "fox", "runs", "dog", "walks", "the", "small"]
    (folder / "vocab.txt").write_text("\n".join(words))
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8}
    text = {"vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 80, "bos_token_id": 2,
            "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}  # fmt: skip
    vision = {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(text_config=width | text, vision_config=width | vision, projection_dim=8)
    )
    with torch.no_grad():
        bias = model.text_decoder.cls.predictions.bias
        bias[:5] -= 10
        for parameter in model.text_decoder.parameters():  # so that what is seen decides
            parameter.mul_(5 if parameter.ndim > 1 else 1)
    model.save_pretrained(folder)
    pictures = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.BlipProcessor(
        image_processor=pictures, tokenizer=transformers.BertTokenizer(str(folder / "vocab.txt"))
    ).save_pretrained(folder)
    return folder


def test_a_captioner_says_what_its_own_pipeline_says(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    from anchor4d.core.generate.caption import TOKENS, Captioner

    folder = write_blip(tmp_path / "blip")
    captioner = Captioner(str(folder))
    assert not captioner.chats and captioner.name == "blip"
    frames = torch.rand(3, 20, 20, 3, generator=torch.Generator().manual_seed(1))
    processor = transformers.BlipProcessor.from_pretrained(folder)
    model = transformers.BlipForConditionalGeneration.from_pretrained(folder)
    picture = Image.fromarray((frames[0] * 255).round().byte().numpy())
    said = model.generate(**processor(images=picture, return_tensors="pt"), max_new_tokens=TOKENS, do_sample=False)
    wanted = processor.decode(said[0], skip_special_tokens=True)
    assert len(wanted.split()) > 5 and captioner(frames) == captioner(frames[:1]) == wanted


#: A question to a model that chats, as its own template writes it.
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


def write_llava(folder: Path) -> Path:
    """LLaVA of the real classes, over CLIP and Llama of one layer."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True)
    words = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "a", "red", "fox", "runs", "dog", "walks", "the", "what", "is", "it"]
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, additional_special_tokens=["<image>"], **special)
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "num_key_value_heads": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=8, **width),
        text_config=transformers.LlamaConfig(**width, **text),
        image_token_index=4, vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
        model.lm_head.weight[:5] = 0
    model.save_pretrained(folder)
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_convert_rgb=True
    )
    transformers.LlavaProcessor(
        image_processor=pictures, tokenizer=tokenizer, patch_size=16, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_captioner_that_chats_sees_frames_of_the_clip(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    from anchor4d.core.generate.caption import TOKENS, Captioner

    folder = write_llava(tmp_path / "llava")
    captioner = Captioner(str(folder), ask="what is it")
    assert captioner.chats and captioner.identity != Captioner(str(folder), ask="is it a dog").identity
    frames = torch.rand(10, 20, 20, 3, generator=torch.Generator().manual_seed(1))
    processor = transformers.LlavaProcessor.from_pretrained(folder)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    pictures = [Image.fromarray((frames[index] * 255).round().byte().numpy()) for index in (0, 3, 6, 9)]
    given = processor(images=pictures, text="<image> <image> <image> <image> what is it ", return_tensors="pt")
    said = model.generate(**given, max_new_tokens=TOKENS, do_sample=False)[0, given["input_ids"].shape[1] :]
    wanted = processor.decode(said, skip_special_tokens=True)
    assert len(wanted.split()) > 5 and captioner(frames) == wanted
    assert captioner(frames[:1]) != wanted


def test_what_is_no_captioner_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    from anchor4d.core.generate.caption import Captioner

    folder = write_blip(tmp_path / "blip")
    (folder / "config.json").write_text(json.dumps({"model_type": "none-such", "auto_map": {"AutoConfig": "evil.Evil"}}))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(InputError, match="blip"):
        Captioner(str(folder))
    assert "custom code" not in capsys.readouterr().out  # transformers would ask, and run it
    with pytest.raises(InputError, match="get it with: python -m anchor4d models get no-such/captioner"):
        Captioner("no-such/captioner")
    other = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8
    )
    transformers.BertModel(other).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="bert: a bert, which says no texts of pictures"):
        Captioner(str(tmp_path / "bert"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        Captioner(str(tmp_path / "empty"))


# Manifests from elsewhere


LINE = {"version": 1, "id": "a", "text": "t", "files": {"clip": {"path": "a/clip.safetensors", "sha256": "0" * 64}}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": {"clip": {"path": "../../x", "sha256": "0" * 64}}}, "leaves the set"),
        ({"files": {"clip": {"path": "/etc/passwd", "sha256": "0" * 64}}}, "leaves the set"),
        ({"files": {"clip": {"path": "c:/x", "sha256": "0" * 64}}}, "leaves the set"),
        ({"files": {"clip": {"path": "..\\x", "sha256": "0" * 64}}}, "leaves the set"),
        ({"files": {"clip": {"path": "a/x", "sha256": "00"}}}, "sha256"),
        ({"files": {"clip": "a/x"}}, "line 2: is not as x4d writes it"),
        ({"files": []}, "line 2: is not as x4d writes it"),
        ({"id": "../b"}, "id '../b'"),
        ({"id": 3}, "line 2: is not as x4d writes it"),
        ({"id": "a"}, "line 2: a second a"),
        ({"version": 99}, "newer than this program"),
    ],
)  # fmt: skip
def test_manifests_that_do_harm_are_refused_by_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_lines(tmp_path / MANIFEST, [LINE, {**LINE, "id": "b", **change}])
    with pytest.raises(InputError, match=re.escape(words)):
        X4D(tmp_path)


def test_folders_that_are_no_sets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / MANIFEST}: no manifest")):
        X4D(tmp_path)
    for text in ("[1]\n", "{\n", "null\n"):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(InputError, match="line 1: is not as x4d writes it"):
            X4D(tmp_path)


def test_a_link_out_of_the_set_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (tmp_path / "set" / "a" / "clip.safetensors").symlink_to(tmp_path / "secret")
    write_lines(tmp_path / "set" / MANIFEST, [LINE])
    with pytest.raises(InputError, match="leads out of the set"):
        X4D(tmp_path / "set").path(0, "clip")


def test_clips_that_are_none(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    good = {"frames": torch.zeros(2, 4, 4, 4, dtype=torch.uint8), "taus": torch.zeros(2), "K": torch.eye(3)}
    for change in ({"frames": torch.zeros(2, 4, 4, 4)}, {"taus": torch.zeros(3)}, {"K": torch.eye(4)}, {}):
        save_file(good | change, tmp_path / "x.safetensors")  # no camera in the last one
        with pytest.raises(InputError, match="not the clip of a quadruplet"):
            read_clip_tensors(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_clip_tensors(tmp_path / "x.safetensors")


# Sheets and choosing


def test_sheets_show_what_is_kept_and_what_is_not(set_folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = Path(shutil.copytree(set_folder, tmp_path / "set"))
    first, second, third = read_manifest(folder / MANIFEST)
    third = third | {"id": "x<i>", "text": "<script>alert(1)</script>", "reasons": ["iou 0.1 below 0.7"]}
    (page,) = write_sheets(folder, [first, second], [third, {"id": "broken", "reasons": ["no such video"]}])
    text = page.read_text()
    assert "default-src 'none'" in text and not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", text)
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text and 'name="x&lt;i&gt;">' in text
    assert re.findall(r'name="(\w+)" checked', text) == ["mesh", "splats"] and "left out: iou 0.1 below 0.7" in text
    assert "broken" not in text
    assert cli.main(["x4d", "sheets", str(folder)]) == 0
    assert re.findall(r'name="(\w+)" checked', page.read_text()) == ["mesh", "splats", "text"]
    with Image.open(page.with_suffix(".jpg")) as sheet:
        assert sheet.width > 500 and sheet.height > 3 * 128


def test_a_person_ticks_and_saves(set_folder: Path, tmp_path: Path) -> None:
    """In a browser: the page's own policy lets its script run, and its choice is one that ``choose`` takes."""
    folder = Path(shutil.copytree(set_folder, tmp_path / "set"))
    (path,) = write_sheets(folder, *read_set(folder))
    try:
        with chromium() as found:
            page, faults = found.new_page(), []
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
            page.goto(path.as_uri())
            assert page.locator("#said").text_content() == "3 of 3 kept "
            page.locator("input").nth(1).uncheck()
            assert page.locator("#said").text_content() == "2 of 3 kept "
            assert page.evaluate("[...document.images].every((i) => i.naturalWidth > 500)")
            with page.expect_download() as download:
                page.get_by_role("button", name="Save my choice").click()
            assert download.value.suggested_filename == "choice-001.json"
            download.value.save_as(tmp_path / "choice.json")
    except InputError as error:
        pytest.skip(str(error))
    assert faults == []
    assert read_choice(tmp_path / "choice.json") == ({"mesh", "splats", "text"}, {"mesh", "text"})


def test_people_choose(set_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(set_folder, tmp_path / "set"))
    (tmp_path / "one.json").write_text(json.dumps({"seen": ["mesh", "splats"], "keep": ["mesh"]}))
    (tmp_path / "two.json").write_text(json.dumps({"seen": ["mesh", "text"], "keep": ["mesh", "text"]}))
    out = tmp_path / "chosen"
    entries = choose(folder, out, [tmp_path / "one.json", tmp_path / "two.json"])
    assert [entry["id"] for entry in entries] == ["mesh", "text"]
    found = X4D(out, verify=True)
    assert found.entries == entries and all(entry["chosen"] for entry in entries)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("mesh/*")) == sorted(
        f"mesh/{name}" for name in FILES.values()
    )
    assert torch.equal(found[0]["video"], X4D(folder)[0]["video"]) and found.scene(1).frames == 3
    assert "| mesh | CC0-1.0 | nobody | a test |" in (out / "CREDITS.md").read_text()
    # Again into the same folder, by a text of ids; nobody saw the others, and they are left out.
    (tmp_path / "ids.txt").write_text("# mine\nsplats\n\n")
    assert [entry["id"] for entry in choose(folder, out, [tmp_path / "ids.txt"])] == ["splats"]
    assert not (out / "mesh").exists()
    assert [entry["id"] for entry in choose(folder, out, drop=["mesh"])] == ["splats", "text"]


def test_what_the_filters_left_out_can_be_taken(runs: Path, tmp_path: Path) -> None:
    gather(runs, sources(runs))
    (tmp_path / "one.json").write_text(json.dumps({"seen": ["good", "still"], "keep": ["still"]}))
    (entry,) = choose(runs, tmp_path / "chosen", [tmp_path / "one.json"])
    assert entry["id"] == "still" and "frozen" in entry["reasons"][0] and X4D(tmp_path / "chosen")[0]["id"] == "still"
    assert len(choose(runs, tmp_path / "chosen", also=["still"])) == 2


def test_choices_that_cannot_be(set_folder: Path, runs: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(set_folder, tmp_path / "set"))
    (tmp_path / "a.json").write_text(json.dumps({"seen": ["other"], "keep": []}))
    (tmp_path / "b.json").write_text(json.dumps({"seen": [], "keep": ["mesh"]}))
    (tmp_path / "c.json").write_text(json.dumps({"seen": ["mesh", "splats", "text"], "keep": []}))
    for choices, more, words in (
        (["a.json"], {}, "names 'other', which"),
        (["b.json"], {}, "is no choice that a sheet's page saved"),
        (["c.json"], {}, "nothing is left to keep"),
        (["none.json"], {}, "cannot be read as a choice"),
        ([], {"drop": ["other"]}, "'other': no quadruplet of this id"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            choose(folder, tmp_path / "out", [tmp_path / name for name in choices], **more)
    assert not (tmp_path / "out").exists()
    gather(runs, sources(runs))
    for out in (folder, runs, tmp_path / "film"):  # never what is no chosen set
        before = sorted(out.rglob("*"))
        with pytest.raises(InputError, match="choose another folder"):
            choose(folder, out)
        assert sorted(out.rglob("*")) == before
    (folder / "mesh" / "video.mp4").write_bytes(b"another")
    with pytest.raises(InputError, match=re.escape("video.mp4: is not the file of the manifest")):
        choose(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert read_choice(tmp_path / "c.json") == ({"mesh", "splats", "text"}, set())


def test_credits_stay_a_table() -> None:
    text = credits([{"id": "a", "licence": "", "credit": "x|y\nz", "source": "", "models": [{"name": "m", "licence": ""}]}])
    assert text.splitlines()[-1] == "| a | not given | x\\|y z |  | m (licence not known) |"


# Rows, and the command


def test_rows_may_be_described(tmp_path: Path) -> None:
    rows = [{"name": "a", "prompt": "p", "caption": "c  d", "licence": "MIT", "kind": 3}, {"prompt": "q"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    described, plain = read_jobs(tmp_path / "rows.jsonl", ["credit=me"])
    assert described.notes == {"caption": "c d", "licence": "MIT", "credit": "me", "kind": "3"} and plain.notes == {
        "credit": "me"
    }
    assert described.arguments == ("--prompt=p",) and given_to(described) == {"prompt": "p"}
    (tmp_path / "rows.csv").write_text("name,prompt,licence\na,p,MIT\n")
    (again,) = read_jobs(tmp_path / "rows.csv")
    assert again.key == described.key  # notes make no other run


def test_a_folder_of_files_is_a_row_for_each_name(tmp_path: Path) -> None:
    for name in ("fox.mp4", "fox.glb", "my horse.png", "read me.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "fox.json").write_text(json.dumps({"licence": "MIT", "caption": "a fox", "fps": 9, "out": "/etc"}))
    fox, horse = read_jobs(tmp_path)
    assert (fox.name, horse.name) == ("fox", "my_horse") and fox.notes == {"caption": "a fox", "licence": "MIT"}
    assert given_to(fox) == {"video": f"{tmp_path}/fox.mp4", "object": f"{tmp_path}/fox.glb"} and "--fps=9" in fox.arguments
    assert given_to(horse) == {"image": f"{tmp_path}/my horse.png"}


def test_a_row_of_several_objects_is_refused_alone(tmp_path: Path) -> None:
    rows = [{"video": "a.mp4", "object": ["a.glb", "b.glb"]}, {"video": "a.mp4", "masks": "a"}, {"object": "a.glb"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    jobs = read_jobs(tmp_path / "rows.jsonl")
    assert jobs[0].arguments == (
        "--video=" + str(tmp_path / "a.mp4"),
        f"--object={tmp_path}/a.glb",
        f"--object={tmp_path}/b.glb",
    )
    refused = [of_one(job).refused for job in jobs]
    assert refused == ["several objects; a quadruplet is of one: give one object and no masks"] * 2 + [""]


def test_the_suite_of_prompts() -> None:
    jobs = read_jobs(Path("prompts"), ["method=ayg"])
    kinds = [job.notes["kind"] for job in jobs]
    assert (kinds.count("single"), kinds.count("composed")) == (28, 30) and not any(job.refused for job in jobs)
    texts = [json.loads(line)["prompt"] for line in SUITE.read_text().splitlines()]
    assert len(set(texts)) == 58 and all(20 <= len(text) <= 80 for text in texts)


def tiny_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    from test_cli import tiny as tiny_method

    from anchor4d.core.methods import pla4d

    monkeypatch.setattr("anchor4d.core.runs.session.slow_renderer", lambda *_: "")
    monkeypatch.setitem(pla4d._OURS, "draft", lambda refinement: tiny_method())  # pyright: ignore[reportPrivateUsage]


def test_the_command_makes_a_set_of_a_video_and_a_mesh_and_skips_what_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_batch import Inline

    from anchor4d.core.runs.sample import write_sample

    tiny_drafts(monkeypatch)
    case = write_sample(tmp_path / "cases" / "creature", frames=3, size=48)
    (case / "case.json").write_text(json.dumps({"caption": "a creature", "licence": "Apache-2.0", "fps": 8}))
    (tmp_path / "cases" / "broken").mkdir()
    (tmp_path / "cases" / "broken" / "video.mp4").write_bytes(b"junk")

    class Here(Inline):
        """The runs of the batch in this process."""

        def __init__(self, run: Callable[..., None], out: Path, *_: Any, **__: Any) -> None:
            super().__init__(out)
            self.run = run

        def start(self, job: Any, attempt: int) -> None:
            from anchor4d.core.runs.batch import run_job

            self.left = [(job, run_job(job, self.out, self.run, attempt, lambda *_: None))]

    monkeypatch.setattr("anchor4d.core.runs.batch.Processes", Here)
    argv = ["x4d", "build", str(tmp_path / "cases"), "--set", "preset=draft", "prior=none", "yaw=0", "device=cpu"]
    argv += ["--out", str(tmp_path / "set"), "--least", "iou=none", "motion=none", "--verdict", "good", "doubtful", "wrong"]
    assert cli.main(argv) == 2
    told = capsys.readouterr()
    assert "1 of 2 runs failed (broken)" in told.err and "1 quadruplets, 1 left out (not made: 1)" in told.out
    (entry,) = X4D(tmp_path / "set", verify=True).entries
    assert (entry["text"], entry["text_by"], entry["from"]) == ("a creature", "caption", "video+3d")
    assert entry["verdict"] in ("good", "doubtful", "wrong") and entry["measures"]["overlap"] > 0.8
    assert (tmp_path / "set" / "sheets" / "001.html").is_file()
    # The 3D shows what the clip begins with.
    found = X4D(tmp_path / "set")
    item = found[0]
    side = item["video"].shape[1]
    camera = Cameras(item["world_to_camera"][None], item["K"][None], side, side)
    drawn = render_object(found.object(0), camera).alpha[0] > 0.5
    wanted = item["image"][..., 3] > 0.5
    assert float((drawn & wanted).sum() / (drawn | wanted).sum()) > 0.85
    # Nothing is made twice; other limits are other manifests.
    before = (tmp_path / "set" / "creature" / "quadruplet" / "facts.json").stat().st_mtime_ns
    assert cli.main([*argv[:-4], "--verdict", "good", "doubtful", "wrong", "--most", "pixels=1"]) == 2
    assert (tmp_path / "set" / "creature" / "quadruplet" / "facts.json").stat().st_mtime_ns == before
    assert read_manifest(tmp_path / "set" / MANIFEST) == []
    assert cli.main(["x4d", "choose", str(tmp_path / "set"), "--also", "creature", "--out", str(tmp_path / "chosen")]) == 0
    assert len(X4D(tmp_path / "chosen", verify=True)) == 1
