"""What the library costs, and the commands that measure it again. Imports cdcd_jax; nothing in cdcd_jax imports this."""
