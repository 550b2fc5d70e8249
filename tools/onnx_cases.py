"""Writes the cases that the `onnx` package generates (`collect_testcases`) as files, one folder a case:

    <out>/test_abs/model.onnx
    <out>/test_abs/test_data_set_0/input_0.pb, output_0.pb
    <out>/test_abs/tolerance.txt              relative and absolute, as the package's own runner allows

Together with the folders of cases that the package has as files (`simple`, `pytorch-operator`, `pytorch-converted`).
"""

import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def serialized(value, value_info):
    """A value of a case as the protobuf message that its type calls for."""
    if isinstance(value, (onnx.TensorProto, onnx.SequenceProto, onnx.OptionalProto)):
        return value.SerializeToString()
    kind = value_info.type.WhichOneof("value")
    if kind == "optional_type":
        element = value_info.type.optional_type.elem_type.WhichOneof("value")
        optional = onnx.OptionalProto(name=value_info.name)
        if value is None:
            optional.elem_type = onnx.OptionalProto.UNDEFINED
        elif element == "sequence_type":
            optional.elem_type = onnx.OptionalProto.SEQUENCE
            optional.sequence_value.CopyFrom(numpy_helper.from_list(value))
        else:
            optional.elem_type = onnx.OptionalProto.TENSOR
            optional.tensor_value.CopyFrom(numpy_helper.from_array(np.asarray(value)))
        return optional.SerializeToString()
    if kind == "sequence_type":
        return numpy_helper.from_list(value, value_info.name).SerializeToString()
    return numpy_helper.from_array(np.asarray(value), value_info.name).SerializeToString()


def write_case(case, folder):
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(case.model.SerializeToString(deterministic=True))
    (folder / "tolerance.txt").write_text(f"{case.rtol} {case.atol}\n")
    graph = case.model.graph
    for i, (inputs, outputs) in enumerate(case.data_sets or ()):
        data = folder / f"test_data_set_{i}"
        data.mkdir()
        for kind, values, infos in (("input", inputs, graph.input), ("output", outputs, graph.output)):
            for j, (value, info) in enumerate(zip(values, infos, strict=False)):
                (data / f"{kind}_{j}.pb").write_bytes(serialized(value, info))


def write_cases(out):
    """All cases, sorted by name; returns how many were generated."""
    from onnx.backend.test.case.model import collect_testcases as model_cases
    from onnx.backend.test.case.node import collect_testcases as node_cases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = [*node_cases(None), *model_cases()]
    cases = [case for case in cases if case.model is not None and case.data_sets is not None]
    for case in cases:
        write_case(case, out / case.name)
    packaged = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for kind in ("simple", "pytorch-operator", "pytorch-converted"):
        for folder in sorted((packaged / kind).iterdir()):
            if (folder / "model.onnx").exists() and not (out / folder.name).exists():
                shutil.copytree(folder, out / folder.name)
    return len(cases)
