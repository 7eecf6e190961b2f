"""Views by the tiny prior of objects it never saw: python -m anchor4d.bench.tiny_prior [--weights DIR] [--out DIR].

200 generated objects (seeds HELD_OUT and up), each a random pair of views of one moment: any azimuths, elevations -30 to 60,
distances 1.0 to 2.4. The prediction is the pixel mean of four DDIM samples. Baselines: the condition picture; the object's mean
colour in its own mask, both as the condition shows them; and two that know the answer's silhouette: the condition's, or the
target's own, mean colour in the target's true mask.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..training.objects import generate_many
from ..training.render import render
from ..training.tiny_prior import HELD_OUT, Networks, Pairs, draw_pairs, sample_views, scheduler

BUNDLED = Path(__file__).resolve().parent.parent / "core" / "priors" / "tiny"


@dataclass(frozen=True)
class Trial:
    """Held-out views: conditions, targets (B, 64, 64, 3) and their covered fractions (B, 64, 64)."""

    pairs: Pairs
    condition: Tensor
    condition_alpha: Tensor
    target: Tensor
    target_alpha: Tensor


def held_out(count: int = 200, seed: int = HELD_OUT) -> Trial:
    """Pairs of views of ``count`` unseen objects; pictures have 3 x 3 samples a pixel."""
    pairs = draw_pairs(count, torch.Generator().manual_seed(seed), free=True)
    objects = generate_many(range(HELD_OUT, HELD_OUT + count))
    (condition, first), (target, second) = (render(objects, pairs.tau[:, k], pairs.cameras(k), supersample=3) for k in (0, 1))
    return Trial(pairs, condition, first, target, second)


def baselines(trial: Trial) -> dict[str, Tensor]:
    """Pictures (B, H, W, 3) that need no prior, by name."""

    def mean_color(picture: Tensor, alpha: Tensor) -> Tensor:  # of the object alone: white's share is taken off
        return (picture - 1 + alpha[..., None]).sum((1, 2)) / alpha.sum((1, 2))[:, None].clamp_min(1e-6)

    def filled(color: Tensor, alpha: Tensor) -> Tensor:
        return alpha[..., None] * color[:, None, None] + 1 - alpha[..., None]

    seen = mean_color(trial.condition, trial.condition_alpha)
    return {
        "condition picture": trial.condition,
        "its mean colour in its own mask": filled(seen, trial.condition_alpha),
        "its mean colour in the target's TRUE mask": filled(seen, trial.target_alpha),
        "target's mean colour in its TRUE mask": filled(mean_color(trial.target, trial.target_alpha), trial.target_alpha),
    }


def psnr(guess: Tensor, truth: Tensor) -> Tensor:  # (B,)
    """Peak signal-to-noise ratio of each picture, dB."""
    return -10 * ((guess - truth) ** 2).mean((1, 2, 3)).clamp_min(1e-10).log10()


def predict(networks: Networks, trial: Trial, *, steps: int = 25, guidance: float = 1.0, batch: int = 25) -> Tensor:
    """Four samples of each target, (4, B, H, W, 3), seed 0."""
    generator = torch.Generator().manual_seed(0)
    T, parts = trial.pairs.camera_vectors, range(0, len(trial.target), batch)
    done = [
        sample_views(networks, trial.condition[k : k + batch], T[k : k + batch], generator, steps=steps, guidance=guidance)
        for k in parts
    ]
    return torch.cat(done, 1)


@torch.no_grad()
def repair(networks: Networks, count: int = 12, time: float = 0.5, guidance: float = 3.0) -> list[Tensor]:
    """What reference refinement asks of the prior: condition, truth, cut picture, and that noised to ``time`` and denoised.

    The condition shows the object (seeds HELD_OUT + 300 and up) from the very same camera at tau = 0, the others at tau = 0.25;
    holes are cut into it.
    """
    generator = torch.Generator().manual_seed(3)
    views = draw_pairs(count, generator, free=True).views[:, :1].repeat(1, 2, 1)
    views[..., 1], views[..., 2] = 10.0, 1.5
    pairs = Pairs(torch.tensor([0.0, 0.25]).repeat(count, 1), views)
    objects = generate_many(range(HELD_OUT + 300, HELD_OUT + 300 + count))
    condition, truth = (render(objects, pairs.tau[:, k], pairs.cameras(k), supersample=3)[0] for k in (0, 1))
    field = torch.nn.functional.interpolate(torch.rand(count, 1, 12, 12, generator=generator), size=64, mode="bilinear")
    cut = torch.where(field[:, 0, :, :, None] > 0.72, 1.0, truth)
    token, latent = networks.condition(condition, pairs.camera_vectors)
    x = networks.vae.encode(cut.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mode() * networks.vae.config.scaling_factor
    ddim = scheduler()
    ddim.set_timesteps(20)
    steps = [t for t in ddim.timesteps if t <= 1000 * time]
    x = ddim.add_noise(x, torch.randn(x.shape, generator=generator), steps[0])
    for t in steps:
        seen = networks.unet(torch.cat([x, latent], 1), t, token).sample
        blind = networks.unet(torch.cat([x, 0 * latent], 1), t, 0 * token).sample
        x = ddim.step(blind + guidance * (seen - blind), t, x).prev_sample
    repaired = networks.vae.decode(x / networks.vae.config.scaling_factor).sample.permute(0, 2, 3, 1) / 2 + 0.5
    return [condition, truth, cut, repaired.clamp(0, 1)]


def sheet(rows: list[Tensor], path: Path, *, columns: int = 12, zoom: int = 2) -> None:
    """Pictures (B, H, W, 3) of each row, a block of rows for every ``columns`` objects, three blocks at most."""
    count = min(len(rows[0]) // columns, 3) * columns
    stacked = torch.stack([r[:count] for r in rows]).unflatten(1, (-1, columns))  # (rows, blocks, columns, H, W, 3)
    width = stacked.shape[4]
    stacked = torch.nn.functional.pad(stacked, (0, 0, 1, 1, 1, 1), value=0.85)
    picture = stacked.permute(1, 0, 3, 2, 4, 5).reshape(-1, columns * (width + 2), 3)
    image = Image.fromarray((picture.clamp(0, 1) * 255).round().byte().numpy())
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=BUNDLED)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="folder for scores.json and the picture sheet")
    options = parser.parse_args()
    begin = time.perf_counter()
    trial = held_out(options.count)
    networks = Networks.load(options.weights).to("cpu")
    samples = predict(networks, trial, steps=options.steps, guidance=options.guidance)
    pictures = {"prior, mean of 4": samples.mean(0), "prior, one sample": samples[0], **baselines(trial)}
    scores = {name: psnr(p, trial.target) for name, p in pictures.items()}
    turn = trial.pairs.views[:, 1, 0] - trial.pairs.views[:, 0, 0]
    turn = ((turn + 180) % 360 - 180).abs()
    bands = {"all": turn >= 0} | {f"{a}-{a + 45}": (turn >= a) & (turn < a + 45) for a in range(0, 180, 45)}
    table = {name: {band: round(float(s[inside].mean()), 2) for band, inside in bands.items()} for name, s in scores.items()}
    sys.stdout.write("PSNR, dB, by azimuth difference".ljust(44) + "".join(b.rjust(9) for b in bands) + "\n")
    sys.stdout.write("objects".ljust(44) + "".join(str(int(i.sum())).rjust(9) for i in bands.values()) + "\n")
    for name, row in table.items():
        sys.stdout.write(name.ljust(44) + "".join(f"{v:9.2f}" for v in row.values()) + "\n")
    sys.stdout.write(f"{time.perf_counter() - begin:.0f} s\n")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scores.json").write_text(json.dumps(table, indent=1) + "\n")
        sheet(repair(networks), options.out / "tiny-prior-repairs.png")
        sheet([trial.condition, trial.target, samples[0], samples.mean(0)], options.out / "tiny-prior-views.png")


if __name__ == "__main__":
    main()
