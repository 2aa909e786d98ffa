"""python -m cdcd_jax.plan --config=configs/paper_large.py --topology=v5p:8x8x8: what a run takes on hardware that is not here; 1: it does not fit."""

import functools
import json
import sys

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console

from cdcd_jax import doors
from cdcd_jax.config import from_dict
from cdcd_jax.data import files
from cdcd_jax.evaluation import planning as sampling
from cdcd_jax.parallel import topology
from cdcd_jax.reporting import plans
from cdcd_jax.training import planning

CONFIG = config_flags.DEFINE_config_file("config", None, "The config, a file of configs/; any key: --config.section.key=value.")
TOPOLOGY = flags.DEFINE_string("topology", None, f"The hardware: {topology.KNOWN}.")
JOB = flags.DEFINE_enum("job", "train", ["train", "sample"], "Whose program: the train step's, or the sampler's on one chip.")
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", None, "Tokens in the vocabulary (default: as the config says).", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "A .json file for the same.")
flags.mark_flags_as_required(["config", "topology"])


def main() -> int:
    jax.config.update("jax_platforms", "cpu")  # whatever this machine has is not what is planned for
    config, hardware = from_dict(CONFIG.value), topology.parse(TOPOLOGY.value or "")
    output = None if OUTPUT.value is None else files.output(OUTPUT.value, ".json")
    vocab_size = VOCAB_SIZE.value or planning.vocabulary(config)
    say = functools.partial(print, file=sys.stderr, flush=True)  # what is compiled, before it is
    plan = (planning.plan if JOB.value == "train" else sampling.plan)(config, hardware, vocab_size, say)
    plans.show(plan, Console())
    if output is not None:
        files.write_whole(output, json.dumps(plan.as_dict(), indent=2) + "\n")
    return 0 if plan.fits else 1


if __name__ == "__main__":
    doors.run(main)
