"""Splat files of every kind: orientation, what is rounded, files made by other programs, damaged files, sequences."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import struct
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anchor4d.core.cameras import orbit, quaternion_multiply, quaternion_to_matrix
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import SH_C0, Gaussians
from anchor4d.core.io import compressed_ply, ksplat, read_splats, spz, write_splat_sequence, write_splats
from anchor4d.core.io.splats import FORMATS, decode_splats, encode_splats, format_of
from anchor4d.core.render import rasterize
from anchor4d.core.runs.sample import sample_scene
from anchor4d.core.scene.scene import Scene4D

#: Every way to write a file: a name for it, and how.
WAYS = {
    "ply": ("a.ply", {}),
    "compressed-ply": ("a.compressed.ply", {}),
    "spz 2": ("a.spz", {"version": 2}),
    "spz 3": ("a.spz", {}),
    "spz 4": ("a.spz", {"version": 4}),
    "splat": ("a.splat", {}),
    "sog": ("a.sog", {}),
}
#: The three Gaussians of :func:`landmarks` with harmonics of degree 1, as other programs wrote them from our .ply:
#: splat-transform 3.7 (with Niantic's own library for .spz), GaussianSplats3D 0.4.7 at its three levels. Deflated, in base 85.
MADE_ELSEWHERE = {
    "packed.compressed.ply": (
        "c-nQ7KTg9i6vnMCpiB%bNJ#hsRQ&^#iHsZqq2MG=6E(3T$8F<EpwhA+XjO>`7H+@+SlR<1Mg}Gpj(}h@PEm^xwxv(j`+e^{Kg)6&3oD>3K^(df"
        "K}<Mt#CePzO#BEDSS?p9k0uEw93EnV8RFQ7u7Ft@BfiZUB3V%n>*a<@#W9|zdSRQiVAV<)O)=vF1~FAfBoT3P9TYm)`v+03DOXVFU{BXG^N_k+"
        "ZnlKk(#~UQxU_`X(oV>9u&INtt~1lYrVhHx*Xk$-=dk{p)s7TSk=Me$lhQ2W5hZ$;QI5>+{GNKtqcLU65wh^l@m`1+3>=0t?o<rCYTz{kH}&5!"
        "@LdDnGw_Ci?_26GIUz<qW)_&Q{`5z{E&`>4^+$VFXncG#TPr<J7xBl-eQhC?Y8Se@-LS#e767Hy6S)Gw6Odq2?Th#w04e3Ce0?}Q0^m*dWl+C3"
        "9}N4$!P&*+x;wtgN0&l$MmZmMv&lDcZ-it"
    ),
    "version3.spz": (
        "c-oWi=3oE==Fi3ad<kg@2@HvDa%=`aKFnw2YsleaYqS3^IYVOJ+)Rs{<mBQTYI{~}XW+TTbtvJL&1SQ1*&7>^54VYOa!MMjm6Vu-l=#e;IB|l2"
        "px}n&<BSZ?y`QnC1I-2ioV+6&"
    ),
    "version4.spz": (
        "c-r%G4-Q~qU|?VdVn!YYHU$P$paP|(p)?PaW`@#2P?{45UldIrx_KH~_5UhJ--K{J{6|;}WOFbu{Q1wo1X05*$-waJOaqwB>B+!w*v7`@uuXVT"
        "FI=Pm4B869z#=?}2(vu1HjBY6I<RBMh7Btc5;A5?=;&yu=$J4gBOxIoB4Edk0|5TnGD8"
    ),
    "level0.ksplat": (
        "c-rmQF%E(-6b9f&+?-jNyn&8NSsWFQ;O68VWUV*Qgv7-I=uR2L4L72_fLlX60kMx@G$y)h{x5wL3Y0%=EjdKC)zxb1-Na<db^!qZ000000KiZB"
        "wB~2GmvaZd3g90FL=o@ri98>1`Rz+*P!^}8EXIMmrC>i@i{5Ot2+dGw8LMTiMHbGL+ux~UXhf`~dfOw6Y)g5rM>WIGJ;aJ~Ej>|4&p*r9KZM3U"
        "v*~ir*LFPN`^|ePAHL035ncKFHb<R@bJ=`#PR?s{3(kKBv3+2?"
    ),
    "level1.ksplat": (
        "c-rmQF%AJi6b9gbiOvNyLSscF#IU<W!U?#;6jQo_+7VWzR4I0sQWRUN+(Gxwu<TlbBar`_c{4AW$txzAVg?qF_D2+-k>#J}5+BoP0wN+JA|fIp"
        "`bn=hf8iOxW?D|i+Y(sg{WoCosEGbfey?j&;55nOo%<Ej@Q0>nTGjeuw-}YYOJ5m(X$KO;jt*CQ?am_m01r?KFs-bm<;IVq3C_}$rnGej&>d;Z"
        "R=U}OQr|lh;0n)nW|4MR10BYW^zGmdgxE6k"
    ),
    "level2.ksplat": (
        "c-muNWMBXyFlL5gCI(dC|K`X(AZ5=m3P!;w7zLwX6pVsVFbYP&C>RB!U=)mkAqkNC{E&YC0tX%-`M;ilp`HOTHo!O<RHI-N3_AeH*9r~{3<vBX"
        "7{Q(?nWi?=GR-JWOHMIwU7i)I#U&Htw3+qhVlQ;KKPxi)XJ9ZkW?)Fu0zsfDHej><F`SuQ**YO_LTmDD5Z~AsRlz?7hNu7UDt^AC^WwNU0D7J&"
        "H~"
    ),
}


def way(name: str) -> tuple[str, dict[str, Any]]:
    if name == "spz 4":
        needs_zstd()
    return WAYS[name]


def needs_zstd() -> None:
    try:
        import compression.zstd  # noqa: F401, pyright: ignore[reportMissingImports]
    except ImportError:
        pytest.importorskip("backports.zstd", reason="no zstd: neither Python 3.14 nor backports.zstd")


def written(gaussians: Gaussians, name: str) -> bytes:
    file, options = way(name)
    return encode_splats(gaussians, format_of(file), **options)


def landmarks(degree: int = 0) -> Gaussians:
    """Red at +Y, green at +Z, and a bluish, turned, elongated one."""
    turned = torch.nn.functional.normalize(torch.tensor([0.8, 0.1, 0.3, -0.5]), dim=0)
    color = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.2, 0.4, 0.6]])
    sh = torch.zeros(3, (degree + 1) ** 2, 3)
    sh[:, 0] = (color - 0.5) / SH_C0
    sh[:, 1:] = torch.linspace(-0.5, 0.5, sh[:, 1:].numel()).reshape(sh[:, 1:].shape)
    return Gaussians(
        means=torch.tensor([[0.0, 1, 0], [0, 0, 1], [0.5, 0.25, -0.125]]),
        quats=torch.stack([torch.tensor([1.0, 0, 0, 0]), torch.tensor([1.0, 0, 0, 0]), turned]),
        log_scales=torch.tensor([[0.05, 0.05, 0.05], [0.05, 0.05, 0.05], [0.2, 0.05, 0.01]]).log(),
        opacity_logits=torch.tensor([0.9, 0.8, 0.5]).logit(),
        sh=sh,
    )


def random(count: int, degree: int = 0) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    sh = 0.3 * torch.randn(count, (degree + 1) ** 2, 3, generator=g).clamp(-3, 3)
    sh[:, 0] = (torch.rand(count, 3, generator=g) - 0.5) / SH_C0
    return Gaussians(
        means=torch.rand(count, 3, generator=g) - 0.5,
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=-1),
        log_scales=torch.randn(count, 3, generator=g) - 5,
        opacity_logits=3 * torch.randn(count, generator=g),
        sh=sh,
    )


def matched(found: Gaussians, expected: Gaussians) -> Gaussians:
    """Found Gaussians in the order of the expected ones, by place."""
    return found.select(torch.cdist(expected.means.double(), found.means.double()).argmin(1))


def degrees_between(a: Tensor, b: Tensor) -> Tensor:  # (N, 4), (N, 4) -> (N)
    conjugate = a.double() * torch.tensor([1, -1, -1, -1])
    difference = quaternion_multiply(conjugate, b.double())
    return torch.rad2deg(2 * torch.atan2(difference[:, 1:].norm(dim=-1), difference[:, 0].abs()))


def covariances(scales: np.ndarray, quats: np.ndarray) -> np.ndarray:  # (N, 3) deviations, (N, 4) wxyz -> (N, 3, 3)
    turned = quaternion_to_matrix(torch.from_numpy(quats.astype(np.float64))).numpy() * scales[:, None]
    return turned @ turned.swapaxes(1, 2)


# Orientation: what lies in each file, read without any of our readers.

#: Place and covariance from our frame to a file's that is Y down, and to one that is Y up.
DOWN, UP = np.diag([1.0, -1, -1]), np.eye(3)


def raw_ply(data: bytes) -> tuple[np.ndarray, ...]:
    plyfile = pytest.importorskip("plyfile")
    vertex = plyfile.PlyData.read(io.BytesIO(data))["vertex"].data
    column = lambda name, count: np.stack([vertex[f"{name}_{i}"] for i in range(count)], 1)  # noqa: E731
    place = np.stack([vertex["x"], vertex["y"], vertex["z"]], 1)
    return place, column("f_dc", 3) * SH_C0 + 0.5, np.exp(column("scale", 3)), column("rot", 4)


def raw_compressed(data: bytes) -> tuple[np.ndarray, ...]:
    plyfile = pytest.importorskip("plyfile")
    file = plyfile.PlyData.read(io.BytesIO(data))
    chunk = {p.name: float(file["chunk"][p.name][0]) for p in file["chunk"].properties}
    rows = []
    for position, rotation, scale, color in file["vertex"].data.tolist():
        thirds = lambda word: (word >> 21, word >> 11 & 1023, word & 2047)  # noqa: E731
        within = lambda value, top, key: chunk[f"min_{key}"] + value / top * (chunk[f"max_{key}"] - chunk[f"min_{key}"])  # noqa: E731
        place = [within(v, top, key) for v, top, key in zip(thirds(position), (2047, 1023, 2047), "xyz", strict=True)]
        logs = [within(v, top, f"scale_{key}") for v, top, key in zip(thirds(scale), (2047, 1023, 2047), "xyz", strict=True)]
        shade = [within(color >> shift & 255, 255, key) for shift, key in zip((24, 16, 8), "rgb", strict=True)]
        three = [((rotation >> shift & 1023) / 1023 - 0.5) * math.sqrt(2) for shift in (20, 10, 0)]
        three.insert(rotation >> 30, math.sqrt(1 - sum(v * v for v in three)))
        rows.append((place, shade, np.exp(logs), three))
    return tuple(np.array([row[i] for row in rows]) for i in range(4))


def raw_spz(data: bytes) -> tuple[np.ndarray, ...]:
    content = gzip.decompress(data)
    magic, version, count, degree, fraction, flags, _ = struct.unpack("<4sIIBBBB", content[:16])
    assert (magic, degree, flags) == (b"NGSP", 0, 0)
    cuts = np.cumsum([16, 9 * count, count, 3 * count, 3 * count, (3 if version == 2 else 4) * count])
    places, _, color, scale, rotation = (content[a:b] for a, b in pairwise(cuts))
    assert len(content) == cuts[-1]
    whole = [int.from_bytes(places[3 * i : 3 * i + 3], "little", signed=True) for i in range(3 * count)]
    quats = []
    for i in range(count):
        if version == 2:
            x, y, z = (b / 127.5 - 1 for b in rotation[3 * i : 3 * i + 3])
            quats.append([math.sqrt(max(0.0, 1 - x * x - y * y - z * z)), x, y, z])
        else:
            word = int.from_bytes(rotation[4 * i : 4 * i + 4], "little")
            three = [(word >> s & 511) / 511 * math.sqrt(0.5) * (-1 if word >> s & 512 else 1) for s in (20, 10, 0)]
            three.insert(word >> 30, math.sqrt(1 - sum(v * v for v in three)))
            quats.append([three[3], *three[:3]])
    byte = lambda part: np.frombuffer(part, np.uint8).reshape(count, 3).astype(float)  # noqa: E731
    shade = (byte(color) / 255 - 0.5) * SH_C0 / 0.15 + 0.5
    return np.array(whole).reshape(count, 3) / 2**fraction, shade, np.exp(byte(scale) / 16 - 10), np.array(quats)


def raw_splat(data: bytes) -> tuple[np.ndarray, ...]:
    rows = [struct.unpack("<6f8B", data[i : i + 32]) for i in range(0, len(data), 32)]
    table = np.array(rows, float)
    return table[:, :3], table[:, 6:9] / 255, table[:, 3:6], (table[:, 10:] - 128) / 128


@pytest.mark.parametrize(
    ("name", "raw", "tolerance"),
    [
        ("ply", raw_ply, 1e-6),
        ("compressed-ply", raw_compressed, 5e-3),
        ("spz 2", raw_spz, 5e-3),
        ("spz 3", raw_spz, 5e-3),
        ("splat", raw_splat, 5e-3),
    ],
)
def test_files_are_y_down(name: str, raw: Callable[[bytes], tuple[np.ndarray, ...]], tolerance: float) -> None:
    check_landmarks(raw(written(landmarks(), name)), DOWN, tolerance)


def test_spz_can_be_y_up() -> None:
    data = encode_splats(landmarks(), "spz", axes="rub")
    check_landmarks(raw_spz(data), UP, 5e-3)
    torch.testing.assert_close(decode_splats(data, "a.spz", up="-y").means, landmarks().means)


def check_landmarks(found: tuple[np.ndarray, ...], frame: np.ndarray, tolerance: float) -> None:
    places, colors, scales, quats = found
    expected = landmarks()
    order = [int(np.abs(places - frame @ mean).sum(1).argmin()) for mean in expected.means.numpy()]
    np.testing.assert_allclose(places[order], expected.means.numpy() @ frame.T, atol=tolerance)
    np.testing.assert_allclose(colors[order], expected.colors.numpy(), atol=tolerance)
    ours = covariances(expected.scales.numpy(), expected.quats.numpy())
    np.testing.assert_allclose(covariances(scales[order], quats[order]), frame @ ours @ frame.T, atol=0.05 * 0.2**2)


@pytest.mark.parametrize("file", MADE_ELSEWHERE)
def test_files_of_other_programs_are_read(file: str) -> None:
    if file == "version4.spz":
        needs_zstd()
    data = zlib.decompress(base64.b85decode(MADE_ELSEWHERE[file]))
    expected = landmarks(1)
    found = matched(decode_splats(data, file), expected)
    torch.testing.assert_close(found.means, expected.means, rtol=0, atol=6e-4)
    torch.testing.assert_close(found.colors, expected.colors, rtol=0, atol=5e-3)
    torch.testing.assert_close(found.opacities, expected.opacities, rtol=0, atol=5e-3)
    torch.testing.assert_close(found.log_scales, expected.log_scales, rtol=0, atol=0.04)
    torch.testing.assert_close(found.sh[:, 1:], expected.sh[:, 1:], rtol=0, atol=0.07 if "spz" in file else 0.017)
    ours, theirs = (covariances(g.scales.numpy(), g.quats.numpy()) for g in (expected, found))
    np.testing.assert_allclose(theirs, ours, atol=0.05 * 0.2**2)


def test_spz_states_its_axes_in_version_4() -> None:
    needs_zstd()
    down, up = (encode_splats(landmarks(), "spz", version=4, axes=axes) for axes in ("rdf", "rub"))
    # Type, length and value of the extension lie between header and table; "rub" is the default and has none.
    assert (down[14], down[15], down[16:20]) == (2, 5, struct.pack("<I", 44))
    assert down[32:44] == struct.pack("<III", 0xADBE0003, 4, 6)
    assert (up[14], up[16:20]) == (0, struct.pack("<I", 32))
    torch.testing.assert_close(spz.decode(down, "a.spz").means, landmarks().means)
    torch.testing.assert_close(decode_splats(down, "a.spz", up="-y").means, landmarks().means * torch.tensor([1.0, -1, -1]))
    stated_up = down[:40] + struct.pack("<I", 4) + down[44:]
    torch.testing.assert_close(spz.decode(stated_up, "a.spz").means, landmarks().means * torch.tensor([1.0, -1, -1]))
    with pytest.raises(InputError, match="coordinate system 16, which is not read"):
        spz.decode(down[:40] + struct.pack("<I", 16) + down[44:], "a.spz")


# What is rounded

#: Largest errors: place, rotation in degrees, log scale, opacity, colour, harmonics of degree 1 and up (None: left out).
ERRORS = {
    "ply": (0, 2e-4, 0, 1e-6, 1e-6, 1e-6),
    "compressed-ply": (6e-4, 0.26, 5e-3, 0.002, 0.002, 0.016),
    "spz 2": (2**-17, 12, 1 / 32, 0.002, 0.004, 1 / 256),
    "spz 3": (2**-17, 0.26, 1 / 32, 0.002, 0.004, 1 / 256),
    "spz 4": (2**-17, 0.26, 1 / 32, 0.002, 0.004, 1 / 256),
    "splat": (0, 0.9, 1e-6, 0.002, 0.002, None),
    "sog": (1e-5, 0.85, 0.035, 0.002, 0.003, 0.01),
}


@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize("name", WAYS)
def test_errors_stay_below_what_is_stated(name: str, degree: int, tmp_path: Path) -> None:
    gaussians = random(3000, degree)
    gaussians.sh[:, 1:].clamp_(-0.99, 0.99)
    file, options = way(name)
    write_splats(tmp_path / file, gaussians, **options)
    found = read_splats(tmp_path / file)
    if name in ("compressed-ply", "sog"):  # it lies in another order
        gaussians = gaussians.select(compressed_ply.place_order(gaussians.means * torch.tensor([1.0, -1, -1])))
    place, angle, scale, opacity, color, harmonic = ERRORS[name]
    assert float((found.means - gaussians.means).abs().max()) <= place
    assert float(degrees_between(found.quats, gaussians.quats).max()) <= angle
    assert float((found.log_scales - gaussians.log_scales).abs().max()) <= scale + 1e-6
    assert float((found.opacities - gaussians.opacities).abs().max()) <= opacity
    assert float((found.colors - gaussians.colors).abs().max()) <= color
    if harmonic is None:
        assert found.sh.shape[1] == 1
    else:
        assert found.sh.shape == gaussians.sh.shape
        assert float((found.sh - gaussians.sh)[:, 1:].abs().max() if degree else 0) <= harmonic + 1e-6


def test_pictures_after_a_round_trip() -> None:
    gaussians = sample_scene(3000, 2).at(0.3).detach()
    cameras, white = orbit([20.0, 200.0], 15.0, 2.35, 38.0, 96, 96), torch.ones(3)
    before = rasterize(gaussians, cameras, white).color
    assert float((before < 0.9).any(-1).float().mean()) > 0.1
    least = {"ply": 100, "compressed-ply": 55, "spz 2": 50, "spz 3": 53, "splat": 55, "sog": 55}
    for name, decibels in least.items():
        after = rasterize(decode_splats(written(gaussians, name), WAYS[name][0]), cameras, white).color
        assert -10 * math.log10(float((after - before).square().mean()) + 1e-12) >= decibels, name


@pytest.mark.parametrize("name", WAYS)
def test_what_cannot_be_written_is_refused_and_extremes_are_kept_valid(name: str) -> None:
    gaussians = landmarks()
    for key in ("means", "quats", "log_scales", "opacity_logits", "sh"):
        bad = getattr(gaussians, key).clone()
        bad.view(-1)[0] = math.nan
        with pytest.raises(InputError, match=f"holds NaN or infinite {key}"):
            written(replace(gaussians, **{key: bad}), name)
    with pytest.raises(ValueError, match="not a batch"):
        written(gaussians.map(lambda t: t[None]), name)
    extreme = replace(
        gaussians,
        quats=torch.tensor([[0.0, 0, 0, 0], [1e-30, 0, 0, 0], [1e30, 1e30, 0, 0]]),
        log_scales=torch.tensor([[-math.inf] * 3, [-200.0] * 3, [4.0] * 3]),
        opacity_logits=torch.tensor([-math.inf, math.inf, 100.0]),
        sh=gaussians.sh * 50,
    )
    found = decode_splats(written(extreme, name), WAYS[name][0])
    found = matched(found, extreme)
    check_valid(found)
    assert found.opacities[0] < 0.002
    assert (found.opacities[1:] > 0.998).all()
    assert (found.scales[:2] < 1e-4).all()
    torch.testing.assert_close(found.scales[2], torch.full((3,), math.exp(4)), rtol=0.04, atol=0)
    assert degrees_between(found.quats[:2], torch.tensor([[1.0, 0, 0, 0]] * 2)).max() < 1
    with pytest.raises(InputError, match="farther than"):
        encode_splats(replace(gaussians, means=gaussians.means * 1e7), "spz")


# Damaged files


def check_valid(gaussians: Gaussians) -> None:
    for value in gaussians.tensors().values():
        assert value.isfinite().all()
    assert (gaussians.quats.norm(dim=-1) - 1).abs().max() < 1e-4


def samples() -> dict[str, bytes]:
    """A file of each kind, of 40 Gaussians with harmonics where they can be."""
    files = {WAYS[name][0].replace("a.", f"{name}."): written(random(40, 1), name) for name in WAYS if name != "spz 4"}
    with suppress(pytest.skip.Exception):
        files["spz 4.spz"] = written(random(40, 1), "spz 4")
    files |= {f"level {i}.ksplat": made_ksplat(random(40, 1), i) for i in range(3)}
    return files


def made_ksplat(gaussians: Gaussians, level: int, buckets: int = 3) -> bytes:
    """A .ksplat of two sections of 20 Gaussians each: full buckets of 8, and one partly filled."""
    content, headers = b"", b""
    place = gaussians.means.numpy() * [1, -1, -1]
    half = "<f4" if level == 0 else "<f2"
    for rows in (slice(0, 20), slice(20, 40)):
        centres = np.array([place[rows][8 * i : 8 * i + 8].mean(0) for i in range(3)], "<f4")
        fields = [("mean", "<f4" if level == 0 else "<u2", 3), ("scale", half, 3), ("quat", half, 4), ("color", "u1", 4)]
        records = np.zeros(20, [*fields, ("sh", "u1" if level == 2 else half, 9)])
        offsets = place[rows] - centres[np.arange(20) // 8]
        records["mean"] = place[rows] if level == 0 else np.rint(offsets / (2.0 / 2 / 32767)) + 32767
        records["scale"] = gaussians.scales[rows]
        records["quat"] = [1, 0, 0, 0]
        records["color"] = np.arange(80).reshape(20, 4) + 100
        values = gaussians.sh[rows, 1:].numpy().swapaxes(1, 2).reshape(20, 9)
        records["sh"] = np.rint((values + 1.5) / 3 * 255) if level == 2 else values
        bucketed = b"" if level == 0 else struct.pack("<I", 4) + centres[:buckets].tobytes()
        part = struct.pack("<IIII", 20, 20, 8, buckets) if level else struct.pack("<IIII", 20, 20, 0, 0)
        part += struct.pack("<fHHII", 2.0, 12 if level else 0, 0, 0, 0) + struct.pack(
            "<II", 2 if level else 0, 1 if level else 0
        )
        headers += (part + struct.pack("<H", 1)).ljust(1024, b"\0")
        content += bucketed + records.tobytes()
    head = struct.pack("<BBHIIIIHH", 0, 1, 0, 2, 2, 40, 40, level, 0).ljust(4096, b"\0")
    return head + headers + content


@pytest.mark.parametrize("level", [0, 1, 2])
def test_ksplat_with_sections_and_buckets(level: int) -> None:
    gaussians = random(40, 1)
    found = ksplat.decode(made_ksplat(gaussians, level), "a.ksplat")
    torch.testing.assert_close(found.means, gaussians.means, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.log_scales, gaussians.log_scales, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.colors[:, 0], (torch.arange(40).remainder(20) * 4 + 100) / 255, rtol=0, atol=1e-6)
    signs = torch.tensor([-1.0, -1.0, 1.0])[:, None]  # of the harmonics ~ y, z, x under half a turn about x
    torch.testing.assert_close(found.sh[:, 1:] * signs, gaussians.sh[:, 1:], rtol=0, atol=0.006)


def test_damaged_files_are_refused_or_read_as_something_valid() -> None:
    refused, read, message = 0, 0, ""
    for file, data in samples().items():
        assert len(decode_splats(data, file)) == 40
        generator = np.random.default_rng(0)
        cuts = [*range(0, min(len(data), 64), 5), *generator.integers(0, len(data), 25), len(data) - 1]
        broken = [data[:cut] for cut in cuts]
        start = 4096 if file.endswith("ksplat") else 0  # a .ksplat's headers are mostly unused
        for i in range(60):
            changed = bytearray(data)
            where = generator.integers(0, 64) + (start if i % 2 else 0) if i % 3 else generator.integers(0, len(data))
            changed[where] = generator.integers(256)
            broken.append(bytes(changed))
        for content in broken:
            try:
                found = decode_splats(content, file)
            except InputError as error:
                message = str(error)
                refused += 1
            else:
                check_valid(found)
                read += 1
        assert message.startswith(file)
        assert "\n" not in message
    assert refused > 300
    assert read > 100


def spz_header(count: int, version: int = 3, degree: int = 0, fraction: int = 12) -> bytes:
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, fraction, 0, 0)


def spz4(count: int, streams: list[tuple[bytes, int]]) -> bytes:
    table = b"".join(struct.pack("<QQ", len(content), size) for content, size in streams)
    header = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, count, 0, 12, 0, len(streams), 32)
    return header + table + b"".join(content for content, _ in streams)


def refusals() -> dict[str, tuple[str, bytes, str]]:
    compressed, good = written(random(40), "compressed-ply"), written(random(40), "ply")
    chunk = struct.pack("<I", 40)
    ksplat_ = made_ksplat(random(40, 1), 1)
    return {
        "empty ply": ("a.ply", b"", "not a ply"),
        "empty spz": ("a.spz", b"", "not a .spz"),
        "empty splat": ("a.splat", b"", "holds no Gaussians"),
        "empty ksplat": ("a.ksplat", b"", "cut short by 4096 bytes"),
        "no ply": ("a.ply", b"glTF" + good, "not a ply"),
        "ply as spz": ("a.spz", b"solid", "not a .spz"),
        "unknown": ("a.bin", b"\0" * 64, "not a splat file that is read"),
        "sog": ("a.sog", b"PK\3\4", "not a readable .zip of SOG pictures"),
        "gzip of something": ("a.spz", gzip.compress(b"hello" * 9), "gzip, but not of a .spz"),
        "gzip cut": ("a.spz", written(random(40), "spz 3")[:-300], "cut short|damaged"),
        "no Gaussians": ("a.spz", gzip.compress(spz_header(0)), "holds no Gaussians"),
        "no Gaussians in compressed": ("a.ply", compressed.replace(b"vertex 40", b"vertex 0"), "holds no Gaussians"),
        "absurd count": ("a.spz", gzip.compress(spz_header(2**32 - 1)), "more than 16777216"),
        "absurd ply": ("a.ply", good.replace(b"vertex 40", b"vertex 999999999999999999"), "cut short"),
        "absurd compressed": ("a.ply", compressed.replace(b"chunk 1", b"chunk 999999999999"), "cut short"),
        "too few chunks": ("a.ply", compressed.replace(b"chunk 1", b"chunk 0"), "chunks do not fit"),
        "promises": ("a.spz", gzip.compress(spz_header(10_000_000)), "what .* bytes cannot hold"),
        "bomb": ("a.spz", gzip.compress(spz_header(10_000_000) + bytes(100_000_000), 1), "what .* bytes cannot hold"),
        "short": ("a.spz", gzip.compress(spz_header(1000) + bytes(100)), "cut short"),
        "version": ("a.spz", gzip.compress(spz_header(1, 9) + bytes(99)), "version 9 of .spz"),
        "version 4 in gzip": ("a.spz", gzip.compress(spz_header(1, 4) + bytes(99)), "version 4 of .spz"),
        "degree": ("a.spz", gzip.compress(spz_header(1, 3, 200) + bytes(99)), "damaged"),
        "fraction": ("a.spz", gzip.compress(spz_header(1, 3, 0, 99) + bytes(99)), "damaged"),
        "splat": ("a.splat", bytes(33), "32-byte"),
        "splat of NaN": ("a.splat", np.full(8, np.nan, "<f4").tobytes(), "all its Gaussians hold NaN"),
        "ksplat of zeros": ("a.ksplat", bytes(9000), "version 0.1"),
        "ksplat cut": ("a.ksplat", ksplat_[:-7], "cut short by 7 bytes"),
        "ksplat of many sections": ("a.ksplat", ksplat_[:4] + b"\xff" * 4 + ksplat_[8:], "cut short"),
        "ksplat of many": ("a.ksplat", ksplat_[:4096] + b"\xff" * 4 + ksplat_[4100:], "garbled section"),
        "ksplat with room": ("a.ksplat", ksplat_[:4096] + chunk + b"\xff" * 4 + ksplat_[4104:], "cut short"),
        "ksplat without buckets": ("a.ksplat", made_ksplat(random(40, 1), 1, buckets=2), "outside its buckets"),
    }


@pytest.mark.parametrize("case", refusals())
def test_bad_files_are_refused_within_memory(case: str, tmp_path: Path) -> None:
    file, data, message = refusals()[case]
    (tmp_path / file).write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=rf"{file}: .*({message})") as caught:
            read_splats(tmp_path / file)
        assert tracemalloc.get_traced_memory()[1] < 40 * len(data) + 1_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_what_follows_a_gzip_stream_s_gaussians_is_not_unpacked() -> None:
    data = gzip.compress(spz_header(1000) + bytes(100_000_000), 1)
    tracemalloc.start()
    found = decode_splats(data, "a.spz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1000
    assert peak < 3 * len(data)


def test_zstd_bombs_are_refused_within_memory() -> None:
    needs_zstd()
    zstd = spz._zstd("test")
    sizes = [9_000, 1_000, 3_000, 3_000, 4_000]
    bomb = zstd.compress(bytes(50_000_000))
    streams = [(zstd.compress(bytes(size)), size) for size in sizes]
    check_valid(decode_splats(spz4(1000, streams), "a.spz"))
    for bad in (
        [(bomb, 9_000), *streams[1:]],  # holds more than it states: cut off, which leaves a sound stream of zeros
        [(bomb, 50_000_000), *streams[1:]],
        [(b"nonsense", 9_000), *streams[1:]],
        [(streams[0][0][:-3], 9_000), *streams[1:]],
        streams[:3],
    ):
        tracemalloc.start()
        try:
            decode_splats(spz4(1000, bad), "a.spz")
        except InputError as error:
            assert str(error).startswith("a.spz: ")  # noqa: PT017
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 2_000_000


def test_version_4_without_zstd_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = zlib.decompress(base64.b85decode(MADE_ELSEWHERE["version4.spz"]))

    for module in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    for action in (lambda: encode_splats(landmarks(), "spz", version=4), lambda: decode_splats(data, "a.spz")):
        with pytest.raises(InputError, match=r"needs zstd, which Python 3\.14 or `pip install backports\.zstd` brings"):
            action()


def test_names_and_formats(tmp_path: Path) -> None:
    endings = {"a.ply": "ply", "A.SPZ": "spz", "x.compressed.ply": "compressed-ply", "b.splat": "splat"}
    assert {name: format_of(name) for name in endings} == endings
    for bad in ("a.ksplat", "a", "ply"):
        with pytest.raises(InputError, match="no splat format that is written ends so"):
            write_splats(tmp_path / bad, landmarks())
    with pytest.raises(InputError, match="obj: no splat format"):
        write_splats(tmp_path / "a.ply", landmarks(), format="obj")
    with pytest.raises(InputError, match="no such file, check the path of the splat file"):
        read_splats(tmp_path / "gone.spz")
    with pytest.raises(ValueError, match="version 1"):
        encode_splats(landmarks(), "spz", version=1)
    # Content wins over the name.
    (tmp_path / "misnamed.splat").write_bytes(written(landmarks(), "ply"))
    torch.testing.assert_close(read_splats(tmp_path / "misnamed.splat").means, landmarks().means)


def test_older_and_finer_spz_are_read() -> None:
    expected = landmarks()
    content = bytearray(gzip.decompress(encode_splats(expected, "spz", version=2)))
    places = (expected.means * torch.tensor([1.0, -1, -1])).numpy().astype("<f2").tobytes()
    first = bytes(content[:4]) + struct.pack("<I", 1) + bytes(content[8:16]) + places + bytes(content[16 + 27 :])
    torch.testing.assert_close(decode_splats(gzip.compress(first), "a.spz").means, expected.means, rtol=0, atol=1e-3)
    # Far away ones take bits from the fraction.
    far = replace(expected, means=expected.means * 1000)
    data = encode_splats(far, "spz")
    assert gzip.decompress(data)[13] == 13
    torch.testing.assert_close(decode_splats(data, "a.spz").means, far.means, rtol=0, atol=2**-14)
    # Harmonics of degree 4 are counted, and left out beyond degree 3.
    fourth = gzip.decompress(encode_splats(expected, "spz"))
    fourth = fourth[:12] + b"\4" + fourth[13:] + bytes([128]) * (3 * 72)
    assert decode_splats(gzip.compress(fourth), "a.spz").sh.shape == (3, 16, 3)


# Sequences


@pytest.fixture(scope="module")
def scene() -> Scene4D:
    return sample_scene(300, 3)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("zipped", [False, True])
def test_sequence(scene: Scene4D, format: str, zipped: bool, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    target = tmp_path / ("walk.zip" if zipped else "walk")
    files = write_splat_sequence(target, scene, 6, format=format, progress=lambda *at: told.append(at))
    names = [f"frame{i:04}{FORMATS[format]}" for i in range(6)]
    assert told == [(i + 1, 6) for i in range(6)]
    if zipped:
        assert files == [target]
        with zipfile.ZipFile(target) as archive:
            assert archive.namelist() == [*names, "manifest.json"]
            packed = {info.compress_type for info in archive.infolist()[:6]}
            assert packed == {zipfile.ZIP_DEFLATED if format in ("ply", "splat") else zipfile.ZIP_STORED}
            content = {name: archive.read(name) for name in archive.namelist()}
    else:
        assert files == [target / name for name in names]
        content = {path.name: path.read_bytes() for path in target.iterdir()}
    assert list(tmp_path.iterdir()) == [target]
    manifest = json.loads(content.pop("manifest.json"))
    pattern = f"frame{{frame:04}}{FORMATS[format]}"
    assert manifest["frames"] == {"pattern": pattern, "start": 0, "count": 6}
    assert {key: manifest[key] for key in ("version", "title", "loop", "format", "gaussians")} == {
        "version": 1, "title": "walk", "loop": True, "format": format, "gaussians": 300,
    }  # fmt: skip
    assert manifest["fps"] == scene.fps * 6 / 3
    frames = [decode_splats(content[name], name) for name in names]
    # Each Gaussian keeps its place in the order: its colour, and its way through the frames.
    first = scene.at(0.0)
    order = torch.cdist(frames[0].means, first.means).argmin(1)
    assert order.unique().numel() == 300
    for i, frame in enumerate(frames):
        expected = scene.at(i / 6).select(order)
        torch.testing.assert_close(frame.means, expected.means, rtol=0, atol=1e-3)
        torch.testing.assert_close(frame.colors, expected.colors.clamp(0, 1), rtol=0, atol=5e-3)


@pytest.mark.parametrize("target", ["walk", "walk.zip"])
def test_an_interrupted_sequence_leaves_nothing(scene: Scene4D, target: str, tmp_path: Path) -> None:
    def stop(done: int, count: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_splat_sequence(tmp_path / target, scene, format="spz", progress=stop)
    with pytest.raises(InputError, match="gif: no splat format"):
        write_splat_sequence(tmp_path / target, scene, format="gif")
    assert list(tmp_path.iterdir()) == []
