"""A trained model, read from a workdir: all that sampling and scoring need, with the averaged weights."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array, Bool, Float, Int

from cdcd_jax.config import Config, UserError
from cdcd_jax.data.tokenizers import Tokenizer, load
from cdcd_jax.diffusion import kernel
from cdcd_jax.diffusion.warp import Warp
from cdcd_jax.training import telemetry, workdir
from cdcd_jax.training.checkpoint import restore_part
from cdcd_jax.training.loss import Apply, make_denoise, make_warp
from cdcd_jax.training.state import init_state
from cdcd_jax.training.step import make_apply


@dataclasses.dataclass(frozen=True)
class Model:
    """`params` are the exponential moving averages at training step `step`."""

    config: Config
    tokenizer: Tokenizer
    params: dict[str, Any]
    log_prior: Float[Array, "V"]
    step: int
    data_fingerprint: str = ""  # of the text that it was trained on

    @property
    def length(self) -> int:
        """Tokens in a sequence."""
        return self.config.data.sequence_length

    @property
    def apply(self) -> Apply:
        """The network as a plain function."""
        return make_apply(self.config, self.tokenizer.vocab_size)

    @functools.cached_property
    def measure(self) -> telemetry.Measure:
        """Scores sequences at given warped times; compiled when it is first called."""
        return telemetry.make_measure(self.config, self.apply)


def read_model(directory: epath.Path) -> Model:
    """The newest checkpoint of a run. Raises UserError if the workdir holds no run, no checkpoint or a damaged one."""
    config = workdir.read_config(directory)
    tokenizer = load(directory / "tokenizer")
    abstract = jax.eval_shape(lambda: init_state(config, jnp.zeros(tokenizer.vocab_size)))
    wanted = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])),
        {"step": abstract.step, "ema": abstract.ema, "log_prior": abstract.log_prior},
    )
    state, meta = restore_part(directory, wanted)
    if meta["tokenizer_fingerprint"] != tokenizer.fingerprint:
        raise UserError(f"the tokenizer in {directory / 'tokenizer'} is not the one that this run was trained with: put that one back.")
    return Model(config, tokenizer, state["ema"], state["log_prior"], int(state["step"]), meta["data_fingerprint"])


def warp_of(model: Model, params: dict[str, Any]) -> Warp:
    """The learnt warp."""
    return make_warp(model.config, params["warp"])


def denoise_of(
    model: Model, params: dict[str, Any], tokens: Int[Array, "B L"], given: Bool[Array, "B L"], conditioned: Bool[Array, "B"]
) -> kernel.Denoise:
    """The denoiser of sequences whose `given` tokens are known; rows that are not conditioned do not see them (for guidance)."""
    x0 = kernel.normalise(params["embeddings"]["table"])[tokens]
    clean = x0 * (given & conditioned[:, None])[..., None]
    return make_denoise(model.config, model.apply, params, model.log_prior, given, clean)
