"""Views of cubes (x, y, z): a volume of coordinates tells where each voxel came from."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dira_dist.views import ViewsConfig, make_views
from dira_dist.views.distortions.dira import INNER, NONE, OUTER, SHUFFLE, Distortion, draw_distortion
from dira_dist.views.geometry import draw_crops
from dira_dist.views.randomness import view_keys

OUT = (16, 20, 8)
CANVAS = (40, 48, 24)
PLAIN: dict[str, Any] = {"jitter": {"probability": 0.0}, "blur": {"probability": 0.0}}
STILL: dict[str, Any] = {"shuffle_probability": 0.0, "inner_probability": 0.0, "outer_probability": 0.0}


def coordinates(count: int) -> Tensor:
    """(count, 4, *CANVAS) uint16: 1024 times the voxel's place along x, y and z, and once more along x."""
    places = torch.meshgrid(*(torch.arange(side) * 1024 for side in CANVAS), indexing="ij")
    return torch.stack([*places, places[0]]).expand(count, -1, *CANVAS).to(torch.uint16)


def make(images: Tensor, config: ViewsConfig, **changes: Any) -> Any:
    count = len(images)
    given: dict[str, Any] = {"sample_ids": torch.arange(count), "epochs": torch.zeros(count, dtype=torch.long)}
    given |= {"sizes_px": torch.tensor([images.shape[2:]] * count), "seed": 0, "image_size": OUT}
    return make_views(images, in_channels=images.shape[1], config=config, **(given | changes))


def keys_of(count: int) -> Tensor:
    samples = torch.arange(count)
    return view_keys(0, torch.zeros_like(samples), samples, views=2)


def test_coordinates_of_both_views_and_the_target_are_those_of_the_crop() -> None:
    """Along each axis linear from the crop's start, and along x, left and right, mirrored where that was drawn."""
    count, config = 24, ViewsConfig.model_validate({**PLAIN, "distortion": STILL})
    views = make(coordinates(count), config)
    crops = draw_crops(keys_of(count), torch.tensor([CANVAS] * count), config.crop, OUT)
    assert torch.equal(views.view_1, views.target), "nothing but geometry: what goes in is what is to come out"
    for number, view in enumerate((views.view_1, views.view_2)):
        found = view * (65535 / 1024)
        for axis in range(3):
            position = torch.arange(OUT[axis]).expand(count, -1)
            if axis == 0:
                position = torch.where(crops.flipped[number, :, None], OUT[0] - 1 - position, position)
            start, size = crops.start_px[number, :, None, axis], crops.size_px[number, :, None, axis]
            wanted = (start + (position + 0.5) * size / OUT[axis] - 0.5).float()
            inner = slice(2, -2)  # the filter is one-sided at the crop's edge
            line = found[:, axis].movedim(1 + axis, -1)[:, inner, inner, inner]
            expected = wanted[:, None, None, inner].expand_as(line)
            torch.testing.assert_close(line, expected, atol=0.1, rtol=0)
    assert 3 < crops.flipped[0].sum() < 21


@pytest.mark.parametrize("view", [(64, 64, 32), (32, 32, 32), (24, 40, 16)])
def test_boxes_of_flat_cubes_have_the_views_proportions(view: tuple[int, ...]) -> None:
    """So a crop of 96 x 96 x 48 for views of 64 x 64 x 32 is not squeezed by more than the ratios say."""
    cube = tuple(3 * side // 2 for side in view)
    count, config = 400, ViewsConfig().crop
    crops = draw_crops(keys_of(count), torch.tensor([cube] * count), config, view)
    scale = crops.size_px.double() / torch.tensor(view)
    ratios = scale[..., 1:] / scale[..., :1]
    assert ratios.min() > 3 / 4 - 0.06 and ratios.max() < 4 / 3 + 0.12, "but for whole voxels"
    assert (ratios < 0.85).double().mean() > 0.1 and (ratios > 1.15).double().mean() > 0.1
    share = crops.size_px.double().prod(-1) / torch.tensor(cube).prod()
    assert share.min() > 0.15 and share.max() <= 1 and (share > 0.6).double().mean() > 0.2
    whole = draw_crops(keys_of(2), torch.tensor([cube] * 2), config.model_copy(update={"scale": (1.0, 1.0)}), view)
    assert (whole.size_px <= torch.tensor(cube)).all() and (whole.size_px.double().prod(-1) > 0).all()


def plain_distort(view: Tensor, drawn: Distortion, place: int) -> Tensor:
    """(C, X, Y, Z) distorted voxel by voxel, as the parameters of a view say."""
    out, kind = view.clone(), int(drawn.kind[0, place])
    if kind == SHUFFLE:
        swaps = zip(
            drawn.swap_first_px[0, place], drawn.swap_second_px[0, place], drawn.swap_side_px[0, place], strict=True
        )
        for one, other, sides in ((a.tolist(), b.tolist(), s.tolist()) for a, b, s in swaps):
            before = out.clone()
            for step in itertools.product(*map(range, sides)):
                here, there = (tuple(f + s for f, s in zip(first, step, strict=True)) for first in (one, other))
                out[(slice(None), *here)] = before[(slice(None), *there)]
                out[(slice(None), *there)] = before[(slice(None), *here)]
    if kind in (INNER, OUTER):
        blocks = list(zip(drawn.cut_first_px[0, place].tolist(), drawn.cut_side_px[0, place].tolist(), strict=True))
        for voxel in itertools.product(*map(range, view.shape[1:])):
            covered = any(
                all(f <= v < f + s for v, f, s in zip(voxel, first, side, strict=True)) for first, side in blocks
            )
            if covered == (kind == INNER):
                out[(slice(None), *voxel)] = 0
    return out


def test_target_and_input_are_aligned_voxel_by_voxel_under_every_distortion() -> None:
    """The input is the target, distorted by the loop: so both lie on the same coordinates."""
    sides = {"shuffle_sides_px": (40, 60), "inner_sides_px": (40, 90)}
    even = {"shuffle_probability": 0.25, "inner_probability": 0.25, "outer_probability": 0.25}
    config = ViewsConfig.model_validate({**PLAIN, "distortion": {**sides, **even, "shuffle_swaps": 1}})
    count = 16
    views = make((coordinates(count).int() + 1).to(torch.uint16), config)
    drawn = draw_distortion(keys_of(count), config.distortion, OUT, 3)
    assert set(drawn.kind[0].tolist()) == {NONE, SHUFFLE, INNER, OUTER}
    for place in range(count):
        wanted = plain_distort(views.target[place], drawn, place)
        if not overlap(drawn, place):
            torch.testing.assert_close(views.view_1[place], wanted, atol=1e-6, rtol=0)
        changed = not torch.equal(views.view_1[place], views.target[place])
        assert changed == (int(drawn.kind[0, place]) != NONE)


def overlap(drawn: Distortion, place: int) -> bool:
    """Whether the two blocks of the one swap share voxels; what then becomes of those is no one's to say."""
    one, other, side = (each[0, place, 0] for each in (drawn.swap_first_px, drawn.swap_second_px, drawn.swap_side_px))
    return int(drawn.kind[0, place]) == SHUFFLE and bool(((one - other).abs() < side).all())


def test_a_cube_has_the_same_view_in_any_company() -> None:
    cubes = torch.randint(0, 65536, (5, 1, *CANVAS), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    config = ViewsConfig()
    whole = make(cubes, config)
    for place in (3, 0):
        ids = torch.tensor([place])
        alone = make(cubes[ids], config, sample_ids=ids)
        assert torch.equal(alone.view_1[0], whole.view_1[place])
        assert torch.equal(alone.target[0], whole.target[place])
