"""A caption loss beside the contrastive one: the decoder, the loss, its gradients on any mesh, and a run."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from miniature import miniature

import clip_jax
from clip_jax.config.experiment import make_config
from clip_jax.distributed.sharding import ShardingConfig, make_mesh, place_batch
from clip_jax.losses import LossConfig, caption_chance, contrastive_loss, make_loss, normalize, token_scores
from clip_jax.models import PUBLISHED, ModelConfig, TextConfig, VisionConfig
from clip_jax.models.variables import init_variables, model_graph
from clip_jax.runs import loop
from clip_jax.runs.logging import read_metrics
from clip_jax.training.state import variable_shardings
from clip_jax.training.step import encode, loss_and_gradient

pytestmark = pytest.mark.usefixtures("compile_once")

N, L, V, EOT = 24, 7, 62, 61
WEIGHT = 0.7
MODEL = ModelConfig(
    embed_dim=14,
    vision=VisionConfig(width=8, depth=1, num_heads=2, mlp_dim=22, image_size=10, patch_size=5),
    text=TextConfig(width=12, depth=2, num_heads=2, mlp_dim=26, context_length=L, vocab_size=V, eot_token=EOT),
    decoder_depth=2,
    compute_dtype="float64",
    param_dtype="float64",
)


def some_rows():
    rng = np.random.default_rng(0)
    text = rng.integers(1, 60, size=(N, L)).astype(np.int32)
    text[np.arange(N), rng.integers(2, L, size=N)] = EOT  # of uneven lengths, so that parts weigh differently
    images = rng.integers(256, size=(N, 10, 10, 3), dtype=np.uint8)
    return {"image": images, "text": text, "key": rng.integers(2**32, size=(N, 2), dtype=np.uint32)}


def some_params():
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_variables(MODEL, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: rng.uniform(-0.3, 0.3, size=leaf.shape) + (path[-1].key == "scale"), shapes
    )


@jax.jit
def hidden_states(params, images, text):
    return nnx.merge(model_graph(MODEL), params).encode_image_and_decode(images, text)[1]


@pytest.mark.usefixtures("x64")
def test_a_position_depends_on_the_image_and_on_the_tokens_before_it():
    rows, params = some_rows(), some_params()
    before = hidden_states(params, rows["image"], rows["text"])
    text = rows["text"].copy()
    text[:, 3] = 1
    after = hidden_states(params, rows["image"], text)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])  # position 3 predicts token 3
    assert (np.abs(before[:, 4:] - after[:, 4:]).max(axis=2) > 1e-6).all(axis=1)[text[:, 3] != rows["text"][:, 3]].all()
    others = hidden_states(params, rows["image"][::-1], rows["text"])
    assert (np.abs(before - others).max(axis=2) > 1e-6).all()


@pytest.mark.usefixtures("x64")
def test_scores_are_those_of_all_logits_at_once_with_their_gradient():
    rng = np.random.default_rng(2)
    hidden, embedding = (jnp.asarray(rng.normal(size=shape)) for shape in ((N, L, 12), (V, 12)))
    text = jnp.asarray(some_rows()["text"])

    def dense(hidden, embedding):
        log_p = jax.nn.log_softmax(hidden @ embedding.T)
        counts = np.arange(L) <= np.argmax(text == EOT, axis=1)[:, None]
        chosen = jnp.take_along_axis(log_p, text[:, :, None], axis=2)[:, :, 0]
        right = (jnp.argmax(log_p, axis=2) == text) * counts
        return jnp.sum(chosen * counts, axis=1), counts.sum(axis=1), right.sum(axis=1)

    scores = token_scores(hidden, embedding, text, EOT)
    for ours, theirs in zip(scores, dense(hidden, embedding)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    weights = rng.normal(size=N)
    gradients = [
        jax.grad(lambda h, e, f=f: jnp.sum(weights * f(h, e)), argnums=(0, 1))(hidden, embedding)
        for f in (lambda h, e: token_scores(h, e, text, EOT).log_likelihood, lambda h, e: dense(h, e)[0])
    ]
    for ours, theirs in zip(*gradients):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_chance_counts_the_first_token_too():
    text = jnp.asarray([[5, 3, EOT, 0], [5, 4, EOT, 0]])
    shares = np.array([2, 1, 1, 2]) / 6
    expected = -np.sum(shares * np.log(shares))
    np.testing.assert_allclose(caption_chance("language_model", text, EOT, V, from_first=True), expected, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_every_gradient_in_microbatches_on_a_mesh_is_that_of_the_definition():
    rows, params = some_rows(), some_params()

    def definition(params):
        model = nnx.merge(model_graph(MODEL), params)
        images, hidden = model.encode_image_and_decode(rows["image"], rows["text"], train=True, keys=rows["key"])
        zi, zt = normalize(images), normalize(model.encode_text(rows["text"]))
        log_p = jax.nn.log_softmax(hidden @ params["text"]["token_embedding"]["embedding"].T)
        counts = np.arange(L) <= np.argmax(rows["text"] == EOT, axis=1)[:, None]
        chosen = jnp.take_along_axis(log_p, rows["text"][:, :, None], axis=2)[:, :, 0]
        pairs = contrastive_loss(zi, zt, params["logit_scale"])[0]
        return pairs - WEIGHT * jnp.sum(chosen * counts) / counts.sum()

    expected, expected_grads = jax.jit(jax.value_and_grad(definition))(params)
    mesh = make_mesh(ShardingConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    loss = make_loss(LossConfig(caption_weight=WEIGHT), mesh)
    gradient = partial(loss_and_gradient, partial(encode, model_graph(MODEL), {}), loss)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, variable_shardings(params, mesh))
        (value, _), grads = jax.jit(partial(gradient, num_microbatches=3))(placed, {}, place_batch(rows, mesh))
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    grads, expected_grads = (flatten_dict(tree, sep="/") for tree in (grads, expected_grads))
    assert grads.keys() == expected_grads.keys() == flatten_dict(params, sep="/").keys()
    # The softmax leaves no gradient of the bias of cross-attention's keys but rounding.
    assert np.abs(expected_grads.pop("decoder/blocks/cross/key/bias")).max() < 1e-15
    errors = {name: np.abs(grads[name] - g).max() / np.abs(g).max() for name, g in expected_grads.items()}
    assert not {name: error for name, error in errors.items() if not error < 1e-12}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss__caption_weight": 1.0},
            "loss.caption_weight=1.0 with model.decoder_depth=0: a caption loss needs a dec",
        ),
        ({"model__decoder_depth": 1}, "loss.caption_weight=0.0 with model.decoder_depth=1"),
        ({"loss__caption_weight": 1.0, "loss__kind": "language_model"}, "predicts captions alone: set it to 0"),
        (
            {"loss__caption_weight": 1.0, "model__decoder_depth": 1, "data__pack_text": True},
            "data.pack_text=True with loss.caption_weight=1.0",
        ),
    ],
)
def test_what_does_not_fit_a_caption_loss_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(miniature(**changes))


def test_a_resnet_has_no_decoder():
    resnet = PUBLISHED["RN50"]
    with pytest.raises(ValueError, match=r"model\.decoder_depth=1 reads the positions of a vision transformer"):
        dataclasses.replace(resnet, decoder_depth=1)


def test_a_run_learns_captions_and_is_loaded_without_its_decoder(tmp_path):
    changes = {"loss__caption_weight": 1.0, "model__decoder_depth": 1, "train__total_steps": 30}
    assert loop.train(miniature(**changes, optimizer__learning_rate=1e-2), tmp_path / "run") == 0
    rows = [row for row in read_metrics(tmp_path / "run") if "caption_loss" in row]
    assert rows[-1]["caption_loss"] < 0.8 * rows[0]["caption_loss"]
    assert 0 <= rows[0]["caption_accuracy"] < rows[-1]["caption_accuracy"] <= 1
    model, _, tokenize = clip_jax.load(tmp_path / "run")
    assert "decoder" not in model.variables
    assert model.encode_text(tokenize(["a red circle"])).shape == (1, 16)
