//! The engine against ONNX Runtime's integer kernels and against the interpreter.

use std::{collections::BTreeMap, path::Path, sync::atomic::AtomicBool};

use midtread::{
    EngineOptions, Format, Options, PlanOptions, Requantize, Runner, Runtime, Scheme, Target,
    data::{self, InputSpec, Preprocess},
    engine::Program,
    graph::{Attr, AttrValue, DataType, Dim, Graph, Model, Node, Tensor, Type, ValueId},
    onnx::{self, SaveOptions},
    passes::PrepareOptions,
    quant::{calibrate::Samples as _, plan::WeightGranularity},
    quantize::Silent,
};
use midtread_testkit::{npz, oracle, root};

static NEVER: AtomicBool = AtomicBool::new(false);

fn options(plan: PlanOptions, format: Format) -> Options<'static> {
    Options {
        prepare: PrepareOptions::default(),
        plan,
        target: Target::find("onnxruntime_cpu").unwrap(),
        format,
        collect: None,
        n_threads: 2,
        max_bytes: None,
        progress: &Silent,
        interrupted: &NEVER,
    }
}

/// Bytes of a linear congruential generator.
struct Noise(u64);

impl Noise {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 56) as u8
    }

    /// A number below `n`.
    fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    fn codes(&mut self, dtype: DataType, dims: &[usize]) -> Tensor {
        let bytes: Vec<u8> = (0..dims.iter().product()).map(|_| self.byte()).collect();
        Tensor::from_bytes(dtype, dims.to_vec(), bytes.into()).unwrap()
    }

    /// Seven bits where the CPU has no VNNI, so that ONNX Runtime's 16-bit sums of two products do not saturate.
    fn weights(&mut self, dims: &[usize]) -> Tensor {
        #[cfg(target_arch = "x86_64")]
        let has_vnni = is_x86_feature_detected!("avx512vnni");
        #[cfg(not(target_arch = "x86_64"))]
        let has_vnni = false;
        let mut code = || {
            let byte = self.byte();
            if has_vnni { byte.cast_signed() } else { (byte % 128) as i8 - 64 }
        };
        let codes: Vec<i8> = (0..dims.iter().product()).map(|_| code()).collect();
        Tensor::from_slice(dims.to_vec(), &codes).unwrap()
    }

    fn scale(&mut self) -> f32 {
        0.001 + f32::from(self.byte()) * 0.0003
    }
}

/// A model of many independent nodes, each with inputs and an output of its own.
struct Nodes {
    graph: Graph,
    inputs: Vec<(String, Tensor)>,
    noise: Noise,
}

impl Nodes {
    fn new(seed: u64) -> Self {
        let mut graph = Graph::default();
        graph.name = "nodes".to_owned();
        Self { graph, inputs: Vec::new(), noise: Noise(seed) }
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.graph.add_constant("c", tensor)
    }

    fn scale(&mut self, times: f32) -> ValueId {
        let scale = self.noise.scale() * times;
        self.constant(Tensor::scalar(scale))
    }

    fn zero_point(&mut self, dtype: DataType) -> ValueId {
        let zero = self.noise.codes(dtype, &[]);
        self.constant(zero)
    }

    fn input(&mut self, dtype: DataType, dims: &[usize]) -> ValueId {
        let name = format!("x{}", self.inputs.len());
        let id = self.graph.intern(&name);
        let known = dims.iter().map(|&d| Dim::Known(d)).collect();
        self.graph.value_mut(id).ty = Some(Type::tensor(dtype, Some(known)));
        self.graph.inputs.push(id);
        let codes = self.noise.codes(dtype, dims);
        self.inputs.push((name, codes));
        id
    }

    fn node(
        &mut self,
        op_type: &str,
        domain: &str,
        inputs: &[Option<ValueId>],
        attrs: &[(&str, AttrValue)],
        out: DataType,
    ) {
        let output = self.graph.intern(&format!("y{}", self.graph.outputs.len()));
        let mut node = Node::new(op_type, "", [], [output]).with_domain(domain);
        node.inputs = inputs.to_vec();
        node.attrs = attrs
            .iter()
            .map(|(name, value)| Attr {
                name: (*name).to_owned(),
                value: value.clone(),
                doc_string: String::new(),
            })
            .collect();
        self.graph.value_mut(output).ty = Some(Type::tensor(out, None));
        self.graph.nodes.push(node);
        self.graph.outputs.push(output);
    }

    fn model(self) -> (Model, Vec<(String, Tensor)>) {
        let opset_imports = vec![(String::new(), 13), ("com.microsoft".to_owned(), 1)];
        (Model { ir_version: 8, opset_imports, graph: self.graph, ..Model::default() }, self.inputs)
    }

    fn conv(&mut self, dtype: DataType) {
        let n = &mut self.noise;
        let (groups, c_in, c_out) = match n.below(3) {
            0 => (1, 1 + n.below(20), 1 + n.below(40)),
            1 => {
                let channels = 2 + n.below(40);
                (channels, channels, channels)
            }
            _ => {
                let groups = 2 + n.below(3);
                (groups, groups * (1 + n.below(5)), groups * (1 + n.below(6)))
            }
        };
        let kernel = [1 + n.below(4), 1 + n.below(5)];
        let (strides, dilations) =
            ([1 + n.below(3), 1 + n.below(2)], [1 + n.below(2), 1 + n.below(2)]);
        let pads: Vec<usize> = (0..4).map(|d| n.below(kernel[d % 2])).collect();
        let reach = |d: usize| (kernel[d] - 1) * dilations[d] + 1;
        let dims = [1 + n.below(2), c_in, reach(0) + n.below(12), reach(1) + n.below(14)];
        let w = n.weights(&[c_out, c_in / groups, kernel[0], kernel[1]]);
        let per_channel = n.below(2) == 1;
        let w_scales: Vec<f32> =
            (0..if per_channel { c_out } else { 1 }).map(|_| n.scale()).collect();
        let bias: Vec<i32> = (0..c_out).map(|_| (i32::from(n.byte()) - 128) * 50).collect();
        let has_bias = n.below(2) == 1;

        let x = self.input(dtype, &dims);
        let (x_scale, x_zero) = (self.scale(1.0), self.zero_point(dtype));
        let w = self.constant(w);
        let w_zeros =
            Tensor::from_slice(vec![w_scales.len()], &vec![0_i8; w_scales.len()]).unwrap();
        let (w_scale, w_zero) = match per_channel {
            true => (self.constant(Tensor::vector(&w_scales)), self.constant(w_zeros)),
            false => {
                (self.constant(Tensor::scalar(w_scales[0])), self.constant(Tensor::scalar(0_i8)))
            }
        };
        let (y_scale, y_zero) = (self.scale(50.0), self.zero_point(dtype));
        let bias = has_bias.then(|| self.constant(Tensor::vector(&bias)));
        let ints = |list: &[usize]| AttrValue::Ints(list.iter().map(|&i| i as i64).collect());
        let attrs = [
            ("strides", ints(&strides)),
            ("dilations", ints(&dilations)),
            ("pads", ints(&pads)),
            ("kernel_shape", ints(&kernel)),
            ("group", AttrValue::Int(groups as i64)),
        ];
        let inputs = [x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero].map(Some);
        self.node("QLinearConv", "", &[&inputs[..], &[bias]].concat(), &attrs, dtype);
    }

    fn add(&mut self, dtype: DataType) {
        let dims = [1 + self.noise.below(3), 1 + self.noise.below(100)];
        let mut inputs = Vec::new();
        for _ in 0..2 {
            inputs.extend([self.input(dtype, &dims), self.scale(1.0), self.zero_point(dtype)]);
        }
        inputs.extend([self.scale(2.0), self.zero_point(dtype)]);
        let inputs: Vec<_> = inputs.into_iter().map(Some).collect();
        self.node("QLinearAdd", "com.microsoft", &inputs, &[], dtype);
    }

    fn mean(&mut self, dtype: DataType) {
        let n = &mut self.noise;
        let dims = [1 + n.below(2), 1 + n.below(40), 1 + n.below(9), 1 + n.below(9)];
        let x = self.input(dtype, &dims);
        let inputs =
            [x, self.scale(1.0), self.zero_point(dtype), self.scale(0.5), self.zero_point(dtype)];
        self.node("QLinearGlobalAveragePool", "com.microsoft", &inputs.map(Some), &[], dtype);
    }

    fn product(&mut self, dtype: DataType) {
        let n = &mut self.noise;
        let (m, k, columns) = (1 + n.below(9), 1 + n.below(70), 1 + n.below(50));
        let w = n.weights(&[k, columns]);
        let x = self.input(dtype, &[m, k]);
        let (x_scale, x_zero, w) = (self.scale(1.0), self.zero_point(dtype), self.constant(w));
        let (w_scale, w_zero) = (self.scale(1.0), self.constant(Tensor::scalar(0_i8)));
        let (y_scale, y_zero) = (self.scale(50.0), self.zero_point(dtype));
        let inputs = [x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero].map(Some);
        self.node("QLinearMatMul", "", &inputs, &[], dtype);
    }

    fn gemm(&mut self, dtype: DataType, has_codes: bool) {
        let n = &mut self.noise;
        let (m, k, columns) = (1 + n.below(9), 1 + n.below(70), 1 + n.below(50));
        let w = n.weights(&[columns, k]);
        let bias: Vec<i32> = (0..columns).map(|_| (i32::from(n.byte()) - 128) * 50).collect();
        let x = self.input(dtype, &[m, k]);
        let (x_scale, x_zero, w) = (self.scale(1.0), self.zero_point(dtype), self.constant(w));
        let (w_scale, w_zero) = (self.scale(1.0), self.constant(Tensor::scalar(0_i8)));
        let bias = self.constant(Tensor::vector(&bias));
        let mut inputs = vec![x, x_scale, x_zero, w, w_scale, w_zero, bias];
        if has_codes {
            inputs.extend([self.scale(50.0), self.zero_point(dtype)]);
        }
        let inputs: Vec<_> = inputs.into_iter().map(Some).collect();
        let out = if has_codes { dtype } else { DataType::Float };
        self.node("QGemm", "com.microsoft", &inputs, &[("transB", AttrValue::Int(1))], out);
    }

    /// A sum or a product of tensors whose sizes broadcast.
    fn broadcast(&mut self, op_type: &str, dtype: DataType) {
        let n = &mut self.noise;
        let dims = [1 + n.below(3), 1 + n.below(20), 1 + n.below(5), 1 + n.below(9)];
        let b_dims: Vec<usize> = match n.below(4) {
            0 => vec![],
            1 => vec![1, dims[1], 1, 1],
            2 => dims[2..].to_vec(),
            _ => dims.to_vec(),
        };
        let mut inputs = Vec::new();
        for dims in [&dims[..], &b_dims] {
            inputs.extend([self.input(dtype, dims), self.scale(1.0), self.zero_point(dtype)]);
        }
        let times = if op_type == "QLinearMul" { 0.5 } else { 2.0 };
        inputs.extend([self.scale(times), self.zero_point(dtype)]);
        let inputs: Vec<_> = inputs.into_iter().map(Some).collect();
        self.node(op_type, "com.microsoft", &inputs, &[], dtype);
    }

    fn concat(&mut self, dtype: DataType) {
        let n = &mut self.noise;
        let mut dims = [1 + n.below(2), 1 + n.below(9), 1 + n.below(5), 1 + n.below(5)];
        let (axis, n_inputs) = (n.below(4), 1 + n.below(3));
        let mut inputs = vec![self.scale(1.0), self.zero_point(dtype)];
        for _ in 0..n_inputs {
            dims[axis] = 1 + self.noise.below(6);
            inputs.extend([self.input(dtype, &dims), self.scale(1.0), self.zero_point(dtype)]);
        }
        let inputs: Vec<_> = inputs.into_iter().map(Some).collect();
        let axis = axis as i64 - if self.noise.below(2) == 0 { 4 } else { 0 };
        self.node(
            "QLinearConcat",
            "com.microsoft",
            &inputs,
            &[("axis", AttrValue::Int(axis))],
            dtype,
        );
    }

    /// Attributes of a pool's window, and the sizes of an input that it fits.
    fn window(&mut self) -> (Vec<(&'static str, AttrValue)>, [usize; 4]) {
        let n = &mut self.noise;
        let kernel = [1 + n.below(4), 1 + n.below(4)];
        let strides = [1 + n.below(3), 1 + n.below(3)];
        let pads: Vec<usize> = (0..4).map(|d| n.below(kernel[d % 2])).collect();
        let dims =
            [1 + n.below(2), 1 + n.below(70), kernel[0] + n.below(9), kernel[1] + n.below(9)];
        let ints = |list: &[usize]| AttrValue::Ints(list.iter().map(|&i| i as i64).collect());
        let attrs = vec![
            ("kernel_shape", ints(&kernel)),
            ("strides", ints(&strides)),
            ("pads", ints(&pads)),
        ];
        (attrs, dims)
    }

    fn average(&mut self, dtype: DataType) {
        let (mut attrs, dims) = self.window();
        attrs.push(("count_include_pad", AttrValue::Int(self.noise.below(2) as i64)));
        let x = self.input(dtype, &dims);
        let inputs =
            [x, self.scale(1.0), self.zero_point(dtype), self.scale(0.5), self.zero_point(dtype)];
        self.node("QLinearAveragePool", "com.microsoft", &inputs.map(Some), &attrs, dtype);
    }

    fn table(&mut self, op_type: &str, dtype: DataType) {
        let x = self.input(dtype, &[2, 300]);
        let x_scale = self.constant(Tensor::scalar(0.03_f32));
        let (y_scale, y_zero) = if op_type == "QLinearSigmoid" {
            let zero = if dtype == DataType::Int8 {
                Tensor::scalar(-128_i8)
            } else {
                Tensor::scalar(0_u8)
            };
            (self.constant(Tensor::scalar(1.0_f32 / 256.0)), self.constant(zero))
        } else {
            (self.scale(0.5), self.zero_point(dtype))
        };
        let inputs = [x, x_scale, self.zero_point(dtype), y_scale, y_zero];
        let attrs = [("alpha", AttrValue::Float(0.13))];
        let attrs = if op_type == "QLinearLeakyRelu" { &attrs[..] } else { &[] };
        self.node(op_type, "com.microsoft", &inputs.map(Some), attrs, dtype);
    }

    /// An input behind a DequantizeLinear, whose scale and zero point are given.
    fn dequantized(
        &mut self,
        dtype: DataType,
        dims: &[usize],
        scale: ValueId,
        zero: ValueId,
    ) -> ValueId {
        let x = self.input(dtype, dims);
        let made = self.graph.intern(&format!("dq{}", self.inputs.len()));
        let mut node = Node::new("DequantizeLinear", "", [], [made]);
        node.inputs = [x, scale, zero].map(Some).to_vec();
        self.graph.nodes.push(node);
        made
    }

    /// DequantizeLinear, `op_type`, QuantizeLinear.
    fn cluster(
        &mut self,
        op_type: &str,
        dtype: DataType,
        attrs: &[(&str, AttrValue)],
        dims: &[&[usize]],
    ) {
        let (scale, zero) = (self.scale(1.0), self.zero_point(dtype));
        // Operators that move codes keep their parameters.
        let keeps = ["MaxPool", "Transpose", "Flatten", "Resize"].contains(&op_type);
        let mut inputs = Vec::new();
        for (i, dims) in dims.iter().enumerate() {
            let (scale, zero) =
                if i == 0 { (scale, zero) } else { (self.scale(1.0), self.zero_point(dtype)) };
            inputs.push(self.dequantized(dtype, dims, scale, zero));
        }
        if op_type == "Resize" {
            let none = self.constant(Tensor::vector::<f32>(&[]));
            inputs.extend([none, self.constant(Tensor::vector(&[1.0_f32, 1.0, 2.0, 3.0]))]);
        }
        let made = self.graph.intern(&format!("made{}", self.graph.outputs.len()));
        let mut node = Node::new(op_type, "", inputs, [made]);
        node.attrs = attrs
            .iter()
            .map(|(name, value)| Attr {
                name: (*name).to_owned(),
                value: value.clone(),
                doc_string: String::new(),
            })
            .collect();
        self.graph.nodes.push(node);
        let (scale, zero) = match keeps {
            true => (scale, zero),
            false => (self.scale(if op_type == "Add" { 2.0 } else { 0.6 }), self.zero_point(dtype)),
        };
        self.node("QuantizeLinear", "", &[made, scale, zero].map(Some), &[], dtype);
    }

    /// A convolution in float between codes, its weights of 4 or 8 bits.
    fn conv_cluster(&mut self, dtype: DataType, w_type: DataType) {
        let n = &mut self.noise;
        let (c_in, c_out, kernel) = (1 + n.below(20), 1 + n.below(30), 1 + n.below(3));
        let dims = [1, c_in, kernel + n.below(9), kernel + n.below(9)];
        let w_dims = [c_out, c_in, kernel, kernel];
        let n_weights: usize = w_dims.iter().product();
        let w = match w_type {
            DataType::Int4 => {
                let bytes: Vec<u8> = (0..n_weights.div_ceil(2)).map(|_| n.byte()).collect();
                Tensor::from_bytes(DataType::Int4, w_dims.to_vec(), bytes.into()).unwrap()
            }
            _ => n.weights(&w_dims),
        };
        let w_scales: Vec<f32> = (0..c_out).map(|_| n.scale()).collect();
        let bias: Vec<f32> = (0..c_out).map(|_| f32::from(n.byte()) / 100.0).collect();
        let (scale, zero) = (self.scale(1.0), self.zero_point(dtype));
        let x = self.dequantized(dtype, &dims, scale, zero);
        let [w, w_scale] = [w, Tensor::vector(&w_scales)].map(|tensor| self.constant(tensor));
        let bias = self.constant(Tensor::vector(&bias));
        let [weights, made] = ["w", "made"].map(|name| {
            let name = format!("{name}{}", self.graph.outputs.len());
            self.graph.intern(&name)
        });
        let dequantize = Node::new("DequantizeLinear", "", [w, w_scale], [weights]);
        self.graph.nodes.push(dequantize.with_attr("axis", AttrValue::Int(0)));
        self.graph.nodes.push(Node::new("Conv", "", [x, weights, bias], [made]));
        let (scale, zero) = (self.scale(30.0), self.zero_point(dtype));
        self.node("QuantizeLinear", "", &[made, scale, zero].map(Some), &[], dtype);
    }
}

/// ONNX Runtime's outputs without graph optimization.
fn onnxruntime(
    model: &Model,
    inputs: &[(String, Tensor)],
    folder: &Path,
) -> BTreeMap<String, Tensor> {
    let paths = ["model.onnx", "in.npz", "out.npz"].map(|name| folder.join(name));
    onnx::save(model, &paths[0], &SaveOptions::default()).unwrap();
    npz::write(&paths[1], inputs);
    let [model, given, answered] = paths.each_ref().map(|path| path.to_str().unwrap());
    oracle(&["run", model, "--inputs", given, "--outputs", answered, "--no-optimize"]);
    npz::read(&paths[2]).into_iter().collect()
}

#[test]
fn integer_operators_have_onnxruntimes_bits() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = Nodes::new(20_261_123);
    for i in 0..280 {
        // ONNX Runtime's int8 and uint8 kernels are different code.
        let dtype = if i % 2 == 0 { DataType::Uint8 } else { DataType::Int8 };
        match i / 2 % 14 {
            8 => nodes.broadcast("QLinearMul", dtype),
            9 => nodes.broadcast("QLinearAdd", dtype),
            10 => nodes.concat(dtype),
            11 => nodes.average(dtype),
            12 => nodes.table("QLinearLeakyRelu", dtype),
            13 => nodes.table("QLinearSigmoid", dtype),
            0..4 => nodes.conv(dtype),
            4 => nodes.add(dtype),
            5 => nodes.mean(dtype),
            6 => nodes.product(dtype),
            _ => nodes.gemm(dtype, i % 28 < 14),
        }
    }
    let (model, inputs) = nodes.model();
    let program = Program::compile(&model, &EngineOptions::default()).unwrap();
    // One step a node, besides those that change the layout.
    let steps: Vec<_> = program.steps().filter(|step| !step.kind.starts_with("channels")).collect();
    assert!(steps.iter().all(|step| step.kind != "operator"), "{steps:?}");
    let theirs = onnxruntime(&model, &inputs, folder.path());
    let ours = program.run(inputs).unwrap();
    assert_eq!(ours.len(), 280);
    let mut different = BTreeMap::new();
    for ((name, ours), step) in ours.into_iter().zip(steps) {
        let theirs = &theirs[&name];
        assert_eq!((ours.dims(), ours.dtype()), (theirs.dims(), theirs.dtype()), "{name}");
        if ours.as_bytes() != theirs.as_bytes() {
            different
                .entry(step.op_type)
                .or_insert_with(Vec::new)
                .push((name, ours.dims().to_vec()));
        }
    }
    assert!(different.is_empty(), "{different:?}");
}

/// By how many steps codes differ at most.
fn furthest(a: &Tensor, b: &Tensor) -> i32 {
    assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()));
    let code = |x: u8| if a.dtype() == DataType::Int8 { i32::from(x as i8) } else { i32::from(x) };
    let pairs = a.as_bytes().iter().zip(b.as_bytes());
    pairs.map(|(&a, &b)| (code(a) - code(b)).abs()).max().unwrap_or(0)
}

#[test]
fn clusters_of_quantized_operators_run_in_integers_within_a_step_of_their_definition() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = Nodes::new(20_261_127);
    let image: &[usize] = &[2, 5, 6, 7];
    let mut ops = Vec::new();
    for dtype in [DataType::Uint8, DataType::Int8] {
        for op_type in [
            "Add",
            "Mul",
            "GlobalAveragePool",
            "Sigmoid",
            "HardSwish",
            "LeakyRelu",
            "Relu",
            "Elu",
            "Softmax",
            "Transpose",
            "Flatten",
            "Resize",
        ] {
            let attrs = match op_type {
                "Transpose" => vec![("perm", AttrValue::Ints(vec![0, 2, 3, 1]))],
                "Softmax" => vec![("axis", AttrValue::Int(-1))],
                "Resize" => vec![
                    ("mode", AttrValue::String("nearest".into())),
                    ("coordinate_transformation_mode", AttrValue::String("asymmetric".into())),
                    ("nearest_mode", AttrValue::String("floor".into())),
                ],
                _ => Vec::new(),
            };
            let dims: &[&[usize]] = match op_type {
                "Add" | "Mul" => &[image, &[1, 5, 1, 1]],
                _ => &[image],
            };
            nodes.cluster(op_type, dtype, &attrs, dims);
            ops.push(op_type);
        }
        nodes.cluster("Concat", dtype, &[("axis", AttrValue::Int(1))], &[image, &[2, 3, 6, 7]]);
        nodes.cluster("MatMul", dtype, &[], &[&[2, 3, 9, 31], &[2, 3, 31, 8]]);
        ops.extend(["Concat", "MatMul"]);
        for op_type in ["MaxPool", "AveragePool"] {
            let (mut attrs, dims) = nodes.window();
            attrs.push(("ceil_mode", AttrValue::Int(1)));
            nodes.cluster(op_type, dtype, &attrs, &[&dims]);
            ops.push(op_type);
        }
        for w_type in [DataType::Int8, DataType::Int4] {
            nodes.conv_cluster(dtype, w_type);
            ops.push("Conv");
        }
    }
    let (mut model, inputs) = nodes.model();
    // Where 4-bit weights are.
    model.set_opset("", 21);
    model.ir_version = 10;
    let program = Program::compile(&model, &EngineOptions::default()).unwrap();
    for step in program.steps() {
        assert!(step.why.is_empty(), "{step:?}");
    }
    let theirs = onnxruntime(&model, &inputs, folder.path());
    let fixed = EngineOptions { requantize: Requantize::FixedPoint };
    let fixed = Program::compile(&model, &fixed).unwrap().run(inputs.clone()).unwrap();
    for (((name, ours), (_, fixed)), op) in program.run(inputs).unwrap().iter().zip(&fixed).zip(ops)
    {
        let theirs = &theirs[name];
        // A definition in float rounds each product; the kernels round the exact sum once. `Softmax` takes ONNX
        // Runtime's QLinearSoftmax, whose factor is cut to an integer.
        let allowed = match op {
            "Transpose" | "Flatten" | "Resize" | "MaxPool" | "Sigmoid" | "HardSwish"
            | "LeakyRelu" | "Relu" | "Elu" => 0,
            "Softmax" => 2,
            _ => 1,
        };
        assert!(
            furthest(ours, theirs) <= allowed,
            "{name}: {op} differs by {}",
            furthest(ours, theirs)
        );
        // Fixed point rounds halves up, and to even it is done elsewhere.
        assert!(furthest(fixed, ours) <= 1, "{name}: {op} in fixed point");
    }
}

#[test]
fn the_demo_net_runs_in_integers_and_answers_as_onnxruntime_does() {
    let folder = tempfile::tempdir().unwrap();
    let model = onnx::load(root().join("assets/demo/fashion_mobilenet.onnx")).unwrap();
    let specs = InputSpec::of(&model).unwrap();
    let limit = data::Options { limit: Some(64), preprocess: Preprocess::preset("fashion_mnist") };
    let images = root().join("assets/demo/calibration-images-idx3-ubyte.gz");
    let samples = midtread::samples::open(&images, &specs, &limit).unwrap();
    for format in [Format::Qdq, Format::QOperator] {
        // Seven bits of weights: see `Noise::weights`.
        let plan = PlanOptions { reduce_range: true, ..PlanOptions::default() };
        let options = options(plan, format);
        let result = midtread::quantize(model.clone(), Some(&samples), &options).unwrap();
        let int8 = onnx::from_bytes(onnx::to_bytes(&result.model).unwrap().into(), None).unwrap();
        let program = Program::compile(&int8, &EngineOptions::default()).unwrap();
        let kinds: BTreeMap<String, Vec<&str>> =
            program.steps().fold(BTreeMap::new(), |mut kinds, step| {
                kinds.entry(step.op_type).or_insert_with(Vec::new).push(step.kind);
                kinds
            });
        for (op_type, kinds) in &kinds {
            // In QOperator form, Flatten is on codes as it is.
            let is_border =
                ["QuantizeLinear", "DequantizeLinear", "Flatten"].contains(&op_type.as_str());
            assert!(is_border || !kinds.contains(&"operator"), "{format}: {op_type}: {kinds:?}");
        }
        assert!(
            program.steps().all(|step| step.kind != "operator"),
            "{format}: all of it in integers"
        );

        let interpreter = Runner::new(&int8, Runtime::Interpreter, None).unwrap();
        let mut same_answers = 0;
        for i in 0..64 {
            let inputs = samples.sample(i).unwrap().inputs;
            let on_threads = |n_threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                pool.install(|| program.run(inputs.clone())).unwrap()
            };
            let ours = on_threads(1);
            assert_eq!(ours, on_threads(3), "{format}, sample {i}: threads change nothing");
            let ours = ours[0].1.to_vec::<f32>().unwrap();
            let defined = interpreter.run(inputs.clone()).unwrap()[0].1.to_vec::<f32>().unwrap();
            same_answers += usize::from(argmax(&ours) == argmax(&defined));
            if i < 4 && format == Format::QOperator {
                // The kernels are the same function, so the whole model is, bit for bit.
                let theirs = onnxruntime(&int8, &inputs, folder.path());
                let theirs = theirs.values().next().unwrap().to_vec::<f32>().unwrap();
                assert_eq!(ours, theirs, "sample {i}");
            }
        }
        assert!(same_answers >= 62, "{format}: {same_answers} of 64 answers as defined");
    }
}

#[test]
fn a_dynamic_product_has_the_bits_of_its_definition() {
    let mut noise = Noise(11);
    let mut floats = |dims: &[usize]| {
        let values: Vec<f32> =
            (0..dims.iter().product()).map(|_| f32::from(noise.byte()) / 40.0 - 3.0).collect();
        Tensor::from_slice(dims.to_vec(), &values).unwrap()
    };
    let mut graph = Graph::default();
    graph.name = "linear".to_owned();
    let known = |dims: &[usize]| Some(dims.iter().map(|&d| Dim::Known(d)).collect());
    let [x, product, y] = ["x", "product", "y"].map(|name| graph.intern(name));
    graph.value_mut(x).ty = Some(Type::tensor(DataType::Float, known(&[2, 7, 45])));
    graph.value_mut(y).ty = Some(Type::tensor(DataType::Float, known(&[2, 7, 33])));
    let weights = graph.add_constant("w", floats(&[45, 33]));
    let bias = graph.add_constant("b", floats(&[33]));
    graph.nodes.push(Node::new("MatMul", "matmul", [x, weights], [product]));
    graph.nodes.push(Node::new("Add", "add", [bias, product], [y]));
    (graph.inputs, graph.outputs) = (vec![x], vec![y]);
    let opset_imports = vec![(String::new(), 13)];
    let model = Model { ir_version: 8, opset_imports, graph, ..Model::default() };
    for granularity in [WeightGranularity::PerTensor, WeightGranularity::PerChannel] {
        let plan = PlanOptions { scheme: Scheme::Dynamic, granularity, ..PlanOptions::default() };
        let int8 =
            midtread::quantize(model.clone(), None, &options(plan, Format::Qdq)).unwrap().model;
        let program = Program::compile(&int8, &EngineOptions::default()).unwrap();
        let kinds: Vec<_> = program.steps().map(|step| step.kind).collect();
        assert_eq!(kinds, ["numbers to codes of their range", "dynamic integer product"]);
        let defined = Runner::new(&int8, Runtime::Interpreter, None).unwrap();
        for x in [floats(&[2, 7, 45]), Tensor::zeros(DataType::Float, vec![2, 7, 45]).unwrap()] {
            let inputs = vec![("x".to_owned(), x)];
            let ours = program.run(inputs.clone()).unwrap();
            assert_eq!(ours, defined.run(inputs).unwrap(), "{granularity:?}");
        }
    }
}

#[test]
fn inputs_that_no_kernel_takes_are_errors() {
    let conv = |dims: &[usize], dtype| {
        let mut nodes = Nodes::new(7);
        // The sizes are not said, so that the check of inputs lets anything pass.
        let x = nodes.graph.intern("x0");
        nodes.graph.inputs.push(x);
        let (scale, zero) = (nodes.scale(1.0), nodes.constant(Tensor::scalar(3_u8)));
        let weights = nodes.noise.weights(&[4, 3, 2, 2]);
        let weights = nodes.constant(weights);
        let w_zero = nodes.constant(Tensor::scalar(0_i8));
        let conv = [x, scale, zero, weights, scale, w_zero, scale, zero].map(Some);
        nodes.node("QLinearConv", "", &conv, &[], DataType::Uint8);
        let made = nodes.graph.outputs[0];
        let mean = [made, scale, zero, scale, zero].map(Some);
        nodes.node("QLinearGlobalAveragePool", "com.microsoft", &mean, &[], DataType::Uint8);
        let codes = nodes.noise.codes(dtype, dims);
        let (model, _) = nodes.model();
        Program::compile(&model, &EngineOptions::default())
            .unwrap()
            .run(vec![("x0".to_owned(), codes)])
    };
    assert!(conv(&[1, 3, 5, 5], DataType::Uint8).is_ok());
    assert_eq!(conv(&[0, 3, 5, 5], DataType::Uint8).unwrap()[0].1.dims(), [0, 4, 4, 4]);
    for (dims, dtype, said) in [
        (&[1, 3, 1, 5][..], DataType::Uint8, "larger than the padded input"),
        (&[1, 3, 0, 0], DataType::Uint8, "larger than the padded input"),
        (&[1, 2, 5, 5], DataType::Uint8, "2 input channels"),
        (&[3, 5, 5], DataType::Uint8, "where an image of codes is needed"),
        (&[1, 3, 5, 5], DataType::Int8, "codes of type uint8"),
    ] {
        let error = conv(dims, dtype).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("QLinearConv"), "{dims:?}: {error}");
    }
}

fn argmax(values: &[f32]) -> usize {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap()
}
