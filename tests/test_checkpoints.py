"""Checkpoint folders: whatever is not exactly as it should be is refused in one line that names it."""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_models as tiny
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPVisionModelWithProjection

from anchor4d.core.files import InputError
from anchor4d.core.priors import load_prior
from anchor4d.core.priors.checkpoints import Checkpoint, precision_dtypes, readable

UNET = Path("unet", "diffusion_pytorch_model.safetensors")
TOWER = Path("image_encoder", "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_zero123(tmp_path / "zero123")


def changed(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = {k: v.clone() for k, v in load_file(file).items()}
    change(state)
    save_file(state, file, {"format": "pt"})


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_prior(folder, **settings)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700 and str(folder) in message
    return message


def sharded(folder: Path, sub: str, stem: str) -> list[Path]:
    """A subfolder's weights in two shards with an index."""
    single = folder / sub / f"{stem}.safetensors"
    state = load_file(single)
    names = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    parts = [dict(list(state.items())[i::2]) for i in range(2)]
    for name, part in zip(names, parts):
        save_file(part, folder / sub / name, {"format": "pt"})
    weights = {key: name for name, part in zip(names, parts) for key in part}
    (folder / sub / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    single.unlink()
    return [folder / sub / name for name in names]


def test_a_network_is_loaded_frozen(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    for cls, sub, file in (
        (UNet2DConditionModel, "unet", UNET),
        (CLIPVisionModelWithProjection, "image_encoder", TOWER),
        (AutoencoderKL, "vae", Path("vae", UNET.name)),
    ):
        model: Any = checkpoint.load(cls, sub)
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        saved = load_file(folder / file)
        assert saved.keys() == model.state_dict().keys()
        assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    half: Any = checkpoint.load(UNet2DConditionModel, "unet", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_shards_and_variants(folder: Path) -> None:
    whole = load_prior(folder)
    sharded(folder, "unet", "diffusion_pytorch_model")
    sharded(folder, "image_encoder", "model")
    for sub, stem in (("vae", "diffusion_pytorch_model"), ("clip_camera_projection", "diffusion_pytorch_model")):
        (folder / sub / f"{stem}.safetensors").rename(folder / sub / f"{stem}.fp16.safetensors")
    again = load_prior(folder)
    for name, module in whole.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(again.modules[name].state_dict()[key], value)


def test_a_missing_shard(folder: Path) -> None:
    shards = sharded(folder, "unet", "diffusion_pytorch_model")
    shards[1].unlink()
    assert "it names diffusion_pytorch_model-00002-of-00002.safetensors, not in this folder" in refused(folder)


@pytest.mark.parametrize("file", [UNET, TOWER, Path("clip_camera_projection", UNET.name)])
def test_every_key_and_shape_is_accounted_for(folder: Path, file: Path) -> None:
    """A tensor missing, one too many, and one of another shape: each is named."""
    state = load_file(folder / file)
    key = sorted(state)[0]
    changed(folder / file, lambda s: s.pop(key))
    message = refused(folder)
    assert f"1 missing ({key})" in message and file.parent.name in message
    changed(folder / file, lambda s: s.update({key: state[key], "lora.up": torch.zeros(2)}))
    assert "1 not known (lora.up)" in refused(folder)
    save_file({**state, key: torch.zeros(3, 5)}, folder / file, {"format": "pt"})
    message = refused(folder)
    assert f"1 of wrong shape ({key} (3, 5), expected {tuple(state[key].shape)})" in message


def test_buffers_of_older_libraries_are_harmless(folder: Path) -> None:
    changed(folder / TOWER, lambda s: s.update({"vision_model.embeddings.position_ids": torch.arange(5)[None]}))
    assert load_prior(folder).name == "zero123"


def test_keys_of_older_libraries_are_renamed(folder: Path) -> None:
    """The VAE's attention as diffusers wrote it before 0.18."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    file = folder / "vae" / UNET.name
    state = load_file(file)

    def rename(key: str) -> str:
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        return key

    renamed = {rename(k): v for k, v in state.items()}
    assert renamed.keys() != state.keys()
    save_file(renamed, file, {"format": "pt"})
    loaded = load_prior(folder).modules["vae"].state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize("file", [UNET, TOWER])
def test_files_cut_short(folder: Path, file: Path) -> None:
    raw = (folder / file).read_bytes()
    for length in (len(raw) - 100, 200, 3):
        (folder / file).write_bytes(raw[:length])
        message = refused(folder)
        assert str(folder / file) in message and "cut short or not a safetensors file" in message


def test_pickles_are_not_opened(folder: Path) -> None:
    (folder / UNET).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never read")
    message = refused(folder)
    assert "diffusion_pytorch_model.bin: a pickle" in message
    assert f"python -m anchor4d models convert {folder}" in message
    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    assert "no weights, expected diffusion_pytorch_model.safetensors" in refused(folder)


def test_wrong_layouts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert "not a kind of prior that is known here (" in refused(tmp_path / "nothing")
    assert "found no subfolders" in refused(tmp_path / "nothing")
    assert "needs the folders unet, vae, image_encoder, scheduler" in refused(tmp_path / "nothing", kind="zero123")
    tiny.write_json(tmp_path / "nothing" / "model_index.json", {"_class_name": "MarvellousPipeline"})
    tiny.write_json(tmp_path / "nothing" / "transformer" / "config.json", {"_class_name": "MarvellousTransformer"})
    assert "found a MarvellousPipeline with the folders transformer" in refused(tmp_path / "nothing")
    (tmp_path / "one.ckpt").write_bytes(b"x")
    assert "is a folder with one model a subfolder" in refused(tmp_path / "one.ckpt")
    with pytest.raises(InputError, match="prior kind 'zero'"):
        load_prior(folder, kind="zero")
    with pytest.raises(InputError, match="no such file or folder"):
        load_prior(tmp_path / "absent")
    with pytest.raises(InputError, match="precision 'fp8'"):
        load_prior(folder, precision="fp8")  # pyright: ignore[reportArgumentType]


def test_a_text_model_is_no_image_conditioned_one(tmp_path: Path) -> None:
    text = tiny.write_stable_diffusion(tmp_path / "sd")
    message = refused(text, kind="zero123")
    assert "image-conditioned Zero123 needs the folders image_encoder, clip_camera_projection" in message
    assert "found a StableDiffusionPipeline with the folders scheduler, text_encoder, tokenizer, unet, vae" in message
    narrow = tiny.write_zero123(tmp_path / "narrow")
    tiny.unet().save_pretrained(narrow / "unet")
    assert "takes 4 channels, Zero123's takes 8" in refused(narrow)


def test_parts_of_different_checkpoints(folder: Path) -> None:
    tiny.vision_tower(projection_dim=8).save_pretrained(folder / "image_encoder")
    assert "not of one checkpoint" in refused(folder)


def test_unknown_and_wrong_classes(folder: Path) -> None:
    def rewrite(path: Path, **values: Any) -> None:
        tiny.write_json(path, json.loads(path.read_text()) | values)

    rewrite(folder / "unet" / "config.json", _class_name="UNet9DModel")
    assert "holds a UNet9DModel, expected a UNet2DConditionModel" in refused(folder)
    rewrite(folder / "unet" / "config.json", _class_name="UNet2DConditionModel", down_block_types=["Odd", "Down"])
    assert "cannot be read as a UNet2DConditionModel" in refused(folder)
    tiny.unet(in_channels=8).save_pretrained(folder / "unet")
    rewrite(folder / "scheduler" / "scheduler_config.json", _class_name="TomorrowsScheduler")
    assert "scheduler class 'TomorrowsScheduler' is not known" in refused(folder)
    tiny.scheduler("sample").save_pretrained(folder / "scheduler")
    with pytest.raises(InputError, match="prediction type 'sample' is not supported"):
        load_prior(folder)
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    assert "not readable as json" in refused(folder)
    (folder / "vae" / "config.json").unlink()
    assert f"{folder / 'vae'}: no config.json here" in refused(folder)


def test_identity_tells_weights_apart(folder: Path, tmp_path: Path) -> None:
    """The same folder always has the same name in fingerprints, other weights of the same size another."""
    first = repr(load_prior(folder))
    assert first == repr(load_prior(folder)) and "'zero123'" in first
    assert repr(load_prior(tiny.write_zero123(tmp_path / "other" / "zero123", seed=9))) != first
    assert repr(load_prior(folder, precision="bf16")) != first


class Own(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 2)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Own:
        return cls(config["size"])


def test_classes_of_our_own(tmp_path: Path) -> None:
    tiny.write_json(tmp_path / "part" / "config.json", {"size": 3})
    model = Own(3)
    save_file(model.state_dict(), tmp_path / "part" / "model.safetensors")
    loaded = Checkpoint(tmp_path).load(Own, "part", dtype=torch.float16)
    assert loaded.layer.weight.dtype == torch.float16 and loaded.count.dtype == torch.int64  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(loaded.layer.weight, model.layer.weight.half())
    assert not any(p.requires_grad for p in loaded.parameters())
    tiny.write_json(tmp_path / "part" / "config.json", {"sides": 3})
    with pytest.raises(InputError, match="cannot be read as a Own, which its config should describe"):
        Checkpoint(tmp_path).load(Own, "part")


ODD = (None, True, -1, 0, 2, 7, 10**9, 10**30, 1e308, float("nan"), "", "8", "../x", [], [0], [8] * 5000, {}, {"x": 1})


def test_configs_of_odd_values_are_refused_or_read(folder: Path) -> None:
    """Every file of a checkpoint with a value after another replaced or left out; no other error than one line."""
    draw, refusals = random.Random(1), []
    files = sorted(folder.rglob("*.json"))
    for number in range(120):
        file = files[number % len(files)]
        text = file.read_text()
        values = json.loads(text)
        key = draw.choice(sorted(values))
        kind = draw.randrange(8)
        if kind == 0:
            del values[key]
        elif kind == 1 and isinstance(values[key], list) and values[key]:
            values[key][draw.randrange(len(values[key]))] = draw.choice(ODD)
        else:
            values[key] = draw.choice(ODD)
        file.write_text(json.dumps(values))
        try:
            load_prior(folder)
        except InputError as error:
            refusals.append(str(error))
        finally:
            file.write_text(text)
    assert len(refusals) > 30
    assert not [line for line in refusals if "\n" in line or len(line) > 700]
    load_prior(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[1]", "{", '{"_class_name": ["x"]}', '{"architectures": {"x": 1}, "_class_name": null}']
)
def test_jsons_of_odd_shapes(folder: Path, text: str) -> None:
    for file in sorted(folder.rglob("*.json")):
        kept = file.read_text()
        file.write_text(text)
        with contextlib.suppress(InputError):
            load_prior(folder)
        file.write_text(kept)


def test_shards_stay_in_their_folder(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    weights = next((folder / "unet").glob("*.safetensors"))
    outside.write_bytes(weights.read_bytes())
    weights.unlink()
    for name in (str(outside), "../../outside.safetensors", "a/b.safetensors", "..", "", 7):
        index = {"weight_map": {"x": name}}
        (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        assert "which is no safetensors file beside it" in refused(folder)
    for other in ("[]", '{"weight_map": 3}'):
        (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(other)
        assert "get the checkpoint again" in refused(folder) or "get it again" in refused(folder)


def test_lack_of_memory_is_no_bad_file() -> None:
    for lack in (MemoryError("x"), torch.OutOfMemoryError("x"), KeyboardInterrupt()):
        with pytest.raises(type(lack)), readable("unet", "a network"):
            raise lack
    with (
        pytest.raises(InputError, match=r"^unet: cannot be read as a network \(division by zero\)$"),
        readable("unet", "a network"),
    ):
        _ = 1 / 0


def test_packages_that_are_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("diffusers", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "diffusers is not installed; transformers is not installed; run: pip install diffusers transformers" in refused(
        folder
    )


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The VAE is never in float16."""
    assert precision_dtypes("auto", "cpu") == (torch.float32, torch.float32)
    assert precision_dtypes("fp32", "cuda") == (torch.float32, torch.float32)
    for present, vae in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, present=present: present)
        assert precision_dtypes("auto", "cuda") == (torch.bfloat16 if present else torch.float16, vae)
        assert precision_dtypes("auto", "cuda", torch.float16) == (torch.float16, vae)
        assert precision_dtypes("bf16", "cuda", torch.float16) == (torch.bfloat16, vae)
        assert precision_dtypes("fp16", "cuda") == (torch.float16, vae)
    assert precision_dtypes("fp16", "mps") == (torch.float16, torch.float32)
