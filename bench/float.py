#!/usr/bin/env python3
"""Latency of float models: EfficientNet-Lite0 (one picture) and MiniLM (128 tokens), midtread against ONNX Runtime.

    python bench/float.py [--rounds N] [--repeat K] [--threads 1,2] [--only midtread|onnxruntime]

Each round starts both programs once, in turn; each warms up and repeats the inference. Reported: the median over the
rounds of each round's median, and the least of all, with midtread's as a multiple of ONNX Runtime's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import MIDTREAD, ORACLE, default_directory, interleaved, machine, measure, median, sides, table

# Made in a child, because this process must not import numpy (see common.py). Token values do not change the time.
MAKE_INPUTS = """
import sys, numpy as np
picture, lite0, minilm = sys.argv[1:]
np.savez(lite0, input=np.load(picture)[None])
ids = np.random.default_rng(0).integers(1000, 30000, (1, 128))
np.savez(minilm, input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
"""


def command(side, model, inputs, threads, repeat):
    if side == "midtread":
        return [MIDTREAD, "run", model, "--inputs", inputs, "--repeat", repeat, "--threads", threads, "--json"]
    return [*ORACLE, "time", model, "--inputs", inputs, "--threads", threads, "--runs", repeat]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--only", choices=("midtread", "onnxruntime"))
    parser.add_argument("--dir", type=Path, default=default_directory())
    args = parser.parse_args()
    chosen, rows = sides(args.only), []
    pictures = sorted((args.dir / "lite0_npy").glob("*.npy"))
    if not pictures:
        raise SystemExit(f"error: {args.dir} has no pictures: cargo xtask assets")
    with tempfile.TemporaryDirectory() as folder:
        inputs = {name: Path(folder) / f"{name}.npz" for name in ("efficientnet_lite0", "minilm")}
        subprocess.run([sys.executable, "-c", MAKE_INPUTS, pictures[0], *inputs.values()], check=True)
        for name, feed in inputs.items():
            for threads in map(int, args.threads.split(",")):
                runs = {side: [] for side in chosen}
                for _, side in interleaved(args.rounds, chosen):
                    done = measure(command(side, args.dir / f"{name}.onnx", feed, threads, args.repeat))
                    runs[side].append(json.loads(done.stdout)["latency_ms"])
                rows.append(row(name, threads, runs))
    print(f"{machine()}; {args.rounds} rounds of {args.repeat}\n")
    header = ["model", "threads"]
    for side in chosen:
        header += [f"{side} median ms", f"{side} min ms"]
    table(header + (["ratio of medians", "ratio of minima"] if len(chosen) == 2 else []), rows)


def row(name, threads, runs):
    medians = [median([run["median"] for run in side]) for side in runs.values()]
    minima = [min(run["min"] for run in side) for side in runs.values()]
    cells = [name, str(threads)]
    for pair in zip(medians, minima):
        cells += [f"{value:.2f}" for value in pair]
    if len(runs) == 2:
        # midtread's over ONNX Runtime's: below 1, midtread is faster.
        cells += [f"{medians[1] / medians[0]:.2f}", f"{minima[1] / minima[0]:.2f}"]
    return cells


if __name__ == "__main__":
    main()
