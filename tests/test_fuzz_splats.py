"""Files that a stranger spoilt, given to every reader of splats and scenes: read, or refused in one line, in bounded memory.

Seeded. ANCHOR4D_FUZZ sets the number of inputs a kind; a file that falls short is kept in the folder ANCHOR4D_FUZZ_OUT names.
The long form: ``ANCHOR4D_FUZZ=2000 pytest tests/test_fuzz_splats.py``.
"""

from __future__ import annotations

import io
import json
import os
import random
import struct
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_edit import EDITS
from test_edit import KINDS as MOVING
from test_edit import scene as moving_scene
from test_splat_kinds import columns, gaussians, ply

from anchor4d.core.cameras import Crop
from anchor4d.core.deformation import FIELDS, Articulated, ClipChain, ControlNodes, DeformationField, TimeGatedMLP
from anchor4d.core.files import InputError
from anchor4d.core.fit.checkpoint import load_checkpoint, save_checkpoint
from anchor4d.core.io import tsog
from anchor4d.core.io.gltf_splats import write_splat_glb
from anchor4d.core.io.moving_ply import encode_ftgs
from anchor4d.core.io.sequence import open_scene
from anchor4d.core.io.splats import encode_splats, write_splat_sequence
from anchor4d.core.io.stream import read_stream, write_stream
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.timed import bake_timed
from anchor4d.core.scene.views import render_frames, scene_cameras

#: Inputs a kind, and seconds that one may take on a busy machine.
INPUTS, SECONDS = int(os.environ.get("ANCHOR4D_FUZZ", "25")), 20.0
#: What is put in place of a value of a header.
ODD: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, -1e300, float("nan"), float("inf"), "", "x", "\0", "../x", "/etc/passwd",
    [], [1], [[]], {}, {"type": "mlp", "depth": 10**9}, {"type": "hexplane", "resolution": 10**6}, "9" * 5000,
]  # fmt: skip
WORDS = [b"\0" * 4, b"\xff" * 4, struct.pack("<I", 1 << 31), struct.pack("<f", float("nan")), struct.pack("<f", 3e38), b"\x7f"]


def scene(kind: str) -> Scene4D:
    """A scene moved by a field of a kind; "edited" is wrapped in every way in which an edit wraps one."""
    if kind == "edited":
        made = moving_scene("mlp")
        for name in ("retime", "close loop", "follow", "opacity", "merge"):
            made = EDITS[name](made)
    else:
        made = moving_scene(kind if kind in MOVING else "control-nodes")
    if kind == "articulated":
        nodes = made.field
        assert isinstance(nodes, ControlNodes)
        sizes = {
            "nodes": len(nodes.node_positions),
            "points": len(made.gaussians),
            "edges": len(nodes.pairs),
            "keys": nodes.keys,
        }
        field = Articulated(**sizes, parents=[-1, 0, 1], names=["root", "arm", "hand"])
        field.joint_weights[:] = torch.eye(3)[torch.arange(sizes["nodes"]) % 3]
        for name in ("node_positions", "bind_index", "bind_weight", "pairs"):
            getattr(field, name).copy_(getattr(nodes, name))
        made = replace(made, field=field)
    elif kind == "clip-chain":
        made = replace(made, field=ClipChain([scene(k).field for k in ("mlp", "time-gated-mlp")], closed=True))  # pyright: ignore
    elif kind == "time-gated-mlp":
        made = replace(made, field=TimeGatedMLP.around(made.gaussians, width=16, depth=2))
    return replace(made, crop=Crop(0, 0, 64, 64, 64))


def saved(kind: str, folder: Path) -> bytes:
    scene(kind).save(folder / "whole.safetensors")
    return (folder / "whole.safetensors").read_bytes()


def sequence(format: str, folder: Path) -> bytes:
    write_splat_sequence(folder / "whole.zip", scene("frames"), 3, format=format)
    return (folder / "whole.zip").read_bytes()


def checkpoint(folder: Path) -> bytes:
    tensors = {"gaussians.means": torch.rand(4, 3), "generator": torch.get_rng_state()}
    save_checkpoint(folder / "whole.ckpt", tensors, {"stage": "fit", "key": "a", "step": 3, "losses": {"a": [1.0]}})
    return (folder / "whole.ckpt").read_bytes()


def stream(folder: Path) -> bytes:
    file = io.BytesIO()
    write_stream(file, scene("control-nodes"))
    return file.getvalue()


def timed() -> Scene4D:
    return bake_timed(scene("control-nodes"), life="gaussian", turning=False).scene


def timed_scene(folder: Path) -> bytes:
    timed().save(folder / "whole.safetensors")
    return (folder / "whole.safetensors").read_bytes()


def moving(*names: str) -> bytes:
    draw = torch.Generator().manual_seed(0)
    values = columns(gaussians(1))
    return ply(values | {name: torch.rand(len(values["x"]), generator=draw).numpy() for name in names})


def packed_glb(folder: Path) -> bytes:
    write_splat_glb(folder / "whole.glb", gaussians(1), compressed=True)
    return (folder / "whole.glb").read_bytes()


def shiny_stream(folder: Path) -> bytes:
    file, made = io.BytesIO(), scene("control-nodes")
    sh = torch.cat([made.gaussians.sh[:, :1], torch.rand(len(made.gaussians), 8, 3)], 1)
    write_stream(file, replace(made, gaussians=replace(made.gaussians, sh=sh)))
    return file.getvalue()


SCENES = ["control-nodes", "frames", "hexplane", "mlp", "time-gated-mlp", "articulated", "clip-chain", "edited"]
#: Kinds of file: the ending, and what makes a sound one.
KINDS: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "ply": (".ply", lambda folder: ply(columns(gaussians(1)))),
    "ascii ply": (".ply", lambda folder: ply(columns(gaussians()), "")),
    "big-endian ply": (".ply", lambda folder: ply(columns(gaussians()), ">")),
    "ply with lists": (
        ".ply",
        lambda folder: ply(columns(gaussians()), "<", b"\2abcd" * 9, "element face 9\nproperty list uchar short index\n"),
    ),
    "compressed ply": (".ply", lambda folder: encode_splats(gaussians(1, 300), "compressed-ply")),
    "spz": (".spz", lambda folder: encode_splats(gaussians(1), "spz")),
    "spz 2": (".spz", lambda folder: encode_splats(gaussians(), "spz", version=2)),
    "splat": (".splat", lambda folder: encode_splats(gaussians(), "splat")),
    "sog": (".sog", lambda folder: encode_splats(gaussians(1), "sog")),
    "FreeTimeGS": (".ply", lambda folder: encode_ftgs(timed())),
    "Spacetime": (".ply", lambda folder: moving("trbf_center", "trbf_scale", *(f"motion_{i}" for i in range(9)), "omega_0")),
    "4DGS": (".ply", lambda folder: moving("t", "scale_t", *(f"rot_r_{i}" for i in range(4)))),
    "windows": (".ply", lambda folder: moving("vx", "vy", "vz", "time", "duration")),
    "tsog": (".tsog", lambda folder: tsog.encode(timed())),
    "tsog by frames": (".tsog", lambda folder: tsog.encode(scene("control-nodes"))),
    "packed glb": (".glb", packed_glb),
    "zip of ply": (".zip", lambda folder: sequence("ply", folder)),
    "zip of spz": (".zip", lambda folder: sequence("spz", folder)),
    "a4d": (".a4d", stream),
    "a4d with harmonics": (".a4d", shiny_stream),
    "checkpoint": (".ckpt", checkpoint),
    "scene of timed": (".safetensors", timed_scene),
    **{f"scene of {kind}": (".safetensors", lambda folder, kind=kind: saved(kind, folder)) for kind in SCENES},
}


def test_a_field_of_every_kind_is_spoilt() -> None:
    known = {type(part).name for kind in SCENES for part in scene(kind).field.modules() if isinstance(part, DeformationField)}
    assert known | {type(timed().field).name} == {
        name for name, kind in FIELDS.items() if kind.__module__.startswith("anchor4d")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_spoilt_files_are_read_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    suffix, make = KINDS[kind]
    whole, draw = make(tmp_path), random.Random(kind)
    path = tmp_path / f"spoilt{suffix}"
    assert use(path, whole), "the sound file is not read"
    read = 0
    for number in range(INPUTS):
        spoilt = damage(whole, suffix, draw)
        began = time.process_time()
        try:
            read += use(path, spoilt)
            assert time.process_time() - began < SECONDS, "takes too long"
        except BaseException:
            if out := os.environ.get("ANCHOR4D_FUZZ_OUT"):
                (Path(out) / f"{kind.replace(' ', '-')}-{number}{suffix}").write_bytes(spoilt)
            raise
    assert read < INPUTS, "nothing was ever refused: the damage does nothing"


def use(path: Path, data: bytes) -> bool:
    """Whether a file was read; what was read holds finite numbers and can be drawn."""
    path.write_bytes(data)
    found = None
    try:
        if path.suffix == ".a4d":
            frames = read_stream(path).frames
            assert all(bool(t.isfinite().all()) for frame in frames for t in frame.tensors().values())
        elif path.suffix == ".ckpt":
            load_checkpoint(path)
        else:
            found = open_scene(path)
        refused = ""
    except InputError as error:
        refused = str(error)
    assert "\n" not in refused and len(refused) < 2000, refused
    if found is None:
        return not refused
    assert 0 < found.frames <= 100_000 and 0 < found.fps <= 10_000
    assert all(bool(t.isfinite().all()) for t in found.gaussians.tensors().values())
    if len(found.gaussians) < 5000:
        found.at(0.5)
        render_frames(found, scene_cameras(found, 0.0, None, 16), torch.tensor([0.5]), backend="torch")
    return True


def damage(data: bytes, suffix: str, draw: random.Random) -> bytes:
    """Spoilt in the way of the kind: its header's values, its members, or its bytes."""
    ways = [_bytes, _bytes, _cut]
    if suffix in (".safetensors", ".ckpt"):
        ways += [_scene_header] * 5 + [_scene_tensors] * 3
    elif suffix == ".a4d":
        ways += [_stream_header] * 4
    elif suffix in (".zip", ".sog", ".tsog"):
        ways += [_members] * 4
    elif data.startswith(b"ply"):
        ways += [_ply_header] * 3
    return draw.choice(ways)(data, draw)


def _bytes(data: bytes, draw: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(draw.choice([1, 1, 3, 10])):
        at, word = draw.randrange(len(spoilt)), draw.choice([*WORDS, bytes([draw.randrange(256)])])
        spoilt[at : at + len(word)] = word
    return bytes(spoilt)


def _cut(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] if draw.random() < 0.7 else data[:at] + data[at + draw.randrange(1, 64) :]


def _ply_header(data: bytes, draw: random.Random) -> bytes:
    head, mark, body = data.partition(b"end_header\n")
    lines = head.split(b"\n")
    at = draw.randrange(len(lines))
    words = lines[at].split(b" ")
    words[draw.randrange(len(words))] = draw.choice(
        [b"", b"0", b"-1", b"99999999", b"list", b"uchar", b"double", b"x", b"vertex"]
    )
    lines[at] = b" ".join(words)
    if draw.random() < 0.3:
        lines.insert(draw.randrange(len(lines)), draw.choice(lines))
    return b"\n".join(lines) + mark + body


def _members(data: bytes, draw: random.Random) -> bytes:
    """An archive whose members are damaged, exchanged or left out, its .json at a value."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice([*members, *(n for n in members if n.endswith(".json"))])
    if name.endswith(".json") and draw.random() < 0.8:
        members[name] = json.dumps(_replaced(json.loads(members[name]), draw)).encode()
    elif draw.random() < 0.2:
        del members[name]
    else:
        members[name] = draw.choice([_bytes(members[name], draw), _cut(members[name], draw), members[draw.choice([*members])]])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _replaced(value: Any, draw: random.Random) -> Any:
    """A JSON value with one of its parts made odd."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.85:
        at = draw.choice([*value]) if isinstance(value, dict) else draw.randrange(len(value))
        copy = dict(value) if isinstance(value, dict) else list(value)
        if draw.random() < 0.1:
            del copy[at]
        else:
            copy[at] = _replaced(copy[at], draw)
        return copy
    return draw.choice(ODD)


def _scene_header(data: bytes, draw: random.Random) -> bytes:
    header, body = _parted(data)
    (key,) = header["__metadata__"]
    text = json.dumps(_replaced(json.loads(header["__metadata__"][key]), draw))
    if draw.random() < 0.05:
        text = draw.choice(["[" * 100_000, "", "null", '{"a":' * 5000])
    return _joined(header | {"__metadata__": {key: text}}, body)


def _scene_tensors(data: bytes, draw: random.Random) -> bytes:
    """Types, shapes and values of tensors, indices among them."""
    header, body = _parted(data)
    name = draw.choice([key for key in header if key != "__metadata__"])
    entry, (start, end) = dict(header[name]), header[name]["data_offsets"]
    way = draw.randrange(4)
    if way == 0:
        entry["dtype"] = {"F32": "I32", "I64": "F64", "BOOL": "I8"}.get(entry["dtype"], "F32")
    elif way == 1 and len(entry["shape"]) > 1:
        entry["shape"] = draw.choice([entry["shape"][::-1], [1, *entry["shape"]], [entry["shape"][0] * entry["shape"][1]]])
    elif way == 2 and end - start >= 8:
        word = draw.choice([struct.pack("<q", v) for v in (-1, 10**6, 2**62)] + [struct.pack("<ff", float("nan"), 1e38)])
        at = start + 8 * draw.randrange((end - start) // 8)
        body = body[:at] + word + body[at + 8 :]
    else:
        header = {draw.choice(["field.", "surface.", ""]) + "new" if key == name else key: v for key, v in header.items()}
        return _joined(header, body)
    return _joined(header | {name: entry}, body)


def _parted(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack_from("<Q", data)[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _stream_header(data: bytes, draw: random.Random) -> bytes:
    size = struct.unpack_from("<I", data, 8)[0]
    text = json.dumps(_replaced(json.loads(data[12 : 12 + size]), draw)).encode()
    return data[:8] + struct.pack("<I", len(text)) + text + data[12 + size :]
