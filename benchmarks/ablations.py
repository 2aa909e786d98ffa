"""python -m benchmarks.ablations --steps=2200 --seeds=3 --output=docs/ablations.jsonl [--only=NAME,...]: what each ingredient of the demo is worth.

Trains the recipe of a config, and the recipe with each ingredient taken away alone, at equal steps, several seeds each, and scores all on the
held-out text in the same way. A finished run is a line of the output file; runs that are there already, with the same recipe and steps, are not done
again, so it can be stopped at any time, and several of them (each pinned to its cores with taskset, each with an --only of its own) can share a file.
It ends with a table in Markdown.
"""

import hashlib
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from cdcd_jax import doors
from cdcd_jax.config import Config, UserError, did_you_mean, from_dict, to_json
from cdcd_jax.data import pipeline
from cdcd_jax.evaluation import metrics
from cdcd_jax.evaluation.model import Model
from cdcd_jax.parallel.mesh import batch_sharding, make_mesh
from cdcd_jax.parallel.sharding import shardings
from cdcd_jax.training.progress import console, progress
from cdcd_jax.training.state import init_state
from cdcd_jax.training.step import make_step

# name: (what the table calls it, what it changes in the recipe)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "recipe": ("the recipe", {}),
    "output_prior": ("no output prior", {"model.output_prior": False}),
    "posterior_mean_input": ("c_in x as input, not the posterior mean", {"model.posterior_mean_input": False}),
    "noisy_vector": ("no vector at noisy positions", {"model.noisy_vector": False}),
    "convolution": ("no short convolution", {"model.convolution_width": 0}),
    "position_sigma": ("one noise level per sequence in all examples", {"train.position_sigma_fraction": 0.0}),
    "log_axis": ("linear axis of the warp", {"diffusion.warp_axis": "linear"}),
    "warp": ("no warp: uniform on its axis", {"diffusion.warp_learning_rate": 1e-12}),
    "muon": ("Adam in place of Muon", {"optim.name": "adam"}),
    "self_conditioning": ("no self-conditioning", {"train.self_conditioning": False}),
    "small_embeddings": ("initial embeddings of std 1, not 0.001", {"model.embedding_std": 1.0}),
    "sigma_conditioning": ("with conditioning on sigma", {"model.sigma_conditioning": True}),
    "paper": (
        "the paper's inputs: none of the first six, sigma conditioning on",
        {
            "model.output_prior": False,
            "model.posterior_mean_input": False,
            "model.noisy_vector": False,
            "model.convolution_width": 0,
            "train.position_sigma_fraction": 0.0,
            "diffusion.warp_axis": "linear",
            "model.sigma_conditioning": True,
        },
    ),
}
DRAWS = 2  # noise levels for each held-out window, in scoring


def variant(recipe: ml_collections.ConfigDict, name: str, steps: int, seed: int) -> Config:
    """The recipe with one variant's changes."""
    changed = ml_collections.ConfigDict(recipe.to_dict())
    changed.update_from_flattened_dict(VARIANTS[name][1] | {"train.num_steps": steps, "train.seed": seed})
    return from_dict(changed)


def fingerprint(config: Config) -> str:
    """What tells this run's recipe from any other's, whatever its seed."""
    values = json.loads(to_json(config))
    del values["train"]["seed"], values["log"], values["checkpoint"], values["sample"], values["mesh"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def run(config: Config, corpus: pipeline.Corpus, name: str) -> dict[str, Any]:
    """Trains one run with the library's own step and scores its averaged weights. The time per step is the median over stretches of ten steps."""
    t = config.train
    mesh = make_mesh(config)
    prior = jnp.asarray(pipeline.unigram_log_probabilities(corpus.token_counts))
    sharding = shardings(config, jax.eval_shape(lambda: init_state(config, prior)), mesh)
    state = jax.jit(lambda: init_state(config, prior), out_shardings=sharding)()
    step = make_step(config, sharding, batch_sharding(mesh))
    batches = pipeline.batches(corpus.train, t.batch_size, t.seed, 0, 1, corpus.pads)
    stretches, began = [], time.monotonic()
    try:
        with progress(t.num_steps, f"{name} {t.seed}") as bar:
            for done in range(1, t.num_steps + 1):
                state, measured = step(state, jax.device_put(next(batches), batch_sharding(mesh)))
                if done % 10 == 0 or done == t.num_steps:
                    loss, now = float(measured["loss"]), time.monotonic()
                    stretches.append((now - began) / (done % 10 or 10))
                    began = now
                    bar.update(done, f"loss {loss:.2f}")
                    if not np.isfinite(loss):
                        raise UserError(f"the loss of {name}, seed {t.seed}, is not finite at step {done}: leave it out with --only.")
    finally:
        batches.close()
    model = Model(config, corpus.tokenizer, state.ema, prior, t.num_steps)
    score = metrics.nll(model, corpus.splits["valid"].rows, DRAWS)
    return {
        "name": name,
        "seed": t.seed,
        "steps": t.num_steps,
        "recipe": fingerprint(config),
        "seconds_per_step": statistics.median(stretches),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        **{key: score[key] for key in ("bits_per_char", "bits_per_char_stderr", "nats_per_token", "linearity", "reconstruction")},
    }


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The finished runs of an output file; none if there is no file yet."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is no file of finished runs ({error}); name another --output.") from error


def table(lines: list[dict[str, Any]]) -> str:
    """A Markdown table of finished runs: mean and standard deviation over seeds, and the difference from the recipe."""
    rows = ["| variant | runs | bits per character | worse by | s per step |", "|---|---|---|---|---|"]
    bounds = {name: [line["bits_per_char"] for line in lines if line["name"] == name] for name in VARIANTS}
    for name, values in bounds.items():
        if not values:
            continue
        mean = statistics.mean(values)
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        worse = f"{mean - statistics.mean(bounds['recipe']):+.3f}" if bounds["recipe"] and name != "recipe" else ""
        seconds = statistics.median(line["seconds_per_step"] for line in lines if line["name"] == name)
        rows.append(f"| {VARIANTS[name][0]} | {len(values)} | {mean:.3f}{spread} | {worse} | {seconds:.3f} |")
    return "\n".join(rows)


def ablate(recipe: ml_collections.ConfigDict, names: list[str], steps: int, seeds: int, path: pathlib.Path) -> str:
    """Does the runs that are not finished yet, seed by seed, and returns the table of all finished runs of this recipe.

    Raises UserError for an unknown variant, a folder that does not exist and a file that holds something else.
    """
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"unknown variant {name!r}{did_you_mean(name, VARIANTS)}.")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {str(path.parent)!r} for --output={path}.")
    prints = {name: fingerprint(variant(recipe, name, steps, 0)) for name in VARIANTS}
    corpus = None
    for seed in range(seeds):
        for name in names:
            if name != "recipe" and prints[name] == prints["recipe"]:
                console.print(f"{name}: the recipe is so already; there is nothing to take away.")
                continue
            # The file is read anew before each run: another process may have finished this one meanwhile.
            if any((line["name"], line["seed"], line["recipe"]) == (name, seed, prints[name]) for line in read(path)):
                continue
            corpus = corpus or pipeline.load_corpus(from_dict(recipe).data)
            line = run(variant(recipe, name, steps, seed), corpus, name)
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            console.print(f"{name}, seed {seed}: {line['bits_per_char']:.3f} bits per character, {line['seconds_per_step']:.3f} s per step")
            jax.clear_caches()
    return table([line for line in read(path) if prints.get(line["name"]) == line["recipe"]])


if __name__ == "__main__":
    STEPS = flags.DEFINE_integer("steps", 0, "Training steps of every run; 0: the config's. The schedule ends with them.", lower_bound=0)
    SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each variant, with seeds 0, 1, ...", lower_bound=1)
    OUTPUT = flags.DEFINE_string("output", "docs/ablations.jsonl", "The file that finished runs are appended to.")
    ONLY = flags.DEFINE_list("only", list(VARIANTS), "Which variants to run, by name; the table shows all that are finished.")
    CONFIG = config_flags.DEFINE_config_file("config", "configs/demo.py", "The recipe; any key: --config.train.batch_size=32.", lock_config=True)

    def main() -> int:
        steps = STEPS.value or CONFIG.value.train.num_steps
        print(ablate(CONFIG.value, ONLY.value, steps, SEEDS.value, pathlib.Path(OUTPUT.value)))
        return 0

    doors.run(main)
