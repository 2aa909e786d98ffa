"""The configuration of a run: frozen dataclasses, ml_collections at the edge only.

A file in configs/ calls `defaults()`, changes what its experiment changes, and returns the ConfigDict, so that every key can be overridden on
the command line (`--config.train.num_steps=200`). `from_dict` turns the ConfigDict into `Config`; nothing else ever sees the ConfigDict.
Every default lives here and nowhere else. The defaults are the paper's choices (Dieleman et al. 2022) wherever the paper states one.
"""

import dataclasses
import difflib
import json
import math
from typing import Any

import ml_collections

# Exit codes: finished; a user's mistake; start me again (told to stop and saved, or a host that stalled or is gone). Ctrl-C's is in interrupts.
DONE, MISTAKE, AGAIN = 0, 2, 75


class UserError(Exception):
    """A mistake of the user's, said in one sentence that names the offending value and what would be right."""

    code = MISTAKE  # what the process ends with


class TryAgain(Exception):
    """What is nobody's mistake and may be gone in a minute (a bucket that answers 503, a host that comes late), said in one sentence without its end:
    the process ends with AGAIN, on which every launcher starts it again."""

    code = AGAIN


def sentence(error: BaseException) -> str:
    """An error as one line that ends as a sentence does; of a TryAgain it says as well what follows."""
    line = " ".join(str(error).split())
    if isinstance(error, TryAgain):
        line = f"{line.removesuffix('.')}; leaving with {AGAIN}, to be started again."
    return line if line.endswith((".", "?")) else f"{line}."


@dataclasses.dataclass(frozen=True)
class DataConfig:
    # An embedded text's name; a path or glob of text or JSON lines (.txt, .jsonl, each also .gz or .zst), where {split} stands for train, valid and
    # test; a prepared folder; "tfds:name/config"; "hf:name/config" or "hf:folder".
    source: str = "kjv"
    text_key: str = "text"  # the field of JSON lines or of a data set's examples that holds the text
    alphabet: str = "text"  # "text": as it is; "27": lower-case a-z and single spaces, digits spelled out (text8's format)
    # Where the source has no splits of its own: "tail", the end of the text; "exact", the same to the very character, as text8 has it; "hash", by a
    # hash of each document. "auto" is "tail" for fewer than 50 files of text, else "hash".
    split: str = "auto"
    valid_fraction: float = 0.05  # held out, for scoring while training and after
    test_fraction: float = 0.0  # held out as well, for scoring once
    valid_split: str = ""  # the split of a data set, or of {split} files, that is held out; "": its validation split, or else part of its train split
    tokenizer: str = "sentencepiece"  # "sentencepiece", "char" or "byte"
    tokenizer_from: str = ""  # a run's workdir, or a prepared folder, whose tokenizer is used instead of making one
    vocab_size: int = 32_000  # SentencePiece only; the other tokenizers count what they find
    sequence_length: int = 64
    # Rows of prepared data: "wrap", of documents joined and cut; "pack", of several documents, none of which sees another; "pad", of one document.
    packing: str = "wrap"
    pad_insertion: float = 0.0  # share of PAD tokens inserted at random into training rows, for texts of variable length (Strudel et al. 2022)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    dtype: str = "float32"  # of the matrix products; parameters, softmax and losses are float32 always
    num_layers: int = 8
    width: int = 1024
    num_heads: int = 16
    mlp_width: int = 4096
    embedding_dim: int = 256
    embedding_std: float = 0.001  # of the raw table at initialisation (paper, section 6.1)
    scan_unroll: int = 1  # layers in one turn of the scan over layers: more compile time, a tenth less step time on CPUs
    # What the backward pass computes again instead of keeping: "none"; "full"; "dots", all but products with parameters; "names", all but
    # attention's output and the residual stream.
    remat: str = "none"
    sigma_conditioning: bool = True  # conditional normalisation from Fourier features of sigma
    # Beyond the paper, each an option of its own (docs/DESIGN.md section 7):
    output_prior: bool = False  # add the local posterior's logits to the network's
    posterior_mean_input: bool = False  # feed the local posterior's mean instead of c_in * x
    noisy_vector: bool = False  # a learnt vector added at noisy positions
    convolution_width: int = 0  # a depthwise convolution before each feed-forward layer; 0 is none


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    sigma_min: float = 1.0
    sigma_max: float = 300.0
    warp_axis: str = "linear"  # the axis of sigma on which the warp is piecewise linear: "linear" or "log"
    warp_bins: int = 100
    warp_floor: float = 1e-3  # added to the bins' weights, divided by the number of bins, before they are normalised
    warp_learning_rate: float = 1e-2
    warp_ema_decay: float = 0.99


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    num_steps: int = 1_000_000
    batch_size: int = 1024  # sequences in the global batch
    accumulation_steps: int = 1  # parts of the batch that a step computes one after the other, to save memory; the update is the same
    seed: int = 0
    given_fraction: float = 1.0  # of the examples that have given (clean) tokens at all
    prefix_fraction: float = 0.5  # of those, the ones whose given tokens are a prefix; in the others they are a random subset
    conditioning_dropout: float = 0.1  # of the examples, whose given tokens are hidden, for guidance
    self_conditioning: bool = True  # on half of the batch, with an extra pass on that half
    position_sigma_fraction: float = 0.0  # of the examples, whose positions have a noise level each (beyond the paper)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    name: str = "adam"  # "adam", or "muon" for the matrices of the blocks with Adam for everything else
    learning_rate: float = 1e-4
    embedding_learning_rate: float = 1e-4
    muon_learning_rate: float = 0.02
    b1: float = 0.9
    b2: float = 0.99
    warmup_steps: int = 0
    decay: str = "none"  # "none", "linear" (to zero) or "cosine" (to zero)
    decay_fraction: float = 1.0  # the last part of training over which the rate decays
    clip_norm: float = 0.0  # global gradient norm of embeddings and denoiser; 0 is none
    ema_decay: float = 0.9999  # of embeddings and denoiser, for sampling and scoring


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int = 1000
    keep_last: int = 3
    keep_every_steps: int = 0  # checkpoints at multiples of this are kept for ever; 0 keeps only the last ones


@dataclasses.dataclass(frozen=True)
class LogConfig:
    every_steps: int = 10
    probe_every_steps: int = 250  # how often the bound is estimated and the warp examined on held-out text
    probe_sequences: int = 128


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int = -1  # devices along each axis; -1 takes what is left
    fsdp: int = 1  # -1 takes what data and tensor leave; where data is -1 too, as much of a slice as there is, up to mesh.WIDEST
    tensor: int = 1
    slices: int = 1  # slices of TPUs (or groups of hosts) between which only the data axis runs; it must divide that axis


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """Deadlines, in seconds: a process that makes no progress for so long says where it hangs and leaves with the code that restarts it."""

    meet_seconds: float = 300.0  # to meet the other hosts
    start_seconds: float = 3600.0  # to read the text, and perhaps to train a tokenizer on it
    compile_seconds: float = 3600.0  # the first step, compilation included
    stall_seconds: float = 0.0  # any later step; 0: thirty times the measured step, but a minute at least
    evaluation_seconds: float = 1800.0  # a probe
    save_seconds: float = 1800.0  # waiting for a checkpoint, or reading one


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    num_steps: int = 200
    solver: str = "euler"
    score_temperature: float = 1.0
    guidance: float = 1.0
    initial_noise_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    objective: str = "cdcd"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()
    sample: SampleConfig = SampleConfig()


def defaults() -> ml_collections.ConfigDict:
    """Every key with its default, as a ConfigDict for a file in configs/ to change."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def did_you_mean(word: str, known: Any) -> str:
    """` (did you mean "x"?)` with the nearest of the known words; when none is near, all of them."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f' (did you mean "{near[0]}"?)' if near else f" (known: {', '.join(sorted(known))})"


def _section(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"config section {path!r} must hold keys and values, not {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    arguments = {}
    for name, value in values.items():
        where = f"{path}.{name}" if path else name
        if name not in fields:
            raise UserError(f"unknown config key {where!r}{did_you_mean(name, fields)}.")
        default = fields[name].default
        if dataclasses.is_dataclass(default):
            arguments[name] = _section(type(default), value, where)
            continue
        kind = type(default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise UserError(f"config key {where!r} takes a value of type {kind.__name__}, not {value!r}.")
        arguments[name] = value
    return cls(**arguments)


def from_dict(values: Any) -> Config:
    """Builds and checks a Config from a ConfigDict or a plain dict. Raises UserError, naming the key, for anything unknown or impossible."""
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    config = _section(Config, values, "")
    check(config)
    return config


def to_json(config: Config) -> str:
    """The config as readable JSON; `from_dict(json.loads(...))` reads it back."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


CHOICES = {
    "objective": ("cdcd",),
    "data.alphabet": ("text", "27"),
    "data.split": ("auto", "tail", "exact", "hash"),
    "data.packing": ("wrap", "pack", "pad"),
    "data.tokenizer": ("sentencepiece", "char", "byte"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "dots", "names"),
    "diffusion.warp_axis": ("linear", "log"),
    "optim.name": ("adam", "muon"),
    "optim.decay": ("none", "linear", "cosine"),
    "sample.solver": ("euler", "heun"),
}
POSITIVE = (
    "data.vocab_size data.sequence_length model.num_layers model.width model.num_heads model.mlp_width model.embedding_dim model.embedding_std "
    "model.scan_unroll "
    "diffusion.sigma_min diffusion.warp_bins diffusion.warp_learning_rate train.num_steps train.batch_size optim.learning_rate "
    "optim.embedding_learning_rate optim.muon_learning_rate checkpoint.every_steps checkpoint.keep_last log.every_steps log.probe_every_steps "
    "log.probe_sequences train.accumulation_steps mesh.tensor mesh.slices "
    "hosts.meet_seconds hosts.start_seconds hosts.compile_seconds hosts.evaluation_seconds hosts.save_seconds "
    "sample.num_steps sample.score_temperature sample.initial_noise_scale"
).split()
FRACTIONS = (
    "data.valid_fraction data.test_fraction data.pad_insertion train.given_fraction train.prefix_fraction train.conditioning_dropout "
    "train.position_sigma_fraction optim.decay_fraction optim.ema_decay optim.b1 optim.b2 diffusion.warp_ema_decay"
).split()
ZERO_OR_MORE = (
    "optim.clip_norm", "optim.warmup_steps", "diffusion.warp_floor", "checkpoint.keep_every_steps", "hosts.stall_seconds", "sample.guidance",
)  # fmt: skip


def _get(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def check(config: Config) -> None:
    """Raises UserError for values that no run can have, naming the key, the value and what would be right."""
    for path, words in CHOICES.items():
        value = _get(config, path)
        if value not in words:
            raise UserError(f"config key {path!r} has the value {value!r}{did_you_mean(str(value), words)}.")
    for path in POSITIVE:
        value = _get(config, path)
        if not 0 < value < math.inf:
            raise UserError(f"config key {path!r} must be {'above 0' if not value > 0 else 'finite'}, not {value!r}.")
    for path in FRACTIONS:
        value = _get(config, path)
        if not 0 <= value <= 1:
            raise UserError(f"config key {path!r} must lie in [0, 1], not {value!r}.")
    for path in ZERO_OR_MORE:
        if not 0 <= _get(config, path) < math.inf:
            raise UserError(f"config key {path!r} must be 0 or more and finite, not {_get(config, path)!r}.")
    if not config.data.source:
        raise UserError("config key 'data.source' is empty: it names a text file, a quoted glob, a data set, or the text that comes along, kjv.")
    if config.data.pad_insertion == 1:
        raise UserError(f"config key 'data.pad_insertion' must be below 1, not {config.data.pad_insertion!r}: nothing but PAD would be left.")
    if round(config.train.position_sigma_fraction * config.train.batch_size) == config.train.batch_size:
        raise UserError(
            f"train.position_sigma_fraction = {config.train.position_sigma_fraction} leaves no example of train.batch_size = "
            f"{config.train.batch_size} with one noise level, and those alone fit the warp: lower it, or take a larger batch."
        )
    if config.mesh.fsdp < 1 and config.mesh.fsdp != -1:
        raise UserError(f"config key 'mesh.fsdp' must be above 0, or -1 for what the other axes leave, not {config.mesh.fsdp}.")
    if config.log.probe_sequences < 2:
        raise UserError(f"config key 'log.probe_sequences' must be at least 2, not {config.log.probe_sequences}: one has no standard error.")
    if not config.diffusion.sigma_min < config.diffusion.sigma_max < math.inf:
        raise UserError(
            f"config key 'diffusion.sigma_max' must be finite and exceed sigma_min = {config.diffusion.sigma_min}, not {config.diffusion.sigma_max}."
        )
    if config.data.packing != "wrap" and config.data.sequence_length >= 1 << 16:
        raise UserError(
            f"config key 'data.sequence_length' must be below {1 << 16:,} with data.packing = {config.data.packing!r}, not "
            f"{config.data.sequence_length:,}: the documents of a row are numbered with two bytes."
        )
    if config.model.width % (2 * config.model.num_heads):
        raise UserError(f"config key 'model.width' must be a multiple of 2 x num_heads = {2 * config.model.num_heads}, not {config.model.width}.")
    if config.model.remat != "none" and config.model.scan_unroll > 1:
        raise UserError(
            f"config key 'model.scan_unroll' must be 1 with model.remat = {config.model.remat!r}, not {config.model.scan_unroll}: "
            "what is unrolled is kept after all."
        )
    parts = config.train.accumulation_steps * (2 if config.train.self_conditioning else 1)
    if config.train.batch_size % parts:
        raise UserError(
            f"config key 'train.batch_size' must be a multiple of {parts} (train.accumulation_steps = {config.train.accumulation_steps}"
            f"{', times 2 for self-conditioning on half of each part' if config.train.self_conditioning else ''}), not {config.train.batch_size}."
        )
    if config.model.convolution_width % 2 == 0 and config.model.convolution_width:
        raise UserError(f"config key 'model.convolution_width' must be odd, or 0 for none, not {config.model.convolution_width}.")
