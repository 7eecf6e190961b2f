"""Files written whole or not at all: full disks, odd places, names in any alphabet; and names that lead nowhere else."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anchor4d.core.files import InputError, atomic_path, read_tensors, write_tensors
from anchor4d.core.io.export import FORMATS
from anchor4d.core.priors import models
from anchor4d.core.priors.checkpoints import Checkpoint
from anchor4d.core.priors.convert import convert

ROOT = Path(__file__).parents[1]


def test_content_replaces_content_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    for text in ("first", "second"):
        with atomic_path(path) as temporary:
            temporary.write_text(text)
            assert temporary.suffix == ".txt"
        assert path.read_text() == text
    folder = tmp_path / "folder"
    for name in ("x", "y"):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
        assert [p.name for p in folder.iterdir()] == [name]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "folder"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_leaves_the_old_content(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old") if kind == "file" else (path.mkdir(), (path / "x").write_text("old"))

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("new") if kind == "file" else (temporary.mkdir(), (temporary / "x").write_text("new"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == [path]
    assert (path if kind == "file" else path / "x").read_text() == "old"


def test_places_that_take_no_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(.*\), choose a shorter name"):
        write_tensors(tmp_path / ("n" * 250 + ".safetensors"), {"a": torch.zeros(1)}, {})
    if hasattr(os, "geteuid"):
        with pytest.raises(InputError, match=r"a\.safetensors: cannot be written \(not a directory\), choose a folder"):
            write_tensors(tmp_path / "file" / "inside" / "a.safetensors", {"a": torch.zeros(1)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


#: Writes every format, a scene, a checkpoint and a sequence where no file may grow beyond some bytes, as on a full disk.
FULL = """
import sys, resource, signal, logging
from pathlib import Path
import torch
from anchor4d.core.files import InputError
from anchor4d.core.io.export import FORMATS, Shot, export_scene
from anchor4d.core.fit.checkpoint import save_checkpoint
from anchor4d.core.runs.sample import sample_scene
logging.disable(logging.CRITICAL)
out, names = Path(sys.argv[1]), sys.argv[2:]
scene = sample_scene(400, 3)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def save(path):
    save_checkpoint(path, scene.gaussians.tensors(), {"stage": "a", "key": "b", "step": 0, "losses": {}})
for name in [*names, "checkpoint"]:
    suffix = ".ckpt" if name == "checkpoint" else FORMATS[name].suffixes[0]
    path = out / f"{name}-a{suffix}"
    try:
        if name == "checkpoint": save(path)
        else: export_scene(scene, path, name, shot=Shot(size=32) if FORMATS[name].kind == "film" else None)
        print(name, "written")
    except InputError as error:
        print(name, "refused" if str(error).startswith(str(path)) and "\\n" not in str(error) else error)
    print(name, [p.name for p in out.iterdir()])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files to set")
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    lacking = {
        n for n, module in (("usd", "pxr"), ("4dgs", "fourdgs"), ("glb", "skimage")) if not importlib.util.find_spec(module)
    }
    names = [name for name in FORMATS if name not in lacking]
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines == [line for name in [*names, "checkpoint"] for line in (f"{name} refused", f"{name} []")]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locale of ASCII alone")
def test_names_beyond_ascii_under_an_ascii_locale(tmp_path: Path) -> None:
    """Read, drawn, written and said."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = (
        "import sys; from anchor4d.core.runs.sample import sample_scene; from anchor4d import cli\n"
        "name = sys.argv[1]; sample_scene(60, 2).save(name + '.safetensors')\n"
        "for kind, more in (('spz', []), ('mp4', ['--size', '32']), ('glb', []), ('a4d', [])):\n"
        "    assert not cli.main(['export', name + '.safetensors', '--format', kind, '--out', name + '.' + kind, *more]), kind"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "modèle 模型"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.stem == "modèle 模型") == [
        ".a4d",
        ".glb",
        ".mp4",
        ".safetensors",
        ".spz",
    ]


# Names that lead elsewhere


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../secret", "a\0b", ""])
def test_models_are_found_in_models_folders_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANCHOR4D_MODELS", str(tmp_path / "models"))
    (tmp_path / "models" / "a").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    assert models.find(name) is None
    assert models.find(str(tmp_path / "secret")) is None
    assert models.find("a") == tmp_path / "models" / "a"


@pytest.mark.parametrize(
    "shard", ["/etc/x.safetensors", "../out.safetensors", "a\\..\\x.safetensors", "C:x.safetensors", "x.bin", 7]
)
def test_shards_lie_beside_their_index(shard: object, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "out.safetensors")
    folder = tmp_path / "model" / "unet"
    folder.mkdir(parents=True)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match="which is no safetensors file beside it"):
        Checkpoint(tmp_path / "model").weights("unet")
    if shard != "x.bin":
        pickles = folder / "pytorch_model.bin.index.json"
        pickles.write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(InputError, match="which is no file beside it"):
            convert(pickles)
    index.write_text(json.dumps({"weight_map": {"a": "out.safetensors"}}))
    save_file({"a": torch.zeros(1)}, folder / "out.safetensors")
    assert Checkpoint(tmp_path / "model").weights("unet") == ([folder / "out.safetensors"], None)


# Paths typed into nodes

spec = importlib.util.spec_from_file_location("anchor4d_node_paths", ROOT / "nodes" / "paths.py")
assert spec is not None and spec.loader is not None
node_paths = importlib.util.module_from_spec(spec)
spec.loader.exec_module(node_paths)


@pytest.mark.parametrize(
    ("listen", "shared"),
    [
        ("127.0.0.1", False), ("localhost", False), ("::1", False), ("127.0.0.1,::1", False), ("", False), ("127.0.0.2", False),
        ("0.0.0.0", True), ("0.0.0.0,::", True), ("127.0.0.1, 192.168.1.4", True), ("workstation", True), ("::", True),
    ],
)  # fmt: skip
def test_a_host_is_shared_where_it_listens_beyond_this_machine(listen: str, shared: bool) -> None:
    assert node_paths.is_shared(listen) is shared


def test_paths_within_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "input", tmp_path / "elsewhere"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    assert node_paths.is_within(inside, [inside]) and node_paths.is_within(inside / "new" / "a.ply", [outside, inside])
    for path in (
        outside / "a.ply",
        inside / ".." / "elsewhere",
        inside / "link" / "a.ply",
        Path("/etc/passwd"),
        tmp_path / "input2",
    ):
        assert not node_paths.is_within(path, [inside])
    monkeypatch.setenv("ANCHOR4D_ALLOWED_PATHS", os.pathsep.join([str(outside), " "]))
    assert node_paths.named_folders() == [outside]


def test_tensors_are_read_to_where_pytorch_puts_memory(tmp_path: Path) -> None:
    """At multiples of 64 bytes, as those of a run that did not stop: other places give other last bits."""
    made = {f"part {i}": torch.arange(7.0 + i) for i in range(9)}
    write_tensors(tmp_path / "a.safetensors", made, {"of": "a run"})
    tensors, metadata = read_tensors(tmp_path / "a.safetensors")
    assert metadata == {"of": "a run"} and tensors.keys() == made.keys()
    assert all(torch.equal(tensors[name], made[name]) for name in made)
    assert not [name for name, tensor in tensors.items() if tensor.data_ptr() % 64]
