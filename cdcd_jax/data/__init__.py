"""Text to tokens: where the text comes from, how it is cut into tokens, and how crops of it reach the step. Numpy and grain only.

Knows nothing of JAX arrays, devices, networks or noise. Whatever reads, splits, tokenises or shuffles text lives here and nowhere else.
"""
