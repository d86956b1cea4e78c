"""What Ray Train's controller tells the workers through the coordinator, so that no restart it plans costs a step.

Ray Train restarts all workers when a node is drained or the cluster's size changes, and saves nothing by itself. Its
controller's states are watched with the callback that Ray's own parts use; there is no public one for them in Ray 2.60.
"""

import time
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
    TrainControllerState,
)

# Beyond what the workers themselves wait for the storage.
_LEAVING_S = 60.0
_POLL_S = 0.2


class ControllerWatch(ControllerCallback):
    """Runs inside the controller.

    Args:
        coordinator: handle of the job's coordinator.
        timeout_s: seconds that workers which leave wait for the storage to take their checkpoint.
    """

    def __init__(self, coordinator: Any, timeout_s: float) -> None:
        self._coordinator, self._storage_timeout_s = coordinator, timeout_s

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Ask the workers to save and leave when they are to be restarted."""
        if isinstance(current_state, SchedulingState):
            ray.get(self._coordinator.new_attempt.remote())
        elif isinstance(current_state, RestartingState | ReschedulingState):
            self._coordinator.wait_for_workers.remote()
        elif isinstance(current_state, RunningState):
            self._coordinator.workers_are_there.remote()
        elif isinstance(current_state, ResizingState):
            count = current_state.scaling_decision.num_workers
            self._coordinator.warn.remote(f"the cluster has changed: saving, then going on with {count} workers")
            self._let_them_leave()
        elif isinstance(current_state, PreemptingState) and not isinstance(previous_state, PreemptingState):
            self._coordinator.warn.remote("a machine of this run is being taken away; saving, then going on elsewhere")
            self._coordinator.request_stop.remote("move")

    def _let_them_leave(self) -> None:
        """A resize shuts the workers down at once: hold it until they have saved, or cannot."""
        ray.get(self._coordinator.request_stop.remote("move"))
        until_s = time.monotonic() + self._storage_timeout_s + _LEAVING_S
        while time.monotonic() < until_s:
            saved, alive = ray.get([self._coordinator.left_at.remote(), self._coordinator.anybody_there.remote()])
            if saved is not None or not alive:
                return
            time.sleep(_POLL_S)
