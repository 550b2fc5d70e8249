#!/usr/bin/env python3
"""Latency of int8 models: midtread's engine against ONNX Runtime on the same file, and against the float model here.

    python bench/engine.py [--rounds N] [--repeat K] [--threads 1,2] [--only midtread|onnxruntime] [--models resnet50,bert]

The models are quantized first, by midtread: uint8 activations and int8 weights per channel, as QDQ, or dynamically. ResNet-50,
a MobileNetV2 and a BERT-like encoder have random weights (bench/models.py); the others are real. Each round starts the programs
once, in turn; each warms up and repeats the inference. Reported: the median over the rounds of each round's median, and the
least of all; ratios are ONNX Runtime's time over the engine's, so that above 1 the engine is faster. The share of the peak is
the convolutions' and products' multiplications in the engine's least time, over what the CPU's int8 instructions can do at best
on as many cores (`midtread inspect --cpu --json` measures it).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import MIDTREAD, ORACLE, ROOT, default_directory, interleaved, machine, measure, median, sides, table

# Made in children, because this process must not import numpy (see common.py). Values do not change the time.
MAKE_INPUTS = """
import sys, numpy as np
picture, folder = sys.argv[1:]
np.savez(f"{folder}/efficientnet_lite0.npz", input=np.load(picture)[None])
rng = np.random.default_rng(0)
ids = rng.integers(1000, 30000, (1, 128))
np.savez(f"{folder}/minilm.npz", input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
np.savez(f"{folder}/demo.npz", input=rng.normal(size=(1, 1, 28, 28)).astype(np.float32))
"""
RANDOM = ("resnet50", "mobilenet_v2", "bert")


def command(side, model, inputs, threads, repeat, runtime="engine"):
    if side == "midtread":
        run = [MIDTREAD, "run", model, "--inputs", inputs, "--repeat", repeat, "--threads", threads, "--json"]
        return [*run, "--runtime", runtime]
    return [*ORACLE, "time", model, "--inputs", inputs, "--threads", threads, "--runs", repeat]


def quantized_models(folder, assets, names):
    """(name, float model, int8 model, inputs) of those asked for."""
    demo = ROOT / "assets" / "demo"
    images = [demo / "calibration-images-idx3-ubyte.gz", "--preprocess", "fashion_mnist", "--samples", "64"]
    minilm = assets / "minilm.onnx"
    models = {name: (folder / f"{name}.onnx", ["--data", folder / f"{name}.npz"], name) for name in RANDOM}
    models["efficientnet_lite0"] = (
        assets / "efficientnet_lite0.onnx",
        ["--data", assets / "lite0_npy", "--samples", "32"],
        "efficientnet_lite0",
    )
    models["minilm"] = (minilm, ["--data", folder / "minilm.npz"], "minilm")
    models["minilm dynamic"] = (minilm, ["--scheme", "dynamic"], "minilm")
    models["demo"] = (demo / "fashion_mobilenet.onnx", ["--data", *images], "demo")
    unknown = [name for name in names or [] if name not in models]
    if unknown:
        raise SystemExit(f"error: no model `{unknown[0]}`: {', '.join(models)}")
    random = [name for name in RANDOM if not names or name in names]
    if random:
        subprocess.run([sys.executable, str(ROOT / "bench" / "models.py"), str(folder), *random], check=True)
    for name, (source, options, inputs) in models.items():
        if names and name not in names:
            continue
        quantized = folder / f"{name}.int8.onnx"
        quantize = [MIDTREAD, "quantize", source, "--quiet", "-o", quantized, *options]
        subprocess.run(list(map(str, quantize)), check=True, stdout=subprocess.DEVNULL)
        yield name, source, quantized, folder / f"{inputs}.npz"


def products(model):
    """Multiplications of codes in a run of a model of convolutions, or None."""
    count = [sys.executable, str(ROOT / "bench" / "models.py"), "--products", str(model)]
    done = subprocess.run(count, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--only", choices=("midtread", "onnxruntime"))
    parser.add_argument("--models", type=lambda names: names.split(","))
    parser.add_argument("--dir", type=Path, default=default_directory())
    args = parser.parse_args()
    chosen, rows = sides(args.only), []
    pictures = sorted((args.dir / "lite0_npy").glob("*.npy"))
    if not pictures:
        raise SystemExit(f"error: {args.dir} has no pictures: cargo xtask assets")
    peak = None
    if "midtread" in chosen:
        cpu = subprocess.run([MIDTREAD, "inspect", "--cpu", "--json"], check=True, capture_output=True, text=True)
        peak = json.loads(cpu.stdout).get("int8_products_per_second")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        subprocess.run([sys.executable, "-c", MAKE_INPUTS, pictures[0], folder], check=True)
        for name, source, quantized, inputs in quantized_models(folder, args.dir, args.models):
            work = products(source) if peak else None
            for threads in map(int, args.threads.split(",")):
                runs = {side: [] for side in [*chosen, "float"]}
                for _, side in interleaved(args.rounds, list(runs)):
                    is_float = side == "float"
                    model, runtime = (source, "interpreter") if is_float else (quantized, "engine")
                    program = "midtread" if is_float else side
                    done = measure(command(program, model, inputs, threads, args.repeat, runtime))
                    runs[side].append(json.loads(done.stdout)["latency_ms"])
                rows.append(row(name, threads, runs, work / (peak * threads) * 1e3 if work else None))
    print(f"{machine()}; {args.rounds} rounds of {args.repeat}")
    if peak:
        print(f"peak {peak / 1e9:.0f} G int8 products a second and core")
    print()
    header = ["model", "threads"]
    for side in [*chosen, "float here"]:
        header += [f"{side} median ms", f"{side} min ms"]
    ratios = ["ONNX Runtime / engine, medians", "minima"] if len(chosen) == 2 else []
    more = ["float / int8 here, minima", "share of peak"] if "midtread" in chosen else []
    table([*header, *ratios, *more], rows)


def row(name, threads, runs, least_ms):
    """`least_ms` is the time at the CPU's peak."""
    medians = {side: median([run["median"] for run in of]) for side, of in runs.items()}
    minima = {side: min(run["min"] for run in of) for side, of in runs.items()}
    cells = [name, str(threads)]
    for side in runs:
        cells += [f"{medians[side]:.2f}", f"{minima[side]:.2f}"]
    if "onnxruntime" in runs and "midtread" in runs:
        cells += [f"{of['onnxruntime'] / of['midtread']:.2f}" for of in (medians, minima)]
    if "midtread" in runs:
        cells += [f"{minima['float'] / minima['midtread']:.2f}"]
        cells += [f"{least_ms / minima['midtread']:.0%}" if least_ms else "-"]
    return cells


if __name__ == "__main__":
    main()
