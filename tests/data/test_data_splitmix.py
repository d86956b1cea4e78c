"""The mixing function against the published generator, and the same in numpy and in torch."""

import numpy as np
import torch

from dira_dist.data.splitmix import GOLDEN_GAMMA, mix, shift_right, signed


def test_the_first_numbers_of_the_published_generator() -> None:
    """SplitMix64 from seed 0, as its authors' own program prints them."""
    states = np.arange(1, 4) * GOLDEN_GAMMA
    assert [hex(word) for word in mix(states).view(np.uint64)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_numpy_and_torch_agree_to_the_bit() -> None:
    words = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000)
    assert np.array_equal(mix(torch.from_numpy(words)).numpy(), mix(words))


def test_shifts_are_logical_and_words_wrap() -> None:
    assert shift_right(np.array([-1]), 63)[0] == 1
    assert signed(2**63) == -(2**63) and signed(-1) == -1 and signed(2**64 + 5) == 5
