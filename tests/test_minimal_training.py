"""The smallest training loop: a model, a loss and a step, without configs, checkpoints or the data pipeline."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from clip_jax import CLIP, ModelConfig, TextConfig, VisionConfig, contrastive_loss
from clip_jax.losses import normalize
from input_pipeline.scenes import SceneSource

N, L = 32, 14  # pairs, positions of text


def drawn_pairs():
    """Pictures, uint8 [N, 32, 32, 3], and their captions as token ids, int32 [N, L]: one token a word, 1 at the end."""
    records = list(SceneSource(seed=0, num_examples=N, image_size=32))
    captions = [record["captions"][0].lower().split()[: L - 1] for record in records]
    vocabulary = {word: 2 + i for i, word in enumerate(sorted({word for words in captions for word in words}))}
    text = np.zeros((N, L), np.int32)
    for row, words in zip(text, captions):
        row[: len(words) + 1] = [*(vocabulary[word] for word in words), 1]
    return jnp.stack([record["image"] for record in records]), jnp.asarray(text), 2 + len(vocabulary)


def test_the_loss_falls_far_below_chance():
    images, text, vocab_size = drawn_pairs()
    config = ModelConfig(
        embed_dim=32,
        vision=VisionConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_dim=64),
        text=TextConfig(
            context_length=L, vocab_size=vocab_size, eot_token=1, width=32, depth=1, num_heads=2, mlp_dim=64
        ),
    )
    graph, params = nnx.split(CLIP(config, nnx.Rngs(0)))
    optimizer = optax.adamw(2e-3)
    opt_state = optimizer.init(params)

    def loss_fn(params):
        model = nnx.merge(graph, params)
        image_features, text_features = normalize(model.encode_image(images)), normalize(model.encode_text(text))
        return contrastive_loss(image_features, text_features, log_logit_scale=model.logit_scale[...])

    @jax.jit
    def step(params, opt_state):
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, metrics

    for _ in range(60):
        params, opt_state, loss, metrics = step(params, opt_state)

    assert loss < np.log(N) / 4  # chance is log N, where every text is as probable as any other
    assert metrics["image_to_text_accuracy"] > 0.7
