import numpy as np
import pytest

from input_pipeline.packing import (
    PackingOverflowError,
    caption_lengths,
    pack_text,
    rows_with_headroom,
)

L, START, END = 17, 1, 59


def some_text(lengths, seed=0, row_length=L):
    """Start, words, end, zeros: a row of `lengths[i]` tokens; words differ."""
    rng = np.random.default_rng(seed)
    text = np.zeros((len(lengths), row_length), np.int32)
    for row, length in zip(text, lengths):
        row[:length] = [START, *rng.integers(2, END, length - 2), END]
    return text


def random_lengths(N, seed=0):
    return np.random.default_rng(seed).integers(2, L + 1, N)


def unpack(packed, row_length=L):
    """The captions one by one, from the end token's position back to 0; checks the segments between."""
    captions = []
    for g, (rows, ends) in enumerate(zip(packed["rows"], packed["ends"])):
        for row, end in zip(rows, ends):
            length = packed["positions"][g, row, end] + 1
            place = g, row, slice(end - length + 1, end + 1)
            np.testing.assert_array_equal(packed["positions"][place], np.arange(length))
            (segment,) = set(packed["segments"][place].tolist())
            assert segment > 0
            assert (packed["segments"][g, row] == segment).sum() == length
            captions.append(np.pad(packed["tokens"][place], (0, row_length - length)))
    return np.array(captions)


def first_fit_decreasing(lengths, row_length):
    """As in the textbook: each caption, the longest first, into the first row with room."""
    rows = []
    for length in sorted(lengths, reverse=True):
        row = next((row for row in rows if sum(row) + length <= row_length), None)
        rows.append([length]) if row is None else row.append(length)
    return rows


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize(
    ("N", "num_groups", "row_length"), [(1, 1, L), (60, 1, L), (60, 5, L), (35, 7, 23), (101, 1, 41)]
)
def test_every_caption_is_found_whole_where_it_is_said_to_lie(N, num_groups, row_length, seed):
    text = some_text(random_lengths(N, seed))
    packed = pack_text(text, END, num_groups=num_groups, row_length=row_length)
    assert {array.dtype for array in packed.values()} == {np.dtype(np.int32)}
    assert packed["tokens"].shape[0] == num_groups
    assert packed["tokens"].shape[2] == row_length
    assert packed["rows"].shape == packed["ends"].shape == (num_groups, N // num_groups)
    np.testing.assert_array_equal(unpack(packed), text)
    # Nothing is there but the captions, and what is empty is zero.
    is_token = packed["segments"] > 0
    assert is_token.sum() == caption_lengths(text, END).sum()
    for name in ("tokens", "positions"):
        assert not packed[name][~is_token].any()


@pytest.mark.parametrize("seed", range(20))
def test_the_rows_are_those_of_first_fit_decreasing(seed):
    lengths = random_lengths(83, seed)
    packed = pack_text(some_text(lengths), END, row_length=31)
    ours = [np.bincount(row[row > 0])[1:].tolist() for row in packed["segments"][0]]
    assert sorted(ours) == sorted(first_fit_decreasing(lengths.tolist(), 31))


def test_a_small_case_by_hand():
    packed = pack_text(some_text([3, 6, 2, 4], row_length=9), END)
    assert packed["segments"][0].tolist() == [[1, 1, 1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 2, 2, 0, 0, 0]]
    assert packed["positions"][0].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2], [0, 1, 2, 3, 0, 1, 0, 0, 0]]
    assert packed["rows"].tolist() == [[0, 0, 1, 1]]
    assert packed["ends"].tolist() == [[8, 5, 5, 3]]


def test_packing_is_a_function_of_the_batch():
    text = some_text(random_lengths(40))
    for name, array in pack_text(text, END, num_groups=4).items():
        np.testing.assert_array_equal(array, pack_text(text.copy(), END, num_groups=4)[name])


def test_a_group_is_packed_as_if_it_were_alone():
    text = some_text(random_lengths(36))
    packed = pack_text(text, END, num_groups=3, rows=12)
    for g in range(3):
        alone = pack_text(text[g * 12 : (g + 1) * 12], END, rows=12)
        for name in packed:
            np.testing.assert_array_equal(packed[name][g : g + 1], alone[name])


def test_tokens_after_the_first_end_token_are_not_packed():
    text = some_text([5, 9])
    dirty = text.copy()
    dirty[0, 5:] = END
    dirty[1, 9:] = 7
    for name, array in pack_text(dirty, END).items():
        np.testing.assert_array_equal(array, pack_text(text, END)[name])


def test_captions_as_long_as_a_row_have_rows_of_their_own():
    packed = pack_text(some_text([L] * 4), END)
    assert packed["rows"].tolist() == [[0, 1, 2, 3]]
    assert packed["tokens"].shape == (1, 4, L)


def test_given_rows_stay_empty_where_they_are_not_needed():
    packed = pack_text(some_text([6, 6]), END, rows=3)
    assert packed["tokens"].shape == (1, 3, L)
    assert not packed["segments"][0, 1:].any()


def test_an_overflow_names_the_captions_that_do_not_fit_and_the_rows_needed():
    text = some_text([L, L, 3, 3, *[L] * 3, 9])  # in groups of four: 3 rows and 4
    with pytest.raises(PackingOverflowError, match=r"^4 captions do not fit 2 rows a group: give 4 rows") as error:
        pack_text(text, END, num_groups=2, rows=2)
    assert (error.value.captions, error.value.rows_needed) == (4, 4)
    np.testing.assert_array_equal(unpack(pack_text(text, END, num_groups=2, rows=4)), text)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (some_text([3, 4, 5]), {"num_groups": 2}, "3 captions cannot be packed in 2 equal groups"),
        (some_text([]), {}, "0 captions cannot be packed in 1 equal groups"),
        (some_text([3, 11]), {"row_length": 10}, "a caption of 11 tokens does not fit a packed row of row_length=10"),
        (np.array([[1, END], [1, 2]]), {}, f"row 1 of the text has no end token {END}: it has no feature"),
    ],
)
def test_what_cannot_be_packed(text, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        pack_text(text, END, **options)


@pytest.mark.parametrize("group_size", [1, 8, 64, 512])
def test_headroom_suffices_for_groups_of_the_same_captions_and_is_small(group_size):
    lengths = np.random.default_rng(5).poisson(9, 4000).clip(2, 77)
    rows = rows_with_headroom(lengths, group_size, 77, seed=0)
    needed = []
    for seed in range(200):
        group = np.random.default_rng([7, seed]).choice(lengths, group_size)
        needed.append(pack_text(some_text(group, row_length=77), END)["tokens"].shape[1])
    assert max(needed) <= rows <= max(1.05 * max(needed), max(needed) + 2, 1)
    assert rows <= group_size


def test_headroom_never_asks_for_more_than_a_row_a_caption():
    assert rows_with_headroom(np.array([3, 77]), 6, 77, seed=0) == 6
