//! Results of ONNX Runtime and of onnx's reference, element for element.

use midtread_graph::{AttrValue, DataType, Graph, Node, Tensor};
use midtread_num::{QRange, pack::SubByte};
use midtread_ops::{Args, EvalCtx, OpError, Pool, find};
use serde_json::Value;

fn golden(name: &str) -> Value {
    let path = midtread_testkit::root().join("testdata/golden").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn number(value: &Value) -> f64 {
    match value {
        Value::Number(n) => n.as_f64().unwrap(),
        Value::String(s) if s == "inf" => f64::INFINITY,
        Value::String(s) if s == "-inf" => f64::NEG_INFINITY,
        Value::String(s) if s == "nan" => f64::NAN,
        other => panic!("not a number: {other}"),
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().map(number).collect(),
        one => vec![number(one)],
    }
}

fn floats(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|x| x as f32).collect()
}

fn ints(value: &Value) -> Vec<i32> {
    numbers(value).into_iter().map(|x| x as i32).collect()
}

fn dims(value: &Value) -> Vec<usize> {
    numbers(value).into_iter().map(|x| x as usize).collect()
}

fn dtype(name: &str) -> DataType {
    DataType::ALL.into_iter().find(|d| d.name() == name).unwrap()
}

/// A tensor of codes.
fn coded(dtype: DataType, dims: Vec<usize>, codes: &[i32]) -> Tensor {
    let narrow = |codes: &[i32]| codes.iter().map(|&q| q as i8).collect::<Vec<i8>>();
    let packed = |p: SubByte| {
        Tensor::from_bytes(dtype, dims.clone(), p.pack(&narrow(codes)).unwrap().into()).unwrap()
    };
    match dtype {
        DataType::Uint8 => {
            Tensor::from_slice(dims, &codes.iter().map(|&q| q as u8).collect::<Vec<_>>()).unwrap()
        }
        DataType::Int8 => Tensor::from_slice(dims, &narrow(codes)).unwrap(),
        DataType::Uint16 => {
            Tensor::from_slice(dims, &codes.iter().map(|&q| q as u16).collect::<Vec<_>>()).unwrap()
        }
        DataType::Int16 => {
            Tensor::from_slice(dims, &codes.iter().map(|&q| q as i16).collect::<Vec<_>>()).unwrap()
        }
        DataType::Int32 => Tensor::from_slice(dims, codes).unwrap(),
        DataType::Int4 => packed(SubByte::Int4),
        DataType::Uint4 => packed(SubByte::Uint4),
        DataType::Int2 => packed(SubByte::Int2),
        DataType::Uint2 => packed(SubByte::Uint2),
        other => panic!("{other}"),
    }
}

fn scalar_code(dtype: DataType, code: i32) -> Tensor {
    coded(dtype, Vec::new(), &[code])
}

/// The first output of one operator.
fn run(
    domain: &str,
    op_type: &str,
    opset: i64,
    inputs: Vec<Option<Tensor>>,
    attrs: &[(&str, AttrValue)],
) -> Result<Vec<Tensor>, OpError> {
    let mut graph = Graph::default();
    let out = graph.intern("y");
    let mut node = Node::new(op_type, "", [], [out]).with_domain(domain);
    for (name, value) in attrs {
        node.set_attr(name, value.clone());
    }
    let pool = Pool::default();
    let op = find(domain, op_type).unwrap();
    op.evaluate_tensors(&EvalCtx { node: &node, opset, pool: &pool }, Args(inputs))
}

fn f32s(value: &Value) -> Tensor {
    match value {
        Value::Array(_) => Tensor::vector(&floats(value)),
        one => Tensor::scalar(number(one) as f32),
    }
}

#[test]
fn quantize_and_dequantize_linear_are_the_reference_s_at_every_type_and_granularity() {
    let (mut n, mut n_floats) = (0, 0);
    for case in golden("onnx_quantize_linear.json")["cases"].as_array().unwrap() {
        let dtype = dtype(case["type"].as_str().unwrap());
        let x = floats(&case["x"]);
        let shape = case.get("shape").map_or(vec![x.len()], dims);
        let x = Tensor::from_slice(shape.clone(), &x).unwrap();
        let opset = case.get("opset").map_or(25, |o| o.as_i64().unwrap());
        let mut attrs = Vec::new();
        for name in ["axis", "block_size", "saturate"] {
            attrs.extend(case.get(name).map(|v| (name, AttrValue::Int(v.as_i64().unwrap()))));
        }
        let scale = floats(&case["scale"]);
        let mode = case["mode"].as_str().unwrap();
        let params_dims = match mode {
            "per_tensor" | "ties" => Vec::new(),
            "per_axis" => vec![scale.len()],
            _ => dims(&case["scale_shape"]),
        };
        let scale = Tensor::from_slice(params_dims.clone(), &scale).unwrap();
        let Some(zero_point) = case.get("zero_point") else {
            // Small floats.
            attrs.push(("output_dtype", AttrValue::Int(i64::from(dtype.to_onnx()))));
            let inputs = vec![Some(x), Some(scale.clone())];
            let q = run("", "QuantizeLinear", opset, inputs, &attrs).unwrap();
            let bits = dtype.n_bits().unwrap() as u32;
            let packed = midtread_num::formats::bits::pack(&ints(&case["q_codes"]), bits);
            assert_eq!(q[0].as_bytes(), packed, "{case}");
            attrs.retain(|(name, _)| !matches!(*name, "output_dtype" | "saturate"));
            let inputs = vec![Some(q[0].clone()), Some(scale)];
            let x = run("", "DequantizeLinear", opset, inputs, &attrs).unwrap();
            let same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
            let (got, want) = (x[0].to_vec::<f32>().unwrap(), floats(&case["dq"]));
            assert!(got.iter().zip(&want).all(same) && got.len() == want.len(), "{case}: {got:?}");
            n_floats += 1;
            continue;
        };
        let zero_point = coded(dtype, params_dims, &ints(zero_point));
        let inputs = vec![Some(x), Some(scale.clone()), Some(zero_point.clone())];
        let q = run("", "QuantizeLinear", opset, inputs, &attrs).unwrap();
        assert_eq!(q[0], coded(dtype, shape.clone(), &ints(&case["q"])), "{case}");
        let x = run(
            "",
            "DequantizeLinear",
            opset,
            vec![Some(q[0].clone()), Some(scale), Some(zero_point)],
            &attrs,
        );
        if let Some(dq) = case.get("dq") {
            // -0 where the reference subtracts in another order is 0.
            let got: Vec<f32> = x.unwrap()[0].to_vec().unwrap();
            assert_eq!(got, floats(dq), "{case}");
        }
        n += 1;
    }
    assert_eq!((n, n_floats), (28, 9), "cases with integer codes and with floats");
}

#[test]
fn dynamic_quantize_linear_is_onnxruntime_s() {
    for case in golden("dynamic_quantize_linear.json")["cases"].as_array().unwrap() {
        let out = run("", "DynamicQuantizeLinear", 11, vec![Some(f32s(&case["x"]))], &[]).unwrap();
        let want = ints(&case["y"]);
        assert_eq!(out[0], coded(DataType::Uint8, vec![want.len()], &want), "{case}");
        assert_eq!(out[1].item::<f32>(), Some(number(&case["scale"]) as f32), "{case}");
        assert_eq!(out[2].item::<u8>(), Some(number(&case["zero_point"]) as u8), "{case}");
    }
}

#[test]
fn requantization_and_qlinear_matmul_are_onnxruntime_s() {
    let golden = golden("integer_ops.json");
    let one = |v: &Value| Some(Tensor::scalar(number(v) as f32));
    for case in golden["requant_via_QLinearMatMul"].as_array().unwrap() {
        // The sum is (a - za) * 1, so the rows are the sums themselves.
        let acc = ints(&case["acc"]);
        let za = case["za"].as_i64().unwrap() as i32;
        let a: Vec<i32> = acc.iter().map(|acc| acc + za).collect();
        if a.iter().any(|a| !QRange::U8.contains(*a)) {
            continue;
        }
        let u8s = DataType::Uint8;
        let inputs = vec![
            Some(coded(u8s, vec![a.len(), 1], &a)),
            one(&case["sa"]),
            Some(scalar_code(u8s, za)),
            Some(coded(u8s, vec![1, 1], &[1])),
            one(&case["sb"]),
            Some(scalar_code(u8s, 0)),
            one(&case["sy"]),
            Some(scalar_code(u8s, case["zy"].as_i64().unwrap() as i32)),
        ];
        let y = run("", "QLinearMatMul", 10, inputs, &[]).unwrap();
        assert_eq!(y[0], coded(u8s, vec![a.len(), 1], &ints(&case["y"])), "{case}");
    }
    for case in golden["qlinear_matmul"].as_array().unwrap() {
        let codes = dtype(case["type"].as_str().unwrap());
        let [m, k, n] = ["M", "K", "N"].map(|s| case[s].as_u64().unwrap() as usize);
        let sb = f32s(&case["sb"]);
        let zb = coded(DataType::Int8, sb.dims().to_vec(), &vec![0; sb.len()]);
        let inputs = vec![
            Some(coded(codes, vec![m, k], &ints(&case["a"]))),
            one(&case["sa"]),
            Some(scalar_code(codes, case["za"].as_i64().unwrap() as i32)),
            Some(coded(DataType::Int8, vec![k, n], &ints(&case["b"]))),
            Some(sb),
            Some(zb),
            one(&case["sy"]),
            Some(scalar_code(codes, case["zy"].as_i64().unwrap() as i32)),
        ];
        let y = run("", "QLinearMatMul", 10, inputs, &[]).unwrap();
        assert_eq!(y[0], coded(codes, vec![m, n], &ints(&case["y"])), "{case}");
    }
}

#[test]
fn qlinear_conv_is_onnxruntime_s() {
    for case in golden("integer_ops.json")["qlinear_conv"].as_array().unwrap() {
        let codes = dtype(case["type"].as_str().unwrap());
        let [group, ic, oc, k, stride, pad] =
            ["group", "IC", "OC", "k", "stride", "pad"].map(|s| case[s].as_i64().unwrap());
        let x = ints(&case["x"]);
        let side = (x.len() / ic as usize).isqrt();
        let sw = f32s(&case["sw"]);
        let zw = coded(DataType::Int8, sw.dims().to_vec(), &vec![0; sw.len()]);
        let zero = |s: &str| Some(scalar_code(codes, case[s].as_i64().unwrap() as i32));
        let one = |s: &str| Some(Tensor::scalar(number(&case[s]) as f32));
        let inputs = vec![
            Some(coded(codes, vec![1, ic as usize, side, side], &x)),
            one("sx"),
            zero("zx"),
            Some(coded(
                DataType::Int8,
                vec![oc as usize, (ic / group) as usize, k as usize, k as usize],
                &ints(&case["w"]),
            )),
            Some(sw),
            Some(zw),
            one("sy"),
            zero("zy"),
            Some(Tensor::vector(&ints(&case["bias"]))),
        ];
        let attrs = [
            ("group", AttrValue::Int(group)),
            ("strides", AttrValue::Ints(vec![stride; 2])),
            ("pads", AttrValue::Ints(vec![pad; 4])),
        ];
        let y = run("", "QLinearConv", 10, inputs, &attrs).unwrap();
        assert_eq!(y[0], coded(codes, dims(&case["y_shape"]), &ints(&case["y"])), "{case}");
    }
}

#[test]
fn onnxruntime_s_own_integer_operators_are_its_to_the_last_code() {
    let golden = golden("integer_ops.json");
    let cases = golden["misc"].as_array().unwrap();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let op = case["op"].as_str().unwrap();
        let codes = case.get("type").map_or(DataType::Uint8, |t| dtype(t.as_str().unwrap()));
        let scale = |s: &str| Some(Tensor::scalar(number(&case[s]) as f32));
        let zero = |s: &str| Some(scalar_code(codes, case[s].as_i64().unwrap() as i32));
        let y = ints(&case["y"]);
        let (inputs, attrs, out_dims) = match op {
            "QLinearAdd" | "QLinearMul" => {
                let operand = |s: &str| Some(coded(codes, vec![y.len()], &ints(&case[s])));
                let (a, b) = (operand("a"), operand("b"));
                let inputs = vec![
                    a,
                    scale("sa"),
                    zero("za"),
                    b,
                    scale("sb"),
                    zero("zb"),
                    scale("sc"),
                    zero("zc"),
                ];
                (inputs, Vec::new(), vec![y.len()])
            }
            "QLinearSigmoid" | "QLinearLeakyRelu" => {
                let x = coded(codes, vec![256], &(0..256).collect::<Vec<_>>());
                let inputs = vec![Some(x), scale("sx"), zero("zx"), scale("sy"), zero("zy")];
                let alpha = case["alpha"].as_f64().map(|a| ("alpha", AttrValue::Float(a as f32)));
                (inputs, alpha.into_iter().collect(), vec![256])
            }
            _ => {
                let shape = dims(&case["shape"]);
                let x = coded(codes, shape.clone(), &ints(&case["x"]));
                let inputs = vec![Some(x), scale("sx"), zero("zx"), scale("sy"), zero("zy")];
                let list =
                    |s: &str| AttrValue::Ints(dims(&case[s]).iter().map(|&d| d as i64).collect());
                match op {
                    "QLinearAveragePool" => {
                        let attrs = vec![("kernel_shape", list("kernel")), ("pads", list("pads"))];
                        (inputs, attrs, shape)
                    }
                    "QLinearGlobalAveragePool" => {
                        (inputs, Vec::new(), vec![shape[0], shape[1], 1, 1])
                    }
                    "QLinearSoftmax" => (
                        inputs,
                        vec![("axis", AttrValue::Int(-1)), ("opset", AttrValue::Int(13))],
                        shape,
                    ),
                    other => panic!("no test for {other}"),
                }
            }
        };
        let got = run("com.microsoft", op, 1, inputs, &attrs).unwrap();
        assert_eq!(got[0], coded(codes, out_dims, &y), "{op}: {case}");
    }
}

fn hex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap();
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap())
        .collect()
}

#[test]
fn products_with_packed_weights_are_onnxruntime_s() {
    let mut n_with_zero_points = 0;
    for case in golden("matmul_nbits.json")["cases"].as_array().unwrap() {
        let [bits, k, n, block] =
            ["bits", "K", "N", "block_size"].map(|s| case[s].as_i64().unwrap());
        let label = format!("{bits} bits, K {k}, N {n}, blocks of {block}");
        let packed =
            Tensor::from_slice(dims(&case["packed_shape"]), &hex(&case["packed"])).unwrap();
        let scales = floats(&case["scales_NxKb"]);
        let zero_points = (!case["symmetric"].as_bool().unwrap()).then(|| {
            n_with_zero_points += 1;
            Tensor::from_slice(dims(&case["zp_shape"]), &hex(&case["zero_points"])).unwrap()
        });
        let a = floats(&case["A"]);
        let m = a.len() / k as usize;
        let a = Tensor::from_slice(vec![m, k as usize], &a).unwrap();
        let attrs = [("bits", bits), ("K", k), ("N", n), ("block_size", block)]
            .map(|(name, value)| (name, AttrValue::Int(value)));
        let inputs = vec![Some(a), Some(packed), Some(Tensor::vector(&scales)), zero_points];
        let y = run("com.microsoft", "MatMulNBits", 1, inputs, &attrs).unwrap();
        assert_eq!(y[0].dims(), [m, n as usize], "{label}");
        let (got, want) = (y[0].to_vec::<f32>().unwrap(), floats(&case["Y_ort"]));
        // Sums of at most 64 products in another order, each of them at most about as large as the largest result.
        let largest = want.iter().fold(0.0_f32, |m, y| m.max(y.abs()));
        let bound = 64.0 * f32::EPSILON / 2.0 * largest;
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() <= bound, "{label}: {got} here, {want} there");
        }
    }
    assert_eq!(n_with_zero_points, 9);
}
