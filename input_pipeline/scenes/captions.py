"""How people would put a scene in words: the caption grammar.

A caption may leave out much of the picture, as text on the web does, but what it says is true of it. In every choice of
word the canonical name (the one in class names) is taken about 70 % of the time, a synonym otherwise.
"""

from collections.abc import Sequence

from input_pipeline.scenes.world import COUNTS, Scene, Thing, Uniforms, pick

CANONICAL_SHARE = 0.7
SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "disk"),
    "square": ("box", "block"),
    "triangle": ("wedge", "pyramid"),
    "star": ("five-pointed star",),
    "cross": ("plus sign",),
    "heart": ("love heart", "valentine"),
    "diamond": ("rhombus", "lozenge"),
    "ring": ("hoop", "donut"),
    "red": ("crimson", "scarlet"),
    "orange": ("tangerine",),
    "yellow": ("golden", "lemon"),
    "green": ("emerald",),
    "cyan": ("turquoise", "aqua"),
    "blue": ("azure", "cobalt"),
    "purple": ("violet",),
    "pink": ("rose",),
    "small": ("tiny", "little"),
    "large": ("big", "huge"),
    "plain": ("solid",),
    "striped": ("stripy",),
    "dotted": ("spotted", "polka-dot"),
    "checkered": ("chequered", "checked"),
    "shape": ("object", "thing", "figure"),
    "on the left": ("on the left side", "at the left edge"),
    "on the right": ("on the right side", "at the right edge"),
    "at the top": ("near the top", "in the upper part"),
    "at the bottom": ("near the bottom", "in the lower part"),
    "in the centre": ("in the middle", "in the center"),
    "left of": ("to the left of",),
    "right of": ("to the right of",),
    "above": ("over",),
    "below": ("under", "beneath"),
    "one": ("a single", "just one"),
    "two": ("2", "a pair of"),
    "three": ("3",),
    "four": ("4",),
    "five": ("5",),
    "grey": ("gray",),
    "beige": ("cream",),
}
POSITION_PHRASES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the centre",
}
TEXTURE_TAILS = {"striped": "with stripes", "dotted": "with dots", "checkered": "with a checkered pattern"}
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INVERSE_RELATION = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TEMPLATES = ("a picture of {}", "a photo of {}", "a drawing of {}", "an image of {}", "this is {}", "here is {}")
_AS_IS = ("{}",)  # for phrases that would be no English inside another template


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x", "sh", "ch")) else "s")


def caption_scene(scene: Scene, rng: Uniforms) -> str:
    """One sentence or phrase about `scene`, as a person might write it; true of the picture, seldom complete.

    Args:
      scene: what the picture shows.
      rng: where the choices of content and wording come from; how many numbers are taken varies.
    """
    phrase, templates = _PHRASES[scene.kind](scene, rng)
    if templates is not _AS_IS and rng.random() < 0.1:
        ground = " ".join(_word(rng, word) for word in scene.background.split())
        phrase += f" on {with_article(ground)} background"
    if rng.random() < 0.5:
        phrase = pick(rng, templates).format(phrase)
    case = rng.random()
    if case < 0.06:
        return phrase[0].upper() + phrase[1:] + "."
    if case < 0.1:
        return phrase[0].upper() + phrase[1:]
    return phrase.upper() if case < 0.11 else phrase


def _word(rng: Uniforms, name: str) -> str:
    synonyms = SYNONYMS.get(name)
    return name if not synonyms or rng.random() < CANONICAL_SHARE else pick(rng, synonyms)


def _noun(rng: Uniforms, thing: Thing, colour: bool, shape: bool, size: float = 0.3) -> str:
    """The thing without its article: "big red circle", "striped shape", "star with dots"; size is said so often."""
    words = []
    if thing.size and rng.random() < size:
        words.append(_word(rng, thing.size))
    tail = ""
    if rng.random() < (0.1 if thing.texture == "plain" else 0.6):
        if thing.texture in TEXTURE_TAILS and rng.random() < 0.25:
            tail = " " + TEXTURE_TAILS[thing.texture]
        else:
            words.append(_word(rng, thing.texture))
    if colour and shape and rng.random() < 0.08:
        words.append(_word(rng, thing.shape))
        return " ".join(words) + f" in {_word(rng, thing.colour)}" + tail
    if colour:
        words.append(_word(rng, thing.colour))
    words.append(_word(rng, thing.shape if shape else "shape"))
    return " ".join(words) + tail


def _object(scene: Scene, rng: Uniforms) -> tuple[str, Sequence[str]]:
    thing, content = scene.things[0], rng.random()
    colour, shape = content < 0.9, content < 0.83 or 0.9 <= content < 0.95  # 83 % both, 5 % neither
    bare = not (colour or shape)  # then rather something else is said
    phrase = _noun(rng, thing, colour, shape, size=0.5 if bare else 0.3)
    templates: Sequence[str] = TEMPLATES
    if rng.random() < 0.12:
        templates = _AS_IS
    else:
        phrase = with_article(phrase)
    if rng.random() < (0.1 if thing.size == "large" else 0.6 if bare else 0.35):
        where = _word(rng, POSITION_PHRASES[scene.position])
        if rng.random() < 0.1:
            return f"{where}, {phrase}", _AS_IS
        phrase = f"{phrase} {where}"
    return phrase, templates


def _pair(scene: Scene, rng: Uniforms) -> tuple[str, Sequence[str]]:
    first, second = scene.things
    relation, content = scene.relation, rng.random()
    if rng.random() < 0.5:
        first, second, relation = second, first, INVERSE_RELATION[relation]
    if content < 0.08:
        return with_article(_noun(rng, first, True, True)), TEMPLATES
    colour, shape = (True, True) if content < 0.7 else (False, True) if content < 0.9 else (True, False)
    a, b = (with_article(_noun(rng, thing, colour, shape)) for thing in (first, second))
    if rng.random() < 0.12:
        return f"{a} {pick(rng, ('and', 'next to', 'with'))} {b}", TEMPLATES
    return f"{a} {_word(rng, relation)} {b}", TEMPLATES


def _count(scene: Scene, rng: Uniforms) -> tuple[str, Sequence[str]]:
    n, thing, content = len(scene.things), scene.things[0], rng.random()
    colour, shape = content < 0.6 or content >= 0.9, content < 0.75  # both, shape only, neither, colour only
    noun = _noun(rng, thing, colour, shape)
    if n > 1:
        head, *tail = noun.split(" in ")
        noun = " in ".join([plural(head), *tail])
    if rng.random() > 0.1:
        noun = f"{_word(rng, COUNTS[n - 1])} {noun}"
    elif n > 1:
        noun = pick(rng, ("some {}", "{}") if n < 3 else ("some {}", "several {}", "a few {}", "{}")).format(noun)
    else:
        noun = with_article(noun)
    return noun, (*TEMPLATES[:4], "there is {}" if n == 1 else "there are {}")


def _text(scene: Scene, rng: Uniforms) -> tuple[str, Sequence[str]]:
    thing = scene.things[0]
    text, colour = thing.shape.lower(), _word(rng, thing.colour)
    if scene.kind == "digit":
        text = text if rng.random() < CANONICAL_SHARE else DIGIT_WORDS[int(text)]
    if rng.random() < 0.12:
        return text, _AS_IS
    return pick(rng, _TEXT_PHRASES[scene.kind]).format(text, colour, with_article(colour)), TEMPLATES


_TEXT_PHRASES = {
    "digit": ("the digit {0}", "the number {0}", "the digit {0} in {1}", "the {1} digit {0}", "{2} number {0}"),
    "word": (
        "the word {0}",
        'the word "{0}"',
        "the word {0} in {1}",
        "the {1} word {0}",
        "text that says {0}",
        "{0} written in {1}",
    ),
}

_PHRASES = {"object": _object, "pair": _pair, "count": _count, "digit": _text, "word": _text}
