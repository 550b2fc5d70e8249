#!/usr/bin/env python3
"""Float networks with random weights, for benchmarks: their speed does not depend on what they have learned.

    python bench/models.py FOLDER [NAME...]
    python bench/models.py --products MODEL     # how many a run multiplies in convolutions and Gemm, or null

- resnet50: the topology in the onnx package's light_resnet50.onnx (onnx/backend/test/data/light), whose weights were taken
  out; Sum is written as Add, and the mean over 7x7 pixels as GlobalAveragePool.
- mobilenet_v2: the inverted residuals of MobileNetV2 at 224 pixels, width 1, as in the paper's Table 2.
- bert: a BERT-like encoder of 6 layers, 384 wide, 12 heads, 128 tokens, Gelu by Erf.

Weights are normal with the variance that keeps activations at about 1 (He et al. 2015), batch normalizations near the identity.
Beside each NAME.onnx lies NAME.npz with an input.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


class Builder:
    """Collects nodes and initializers."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.initializers = [], []

    def constant(self, array, name=None):
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, shape, scale):
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def node(self, op_type, *inputs, **attributes):
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], f"{op_type}_{len(self.nodes)}", **attributes))
        return output

    def batch_norm(self, x, channels):
        near_one = (1 + 0.1 * self.rng.standard_normal((2, channels))).astype(np.float32)
        gamma, var = (self.constant(np.abs(row) + 0.1) for row in near_one)
        beta, mean = self.normal(channels, 0.1), self.normal(channels, 0.1)
        return self.node("BatchNormalization", x, gamma, beta, mean, var)

    def conv(self, x, c_in, c_out, kernel=1, stride=1, group=1):
        fan_in = c_in // group * kernel * kernel
        w = self.normal((c_out, c_in // group, kernel, kernel), (2 / fan_in) ** 0.5)
        pads = [kernel // 2] * 4
        x = self.node("Conv", x, w, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads, group=group)
        return self.batch_norm(x, c_out)

    def linear(self, x, c_in, c_out):
        x = self.node("MatMul", x, self.normal((c_in, c_out), c_in**-0.5))
        return self.node("Add", x, self.normal(c_out, 0.1))

    def model(self, name, x, shape, y, y_shape):
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, y_shape)],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def resnet50():
    light = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
    graph = onnx.load(light).graph
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input}
    shapes |= {node.output[0]: given[node.input[0]] for node in graph.node if node.op_type == "ConstantOfShape"}
    b = Builder(50)
    names = {"gpu_0/data_0": "x"}

    def parameter(name):
        """The shape that a reshape needs as it is; all else at random."""
        if name in given and given[name].dtype == np.int64:
            return b.constant(given[name])
        if name.endswith("_w_0"):
            return b.normal(shapes[name], (2 / np.prod(shapes[name][1:])) ** 0.5)
        if name.endswith(("_s_0", "_riv_0")):
            return b.constant(np.abs(1 + 0.1 * b.rng.standard_normal(shapes[name])).astype(np.float32) + 0.1)
        return b.normal(shapes[name], 0.1)

    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            continue
        names |= {name: parameter(name) for name in node.input if name not in names}
        inputs = [names[name] for name in node.input]
        if node.op_type == "AveragePool":
            y = b.node("GlobalAveragePool", *inputs)
        else:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            y = b.node("Add" if node.op_type == "Sum" else node.op_type, *inputs, **attributes)
        names[node.output[0]] = y
    return b.model("resnet50", "x", [1, 3, 224, 224], y, [1, 1000])


def mobilenet_v2():
    b = Builder(2)
    zero, six = b.constant(np.float32(0)), b.constant(np.float32(6))
    x = b.node("Clip", b.conv("x", 3, 32, 3, 2), zero, six)
    c = 32
    for expand, c_out, repeats, first_stride in [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]:
        for i in range(repeats):
            stride, hidden, y = first_stride if i == 0 else 1, c * expand, x
            if expand != 1:
                y = b.node("Clip", b.conv(y, c, hidden), zero, six)
            y = b.node("Clip", b.conv(y, hidden, hidden, 3, stride, hidden), zero, six)
            y = b.conv(y, hidden, c_out)
            x = b.node("Add", x, y) if stride == 1 and c == c_out else y
            c = c_out
    x = b.node("Clip", b.conv(x, c, 1280), zero, six)
    x = b.node("Flatten", b.node("GlobalAveragePool", x))
    y = b.node("Gemm", x, b.normal((1280, 1000), 1280**-0.5), b.normal(1000, 0.1))
    return b.model("mobilenet_v2", "x", [1, 3, 224, 224], y, [1, 1000])


def bert(layers=6, width=384, heads=12, tokens=128):
    b = Builder(6)
    shape_in = b.constant(np.array([1, tokens, heads, width // heads], np.int64))
    shape_out = b.constant(np.array([1, tokens, width], np.int64))
    root, half, one = (b.constant(np.float32(v)) for v in (2**0.5, 0.5, 1))
    scale = b.constant(np.float32((width // heads) ** 0.5))

    def norm(x):
        gamma = b.constant((1 + 0.1 * b.rng.standard_normal(width)).astype(np.float32))
        return b.node("LayerNormalization", x, gamma, b.normal(width, 0.1), axis=-1, epsilon=1e-12)

    def heads_of(x, perm):
        return b.node("Transpose", b.node("Reshape", b.linear(x, width, width), shape_in), perm=perm)

    x = "x"
    for _ in range(layers):
        q, k, v = heads_of(x, [0, 2, 1, 3]), heads_of(x, [0, 2, 3, 1]), heads_of(x, [0, 2, 1, 3])
        scores = b.node("Softmax", b.node("Div", b.node("MatMul", q, k), scale), axis=-1)
        y = b.node("Transpose", b.node("MatMul", scores, v), perm=[0, 2, 1, 3])
        x = norm(b.node("Add", x, b.linear(b.node("Reshape", y, shape_out), width, width)))
        y = b.linear(x, width, 4 * width)
        y = b.node("Mul", b.node("Mul", y, b.node("Add", b.node("Erf", b.node("Div", y, root)), one)), half)
        x = norm(b.node("Add", x, b.linear(y, 4 * width, width)))
    return b.model("bert", "x", [1, tokens, width], x, [1, tokens, width])


MODELS = {"resnet50": resnet50, "mobilenet_v2": mobilenet_v2, "bert": bert}


def products(path):
    """Multiplications in Conv and Gemm; None for a model with others, or whose sizes are not known."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.value_info, *graph.output]}
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            w, y = weights[node.input[1]], sizes.get(node.output[0], [0])
            # The batch may be open: one picture.
            total += int(np.prod(w[1:]) * np.prod(y[1:]))
        elif node.op_type == "Gemm":
            total += int(np.prod(weights[node.input[1]]))
        elif node.op_type == "MatMul":
            return None
    return total or None


def main():
    if sys.argv[1] == "--products":
        print(json.dumps(products(sys.argv[2])))
        return
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(MODELS)
    for name in names:
        model = MODELS[name]()
        onnx.checker.check_model(model)
        onnx.save(model, folder / f"{name}.onnx")
        shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        np.savez(folder / f"{name}.npz", x=np.random.default_rng(0).standard_normal(shape).astype(np.float32))


if __name__ == "__main__":
    main()
