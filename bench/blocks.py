#!/usr/bin/env python3
"""Weights in blocks (MatMulNBits, MatMulBnb4) side by side: midtread and onnxruntime.quantization on MiniLM.

    python bench/blocks.py [--midtread PATH] [--rounds N]

Both write models that ONNX Runtime's CPU provider runs on the same sentences. Reported: seconds and size, how many
products became blocks, how far the outputs are from the float model's (signal over noise, in decibels), and how many of
the packed weights are the same bytes in both files.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from common import MIDTREAD, default_directory, machine, table
from half import distance, minilm_inputs, run

THEIRS = """
import sys, onnx
from onnxruntime.quantization import matmul_bnb4_quantizer, matmul_nbits_quantizer
source, out, kind, bits, block, symmetric = sys.argv[1:]
model = onnx.load(source)
if kind == "nbits":
    q = matmul_nbits_quantizer.MatMulNBitsQuantizer(model, bits=int(bits), block_size=int(block), is_symmetric=symmetric == "1")
    q.process()
    onnx.save(q.model.model, out)
else:
    q = matmul_bnb4_quantizer.MatMulBnb4Quantizer(model, int(bits), int(block))
    q.process()
    onnx.save(q.model.model, out)
"""

# Ours, and what theirs is asked for: kind, bits (or quant_type), block, symmetric.
CASES = [
    ("i4, 32", ["--weights", "i4", "--granularity", "blocked:32"], ("nbits", "4", "32", "1")),
    ("u4, 32", ["--weights", "u4", "--granularity", "blocked:32"], ("nbits", "4", "32", "0")),
    ("u4, 32, mse", ["--weights", "u4", "--granularity", "blocked:32", "--scale-search", "mse"], None),
    ("u4, 32, hqq", ["--weights", "u4", "--granularity", "blocked:32", "--scale-search", "hqq"], None),
    ("i8, 128", ["--weights", "i8", "--granularity", "blocked:128"], ("nbits", "8", "128", "1")),
    ("nf4, 64", ["--weights", "nf4"], ("bnb4", "1", "64", "1")),
    ("fp4, 64", ["--weights", "fp4"], ("bnb4", "0", "64", "1")),
]


def packed(path):
    """The bytes of each packed weight, with the sizes that it has."""
    model = onnx.load(path)
    constants = {c.name: c for c in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type in ("MatMulNBits", "MatMulBnb4")]
    return [numpy_helper.to_array(constants[n.input[1]]).tobytes() for n in nodes]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--midtread", type=Path, default=MIDTREAD)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dir", type=Path, default=default_directory())
    args = parser.parse_args()
    source, feeds, rows = args.dir / "minilm.onnx", list(minilm_inputs(args.dir)), []
    want = run(str(source), feeds)
    with tempfile.TemporaryDirectory() as folder:
        for name, options, theirs in CASES:
            sides = {}
            # Tables stay in float on both sides: their quantizer leaves Gather alone unless it is told.
            ours = [args.midtread, "quantize", source, "--scheme", "weight_only", "--format", "qoperator", *options]
            commands = {"midtread": [*ours, "--exclude", "type:Gather", "--quiet", "-o"]}
            if theirs:
                commands["onnxruntime"] = [sys.executable, "-c", THEIRS, source]
            for who, command in commands.items():
                out = Path(folder) / f"{who}.onnx"
                full = [*command, out] + (list(theirs) if who == "onnxruntime" else [])
                seconds = []
                for _ in range(args.rounds):
                    start = time.perf_counter()
                    subprocess.run([str(word) for word in full], check=True, capture_output=True, env=os.environ)
                    seconds.append(time.perf_counter() - start)
                sides[who] = (min(seconds), out.stat().st_size, packed(out), distance(want, run(str(out), feeds))[0])
            for who, (seconds, size, weights, db) in sides.items():
                same = ""
                if len(sides) == 2 and who == "midtread":
                    same = f"{sum(a == b for a, b in zip(weights, sides['onnxruntime'][2]))} of {len(weights)}"
                rows.append([name, who, f"{seconds:.2f} s", f"{size / 1e6:.2f} MB", str(len(weights)), f"{db:.1f} dB", same])
    print(f"{machine()}; onnxruntime {onnxruntime.__version__}\n")
    table(["weights", "quantizer", "time", "size", "products", "SQNR of outputs", "same bytes"], rows)


if __name__ == "__main__":
    main()
