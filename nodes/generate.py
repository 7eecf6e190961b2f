"""4 Priors/Generate: what a method needs and the user has not, made by diffusion models: pictures, films, meshes, Gaussians and
views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.cameras import to_camera_info
from ..core.generate.inflate import CELLS, DEPTH, Nearer, inflate
from ..core.generate.sampling import StepProgress
from ..core.priors import models
from ..core.video import DrivingVideo
from . import host, widgets
from .prepare import mesh_output
from .view import splat_of

CATEGORY = "Anchor4D/4 Priors/Generate"


@contextmanager
def _work(node: type[io.ComfyNode]) -> Iterator[torch.device]:
    """What generators work in: the whole device, given back afterwards, and errors that name the node."""
    with host.work(node):
        comfy.model_management.unload_all_models()
        try:
            yield comfy.model_management.get_torch_device()
        except ImportError as error:
            raise ValueError(
                f"Python package {error.name} is not installed, install this pack's requirements.txt with ComfyUI's Python"
            ) from error
        finally:
            comfy.model_management.soft_empty_cache()


def _progress() -> StepProgress:
    """Steps as the host's bar with a preview of the pictures so far."""
    report = host.Report()

    def step(done: int, total: int, picture: Callable[[], Tensor | None]) -> None:
        def drawn() -> Tensor | None:
            made = picture()
            return torch.cat([*made], 1) if made is not None and made.ndim == 4 else made

        report.show(done, total, drawn)

    return step


def _model_inputs(*roles: str, name: str = "model", what: str = "The model.", path: str = "path") -> list[io.Input]:
    """A list of the models found here for some roles, and a text field for others."""
    found = dict.fromkeys(model for role in roles for model in models.folders_for(role))
    return [
        io.Combo.Input(
            name,
            options=[host.NONE, *found],
            tooltip=f"{what} Listed are those in ComfyUI's models/diffusers; `python -m anchor4d models list` shows what "
            "there is, `models get` fetches one. Press R after adding one.",
        ),
        io.String.Input(
            path,
            default="",
            optional=True,
            tooltip="A model's folder anywhere on this computer, or its name as models list shows it. Used instead of the list "
            "above when not empty.",
        ),
    ]


def _valid(model: str | None, path: str | None) -> bool | str:
    """The host's validation of a model's two inputs; None is a value that comes over a link and is known later."""
    if path or model is None:
        return True
    if model == host.NONE:
        return "choose a model in the list, or fill in path; python -m anchor4d models list shows where each is expected"
    return True if models.find(model) else str(models.missing(model))


def _changed(model: str, path: str) -> Any:
    source = host.model_source(model, path)
    folder = models.find(source) or Path(source)
    return [source, host.changed(folder) if folder.exists() else 0.0]


def _image_inputs() -> list[io.Input]:
    return [
        io.Image.Input("image", tooltip="A picture of one object, whole and from the front. Of a batch, the first."),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where the object is, 1 = object. Invert it if it comes from Load Image. Without one the object must stand "
            "on a plain background.",
        ),
    ]


def _picture(image: Tensor, mask: Tensor | None) -> Tensor:  # (B, H, W, C), (B, H, W) -> (H, W, 3 | 4)
    """The node's own copy of the first picture, with the mask as alpha. Called inside :func:`host.work`."""
    picture = image[0].detach().clone()
    if mask is None:
        return picture
    alpha = mask.reshape(-1, *mask.shape[-2:])[0].detach().clone().to(picture)
    if alpha.shape != picture.shape[:2]:
        raise ValueError(
            f"the mask has {alpha.shape[1]}x{alpha.shape[0]} pixels, the image {picture.shape[1]}x{picture.shape[0]}"
        )
    return torch.cat([picture[..., :3], alpha[..., None]], -1)


def _seed() -> io.Input:
    return widgets.seed("Another number = another result; the same = the same again.", renewed=True)


def _steps(default: int, tooltip: str) -> io.Input:
    return widgets.whole(
        "steps", default, (0 if default == 0 else 2, 200), tooltip, words=widgets.MODELS_OWN if default == 0 else None
    )


def _guidance(default: float, tooltip: str) -> io.Input:
    return widgets.real("guidance", default, (0.0, 50.0), tooltip, step=0.1, words=widgets.MODELS_OWN if default == 0 else None)


def _precision() -> io.Input:
    return widgets.choice(
        "precision",
        ["auto", "fp32", "bf16", "fp16"],
        "Numbers the networks count in. auto = half precision on a GPU, full on the CPU. fp32 = twice the memory.",
        folded=True,
    )


def _offload() -> io.Input:
    return widgets.choice(
        "offload",
        ["none", "model", "sequential"],
        "Where networks wait for their turn. none = all on the GPU: fastest. model = one network at a time on the "
        "GPU. sequential = one layer at a time: slow, for the smallest cards.",
        default="model",
        folded=True,
    )


# --- pictures -------------------------------------------------------------------------------------------------------------


class Anchor4DTextToImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DTextToImage",
            display_name="Text to Image",
            category=CATEGORY,
            description="Makes a picture of an object from a text, for Image to Video and Image to Gaussians, with a model in "
            "diffusers' layout: Stable Diffusion 1 to 3 and XL, Flux, Sana or PixArt.",
            search_aliases=["t2i", "txt2img", "stable diffusion", "sdxl", "flux", "sana", "pixart", "generate"],
            inputs=[
                *_model_inputs("text-to-image", what="The image model."),
                io.String.Input("prompt", default="", multiline=True, tooltip="What the object is."),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    multiline=True,
                    tooltip="What should not be seen. Empty = the usual: cropped, several objects, cluttered background, ...",
                ),
                widgets.whole(
                    "size",
                    0,
                    (0, 2048),
                    "Side of the square picture, pixels. 0 = the model's own: 512 for Stable Diffusion 1.5, 1024 XL.",
                    step=16,
                    words=widgets.MODELS_OWN,
                ),
                _steps(0, "Steps of the sampler. More = finer, slower. 0 = what the model's makers use."),
                _guidance(
                    0.0, "How closely the prompt is followed. Higher = closer, harsher. 0 = what the model's makers use."
                ),
                _seed(),
                io.String.Input(
                    "suffix",
                    default="a single whole object, front view, plain white background",
                    optional=True,
                    advanced=True,
                    tooltip="Added to the prompt: what makes an object easy to cut out and to see from other sides. Empty it "
                    "for a "
                    "picture of your own framing.",
                ),
                _offload(),
                _precision(),
            ],
            outputs=[io.Image.Output("image", tooltip="The picture, for Image to Video and Image to Gaussians or Mesh.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, path: str | None = None) -> bool | str:
        return _valid(model, path)

    @classmethod
    def fingerprint_inputs(cls, model: str, path: str = "", **settings: Any) -> Any:
        return _changed(model, path)

    @classmethod
    def execute(
        cls,
        model: str,
        prompt: str,
        negative_prompt: str,
        size: int,
        steps: int,
        guidance: float,
        path: str = "",
        **options: Any,
    ) -> io.NodeOutput:
        with _work(cls) as device:
            from ..core.generate.image import text_to_image

            picture = text_to_image(
                prompt, host.model_source(model, path), negative=negative_prompt.strip() or None, size=size or None,
                steps=steps or None,
                guidance=guidance or None, device=device, progress=_progress(), **options,
            )[None]  # fmt: skip
            return io.NodeOutput(picture, ui=host.stills(picture))


# --- films ----------------------------------------------------------------------------------------------------------------


def _film_inputs() -> list[io.Input]:
    """How long, how large and how carefully; 0 is always the model's own."""
    return [
        widgets.whole(
            "frames",
            0,
            (0, 257),
            "Frames of the film. 0 = what the model was made for. Fewer = faster.",
            words=widgets.MODELS_OWN,
        ),
        widgets.whole(
            "width",
            0,
            (0, 2048),
            "Pixels; most models want multiples of 16, LTX of 32, Stable Video Diffusion of 64. 0 = the model's own.",
            step=16,
            words=widgets.MODELS_OWN,
        ),
        widgets.whole("height", 0, (0, 2048), "Pixels, as width. 0 = the model's own.", step=16, words=widgets.MODELS_OWN),
        widgets.real(
            "fps",
            0.0,
            (0.0, 60.0),
            "Frames a second. LTX and Stable Video Diffusion take it as a condition: low = much motion between "
            "frames. For the "
            "others it is how fast the film plays. 0 = the model's own.",
            step=0.5,
        ),
        _steps(0, "Steps of the sampler. More = finer, slower. 0 = what the model's makers use."),
        _guidance(0.0, "How closely the prompt is followed. Higher = closer, harsher. 0 = what the model's makers use."),
        _seed(),
        io.String.Input(
            "suffix",
            default="a single object, static camera, plain white background",
            optional=True,
            advanced=True,
            tooltip="Added to the prompt: what makes an object easy to cut out and follow.",
        ),
        _offload(),
        _precision(),
    ]


def _film_outputs() -> list[io.Output]:
    return [
        io.Image.Output("images", tooltip="The film's frames, for Prepare Driving Video."),
        io.Float.Output("fps", tooltip="Frames a second, for Prepare Driving Video."),
    ]


def _film(generate: Callable[..., Any], *inputs: Any, negative_prompt: str, **options: Any) -> io.NodeOutput:
    numbers = ("frames", "width", "height", "fps", "steps", "guidance")
    options |= {name: options[name] or None for name in numbers}
    film = generate(*inputs, negative=negative_prompt.strip() or None, progress=_progress(), **options)
    count, height, width = film.frames.shape[:3]
    host.say(f"{count} frames of {width}x{height} at {film.fps:g} fps")
    step = max(1, height // 256)
    return io.NodeOutput(film.frames, film.fps, ui=host.film(film.frames[:, ::step, ::step], film.fps))


class Anchor4DTextToVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DTextToVideo",
            display_name="Text to Video",
            category=CATEGORY,
            description="Makes a film of an object from a text, with a video model in diffusers' layout: Wan, LTX-Video, "
            "HunyuanVideo, CogVideoX, Kandinsky 5, AnimateDiff, ModelScope or Zeroscope.",
            search_aliases=[
                "t2v",
                "wan",
                "ltx",
                "hunyuan video",
                "cogvideox",
                "kandinsky",
                "animatediff",
                "zeroscope",
                "generate",
            ],
            inputs=[
                *_model_inputs("text-to-video", what="The video model."),
                io.String.Input("prompt", default="", multiline=True, tooltip="What the object is, and how it moves."),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    multiline=True,
                    tooltip="What should not be seen. Empty = the usual: no motion, camera movement, cluttered background, ...",
                ),
                *_film_inputs(),
                io.String.Input(
                    "motion_adapter",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Of AnimateDiff: the motion adapter's folder. Empty = the one inside or beside the model's folder.",
                ),
            ],
            outputs=_film_outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, path: str | None = None) -> bool | str:
        return _valid(model, path)

    @classmethod
    def fingerprint_inputs(cls, model: str, path: str = "", **settings: Any) -> Any:
        return _changed(model, path)

    @classmethod
    def execute(
        cls, model: str, prompt: str, negative_prompt: str, path: str = "", motion_adapter: str = "", **options: Any
    ) -> io.NodeOutput:
        with _work(cls) as device:
            from ..core.generate.video import text_to_video

            adapter = motion_adapter.strip().strip('"') or None
            return _film(
                text_to_video, host.model_source(model, path), prompt, negative_prompt=negative_prompt, motion_adapter=adapter,
                device=device, **options,
            )  # fmt: skip


class Anchor4DImageToVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DImageToVideo",
            display_name="Image to Video",
            category=CATEGORY,
            description="Makes a film that begins with a picture, with a video model in diffusers' layout: Wan, LTX-Video, "
            "HunyuanVideo, CogVideoX, Kandinsky 5 or Stable Video Diffusion.",
            search_aliases=["i2v", "animate image", "wan", "ltx", "hunyuan video", "cogvideox", "svd", "generate"],
            inputs=[
                *_image_inputs(),
                *_model_inputs("image-to-video", what="The video model."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="How the object moves. Stable Video Diffusion takes none, it goes by the picture alone.",
                ),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    multiline=True,
                    tooltip="What should not be seen. Empty = the usual: no motion, camera movement, cluttered background, ...",
                ),
                *_film_inputs(),
            ],
            outputs=_film_outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, path: str | None = None) -> bool | str:
        return _valid(model, path)

    @classmethod
    def fingerprint_inputs(cls, model: str, path: str = "", **settings: Any) -> Any:
        return _changed(model, path)

    @classmethod
    def execute(
        cls,
        image: Tensor,
        model: str,
        prompt: str,
        negative_prompt: str,
        mask: Tensor | None = None,
        path: str = "",
        **options: Any,
    ) -> io.NodeOutput:
        with _work(cls) as device:
            from ..core.generate.video import image_to_video

            return _film(
                image_to_video, host.model_source(model, path), _picture(image, mask), prompt, negative_prompt=negative_prompt,
                device=device, **options,
            )  # fmt: skip


# --- meshes ---------------------------------------------------------------------------------------------------------------


def _mesh_inputs(guidance: float) -> list[io.Input]:
    return [
        _steps(64, "Steps of the sampler. More = finer, slower."),
        _guidance(guidance, "How closely the input is followed. Higher = closer, less varied."),
        widgets.whole(
            "resolution",
            128,
            (16, 256),
            "Cells of the grid that the shape is read off from. Higher = smoother, slower, more faces.",
            step=16,
        ),
        _seed(),
        _precision(),
    ]


class Anchor4DTextToMesh(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DTextToMesh",
            display_name="Text to Mesh (Shap-E)",
            category=CATEGORY,
            description="Makes a coarse coloured mesh from a text, with Shap-E: small, quick, free to use.",
            search_aliases=["shap-e", "t2m", "text to 3d", "generate mesh", "generate"],
            inputs=[
                *_model_inputs("text-to-mesh", what="Shap-E (openai/shap-e)."),
                io.String.Input("prompt", default="", multiline=True, tooltip="What the object is, in few words."),
                *_mesh_inputs(15.0),
            ],
            outputs=[host.Mesh.Output("mesh", tooltip="The mesh, +Y up, its front towards +Z, for Focal Alignment.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, path: str | None = None) -> bool | str:
        return _valid(model, path)

    @classmethod
    def fingerprint_inputs(cls, model: str, path: str = "", **settings: Any) -> Any:
        return _changed(model, path)

    @classmethod
    def execute(cls, model: str, prompt: str, path: str = "", **options: Any) -> io.NodeOutput:
        with _work(cls) as device:
            from ..core.generate.mesh import text_to_mesh

            return mesh_output(
                text_to_mesh(host.model_source(model, path), prompt, device=device, progress=_progress(), **options)
            )


class Anchor4DImageToMesh(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DImageToMesh",
            display_name="Image to Mesh (Shap-E)",
            category=CATEGORY,
            description="Makes a coarse coloured mesh of the object in a picture, with Shap-E: small, quick, free to use. For "
            "finer ones, connect ComfyUI's own Hunyuan3D to Convert Mesh.",
            search_aliases=["shap-e", "i2m", "image to 3d", "generate mesh", "generate"],
            inputs=[
                *_image_inputs(),
                *_model_inputs("image-to-mesh", what="Shap-E for pictures (openai/shap-e-img2img)."),
                *_mesh_inputs(3.0),
            ],
            outputs=[host.Mesh.Output("mesh", tooltip="The mesh, +Y up, for Focal Alignment, which finds its front.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, path: str | None = None) -> bool | str:
        return _valid(model, path)

    @classmethod
    def fingerprint_inputs(cls, model: str, path: str = "", **settings: Any) -> Any:
        return _changed(model, path)

    @classmethod
    def execute(cls, image: Tensor, model: str, mask: Tensor | None = None, path: str = "", **options: Any) -> io.NodeOutput:
        with _work(cls) as device:
            from ..core.generate.mesh import image_to_mesh

            picture = _picture(image, mask)
            return mesh_output(
                image_to_mesh(host.model_source(model, path), picture, device=device, progress=_progress(), **options)
            )


# --- views and Gaussians --------------------------------------------------------------------------------------------------


class Anchor4DMultiViewImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DMultiViewImages",
            display_name="Multi-view Images",
            category=CATEGORY,
            description="Draws six views around the object of a picture, with Zero123++: at 30, 90, 150, 210, 270 and 330 "
            "degrees counter-clockwise, in turn from above and below.",
            search_aliases=["zero123++", "zero123plus", "novel views", "multiview", "six views", "generate"],
            inputs=[
                *_image_inputs(),
                *_model_inputs("multiview", what="A Zero123++."),
                _steps(28, "Steps of the sampler. 28 for most objects, 75 for fine detail such as faces."),
                _guidance(4.0, "How closely the picture is followed. Higher = closer, harsher."),
                _seed(),
                _precision(),
            ],
            outputs=[io.Image.Output("images", tooltip="The six views on grey, 320 pixels each.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, path: str | None = None) -> bool | str:
        return _valid(model, path)

    @classmethod
    def fingerprint_inputs(cls, model: str, path: str = "", **settings: Any) -> Any:
        return _changed(model, path)

    @classmethod
    def execute(cls, image: Tensor, model: str, mask: Tensor | None = None, path: str = "", **options: Any) -> io.NodeOutput:
        with _work(cls) as device:
            from ..core.generate.multiview import multiview_images

            pictures, _ = multiview_images(
                host.model_source(model, path), _picture(image, mask), device=device, progress=_progress(), **options
            )
            return io.NodeOutput(pictures, ui=host.stills(pictures))


class Anchor4DImageToGaussians(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DImageToGaussians",
            display_name="Image to Gaussians (LGM)",
            category=CATEGORY,
            description="Makes a still splat of the object in a picture: ImageDream draws four views, LGM turns them into "
            "Gaussians.",
            search_aliases=["lgm", "imagedream", "image to 3d", "image to splat", "generate splat", "generate"],
            inputs=[
                *_image_inputs(),
                *_model_inputs("gaussians", name="lgm", what="LGM's weights.", path="lgm_path"),
                *_model_inputs("multiview", name="imagedream", what="An ImageDream.", path="imagedream_path"),
                io.String.Input(
                    "prompt", default="", optional=True, tooltip="What the object is, in few words. May stay empty."
                ),
                _steps(30, "Steps of ImageDream's sampler. More = finer, slower."),
                _guidance(5.0, "How closely the picture is followed. Higher = closer, harsher."),
                _seed(),
                _precision(),
            ],
            outputs=[
                io.Splat.Output(
                    "splat", tooltip="The object as one splat, for Focal Alignment or Create 3D File (from Splat)."
                ),
                io.Image.Output("views", tooltip="The four views that it was made from: front, +90, back, -90 degrees."),
                io.Load3DCamera.Output(
                    "camera_info", tooltip="The camera that sees the splat as the first view, for Render Splat."
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        lgm: str | None = None,
        lgm_path: str | None = None,
        imagedream: str | None = None,
        imagedream_path: str | None = None,
    ) -> bool | str:
        first = _valid(lgm, lgm_path)
        return first if first is not True else _valid(imagedream, imagedream_path)

    @classmethod
    def fingerprint_inputs(
        cls, lgm: str, imagedream: str, lgm_path: str = "", imagedream_path: str = "", **settings: Any
    ) -> Any:
        return [_changed(lgm, lgm_path), _changed(imagedream, imagedream_path)]

    @classmethod
    def execute(
        cls,
        image: Tensor,
        lgm: str,
        imagedream: str,
        mask: Tensor | None = None,
        lgm_path: str = "",
        imagedream_path: str = "",
        prompt: str = "",
        **options: Any,
    ) -> io.NodeOutput:
        with _work(cls) as device:
            from ..core.generate.gaussians import image_to_gaussians

            made = image_to_gaussians(
                host.model_source(lgm, lgm_path), host.model_source(imagedream, imagedream_path), _picture(image, mask),
                text=prompt.strip(),
                device=device, progress=_progress(), **options,
            )  # fmt: skip
            host.say(f"{len(made.gaussians)} Gaussians")
            views = made.views.cpu()
            return io.NodeOutput(splat_of([made.gaussians]), views, to_camera_info(made.front.cameras()), ui=host.stills(views))


class Anchor4DInflateObject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Anchor4DInflateObject",
            display_name="Inflate Object",
            category=CATEGORY,
            description="Makes a closed mesh of the object in a driving video's first frame without any model: its outline is "
            "inflated, the front shows the frame, the back continues the outline's colours.",
            search_aliases=["image to 3d", "image to mesh", "video to 4d", "no model", "balloon", "monster mash", "generate"],
            inputs=[
                host.Video.Input("driving_video", tooltip="From Prepare Driving Video; its first frame is inflated."),
                io.Combo.Input(
                    "nearer",
                    options=["auto", "neither", "left", "right"],
                    default="auto",
                    tooltip="Which end of the object is nearer to the camera. auto = the higher end of something wider than "
                    "tall, as animals are filmed; neither = it stands square to the camera.",
                ),
                io.Float.Input(
                    "depth",
                    default=DEPTH,
                    min=0.05,
                    max=3.0,
                    step=0.05,
                    tooltip="Thickness: lower = flatter, 1 = a disc becomes a ball, higher = thicker than wide.",
                ),
                io.Int.Input(
                    "cells",
                    default=CELLS,
                    min=16,
                    max=512,
                    optional=True,
                    advanced=True,
                    tooltip="Of the mesh along the outline's longer side. Higher = finer, slower to fit.",
                ),
            ],
            outputs=[
                host.Mesh.Output(
                    "mesh", tooltip="The object, its front to +Z: for Focal Alignment, with front set to 0 degrees."
                )
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, driving_video: DrivingVideo, nearer: Nearer, depth: float, cells: int = CELLS) -> io.NodeOutput:
        with host.work(cls):
            picture = torch.cat([driving_video.frames[0], driving_video.masks[0, ..., None]], -1)
            return mesh_output(inflate(picture, depth=depth, nearer=nearer, cells=cells))


NODES = [
    Anchor4DTextToImage,
    Anchor4DTextToVideo,
    Anchor4DImageToVideo,
    Anchor4DTextToMesh,
    Anchor4DImageToMesh,
    Anchor4DMultiViewImages,
    Anchor4DImageToGaussians,
    Anchor4DInflateObject,
]
