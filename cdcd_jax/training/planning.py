"""What a train step would cost on hardware that is not here: compiled for TPUs without any, estimated for GPUs."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from cdcd_jax.config import CHOICES, Config, UserError, check
from cdcd_jax.data.tokenizers import ByteTokenizer
from cdcd_jax.parallel import estimate, flops
from cdcd_jax.parallel.chips import PREALLOCATED
from cdcd_jax.parallel.collectives import Collective, collectives
from cdcd_jax.parallel.mesh import AXES, batch_sharding, make_mesh, sizes
from cdcd_jax.parallel.program import parse, traffic
from cdcd_jax.parallel.roofline import Roofline, axis_bandwidths, roofline
from cdcd_jax.parallel.sharding import shardings
from cdcd_jax.parallel.topology import Topology, devices
from cdcd_jax.training.compiling import Compiled, Say, compile_lowered, ticking
from cdcd_jax.training.state import TrainState, init_state
from cdcd_jax.training.step import make_step

ATTEMPTS = 6  # programs compiled, at most, to see whether an advice holds
SECONDS = 300.0  # of looking for an advice, after which no further one is tried
ROOM = 0.95  # of the memory that an estimate may fill before it is tried
# Times a chip's memory that an estimate may take before it is believed as it is: estimates were off by an eighth at most (docs/RESULTS.md, Plan), and
# a program of many rows keeps the compiler busy for minutes before it is refused.
HOPELESS = 1.5
Changes = dict[str, Any]  # config keys and their new values


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip. `state` is predicted from the sharding rules; `arguments` and `activations` are what the compiled program says of itself
    (parameters, averages, optimiser and batch; everything that a step holds beside them), and None or an estimate where nothing is compiled."""

    parameters: int | float
    ema: int | float
    optimizer: int | float
    state: int | float
    arguments: int | float | None
    activations: int | float
    peak: int | float
    hbm: int | float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `python -m cdcd_jax.plan` says. `chips` run the program together: all of the topology's, or in sampling one. `tokens` and `flops` are of a
    step of all of them (in sampling: of all that the one chip samples at once), `compiled` tells whether the numbers are a compiled program's,
    `advice` is what would make it fit, as flags, where it does not, and `advised_peak` the peak then."""

    topology: Topology
    job: str
    chips: int
    mesh: dict[str, int]
    slices: int
    memory: Memory
    flops: flops.Flops
    collectives: list[Collective]
    traffic: int | float
    roofline: Roofline
    tokens: int
    compiled: bool
    notes: tuple[str, ...] = ()
    advice: tuple[str, ...] | None = None
    advised_peak: int | float | None = None

    @property
    def fits(self) -> bool:
        """Whether a chip's memory holds it."""
        return self.memory.peak <= self.memory.hbm

    @property
    def mfu(self) -> int | float:
        """The bound on the share of the chips' peak that goes into what the method asks for: a product of two shares, so never above 1."""
        return self.flops.model / self.flops.total * (self.roofline.compute / self.roofline.seconds)

    def as_dict(self) -> dict[str, Any]:
        """The fields of plan's JSON (docs/DESIGN.md, 15)."""
        m, r = self.memory, self.roofline
        return {
            "topology": self.topology.name, "job": self.job, "chip": self.topology.chip.name, "chips": self.chips, "mesh": self.mesh,
            "slices": self.slices, "compiled": self.compiled, "fits": self.fits, "hbm_bytes_per_chip": m.hbm, "peak_bytes_per_chip": m.peak,
            "state_bytes_per_chip": m.state, "parameter_bytes_per_chip": m.parameters, "ema_bytes_per_chip": m.ema,
            "optimizer_bytes_per_chip": m.optimizer, "argument_bytes_per_chip": m.arguments, "activation_bytes_per_chip": m.activations,
            "collectives": [dataclasses.asdict(collective) for collective in self.collectives],
            "flops_per_step": self.flops.total, "model_flops_per_step": self.flops.model, "hbm_traffic_bytes_per_chip": self.traffic,
            "roofline_seconds": dataclasses.asdict(r), "roofline_step_seconds": r.seconds, "bound_by": r.bound_by,
            "tokens_per_step": self.tokens, "tokens_per_second": self.tokens / r.seconds, "mfu_bound": self.mfu,
            "notes": list(self.notes), "advice": None if self.advice is None else list(self.advice),
            "advised_peak_bytes_per_chip": self.advised_peak,
        }  # fmt: skip


def plan(config: Config, topology: Topology, vocab_size: int, say: Say = lambda line: None) -> Plan:
    """The train step of this config on this hardware. Raises UserError where mesh, batch and hardware do not divide, or the compiler is missing."""
    slices, notes = _slices(config, topology)
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, slices=slices))
    found = _measure(config, topology, vocab_size, say)
    found = dataclasses.replace(found, notes=(*notes, *found.notes))
    return found if found.fits else _advised(config, topology, vocab_size, found, say)


def vocabulary(config: Config) -> int:
    """How many tokens the config's vocabulary has, as far as the config tells. Raises UserError where only the text does."""
    if config.data.tokenizer == "sentencepiece":
        return config.data.vocab_size
    if config.data.tokenizer == "byte":
        return ByteTokenizer().vocab_size
    if config.data.alphabet == "27":
        return 27
    raise UserError(f"data.tokenizer = {config.data.tokenizer!r} takes its vocabulary from the text, which is not read here: give --vocab_size=N.")


def _slices(config: Config, topology: Topology) -> tuple[int, tuple[str, ...]]:
    if topology.slices > 1 and config.mesh.slices == 1:
        return topology.slices, (f"two or more slices: train with --config.mesh.slices={topology.slices}",)
    return config.mesh.slices, ()


def abstract_mesh(config: Config, count: int) -> AbstractMesh:
    """The mesh of that many devices, none of which has to exist."""
    return AbstractMesh(sizes(config, count), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def memory_note(topology: Topology) -> tuple[str, ...]:
    """What must be known of the memory that a plan is held against."""
    if topology.sides:
        return ()
    return (
        f"a GPU's memory is the {PREALLOCATED:.0%} of it that JAX takes when it starts, and no more; XLA_PYTHON_CLIENT_MEM_FRACTION, which nothing "
        "here sets, changes that",
    )


def _nodes_note(topology: Topology, slices: int) -> tuple[str, ...]:
    """What is assumed between several nodes of GPUs."""
    nodes = topology.count // topology.chip.node
    if nodes < 2:
        return ()
    crossed = "the data axis alone runs between slices" if slices > 1 else f"any axis may run between them, with {nodes} the data axis alone"
    speed = f"{topology.chip.network_bandwidth / 1e9:.0f} GB/s a GPU between them"
    return (f"{nodes} nodes of {topology.chip.node} GPUs, {speed}; with --config.mesh.slices={slices} {crossed}",)


def _measure(config: Config, topology: Topology, vocab_size: int, say: Say) -> Plan:
    """The plan without advice."""
    abstract = jax.eval_shape(lambda: init_state(config, jnp.zeros(vocab_size)))
    mesh: Mesh | AbstractMesh = make_mesh(config, devices(topology)) if topology.sides else abstract_mesh(config, topology.count)
    layout, state, guess = _estimated(config, topology, mesh, vocab_size, abstract)
    hopeless = state + guess.activations > HOPELESS * topology.chip.hbm_bytes
    compiled = None
    if isinstance(mesh, Mesh) and not hopeless:
        say(f"compiling the train step for {topology.name}, which may take minutes")
        with ticking(say):
            compiled = compile_step(config, abstract, layout, mesh)
    shape = _shape(mesh)
    memory = Memory(
        parameters=estimate.stored(abstract.params, layout.params),
        ema=estimate.stored(abstract.ema, layout.ema),
        optimizer=estimate.stored(abstract.opt_state, layout.opt_state),
        state=state,
        arguments=compiled.arguments if compiled and compiled.text else None,
        activations=guess.activations if compiled is None else compiled.temporaries if compiled.text else compiled.peak - state,
        peak=compiled.peak if compiled else state + guess.activations,
        hbm=topology.chip.hbm_bytes,
    )
    sent, moved = guess.collectives, guess.traffic
    notes: tuple[str, ...] = ()
    if compiled and compiled.text:
        program = parse(compiled.text)
        sent, moved = collectives(program, shape, config.mesh.slices), traffic(program)
    elif compiled:
        notes = ("the program is too large to be compiled: collectives and memory traffic are estimates",)
    elif topology.sides:
        notes = (f"not compiled: the estimate alone is more than {HOPELESS} times the memory of a chip",)
    else:
        notes = ("estimated, not compiled", *memory_note(topology), *_nodes_note(topology, config.mesh.slices))
    work = flops.train_step(config, vocab_size)
    bound = roofline(topology, work.total, moved, sent, axis_bandwidths(topology, mesh))
    tokens = config.train.batch_size * config.data.sequence_length
    ready = bool(compiled and compiled.text)
    return Plan(topology, "train", topology.count, shape, config.mesh.slices, memory, work, sent, moved, bound, tokens, ready, notes)


def compile_step(config: Config, abstract: TrainState, layout: Any, mesh: Mesh) -> Compiled:
    """Compiles the train step of training/step.py for the devices of a mesh, none of which has to exist."""
    state = jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), abstract, layout)
    rows = jax.ShapeDtypeStruct((config.train.batch_size, config.data.sequence_length), jnp.int32, sharding=batch_sharding(mesh))
    step: Any = make_step(config, layout, batch_sharding(mesh))
    kinds = ("tokens",) if config.data.packing == "wrap" else ("tokens", "segments")
    return compile_lowered(step.lower(state, dict.fromkeys(kinds, rows)))


def _advised(config: Config, topology: Topology, vocab_size: int, found: Plan, say: Say) -> Plan:
    """The plan with the cheapest flags that make it fit, and the peak that it then has, for TPUs compiled; as it was if none were found."""
    abstract = jax.eval_shape(lambda: init_state(config, jnp.zeros(vocab_size)))  # no candidate changes what is stored, only where
    correction, attempts, began = found.memory.peak / _guess(config, topology, vocab_size, abstract), 0, time.monotonic()
    for changes in _candidates(config, topology):
        changed = changed_config(config, changes)
        guess = _guess(changed, topology, vocab_size, abstract)
        if guess * max(correction, 1.0) > ROOM * found.memory.hbm:
            continue
        if not topology.sides:
            return dataclasses.replace(found, advice=flags(config, changes), advised_peak=guess)
        seconds = time.monotonic() - began
        if attempts == ATTEMPTS or seconds > SECONDS:
            note = f"stopped after {attempts} trials, in {seconds:.0f} s, of what could make it fit: next would be {' '.join(flags(config, changes))}"
            return dataclasses.replace(found, notes=(*found.notes, note))
        attempts += 1
        say(f"it does not fit; trial {attempts} of {ATTEMPTS} at most: {' '.join(flags(config, changes))}")
        tried = _measure(changed, topology, vocab_size, say)
        if tried.fits:
            return dataclasses.replace(found, advice=flags(config, changes), advised_peak=tried.memory.peak)
        correction = max(correction, tried.memory.peak / guess)
    return found


def _guess(config: Config, topology: Topology, vocab_size: int, abstract: TrainState) -> int | float:
    """The estimated peak, bytes of a chip."""
    _, state, guess = _estimated(config, topology, abstract_mesh(config, topology.count), vocab_size, abstract)
    return state + guess.activations


def _estimated(
    config: Config, topology: Topology, mesh: Mesh | AbstractMesh, vocab_size: int, abstract: TrainState
) -> tuple[Any, int | float, estimate.Estimate]:
    """Where the state lies, the bytes of it that a chip stores, and the estimate of the rest of a step."""
    layout = shardings(config, abstract, mesh)
    parameters = float(sum(leaf.size for leaf in jax.tree.leaves(abstract.params)))
    # Slices of GPUs are an order of the devices, which it has anyhow: what runs between nodes is told by the axes.
    slices = config.mesh.slices if topology.sides else 1
    return layout, estimate.stored(abstract, layout), estimate.train_step(config, vocab_size, _shape(mesh), parameters, slices)


def _shape(mesh: Mesh | AbstractMesh) -> dict[str, int]:
    return {name: int(mesh.shape[name]) for name in AXES}


def changed_config(config: Config, changes: Changes) -> Config:
    """The config with some keys changed."""
    for key, value in changes.items():
        section, name = key.split(".")
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})
    return config


def _candidates(config: Config, topology: Topology) -> Iterator[Changes]:
    """What could make it fit, in the order of what it costs: FSDP, computing again, the batch in parts, tensor parallelism, a smaller batch."""
    m, t = config.mesh, config.train
    now = sizes(config, topology.count)
    slice_size = topology.count // m.slices
    remats = CHOICES["model.remat"]
    stronger = [config.model.remat, *(name for name in ("dots", "names", "full") if remats.index(name) != remats.index(config.model.remat))]
    for batch in (t.batch_size // 2**i for i in range(8)):
        for tensor in (now[2] * 2**i for i in range(4)):
            for parts in (t.accumulation_steps * 2**i for i in range(6)):
                for remat in stronger:
                    for fsdp in dict.fromkeys((now[1], min(64, slice_size // tensor), slice_size // tensor)):
                        changes: Changes = {
                            "mesh.data": -1, "mesh.fsdp": fsdp, "mesh.tensor": tensor, "model.remat": remat, "train.accumulation_steps": parts,
                            "train.batch_size": batch,
                        }  # fmt: skip
                        if remat != "none":
                            changes["model.scan_unroll"] = 1
                        changes = {key: value for key, value in changes.items() if value != _value(config, key)}
                        if "mesh.fsdp" in changes and fsdp == now[1] and m.fsdp == -1:
                            del changes["mesh.fsdp"]
                        if changes and divides(changed_config(config, changes), topology.count):
                            # Self-conditioning runs half the rows of a part: only where each device has as many of them.
                            if batch % (topology.count // tensor * parts * (2 if t.self_conditioning else 1)) == 0:
                                yield changes


def _value(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def divides(config: Config, count: int) -> bool:
    """Whether a run can have this config on that many devices: whether what a start checks holds."""
    try:
        check(config)
        sizes(config, count)
    except UserError:
        return False
    return True


def flags(config: Config, changes: Changes) -> tuple[str, ...]:
    """The flags that make these changes of a config, those left out that change nothing."""
    return tuple(f"--config.{key}={value}" for key, value in changes.items() if value != _value(config, key))
