"""Published pickles (.bin, .ckpt, .pth, .pt) made into safetensors, without running a line of what is in them."""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..files import InputError, atomic_path
from .checkpoints import PICKLES
from .pictures import CLIP_MEAN, CLIP_STD

log = logging.getLogger(__name__)

# What training leaves beside weights.
_NO_WEIGHTS = re.compile(r"^(training_args|optimizer|scheduler|scaler|rng_state|random_states)")

# Lightning keeps this class, not an object of it, as a key of old checkpoints' dictionaries: a name is all that is needed.
_LIGHTNING = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})

#: What Zero123's code base builds, in diffusers' and transformers' terms.
ZERO123_CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 32,
        "in_channels": 8,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 256,
        "scaling_factor": 0.18215,
    },
    "image_encoder": {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
}


def convert(path: str | Path) -> Path:
    """Safetensors of a pickled checkpoint, written beside it under the name that the loaders look for.

    A folder: of every pickle in it that has no safetensors yet, sharded ones with their index. A file: of that one. An original
    Zero123 checkpoint (``.ckpt`` or ``.safetensors`` with ``cc_projection``) becomes a folder of its own name that
    :func:`load_prior` reads. Originals stay.

    Returns:
        the folder given, or what was made of the file.

    Raises:
        InputError: for nothing to convert, a file that holds more than weights (it is not opened), or one that is damaged.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in PICKLES and not _NO_WEIGHTS.match(p.name))
        if not files:
            raise InputError(f"{path}: no {', '.join(PICKLES)} in this folder, there is nothing to convert")
        for file in files:
            _convert_file(file)
        for index in sorted(path.rglob("*.bin.index*.json")):
            _convert_index(index)
        return path
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if path.name.endswith(".json") and ".bin.index" in path.name:
        for shard in sorted(set(_weight_map(path).values())):
            _convert_file(path.parent / shard)
        return _convert_index(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
        if "cc_projection.weight" not in state:
            raise InputError(f"{path}: is safetensors already, there is nothing to convert")
        return _zero123_folder(state, path)
    if path.suffix not in PICKLES:
        raise InputError(f"{path}: not a pickled checkpoint ({', '.join(PICKLES)})")
    return _convert_file(path)


def safetensors_name(name: str) -> str:
    """The name that loaders look for: ``model.safetensors`` for ``pytorch_model.bin``, ``x.safetensors`` for ``x.ckpt``."""
    name = re.sub(r"^pytorch_model", "model", name)
    return re.sub(r"\.(bin|ckpt|pth|pt)(?=$|\.index)", ".safetensors", name)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled checkpoint, by torch's restricted reader, each with memory of its own.

    Raises:
        InputError: where it refuses the file, or there are no tensors in it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, the checkpoint is incomplete; get it again")
    try:
        with torch.serialization.safe_globals([_LIGHTNING]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise InputError(
                f"{path}: damaged, or not plain PyTorch weights; get it again, as safetensors if there are"
            ) from None
        raise InputError(
            f"{path}: holds {found[1]} beside its weights, which could run code, so it is not opened; "
            "get this model as safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError):
        raise InputError(f"{path}: damaged, or not a PyTorch checkpoint; get it again") from None
    state = loaded
    while isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise InputError(f"{path}: no tensors by name in it, this is not a model's checkpoint")
    return _apart(tensors)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for key, value in tensors.items():
        storage = value.untyped_storage()
        if not value.is_contiguous() or storage.nbytes() != value.nbytes or storage.data_ptr() in seen:
            value = value.clone(memory_format=torch.contiguous_format)
        seen.add(value.untyped_storage().data_ptr())
        result[key] = value.detach()
    return result


def _convert_file(path: Path) -> Path:
    target = path.with_name(safetensors_name(path.name))
    if target.is_file():
        return target
    state = read_pickle(path)
    if "cc_projection.weight" in state:
        return _zero123_folder(state, path)
    _save(state, target)
    log.info("%s: converted to %s", path, target.name)
    return target


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weights = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{index}: not an index of shards (no weight_map); get it again") from None
    for shard in weights.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\\0:]+", shard) or shard in (".", ".."):
            raise InputError(f"{index}: names {str(shard)[:80]!r}, which is no file beside it; get the checkpoint again")
    return weights


def _convert_index(index: Path) -> Path:
    weights = {key: safetensors_name(shard) for key, shard in _weight_map(index).items()}
    absent = sorted({shard for shard in weights.values() if not (index.parent / shard).is_file()})
    if absent:
        raise InputError(
            f"{index}: it names shards that are not in this folder ({', '.join(absent)}); get the checkpoint again"
        )
    metadata = json.loads(index.read_text(encoding="utf-8")).get("metadata", {})
    target = index.with_name(safetensors_name(index.name))
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps({"metadata": metadata, "weight_map": weights}, indent=2), encoding="utf-8")
    return target


def _save(state: dict[str, Tensor], target: Path) -> None:
    try:
        with atomic_path(target) as temporary:
            save_file(state, temporary, {"format": "pt"})
    except SafetensorError as error:  # no OSError, where a disk is full
        raise InputError(f"{target}: cannot be written ({error}), free space or choose another disk") from None


def _zero123_folder(state: dict[str, Tensor], path: Path, configs: Mapping[str, dict[str, Any]] | None = None) -> Path:
    """An original Zero123 checkpoint as the folder that :class:`Zero123` reads; averaged (EMA) weights where it has them."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    configs, folder = configs or ZERO123_CONFIGS, path.with_suffix("")
    if folder.is_dir():
        if (folder / "model_index.json").is_file():
            return folder
        raise InputError(f"{folder}: is in the way, the checkpoint beside it would become a folder of this name; move it away")
    for key in [key for key in state if key.startswith("model.diffusion_model.")]:
        state[key] = state.get("model_ema." + key.removeprefix("model.").replace(".", ""), state[key])
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(configs["unet"])
        vae = AutoencoderKL.from_config(configs["vae"])
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**configs["image_encoder"]))
    models: dict[str, Any] = {"unet": unet, "vae": vae, "image_encoder": tower}
    try:
        parts = {
            "unet": convert_ldm_unet_checkpoint(state, models["unet"].config),
            "vae": convert_ldm_vae_checkpoint(state, models["vae"].config),
            "image_encoder": clip_from_openai(state, "cond_stage_model.model.visual."),
        }
        projection = {f"proj.{k}": state[f"cc_projection.{k}"] for k in ("weight", "bias")}
    except (KeyError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: looks like an original Zero123 checkpoint but lacks {error}; get it again") from None
    for name, model in models.items():
        wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
        found = {k: tuple(v.shape) for k, v in parts[name].items()}
        if wrong := sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k)):
            raise InputError(
                f"{path}: its {name} is not the one of Zero123 ({len(wrong)} tensors differ, the first is {wrong[0]}: "
                f"{found.get(wrong[0])}, expected {wanted.get(wrong[0])})"
            )
    tokens, inputs = projection["proj.weight"].shape
    with atomic_path(folder) as temporary:
        for name, part in parts.items():
            stem = "model" if name == "image_encoder" else "diffusion_pytorch_model"
            _write(temporary / name, {"config.json": configs[name]})
            _save(_apart(part), temporary / name / f"{stem}.safetensors")
        name = "clip_camera_projection"
        sizes = {"embedding_dim": tokens, "additional_embeddings": inputs - tokens}
        _write(temporary / name, {"config.json": {"_class_name": "CLIPCameraProjection", **sizes}})
        _save(_apart(projection), temporary / name / "diffusion_pytorch_model.safetensors")
        _write(temporary / "scheduler", {"scheduler_config.json": _SCHEDULER})
        side = configs["image_encoder"]["image_size"]
        extractor = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "size": {"shortest_edge": side}}
        _write(temporary / "feature_extractor", {"preprocessor_config.json": extractor})
        _write(temporary, {"model_index.json": {"_class_name": "Zero123Pipeline"}})
    log.info("%s: converted to the folder %s", path, folder)
    return folder


_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def _write(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2), encoding="utf-8")


def clip_from_openai(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP vision tower of OpenAI's code in transformers' names: queries, keys and values apart, projection transposed."""
    names = {
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "conv1": "embeddings.patch_embedding",
        "ln_pre": "pre_layrnorm",
        "ln_post": "post_layernorm",
        "transformer.resblocks": "encoder.layers",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    result = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        new = key.removeprefix(prefix)
        if new == "proj":
            result["visual_projection.weight"] = value.T
            continue
        for old, name in names.items():
            new = re.sub(rf"(^|\.){re.escape(old)}(?=$|\.)", rf"\g<1>{name}", new)
        if stacked := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", new):
            for name, part in zip("qkv", rearrange(value, "(three c) ... -> three c ...", three=3)):
                result[f"vision_model.{stacked[1]}.self_attn.{name}_proj.{stacked[2]}"] = part
        else:
            result[f"vision_model.{new}"] = value
    return result
