"""Scene files and checkpoints from strangers: every value is checked before anything is built, drawn or multiplied."""

from __future__ import annotations

import ast
import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_edit import EDITS, KINDS, scene
from torch import Tensor

from anchor4d import cli
from anchor4d.core.deformation import ClosedLoop, DeformationField, loaded_field
from anchor4d.core.files import InputError
from anchor4d.core.fit.checkpoint import load_checkpoint, save_checkpoint
from anchor4d.core.scene.scene import Scene4D

Header = dict[str, Any]
Tensors = dict[str, Tensor]


def spoilt(path: Path, change: Callable[[Header, Tensors], None], made: Scene4D | None = None) -> Path:
    """A scene file whose header and tensors ``change`` has altered."""
    (made or scene("control-nodes")).save(path)
    with safe_open(str(path), "pt") as file:
        header = json.loads(file.metadata()["anchor4d"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    change(header, tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"anchor4d": json.dumps(header)})
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        Scene4D.load(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 500
    return text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", "1", "scene format '1' is not one"),
        ("version", None, "scene format 'None' is not one"),
        ("version", 2, "newer than this program reads"),
        ("frames", 0, "frames is 0, expected a whole number from 1"),
        ("frames", -3, "frames is -3"),
        ("frames", 5 * 10**8, "frames is 500000000"),
        ("frames", 2.7, "frames is 2.7"),
        ("frames", True, "frames is True"),
        ("fps", float("nan"), "fps is nan"),
        ("fps", 0, "fps is 0, expected more than 0"),
        ("fps", float("inf"), "fps is inf"),
        ("fps", "8", "fps is '8', expected a number"),
        ("loop", "no", "loop or meta"),
        ("meta", [], "loop or meta"),
        ("front", {"fovy": "x", "distance": 2.0, "width": 64, "height": 64}, "the camera's fovy is 'x'"),
        ("front", {"fovy": 40.0, "distance": 2.0, "width": 64, "height": None}, "the camera's height is None"),
        ("front", {"fovy": 40.0, "distance": 0.0, "width": 64, "height": 64}, "the camera's distance is 0"),
        ("front", {"fovy": 40.0, "distance": 2.0, "width": 64, "height": 64, "cy": "\0"}, "the camera's cy"),
        ("front", [1, 2], "lacks or garbles"),
        ("crop", {"x": 0, "y": 0, "size": -1, "width": 64, "height": 64}, "the crop's size is -1"),
        ("field", {"type": "mlp", "width": 10**6}, "field: .* missing or unknown|expected float32"),
        ("field", {"type": "mlp", "depth": 10**9}, "depth 1000000000, but only"),
        ("field", {"type": "hexplane", "resolution": 3000}, "missing or unknown"),
        ("field", {"type": "control-nodes", "nodes": 10, "points": 10, "edges": 1, "keys": 4 * 10**7}, "missing or unknown"),
        (
            "field",
            {"type": "control-nodes", "nodes": 8, "points": 60, "edges": 1, "keys": 4 * 10**7, "opacity": True},
            "float32",
        ),
        ("field", {"type": "frames", "frames": -1, "points": 60}, "lacks or garbles"),
        ("field", {"type": ["mlp"]}, "lacks or garbles"),
        ("field", {"type": "time-map", "inner": None, "knots": [[float("nan"), 0]]}, "number nan"),
        ("field", "mlp", "lacks or garbles"),
        ("surface", {"name": "a"}, "lacks or garbles"),
    ],
)
def test_header(key: str, value: Any, message: str, tmp_path: Path) -> None:
    path = spoilt(tmp_path / "a.safetensors", lambda header, tensors: header.update({key: value}))
    tracemalloc.start()
    text = refused(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert re.search(message, text), text


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"format":"anchor4d-scene","version":1,"field":' + '{"type":"faded","inner":' * 3000 + "null" + "}" * 3001,
    ],
)
def test_headers_nested_without_end(text: str, tmp_path: Path) -> None:
    save_file({"gaussians.means": torch.zeros(1, 3)}, tmp_path / "a.safetensors", {"anchor4d": text})
    refused(tmp_path / "a.safetensors")


def test_fields_within_fields_end(tmp_path: Path) -> None:
    deep: Any = None
    for _ in range(200):
        deep = {"type": "faded", "inner": deep, "knots": [[0.0, 1.0]]}
    assert "nested without end" in refused(spoilt(tmp_path / "a.safetensors", lambda header, _: header.update(field=deep)))


def test_whoever_reads_json_expects_it_nested_without_end() -> None:
    """Where a reader of JSON catches what is none, it catches what is nested too deep."""
    root, found, wrong = Path(cli.__file__).parent, 0, []
    for path in (p for room in ("core", "nodes", "bench") for p in sorted((root / room).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Try) or "json.loads(" not in "".join(map(ast.unparse, node.body)):
                continue
            caught = {name.id for handler in node.handlers for name in ast.walk(handler) if isinstance(name, ast.Name)}
            if "ValueError" in caught:
                found += 1
                if not caught & {"RecursionError", "RuntimeError"}:
                    wrong.append(f"{path.relative_to(root)}:{node.lineno}")
    assert found > 10 and wrong == []


def put(name: str, at: tuple[int, ...], value: float) -> Callable[[Header, Tensors], None]:
    def change(header: Header, tensors: Tensors) -> None:
        tensors[name][at] = value

    return change


def cast(name: str, function: Callable[[Tensor], Tensor]) -> Callable[[Header, Tensors], None]:
    return lambda header, tensors: tensors.update({name: function(tensors[name])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("field.bind_index", (3, 1), 8), "bind_index names nodes that do not exist"),
        (put("field.bind_index", (3, 1), -1), "bind_index names nodes"),
        (put("field.bind_index", (0, 0), 2**40), "bind_index names nodes"),
        (put("field.pairs", (0, 0), 99), "pairs names nodes"),
        (put("field.translations", (0, 0, 0), float("nan")), "translations holds NaN, infinite or far"),
        (put("field.translations", (0, 0, 0), 3e38), "translations holds NaN, infinite or far too large"),
        (put("field.bind_weight", (0, 0), float("inf")), "bind_weight holds NaN, infinite or far"),
        (put("gaussians.means", (0, 0), float("nan")), "means holds NaN"),
        (put("gaussians.means", (0, 0), 1e30), "means holds NaN, infinite or far too large"),
        (put("gaussians.log_scales", (0, 0), float("nan")), "log_scales holds NaN"),
        (cast("gaussians.means", lambda t: t.long()), "means is int64"),
        (cast("gaussians.quats", lambda t: t[:, :3]), "quats is float32"),
        (cast("gaussians.opacity_logits", lambda t: t[:, None]), "opacity_logits is float32"),
        (cast("gaussians.sh", lambda t: t.expand(-1, 3, 3)), "sh has shape"),
        (cast("gaussians.sh", lambda t: t.to(torch.complex64)), "sh is complex64"),
        (cast("field.bind_index", lambda t: t.float()), "bind_index is float32"),
        (cast("field.rotations", lambda t: t.bool()), "rotations is bool"),
        (lambda header, tensors: tensors.pop("field.pairs"), "pairs is missing or unknown"),
        (lambda header, tensors: tensors.pop("gaussians.means"), "lacks or garbles"),
        (lambda header, tensors: tensors.update({"field.extra": torch.zeros(1)}), "extra is missing or unknown"),
        (
            lambda header, tensors: tensors.update({k: v[:5] for k, v in tensors.items() if k[0] == "g"}),
            "bound to 60 Gaussians",
        ),
        (lambda header, tensors: tensors.update({k: v[:0] for k, v in tensors.items() if k[0] == "g"}), "no Gaussians"),
    ],
)
def test_tensors(change: Callable[[Header, Tensors], Any], message: str, tmp_path: Path) -> None:
    assert message in refused(spoilt(tmp_path / "a.safetensors", change))


def test_infinite_scales_and_opacities_are_drawn_as_endless(tmp_path: Path) -> None:
    def change(header: Header, tensors: Tensors) -> None:
        tensors["gaussians.log_scales"][0, 0] = -float("inf")
        tensors["gaussians.opacity_logits"][1] = float("inf")

    found = Scene4D.load(spoilt(tmp_path / "a.safetensors", change)).gaussians
    assert float(found.scales[0, 0]) == 0 and float(found.opacities[1]) == 1
    assert all(bool(t.isfinite().all()) for t in found.tensors().values())


def test_doubles_and_halves_are_read(tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.float16):
        path = spoilt(tmp_path / "a.safetensors", cast("field.translations", lambda t, dtype=dtype: t.to(dtype)))
        found = Scene4D.load(path).field
        assert found is not None and found.state_dict()["translations"].dtype == torch.float32


@pytest.mark.parametrize("kind", [*KINDS, *EDITS])
def test_sound_scenes_come_back_the_same(kind: str, tmp_path: Path) -> None:
    made = EDITS[kind](scene("frames")) if kind in EDITS else scene(kind)
    made.save(tmp_path / "a.safetensors")
    found = Scene4D.load(tmp_path / "a.safetensors")
    for tau in (0.0, 0.3, 1.0):
        for key, value in made.at(tau).tensors().items():
            assert torch.equal(found.at(tau).tensors()[key], value), (key, tau)
    if made.field is not None and found.field is not None:
        flags = {name: p.requires_grad for name, p in made.field.named_parameters()}
        assert {name: p.requires_grad for name, p in found.field.named_parameters()} == flags
        assert not any(t.is_meta for t in found.field.state_dict().values())


def test_parts_hold_all_gaussians(tmp_path: Path) -> None:
    made = EDITS["merge"](scene("mlp"))

    def change(header: Header, tensors: Tensors) -> None:
        header["field"]["counts"][0] += 1

    assert "parts of" in refused(spoilt(tmp_path / "a.safetensors", change, made))


def test_a_field_of_another_package_is_checked_without_code_of_its_own() -> None:
    """Shapes come of its constructor; nothing else is asked of it."""
    field = ClosedLoop(scene("mlp").field, 0.25)
    again = loaded_field(field.config(), field.state_dict(), 60)
    assert isinstance(again, DeformationField)
    for key, value in field.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": 1}, {"step": -1}, {"step": "3"}, {"losses": None}, {"step": None}, {"key": ...}, {"losses": ...},
    ],
)  # fmt: skip
def test_checkpoints_without_what_a_fit_needs(change: dict[str, Any], tmp_path: Path) -> None:
    header: Header = {"stage": "fit", "key": "k", "step": 3, "losses": {}} | change
    header = {key: value for key, value in header.items() if value is not ...}
    save_checkpoint(tmp_path / "a.safetensors", {"generator": torch.get_rng_state()}, header)
    with pytest.raises(InputError, match="not a readable checkpoint") as caught:
        load_checkpoint(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)
