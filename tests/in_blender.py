"""Run by Blender's Python (or the ``bpy`` wheel) with a folder: what the add-on and the importers make of our files.

Writes ``found.npz``: per Blender frame the instances' matrices and colours of the .ply sequence, and the vertices of the .glb.
"""

import sys
from pathlib import Path

import bpy
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "extras"))
import blender_ply_sequence as addon

folder = Path(sys.argv[-1])
found: dict[str, np.ndarray] = {}
bpy.ops.wm.read_factory_settings(use_empty=True)
addon.register()
bpy.ops.import_scene.splat_ply_sequence(directory=f"{folder / 'ply'}/", width=1.0)
addon.unregister()
# What was loaded goes through a file and comes back without the add-on.
bpy.ops.wm.save_as_mainfile(filepath=str(folder / "scene.blend"))
bpy.ops.wm.open_mainfile(filepath=str(folder / "scene.blend"))
scene = bpy.context.scene
found["span"] = np.array([scene.frame_start, scene.frame_end, scene.render.fps / scene.render.fps_base])
for frame in (1, 3, scene.frame_end + 1):
    scene.frame_set(frame)
    instances = bpy.context.evaluated_depsgraph_get().object_instances
    found[f"ply{frame}"] = np.array([np.array(i.matrix_world) for i in instances if i.is_instance])
found["color"] = np.array([c.color[:3] for c in bpy.data.collections["ply frames"].objects[0].data.attributes["color"].data])

bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=str(folder / "mesh.glb"))
(mesh,) = (o for o in bpy.data.objects if o.type == "MESH")
scene = bpy.context.scene
for index in range(4):
    time = index / 8 * scene.render.fps  # the clip has 8 frames a second
    scene.frame_set(int(time), subframe=time % 1)
    seen = mesh.evaluated_get(bpy.context.evaluated_depsgraph_get()).to_mesh()
    places = np.empty(3 * len(seen.vertices), np.float32)
    seen.vertices.foreach_get("co", places)
    world = np.array(mesh.matrix_world)
    found[f"glb{index}"] = places.reshape(-1, 3) @ world[:3, :3].T + world[:3, 3]
np.savez(folder / "found.npz", version=bpy.app.version_string, **found)
