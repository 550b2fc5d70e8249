"""Reads a GGUF file with the `gguf` package: one JSON document of its keys and of the values of its tensors."""

import json
import sys

import gguf

reader = gguf.GGUFReader(sys.argv[1])
keys = {
    name: field.contents()
    for name, field in reader.fields.items()
    if not name.startswith("GGUF.")
}
tensors = {
    tensor.name: {
        "type": tensor.tensor_type.name,
        "shape": [int(n) for n in tensor.shape],
        "values": gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1).tolist(),
    }
    for tensor in reader.tensors
}
print(json.dumps({"keys": keys, "tensors": tensors}))
