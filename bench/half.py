#!/usr/bin/env python3
"""float16 conversions side by side: midtread, onnxconverter-common and onnxruntime.transformers on the same models.

    python bench/half.py [--models minilm,silero_vad] [--type float16|bfloat16] [--midtread PATH]

Needs bench/requirements-half.txt in the environment. Each converter makes its model with float32 inputs and outputs kept;
ONNX Runtime's CPU provider runs all of them on the same inputs (real sentences, pictures and images; for silero-vad a made
up voice). Reported: whether the model loads, its size, and how far its outputs are from the float32 model's: signal over
noise in decibels over all runs, and the largest difference. Both peers convert a model that is loaded and shape-inferred as
their documentation has it.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from common import MIDTREAD, ROOT, default_directory, machine, table


def lite0_inputs(folder):
    for path in sorted((folder / "lite0_npy").glob("*.npy"))[:8]:
        picture = np.load(path)
        yield {"input": picture if picture.ndim == 4 else picture[None]}


def minilm_inputs(folder):
    for path in sorted((folder / "minilm_inputs").glob("*.npz"))[:8]:
        with np.load(path) as arrays:
            yield dict(arrays)


def demo_inputs(_):
    rng = np.random.default_rng(0)
    for _ in range(8):
        yield {"input": rng.normal(size=(4, 1, 28, 28)).astype(np.float32)}


def silero_inputs(_):
    rng, t = np.random.default_rng(0), np.arange(512 * 8) / 16000
    voice = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12)) * (0.3 + 0.3 * np.sin(2 * np.pi * 3 * t))
    voice = 0.2 * voice + 0.01 * rng.normal(size=t.size)
    for rate, n in ((16000, 512), (8000, 256)):
        for chunk in voice.reshape(-1, n)[:8]:
            state = rng.normal(size=(2, 1, 128)) * 0.1
            yield {"input": chunk[None].astype(np.float32), "state": state.astype(np.float32), "sr": np.array(rate)}


def silero_path(_):
    import importlib.util

    spec = importlib.util.find_spec("silero_vad")
    if spec is None:
        raise SystemExit("error: silero-vad is missing: pip install --no-deps -r bench/requirements-half.txt")
    return Path(spec.submodule_search_locations[0]) / "data" / "silero_vad.onnx"


MODELS = {
    "demo": (lambda _: ROOT / "assets" / "demo" / "fashion_mobilenet.onnx", demo_inputs),
    "efficientnet_lite0": (lambda folder: folder / "efficientnet_lite0.onnx", lite0_inputs),
    "minilm": (lambda folder: folder / "minilm.onnx", minilm_inputs),
    "silero_vad": (silero_path, silero_inputs),
}


def ours(target):
    def convert(source, out, args):
        command = [args.midtread, "quantize", source, "--weights", args.type, "--target", target, "--keep-io-types", "-o", out]
        subprocess.run([*map(str, command), "--quiet"], check=True)

    return convert


def converter_common(source, out, args):
    from onnxconverter_common import float16

    model = onnx.load(source)
    onnx.save(float16.convert_float_to_float16(model, keep_io_types=True), out)


def runtime_transformers(source, out, args):
    from onnxruntime.transformers import float16

    model = onnx.load(source)
    onnx.save(float16.convert_float_to_float16(model, keep_io_types=True), out)


CONVERTERS = {
    "midtread, target onnx": ours("onnx"),
    "midtread, target onnxruntime_cpu": ours("onnxruntime_cpu"),
    "onnxconverter-common": converter_common,
    "onnxruntime.transformers": runtime_transformers,
}


def run(path, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


def distance(want, got):
    """Decibels of signal over noise, and the largest difference, over every float output of every run."""
    signal = noise = largest = 0.0
    for a, b in zip(want, got):
        for x, y in zip(a, b):
            x, d = x.astype(np.float64), x.astype(np.float64) - y.astype(np.float64)
            signal, noise, largest = signal + np.sum(x * x), noise + np.sum(d * d), max(largest, np.abs(d).max())
    return 10 * np.log10(signal / noise) if noise else np.inf, largest


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--type", default="float16", choices=("float16", "bfloat16"))
    parser.add_argument("--midtread", type=Path, default=MIDTREAD)
    parser.add_argument("--dir", type=Path, default=default_directory())
    args = parser.parse_args()
    rows = []
    for name in args.models.split(","):
        source, inputs = MODELS[name][0](args.dir), list(MODELS[name][1](args.dir))
        want = run(str(source), inputs)
        rows.append([name, "float32", f"{source.stat().st_size / 1e6:.2f} MB", "", ""])
        for who, convert in CONVERTERS.items():
            if args.type == "bfloat16" and not who.startswith("midtread"):
                continue
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "model.onnx"
                try:
                    convert(source, out, args)
                    size = out.stat().st_size
                    db, largest = distance(want, run(str(out), inputs))
                    rows.append([name, who, f"{size / 1e6:.2f} MB", f"{db:.1f} dB", f"{largest:.2e}"])
                except Exception as err:  # noqa: BLE001: whatever a converter or the runtime says is the result
                    rows.append([name, who, "fails", f"{type(err).__name__}: {str(err).strip()[:90]}", ""])
    print(f"{args.type}; {machine()}; onnxruntime {onnxruntime.__version__}\n")
    table(["model", "converter", "size", "SQNR of outputs", "largest difference"], rows)


if __name__ == "__main__":
    main()
