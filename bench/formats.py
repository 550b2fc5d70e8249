"""Throughput of weight formats: `midtread quantize CHECKPOINT` beside bitsandbytes, numpy and llama.cpp's quantizers.

    python -m venv ENV && ENV/bin/pip install -r bench/requirements-formats.txt
    cargo build --release -p midtread-cli
    ENV/bin/python bench/formats.py [--mib 1024] [--rounds 3] [--large-gib 4]

Makes a checkpoint of random weights in a temporary folder, in float32 and bfloat16. A rate is bytes of the source for each
second. The peers work on arrays that are in memory and write nothing; midtread's rate is that of the whole command, from
file to file (both in the page cache), and beside it that of the arithmetic alone (`encode`: the time its threads spend on
it, as if one did it). All use one thread, in turns, and the best of the rounds counts. `memory copy` is numpy's copy of the
same array. The peers see a part of the checkpoint, because some take minutes for all of it; rates do not depend on the size.
At last the peak memory of converting a checkpoint of `--large-gib`.
"""

import argparse
import ctypes
import glob
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import MIDTREAD, machine, measure, table  # noqa: E402

COLS = 4096
DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}


def write_checkpoint(path, dtype, n_bytes, random):
    """Matrices of 64 MiB and a rest; without numpy when `random` is None: then all of it is a hole, zeros."""
    code, size = DTYPES[dtype]
    rows = n_bytes // (size * COLS)
    step, header, offset = (64 << 20) // (size * COLS), {}, 0
    for start in range(0, rows, step):
        n = min(step, rows - start)
        end = offset + n * COLS * size
        header[f"layers.{start // step}.weight"] = {"dtype": code, "shape": [n, COLS], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if random is None:
            file.truncate(8 + len(text) + offset)
            return
        block = random(dtype, step)
        for start in range(0, rows, step):
            file.write(memoryview(block[: min(step, rows - start)]).cast("B"))


def random_weights():
    import numpy as np

    generator = np.random.default_rng(0)

    def block(dtype, rows):
        x = generator.standard_normal((rows, COLS), dtype=np.float32) * np.float32(0.02)
        return x if dtype == "float32" else ((x.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)

    return block


def midtread(source, output, weights, threads=1):
    """(seconds of the whole command, seconds of arithmetic, peak MiB)"""
    command = [MIDTREAD, "quantize", source, "--weights", weights, "-o", output, "--json", "--quiet", "--threads", threads]
    child = measure(command)
    answer = json.loads(child.stdout)
    seconds = answer["thread_seconds"]
    return answer["seconds"], seconds["encode"], child.peak_mib


class Llama:
    """`ggml_quantize_chunk` of the llama.cpp inside xllamacpp."""

    TYPES = {"q4_0": (2, 32, 18), "q8_0": (8, 32, 34), "q4_k": (12, 256, 144)}

    def __init__(self):
        import xllamacpp

        [library] = glob.glob(str(Path(xllamacpp.__file__).parent / "xllamacpp*.so"))
        self.ggml = ctypes.CDLL(library)
        quantize = self.ggml.ggml_quantize_chunk
        quantize.restype = ctypes.c_size_t
        quantize.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3 + [ctypes.c_void_p]

    def __call__(self, name, x):
        import numpy as np

        number, block, n_bytes = self.TYPES[name]
        out = np.empty(x.size // block * n_bytes, np.uint8)
        self.ggml.ggml_quantize_chunk(number, x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[1], None)
        return out


def numpy_int8(x):
    """Rows of int8 in numpy, a row block at a time so that what is between stays in the cache."""
    import numpy as np

    codes = np.empty(x.shape, np.int8)
    for start in range(0, len(x), 64):
        part = x[start : start + 64]
        scale = np.abs(part).max(axis=1, keepdims=True) / np.float32(127)
        np.rint(part / scale, casting="unsafe", out=codes[start : start + 64])
    return codes


def peers(dtype, x):
    """name of the format -> [(name of the peer, function)]; `x` is float32 of numpy, or bfloat16 of torch"""
    import bitsandbytes.functional as bnb
    import gguf
    import torch

    torch.set_num_threads(1)
    is_float = dtype == "float32"
    tensor = torch.from_numpy(x) if is_float else x
    values = x if is_float else None
    found = {
        "llm_int8": [("bitsandbytes", lambda: bnb.int8_vectorwise_quant(tensor.to(torch.float16)))],
        "nf4": [("bitsandbytes", lambda: bnb.quantize_4bit(tensor, blocksize=64, quant_type="nf4"))],
        "int8": [("bitsandbytes' int8", lambda: bnb.int8_vectorwise_quant(tensor.to(torch.float16)))],
    }
    widened = lambda: values if is_float else tensor.float().numpy()  # noqa: E731
    found["int8"].append(("numpy", lambda: numpy_int8(widened())))
    llama = Llama()
    for name in Llama.TYPES:
        found[name] = [("llama.cpp", lambda name=name: llama(name, widened()))]
    for name, kind in [("q8_0", gguf.GGMLQuantizationType.Q8_0), ("q4_0", gguf.GGMLQuantizationType.Q4_0)]:
        found[name].append(("gguf", lambda kind=kind: gguf.quants.quantize(widened(), kind)))
    return found


def best(function, rounds):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def peer_rates(args, part):
    """Runs in a child, so that a peer's memory is not counted as a parent's. Prints JSON."""
    import numpy as np
    import torch

    rates = {}
    for dtype, (_, size) in DTYPES.items():
        rows = part // (size * COLS)
        x = random_weights()("float32", rows)
        if dtype == "bfloat16":
            x = torch.from_numpy(x).bfloat16()
            copied = x.view(torch.int16).numpy()
        else:
            copied = x
        out = np.empty_like(copied)
        n_bytes = copied.nbytes
        rates[f"{dtype} memory copy"] = n_bytes / best(lambda: np.copyto(out, copied), 5 * args.rounds)
        for name, functions in peers(dtype, x).items():
            for peer, function in functions:
                rates[f"{dtype} {name} {peer}"] = n_bytes / best(function, args.rounds)
    print(json.dumps(rates))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024, help="size of the checkpoint")
    parser.add_argument("--part-mib", type=int, default=128, help="how much of it the peers see")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large-gib", type=int, default=4, help="size of the checkpoint whose peak memory is shown")
    parser.add_argument("--peers", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peers:
        peer_rates(args, args.part_mib << 20)
        return
    print(machine(), end="\n\n")
    ours, rows = {}, []
    formats = ["int8", "llm_int8", "nf4", "q4_0", "q8_0", "q4_k"]
    with tempfile.TemporaryDirectory(dir=os.environ.get("MIDTREAD_BENCH_DIR")) as folder:
        folder = Path(folder)
        for dtype in DTYPES:
            source = folder / "model.safetensors"
            # In a child of its own: common.py says why nothing large is imported here.
            script = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; import formats as f; from pathlib import Path; f.write_checkpoint(Path({str(source)!r}), {dtype!r}, {args.mib << 20}, f.random_weights())"
            subprocess.run([sys.executable, "-c", script], check=True)
            for name in formats:
                output = folder / ("out.gguf" if name.startswith("q") else "out.safetensors")
                runs = [midtread(source, output, name) for _ in range(args.rounds)]
                n_bytes = args.mib << 20
                ours[dtype, name] = [n_bytes / min(run[i] for run in runs) for i in (0, 1)] + [max(r[2] for r in runs)]
                output.unlink()
            source.unlink()
        command = [sys.executable, __file__, "--peers", "--part-mib", str(args.part_mib), "--rounds", str(args.rounds)]
        theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for dtype in DTYPES:
            copy = theirs[f"{dtype} memory copy"]
            for name in formats:
                whole, encode, peak = ours[dtype, name]
                beside = {k.removeprefix(f"{dtype} {name} "): v for k, v in theirs.items() if k.startswith(f"{dtype} {name} ")}
                fastest = max(beside.values())
                others = ", ".join(f"{peer} {rate / 1e9:.3f}" for peer, rate in beside.items())
                rows.append([
                    f"{name} of {dtype}", f"{whole / 1e9:.2f}", f"{encode / 1e9:.2f}", others,
                    f"{whole / fastest:.1f}", f"{encode / fastest:.1f}", f"{encode / copy:.2f}", f"{peak:.0f}",
                ])
            rows.append([f"memory copy of {dtype}", "", "", f"numpy {copy / 1e9:.2f}", "", "", "", ""])
        table(["GB/s", "file to file", "encode", "peers", "file / peer", "encode / peer", "encode / copy", "MiB"], rows)
        if args.large_gib:
            source = folder / "large.safetensors"
            print()
            large = []
            for name in ("int8", "nf4", "q4_k"):
                write_checkpoint(source, "float32", args.large_gib << 30, None)
                output = folder / ("out.gguf" if name.startswith("q") else "out.safetensors")
                _, _, peak = midtread(source, output, name, threads=2)
                large.append([f"{name} of {args.large_gib} GiB float32, 2 threads", f"{peak:.0f} MiB"])
                output.unlink()
            table(["peak memory", ""], large)


if __name__ == "__main__":
    main()
