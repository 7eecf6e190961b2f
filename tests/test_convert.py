"""Pickles to safetensors: the same tensors under the names that loaders look for, and nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_models as tiny

from anchor4d.core.cameras import orbit
from anchor4d.core.files import InputError
from anchor4d.core.priors import Viewpoints, convert, load_prior


def pickled(folder: Path, new_zip: bool = True) -> None:
    """Every safetensors of a folder as the pickle that was published before there were any."""
    for file in folder.rglob("*.safetensors"):
        name = "pytorch_model.bin" if file.name == "model.safetensors" else file.with_suffix(".bin").name
        torch.save(load_file(file), file.with_name(name), _use_new_zipfile_serialization=new_zip)
        file.unlink()


@pytest.mark.parametrize("new_zip", [True, False])
def test_a_folder_of_pickles_loads_after_converting(tmp_path: Path, new_zip: bool) -> None:
    folder = tiny.write_zero123(tmp_path / "zero123")
    before = {p.relative_to(folder): load_file(p) for p in folder.rglob("*.safetensors")}
    pickled(folder, new_zip)
    (folder / "unet" / "optimizer.bin").write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"diffusion_pytorch_model.bin: a pickle.*python -m anchor4d models convert"):
        load_prior(folder)
    assert convert.convert(folder) == folder
    after = {p.relative_to(folder): load_file(p) for p in folder.rglob("*.safetensors")}
    assert before.keys() == after.keys()
    for name, tensors in before.items():
        assert tensors.keys() == after[name].keys()
        assert all(torch.equal(value, after[name][key]) for key, value in tensors.items())
    assert load_prior(folder).name == "zero123"
    assert not list(folder.rglob("*.part*"))
    stamp = (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert convert.convert(folder) == folder  # again: nothing to do
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == stamp


def test_shards_and_their_index(tmp_path: Path) -> None:
    folder = tiny.write_stable_diffusion(tmp_path / "sd")
    where, whole = folder / "text_encoder", load_file(folder / "text_encoder" / "model.safetensors")
    (where / "model.safetensors").unlink()
    halves = {f"pytorch_model-0000{i + 1}-of-00002.bin": dict(list(whole.items())[i::2]) for i in range(2)}
    for name, part in halves.items():
        torch.save(part, where / name)
    weights = {key: name for name, part in halves.items() for key in part}
    index = where / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}))
    assert convert.convert(index) == where / "model.safetensors.index.json"
    assert load_file(where / "model-00002-of-00002.safetensors").keys() == set(list(whole)[1::2])
    encoder: Any = load_prior(folder).modules["text_encoder"]
    assert all(torch.equal(value, whole[key]) for key, value in encoder.state_dict().items())
    (where / "pytorch_model-00002-of-00002.bin").unlink()
    (where / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"pytorch_model-00002-of-00002.bin: no such file"):
        convert.convert(index)


def test_nested_shared_and_strided_tensors(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    state = {"a": table, "tied": table, "row": table[1], "turned": table.T, "half": table.half(), "count": torch.tensor(3)}
    path = tmp_path / "net.ckpt"
    torch.save({"epoch": 3, "state_dict": {**state, "note": "text"}}, path)
    made = convert.convert(path)
    assert made == tmp_path / "net.safetensors"
    loaded = load_file(made)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype for key, value in state.items())


def test_names() -> None:
    for name, wanted in {
        "pytorch_model.bin": "model.safetensors",
        "pytorch_model.fp16.bin": "model.fp16.safetensors",
        "diffusion_pytorch_model.bin": "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.bin": "diffusion_pytorch_model.fp16.safetensors",
        "pytorch_model-00001-of-00003.bin": "model-00001-of-00003.safetensors",
        "pytorch_model.bin.index.json": "model.safetensors.index.json",
        "diffusion_pytorch_model.bin.index.fp16.json": "diffusion_pytorch_model.safetensors.index.fp16.json",
        "zero123-xl.ckpt": "zero123-xl.safetensors",
        "net.v1.pth": "net.v1.safetensors",
    }.items():
        assert convert.safetensors_name(name) == wanted


class Harmful:
    """A pickle of this makes a folder when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"state_dict": {"a": torch.zeros(2)}, "x": Harmful(trap)}, tmp_path / "bad.ckpt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Harmful(trap), 2))
    for name in ("bad.ckpt", "old.pt"):
        with pytest.raises(InputError, match=rf"{name}: .*(mkdir beside its weights, which could run code|damaged)"):
            convert.convert(tmp_path / name)
    assert not trap.exists() and not list(tmp_path.glob("*.safetensors"))


def test_bad_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.bin").write_bytes(b"\x01\x02 nothing of use")
    torch.save({"a": torch.zeros(4000)}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:900])
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "notes.txt").write_text("x")
    torch.save({"cc_projection.weight": torch.zeros(3, 4)}, tmp_path / "partial.ckpt")
    for name, message in {
        "absent": "no such file or folder",
        "empty": "nothing to convert",
        "noise.bin": "damaged",
        "cut.pt": "damaged",
        "list.pth": "no tensors by name",
        "notes.txt": "not a pickled checkpoint",
        "partial.ckpt": "original Zero123 checkpoint but lacks|its unet is not the one of Zero123",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            convert.convert(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob(".*"))


# Zero123's own code base names things by the place in its lists of blocks (CompVis latent diffusion).
_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"}
_RESNET |= {"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def ldm_unet(key: str, per_block: int, attention: set[int]) -> str:
    """A UNet key in that naming; ``attention``: up blocks that have some."""
    names = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    names |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    for old, new in names.items():
        if key.startswith(old + "."):
            return key.replace(old, new, 1)
    inner = key.split(".", 4)[-1] if not key.startswith("mid") else key.split(".", 3)[-1]
    for old, new in _RESNET.items():
        inner = re.sub(rf"^{old}(?=\.)", new, inner)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)", key):
        return f"middle_block.{1 if found[1] == 'attentions' else 2 * int(found[2])}.{inner}"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)", key)
    assert found is not None, key
    place = int(found[2]) * (per_block + 1) + int(found[4])
    if found[3] == "downsamplers":
        return f"input_blocks.{1 + int(found[2]) * (per_block + 1) + per_block}.0.op.{inner.removeprefix('conv.')}"
    if found[3] == "upsamplers":
        return f"output_blocks.{int(found[2]) * (per_block + 1) + per_block}.{2 if int(found[2]) in attention else 1}.{inner}"
    kind = 1 if found[3] == "attentions" else 0
    return f"input_blocks.{1 + place}.{kind}.{inner}" if found[1] == "down" else f"output_blocks.{place}.{kind}.{inner}"


def ldm_vae(key: str, blocks: int) -> str:
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm").replace("to_out.0", "proj_out")
    return (
        re.sub(r"attn_1\.to_([qkv])", r"attn_1.\1", key)
        .replace("conv_norm_out", "norm_out")
        .replace("conv_shortcut", "nin_shortcut")
    )


def openai_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    result = {"proj": state["visual_projection.weight"].T.contiguous()}
    for key, value in state.items():
        key = key.removeprefix("vision_model.").replace("encoder.layers", "transformer.resblocks")
        for old, new in {
            "embeddings.class_embedding": "class_embedding",
            "embeddings.position_embedding.weight": "positional_embedding",
            "embeddings.patch_embedding": "conv1",
            "pre_layrnorm": "ln_pre",
            "post_layernorm": "ln_post",
            "layer_norm": "ln_",
            "mlp.fc1": "mlp.c_fc",
            "mlp.fc2": "mlp.c_proj",
            "self_attn.out_proj": "attn.out_proj",
        }.items():
            key = key.replace(old, new)
        if found := re.fullmatch(r"(.*)self_attn\.q_proj\.(weight|bias)", key):
            source = f"vision_model.encoder.layers.{found[1].split('.')[2]}.self_attn."
            stacked = [state[f"{source}{name}_proj.{found[2]}"] for name in "qkv"]
            result[f"{found[1]}attn.in_proj_{found[2]}"] = torch.cat(stacked)
        elif "self_attn" not in key and key != "visual_projection.weight":
            result[key] = value
    return result


@pytest.mark.parametrize("averaged", [False, True])
def test_an_original_zero123_becomes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, averaged: bool) -> None:
    """The same prior, by key and by prediction, from the naming of Zero123's own code."""
    folder = tiny.write_zero123(tmp_path / "published")
    prior: Any = load_prior(folder)
    parts = {name: module.state_dict() for name, module in prior.modules.items()}
    state: dict[str, Tensor] = {f"cc_projection.{k.removeprefix('proj.')}": v for k, v in parts["projection"].items()}
    for key, value in parts["unet"].items():
        name = "model.diffusion_model." + ldm_unet(key, 1, {1})
        state[name] = torch.zeros_like(value) if averaged else value
        if averaged:
            state["model_ema." + name.removeprefix("model.").replace(".", "")] = value
    for key, value in parts["vae"].items():
        linear = ".attentions." in key and key.endswith("weight") and value.ndim == 2
        state["first_stage_model." + ldm_vae(key, 2)] = value[:, :, None, None] if linear else value
    for key, value in openai_clip(parts["image_encoder"]).items():
        state[f"cond_stage_model.model.visual.{key}"] = value
    state["cond_stage_model.model.logit_scale"] = torch.zeros(())  # the rest of CLIP is not used
    # As Lightning wrote it, with a class of its own for a key.
    module: Any = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = convert._LIGHTNING
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, "pytorch_lightning.callbacks.model_checkpoint", module)
    callbacks = {convert._LIGHTNING: {"best_model_score": None}}
    torch.save({"state_dict": state, "global_step": 5, "callbacks": callbacks}, tmp_path / "stable_zero123.ckpt")

    configs = {name: json.loads((folder / name / "config.json").read_text()) for name in ("unet", "vae", "image_encoder")}
    monkeypatch.setattr(convert, "ZERO123_CONFIGS", configs)
    made = convert.convert(tmp_path / "stable_zero123.ckpt")
    assert made == tmp_path / "stable_zero123" and made.is_dir()
    again: Any = load_prior(made)
    assert type(again).__name__ == "StableZero123"
    for name, wanted in parts.items():
        found = again.modules[name].state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], value) for key, value in wanted.items()), name
    image, views = torch.rand(1, 16, 16, 3), Viewpoints.of(orbit(30.0), orbit(0.0))
    again, noisy = again.with_settings(slot4="delta", extractor=prior.extractor), torch.randn(1, 1, 4, 8, 8)
    a, b = (p.predict(noisy, torch.tensor([0.5]), p.condition(image), views).conditional for p in (prior, again))
    torch.testing.assert_close(a, b)
    assert convert.convert(tmp_path / "stable_zero123.ckpt") == made
    monkeypatch.undo()
    (made / "model_index.json").unlink()
    with pytest.raises(InputError, match="is in the way"):
        convert.convert(tmp_path / "stable_zero123.ckpt")


def test_the_published_zero123_configuration() -> None:
    """Counts of the original checkpoint's parts: UNet, VAE and CLIP ViT-L/14 tower."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(convert.ZERO123_CONFIGS["unet"])
        vae = AutoencoderKL.from_config(convert.ZERO123_CONFIGS["vae"])
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**convert.ZERO123_CONFIGS["image_encoder"]))
    counts = [sum(p.numel() for p in model.parameters()) for model in (unet, vae, tower)]
    assert counts == [859_532_484, 83_653_863, 303_966_208]
