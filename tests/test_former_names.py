"""Scripts of version 0.1 find what they import."""

from __future__ import annotations

from importlib import import_module

import pytest

from anchor4d.core import former


@pytest.mark.parametrize(
    ("module", "name", "now"),
    [
        ("object3d", "load_object", "io.objects"),
        ("object3d", "SplatObject", "scene.object3d"),
        ("sequence", "open_scene", "io.sequence"),
        ("trajectory", "Trajectory", "scene.trajectory"),
        ("video", "load_video", "io.video"),
        ("mesh", "load_mesh", "io.meshes"),
        ("models", "find", "priors.models"),
    ],
)
def test_a_former_name_is_the_present_one(module: str, name: str, now: str):
    with pytest.warns(DeprecationWarning, match=rf"core\.{module}\.{name} is now in anchor4d\.core\.{now}"):
        value = getattr(import_module(f"anchor4d.core.{module}"), name)
    assert value is getattr(import_module(f"anchor4d.core.{now}"), name)


def test_every_place_is_there_and_other_names_are_not():
    for module, places in (former.MOVED | former.PARTLY_MOVED).items():
        assert [import_module(f"anchor4d.core.{place}") for place in places]
        with pytest.raises(AttributeError, match="no_such_name"):
            getattr(import_module(f"anchor4d.core.{module}"), "no_such_name")  # noqa: B009
