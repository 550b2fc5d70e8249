#!/usr/bin/env python3
"""Train the demo network on Fashion-MNIST and write everything in assets/demo.

    python tools/train_demo.py DATA_DIR OUT_DIR [--epochs N]

DATA_DIR holds the four original files: {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz. The
packages are pinned in tools/requirements-train.txt. Every random choice follows from SEED, so the
same packages with the same number of threads on the same kind of CPU train the same network. The
last epoch is the result: the test images are measured after each epoch, and never choose anything.
"""

import argparse
import gzip
import json
import shutil
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

SEED = 20170825
BATCH_SIZE = 128
MAX_LR = 0.2
WARM_UP_PART = 0.28
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.05
MAX_SHIFT = 1
# The last fifth of the epochs sees the images where they are, as they will be in use.
UNSHIFTED_PART = 1 / 5

STEM_CHANNELS = 16
HEAD_CHANNELS = 256
# (expansion, out_channels, n_blocks, stride of the first block), as in the MobileNetV2 paper.
STAGES = [(1, 24, 1, 2), (3, 24, 2, 1), (4, 64, 3, 2), (4, 96, 1, 1)]
LABELS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
          "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]

# Larger than PyTorch's 1e-5: a channel that is nearly constant keeps a bounded BN multiplier.
BN_EPSILON = 1e-3
N_CALIBRATION = 512
MODEL_FILE = "fashion_mobilenet.onnx"


# Data


def read_idx(path):
    """The array in a gzipped IDX file of bytes."""
    data = gzip.decompress(path.read_bytes())
    n_dims = data[3]
    shape = np.frombuffer(data, ">u4", n_dims, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * n_dims).reshape(shape)


def write_idx(path, array):
    """Write bytes as a gzipped IDX file, the same bytes each time."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes(), 9, mtime=0))


def load_split(data_dir, split):
    """(images as [n, 28, 28] bytes, labels as [n] integers) of `train` or `t10k`."""
    images = read_idx(data_dir / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(data_dir / f"{split}-labels-idx1-ubyte.gz")
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def normalise(images):
    """[n, 28, 28] bytes -> [n, 1, 28, 28] floats in -1..=1."""
    return ((images.float() - 127.5) / 127.5).unsqueeze(1)


def augment(images, max_shift, rng):
    """Mirror half of the images, and move each by at most `max_shift` pixels each way."""
    n, height, width = images.shape
    padded = functional.pad(images, (max_shift,) * 4)
    shifts = torch.randint(0, 2 * max_shift + 1, (2, n, 1), generator=rng)
    mirrored = torch.rand(n, 1, generator=rng) < 0.5
    rows = torch.arange(height) + shifts[0]
    columns = torch.arange(width) + shifts[1]
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


# Network


class ConvBn(nn.Module):
    """Convolution without bias, batch norm, and ReLU6 unless `linear`."""

    def __init__(self, in_channels, out_channels, kernel, stride=1, groups=1, linear=False):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2,
                              groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=BN_EPSILON)
        self.linear = linear

    def forward(self, x):
        x = self.bn(self.conv(x))
        return x if self.linear else functional.relu6(x)


class InvertedResidual(nn.Module):
    """1x1 expand (unless the expansion is 1), 3x3 depthwise, 1x1 linear project, maybe + input."""

    def __init__(self, in_channels, out_channels, expansion, stride):
        super().__init__()
        hidden = in_channels * expansion
        if expansion > 1:
            self.expand = ConvBn(in_channels, hidden, 1)
        self.depthwise = ConvBn(hidden, hidden, 3, stride, groups=hidden)
        self.project = ConvBn(hidden, out_channels, 1, linear=True)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x):
        y = x
        for layer in self.children():
            y = layer(y)
        return x + y if self.is_residual else y


def inverted_residuals():
    """The blocks of STAGES, in order."""
    in_channels = STEM_CHANNELS
    for expansion, out_channels, n_blocks, first_stride in STAGES:
        for i in range(n_blocks):
            yield InvertedResidual(in_channels, out_channels, expansion, first_stride if i == 0 else 1)
            in_channels = out_channels


class FashionMobileNet(nn.Module):
    """MobileNetV2 for [n, 1, 28, 28]: stem, inverted residuals, head, mean over pixels, linear."""

    def __init__(self):
        super().__init__()
        self.stem = ConvBn(1, STEM_CHANNELS, 3)
        self.features = nn.Sequential(*inverted_residuals())
        self.head = ConvBn(STAGES[-1][1], HEAD_CHANNELS, 1)
        self.classifier = nn.Linear(HEAD_CHANNELS, len(LABELS))

    def forward(self, x):
        x = self.head(self.features(self.stem(x)))
        return self.classifier(x.mean(dim=(2, 3)))


def is_decayed(name, weight):
    """Weight decay is for dense weights: not for batch norm, biases or depthwise filters."""
    return weight.ndim > 1 and "depthwise" not in name


def count_macs(model):
    """Multiply-adds of the convolutions and the linear layer for one image."""
    n_macs = 0

    def add(module, _inputs, output):
        nonlocal n_macs
        n_macs += module.weight.numel() * output[0, 0].numel()

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    return n_macs


# Training


def make_optimizer(model, n_steps):
    """SGD with Nesterov momentum, and its one-cycle schedule of `n_steps` batches."""
    groups = {True: [], False: []}
    for name, weight in model.named_parameters():
        groups[is_decayed(name, weight)].append(weight)
    optimizer = torch.optim.SGD(
        [{"params": groups[True], "weight_decay": WEIGHT_DECAY}, {"params": groups[False]}],
        lr=MAX_LR, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, n_steps, pct_start=WARM_UP_PART)
    return optimizer, schedule


def train_epoch(model, optimizer, schedule, images, labels, max_shift, rng):
    """One pass over the training images in a random order; the mean loss."""
    model.train()
    total = 0.0
    batches = torch.randperm(len(images), generator=rng).split(BATCH_SIZE)
    for batch in batches:
        x = normalise(augment(images[batch], max_shift, rng))
        x = x.contiguous(memory_format=torch.channels_last)
        loss = functional.cross_entropy(model(x), labels[batch], label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
    return total / len(batches)


def train(model, train_split, test_split, n_epochs, checkpoint):
    """Train for `n_epochs`, going on from the checkpoint file if it is there."""
    n_batches = -(-len(train_split[0]) // BATCH_SIZE)
    optimizer, schedule = make_optimizer(model, n_epochs * n_batches)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    first_epoch = load_checkpoint(checkpoint, parts)
    for epoch in range(first_epoch, n_epochs):
        start = time.monotonic()
        rng = torch.Generator().manual_seed(SEED + epoch)
        max_shift = MAX_SHIFT if epoch < n_epochs * (1 - UNSHIFTED_PART) else 0
        loss = train_epoch(model, optimizer, schedule, *train_split, max_shift, rng)
        top1 = accuracy(torch_logits(model, test_split[0]), test_split[1])
        save_checkpoint(checkpoint, parts, epoch + 1)
        print(f"epoch {epoch + 1}/{n_epochs}: loss {loss:.4f}, test top-1 {top1:.2f} %, "
              f"{time.monotonic() - start:.0f} s", flush=True)


def load_checkpoint(path, parts):
    """Restore `parts`; the first epoch that is left."""
    if path is None or not path.exists():
        return 0
    saved = torch.load(path)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["n_epochs_done"]


def save_checkpoint(path, parts, n_epochs_done):
    """Save `parts`, where a path was given."""
    if path is not None:
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"n_epochs_done": n_epochs_done, **states}, path)


def torch_logits(model, images):
    """The logits of all images, by PyTorch."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(normalise(batch)) for batch in images.split(500)])


def accuracy(logits, labels):
    """Top-1 in percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


# ONNX


class GraphWriter:
    """Collects the nodes and initializers of a graph; each method returns the name of its output."""

    def __init__(self):
        self.nodes = []
        self.initializers = []

    def constant(self, name, values):
        values = np.ascontiguousarray(values, np.float32)
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op_type, name, inputs, output=None, **attributes):
        output = output or f"{name}.out"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name, **attributes))
        return output

    def parameters(self, name, module, keys):
        state = module.state_dict()
        return [self.constant(f"{name}.{key}", state[key].numpy()) for key in keys]

    def conv_bn(self, name, layer, x):
        """`name` is the Conv; `name.bn` and `name.relu6` follow it."""
        conv = layer.conv
        x = self.node("Conv", name, [x, *self.parameters(name, conv, ["weight"])],
                      kernel_shape=conv.kernel_size, strides=conv.stride,
                      pads=conv.padding * 2, dilations=conv.dilation, group=conv.groups)
        keys = ["weight", "bias", "running_mean", "running_var"]
        bn = f"{name}.bn"
        x = self.node("BatchNormalization", bn, [x, *self.parameters(bn, layer.bn, keys)],
                      epsilon=layer.bn.eps)
        if layer.linear:
            return x
        return self.node("Clip", f"{name}.relu6", [x, "relu6.min", "relu6.max"])

    def inverted_residual(self, name, block, x):
        y = x
        for part, layer in block.named_children():
            y = self.conv_bn(f"{name}.{part}", layer, y)
        return self.node("Add", f"{name}.add", [x, y]) if block.is_residual else y

    def network(self, model, x):
        self.constant("relu6.min", 0.0)
        self.constant("relu6.max", 6.0)
        x = self.conv_bn("stem", model.stem, x)
        for i, block in enumerate(model.features):
            x = self.inverted_residual(f"features.{i}", block, x)
        x = self.conv_bn("head", model.head, x)
        x = self.node("GlobalAveragePool", "pool", [x])
        x = self.node("Flatten", "flatten", [x], axis=1)
        weights = self.parameters("classifier", model.classifier, ["weight", "bias"])
        return self.node("Gemm", "classifier", [x, *weights], output="logits", transB=1)


def to_onnx(model):
    """The network as an ONNX model in float32, batch norm not folded."""
    writer = GraphWriter()
    writer.network(model, "input")
    graph = helper.make_graph(
        writer.nodes, "fashion_mobilenet",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(LABELS)])],
        writer.initializers)
    proto = helper.make_model(graph, producer_name="midtread tools/train_demo.py", ir_version=8,
                              opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(proto, full_check=True)
    return proto


def onnx_logits(path, images):
    """The logits of all images, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = (normalise(batch).numpy() for batch in images.split(500))
    return torch.cat([torch.from_numpy(session.run(None, {"input": x})[0]) for x in batches])


def check_same_answers(by_torch, by_onnx):
    """Refuse a file that does not answer as the network does.

    Logits are around 10 and float32 sums over at most 384 products: 1e-3 is far above rounding,
    and far below what a wrong epsilon, pad or order of weights makes.
    """
    worst = (by_torch - by_onnx).abs().max().item()
    n_other = (by_torch.argmax(1) != by_onnx.argmax(1)).sum().item()
    print(f"PyTorch and ONNX Runtime: logits within {worst:.2e}, {n_other} answers differ")
    if worst > 1e-3:
        raise SystemExit(f"the ONNX file differs from the network by {worst}")


# The folder


README = """\
# The demo network and its data

Made by `python tools/train_demo.py DATA_DIR assets/demo --epochs {n_epochs}` from the four original
Fashion-MNIST files, with the packages in `tools/requirements-train.txt` and seed {seed}.

| file | what it is |
|---|---|
| `fashion_mobilenet.onnx` | the network in float32, opset 17: {n_weights:,} weights, {n_macs:,} multiply-adds per image, batch norm not folded |
| `t10k-images-idx3-ubyte.gz`, `t10k-labels-idx1-ubyte.gz` | the 10,000 test images and labels, the original files |
| `calibration-images-idx3-ubyte.gz`, `calibration-labels-idx1-ubyte.gz` | the first {n_calibration} training images and labels |
| `labels.json` | the names of classes 0 to 9 |
| `LICENSE-fashion-mnist` | the licence of the images and labels (MIT) |

- Input `input`: float32 `[N, 1, 28, 28]`, each byte `x` of an image as `(x - 127.5) / 127.5`. Output `logits`: `[N, 10]`.
- Top-1 on the 10,000 test images, in float32: **{top1:.2f} %** (PyTorch, and the same in ONNX Runtime).
- The test images chose nothing: the network is the one after the last epoch.
- The network is a MobileNetV2 (inverted residuals, ReLU6) and is part of this project, under its licence.
"""

LICENSE = """\
The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def write_data(data_dir, out_dir, train_split):
    """The test files as they are, a slice of the training images, the names and the licence."""
    for name in ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]:
        shutil.copyfile(data_dir / name, out_dir / name)
    images, labels = (part[:N_CALIBRATION].byte().numpy() for part in train_split)
    write_idx(out_dir / "calibration-images-idx3-ubyte.gz", images)
    write_idx(out_dir / "calibration-labels-idx1-ubyte.gz", labels)
    (out_dir / "labels.json").write_text(json.dumps(LABELS) + "\n")
    (out_dir / "LICENSE-fashion-mnist").write_text(LICENSE)


def write_model(model, out_dir, test_split, n_epochs):
    """The ONNX file, measured on the test images, and the README that says the result."""
    path = out_dir / MODEL_FILE
    path.write_bytes(to_onnx(model).SerializeToString(deterministic=True))
    images, labels = test_split
    by_torch, by_onnx = torch_logits(model, images), onnx_logits(path, images)
    check_same_answers(by_torch, by_onnx)
    top1 = accuracy(by_onnx, labels)
    print(f"top-1: {accuracy(by_torch, labels):.2f} % PyTorch, {top1:.2f} % ONNX Runtime")
    n_weights = sum(weight.numel() for weight in model.parameters())
    (out_dir / "README.md").write_text(README.format(
        n_epochs=n_epochs, seed=SEED, n_weights=n_weights, n_macs=count_macs(model),
        n_calibration=N_CALIBRATION, top1=top1))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, help="save here after each epoch, and resume")
    return parser.parse_args()


def main():
    args = parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    train_split = load_split(args.data_dir, "train")
    test_split = load_split(args.data_dir, "t10k")
    args.out_dir.mkdir(parents=True, exist_ok=True)
    write_data(args.data_dir, args.out_dir, train_split)
    model = FashionMobileNet().to(memory_format=torch.channels_last)
    train(model, train_split, test_split, args.epochs, args.checkpoint)
    write_model(model, args.out_dir, test_split, args.epochs)


if __name__ == "__main__":
    main()
