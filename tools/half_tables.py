#!/usr/bin/env python3
"""Which operators may compute on 16-bit floats, from those who know.

    half_tables.py forms              what the specification allows: crates/quant/src/half/forms.txt
    half_tables.py kernels float16    what ONNX Runtime's CPU provider has kernels for: targets/onnxruntime_cpu.toml

`forms` reads the schemas of the onnx package (and ONNX Runtime's own of com.microsoft); `kernels` the registry of the
installed ONNX Runtime. Both print to stdout, sorted.
"""

import argparse

from onnx import defs
from onnxruntime.capi import _pybind_state as runtime

FLOAT = "tensor(float)"
HALVES = ("tensor(float16)", "tensor(bfloat16)")
# Training, and tensors of other kinds than these tables are about.
SKIPPED = {"Cast", "CastLike", "Constant", "If", "Loop", "Scan", "Gradient", "Adam", "Adagrad", "Momentum"}


def letter(types, half):
    """`h`: float or the 16-bit type; `f`: float alone; `-`: no floats."""
    if half in types:
        return "h"
    return "f" if FLOAT in types else "-"


def forms():
    """(domain, name, since version, letters of inputs and outputs for float16 and bfloat16), where they changed."""
    schemas = []
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "" and not schema.deprecated:
            constraints = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
            ports = [[constraints.get(p.type_str, {p.type_str}) for p in ports] for ports in (schema.inputs, schema.outputs)]
            schemas.append(("", schema.name, schema.since_version, ports))
    for schema in runtime.get_all_operator_schema():
        if schema.domain == "com.microsoft":
            ports = [[set(p.types) for p in ports] for ports in (schema.inputs, schema.outputs)]
            schemas.append((schema.domain, schema.name, schema.since_version, ports))
    last = {}
    for domain, name, since, ports in sorted(schemas, key=lambda s: s[:3]):
        found = tuple("".join(letter(t, half) for t in types) or "_" for half in HALVES for types in ports)
        has_float = any(FLOAT in types for types in ports[0] + ports[1])
        if name in SKIPPED or not has_float or last.get((domain, name)) == found:
            continue
        last[domain, name] = found
        yield (domain or "ai.onnx", name, str(since), *found)


def kernels(half):
    """Operators whose newest CPU kernels take the type wherever the specification lets it, and their version."""
    latest = {}
    for kernel in runtime.get_all_opkernel_def():
        if kernel.provider != "CPUExecutionProvider" or kernel.domain not in ("", "com.microsoft"):
            continue
        key = (kernel.domain, kernel.op_name)
        latest.setdefault(key, []).append((kernel.version_range, kernel.type_constraints))
    allowed = {row[:2] for row in forms() if "h" in row[5 if "b" in half else 3]}
    for (domain, name), found in sorted(latest.items()):
        newest = max(version for version, _ in found)
        takes = any(
            version == newest and any(f"tensor({half})" in types for types in constraints.values())
            for version, constraints in found
        )
        if takes and (domain or "ai.onnx", name) in allowed:
            yield name if domain == "" else f"{domain}.{name}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("forms")
    commands.add_parser("kernels").add_argument("type", choices=["float16", "bfloat16"])
    args = parser.parse_args()
    if args.command == "forms":
        for row in forms():
            print(" ".join(row))
    else:
        for name in kernels(args.type):
            print(f'    "{name}",')


if __name__ == "__main__":
    main()
