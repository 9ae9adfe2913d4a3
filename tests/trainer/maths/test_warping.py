"""Normalised soft-DTW of sequences, and the band, against plain float64 loops over their equations, on ragged batches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dtw import by_loops
from schemas.errors import UsageError
from trainer.maths.ragged import pointers
from trainer.maths.warping import Band, table_sizes, warping

FEWER = settings(max_examples=30)
LENGTHS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4)
BAND = Band(width=0.4, entropy=0.5, mix=0.6, penalty=0.9)  # narrow enough for short sequences to leave it


def sequences(lengths, seed=0, sizes=(4, 5), dtype=torch.float64):
    """X and Y of each document, in spaces of these numbers of features, and an attention of X to Y."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return [([(random(n, size), random(m, size)) for size in sizes], (3 * random(n, m)).softmax(1)) for n, m in lengths]


def flat(documents):
    """Spaces, pointers of X and Y, attention: as `warping` and `Band` take them."""
    (spaces, _), *_ = documents
    joined = [
        tuple(torch.cat([own[space][side] for own, _ in documents]) for side in (0, 1)) for space in range(len(spaces))
    ]
    rows = [pointers([attention.shape[side] for _, attention in documents]) for side in (0, 1)]
    return joined, *rows, torch.cat([attention.flatten() for _, attention in documents])


def distances(x, y):
    return torch.tensor(
        [[1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for b in y] for a in x], dtype=torch.float64
    ).reshape(len(x), len(y))


def outside(attention, band):
    """The penalty of every cell, by the equation."""
    n, m = attention.shape
    penalties = torch.zeros(n, m, dtype=torch.float64)
    for i, line in enumerate(attention.tolist()):
        centre = band.mix * sum(j * share for j, share in enumerate(line)) + (1 - band.mix) * i * m / n
        half_width = band.width + band.entropy * -sum(share * math.log(share) for share in line)
        for j in range(m):
            penalties[i, j] = band.penalty if abs(j - centre) > half_width else 0
    return penalties


def by_hand(document, gamma, band, normalised):
    """The document's nDTW in each space."""
    spaces, attention = document
    if not attention.numel():
        return [0.0] * len(spaces)
    values = []
    for x, y in spaces:
        across = distances(x, y)
        if band is not None:
            across += outside(attention, band)
        value = by_loops(across, gamma)[0]
        if normalised:
            value -= (by_loops(distances(x, x), gamma)[0] + by_loops(distances(y, y), gamma)[0]) / 2
        values.append(value)
    return values


@given(LENGTHS, st.sampled_from([None, BAND]), st.booleans(), st.integers(0, 2**16))
def test_against_plain_loops(lengths, band, normalised, seed):
    documents = sequences(lengths, seed)
    spaces, x_rows, y_rows, attention = flat(documents)
    penalties = band and band.penalties(attention, table_sizes(x_rows, y_rows))
    values = warping(spaces, x_rows, y_rows, 0.8, penalties, normalised)
    expected = torch.tensor([by_hand(document, 0.8, band, normalised) for document in documents], dtype=torch.float64)
    torch.testing.assert_close(values.T, expected, rtol=1e-10, atol=1e-10)


@FEWER
@given(LENGTHS, st.integers(0, 2**16))
def test_the_band_against_plain_loops(lengths, seed):
    documents = sequences(lengths, seed)
    _, x_rows, y_rows, attention = flat(documents)
    penalties = BAND.penalties(attention.requires_grad_(), table_sizes(x_rows, y_rows))
    assert not penalties.requires_grad
    assert penalties.tolist() == torch.cat([outside(own, BAND).flatten() for _, own in documents]).tolist()


def test_the_published_band():
    attention = torch.tensor([0.7, 0.3, 0, 0, 0, 0, 0.5, 0.5], dtype=torch.float64)
    centres, half_widths = Band().lines(attention, torch.tensor([[2, 4]]))
    assert centres.tolist() == pytest.approx([0.21, 2.35], abs=1e-12)
    assert half_widths.tolist() == pytest.approx([6.221729, 6.386294], abs=1e-6)
    # column 6 alone is further than 5 from the first line's centre, and no entropy widens the band
    certain = torch.zeros(7, dtype=torch.float64)
    certain[0] = 1
    assert Band().penalties(certain, torch.tensor([[1, 7]])).tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_constant_sequences_differ_by_the_paths_they_have():
    """sdtw of nothing but zeros is −γ times the logarithm of a Delannoy number."""
    x, y = torch.ones(2, 3, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)
    value = warping([(x, y)], pointers([2]), pointers([3]), 2.0).item()
    assert value == pytest.approx(2 * (math.log(39) / 2 - math.log(5)), abs=1e-12)
    assert value == pytest.approx(2 * 0.222343, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_sequence_is_at_no_distance_of_itself(dtype):
    x, rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).to(dtype), pointers([3, 0, 4])
    assert warping([(x, x.clone())], rows, rows, 2.0).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("band", [None, BAND])
def test_finite_differences(band):
    lengths = [(3, 2), (1, 4), (0, 2)]
    spaces, x_rows, y_rows, attention = flat(sequences(lengths, sizes=(2, 3)))
    penalties = band and band.penalties(attention, table_sizes(x_rows, y_rows))
    weights = torch.linspace(1, 2, 2 * len(lengths), dtype=torch.float64).view(2, -1)

    def total(*sides):
        pairs = list(zip(sides[::2], sides[1::2], strict=True))
        return (weights * warping(pairs, x_rows, y_rows, 0.8, penalties)).sum()

    sides = [side.requires_grad_() for pair in spaces for side in pair]
    assert torch.autograd.gradcheck(total, sides, eps=1e-6, atol=1e-6, rtol=1e-6)


@FEWER
@given(LENGTHS, st.integers(0, 2**16))
def test_a_batch_is_its_documents_in_any_order(lengths, seed):
    documents = sequences(lengths, seed)

    def values(some):
        spaces, x_rows, y_rows, attention = flat(some)
        return warping(spaces, x_rows, y_rows, 2.0, BAND.penalties(attention, table_sizes(x_rows, y_rows)))

    together = values(documents)
    torch.testing.assert_close(together, torch.cat([values([document]) for document in documents], 1))
    torch.testing.assert_close(together.flip(1), values(documents[::-1]))


def test_an_empty_side_adds_nothing():
    spaces, x_rows, y_rows, attention = flat(sequences([(0, 3), (2, 0), (0, 0)]))
    sides = [side.requires_grad_() for pair in spaces for side in pair]
    values = warping(spaces, x_rows, y_rows, 2.0, BAND.penalties(attention, table_sizes(x_rows, y_rows)))
    assert values.tolist() == [[0, 0, 0], [0, 0, 0]]
    values.sum().backward()
    assert not any(side.grad.any() for side in sides)
    nothing, rows = torch.zeros(0, 4, requires_grad=True), pointers([])
    values = warping([(nothing, nothing)], rows, rows, 2.0)
    assert values.shape == (1, 0)
    assert values.requires_grad


def test_lengths_of_vectors_do_not_matter_and_zero_vectors_do_no_harm():
    spaces, x_rows, y_rows, _ = flat(sequences([(3, 4), (2, 2)]))
    values = warping(spaces, x_rows, y_rows, 2.0)
    torch.testing.assert_close(warping([(3 * x, y / 7) for x, y in spaces], x_rows, y_rows, 2.0), values)
    (x, y), _ = spaces
    x[1] = 0
    x.requires_grad_()
    warping([(x, y)], x_rows, y_rows, 2.0).sum().backward()
    assert x.grad.isfinite().all()


def test_low_precision_is_computed_in_float32():
    spaces, x_rows, y_rows, _ = flat(sequences([(9, 7), (4, 8)], dtype=torch.bfloat16))
    exact = warping([(x.float(), y.float()) for x, y in spaces], x_rows, y_rows, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        values = warping(spaces, x_rows, y_rows, 2.0)
    assert values.dtype == torch.float32
    assert values.tolist() == exact.tolist()


def test_lines_that_do_not_fit_are_refused():
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match="end at 4, but there are 3 elements"):
        warping([(x, x)], pointers([4]), pointers([3]), 2.0)
    with pytest.raises(ValueError, match="end at 4, but there are 3 elements"):
        Band().penalties(torch.ones(3), torch.tensor([[2, 2]]))


@pytest.mark.parametrize("values", [{"width": -1}, {"entropy": -0.1}, {"mix": 1.5}, {"penalty": math.nan}])
def test_a_band_that_makes_no_sense_is_refused(values):
    with pytest.raises(UsageError, match=next(iter(values))):
        Band.parse(values, "objectives.soft_dtw.band")
