"""Several captions in one row of text, so that the text tower computes few positions that nobody reads.

Captions stand in groups of equal size, and each group is packed into rows of its own: a batch is split over devices by
groups, so that no device reads a row of another.
"""

from collections.abc import Iterator
from typing import TypedDict

import numpy as np

DRAWN_GROUPS = 32
SPREAD = 2  # standard deviations of a group's tokens


class PackedRows(TypedDict):
    """G groups of n captions each, in their order, in r rows of L positions a group; all int32.

    tokens: [G, r, L], 0 where there is no caption. segments: [G, r, L], which of its row's captions a position belongs
    to, from 1; 0 for none. positions: [G, r, L], within the caption. rows, ends: [G, n], the row and position of each
    caption's end token in its group's rows.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    rows: np.ndarray
    ends: np.ndarray


class PackingOverflowError(ValueError):
    """Captions do not fit the rows given: `captions` of them, over all groups; `rows_needed` is what the
    neediest group needs."""

    def __init__(self, captions: int, rows: int, rows_needed: int):
        super().__init__(
            f"{captions} captions do not fit {rows} rows a group: give {rows_needed} rows, or do not pack them"
        )
        self.captions = captions
        self.rows_needed = rows_needed


def caption_lengths(text: np.ndarray, eot_token: int) -> np.ndarray:
    """Tokens of each row of int32 [N, L] up to and with its first end token, [N]; ValueError for a row without one."""
    is_end = text == eot_token
    if not is_end.any(axis=1).all():
        raise ValueError(
            f"row {np.argmin(is_end.any(axis=1))} of the text has no end token {eot_token}: it has no feature"
        )
    return is_end.argmax(axis=1) + 1


def pack_text(
    text: np.ndarray, eot_token: int, *, num_groups: int = 1, rows: int | None = None, row_length: int | None = None
) -> PackedRows:
    """Packs token ids, int32 [N, L], by first-fit-decreasing; a pure function, exact: no caption is cut or left out.

    What stands behind a caption's first end token is not packed: a causal tower that is read there does not see it.

    Args:
      num_groups: into how many equal groups the captions are cut, in their order.
      rows: of each group, so that shapes are static; None takes as many as the neediest group needs.
      row_length: positions of a packed row, by default L.

    Raises:
      PackingOverflowError: the captions of a group do not fit its rows.
      ValueError: the groups are not equal, a caption is longer than a row, or has no end token.
    """
    N = len(text)
    row_length = text.shape[1] if row_length is None else row_length
    if num_groups < 1 or N % num_groups or not N:
        raise ValueError(f"{N} captions cannot be packed in {num_groups} equal groups")
    lengths = caption_lengths(text, eot_token)
    if lengths.max() > row_length:
        raise ValueError(f"a caption of {lengths.max()} tokens does not fit a packed row of row_length={row_length}")
    slots = [_first_fit_decreasing(group, row_length) for group in lengths.reshape(num_groups, -1)]
    row, start, segment = (np.stack(column) for column in zip(*slots))  # [G, n] each
    rows_needed = int(row.max()) + 1
    if rows is None:
        rows = rows_needed
    elif rows_needed > rows:
        raise PackingOverflowError(int((row >= rows).sum()), rows, rows_needed)

    caption = np.repeat(np.arange(N), lengths)  # [T], of every token
    position = np.arange(len(caption)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    group = np.repeat(np.arange(num_groups), N // num_groups)
    first = ((group * rows + row.ravel()) * row_length + start.ravel())[caption]  # where its caption starts
    packed = np.zeros((3, num_groups * rows * row_length), np.int32)
    packed[:, first + position] = text[caption, position], segment.ravel()[caption], position
    tokens, segments, positions = packed.reshape(3, num_groups, rows, row_length)
    ends = (start + lengths.reshape(row.shape) - 1).astype(np.int32)
    return PackedRows(tokens=tokens, segments=segments, positions=positions, rows=row.astype(np.int32), ends=ends)


def rows_with_headroom(lengths: np.ndarray, group_size: int, row_length: int, seed: int) -> int:
    """How many rows the captions of nearly every group fit, judged by a sample of caption lengths, [M].

    The most that DRAWN_GROUPS random groups need, and SPREAD standard deviations of a group's tokens; never more than
    one row a caption, which always fit.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.choice(lengths, (DRAWN_GROUPS, group_size))
    most = max(int(_first_fit_decreasing(group, row_length)[0].max()) + 1 for group in drawn)
    return min(most + int(np.ceil(SPREAD * lengths.std() * group_size**0.5 / row_length)), group_size)


def _first_fit_decreasing(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first position and number within the row, from 1, of each caption; equal lengths keep their order.

    Row by row: the longest caption left that fits, until none does, gives the rows of first-fit-decreasing.
    """
    slots = []  # arrays [4, captions of some rows]: length, row, start, number
    num_rows = 0
    for pattern, repeats in _row_patterns(np.bincount(lengths).tolist(), row_length):
        row = num_rows + np.repeat(np.arange(repeats), len(pattern))
        start = np.cumsum([0, *pattern[:-1]])
        in_each = np.tile([pattern, start, np.arange(1, len(pattern) + 1)], repeats)
        slots.append(np.stack([in_each[0], row, *in_each[1:]]))
        num_rows += repeats
    length, *slot = np.concatenate(slots, axis=1)
    placed = np.empty((3, len(lengths)), np.int64)
    placed[:, np.argsort(-lengths, kind="stable")] = np.stack(slot)[:, np.argsort(-length, kind="stable")]
    row, start, number = placed
    return row, start, number


def _row_patterns(counts: list[int], row_length: int) -> Iterator[tuple[list[int], int]]:
    """Lengths, falling, that share a row, and how many rows in succession are filled like that."""
    left = {length: counts[length] for length in range(len(counts) - 1, 0, -1) if counts[length]}
    while left:
        pattern, space = {}, row_length
        for length, count in left.items():
            if taken := min(count, space // length):
                pattern[length] = taken
                space -= taken * length
        repeats = min(left[length] // taken for length, taken in pattern.items())
        for length, taken in pattern.items():
            left[length] -= repeats * taken
            if not left[length]:
                del left[length]
        yield [length for length, taken in pattern.items() for _ in range(taken)], repeats
