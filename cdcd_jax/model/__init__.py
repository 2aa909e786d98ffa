"""Networks: arrays in, logits out. Knows nothing of noise processes, data or trainers; imports no other room."""
