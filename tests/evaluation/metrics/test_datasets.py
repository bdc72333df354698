"""The data files of the paper's sets: none is missing, none has another list than OpenAI's."""

import hashlib
import typing

import pytest

from clip_jax.evaluation.datasets import MetricName, dataset_names, load_card
from clip_jax.evaluation.prompts import load_templates
from clip_jax.evaluation.suite.labelled_sets import shown_name

# Table 9 of the paper: title, classes, train images, test images, metric.
TABLE_9 = """
food101: 102 75750 25250 accuracy
cifar10: 10 50000 10000 accuracy
cifar100: 100 50000 10000 accuracy
birdsnap: 500 42283 2149 accuracy
sun397: 397 19850 19850 accuracy
stanford_cars: 196 8144 8041 accuracy
fgvc_aircraft: 100 6667 3333 mean_per_class
voc2007: 20 5011 4952 eleven_point_map
dtd: 47 3760 1880 accuracy
oxford_pets: 37 3680 3669 mean_per_class
caltech101: 102 3060 6085 mean_per_class
flowers102: 102 2040 6149 mean_per_class
mnist: 10 60000 10000 accuracy
fer2013: 8 32140 3574 accuracy
stl10: 10 1000 8000 accuracy
eurosat: 10 10000 5000 accuracy
resisc45: 45 3150 25200 accuracy
gtsrb: 43 26640 12630 accuracy
kitti: 4 6770 711 accuracy
country211: 211 43200 21100 accuracy
patch_camelyon: 2 294912 32768 accuracy
ucf101: 101 9537 1794 accuracy
kinetics700: 700 494801 31669 mean_top1_top5
clevr_counts: 8 2000 500 accuracy
hateful_memes: 2 8500 500 roc_auc
rendered_sst2: 2 7792 1821 accuracy
imagenet: 1000 1281167 50000 accuracy
"""
ROWS = dict(line.split(": ") for line in TABLE_9.strip().splitlines())
# The lists that OpenAI published have one class fewer than the table, as the sets have.
FEWER = {"food101": 101, "fer2013": 7}


def listed(name):
    """SHA-256 of all names and templates as the source has them, a line each."""
    card = load_card(name)
    names = [name if isinstance(name, str) else "|".join(name) for name in card.class_names]
    return hashlib.sha256("\n".join([*(card.renamed.get(n, n) for n in names), *card.templates]).encode()).hexdigest()


def test_no_set_escapes():
    assert set(dataset_names()) == set(ROWS)
    assert len(ROWS) == 27


@pytest.mark.parametrize("name", dataset_names())
def test_a_card_has_table_9s_numbers_and_names_that_can_be_distinguished(name):
    card = load_card(name)
    classes, train, test, metric = ROWS[name].split()
    assert card.table9 == {"classes": int(classes), "train": int(train), "test": int(test)}
    assert card.metric == metric
    assert card.metric in typing.get_args(MetricName)
    assert len(card.class_names) == FEWER.get(name, int(classes))
    names = [word for name in card.class_names for word in ((name,) if isinstance(name, str) else name)]
    assert len(set(names)) == len(names)
    assert card.labels is None or len(set(card.labels)) == len(card.class_names)
    assert all(template.count("{}") == 1 for template in card.templates)
    assert card.home.startswith("http")
    assert "github.com/openai/CLIP" in card.source
    assert card.licence == "MIT"


# Computed from OpenAI's text, not from these files.
HASHES = {
    "birdsnap": "a4b65e646f803d5d",
    "caltech101": "e8ad5d2e6f0a9de8",
    "cifar10": "87d688ae349ae508",
    "cifar100": "4b14f14f63332b6d",
    "clevr_counts": "9b724e66297eac72",
    "country211": "e7cc4a1ca126a4dd",
    "dtd": "f8643cbd8ba944ed",
    "eurosat": "1a9e899956157238",
    "fer2013": "49b174f4de18070f",
    "fgvc_aircraft": "cfdf87b9dd1a3a47",
    "flowers102": "9362b6e0d025f913",
    "food101": "66821420747c19e1",
    "gtsrb": "d78ad628aff0e127",
    "hateful_memes": "e4502ce75ffc11e6",
    "imagenet": "e407fe7b3c574805",
    "kinetics700": "4464a3883d04bdc0",
    "kitti": "b44c2b38a9319415",
    "mnist": "d11e3e6b1ee856b3",
    "oxford_pets": "d991a45bc976996e",
    "patch_camelyon": "3fbc98cb5b116c70",
    "rendered_sst2": "84f4a23388becc72",
    "resisc45": "475677c6af59883e",
    "stanford_cars": "2763e65344b2ab65",
    "stl10": "5fb0c2cec103e502",
    "sun397": "4c4fbabd2103ed6f",
    "ucf101": "5d5c2888aede7f41",
    "voc2007": "75cbf0176472a223",
}


@pytest.mark.parametrize("name", dataset_names())
def test_names_and_templates_are_openais(name):
    assert listed(name)[:16] == HASHES[name]


def test_imagenets_list_with_its_two_doubled_names_is_the_released_one():
    card = load_card("imagenet")
    text = "\n".join([*(card.renamed.get(name, name) for name in card.class_names), *card.templates])
    assert hashlib.sha256(text.encode()).hexdigest() == card.sha256
    assert (card.class_names[744], card.class_names[836]) == ("projectile", "sunglass")
    assert card.templates == load_templates("imagenet80")


def test_labels_stand_in_the_order_of_the_names_not_in_their_own():
    food = load_card("food101")
    assert dict(zip(food.class_names, food.labels))["cheese plate"] == "cheese_plate"
    assert list(food.labels) != sorted(food.labels) or food.labels.index("cheese_plate") < food.labels.index(
        "cheesecake"
    )
    caltech = load_card("caltech101")
    assert caltech.labels[:3] == ("background_google", "faces", "faces_easy")
    sun = load_card("sun397")
    assert dict(zip(sun.class_names, sun.labels))["jail cell"] == "/j/jail_cell"


def test_a_class_may_have_several_names():
    assert load_card("fer2013").class_names[3] == ("happy", "smiling")
    assert shown_name(("happy", "smiling")) == "happy / smiling"


def test_an_unknown_set_names_the_known_ones():
    with pytest.raises(
        ValueError, match="no data set named 'imagenet21k': choose one of birdsnap, caltech101, cifar10"
    ):
        load_card("imagenet21k")
