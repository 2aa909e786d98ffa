"""python -m benchmarks.run [--only=NAME,...] [--config=configs/demo.py]: measures, and prints a line of JSON for each measurement.

The last line of the output is the last measurement's: name, value, unit, reference, device, and the details behind the value.
"""

import json
from collections.abc import Callable

import jax
from absl import flags
from ml_collections import config_flags

from benchmarks import checkpoints, loader, preparing, ratios
from cdcd_jax import doors
from cdcd_jax.config import Config, UserError, did_you_mean, from_dict

# name: (the measurement, its limit where the project has set one, repeats, steps)
BENCHMARKS: dict[str, tuple[Callable[[Config, int, int], ratios.Result], float, int, int]] = {
    "train_step_ratio": (ratios.train_step_ratio, 1.25, 60, 0),
    "sampler_ratio": (ratios.sampler_ratio, 1.10, 9, 50),
    "compile_time_ratio": (ratios.compile_time_ratio, 1.3, 3, 0),
    "data_wait": (ratios.data_wait, 0.01, 5, 40),
    "loader_tokens_per_second": (loader.loader_tokens_per_second, 2e6, 5, 500),
    "prepare_ratio": (preparing.prepare_ratio, 1 / 0.9, 3, 4),
    "prepare_short_ratio": (preparing.prepare_short_ratio, 1 / 0.9, 3, 4),
    "prepare_workers_ratio": (preparing.prepare_workers_ratio, 1 / 1.8, 3, 128),  # of two workers 0.1 s does not grow with the text
    "prepare_memory_ratio": (preparing.prepare_memory_ratio, 1.1, 1, 8),
    "checkpoint_wait": (checkpoints.checkpoint_wait, 0.02, 4, 50),
    "seal_ratio": (checkpoints.seal_ratio, 1.0, 3, 0),
}

ONLY = flags.DEFINE_list("only", list(BENCHMARKS), "Which to run, by name.")
REPEATS = flags.DEFINE_integer("repeats", 0, "How often each is measured; 0: as many as the benchmark thinks enough.", lower_bound=0)
NUM_STEPS = flags.DEFINE_integer("num_steps", 0, "Steps of sampler or loop, or copies of a text; 0: the benchmark's own.", lower_bound=0)
CONFIG = config_flags.DEFINE_config_file("config", "configs/demo.py", "What is measured; any key: --config.train.batch_size=32.", lock_config=True)


def device() -> str:
    """What the measurements ran on."""
    first = jax.devices()[0]
    return f"{jax.device_count()} x {first.device_kind} ({first.platform}), jax {jax.__version__}"


def main() -> int:
    for name in ONLY.value:
        if name not in BENCHMARKS:
            raise UserError(f"unknown benchmark {name!r}{did_you_mean(name, BENCHMARKS)}.")
    config = from_dict(CONFIG.value)
    for name in ONLY.value:
        measure, limit, repeats, num_steps = BENCHMARKS[name]
        result = measure(config, REPEATS.value or repeats, NUM_STEPS.value or num_steps)
        line = {"name": name, "value": result.value, "unit": result.unit, "reference": result.reference, "device": device()}
        print(json.dumps(line | {"limit": limit} | result.details), flush=True)
    return 0


if __name__ == "__main__":
    doors.run(main)
