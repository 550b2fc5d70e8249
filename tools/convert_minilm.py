"""all-MiniLM-L6-v2's weights as an ONNX model, with the operators that exporters write for a BERT encoder."""

import json
import struct

import numpy as np
from onnx import TensorProto, helper

from graph_builder import GraphBuilder

DTYPES = {"F32": np.float32, "I64": np.int64}


def load_safetensors(path):
    """The tensors of a safetensors file as {name: array}."""
    with open(path, "rb") as file:
        (header_size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_size))
        data = file.read()
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


class Converter:
    def __init__(self, tensors, config):
        self.tensors, self.config = tensors, config
        self.graph = GraphBuilder()

    def op(self, op_type, inputs, name, **attributes):
        return self.graph.node(op_type, inputs, name, **attributes)

    def weight(self, name):
        return self.graph.const(name, self.tensors[name])

    def linear(self, x, name):
        """MatMul by the transposed weight, then Add."""
        weight = self.graph.const(f"{name}.weight_T", self.tensors[f"{name}.weight"].T)
        x = self.op("MatMul", [x, weight], f"{name}/MatMul")
        return self.op("Add", [x, self.weight(f"{name}.bias")], f"{name}/Add")

    def layer_norm(self, x, name):
        inputs = [x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.op("LayerNormalization", inputs, name, axis=-1, epsilon=self.config["layer_norm_eps"])

    def gelu(self, x, name):
        """x * (1 + erf(x / sqrt(2))) / 2, in the operators that exporters write."""
        erf = self.op("Div", [x, self.graph.const("sqrt_2", np.float32(2**0.5))], f"{name}/Div")
        erf = self.op("Erf", [erf], f"{name}/Erf")
        erf = self.op("Add", [erf, self.graph.const("one", np.float32(1))], f"{name}/Add")
        x = self.op("Mul", [x, erf], f"{name}/Mul")
        return self.op("Mul", [x, self.graph.const("half", np.float32(0.5))], f"{name}/Mul_1")

    def embeddings(self):
        """Word, token type and position embeddings added up; positions are 0, 1, ... up to the input's length."""
        words = self.op("Gather", [self.weight("embeddings.word_embeddings.weight"), "input_ids"], "embeddings.words")
        types = self.op(
            "Gather", [self.weight("embeddings.token_type_embeddings.weight"), "token_type_ids"], "embeddings.types"
        )
        zero, one = self.graph.const("zero_i64", np.int64(0)), self.graph.const("one_i64", np.int64(1))
        shape = self.op("Shape", ["input_ids"], "embeddings.shape")
        length = self.op("Gather", [shape, one], "embeddings.length", axis=0)
        positions = self.op("Range", [zero, length, one], "embeddings.range")
        positions = self.op(
            "Gather", [self.weight("embeddings.position_embeddings.weight"), positions], "embeddings.positions"
        )
        x = self.op("Add", [words, types], "embeddings.Add")
        x = self.op("Add", [x, positions], "embeddings.Add_1")
        return self.layer_norm(x, "embeddings.LayerNorm")

    def attention_bias(self):
        """0 where a token counts and -10000 where it is padding, as [N, 1, 1, S]."""
        axes = self.graph.const("axes_1_2", np.array([1, 2], np.int64))
        mask = self.op("Unsqueeze", ["attention_mask", axes], "mask.Unsqueeze")
        mask = self.op("Cast", [mask], "mask.Cast", to=TensorProto.FLOAT)
        mask = self.op("Sub", [self.graph.const("one", np.float32(1)), mask], "mask.Sub")
        return self.op("Mul", [mask, self.graph.const("masked", np.float32(-10000))], "mask.Mul")

    def attention(self, x, bias, name):
        heads, hidden = self.config["num_attention_heads"], self.config["hidden_size"]
        split = self.graph.const("split_heads", np.array([0, 0, heads, hidden // heads], np.int64))
        merge = self.graph.const("merge_heads", np.array([0, 0, hidden], np.int64))
        # The keys come out transposed already: [N, heads, size, S].
        perms = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
        parts = {}
        for part, perm in perms.items():
            y = self.linear(x, f"{name}.self.{part}")
            y = self.op("Reshape", [y, split], f"{name}.self.{part}/Reshape")
            parts[part] = self.op("Transpose", [y], f"{name}.self.{part}/Transpose", perm=perm)
        scores = self.op("MatMul", [parts["query"], parts["key"]], f"{name}.scores/MatMul")
        root = self.graph.const("sqrt_head_size", np.float32((hidden // heads) ** 0.5))
        scores = self.op("Div", [scores, root], f"{name}.scores/Div")
        scores = self.op("Add", [scores, bias], f"{name}.scores/Add")
        weights = self.op("Softmax", [scores], f"{name}.softmax", axis=-1)
        y = self.op("MatMul", [weights, parts["value"]], f"{name}.context/MatMul")
        y = self.op("Transpose", [y], f"{name}.context/Transpose", perm=[0, 2, 1, 3])
        y = self.op("Reshape", [y, merge], f"{name}.context/Reshape")
        y = self.op("Add", [self.linear(y, f"{name}.output.dense"), x], f"{name}.output/Add")
        return self.layer_norm(y, f"{name}.output.LayerNorm")

    def layer(self, x, bias, name):
        x = self.attention(x, bias, f"{name}.attention")
        y = self.gelu(self.linear(x, f"{name}.intermediate.dense"), f"{name}.gelu")
        y = self.op("Add", [self.linear(y, f"{name}.output.dense"), x], f"{name}.output/Add")
        return self.layer_norm(y, f"{name}.output.LayerNorm")

    def sentence_embedding(self, x):
        """The mean over the tokens that count, scaled to length 1."""
        axis_1, axis_2 = (self.graph.const(f"axes_{i}", np.array([i], np.int64)) for i in (1, 2))
        mask = self.op("Unsqueeze", ["attention_mask", axis_2], "pool.Unsqueeze")
        mask = self.op("Cast", [mask], "pool.Cast", to=TensorProto.FLOAT)
        total = self.op("Mul", [x, mask], "pool.Mul")
        total = self.op("ReduceSum", [total, axis_1], "pool.ReduceSum", keepdims=0)
        count = self.op("ReduceSum", [mask, axis_1], "pool.ReduceSum_1", keepdims=0)
        mean = self.op("Div", [total, count], "pool.Div")
        self.graph.node("LpNormalization", [mean], "pool.norm", output="sentence_embedding", axis=-1, p=2)


def convert(tensors, config):
    """The model: three i64[N, S] inputs, `last_hidden_state` f32[N, S, H] and `sentence_embedding` f32[N, H]."""
    net = Converter(tensors, config)
    x, bias = net.embeddings(), net.attention_bias()
    for i in range(config["num_hidden_layers"]):
        x = net.layer(x, bias, f"encoder.layer.{i}")
    net.graph.node("Identity", [x], "last_hidden_state", output="last_hidden_state")
    net.sentence_embedding(x)
    hidden = config["hidden_size"]
    return net.graph.model(
        "minilm",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "S"])
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ],
        [
            helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["N", "S", hidden]),
            helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["N", hidden]),
        ],
        opset=17,
    )
