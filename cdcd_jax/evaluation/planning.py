"""What sampling would cost on a chip that is not here: the sampler, compiled for one TPU, which holds the whole model; estimated for a GPU."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from cdcd_jax.config import Config, UserError
from cdcd_jax.data.tokenizers import CharTokenizer
from cdcd_jax.evaluation import generate
from cdcd_jax.evaluation.model import Model
from cdcd_jax.parallel import flops
from cdcd_jax.parallel.mesh import AXES
from cdcd_jax.parallel.program import parse, traffic
from cdcd_jax.parallel.roofline import roofline
from cdcd_jax.parallel.topology import GPUS, TPUS, Topology, devices
from cdcd_jax.parallel.topology import parse as named
from cdcd_jax.training.compiling import Compiled, Say, compile_lowered, ticking
from cdcd_jax.training.planning import ROOM, Memory, Plan, memory_note
from cdcd_jax.training.state import init_state


def plan(config: Config, topology: Topology, vocab_size: int, say: Say = lambda line: None) -> Plan:
    """A batch of generate.BATCH free samples on one chip, with the config's sampling settings; other chips sample others, each for itself.

    On GPUs, which cannot be compiled for here, memory is the parameters' and that of the largest arrays.
    """
    found = _measure(config, topology, vocab_size, say)
    if found.fits:
        return found
    found = dataclasses.replace(found, notes=(*found.notes, "one chip samples, and must hold the averaged parameters whole"))
    for larger in _larger(topology, found.memory):
        flag = f"--topology={larger.name}"
        say(f"it does not fit; trying {flag}")
        tried = _measure(config, larger, vocab_size, say)
        if tried.fits:
            return dataclasses.replace(found, advice=(flag,), advised_peak=tried.memory.peak)
    return found


def _larger(topology: Topology, memory: Memory) -> Iterator[Topology]:
    """The smallest slices of TPUs, or as many GPUs, whose chips have more memory and hold at least what does not depend on the compiler."""
    chips = TPUS if topology.sides else GPUS
    for chip in sorted(chips.values(), key=lambda chip: chip.hbm_bytes):
        if chip.hbm_bytes > topology.chip.hbm_bytes and memory.state <= ROOM * chip.hbm_bytes:
            yield named(f"{chip.name}:{chip.shapes[0]}" if topology.sides else f"gpu:{chip.name}x{topology.count}")


def _measure(config: Config, topology: Topology, vocab_size: int, say: Say) -> Plan:
    settings, rows, length = config.sample, generate.BATCH, config.data.sequence_length
    abstract = jax.eval_shape(lambda: init_state(config, jnp.zeros(vocab_size)))
    ema = float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract.ema)))
    state = ema + 4.0 * vocab_size
    logits = 3 * 4.0 * rows * length * vocab_size * (1 if settings.guidance == 1 else 2)
    guess = 2 * 4.0 * vocab_size * config.model.embedding_dim + logits
    compiled = None
    if topology.sides:
        say(f"compiling the sampler for one chip of {topology.chip.name}, which may take minutes")
        with ticking(say):
            compiled = _compile(config, topology, vocab_size)
    ready = compiled is not None and bool(compiled.text)
    memory = Memory(
        parameters=0.0,
        ema=ema,
        optimizer=0.0,
        state=state,
        arguments=compiled.arguments if compiled and ready else None,
        activations=guess if compiled is None else compiled.temporaries if ready else compiled.peak - state,
        peak=compiled.peak if compiled else state + guess,
        hbm=topology.chip.hbm_bytes,
    )
    calls = generate.calls(settings)
    guided = 1 if settings.guidance == 1 else 2
    work = flops.denoiser_calls(config, vocab_size, rows * guided, calls // guided)
    width = 2 if config.model.dtype == "bfloat16" else 4
    moved = traffic(parse(compiled.text)) if compiled and ready else calls // guided * (ema / 4 * width + logits)
    bound = roofline(dataclasses.replace(topology, count=1), work, moved, [], {})
    notes: tuple[str, ...] = (
        f"one chip samples {rows} sequences in {calls // guided} steps; each of the {topology.count} may sample as many beside it",
    )
    if compiled is None:
        notes += ("estimated, not compiled", *memory_note(topology))
    elif not ready:
        notes += ("the program is too large to be compiled: memory traffic is an estimate",)
    mesh, counted = dict.fromkeys(AXES, 1), flops.Flops(work, 0.0, 0.0)
    return Plan(topology, "sample", 1, mesh, 1, memory, counted, [], moved, bound, rows * length, ready, notes)


def _compile(config: Config, topology: Topology, vocab_size: int) -> Compiled:
    """The sampler of evaluation/generate.py, for the first chip."""
    place = SingleDeviceSharding(devices(topology)[0])
    rows, length = generate.BATCH, config.data.sequence_length
    if vocab_size > 0x10FFFF - 0x10000:
        raise UserError(f"a vocabulary of {vocab_size} tokens is more than sampling can be planned for.")
    abstract = jax.eval_shape(lambda: init_state(config, jnp.zeros(vocab_size)))
    # Any tokenizer with as many tokens will do: the program does not depend on what they say.
    tokenizer = CharTokenizer("".join(chr(0x10000 + i) for i in range(vocab_size)))
    model = Model(config, tokenizer, {}, jnp.zeros(vocab_size), 0)

    def there(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    tokens, given = (there(jax.ShapeDtypeStruct((rows, length), dtype)) for dtype in (jnp.int32, jnp.bool_))
    keys = there(jax.eval_shape(lambda: generate.keys_for(0, 0, rows)))
    return compile_lowered(generate.make_sampler(model, config.sample).lower(jax.tree.map(there, abstract.ema), tokens, given, keys))
