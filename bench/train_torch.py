"""The peer of bench/train.py: PyTorch's eager quantization-aware training of the demo's network, timed.

    python bench/train_torch.py IMAGES.gz LABELS.gz --threads 2 --batch 64 --steps 50

Prints one JSON document. Runs in an environment with bench/requirements-train.txt.
"""

import argparse
import gzip
import json
import os
import time
import warnings

import numpy as np
import torch
from torch import nn
from torch.ao import quantization
from torch.nn import functional

warnings.filterwarnings("ignore")

# As tools/train_demo.py has it: (expansion, channels, blocks, stride of the first block).
STAGES = [(1, 24, 1, 2), (3, 24, 2, 1), (4, 64, 3, 2), (4, 96, 1, 1)]


def read_idx(path):
    data = gzip.open(path).read()
    dims = np.frombuffer(data, ">u4", data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(dims)


class ConvBn(nn.Sequential):
    """Convolution, batch norm and ReLU (which eager mode can fuse, unlike ReLU6) unless `linear`."""

    def __init__(self, n_in, n_out, kernel, stride=1, groups=1, linear=False):
        layers = [nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(n_out)]
        super().__init__(*layers, *([] if linear else [nn.ReLU()]))


class Block(nn.Module):
    def __init__(self, n_in, n_out, expansion, stride):
        super().__init__()
        hidden = n_in * expansion
        layers = [ConvBn(n_in, hidden, 1)] if 1 < expansion else []
        layers += [ConvBn(hidden, hidden, 3, stride, hidden), ConvBn(hidden, n_out, 1, linear=True)]
        self.layers = nn.Sequential(*layers)
        self.is_residual = stride == 1 and n_in == n_out
        self.add = nn.quantized.FloatFunctional()

    def forward(self, x):
        y = self.layers(x)
        return self.add.add(x, y) if self.is_residual else y


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        blocks, n_in = [], 16
        for expansion, n_out, n_blocks, stride in STAGES:
            for i in range(n_blocks):
                blocks.append(Block(n_in, n_out, expansion, stride if i == 0 else 1))
                n_in = n_out
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.body = nn.Sequential(ConvBn(1, 16, 3), *blocks, ConvBn(96, 256, 1))
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(256, 10)

    def forward(self, x):
        x = self.pool(self.body(self.quant(x))).flatten(1)
        return self.dequant(self.classifier(x))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("labels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = Net().train()
    for module in net.modules():
        if isinstance(module, ConvBn):
            quantization.fuse_modules_qat(module, [str(i) for i in range(len(module))], inplace=True)
    net.qconfig = quantization.get_default_qat_qconfig("x86")
    quantization.prepare_qat(net, inplace=True)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    images = torch.from_numpy(read_idx(args.images)[: args.batch * (args.steps + 2)].copy())
    labels = torch.from_numpy(read_idx(args.labels)[: len(images)].astype(np.int64))
    start = None
    for step in range(args.steps + 2):
        # Two steps to warm up.
        if step == 2:
            start, cpu = time.perf_counter(), time.process_time()
        part = slice(step * args.batch, (step + 1) * args.batch)
        x = ((images[part].float() - 127.5) / 127.5).unsqueeze(1)
        loss = functional.cross_entropy(net(x), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(json.dumps({
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "steps": args.steps,
        "loss": loss.item(),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
    }))


if __name__ == "__main__":
    main()
