"""Ray Train's controller, through the coordinator, asks the workers to save before a restart that it plans.

Ray Train restarts all workers when a node is drained or the cluster's size changes, and saves nothing by itself.
"""

import time

from dira_dist.cluster.fit.coordinator import Coordinator, CoordinatorClient
from dira_dist.cluster.ray_internals import (
    ControllerCallback,
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
    """Ray Train's callback, in the controller's process.

    Args:
        coordinator: the job's.
        timeout_s: seconds that workers which leave wait for the storage to take their checkpoint.
    """

    def __init__(self, coordinator: CoordinatorClient, timeout_s: float) -> None:
        self._coordinator, self._storage_timeout_s = coordinator, timeout_s

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Ask the workers to save and leave when they are to be restarted."""
        if isinstance(current_state, SchedulingState):
            self._coordinator.call(Coordinator.new_attempt)
        elif isinstance(current_state, RestartingState | ReschedulingState):
            self._coordinator.send(Coordinator.wait_for_workers)
        elif isinstance(current_state, RunningState):
            self._coordinator.send(Coordinator.workers_started)
        elif isinstance(current_state, ResizingState):
            count = current_state.scaling_decision.num_workers
            self._coordinator.send(
                Coordinator.warn, f"the cluster has changed: saving, then going on with {count} workers"
            )
            self._let_them_leave()
        elif isinstance(current_state, PreemptingState) and not isinstance(previous_state, PreemptingState):
            self._coordinator.send(
                Coordinator.warn, "a machine of this run is being taken away; saving, then going on elsewhere"
            )
            self._coordinator.send(Coordinator.request_stop, "move")

    def _let_them_leave(self) -> None:
        """A resize shuts the workers down at once: hold it until they have saved, or cannot."""
        self._coordinator.call(Coordinator.request_stop, "move")
        until_s = time.monotonic() + self._storage_timeout_s + _LEAVING_S
        while time.monotonic() < until_s:
            saved = self._coordinator.call(Coordinator.saved_at) is not None
            if saved or not self._coordinator.call(Coordinator.any_alive):
                return
            time.sleep(_POLL_S)
