"""Host models as priors against what their networks answer when called directly. Run by the host's interpreter; prints JSON.

    prior_facts.py COMFYUI PACK FOLDER

Everything happens where the host runs nodes: in inference mode.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

COMFYUI, PACK, FOLDER = sys.argv[1:4]
sys.path[:0] = [COMFYUI, str(Path(__file__).parent)]
sys.argv[1:] = ["--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
spec = importlib.util.spec_from_file_location("pack", f"{PACK}/__init__.py", submodule_search_locations=[PACK])
assert spec is not None
assert spec.loader is not None
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])

import comfy.model_management as mm  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import random_models  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_video_model import ImageOnlyCheckpointLoader  # noqa: E402
from pack.core.priors.base import NoiseSchedule, Prior, Viewpoints  # noqa: E402  # pyright: ignore[reportMissingImports]
from pack.core.priors.distill import Distillation  # noqa: E402  # pyright: ignore[reportMissingImports]
from pack.nodes import host, host_prior  # noqa: E402  # pyright: ignore[reportMissingImports]
from pack.nodes.priors import Anchor4DPriorFromModel  # noqa: E402  # pyright: ignore[reportMissingImports]
from torch import Tensor  # noqa: E402

torch.set_num_threads(1)
torch.manual_seed(0)
TIMES = torch.tensor([0.05, 0.5, 0.9])


def error(a: Tensor, b: Tensor) -> float:
    """Largest difference, as a share of b's spread."""
    return float((a - b).abs().max() / b.std())


def prior_from(*args: Any, **inputs: Any) -> Prior:
    return Anchor4DPriorFromModel.execute(*args, **inputs).args[0]


def refused(*args: Any, **inputs: Any) -> str:
    try:
        prior_from(*args, **inputs)
    except ValueError as caught:
        return str(caught)
    return "accepted"


def encoding(prior: Prior, vae: Any, factor: float) -> dict[str, float]:
    """The prior's latents against the host's, and its gradient against a finite difference."""
    images = torch.rand(2, prior.pictures, *prior.resolution, 3)
    latents = prior.encode(images)
    flat = images[:, 0] if prior.pictures == 1 else images[0]
    with torch.no_grad():
        theirs = vae.encode(flat)
    theirs = theirs[:, None] * factor if theirs.ndim == 4 else prior.model.model.process_latent_in(theirs).movedim(2, 1)
    direction, step = torch.randn_like(images), 1e-3
    seen = images.requires_grad_()
    weight = torch.randn_like(latents)
    (gradient,) = torch.autograd.grad((prior.encode(seen) * weight).sum(), seen)
    with torch.no_grad():
        ends = [float((prior.encode(images + sign * step * direction).double() * weight).sum()) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    with torch.inference_mode():  # as when the host makes room for another model
        prior._own_vae().model.double().float()
    (again,) = torch.autograd.grad((prior.encode(seen) * weight).sum(), seen)
    return {
        "encode": error(latents[: len(theirs)], theirs),
        "gradient": abs(float((gradient.double() * direction).sum()) - slope) / abs(slope),
        "moved": error(again, gradient),
    }


def answers(prior: Prior, latents: Tensor, condition: Any, direct: list[Tensor], views: Viewpoints | None = None) -> dict:
    """A prediction against direct calls with and without the condition; repeated; one after the other."""
    first, second = (prior.predict(latents, TIMES, condition, views) for _ in range(2))
    apart = prior.with_settings(one_pass=False).predict(latents, TIMES, condition, views)
    alone = prior.predict(latents, TIMES, condition, views, unconditional=False)
    return {
        "conditional": error(first.conditional, direct[0]),
        "unconditional": error(first.unconditional, direct[1]),
        "differ": error(first.conditional, first.unconditional),
        "repeated": first.conditional.equal(second.conditional) and first.unconditional.equal(second.unconditional),
        "apart": max(error(apart.conditional, direct[0]), error(apart.unconditional, direct[1])),
        "alone": alone.unconditional is None and error(alone.conditional, direct[0]) < 1e-4,
        "inference": first.conditional.is_inference(),
    }


def zero123(vae: Any, model: Any) -> dict[str, Any]:
    clip_vision = random_models.clip_vision()
    facts: dict[str, Any] = {"refused": refused(model, vae), "size": refused(model, vae, clip_vision=clip_vision, size=68)}
    prior = prior_from(model, vae, clip_vision=clip_vision, size=64)
    facts |= {"class": type(prior).__name__, "conditions": sorted(prior.conditions), "guidance": prior.guidance}
    facts["schedule"] = float((prior.schedule.alphas_cumprod - NoiseSchedule.scaled_linear().alphas_cumprod).abs().max())
    before = [type(entry.model.model).__name__ for entry in mm.current_loaded_models]
    with host.work(Anchor4DPriorFromModel, gradients=True), host_prior.loaded([Distillation(prior)], "auto"):
        facts |= encoding(prior, vae, 0.18215)
        reference, latents = torch.rand(3, 96, 64, 3), torch.randn(3, 1, 4, 8, 8)
        views = Viewpoints(
            torch.tensor([[0.0], [40.0], [-90.0]]), torch.tensor([[0.0], [30.0], [-20.0]]), torch.tensor([[2.0], [1.9], [1.7]]),
            Viewpoints(torch.tensor([[0.0], [10.0], [20.0]]), torch.tensor([[0.0], [10.0], [5.0]]), torch.full((3, 1), 2.0)),
        )  # fmt: skip
        condition = prior.condition(image=reference)
        # Zero-1-to-3, written out: the condition's elevation minus the target's, the turn, the reference from the zenith.
        turn = torch.deg2rad(torch.tensor([0.0, 30.0, -110.0]))
        drop = torch.deg2rad(torch.tensor([0.0, 10.0 - 30.0, 5.0 + 20.0]))
        zenith = torch.deg2rad(torch.tensor([90.0, 80.0, 85.0]))
        steps = torch.tensor([50.0, 500.0, 900.0])
        square = torch.nn.functional.pad(reference.movedim(-1, 1), (16, 16), value=1.0)
        square = torch.nn.functional.interpolate(square, (64, 64), mode="bilinear", antialias=True).movedim(1, -1)

        def direct(fourth: Tensor, known: float) -> Tensor:
            token = torch.cat([embedding, torch.stack([drop, turn.sin(), turn.cos(), fourth], -1)], -1)
            token = model.model.cc_projection(token)[:, None] * known
            seen = torch.cat([latents[:, 0], vae.encode(square) * known], 1)
            return model.model.diffusion_model(seen, steps, context=token)[:, None]

        with torch.no_grad():
            embedding = clip_vision.encode_image(square).image_embeds
            facts["stable"] = answers(prior, latents, condition, [direct(zenith, 1), direct(zenith, 0)], views)
            first = prior_from(model, vae, clip_vision=clip_vision, size=64, camera="zero123")
            distance = torch.tensor([0.0, -0.1, -0.3])
            facts["first"] = answers(first, latents, condition, [direct(distance, 1), direct(distance, 0)], views)
        gradients = []
        images = torch.rand(3, 1, 64, 64, 3)
        for batch in (0, 2):
            seen = images.clone().requires_grad_()
            distill = Distillation(prior, micro_batch=batch, encode_batch=batch)
            distill(seen, condition, 0.5, torch.Generator().manual_seed(0), views).backward()
            gradients.append(seen.grad)
        facts["micro batch"] = error(gradients[1], gradients[0])
        during = [type(entry.model.model).__name__ for entry in mm.current_loaded_models]
        frozen = [prior.model.model.diffusion_model, vae.first_stage_model]
        facts["weights with gradients"] = sum(p.grad is not None for net in frozen for p in net.parameters())
    after = [type(entry.model.model).__name__ for entry in mm.current_loaded_models]
    facts["vaes loaded"] = [names.count("AutoencoderKL") for names in (before, during, after)]
    try:
        prior.predict(torch.full((1, 1, 4, 8, 8), float("nan")), TIMES[:1], condition, views)
    except ValueError as caught:
        facts["nan"] = str(caught)
    return facts


def pictures(vae: Any, model: Any) -> dict[str, Any]:
    """Text to image, with a LoRA: 9 samples' worth of text tokens of any kind."""
    texts = [[[torch.randn(1, 9, 768), {"pooled_output": torch.zeros(1, 768)}]] for _ in range(2)]
    facts: dict[str, Any] = {"refused": refused(model, vae)}
    prior = prior_from(model, vae, positive=texts[0], negative=texts[1], size=64)
    facts |= {"class": type(prior).__name__, "conditions": sorted(prior.conditions)}
    key, change = "diffusion_model.out.2.weight", torch.randn(4, 320, 3, 3) * 0.05
    patched = model.clone()
    patched.add_patches({key: ("diff", (change,))}, 0.5)
    with_lora = prior_from(patched, vae, positive=texts[0], negative=texts[1], size=64)
    facts["identities differ"] = prior.identity != with_lora.identity
    with host.work(Anchor4DPriorFromModel, gradients=True):
        latents, steps = torch.randn(3, 1, 4, 8, 8), torch.tensor([50.0, 500.0, 900.0])
        facts |= encoding(prior, vae, 0.18215)
        with torch.no_grad():
            facts["decode"] = error(prior.decode(latents)[:, 0], vae.decode(latents[:, 0] / 0.18215))

            def direct() -> list[Tensor]:
                run = model.model.diffusion_model
                return [run(latents[:, 0], steps, context=text[0][0].expand(3, -1, -1))[:, None] for text in texts]

            facts["plain"] = answers(prior, latents, prior.condition(), direct())
            mine = with_lora.predict(latents, TIMES, with_lora.condition())
            facts["lora changes"] = error(mine.conditional, prior.predict(latents, TIMES, prior.condition()).conditional)
            last = model.model.diffusion_model.out[2]
            kept, last.weight = last.weight, torch.nn.Parameter(last.weight + 0.5 * change, requires_grad=False)
            facts["lora"] = max(map(error, (mine.conditional, mine.unconditional), direct()))
            last.weight = kept
        for wrong in ({"image": torch.zeros(1, 8, 8, 3)}, {"text": "a cat"}, {"fps": 8.0}):
            try:
                prior.condition(**wrong)
            except ValueError as caught:
                facts[f"no {next(iter(wrong))}"] = str(caught)
    return facts


def clips(vae: Any, model: Any) -> dict[str, Any]:
    """Text to video with rectified flow."""
    texts = [[[torch.randn(1, 7, 4096), {}]] for _ in range(2)]
    facts: dict[str, Any] = {"frames": refused(model, vae, positive=texts[0], frames=6)}
    prior = prior_from(model, vae, positive=texts[0], negative=texts[1], size=32, frames=5)
    facts |= {"class": type(prior).__name__, "kind": prior.schedule.kind, "shape": list(prior.latent_shape())}
    with host.work(Anchor4DPriorFromModel, gradients=True), prior.loaded():
        facts |= encoding(prior, vae, 1.0)
        latents = torch.randn(3, *prior.latent_shape())
        facts["decoded"] = list(prior.decode(latents[:1]).shape)
        with torch.no_grad():
            direct = [
                model.model.diffusion_model(latents.movedim(1, 2), TIMES * 1000, context=text[0][0].expand(3, -1, -1)).movedim(
                    2, 1
                )
                for text in texts
            ]
            facts["plain"] = answers(prior, latents, prior.condition(), direct)
    return facts


def room() -> list[Any]:
    """What the host is asked around a fit on a card, and around one on the CPU."""
    said: list[Any] = []
    kept = mm.free_memory, mm.soft_empty_cache
    mm.free_memory = lambda needed, device, *_: said.append([needed, str(device)])
    mm.soft_empty_cache = lambda *_: said.append("given back")
    try:
        for place in ("cuda:0", "cpu"):
            with host_prior.loaded((), "auto", torch.device(place)):
                said.append(f"a fit on {place}")
    finally:
        mm.free_memory, mm.soft_empty_cache = kept
    return said


def main() -> None:
    folder, load = Path(FOLDER), comfy.sd.load_diffusion_model
    folder_paths.add_model_folder_path("checkpoints", str(folder))
    random_models.zero123(folder / "zero123.safetensors")
    with torch.inference_mode():
        model, _, vae = ImageOnlyCheckpointLoader().load_checkpoint("zero123.safetensors")
        found = {"zero123": zero123(vae, model)}
        # A VAE that no loader made: the gradient's copy is then made from its weights.
        vae.patcher.cached_patcher_init = None
        found["pictures"] = pictures(
            vae, comfy.sd.load_diffusion_model(str(random_models.picture_unet(folder / "unet.safetensors")))
        )
        wan_vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(random_models.wan_vae(folder / "wan_vae.safetensors"))))
        found["room"] = room()
        found["clips"] = clips(wan_vae, load(str(random_models.wan(folder / "wan.safetensors"))))
    sys.stdout.write(f"\n{json.dumps(found)}\n")


main()
