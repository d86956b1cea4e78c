"""What a request to a served model holds, as images."""

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dira_dist.models.model_files import example_input
from dira_dist.models.sent_images import sent_images

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (4, 6), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (4, 6), dtype=np.uint16)
COLOUR = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)


def file(image: Any, form: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, form)
    return content.getvalue()


def text(image: Any, form: str = "PNG") -> str:
    return base64.b64encode(file(image, form)).decode()


def one(sent: Any) -> torch.Tensor:
    (batch,) = sent_images(np.array([sent], dtype=object), 8)
    return batch[0]


@pytest.mark.parametrize("image", [GREY, DEEP, COLOUR], ids=["grey", "16 bits", "colour"])
def test_a_file_is_its_pixels_in_each_form_that_it_is_sent_in(image: Any) -> None:
    expected = torch.from_numpy(image[None] if image.ndim == 2 else image.transpose(2, 0, 1).copy())
    for sent in (text(image), file(image), [text(image)], f"data:image/png;base64,{text(image)}"):
        assert torch.equal(one(sent), expected) and one(sent).dtype == expected.dtype


def test_other_modes_become_grey_or_colour() -> None:
    with_alpha = np.concatenate([COLOUR, np.full((4, 6, 1), 7, np.uint8)], axis=2)
    assert torch.equal(one(text(with_alpha)), torch.from_numpy(COLOUR.transpose(2, 0, 1).copy()))
    assert one(text(GREY > 99)).unique().tolist() == [0, 255]
    assert one(text(GREY, "JPEG")).shape == (1, 4, 6)


def test_numbers_are_told_apart_by_whether_they_are_whole() -> None:
    whole, share = one(GREY[None].tolist()), one((GREY[None] / 255).tolist())
    assert whole.dtype == torch.uint8 and share.dtype == torch.float32
    assert torch.allclose(whole / 255, share, atol=1e-6)
    (nested,) = sent_images(np.array([GREY[None].tolist()] * 3, dtype=object), 8)  # as MLflow casts what it reads
    assert nested.shape == (3, 1, 4, 6) and torch.equal(nested[2], whole)


def test_images_that_are_alike_go_together_and_others_alone() -> None:
    alike = list(sent_images(np.array([text(GREY)] * 5, dtype=object), 2))
    assert [batch.shape[0] for batch in alike] == [2, 2, 1]
    mixed = list(sent_images(np.array([text(GREY), text(GREY.T), text(DEEP)], dtype=object), 8))
    assert [tuple(batch.shape) for batch in mixed] == [(1, 1, 4, 6), (1, 1, 6, 4), (1, 1, 4, 6)]


@pytest.mark.parametrize(
    ("sent", "words"),
    {
        "no base64": ("not base 64", "image 0: no base64 of a PNG or JPEG file"),
        "another kind of file": (text(GREY, "BMP"), "image 0: no base64 of a PNG or JPEG file"),
        "cut off": (text(COLOUR)[:40], "image 0: no base64"),
        "beyond": ([[[0, 300]]], r"image 0: whole numbers from 0 to 300; allowed are 0 to 255: send 16 bits as a PNG"),
        "negative": ([[[-1, 3]]], "image 0: whole numbers from -1 to 3"),
        "ragged": ([[[1, 2], [3]]], r"image 0: found object .*allowed are the base64"),
        "nothing": (None, "image 0: found object"),
    }.values(),
)
def test_what_is_no_image_is_told_with_its_place(sent: Any, words: str) -> None:
    wrapped = np.empty(1, dtype=object)
    wrapped[0] = sent
    with pytest.raises(ValueError, match=words):
        list(sent_images(wrapped, 8))


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, (16, 24)), (4, 16)])
def test_the_example_is_an_image_that_the_model_takes(channels: int, size: Any) -> None:
    example = example_input(channels, size)
    height, width = (size, size) if isinstance(size, int) else size
    if channels == 4:
        assert example.shape == (1, 4, height, width) and example.dtype == np.uint8
    else:
        (batch,) = sent_images(example, 8)
        assert batch.shape == (1, channels, height, width) and batch[0, 0, 0].diff().float().mean() > 1
