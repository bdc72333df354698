"""The record at each position of the endless stream: a pure function of the seed and the sources' lengths."""

import itertools
from collections.abc import Sequence

import numpy as np
from grain.experimental import index_shuffle

BLOCK = 10_000  # positions in which each source of a mixture has a whole number of samples
_KEPT_BLOCKS = 4  # whose order is remembered
_MIXTURE_STREAM = 0x6D69  # keeps the random numbers of blocks apart from those of epochs


class Order:
    """Shuffled epochs of one source, or of several in fixed shares.

    Of several sources each BLOCK of positions holds a whole number of samples of each: its weight's share, rounded by
    the largest remainders. The block's order is shuffled, and each source goes through shuffled epochs of its own,
    every record once an epoch, however long the others are. Everything follows from (seed, position) at a cost that
    does not grow with the position.

    Args:
      lengths: records of each source.
      weights: relative shares of the samples, above 0.
      seed: at least 0.

    Raises:
      ValueError: a weight whose share is below one sample a block.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int):
        self._lengths, self._seed = tuple(lengths), seed
        self._starts = (0, *itertools.accumulate(lengths))
        self._shares = _shares(weights) if len(lengths) > 1 else np.array([BLOCK])
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def locate(self, position: int) -> tuple[int, int]:
        """The number of the source of a position's sample, and the number of its samples before that position."""
        if len(self._lengths) == 1:
            return 0, position
        block, offset = divmod(position, BLOCK)
        sources, ranks = self._block(block)
        source = int(sources[offset])
        return source, block * int(self._shares[source]) + int(ranks[offset])

    def index(self, source: int, sample: int, ahead: int = 0) -> int:
        """The record that is a source's sample of that number, or `ahead` records after it in its epoch.

        A record's index counts the records of all sources, one source after the other.
        """
        length = self._lengths[source]
        epoch, offset = divmod(sample, length)
        return self._starts[source] + self._shuffled(source, epoch, (offset + ahead) % length)

    def samples_seen(self, position: int) -> tuple[int, ...]:
        """Number of samples of each source before a position."""
        if len(self._lengths) == 1:
            return (position,)
        block, offset = divmod(position, BLOCK)
        rest = np.bincount(self._block(block)[0][:offset], minlength=len(self._lengths))
        return tuple((block * self._shares + rest).tolist())

    def _shuffled(self, source: int, epoch: int, offset: int) -> int:
        length = self._lengths[source]
        if length == 1:
            return 0
        # The first source's is that of [seed, epoch], which orders of one source had before there were mixtures.
        seed = np.random.SeedSequence([self._seed, epoch, source]).generate_state(1)[0]
        return index_shuffle(offset, max_index=length - 1, seed=int(seed), rounds=4)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each position of a block its source, and the number of that source's samples before it in the block."""
        if (made := self._blocks.get(block)) is None:
            bits = np.random.Philox(np.random.SeedSequence([self._seed, block, _MIXTURE_STREAM])).random_raw(BLOCK)
            slots = np.repeat(np.arange(len(self._lengths)), self._shares)
            sources = slots[np.argsort(bits, kind="stable")]  # numpy promises the same bits, not the same permutation
            ranks = np.empty(BLOCK, np.int64)
            ranks[np.argsort(sources, kind="stable")] = np.concatenate([np.arange(share) for share in self._shares])
            made = sources, ranks
            self._blocks = {**dict(list(self._blocks.items())[1 - _KEPT_BLOCKS :]), block: made}
        return made


def _shares(weights: Sequence[float]) -> np.ndarray:
    """Whole numbers in the proportion of the weights that sum to BLOCK, by the largest remainders."""
    exact = np.array(weights, np.float64) / sum(weights) * BLOCK
    shares = exact.astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: BLOCK - shares.sum()]] += 1
    if not shares.all():
        raise ValueError(
            f"the weight {weights[int(np.argmin(shares))]} of {[*weights]} is below one sample in {BLOCK}: raise it or "
            "leave its source out"
        )
    return shares
