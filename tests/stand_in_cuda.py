"""A stand-in for a GPU on machines that have none: tensors that say cuda:0, whose values lie on the CPU.

    with StandInCuda() as cuda:
        units = geometry.pool(hidden.to("cuda:0"), weights.to("cuda:0"), spans)
    assert cuda.places() == set()      # where Python had to wait for the device

Like CUDA it refuses operands that lie on different devices, save numbers (tensors without dimensions) beside tensors, and
indices on the CPU. It notes what makes Python wait: values that come to the CPU, and shapes that depend on values.
Forward only, since autograd's engine has no thread for the device; and the kernels are the CPU's, so nothing is said of
CUDA's own rounding, nor of which types its kernels know.
"""

import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.__future__ import get_overwrite_module_params_on_conversion, set_overwrite_module_params_on_conversion
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda:0")
ROOT = Path(__file__).resolve().parents[1]
OURS = tuple(str(ROOT / package) for package in ("schemas", "pipeline", "trainer"))

aten = torch.ops.aten
#: What may be given tensors of two devices.
CROSSING = {aten.copy_.default, aten._to_copy.default}
#: Results whose shape, or value, Python has to know.
KNOWN_TO_PYTHON = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
}
#: Methods that give Python a tensor's values.
READING = {getattr(torch.Tensor, name) for name in ("tolist", "__bool__", "__int__", "__float__", "__index__")}
#: Methods that would look for the device themselves: the operations behind them.
REROUTED = {
    torch.Tensor.__invert__: aten.bitwise_not.default,
    torch.Tensor.contiguous: aten.contiguous.default,
    torch.Tensor.nonzero: aten.nonzero.default,
}
#: Methods that make a tensor where another one is.
BESIDE = {getattr(torch.Tensor, f"new_{kind}") for kind in ("zeros", "ones", "empty", "full", "tensor")}


class OnDevice(torch.Tensor):
    """A tensor that says cuda:0."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        tensor.values = values
        return tensor

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return _call(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})

    def __repr__(self, **_):
        return f"OnDevice({self.values!r})"


class _Operations(TorchDispatchMode):
    """Also those that functions of several operations make with no tensor at hand."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class StandInCuda(TorchFunctionMode):
    """While it lasts, `device="cuda"` and `.to("cuda:0")` give tensors of the stand-in."""

    _active: "StandInCuda | None" = None

    def __init__(self):
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()  # (file:Class.function, operation)

    def __enter__(self):
        self._within = ExitStack()
        self._within.enter_context(torch.no_grad())  # a graph of such tensors ends the process
        self._within.enter_context(_Operations())
        # modules that move get new parameters, where else old ones would get new insides
        self._within.callback(set_overwrite_module_params_on_conversion, get_overwrite_module_params_on_conversion())
        set_overwrite_module_params_on_conversion(True)
        type(self)._active = self
        return super().__enter__()

    def __exit__(self, *error):
        type(self)._active = None
        self._within.close()
        return super().__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return _call(function, args, kwargs or {})

    def places(self):
        """file:Class.function of every wait."""
        return {place for place, _ in self.waits}

    def values(self, tensor):
        """Of a tensor that must lie on the device, on the CPU."""
        assert isinstance(tensor, OnDevice), "a result was left on the CPU"
        return tensor.values

    @staticmethod
    def tolerance(exactly):
        """How close the CPU's values are: `exactly` the same, or as sums in another order."""
        return {"rtol": 0, "atol": 0} if exactly else {}


def _call(function, args, kwargs):
    """What a build without CUDA refuses to do for the device, before any operation is reached."""
    if function is torch.Tensor.to and _is_cuda(_target(args, kwargs)[0]):
        return _moved(args[0], **_target(args, kwargs)[1])
    if function is torch.Tensor.cuda:
        return _moved(args[0])
    if function is torch.Tensor.__getitem__:
        return _item(*args)
    if function is torch.Tensor.__setitem__:
        return _set_item(*args)
    if function in REROUTED and isinstance(args[0], OnDevice):
        return REROUTED[function](*args, **kwargs)
    if function in READING and isinstance(args[0], OnDevice):
        _note(function.__name__)
        return function(args[0].values)
    beside = function in BESIDE and isinstance(args[0], OnDevice)
    if _is_cuda(kwargs.get("device", DEVICE if beside else None)):
        kwargs = tree_map(_plain, kwargs) | {"device": "cpu"}
        return OnDevice(function(*tree_map(_plain, args), **kwargs))
    return function(*args, **kwargs)


def _run(operation, args, kwargs):
    """An operation, which may be given tensors of the device, or the device."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = _is_cuda(kwargs.get("device"))
    if not there and not any(isinstance(tensor, OnDevice) for tensor in tensors):
        return operation(*args, **kwargs)
    if torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd"):
        return operation.decompose(*args, **kwargs)  # in inference mode torch leaves it to us
    if operation is aten._fused_sdp_choice.default:
        return 0  # attention by products and a softmax: the other kernels are each of one device
    if operation not in CROSSING:
        _refuse_mixed(operation, tensors)
    home = operation is aten._to_copy.default and kwargs.get("device") is not None and not there
    home |= operation is aten.copy_.default and not isinstance(args[0], OnDevice)
    sized = operation is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
    if home or sized or operation in KNOWN_TO_PYTHON:
        _note(operation)
    if there:
        kwargs = kwargs | {"device": torch.device("cpu")}
    values = operation(*tree_map(_plain, args), **tree_map(_plain, kwargs))
    if operation._schema.is_mutable:
        return args[0]
    if home:
        return values.clone()  # a memory of its own
    return tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, torch.Tensor) else leaf, values)


def _item(tensor, index):
    """tensor[index]; an index may be on the CPU."""
    indices = [leaf for leaf in tree_leaves(index) if isinstance(leaf, torch.Tensor)]
    on_device = [leaf for leaf in indices if isinstance(leaf, OnDevice)]
    if not isinstance(tensor, OnDevice):
        _refuse_mixed("an index", [tensor, *on_device] if on_device else [])
        return tensor[index]
    if any(leaf.dtype == torch.bool or not leaf.ndim for leaf in on_device):
        _note("index")
    return OnDevice(tensor.values[tree_map(_plain, index)])


def _set_item(tensor, index, value):
    """tensor[index] = value; what is assigned to a slice may come from another device."""
    indices = [leaf for leaf in tree_leaves(index) if isinstance(leaf, torch.Tensor)]
    on_device = [leaf for leaf in indices if isinstance(leaf, OnDevice)]
    if on_device or (indices and isinstance(value, torch.Tensor)):
        _refuse_mixed("index_put_", [tensor, *on_device, *([value] if isinstance(value, torch.Tensor) else [])])
    if isinstance(value, OnDevice) and not isinstance(tensor, OnDevice):
        _note("copy_")
    if any(leaf.dtype == torch.bool for leaf in on_device):
        _note("index_put_")
    _plain(tensor)[tree_map(_plain, index)] = _plain(value)


def _refuse_mixed(operation, tensors):
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim]
    if elsewhere and any(isinstance(tensor, OnDevice) for tensor in tensors):
        shape = tuple(elsewhere[0].shape)
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {operation} got some on {DEVICE} and one of {shape} on cpu"
        )


def _target(args, kwargs):
    """The device that `Tensor.to` was given, and its other arguments by name."""
    tensor, *others = args
    if others and isinstance(others[0], torch.Tensor):
        return others[0].device, {"dtype": others[0].dtype}
    others_by_name = {name: value for name, value in kwargs.items() if name != "copy"}
    device, dtype, _, _ = torch._C._nn._parse_to(*others, **others_by_name)
    return device, {"dtype": dtype or tensor.dtype, "copy": kwargs.get("copy", False)}


def _moved(tensor, **changes):
    """On the device, in a memory of its own if it was elsewhere; itself where nothing changes."""
    values = _plain(tensor).to(**changes) if changes else _plain(tensor)
    if isinstance(tensor, OnDevice):
        return tensor if values is tensor.values else OnDevice(values)
    return OnDevice(values.detach().clone())


def _is_cuda(device):
    return device is not None and torch.device(device).type == "cuda"


def _plain(value):
    return value.values if isinstance(value, OnDevice) else value


def _note(operation):
    if StandInCuda._active is not None:
        StandInCuda._active.waits[place_in_our_code(), str(operation)] += 1


def place_in_our_code():
    """file:Class.function of ours that is in work now, the innermost one; `elsewhere` if none is."""
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    if frame is None:
        return "elsewhere"
    name = frame.f_code.co_qualname.partition(".<locals>")[0]
    return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{name}"
