#!/usr/bin/env python3
"""Sizes that shape inference leaves open, side by side: `midtread prepare --only infer_shapes` and ONNX Runtime's symbolic_shape_infer
followed by onnx.shape_inference.

    cargo xtask assets
    cargo build --release -p midtread-cli
    target/venv/bin/python bench/shapes.py [MODEL ..]

Without models: the real topologies in the `onnx` package, the models among the assets, and the ONNX project's own cases in which
shapes are computed, all with what the file says of inner values removed. Counted are the outputs of the graph's nodes: those without a
rank, and the dimensions that are neither a number nor an expression over the inputs' sizes.
"""

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from common import MIDTREAD, default_directory, table

import onnx


NAME = re.compile(r"[A-Za-z_][\w.:/]*")
FUNCTIONS = {"floor", "ceiling", "Max", "Min", "Mod", "Abs"}


def input_sizes(model):
    """The names that the inputs' sizes have, and those that either side gives to the others."""
    names = set()
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            names.add(dim.dim_param or f"{value.name}:{axis}")
            names.add(f"{value.name}_dim_{axis}")
    return sorted(names, key=len, reverse=True)


def unknowns(model):
    """Values without a rank, open dimensions, and all values, over the outputs of the graph's nodes. A dimension is open if it is
    neither a number nor an expression over the inputs' sizes alone: a new name says nothing."""
    graph = model.graph
    known = {value.name: value.type for value in [*graph.value_info, *graph.output, *graph.input]}
    sizes = input_sizes(model)

    def is_open(dim):
        text = dim.dim_param
        for name in sizes:
            text = text.replace(name, "1")
        return not dim.HasField("dim_value") and (not text or not set(NAME.findall(text)) <= FUNCTIONS)

    ranks = dims = values = 0
    for node in graph.node:
        for name in filter(None, node.output):
            values += 1
            ty = known.get(name)
            if ty is None or ty.WhichOneof("value") in (None, "tensor_type"):
                if ty is None or not ty.tensor_type.HasField("shape"):
                    ranks += 1
                else:
                    dims += sum(map(is_open, ty.tensor_type.shape.dim))
    return ranks, dims, values


def ours(path, folder):
    out = folder / "ours.onnx"
    subprocess.run([MIDTREAD, "prepare", path, "--only", "infer_shapes", "--opset", "1", "-o", out], check=True, capture_output=True)
    return unknowns(onnx.load(out, load_external_data=False))


def theirs(path):
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    model = onnx.load(path, load_external_data=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            model = SymbolicShapeInference.infer_shapes(onnx.load(path), auto_merge=True)
        note = ""
    except Exception as error:  # noqa: BLE001 - whatever it raises, the row says so
        note = f"symbolic: {type(error).__name__}"
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # noqa: BLE001
        note = f"{note} onnx: {type(error).__name__}".strip()
    return unknowns(model), note


def stripped(path, folder):
    """The model without what it says of inner values and of outputs' sizes: both sides start from the inputs."""
    model = onnx.load(path, load_external_data=False)
    del model.graph.value_info[:]
    for output in model.graph.output:
        if output.type.WhichOneof("value") == "tensor_type":
            output.type.tensor_type.ClearField("shape")
    out = folder / "model.onnx"
    onnx.save(model, out)
    return out


def default_models():
    packaged = Path(onnx.__file__).parent / "backend/test/data"
    found = [*packaged.glob("light/*.onnx"), *packaged.glob("real/*/*.onnx")]
    assets = default_directory()
    found += [path for path in sorted(assets.glob("**/*.onnx")) if "node_tests" not in str(path) and "generated_tests" not in str(path)]
    cases = ("shape", "loop", "if", "scan", "range", "expand", "sequence", "_expanded")
    for path in sorted(assets.glob("onnx_generated_tests/*/model.onnx")):
        if any(case in path.parent.name for case in cases):
            found.append(path)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--all", action="store_true", help="list the models of which both sides know the same, too")
    args = parser.parse_args()
    rows, sums, worse = [], [0] * 5, []
    home = Path.cwd()
    for path in [path.resolve() for path in args.models] or default_models():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            # The peer leaves a file in the current folder where it fails.
            os.chdir(folder)
            try:
                model = stripped(path, folder)
                mine = ours(model, folder)
            except subprocess.CalledProcessError as error:
                print(f"{path}: {error.stderr.decode().strip()[:300]}", file=sys.stderr)
                os.chdir(home)
                continue
            other, note = theirs(model)
            os.chdir(home)
        name = path.stem if path.stem != "model" else path.parent.name
        sums = [a + b for a, b in zip(sums, (mine[2], *mine[:2], *other[:2]))]
        if mine[0] > other[0] or mine[0] == other[0] and mine[1] > other[1]:
            worse.append(name)
        if args.all or mine[:2] != other[:2] or len(args.models):
            rows.append([name, str(mine[2]), *map(str, mine[:2]), *map(str, other[:2]), note])
    rows.append(["all", *map(str, sums), ""])
    header = ["model", "values", "midtread: no rank", "open dims", "peer: no rank", "open dims", "note"]
    table(header, rows)
    if worse:
        sys.exit(f"{len(worse)} where the peer knows more: {', '.join(worse)}")


if __name__ == "__main__":
    main()
