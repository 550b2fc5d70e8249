#!/usr/bin/env python3
"""Latency of int8 models: midtread's engine against ONNX Runtime on the same file, and against the float model here.

    python bench/engine.py [--rounds N] [--repeat K] [--threads 1,2] [--only midtread|onnxruntime]

The models are quantized first, by midtread: the demo network and EfficientNet-Lite0 static (QDQ, uint8 activations, int8
weights per channel), MiniLM (128 tokens) static. Each round starts both programs once, in turn; each warms up and repeats
the inference. Reported: the median over the rounds of each round's median, and the least of all; ratios are ONNX Runtime's
time over the engine's, so that above 1 the engine is faster.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import MIDTREAD, ORACLE, ROOT, default_directory, interleaved, machine, measure, median, sides, table

# Made in a child, because this process must not import numpy (see common.py). Values do not change the time.
MAKE_INPUTS = """
import sys, numpy as np
picture, lite0, minilm, demo = sys.argv[1:]
np.savez(lite0, input=np.load(picture)[None])
rng = np.random.default_rng(0)
ids = rng.integers(1000, 30000, (1, 128))
np.savez(minilm, input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
np.savez(demo, input=rng.normal(size=(1, 1, 28, 28)).astype(np.float32))
"""


def command(side, model, inputs, threads, repeat, runtime="engine"):
    if side == "midtread":
        run = [MIDTREAD, "run", model, "--inputs", inputs, "--repeat", repeat, "--threads", threads, "--json"]
        return [*run, "--runtime", runtime]
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
    demo = ROOT / "assets" / "demo"
    images = [demo / "calibration-images-idx3-ubyte.gz", "--preprocess", "fashion_mnist", "--samples", "64"]
    with tempfile.TemporaryDirectory() as folder:
        feeds = {name: Path(folder) / f"{name}.npz" for name in ("efficientnet_lite0", "minilm", "demo")}
        subprocess.run([sys.executable, "-c", MAKE_INPUTS, pictures[0], *feeds.values()], check=True)
        models = [
            ("demo", demo / "fashion_mobilenet.onnx", images),
            ("efficientnet_lite0", args.dir / "efficientnet_lite0.onnx", [args.dir / "lite0_npy", "--samples", "32"]),
            ("minilm", args.dir / "minilm.onnx", [feeds["minilm"]]),
        ]
        for name, source, data in models:
            quantized = Path(folder) / f"{name}.int8.onnx"
            quantize = [MIDTREAD, "quantize", source, "--quiet", "-o", quantized, "--data", *data]
            subprocess.run(list(map(str, quantize)), check=True, stdout=subprocess.DEVNULL)
            for threads in map(int, args.threads.split(",")):
                runs = {side: [] for side in [*chosen, "float"]}
                for _, side in interleaved(args.rounds, list(runs)):
                    is_float = side == "float"
                    model, runtime = (source, "interpreter") if is_float else (quantized, "engine")
                    program = "midtread" if is_float else side
                    done = measure(command(program, model, feeds[name], threads, args.repeat, runtime))
                    runs[side].append(json.loads(done.stdout)["latency_ms"])
                rows.append(row(name, threads, runs))
    print(f"{machine()}; {args.rounds} rounds of {args.repeat}\n")
    header = ["model", "threads"]
    for side in [*chosen, "float here"]:
        header += [f"{side} median ms", f"{side} min ms"]
    ratios = ["ONNX Runtime / engine, medians", "minima"] if len(chosen) == 2 else []
    table([*header, *ratios, "float / int8 here, minima"] if "midtread" in chosen else header, rows)


def row(name, threads, runs):
    medians = {side: median([run["median"] for run in of]) for side, of in runs.items()}
    minima = {side: min(run["min"] for run in of) for side, of in runs.items()}
    cells = [name, str(threads)]
    for side in runs:
        cells += [f"{medians[side]:.2f}", f"{minima[side]:.2f}"]
    if "onnxruntime" in runs and "midtread" in runs:
        cells += [f"{of['onnxruntime'] / of['midtread']:.2f}" for of in (medians, minima)]
    if "midtread" in runs:
        cells += [f"{minima['float'] / minima['midtread']:.2f}"]
    return cells


if __name__ == "__main__":
    main()
