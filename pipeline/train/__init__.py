"""Training: loss, schedule, the loop, checkpoints and history."""
