import dataclasses

import numpy as np
import pytest

from clip_jax.benchmarks.variants import draw_captions, make_variants, shape_text
from clip_jax.config.experiment import make_config
from clip_jax.models import PUBLISHED, PackedText
from configs.tiny import get_config
from input_pipeline.packing import caption_lengths

CONFIG = make_config(get_config().to_dict())


def test_a_variant_is_the_config_with_its_settings():
    variants = make_variants(
        CONFIG, ["baseline", "remat=named+num_microbatches=4+block_size=32", "patch_dropout=0.5+text=9"]
    )
    first, second, third = variants.values()
    assert (first.config, first.text) == (CONFIG, "padded")
    assert (second.config.model.remat, second.config.train.num_microbatches, second.config.loss.block_size) == (
        *("named", 4),
        32,
    )
    assert (third.config.model.vision.patch_dropout, third.text) == (0.5, 9)
    assert third.config.model.remat == CONFIG.model.remat
    assert list(make_variants(CONFIG, [])) == ["baseline"]


def test_captions_are_as_long_as_people_s():
    text = PUBLISHED["ViT-B/32"].text
    lengths = caption_lengths(draw_captions(text, 2000), text.eot_token)
    assert (lengths.min(), lengths.max()) == (7, 21)
    assert lengths.mean() == pytest.approx(14, abs=0.3)  # 0.1 of standard error
    tiny = caption_lengths(draw_captions(CONFIG.model.text, 500), CONFIG.model.text.eot_token)
    assert (tiny.min(), tiny.max()) == (7, 16)


def test_text_is_padded_short_cut_or_packed():
    config = dataclasses.replace(CONFIG, model=PUBLISHED["ViT-B/32"])
    captions, eot_token = draw_captions(config.model.text, 48), config.model.text.eot_token
    padded, short, cut, packed = (
        shape_text(variant, captions, 2)
        for variant in make_variants(
            config, [f"text={form}" for form in ("padded", "short", 12, "packed+num_microbatches=3")]
        ).values()
    )
    assert padded is captions
    np.testing.assert_array_equal(short, captions[:, :24])  # the size above 21
    assert cut.shape == (48, 12)
    assert caption_lengths(cut, eot_token).max() == 12
    assert isinstance(packed, PackedText)
    assert packed.tokens.shape[::2] == (6, 77)  # two devices' three parts
    assert packed.tokens.shape[1] < 48 // 6
    assert np.sum(packed.tokens == eot_token) == 48


def test_a_tower_that_reads_its_padding_takes_padded_text_alone():
    base = dataclasses.replace(CONFIG.loss, kind="sigmoid")
    config = dataclasses.replace(CONFIG, model=PUBLISHED["SigLIP-B/16"], loss=base)
    captions = draw_captions(config.model.text, 8)
    with pytest.raises(ValueError, match="text=packed needs a causal text tower that is read at the end token"):
        shape_text(make_variants(config, ["text=packed"])["text=packed"], captions, 1)
