#!/usr/bin/env python3
"""ONNX Runtime and the onnx package as an oracle for the Rust tests, one question a process.

    oracle.py run MODEL --inputs in.npz --outputs out.npz [--no-optimize] [--threads N] [--all-values]
    oracle.py check MODEL
    oracle.py quantize MODEL OUT --inputs-dir DIR [--input-name X] [--method minmax|entropy|percentile]
              [--activation u8|s8] [--weight s8|u8] [--per-channel] [--format qdq|qoperator] [--limit N]
    oracle.py quantize-dynamic MODEL OUT [--weight s8|u8] [--per-channel]
    oracle.py debug-pairs FLOAT QDQ --inputs-dir DIR [--input-name X] [--limit N] [--errors]
    oracle.py same-proto A B
    oracle.py scales MODEL
    oracle.py time MODEL --inputs in.npz [--threads N] [--runs K]
    oracle.py wordsim MODEL --dir ASSETS

Each prints exactly one JSON document on stdout. The exit status is 2, with a message on stderr, when it cannot answer.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
FLOAT_NAMES = ("tensor(float)", "tensor(float16)", "tensor(double)")


class CannotAnswer(Exception):
    """Why there is no answer."""


# Running


def open_session(model, *, optimize=True, threads=1):
    """An InferenceSession over a path or over bytes. Spinning is off: it would disturb whatever is timed beside it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def load_npz(path):
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def save_npz(path, arrays):
    # Through an open file, because np.savez appends `.npz` to a path that lacks it.
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def with_every_float_output(model):
    """The model with each float intermediate of the main graph as an output, after the outputs it had.

    Where the type is not known (operators of other domains) the value is added too, and ONNX Runtime says what it is.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {info.name: info.type.tensor_type.elem_type for info in inferred.graph.value_info}
    have = {output.name for output in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in have and types.get(name, TensorProto.FLOAT) in FLOATS:
                # Without a type or shape: ONNX Runtime infers both, and warns where ours were less exact.
                model.graph.output.append(onnx.ValueInfoProto(name=name))
    return model


def command_run(args):
    source = args.model
    with tempfile.TemporaryDirectory() as folder:
        if args.all_values:
            # Saved to a file beside its data, because a model over 2 GiB cannot be given as bytes.
            source = os.path.join(folder, "model.onnx")
            model = onnx.load(args.model)
            original = {output.name for output in model.graph.output}
            with_every_float_output(model)
            onnx.save(model, source, save_as_external_data=model.ByteSize() > 2**30)
        session = open_session(source, optimize=not args.no_optimize, threads=args.threads)
        if not args.all_values:
            original = {value.name for value in session.get_outputs()}
    feeds = load_npz(args.inputs)
    unknown = sorted(set(feeds) - {value.name for value in session.get_inputs()})
    if unknown:
        raise CannotAnswer(f"the model has no input `{unknown[0]}`")
    names = [value.name for value in session.get_outputs() if value.name in original or value.type in FLOAT_NAMES]
    outputs = dict(zip(names, session.run(names, feeds), strict=True))
    save_npz(args.outputs, outputs)
    return {"outputs": {name: list(value.shape) for name, value in outputs.items()}}


def command_time(args):
    session = open_session(args.model, threads=args.threads)
    feeds = load_npz(args.inputs)
    for _ in range(3):
        session.run(None, feeds)
    milliseconds = []
    for _ in range(args.runs):
        start = time.perf_counter()
        session.run(None, feeds)
        milliseconds.append((time.perf_counter() - start) * 1e3)
    latency = {"median": statistics.median(milliseconds), "min": min(milliseconds)}
    return {"latency_ms": latency, "threads": args.threads, "runs": args.runs}


def command_check(args):
    # By path, so that external data is found and a model over 2 GiB can be checked.
    onnx.checker.check_model(args.model, full_check=True)
    session = open_session(args.model)
    return {
        "ok": True,
        "inputs": [value.name for value in session.get_inputs()],
        "outputs": [value.name for value in session.get_outputs()],
    }


def command_wordsim(args):
    import scoring

    return {"spearman": scoring.wordsim(open_session(args.model), args.dir)}


# Quantizing


class FolderReader:
    """The samples of a folder in the order of their names, with a leading batch axis of 1 on pictures."""

    def __init__(self, folder, input_name, limit):
        self.input_name = input_name
        self.paths = iter(sorted(p for p in folder.iterdir() if p.suffix in (".npy", ".npz"))[:limit])

    def get_next(self):
        path = next(self.paths, None)
        if path is None:
            return None
        return load_npz(path) if path.suffix == ".npz" else {self.input_name: np.load(path)[None]}

    def __iter__(self):
        return iter(self.get_next, None)


def only_input(path):
    names = [value.name for value in open_session(path).get_inputs()]
    if len(names) != 1:
        raise CannotAnswer(f"the model has {len(names)} inputs: say which with --input-name, or use .npz samples")
    return names[0]


def prepared(model, folder):
    """The model after quant_pre_process, in `folder`, because that also writes files beside what it is given."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = os.path.join(folder, "prepared.onnx")
    quant_pre_process(model, path)
    return path


def command_quantize(args):
    from onnxruntime import quantization as q

    methods = {
        "minmax": q.CalibrationMethod.MinMax,
        "entropy": q.CalibrationMethod.Entropy,
        "percentile": q.CalibrationMethod.Percentile,
    }
    types = {"u8": q.QuantType.QUInt8, "s8": q.QuantType.QInt8}
    formats = {"qdq": q.QuantFormat.QDQ, "qoperator": q.QuantFormat.QOperator}
    if not any(p.suffix in (".npy", ".npz") for p in args.inputs_dir.iterdir()):
        raise CannotAnswer(f"{args.inputs_dir} has no .npy or .npz file")
    arrays = any(p.suffix == ".npy" for p in args.inputs_dir.iterdir())
    name = args.input_name or (only_input(args.model) if arrays else None)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        q.quantize_static(
            prepared(args.model, folder),
            args.out,
            FolderReader(args.inputs_dir, name, args.limit),
            quant_format=formats[args.format],
            per_channel=args.per_channel,
            activation_type=types[args.activation],
            weight_type=types[args.weight],
            calibrate_method=methods[args.method],
        )
    return {"output": args.out, "seconds": time.perf_counter() - start}


def command_quantize_dynamic(args):
    from onnxruntime import quantization as q

    types = {"u8": q.QuantType.QUInt8, "s8": q.QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder:
        path = prepared(args.model, folder)
        q.quantize_dynamic(path, args.out, per_channel=args.per_channel, weight_type=types[args.weight])
    return {"output": args.out}


def command_debug_pairs(args):
    """The tensors that ONNX Runtime's own debugging module matches: weights, and activations after a run."""
    from onnxruntime.quantization import qdq_loss_debug as debug

    name = args.input_name or only_input(args.float)
    weights = debug.create_weight_matching(args.float, args.qdq)
    collected = []
    with tempfile.TemporaryDirectory() as folder:
        for i, model in enumerate((args.float, args.qdq)):
            path = os.path.join(folder, f"{i}.onnx")
            debug.modify_model_output_intermediate_tensors(model, path)
            collected.append(debug.collect_activations(path, FolderReader(args.inputs_dir, name, args.limit)))
    activations = debug.create_activation_matching(collected[1], collected[0])
    if args.errors:
        ratio = debug.compute_weight_error(weights)
        activation_errors = debug.compute_activation_error(activations)
        return {"weights": len(ratio), "activations": len(activation_errors)}

    def size(tensor):
        return float(np.abs(np.asarray(tensor, np.float64)).sum())

    return {
        # By the float tensor's size and the dequantized one's.
        "weight_sizes": {name: [size(found["float"]), size(found["dequantized"])] for name, found in weights.items()},
        "weights": sorted(weights),
        "activations": sorted(name for name, found in activations.items() if found.get("float") is not None),
    }


# Looking into files


def first_difference(a, b, path="model"):
    """Where two messages of one type first differ, in the order of their field numbers, or None."""
    for field in sorted(a.DESCRIPTOR.fields, key=lambda field: field.number):
        here, x, y = f"{path}.{field.name}", getattr(a, field.name), getattr(b, field.name)
        is_message = field.message_type is not None
        if field.is_repeated:
            if len(x) != len(y):
                return f"{here}: {len(x)} elements and {len(y)}"
            pairs = [(f"{here}[{i}]", p, q) for i, (p, q) in enumerate(zip(x, y, strict=True))]
        elif field.has_presence and a.HasField(field.name) != b.HasField(field.name):
            return f"{here}: present in only one"
        elif is_message and not a.HasField(field.name):
            pairs = []  # Absent in both. Its default would hold itself without end: a type can be a sequence of types.
        else:
            pairs = [(here, x, y)]
        for place, p, q in pairs:
            found = first_difference(p, q, place) if is_message else value_difference(p, q, place)
            if found:
                return found
    return None


def value_difference(p, q, place):
    # Bits of a float decide: NaN equals itself here, and -0.0 is not 0.0.
    same = np.float64(p).tobytes() == np.float64(q).tobytes() if isinstance(p, float) else p == q
    return None if same else f"{place}: {shorten(p)} and {shorten(q)}"


def shorten(value):
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def command_same_proto(args):
    a, b = onnx.load(args.a), onnx.load(args.b)
    difference = first_difference(a, b)
    return {"same": difference is None, "difference": difference}


def command_scales(args):
    model = onnx.load(args.model)
    found = {
        tensor.name: numpy_helper.to_array(tensor).tolist()
        for tensor in model.graph.initializer
        if tensor.name.endswith(("_scale", "_zero_point"))
    }
    return dict(sorted(found.items()))


# The command line


def parser():
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)

    def command(name, function, *positional):
        sub = commands.add_parser(name)
        sub.set_defaults(function=function)
        for argument in positional:
            sub.add_argument(argument)
        return sub

    run = command("run", command_run, "model")
    run.add_argument("--inputs", required=True)
    run.add_argument("--outputs", required=True)
    run.add_argument("--no-optimize", action="store_true")
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--all-values", action="store_true")

    command("check", command_check, "model")

    static = command("quantize", command_quantize, "model", "out")
    static.add_argument("--inputs-dir", type=Path, required=True)
    static.add_argument("--input-name")
    static.add_argument("--method", choices=("minmax", "entropy", "percentile"), default="minmax")
    static.add_argument("--activation", choices=("u8", "s8"), default="u8")
    static.add_argument("--weight", choices=("s8", "u8"), default="s8")
    static.add_argument("--per-channel", action="store_true")
    static.add_argument("--format", choices=("qdq", "qoperator"), default="qdq")
    static.add_argument("--limit", type=int)

    pairs = command("debug-pairs", command_debug_pairs, "float", "qdq")
    pairs.add_argument("--inputs-dir", type=Path, required=True)
    pairs.add_argument("--input-name")
    pairs.add_argument("--limit", type=int)
    pairs.add_argument("--errors", action="store_true")

    dynamic = command("quantize-dynamic", command_quantize_dynamic, "model", "out")
    dynamic.add_argument("--weight", choices=("s8", "u8"), default="s8")
    dynamic.add_argument("--per-channel", action="store_true")

    command("same-proto", command_same_proto, "a", "b")
    command("scales", command_scales, "model")

    timing = command("time", command_time, "model")
    timing.add_argument("--inputs", required=True)
    timing.add_argument("--threads", type=int, default=1)
    timing.add_argument("--runs", type=int, default=20)

    command("wordsim", command_wordsim, "model").add_argument("--dir", type=Path, required=True)
    return top


def main():
    args = parser().parse_args()
    try:
        # The libraries print progress; stdout is for the answer.
        with contextlib.redirect_stdout(sys.stderr):
            answer = args.function(args)
    except Exception as error:  # Whatever a library raises is a reason for not answering.
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
