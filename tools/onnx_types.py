#!/usr/bin/env python3
"""Writes testdata/conformance/types.txt: which element types the newest version of each operator allows.

    python tools/onnx_types.py > testdata/conformance/types.txt

A line says the operator, the inputs that have the type of the first one (a `+` behind the last: and all after it), and
the types.
"""

import onnx
from onnx import defs


def main():
    print(f"# onnx {onnx.__version__}: made by tools/onnx_types.py")
    newest = {}
    for schema in defs.get_all_schemas():
        if schema.domain == "" and not schema.deprecated and schema.inputs:
            newest[schema.name] = schema
    for name, schema in sorted(newest.items()):
        first = schema.inputs[0].type_str
        types = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == first), [first])
        types = sorted(t.removeprefix("tensor(").removesuffix(")") for t in types if t.startswith("tensor("))
        if not types:
            continue
        same = [str(i) for i, value in enumerate(schema.inputs) if value.type_str == first]
        variadic = schema.inputs[-1].option == defs.OpSchema.FormalParameterOption.Variadic
        more = "+" if variadic and schema.inputs[-1].type_str == first else ""
        print(f"{name} {','.join(same)}{more}: {' '.join(types)}")


if __name__ == "__main__":
    main()
