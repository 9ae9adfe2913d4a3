"""Whatever is stored comes back within its type's rounding, or is refused by name; nothing in between."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from schemas.errors import UserError
from trainer.maths.quantization import DTYPES, SMALLEST_SCALE, TOP, decode, encode, refuse_unstorable

NEARLY_LARGEST = float(np.finfo(np.float32).max) * (1 - 2**-20)
SHAPES = st.tuples(st.integers(0, 4), st.integers(1, 5))
#: magnitudes of every order, denormals and both zeros among them
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
#: what hidden states look like
USUAL = st.floats(-300, 300, width=32)
VECTORS = SHAPES.flatmap(lambda shape: st.one_of(arrays(np.float32, shape, elements=each) for each in (ANY, USUAL)))


def where(vector):
    return f"vector {vector}"


def bound(storage, values, scale):
    """The largest error that the type's definition allows, from half a unit in the last place, element by element."""
    size = values.abs().double()
    if storage == "fp32":
        return torch.zeros_like(size)
    if storage == "bf16":  # 8 bits of precision, smallest step 2^-133
        return (size * 2**-8).clamp_min(2.0**-134)
    if storage == "fp16":  # 11 bits, smallest step 2^-24
        return (size * 2**-11).clamp_min(2.0**-25)
    scale = scale.double()[:, None]
    # of the division, of the type, of the multiplication; the two of float32 are each relative, or its smallest step
    division = (size * 2**-24).clamp_min(2.0**-150)
    # fp8 has 4 bits of precision, smallest step 2^-9 of a scale
    step = scale / 2 if storage == "int8" else ((size + division) * 2**-4).maximum(scale * 2**-10)
    product = ((size + division + step) * 2**-24).clamp_min(2.0**-150)
    return division + step + product


@pytest.mark.parametrize("storage", DTYPES)
@given(VECTORS)
def test_comes_back_within_the_rounding_of_its_type_or_is_refused(storage, array):
    values = torch.from_numpy(array)
    if storage in TOP:  # whose rounding may carry the very last numbers beyond float32: test_quantization.py
        values = values.clamp(-NEARLY_LARGEST, NEARLY_LARGEST)
    encoded = encode(values, storage)
    assert encoded.stored.dtype == DTYPES[storage]
    assert (encoded.scale is not None) == (storage in {"fp8", "int8"})
    # the least magnitude that does not round to a finite number of the type
    limit = {"fp16": 65520, "bf16": (2 - 2**-8) * 2.0**127}.get(storage, math.inf)
    above = [vector for vector, peak in enumerate(values.abs().amax(1).tolist()) if peak >= limit]
    if above:
        with pytest.raises(UserError, match=rf"^vector {above[0]}: values up to .* than {storage} can hold"):
            refuse_unstorable(encoded.peak, storage, where)
        return
    refuse_unstorable(encoded.peak, storage, where)
    back = decode(encoded.stored, encoded.scale)
    assert back.isfinite().all()
    assert bool(((back.double() - values.double()).abs() <= bound(storage, values, encoded.scale)).all())
    assert bool((back[values == 0] == 0).all())


@pytest.mark.parametrize("storage", DTYPES)
@given(VECTORS, st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_nan_and_infinity_are_refused_wherever_they_are(storage, array, bad, data):
    if not array.size:
        return
    row = data.draw(st.integers(0, array.shape[0] - 1))
    column = data.draw(st.integers(0, array.shape[1] - 1))
    array = array.clip(-1, 1)
    array[row, column] = bad
    with pytest.raises(UserError, match=rf"^vector {row}: .*NaN or infinite"):
        refuse_unstorable(encode(torch.from_numpy(array), storage).peak, storage, where)


@pytest.mark.parametrize("storage", DTYPES)
@given(VECTORS)
def test_a_vector_does_not_depend_on_its_neighbours(storage, array):
    values = torch.from_numpy(array)
    whole = encode(values, storage)
    for row in range(len(values)):
        alone = encode(values[row : row + 1], storage)
        assert torch.equal(alone.stored.view(torch.uint8), whole.stored[row : row + 1].view(torch.uint8))
        assert whole.scale is None or torch.equal(alone.scale, whole.scale[row : row + 1])


@pytest.mark.parametrize("storage", TOP)
@given(arrays(np.float32, (3, 4), elements=st.floats(-(2**100), 2**100, width=32)))
def test_the_largest_element_fills_the_type(storage, array):
    encoded = encode(torch.from_numpy(array), storage)
    large = torch.from_numpy(array).abs().amax(1) > SMALLEST_SCALE * TOP[storage]
    assert bool((encoded.stored.float().abs().amax(1)[large] == TOP[storage]).all())
