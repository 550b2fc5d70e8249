#!/usr/bin/env python3
"""Comparing EfficientNet-Lite0 with its int8 model: `midtread compare` against onnxruntime's qdq_loss_debug, as whole processes.

    python bench/compare.py [--rounds N] [--samples 64,256] [--only midtread|onnxruntime] [--limit-gib G]

Both take the float model, the same QDQ model (written by midtread before the clock starts) and the same .npy files. ONNX
Runtime's side does what its documentation says: match weights, add every intermediate tensor as an output of both models,
collect activations, match them, compute the errors of both. Reported: wall and CPU seconds (medians of the rounds) and peak
resident memory (largest of the rounds), with the ratios. A side that needs more than --limit-gib of address space (default:
four fifths of what is available) has `>G GiB` in its cells.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

from common import MIDTREAD, ORACLE, OutOfMemory, available_gib, default_directory, interleaved, machine, measure, sides, table
from quantize import row, sample_folder


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", default="64,256")
    parser.add_argument("--only", choices=("midtread", "onnxruntime"))
    parser.add_argument("--dir", type=Path, default=default_directory())
    parser.add_argument("--limit-gib", type=float, default=0.8 * available_gib())
    args = parser.parse_args()
    chosen, model = sides(args.only), args.dir / "efficientnet_lite0.onnx"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        quantized = folder / "int8.onnx"
        data = ["--data", str(args.dir / "lite0_npy"), "--samples", "32"]
        subprocess.run([MIDTREAD, "quantize", model, *data, "-o", quantized, "--quiet"], check=True, stdout=subprocess.DEVNULL)
        for count in map(int, args.samples.split(",")):
            data = sample_folder(args.dir / "lite0_npy", folder / f"samples-{count}", count)
            commands = {
                "midtread": [MIDTREAD, "compare", model, quantized, "--data", data, "--json", "--quiet"],
                "onnxruntime": [*ORACLE, "debug-pairs", model, quantized, "--inputs-dir", data, "--errors"],
            }
            runs, too_large = {side: [] for side in chosen}, set()
            for _, side in interleaved(args.rounds, chosen):
                if side in too_large:
                    continue
                try:
                    runs[side].append(measure(commands[side], args.limit_gib))
                except OutOfMemory:
                    too_large.add(side)
            rows.append(row("compare", count, runs, too_large, args.limit_gib)[1:])
    print(f"{machine()}; {args.rounds} rounds\n")
    header = ["samples", *(f"{side} {unit}" for unit in ("s", "CPU s", "MiB") for side in chosen)]
    # How many times midtread's time and memory ONNX Runtime takes.
    table(header + (["time ratio", "CPU ratio", "memory ratio"] if len(chosen) == 2 else []), rows)


if __name__ == "__main__":
    main()
