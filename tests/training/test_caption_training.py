"""Training on captions predicted: gradients on any mesh and in parts, a run from its start to its evaluation."""

import dataclasses
import functools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

import clip_jax
from clip_jax.config.experiment import make_config
from clip_jax.distributed.sharding import ShardingConfig, make_mesh, place_batch
from clip_jax.evaluation import in_training
from clip_jax.evaluation.in_training import evaluate
from clip_jax.losses import LossConfig, make_loss
from clip_jax.models import ModelConfig, TextConfig, VisionConfig
from clip_jax.models.variables import init_variables, model_graph
from clip_jax.runs import loop
from clip_jax.runs.logging import read_metrics
from clip_jax.training.state import variable_shardings
from clip_jax.training.step import encode, loss_and_gradient
from configs.tiny import get_config

pytestmark = pytest.mark.usefixtures("compile_once")

KINDS = ("bag_of_words", "language_model")
N, L, V, EOT = 24, 7, 62, 61
CLIP = ModelConfig(
    embed_dim=14,
    vision=VisionConfig(width=8, depth=1, num_heads=2, mlp_dim=22, image_size=10, patch_size=5),
    text=TextConfig(width=12, depth=1, num_heads=2, mlp_dim=26, context_length=L, vocab_size=V, eot_token=EOT),
    compute_dtype="float64",
    param_dtype="float64",
)
DATA = ("read_s", "decode_s", "tokenise_s", "wait_share", "batches_ready", "broken", "worker_restarts")
TIMING = ("images_per_s", *(f"data_{name}" for name in DATA))


def config_of(kind):
    return dataclasses.replace(CLIP, head=kind)


def some_rows():
    rng = np.random.default_rng(0)
    text = rng.integers(1, 60, size=(N, L)).astype(np.int32)
    text[np.arange(N), rng.integers(2, L, size=N)] = EOT  # of uneven lengths, so that parts weigh differently
    images = rng.integers(256, size=(N, 10, 10, 3), dtype=np.uint8)
    return {"image": images, "text": text, "key": rng.integers(2**32, size=(N, 2), dtype=np.uint32)}


def some_params(config):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: rng.uniform(-0.3, 0.3, size=leaf.shape) + (path[-1].key == "scale"), shapes
    )


@functools.cache
def definition(kind):
    """Loss and gradients on one device: what is asked for is written out caption by caption, over the vocabulary."""
    config, rows = config_of(kind), some_rows()
    words = [row[1 : np.argmax(row == EOT)].tolist() for row in rows["text"]]
    asked = np.zeros((N, V) if kind == "bag_of_words" else (N, L - 1, V))
    for n, caption in enumerate(words):
        if kind == "bag_of_words":
            asked[n, caption] = 1 / len(set(caption))
        else:
            asked[n, np.arange(len(caption) + 1), [*caption, EOT]] = 1

    def loss(params):
        model = nnx.merge(model_graph(config), params)
        features = model.encode_image(rows["image"], train=True, keys=rows["key"])
        return -jnp.sum(asked * jax.nn.log_softmax(model.caption_logits(features, rows["text"]))) / asked.sum()

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(some_params(config)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient_in_microbatches_on_a_mesh_is_that_of_the_definition(kind):
    mesh = make_mesh(ShardingConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    config = config_of(kind)
    params = some_params(config)
    loss = make_loss(LossConfig(kind=kind), mesh)
    gradient = partial(loss_and_gradient, partial(encode, model_graph(config), {}), loss)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, variable_shardings(params, mesh))
        (value, _), grads = jax.jit(partial(gradient, num_microbatches=3))(placed, {}, place_batch(some_rows(), mesh))
    expected, expected_grads = definition(kind)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    grads, expected_grads = (flatten_dict(tree, sep="/") for tree in (grads, expected_grads))
    assert grads.keys() == expected_grads.keys() == flatten_dict(params, sep="/").keys()
    errors = {name: np.abs(grads[name] - g).max() / np.abs(g).max() for name, g in expected_grads.items()}
    assert not {name: error for name, error in errors.items() if not error < 1e-12}


def miniature(kind, **changes):
    """configs/tiny.py so small that a step takes milliseconds."""
    sections = get_config().to_dict()
    tower = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    sections["loss"]["kind"] = kind
    sections["model"]["embed_dim"] = 16
    sections["vision"] |= {"image_size": 16, "patch_size": 8, **tower}
    sections["text"] |= {"context_length": 8, "vocab_size": 300, **tower}
    sections["data"] |= {"num_examples": 101, "num_validation": 11, "num_workers": 0}
    sections["optimizer"] |= {"warmup_steps": 2, "learning_rate": 1e-2}
    sections["train"] |= {"global_batch_size": 16, "total_steps": 12, "checkpoint_every": 5, "evaluate_every": 10}
    sections["evaluation"] |= {"zero_shot": ("scenes/shape",), "num_examples": 13, "batch_size": 16}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        sections[section][key] = value
    return sections


def rows_of(workdir):
    return [{name: value for name, value in row.items() if name not in TIMING} for row in read_metrics(workdir)]


@pytest.fixture(scope="module", params=[pytest.param("bag_of_words", marks=pytest.mark.nightly), "language_model"])
def finished(request, tmp_path_factory):
    """Kind, workdir and what was printed of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / request.param
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *args, **_: lines.extend(map(str, args)))
        patch.setattr(in_training, "plot_confusion", lambda *args: None)
        assert loop.train(miniature(request.param), workdir) == 0
    return request.param, workdir, " ".join(" ".join(lines).split())


def test_a_run_learns_and_prints_its_summary(finished):
    _, workdir, out = finished
    rows = [row for row in read_metrics(workdir) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    names = {"loss", "chance_loss", "token_accuracy", "grad_norm", "param_norm", "learning_rate", "step"}
    assert rows[0].keys() == names | {"samples_seen", "epochs", *TIMING}
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert all(0 < row["chance_loss"] < np.log(300) for row in rows)
    assert f"(chance {rows[-1]['chance_loss']:.3f}) words or tokens predicted" in out
    assert "logit scale" not in out
    results = json.loads((workdir / "evaluation.json").read_text())
    assert results.keys() == {"zero_shot"}
    assert (results["zero_shot"]["scenes/shape"]["count"], results["zero_shot"]["scenes/shape"]["chance"]) == (
        13,
        1 / 8,
    )
    assert read_metrics(workdir)[-1]["evaluation/scenes/shape/top1"] == results["zero_shot"]["scenes/shape"]["top1"]
    assert {file.stem for file in workdir.glob("*.png")} == {"curves"}


@pytest.mark.nightly
def test_an_interrupted_run_ends_as_an_undisturbed_one(finished, tmp_path, monkeypatch):
    kind, workdir, _ = finished
    with pytest.raises(ValueError, match=rf"^workdir .* another config: loss.kind was '{kind}', is 'contrastive'"):
        loop.train(miniature("contrastive"), workdir)
    if kind == "bag_of_words":  # what stops and goes on is the same code
        return

    def stop(*args):
        raise RuntimeError("the power failed")

    monkeypatch.setattr(in_training, "plot_confusion", lambda *args: None)
    monkeypatch.setattr(loop, "plot_curves", lambda *args: None)
    with monkeypatch.context() as patch:
        patch.setattr(in_training.Evaluator, "__call__", stop)
        with pytest.raises(RuntimeError, match="the power failed"):
            loop.train(miniature(kind), tmp_path)
    assert loop.train(miniature(kind), tmp_path) == 0
    assert rows_of(tmp_path) == rows_of(workdir)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == json.loads(
        (workdir / "evaluation.json").read_text()
    )


def test_evaluate_gives_the_numbers_of_the_end_of_the_run(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(in_training, "plot_confusion", lambda *args: None)
    _, workdir, _ = finished
    assert evaluate(workdir, tmp_path) == {"step": 12, **json.loads((workdir / "evaluation.json").read_text())}


def test_such_a_run_is_not_loaded_as_clip(finished):
    kind, workdir, _ = finished
    with pytest.raises(ValueError, match=rf"^the run in {workdir} was trained with loss.kind='{kind}': it predicts"):
        clip_jax.load(workdir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__pack_text": True},
            r"^data.pack_text=True with loss.kind='language_model': it packs for text features alone",
        ),
        ({"train__init_from": "ViT-B/32"}, r"^train.init_towers=\('visual', 'text'\) with .* only the image tower can"),
        ({"text__causal": False}, r"^text.causal=False with text.pooling='eot': a language model needs a causal"),
        ({"loss__block_size": 7}, r"^loss.block_size=7 is of losses over all pairs; loss.kind='language_model' looks"),
        ({"model__logit_bias_init": -10.0}, r"^model.logit_bias_init=-10.0 with loss.kind='language_model': only the"),
        ({"model__head": "embedding"}, r"^unknown model.head"),
    ],
)
def test_what_captions_predicted_cannot_have_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(miniature("language_model", **changes))


def test_the_head_of_the_model_follows_the_loss():
    config = make_config(miniature("contrastive"))
    with pytest.raises(ValueError, match=r"^model.head='embedding' with loss.kind='bag_of_words': it must be 'bag_of_"):
        dataclasses.replace(config, loss=LossConfig(kind="bag_of_words"))
    visual = miniature("bag_of_words", train__init_from="ViT-B/32", train__init_towers=("visual",))
    assert make_config(visual).model.head == "bag_of_words"
