"""The counter-based generator against plain Python integers, and the independence that it promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dira_dist.data.splitmix import mix
from dira_dist.views.randomness import RandomPurpose, integers_between, uniform, view_keys

WORD = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def plain_mix(bits: int) -> int:
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & WORD
    return bits ^ (bits >> 31)


def plain_uniform(seed: int, epoch: int, sample: int, view: int, stream: int, draw: int) -> float:
    state = plain_mix(seed & WORD)
    for word in (epoch, sample, view, stream):
        state = plain_mix((state + plain_mix((word + GAMMA) & WORD)) & WORD)
    return (plain_mix((state + (draw + 1) * GAMMA) & WORD) >> 11) * 2.0**-53


def as_int64(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def test_finaliser_gives_the_published_splitmix64_sequence() -> None:
    states = [as_int64((1234567 + k * GAMMA) & WORD) for k in range(1, 6)]
    found = [number & WORD for number in mix(torch.tensor(states)).tolist()]
    assert found == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10**6),
    sample=st.integers(0, 2**62),
    stream=st.sampled_from(RandomPurpose),
)
@settings(max_examples=50, deadline=None)
def test_numbers_are_those_of_plain_integer_arithmetic(
    seed: int, epoch: int, sample: int, stream: RandomPurpose
) -> None:
    keys = view_keys(seed, torch.tensor([epoch]), torch.tensor([sample]), views=2)
    found = uniform(keys, stream, 3)
    for view in range(2):
        for draw in range(3):
            assert found[view, 0, draw].item() == plain_uniform(seed, epoch, sample, view, stream, draw)


def test_more_draws_and_other_company_leave_the_first_numbers_alone() -> None:
    samples = torch.arange(100)
    keys = view_keys(5, torch.full_like(samples, 3), samples, views=2)
    alone = view_keys(5, torch.tensor([3]), torch.tensor([42]), views=2)
    assert torch.equal(uniform(keys, RandomPurpose.BLUR, 7)[:, 42, :2], uniform(alone, RandomPurpose.BLUR, 2)[:, 0])


@pytest.mark.parametrize("neighbour", ["seed", "epoch", "sample", "view", "stream", "draw"])
def test_neighbours_are_uncorrelated_and_uniform(neighbour: str) -> None:
    count = 20_000
    samples = torch.arange(count)
    epochs = torch.zeros_like(samples)
    here = uniform(view_keys(0, epochs, samples, 2), RandomPurpose.CROP, 2)[0, :, 0]
    there = {
        "seed": uniform(view_keys(1, epochs, samples, 1), RandomPurpose.CROP, 1)[0, :, 0],
        "epoch": uniform(view_keys(0, epochs + 1, samples, 1), RandomPurpose.CROP, 1)[0, :, 0],
        "sample": here.roll(1),
        "view": uniform(view_keys(0, epochs, samples, 2), RandomPurpose.CROP, 1)[1, :, 0],
        "stream": uniform(view_keys(0, epochs, samples, 1), RandomPurpose.JITTER, 1)[0, :, 0],
        "draw": uniform(view_keys(0, epochs, samples, 1), RandomPurpose.CROP, 2)[0, :, 1],
    }[neighbour]
    correlation = torch.corrcoef(torch.stack((here, there)))[0, 1].abs().item()
    assert correlation < 5 / count**0.5
    counts = torch.histc(there.float(), bins=20, min=0, max=1)
    assert ((counts - count / 20) ** 2 / (count / 20)).sum().item() < 50  # chi-squared, 19 degrees: p < 1e-4


def test_integers_reach_both_ends_and_no_further() -> None:
    numbers = uniform(view_keys(0, torch.zeros(2000, dtype=torch.long), torch.arange(2000), 1), RandomPurpose.CROP, 1)
    assert integers_between(numbers, 3, 6).unique().tolist() == [3, 4, 5, 6]
    assert integers_between(numbers, 3, 3).unique().tolist() == [3]
