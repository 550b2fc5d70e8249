"""The Python side of python.rs: collects models, and compares what midtread made of them.

    round_trip.py collect DIR [FOLDER...]     writes every model that `onnx` has or makes, and those under FOLDERs
    round_trip.py compare BEFORE AFTER        says what differs; exit status 1 if anything does

Two files are the same if their messages are, after: data of tensors is compared as the array that `onnx` reads from
them (midtread writes all of it as raw_data), and strings that are there but empty count as absent.
"""

import pathlib
import sys

import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

DATA_FIELDS = [
    "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "raw_data", "external_data",
    "data_location",
]


def collect(out, folders):
    out = pathlib.Path(out)
    wheel = pathlib.Path(onnx.__file__).parent
    for root in [wheel, *map(pathlib.Path, folders)]:
        for path in sorted(root.rglob("*.onnx")):
            name = "_".join(path.relative_to(root).with_suffix("").parts)
            if path.is_file() and not path.name.startswith("."):
                (out / f"{root.name}-{name}.onnx").write_bytes(path.read_bytes())
    from onnx.backend.test.case import model, node

    for case in [*node.collect_testcases(), *model.collect_testcases()]:
        if case.model is not None:
            (out / f"node-{case.name}.onnx").write_bytes(case.model.SerializeToString())


def normalize(message, base):
    """Replaces tensors' data by what it means and drops empty strings, in place."""
    if isinstance(message, onnx.TensorProto):
        array = None
        if message.data_type != onnx.TensorProto.STRING:
            array = numpy_helper.to_array(message, base)
        for field in DATA_FIELDS:
            message.ClearField(field)
        if array is not None:
            message.raw_data = f"{array.dtype}{array.shape}".encode() + array.tobytes()
    if isinstance(message, onnx.ModelProto) and message.model_version == 0:
        message.ClearField("model_version")
    # Paddle's exporter writes -1 for a size that is not known, for which ONNX has the absence of one.
    if isinstance(message, onnx.TensorShapeProto.Dimension) and message.dim_value < 0:
        message.ClearField("dim_value")
    for field, value in list(message.ListFields()):
        if field.type == field.TYPE_MESSAGE:
            if isinstance(message, onnx.GraphProto) and field.name == "sparse_initializer":
                continue
            for item in value if field.is_repeated else [value]:
                normalize(item, base)
        elif field.type == field.TYPE_STRING and not field.is_repeated and value == "":
            message.ClearField(field.name)


def compare(before, after):
    n = n_same_bytes = n_raw = n_raw_same = n_checked = 0
    failures = []
    for path in sorted(pathlib.Path(before).glob("*.onnx")):
        n += 1
        other = pathlib.Path(after) / path.name
        if not other.exists():
            failures.append(f"{path.name}: was not written")
            continue
        a_bytes, b_bytes = path.read_bytes(), other.read_bytes()
        a, b = onnx.ModelProto.FromString(a_bytes), onnx.ModelProto.FromString(b_bytes)
        n_same_bytes += a_bytes == b_bytes
        is_raw = not any(t.HasField("raw_data") is False for t in tensors(a))
        n_raw += is_raw
        n_raw_same += is_raw and a_bytes == b_bytes
        if is_raw and a_bytes != b_bytes and "--verbose" in sys.argv:
            print("not the same bytes:", path.name)
        normalize(a, before)
        normalize(b, after)
        if a != b:
            failures.append(f"{path.name}: differs")
            continue
        try:
            onnx.checker.check_model(str(path))
        except (onnx.checker.ValidationError, DecodeError):
            continue
        n_checked += 1
        try:
            onnx.checker.check_model(str(other))
        except onnx.checker.ValidationError as e:
            failures.append(f"{path.name}: the checker accepted it before, and now: {e}")
    print(
        f"{n} models, {n - len(failures)} the same, {n_checked} pass the checker; "
        f"{n_same_bytes} the same byte for byte, of {n_raw} with raw_data only {n_raw_same}"
    )
    for failure in failures:
        print(failure)
    return bool(failures)


def tensors(message):
    if isinstance(message, onnx.TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                yield from tensors(item)


if __name__ == "__main__":
    if sys.argv[1] == "collect":
        collect(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(compare(sys.argv[2], sys.argv[3]))
