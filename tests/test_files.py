"""The private cache folder and the lock on a run's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anchor4d.core.files import InputError, atomic_path, keep_last_used, only_process, private_cache_folder, remove_leftovers

linux = pytest.mark.skipif(sys.platform != "linux", reason="sets the cache's place by its variable on Linux")


@linux
def test_the_cache_is_private_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = private_cache_folder("kernels")
    assert folder == tmp_path / "cache" / "anchor4d" / "kernels"
    assert folder.stat().st_mode & 0o777 == 0o700
    for place in (folder, folder.parent):
        place.chmod(0o722)
        assert private_cache_folder("kernels") is None
        place.chmod(0o700)
    assert private_cache_folder("kernels") == folder
    # Others may replace the folder where a folder above it is open to all, unless that one is sticky.
    (tmp_path / "cache").chmod(0o777)
    assert private_cache_folder("kernels") is None
    (tmp_path / "cache").chmod(0o1777)
    assert private_cache_folder("kernels") == folder
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert private_cache_folder("kernels") is None
    folder.unlink()
    folder.write_text("a file")
    assert private_cache_folder("kernels") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert private_cache_folder("kernels") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no")
    assert private_cache_folder("kernels") is None


@linux
@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root gives files away")
def test_a_cache_that_another_user_made_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = private_cache_folder("numba")
    assert folder is not None
    os.chown(folder, 1234, 1234)
    assert private_cache_folder("numba") is None


def test_the_last_used_files_stay(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "mine-1", "new", "newest")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, ns=(0, number * 10**9))  # years before and years after today count alike
    keep_last_used(tmp_path, 400)
    assert len(list(tmp_path.iterdir())) == 4
    keep_last_used(tmp_path, 250, but="mine")
    assert {p.name for p in tmp_path.iterdir()} == {"mine-1", "newest"}


def test_what_a_killed_process_left_of_a_file_goes(tmp_path: Path) -> None:
    for name in (".scene.77.part.safetensors", ".scene.safetensors", ".other.77.part.safetensors", "scene.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / ".scene.78.part.safetensors").mkdir()
    remove_leftovers(tmp_path / "scene.safetensors")
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {".scene.safetensors", ".other.77.part.safetensors", "scene.safetensors"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say which processes run")
def test_writing_clears_up_after_the_dead_alone_and_brings_a_folder_back(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    running = os.getppid()
    for name in (f".clip.{gone.pid}.old/kept", f".clip.{gone.pid}.part/half", f".clip.{running}.part/half"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with atomic_path(tmp_path / "clip") as temporary:
        assert (tmp_path / "clip" / "kept").is_file()
        temporary.mkdir()
    assert list((tmp_path / "clip").iterdir()) == []
    assert {p.name for p in tmp_path.iterdir()} == {"clip", f".clip.{running}.part"}


HOLD = """
import sys, time
from anchor4d.core.files import only_process
with only_process(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match="another run is writing to this folder; wait for it, stop it"),
            only_process(tmp_path),
        ):
            pass
        holder.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        holder.wait(30)
    with only_process(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]
        with pytest.raises(InputError, match="another run"), only_process(tmp_path):
            pass
        assert (tmp_path / ".lock").is_file()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), only_process(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()
