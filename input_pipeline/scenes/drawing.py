"""From a `Scene` to pixels, with Pillow."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from input_pipeline.scenes.world import RGB, SHAPES, Scene, Thing

MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 256


@lru_cache(maxsize=4)
def _fields(side: int) -> tuple[Image.Image, ...]:
    """Masks [side, side] of a second background shade: gradients in eight directions, eight grainy noises."""
    ramp = np.linspace(-0.5, 0.5, side)
    fields: list[np.ndarray] = []
    for turn in range(8):
        angle = turn * math.pi / 4
        fields.append(160 * (0.5 + (ramp * math.cos(angle) + ramp[:, None] * math.sin(angle)) / math.sqrt(2)))
    for seed in range(8):
        bits = np.random.Philox(key=(seed, side)).random_raw(side * side)
        fields.append((bits >> np.uint64(57)).reshape(side, side))
    return tuple(Image.fromarray(mask.astype(np.uint8)) for mask in fields)


def _background(scene: Scene, image_size: int, side: int) -> Image.Image:
    """The background in [side, side], its shading as coarse as the pixels of the finished picture."""
    tint = scene.background_rgb
    if not scene.background_field:
        return Image.new("RGB", (side, side), tint)
    canvas = Image.new("RGB", (image_size, image_size), tint)
    shade = 0 if sum(tint) > 384 else 255
    second = tuple(round(0.75 * c + 0.25 * shade) for c in tint)
    canvas.paste(second, (0, 0), _fields(image_size)[scene.background_field - 1])
    return canvas.resize((side, side), Image.Resampling.NEAREST)


@lru_cache(maxsize=512)
def _texture_mask(texture: str, side: int) -> Image.Image:
    """Where an object with bounding box [side, side] shows its second tone: an "L" mask of 0 and 255."""
    v, u = np.mgrid[:side, :side] / side - 0.5
    if texture == "striped":
        mask = ((u + v) * 3.2 % 1) < 0.45
    elif texture == "dotted":
        mask = np.hypot((u * 4) % 1 - 0.5, (v * 4) % 1 - 0.5) < 0.32
    else:
        mask = ((u * 4.4) // 1 + (v * 4.4) // 1) % 2 == 0
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _rotated(points: Sequence[tuple[float, float]], angle: float) -> list[tuple[float, float]]:
    c, s = math.cos(angle), math.sin(angle)
    return [(x * c - y * s, x * s + y * c) for x, y in points]


def _star() -> list[tuple[float, float]]:
    radii = [(1.08, 0.45)[i % 2] for i in range(10)]
    return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / 28 for i in range(28)]
    heights = (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns)
    return [(math.sin(t) ** 3, -height / 16.5 - 0.1) for t, height in zip(turns, heights)]


# Outlines in [-1, 1]², y downwards; circle and ring are drawn as ellipses.
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0.0, -0.95), (1.0, 0.82), (-1.0, 0.82)],
    "star": _star(),
    "cross": [p for turn in range(4) for p in _rotated([(-0.3, -1), (0.3, -1), (0.3, -0.3)], turn * math.pi / 2)],
    "heart": _heart(),
    "diamond": [(0.0, -1.08), (0.68, 0.0), (0.0, 1.08), (-0.68, 0.0)],
}


def _draw_shape(
    draw: ImageDraw.ImageDraw, thing: Thing, x: float, y: float, radius: float, ink: RGB | int, stroke: int
) -> None:
    """The shape around (x, y), in pixels of `draw`: filled, or its contour if `stroke` > 0 pixels."""
    if thing.shape in ("circle", "ring"):
        box = (x - radius, y - radius, x + radius, y + radius)
        width = stroke or round(0.38 * radius)
        if thing.shape == "circle" and not stroke:
            draw.ellipse(box, fill=ink)
        else:
            draw.ellipse(box, outline=ink, width=width)
        if thing.shape == "ring" and stroke:
            inner = 0.6 * radius
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), outline=ink, width=stroke)
        return
    points = [(x + radius * u, y + radius * v) for u, v in _rotated(_OUTLINES[thing.shape], thing.angle)]
    if stroke:
        draw.line([*points, *points[:2]], fill=ink, width=stroke, joint="curve")
    else:
        draw.polygon(points, fill=ink)


def _second_tone(rgb: RGB) -> RGB:
    """Far from `rgb` in lightness: nearly white for dark colours, a dark shade for light ones."""
    light = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 120
    r, g, b = (round(0.35 * c) if light else round(255 - 0.12 * (255 - c)) for c in rgb)
    return r, g, b


def _draw_texture(canvas: Image.Image, thing: Thing, x: float, y: float, radius: float) -> None:
    """The thing's texture in its second tone, over its filled shape."""
    half = math.ceil(1.1 * radius)
    left, top = round(x) - half, round(y) - half
    mask = Image.new("L", (2 * half, 2 * half))
    _draw_shape(ImageDraw.Draw(mask), thing, x - left, y - top, radius, 255, 0)
    mask = ImageChops.multiply(mask, _texture_mask(thing.texture, 2 * half))
    canvas.paste(_second_tone(thing.rgb), (left, top), mask)


@lru_cache(maxsize=256)
def _glyphs(text: str) -> Image.Image:
    """`text` in Pillow's own font, emboldened, as an "L" mask cropped to the ink, about 90 pixels high."""
    font = ImageFont.load_default(96)
    canvas = Image.new("L", (96 * len(text) + 40, 200))
    ImageDraw.Draw(canvas).text((20, 20), text, fill=255, font=font, stroke_width=2)
    return canvas.crop(canvas.getbbox())


def _draw_text(canvas: Image.Image, thing: Thing, x: float, y: float, radius: float) -> None:
    """The digit or word around (x, y), its longer side 2 * radius pixels."""
    glyphs = _glyphs(thing.shape)
    scale = 2 * radius / max(glyphs.size)
    mask = glyphs.resize((round(glyphs.width * scale), round(glyphs.height * scale)), Image.Resampling.BILINEAR)
    mask = mask.rotate(-math.degrees(thing.angle) / 2, Image.Resampling.BILINEAR, expand=True)
    canvas.paste(thing.rgb, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)


def draw_scene(scene: Scene, image_size: int) -> np.ndarray:
    """Draws `scene` antialiased.

    Args:
      scene: what to draw; nothing else but the size decides the pixels.
      image_size: side S of the picture in pixels, 16..256.

    Returns:
      uint8 [S, S, 3], RGB.

    Raises:
      ValueError: image_size is out of range.
    """
    check_image_size(image_size)
    factor = 4 if image_size <= 64 else 2
    side = factor * image_size
    canvas = _background(scene, image_size, side)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        x, y, radius = thing.x * side, thing.y * side, thing.diameter * side / 2
        if thing.shape not in SHAPES:
            _draw_text(canvas, thing, x, y, radius)
            continue
        stroke = max(factor, round(0.03 * side)) if scene.outline else 0
        _draw_shape(draw, thing, x, y, radius, thing.rgb, stroke)
        if thing.texture != "plain":
            _draw_texture(canvas, thing, x, y, radius)
            # A rim of the first tone: the second may be the background's.
            _draw_shape(draw, thing, x, y, radius, thing.rgb, max(factor // 2, round(0.1 * radius)))
    return np.array(canvas.reduce(factor))


def check_image_size(image_size: int) -> None:
    if not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
        raise ValueError(
            f"image_size={image_size} of the drawn scenes is out of range: "
            f"choose {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels, 32 or more for legible words"
        )
