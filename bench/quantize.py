#!/usr/bin/env python3
"""Quantizing EfficientNet-Lite0: midtread against ONNX Runtime's quant_pre_process and quantize_static, as whole processes.

    python bench/quantize.py [--rounds N] [--samples 64,512] [--calibrators min_max,entropy,percentile]
                             [--only midtread|onnxruntime] [--limit-gib G]

Both start from the float model and the same .npy files and write a QDQ model, uint8 activations and int8 weights per
channel. Reported: wall and CPU seconds (medians of the rounds; on a busy machine trust the CPU seconds) and peak resident
memory (largest of the rounds), with the ratios. A side that needs more than --limit-gib of address space (default: four
fifths of what is available) has `>G GiB` in its cells.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from common import (
    MIDTREAD,
    ORACLE,
    OutOfMemory,
    available_gib,
    default_directory,
    interleaved,
    machine,
    measure,
    median,
    sides,
    table,
)

METHODS = {"min_max": "minmax", "entropy": "entropy", "percentile": "percentile"}


def sample_folder(source, folder, count):
    """`count` samples: the 149 pictures over again as often as needed. Time and memory do not depend on what they show."""
    pictures = sorted(source.glob("*.npy"))
    if not pictures:
        raise SystemExit(f"error: {source} has no pictures: cargo xtask assets")
    folder.mkdir()
    for i in range(count):
        # Copies where links cannot be made (another file system), because both readers open what they find.
        target, picture = folder / f"{i:04}.npy", pictures[i % len(pictures)]
        try:
            os.link(picture, target)
        except OSError:
            shutil.copyfile(picture, target)
    return folder


def command(side, model, data, output, calibrator):
    if side == "midtread":
        return [MIDTREAD, "quantize", model, "--data", data, "-o", output, "--calibrator", calibrator]
    method = ["--method", METHODS[calibrator], "--activation", "u8", "--weight", "s8", "--per-channel"]
    return [*ORACLE, "quantize", model, output, "--inputs-dir", data, *method]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", default="64,512")
    parser.add_argument("--calibrators", default="min_max,entropy,percentile")
    parser.add_argument("--only", choices=("midtread", "onnxruntime"))
    parser.add_argument("--dir", type=Path, default=default_directory())
    parser.add_argument("--limit-gib", type=float, default=0.8 * available_gib())
    args = parser.parse_args()
    chosen, model = sides(args.only), args.dir / "efficientnet_lite0.onnx"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for count in map(int, args.samples.split(",")):
            data = sample_folder(args.dir / "lite0_npy", folder / f"samples-{count}", count)
            for calibrator in args.calibrators.split(","):
                runs = {side: [] for side in chosen}
                too_large = set()
                for _, side in interleaved(args.rounds, chosen):
                    if side in too_large:
                        continue
                    output = folder / f"{side}.onnx"
                    output.unlink(missing_ok=True)
                    try:
                        one = measure(command(side, model, data, output, calibrator), args.limit_gib)
                        runs[side].append(one)
                    except OutOfMemory:
                        too_large.add(side)
                rows.append(row(calibrator, count, runs, too_large, args.limit_gib))
    print(f"{machine()}; {args.rounds} rounds\n")
    header = ["calibrator", "samples", *(f"{side} {unit}" for unit in ("s", "CPU s", "MiB") for side in chosen)]
    # How many times midtread's time and memory ONNX Runtime takes.
    table(header + (["time ratio", "CPU ratio", "memory ratio"] if len(chosen) == 2 else []), rows)


def row(calibrator, count, runs, too_large, limit_gib):
    complete = [side for side in runs if side not in too_large]
    figures = [
        ({side: median([run.seconds for run in runs[side]]) for side in complete}, ".2f"),
        ({side: median([run.cpu_seconds for run in runs[side]]) for side in complete}, ".2f"),
        ({side: max(run.peak_mib for run in runs[side]) for side in complete}, ".0f"),
    ]
    cells = [calibrator, str(count)]
    for of, form in figures:
        cells += [format(of[side], form) if side in of else f">{limit_gib:.0f} GiB" for side in runs]
    if len(runs) == 2:
        both = len(complete) == 2
        cells += [f"{of['onnxruntime'] / of['midtread']:.1f}" if both else "-" for of, _ in figures]
    return cells


if __name__ == "__main__":
    main()
