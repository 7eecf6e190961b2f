"""Wavefront OBJ and its materials (MTL): polygons with texture coordinates, normals and colours of vertices.

Source: Wavefront's Object Files, appendix B1 of the Advanced Visualizer manual, and what exporters make of it: tabs, relative
indices, continued lines, polygons of any number of corners (cut as fans), corners with and without texture coordinates in one
file, colours behind the positions, names of textures with folders of another machine or in another case.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import InputError
from ..pictures import PictureBudget
from ..reading import VARIABLES, limits, read_bytes
from .parts import CLAMP, REPEAT, Part, lying_beside, welded

log = logging.getLogger(__name__)

#: A text takes many times its size to read.
_TEXT = 4
_MTL_BYTES = 64 << 20
#: Options of map_Kd and how many words follow each, the three that take one to three numbers aside.
_OPTIONS = dict.fromkeys(("-blendu", "-blendv", "-boost", "-texres", "-clamp", "-bm", "-imfchan", "-type", "-cc"), 1) | {
    "-mm": 2
}


@dataclass
class _Material:
    color: list[float] | None = None  # (3,) sRGB
    image: Image.Image | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    wrap: str = REPEAT


def obj_parts(path: Path) -> list[Part]:
    """The parts of an OBJ file, one for each material, of one with a texture also one for faces without coordinates.

    Raises:
        InputError: for a damaged or oversized file, or a texture that is missing.
    """
    data = read_bytes(path, "mesh", limits().file_bytes // _TEXT)
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\\\n", b" ").replace(b"\t", b" ")
    rows: dict[bytes, list[bytes]] = {b"v": [], b"vt": [], b"vn": []}
    lines: list[bytes] = []  # of faces
    owner: list[int] = []  # material of each
    names: dict[str, int] = {"": 0}
    libraries: list[str] = []
    current = 0
    points, places, normals = rows[b"v"], rows[b"vt"], rows[b"vn"]
    for line in data.split(b"\n"):
        key, _, rest = line.lstrip(b" ").partition(b" ")
        if key in rows:
            rows[key].append(rest)
        elif key == b"f":
            if b"-" in rest:
                rest = _absolute(path, rest, (len(points), len(places), len(normals)))
            lines.append(rest)
            owner.append(current)
        elif key == b"usemtl":
            current = names.setdefault(_text(rest), len(names))
        elif key == b"mtllib":
            libraries.append(_text(rest))
    most = limits().elements
    if max(len(points), len(lines)) > most:
        raise InputError(f"{path}: more than {most:,} vertices or faces, reduce the mesh or raise {VARIABLES['elements'][0]}")
    if not lines:
        return []
    table = _table(path, points, 3)
    vertices, colors = table[:, :3], _colors(table)
    uvs, vn = _table(path, places, 1), _table(path, normals, 3)[:, :3]
    uvs = uvs[:, :2] if uvs.shape[1] > 1 else np.concatenate([uvs, np.zeros_like(uvs)], -1)
    corners, faces = _corners(path, lines, (len(vertices), len(uvs), len(vn)))
    if len(faces) > most:
        raise InputError(
            f"{path}: {len(faces):,} faces, more than {most:,}, reduce the mesh or raise {VARIABLES['elements'][0]}"
        )
    material = np.repeat(np.array(owner), np.maximum(corners.sizes - 2, 0))
    materials = _materials(path, libraries, names)
    parts = []
    for name, index in names.items():
        own = faces[material == index]
        look = materials.get(name, _Material())
        if not len(own):
            continue
        placed = (corners.index[own, 1] > 0).all(-1) & (look.image is not None)
        if look.image is not None and not placed.all():
            log.warning(
                "%s: %d faces of material %s have no texture coordinates, they take its colour",
                path,
                int((~placed).sum()),
                name,
            )
        for textured in (True, False):
            some = own[placed == textured]
            if not len(some):
                continue
            rows_of, inverse = welded(corners.index[some.reshape(-1)] * [1, int(textured), 1])
            part = {"vertices": vertices[rows_of[:, 0] - 1], "faces": inverse.reshape(-1, 3)}
            if len(vn) and rows_of[:, 2].any():
                part["normals"] = np.concatenate([np.zeros((1, 3)), vn])[rows_of[:, 2]]
            if colors is not None:
                part["vertex_colors"] = colors[rows_of[:, 0] - 1]
            if textured:
                placing = uvs[rows_of[:, 1] - 1] * look.scale + look.offset
                part |= {"uvs": placing * [1, -1] + [0, 1], "image": look.image, "wrap": (look.wrap, look.wrap)}
            elif look.color is not None and (look.image is None or max(look.color) > 0):
                part["face_color"] = np.array([*look.color, 1.0])
            parts.append(Part(**part))
    return parts


def _text(data: bytes) -> str:
    try:
        return data.strip().decode()
    except UnicodeDecodeError:
        return data.strip().decode("cp1252", "replace")


def _absolute(path: Path, rest: bytes, counts: tuple[int, int, int]) -> bytes:
    """A face's corners with relative indices, which count back from the latest element, made absolute."""

    def one(corner: bytes) -> bytes:
        return b"/".join(
            str(count + 1 + int(word)).encode() if word.startswith(b"-") else word
            for word, count in zip(corner.split(b"/"), counts)
        )

    try:
        return b" ".join(map(one, rest.split()))
    except ValueError:
        raise _damaged(path, "a face", rest) from None


def _damaged(path: Path, what: str, line: bytes) -> InputError:
    return InputError(f"{path}: damaged, {what} reads {_text(line[:40])!r}; export it again")


def _numbers(text: bytes, kind: type) -> np.ndarray:
    """White-space separated numbers, up to the first that is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a text that does not end in a number
        try:
            return np.fromstring(text, kind, sep=" ")  # type: ignore[call-overload]
        except ValueError:
            return np.zeros(0, kind)


def _table(path: Path, lines: list[bytes], least: int) -> np.ndarray:  # -> (N, C)
    """Numbers of the v, vt or vn lines; as many columns as the shortest line has."""
    if not lines:
        return np.zeros((0, max(least, 3)))
    sizes = [len(line.split()) for line in lines]
    width = min(sizes)
    if width < least:
        raise _damaged(path, "a vertex", lines[sizes.index(width)])
    if max(sizes) > width:
        lines = [b" ".join(line.split()[:width]) for line in lines]
    values = _numbers(b" ".join(lines), np.float64)
    if values.size != width * len(lines):
        wrong = next((line for line in lines if _numbers(line, np.float64).size != width), lines[0])
        raise _damaged(path, "a vertex", wrong)
    return values.reshape(-1, width)


def _colors(table: np.ndarray) -> np.ndarray | None:  # -> (V, 4)
    """Colours behind the positions, in [0, 1] or in bytes."""
    if table.shape[1] < 6:
        return None
    colors = table[:, 3:7] if table.shape[1] > 6 else np.concatenate([table[:, 3:6], np.ones((len(table), 1))], -1)
    top = colors[:, :3].max(initial=0)
    return (colors / ([255, 255, 255, 255 if colors[:, 3].max(initial=0) > 1 else 1] if top > 1 else 1)).clip(0, 1)


@dataclass
class _Corners:
    index: np.ndarray  # (C, 3) of v, vt, vn, from 1; 0 where there is none
    sizes: np.ndarray  # (faces) corners of each


def _corners(path: Path, lines: list[bytes], counts: tuple[int, int, int]) -> tuple[_Corners, np.ndarray]:
    """All corners of the faces, and the triangles (F, 3) of their fans as indices of corners."""
    sizes = np.array([len(line.split()) for line in lines])
    starts = np.concatenate([[0], sizes.cumsum()])
    index = np.zeros((int(starts[-1]), 3), np.int64)
    slashes = np.array([line.count(b"/") for line in lines])
    doubled = np.array([line.count(b"//") for line in lines])
    done = np.zeros(len(lines), bool)
    forms = {(0,): slashes == 0, (0, 1): slashes == sizes, (0, 2): (slashes == 2 * sizes) & (doubled == sizes)}
    forms[(0, 1, 2)] = (slashes == 2 * sizes) & (doubled == 0)
    for columns, member in forms.items():
        which = member.nonzero()[0]
        text = b" ".join([lines[i] for i in which.tolist()])
        values = _numbers(text.replace(b"/", b" "), np.int64)
        if values.size != int(sizes[which].sum()) * len(columns):
            continue  # a form of its own, such as 1/2/
        rows = _ranges(starts[which], sizes[which])
        index[rows[:, None], columns] = values.reshape(-1, len(columns))
        done[which] = True
    for i in (~done).nonzero()[0].tolist():
        try:
            refs = [[int(word or 0) for word in (*ref.split(b"/"), b"", b"")[:3]] for ref in lines[i].split()]
        except ValueError:
            raise _damaged(path, "a face", lines[i]) from None
        index[starts[i] : starts[i + 1]] = np.array(refs, dtype=object).clip(-1, 2**62)
    for column, (what, count) in enumerate(zip(("vertex", "texture coordinate", "normal"), counts)):
        low = 1 if column == 0 else 0
        if len(index) and (int(index[:, column].min()) < low or int(index[:, column].max()) > count):
            raise InputError(f"{path}: a face refers to a {what} that does not exist, export it again")
    fans = np.maximum(sizes - 2, 0)
    if (sizes < 3).any():
        log.warning("%s: %d faces of fewer than three corners are left out", path, int((sizes < 3).sum()))
    first = np.repeat(starts[:-1], fans)
    step = _ranges(np.zeros_like(fans), fans)
    return _Corners(index, sizes), np.stack([first, first + step + 1, first + step + 2], -1)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers from each start, as many as its length, one after the other."""
    ends = lengths.cumsum()
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths - starts, lengths)


# --- materials ----------------------------------------------------------------------------------------------------------


def _materials(path: Path, libraries: list[str], used: dict[str, int]) -> dict[str, _Material]:
    """The materials that faces use, by name."""
    found: dict[str, _Material] = {}
    budget = PictureBudget()
    images: dict[Path, Image.Image] = {}
    for library in dict.fromkeys(libraries):
        whole = lying_beside(path, library)
        files = [whole] if whole else [lying_beside(path, name) for name in library.split()]
        for file in files:
            if file is None:
                log.warning("%s: %s is missing, the object is read without its colours; put it beside the mesh", path, library)
                continue
            for name, lines in _sections(file).items():
                if name in used and name not in found:
                    found[name] = _material(path, lines, budget, images)
    if lost := [name for name in used if name and name not in found]:
        log.warning("%s: no material %s, its faces are read without colours", path, lost[0])
    return found


def _sections(file: Path) -> dict[str, list[tuple[str, str]]]:
    """Key and rest of the lines of each material."""
    sections: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in _text(read_bytes(file, "material file", _MTL_BYTES)).splitlines():
        key, _, rest = line.strip().replace("\t", " ").partition(" ")
        if key.lower() == "newmtl":
            current = sections.setdefault(rest.strip(), [])
        else:
            current.append((key.lower(), rest.strip()))
    return sections


def _material(path: Path, lines: list[tuple[str, str]], budget: PictureBudget, images: dict[Path, Image.Image]) -> _Material:
    made = _Material()
    for key, rest in lines:
        if key == "kd":
            values = _numbers(rest.encode(), np.float64)
            if len(values) in (1, 3) and np.isfinite(values).all():
                made.color = np.broadcast_to(values, 3).clip(0, 1).tolist()
        elif key == "map_kd" and rest:
            name = _options(rest, made)
            file = lying_beside(path, name) or lying_beside(path, rest)
            if file is None:
                raise InputError(f"{path}: {name[:80]} is missing, put it beside the mesh or remove the reference to it")
            if file not in images:
                images[file] = budget.open(read_bytes(file, "texture"), file.name, str(path))
            made.image = images[file]
    return made


def _options(rest: str, made: _Material) -> str:
    """The name in a map_Kd line; options before it that matter go to the material."""
    words = rest.split()
    while len(words) > 1 and words[0].lower() in {*_OPTIONS, "-s", "-o", "-t"}:
        option = words.pop(0).lower()
        count = _OPTIONS.get(option, 0)
        while (
            option in ("-s", "-o", "-t") and count < min(3, len(words) - 1) and _numbers(words[count].encode(), np.float64).size
        ):
            count += 1
        values, words = words[:count], words[count:]
        numbers = [float(_numbers(value.encode(), np.float64)[0]) for value in values] if option in ("-s", "-o") else []
        if option == "-clamp":
            made.wrap = CLAMP if values[:1] == ["on"] else REPEAT
        elif numbers and all(np.isfinite(numbers)):
            pair = (numbers[0], numbers[1] if len(numbers) > 1 else (1.0 if option == "-s" else 0.0))
            made.scale, made.offset = (pair, made.offset) if option == "-s" else (made.scale, pair)
    return " ".join(words) if len(words) < len(rest.split()) else rest
