"""`clip-jax bench KIND`: the flags and `main` of each kind; `clip_jax.benchmarks` measures."""

KINDS = {
    "step": "a training step: images/s, MFU, memory, compile time, for variants of remat, loss and text",
    "encode": "encoding of images and texts",
    "loss": "a loss and its gradients, whole matrix against blocks; its memory on devices that need not exist",
    "input": "making batches: each stage on one core, workers, and the cores that training needs",
    "decode": "JPEGs to training crops on one core, fast and exact, and the difference of the pixels",
}
