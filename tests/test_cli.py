"""The command line: its contract, exit codes and one-line errors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anchor4d import cli
from anchor4d.core.cameras import Crop, FrontCamera
from anchor4d.core.deformation import ControlNodes
from anchor4d.core.files import only_process
from anchor4d.core.fit.loop import Schedule
from anchor4d.core.gaussians import from_points
from anchor4d.core.io.export import FORMATS
from anchor4d.core.methods import pla4d
from anchor4d.core.methods.stages import MethodConfig, MotionConfig, StaticConfig
from anchor4d.core.objectives.front import ReferenceViewLoss
from anchor4d.core.objectives.rigidity import Rigidity
from anchor4d.core.priors import models as model_files
from anchor4d.core.render import rasterize, resolve_backend
from anchor4d.core.runs import doctor as machine
from anchor4d.core.runs.sample import write_sample
from anchor4d.core.runs.session import prior_device
from anchor4d.core.scene.scene import Scene4D
from anchor4d.core.schedules import constant

SIZE, FRAMES = 64, 3


def tiny(motion_steps: int = 6) -> MethodConfig:
    """A whole method in a second or two."""
    front = ReferenceViewLoss(weight=constant(1.0), perceptual=0.0)
    return MethodConfig(
        name="tiny",
        camera="focal",
        resolution=SIZE,
        static=StaticConfig(200, Schedule(steps=3, resolutions=((1.0, 32),)), (front,)),
        motion=MotionConfig(
            field="control-nodes",
            fields={"control-nodes": {"nodes": 10}},
            schedule=Schedule(steps=motion_steps, resolutions=((1.0, 32),), background="random"),
            objectives=(front, Rigidity(weight=constant(1.0))),
        ),
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("cases") / "sample", FRAMES, SIZE)


@pytest.fixture
def tiny_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """--preset draft is the tiny method."""
    monkeypatch.setitem(pla4d._OURS, "draft", lambda refinement: tiny())  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def scene_file(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    points = 0.8 * (torch.rand(60, 3, generator=generator) - 0.5)
    gaussians = from_points(points, torch.rand(60, 3, generator=generator), opacity=0.7)
    field = ControlNodes.on_surface(gaussians, FRAMES, nodes=6)
    with torch.no_grad():
        field.translations[1:, :, 0] = 0.1
    front = FrontCamera(fovy=40.0, distance=2.0, width=48, height=32, cx=20.0, cy=18.0)
    path = tmp_path / "scene.safetensors"
    Scene4D(gaussians, field, frames=FRAMES, fps=6.0, front=front, crop=Crop(0, 0, 32, 48, 32)).save(path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Runs a command that must end with exit code 2 and one line on standard error; returns the line."""
    assert cli.main([str(a) for a in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def fit_arguments(case: Path, out: Path) -> list[str]:
    inputs = ["--video", str(case / "front"), "--object", str(case / "mesh.glb")]
    return ["fit", *inputs, "--preset", "draft", "--yaw", "0", "--out", str(out)]


@pytest.mark.usefixtures("tiny_draft")
def test_a_video_alone_is_drafted_on_a_processor(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ["fit", "--video", str(case / "front"), "--device", "cpu", "--prior", "none"]
    assert cli.main([*alone, "--out", str(tmp_path / "alone")]) == 0
    assert "preset draft: the object is made of the first frame" in capsys.readouterr().err
    assert json.loads((tmp_path / "alone" / "report.json").read_text())["settings"]["preset"] == "draft"
    # What is asked for is done, and with an object, or a card, the preset is standard.
    monkeypatch.setitem(pla4d._OURS, "standard", lambda refinement: replace(tiny(), name="standard"))  # pyright: ignore
    for more in (["--preset", "standard"], ["--object", str(case / "mesh.glb"), "--yaw", "0"]):
        assert cli.main([*alone, *more, "--out", str(tmp_path / more[0])]) == 0
        assert "preset draft" not in capsys.readouterr().err
        assert json.loads((tmp_path / more[0] / "report.json").read_text())["settings"]["preset"] == "standard"


# Help


def test_help_and_version_need_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfor name in ('torch', 'numpy', 'PIL', 'trimesh', 'av'): sys.modules[name] = None\n"
        "from anchor4d.cli import main\nmain(sys.argv[1:])"
    )
    for argv in (["--help"], ["fit", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "anchor4d" in done.stdout


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    code = "import sys\nsys.modules['torch'] = None\nfrom anchor4d.cli import main\nsys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, "models", "list"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: the Python package torch is not installed; run: python -m pip install -e .*\n", done.stderr)


def test_the_module_runs(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "anchor4d", "fit"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--out" in done.stderr


# Fit


@pytest.mark.usefixtures("tiny_draft")
def test_fit_leaves_what_it_promises(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*fit_arguments(case, tmp_path / "out"), "--seed", "7"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "out" / "scene.safetensors")
    assert "prior: tiny" in printed.err
    assert "3D to 4D  6/6" in printed.err
    left = {p.name for p in (tmp_path / "out").iterdir()} - {"preview.png"}  # drawn where a fit takes longer
    assert left == {"scene.safetensors", "report.json", "report.html", "preview.mp4"}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["seed"], report["preset"], report["method"]) == (7, "draft", "pla4d")
    assert report["memory_peak_mb"]["host"] is None or report["memory_peak_mb"]["host"] > 100


@pytest.mark.usefixtures("tiny_draft")
def test_fit_takes_part_of_a_film_with_masks_beside_it(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anchor4d.core.io import write_frames, write_mp4

    rgba = np.concatenate([np.stack([np.asarray(Image.open(p)) for p in sorted((case / "front").glob("*.png"))])] * 4)
    rgba[0, :, :6, 3] = 255  # before the part that is taken
    rgba[2, -1, 20:30, 3] = 255
    write_mp4(tmp_path / "a.mp4", rgba[..., :3], 10)
    write_frames(tmp_path / "masks", rgba[..., 3:].repeat(3, -1))
    argv = ["fit", "--video", tmp_path / "a.mp4", "--object", case / "mesh.glb", "--preset", "draft", "--yaw", "0"]
    argv += ["--mask", tmp_path / "masks", "--start", "0.2", "--end", "1.1", "--every", "3", "--out", tmp_path / "out"]
    assert cli.main([str(a) for a in argv]) == 0
    video = json.loads((tmp_path / "out" / "report.json").read_text())["video"]
    assert (video["frames"], video["foreground"]) == (3, "mask")
    assert video["fps"] == pytest.approx(10 / 3)
    assert len(video["warnings"]) == 1 and "touches the border of the picture (bottom) in frame 0" in video["warnings"][0]
    assert "a.mp4: the object touches the border" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="a console signal cannot be sent to one child alone on Windows")
def test_ctrl_c_keeps_a_checkpoint_that_resumes_to_the_same_bits(case: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_cli import tiny; from anchor4d import cli; from anchor4d.core.methods import pla4d\n"
        "pla4d._OURS['draft'] = lambda refinement: tiny(300)\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )

    def command(out: str, *more: str) -> list[str]:
        return [sys.executable, "-c", code, *fit_arguments(case, tmp_path / out), *more]

    assert subprocess.run(command("whole"), capture_output=True).returncode == 0
    with subprocess.Popen(command("stopped"), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("frame to 3D  3/3"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert rest.endswith("interrupted; run the same command with --resume to go on\n")
    assert {p.name for p in (tmp_path / "stopped").iterdir()} - {"preview.png"} == {"checkpoints"}
    assert subprocess.run(command("stopped", "--resume"), capture_output=True).returncode == 0
    whole, resumed = (tmp_path / name / "scene.safetensors" for name in ("whole", "stopped"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_bad_inputs_are_refused_in_one_line_and_leave_nothing(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, mesh, out = case / "front", case / "mesh.glb", tmp_path / "out"
    one = tmp_path / "one"
    one.mkdir()
    (one / "000.png").write_bytes((video / "000.png").read_bytes())
    empty = tmp_path / "empty"
    empty.mkdir()
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    Image.new("RGBA", (8, 8), "red").save(mixed / "000.png")
    Image.new("RGBA", (9, 8), "red").save(mixed / "001.png")
    clear = tmp_path / "clear"
    clear.mkdir()
    for name in ("000.png", "001.png"):
        Image.new("RGBA", (8, 8)).save(clear / name)
    cut = tmp_path / "cut.glb"
    cut.write_bytes(mesh.read_bytes()[:3000])
    cloud = tmp_path / "cloud.obj"
    cloud.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    nan = tmp_path / "nan.obj"
    nan.write_text("v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    film = tmp_path / "film.mp4"
    film.write_bytes(b"no film")
    bad: list[tuple[Path, Path]] = [
        (tmp_path / "gone", mesh),
        (one, mesh),
        (empty, mesh),
        (mixed, mesh),
        (clear, mesh),
        (film, mesh),
        (video, tmp_path / "gone.glb"),
        (video, cut),
        (video, cloud),
        (video, nan),
    ]
    for given_video, given_mesh in bad:
        line = refused(capsys, "fit", "--video", given_video, "--object", given_mesh, "--out", out)
        assert (given_video if given_mesh == mesh else given_mesh).name in line
        assert not out.exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fit", "--out", "x"], "at least one of --prompt, --image, --video and --object"),
        (["fit", "--video", "v", "--object", "o", "--prior", "no-such-prior", "--out", "x"], "no-such-prior"),
        (["fit", "--video", "v", "--object", "o", "--renderer", "crayon", "--out", "x"], "crayon"),
        (["fit", "--video", "v", "--object", "o", "--yaw", "left", "--out", "x"], "--yaw: 'left': choose degrees from"),
        (["fit", "--video", "v", "--object", "o", "--frames", "1", "--out", "x"], "choose a whole number from 2"),
        (["fit", "--video", "v", "--object", "o", "--frames", "-3", "--out", "x"], "choose a whole number from 2"),
        (["fit", "--video", "v", "--object", "o", "--fps", "nan", "--out", "x"], "choose a number from 0.01"),
        (["fit", "--video", "v", "--object", "o", "--fps", "0", "--out", "x"], "choose a number from 0.01"),
        (["fit", "--video", "v", "--object", "o", "--every", "0", "--out", "x"], "--every: '0': choose"),
        (["fit", "--video", "v", "--object", "o", "--start", "-1", "--out", "x"], "--start: '-1': choose"),
        (["fit", "--video", "v", "--object", "o", "--start", "3", "--end", "3", "--out", "x"], "end 3.0, choose more"),
        (["fit", "--video", "v", "--object", "o", "--mask", "m", "--out", "x"], "--mask m: no such"),
        (["fit", "--video", "v", "--object", "o", "--background", "grue", "--out", "x"], "or a colour such as"),
        (["fit", "--prompt", "a fox", "--start", "1", "--out", "x"], "--start: says how a video is read"),
        (["bench", "--cases", "no-cases"], "no cases"),
        (["models", "get", "crystal-ball"], "choose one of zero123-xl"),
        (["models", "convert", "x.ckpt"], "no such file or folder"),
    ],
)
def test_what_is_not_offered_is_said(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *argv)
    assert list(tmp_path.iterdir()) == []


FIT = ("fit", "--video", "v", "--object", "o", "--out", "x")


@pytest.mark.parametrize(
    "argv",
    [
        *((*FIT, "--seed", value) for value in ("99999999999999999999", "-1", "1.5", "1_0", "", "9" * 5000)),
        *((*FIT, "--frames", value) for value in ("-3", "1e9", "1000000000000")),
        *((*FIT, "--fps", value) for value in ("0", "-1", "nan", "inf", "fast")),
        *((*FIT, "--yaw", value) for value in ("nan", "1e9")),
        *(("export", "s", "--format", "mp4", "--out", "x.mp4", "--size", value) for value in ("-5", "0", "100000")),
        *(("export", "s", "--format", "mp4", "--out", "x.mp4", "--loops", value) for value in ("0", "-1", "100000")),
        *(("export", "s", "--format", "ply", "--out", "x.zip", "--frames", value) for value in ("-3", "0")),
        *(("export", "s", "--format", "ply", "--out", "x.ply", "--time", value) for value in ("-0.1", "1.1", "nan")),
        *(("export", "s", "--format", "mp4", "--out", "x.mp4", "--elevation", value) for value in ("91", "nan", "up")),
        *(("render", "s", "--out", "x", "--azimuths", value) for value in ("nan", "1e9", "../x")),
        ("demo", "--seed", "99999999999999999999"),
    ],
)
def test_every_number_has_a_range(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, *argv)
    assert f"{argv[-2]}: " in line and ": choose " in line
    assert len(line) < 200


@pytest.mark.parametrize(
    "argv",
    [
        (*FIT, "--image", "i"),
        (*FIT, "--image-model", "m"),
        (*FIT, "--video-model", "m"),
        (*FIT, "--object-model", "m"),
        (*FIT, "--views-model", "m"),
        (*FIT, "--loop"),
        (*FIT, "--then", "t"),
        (*FIT, "--plus", "oda"),
        (*FIT, "--without", "oda"),
        (*FIT, "--anchors", "tiny"),
        ("fit", "--method", "ayg", "--prompt", "p", "--out", "x", "--plus", "oda"),
        ("fit", "--method", "ayg", "--prompt", "p", "--out", "x", "--anchors", "tiny"),
        ("fit", "--method", "ayg", "--prompt", "p", "--out", "x", "--object-model", "m"),
        ("fit", "--method", "ayg", "--prompt", "p", "--object", "o", "--out", "x", "--views-model", "m"),
        ("export", "s", "--format", "ply", "--out", "x.zip", "--azimuths", "0"),
        ("export", "s", "--format", "ply", "--out", "x.zip", "--size", "8"),
        ("export", "s", "--format", "ply", "--out", "x.zip", "--loops", "2"),
        ("export", "s", "--format", "ply", "--out", "x.zip", "--elevation", "2"),
        ("export", "s", "--format", "glb", "--out", "x.glb", "--camera-path", "c"),
        ("export", "s", "--format", "glb", "--out", "x.glb", "--time", "0"),
        ("export", "s", "--format", "mp4", "--out", "x.mp4", "--video", "v"),
        ("export", "s", "--format", "a4d", "--out", "x.a4d", "--compare", "c"),
        ("export", "s", "--format", "ply", "--out", "x.ply", "--time", "0", "--frames", "2"),
        ("export", "s", "--format", "mp4", "--out", "x.mp4", "--camera-path", "c", "--azimuths", "2"),
        ("models", "list", "zero123-xl"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *argv)
    option = next((text for text in reversed(argv) if text.startswith("--")), argv[1])
    assert option.removeprefix("--") in line
    assert list(tmp_path.iterdir()) == []


def test_help_shows_each_method_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    shown = capsys.readouterr().out
    for method in cli.method_summaries():
        assert re.search(rf"^  {method} +\w.{{20}}", shown, re.MULTILINE), method
    for default in ("pla4d", "standard", "auto", "0"):
        assert f"(default: {default})" in " ".join(shown.split())


TWICE = """
import os, signal, sys, threading, time
import importlib
real = importlib.import_module
def slow(name, *more):
    if name == "torch":
        print("importing", flush=True)
        try:
            time.sleep(60)
        finally:
            time.sleep(0.3)  # as long as an import takes to end: the second signal comes here
    return real(name, *more)
importlib.import_module = slow
from anchor4d.cli import program
sys.argv[1:] = ["models", "list"]
sys.exit(program())
"""


@pytest.mark.skipif(os.name == "nt", reason="locales of Windows are others")
@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_names_that_the_locale_cannot_write(scene_file: Path, tmp_path: Path, locale: str) -> None:
    place = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
    argv = [
        sys.executable,
        "-m",
        "anchor4d",
        "export",
        str(scene_file),
        "--format",
        "ply",
        "--out",
        str(tmp_path / "caf\u00e9.zip"),
    ]
    done = subprocess.run(argv, capture_output=True, env=os.environ | place, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "caf\u00e9.zip").is_file()
    assert done.stdout.startswith(os.fsencode(str(tmp_path))) and done.stderr.count(b"Traceback") == 0


@pytest.mark.skipif(os.name == "nt", reason="a console signal cannot be sent to one child alone on Windows")
def test_two_quick_interruptions_during_imports_end_in_one_line() -> None:
    with subprocess.Popen([sys.executable, "-c", TWICE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        error = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert error == "interrupted; run the same command to go on\n"


LATE = """
import atexit, os, signal, sys
import anchor4d.cli as cli
cli.main = lambda: 0
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.exit(cli.program())
"""


@pytest.mark.skipif(os.name == "nt", reason="a process cannot send itself Ctrl-C alone on Windows")
def test_an_interruption_after_the_work_changes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_run_in_the_same_folder_is_refused(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with only_process(out):
        line = refused(capsys, *fit_arguments(case, out), "--method", "dg4d", "--prior", "none")
        assert line == f"error: {out}: another run is writing to this folder; wait for it, stop it, or choose another folder"
    assert not out.exists()


@pytest.mark.usefixtures("tiny_draft")
def test_what_killed_runs_left_goes_with_the_next(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(fit_arguments(case, out)) == 0
    whole = {p.name: p.read_bytes() for p in out.iterdir() if p.name != "preview.png"}
    key = json.loads(whole["report.json"])["key"]
    # Killed in the midst of the last clean-up, with and without the list, and while it wrote.
    for header in (json.dumps({"key": key}), None, "[]", '{"key": 7}'):
        (out / "checkpoints").mkdir()
        (out / "checkpoints" / "motion.safetensors").write_bytes(b"half")
        if header is not None:
            (out / "checkpoints" / "run.json").write_text(header)
        (out / ".scene.1.part.safetensors").write_bytes(b"half")
        assert cli.main([*fit_arguments(case, out), "--resume"]) == 0
        assert "already finished" in capsys.readouterr().err
        assert {p.name: p.read_bytes() for p in out.iterdir() if p.name != "preview.png"} == whole


def test_an_unwritable_place_is_an_error_of_one_line(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    assert "is a file" in refused(capsys, *fit_arguments(case, taken))
    assert taken.read_text() == "a file"


# Render


def test_render_writes_straight_alpha_at_the_videos_framing(scene_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "renders"
    assert cli.main(["render", str(scene_file), "--azimuths", "0", "-75", "12.5", "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {"0", "-75", "12.5"}
    assert sorted(p.name for p in (out / "-75").iterdir()) == ["000.png", "001.png", "002.png"]
    scene = Scene4D.load(scene_file)
    assert scene.front is not None
    white = torch.ones(3)
    for name, azimuth in (("0", 0.0), ("-75", -75.0), ("12.5", 12.5)):
        with Image.open(out / name / "002.png") as image:
            assert (image.mode, image.size) == ("RGBA", (48, 32))
            rgba = np.asarray(image).astype(np.float64) / 255
        on_white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
        with torch.no_grad():
            ours = rasterize(scene.at(1.0), scene.front.cameras(azimuth), white).color[0].clamp(0, 1).numpy()
        assert np.abs(on_white - ours).max() < 1.01 / 255
        assert rgba[..., 3].max() > 0.5
        assert rgba[0, 0, 3] < 0.05


def test_render_takes_size_frames_elevation_and_background(scene_file: Path, tmp_path: Path) -> None:
    argv = ["render", str(scene_file), "--azimuths", "30", "--size", "96", "--frames", "5", "--background", "black"]
    assert cli.main([*argv, "--elevation", "60", "--out", str(tmp_path / "a")]) == 0
    assert cli.main([*argv, "--out", str(tmp_path / "b")]) == 0
    files = sorted((tmp_path / "a" / "30").iterdir())
    assert len(files) == 5
    with Image.open(files[0]) as above, Image.open(tmp_path / "b" / "30" / "000.png") as level:
        assert (above.mode, above.size) == ("RGB", (96, 64))
        assert max(above.getpixel((0, 0))) < 30  # pyright: ignore[reportArgumentType]
        assert above.tobytes() != level.tobytes()


def test_render_replaces_only_its_own_pictures(scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "renders"
    argv = ["render", str(scene_file), "--azimuths", "0", "--size", "16", "--out", str(out)]
    assert cli.main(argv) == 0
    assert cli.main([*argv, "--frames", "2"]) == 0
    assert len(list((out / "0").iterdir())) == 2
    (out / "0" / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert "holds other files (notes.txt)" in refused(capsys, *argv)
    assert (out / "0" / "notes.txt").read_text() == "mine"


def test_render_refuses_what_is_not_a_scene(scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(scene_file.read_bytes()[:-40])
    out = tmp_path / "out"
    assert "short.safetensors" in refused(capsys, "render", short, "--azimuths", "0", "--out", out)
    assert "no such file" in refused(capsys, "render", tmp_path / "gone", "--azimuths", "0", "--out", out)
    assert "choose degrees" in refused(capsys, "render", scene_file, "--azimuths", "front", "--out", out)
    assert "--frames: '0': choose" in refused(capsys, "render", scene_file, "--azimuths", "0", "--frames", "0", "--out", out)
    assert not out.exists()


# Export


def test_export_writes_ply_folders_archives_and_single_files(scene_file: Path, tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile", reason="plyfile is not installed")
    argv = ["export", str(scene_file), "--format", "ply"]
    for name in ("clip", "clip.zip", "moment.ply"):
        assert cli.main([*argv, "--out", str(tmp_path / name), *(["--time", "1"] if name == "moment.ply" else [])]) == 0
    names = [f"frame{i:04}.ply" for i in range(FRAMES)]
    assert sorted(p.name for p in (tmp_path / "clip").iterdir()) == [*names, "manifest.json"]
    with zipfile.ZipFile(tmp_path / "clip.zip") as archive:
        assert archive.namelist() == [*names, "manifest.json"]
        assert archive.read(names[2]) == (tmp_path / "clip" / names[2]).read_bytes()
    assert (tmp_path / "moment.ply").read_bytes() == (tmp_path / "clip" / names[-1]).read_bytes()
    assert len(plyfile.PlyData.read(tmp_path / "moment.ply")["vertex"]) == 60


def test_export_writes_films_and_pictures(scene_file: Path, tmp_path: Path) -> None:
    import av

    film = tmp_path / "clip.mp4"
    argv = ["export", str(scene_file), "--azimuths", "0", "90", "--loops", "2", "--size", "64"]
    assert cli.main([*argv, "--format", "mp4", "--out", str(film)]) == 0
    with av.open(str(film)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 6
    assert len(frames) == 2 * FRAMES
    assert frames[0].shape[1] > 2 * 64
    assert cli.main(["export", str(scene_file), "--format", "png", "--out", str(tmp_path / "frames")]) == 0
    with Image.open(tmp_path / "frames" / "000.png") as image:
        assert (image.mode, image.size) == ("RGBA", (48, 32))


def test_export_never_empties_a_folder_that_is_not_its_own(
    scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ("ply", "png"):
        assert "holds other files" in refused(capsys, "export", scene_file, "--format", form, "--out", tmp_path)
    assert "ends in .usdc or .usda" in refused(capsys, "export", scene_file, "--format", "usd", "--out", tmp_path / "x.glb")
    assert "ends in .mp4" in refused(capsys, "export", scene_file, "--format", "mp4", "--out", tmp_path / "film")
    assert "no transparency" in refused(
        capsys, "export", scene_file, "--format", "mp4", "--background", "none", "--out", tmp_path / "film.mp4"
    )
    assert scene_file.exists()


def test_export_offers_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    assert ",".join(FORMATS) in "".join(capsys.readouterr().out.split())
    assert cli.main(["export", "x.ply", "--format", "obj", "--out", "x.obj"]) == 2
    assert "invalid choice: 'obj'" in capsys.readouterr().err


def test_options_that_do_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the scene is read: there is none."""
    for name, file, option, said in (
        ("mp4", "a.mp4", ["--time", "0.5"], "time: does nothing in the format mp4"),
        ("ply", "a.zip", ["--azimuths", "90"], "azimuths, .*: does nothing in the format ply"),
        ("usd", "a.usdc", ["--size", "64"], "does nothing in the format usd"),
        ("spz", "a.zip", ["--video", "film.mp4"], "video: does nothing in the format spz; leave it out, or choose html, a4d"),
        ("glb", "a.glb", ["--compare", "b.ply"], "compare: does nothing in the format glb"),
        ("scene", "a.safetensors", ["--frames", "3"], "frames: does nothing in the format scene"),
        ("html", "a.html", ["--renderer", "torch"], "--renderer torch: nothing is drawn"),
        ("spz", "a.spz", ["--frames", "3"], "frames 3: a.spz holds one moment"),
        ("spz", "a.zip", ["--time", "0"], "time 0: a.zip holds the whole clip"),
        ("ply", "a.zip", ["--frames", "-3"], "--frames: '-3': choose a whole number from 1 to"),
        ("ply", "a.ply", ["--time", "nan"], "--time: 'nan': choose a number from 0 to 1"),
        ("mp4", "a.mp4", ["--size", "-5"], "--size: '-5': choose a whole number from"),
        ("mp4", "a.mp4", ["--loops", "0"], "--loops: '0': choose a whole number from 1 to"),
        ("mp4", "a.mp4", ["--elevation", "nan"], "--elevation: 'nan': choose degrees from -90 to 90"),
    ):
        line = refused(capsys, "export", tmp_path / "gone.ply", "--format", name, "--out", tmp_path / file, *option)
        assert re.search(said, line), line
    assert not list(tmp_path.iterdir())


def test_motion_left_out_is_said(scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(scene_file), "--format", "spz", "--out", str(tmp_path / "a.spz")]) == 0
    assert "one file holds one moment" in capsys.readouterr().err
    assert cli.main(["export", str(scene_file), "--format", "spz", "--time", "0.5", "--out", str(tmp_path / "a.spz")]) == 0
    assert "one moment" not in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("ply", "mp4", "png")])
def test_export_writes_every_format(scene_file: Path, tmp_path: Path, name: str) -> None:
    """What is in the files is tested with each format; here that the command reaches it."""
    suffix = next(s for s in FORMATS[name].suffixes if s)
    package = {"usd": "pxr", "4dgs": "fourdgs", "glb": "skimage"}.get(name)
    if package:
        pytest.importorskip(package, reason=f"{package} is not installed")
    target = tmp_path / "folder" / f"out{suffix}"
    argv = ["export", str(scene_file), "--format", name, "--out", str(target)]
    assert cli.main([*argv, *(["--size", "32"] if FORMATS[name].kind == "film" else [])]) == 0
    assert target.stat().st_size > 100
    assert list(target.parent.iterdir()) == [target]


def test_export_films_along_a_camera_path(scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anchor4d.core.cameras import FrontCamera, to_camera_info
    from anchor4d.core.scene.trajectory import Key, Trajectory

    front = FrontCamera(fovy=40, distance=2, width=64, height=32)
    keys = (Key(0, to_camera_info(front.cameras(0.0))), Key(1, to_camera_info(front.cameras(90.0))))
    path = tmp_path / "path.json"
    path.write_text(Trajectory(keys).to_json())
    argv = ["export", str(scene_file), "--format", "png", "--size", "64", "--background", "white"]
    assert cli.main([*argv, "--camera-path", str(path), "--out", str(tmp_path / "moving")]) == 0
    assert cli.main([*argv, "--azimuths", "90", "--out", str(tmp_path / "standing")]) == 0
    with Image.open(tmp_path / "moving" / f"{FRAMES - 1:03}.png") as image:
        assert (image.mode, image.size) == ("RGB", (64, 32))
    path.write_text('{"version": 1, "keys": [{"time": 2}]}')
    capsys.readouterr()
    assert "path.json" in refused(capsys, *argv, "--camera-path", path, "--out", tmp_path / "none")


# Bench


@pytest.mark.usefixtures("tiny_draft")
def test_bench_scores_a_folder_of_cases_and_skips_what_is_done(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["bench", "--cases", str(case.parent), "--preset", "draft", "--out", str(out), "--yaw", "0"]
    assert cli.main(argv) == 0
    table = capsys.readouterr().out
    assert re.search(r"\| sample +\| +\d+\.\d\d \|", table)
    left = {p.name for p in (out / "sample").iterdir()}
    assert {
        "scene.safetensors",
        "report.json",
        "report.html",
        "preview.mp4",
        "unseen.webm",
        "renders",
        "scores.json",
        "sheet.png",
    } <= left
    scores = json.loads((out / "sample" / "scores.json").read_text())
    row, views = scores["row"], scores["views"]
    assert row["gain"] == pytest.approx(row["psnr"] - row["frozen"])
    assert row["front_psnr"] == views["0"]["psnr"]
    assert abs(row["size_error"]) < 5
    assert (out / "results.md").read_text() == table
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<video") == 1 and 'class="verdict' in page and f"{row['per_frame']:.2f}" in page
    assert json.loads((out / "results.json").read_text())["cases"] == [row]
    scene = out / "sample" / "scene.safetensors"
    before = scene.stat().st_mtime_ns
    assert cli.main(argv) == 0
    again = capsys.readouterr()
    assert "finished before" in again.err
    assert again.out == table
    # Scores that were lost are made again from the finished scene; other settings begin anew.
    (out / "sample" / "scores.json").unlink()
    assert cli.main(argv) == 0
    assert scene.stat().st_mtime_ns == before
    assert cli.main([*argv, "--seed", "1"]) == 0
    assert scene.stat().st_mtime_ns != before
    capsys.readouterr()
    assert "no case 'dragon'" in refused(capsys, *argv, "--only", "dragon")


# Models


def test_models_are_listed_with_the_place_of_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "list"]) == 0
    listed = capsys.readouterr().out
    for model in model_files.known_models():
        assert model.name in listed
        assert str(model.found() or model.expected) in listed
        assert model.warning in listed
    assert "renderers here: " in listed


# The machine


def test_the_doctor_says_on_one_screen_what_computes_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    said = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert said["Gaussians"].strip().startswith(f"drawn by {resolve_backend('auto', device)}")
    assert torch.__version__ in said["programs"] and f"on {prior_device(device)};" in said["priors"]
    assert ("none" in said["graphics card"]) == (device == "cpu")
    assert len(said) == 10


@pytest.mark.parametrize(
    ("device", "driver", "expected"),
    [
        ("cpu", False, ("faster: Gaussians drawn 20 times faster", "better: backgrounds")),
        ("cpu", True, ("faster: an NVIDIA driver is here", "faster: Gaussians drawn 20 times faster", "better: backgrounds")),
        ("cuda", True, ("better: b",)),
    ],
)
def test_the_doctor_says_what_would_help(
    device: str, driver: bool, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_driver", lambda: driver)
    monkeypatch.setattr(machine, "problem", lambda name: "is not installed" if name in ("numba", "rembg") else "")
    monkeypatch.setattr(machine, "resolve_backend", lambda name, place: "nvrtc" if device == "cuda" else "torch")
    monkeypatch.setattr(machine, "find", lambda name: Path(name))
    found = machine.advice(device)
    assert len(found) == len(expected) and all(line.startswith(start) for line, start in zip(found, expected, strict=True))
    assert all(f'"{sys.executable}" -m pip install ' in line for line in found if "driver" not in line)


# Demo


@pytest.mark.usefixtures("tiny_draft")
def test_the_demo_leaves_a_film_a_sheet_a_scene_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"unseen +\d+\.\d+ +\d+\.\d+", printed)
    made = {p.name for p in (tmp_path / "demo").iterdir()}
    assert {"demo.mp4", "sheet.png", "scene.safetensors", "report.json", "scores.json", "sample"} <= made
    scores = json.loads((tmp_path / "demo" / "scores.json").read_text())
    assert set(scores) == {"0", "-75", "15", "105", "195", "unseen"}
    with Image.open(tmp_path / "demo" / "sheet.png") as sheet:
        assert min(sheet.size) > 300
