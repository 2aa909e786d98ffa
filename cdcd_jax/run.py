"""A run from Python: `run = cdcd_jax.load_run("runs/demo")`, then `run.sample(...)` and `run.likelihood(...)`. The doors call the same."""

import dataclasses
import os
from typing import Any

import numpy as np
from etils import epath

from cdcd_jax.config import Config, SampleConfig, UserError
from cdcd_jax.data import files, pipeline, places
from cdcd_jax.evaluation import generate, metrics
from cdcd_jax.evaluation.generate import Sample
from cdcd_jax.evaluation.model import Model, read_model


class Run:
    """A finished or running run, at its newest checkpoint, with averaged weights."""

    def __init__(self, workdir: epath.Path, model: Model, source: str | None = None):
        self.workdir, self.model = workdir, model
        self._source = source
        self._samplers: dict[SampleConfig, Any] = {}
        self._corpus: pipeline.Corpus | None = None

    @property
    def config(self) -> Config:
        """The run's resolved config."""
        return self.model.config

    @property
    def step(self) -> int:
        """The training step of the weights."""
        return self.model.step

    def corpus(self) -> pipeline.Corpus:
        """The run's corpus, read or opened on first use. UserError when it cannot be read any more, or is not what the run was trained on."""
        if self._corpus is None:
            data = self.config.data if self._source is None else dataclasses.replace(self.config.data, source=self._source)
            try:
                self._corpus = pipeline.load_corpus(data, self.model.tokenizer, fingerprint=self.model.data_fingerprint)
            except UserError as error:
                # A run's config is what it is: other texts to choose from are no advice here.
                told = str(error).replace(f"; {places.GIVE}", "").replace("--config.data.source=", "--source=").removesuffix(".")
                where = "" if self._source is not None else f"; if the text of {self.workdir} lies elsewhere now, give --source=PLACE"
                raise UserError(f"{told}{where}.") from error
        return self._corpus

    def sample(
        self, num_samples: int = 1, *, prompt: str | None = None, template: str | None = None, seed: int = 0, **settings: Any
    ) -> list[Sample]:
        """Samples texts: free, after a prompt, or into a template's blanks (`"And the [8] said"`).

        `settings` are those of config.SampleConfig (num_steps, solver, score_temperature, guidance, initial_noise_scale); what is not given is the
        config's. Raises UserError for a prompt or template that does not fit, and for an unknown solver.
        """
        chosen = self.settings(**settings)
        if chosen not in self._samplers:
            self._samplers[chosen] = generate.make_sampler(self.model, chosen)
        return generate.generate(self.model, self._samplers[chosen], chosen, num_samples, seed, prompt, template)

    def trajectory(
        self, *, prompt: str | None = None, template: str | None = None, seed: int = 0, frames: int = 41, candidates: int = 5, **settings: Any
    ) -> dict[str, Any]:
        """One sample seen from inside: per frame the noise level and each position's likeliest tokens, their probabilities and the entropy."""
        return generate.trajectory(self.model, self.settings(**settings), seed, prompt, template, frames, candidates)

    def settings(self, **settings: Any) -> SampleConfig:
        """The config's sampling settings with some changed."""
        return dataclasses.replace(self.config.sample, **settings)

    def likelihood(self, texts: str | list[str], *, draws: int = 4, seed: int = 0) -> dict[str, Any]:
        """The bound on the negative log-likelihood of texts, as eval/nll.json holds it. Several texts are scored as one stream, in sequences of the
        model's length; the remainder is not scored."""
        tokens = [self.model.tokenizer.encode(text) for text in ([texts] if isinstance(texts, str) else texts)]
        stream = np.concatenate([np.zeros(0, np.int32), *tokens])
        if len(stream) < 2 * self.model.length:
            raise UserError(f"a text of {len(stream)} tokens is too short to score: two sequences of {self.model.length} tokens are needed.")
        return metrics.nll(self.model, pipeline.Windows(stream, self.model.length), draws, seed)


def load_run(workdir: str | os.PathLike[str], source: str | os.PathLike[str] | None = None) -> Run:
    """Opens the run in a workdir at its newest checkpoint. Raises config.UserError if there is none or it cannot be read.

    source: where the run's text or prepared folder lies now, if not where its config.json says; its content is compared when it is read.
    """
    directory = files.locate(workdir)
    return Run(directory, read_model(directory), None if source is None else os.fspath(source))
