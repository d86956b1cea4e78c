"""The plan: stages laid along one sample stream."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dira_dist.training.pretrain.recipe import PretrainStage
from dira_dist.training.stages import Position, plan_stages

stages = st.builds(
    PretrainStage,
    objective=st.sampled_from(["di", "dir", "dira"]),
    epochs=st.none(),
    steps=st.integers(1, 50),
    global_batch=st.integers(1, 64),
)


def test_published_stages_of_an_epoch_that_no_batch_divides() -> None:
    plan = plan_stages(
        [
            PretrainStage(objective="di", epochs=2, global_batch=256),
            PretrainStage(objective="dira", epochs=1, global_batch=16),
        ],
        1000,
    )
    assert [span.steps for span in plan.spans] == [8, 62]
    assert [span.name for span in plan.spans] == ["1-di", "2-dira"]
    assert (plan.steps, plan.samples) == (70, 8 * 256 + 62 * 16)


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "steps": 1}])
def test_a_stage_has_exactly_one_length(length: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of epochs and steps"):
        PretrainStage(objective="di", **length)


def test_a_stage_shorter_than_a_step_has_one() -> None:
    assert plan_stages([PretrainStage(objective="di", epochs=0.001, global_batch=64)], 64).steps == 1


@given(st.lists(stages, min_size=1, max_size=4), st.integers(1, 500))
def test_stages_join_without_gap_or_overlap(configs: list[PretrainStage], epoch_samples: int) -> None:
    plan = plan_stages(configs, epoch_samples)
    position = Position()
    for span in plan.remaining(position):
        assert (position.step, position.samples) == (span.first_step, span.first_sample)
        for _ in range(span.steps):
            position = position.after_step(span.config.global_batch)
        assert position.samples == span.end_sample
        position = position.after_stage()
    assert (position.stage, position.step, position.samples) == (len(configs), plan.steps, plan.samples)
    assert not list(plan.remaining(position))
