"""Loads what `midtread quantize --weights nf4|fp4|llm_int8` writes with bitsandbytes, on the CPU, and compares.

    python -m venv ENV && ENV/bin/pip install -r tools/requirements-check-bitsandbytes.txt
    ENV/bin/python tools/check_bitsandbytes.py target/release/midtread

For random layers in float32, float16 and bfloat16: the bytes of every key against bitsandbytes' own quantization of the
same weights, the layers' outputs after `load_state_dict`, and the squared error of the weights. Prints a table, and
fails if a byte of codes, scales or states differs (nested scales: see below), or if our error is larger.

Nested scales subtract a mean that torch adds up in an order of its own, so offsets may differ by rounding; and
bitsandbytes' search in its map of 256 numbers is off by one near a middle in about one of 600 cases. So ours are compared
with what it makes of the same scales less our mean: each of our codes must be at least as near.

    ENV/bin/python tools/check_bitsandbytes.py --golden testdata/golden

writes the files that the Rust tests compare with.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch
from safetensors.torch import load_file, save_file

SHAPES = {"q_proj": (96, 256), "down_proj": (65, 77), "wide": (32, 1024), "one": (1, 1), "zeros": (8, 64)}


def layers(dtype):
    torch.manual_seed(7)
    weights = {f"layers.0.{name}.weight": (torch.randn(shape) * 0.02).to(dtype) for name, shape in SHAPES.items()}
    weights["layers.0.zeros.weight"].zero_()
    weights["layers.0.norm.weight"] = torch.ones(8, dtype=dtype)
    return weights


def run(midtread, source, output, *options):
    command = [midtread, "quantize", str(source), "-o", str(output), "--quiet", *options]
    subprocess.run(command, check=True)
    return load_file(output)


def same(name, ours, theirs):
    """Whether tensors are equal bit for bit; says where not."""
    ours, theirs = ours.reshape(-1), theirs.reshape(-1)
    if ours.dtype == theirs.dtype and torch.equal(ours, theirs):
        return True
    different = (ours != theirs).sum().item() if ours.shape == theirs.shape else "all"
    print(f"  {name}: {different} of {theirs.numel()} differ")
    return False


def as_near(name, centered, ours):
    """Whether each of our codes of scales is at least as near as bitsandbytes' code of the same."""
    codes, state = F.quantize_blockwise(centered, blocksize=256)
    block = torch.arange(centered.numel()) // 256
    # Zeros have a scale of 0 there and of 1e-38 here.
    if not torch.allclose(ours["nested_absmax"], state.absmax, rtol=0, atol=1e-37):
        print(f"  {name}: largest {ours['nested_absmax']} instead of {state.absmax}")
        return False
    scale = state.absmax.double()[block]
    distance = [(state.code.double()[c.long()] * scale - centered.double()).abs() for c in (ours["absmax"], codes)]
    # A product of 24 bits decides which middle a value is on.
    n_farther = (distance[1] + scale * 2**-23 < distance[0]).sum().item()
    if n_farther:
        print(f"  {name}: {n_farther} of {centered.numel()} are farther than theirs")
    return n_farther == 0


def check_4bit(weights, loaded, quant_type, nested, block_size):
    """(whether all is equal, our squared error, theirs)"""
    ok, errors = True, [0.0, 0.0]
    for name, weight in weights.items():
        if weight.dim() < 2:
            ok &= same(name, loaded[name], weight)
            continue
        packed, state = F.quantize_4bit(weight, blocksize=block_size, compress_statistics=nested, quant_type=quant_type)
        theirs = {k: v for k, v in state.as_dict(packed=True).items()}
        ours = {k[len(name) + 1 :]: v for k, v in loaded.items() if k.startswith(name + ".")}
        if set(ours) != set(theirs):
            print(f"  {name}: keys {sorted(ours)} instead of {sorted(theirs)}")
            ok = False
            continue
        ok &= same(name, loaded[name], packed)
        key = f"quant_state.bitsandbytes__{quant_type}"
        read = [json.loads(bytes(side[key].numpy()).decode()) for side in (ours, theirs)]
        offsets = [side.pop("nested_offset", None) for side in read]
        if read[0] != read[1]:
            print(f"  {name}: state {read[0]} instead of {read[1]}")
            ok = False
        if nested:
            ok &= abs(offsets[0] - offsets[1]) <= 2e-6 * max(abs(offsets[1]), 1e-30)
            plain = F.quantize_4bit(weight, blocksize=block_size, quant_type=quant_type)[1].absmax
            ok &= as_near(f"{name}.absmax", plain - offsets[0], ours)
        for part in set(theirs) - {key}:
            if nested and part in ("absmax", "nested_absmax"):
                continue
            ok &= same(f"{name}.{part}", ours[part], theirs[part])
        param = bnb.nn.Params4bit.from_prequantized(loaded[name], ours, device="cpu")
        for side, (data, quant_state) in enumerate([(param.data, param.quant_state), (packed, state)]):
            back = F.dequantize_4bit(data, quant_state).float()
            errors[side] += (back.double() - weight.double()).square().sum().item()
        # The layer computes what the weights say.
        layer = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=False, compute_dtype=torch.float32)
        layer.weight = param
        x = torch.randn(3, weight.shape[1])
        want = x @ F.dequantize_4bit(param.data, param.quant_state).float().t()
        got = layer(x).float()
        scale = want.abs().max().clamp_min(1e-9)
        if 2e-2 < ((got - want).abs().max() / scale).item():
            print(f"  {name}: the layer's output is off by {(got - want).abs().max().item()}")
            ok = False
    return ok, *errors


def check_int8(weights, loaded):
    ok, errors = True, [0.0, 0.0]
    for name, weight in weights.items():
        if weight.dim() < 2:
            ok &= same(name, loaded[name], weight)
            continue
        codes, scb, _ = F.int8_vectorwise_quant(weight.to(torch.float16))
        ours = {"CB": loaded[name], "SCB": loaded[name.removesuffix("weight") + "SCB"]}
        if weight.dtype == torch.float16:
            # bitsandbytes takes float16 only; from other types it rounds twice.
            ok &= same(name, ours["CB"], codes) and same(name + " SCB", ours["SCB"], scb)
        for side, (q, s) in enumerate([(ours["CB"], ours["SCB"]), (codes, scb)]):
            back = q.double() * s.double().reshape(-1, 1) / 127
            errors[side] += (back - weight.double()).square().sum().item()
        layer = bnb.nn.Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False)
        # It loads into a layer that is quantized already.
        layer.to("cpu")
        prefix = name.removesuffix("weight")
        state = {k.removeprefix(prefix): v for k, v in loaded.items() if k.startswith(prefix)}
        layer.load_state_dict(state)
        x = torch.randn(3, weight.shape[1], dtype=torch.float32)
        got = layer(x).double()
        want = x.double() @ (ours["CB"].double() * ours["SCB"].double().reshape(-1, 1) / 127).t()
        scale = want.abs().max().clamp_min(1e-9)
        # The activations are quantized to 8 bits there.
        if 5e-2 < ((got - want).abs().max() / scale).item():
            print(f"  {name}: the layer's output is off by {(got - want).abs().max().item()}")
            ok = False
    return ok, *errors


def golden(folder):
    """Two layers, and what bitsandbytes saves of them in each format."""
    torch.manual_seed(3)
    weights = {"a.weight": torch.randn(5, 77) * 0.02, "b.weight": (torch.randn(4, 64) * 0.02).half()}
    save_file(weights, folder / "bitsandbytes_model.safetensors", metadata={"format": "pt"})
    for quant_type in ("nf4", "fp4"):
        tensors = {}
        for name, weight in weights.items():
            packed, state = F.quantize_4bit(weight, blocksize=64, quant_type=quant_type)
            tensors[name] = packed
            tensors |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
        save_file(tensors, folder / f"bitsandbytes_{quant_type}.safetensors")
    # float16 only: from other types bitsandbytes rounds twice.
    layer = bnb.nn.Linear8bitLt(64, 4, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(weights["b.weight"].clone(), requires_grad=False, has_fp16_weights=False)
    layer.to("cpu")
    tensors = {f"b.{key}": value.contiguous() for key, value in layer.state_dict().items()}
    save_file(tensors, folder / "bitsandbytes_llm_int8.safetensors")


def main():
    if sys.argv[1:2] == ["--golden"]:
        golden(Path(sys.argv[2]))
        return
    midtread = sys.argv[1] if 1 < len(sys.argv) else "target/release/midtread"
    failed = False
    print(f"bitsandbytes {bnb.__version__}, torch {torch.__version__}")
    print("| format | type | equal | squared error | bitsandbytes' |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            weights = layers(dtype)
            source = folder / "model.safetensors"
            save_file(weights, source, metadata={"format": "pt"})
            short = str(dtype).removeprefix("torch.")
            cases = [(t, n, b) for t in ("nf4", "fp4") for n in (False, True) for b in (64, 128)]
            for quant_type, nested, block_size in cases:
                options = ["--weights", f"{quant_type}:{block_size}"] + (["--nested"] if nested else [])
                loaded = run(midtread, source, folder / "out.safetensors", *options)
                ok, ours, theirs = check_4bit(weights, loaded, quant_type, nested, block_size)
                # With nested scales, rounding of the mean may move a code of a scale.
                ok &= ours <= theirs * (1 + (1e-4 if nested else 1e-9))
                failed |= not ok
                label = f"{quant_type}:{block_size}{' nested' if nested else ''}"
                print(f"| {label} | {short} | {'yes' if ok else 'NO'} | {ours:.6g} | {theirs:.6g} |")
            loaded = run(midtread, source, folder / "out.safetensors", "--weights", "llm_int8")
            ok, ours, theirs = check_int8(weights, loaded)
            ok &= ours <= theirs * (1 + 1e-6)
            failed |= not ok
            print(f"| llm_int8 | {short} | {'yes' if ok else 'NO'} | {ours:.6g} | {theirs:.6g} |")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
