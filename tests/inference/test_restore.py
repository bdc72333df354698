"""Runs back from their workdir: loaded, exported, started from, and a ResNet's statistics resumed."""

import json
from contextlib import closing

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.distributed.sharding import place_batch
from clip_jax.inference.load import open_model, restore_run
from clip_jax.pretrained import save_pretrained
from clip_jax.runs.setup import prepare_run
from configs.tiny import get_config
from input_pipeline.tokenizers import SentencePieceTokenizer

pytestmark = pytest.mark.usefixtures("compile_once")

TOWER = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
MINIATURE = {
    "model": {"embed_dim": 16},
    "vision": {"image_size": 16, "patch_size": 8, **TOWER},
    "text": {"context_length": 8, "vocab_size": 300, **TOWER},
    "data": {"num_examples": 101, "num_validation": 11, "num_workers": 0},
    "optimizer": {"warmup_steps": 2},
    "train": {"global_batch_size": 8, "total_steps": 7},
    "evaluation": {"zero_shot": (), "num_examples": 5, "batch_size": 8},
}
RESNET = {"image_size": 32, "stages": (1, 2, 1, 1), "stem_width": 4, "num_heads": 4, "batch_norm": "per_device"}


def sections(**changes):
    config = get_config().to_dict()
    for section, keys in MINIATURE.items():
        config[section] |= keys
    return config | changes


def with_keys(section, **keys):
    return {section: {**sections()[section], **keys}}


def advance(config, workdir, num_steps):
    """Takes steps of a run and saves it; returns its variables."""
    run = prepare_run(config, workdir)
    with closing(run.checkpointer), closing(run.batches), jax.set_mesh(run.mesh):
        for _ in range(num_steps):
            batch = next(run.batches)
            arrays = place_batch({"image": batch["image"], "text": batch["text"]}, run.mesh)
            run.state, _ = run.step_fn(run.state, arrays)
        run.checkpointer.save(run.first_step, run.state, run.batches.get_state())
        run.checkpointer.wait()
        return jax.device_get(run.state.variables)


def assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    advance(sections(), workdir, 2)
    return workdir


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(256, size=(5, 16, 16, 3), dtype=np.uint8)


@pytest.mark.nightly
def test_a_resnet_resumes_with_its_statistics(tmp_path):
    config = sections(vision=RESNET, **with_keys("train", global_batch_size=16))  # so that a device has two images
    expected = advance(config, tmp_path / "whole", 4)
    advance(config, tmp_path / "stopped", 2)
    assert_equal(advance(config, tmp_path / "stopped", 2), expected)
    norm = expected["visual"]["stage_2"]["blocks"]["conv_1"]["norm"]
    assert norm["count"].tolist() == [4]
    assert np.abs(norm["var"] - 1).max() > 0.01  # moved, so that the equality says something


@pytest.mark.nightly
def test_a_run_with_everything_random_and_averaged_resumes_to_the_bit(tmp_path):
    config = sections(
        **with_keys("vision", patch_dropout=0.5),
        **with_keys("optimizer", ema_decay=0.9, first_moment_dtype="bfloat16"),
        **with_keys("train", global_batch_size=16, num_microbatches=2),
    )
    advance(config, tmp_path / "whole", 4)
    advance(config, tmp_path / "stopped", 2)
    advance(config, tmp_path / "stopped", 2)
    whole, stopped = (jax.device_get(restore_run(tmp_path / name).state) for name in ("whole", "stopped"))
    assert_equal(stopped, whole)
    assert int(whole.step) == 4
    # The average is what the run is loaded with.
    averaged = open_model(tmp_path / "whole")[0].variables
    assert_equal(averaged, whole.ema)
    kernel = whole.params["visual_projection"]["kernel"]
    assert np.abs(averaged["visual_projection"]["kernel"] - kernel).max() > 1e-6


@pytest.mark.nightly
def test_a_run_resumes_with_another_number_of_microbatches(tmp_path):
    config = sections(**with_keys("vision", patch_dropout=0.5), **with_keys("train", global_batch_size=32))
    advance(config, tmp_path / "whole", 2)
    advance(config, tmp_path / "in_parts", 1)
    config["train"]["num_microbatches"] = 4
    advance(config, tmp_path / "in_parts", 1)
    moments, expected = (restore_run(tmp_path / name).state.opt_state[0].mu for name in ("in_parts", "whole"))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda own, leaf: np.testing.assert_allclose(own, leaf, atol=1e-5 * scale), moments, expected)


def test_a_batch_that_microbatches_do_not_divide_is_refused(tmp_path):
    config = sections(**with_keys("train", global_batch_size=40, num_microbatches=3))
    message = (
        "train.global_batch_size=40 is not divisible by the 8 devices that share a batch, times "
        "train.num_microbatches=3: use 24 or 48"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        prepare_run(config, tmp_path)


def test_one_tower_of_given_weights_stays_frozen_beside_a_new_one(workdir, tmp_path):
    given, _ = open_model(workdir)
    config = sections(
        **with_keys("text", width=24, mlp_dim=40, context_length=12, vocab_size=280),
        **with_keys("data", scene_kinds=("digit", "word")),  # words of its own
        **with_keys("optimizer", frozen=("visual",), warmup_steps=0, ema_decay=0.5),
        **with_keys("train", init_from=str(workdir), init_towers=("visual",)),
    )
    variables = advance(config, tmp_path, 2)
    for name in ("visual", "visual_projection"):
        assert_equal(variables[name], given.variables[name])
    assert variables["text"]["positional_embedding"].shape == (12, 24)
    assert (tmp_path / "tokenizer.model").read_bytes() != (workdir / "tokenizer.model").read_bytes()
    assert variables["logit_scale"] != given.variables["logit_scale"]
    assert_equal(open_model(tmp_path)[0].variables, variables)

    config["vision"] = {**config["vision"], "patch_size": 4}
    with pytest.raises(ValueError, match=r"is not the config's model: vision.patch_size is 8, not 4$"):
        prepare_run(config, tmp_path / "other")


def test_a_run_loads_as_published_weights_do(workdir, images):
    model, preprocess, tokenize = clip_jax.load(workdir)
    assert (model.image_size, model.embed_dim, tokenize.kind) == (16, 16, "sentencepiece")
    logits_per_image, logits_per_text = model(images, tokenize(["a red circle", "a blue square"]))
    assert logits_per_image.shape == (5, 2)
    np.testing.assert_array_equal(logits_per_text, logits_per_image.T)
    np.testing.assert_array_equal(preprocess(images[0]), images[0])


@pytest.mark.parametrize("form", ["huggingface", "open_clip"])
def test_a_run_is_exported_and_loaded_again(workdir, images, tmp_path, form):
    model, _, tokenize = clip_jax.load(workdir)
    pretrained, tokenizer = open_model(workdir)
    save_pretrained(pretrained, tmp_path / form, form, tokenizer)
    again, _, tokenize_again = clip_jax.load(tmp_path / form)
    assert isinstance(tokenize_again, SentencePieceTokenizer)
    assert again.config.text.eot_token == tokenize.eot_token == 3  # neither the highest id nor open_clip's default
    assert again.fingerprint == model.fingerprint
    text = tokenize(["a red circle", "a blue square"])
    np.testing.assert_array_equal(tokenize_again(["a red circle", "a blue square"]), text)
    np.testing.assert_array_equal(again(images, text)[0], model(images, text)[0])


def test_training_starts_from_initial_weights(workdir, tmp_path):
    given, _ = open_model(workdir)
    config = sections(**with_keys("train", init_from=str(workdir)))
    assert_equal(advance(config, tmp_path / "same", 0), given.variables)
    larger = config | with_keys("vision", image_size=24)
    variables = advance(larger, tmp_path / "larger", 0)
    assert variables["visual"]["positional_embedding"].shape == (10, 16)
    assert_equal(variables["visual"]["transformer"], given.variables["visual"]["transformer"])


def test_initial_weights_of_another_model_are_refused(workdir, tmp_path):
    config = sections(**with_keys("train", init_from=str(workdir)), **with_keys("model", activation="gelu"))
    with pytest.raises(ValueError, match=f"train.init_from={workdir} is not the config's model: activation is quick_"):
        prepare_run(config, tmp_path)
    assert not (tmp_path / "config.json").exists()
    assert advance(sections(**with_keys("train", init_from=str(workdir))), tmp_path, 0)  # the corrected config is taken


def test_the_vocabulary_comes_with_the_weights(workdir, tmp_path):
    other = with_keys("data", scene_kinds=("digit", "word"))  # whose captions would give another one
    started = sections(**with_keys("train", init_from=str(workdir)), **other)
    advance(started, tmp_path / "started", 0)
    assert (tmp_path / "started" / "tokenizer.model").read_bytes() == (workdir / "tokenizer.model").read_bytes()
    advance(sections(**other), tmp_path / "own", 0)
    own = str(tmp_path / "own" / "tokenizer.model")
    started["data"]["tokenizer_file"] = own
    with pytest.raises(
        ValueError, match=r"was trained on another vocabulary \(sentencepiece\): set data.tokenizer and"
    ):
        prepare_run(started, tmp_path / "mixed")
    assert not (tmp_path / "mixed" / "config.json").exists()


def test_a_run_of_the_streamed_sigmoid_loss_learns_its_bias_and_is_loaded_with_it(tmp_path):
    loss = {"kind": "sigmoid", "block_size": 3, "caption_weight": 0.0}
    variables = advance(sections(**with_keys("model", logit_bias_init=-10.0), loss=loss), tmp_path, 2)
    assert -10.1 < variables["logit_bias"] < -9.9
    assert variables["logit_bias"] != -10
    assert clip_jax.load(tmp_path)[0].logit_bias == variables["logit_bias"]


def test_a_mesh_that_does_not_divide_a_parameter_names_it_and_leaves_no_record(tmp_path):
    config = sections(**with_keys("sharding", data=2, tensor=4))
    with pytest.raises(
        ValueError,
        match=r"sharding.tensor=4 does not divide the 2 of text/transformer/blocks/attn/out/kernel \[1, 2, 8, 16\]: "
        "use 2, or another divisor of 2",
    ):
        prepare_run(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_config_of_another_version_is_named(workdir, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    config = json.loads((workdir / "config.json").read_text())
    del config["vision"]["width"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"config\.json is not a config of this version of clip_jax: missing vision.width"
    ):
        clip_jax.load(tmp_path)


def test_a_run_without_a_checkpoint_cannot_be_loaded(workdir, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("config.json", "tokenizer.model"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    with pytest.raises(ValueError, match="has no checkpoint yet: train first"):
        clip_jax.load(tmp_path)


def test_an_activation_that_the_run_does_not_have_is_refused(workdir):
    with pytest.raises(ValueError, match=r"activation='gelu' was asked for, but the run in .* has 'quick_gelu'"):
        clip_jax.load(workdir, activation="gelu")
