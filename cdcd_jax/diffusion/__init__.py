"""The method, as pure functions of arrays: kernel, warp, guidance, solvers, sampler, likelihood.

Imports neither flax nor config nor any other room. Everything here sees a model only as `denoise(x, sigma, previous) -> Denoised`.
"""
