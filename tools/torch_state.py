"""Reads the tensors of a PyTorch state dict without PyTorch.

Only the format that `torch.save` wrote before version 1.6 is read, which is what the pinned checkpoint is in: a row of pickles
(magic number, protocol, system, the state dict, the storage keys), then each storage as a count and its raw elements.
"""

import collections
import io
import pickle
import struct

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {"FloatStorage": np.float32, "LongStorage": np.int64}


class TensorRef:
    """Where in which storage a tensor lies; its numbers come later in the file."""

    def __init__(self, storage, offset, shape, strides):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


class StateUnpickler(pickle.Unpickler):
    """Resolves the few names a state dict needs and refuses every other: a pickle can call anything it names."""

    def find_class(self, module, name):
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: TensorRef(storage, offset, shape, strides)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"a state dict does not need {module}.{name}")

    def persistent_load(self, pid):
        kind, dtype, key = pid[:3]
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown persistent object {kind}")
        return key, np.dtype(dtype)


def load(path):
    """The state dict in the file at `path`, as {name: array}."""
    with open(path, "rb") as file:
        stream = io.BytesIO(file.read())
    if StateUnpickler(stream).load() != MAGIC:
        raise ValueError(f"{path} is not a state dict in the format before PyTorch 1.6")
    StateUnpickler(stream).load()  # the protocol version
    StateUnpickler(stream).load()  # sizes and byte order of the system that wrote it
    refs = StateUnpickler(stream).load()
    dtypes = dict(ref.storage for ref in refs.values())
    storages = {}
    for key in StateUnpickler(stream).load():
        (count,) = struct.unpack("<q", stream.read(8))
        dtype = dtypes[key]
        storages[key] = np.frombuffer(stream.read(count * dtype.itemsize), dtype)
    return {name: materialize(ref, storages) for name, ref in refs.items()}


def materialize(ref, storages):
    """A copy of the tensor that `ref` points at."""
    storage = storages[ref.storage[0]]
    strides = [stride * storage.itemsize for stride in ref.strides]
    return np.lib.stride_tricks.as_strided(storage[ref.offset :], ref.shape, strides).copy()
