"""Splat files in the player's page: what Python's writers wrote is read in a headless Chromium and compared value by value."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchor4d.bench.moving import moving_sample
from anchor4d.bench.player import chromium, serve
from anchor4d.core.files import InputError
from anchor4d.core.gaussians import SH_C0, Gaussians, half_turn
from anchor4d.core.io.gltf_splats import write_splat_glb, write_splat_glb_frames
from anchor4d.core.io.splats import decode_splats, encode_splats, write_splat_sequence
from anchor4d.core.packages import problem
from anchor4d.core.render import rasterize
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.scene.views import placement, scene_cameras

SIZE = 128

#: In the page: read(kind, name) gives a file's Gaussians; open_(sources) plays what openSource opens, shoot draws it.
HELPERS = """async () => {
  const names = ["files", "renderer", "ply", "spz", "sog", "zip", "glb", "zstd"];
  const modules = await Promise.all(names.map((name) => import(`/player/${name}.mjs`)));
  const [files, { Renderer }, ply, spz, sog, zip, glb, zstd] = modules;
  const bytes = async (name) => new Uint8Array(await (await fetch(`/data/${name}`)).arrayBuffer());
  const text = (data) => {
    const raw = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    let out = "";
    for (let i = 0; i < raw.length; i += 32768) out += String.fromCharCode(...raw.subarray(i, i + 32768));
    return btoa(out);
  };
  const readers = {
    ply: async (data, name) => ply.readPly(data, name),
    splat: async (data, name) => ply.readSplat(data, name),
    spz: (data, name) => spz.readSpz(new Blob([data]), name),
    glb: async (data, name) => (await glb.readGlb(new Blob([data]), name)).frames[0],
    sog: async (data, name) => {
      const members = await zip.openZip(new Blob([data]), name);
      return sog.readSog((entry) => members.get(entry).read(), name);
    },
  };
  window.read = async (kind, name) => {
    try {
      const found = await readers[kind](await bytes(name), name);
      const parts = ["means", "quats", "logScales", "opacities", "constant", "rest"];
      return { waves: found.waves, ...Object.fromEntries(parts.map((part) => [part, text(found[part])])) };
    } catch (error) { return error.message; }
  };
  window.open_ = (source) => new Promise((resolve) => {
    window.told = [];
    window.renderer?.dispose();
    window.renderer = new Renderer(document.createElement("canvas"));
    files.openSource(source, {
      header: (clip) => { window.clip = clip; renderer.setClip(0, clip); },
      frame: (index) => { renderer.frameArrived(0, index); told.push(index); },
      done: () => resolve("done"),
      error: (error) => resolve(error.message),
    }).catch(() => {});
  });
  window.shoot = async (shot, size) => {
    renderer.resize(size, size);
    return await renderer.drawSorted({ time: [0, 0], ...shot }) ? text(renderer.pixels().data) : null;
  };
  window.file = async (name, as = name) => new File([await bytes(name)], as);
  window.collection = async (title, ...list) => files.Collection.of(title, await Promise.all(list.map((name) => file(name))));
  window.unpacked = async (name, size) => {
    try { return text(zstd.unzstd(await bytes(name), size)); } catch (error) { return error.message; }
  };
  Object.assign(window, { files });
}"""


class Page:
    """The page with its helpers, and the server's files."""

    def __init__(self, page: Any, files: dict[str, Any]) -> None:
        self.page, self.files = page, files

    def read(self, kind: str, data: bytes, name: str = "file") -> Any:
        self.files[name] = data
        found = self.page.evaluate("([kind, name]) => read(kind, name)", [kind, name])
        if isinstance(found, str):
            return found

        def floats(part: str) -> torch.Tensor:
            return torch.from_numpy(np.frombuffer(base64.b64decode(found[part]), "<f4").copy())

        constant = floats("constant").reshape(-1, 1, 3)
        sh = torch.cat([constant, floats("rest").reshape(len(constant), found["waves"], 3)], 1)
        opacities = floats("opacities").clamp(1e-6, 1 - 1e-6)
        return Gaussians(floats("means").reshape(-1, 3), floats("quats").reshape(-1, 4), floats("logScales").reshape(-1, 3),
                         opacities.logit(), sh)  # fmt: skip

    def opens(self, source: str) -> str:
        return self.page.evaluate(f"async () => open_(await ({source}))")

    def shoot(self, camera: Any, time: float = 0.0) -> np.ndarray:  # (H, W, 4) premultiplied
        pose, K = camera.world_to_camera.reshape(16), camera.K.reshape(3, 3)
        lens = {k: float(K[i]) for k, i in {"fx": (0, 0), "fy": (1, 1), "cx": (0, 2), "cy": (1, 2)}.items()}
        shot = {"camera": {"worldToCamera": pose.tolist(), **lens}, "time": [time, 0]}
        found = self.page.evaluate("([shot, size]) => shoot(shot, size)", [shot, SIZE])
        return np.frombuffer(base64.b64decode(found), np.uint8).reshape(SIZE, SIZE, 4) / 255


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    files: dict[str, Any] = {}
    try:
        with chromium() as browser, serve(files) as url:
            opened = browser.new_page()
            opened.goto(url)
            opened.evaluate(HELPERS)
            yield Page(opened, files)
    except InputError as error:
        pytest.skip(str(error))


def sample(count: int = 700, degree: int = 0) -> Gaussians:
    gaussians = moving_sample(count, 2).gaussians
    generator = torch.Generator().manual_seed(degree)
    rest = 0.2 * torch.randn(count, (degree + 1) ** 2 - 1, 3, generator=generator)
    return replace(gaussians, sh=torch.cat([gaussians.sh, rest.clamp(-0.9, 0.9)], 1))


def apart(a: Gaussians, b: Gaussians) -> dict[str, float]:
    """Largest differences: world units, degrees, natural logarithms, fractions, harmonics."""
    p, q = (torch.nn.functional.normalize(each.quats.double(), dim=-1) for each in (a, b))
    off = torch.minimum((p - q).norm(dim=-1), (p + q).norm(dim=-1))
    return {
        "position": float((a.means - b.means).abs().max()),
        "rotation": float(torch.rad2deg(4 * (off / 2).asin()).max()),
        "log_scale": float((a.log_scales - b.log_scales).abs().max()),
        "opacity": float((a.opacities - b.opacities).abs().max()),
        "sh": float((a.sh - b.sh).abs().max()),
    }


#: Kind of reader, format, its options, and the format's own largest errors as its writer states them.
KINDS = {
    "ply": ("ply", "ply", {}, (1e-6, 1e-3, 1e-6, 1e-6, 1e-6)),
    "splat": ("splat", "splat", {}, (1e-6, 0.95, 1e-5, 0.002, 0.002 / SH_C0)),
    "spz 2": ("spz", "spz", {"version": 2}, (2**-17 * 1.01, 12.0, 1 / 32, 0.002, 0.004 / 0.15)),
    "spz 3": ("spz", "spz", {"version": 3}, (2**-17 * 1.01, 0.25, 1 / 32, 0.002, 0.004 / 0.15)),
    "spz 4": ("spz", "spz", {"version": 4}, (2**-17 * 1.01, 0.25, 1 / 32, 0.002, 0.004 / 0.15)),
}


@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize("kind", [*KINDS, "sog", "compressed-ply"])
def test_reads_what_the_writer_was_given(page: Page, kind: str, degree: int):
    gaussians = sample(degree=degree)
    if kind == "spz 4" and problem("backports.zstd") and problem("compression.zstd"):
        pytest.skip("no zstd")
    if kind in KINDS:
        reader, format, options, limits = KINDS[kind]
        data = encode_splats(gaussians, format, **options)
        found = page.read(reader, data)
        assert not isinstance(found, str), found
        if format == "splat":
            gaussians = replace(gaussians, sh=gaussians.sh[:, :1].clamp(-0.5 / SH_C0, 0.5 / SH_C0))
        for (name, value), limit in zip(apart(found, gaussians).items(), limits):
            assert value <= limit, (name, value)
    else:
        reader, data = ("ply" if kind == "compressed-ply" else "sog"), encode_splats(gaussians, kind)
        found = page.read(reader, data)
        assert not isinstance(found, str), found
    # What Python reads is the same to the floats; bytes at the ends of opacity stand for what has a logit there.
    there = decode_splats(data, f"x.{reader}")
    for name, value in apart(found, there).items():
        assert value <= {"rotation": 0.01, "opacity": 0.001}.get(name, 2e-5), (name, value)


def test_spz_that_states_its_axes(page: Page):
    gaussians = sample(200, degree=2)
    stated = [struct.pack("<III", 0xADBE0003, 4, axes) for axes in (6, 4, 9)]
    data = encode_splats(gaussians, "spz", version=4)
    assert data.count(stated[0]) == 1
    down, up, other = (page.read("spz", data.replace(stated[0], axes)) for axes in stated)
    assert apart(down, gaussians)["position"] < 1e-5
    assert max(apart(up, half_turn(down)).values()) < 0.01
    assert "coordinate system 9" in other


def text_ply(gaussians: Gaussians) -> bytes:
    data = encode_splats(gaussians, "ply")
    end = data.index(b"end_header\n") + len(b"end_header\n")
    rows = np.frombuffer(data[end:], "<f4").reshape(len(gaussians), -1)
    head = data[:end].replace(b"binary_little_endian", b"ascii").replace(b"ply\n", b"ply\ncomment by hand\n", 1)
    return head + "\n".join(" ".join(f"{value:.9g}" for value in row) for row in rows).encode()


def test_reads_other_kinds_of_ply(page: Page):
    gaussians = sample(300, degree=1)
    plain = encode_splats(gaussians, "ply")
    end = plain.index(b"end_header\n") + len(b"end_header\n")
    rows = np.frombuffer(plain[end:], "<f4").reshape(300, -1)
    names = [line.split()[-1].decode() for line in plain[:end].splitlines() if line.startswith(b"property")]
    swapped = plain[:end].replace(b"binary_little_endian", b"binary_big_endian") + rows.astype(">f4").tobytes()
    doubles = plain[:end].replace(b"property float", b"property double") + rows.astype("<f8").tobytes()
    before = b"element camera 2\nproperty int id\nproperty uchar kind\nelement vertex"
    behind = plain[:end].replace(b"element vertex", before) + bytes(10) + plain[end:]
    for data in (text_ply(gaussians), swapped, doubles, behind):
        assert max(apart(page.read("ply", data), gaussians).values()) < 1e-3
    # Two scales: flat Gaussians. Red, green and blue: the constant colour.
    flat = [k for k, name in enumerate(names) if name != "scale_2"]
    head = plain[:end].replace(b"property float scale_2\n", b"")
    found, there = page.read("ply", head + rows[:, flat].tobytes()), decode_splats(head + rows[:, flat].tobytes(), "x.ply")
    assert max(apart(found, there).values()) < 1e-3
    kept = [k for k, name in enumerate(names) if not name.startswith("f_")]
    head = b"\n".join(line for line in plain[:end].splitlines() if b" f_" not in line)
    head = head.replace(b"end_header", b"property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n")
    records = b"".join(row.tobytes() + bytes([10, 128, 250]) for row in rows[:, kept])
    assert max(apart(page.read("ply", head + records), decode_splats(head + records, "x.ply")).values()) < 1e-3


@pytest.mark.parametrize("degree", [0, 2])
def test_reads_glb(page: Page, tmp_path: Path, degree: int):
    gaussians = sample(degree=degree)
    write_splat_glb(tmp_path / "x.glb", gaussians)
    assert max(apart(page.read("glb", (tmp_path / "x.glb").read_bytes()), gaussians).values()) < 2e-3


def drawn(gaussians: Gaussians, camera: Any) -> np.ndarray:
    with torch.no_grad():
        render = rasterize(gaussians, camera.reshape(1))
    return torch.cat([render.color[0].clamp(0, 1), render.alpha[0][..., None]], -1).numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * math.log10(float(np.square(a - b).mean()) + 1e-12)


@pytest.mark.parametrize("suffix", ["ply", "spz", "splat", "sog", "glb"])
def test_draws_a_file_as_the_rasteriser_does(page: Page, tmp_path: Path, suffix: str):
    gaussians = sample(3000, degree=0 if suffix == "splat" else 2)
    if suffix == "glb":
        write_splat_glb(tmp_path / "x.glb", gaussians)
        data, read = (tmp_path / "x.glb").read_bytes(), gaussians
    else:
        data = encode_splats(gaussians, suffix)
        read = decode_splats(data, f"x.{suffix}")
    page.files[f"x.{suffix}"] = data
    for source in (f"'/data/x.{suffix}'", f"file('x.{suffix}')"):
        assert page.opens(source) == "done"
        scene = Scene4D(read)
        cameras = scene_cameras(scene, [0.0, 130.0], 15.0, SIZE)
        for view in range(2):
            assert psnr(drawn(read, cameras[view]), page.shoot(cameras[view])) > 42, (source, view)
    scale, center = placement(scene)
    found = page.page.evaluate("() => clip.header.placement")
    assert found["scale"] == pytest.approx(scale, rel=1e-2) and found["center"] == pytest.approx(center.tolist(), abs=1e-2)


@pytest.mark.parametrize("changing", ["motion", "shape", "color"])
@pytest.mark.parametrize("kind", ["zip", "files"])
def test_plays_a_sequence(page: Page, tmp_path: Path, changing: str, kind: str):
    scene = moving_sample(2500, 4, changing=changing)
    if kind == "zip":
        write_splat_sequence(tmp_path / "x.zip", scene)
        page.files["x.zip"] = (tmp_path / "x.zip").read_bytes()
        assert page.opens("file('x.zip')") == "done"
    else:
        paths = write_splat_sequence(tmp_path / "x", scene, format="spz")
        page.files |= {path.name: path.read_bytes() for path in [*paths, tmp_path / "x" / "manifest.json"]}
        names = ", ".join(f"'{path.name}'" for path in [*reversed(paths), tmp_path / "x" / "manifest.json"])
        assert page.opens(f"collection('x', {names})") == "done"
    header = page.page.evaluate("() => clip.header")
    assert (header["frames"], header["fps"], header["loop"], header["continuous"]) == (4, scene.fps, True, True)
    assert [words for _, words, _ in header["layout"]] == [4, 1, 1][: 3 if changing == "color" else 2]
    camera = scene_cameras(scene, 35.0, 10.0, SIZE)
    for time in (0, 2):
        ours = drawn(scene.at(float(scene.taus[time])), camera)
        assert psnr(ours, page.shoot(camera, time)) > (42 if kind == "zip" else 36), time


def test_plays_the_frames_of_a_glb(page: Page, tmp_path: Path):
    scene = moving_sample(800, 3)
    write_splat_glb_frames(tmp_path / "x.glb", scene)
    page.files["x.glb"] = (tmp_path / "x.glb").read_bytes()
    assert page.opens("file('x.glb')") == "done"
    assert page.page.evaluate("() => [clip.frames, clip.fps, clip.loop]") == [3, scene.fps, True]
    camera = scene_cameras(scene, 35.0, 10.0, SIZE)
    assert psnr(drawn(scene.at(float(scene.taus[2])), camera), page.shoot(camera, 2)) > 42


def test_numbered_files_play_in_the_order_of_their_numbers(page: Page):
    frames = [replace(sample(50), means=sample(50).means + k) for k in range(12)]
    page.files |= {f"f{k}.ply": encode_splats(frame, "ply") for k, frame in enumerate(frames)}
    page.files |= {"readme.txt": b"hello", "f1.spz": encode_splats(frames[0], "spz")}
    assert (
        page.opens(
            "collection('f', 'f11.ply', 'f2.ply', 'f1.spz', 'readme.txt', ...[0,1,3,4,5,6,7,8,9,10].map((k) => `f${k}.ply`))"
        )
        == "done"
    )
    places = page.page.evaluate("() => clip.poses.map((pose) => clip.low[0] + pose[0] * clip.step[0])")
    assert np.diff(places) == pytest.approx(np.ones(11), abs=1e-3)


def test_unpacked_and_nested_sog(page: Page, tmp_path: Path):
    data = encode_splats(sample(500), "sog")
    nested = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(nested, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in archive.namelist():
            page.files[entry] = archive.read(entry)
            packed.writestr(f"creature/{entry}", archive.read(entry))
        names = ", ".join(f"'{entry}'" for entry in archive.namelist())
    page.files["nested.sog"] = nested.getvalue()
    for source in (f"collection('creature', {names})", "file('nested.sog')"):
        assert page.opens(source) == "done"
        assert page.page.evaluate("() => clip.count") == 500


def test_gaussians_that_are_none_are_left_out(page: Page):
    gaussians = sample(100)
    rows = bytearray(encode_splats(gaussians, "ply"))
    start = rows.index(b"end_header\n") + len(b"end_header\n")
    each = (len(rows) - start) // 100
    rows[start + 5 * each : start + 5 * each + 4] = np.float32("nan").tobytes()
    rows[start + 7 * each + 4 : start + 7 * each + 8] = np.float32(1e30).tobytes()
    page.files["x.ply"] = bytes(rows)
    assert page.opens("file('x.ply')") == "done"
    assert page.page.evaluate("() => [clip.count, clip.left]") == [98, 2]


def webp(width: int, height: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGBA", (width, height)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return file.getvalue()


def test_what_is_damaged_gives_one_line_that_names_the_file(page: Page):
    gaussians = sample(300, degree=1)
    ply, spz, sog = (encode_splats(gaussians, format) for format in ("ply", "spz", "sog"))
    spz4 = encode_splats(gaussians, "spz", version=4)
    many = bytearray(gzip.decompress(spz))
    many[8:12] = (1 << 23).to_bytes(4, "little")
    with zipfile.ZipFile(io.BytesIO(sog)) as archive:
        parts = {name.replace(".", "__"): archive.read(name) for name in archive.namelist()}
    meta = json.loads(parts["meta__json"])
    wide = bytearray(parts["quats__webp"])
    wide[21:25] = (16383 | 16383 << 14).to_bytes(4, "little")
    cases = {
        "cut.ply": (ply[:-40], "cut short by 40"),
        "mesh.ply": (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n", "not of 3D Gaussians"),
        "promise.ply": (ply.replace(b"element vertex 300", b"element vertex 99999999999"), "cut short"),
        "none.ply": (ply.replace(b"element vertex 300", b"element vertex 0"), "no Gaussians"),
        "strange.ply": (ply.replace(b"binary_little_endian", b"binary_middle_endian"), "encoding"),
        "headless.ply": (b"ply\n" + bytes(1000), "not a .ply"),
        "cut.spz": (spz[:-200], "damaged .spz"),
        "many.spz": (gzip.compress(bytes(many)), "cannot hold"),
        "gzip.spz": (gzip.compress(bytes(100)), "no .spz"),
        "old.spz": (gzip.compress(gzip.decompress(spz)[:4] + b"\x01" + gzip.decompress(spz)[5:]), "version 1 of .spz"),
        "cut4.spz": (spz4[:-100], "damaged .spz"),
        "flipped4.spz": (spz4[:200] + bytes(200) + spz4[400:], "damaged .spz"),
        "odd.splat": (bytes(70), "32-byte"),
        "empty.splat": (b"", "no Gaussians"),
        "cut.sog": (sog[:-30], "damaged .zip"),
        "bare.zip": (zipped(readme__txt=b"hello"), "no splat files"),
        "lacks.sog": (zipped(meta__json=parts["meta__json"]), "lacks"),
        "garbled.sog": (zipped(**parts | {"meta__json": b"{"}), "garbled"),
        "later.sog": (zipped(**parts | {"meta__json": json.dumps(meta | {"version": 3}).encode()}), "version 3 of SOG"),
        "count.sog": (zipped(**parts | {"meta__json": json.dumps(meta | {"count": 1 << 23}).encode()}), "fewer than"),
        "wide.sog": (zipped(**parts | {"quats__webp": bytes(wide)}), "too large"),
        "text.sog": (zipped(**parts | {"quats__webp": b"hello" * 20}), "no WebP"),
        "small.sog": (zipped(**parts | {"quats__webp": webp(4, 4)}), "fewer than 300"),
        "manifest.zip": (zipped(manifest__json=b"[1]", a__ply=ply), "manifest.json is garbled"),
        "gone.zip": (zipped(manifest__json=json.dumps({"frames": {"pattern": "{frame}.ply", "start": 0, "count": 2}}).encode(),
                            a__ply=ply), "is missing"),
        "frames.zip": (zipped(a1__ply=ply, a2__ply=ply[:-7]), "cut short"),
        "uneven.zip": (zipped(a1__ply=ply, a2__ply=encode_splats(sample(299), "ply")), "300 and 299 Gaussians"),
        "x.glb": (b"glTF" + bytes(40), "damaged .glb"),
        "x.txt": (b"hello", "choose .a4d"),
        "x.a4d": (b"hello there, hello", "not a play stream"),
        "cut.a4d": (b"A4DPLAY\x01" + bytes(2), "breaks off"),
    }  # fmt: skip
    for name, (data, message) in cases.items():
        page.files[name] = data
        found = page.opens(f"file('{name}')")
        assert message in found and name in found and "\n" not in found, (name, found)
        assert page.page.evaluate("() => told") == [], name
    # Random damage never does worse than a line.
    generator = np.random.default_rng(0)
    for suffix, data in {"ply": ply, "spz": spz, "sog": sog, "4.spz": spz4}.items():
        for _ in range(12):
            broken = bytearray(data)
            for place in generator.integers(0, len(data), 4):
                broken[place] ^= 1 << int(generator.integers(0, 8))
            page.files[f"random.{suffix}"] = bytes(broken)
            found = page.opens(f"file('random.{suffix}')")
            assert found == "done" or ("random." in found and "\n" not in found), found


def test_zstd(page: Page):
    """Every kind of block: raw, repeated, with predefined, described and repeated tables, one and four streams of literals."""
    zstd = pytest.importorskip("backports.zstd")
    generator = np.random.default_rng(0)
    source = Path(__file__).read_bytes()
    cases = [b"", b"a", bytes(70_000), generator.bytes(3000), source, source[:90], source * 8,
             generator.normal(0, 9, 40_000).astype(np.int8).tobytes(), generator.normal(0, 999, 9000).astype("<i4").tobytes(),
             np.cumsum(generator.normal(0, 3, 9000)).astype("<i4").tobytes()]  # fmt: skip
    for index, raw in enumerate(cases):
        for level in (-5, 1, 5, 19):
            packed = zstd.compress(raw, level)
            page.files["x.zst"] = packed
            read = "([name, size]) => unpacked(name, size)"
            assert base64.b64decode(page.page.evaluate(read, ["x.zst", len(raw)])) == raw, (index, level)
            assert page.page.evaluate(read, ["x.zst", len(raw) + 1]) == "damaged"
            page.files["x.zst"] = packed[:-5]
            assert page.page.evaluate(read, ["x.zst", len(raw)]) == "damaged"
