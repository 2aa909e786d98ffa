"""python -m cdcd_jax.sample --workdir=runs/demo --num_samples=8 [--prompt="In the beginning"]: text from a trained run."""

import json
from typing import Any

from absl import flags

from cdcd_jax import doors
from cdcd_jax.data import files
from cdcd_jax.run import load_run
from cdcd_jax.training.progress import console

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run, or gs://bucket/folder.", required=True)
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 8, "How many texts.")
PROMPT = flags.DEFINE_string("prompt", None, "Text to go on from.")
TEMPLATE = flags.DEFINE_string("template", None, "Text with blanks to fill: [8] is a blank of eight tokens, [[ a bracket.")
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Solver steps (default: the config's).")
SOLVER = flags.DEFINE_string("solver", None, "euler or heun (default: the config's).")
SCORE_TEMPERATURE = flags.DEFINE_float("score_temperature", None, "Below 1: sharper samples (default: the config's).")
GUIDANCE = flags.DEFINE_float("guidance", None, "Classifier-free guidance on the given tokens; 1 is none (default: the config's).")
INITIAL_NOISE_SCALE = flags.DEFINE_float("initial_noise_scale", None, "Scale of the first noise (default: the config's).")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0, upper_bound=2**32 - 1)
OUTPUT = flags.DEFINE_string("output", None, "A .jsonl file for the samples (default: WORKDIR/samples/[prompt_|template_]samples.jsonl).")
TRAJECTORY = flags.DEFINE_string("trajectory", None, "Also write the first sample's path from noise to text to this .json file.")


def main() -> int:
    flags_given: dict[str, Any] = {
        "num_steps": NUM_STEPS.value,
        "solver": SOLVER.value,
        "score_temperature": SCORE_TEMPERATURE.value,
        "guidance": GUIDANCE.value,
        "initial_noise_scale": INITIAL_NOISE_SCALE.value,
    }
    settings = {name: value for name, value in flags_given.items() if value is not None}
    where: dict[str, Any] = {"prompt": PROMPT.value, "template": TEMPLATE.value, "seed": SEED.value}
    output = None if OUTPUT.value is None else files.output(OUTPUT.value, ".jsonl")
    trajectory = None if TRAJECTORY.value is None else files.output(TRAJECTORY.value, ".json")
    run = load_run(WORKDIR.value)
    samples = run.sample(NUM_SAMPLES.value, **where, **settings)
    name = "template_samples" if TEMPLATE.value is not None else "prompt_samples" if PROMPT.value is not None else "samples"
    path = output or run.workdir / "samples" / f"{name}.jsonl"
    files.write_whole(path, "".join(json.dumps(sample.as_dict(), ensure_ascii=False) + "\n" for sample in samples))
    if trajectory:
        files.write_whole(trajectory, json.dumps(run.trajectory(**where, **settings), ensure_ascii=False))
    for sample in samples:
        print(sample.text, end="\n\n")
    number = f"{len(samples)} sample{'s' if len(samples) > 1 else ''}"
    console.print(f"{number} at step {run.step:,}, {samples[0].nfe} denoiser calls each: {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    doors.run(main)
