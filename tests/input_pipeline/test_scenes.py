import hashlib
import math
import pickle
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from input_pipeline.scenes import (
    HELD_OUT,
    KIND_WEIGHTS,
    LABELLED_SETS,
    PAIRS,
    TRAINED_PAIRS,
    LabelledScenes,
    Scene,
    SceneSource,
    Thing,
    caption_scene,
    draw_scene,
    sample_scene,
    world,
)
from input_pipeline.scenes import captions as grammar

SHAPE_OF = {form: shape for shape in world.SHAPES for form in (shape, *grammar.SYNONYMS[shape])}
COLOUR_OF = {form: colour for colour in world.COLOURS for form in (colour, *grammar.SYNONYMS[colour])}


def digest(source, index):
    record = source[index]
    return hashlib.sha256(record["image"].tobytes() + repr((record["id"], record["captions"])).encode()).hexdigest()


def named(text, forms):
    """The canonical names whose forms (or plurals) `text` contains as words."""
    return {name for form, name in forms.items() if re.search(rf"\b{form}(e?s)?\b", text)}


def without_background(caption):
    return re.sub(r" on an? [a-z ]+ background\.?$", "", caption.lower())


def test_record_is_what_a_source_gives():
    record = SceneSource(seed=3, num_examples=7, image_size=37)[5]
    assert set(record) == {"id", "image", "captions"}
    assert record["id"] == "scenes/train/3/5"
    assert record["image"].dtype == np.uint8
    assert record["image"].shape == (37, 37, 3)
    assert len(record["captions"]) == 5
    assert all(isinstance(caption, str) and caption.strip() == caption != "" for caption in record["captions"])


def test_same_seed_and_index_give_the_same_record_in_another_process_and_order():
    here = [digest(SceneSource(seed=11, num_examples=23, image_size=32), i) for i in range(23)]
    code = (
        "import hashlib\nfrom input_pipeline.scenes import SceneSource\n"
        "source = SceneSource(seed=11, num_examples=1000, image_size=32)\n"
        "for i in reversed(range(23)):\n"
        "    r = source[i]\n"
        "    text = repr((r['id'], r['captions'])).encode()\n"
        "    print(hashlib.sha256(r['image'].tobytes() + text).hexdigest())\n"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert there[::-1] == here
    assert len(set(here)) == 23


def test_captions_alone_equal_the_record_and_draw_nothing(monkeypatch):
    source = SceneSource(seed=2, num_examples=31, image_size=32)
    with_image = [source[i]["captions"] for i in range(31)]
    monkeypatch.setattr(
        "input_pipeline.scenes.source.draw_scene", lambda *_: pytest.fail("captions() drew the picture")
    )
    assert [source.captions(i) for i in range(31)] == with_image


def test_another_seed_or_split_is_another_stream():
    sources = [
        SceneSource(seed=5, num_examples=300, image_size=16),
        SceneSource(seed=6, num_examples=300, image_size=16),
        SceneSource(seed=5, num_examples=300, image_size=16, split="validation"),
    ]
    digests = [hashlib.sha256(source[i]["image"].tobytes()).digest() for source in sources for i in range(300)]
    assert len(set(digests)) == 900


def test_held_out_pairs_are_a_diagonal_and_never_drawn_outside_their_set():
    assert sorted(shape for shape, _ in HELD_OUT) == sorted(world.SHAPES)
    assert sorted(colour for _, colour in HELD_OUT) == sorted(world.COLOURS)
    assert set(TRAINED_PAIRS) | set(HELD_OUT) == set(PAIRS)
    drawn = Counter()
    for kind in KIND_WEIGHTS:
        for split in ("train", "validation"):
            for index in range(1500):
                scene = sample_scene(7, index, split=split, kinds=(kind,))
                drawn.update({(thing.shape, thing.colour) for thing in scene.things if thing.shape in world.SHAPES})
    assert set(drawn) == set(TRAINED_PAIRS)  # every trained pair, and nothing else
    assert min(drawn.values()) > 100


@pytest.mark.parametrize("name", [name for name in LABELLED_SETS if name not in ("held_out", "recoloured")])
def test_labelled_sets_too_keep_held_out_pairs_for_the_held_out_set(name):
    source = LabelledScenes(name, 400, 32)
    drawn = {(thing.shape, thing.colour) for i in range(400) for thing in source.scene(i)[0].things}
    assert not drawn & set(HELD_OUT)


def test_kinds_follow_their_weights():
    source = SceneSource(seed=1, num_examples=2000, image_size=32, kinds={"pair": 3, "word": 1, "digit": 0})
    kinds = Counter(source.scene(i).kind for i in range(2000))
    assert set(kinds) == {"pair", "word"}
    assert abs(kinds["pair"] - 1500) < 4 * math.sqrt(2000 * 0.75 * 0.25)
    reordered = SceneSource(seed=1, num_examples=2000, image_size=32, kinds={"word": 1, "pair": 3})
    assert [reordered.scene(i) for i in range(50)] == [source.scene(i) for i in range(50)]


@pytest.mark.parametrize("kind", ["object", "pair", "count"])
def test_captions_name_only_what_is_drawn(kind):
    source = SceneSource(seed=4, num_examples=800, image_size=32, kinds=(kind,))
    mentions = Counter()
    for i in range(800):
        things = source.scene(i).things
        pairs = {(thing.shape, thing.colour) for thing in things}
        for caption in source.captions(i):
            text = without_background(caption)
            shapes, colours = named(text, SHAPE_OF), named(text, COLOUR_OF)
            assert shapes <= {shape for shape, _ in pairs}, caption
            assert colours <= {colour for _, colour in pairs}, caption
            for adjective, noun in re.findall(r"([a-z]+) ((?:five-pointed |plus |love )?[a-z]+?)(?:e?s)?\b", text):
                if adjective in COLOUR_OF and noun in SHAPE_OF:
                    assert (SHAPE_OF[noun], COLOUR_OF[adjective]) in pairs, caption
            mentions["both"] += len(shapes) > 0 and len(colours) > 0
    if kind == "object":
        assert 0.78 < mentions["both"] / 4000 < 0.88


def test_relations_in_captions_hold_in_the_picture():
    source = SceneSource(seed=9, num_examples=600, image_size=32, kinds=("pair",))
    relation_of = {form: name for name in world.RELATIONS for form in (name, *grammar.SYNONYMS[name])}
    pattern = re.compile("|".join(sorted(relation_of, key=len, reverse=True)))
    checked = Counter()
    for i in range(600):
        things = source.scene(i).things
        for caption in source.captions(i):
            text = without_background(caption)
            if not (match := pattern.search(text)):
                continue
            sides = []
            for part in (text[: match.start()], text[match.end() :]):
                shapes, colours = named(part, SHAPE_OF), named(part, COLOUR_OF)
                assert shapes or colours, caption
                found = [t for t in things if shapes <= {t.shape} and colours <= {t.colour}]
                assert len(found) == 1, caption
                sides += found
            a, b = sides
            relation = relation_of[match.group()]
            checked[relation] += 1
            differences = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
            assert differences[relation] > 0.4, caption
    assert len(checked) == 4
    assert sum(checked.values()) > 2000


def test_other_attributes_in_captions_are_true():
    forms = {name: (name, *grammar.SYNONYMS[name]) for name in (*world.SIZES, *world.TEXTURES)}
    tails = {tail: texture for texture, tail in grammar.TEXTURE_TAILS.items()}
    places = {
        form: name for name, phrase in grammar.POSITION_PHRASES.items() for form in (phrase, *grammar.SYNONYMS[phrase])
    }
    seen = Counter()
    source = SceneSource(seed=8, num_examples=1000, image_size=32, kinds=("object",))
    for i in range(1000):
        scene = source.scene(i)
        thing = scene.things[0]
        for caption in source.captions(i):
            text = without_background(caption)
            said = {name for name in forms for form in forms[name] if re.search(rf"\b{form}\b", text)}
            said |= {texture for tail, texture in tails.items() if tail in text}
            said |= {name for form, name in places.items() if form in text}
            assert said <= {thing.size, thing.texture, scene.position}, caption
            seen.update(said)
            if ground := re.search(r"on an? ([a-z ]+) background", caption.lower()):
                assert ground[1].replace("gray", "grey").replace("cream", "beige") == scene.background
    assert set(seen) == {*world.SIZES, *world.TEXTURES, *world.POSITIONS}


def test_numbers_digits_and_words_in_captions_are_true():
    counts = {form: i + 1 for i, name in enumerate(world.COUNTS) for form in (name, *grammar.SYNONYMS[name])}
    for kind, forms, truth in (
        ("count", counts, lambda scene: len(scene.things)),
        (
            "digit",
            {form: i for i in range(10) for form in (str(i), grammar.DIGIT_WORDS[i])},
            lambda scene: int(scene.things[0].shape),
        ),
        ("word", {word: word for word in world.WORDS}, lambda scene: scene.things[0].shape.lower()),
    ):
        source = SceneSource(seed=4, num_examples=300, image_size=32, kinds=(kind,))
        said = Counter()
        for i in range(300):
            for caption in source.captions(i):
                text = without_background(caption).replace("five-pointed", "")
                found = {value for form, value in forms.items() if re.search(rf"\b{form}\b", text)}
                assert found <= {truth(source.scene(i))}, caption
                assert found or kind == "count", caption
                said.update(found)
        assert set(said) == set(forms.values())


def test_captions_vary_but_the_canonical_word_dominates():
    source = SceneSource(seed=12, num_examples=500, image_size=32, kinds=("object",))
    captions = [source.captions(i) for i in range(500)]
    assert all(len(set(five)) == 5 for five in captions)
    used = Counter(
        form
        for five in captions
        for caption in five
        for form in COLOUR_OF
        if re.search(rf"\b{form}\b", without_background(caption))
    )
    assert set(used) == set(COLOUR_OF)
    assert 0.65 < sum(used[colour] for colour in world.COLOURS) / sum(used.values()) < 0.75
    assert any(caption.isupper() for five in captions for caption in five)


def test_caption_takes_its_choices_from_any_stream_of_uniforms():
    scene = sample_scene(0, 0)
    for make in (random.Random, np.random.default_rng):
        assert caption_scene(scene, make(5)) == caption_scene(scene, make(5))


@pytest.mark.parametrize(
    ("noun", "plural"), [("box", "boxes"), ("cross", "crosses"), ("disc", "discs"), ("plus sign", "plus signs")]
)
def test_plural(noun, plural):
    assert grammar.plural(noun) == plural


def plain_object(shape, colour, rgb, **more):
    thing = Thing(shape, colour, "plain", "large", 0.5, 0.5, 0.8, 0.0, rgb)
    return Scene("object", (replace(thing, **more),), "white", (250, 250, 250), 0, "centre")


@pytest.mark.parametrize("size", [16, 32, 48, 64, 101, 256])
def test_pixels_of_a_plain_circle(size):
    image = draw_scene(plain_object("circle", "red", (214, 32, 36)), size)
    assert image.shape == (size, size, 3)
    assert tuple(image[size // 2, size // 2]) == (214, 32, 36)
    assert tuple(image[0, 0]) == (250, 250, 250)
    share = (image[..., 1] < 141).mean()  # half way between the disc's green and the paper's
    assert share == pytest.approx(math.pi * 0.4**2, abs=0.02)


def coverage(shape, size=64, **more):
    return draw_scene(plain_object(shape, "black", (0, 0, 0), **more), size)[..., 0] < 125


def test_shapes_are_distinct_at_32_pixels():
    masks = {shape: coverage(shape, 32) for shape in world.SHAPES}
    for i, first in enumerate(world.SHAPES):
        for second in world.SHAPES[i + 1 :]:
            a, b = masks[first], masks[second]
            assert (a & b).sum() / (a | b).sum() < 0.85, (first, second)


def test_shapes_have_their_symmetries_and_holes():
    for shape in world.SHAPES:
        mask = coverage(shape)
        assert (mask != mask[:, ::-1]).mean() < 0.02  # upright, all eight are symmetric left to right
        assert mask[32, 32] == (shape != "ring")
        assert (coverage(shape, x=0.25, diameter=0.4)[:, :32].sum()) > 0
        assert not coverage(shape, x=0.25, diameter=0.4)[:, 34:].any()
    triangle = coverage("triangle")
    assert triangle[:32].sum() < 0.6 * triangle[32:].sum()
    assert (coverage("square", angle=math.pi / 12) != coverage("square")).any()


def test_outline_is_thin_and_hollow():
    for shape in world.SHAPES:
        filled = plain_object(shape, "blue", (36, 70, 214))
        image = draw_scene(replace(filled, outline=True), 64)
        ink = (image != 250).any(axis=-1)
        assert 0.02 < ink.mean() < 0.25
        assert not ink[32, 32]


@pytest.mark.parametrize("texture", world.TEXTURES)
def test_textures_have_two_tones_and_plain_has_one(texture):
    image = draw_scene(plain_object("square", "blue", (36, 70, 214), texture=texture), 64)[20:44, 20:44]
    light = (image.min(axis=-1) > 200).mean()
    blue = (np.abs(image.astype(int) - (36, 70, 214)).max(axis=-1) < 10).mean()
    if texture == "plain":
        assert (light, blue) == (0.0, 1.0)
    else:
        assert 0.15 < light < 0.6
        assert 0.25 < blue < 0.7


def test_text_is_legible_ink_of_its_colour():
    for text in (*world.DIGITS, *world.WORDS):
        image = draw_scene(plain_object(text, "red", (214, 32, 36)), 48)
        ink = image[..., 1] < 141
        assert 0.03 < ink.mean() < 0.5
        assert not ink[0].any()
        assert not ink[-1].any()
    drawn = {draw_scene(plain_object(t, "red", (0, 0, 0)), 32).tobytes() for t in (*world.DIGITS, *world.WORDS)}
    assert len(drawn) == 22


def test_objects_stand_out_from_their_background():
    source = SceneSource(seed=6, num_examples=700, image_size=32, kinds=("object",))
    for i in range(700):
        scene = source.scene(i)
        distance = np.abs(np.subtract(scene.things[0].rgb, scene.background_rgb)).sum()
        assert distance > 90, (scene.things[0].colour, scene.background)


CLASSES = {
    "compositions": 64,
    "held_out": 64,
    "shape": 8,
    "colour": 8,
    "size": 2,
    "texture": 4,
    "position": 5,
    "count": 5,
    "relation": 4,
    "digit": 10,
    "word": 12,
    "sketch": 8,
    "recoloured": 8,
}


def drawn_class(name, scene):
    """The class name, put together from what is drawn."""
    thing = scene.things[0]
    match name:
        case "compositions" | "held_out":
            return grammar.with_article(f"{thing.colour} {thing.shape}")
        case "shape" | "sketch" | "recoloured":
            return f"a {thing.shape}"
        case "colour":
            return grammar.with_article(f"{thing.colour} shape")
        case "size":
            return f"a {'small' if thing.diameter < 0.5 else 'large'} shape"
        case "texture":
            return f"a {thing.texture} shape"
        case "position":
            dx, dy = thing.x - 0.5, thing.y - 0.5
            if max(abs(dx), abs(dy)) < 0.1:
                return "a shape in the centre"
            if abs(dx) > abs(dy):
                return "a shape on the left" if dx < 0 else "a shape on the right"
            return "a shape at the top" if dy < 0 else "a shape at the bottom"
        case "count":
            return {1: "one shape", 2: "two shapes", 3: "three shapes", 4: "four shapes", 5: "five shapes"}[
                len(scene.things)
            ]
        case "relation":
            circle, square = sorted(scene.things, key=lambda t: t.shape)
            assert (circle.shape, square.shape) == ("circle", "square")
            dx, dy = circle.x - square.x, circle.y - square.y
            relation = ("left of" if dx < 0 else "right of") if abs(dx) > abs(dy) else "above" if dy < 0 else "below"
            return f"a circle {relation} a square"
        case "digit":
            return f"the digit {thing.shape}"
        case "word":
            return f"the word {thing.shape.lower()}"


def test_every_labelled_set_is_listed_above():
    assert {name: len(labelled.class_names) for name, labelled in LABELLED_SETS.items()} == CLASSES


@pytest.mark.parametrize("name", CLASSES)
def test_labels_match_what_is_drawn_and_are_balanced(name):
    classes_drawn = {"compositions": 56, "held_out": 8}.get(name, CLASSES[name])
    source = LabelledScenes(name, 5 * classes_drawn, 32)
    assert len(set(source.class_names)) == len(source.class_names) == CLASSES[name]
    assert all(template.count("{}") == 1 for template in source.templates)
    labels = []
    for i in range(len(source)):
        scene, label = source.scene(i)
        assert source.class_names[label] == drawn_class(name, scene)
        labels.append(label)
    assert set(Counter(labels).values()) == {5}
    record = source[3]
    assert record["label"] == labels[3]
    assert record["captions"] == source.captions(3) == (source.class_names[labels[3]],)
    assert record["id"] == f"scenes/{name}/0/3"


def test_composition_labels_are_trained_or_held_out():
    pairs = {
        name: {PAIRS[LabelledScenes(name, 112, 32).scene(i)[1]] for i in range(112)}
        for name in CLASSES
        if name in ("compositions", "held_out")
    }
    assert pairs == {"compositions": set(TRAINED_PAIRS), "held_out": set(HELD_OUT)}


def test_class_names_are_wordings_of_the_training_captions():
    source = SceneSource(seed=0, num_examples=6000, image_size=32)
    said = " | ".join(caption.lower() for i in range(6000) for caption in source.captions(i))
    for name, labelled in LABELLED_SETS.items():
        if name not in ("compositions", "held_out", "relation"):
            assert not [class_name for class_name in labelled.class_names if class_name not in said], name
    # A circle and a square are only 2 of the 56 ordered pairs of shapes; the wording must be there for all of them.
    shape = f"a ({'|'.join(world.SHAPES)})"
    for relation in world.RELATIONS:
        assert len(re.findall(f"{shape} {relation} {shape}", said)) > 20, relation
    held_out_names = [grammar.with_article(f"{colour} {shape}") for shape, colour in HELD_OUT]
    assert not [name for name in held_out_names if name in said]


def test_shifts_leave_the_training_colours():
    trained = np.array([sample_scene(0, i, kinds=("object",)).things[0].rgb for i in range(600)])
    source = LabelledScenes("recoloured", 200, 32)
    for i in range(200):
        scene = source.scene(i)[0]
        thing = scene.things[0]
        assert thing.colour not in world.COLOURS
        assert scene.background not in world.BACKGROUNDS
        assert np.abs(trained - thing.rgb).max(axis=1).min() > 20
        assert np.abs(np.subtract(thing.rgb, scene.background_rgb)).sum() > 150
    sketch = LabelledScenes("sketch", 50, 32)
    for i in range(50):
        assert (sketch[i]["image"] == 255).mean() > 0.6  # white paper


def test_sources_pickle_small_and_repr_is_stable():
    for source in (SceneSource(1, 100, 32, kinds=("object", "word")), LabelledScenes("shape", 100, 32)):
        data = pickle.dumps(source)
        assert len(data) < 2000
        copy = pickle.loads(data)
        assert repr(copy) == repr(source)
        assert "0x" not in repr(source)
        assert digest(copy, 17) == digest(source, 17)


def test_length_index_and_fingerprint():
    source = SceneSource(seed=2**63, num_examples=10**15, image_size=16)
    assert len(source) == 10**15
    assert len(source[10**15 - 1]["captions"]) == 5
    assert source.class_names is None
    assert source.broken == []
    small = SceneSource(seed=0, num_examples=3, image_size=16)
    for index in (-1, 3):
        with pytest.raises(IndexError):
            small[index]
    prints = [
        SceneSource(0, 3, 16).fingerprint(),
        SceneSource(1, 3, 16).fingerprint(),
        SceneSource(0, 4, 16).fingerprint(),
        SceneSource(0, 3, 17).fingerprint(),
        SceneSource(0, 3, 16, kinds=("word",)).fingerprint(),
        SceneSource(0, 3, 16, split="validation").fingerprint(),
        LabelledScenes("shape", 3, 16).fingerprint(),
        LabelledScenes("colour", 3, 16).fingerprint(),
    ]
    assert len({repr(fingerprint) for fingerprint in prints}) == len(prints)
    assert prints[0] == SceneSource(0, 3, 16).fingerprint()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelledScenes("shapes", 8, 32), r"'shapes'.*unknown.*compositions, held_out, shape, colour"),
        (lambda: LabelledScenes("shape", 0, 32), "num_examples=0"),
        (lambda: LabelledScenes("shape", 8, 8), r"image_size=8 .*16 to 256"),
        (lambda: SceneSource(0, 0, 32), "num_examples=0"),
        (lambda: SceneSource(0, 8, 15), r"image_size=15 .*16 to 256"),
        (lambda: SceneSource(0, 8, 257), r"image_size=257 .*16 to 256"),
        (lambda: SceneSource(-1, 8, 32), "seed=-1"),
        (lambda: SceneSource(0, 8, 32, split="test"), r"'test'.*'train' or 'validation'"),
        (lambda: SceneSource(0, 8, 32, kinds=("objects",)), r"objects.*object, pair, count, digit, word"),
        (lambda: SceneSource(0, 8, 32, kinds=()), "one or more of"),
        (lambda: SceneSource(0, 8, 32, kinds={"object": -1.0}), "not negative"),
        (lambda: SceneSource(0, 8, 32, kinds={"object": 0.0}), "not all zero"),
        (lambda: SceneSource(0, 8, 32, kinds={"object": math.nan}), "finite"),
        (lambda: sample_scene(0, -3), "index=-3"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
