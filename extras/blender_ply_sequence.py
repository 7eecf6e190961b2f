"""A Blender add-on: a folder of splat .ply files, one a frame, as Gaussians that move.

Install it with Edit > Preferences > Add-ons > Install from Disk, then File > Import > Splat PLY sequence. Without a window:

    blender --background --python blender_ply_sequence.py -- FOLDER OUT.blend

Every frame becomes a mesh of points with the attributes ``color``, ``opacity``, ``scale`` and ``rotation``; a geometry-nodes
modifier shows the one of the scene's frame, an ellipsoid a Gaussian. Nothing runs while it plays, so the saved file needs no
add-on. Reads binary little-endian 3DGS files; ``manifest.json`` beside them gives the frame rate. Blender 4.2 or newer.
"""

import json
import sys
from pathlib import Path

import numpy as np

bl_info = {
    "name": "Splat PLY sequence",
    "author": "Anchor4D",
    "version": (0, 1, 0),
    "blender": (4, 2, 0),
    "location": "File > Import > Splat PLY sequence",
    "description": "A folder of splat .ply files, one a frame, as Gaussians that move",
    "category": "Import-Export",
}

TYPES = {
    "char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4", "float": "<f4", "double": "<f8",
    "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4", "float32": "<f4",
    "float64": "<f8",
}  # fmt: skip
#: Of the harmonic of degree 0.
SH0 = 0.28209479177387814
#: From the files' frame (+Y down, +Z away) to Blender's (+Z up, the front towards -Y): a turn by -90 degrees about X.
TURN = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)
HALF = np.float32(np.sqrt(0.5))


def read_splats(path: Path) -> dict[str, np.ndarray]:
    """The Gaussians of a 3DGS .ply in Blender's frame.

    Returns:
        ``position`` (N, 3); ``rotation`` (N, 4), unit quaternions wxyz; ``scale`` (N, 3), standard deviations along the axes;
        ``color`` (N, 3), linear; ``opacity`` (N,) in [0, 1].

    Raises:
        ValueError: for a file of another kind.
    """
    data = path.read_bytes()
    head, mark, _ = data.partition(b"end_header")
    body = data.find(b"\n", len(head)) + 1
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    if not mark or lines[0] != ["ply"] or ["format", "binary_little_endian", "1.0"] not in lines:
        raise ValueError(f"{path.name}: is no binary little-endian .ply; write the sequence as ply, not as compressed-ply")
    elements = [line for line in lines if line and line[0] == "element"]
    if not elements or elements[0][1] != "vertex":
        raise ValueError(f"{path.name}: begins with another element than vertex")
    count = int(elements[0][2])
    until = lines.index(elements[1]) if len(elements) > 1 else len(lines)
    fields = [(line[2], TYPES[line[1]]) for line in lines[:until] if line and line[0] == "property" and line[1] in TYPES]
    wanted = {"x", "opacity", "scale_2", "rot_3", "f_dc_2"}
    if not wanted <= {name for name, _ in fields}:
        raise ValueError(f"{path.name}: holds no Gaussians, {', '.join(sorted(wanted - {n for n, _ in fields}))} are missing")
    rows = np.frombuffer(data, np.dtype(fields), count, body)

    def columns(*names: str) -> np.ndarray:
        return np.stack([rows[name].astype(np.float32) for name in names], -1)

    w, x, y, z = columns("rot_0", "rot_1", "rot_2", "rot_3").T
    turned = HALF * np.stack([w + x, x - w, y + z, z - y], -1)  # (HALF, -HALF, 0, 0) times (w, x, y, z)
    srgb = np.clip(0.5 + SH0 * columns("f_dc_0", "f_dc_1", "f_dc_2"), 0, 1)
    return {
        "position": columns("x", "y", "z") @ TURN.T,
        "rotation": turned / np.maximum(np.linalg.norm(turned, axis=-1, keepdims=True), 1e-12),
        "scale": np.exp(columns("scale_0", "scale_1", "scale_2")),
        "color": np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4),
        "opacity": 1 / (1 + np.exp(-columns("opacity")[:, 0])),
    }


def frame_files(folder: Path) -> list[Path]:
    """The .ply files of a folder, in the order of their names.

    Raises:
        ValueError: where there are none.
    """
    files = sorted(folder.glob("*.ply"))
    if not files:
        raise ValueError(f"{folder}: holds no .ply file; export a scene with --format ply --out FOLDER")
    return files


def frame_rate(folder: Path) -> float | None:
    """Frames a second by ``manifest.json``, None where there is none."""
    try:
        return float(json.loads((folder / "manifest.json").read_text("utf-8"))["fps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_sequence(folder: Path, *, width: float = 2.0, alpha: float = 0.05):
    """Adds the sequence to the current scene and returns its object.

    Args:
        folder: of .ply files.
        width: of the ellipsoids, in standard deviations.
        alpha: fainter Gaussians are left out.
    """
    import bpy

    files, scene = frame_files(folder), bpy.context.scene
    frames = bpy.data.collections.new(f"{folder.name} frames")  # not linked to the scene: seen through the modifier alone
    for index, file in enumerate(files):
        gaussians = read_splats(file)
        kept = gaussians["opacity"] >= alpha
        mesh = bpy.data.meshes.new(f"{folder.name} {index:05}")
        mesh.vertices.add(int(kept.sum()))
        mesh.vertices.foreach_set("co", gaussians["position"][kept].ravel())
        opaque = np.concatenate([gaussians["color"], np.ones_like(gaussians["color"][:, :1])], -1)
        for name, kind, slot, values in (
            ("color", "FLOAT_COLOR", "color", opaque),
            ("opacity", "FLOAT", "value", gaussians["opacity"]),
            ("scale", "FLOAT_VECTOR", "vector", gaussians["scale"]),
            ("rotation", "QUATERNION", "value", gaussians["rotation"]),
        ):
            layer = mesh.attributes.new(name, kind, "POINT")
            layer.data.foreach_set(slot, values[kept].astype(np.float32).ravel())
        frames.objects.link(bpy.data.objects.new(mesh.name, mesh))
    shown = bpy.data.objects.new(folder.name, bpy.data.meshes.new(folder.name))
    bpy.context.collection.objects.link(shown)
    material = _material(folder.name)
    shown.data.materials.append(material)
    modifier = shown.modifiers.new("Sequence", "NODES")
    modifier.node_group = _nodes(folder.name, frames, len(files), width, material)
    scene.frame_start, scene.frame_end = 1, len(files)
    if rate := frame_rate(folder):
        scene.render.fps = max(1, round(rate))
        scene.render.fps_base = scene.render.fps / rate
    return shown


def _material(name: str):
    """The Gaussian's colour as light, as clear as it is opaque."""
    import bpy

    material = bpy.data.materials.new(name)
    material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()

    def attribute(wanted: str):
        node = tree.nodes.new("ShaderNodeAttribute")
        node.attribute_type, node.attribute_name = "INSTANCER", wanted
        return node

    glow, clear = tree.nodes.new("ShaderNodeEmission"), tree.nodes.new("ShaderNodeBsdfTransparent")
    mix, out = tree.nodes.new("ShaderNodeMixShader"), tree.nodes.new("ShaderNodeOutputMaterial")
    tree.links.new(attribute("color").outputs["Color"], glow.inputs["Color"])
    tree.links.new(attribute("opacity").outputs["Fac"], mix.inputs[0])
    tree.links.new(clear.outputs[0], mix.inputs[1])
    tree.links.new(glow.outputs[0], mix.inputs[2])
    tree.links.new(mix.outputs[0], out.inputs["Surface"])
    return material


def _nodes(name: str, frames, count: int, width: float, material):
    """The mesh of the scene's frame, around from the last to the first, with an ellipsoid on each point."""
    import bpy

    tree = bpy.data.node_groups.new(f"{name} sequence", "GeometryNodeTree")
    tree.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    size = tree.interface.new_socket("Width", in_out="INPUT", socket_type="NodeSocketFloat")
    size.default_value, size.description = width, "Of the ellipsoids, in standard deviations"

    def add(kind: str, **settings):
        node = tree.nodes.new(kind)
        for key, value in settings.items():
            setattr(node, key, value)
        return node

    def named(wanted: str, kind: str):
        node = add("GeometryNodeInputNamedAttribute", data_type=kind)
        node.inputs["Name"].default_value = wanted
        return node.outputs["Attribute"]

    def maths(operation: str, *values):
        node = add("ShaderNodeMath", operation=operation)
        for socket, value in zip(node.inputs, values):
            if isinstance(value, float):
                socket.default_value = value
            else:
                tree.links.new(value, socket)
        return node.outputs[0]

    given = add("NodeGroupInput")
    info = add("GeometryNodeCollectionInfo")
    info.inputs["Collection"].default_value = frames
    info.inputs["Separate Children"].default_value = info.inputs["Reset Children"].default_value = True
    moment = maths("SUBTRACT", add("GeometryNodeInputSceneTime").outputs["Frame"], 1.0)
    index = maths("FLOORED_MODULO", maths("FLOOR", moment), float(count))
    other = add("FunctionNodeCompare", data_type="INT", operation="NOT_EQUAL")
    integers = [socket for socket in other.inputs if socket.type == "INT"]
    tree.links.new(add("GeometryNodeInputIndex").outputs[0], integers[0])
    tree.links.new(index, integers[1])
    deleted = add("GeometryNodeDeleteGeometry", domain="INSTANCE")
    tree.links.new(info.outputs[0], deleted.inputs["Geometry"])
    tree.links.new(other.outputs[0], deleted.inputs["Selection"])
    real = add("GeometryNodeRealizeInstances")
    tree.links.new(deleted.outputs[0], real.inputs[0])
    ball = add("GeometryNodeMeshIcoSphere")
    ball.inputs["Radius"].default_value, ball.inputs["Subdivisions"].default_value = 1.0, 2
    painted = add("GeometryNodeSetMaterial")
    painted.inputs["Material"].default_value = material
    tree.links.new(ball.outputs["Mesh"], painted.inputs["Geometry"])
    wide = add("ShaderNodeVectorMath", operation="SCALE")
    tree.links.new(named("scale", "FLOAT_VECTOR"), wide.inputs[0])
    tree.links.new(given.outputs["Width"], wide.inputs["Scale"])
    placed = add("GeometryNodeInstanceOnPoints")
    tree.links.new(real.outputs[0], placed.inputs["Points"])
    tree.links.new(painted.outputs[0], placed.inputs["Instance"])
    tree.links.new(named("rotation", "QUATERNION"), placed.inputs["Rotation"])
    tree.links.new(wide.outputs[0], placed.inputs["Scale"])
    result = add("NodeGroupOutput")
    tree.links.new(placed.outputs[0], result.inputs[0])
    return tree


def _operator():
    import bpy

    class ImportSplatSequence(bpy.types.Operator):
        """A folder of splat .ply files, one a frame"""

        bl_idname = "import_scene.splat_ply_sequence"
        bl_label = "Splat PLY sequence"
        bl_options = {"REGISTER", "UNDO"}  # noqa: RUF012

        directory: bpy.props.StringProperty(subtype="DIR_PATH")  # type: ignore[valid-type]
        filter_glob: bpy.props.StringProperty(default="*.ply", options={"HIDDEN"})  # type: ignore[valid-type]
        width: bpy.props.FloatProperty(name="Width", default=2.0, min=0.1, max=5.0)  # type: ignore[valid-type]

        def invoke(self, context, event):
            context.window_manager.fileselect_add(self)
            return {"RUNNING_MODAL"}

        def execute(self, context):
            try:
                load_sequence(Path(self.directory), width=self.width)
            except (OSError, ValueError) as error:
                self.report({"ERROR"}, str(error))
                return {"CANCELLED"}
            return {"FINISHED"}

    return ImportSplatSequence


_registered = []


def _menu(self, context):
    self.layout.operator("import_scene.splat_ply_sequence")


def register():
    import bpy

    _registered.append(_operator())
    bpy.utils.register_class(_registered[-1])
    bpy.types.TOPBAR_MT_file_import.append(_menu)


def unregister():
    import bpy

    bpy.types.TOPBAR_MT_file_import.remove(_menu)
    bpy.utils.unregister_class(_registered.pop())


if __name__ == "__main__":
    if "--" in sys.argv:
        import bpy

        bpy.ops.wm.read_factory_settings(use_empty=True)
        load_sequence(Path(sys.argv[sys.argv.index("--") + 1]))
        bpy.ops.wm.save_as_mainfile(filepath=str(Path(sys.argv[sys.argv.index("--") + 2]).absolute()))
    else:
        register()
