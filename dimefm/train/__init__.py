"""The parts of the training loop: what it reads, the student, the optimizer and the checkpoints."""
