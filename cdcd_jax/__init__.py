"""cdcd_jax: continuous diffusion for categorical data, in JAX. From Python: `run = cdcd_jax.load_run("runs/demo")`."""

from cdcd_jax.run import load_run

__all__ = ["load_run"]
