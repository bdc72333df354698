"""What there is to see: the vocabulary of the drawn world, its colours, and the `Scene` that describes one picture."""

from dataclasses import dataclass

RGB = tuple[int, int, int]

VERSION = 1  # of the world: raise it when the same (seed, index) gives another picture or other captions

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted", "checkered")
POSITIONS = ("left", "right", "top", "bottom", "centre")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = ("one", "two", "three", "four", "five")
DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
WORDS = ("cat", "dog", "sun", "car", "tree", "fish", "hat", "cup", "bird", "moon", "boat", "key")
BACKGROUNDS = ("white", "light grey", "grey", "beige", "brown", "black")

# (shape, colour)
PAIRS = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
# Each shape once and each colour once, so that both are seen in seven of their eight pairs.
HELD_OUT = tuple((shape, COLOURS[(i + 3) % len(COLOURS)]) for i, shape in enumerate(SHAPES))
TRAINED_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT)

COLOUR_RGB: dict[str, RGB] = {
    "red": (214, 32, 36),
    "orange": (246, 124, 16),
    "yellow": (242, 210, 28),
    "green": (36, 150, 58),
    "cyan": (50, 205, 222),
    "blue": (36, 70, 214),
    "purple": (140, 46, 184),
    "pink": (250, 130, 192),
}
BACKGROUND_RGB: dict[str, RGB] = {
    "white": (248, 248, 246),
    "light grey": (212, 212, 214),
    "grey": (160, 160, 162),
    "beige": (224, 208, 178),
    "brown": (92, 66, 46),
    "black": (26, 26, 30),
}


@dataclass(frozen=True)
class Thing:
    """One drawn thing. Lengths are fractions of the picture's side, x rightwards, y downwards, from the top left.

    `shape` is one of SHAPES, or the digit or word that is written. `size` is empty where it does not matter (pairs,
    counts, text). `angle` is in radians, `rgb` in 0..255, already jittered around `colour`.
    """

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    diameter: float
    angle: float
    rgb: RGB


@dataclass(frozen=True)
class Scene:
    """Everything a picture shows, whatever its resolution.

    In a "pair", `things[0]` is `relation` `things[1]`. `position` is set for "object" scenes only. `background_field`
    is 0 for a flat background, else the gradient or noise over it. `outline` asks for thin contours only.
    """

    kind: str
    things: tuple[Thing, ...]
    background: str
    background_rgb: RGB
    background_field: int
    position: str = ""
    relation: str = ""
    outline: bool = False
