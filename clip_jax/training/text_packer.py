"""Padded token ids to packed text of one static shape, batch after batch."""

from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from clip_jax.distributed.sharding import batch_shards, local_rows
from clip_jax.models import ModelConfig, PackedText
from input_pipeline.packing import PackingOverflowError, caption_lengths, pack_text, rows_with_headroom
from input_pipeline.tokenizers import Tokenizer


class TextPacker:
    """Packs a process's captions, int32 [b, L], in groups of `rows` rows: one group for each microbatch of each of its
    devices that share a batch.

    A batch of which some group does not fit is returned unpacked, and costs what it costs without packing (and one
    compilation, the first time): no caption is ever cut, skipped or delayed. Whether it fits depends on the captions
    alone, so a resumed run takes the same steps. Several processes, which must all run the same program, agree on it
    first, which waits for their devices.
    """

    def __init__(self, eot_token: int, num_groups: int, rows: int, num_microbatches: int = 1):
        self._eot_token = eot_token
        self._num_groups = num_groups
        self._num_microbatches = num_microbatches
        self.rows = rows

    @property
    def plan(self) -> str:
        """A line of the run's plan."""
        return f"  captions packed: {self._num_groups} groups of {self.rows} rows"

    def __call__(self, text: np.ndarray) -> PackedText | np.ndarray:
        """The batch packed, or itself."""
        # A device's captions in the order of the microbatches, of which `split_rows` gives every m-th row to the m-th.
        parts = text.reshape(self._num_groups // self._num_microbatches, -1, self._num_microbatches, text.shape[1])
        in_order = parts.swapaxes(1, 2).reshape(text.shape)
        try:
            packed = pack_text(in_order, self._eot_token, num_groups=self._num_groups, rows=self.rows)
        except PackingOverflowError:
            packed = None
        fits = packed is not None
        if jax.process_count() > 1:
            fits = bool(multihost_utils.process_allgather(np.array(fits)).all())
        return PackedText(**packed) if packed and fits else text  # type: ignore[arg-type]  # NumPy's until they are placed


def make_text_packer(
    model: ModelConfig,
    captions: Iterable[str],
    tokenizer: Tokenizer,
    mesh: Mesh,
    batch_size: int,
    seed: int,
    num_microbatches: int = 1,
) -> TextPacker:
    """A packer with rows for nearly every global batch, estimated from the lengths of a sample, `captions`.

    Raises ValueError for a text tower that cannot read packed rows, or no captions.
    """
    if not model.text.ignores_padding:
        raise ValueError(
            "data.pack_text=True needs a causal text tower that is read at the end token, not "
            f"text.causal={model.text.causal} with text.pooling={model.text.pooling!r}: set data.pack_text=False"
        )
    group_size = batch_size // (batch_shards(mesh) * num_microbatches)
    rows_of_text = [tokenizer.encode(caption)[0] for caption in captions]
    if not rows_of_text:
        raise ValueError("data.pack_text=True found no caption to measure: the records of data.path have none")
    text = np.stack(rows_of_text)
    lengths = caption_lengths(text, tokenizer.eot_token)
    rows = rows_with_headroom(lengths, group_size, model.text.context_length, seed)
    num_groups = len(local_rows(mesh, batch_size)) // group_size
    return TextPacker(tokenizer.eot_token, num_groups, rows, num_microbatches)
