//! What holds for every operator in the table. A new one needs a line in [`case`], or these tests say so.

use midtread_graph::{AttrValue, DataType, Graph, Node, Tensor};
use midtread_ops::{
    Args, Eval, EvalCtx, InferCtx, Info, InputRole, OPS, OpDef, OutputRole, Pool, Role, SymDim,
    find,
};

#[test]
fn the_table_is_sorted_and_names_every_operator_once() {
    for pair in OPS.windows(2) {
        let name = |op: &OpDef| (op.domain, op.op_type);
        assert!(name(pair[0]) < name(pair[1]), "{:?} before {:?}", name(pair[0]), name(pair[1]));
    }
    for op in OPS {
        assert!(
            find(op.domain, op.op_type).is_some_and(|found| std::ptr::eq(found, *op)),
            "{}",
            op.op_type
        );
        assert!(op.versions.is_sorted_by(|a, b| a < b), "{}: {:?}", op.op_type, op.versions);
        assert!(op.versions.first().is_some_and(|&v| 1 <= v), "{}", op.op_type);
        assert!(matches!(op.domain, "" | "ai.onnx.preview" | "com.microsoft"), "{}", op.domain);
    }
    assert!(find("ai.onnx", "Conv").is_some(), "another name of the default domain");
    assert!(find("", "QLinearAdd").is_none());
}

#[test]
fn attributes_and_versions_that_are_not_known_are_refused() {
    let conv = find("", "Conv").unwrap();
    let node = Node::default().with_attr("group", AttrValue::Int(2));
    assert_eq!(conv.check(&node, 13), Ok(()));
    let later = node.with_attr("padding_mode", AttrValue::Int(1));
    assert_eq!(
        conv.check(&later, 99).unwrap_err().to_string(),
        "attribute `padding_mode` is not supported"
    );
    let layer_norm = find("", "LayerNormalization").unwrap();
    assert!(layer_norm.check(&Node::default(), 16).is_err());
    for op in OPS {
        assert!(op.attrs.is_sorted_by(|a, b| a < b), "{}: {:?}", op.op_type, op.attrs);
    }
}

#[test]
fn every_role_refers_to_inputs_that_are_quantized() {
    for op in OPS {
        match &op.role {
            Role::Quantized { inputs, output } => {
                assert!(!inputs.is_empty(), "{}", op.op_type);
                let quantized = |i: usize| {
                    matches!(inputs[i], InputRole::Activation | InputRole::Weight { .. })
                };
                assert!((0..inputs.len()).any(quantized), "{}", op.op_type);
                match *output {
                    OutputRole::SameAs(n) => assert!(quantized(n), "{}", op.op_type),
                    OutputRole::Fixed(min, max) => assert!(min < max, "{}", op.op_type),
                    _ => {}
                }
            }
            Role::Float(reason) => {
                // A clause that a sentence can end with.
                assert!(!reason.is_empty() && !reason.ends_with('.'), "{}: {reason}", op.op_type);
                assert!(reason.starts_with(char::is_lowercase), "{}: {reason}", op.op_type);
            }
            Role::Clamp { bounds } => {
                let node = Node { op_type: op.op_type.to_owned(), ..Node::default() };
                let (lo, hi) = bounds(&node, &|_| None).expect("no inputs that could be unknown");
                assert!(lo <= hi, "{}", op.op_type);
            }
            Role::Structural => {}
        }
    }
}

#[test]
fn weights_have_their_channels_where_the_operators_say() {
    let axis = |op_type: &str, node: &Node, rank: usize| {
        let Role::Quantized { inputs, .. } = &find("", op_type).unwrap().role else {
            panic!("{op_type}")
        };
        let InputRole::Weight { channel_axis } = inputs[usize::from(op_type != "Gather")] else {
            panic!("{op_type}")
        };
        channel_axis(node, rank)
    };
    let plain = Node::default();
    let turned = Node::default().with_attr("transB", AttrValue::Int(1));
    assert_eq!(axis("Conv", &plain, 4), Some(0));
    assert_eq!(axis("ConvTranspose", &plain, 4), Some(1));
    assert_eq!(axis("Gemm", &plain, 2), Some(1));
    assert_eq!(axis("Gemm", &turned, 2), Some(0));
    assert_eq!(axis("MatMul", &plain, 2), Some(1));
    assert_eq!(axis("MatMul", &plain, 3), Some(2));
    assert_eq!(axis("MatMul", &plain, 1), None);
    assert_eq!(axis("Gather", &plain, 2), None);
}

#[test]
fn clip_is_a_clamp_only_where_its_bounds_are_constant() {
    let Role::Clamp { bounds } = &find("", "Clip").unwrap().role else { panic!() };
    let mut graph = Graph::default();
    let [x, lo, hi, y] = ["x", "lo", "hi", "y"].map(|n| graph.intern(n));
    let node = Node::new("Clip", "", [x, lo, hi], [y]);
    let six = |i: usize| [None, Some(0.0), Some(6.0)][i];
    assert_eq!(bounds(&node, &six), Some((0.0, 6.0)));
    assert_eq!(bounds(&node, &|i| if i == 1 { Some(0.0) } else { None }), None);
    let node = Node::new("Clip", "", [x, lo], [y]);
    assert_eq!(bounds(&node, &six), Some((0.0, f32::INFINITY)));
    let old = Node::new("Clip", "", [x], [y]).with_attr("min", AttrValue::Float(-1.0));
    assert_eq!(bounds(&old, &|_| None), Some((-1.0, f32::INFINITY)));
}

/// Small numbers from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn size(&mut self) -> usize {
        1 + self.next(4)
    }

    fn f32s(&mut self, dims: &[usize]) -> Tensor {
        let n = dims.iter().product::<usize>();
        // Positive and at least 1, so that every function is defined.
        let values: Vec<f32> = (0..n).map(|_| 1.0 + self.next(64) as f32 * 0.125).collect();
        Tensor::from_slice(dims.to_vec(), &values).unwrap()
    }

    fn u8s(&mut self, dims: &[usize]) -> Tensor {
        let n = dims.iter().product::<usize>();
        let values: Vec<u8> = (0..n).map(|_| self.next(256) as u8).collect();
        Tensor::from_slice(dims.to_vec(), &values).unwrap()
    }

    fn bools(&mut self, dims: &[usize]) -> Tensor {
        let n = dims.iter().product::<usize>();
        let bits: Vec<u8> = (0..n).map(|_| self.next(2) as u8).collect();
        Tensor::from_slice(dims.to_vec(), &bits).unwrap().with_dtype(DataType::Bool).unwrap()
    }
}

/// A case of one operator: attributes, inputs, and how many outputs are wanted.
struct Case {
    attrs: Vec<(&'static str, AttrValue)>,
    inputs: Vec<Tensor>,
    n_outputs: usize,
}

fn i(value: usize) -> AttrValue {
    AttrValue::Int(value as i64)
}

fn list(values: &[usize]) -> AttrValue {
    AttrValue::Ints(values.iter().map(|&v| v as i64).collect())
}

fn int64s(values: &[usize]) -> Tensor {
    Tensor::vector(&values.iter().map(|&v| v as i64).collect::<Vec<_>>())
}

fn strings(dims: &[usize]) -> Tensor {
    let n = dims.iter().product::<usize>();
    let strings = (0..n).map(|i| ["ab", "", "aab", "b"][i % 4].into()).collect();
    Tensor::from_strings(dims.to_vec(), strings).unwrap()
}

/// A random case of an operator.
fn case(op: &OpDef, r: &mut Random) -> Case {
    let [a, b, c, d] = std::array::from_fn(|_| r.size());
    let image = [a, b, 3 + c, 3 + d];
    let (scale, zero) = (Tensor::scalar(0.5_f32), Tensor::scalar(3_u8));
    let mut attrs = Vec::new();
    let mut n_outputs = 1;
    let inputs = match (op.domain, op.op_type) {
        ("", "Conv" | "ConvInteger") => {
            attrs = vec![
                ("group", i(b)),
                ("strides", list(&[1 + a % 2, 1])),
                ("pads", list(&[1, 0, a, b])),
            ];
            let (x, w) = ([a, b * 2, 3 + c, 3 + d], [b * 3, 2, 2, 3]);
            match op.op_type {
                "Conv" => vec![r.f32s(&x), r.f32s(&w), r.f32s(&[b * 3])],
                _ => vec![r.u8s(&x), r.u8s(&w), zero, Tensor::scalar(7_u8)],
            }
        }
        (_, "QLinearConv") => {
            attrs = vec![
                ("auto_pad", AttrValue::String("SAME_UPPER".into())),
                ("strides", list(&[2, 2])),
            ];
            let mut x = image;
            if !op.domain.is_empty() {
                attrs.push(("channels_last", i(1)));
                x = [a, 3 + c, 3 + d, b];
            }
            let (x, w) = (r.u8s(&x), r.u8s(&[d, b, 3, 3]));
            vec![x, scale.clone(), zero.clone(), w, scale.clone(), zero.clone(), scale, zero]
        }
        ("", "ConvTranspose") => {
            attrs = vec![("strides", list(&[2, 1])), ("output_padding", list(&[1, 0]))];
            vec![r.f32s(&image), r.f32s(&[b, c, 2, 3])]
        }
        ("", "MaxPool") => {
            (attrs, n_outputs) = (
                vec![
                    ("kernel_shape", list(&[2, 3])),
                    ("ceil_mode", i(1)),
                    ("strides", list(&[2, 2])),
                ],
                2,
            );
            vec![r.f32s(&image)]
        }
        ("", "AveragePool" | "LpPool") => {
            attrs = vec![("kernel_shape", list(&[3, 2])), ("pads", list(&[1, 1, 1, 0]))];
            vec![r.f32s(&image)]
        }
        ("", "BatchNormalization") => {
            let mut inputs = vec![r.f32s(&image)];
            inputs.extend((0..4).map(|_| r.f32s(&[b])));
            inputs
        }
        ("", "InstanceNormalization" | "GroupNormalization") => {
            attrs =
                if op.op_type.starts_with('G') { vec![("num_groups", i(b))] } else { Vec::new() };
            vec![r.f32s(&image), r.f32s(&[b]), r.f32s(&[b])]
        }
        ("", "LayerNormalization") => {
            (attrs, n_outputs) = (vec![("axis", i(2))], 1 + 2 * (a % 2));
            vec![r.f32s(&image), r.f32s(&image[2..]), r.f32s(&image[2..])]
        }
        ("", "RMSNormalization") => vec![r.f32s(&image), r.f32s(&image[3..])],
        ("", "LRN") => {
            attrs = vec![("size", i(3))];
            vec![r.f32s(&image)]
        }
        ("", "MatMul") | ("com.microsoft", "FusedMatMul") => {
            vec![r.f32s(&[a, 1, b, c]), r.f32s(&[d, c, 2])]
        }
        ("", "MatMulInteger") => vec![r.u8s(&[a, b, c]), r.u8s(&[c, d]), zero, r.u8s(&[d])],
        ("com.microsoft", "DynamicQuantizeMatMul") => {
            vec![r.f32s(&[a, b, c]), r.u8s(&[c, d]), r.f32s(&[d]), r.u8s(&[d])]
        }
        ("com.microsoft", "MatMulIntegerToFloat") => {
            vec![
                r.u8s(&[a, b, c]),
                r.u8s(&[c, d]),
                scale,
                r.f32s(&[d]),
                zero,
                r.u8s(&[d]),
                r.f32s(&[d]),
            ]
        }
        ("com.microsoft", "MatMulNBits") => {
            attrs = vec![("K", i(20)), ("N", i(d)), ("bits", i(4)), ("block_size", i(16))];
            vec![r.f32s(&[a, 20]), r.u8s(&[d, 2, 8]), r.f32s(&[d, 2]), r.u8s(&[d, 1])]
        }
        ("", "QLinearMatMul") => {
            let (x, y) = (r.u8s(&[a, b, c]), r.u8s(&[c, d]));
            vec![x, scale.clone(), zero.clone(), y, scale.clone(), zero.clone(), scale, zero]
        }
        ("com.microsoft", "QGemm") => {
            attrs = vec![("transB", i(1))];
            let (x, y) = (r.u8s(&[a, b]), r.u8s(&[c, b]));
            vec![
                x,
                scale.clone(),
                zero.clone(),
                y,
                scale.clone(),
                zero.clone(),
                Tensor::vector(&vec![1_i32; c]),
                scale,
                zero,
            ]
        }
        ("", "Gemm") => {
            attrs = vec![("transA", i(a % 2)), ("transB", i(1)), ("alpha", AttrValue::Float(0.5))];
            let lhs = if a % 2 == 0 { [2, b] } else { [b, 2] };
            vec![r.f32s(&lhs), r.f32s(&[c, b]), r.f32s(&[1, c])]
        }
        ("com.microsoft", "QLinearAdd" | "QLinearMul") => {
            let (x, y) = (r.u8s(&[a, b, c]), r.u8s(&[b, 1]));
            vec![x, scale.clone(), zero.clone(), y, scale.clone(), zero.clone(), scale, zero]
        }
        ("com.microsoft", "QLinearConcat") => {
            attrs = vec![("axis", i(1))];
            let (x, y) = (r.u8s(&[a, b]), r.u8s(&[a, c]));
            vec![
                scale.clone(),
                zero.clone(),
                x,
                scale.clone(),
                zero.clone(),
                y,
                Tensor::scalar(0.25_f32),
                zero,
            ]
        }
        ("com.microsoft", "QLinearAveragePool") => {
            attrs = vec![("kernel_shape", list(&[2, 2])), ("channels_last", i(a % 2))];
            let x = if a % 2 == 0 { image } else { [a, 3 + c, 3 + d, b] };
            vec![r.u8s(&x), scale.clone(), zero.clone(), scale, zero]
        }
        ("com.microsoft", "QLinearWhere") => {
            let (condition, x, y) = (r.bools(&[a, 1]), r.u8s(&[1, b]), r.u8s(&[c, 1, 1]));
            let other = Tensor::scalar(0.25_f32);
            vec![condition, x, scale.clone(), zero.clone(), y, other, zero.clone(), scale, zero]
        }
        ("com.microsoft", op) if op.starts_with("QLinear") => {
            vec![r.u8s(&image), scale.clone(), zero.clone(), scale, zero]
        }
        (_, "QuantizeLinear") => {
            attrs = vec![("axis", i(1))];
            vec![r.f32s(&image), r.f32s(&[b]), r.u8s(&[b])]
        }
        (_, "DequantizeLinear") => {
            attrs = vec![("axis", i(1))];
            vec![r.u8s(&image), r.f32s(&[b]), r.u8s(&[b])]
        }
        ("", "DynamicQuantizeLinear") => {
            n_outputs = 3;
            vec![r.f32s(&image)]
        }
        ("", "And" | "Or" | "Xor") => vec![r.bools(&[a, 1, b]), r.bools(&[c, b])],
        ("", "Not") => vec![r.bools(&image)],
        ("", "Where") => vec![r.bools(&[a, 1]), r.f32s(&[1, b]), r.f32s(&[c, 1, 1])],
        (
            "",
            "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" | "Equal" | "Less" | "LessOrEqual"
            | "Greater" | "GreaterOrEqual",
        ) => vec![r.f32s(&[a, 1, b]), r.f32s(&[c, b])],
        ("", "Max" | "Min" | "Sum" | "Mean") => {
            vec![r.f32s(&[a, 1, b]), r.f32s(&[c, b]), r.f32s(&[1])]
        }
        ("", "PRelu") => vec![r.f32s(&image), r.f32s(&[b, 1, 1])],
        ("", "Clip") => vec![r.f32s(&image), Tensor::scalar(1.5_f32), Tensor::scalar(6.0_f32)],
        ("", "Cast") => {
            attrs = vec![("to", AttrValue::Int(i64::from(DataType::Int32.to_onnx())))];
            vec![r.f32s(&image)]
        }
        ("", "CastLike") => vec![r.f32s(&image), r.u8s(&[1])],
        ("", "Constant") => {
            attrs = vec![("value", AttrValue::Tensor(r.f32s(&image)))];
            Vec::new()
        }
        ("", "ConstantOfShape") => {
            attrs = vec![("value", AttrValue::Tensor(Tensor::vector(&[7_i64])))];
            vec![int64s(&[a, b])]
        }
        ("", "Range") => {
            vec![Tensor::scalar(2_i64), Tensor::scalar(2 + 3 * a as i64), Tensor::scalar(b as i64)]
        }
        ("", "Shape") => {
            attrs = vec![("start", AttrValue::Int(-3)), ("end", i(3))];
            vec![r.f32s(&image)]
        }
        ("", "Dropout") => {
            n_outputs = 2;
            vec![r.f32s(&image)]
        }
        ("", "Reshape") => vec![r.f32s(&image), Tensor::vector(&[0_i64, -1, (3 + d) as i64])],
        ("", "Flatten") => {
            attrs = vec![("axis", i(2))];
            vec![r.f32s(&image)]
        }
        ("", "Squeeze") => vec![r.f32s(&[a, 1, b, 1]), Tensor::vector(&[-1_i64])],
        ("", "Unsqueeze") => vec![r.f32s(&[a, b]), Tensor::vector(&[0_i64, -1])],
        ("", "Transpose") => {
            attrs = vec![("perm", list(&[2, 0, 3, 1]))];
            vec![r.f32s(&image)]
        }
        ("", "Expand") => vec![r.f32s(&[a, 1, b]), int64s(&[c, 1, d, 1])],
        ("", "Tile") => vec![r.f32s(&[a, b, c]), int64s(&[2, 1, d])],
        ("", "DepthToSpace" | "SpaceToDepth") => {
            attrs = vec![("blocksize", i(2))];
            vec![r.f32s(&[a, 4 * b, 2 * c, 2 * d])]
        }
        ("", "Gather") => {
            attrs = vec![("axis", i(1))];
            vec![r.f32s(&image), Tensor::from_slice(vec![1, 2], &[0_i64, -1]).unwrap()]
        }
        ("", "GatherElements") => {
            attrs = vec![("axis", i(1))];
            vec![r.f32s(&[2, b]), Tensor::from_slice(vec![2, 1], &[0_i64, -1]).unwrap()]
        }
        ("", "GatherND") => {
            vec![r.f32s(&[a, b, c]), Tensor::from_slice(vec![3, 1, 2], &[0_i64; 6]).unwrap()]
        }
        ("", "ScatterElements") => {
            attrs = vec![("axis", i(1))];
            vec![
                r.f32s(&[2, b]),
                Tensor::from_slice(vec![2, 1], &[0_i64, -1]).unwrap(),
                r.f32s(&[2, 1]),
            ]
        }
        ("", "Concat") => {
            attrs = vec![("axis", AttrValue::Int(-2))];
            vec![r.f32s(&[a, b, c]), r.f32s(&[a, d, c]), r.f32s(&[a, 0, c])]
        }
        ("", "Split") => {
            (attrs, n_outputs) = (vec![("axis", i(1))], 2);
            vec![r.f32s(&[a, b + c]), int64s(&[b, c])]
        }
        ("", "Slice") => vec![
            r.f32s(&image),
            Tensor::vector(&[1_i64, -1]),
            Tensor::vector(&[i64::MAX, i64::MIN]),
            Tensor::vector(&[2_i64, -1]),
            Tensor::vector(&[2_i64, -1]),
        ],
        ("", "Pad") => {
            attrs = vec![("mode", AttrValue::String("reflect".into()))];
            vec![r.f32s(&[3 + a, 3 + b]), Tensor::vector(&[1_i64, 0, 2, -1])]
        }
        ("", "Trilu") => vec![r.f32s(&image), Tensor::scalar(1_i64)],
        ("", "OneHot") => vec![int64s(&[0, 1]), Tensor::scalar(a as i64), r.f32s(&[2])],
        ("", "ReverseSequence") => vec![r.f32s(&[3, 2, b]), int64s(&[1, 3])],
        ("", "Resize") => {
            attrs = vec![(
                "mode",
                AttrValue::String(if a % 2 == 0 { "nearest" } else { "linear" }.into()),
            )];
            let none = Tensor::vector::<f32>(&[]);
            vec![r.f32s(&image), none, Tensor::vector(&[1.0_f32, 1.0, 1.5, 0.6])]
        }
        ("", "Upsample") => vec![r.f32s(&image), Tensor::vector(&[1.0_f32, 1.0, 2.0, 1.5])],
        ("", "TopK") => {
            (attrs, n_outputs) = (vec![("axis", i(2))], 2);
            vec![r.f32s(&image), int64s(&[2])]
        }
        ("", "CumSum") => vec![r.f32s(&image), Tensor::scalar(-2_i64)],
        ("", "ArgMax" | "ArgMin") => {
            attrs = vec![("axis", i(1)), ("keepdims", i(a % 2))];
            vec![r.f32s(&image)]
        }
        ("", name) if name.starts_with("Reduce") => {
            attrs = vec![("keepdims", i(a % 2))];
            vec![r.f32s(&image), Tensor::vector(&[1_i64, -1])]
        }
        ("", "Attention") => {
            n_outputs = 3;
            let [q, k, v] =
                [[a, 2 * b, 3, d], [a, b, c, d], [a, b, c, 5]].map(|dims| r.f32s(&dims));
            vec![q, k, v, r.bools(&[3, c]), r.f32s(&[a, b, 2, d]), r.f32s(&[a, b, 2, 5])]
        }
        ("", "RotaryEmbedding") => {
            attrs = vec![("num_heads", i(b)), ("interleaved", i(a % 2))];
            vec![r.f32s(&[a, c, b * 4]), r.f32s(&[a, c, 2]), r.f32s(&[a, c, 2])]
        }
        ("", "BitShift") => {
            attrs = vec![("direction", AttrValue::String("LEFT".into()))];
            vec![r.u8s(&[a, 1, b]), r.u8s(&[c, b])]
        }
        ("", "BitwiseAnd" | "BitwiseOr" | "BitwiseXor") => vec![r.u8s(&[a, 1, b]), r.u8s(&[c, b])],
        ("", "BitwiseNot") => vec![r.u8s(&image)],
        ("", "Einsum") => {
            attrs = vec![("equation", AttrValue::String("...ij, jk -> ...ki".into()))];
            vec![r.f32s(&[a, b, c]), r.f32s(&[c, d])]
        }
        ("", "RNN" | "GRU" | "LSTM") => {
            let gates = match op.op_type {
                "RNN" => 1,
                "GRU" => 3,
                _ => 4,
            };
            n_outputs = if gates == 4 { 3 } else { 2 };
            attrs = vec![
                ("direction", AttrValue::String("bidirectional".into())),
                ("hidden_size", i(d)),
                ("layout", i(a % 2)),
            ];
            vec![r.f32s(&[a, b, c]), r.f32s(&[2, gates * d, c]), r.f32s(&[2, gates * d, d])]
        }
        ("", "Scatter") => {
            attrs = vec![("axis", i(1))];
            let at = Tensor::from_slice(vec![a, 1], &vec![-1_i64; a]).unwrap();
            vec![r.f32s(&[a, b]), at, r.f32s(&[a, 1])]
        }
        ("", "ScatterND") => {
            attrs = vec![("reduction", AttrValue::String("add".into()))];
            let at = Tensor::from_slice(vec![2, 1], &[0_i64, -1]).unwrap();
            vec![r.f32s(&[a, b]), at, r.f32s(&[2, b])]
        }
        ("", "TensorScatter") => {
            attrs = vec![("mode", AttrValue::String("circular".into()))];
            vec![r.f32s(&[a, b, 3, d]), r.f32s(&[a, b, 2, d]), int64s(&vec![2; a])]
        }
        ("", "Compress") => {
            attrs = vec![("axis", i(1))];
            vec![r.f32s(&[a, b, c]), r.bools(&[b])]
        }
        ("", "Unique") => {
            (attrs, n_outputs) = (vec![("axis", i(1))], 4);
            vec![r.f32s(&[a, b])]
        }
        ("", "NonMaxSuppression") => {
            vec![r.f32s(&[a, b, 4]), r.f32s(&[a, c, b]), int64s(&[2]), Tensor::scalar(0.5_f32)]
        }
        ("", "GridSample") => {
            attrs = vec![("padding_mode", AttrValue::String("reflection".into()))];
            vec![r.f32s(&image), r.f32s(&[a, c, d, 2])]
        }
        ("", "RoiAlign") => {
            attrs = vec![("output_height", i(2)), ("output_width", i(d))];
            vec![r.f32s(&image), r.f32s(&[2, 4]), int64s(&[0, a - 1])]
        }
        ("", "EyeLike") => {
            attrs = vec![("k", i(1))];
            vec![r.f32s(&[a, b])]
        }
        ("", "MeanVarianceNormalization") => vec![r.f32s(&image)],
        ("", "AffineGrid") => vec![r.f32s(&[a, 2, 3]), int64s(&[a, b, c, d])],
        ("", "Bernoulli" | "RandomNormalLike" | "RandomUniformLike") => vec![r.f32s(&image)],
        ("", "RandomNormal" | "RandomUniform") => {
            attrs = vec![("shape", list(&[a, b]))];
            Vec::new()
        }
        ("", "Multinomial") => {
            attrs = vec![("sample_size", i(c))];
            vec![r.f32s(&[a, b])]
        }
        ("", "BitCast") => {
            attrs = vec![("to", AttrValue::Int(i64::from(DataType::Int32.to_onnx())))];
            vec![r.f32s(&image)]
        }
        ("", "BlackmanWindow" | "HammingWindow" | "HannWindow") => vec![Tensor::scalar(a as i64)],
        ("", "MelWeightMatrix") => vec![
            Tensor::scalar(a as i64),
            Tensor::scalar(16_i64),
            Tensor::scalar(8192_i64),
            Tensor::scalar(0.0_f32),
            Tensor::scalar(4096.0_f32),
        ],
        ("", "DFT") => {
            attrs = vec![("onesided", i(a % 2))];
            let length = Tensor::scalar((2 + d) as i64);
            vec![r.f32s(&[a, b, c, 1]), length, Tensor::scalar(-2_i64)]
        }
        ("", "STFT") => {
            attrs = vec![("onesided", i(a % 2))];
            vec![r.f32s(&[a, 10 + b, 1]), Tensor::scalar(c as i64), r.f32s(&[4 + d])]
        }
        ("", "CausalConvWithState") => {
            n_outputs = 2;
            vec![r.f32s(&[a, b, c]), r.f32s(&[b, 1, d]), r.f32s(&[b]), r.f32s(&[a, b, d - 1])]
        }
        ("", "LinearAttention") => {
            (attrs, n_outputs) = (vec![("q_num_heads", i(2 * b)), ("kv_num_heads", i(b))], 2);
            let inputs = [[a, c, 2 * b * d], [a, c, b * d], [a, c, b * 3]];
            let mut inputs: Vec<_> = inputs.iter().map(|dims| r.f32s(dims)).collect();
            inputs.push(r.f32s(&[a, b, d, 3]));
            inputs.extend([[a, c, b], [a, c, 1]].map(|dims| r.f32s(&dims)));
            inputs
        }
        ("", "CenterCropPad") => vec![r.f32s(&[a, b, 3]), int64s(&[c, d, 5])],
        ("", "Col2Im") => {
            attrs = vec![("strides", list(&[2, 1])), ("pads", list(&[0, 1, 1, 0]))];
            // Blocks of 2 x 3 in an image of 4 x 6 with that padding: 2 x 5 of them.
            vec![r.f32s(&[a, b * 6, 2 * 5]), int64s(&[4, 6]), int64s(&[2, 3])]
        }
        ("", "CumProd") => vec![r.f32s(&image), Tensor::scalar(-2_i64)],
        ("", "DeformConv") => {
            let (x, w) = (r.f32s(&[a, b, 4, 5]), r.f32s(&[c, b, 2, 3]));
            vec![x, w, r.f32s(&[a, 12, 3, 3]), r.f32s(&[c]), r.f32s(&[a, 6, 3, 3])]
        }
        ("", "Det") => vec![r.f32s(&[a, b, c, c])],
        ("", "MaxUnpool") => {
            attrs = vec![("kernel_shape", list(&[2, 2])), ("strides", list(&[2, 2]))];
            let at: Vec<i64> = (0..4).map(|i| i * 3).collect();
            let at = Tensor::from_slice(vec![1, 1, 2, 2], &at).unwrap();
            vec![r.f32s(&[1, 1, 2, 2]), at]
        }
        ("", "NegativeLogLikelihoodLoss" | "SoftmaxCrossEntropyLoss") => {
            let reduction = ["none", "sum", "mean"][a % 3];
            attrs = vec![("reduction", AttrValue::String(reduction.into()))];
            n_outputs = if op.op_type.starts_with('S') { 2 } else { 1 };
            let labels: Vec<i64> = (0..a * c).map(|i| (i % b) as i64).collect();
            let labels = Tensor::from_slice(vec![a, c], &labels).unwrap();
            vec![r.f32s(&[a, b, c]), labels, r.f32s(&[b])]
        }
        ("", "RegexFullMatch") => {
            attrs = vec![("pattern", AttrValue::String("a+b".into()))];
            vec![strings(&[a, b])]
        }
        ("", "StringConcat") => vec![strings(&[a, 1, b]), strings(&[c, b])],
        ("", "StringNormalizer") => vec![strings(&[a])],
        ("", "StringSplit") => {
            (attrs, n_outputs) = (vec![("delimiter", AttrValue::String("a".into()))], 2);
            vec![strings(&[a, b])]
        }
        ("", "TfIdfVectorizer") => {
            attrs = vec![
                ("max_gram_length", i(1)),
                ("mode", AttrValue::String("TF".into())),
                ("ngram_counts", list(&[0])),
                ("ngram_indexes", list(&[0, 2])),
                ("pool_int64s", list(&[5, 6])),
            ];
            vec![Tensor::from_slice(vec![a, b], &vec![5_i64; a * b]).unwrap()]
        }
        ("", "SwiGLU") => vec![r.f32s(&image), r.f32s(&image)],
        ("", "SimplifiedLayerNormalization") => {
            n_outputs = 2;
            vec![r.f32s(&image), r.f32s(&image[3..])]
        }
        ("com.microsoft", "BiasGelu" | "FastGelu") => vec![r.f32s(&image), r.f32s(&image[3..])],
        ("com.microsoft", "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization") => {
            vec![r.f32s(&[a, b, c]), r.f32s(&[b, c]), r.f32s(&[c]), r.f32s(&[c])]
        }
        ("com.microsoft", "EmbedLayerNormalization") => {
            n_outputs = 3;
            let ids = |n: usize| {
                let ids: Vec<i32> = (0..a * b).map(|i| (i % n) as i32).collect();
                Tensor::from_slice(vec![a, b], &ids).unwrap()
            };
            let mut inputs = vec![ids(c), ids(2)];
            inputs.extend([[c, d], [b, d], [2, d]].map(|dims| r.f32s(&dims)));
            inputs.extend([r.f32s(&[d]), r.f32s(&[d]), ids(1)]);
            inputs
        }
        ("com.microsoft", "Attention") => {
            (attrs, n_outputs) = (vec![("num_heads", i(2))], 2);
            vec![r.f32s(&[a, b, c]), r.f32s(&[c, 6 * d]), r.f32s(&[6 * d])]
        }
        ("com.microsoft", "QAttention") => {
            (attrs, n_outputs) = (vec![("num_heads", i(2))], 2);
            let (x, w) = (r.u8s(&[a, b, c]), r.u8s(&[c, 6 * d]));
            vec![x, w, r.f32s(&[6 * d]), scale.clone(), scale]
        }
        ("com.microsoft", "MultiHeadAttention") => {
            (attrs, n_outputs) = (vec![("num_heads", i(2))], 3);
            vec![r.f32s(&[a, b, 2 * c]), r.f32s(&[a, d, 2 * c]), r.f32s(&[a, d, 6])]
        }
        ("com.microsoft", "GroupQueryAttention") => {
            (attrs, n_outputs) = (vec![("num_heads", i(2)), ("kv_num_heads", i(1))], 3);
            let lens = Tensor::vector(&vec![(2 + b - 1) as i32; a]);
            let qkv = [[a, b, 2 * c], [a, b, c], [a, b, c]].map(|dims| r.f32s(&dims));
            let past = [0, 1].map(|_| r.f32s(&[a, 1, 2, c]));
            [qkv.to_vec(), past.to_vec(), vec![lens, Tensor::scalar((2 + b) as i32)]].concat()
        }
        ("com.microsoft", "RotaryEmbedding") => {
            attrs = vec![("interleaved", i(a % 2))];
            let at = Tensor::vector(&[0_i64]);
            vec![r.f32s(&[a, b, 4 * c]), at, r.f32s(&[b, 2]), r.f32s(&[b, 2])]
        }
        ("com.microsoft", "FusedConv") => {
            attrs = vec![("activation", AttrValue::String("Relu".into()))];
            vec![r.f32s(&image), r.f32s(&[c, b, 2, 3]), r.f32s(&[c])]
        }
        ("com.microsoft", "FusedGemm") => {
            attrs = vec![("activation", AttrValue::String("Tanh".into()))];
            vec![r.f32s(&[a, b]), r.f32s(&[b, c]), r.f32s(&[c])]
        }
        ("com.microsoft", "NhwcMaxPool") => {
            attrs = vec![("kernel_shape", list(&[2, 2])), ("strides", list(&[2, 1]))];
            vec![r.u8s(&[a, 3 + c, 3 + d, b])]
        }
        ("com.microsoft", "MatMulBnb4") => {
            let sizes = [("K", 20), ("N", d), ("block_size", 16), ("quant_type", a % 2)];
            attrs = sizes.map(|(name, n)| (name, i(n))).to_vec();
            let n = 20 * d;
            vec![r.f32s(&[a, 20]), r.u8s(&[n.div_ceil(2)]), r.f32s(&[n.div_ceil(16)])]
        }
        ("com.microsoft", "GatherBlockQuantized") => {
            attrs = vec![("block_size", i(16)), ("quantize_axis", i(1)), ("bits", i(8))];
            let at = Tensor::from_slice(vec![1, 2], &[0_i64, -1]).unwrap();
            vec![r.u8s(&[a, 32]), at, r.f32s(&[a, 2]), r.u8s(&[a, 2])]
        }
        ("com.microsoft", "DynamicQuantizeLSTM") => {
            (attrs, n_outputs) = (vec![("hidden_size", i(d))], 3);
            let (w, rec) = (r.u8s(&[1, c, 4 * d]), r.u8s(&[1, d, 4 * d]));
            let none = Tensor::from_slice(vec![1, 8 * d], &vec![0.0_f32; 8 * d]).unwrap();
            let lens = Tensor::vector(&vec![a as i32; b]);
            let state = || Tensor::from_slice(vec![1, b, d], &vec![0.0_f32; b * d]).unwrap();
            let peephole = Tensor::from_slice(vec![1, 3 * d], &vec![0.0_f32; 3 * d]).unwrap();
            let (s, z) = (Tensor::vector(&[0.5_f32]), Tensor::vector(&[3_u8]));
            let weights = [s.clone(), z.clone(), s, z];
            let first = vec![r.f32s(&[a, b, c]), w, rec, none, lens, state(), state(), peephole];
            [first, weights.to_vec()].concat()
        }
        // Operators of one tensor of floats, with their defaults.
        (
            "" | "com.microsoft",
            "Abs" | "Acos" | "Acosh" | "Asin" | "Asinh" | "Atan" | "Atanh" | "Ceil" | "Celu"
            | "Cos" | "Cosh" | "Elu" | "Erf" | "Exp" | "Floor" | "Gelu" | "GlobalAveragePool"
            | "GlobalMaxPool" | "HardSigmoid" | "HardSwish" | "Hardmax" | "Identity" | "IsInf"
            | "IsNaN" | "LeakyRelu" | "Log" | "LogSoftmax" | "LpNormalization" | "Mish" | "Neg"
            | "NonZero" | "Reciprocal" | "Relu" | "Round" | "Selu" | "Shrink" | "Sigmoid" | "Sign"
            | "Sin" | "Sinh" | "Size" | "Softmax" | "Softplus" | "Softsign" | "Sqrt" | "Swish"
            | "Tan" | "Tanh" | "ThresholdedRelu" | "QuickGelu",
        ) => vec![r.f32s(&image)],
        (domain, name) => panic!("no case of `{domain}` {name}"),
    };
    Case { attrs, inputs, n_outputs }
}

/// Runs the shape rule on inputs of which this much is known.
fn infer(
    op: &OpDef,
    node: &Node,
    inputs: &[Tensor],
    know: impl Fn(usize, &Tensor) -> Info,
) -> Vec<Info> {
    let infos: Vec<Option<Info>> =
        inputs.iter().enumerate().map(|(i, t)| Some(know(i, t))).collect();
    let n_fresh = std::cell::Cell::new(0);
    let mut ctx = InferCtx::new(node, opset(op), &infos, &n_fresh);
    (op.infer)(&mut ctx).unwrap_or_else(|err| panic!("{}: {err}", op.op_type));
    ctx.into_outputs()
}

fn opset(op: &OpDef) -> i64 {
    *op.versions.last().unwrap()
}

fn sizes(tensor: &Tensor) -> Vec<SymDim> {
    tensor.dims().iter().map(|&d| SymDim::known(d as i64)).collect()
}

/// The value of an expression over the symbols `d{input}_{axis}`.
fn evaluated(dim: &SymDim, inputs: &[Tensor]) -> Option<i64> {
    match dim.to_dim() {
        midtread_graph::Dim::Known(n) => Some(n as i64),
        midtread_graph::Dim::Symbol(text) => {
            let rest = text.strip_prefix('d')?;
            let (input, axis) = rest.split_once('_')?;
            Some(inputs[input.parse::<usize>().ok()?].dims()[axis.parse::<usize>().ok()?] as i64)
        }
        midtread_graph::Dim::Unknown => None,
    }
}

#[test]
fn inference_agrees_with_evaluation_whatever_it_is_told() {
    for op in OPS.iter().filter(|op| matches!(op.eval, Eval::Tensors(_))) {
        for seed in 0..12 {
            let case = case(op, &mut Random(seed * 7919 + 17));
            let mut graph = Graph::default();
            let inputs: Vec<_> =
                (0..case.inputs.len()).map(|k| graph.intern(&format!("x{k}"))).collect();
            let outputs: Vec<_> =
                (0..case.n_outputs).map(|k| graph.intern(&format!("y{k}"))).collect();
            let mut node = Node::new(op.op_type, "", inputs, outputs).with_domain(op.domain);
            for (name, value) in &case.attrs {
                node.set_attr(name, value.clone());
            }
            op.check(&node, opset(op)).unwrap_or_else(|err| panic!("{}: {err}", op.op_type));
            let pool = Pool::default();
            let ctx = EvalCtx { node: &node, opset: opset(op), pool: &pool };
            let what = format!("{} seed {seed}", op.op_type);
            let y = op
                .evaluate_tensors(&ctx, Args(case.inputs.iter().cloned().map(Some).collect()))
                .unwrap_or_else(|err| panic!("{what}: {err}"));
            assert_eq!(y.len(), case.n_outputs, "{what}");

            // With everything known, the types are known too.
            let known = |is_constant: bool| {
                infer(op, &node, &case.inputs, |_, t| Info {
                    constant: is_constant.then(|| t.clone()),
                    ..Info::of(t)
                })
            };
            for (info, y) in known(true).iter().zip(&y) {
                assert_eq!(info.elem, Some(y.dtype()), "{what}");
                if !matches!(
                    op.op_type,
                    "NonZero"
                        | "Compress"
                        | "Unique"
                        | "NonMaxSuppression"
                        | "StringNormalizer"
                        | "StringSplit"
                ) {
                    assert_eq!(info.dims, Some(sizes(y)), "{what}: {y:?}");
                }
            }
            // With the sizes alone, or as symbols, or nothing, what is said is still right.
            let symbols = |i: usize, t: &Tensor| Info {
                elem: Some(t.dtype()),
                dims: Some(
                    (0..t.dims().len()).map(|d| SymDim::symbol(&format!("d{i}_{d}"))).collect(),
                ),
                ..Info::default()
            };
            let symbolic = infer(op, &node, &case.inputs, symbols);
            let nothing = infer(op, &node, &case.inputs, |_, _| Info::default());
            for infos in [known(false), symbolic, nothing] {
                for (info, y) in infos.iter().zip(&y) {
                    assert!(info.elem.is_none_or(|e| e == y.dtype()), "{what}: {info:?}");
                    let Some(dims) = &info.dims else { continue };
                    assert_eq!(dims.len(), y.dims().len(), "{what}: {info:?} is {y:?}");
                    for (dim, &size) in dims.iter().zip(y.dims()) {
                        let value = evaluated(dim, &case.inputs);
                        assert!(
                            value.is_none_or(|n| n == size as i64),
                            "{what}: {info:?} is {:?}",
                            y.dims()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn no_operator_changes_an_input_that_somebody_else_holds() {
    for op in OPS.iter().filter(|op| matches!(op.eval, Eval::Tensors(_))) {
        let case = case(op, &mut Random(5));
        let before: Vec<Tensor> = case
            .inputs
            .iter()
            .map(|t| {
                if t.dtype() == DataType::String {
                    return t.clone();
                }
                Tensor::from_buf(
                    t.dtype(),
                    t.dims().to_vec(),
                    midtread_graph::AlignedBuf::from_bytes(t.as_bytes()),
                )
                .unwrap()
            })
            .collect();
        let mut graph = Graph::default();
        let outputs: Vec<_> = (0..case.n_outputs).map(|k| graph.intern(&format!("y{k}"))).collect();
        let mut node = Node::new(op.op_type, "", [], outputs).with_domain(op.domain);
        for (name, value) in &case.attrs {
            node.set_attr(name, value.clone());
        }
        let pool = Pool::default();
        let ctx = EvalCtx { node: &node, opset: opset(op), pool: &pool };
        let shared = op
            .evaluate_tensors(&ctx, Args(case.inputs.iter().cloned().map(Some).collect()))
            .unwrap();
        assert_eq!(case.inputs, before, "{}", op.op_type);
        // And one that it may change gives the same result.
        let owned =
            op.evaluate_tensors(&ctx, Args(before.into_iter().map(Some).collect())).unwrap();
        assert_eq!(owned, shared, "{}", op.op_type);
    }
}

/// Where an operator does not take an element type that the specification allows, and why.
const UNTYPED: &[(&str, &[DataType], &str)] = {
    use DataType::*;
    const SMALL: &[DataType] = &[
        Float4E2M1,
        Float6E2M3,
        Float6E3M2,
        Float8E4M3FN,
        Float8E4M3FNUZ,
        Float8E5M2,
        Float8E5M2FNUZ,
    ];
    const INTEGERS: &[DataType] = &[Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64];
    &[
        ("Attention", &[Double], "its second type stays float here"),
        ("Col2Im", &[Bool, String], "they have no sum"),
        ("DequantizeLinear", SMALL, "their zero points are 0, and the case's are random"),
        ("GRU", &[Double], "the state is float32"),
        ("Gemm", &[Int32, Int64, Uint32, Uint64], "the case's `alpha` is no integer"),
        ("GridSample", INTEGERS, "interpolation is of floats"),
        ("GridSample", &[Bool, String, Double], "interpolation is of float32"),
        ("LSTM", &[Double], "the state is float32"),
        ("QLinearMatMul", SMALL, "products of small floats are in no CPU runtime"),
        ("Resize", &[String], "nothing lies between strings"),
        ("RNN", &[Double], "the state is float32"),
        ("RoiAlign", &[Double], "interpolation is of float32"),
        ("ScatterND", &[Bool, String], "the case adds, and they have no sum"),
        ("Shrink", INTEGERS, "nobody has been seen to shrink integers"),
    ]
};

/// testdata/conformance/types.txt: inputs that have the first one's type, and the types.
fn allowed_types() -> Vec<(&'static str, Vec<usize>, bool, Vec<DataType>)> {
    let text = include_str!("../../../testdata/conformance/types.txt");
    let line = |line: &'static str| {
        let (head, types) = line.split_once(": ").unwrap();
        let (name, inputs) = head.split_once(' ').unwrap();
        let at: Vec<usize> =
            inputs.trim_end_matches('+').split(',').map(|i| i.parse().unwrap()).collect();
        let types = types.split(' ');
        let types = types.map(|t| DataType::ALL.into_iter().find(|d| d.name() == t).unwrap());
        (name, at, inputs.ends_with('+'), types.collect())
    };
    text.lines().filter(|l| !l.starts_with('#')).map(line).collect()
}

#[test]
fn operators_take_every_element_type_that_the_specification_allows() {
    let cast = find("", "Cast").unwrap();
    let mut refused: Vec<String> = Vec::new();
    let mut n = 0;
    for (name, at, all_after, types) in allowed_types() {
        let Some(op) = find("", name).filter(|op| matches!(op.eval, Eval::Tensors(_))) else {
            continue;
        };
        for dtype in types {
            // What a case's attributes ask for is of another width.
            let is_other_width = name == "BitCast" && dtype.n_bits() != Some(32);
            if is_other_width || matches!(dtype, DataType::Complex64 | DataType::Complex128) {
                continue;
            }
            let case = case(op, &mut Random(23));
            let mut graph = Graph::default();
            let outputs: Vec<_> =
                (0..case.n_outputs).map(|k| graph.intern(&format!("y{k}"))).collect();
            let mut node = Node::new(op.op_type, "", [], outputs);
            for (name, value) in &case.attrs {
                node.set_attr(name, value.clone());
            }
            let pool = Pool::default();
            let to = |tensor: &Tensor| {
                let to = AttrValue::Int(i64::from(dtype.to_onnx()));
                let node = Node::new("Cast", "", [], []).with_attr("to", to);
                let ctx = EvalCtx { node: &node, opset: 25, pool: &pool };
                cast.evaluate_tensors(&ctx, Args(vec![Some(tensor.clone())])).unwrap().remove(0)
            };
            let own = case.inputs.first().map(Tensor::dtype);
            let typed = |(i, tensor): (usize, &Tensor)| {
                let is_typed = at.contains(&i) || all_after && at.last().is_some_and(|&l| l < i);
                Some(if is_typed && Some(tensor.dtype()) == own {
                    to(tensor)
                } else {
                    tensor.clone()
                })
            };
            let inputs = case.inputs.iter().enumerate().map(typed).collect();
            let ctx = EvalCtx { node: &node, opset: opset(op), pool: &pool };
            let result = op.evaluate_tensors(&ctx, Args(inputs));
            let known = UNTYPED.iter().any(|(op, types, _)| *op == name && types.contains(&dtype));
            match result {
                Err(err) if !known => refused.push(format!("{name} of {dtype}: {err}")),
                Ok(_) if known => refused.push(format!("{name} of {dtype} is computed now")),
                _ => n += 1,
            }
        }
    }
    assert!(refused.is_empty(), "{} of them, {n} not:\n{}", refused.len(), refused.join("\n"));
}
