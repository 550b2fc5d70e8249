"""Real models with inputs and what ONNX Runtime computes from them: folders as those of onnx_cases.py.

Inputs are random from a fixed seed: sound for silero-vad and basic-pitch, bytes for magika, pictures for the others.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper


def sound(rng, *dims):
    return (rng.standard_normal(dims) * 0.1).astype(np.float32)


def picture(rng, *dims):
    return rng.uniform(0, 1, dims).astype(np.float32)


RATE = np.array(16000, np.int64)

# How the inputs of a model are made, by the beginning of its name.
INPUTS = {
    "silero_vad_16k_sequence": lambda r: {"input": sound(r, 4, 576), "h": sound(r, 1, 1, 128), "c": sound(r, 1, 1, 128)},
    "silero_vad_half": lambda r: {"input": sound(r, 1, 576), "state": sound(r, 2, 1, 128)},
    "silero_vad_openvino_16k": lambda r: {"input": sound(r, 1, 576), "state": sound(r, 2, 1, 128)},
    "silero_vad": lambda r: {"input": sound(r, 1, 576), "state": sound(r, 2, 1, 128), "sr": RATE},
    "basic_pitch": lambda r: {"serving_default_input_2:0": sound(r, 1, 43844, 1)},
    "magika": lambda r: {"bytes": r.integers(0, 257, (2, 2048)).astype(np.int32)},
    "PP-OCRv6_det": lambda r: {"x": picture(r, 1, 3, 160, 224)},
    "PP-OCRv6_rec": lambda r: {"x": picture(r, 1, 3, 48, 160)},
    # Its file gives both sizes one name, `?`, and midtread holds it to that.
    "ch_ppocr_mobile": lambda r: {"x": picture(r, 1, 3, 48, 48)},
    "efficientnet": lambda r: {"input": picture(r, 1, 3, 224, 224)},
    "minilm": lambda r: {
        "input_ids": r.integers(1000, 20000, (2, 16)),
        "attention_mask": np.array([[1] * 16, [1] * 11 + [0] * 5]),
        "token_type_ids": np.zeros((2, 16), np.int64),
    },
    "light_": None,
}

# Of the topologies in the onnx package, those that take more than a second or 200 MB of weights.
LARGE = (
    "light_bvlc_alexnet",
    "light_densenet121",
    "light_inception_v1",
    "light_inception_v2",
    "light_resnet50",
    "light_vgg19",
    "light_zfnet512",
)


def inputs_of(name, session):
    make = next(make for start, make in INPUTS.items() if name.startswith(start))
    rng = np.random.default_rng(7)
    if make is not None:
        return make(rng)
    return {value.name: picture(rng, *value.shape) for value in session.get_inputs()}


def write_model(name, data, out):
    """`data` is the file's bytes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feeds = inputs_of(name, session)
    results = session.run(None, feeds)
    folder = out / name / "test_data_set_0"
    folder.mkdir(parents=True)
    (out / name / "model.onnx").write_bytes(data)
    for kind, values, infos in (("input", feeds, session.get_inputs()), ("output", results, session.get_outputs())):
        for i, info in enumerate(infos):
            value = values[info.name] if kind == "input" else values[i]
            tensor = numpy_helper.from_array(np.asarray(value), info.name)
            (folder / f"{kind}_{i}.pb").write_bytes(tensor.SerializeToString())


def optimized(data):
    """The model as ONNX Runtime's optimizer writes it, with its own operators."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return path.read_bytes()


def light_models(is_large):
    """(name, bytes) of the topologies in the onnx package, whose weights are made by ConstantOfShape."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for path in sorted(folder.glob("*.onnx")):
        if (path.stem in LARGE) == is_large:
            yield path.stem, path.read_bytes()
