"""Cases of ONNX Runtime's own operators (`com.microsoft`), with its results: folders as those of onnx_cases.py.

Each case is one node over random numbers from a fixed seed, run without graph optimization.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper



class Random:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def f32(self, *dims, scale=1.0):
        return (self.rng.standard_normal(dims) * scale).astype(np.float32)

    def positive(self, *dims):
        return self.rng.uniform(0.01, 0.05, dims).astype(np.float32)

    def u8(self, *dims):
        return self.rng.integers(0, 256, dims).astype(np.uint8)

    # Seven bits: ONNX Runtime's 16-bit sums of two products saturate on CPUs without VNNI.
    def s8(self, *dims):
        return self.rng.integers(-63, 64, dims).astype(np.int8)

    def below(self, n, *dims, dtype=np.int32):
        return self.rng.integers(0, n, dims).astype(dtype)

    def mask(self, *dims):
        mask = (self.rng.uniform(size=dims) < 0.7).astype(np.int32)
        mask[..., 0] = 1
        return mask


def angles(rows, half):
    angle = np.arange(rows)[:, None] / 10.0 ** (np.arange(half) / half)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def normalizations(r):
    for rank, x in (("3d", r.f32(2, 5, 24)), ("row", r.f32(3, 1, 8))):
        n = x.shape[-1]
        yield f"skip_layer_norm_{rank}", "SkipLayerNormalization", [x, r.f32(*x.shape), r.f32(n), r.f32(n)], 1, {}
        inputs = [x, r.f32(*x.shape[1:]), r.f32(n), None, r.f32(n)]
        yield f"skip_layer_norm_bias_{rank}", "SkipLayerNormalization", inputs, [0, 3], {"epsilon": 1e-5}
        inputs = [x, r.f32(*x.shape), r.f32(n)]
        yield f"skip_rms_norm_{rank}", "SkipSimplifiedLayerNormalization", inputs, 1, {"epsilon": 1e-6}
        inputs = [x, r.f32(*x.shape), r.f32(n), r.f32(n)]
        yield f"skip_rms_norm_bias_{rank}", "SkipSimplifiedLayerNormalization", inputs, [0, 3], {}
        yield f"rms_norm_{rank}", ":SimplifiedLayerNormalization", [x, r.f32(n)], 1, {"axis": -1, "epsilon": 1e-6}
    ids, segments = r.below(30, 2, 6), r.below(2, 2, 6)
    tables = [r.f32(30, 16), r.f32(10, 16), r.f32(2, 16)]
    norm = [r.f32(16), r.f32(16)]
    yield "embed", "EmbedLayerNormalization", [ids, segments, *tables, *norm, r.mask(2, 6)], 2, {}
    inputs = [ids, None, *tables[:2], None, *norm, None, r.below(10, 2, 6)]
    yield "embed_positions", "EmbedLayerNormalization", inputs, [0, 2], {"epsilon": 1e-6}


def activations(r):
    x = r.f32(2, 3, 40, scale=3)
    yield "bias_gelu", "BiasGelu", [x, r.f32(40)], 1, {}
    yield "fast_gelu", "FastGelu", [x], 1, {}
    yield "fast_gelu_bias", "FastGelu", [x, r.f32(40)], 1, {}
    yield "quick_gelu", "QuickGelu", [x], 1, {}
    yield "quick_gelu_alpha", "QuickGelu", [x], 1, {"alpha": 1.0}
    for activation, params in (("Relu", None), ("Tanh", None), ("LeakyRelu", [0.2]), ("Clip", [-0.5, 0.5])):
        attrs = {"activation": activation, "kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "group": 2}
        if params:
            attrs["activation_params"] = params
        yield f"fused_conv_{activation}", "FusedConv", [r.f32(1, 4, 5, 6), r.f32(6, 2, 3, 3), r.f32(6)], 1, attrs
    inputs = [r.f32(2, 4, 5, 6), r.f32(6, 4, 1, 1), r.f32(6), r.f32(2, 6, 5, 6)]
    yield "fused_conv_sum", "FusedConv", inputs, 1, {"activation": "Relu"}
    for activation, attrs in (
        ("Relu", {}),
        ("Sigmoid", {"transB": 1}),
        ("LeakyRelu", {"activation_alpha": 0.3, "alpha": 0.5}),
    ):
        b = r.f32(7, 6) if attrs.get("transB") else r.f32(6, 7)
        inputs = [r.f32(5, 6), b, r.f32(7)]
        yield f"fused_gemm_{activation}", "FusedGemm", inputs, 1, {"activation": activation, **attrs}
    for a, b in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = r.f32(2, *((4, 3) if a else (3, 4))), r.f32(2, *((5, 4) if b else (4, 5)))
        yield f"fused_matmul_{a}{b}", "FusedMatMul", [x, y], 1, {"transA": a, "transB": b, "alpha": 0.5}
    inputs = [r.f32(3, 2, 4), r.f32(4, 2, 5)]
    yield "fused_matmul_batch", "FusedMatMul", inputs, 1, {"transBatchA": 1, "transBatchB": 1, "transB": 0}
    attrs = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
    zero, scale = np.uint8(120), np.float32(0.02)
    x = [r.u8(2, 7, 6, 4), scale, zero]
    wide = [np.float32(0.06), zero]
    inputs = [*x, r.s8(6, 2, 3, 3), np.float32(0.01), np.int8(0), *wide, r.below(500, 6)]
    attrs_conv = {"channels_last": 1, "group": 2, "pads": [1, 0, 1, 1], "strides": [2, 1]}
    yield "nhwc_q_conv", "QLinearConv", inputs, 1, attrs_conv
    yield "nhwc_q_average_pool", "QLinearAveragePool", [*x, *wide], 1, {"channels_last": 1, **attrs}
    yield "nhwc_q_global_average_pool", "QLinearGlobalAveragePool", [*x, *wide], 1, {"channels_last": 1}
    yield "nhwc_max_pool", "NhwcMaxPool", [r.u8(2, 7, 6, 5)], 1, attrs


def attention(r):
    hidden, heads, batch, length, past = 16, 4, 2, 5, 3
    x, w, b = r.f32(batch, length, 12), r.f32(12, 3 * hidden, scale=0.3), r.f32(3 * hidden)
    own = {"num_heads": heads}
    yield "attention", "Attention", [x, w, b], 1, own
    yield "attention_no_bias", "Attention", [x, w], 1, own
    yield "attention_scale", "Attention", [x, w, b], 1, {**own, "scale": 0.3}
    yield "attention_causal", "Attention", [x, w, b], 2, {**own, "unidirectional": 1}
    yield "attention_mask", "Attention", [x, w, b, r.mask(batch, length)], 1, own
    yield "attention_mask_3d", "Attention", [x, w, b, r.mask(batch, length, length)], 1, own
    yield "attention_mask_causal", "Attention", [x, w, b, r.mask(batch, length)], 1, {**own, "unidirectional": 1}
    yield "attention_lengths", "Attention", [x, w, b, np.array([3, 5], np.int32)], 1, own
    yield "attention_ends", "Attention", [x, w, b, np.array([4, 5, 1, 0], np.int32)], 1, own
    cache = r.f32(2, batch, heads, past, hidden // heads)
    yield "attention_past", "Attention", [x, w, b, None, cache], 2, {**own, "unidirectional": 1}
    yield "attention_past_mask", "Attention", [x, w, b, r.mask(batch, past + length), cache], 2, own
    yield "attention_bias", "Attention", [x, w, b, None, None, r.f32(batch, heads, length, length)], 1, own
    sizes = r.f32(12, 8 + 8 + 12, scale=0.3)
    yield "attention_sizes", "Attention", [x, sizes, r.f32(28)], 1, {**own, "qkv_hidden_sizes": [8, 8, 12]}

    q, k, v = r.f32(batch, length, hidden), r.f32(batch, 7, hidden), r.f32(batch, 7, 20)
    multi = "MultiHeadAttention"
    yield "multi_head", multi, [q, k, v], 1, own
    yield "multi_head_bias", multi, [q, k, v, r.f32(2 * hidden + 20)], 1, {**own, "scale": 0.2}
    yield "multi_head_mask", multi, [q, k, v, None, r.mask(batch, 7)], 1, own
    yield "multi_head_mask_3d", multi, [q, k, v, None, r.mask(batch, length, 7)], 1, own
    yield "multi_head_attention_bias", multi, [q, k, v, None, None, r.f32(1, heads, length, 7)], 1, own
    k, v = r.f32(batch, length, hidden), r.f32(batch, length, hidden)
    yield "multi_head_causal", multi, [q, k, v], 1, {**own, "unidirectional": 1}
    cache = [r.f32(batch, heads, past, hidden // heads) for _ in range(2)]
    inputs = [q, k, v, r.f32(3 * hidden), None, None, *cache]
    yield "multi_head_past", multi, inputs, 3, {**own, "unidirectional": 1}
    cross = [r.f32(batch, heads, 7, hidden // heads) for _ in range(2)]
    yield "multi_head_cross", multi, [q, *cross], 1, own
    # The CPU kernel does not take packed heads: what it gives for them apart.
    packed = r.f32(batch, length, heads, 3, hidden // heads)
    apart = [np.ascontiguousarray(packed[:, :, :, i]).reshape(batch, length, hidden) for i in range(3)]
    bias = r.f32(3 * hidden)
    yield "multi_head_packed", multi, [packed, None, None, bias], 1, own, [*apart, bias]
    inputs = [apart[0], np.ascontiguousarray(packed[:, :, :, 1:])]
    yield "multi_head_packed_keys", multi, [*inputs, None, bias], 1, own, [*apart, bias]

    group = "GroupQueryAttention"
    own = {"num_heads": heads, "kv_num_heads": 2}
    size = 16
    q, k, v = r.f32(batch, length, heads * size), r.f32(batch, length, 2 * size), r.f32(batch, length, 2 * size)
    prompt = [np.full(batch, length - 1, np.int32), np.array(length, np.int32)]
    none = [None, None]
    yield "group_query_prompt", group, [q, k, v, *none, *prompt], 3, own
    yield "group_query_packed", group, [np.concatenate([q, k, v], 2), None, None, *none, *prompt], 3, own
    cos, sin = angles(16, size // 2)
    inputs = [q, k, v, *none, *prompt, cos, sin]
    yield "group_query_rotary", group, inputs, 3, {**own, "do_rotary": 1}
    yield "group_query_interleaved", group, inputs, 3, {**own, "do_rotary": 1, "rotary_interleaved": 1}
    one = [x[:, :1] for x in (q, k, v)]
    cache = [r.f32(batch, 2, 6, size) for _ in range(2)]
    step = [np.full(batch, 6, np.int32), np.array(7, np.int32)]
    yield "group_query_step", group, [*one, *cache, *step, cos, sin], 3, {**own, "do_rotary": 1}
    yield "group_query_window", group, [*one, *cache, *step], 3, {**own, "local_window_size": 3}
    yield "group_query_softcap", group, [*one, *cache, *step], 3, {**own, "softcap": 0.7, "scale": 0.5}
    yield "group_query_smooth", group, [q, k, v, *none, *prompt], 3, {**own, "smooth_softmax": 1}
    sink = [None, None, None, None, r.f32(heads)]
    yield "group_query_sink", group, [q, k, v, *none, *prompt, *sink], 3, own
    shared = [r.f32(batch, 2, 12, size) for _ in range(2)]
    yield "group_query_shared", group, [*one, *shared, *step], 3, own
    bias = [None, None, None, r.f32(1, heads, length, length)]
    yield "group_query_bias", group, [q, k, v, *none, *prompt, *bias], 3, own

    x = r.f32(batch, length, heads * size)
    rotary = "RotaryEmbedding"
    yield "rotary", rotary, [x, np.array([3], np.int64), cos, sin], 1, {}
    yield "rotary_positions", rotary, [x, r.below(16, batch, length, dtype=np.int64), cos, sin], 1, {"interleaved": 1}
    inputs = [r.f32(batch, heads, length, size), np.array([0], np.int64), cos, sin]
    yield "rotary_4d", rotary, inputs, 1, {}
    cos, sin = angles(16, 2)
    attrs = {"num_heads": heads, "rotary_embedding_dim": 4}
    yield "rotary_part", rotary, [x, np.array([1], np.int64), cos, sin], 1, attrs


def quantized(r):
    hidden, heads = 16, 4
    x, w, b = r.u8(2, 5, 12), r.s8(12, 3 * hidden), r.f32(3 * hidden)
    scales = [np.float32(0.02), np.float32(0.01)]
    zeros = [np.uint8(120), np.int8(2)]
    attrs = {"num_heads": heads}
    yield "q_attention", "QAttention", [x, w, b, *scales, None, *zeros], 1, attrs
    inputs = [x, w, b, *scales, r.mask(2, 5), *zeros]
    yield "q_attention_causal", "QAttention", inputs, 1, {**attrs, "unidirectional": 1}
    for kind in (0, 1):
        k, n, block = 64, 6, 32
        packed, absmax = r.u8(k * n // 2), r.positive(k * n // block)
        attrs = {"K": k, "N": n, "block_size": block, "quant_type": kind}
        yield f"matmul_bnb4_{kind}", "MatMulBnb4", [r.f32(2, 3, k), packed, absmax], 1, attrs
    for bits in (4, 8):
        n, block = 64, 16
        data, scale = r.u8(10, n * bits // 8), r.positive(10, n // block)
        at = r.below(10, 2, 3, dtype=np.int64)
        attrs = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        yield f"gather_blocks_{bits}", "GatherBlockQuantized", [data, at, scale], 1, attrs
        zero = r.u8(10, n // block * bits // 8)
        yield f"gather_blocks_zero_{bits}", "GatherBlockQuantized", [data, at, scale, zero], 1, attrs
    for direction, n in (("forward", 1), ("bidirectional", 2)):
        n_in, size = 6, 5
        w, rec = r.s8(n, n_in, 4 * size), r.s8(n, size, 4 * size)
        scale = [r.positive(n, 4 * size), np.zeros((n, 4 * size), np.int8)]
        inputs = [r.f32(4, 1, n_in), w, rec, r.f32(n, 8 * size), None, None, None, None, *scale, *scale]
        attrs = {"hidden_size": size, "direction": direction}
        yield f"dynamic_quantize_lstm_{direction}", "DynamicQuantizeLSTM", inputs, 3, attrs


def cases():
    r = Random(20260101)
    for family in (normalizations, activations, attention, quantized):
        yield from family(r)


def model_of(operator, inputs, outputs, attrs):
    """One node. An operator whose name begins with a colon is of the default domain."""
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    wanted = range(outputs) if isinstance(outputs, int) else outputs
    out_names = [f"y{i}" if i in wanted else "" for i in range(max(wanted) + 1)]
    domain = "" if operator.startswith(":") else "com.microsoft"
    node = helper.make_node(operator.removeprefix(":"), names, out_names, domain=domain, **attrs)
    graph_inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.asarray(x).dtype), np.shape(x))
        for name, x in zip(names, inputs, strict=True)
        if name
    ]
    graph_outputs = [onnx.ValueInfoProto(name=name) for name in out_names if name]
    graph = helper.make_graph([node], "case", graph_inputs, graph_outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def feeds_of(inputs):
    return {f"x{i}": np.asarray(x) for i, x in enumerate(inputs) if x is not None}


def write_cases(out):
    """All cases; returns how many."""
    n = 0
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for name, operator, inputs, outputs, attrs, *instead in cases():
        model = model_of(operator, inputs, outputs, attrs)
        # What ONNX Runtime is given where its CPU kernel does not take the case's own form.
        asked = instead[0] if instead else inputs
        asked_model = model_of(operator, asked, outputs, attrs).SerializeToString()
        session = onnxruntime.InferenceSession(asked_model, options, providers=["CPUExecutionProvider"])
        results = session.run(None, feeds_of(asked))
        feeds = feeds_of(inputs)
        for value, result in zip(model.graph.output, results, strict=True):
            elem = helper.np_dtype_to_tensor_dtype(result.dtype)
            value.CopyFrom(helper.make_tensor_value_info(value.name, elem, [None] * result.ndim))
        folder = out / name
        data = folder / "test_data_set_0"
        data.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
        for kind, values in (("input", feeds.values()), ("output", results)):
            for i, value in enumerate(values):
                tensor = numpy_helper.from_array(np.asarray(value), f"{kind}_{i}")
                (data / f"{kind}_{i}.pb").write_bytes(tensor.SerializeToString())
        n += 1
    return n


