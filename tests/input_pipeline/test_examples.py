from collections import Counter

import numpy as np
import pytest
from grain.experimental import index_shuffle

from input_pipeline.examples import BLOCK, Order

LENGTHS, WEIGHTS = (331, 1009, 1), (0.5, 0.2999, 0.2001)
SHARES = (5000, 2999, 2001)


def walk(lengths, shares, seed, positions: range) -> list[int]:
    """A mixture's records, as one would write it down: from the start of the stream, with a counter a source."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    seen = [0] * len(lengths)
    found = []
    for position in range(positions.stop):
        block, offset = divmod(position, BLOCK)
        if offset == 0:
            bits = np.random.Philox(np.random.SeedSequence([seed, block, 0x6D69])).random_raw(BLOCK)
            order = [source for source, share in enumerate(shares) for _ in range(share)]
            order = [order[i] for i in sorted(range(BLOCK), key=lambda i: bits[i])]
        source = order[offset]
        epoch, place = divmod(seen[source], lengths[source])
        seen[source] += 1
        if position not in positions:
            continue
        epoch_seed = int(np.random.SeedSequence([seed, epoch, source]).generate_state(1)[0])
        last = lengths[source] - 1
        found.append(starts[source] + (index_shuffle(place, last, epoch_seed, 4) if last else 0))
    return found


def test_a_mixture_is_what_a_walk_with_counters_gives():
    order = Order(LENGTHS, WEIGHTS, seed=3)
    positions = range(BLOCK - 700, BLOCK + 600)  # from the middle of a block into the next
    expected = walk(LENGTHS, SHARES, 3, positions)
    assert [order.index(*order.locate(position)) for position in positions] == expected
    again = Order(LENGTHS, WEIGHTS, seed=3)
    assert [again.index(*again.locate(position)) for position in reversed(positions)] == expected[::-1]
    assert [Order(LENGTHS, WEIGHTS, seed=4).locate(p) for p in range(50)] != [order.locate(p) for p in range(50)]


def test_one_source_keeps_the_order_that_runs_of_earlier_versions_have():
    order = Order([23], [1], seed=5)
    positions = (0, 1, 2, 22, 23, 24, 10**12)
    assert [order.index(*order.locate(position)) for position in positions] == [7, 14, 9, 6, 12, 9, 15]


def test_shares_are_exact_in_each_block_and_each_source_has_epochs_of_its_own():
    order = Order(LENGTHS, WEIGHTS, seed=0)
    for block in (0, 1, 10**9):
        located = [order.locate(block * BLOCK + offset) for offset in range(BLOCK)]
        for source, share in enumerate(SHARES):
            # Its samples follow each other without a gap, so every epoch has every record once.
            assert [n for s, n in located if s == source] == list(range(block * share, (block + 1) * share))
    assert Counter(order.index(0, sample) for sample in range(3310, 3641)) == Counter(range(331))
    assert Counter(order.index(1, sample) for sample in range(1009)) == Counter(range(331, 1340))
    assert [order.index(1, 7, ahead) for ahead in range(3)] == [order.index(1, 7 + ahead) for ahead in range(3)]


def test_samples_seen_counts_the_samples_before_a_position():
    order = Order(LENGTHS, WEIGHTS, seed=1)
    counts = np.zeros(3, int)
    for position in range(BLOCK + 500):
        if position % 701 == 0 or position == BLOCK:
            assert order.samples_seen(position) == tuple(counts)
        counts[order.locate(position)[0]] += 1
    assert order.samples_seen(10**9 * BLOCK) == tuple(10**9 * share for share in SHARES)
    assert Order([23], [1], seed=0).samples_seen(100) == (100,)


@pytest.mark.parametrize(
    ("weights", "shares"), [((1, 1, 1), (3334, 3333, 3333)), ((2, 1), (6667, 3333)), ((1e-4, 1 - 1e-4), (1, 9999))]
)
def test_weights_become_shares_by_the_largest_remainders(weights, shares):
    assert Order([5] * len(weights), weights, seed=0).samples_seen(BLOCK) == shares


def test_a_weight_below_one_sample_in_a_block_is_refused():
    with pytest.raises(
        ValueError, match=r"the weight 0.1 of \[0.1, 5000, 4000\] is below one sample in 10000: raise it"
    ):
        Order([5, 5, 5], [0.1, 5000, 4000], seed=0)
