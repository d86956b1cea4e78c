"""The training without its cluster: the step, the loop, stages, optimiser, checkpoints, measurements."""
