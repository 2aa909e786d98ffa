"""Several documents in a row: each is trained on and scored as if it were alone in its row, and padding counts nowhere."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.scipy.special import gammaincc

from cdcd_jax.config import Config, DataConfig, DiffusionConfig, ModelConfig, TrainConfig
from cdcd_jax.diffusion import kernel
from cdcd_jax.training import masks, telemetry
from cdcd_jax.training.loss import Examples, draw, loss, make_denoise, make_warp
from cdcd_jax.training.state import init_state
from cdcd_jax.training.step import make_apply, split

V, L, D = 11, 12, 4
CONFIG = Config(  # with all that could carry something from one position to another
    data=DataConfig(sequence_length=L),
    model=ModelConfig(
        num_layers=2, width=16, num_heads=2, mlp_width=16, embedding_dim=D, output_prior=True, posterior_mean_input=True, noisy_vector=True,
        convolution_width=5, sigma_conditioning=True,
    ),
    diffusion=DiffusionConfig(sigma_min=0.3, sigma_max=20.0, warp_bins=12, warp_axis="log"),
    train=TrainConfig(batch_size=4),
)  # fmt: skip
LOG_PRIOR = jax.nn.log_softmax(jax.random.normal(jax.random.key(2), (V,)))
APPLY = make_apply(CONFIG, V)
QUICK = {"xla_backend_optimization_level": 0}  # half of the compile time; what runs here is tiny
quick = functools.partial(jax.jit, compiler_options=QUICK)

SIZES = (5, 4)  # of two documents; a row has 3 positions more
_GENERATOR = np.random.default_rng(1)
DOCUMENTS = [
    {"tokens": _GENERATOR.integers(0, V, size), "given": np.arange(size) % 3 == 1, "eps": _GENERATOR.normal(size=(size, D))} for size in SIZES
]


@functools.cache
def params() -> Any:
    """Away from initialisation, where the head is zero and hides everything."""
    leaves, tree = jax.tree.flatten(jax.jit(lambda: init_state(CONFIG, LOG_PRIOR).params)())
    generator = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [leaf + jnp.asarray(0.1 * generator.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


def examples(rows: list[tuple[int, ...]], padding: int = 0) -> Examples:
    """Rows of documents by their numbers, each row twice: one of the two is conditioned on its own estimate. `padding` fills them up."""
    fields: dict[str, list[np.ndarray]] = {"tokens": [], "given": [], "eps": [], "segments": []}
    for numbers in rows:
        for name in ("tokens", "given", "eps"):
            used = np.concatenate([DOCUMENTS[number][name] for number in numbers])
            rest = np.full((L - len(used), *used.shape[1:]), padding, used.dtype)
            fields[name] += [np.concatenate([used, rest])] * 2
        segments = np.repeat(np.arange(1, len(numbers) + 1), [SIZES[number] for number in numbers])
        fields["segments"] += [np.append(segments, np.zeros(L - len(segments), int))] * 2
    tokens, given, eps, segments = (jnp.asarray(np.stack(values)) for values in fields.values())
    number = 2 * len(rows)
    level = jnp.full(number, 0.9)
    return Examples(
        tokens.astype(jnp.int32), given, jnp.ones(number, bool), level, jnp.ones(number, bool), eps.astype(jnp.float32), segments.astype(jnp.int32)
    )


def denoised(params: Any, batch: Examples) -> kernel.Denoised:
    x0 = kernel.normalise(params["embeddings"]["table"])[batch.tokens]
    denoise = make_denoise(CONFIG, APPLY, params, LOG_PRIOR, batch.given, x0 * batch.given[..., None], batch.segments)
    return denoise(kernel.add_noise(x0, batch.sigma, batch.eps), batch.sigma, jnp.zeros_like(x0))


answer = quick(denoised)


@quick
@functools.partial(jax.grad, has_aux=True)
def gradient(params: Any, batch: Examples) -> tuple[Array, dict[str, Array]]:
    """(of the loss summed over positions, with respect to all parameters; the loss's own metrics)."""
    found = loss(params, make_warp(CONFIG, params["warp"]), LOG_PRIOR, batch, batch, CONFIG, APPLY)[1]
    return found["loss"] * batch.counted.sum(), found


def test_a_documents_logits_are_those_of_the_document_alone() -> None:
    """Wherever it stands in the row, and whatever stands beside it."""
    together, alone = answer(params(), examples([(0, 1), (1, 0)])), answer(params(), examples([(0,), (1,)]))
    for row, document, begin in ((0, 0, 0), (0, 1, SIZES[0]), (2, 1, 0), (2, 0, SIZES[1])):
        for found, wanted in zip(together, alone, strict=True):
            mine, own = found[row, begin : begin + SIZES[document]], wanted[2 * document, : SIZES[document]]
            np.testing.assert_allclose(mine, own, atol=1e-5 * float(jnp.abs(own).max()))
            assert np.ptp(np.asarray(own)) > 0.5


def test_loss_and_gradient_of_a_packed_row_are_the_sums_of_its_documents_alone() -> None:
    (packed, of_packed), (apart, of_apart) = gradient(params(), examples([(0, 1), (0, 1)])), gradient(params(), examples([(0,), (1,)]))
    assert float(of_packed["loss"]) == pytest.approx(float(of_apart["loss"]), rel=1e-5)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(packed), jax.tree.leaves(apart), strict=True):
        largest = float(jnp.abs(other).max())
        assert largest > 0 or "warp" in jax.tree_util.keystr(path)
        # Each document is there twice as often.
        np.testing.assert_allclose(one / 2, other, rtol=1e-3, atol=1e-4 * largest, err_msg=jax.tree_util.keystr(path))


def test_no_gradient_passes_between_documents_or_to_padding() -> None:
    """The logits of each position by the noise at each other: exactly zero between segments, and nowhere within one."""
    batch = examples([(0, 1)])
    by_noise = quick(jax.jacrev(lambda eps, params: denoised(params, batch._replace(eps=eps)).logits.sum(axis=-1)[0]))
    jacobian = by_noise(batch.eps, params())  # [L, B, L, D]
    heard = np.abs(np.asarray(jacobian))[:, 0].max(axis=-1)
    segments, given = np.asarray(batch.segments[0]), np.asarray(batch.given[0])
    together = segments[:, None] == segments[None, :]
    assert (heard[~together] == 0).all()
    assert (heard[together & ~given[None, :]] > 1e-7).all()  # but a given position, whose noise nobody sees


def test_padding_counts_nowhere() -> None:
    """Other tokens, other noise and other masks in it change no bit of the loss, of the warp's fit and of the gradients."""
    one, other = gradient(params(), examples([(0, 1), (1,)])), gradient(params(), examples([(0, 1), (1,)], padding=1))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_document_that_fills_the_row_is_a_row_without_segments() -> None:
    batch = examples([(0, 1), (1, 0)])
    found, wanted = (answer(params(), batch._replace(segments=segments)) for segments in (jnp.ones((4, L), jnp.int32), None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max())), found, wanted)
    assert not np.allclose(found.logits, answer(params(), batch).logits, atol=1e-2)


def test_segments_change_nothing_that_is_drawn_but_the_masks() -> None:
    def both(warp: Any, tokens: Array, segments: Array) -> list[Examples]:
        return [draw(make_warp(CONFIG, warp), tokens, jax.random.key(3), CONFIG, *more) for more in ((), (segments,))]

    plain, segmented = quick(both)(params()["warp"], jnp.zeros((4, L), jnp.int32), jnp.ones((4, L), jnp.int32))
    for name in ("tokens", "kept", "sigma", "whole", "eps"):
        np.testing.assert_array_equal(getattr(segmented, name), getattr(plain, name))
    assert plain.segments is None and segmented.segments.shape == (4, L)


def test_a_batch_in_parts_keeps_segments_with_their_rows() -> None:
    batch = examples([(0, 1), (1, 0)])
    batch = batch._replace(tokens=batch.tokens.at[:, 0].set(jnp.arange(4)), segments=batch.segments.at[:, -1].set(jnp.arange(4)))
    parts = split(batch, 2, 2)
    np.testing.assert_array_equal(parts.segments[..., -1], parts.tokens[..., 0])
    np.testing.assert_array_equal(parts.segments[..., -1], [[0, 1], [2, 3]])


def drawn(prefix_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """(masks, segments) of 6,000 rows with documents of 5, 1 and 4 positions, and 2 of padding."""
    segments = np.tile(np.repeat([1, 2, 3, 0], [5, 1, 4, 2]), (6000, 1))
    return np.asarray(quick(lambda s: masks.given_mask(jax.random.key(5), 6000, 12, 1.0, prefix_fraction, s))(segments)), segments


@pytest.mark.parametrize("prefix_fraction", [0.0, 1.0])
def test_each_document_has_a_number_of_given_tokens_of_its_own(prefix_fraction: float) -> None:
    """Uniform from none to all but one, and independent of the other documents' in the row."""
    given, segments = drawn(prefix_fraction)
    counts = {number: (given & (segments == number)).sum(axis=1) for number in (1, 2, 3)}
    assert not counts[2].any()  # of one token none is given: it is what is left to predict
    for number, size in ((1, 5), (3, 4)):
        observed, expected = np.bincount(counts[number], minlength=size), 6000 / size
        assert len(observed) == size and gammaincc((size - 1) / 2, ((observed - expected) ** 2 / expected).sum() / 2) > 1e-3
        inside = given[:, segments[0] == number]
        if prefix_fraction == 1:
            assert (np.diff(inside.astype(int), axis=1) <= 0).all()
        else:
            np.testing.assert_allclose(inside.mean(axis=0), (size - 1) / size / 2, atol=0.03)  # no place is preferred
    assert abs(np.corrcoef(counts[1], counts[3])[0, 1]) < 0.06


def test_scores_are_means_over_the_documents_tokens() -> None:
    """Of a row of two documents, the means are those of the two by themselves, each weighed by its tokens."""
    measure = quick(telemetry.make_measure(CONFIG, APPLY))
    tokens = jax.random.randint(jax.random.key(1), (3, L), 0, V)

    def of(*sizes: int) -> telemetry.Measured:
        """Documents of so many tokens; a negative number is of padding, whose tokens are others."""
        segments = jnp.concatenate([jnp.full((3, abs(size)), i + 1 if size > 0 else 0) for i, size in enumerate(sizes)], axis=1)
        batch = {"tokens": jnp.where(segments > 0, tokens, (tokens + 1) % V), "segments": segments}
        return measure(params(), LOG_PRIOR, batch, jnp.linspace(0.2, 0.8, 3), jax.random.key(4))

    both, first, second, one = of(7, 5), of(7, -5), of(-7, 5), of(12)
    assert [float(m.tokens[0]) for m in (both, first, second, one)] == [12, 7, 5, 12]
    for name in ("diffusion", "reconstruction", "cross_entropy", "local_cross_entropy"):
        parts = 7 * getattr(first, name) + 5 * getattr(second, name)
        np.testing.assert_allclose(12 * getattr(both, name), parts, rtol=1e-4)
    assert not np.allclose(both.cross_entropy, one.cross_entropy, rtol=1e-3)


def test_rows_weigh_as_many_tokens_as_they_have() -> None:
    mean, error = telemetry.per_token(np.array([1.0, 4.0]), np.array([30.0, 10.0]))
    assert mean == pytest.approx(1.75)
    assert error == pytest.approx(np.sqrt((1.5 * 0.75) ** 2 + (0.5 * 2.25) ** 2) / 2**0.5)
    values = np.random.default_rng(0).normal(size=50)
    mean, error = telemetry.per_token(values, np.full(50, 64.0))
    assert mean == pytest.approx(values.mean()) and error == pytest.approx(values.std(ddof=1) / 50**0.5)
