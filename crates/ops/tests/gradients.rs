//! One law for all: a gradient is the slope of what the operator computes.

use midtread_graph::{AttrValue, DataType, Graph, Node, Tensor};
use midtread_ops::{Args, EvalCtx, GRADS, GradCtx, GradDef, Pool, STEPS, find, find_grad};

/// A node with inputs at which its function is smooth.
struct Case {
    op_type: &'static str,
    domain: &'static str,
    opset: i64,
    attrs: Vec<(&'static str, AttrValue)>,
    inputs: Vec<Option<Tensor>>,
    /// Inputs whose gradients are checked.
    wanted: Vec<usize>,
    n_outputs: usize,
}

fn case(op_type: &'static str, inputs: Vec<Tensor>) -> Case {
    let wanted = inputs
        .iter()
        .enumerate()
        .filter(|(_, t)| t.dtype() == DataType::Float)
        .map(|(i, _)| i)
        .collect();
    let inputs = inputs.into_iter().map(Some).collect();
    Case { op_type, domain: "", opset: 21, attrs: Vec::new(), inputs, wanted, n_outputs: 1 }
}

impl Case {
    fn with(mut self, name: &'static str, value: AttrValue) -> Self {
        self.attrs.push((name, value));
        self
    }
    fn int(self, name: &'static str, value: i64) -> Self {
        self.with(name, AttrValue::Int(value))
    }
    fn float(self, name: &'static str, value: f32) -> Self {
        self.with(name, AttrValue::Float(value))
    }
    fn ints(self, name: &'static str, value: &[i64]) -> Self {
        self.with(name, AttrValue::Ints(value.to_vec()))
    }
    fn only(mut self, wanted: &[usize]) -> Self {
        self.wanted = wanted.to_vec();
        self
    }
    fn at(mut self, opset: i64) -> Self {
        self.opset = opset;
        self
    }
    fn outputs(mut self, n: usize) -> Self {
        self.n_outputs = n;
        self
    }
    fn in_domain(mut self, domain: &'static str) -> Self {
        self.domain = domain;
        self
    }
    fn without(mut self, input: usize) -> Self {
        self.inputs[input] = None;
        self.wanted.retain(|&i| i != input);
        self
    }
}

/// Numbers from -1 to 1, no two alike within 0.02, none within 0.04 of 0 or 0.5 (where functions bend).
fn t(dims: &[usize]) -> Tensor {
    let n: usize = dims.iter().product();
    let values: Vec<f32> = (0..n)
        .map(|i| {
            let x = (i * 37 % 89) as f32 / 44.5 - 1.0 + 0.011;
            let near = |at: f32| (x.abs() - at).abs() < 0.04;
            if near(0.0) || near(0.5) { x + 0.09 } else { x }
        })
        .collect();
    Tensor::from_slice(dims.to_vec(), &values).unwrap()
}

/// The same, from 0.3 on.
fn positive(dims: &[usize]) -> Tensor {
    let values: Vec<f32> = t(dims).to_vec::<f32>().unwrap().iter().map(|x| 1.4 + x).collect();
    Tensor::from_slice(dims.to_vec(), &values).unwrap()
}

fn scaled(dims: &[usize], factor: f32) -> Tensor {
    let values: Vec<f32> = t(dims).to_vec::<f32>().unwrap().iter().map(|x| factor * x).collect();
    Tensor::from_slice(dims.to_vec(), &values).unwrap()
}

fn ints(values: &[i64]) -> Tensor {
    Tensor::vector(values)
}

fn text(value: &str) -> AttrValue {
    AttrValue::String(value.to_owned().into())
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for op in [
        "Abs",
        "Cos",
        "Erf",
        "Exp",
        "HardSwish",
        "Identity",
        "Mish",
        "Neg",
        "Relu",
        "Selu",
        "Sigmoid",
        "Sin",
        "Softplus",
        "Softsign",
        "Swish",
        "Tanh",
        "Elu",
        "LeakyRelu",
        "HardSigmoid",
        "Gelu",
    ] {
        all.push(case(op, vec![t(&[2, 7])]).at(24));
    }
    for op in ["Log", "Reciprocal", "Sqrt"] {
        all.push(case(op, vec![positive(&[2, 7])]));
    }
    all.push(case("Cast", vec![t(&[3])]).int("to", 1));
    all.push(case("Dropout", vec![t(&[3])]));
    all.push(case("Elu", vec![t(&[9])]).float("alpha", 0.7));
    all.push(case("Selu", vec![t(&[9])]).float("alpha", 0.7).float("gamma", 1.3));
    all.push(case("Swish", vec![t(&[9])]).float("alpha", 1.5).at(24));
    all.push(case("HardSigmoid", vec![scaled(&[9], 4.0)]).float("alpha", 0.3));
    all.push(case("HardSwish", vec![scaled(&[31], 5.0)]));
    all.push(case("Gelu", vec![scaled(&[9], 2.0)]).with("approximate", text("tanh")));
    all.push(case("Gelu", vec![scaled(&[9], 2.0)]).in_domain("com.microsoft").at(1));
    all.push(
        case("Clip", vec![t(&[3, 9]), Tensor::scalar(-0.5_f32), Tensor::scalar(0.5_f32)])
            .only(&[0]),
    );
    all.push(case("Clip", vec![t(&[3, 9])]).float("max", 0.5).at(6));
    for op in ["Add", "Sub", "Mul"] {
        all.push(case(op, vec![t(&[2, 3, 4]), scaled(&[3, 1], 0.9)]));
        all.push(case(op, vec![scaled(&[4], 0.9), t(&[2, 3, 4])]));
    }
    all.push(case("Div", vec![t(&[2, 3]), positive(&[3])]));
    all.push(case("Pow", vec![positive(&[2, 3]), positive(&[3])]));
    all.push(case("PRelu", vec![t(&[2, 3, 4]), positive(&[3, 1])]));
    for op in ["Max", "Min", "Mean", "Sum"] {
        // No two that are compared are near each other.
        let x = [-1.0_f32, -0.5, 0.3, 0.9, 0.1, 0.6, -0.2, -0.8];
        let x = Tensor::from_slice(vec![2, 4], &x).unwrap();
        let y = Tensor::vector(&[0.5_f32, -0.1, -0.7, 0.2]);
        let z = Tensor::from_slice(vec![2, 1], &[0.0_f32, 0.33]).unwrap();
        all.push(case(op, vec![x, y, z]));
    }
    all.push(case(
        "Where",
        vec![
            Tensor::from_bytes(DataType::Bool, vec![2, 3], vec![1, 0, 1, 0, 0, 1].into()).unwrap(),
            t(&[2, 3]),
            scaled(&[3], 0.5),
        ],
    ));
    all.push(case("Concat", vec![t(&[2, 3]), scaled(&[2, 2], 0.5)]).int("axis", 1));
    all.push(case("DepthToSpace", vec![t(&[1, 8, 2, 3])]).int("blocksize", 2));
    all.push(case("SpaceToDepth", vec![t(&[1, 2, 4, 6])]).int("blocksize", 2));
    all.push(case("Expand", vec![t(&[3, 1]), ints(&[2, 3, 4])]));
    all.push(case("Flatten", vec![t(&[2, 3, 2])]));
    all.push(case("Gather", vec![t(&[4, 3]), ints(&[1, 1, -1])]));
    all.push(case(
        "GatherElements",
        vec![t(&[3, 2]), Tensor::from_slice(vec![2, 2], &[0_i64, 2, 1, 2]).unwrap()],
    ));
    all.push(case(
        "GatherND",
        vec![t(&[3, 2]), Tensor::from_slice(vec![2, 1], &[2_i64, 2]).unwrap()],
    ));
    all.push(
        case("Pad", vec![t(&[2, 3]), ints(&[0, 1, 1, 2]), Tensor::scalar(3.0_f32)]).only(&[0]),
    );
    all.push(case("Pad", vec![t(&[2, 3]), ints(&[1, 1, 0, 2])]).with("mode", text("reflect")));
    for (mode, transform) in [
        ("nearest", "half_pixel"),
        ("linear", "half_pixel"),
        ("linear", "align_corners"),
        ("cubic", "asymmetric"),
    ] {
        for scales in [[1.0_f32, 1.0, 2.0, 1.6], [1.0, 1.0, 0.6, 1.0]] {
            let inputs =
                vec![t(&[1, 2, 3, 5]), Tensor::vector::<f32>(&[]), Tensor::vector(&scales)];
            all.push(
                case("Resize", inputs)
                    .with("mode", text(mode))
                    .with("coordinate_transformation_mode", text(transform))
                    .only(&[0])
                    .without(1),
            );
        }
    }
    let sizes = vec![t(&[1, 2, 3, 5]), ints(&[3, 1])];
    let shrunk = case("Resize", sizes).with("mode", text("linear")).int("antialias", 1);
    let shrunk = shrunk.ints("axes", &[3, 1]);
    all.push(Case {
        inputs: vec![shrunk.inputs[0].clone(), None, None, shrunk.inputs[1].clone()],
        ..shrunk
    });
    for (op, updates, at) in [
        ("ScatterND", scaled(&[2, 3], 0.5), Tensor::from_slice(vec![2, 1], &[3_i64, 0]).unwrap()),
        (
            "ScatterElements",
            scaled(&[1, 3], 0.5),
            Tensor::from_slice(vec![1, 3], &[3_i64, 0, 2]).unwrap(),
        ),
    ] {
        all.push(case(op, vec![t(&[4, 3]), at, updates]));
    }
    for (equation, dims) in [
        ("bij,bjk->bik", vec![vec![2, 3, 4], vec![2, 4, 2]]),
        ("bhid,bhjd->bhij", vec![vec![2, 2, 3, 4], vec![2, 2, 5, 4]]),
        ("...i,ij->...j", vec![vec![2, 3, 4], vec![4, 2]]),
        // A factor that repeats, one whose dimension is summed alone, three factors.
        ("bi,bi->b", vec![vec![2, 3], vec![1, 3]]),
        ("ij,k->ik", vec![vec![2, 3], vec![4]]),
        ("ij->i", vec![vec![2, 3]]),
        ("i,j,ij->", vec![vec![2], vec![3], vec![2, 3]]),
        ("ij", vec![vec![2, 3]]),
    ] {
        let inputs = dims.iter().enumerate();
        let inputs = inputs.map(|(k, dims)| scaled(dims, 0.9 - 0.2 * k as f32)).collect();
        all.push(case("Einsum", inputs).with("equation", text(equation)));
    }
    all.push(case("Reshape", vec![t(&[2, 6]), ints(&[3, -1])]));
    all.push(case(
        "Slice",
        vec![t(&[4, 5]), ints(&[3, 1]), ints(&[-5, 5]), ints(&[0, 1]), ints(&[-2, 3])],
    ));
    all.push(case("Split", vec![t(&[5, 2]), ints(&[2, 3])]).outputs(2));
    all.push(case("Squeeze", vec![t(&[2, 1, 3]), ints(&[1])]));
    all.push(case("Unsqueeze", vec![t(&[2, 3]), ints(&[0])]));
    all.push(case("Tile", vec![t(&[2, 3]), ints(&[2, 2])]));
    all.push(case("Transpose", vec![t(&[2, 3, 4])]).ints("perm", &[2, 0, 1]));
    all.push(case("Trilu", vec![t(&[3, 4])]).int("upper", 0));
    all.push(
        case("Conv", vec![t(&[2, 4, 5, 4]), scaled(&[6, 2, 3, 2], 0.5), t(&[6])])
            .int("group", 2)
            .ints("pads", &[1, 0, 1, 1])
            .ints("strides", &[2, 1]),
    );
    all.push(
        case("Conv", vec![t(&[1, 3, 5, 5]), scaled(&[3, 1, 3, 3], 0.5), t(&[3])])
            .int("group", 3)
            .ints("dilations", &[2, 1]),
    );
    all.push(case("Conv", vec![t(&[2, 3, 7]), scaled(&[2, 3, 3], 0.5)]));
    all.push(
        case("ConvTranspose", vec![t(&[2, 4, 3, 3]), scaled(&[4, 3, 3, 2], 0.5), t(&[6])])
            .int("group", 2)
            .ints("pads", &[1, 0, 0, 1])
            .ints("strides", &[2, 1])
            .ints("output_padding", &[1, 0]),
    );
    all.push(
        case("Gemm", vec![t(&[3, 4]), t(&[4, 2]), t(&[2])]).float("alpha", 0.5).float("beta", 2.0),
    );
    all.push(
        case("Gemm", vec![t(&[4, 3]), t(&[2, 4]), t(&[3, 1])]).int("transA", 1).int("transB", 1),
    );
    all.push(case("Gemm", vec![t(&[3, 4]), t(&[2, 4])]).int("transB", 1));
    all.push(case("MatMul", vec![t(&[2, 3, 4]), t(&[4, 2])]));
    all.push(case("MatMul", vec![t(&[2, 1, 3, 4]), t(&[3, 4, 2])]));
    all.push(case("MatMul", vec![t(&[4]), t(&[2, 4, 3])]));
    all.push(
        case("AveragePool", vec![t(&[1, 2, 5, 4])])
            .ints("kernel_shape", &[3, 2])
            .ints("strides", &[2, 1])
            .ints("pads", &[1, 0, 1, 1]),
    );
    all.push(
        case("AveragePool", vec![t(&[1, 2, 5])])
            .ints("kernel_shape", &[3])
            .int("count_include_pad", 1)
            .ints("pads", &[1, 1]),
    );
    all.push(
        case("MaxPool", vec![t(&[2, 2, 4, 5])])
            .ints("kernel_shape", &[2, 3])
            .ints("strides", &[2, 1])
            .ints("pads", &[0, 1, 0, 1]),
    );
    all.push(case("GlobalAveragePool", vec![t(&[2, 3, 2, 2])]));
    all.push(case("GlobalMaxPool", vec![t(&[2, 3, 2, 2])]));
    all.push(
        case(
            "BatchNormalization",
            vec![t(&[2, 3, 4]), positive(&[3]), t(&[3]), scaled(&[3], 0.5), positive(&[3])],
        )
        .only(&[0, 1, 2]),
    );
    all.push(case("LayerNormalization", vec![t(&[2, 3, 4]), positive(&[4]), t(&[4])]));
    all.push(case("LayerNormalization", vec![t(&[2, 3, 4]), positive(&[3, 4])]).int("axis", 1));
    all.push(case("RMSNormalization", vec![t(&[2, 6]), positive(&[6])]).at(23));
    all.push(case("InstanceNormalization", vec![t(&[2, 3, 5]), positive(&[3]), t(&[3])]));
    all.push(
        case("GroupNormalization", vec![t(&[2, 4, 3]), positive(&[4]), t(&[4])])
            .int("num_groups", 2),
    );
    all.push(case("Softmax", vec![scaled(&[2, 3, 4], 2.0)]).int("axis", 1));
    all.push(case("Softmax", vec![scaled(&[2, 6], 2.0)]));
    all.push(case("Softmax", vec![t(&[2, 3, 2])]).at(11));
    all.push(case("LogSoftmax", vec![scaled(&[2, 6], 2.0)]));
    for op in [
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceSum",
        "ReduceSumSquare",
    ] {
        all.push(case(op, vec![t(&[2, 3, 4]), ints(&[0, 2])]).int("keepdims", 0));
        all.push(case(op, vec![t(&[2, 3]), ints(&[1])]));
    }
    for direction in ["forward", "bidirectional", "reverse"] {
        let d = if direction == "bidirectional" { 2 } else { 1 };
        for lens in [[3_i32, 3], [3, 2]] {
            let recurrent = |op, gates: usize, states: usize| {
                let mut inputs = vec![
                    t(&[3, 2, 4]),
                    scaled(&[d, gates * 3, 4], 0.6),
                    scaled(&[d, gates * 3, 3], 0.7),
                    scaled(&[d, 2 * gates * 3], 0.3),
                    Tensor::vector(&lens),
                ];
                inputs.extend((0..states).map(|k| scaled(&[d, 2, 3], 0.5 + 0.2 * k as f32)));
                case(op, inputs)
                    .int("hidden_size", 3)
                    .with("direction", text(direction))
                    .outputs(1 + states)
            };
            all.push(recurrent("LSTM", 4, 2));
            let mut peeping = recurrent("LSTM", 4, 2);
            peeping.inputs.push(Some(scaled(&[d, 9], 0.8)));
            peeping.wanted.push(7);
            all.push(peeping);
            all.push(recurrent("GRU", 3, 1));
            all.push(recurrent("GRU", 3, 1).int("linear_before_reset", 1));
        }
    }
    all.push(
        case(
            "LSTM",
            vec![t(&[3, 2, 4]), scaled(&[1, 12, 4], 0.6), scaled(&[1, 12, 3], 0.7), t(&[1, 24])],
        )
        .int("hidden_size", 3)
        .without(3),
    );
    all
}

fn run(case: &Case, node: &Node, inputs: &[Option<Tensor>]) -> Vec<Tensor> {
    let def = find(case.domain, case.op_type).expect("it is in the table");
    let pool = Pool::default();
    let ctx = EvalCtx { node, opset: case.opset, pool: &pool };
    let outputs = def.evaluate_tensors(&ctx, Args(inputs.to_vec()));
    outputs.unwrap_or_else(|e| panic!("{}: {e}", case.op_type))
}

/// What each element of the outputs counts: numbers without a pattern, so that none cancel.
fn weights(outputs: &[Tensor]) -> Vec<Tensor> {
    outputs.iter().enumerate().map(|(k, y)| scaled(y.dims(), 1.0 - 0.3 * k as f32)).collect()
}

fn total(outputs: &[Tensor], weights: &[Tensor]) -> f64 {
    let pairs = outputs.iter().zip(weights).flat_map(|(y, w)| {
        let (y, w) = (y.to_vec::<f32>().unwrap(), w.to_vec::<f32>().unwrap());
        y.into_iter().zip(w)
    });
    pairs.map(|(y, w)| f64::from(y) * f64::from(w)).sum()
}

fn node_of(case: &Case) -> Node {
    let mut graph = Graph::default();
    let outputs: Vec<_> = (0..case.n_outputs).map(|i| graph.intern(&format!("y{i}"))).collect();
    let mut node = Node::new(case.op_type, "n", [], outputs).with_domain(case.domain);
    for (i, input) in case.inputs.iter().enumerate() {
        node.inputs.push(input.as_ref().map(|_| graph.intern(&format!("x{i}"))));
    }
    for (name, value) in &case.attrs {
        node = node.with_attr(name, value.clone());
    }
    node
}

#[test]
fn every_gradient_is_the_slope_of_its_operator() {
    for case in cases() {
        let node = node_of(&case);
        let def = find_grad(case.domain, case.op_type)
            .unwrap_or_else(|| panic!("{} has no gradient", case.op_type));
        let outputs = run(&case, &node, &case.inputs);
        let weights = weights(&outputs);
        let pool = Pool::default();
        let wanted: Vec<bool> = (0..case.inputs.len()).map(|i| case.wanted.contains(&i)).collect();
        let keep = |kept: bool, t: &Tensor| kept.then(|| t.clone());
        let inputs: Vec<Option<Tensor>> = case
            .inputs
            .iter()
            .enumerate()
            .map(|(i, x)| x.as_ref().and_then(|x| keep(def.reads.input(i), x)))
            .collect();
        let made: Vec<Option<Tensor>> =
            outputs.iter().map(|y| keep(def.reads.outputs(), y)).collect();
        let in_dims: Vec<_> =
            case.inputs.iter().map(|x| x.as_ref().map(|x| x.dims().to_vec())).collect();
        let grads: Vec<Option<Tensor>> = weights.iter().cloned().map(Some).collect();
        let ctx = GradCtx {
            node: &node,
            opset: case.opset,
            pool: &pool,
            inputs: &inputs,
            in_dims: &in_dims,
            outputs: &made,
            grads: &grads,
            wanted: &wanted,
        };
        let got = (def.grad)(&ctx).unwrap_or_else(|e| panic!("{}: {e}", case.op_type));
        assert_eq!(got.len(), case.inputs.len(), "{}: one result an input", case.op_type);
        for &i in &case.wanted {
            let x = case.inputs[i].as_ref().unwrap();
            let grad =
                got[i].as_ref().unwrap_or_else(|| panic!("{}: no gradient {i}", case.op_type));
            assert_eq!(grad.dims(), x.dims(), "{} input {i}", case.op_type);
            let grad = grad.to_vec::<f32>().unwrap();
            let values = x.to_vec::<f32>().unwrap();
            for k in 0..values.len() {
                let slope = |step: f32| {
                    let at = |d: f32| {
                        let mut moved = values.clone();
                        moved[k] += d;
                        let mut inputs = case.inputs.clone();
                        inputs[i] = Some(Tensor::from_slice(x.dims().to_vec(), &moved).unwrap());
                        total(&run(&case, &node, &inputs), &weights)
                    };
                    (at(step) - at(-step)) / (2.0 * f64::from(step))
                };
                // Richardson's extrapolation leaves an error of the step's fourth power, 3e-8 here, times a fifth
                // derivative; rounding of some tens of outputs near 1 leaves 30 * 6e-8 / 0.02 = 1e-4.
                let step = 1.0 / 64.0;
                let slope = (4.0 * slope(step / 2.0) - slope(step)) / 3.0;
                let error = (f64::from(grad[k]) - slope).abs();
                assert!(
                    error < 4e-4 * slope.abs().max(1.0),
                    "{} {:?} input {i} element {k}: {} and {slope}",
                    case.op_type,
                    case.attrs,
                    grad[k]
                );
            }
        }
    }
}

#[test]
fn the_list_is_sorted_complete_and_has_a_case_for_each() {
    let key = |def: &&GradDef| (def.domain, def.op_type);
    assert!(GRADS.windows(2).all(|w| key(&w[0]) < key(&w[1])), "sorted by domain and name");
    let cases = cases();
    for def in GRADS {
        assert!(find(def.domain, def.op_type).is_some(), "{} is an operator", def.op_type);
        let has_case = cases.iter().any(|c| (c.domain, c.op_type) == (def.domain, def.op_type));
        assert!(has_case, "{} has a case", def.op_type);
    }
    for op_type in STEPS {
        assert!(find("", op_type).is_some() && find_grad("", op_type).is_none(), "{op_type}");
    }
}
