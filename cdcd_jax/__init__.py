"""cdcd_jax: continuous diffusion for categorical data, in JAX. From Python: `run = cdcd_jax.load_run("runs/demo")`."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdcd_jax.run import Run

# TensorFlow, which only writes the summaries, greets every process otherwise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Buckets are reached by fsspec: epath would take TensorFlow for it, once that is installed, which knows no s3:// and no emulator.
os.environ["EPATH_USE_TF"] = "0"
# gcsfs would ask a second service, by another protocol, what kind of bucket it has, again and again where it gets no answer.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

if sys.argv[:1] == ["-m"]:  # what it is while Python looks for the module of `python -m cdcd_jax.train`: from here on Ctrl-C ends a door at once
    from cdcd_jax import interrupts

    interrupts.arm()

__all__ = ["load_run"]


def load_run(workdir: "str | os.PathLike[str]", source: "str | os.PathLike[str] | None" = None) -> "Run":
    """Opens the run in a workdir at its newest checkpoint. Raises config.UserError if there is none or it cannot be read.

    source: where the run's text or prepared folder lies now, if not where it was trained.
    """
    from cdcd_jax.run import load_run as load  # here, so that a door which needs no model starts without one

    return load(workdir, source)
