"""Evaluation: a trained model as an object, what it samples and how it scores. Sees training only through checkpoints and the workdir."""
