"""How a picture becomes the pixels that a model was trained on: read from both config formats, applied, written."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clip_jax.models import ModelConfig
from input_pipeline.transforms import resize_and_center_crop, resize_squashed

RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESCALE = 1 / 255
# Keys of an image processor that change no pixel of ours, with the values that do not; None: any value.
HF_NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "do_convert_rgb": (True, False, None),
    "do_pad": (False, None),
    "default_to_square": None,
    "input_data_format": (None,),
    "data_format": (None, "channels_first"),
    "device": (None,),
    "disable_grouping": (None, True, False),
    "return_tensors": (None,),
    "image_processor_type": None,
    "feature_extractor_type": None,
    "processor_class": None,
    "_valid_processor_keys": None,
}
HF_READ = {"do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"}
HF_READ |= {"do_normalize", "image_mean", "image_std"}
OPEN_CLIP_READ = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """From a picture to a square of pixels in 0..255.

    Attributes:
      resize_mode: "shortest" resizes the shorter side and cuts out the centre, "squash" resizes both sides.
      interpolation: antialiased, of Pillow.
      resize_size: pixels that are resized to, before the centre of the model's image_size is cut out; 0: image_size.
      library: whose order and rounding: "transformers" converts to RGB before it resizes, and floors the place of the
        cut; "torchvision" converts last, and rounds half to even. Files of open_clip have no word for it, so that two
        transforms count as equal whose libraries differ.
    """

    resize_mode: Literal["shortest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_size: int = 0
    library: Literal["torchvision", "transformers"] = field(default="torchvision", compare=False)

    def __call__(self, image: Image.Image, image_size: int) -> UInt8[np.ndarray, "S S 3"]:
        """image: of a mode that `decode_image` gives. image_size: S in pixels."""
        is_hf = self.library == "transformers"
        if is_hf and image.mode != "RGB":
            image = image.convert("RGB")
        resample, size = RESAMPLE[self.interpolation], self.resize_size or image_size
        if self.resize_mode == "shortest":
            return resize_and_center_crop(image, image_size, size, resample, floored=is_hf)
        squashed = resize_squashed(image, size, resample)
        return squashed if size == image_size else resize_and_center_crop(squashed, image_size, size, floored=is_hf)

    @property
    def settings(self) -> dict[str, Any]:
        """Those that are not the default, by name."""
        changed = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        return {name: value for name, value, default in changed if value != default}

    def __str__(self) -> str:
        cut = f", of {self.resize_size} pixels the centre" if self.resize_size else ""
        return f"{self.resize_mode}, {self.interpolation}{cut}"


def only(values: set[Any], what: str) -> Any:
    """The only value of a set; raises ValueError if the towers differ."""
    if len(values) != 1:
        raise ValueError(f"the two towers differ in {what}, {sorted(values)}; clip_jax has one for both")
    return values.pop()


def mean_std(
    images: Mapping[str, Any], mean: str, std: str, default: tuple[float, ...] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1], under these keys; a default of None is the released models'."""
    if images.get("do_normalize", True) is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    given = [images.get(key, default) for key in (mean, std)]
    released = (ModelConfig.image_mean, ModelConfig.image_std)
    first, second = (tuple(values or fallback) for values, fallback in zip(given, released))
    return first, second


def transform_from_hf(images: Mapping[str, Any], image_size: int, is_clip: bool, source: str) -> ImageTransform:
    """From the settings of transformers' image processor, {} without any; in older ones sizes are plain numbers.

    Raises ValueError that lists every setting of the file `source` that clip_jax cannot follow.
    """
    wrong: list[str] = []

    def need(key: str, is_right: Callable[[Any], bool], default: Any) -> Any:
        if not is_right(value := images.get(key, default)):
            wrong.append(f"{key}={value!r}")
        return value

    def side(key: str, default: Any) -> int:
        """Pixels of a square, or 0."""
        value = images.get(key, default)
        if isinstance(value, Mapping):
            sides = set(value.values())
            value = sides.pop() if set(value) == {"height", "width"} and len(sides) == 1 else 0
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    for key in sorted(images.keys() - HF_READ):
        neutral = HF_NEUTRAL.get(key, ())
        if neutral is not None:
            need(key, lambda value, neutral=neutral: value in neutral, None)  # type: ignore[misc]
    need("do_resize", lambda value: value is True, True)
    need("do_rescale", lambda value: value is True, True)
    need("rescale_factor", lambda value: isinstance(value, float) and abs(value - RESCALE) < 1e-9, RESCALE)
    need("do_normalize", lambda value: value in (True, False), True)
    numbers = {int(number): name for name, number in RESAMPLE.items()}
    resample = need("resample", lambda value: value in numbers, int(RESAMPLE["bicubic"]))
    is_cut = need("do_center_crop", lambda value: value in (True, False, None), is_clip)
    square = {"height": image_size, "width": image_size}
    size = images.get("size", image_size if is_clip else square)
    is_shortest = isinstance(size, int) or (isinstance(size, Mapping) and set(size) == {"shortest_edge"})
    resized = size["shortest_edge"] if isinstance(size, Mapping) and is_shortest else side("size", square)
    if is_cut:
        need("crop_size", lambda _: side("crop_size", image_size) == image_size, image_size)
    fits = isinstance(resized, int) and resized >= image_size if is_cut else not is_shortest and resized == image_size
    if not fits:
        wrong.append(f"size={size!r}")
    if wrong:
        raise ValueError(
            f"{source} has {', '.join(wrong)}; clip_jax resizes by one of {', '.join(RESAMPLE)} (resample 3 and 2), to "
            f"the model's {image_size} pixels or, where the centre is cut out, to more, and scales by 1/255"
        )
    return ImageTransform(
        resize_mode="shortest" if is_shortest else "squash",
        interpolation=numbers[resample],  # type: ignore[arg-type]
        resize_size=0 if resized == image_size else resized,
        library="transformers",
    )


def hf_preprocessor_json(config: ModelConfig, transform: ImageTransform) -> dict[str, Any]:
    """preprocessor_config.json: how transformers' processor prepares a picture."""
    size = config.vision.image_size
    resized = transform.resize_size or size
    is_shortest = transform.resize_mode == "shortest"
    is_cut = is_shortest or resized != size
    crop = {"do_center_crop": is_cut} | ({"crop_size": {"height": size, "width": size}} if is_cut else {})
    return {
        "image_processor_type": "CLIPImageProcessor" if is_cut else "SiglipImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": resized} if is_shortest else {"height": resized, "width": resized},
        "resample": int(RESAMPLE[transform.interpolation]),
        **crop,
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": RESCALE,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }


def transform_from_open_clip(images: Mapping[str, Any], image_size: int) -> ImageTransform:
    """From open_clip's preprocess_cfg, {} without one.

    Raises ValueError that lists every setting that clip_jax cannot follow.
    """
    mode, interpolation = images.get("resize_mode", "shortest"), images.get("interpolation", "bicubic")
    size = images.get("size", image_size)
    wrong = [f"{key}={value!r}" for key, value in images.items() if key not in OPEN_CLIP_READ]
    wrong += [f"mode={images['mode']!r}"] if images.get("mode", "RGB") != "RGB" else []
    wrong += [f"size={size!r}"] if size not in (image_size, [image_size] * 2, (image_size,) * 2) else []
    wrong += [f"resize_mode={mode!r}"] if mode not in ("shortest", "squash") else []
    wrong += [f"interpolation={interpolation!r}"] if interpolation not in RESAMPLE else []
    if wrong:
        raise ValueError(
            f"preprocess_cfg has {', '.join(wrong)}; clip_jax resizes by 'shortest' or 'squash' with one of "
            f"{', '.join(RESAMPLE)}, to the model's {image_size} pixels"
        )
    return ImageTransform(resize_mode=mode, interpolation=interpolation)


def preprocess_cfg(config: ModelConfig, transform: ImageTransform) -> dict[str, Any]:
    """preprocess_cfg of open_clip; raises ValueError for a transform that it cannot say."""
    if transform.resize_size:
        raise ValueError(
            f"pictures of this model are resized to {transform.resize_size} pixels, and the centre of "
            f"{config.vision.image_size} is cut out, which open_clip cannot say: write it in the huggingface format"
        )
    return {
        "mean": list(config.image_mean),
        "std": list(config.image_std),
        "interpolation": transform.interpolation,
        "resize_mode": transform.resize_mode,
    }
