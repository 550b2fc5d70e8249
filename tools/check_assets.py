"""Runs the float models in ONNX Runtime and compares their figures with the known ones.

A wrong padding, epsilon or picture format still gives a model that runs; only the figures tell.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pictures
import scoring
from assets import LABELS, default_directory
from PIL import Image

EXPECTED = {"tuxpaint_top1": 119, "tuxpaint_top5": 138, "foolbox_top1": 18, "wordsim353": 0.7289}


def session_for(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def figures(directory):
    """The same keys as EXPECTED, as measured."""
    lite0 = session_for(directory / "efficientnet_lite0.onnx")
    logits = lambda image: lite0.run(None, {"input": image[None]})[0][0]  # noqa: E731
    labels = json.loads(LABELS.read_text())
    tuxpaint = [
        (logits(np.load(directory / "lite0_npy" / f"{Path(file).stem}.npy")), right) for file, right in labels.items()
    ]
    foolbox = [
        (logits(pictures.preprocess(Image.open(path))), [int(path.stem.split("_")[-1])])
        for path in sorted((directory / "foolbox").iterdir())
    ]
    return {
        "tuxpaint_top1": sum(scoring.hits(*pair, 1) for pair in tuxpaint),
        "tuxpaint_top5": sum(scoring.hits(*pair, 5) for pair in tuxpaint),
        "foolbox_top1": sum(scoring.hits(*pair, 1) for pair in foolbox),
        "wordsim353": round(scoring.wordsim(session_for(directory / "minilm.onnx"), directory), 4),
    }


def check(directory):
    """Prints each figure beside the expected one; the exit status is 1 if one differs."""
    measured = figures(directory)
    for name, expected in EXPECTED.items():
        verdict = "ok" if measured[name] == expected else "DIFFERS"
        print(f"{name:15} {measured[name]:>8} expected {expected:>8}  {verdict}")
    return int(measured != EXPECTED)


if __name__ == "__main__":
    sys.exit(check(Path(sys.argv[1]) if len(sys.argv) > 1 else default_directory()))
