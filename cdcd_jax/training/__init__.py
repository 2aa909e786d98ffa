"""Training: masks, noise levels, loss, optimiser, the one sharded step, the loop around it, checkpoints and telemetry."""
