"""What `clip-jax bench KIND` measures; each kind is a module: `python -m clip_jax.benchmarks.KIND` is the same."""

KINDS = {
    "step": "a training step: images/s, MFU, memory, compile time; remat, loss and text forms by turns",
    "encode": "encoding images and texts",
    "loss": "a loss and its gradients, whole matrix against blocks; memory on devices that need not be there",
    "input": "making batches: each stage of a core, workers, and how many cores training needs",
    "tokenizers": "captions to ids: byte pairs with and without a cache of words, SentencePiece, open_clip's beside",
    "decode": "JPEGs to training crops on one core: fast, exact, open_clip, tf.data; the difference of the pixels",
    "packed_text": "packed captions against padded and cut ones, on real captions",
    "text_length": "the encoder's text cut at its longest row, on real captions",
    "overhead": "what Python costs a step",
    "conversion": "reading and writing weights: seconds and memory",
}
