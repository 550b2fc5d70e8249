#!/usr/bin/env python3
"""Quantization-aware training of the demo's network on Fashion-MNIST: accuracy in ONNX Runtime, and time against PyTorch.

    python bench/train.py accuracy [--widths w8a8,w4a4,w2a4] [--threads 2] [-- EXTRA ARGUMENTS OF midtread train]
    python bench/train.py speed --torch-python VENV/bin/python [--threads 2] [--rounds 3]

The data is the on-request asset: `cargo xtask assets fashion_mnist`. `accuracy` trains with all 60,000 images from the
committed float model; the last 2,000 of them choose the epoch, so that the 10,000 test images choose nothing, and scores
what was written with ONNX Runtime on those 10,000. `speed` times steps of 64 images of both programs, alternately, and
prints the ratio; the peer is eager mode with per-channel fake quantization (bench/train_torch.py).
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

DEMO = common.ROOT / "assets" / "demo"


def read_idx(path):
    import numpy as np

    data = gzip.open(path).read()
    dims = np.frombuffer(data, ">u4", data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(dims)


def score(path, images, labels, optimized):
    """Right answers of 10,000, run by ONNX Runtime."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    right = 0
    for i in range(0, len(images), 100):
        x = ((images[i : i + 100].astype(np.float32) - 127.5) / 127.5)[:, None]
        right += int((session.run(None, {session.get_inputs()[0].name: x})[0].argmax(1) == labels[i : i + 100]).sum())
    return right


def accuracy(args):
    data = common.default_directory() / "fashion_mnist"
    images, labels = read_idx(data / "t10k-images-idx3-ubyte.gz"), read_idx(data / "t10k-labels-idx1-ubyte.gz")
    model = DEMO / "fashion_mobilenet.onnx"
    print(f"float: {score(model, images, labels, True) / 100:.2f} %")
    with tempfile.TemporaryDirectory() as folder:
        for width in args.widths.split(","):
            bits = width.removeprefix("w").split("a")
            widths = ["--weights", f"i{bits[0]}", "--activations", f"u{bits[1]}"]
            common_args = ["--data", data / "train-images-idx3-ubyte.gz", "--preprocess", "fashion_mnist"]
            out, ptq = Path(folder) / "qat.onnx", Path(folder) / "ptq.onnx"
            common.measure([args.midtread, "quantize", model, *common_args, *widths, "--samples", "512", "-o", ptq])
            teacher = [] if args.no_labels else ["--labels", data / "train-labels-idx1-ubyte.gz"]
            run = common.measure([
                args.midtread, "train", model, *common_args, *widths, *teacher, "--flip", "--holdout", "2000", "--json",
                "--threads", args.threads, "-o", out, *args.extra,
            ])
            said = json.loads(run.stdout)
            print(
                f"{width}: {score(out, images, labels, True) / 100:.2f} % as ONNX Runtime optimizes it, "
                f"{score(out, images, labels, False) / 100:.2f} % as written; without training "
                f"{score(ptq, images, labels, False) / 100:.2f} %; {run.seconds:.0f} s, {run.cpu_seconds:.0f} s of CPU, "
                f"{run.peak_mib:.0f} MiB, epochs {[round(e['loss'], 4) for e in said['epochs']]}",
                flush=True,
            )


def speed(args):
    data = common.default_directory() / "fashion_mnist"
    images, labels = data / "train-images-idx3-ubyte.gz", data / "train-labels-idx1-ubyte.gz"
    batch, few, many = 64, 10, 10 + args.steps
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:

        def run(n_steps):
            start = time.perf_counter()
            subprocess.run(
                [args.midtread, "train", DEMO / "fashion_mobilenet.onnx", "--data", images, "--labels", labels,
                 "--preprocess", "fashion_mnist", "--samples", str(batch * n_steps), "--freeze-norms", "1",
                 "--distill", "0", "--cross-entropy", "1", "--epochs", "1", "--calibration-samples", "16", "--threads", str(args.threads),
                 "--json", "-o", Path(folder) / "out.onnx"],
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            return time.perf_counter() - start

        for _ in range(args.rounds):
            # Loading and calibrating drop out of the difference.
            ours.append(run(many) - run(few))
            said = subprocess.run(
                [args.torch_python, common.ROOT / "bench" / "train_torch.py", images, labels,
                 "--threads", str(args.threads), "--batch", str(batch), "--steps", str(args.steps)],
                check=True, capture_output=True, text=True,
            )
            theirs.append(json.loads(said.stdout)["seconds"])
    for name, times in [("midtread", ours), ("PyTorch", theirs)]:
        epoch = [60000 / batch * t / args.steps for t in times]
        print(f"{name}: {min(times) / args.steps * 1000:.1f} ms a step of {batch}, {min(epoch):.0f} s an epoch (median {statistics.median(epoch):.0f})")
    print(f"ratio of the shortest: {min(ours) / min(theirs):.2f}; of the medians: {statistics.median(ours) / statistics.median(theirs):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "speed"])
    parser.add_argument("--widths", default="w8a8,w4a4,w2a4")
    parser.add_argument("--no-labels", action="store_true", help="distill alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--midtread", default=common.MIDTREAD)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("extra", nargs="*", help="more arguments of `midtread train`")
    args = parser.parse_args()
    {"accuracy": accuracy, "speed": speed}[args.what](args)


if __name__ == "__main__":
    main()
