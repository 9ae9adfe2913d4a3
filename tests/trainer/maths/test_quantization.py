"""Edges of the storage types: what is refused and how it is said, what stays as it was."""

import re
from typing import get_args

import pytest
import torch

from schemas.errors import UserError
from schemas.signals import Storage
from trainer.maths.quantization import DTYPES, decode, encode, refuse_unstorable

#: Bytes of one number, and whether each vector has a float32 scale.
STORAGE = {"fp32": (4, False), "bf16": (2, False), "fp16": (2, False), "fp8": (1, True), "int8": (1, True)}


def refused(values, storage):
    with pytest.raises(UserError) as caught:
        refuse_unstorable(encode(values, storage).peak, storage, "Row 'a', units of layer 3, vector {}".format)
    return str(caught.value)


def back(values, storage):
    encoded = encode(values, storage)
    refuse_unstorable(encoded.peak, storage, str)
    return decode(encoded.stored, encoded.scale)


def test_types_are_as_large_as_the_contract_says():
    for storage, (size, scaled) in STORAGE.items():
        encoded = encode(torch.ones(2, 3), storage)
        assert encoded.stored.element_size() == size
        assert (encoded.scale is not None) == scaled


def test_overflow_says_where_how_much_and_what_to_do():
    values = torch.tensor([[1.0, 2.0], [3.0, -70000.0], [90000.0, 0.0]])
    assert re.match(
        r"Row 'a', units of layer 3, vector 1: values up to 7e\+04, more than fp16 can hold; store",
        refused(values, "fp16"),
    )
    for storage in STORAGE.keys() - {"fp16"}:
        assert back(values, storage).isfinite().all()


def test_fp16_ends_where_its_rounding_does():
    assert back(torch.tensor([[65519.0]]), "fp16").item() == 65504
    assert "fp16" in refused(torch.tensor([[65520.0]]), "fp16")


def test_a_scaled_type_never_comes_back_infinite():
    largest = torch.tensor([[torch.finfo(torch.float32).max]])
    assert "int8" in refused(largest, "int8")  # a 127th of it, rounded to float32, times 127 is beyond float32
    assert back(largest.nextafter(torch.zeros(1)), "int8").isfinite().all()
    assert back(largest, "fp8").isfinite().all()


def test_float64_too_large_for_float32_is_refused():
    assert "NaN or infinite" in refused(torch.tensor([[1e300]], dtype=torch.float64), "fp32")


@pytest.mark.parametrize("storage", STORAGE)
def test_zero_vectors_and_no_vectors(storage):
    assert torch.equal(back(torch.zeros(2, 5), storage), torch.zeros(2, 5))
    assert back(torch.zeros(0, 5), storage).shape == (0, 5)


@pytest.mark.parametrize("storage", ["fp8", "int8"])
def test_vectors_below_the_smallest_scale_lose_precision_but_not_more(storage):
    values = torch.tensor([[1e-45, -3e-45, 2e-39], [1e-38, 0, 1e-44]])
    assert bool(((back(values, storage) - values).abs() <= 2.0**-126 / 2).all())


@pytest.mark.parametrize(
    ("dtype", "storage"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float16, "fp16")]
)
def test_the_models_own_type_changes_nothing(dtype, storage):
    values = torch.randn(20, 8).to(dtype)
    assert torch.equal(back(values, storage), values.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("storage", STORAGE)
def test_any_type_of_hidden_state_is_stored_as_its_float32_would_be(storage, dtype):
    values = torch.randn(20, 8).to(dtype)
    assert torch.equal(back(values, storage), back(values.float(), storage))


def test_what_comes_back_is_nobody_elses_memory():
    stored = torch.ones(2, 2)
    decode(stored, None).zero_()
    assert torch.equal(stored, torch.ones(2, 2))


def test_every_storage_has_a_torch_type():
    assert DTYPES.keys() == STORAGE.keys() == set(get_args(Storage))
