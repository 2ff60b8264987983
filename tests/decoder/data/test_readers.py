"""Packing captions: what is read, what is predicted, and that nothing is padding."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from decoder.data.batches import pack, pad
from pipeline.vocabulary import BOS, EOS, PAD

CAPTIONS = st.lists(st.lists(st.integers(4, 9), max_size=6), min_size=1, max_size=6)


def test_inputs_lag_one_word_behind_targets():
    words = pack(pad([[5, 6, EOS]]), torch.tensor([0]))
    assert words.inputs_P.tolist() == [BOS, 5, 6]
    assert words.targets_P.tolist() == [5, 6, EOS]
    assert words.alive == [1, 1, 1]


@given(CAPTIONS)
def test_packing_keeps_every_word_and_no_padding(captions):
    ended = [[*caption, EOS] for caption in captions]
    words = pack(pad(ended), torch.arange(len(ended)))
    assert len(words.targets_P) == sum(map(len, ended)) == sum(words.alive)
    assert PAD not in words.targets_P
    # The packed words of a caption, in order, are the caption.
    for i, caption in enumerate(ended):
        assert words.targets_P[words.caption_P == i].tolist() == caption
    assert words.alive == sorted(words.alive, reverse=True)


@given(CAPTIONS)
def test_rows_are_sorted_by_decreasing_length_with_their_own_images(captions):
    ended = [[*caption, EOS] for caption in captions]
    words = pack(pad(ended), torch.arange(len(ended)) * 10)
    lengths = [len(ended[image // 10]) for image in words.image_B.tolist()]
    assert lengths == sorted(map(len, ended), reverse=True)
    assert words.caption_P[: len(ended)].tolist() == (words.image_B // 10).tolist()


def test_a_caption_cut_off_at_the_largest_length_is_packed_completely():
    words = pack(torch.tensor([[5, 6, 7], [8, EOS, PAD]]), torch.tensor([0, 1]))
    assert words.targets_P.tolist() == [5, 8, 6, EOS, 7]
