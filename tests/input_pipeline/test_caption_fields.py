"""Several fields of captions with weights: how often each is drawn, by whom it does not depend, and what is refused."""

import csv
import json

import numpy as np
import pytest
from miniature import miniature, picture
from scipy import stats

from clip_jax.config.experiment import make_config
from clip_jax.runs import loop
from input_pipeline.open_data import make_examples, make_sources
from input_pipeline.sources import BrokenRecordError, TableSource
from input_pipeline.sources.caption_fields import CaptionFields

ROWS = 12
FIELDS = ["alt", "synthetic", "tags"]
# Pictures and captions, as NUMBER.CAPTION, that were drawn before there were weights.
BEFORE = "3.0 6.3 7.3 5.2 2.0 10.0 1.3 0.3 11.2 4.1 1.0 10.0 2.1 3.2 7.2 5.0 6.1 4.1 0.3 11.3 10.2 11.3 5.3 6.1"


class Echo:
    """Stands for a tokenizer where the caption itself is asked for."""

    def encode(self, text):
        return text, False


def write_table(folder, rows):
    """A table of pictures with the columns alt, synthetic and tags, the last a list."""
    folder.mkdir()
    with (folder / "table.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["filepath", *FIELDS])
        writer.writeheader()
        for number, row in enumerate(rows):
            (folder / f"{number}.jpg").write_bytes(picture(number))
            writer.writerow({"filepath": f"{number}.jpg", **row})
    return folder / "table.csv"


def row(number, *without):
    full = {"alt": f"alt {number}", "synthetic": f"synthetic {number}", "tags": f"tags {number}"}
    return {name: "" if name in without else text for name, text in full.items()}


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "data", [row(number) for number in range(ROWS)])


def config_of(table, fields="alt,synthetic", weights=(0.3, 0.7), **changes):
    data = {"data__source": "table", "data__path": str(table), "data__captions_field": fields}
    data |= {
        "data__caption_weights": weights,
        "data__num_examples": 0,
        "data__scene_kinds": (),
        "data__num_validation": 2,
    }
    return miniature(**data | changes)


def draws(table, number, **options):
    """The first captions that training draws."""
    config = make_config(config_of(table, **options)).data
    examples = make_examples(config, make_sources(config, 16)[0], Echo(), 16)
    return [examples[position]["text"] for position in range(number)]


def test_fields_are_drawn_as_often_as_their_weights_say(table):
    """20,000 draws by the rule alone; pictures cost more."""
    config = make_config(config_of(table, fields="alt, synthetic ,tags", weights=(1.0, 2.0, 5.0))).data
    examples = make_examples(config, make_sources(config, 16)[0], Echo(), 16)
    record = examples.source[0]
    rng = np.random.default_rng(0)
    words = [examples.choose_caption(record, rng).split()[0] for _ in range(20_000)]
    counts = [words.count(name) for name in FIELDS]
    assert stats.chisquare(counts, np.array([1, 2, 5]) / 8 * 20_000).pvalue > 1e-3
    assert stats.chisquare(counts, np.array([1, 2, 4]) / 7 * 20_000).pvalue < 1e-6


def test_a_record_draws_of_the_fields_that_it_has(tmp_path):
    rows = [row(0, "alt"), row(1, "synthetic"), *(row(n) for n in range(2, 5))]
    table = write_table(tmp_path / "data", rows)
    drawn = set(draws(table, 200, **{"data__num_validation": 1}))
    assert {"synthetic 0", "alt 1"} <= drawn
    assert not {"alt 0", "synthetic 1"} & drawn


def test_a_field_of_weight_0_is_not_read(table):
    drawn = draws(table, 60, fields="alt,synthetic", weights=(0.0, 2.0))
    assert {text.split()[0] for text in drawn} == {"synthetic"}


def test_draws_depend_on_the_position_alone(table):
    drawn = draws(table, 40)
    assert drawn == draws(table, 40)
    assert {text.split()[0] for text in drawn} == {"alt", "synthetic"}
    config = make_config(config_of(table)).data
    examples = make_examples(config, make_sources(config, 16)[0], Echo(), 16)
    assert [examples[position]["text"] for position in reversed(range(40))] == drawn[::-1]


def test_without_weights_draws_are_as_before(tmp_path):
    """These captions were drawn before there were weights."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(ROWS):
        (folder / f"{number}.jpg").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text("\n".join(f"{number} {i}" for i in range(4)))
    changes = {"data__source": "folder", "data__path": str(folder), "data__num_examples": 0, "data__scene_kinds": ()}
    config = make_config(miniature(**changes, data__num_validation=2)).data
    examples = make_examples(config, make_sources(config, 16)[0], Echo(), 16)
    assert [examples[position]["text"] for position in range(24)] == [text.replace(".", " ") for text in BEFORE.split()]


def test_filters_keep_the_field_of_what_passes(table):
    drawn = draws(table, 60, **{"data__caption_must_not_match": "alt [0-4]"})
    assert not any(text in [f"alt {number}" for number in range(5)] for text in drawn)
    assert any(text.startswith("alt") for text in drawn)
    assert any(text.startswith("synthetic") for text in drawn)


def test_validation_has_the_captions_of_all_fields(table):
    config = make_config(config_of(table)).data
    _, validation = make_sources(config, 16)
    assert validation.captions(0) == (f"alt {ROWS - 2}", f"synthetic {ROWS - 2}")
    assert validation[0]["caption_fields"] == (0, 1)


def test_a_record_without_any_is_broken(tmp_path):
    table = write_table(tmp_path / "data", [row(0, "alt", "synthetic"), row(1)])
    fields = {name: TableSource(str(table), name, require_captions=False) for name in ("alt", "synthetic")}
    source = CaptionFields(fields)
    for read in (source.__getitem__, source.captions):
        with pytest.raises(BrokenRecordError, match="no caption in alt, synthetic"):
            read(0)
    assert source[1]["captions"] == ("alt 1", "synthetic 1")
    assert source.fingerprint() != CaptionFields(dict(reversed(fields.items()))).fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": (1.0,)}, "name as many different fields as there are weights"),
        ({"fields": "alt,alt"}, "name as many different fields as there are weights"),
        ({"fields": "alt,"}, "name as many different fields as there are weights"),
        ({"weights": (0.0, 0.0)}, "one of the weights must be above 0"),
        ({"weights": (-1.0, 2.0)}, "caption_weights.* must"),
        ({"weights": (float("nan"), 2.0)}, "caption_weights.* must"),
        ({"data__source": "scenes"}, "data.source='scenes' has no fields of captions"),
    ],
)
def test_weights_that_mean_nothing_are_refused(table, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(config_of(table, **changes))


def test_a_field_that_is_not_there_is_named(table, tmp_path):
    with pytest.raises(ValueError, match="lat"):
        make_sources(make_config(config_of(table, fields="lat,synthetic")).data, 16)
    empty = write_table(tmp_path / "empty", [row(number, "tags") for number in range(ROWS)])
    with pytest.raises(ValueError, match="none of the first 12 records has a caption in 'tags'"):
        make_sources(make_config(config_of(empty, fields="alt,tags")).data, 16)


def test_a_run_trains_on_both_and_knows_its_weights(table, tmp_path):
    options = {"train__total_steps": 3, "evaluation__zero_shot": (), "text__vocab_size": 100}
    assert loop.train(config_of(table, **options), tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["caption_weights"] == [0.3, 0.7]
    with pytest.raises(ValueError, match=r"data.caption_weights\S* was 0.3, is 0.5"):
        loop.train(config_of(table, weights=(0.5, 0.7), **options), tmp_path / "run")
