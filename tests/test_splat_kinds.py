"""Splat files as other programs write them: every encoding of .ply, flat and RGB Gaussians, NaN among them, SOG, axes."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anchor4d.core.files import InputError
from anchor4d.core.gaussians import Gaussians
from anchor4d.core.io import sog, write_splats
from anchor4d.core.io.objects import load_object
from anchor4d.core.io.sequence import open_scene
from anchor4d.core.io.splats import decode_splats, encode_splats, read_splats
from anchor4d.core.scene.object3d import SplatObject

COUNT = 8


def gaussians(degree: int = 0, count: int = COUNT) -> Gaussians:
    g = torch.Generator().manual_seed(1)
    return Gaussians(
        means=torch.rand(count, 3, generator=g) - 0.5,
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=-1),
        log_scales=torch.randn(count, 3, generator=g) * 0.3 - 4,
        opacity_logits=torch.randn(count, generator=g),
        sh=0.4 * torch.randn(count, (degree + 1) ** 2, 3, generator=g),
    )


def same(found: Gaussians, expected: Gaussians, atol: float = 1e-6) -> None:
    signs = torch.where((found.quats * expected.quats).sum(-1, keepdim=True) < 0, -1.0, 1.0)  # q and -q turn alike
    found = replace(found, quats=found.quats * signs)
    for key, value in expected.tensors().items():
        torch.testing.assert_close(found.tensors()[key], value, rtol=0, atol=atol, msg=lambda m, key=key: f"{key}: {m}")


def columns(splats: Gaussians) -> dict[str, np.ndarray]:
    """The columns of our own .ply, by name."""
    data = encode_splats(splats, "ply")
    head, _, body = data.partition(b"end_header\n")
    names = [line.split()[-1].decode() for line in head.splitlines() if line.startswith(b"property")]
    return dict(zip(names, np.frombuffer(body, "<f4").reshape(-1, len(names)).T))


TYPES = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int"}


def ply(values: dict[str, np.ndarray], order: str = "<", before: bytes = b"", before_header: str = "") -> bytes:
    """A .ply of columns, their types as they are."""
    word = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}[order]
    count = len(next(iter(values.values())))
    header = f"ply\nformat {word} 1.0\ncomment of another program\n{before_header}element vertex {count}\n"
    header += "".join(f"property {TYPES[v.dtype.str[1:]]} {k}\n" for k, v in values.items()) + "end_header\n"
    if not order:
        body = "\n".join(" ".join(repr(v[i].item()) for v in values.values()) for i in range(count)).encode()
    else:
        table = np.empty(count, [(k, order + v.dtype.str[1:]) for k, v in values.items()])
        for key, value in values.items():
            table[key] = value
        body = table.tobytes()
    return header.encode() + before + body


@pytest.mark.parametrize("order", ["<", ">", ""])
@pytest.mark.parametrize("degree", [0, 2])
def test_every_encoding_of_ply_is_the_same(order: str, degree: int) -> None:
    expected = gaussians(degree)
    same(decode_splats(ply(columns(expected), order), "a.ply"), expected)


def test_doubles_and_unknown_properties_are_read_past() -> None:
    expected = gaussians()
    values = {"label": np.arange(COUNT, dtype="<i4")} | {k: v.astype("<f8") for k, v in columns(expected).items()}
    same(decode_splats(ply(values), "a.ply"), expected)
    assert not logging_of(ply(values))


def logging_of(data: bytes) -> list[str]:
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("anchor4d.core.io")
    logger.addHandler(handler)
    try:
        decode_splats(data, "a.ply")
    finally:
        logger.removeHandler(handler)
    return records


@pytest.mark.parametrize("order", ["<", ">", ""])
def test_other_elements_before_the_gaussians(order: str) -> None:
    """A camera of plain numbers, and faces, whose records are lists of their own lengths."""
    expected = gaussians()
    header = "element camera 2\nproperty float fov\nproperty uchar kind\nelement face 2\nproperty list uchar int index\n"
    if order:
        before = struct.pack(f"{order}fBfB", 40, 1, 50, 2) + struct.pack(f"{order}B3iB1i", 3, 0, 1, 2, 1, 7)
    else:
        before = b"40 1\n50 2\n3 0 1 2\n1 7\n"
    same(decode_splats(ply(columns(expected), order, before, header), "a.ply"), expected)


def test_2d_gaussians_are_thin_along_their_third_axis() -> None:
    expected = gaussians()
    values = columns(expected)
    del values["scale_2"]
    found = decode_splats(ply(values), "a.ply")
    thin = expected.log_scales[:, :2].amin(1) + math.log(1e-3)
    same(found, replace(expected, log_scales=torch.cat([expected.log_scales[:, :2], thin[:, None]], 1)))


@pytest.mark.parametrize("kind", ["u1", "f4"])
def test_rgb_in_place_of_harmonics(kind: str) -> None:
    expected = gaussians()
    values = {k: v for k, v in columns(expected).items() if not k.startswith("f_")}
    rgb = np.linspace(0, 1, 3 * COUNT).reshape(3, COUNT)
    stored = np.rint(rgb * 255).astype("u1") if kind == "u1" else rgb.astype("<f4")
    values |= dict(zip(("red", "green", "blue"), stored))
    found = decode_splats(ply(values), "a.ply")
    np.testing.assert_allclose(found.colors.T, stored / (255 if kind == "u1" else 1), atol=1e-6)
    same(replace(found, sh=expected.sh), expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, np.nan) for name in ("x", "rot_1", "f_dc_0", "scale_1", "opacity")),
        ("x", 3e38),
        ("f_dc_0", 3e38),
        ("y", np.inf),
    ],
)
def test_one_absurd_gaussian_is_left_out_with_a_note(name: str, value: float) -> None:
    expected = gaussians()
    values = {k: v.copy() for k, v in columns(expected).items()}
    values[name][3] = value
    data = ply(values)
    kept = torch.arange(COUNT) != 3
    same(decode_splats(data, "a.ply"), expected.select(kept))
    assert logging_of(data) == ["a.ply: 1 of 8 Gaussians hold NaN, infinite or far too large values and are left out"]


def test_infinite_opacity_and_flatness_stay() -> None:
    values = {k: v.copy() for k, v in columns(gaussians()).items()}
    values["opacity"][0], values["scale_0"][1] = np.inf, -np.inf
    found = decode_splats(ply(values), "a.ply")
    assert len(found) == COUNT
    assert float(found.opacities[0]) == 1 and float(found.scales[1, 0]) == 0


def test_a_nan_in_one_frame_leaves_that_gaussian_out_of_all(tmp_path: Path) -> None:
    first = gaussians()
    for i in range(3):
        moved = replace(first, means=first.means + 0.01 * i)
        values = {k: v.copy() for k, v in columns(moved).items()}
        if i == 1:
            values["y"][2] = np.nan
        (tmp_path / f"frame{i}.ply").write_bytes(ply(values))
    scene = open_scene(tmp_path)
    assert (len(scene.gaussians), scene.frames, scene.meta["motion"]) == (COUNT - 1, 3, "smooth")
    kept = first.means[torch.arange(COUNT) != 2]
    torch.testing.assert_close(scene.at(1.0).means, kept + 0.02, rtol=0, atol=1e-6)


@pytest.mark.parametrize("names", [["motion_0", "trbf_center"], ["t", "scale_t"], ["vx", "vy", "vz"]])
def test_columns_of_motion_are_noticed(names: list[str]) -> None:
    expected = gaussians()
    data = ply(columns(expected) | {name: np.zeros(COUNT, "<f4") for name in names})
    assert [f"{len(names)} columns of motion" in line for line in logging_of(data)] == [True]
    same(decode_splats(data, "a.ply"), expected)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"binary_little_endian", b"binary_middle_endian", "binary_middle_endian.* is not read"),
        (b"element vertex 8", b"element vertex eight", "garbled header line"),
        (b"property float x", b"property list uchar float x", "hold lists"),
        (b"property float y", b"property float x", "garbled header line"),
        (b"property float y", b"property floaty y", "garbled header line"),
    ],
)
def test_garbled_headers_end_in_one_line(old: bytes, new: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_splats(ply(columns(gaussians())).replace(old, new, 1), "a.ply")


@pytest.mark.parametrize("spoilt", [lambda data: data[:-200], lambda data: data.replace(b"end_header\n", b"end_header\nx ")])
def test_text_that_is_cut_or_no_number(spoilt: Any) -> None:
    data = spoilt(ply(columns(gaussians()), ""))
    with pytest.raises(InputError, match="cut short"):
        decode_splats(data, "a.ply")


# Which way is up

#: Where what is read at (1, 2, 3) is put, by the axis that points up.
PLACES = {"y": (1, 2, 3), "-y": (1, -2, -3), "z": (1, 3, -2), "-z": (1, -3, 2), "x": (-2, 1, 3), "-x": (2, -1, 3)}


@pytest.mark.parametrize("up", PLACES)
@pytest.mark.parametrize("file", ["a.ply", "a.compressed.ply", "a.spz", "a.splat", "a.sog"])
def test_up(up: str, file: str, tmp_path: Path) -> None:
    one = gaussians(0, 1)
    one = replace(one, means=torch.tensor([[1.0, 2.0, 3.0]]))
    write_splats(tmp_path / file, one)
    for found in (read_splats(tmp_path / file, up=up), open_scene(tmp_path / file, up=up).gaussians):
        torch.testing.assert_close(found.means[0], torch.tensor(PLACES[up], dtype=torch.float32), rtol=0, atol=1e-3)


def test_up_turns_rotations_and_harmonics_too(tmp_path: Path) -> None:
    expected = gaussians(2)
    write_splats(tmp_path / "a.ply", expected)
    turned = torch.eye(4)
    turned[:3, :3] = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # z to y
    same(read_splats(tmp_path / "a.ply", up="z"), expected.transformed(turned), 1e-5)
    with pytest.raises(InputError, match="up axis 'w': choose one of"):
        read_splats(tmp_path / "a.ply", up="w")


def test_spz_without_stated_axes_says_what_was_taken(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "anchor4d"):
        decode_splats(encode_splats(gaussians(), "spz"), "a.spz")
    assert "does not say which way is up, read as a .ply" in caplog.text


# SOG


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_sog_keeps_what_it_says(degree: int) -> None:
    expected = gaussians(degree, 300)
    found = decode_splats(encode_splats(expected, "sog"), "a.sog")
    order = torch.cdist(found.means, expected.means).argmin(1)
    assert order.unique().numel() == 300
    expected = expected.select(order)
    torch.testing.assert_close(found.means, expected.means, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.log_scales, expected.log_scales, rtol=0, atol=0.03)
    torch.testing.assert_close(found.opacities, expected.opacities, rtol=0, atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close(found.sh, expected.sh, rtol=0, atol=0.05)
    off = torch.minimum((found.quats - expected.quats).norm(dim=-1), (found.quats + expected.quats).norm(dim=-1))
    assert float(torch.rad2deg(4 * (off / 2).asin()).max()) < 0.7


def test_sog_palette_of_more_gaussians_than_entries() -> None:
    vectors = np.random.default_rng(0).normal(size=(1000, 9))
    limit, sog._PALETTE = sog._PALETTE, 64
    try:
        palette, label = sog._palette(vectors)
    finally:
        sog._PALETTE = limit
    assert palette.shape == (64, 9) and sorted(set(label)) == list(range(64))
    for entry in range(64):
        np.testing.assert_allclose(palette[entry], vectors[label == entry].mean(0))
    assert np.square(vectors - palette[label]).mean() < 0.6 * np.square(vectors).mean()


def parts_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(parts: dict[str, bytes], prefix: str = "") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(prefix + name, content)
    return file.getvalue()


def test_sog_as_a_folder_and_as_a_zip_of_a_folder(tmp_path: Path) -> None:
    data = encode_splats(gaussians(1), "sog")
    expected = decode_splats(data, "a.sog")
    for name, content in parts_of(data).items():
        (tmp_path / name).write_bytes(content)
    same(read_splats(tmp_path), expected)
    same(open_scene(tmp_path).gaussians, expected)
    same(open_scene(tmp_path / "meta.json").gaussians, expected)
    same(decode_splats(packed(parts_of(data), "scene/"), "a.sog"), expected)


def test_sog_of_version_1() -> None:
    """Linear bounds in place of codebooks, opacity as a logit, no version."""
    parts = parts_of(encode_splats(gaussians(1), "sog"))
    meta = json.loads(parts["meta.json"])
    means = meta["means"] | {"shape": [COUNT, 3], "dtype": "float32"}
    old = {
        "means": means,
        "scales": {"mins": [-8.0, -6, -4], "maxs": [0.0, 0, 0], "files": ["scales.webp"]},
        "quats": meta["quats"],
        "sh0": {"mins": [-1.0, -1, -1, -3], "maxs": [1.0, 1, 1, 3], "files": ["sh0.webp"]},
        "shN": {"mins": -2.0, "maxs": 2.0, "files": meta["shN"]["files"]},
    }
    found = decode_splats(packed(parts | {"meta.json": json.dumps(old).encode()}), "a.sog")
    new = decode_splats(packed(parts), "a.sog")
    torch.testing.assert_close(found.means, new.means)
    pixels = {name: np.asarray(Image.open(io.BytesIO(parts[f"{name}.webp"])).convert("RGBA")) for name in ("scales", "sh0")}
    first = pixels["scales"].reshape(-1, 4)[0, :3] / 255
    np.testing.assert_allclose(found.log_scales[0], np.array([-8, -6, -4]) * (1 - first), atol=1e-5)
    np.testing.assert_allclose(found.opacity_logits[0], pixels["sh0"].reshape(-1, 4)[0, 3] / 255 * 6 - 3, atol=1e-5)
    assert found.sh.shape == (COUNT, 4, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3 of SOG"),
        ({"count": 10**9}, "more than 16777216"),
        ({"count": COUNT * 50}, "fewer than"),
        ({"count": "8"}, "damaged SOG"),
        ({"means": {"mins": [0], "maxs": [1], "files": ["means_l.webp", "means_u.webp"]}}, "damaged SOG"),
        ({"quats": {"files": ["../quats.webp"]}}, "lacks ../quats.webp"),
        ({"scales": {"codebook": [1, 2], "files": ["scales.webp"]}}, "damaged SOG"),
        ({"quats": {"files": ["meta.json"]}}, "not a picture"),
    ],
)
def test_damaged_sog_ends_in_one_line(change: dict[str, Any], message: str) -> None:
    parts = parts_of(encode_splats(gaussians(), "sog"))
    parts["meta.json"] = json.dumps(json.loads(parts["meta.json"]) | change).encode()
    with pytest.raises(InputError, match=message) as caught:
        decode_splats(packed(parts), "a.sog")
    assert "\n" not in str(caught.value)


def test_the_pictures_of_a_sog_folder_lie_in_it(tmp_path: Path) -> None:
    parts = parts_of(encode_splats(gaussians(), "sog"))
    folder = tmp_path / "scene"
    folder.mkdir()
    for name, content in parts.items():
        (folder / name).write_bytes(content)
    (tmp_path / "quats.webp").write_bytes(parts["quats.webp"])
    meta = json.loads(parts["meta.json"]) | {"quats": {"files": ["../quats.webp"]}}
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="outside its folder"):
        read_splats(folder)


def test_a_zip_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("f0.splat", "w") as file:
        for _ in range(80):
            file.write(bytes(1 << 20))
    with pytest.raises(InputError, match=r"a\.zip: f0\.splat unpacks from \d+ to 83886080 bytes"):
        open_scene(tmp_path / "a.zip")


def test_sog_serves_as_an_object(tmp_path: Path) -> None:
    write_splats(tmp_path / "a.sog", gaussians())
    found = load_object(tmp_path / "a.sog")
    assert isinstance(found, SplatObject) and len(found.gaussians) == COUNT


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_pipes_folders_and_devices_are_no_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no pipes on this system")
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(os.devnull)
    with pytest.raises(InputError, match=r"regular file|holds no splat files"):
        read_splats(path) if kind != "folder" else open_scene(path)
