"""What is published of the chips that `plan` knows: one table, with its sources.

Sources, as read in November 2026:
[1] docs.cloud.google.com/tpu/docs/v5e: 197 TFLOPS, 16 GB at 819 GB/s, 400 GB/s of links in both directions, 2D torus of 16 x 16, 6.4 Tb/s of data-centre
    network for a pod of 256 chips; docs.cloud.google.com/tpu/docs/v6e: of v5e and v6e, 4 ports a chip.
[2] docs.cloud.google.com/tpu/docs/v5p: 459 TFLOPS, 95 GiB at 2765 GB/s, 1200 GB/s of links in both directions, 50 Gb/s of network, 3D torus, at most 16 x 16 x 24.
[3] docs.cloud.google.com/tpu/docs/v6e and /tpu7x: 918 TFLOPS, 32 GiB at 1638 GB/s, 800 GB/s of links in both directions, 100 Gb/s of network, 2D torus of 16 x 16.
[4] jax-ml.github.io/scaling-book/gpus: dense bf16 rates, memory, NVLink one way (A100 12 x 25, H100 and H200 18 x 25, B200 18 x 50 GB/s), nodes of 8 GPUs, which
    reach other nodes at 400 GB/s (H100, B200); /tpus: one way of one link, and that a torus wraps around along 16 chips (v5e, v6e) or multiples of 4 (v5p).
[5] NVIDIA's data sheets: A100 80GB SXM (312 TFLOPS, 2039 GB/s, NVLink 600 GB/s both ways), H100 SXM (989.4 TFLOPS, 3.35 TB/s), H200 SXM (141 GB, 4.8 TB/s),
    DGX B200 (1,440 GB in 8 GPUs); MLPerf Inference's descriptions of systems with 8 x H200 and 8 x B200: 180 GB, and a port of 400 Gb/s for each GPU.
[6] libtpu 0.0.42's own message when a program is too large: 15.75, 95.74 and 31.25 GiB can be used of v5e's, v5p's and v6e's memory.
"""

import dataclasses

GIB = 2**30


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
    ring: int = 0  # a torus is closed along a side that is a multiple of this, and not shorter
    largest: tuple[int, ...] = ()  # slice
    node: int = 0  # GPUs that NVLink joins


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 15.75 * GIB, 197e12, 819e9, 50e9, 6.4e12 / 8 / 256, dimensions=2, ring=16, largest=(16, 16)),  # [1, 4, 6]
        Chip("v5p", 95.74 * GIB, 459e12, 2765e9, 100e9, 50e9 / 8, dimensions=3, ring=4, largest=(16, 16, 24)),  # [2, 4, 6]
        Chip("v6e", 31.25 * GIB, 918e12, 1638e9, 100e9, 100e9 / 8, dimensions=2, ring=16, largest=(16, 16)),  # [3, 4, 6]
        Chip("a100", 80e9, 312e12, 2039e9, 300e9, 200e9 / 8, node=8),  # [4, 5]; eight ports of 200 Gb/s in a DGX A100
        Chip("h100", 80e9, 989.4e12, 3350e9, 450e9, 400e9 / 8, node=8),  # [4, 5]
        Chip("h200", 141e9, 989.4e12, 4800e9, 450e9, 400e9 / 8, node=8),  # [4, 5]
        Chip("b200", 180e9, 2250e12, 8000e9, 900e9, 400e9 / 8, node=8),  # [4, 5]
    )
}
