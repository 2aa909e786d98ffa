"""What is published of the chips that `plan` knows: one table, with its sources.

Sources, as read in November 2026:
[1] docs.cloud.google.com/tpu/docs/v5e: 197 TFLOPS, 16 GB at 819 GB/s, 400 GB/s of links (both directions together), 2D torus, pods of 256 chips with
    6.4 Tb/s of data-centre network, the shapes; .../v6e, which compares the two: 4 ports a chip.
[2] docs.cloud.google.com/tpu/docs/v5p: 459 TFLOPS, 95 GiB at 2765 GB/s, 1200 GB/s of links (both directions together), 50 Gb/s of network a chip,
    3D torus from one cube of 4 x 4 x 4 on; the smaller shapes, and that the largest has 6,144 chips.
[3] docs.cloud.google.com/tpu/docs/v6e and .../tpu7x: 918 TFLOPS, 32 GiB at 1638 GB/s, 800 GB/s of links (both directions together), 4 ports, 100 Gb/s
    of network a chip, 2D torus, pods of 256 chips; the shapes are v5e's.
[4] jax-ml.github.io/scaling-book, "gpus": dense bf16 rates, memory; NVLink one way (A100 12 x 25, H100 and H200 18 x 25, B200 18 x 50 GB/s); nodes
    of 8 GPUs that send 400 GB/s to others (H100, B200); "tpus": one way of one link, v4's 45 GB/s; a side of v5e or v6e is closed when it has 16
    chips, those of v4 and v5p by optical switches, which only whole cubes have; 25 GB/s of network a host, of which v4's has 4 chips.
[5] NVIDIA's data sheets: A100 80GB SXM (312 TFLOPS, 2039 GB/s; a DGX has eight ports of 200 Gb/s), H100 SXM (989.4 TFLOPS, 3.35 TB/s), H200 SXM
    (141 GB, 4.8 TB/s), DGX B200 (1,440 GB in 8 GPUs); MLPerf Inference 4.1's and 6.0's descriptions of systems: 8 x H200, 8 x B200 of 180 GB,
    400 Gb/s a GPU.
[6] libtpu 0.0.42, which says for a program that is too large that 30.75, 15.75, 95.74 and 31.25 GiB can be used of v4, v5e, v5p and v6e.
[7] docs.cloud.google.com/tpu/docs/v4: 275 TFLOPS, 32 GiB at 1200 GB/s, pods of 4096 chips; .../types-topologies: sides in rising order, each at most
    4 or a multiple of 4; xpk 1.16 (core/system_characteristics.py) has the same list for v4 and v5p: four small shapes, and whole cubes.
[8] docs.jax.dev, "GPU memory allocation": JAX takes 75 % of a GPU's memory when it starts, and no more, unless XLA_PYTHON_CLIENT_MEM_FRACTION (or
    XLA_PYTHON_CLIENT_PREALLOCATE) says otherwise; nothing in this project sets either.
"""

import dataclasses

GIB = 2**30
PREALLOCATED = 0.75  # of a GPU's memory, which JAX takes by default [8]
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # smaller than one cube of 4 x 4 x 4


@dataclasses.dataclass(frozen=True)
class Chip:
    """Rates are bytes or floating-point operations (of bfloat16 products, dense) in a second, of one chip, in one direction."""

    name: str
    hbm_bytes: float  # that a program can use
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float  # of one link of a TPU; of all of a GPU's links together
    network_bandwidth: float  # of the data-centre network, a chip's share
    dimensions: int = 0  # of a TPU's torus; 0 for a GPU
    ring: int = 0  # a torus is closed along a side that is a multiple of this; in three dimensions, only where all three are
    shapes: tuple[str, ...] = ()  # in which slices are offered, the smallest first; in three dimensions whole cubes as well
    most: int = 0  # chips of a slice
    node: int = 0  # GPUs that NVLink joins


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 30.75 * GIB, 275e12, 1200e9, 45e9, 25e9 / 4, dimensions=3, ring=4, shapes=CUBES, most=4096),  # [4, 6, 7]
        Chip("v5e", 15.75 * GIB, 197e12, 819e9, 50e9, 6.4e12 / 8 / 256, dimensions=2, ring=16, shapes=FLAT, most=256),  # [1, 4, 6]
        Chip("v5p", 95.74 * GIB, 459e12, 2765e9, 100e9, 50e9 / 8, dimensions=3, ring=4, shapes=CUBES, most=6144),  # [2, 4, 6, 7]
        Chip("v6e", 31.25 * GIB, 918e12, 1638e9, 100e9, 100e9 / 8, dimensions=2, ring=16, shapes=FLAT, most=256),  # [3, 4, 6]
        Chip("a100", PREALLOCATED * 80e9, 312e12, 2039e9, 300e9, 200e9 / 8, node=8),  # [4, 5, 8]
        Chip("h100", PREALLOCATED * 80e9, 989.4e12, 3350e9, 450e9, 400e9 / 8, node=8),  # [4, 5, 8]
        Chip("h200", PREALLOCATED * 141e9, 989.4e12, 4800e9, 450e9, 400e9 / 8, node=8),  # [4, 5, 8]
        Chip("b200", PREALLOCATED * 180e9, 2250e12, 8000e9, 900e9, 400e9 / 8, node=8),  # [4, 5, 8]
    )
}
