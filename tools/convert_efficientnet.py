"""EfficientNet-Lite0's checkpoint as an ONNX model with its batch normalizations left in place.

They are left so that folding them is the quantizer's work, as it is with most exported models.
"""

import numpy as np
from onnx import TensorProto, helper

from graph_builder import GraphBuilder

RESOLUTION = 224
BATCH_NORM_EPSILON = 1e-3
ZERO, SIX = np.float32(0), np.float32(6)

# The network's seven stages: (blocks, stride of the first block, expansion). Kernel sizes are in the weights' shapes.
STAGES = [(1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6), (1, 1, 6)]


def same_padding(size, kernel, stride):
    """TensorFlow's SAME padding as (before, after, output size): where it is odd, the extra pixel goes after."""
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2, out


class Converter:
    """Walks the network in order, keeping the name and the size of the value it has reached."""

    def __init__(self, state):
        self.state = state
        self.graph = GraphBuilder()
        self.size = RESOLUTION

    def weight(self, name):
        return self.graph.const(name, self.state[name])

    def conv(self, x, name, bn, *, stride=1, depthwise=False, relu6=True):
        """Conv, BatchNormalization and, unless told not to, ReLU6 as a Clip."""
        channels, _, kernel, _ = self.state[f"{name}.weight"].shape
        before, after, self.size = same_padding(self.size, kernel, stride)
        x = self.graph.node(
            "Conv",
            [x, self.weight(f"{name}.weight")],
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            dilations=[1, 1],
            group=channels if depthwise else 1,
        )
        statistics = [self.weight(f"{bn}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
        x = self.graph.node("BatchNormalization", [x, *statistics], bn, epsilon=BATCH_NORM_EPSILON)
        if relu6:
            bounds = [self.graph.const("zero", ZERO), self.graph.const("six", SIX)]
            x = self.graph.node("Clip", [x, *bounds], f"{name}_relu6")
        return x

    def block(self, x, i, stride, expansion, residual):
        """An inverted residual: expand, filter each channel, project."""
        prefix, shortcut = f"_blocks.{i}.", x
        if expansion != 1:
            x = self.conv(x, prefix + "_expand_conv", prefix + "_bn0")
        x = self.conv(x, prefix + "_depthwise_conv", prefix + "_bn1", stride=stride, depthwise=True)
        x = self.conv(x, prefix + "_project_conv", prefix + "_bn2", relu6=False)
        return self.graph.node("Add", [x, shortcut], prefix + "add") if residual else x


def convert(state):
    """The model for the state dict `state`: input f32[N, 3, 224, 224], output `logits` f32[N, 1000]."""
    net = Converter(state)
    x = net.conv("input", "_conv_stem", "_bn0", stride=2)
    i = 0
    for blocks, first_stride, expansion in STAGES:
        for j in range(blocks):
            x = net.block(x, i, first_stride if j == 0 else 1, expansion, residual=j > 0)
            i += 1
    x = net.conv(x, "_conv_head", "_bn1")
    x = net.graph.node("GlobalAveragePool", [x], "pool")
    x = net.graph.node("Flatten", [x], "flatten", axis=1)
    fc = [net.weight("_fc.weight"), net.weight("_fc.bias")]
    net.graph.node("Gemm", [x, *fc], "_fc", output="logits", transB=1)
    return net.graph.model(
        "efficientnet_lite0",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, RESOLUTION, RESOLUTION])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        opset=13,
    )
