"""The estimate of a distillation's memory and time: against the allocator's record, exact counts and a clock of the test's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_models as tiny
import tiny_videos as videos

from anchor4d.bench import memory as bench
from anchor4d.core.priors import Distillation, Prior, Viewpoints, estimate, load_prior
from anchor4d.core.priors.estimate import GIB, account, estimate_distillation, fitting, live_peak, peak

SIDE = 16


@pytest.fixture(scope="module")
def zero123(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    return load_prior(tiny.write_zero123(tmp_path_factory.mktemp("zero123")))


@pytest.fixture(scope="module")
def middle() -> Prior:
    """Networks large enough for their activations to outweigh everything else."""
    return bench.MIDDLE[0][0].build(bench.networks("cpu", torch.float32, torch.float32)).with_settings(resolution=(128, 128))


def allocated(function: Callable[[], Any]) -> int:
    """Most bytes that PyTorch's CPU allocator had out at once during a call, by its own record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events: list[Any] = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest


def front(count: int) -> Viewpoints:
    zero = torch.zeros(count, 1)
    return Viewpoints(zero, zero, zero + 1, Viewpoints(zero, zero, zero + 1))


def test_live_bytes_are_exact() -> None:
    def chain() -> None:
        x = torch.zeros(1000)
        y = x + x  # two of 4000 bytes
        y.add_(1)  # none new
        z = y.view(10, 100)  # none new
        del x, y
        w = z * 2  # the first is gone: still two
        del z
        torch.cat([w, w, w])  # 4000 and 12000

    assert live_peak(chain) == 4 * 1000 * 4

    x = torch.ones(1000, requires_grad=True)  # was there before: not counted

    def saved() -> None:
        y = x.exp()  # its result is kept for the gradient
        (y * 3).sum().backward()

    # exp's result, its multiple or the gradients that flow back: never more than three at once, and the scalar.
    assert 3 * 4000 <= live_peak(saved) <= 3 * 4000 + 16


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 1}, {"micro_batch": 2, "encode_batch": 1}])
def test_accounting_agrees_with_the_allocator(middle: Prior, settings: dict[str, int]) -> None:
    distillation = Distillation(middle, **settings)
    condition = middle.condition(image=torch.full((1, *middle.resolution, 3), 0.5))
    found = account(distillation, 2, condition)["step"]

    def step() -> None:
        pictures = torch.rand(2, 1, *middle.resolution, 3).requires_grad_(True)
        distillation(pictures, condition, 0.5, torch.Generator().manual_seed(0), front(2))

    assert 1 / 1.2 < found / allocated(step) < 1.2


def test_settings_that_save_memory_do(middle: Prior) -> None:
    condition = middle.condition(image=torch.full((1, *middle.resolution, 3), 0.5))

    def step(**settings: int) -> int:
        return account(Distillation(middle, **settings), 4, condition)["step"]

    whole, one = step(), step(micro_batch=1)
    assert whole > 3 * one
    assert step(encode_batch=1) < 0.5 * whole


def test_weights_are_those_on_the_device(zero123: Prior) -> None:
    condition = zero123.condition(image=torch.full((1, SIDE, SIDE, 3), 0.5))
    parts = account(Distillation(zero123), 1, condition)
    for name, module in zero123.modules.items():
        assert parts[name] == sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    assert parts["weights"] == sum(parts[name] for name in zero123.modules)
    assert peak(parts) == parts["weights"] + max(parts["step"], parts["condition"]) + parts["reserve"]
    small = zero123.with_settings(small_encoder=tiny.small_encoder())
    assert account(Distillation(small), 1, condition)["small_encoder"] > 0
    modules = {**zero123.modules, "text_encoder": torch.nn.Linear(1, 1, device="meta")}
    assert "text_encoder" not in account(Distillation(zero123.with_settings(modules=modules)), 1, condition)


def test_an_estimate_changes_nothing(zero123: Prior) -> None:
    before, modules = torch.get_rng_state(), dict(zero123.modules)
    values = {id(p): p.clone() for m in modules.values() for p in m.parameters()}
    found = estimate_distillation(Distillation(zero123), 2)
    assert torch.equal(torch.get_rng_state(), before) and zero123.modules == modules
    for module in modules.values():
        assert all(torch.equal(values[id(p)], p) and p.grad is None for p in module.parameters())
    assert found.memory_bytes == peak(found.parts) and found.seconds_per_step is not None and found.seconds_per_step > 0
    assert estimate_distillation(Distillation(zero123), 2, probe=False).seconds_per_step is None


def test_the_probe_is_one_micro_batch(zero123: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    prior: Any = zero123.with_settings()
    prior.encode = lambda pictures: (seen.append(len(pictures)), zero123.encode(pictures))[1]
    condition = prior.condition(image=torch.full((1, SIDE, SIDE, 3), 0.5))
    ticks = iter(range(100))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: 3.0 * next(ticks))
    monkeypatch.setattr(estimate, "account", lambda *_: {"weights": 0, "step": 0, "reserve": 0})
    found = estimate_distillation(Distillation(prior, micro_batch=2), 5, condition=condition)
    assert found.seconds_per_step == 3.0 * math.ceil(5 / 2)
    assert seen == [2, 2, 2]
    # Where the first run is already slow it is not repeated.
    seen.clear()
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: 100.0 * next(ticks))
    assert estimate_distillation(Distillation(prior), 1, condition=condition).seconds_per_step == 100.0


def test_memory_is_left_to_a_host(zero123: Prior) -> None:
    hosted: Any = zero123.with_settings(hosted=True)
    found = estimate_distillation(Distillation(hosted), 1)
    assert found.memory_bytes is None and str(found).endswith(" s a step") and "GB" not in str(found)


def test_the_first_setting_that_fits(zero123: Prior) -> None:
    distillation = Distillation(zero123)
    condition = zero123.condition(image=torch.full((1, SIDE, SIDE, 3), 0.5))
    assert fitting(distillation, 4, 0, condition=condition) is None
    plenty = fitting(distillation, 4, 100 * GIB, condition=condition)
    assert plenty is not None and (plenty[0], plenty[1]) == ("as it is", distillation)
    limit = peak(plenty[2].parts) - 1
    less = fitting(distillation, 4, limit, condition=condition)
    assert less is not None and less[0] == "micro_batch 1" and less[1].micro_batch == 1 and peak(less[2].parts) <= limit


@pytest.mark.parametrize("family", ["modelscope", "wan", "experts", "ltx"])
def test_every_kind_of_video_prior_is_accounted(family: str, tmp_path: Path) -> None:
    write: dict[str, Callable[[Path], Path]] = {
        "modelscope": videos.write_modelscope,
        "wan": videos.write_wan,
        "experts": lambda folder: videos.write_wan(folder, two=True),
        "ltx": videos.write_ltx,
    }
    prior = load_prior(write[family](tmp_path / family)).with_settings(resolution=(SIDE, SIDE), pictures=9)
    parts = account(Distillation(prior), 1, prior.condition(text="a fox"))
    clip = 9 * SIDE * SIDE * 3 * 4
    assert parts["step"] > 2 * clip


def test_published_priors_fit_a_card_of_8_gb() -> None:
    """At the published configurations, without weights; the other rows of docs/memory.md take longer."""
    cases = {case.name: case for case in bench.PUBLISHED}
    found = bench.lightest(cases["zero123-xl"], bench.CARD)
    assert found is not None and found[0] == "as it is"
    parts = found[1]
    # 859.5 M numbers of two bytes each, and the VAE's 83.7 M.
    assert parts["unet"] == 2 * (859_520_964 + 4 * 320 * 9) and parts["vae"] == 2 * 83_653_863
    assert parts["weights"] < peak(parts) < bench.CARD


def test_networks_are_made_in_the_types_that_loaders_give_them() -> None:
    prior = bench.fake(next(case for case in bench.PUBLISHED if case.name == "zero123-xl"))[0].prior
    types = {name: {p.dtype for p in module.parameters()} for name, module in prior.modules.items()}
    assert types == {
        "unet": {torch.float16}, "image_encoder": {torch.float16}, "projection": {torch.float32}, "vae": {torch.bfloat16},
    }  # fmt: skip
