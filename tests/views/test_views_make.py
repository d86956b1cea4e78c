"""`make_views` as a whole: target and input aligned, views that belong to the sample, every setting alive."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dira_dist.config import RequestError
from dira_dist.data.shards import ImageInfo, PixelRange
from dira_dist.views import Views, ViewsConfig, check_viewable, make_views
from dira_dist.views.distortions.dira import NONE, OUTER, draw_distortion
from dira_dist.views.geometry import draw_crops
from dira_dist.views.randomness import view_keys

PLAIN = ViewsConfig.model_validate(
    {
        "jitter": {"probability": 0.0},
        "blur": {"probability": 0.0},
        "distortion": {"shuffle_probability": 0.0, "inner_probability": 0.0, "outer_probability": 0.0},
    }
)


def make(images: Tensor, config: ViewsConfig | None = None, **changes: Any) -> Views:
    count = len(images)
    arguments: dict[str, Any] = {
        "sizes_px": torch.tensor(images.shape[2:]).expand(count, -1),
        "sample_ids": torch.arange(count),
        "epochs": torch.zeros(count, dtype=torch.long),
        "seed": 0,
        "image_size": 32,
        "in_channels": 1,
        "config": config or ViewsConfig(),
    }
    return make_views(images, **(arguments | changes))


def random_images(count: int, *shape: int, dtype: torch.dtype = torch.uint8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, torch.iinfo(dtype).max + 1, (count, *shape), generator=generator).to(dtype)


def coordinate_grid(count: int, *canvas: int) -> Tensor:
    """(count, 3, *canvas) uint16 whose channels are 256 times the row's, the column's and again the row's number."""
    rows, columns = torch.meshgrid(*(torch.arange(side) * 256 for side in canvas), indexing="ij")
    return torch.stack((rows, columns, rows)).expand(count, -1, -1, -1).to(torch.uint16)


def everything(views: Views) -> Tensor:
    assert views.target is not None
    return torch.cat([views.view_1.flatten(), views.view_2.flatten(), views.target.flatten()])


def test_coordinates_in_the_view_are_those_of_its_crop() -> None:
    """Where a pixel came from can be read off a warped coordinate grid, mirrored views included."""
    count, side, out_px = 64, 120, 32
    views = make(coordinate_grid(count, side, side), PLAIN, in_channels=3, image_size=out_px)
    samples = torch.arange(count)
    keys = view_keys(0, torch.zeros_like(samples), samples, views=2)
    crops = draw_crops(keys, torch.full((count, 2), side), PLAIN.crop)
    position = torch.arange(2, out_px - 2)  # the filter is one-sided at the crop's edge
    for number, view in enumerate((views.view_1, views.view_2)):
        found = view[:, :2, 2:-2, 2:-2] * (65535 / 256)
        start, size = crops.start_px[number, :, None], crops.size_px[number, :, None]
        rows = start[..., 0] + (position + 0.5) * size[..., 0] / out_px - 0.5
        mirrored = torch.where(crops.flipped[number, :, None], out_px - 1 - position, position)
        columns = start[..., 1] + (mirrored + 0.5) * size[..., 1] / out_px - 0.5
        torch.testing.assert_close(found[:, 0], rows[:, :, None].expand_as(found[:, 0]).float(), atol=0.2, rtol=0)
        torch.testing.assert_close(found[:, 1], columns[:, None].expand_as(found[:, 1]).float(), atol=0.2, rtol=0)
    assert 10 < crops.flipped[0].sum() < 54


@pytest.mark.parametrize("target", ["crop", "view"])
def test_target_and_input_are_aligned_pixel_by_pixel(target: str) -> None:
    """With nothing but geometry and distortion, the input is the target wherever it was not distorted."""
    config = PLAIN.model_copy(update={"distortion": ViewsConfig().distortion, "target": target})
    count = 96
    views = make(random_images(count, 1, 60, 50), config)
    assert views.target is not None
    samples = torch.arange(count)
    drawn = draw_distortion(view_keys(0, torch.zeros_like(samples), samples, 2), config.distortion, 32, 2)
    same = (views.view_1 == views.target).flatten(1)
    assert same[drawn.kind[0] == NONE].all()
    assert not same[drawn.kind[0] != NONE].all(1).any()
    kept = (views.view_1 != 0).flatten(1)
    cut = drawn.kind[0] >= 2
    assert same[cut][kept[cut]].all()
    shuffled = same[drawn.kind[0] == 1].double().mean(1)
    assert (shuffled > 0.5).all()


def test_jittered_blurred_and_distorted_input_runs_the_same_way_as_its_target() -> None:
    """The published code mirrors half of the targets; here a ramp rises in both or falls in both."""
    ramp = (torch.arange(64) * 4).expand(200, 1, 64, -1).to(torch.uint8)
    views = make(ramp)
    assert views.target is not None
    rise_in, rise_out = (
        (image[..., -8:].mean((1, 2, 3)) - image[..., :8].mean((1, 2, 3))) for image in (views.view_1, views.target)
    )
    samples = torch.arange(200)
    keys = view_keys(0, torch.zeros_like(samples), samples, 2)
    clear = draw_distortion(keys, ViewsConfig().distortion, 32, 2).kind[0] == NONE
    assert torch.equal(rise_in[clear] > 0, rise_out[clear] > 0)
    assert torch.equal(rise_out < 0, draw_crops(keys, torch.full((200, 2), 64), ViewsConfig().crop).flipped[0])


def test_target_is_taken_before_or_after_the_intensity_changes() -> None:
    images = random_images(32, 1, 40, 40)
    undistorted = {"distortion": PLAIN.distortion}
    before = make(images, ViewsConfig().model_copy(update=undistorted | {"target": "crop"}))
    after = make(images, ViewsConfig().model_copy(update=undistorted | {"target": "view"}))
    plain = make(images, PLAIN)
    assert before.target is not None
    assert after.target is not None
    assert torch.equal(before.target, plain.view_1)
    assert torch.equal(after.target, after.view_1)
    assert not torch.equal(before.target, after.target)


def test_rgb_target_is_the_luma_of_the_input() -> None:
    images = random_images(8, 3, 40, 40)
    views = make(images, PLAIN, in_channels=3)
    assert views.target is not None
    luma = (views.view_1 * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(views.target, luma)
    one_channel = make(images, PLAIN, in_channels=1)
    torch.testing.assert_close(one_channel.view_1, luma)


@given(st.permutations(range(12)), st.integers(1, 12), st.integers(0, 2**31), st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_same_sample_same_view_in_any_order_and_company(order: list[int], batch: int, seed: int, epoch: int) -> None:
    images = random_images(12, 1, 40, 33)
    sizes = torch.randint(5, 34, (12, 2), generator=torch.Generator().manual_seed(1))
    ids = torch.arange(12) * 7919
    epochs = torch.full((12,), epoch)
    whole = make(images, sizes_px=sizes, sample_ids=ids, epochs=epochs, seed=seed)
    for first in range(0, 12, batch):
        rows = torch.tensor(order[first : first + batch])
        # Another rank also pads to another canvas.
        high, wide = sizes[rows].amax(0).tolist()
        share = make(
            images[rows, :, :high, :wide], sizes_px=sizes[rows], sample_ids=ids[rows], epochs=epochs[rows], seed=seed
        )
        assert torch.equal(share.sample_ids, ids[rows])
        for name in ("view_1", "view_2", "target"):
            torch.testing.assert_close(getattr(share, name), getattr(whole, name)[rows], atol=2e-6, rtol=0)


def test_parts_of_a_batch_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(11, 1, 50, 40)
    whole = make(images)
    monkeypatch.setattr("dira_dist.views.views._CPU_PART_BYTES", 4 * 2 * 32 * 32 * 5)
    monkeypatch.setattr("dira_dist.views.geometry._CPU_TABLE_BYTES", 4 * 50 * 48 * 2)
    parts = make(images)
    torch.testing.assert_close(everything(parts), everything(whole), atol=2e-6, rtol=0)


@pytest.mark.parametrize("what", ["epochs", "seed", "sample_ids"])
def test_other_epochs_seeds_and_samples_give_other_views(what: str) -> None:
    images = random_images(1, 1, 40, 40).expand(16, -1, -1, -1)
    one = make(images)
    other = make(images, **{what: 1 if what == "seed" else torch.arange(16) + 100})
    for name in ("view_1", "view_2", "target"):
        differs = (getattr(one, name) != getattr(other, name)).flatten(1).any(1)
        assert differs.all()


def test_the_two_views_are_drawn_apart() -> None:
    views = make(random_images(16, 1, 40, 40), PLAIN)
    assert (views.view_1 != views.view_2).flatten(1).any(1).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 40, 50), (3, 40, 50), (1, 20, 24, 28), (3, 12, 20, 9), (1, 5, 7), (1, 1, 1)])
def test_every_kind_of_image_gives_finite_views_between_0_and_1(
    dtype: torch.dtype, in_channels: int, shape: tuple[int, ...]
) -> None:
    views = make(random_images(6, *shape, dtype=dtype), in_channels=in_channels, image_size=16)
    space = (16,) * (len(shape) - 1)
    assert views.target is not None
    assert views.view_1.shape == views.view_2.shape == (6, in_channels, *space)
    assert views.target.shape == (6, 1 if len(space) == 2 else in_channels, *space)
    values = everything(views)
    assert values.dtype == torch.float32
    assert ((values >= 0) & (values <= 1)).all()  # false for NaN


def test_sixteen_bits_are_kept() -> None:
    """8 bits would show 256 levels; two neighbouring 16-bit levels stay apart."""
    images = torch.full((2, 1, 20, 20), 30000)
    images[1] += 1
    views = make(images.to(torch.uint16), PLAIN)
    step = views.view_1[1].mean() - views.view_1[0].mean()
    assert step.item() == pytest.approx(1 / 65535, rel=0.05)


def test_padding_never_leaks_into_a_view() -> None:
    sizes = torch.tensor([[30, 12], [7, 40], [40, 41], [1, 3]])
    inside = (torch.arange(40)[:, None] < sizes[:, 0, None, None]) & (torch.arange(41) < sizes[:, 1, None, None])
    image = random_images(4, 1, 40, 41)
    views = [
        everything(make(torch.where(inside[:, None], image, padding).to(torch.uint8), sizes_px=sizes))
        for padding in (0, 255)
    ]
    assert torch.equal(*views)


def test_a_batch_of_one_and_a_placeholder_without_pixels() -> None:
    views = make(random_images(1, 1, 30, 30), sizes_px=torch.zeros(1, 2, dtype=torch.long))
    assert views.view_1.isfinite().all()


def test_without_target_the_views_are_the_same_and_the_target_is_not_made() -> None:
    images = random_images(4, 1, 40, 40)
    views, lean = make(images), make(images, with_target=False)
    assert lean.target is None
    assert torch.equal(lean.view_1, views.view_1)
    assert torch.equal(lean.view_2, views.view_2)


def test_grey_is_repeated_for_three_sequences_and_each_is_restored() -> None:
    images = random_images(4, 1, 40, 36)
    three, one = make(images, in_channels=3, rgb=False), make(images, in_channels=1)
    assert three.target is not None and one.target is not None
    assert torch.equal(three.target, one.target.expand(-1, 3, -1, -1))
    assert torch.equal(three.view_1, one.view_1.expand(-1, 3, -1, -1))


def test_colour_is_refused_where_three_sequences_are_taken() -> None:
    some = PixelRange(min=8, median=8, max=8)
    planes = ImageInfo(
        mode="planes", encoding="npy", height_px=some, width_px=some, array_type="uint8", array_channels=3
    )
    check_viewable(planes, 2, 3, rgb=False)
    with pytest.raises(RequestError, match=r"colour images.*takes three sequences: set model\.rgb to true"):
        check_viewable(planes.model_copy(update={"mode": "RGB"}), 2, 3, rgb=False)


def test_grey_is_repeated_for_three_channels() -> None:
    images = random_images(4, 1, 40, 40)
    one, three = make(images), make(images, in_channels=3)
    assert torch.equal(three.view_1, one.view_1.expand(-1, 3, -1, -1))
    assert torch.equal(three.view_2, one.view_2.expand(-1, 3, -1, -1))


def test_autocast_does_not_coarsen_the_views() -> None:
    images = random_images(4, 3, 40, 40)
    wanted = make(images, in_channels=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = make(images, in_channels=3)
    assert torch.equal(everything(found), everything(wanted))


def test_images_are_left_as_they_were() -> None:
    images = random_images(4, 3, 40, 40)
    before = images.clone()
    make(images, in_channels=3)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 8, 8), "torch.float32.*uint8 or uint16"),
        (torch.zeros(2, 2, 8, 8).byte(), "2 channels.*1 .*3"),
    ],
)
def test_unsupported_images_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make(images)


CHANGES: dict[str, Any] = {
    "crop.scale": (0.9, 1.0),
    "crop.ratio": (1.0, 1.0),
    "crop.flip_probability": 1.0,
    "jitter.probability": 0.1,
    "jitter.brightness": 0.1,
    "jitter.contrast": 0.1,
    "jitter.saturation": 0.1,
    "jitter.hue": 0.3,
    "blur.probability": 1.0,
    "blur.sigma_px": (4.0, 5.0),
    "distortion.shuffle_probability": 0.0,
    "distortion.inner_probability": 0.0,
    "distortion.outer_probability": 0.3,
    "distortion.shuffle_swaps": 1,
    "distortion.shuffle_sides_px": (30, 40),
    "distortion.inner_blocks": 1,
    "distortion.inner_sides_px": (10, 20),
    "distortion.outer_windows": 1,
    "distortion.outer_sides_px": (20, 60),
    "distortion.stop_probability": 0.9,
    "target": "view",
}


def names_of(section: BaseModel, prefix: str = "") -> Iterator[str]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        yield from names_of(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else (f"{prefix}{name}",)


def test_every_setting_is_tried() -> None:
    assert set(names_of(ViewsConfig())) == {*CHANGES, "distortion.name"}  # the others have tests of their own


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_something(name: str) -> None:
    base: dict[str, Any] = {"distortion": {"outer_probability": 0.25}}
    changed: dict[str, Any] = {"distortion": {"outer_probability": 0.25}}
    *section, field = name.split(".")
    place = changed.setdefault(section[0], {}) if section else changed
    place[field] = CHANGES[name]
    images = random_images(24, 3, 40, 40)
    one, other = (make(images, ViewsConfig.model_validate(settings), in_channels=3) for settings in (base, changed))
    assert not torch.equal(everything(one), everything(other))


class _Watch(TorchDispatchMode):
    """Notes every operation that would make a GPU wait for the host or the host for the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in {"_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "unique_dim", "_unique2"}:
            self.waits.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_waits_for_the_device(channels: int) -> None:
    images = random_images(4, channels, 40, 40)
    make(images, in_channels=channels)  # constant tables are made once for a device
    sizes, ids, epochs = torch.full((4, 2), 40), torch.arange(4), torch.zeros(4, dtype=torch.long)
    with _Watch() as watch:
        make_views(images, sizes, ids, epochs, seed=0, image_size=32, in_channels=channels, config=ViewsConfig())
    assert not watch.waits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(1, 90, 70), (3, 90, 70), (1, 30, 34, 28)])
def test_a_gpu_makes_the_same_views_without_synchronising(shape: tuple[int, ...]) -> None:
    images = random_images(8, *shape)
    wanted = make(images, in_channels=3)
    moved = {
        "sizes_px": torch.tensor(shape[1:]).expand(8, -1).cuda(),
        "sample_ids": torch.arange(8).cuda(),
        "epochs": torch.zeros(8, dtype=torch.long).cuda(),
    }
    on_gpu = images.cuda()
    make(on_gpu, in_channels=3, **moved)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = make(on_gpu, in_channels=3, **moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(everything(found).cpu(), everything(wanted), atol=1e-5, rtol=0)


def test_real_radiographs_stay_recognisable(shared_data: Path) -> None:
    """With the whole image as crop and no distortion the target is the radiograph, shrunk."""
    paths = sorted((shared_data / "nih-chestxray14" / "images").glob("*.png"))[:4]
    pictures = [Image.open(path).convert("L") for path in paths]
    images = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])[:, None]
    config = ViewsConfig.model_validate({"crop": {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip_probability": 0.0}})
    views = make(images, config, image_size=64)
    assert views.target is not None
    for picture, target in zip(pictures, views.target, strict=True):
        wanted = torch.from_numpy(np.array(picture.resize((64, 64), Image.Resampling.BILINEAR))) / 255
        assert (target[0] - wanted).abs().max() < 1.5 / 255  # PIL rounds to whole grey levels, twice


def test_outer_cut_outs_leave_windows_only() -> None:
    config = PLAIN.model_copy(
        update={
            "distortion": ViewsConfig().distortion.model_copy(
                update={
                    "outer_probability": 1.0,
                    "inner_probability": 0.0,
                    "shuffle_probability": 0.0,
                    "outer_windows": 1,
                }
            )
        }
    )
    images = torch.full((16, 1, 40, 40), 255, dtype=torch.uint8)
    views = make(images, config, image_size=56)
    samples = torch.arange(16)
    drawn = draw_distortion(view_keys(0, torch.zeros_like(samples), samples, 2), config.distortion, 56, 2)
    assert (drawn.kind == OUTER).all()
    area = drawn.cut_side_px[0].prod(-1).sum(-1)
    assert torch.equal(views.view_1.sum((1, 2, 3)).round().long(), area)


@pytest.mark.parametrize("size", [(32, 48), [48, 32]])
def test_a_size_for_each_axis(size: Any) -> None:
    views = make(random_images(4, 1, 60, 50), image_size=size)
    assert views.target is not None
    assert views.view_1.shape == views.view_2.shape == views.target.shape == (4, 1, *size)


def test_the_same_size_for_each_axis_is_that_size() -> None:
    cubes = random_images(3, 1, 20, 24, 22)
    assert torch.equal(everything(make(cubes, image_size=16)), everything(make(cubes, image_size=(16, 16, 16))))
    assert make(cubes, image_size=(16, 24, 20)).view_1.shape == (3, 1, 16, 24, 20)


def test_a_size_for_another_number_of_axes_is_refused() -> None:
    with pytest.raises(RequestError, match=r"size \[32, 32, 32\] has 3 axes, the images have 2"):
        make(random_images(2, 1, 40, 40), image_size=[32, 32, 32])


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("target", ["crop", "view"])
@pytest.mark.parametrize("canvas", [(40, 36), (14, 20, 18)])
def test_each_sequence_of_a_sample_is_changed_as_grey_is(canvas: tuple[int, ...], target: str, channels: int) -> None:
    sequences, config = random_images(5, channels, *canvas), ViewsConfig(target=target)
    together = make(sequences, config, in_channels=channels, rgb=False)
    assert together.target is not None
    assert together.target.shape[1] == together.view_1.shape[1] == channels
    singly = [make(sequences[:, [k]], config) for k in range(channels)]
    for view in ("view_1", "view_2"):
        assert torch.equal(getattr(together, view), torch.cat([getattr(each, view) for each in singly], 1))
    assert torch.equal(together.target, torch.cat([each.target for each in singly if each.target is not None], 1))


@pytest.mark.parametrize(
    ("image", "axes", "in_channels", "message"),
    [
        ({"mode": "volume", "array_type": "uint16"}, 2, 1, "3 spatial axes, and the model takes 2"),
        ({"mode": "L"}, 3, 1, "2 spatial axes, and the model takes 3"),
        ({"mode": "volume", "array_type": "int16"}, 3, 1, "int16.*uint8 or uint16"),
        ({"mode": "planes", "array_type": "uint8", "array_channels": 4}, 2, 3, "4 channels, and the model takes 3"),
        (
            {"mode": "planes", "array_type": "uint8", "array_channels": 3},
            2,
            3,
            "three sequences.*takes red.*set model.rgb to false",
        ),
        (
            {"mode": "planes", "array_type": "uint8", "array_channels": 3},
            2,
            1,
            "three sequences.*model.in_channels to 3",
        ),
        ({"mode": "planes", "array_type": "uint8", "array_channels": 4}, 2, 4, ""),
        ({"mode": "volume", "array_type": "uint8"}, 3, 4, ""),
        ({"mode": "volume", "array_type": "uint8", "array_channels": 3}, 3, 3, ""),
        ({"mode": "volume", "array_type": "uint8", "array_channels": 3}, 3, 1, "three sequences"),
        ({"mode": "RGB"}, 2, 1, ""),
        ({"mode": "RGB"}, 2, 3, ""),
    ],
)
def test_a_set_of_which_no_views_can_be_made_is_known_by_its_index(
    image: dict[str, Any], axes: int, in_channels: int, message: str
) -> None:
    some = PixelRange(min=8, median=8, max=8)
    info = ImageInfo(encoding="npy", height_px=some, width_px=some, **image)
    if not message:
        check_viewable(info, axes, in_channels)
        return
    with pytest.raises(RequestError, match=message):
        check_viewable(info, axes, in_channels)
