//! The interpreter on models built in code.

use std::error::Error as _;

use bytes::Bytes;
use midtread_exec::{Error, Interpreter, Options};
use midtread_graph::{
    Attr, AttrValue, DataType, Dim, Function, Graph, Model, Node, Tensor, Type, ValueId,
};

/// A model of operator set 17 under construction.
#[derive(Default)]
struct Builder(Graph);

impl Builder {
    fn input(&mut self, name: &str, dims: &[Dim]) -> ValueId {
        let id = self.0.intern(name);
        self.0.value_mut(id).ty = Some(Type::tensor(DataType::Float, Some(dims.to_vec())));
        self.0.inputs.push(id);
        id
    }

    fn constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        self.0.add_constant(name, tensor)
    }

    fn node(&mut self, op_type: &str, inputs: &[ValueId], output: &str) -> ValueId {
        let out = self.0.intern(output);
        self.0.nodes.push(Node::new(op_type, "", inputs.iter().copied(), [out]));
        out
    }

    fn model(mut self, outputs: &[ValueId]) -> Model {
        self.0.name = "g".to_owned();
        self.0.outputs = outputs.to_vec();
        Model {
            ir_version: 8,
            opset_imports: vec![(String::new(), 17)],
            graph: self.0,
            ..Model::default()
        }
    }
}

fn known(dims: &[usize]) -> Vec<Dim> {
    dims.iter().map(|&d| Dim::Known(d)).collect()
}

fn symbol(name: &str) -> Dim {
    Dim::Symbol(name.to_owned())
}

fn f32s(values: &[f32]) -> Tensor {
    Tensor::vector(values)
}

fn given(name: &str, tensor: Tensor) -> Vec<(String, Tensor)> {
    vec![(name.to_owned(), tensor)]
}

fn run(model: &Model, inputs: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    Interpreter::new(model, Options::default()).unwrap().run(inputs).unwrap()
}

fn elements(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec().unwrap()
}

/// `x -> a = Relu -> b = Neg -> y = Add(b, b)`: `a` and `b` are made in place of `x`.
fn chain() -> Model {
    let mut b = Builder::default();
    let x = b.input("x", &known(&[3]));
    let a = b.node("Relu", &[x], "a");
    let n = b.node("Neg", &[a], "b");
    let y = b.node("Add", &[n, n], "y");
    b.model(&[y])
}

#[test]
fn every_value_is_seen_as_it_was_made_although_the_next_node_overwrites_it() {
    let interpreter = Interpreter::new(&chain(), Options::default()).unwrap();
    for keep in [true, false] {
        let mut seen: Vec<(String, Vec<f32>)> = Vec::new();
        let mut kept = Vec::new();
        let inputs = given("x", f32s(&[-1.0, 2.0, 3.0]));
        let outputs = interpreter
            .run_observed(inputs, &mut |id, name, tensor| {
                assert_eq!(interpreter.graph().value_name(id), name);
                seen.push((name.to_owned(), elements(tensor)));
                if keep {
                    kept.push(tensor.clone());
                }
            })
            .unwrap();
        let expected = [
            ("x", vec![-1.0, 2.0, 3.0]),
            ("a", vec![0.0, 2.0, 3.0]),
            ("b", vec![-0.0, -2.0, -3.0]),
            ("y", vec![-0.0, -4.0, -6.0]),
        ];
        assert_eq!(seen, expected.clone().map(|(n, v)| (n.to_owned(), v)));
        assert_eq!(outputs, [("y".to_owned(), f32s(&[-0.0, -4.0, -6.0]))]);
        for (tensor, (name, values)) in kept.iter().zip(&expected) {
            assert_eq!(elements(tensor), *values, "the clone of `{name}`");
        }
    }
}

#[test]
fn what_the_caller_keeps_is_not_changed() {
    let x = f32s(&[-1.0, 2.0, 3.0]);
    run(&chain(), given("x", x.clone()));
    assert_eq!(elements(&x), [-1.0, 2.0, 3.0]);
}

#[test]
fn outputs_survive_later_uses_of_the_same_value() {
    let mut b = Builder::default();
    let x = b.input("x", &known(&[2]));
    let a = b.node("Relu", &[x], "a");
    let n = b.node("Neg", &[a], "n");
    let c = b.constant("c", f32s(&[7.0, 8.0]));
    // An intermediate value, an input, a constant, and the same value twice.
    let model = b.model(&[a, n, x, c, a]);
    let outputs = run(&model, given("x", f32s(&[-1.0, 1.0])));
    let values: Vec<_> = outputs.iter().map(|(name, t)| (name.as_str(), elements(t))).collect();
    let expected = [
        ("a", vec![0.0, 1.0]),
        ("n", vec![-0.0, -1.0]),
        ("x", vec![-1.0, 1.0]),
        ("c", vec![7.0, 8.0]),
        ("a", vec![0.0, 1.0]),
    ];
    assert_eq!(values, expected);
}

#[test]
fn a_chain_of_any_length_holds_two_values_and_a_branch_one_more() {
    const N: usize = 1 << 16;
    let n_bytes = 4 * N;
    let chain = |keep: bool| {
        let mut b = Builder::default();
        let x = b.input("x", &known(&[N]));
        let one = b.constant("one", f32s(&[1.0]));
        let first = b.node("Add", &[x, one], "v0");
        let mut last = first;
        for i in 1..20 {
            last = b.node("Add", &[last, one], &format!("v{i}"));
        }
        let y = b.node("Add", &[last, if keep { first } else { last }], "y");
        b.model(&[y])
    };
    let limited = |model: &Model, max_bytes: usize| {
        let interpreter = Interpreter::new(model, Options { max_bytes: Some(max_bytes) }).unwrap();
        interpreter.run(given("x", f32s(&vec![0.5; N])))
    };
    let (_, y) = &limited(&chain(false), 2 * n_bytes).unwrap()[0];
    assert_eq!(elements(y)[N - 1], 41.0);
    assert!(limited(&chain(true), 3 * n_bytes).is_ok());

    let err = limited(&chain(true), n_bytes + n_bytes / 2).unwrap_err();
    // Whether `v0` is made in place of `x` is the operator's choice.
    let Error::Memory { node, held, limit, .. } = &err else { panic!("{err}") };
    assert!(["v0", "v1"].contains(&node.as_str()), "{err}");
    assert_eq!((*held, *limit), (n_bytes, n_bytes + n_bytes / 2));
    assert!(err.hint().is_some());
}

#[test]
fn a_tensor_that_is_too_large_is_refused_before_it_is_made() {
    let mut b = Builder::default();
    let x = b.input("x", &known(&[1]));
    let shape = b.constant("shape", Tensor::vector(&[1_i64 << 20, 1 << 20]));
    let y = b.node("Expand", &[x, shape], "y");
    let model = b.model(&[y]);
    let interpreter = Interpreter::new(&model, Options { max_bytes: Some(1 << 20) }).unwrap();
    let err = interpreter.run(given("x", f32s(&[1.0]))).unwrap_err();
    assert!(matches!(err, Error::Memory { needed, .. } if needed == 4 << 40), "{err}");
    assert_eq!(
        err.to_string(),
        "node `y` (Expand, inputs float[1], int64[2]) needs 4398046511104 bytes where 4 of 1048576 are held"
    );
}

#[test]
fn many_threads_may_run_one_interpreter_at_once() {
    let interpreter = Interpreter::new(&chain(), Options::default()).unwrap();
    std::thread::scope(|scope| {
        for t in 0..4 {
            let interpreter = &interpreter;
            scope.spawn(move || {
                for i in 0..100 {
                    let v = (t * 1000 + i) as f32;
                    let outputs = interpreter.run(given("x", f32s(&[v, -v, 0.5]))).unwrap();
                    assert_eq!(elements(&outputs[0].1), [-2.0 * v, -0.0, -1.0]);
                }
            });
        }
    });
}

#[test]
fn inputs_are_checked_for_name_type_rank_and_size() {
    let mut b = Builder::default();
    let x = b.input("x", &[symbol("n"), Dim::Known(2)]);
    let z = b.input("z", &[symbol("n"), Dim::Unknown]);
    let y = b.node("Add", &[x, z], "y");
    let interpreter = Interpreter::new(&b.model(&[y]), Options::default()).unwrap();
    let tensor = |dims: &[usize]| Tensor::zeros(DataType::Float, dims.to_vec()).unwrap();
    let run = |inputs: Vec<(&str, Tensor)>| {
        interpreter.run(inputs.into_iter().map(|(n, t)| (n.to_owned(), t)).collect())
    };
    let message = |inputs| run(inputs).unwrap_err().to_string();

    for n in [0, 1, 5] {
        assert_eq!(
            run(vec![("z", tensor(&[n, 1])), ("x", tensor(&[n, 2]))]).unwrap()[0].1.dims(),
            [n, 2]
        );
    }
    assert_eq!(message(vec![("x", tensor(&[1, 2]))]), "input `z` is missing (given were `x`)");
    assert_eq!(
        message(vec![("q", tensor(&[1, 2]))]),
        "the model has no input `q` (it has `x`, `z`)"
    );
    assert_eq!(
        message(vec![("x", tensor(&[1, 2])), ("x", tensor(&[1, 2])), ("z", tensor(&[1, 2]))]),
        "input `x` is given twice"
    );
    assert_eq!(
        message(vec![("x", tensor(&[1, 3])), ("z", tensor(&[1, 3]))]),
        "input `x` has shape [1, 3], not [n, 2]"
    );
    assert_eq!(
        message(vec![("x", tensor(&[2])), ("z", tensor(&[1, 3]))]),
        "input `x` has shape [2], not [n, 2]"
    );
    assert_eq!(
        message(vec![("x", tensor(&[1, 2])), ("z", tensor(&[3, 2]))]),
        "input `z` has shape [3, 2], in which `n` is 3, but input `x` has 1"
    );
    assert_eq!(
        message(vec![("x", Tensor::scalar(1_i64)), ("z", tensor(&[1, 2]))]),
        "input `x` is int64, not float"
    );
}

#[test]
fn an_input_with_a_default_may_be_given_or_left_out() {
    let mut b = Builder::default();
    let x = b.input("x", &known(&[1]));
    let d = b.input("d", &known(&[1]));
    b.0.set_constant(d, f32s(&[10.0]));
    let y = b.node("Add", &[x, d], "y");
    let model = b.model(&[y]);
    assert_eq!(elements(&run(&model, given("x", f32s(&[1.0])))[0].1), [11.0]);
    let both = vec![("x".to_owned(), f32s(&[1.0])), ("d".to_owned(), f32s(&[2.0]))];
    assert_eq!(elements(&run(&model, both)[0].1), [3.0]);
    // The first call did not change the default.
    assert_eq!(elements(&run(&model, given("x", f32s(&[1.0])))[0].1), [11.0]);
}

#[test]
fn constants_at_odd_addresses_are_read_right_and_not_changed() {
    let mut raw = vec![0_u8; 13];
    raw[1..5].copy_from_slice(&1.5_f32.to_le_bytes());
    raw[5..9].copy_from_slice(&2.5_f32.to_le_bytes());
    let raw = Bytes::from(raw);
    let mut b = Builder::default();
    let x = b.input("x", &known(&[2]));
    for start in 0..4 {
        // At least three of the four are unaligned.
        let bytes =
            if start == 1 { raw.slice(1..9) } else { Bytes::copy_from_slice(&raw).slice(1..9) };
        b.constant(
            &format!("c{start}"),
            Tensor::from_bytes(DataType::Float, vec![2], bytes).unwrap(),
        );
    }
    let c = b.0.find("c1").unwrap();
    let n = b.node("Neg", &[c], "n");
    let y = b.node("Add", &[x, n], "y");
    let model = b.model(&[y]);
    let interpreter = Interpreter::new(&model, Options::default()).unwrap();
    for _ in 0..2 {
        let outputs = interpreter.run(given("x", f32s(&[1.0, 1.0]))).unwrap();
        assert_eq!(elements(&outputs[0].1), [-0.5, -1.5]);
    }
}

#[test]
fn what_is_the_same_in_every_run_is_computed_once_and_seen_in_each() {
    let mut b = Builder::default();
    let x = b.input("x", &known(&[4096]));
    let q = b.constant("q", Tensor::vector(&[-3_i8; 4096]));
    let scale = b.constant("scale", Tensor::scalar(0.5_f32));
    let w = b.node("DequantizeLinear", &[q, scale], "w");
    // In place of `w` in the first run, if it were not kept.
    let n = b.node("Neg", &[w], "n");
    let y = b.node("Mul", &[x, n], "y");
    let model = b.model(&[y]);
    // The run needs three values at once, 49152 bytes. An eighth of the limit holds neither constant, or both: what is
    // kept must not make a run fail that has just enough.
    for (max_bytes, is_kept) in [(50_000, false), (1_000_000, true)] {
        let interpreter = Interpreter::new(&model, Options { max_bytes: Some(max_bytes) }).unwrap();
        for v in [1.0, 2.0, 3.0] {
            let mut seen = Vec::new();
            let inputs = given("x", f32s(&[v; 4096]));
            let outputs = interpreter
                .run_observed(inputs, &mut |_, name, t| {
                    seen.push((name.to_owned(), elements(t)[7]))
                })
                .unwrap();
            let expected = [("x", v), ("w", -1.5), ("n", 1.5), ("y", 1.5 * v)];
            assert_eq!(seen, expected.map(|(name, v)| (name.to_owned(), v)));
            assert_eq!(elements(&outputs[0].1), [1.5 * v; 4096]);
        }
        let (_, times) = interpreter.run_profiled(given("x", f32s(&[1.0; 4096]))).unwrap();
        let not_run: Vec<_> =
            times.iter().filter(|t| t.time.is_zero()).map(|t| t.node.as_str()).collect();
        assert_eq!(not_run, if is_kept { vec!["w", "n"] } else { vec![] });
    }
}

#[test]
fn nodes_run_in_an_order_that_makes_values_first() {
    let mut model = chain();
    model.graph.nodes.reverse();
    assert_eq!(elements(&run(&model, given("x", f32s(&[1.0, 2.0, 3.0])))[0].1), [-2.0, -4.0, -6.0]);
}

#[test]
fn graphs_that_cannot_run_are_refused_by_name() {
    let message =
        |model: &Model| Interpreter::new(model, Options::default()).unwrap_err().to_string();

    let mut unknown = chain();
    unknown.graph.nodes[1].op_type = "Frobnicate".to_owned();
    unknown.graph.nodes[1].domain = "my.domain".to_owned();
    assert_eq!(message(&unknown), "node `b`: operator my.domain.Frobnicate is not supported");

    let mut no_opset = chain();
    no_opset.opset_imports.clear();
    assert_eq!(
        message(&no_opset),
        "node `a` (Relu): the model imports no operator set for domain ``"
    );

    let mut old = chain();
    old.opset_imports[0].1 = 1;
    assert!(
        message(&old).starts_with("node `a`: Relu of operator set 1 is not supported"),
        "{}",
        message(&old)
    );

    let mut odd = chain();
    odd.graph.nodes[1].set_attr("rounding", AttrValue::Int(1));
    let error = Interpreter::new(&odd, Options::default()).unwrap_err();
    assert_eq!(
        (error.to_string(), error.source().unwrap().to_string()),
        (
            "node `b` (Neg of operator set 17)".to_owned(),
            "attribute `rounding` is not supported".to_owned()
        )
    );

    let mut cycle = chain();
    let b = cycle.graph.find("b").unwrap();
    cycle.graph.nodes[0].inputs[0] = Some(b);
    assert_eq!(message(&cycle), "node `a` (Relu) depends on its own output");

    let mut undefined = chain();
    let ghost = undefined.graph.intern("ghost");
    undefined.graph.nodes[1].inputs[0] = Some(ghost);
    assert_eq!(
        message(&undefined),
        "node `b` (Neg) uses `ghost`, which no node, input or initializer makes"
    );

    let mut twice = chain();
    let a = twice.graph.find("a").unwrap();
    twice.graph.nodes[1].outputs[0] = Some(a);
    assert_eq!(message(&twice), "node `a` (Neg) makes `a`, which is already made");

    let mut sub = chain();
    sub.graph.nodes[1].attrs.push(Attr {
        name: "then_branch".to_owned(),
        value: AttrValue::Graph(Box::default()),
        doc_string: String::new(),
    });
    assert_eq!(message(&sub), "node `b` (Neg): a subgraph is not supported");
}

#[test]
fn what_no_output_depends_on_is_not_run() {
    let mut model = chain();
    let (x, dead) = (model.graph.find("x").unwrap(), model.graph.intern("dead"));
    model.graph.nodes.push(Node::new("Frobnicate", "f", [x], [dead]));
    let interpreter = Interpreter::new(&model, Options::default()).unwrap();
    assert_eq!(interpreter.n_nodes(), 3);
    let mut names = Vec::new();
    let inputs = given("x", f32s(&[1.0, 2.0, 3.0]));
    interpreter.run_observed(inputs, &mut |_, name, _| names.push(name.to_owned())).unwrap();
    assert_eq!(names, ["x", "a", "b", "y"]);
}

#[test]
fn errors_of_operators_name_the_node_and_its_inputs() {
    let mut b = Builder::default();
    let x = b.input("x", &[symbol("n")]);
    let c = b.constant("c", f32s(&[1.0, 2.0, 3.0]));
    let y = b.node("Add", &[x, c], "y");
    let interpreter = Interpreter::new(&b.model(&[y]), Options::default()).unwrap();
    let err = interpreter.run(given("x", f32s(&[1.0, 2.0]))).unwrap_err();
    assert_eq!(err.to_string(), "node `y` (Add, inputs float[2], float[3])");
    assert!(std::error::Error::source(&err).is_some());
    // The failed run left nothing behind.
    assert!(interpreter.run(given("x", f32s(&[1.0]))).is_ok());
}

#[test]
fn a_profile_has_a_line_for_each_node() {
    let interpreter = Interpreter::new(&chain(), Options::default()).unwrap();
    let (outputs, times) = interpreter.run_profiled(given("x", f32s(&[1.0, 2.0, 3.0]))).unwrap();
    assert_eq!(elements(&outputs[0].1), [-2.0, -4.0, -6.0]);
    let lines: Vec<_> =
        times.iter().map(|t| (t.node.as_str(), t.op_type.as_str(), t.inputs.as_str())).collect();
    assert_eq!(
        lines,
        [("a", "Relu", "float[3]"), ("b", "Neg", "float[3]"), ("y", "Add", "float[3], float[3]")]
    );
}

/// `twice(u; alpha) = leaky(u + u)`, where `leaky` is a function that calls `LeakyRelu` with the attribute it is given.
fn functions() -> Vec<Function> {
    let attr_ref = Attr {
        name: "alpha".to_owned(),
        value: AttrValue::Ref { name: "slope".to_owned(), ty: 1 },
        doc_string: String::new(),
    };
    let slope_ref = Attr {
        name: "slope".to_owned(),
        value: AttrValue::Ref { name: "slope".to_owned(), ty: 1 },
        doc_string: String::new(),
    };
    let mut leaky = Graph::default();
    let [u, v] = ["u", "v"].map(|n| leaky.intern(n));
    (leaky.inputs, leaky.outputs) = (vec![u], vec![v]);
    leaky.nodes = vec![Node { attrs: vec![attr_ref], ..Node::new("LeakyRelu", "", [u], [v]) }];

    let mut twice = Graph::default();
    let [u, sum, v] = ["u", "sum", "v"].map(|n| twice.intern(n));
    // The second output hands an input on, the third is the first again.
    (twice.inputs, twice.outputs) = (vec![u], vec![v, u, v]);
    let call = Node {
        attrs: vec![slope_ref],
        ..Node::new("leaky", "inner", [sum], [v]).with_domain("local")
    };
    twice.nodes = vec![Node::new("Add", "", [u, u], [sum]), call];

    let function = |name: &str, body: Graph| Function {
        name: name.to_owned(),
        domain: "local".to_owned(),
        attribute_defaults: vec![Attr {
            name: "slope".to_owned(),
            value: AttrValue::Float(0.25),
            doc_string: String::new(),
        }],
        opset_imports: vec![(String::new(), 17), ("local".to_owned(), 1)],
        body,
        ..Function::default()
    };
    vec![function("leaky", leaky), function("twice", twice)]
}

#[test]
fn functions_of_the_model_are_expanded_with_their_attributes() {
    let mut b = Builder::default();
    let x = b.input("x", &known(&[2]));
    let [p, q, r, s] = ["p", "q", "r", "s"].map(|n| b.0.intern(n));
    let call = |inputs, outputs: Vec<ValueId>| {
        Node::new("twice", "", inputs, outputs).with_domain("local")
    };
    b.0.nodes.push(call([x], vec![p, q, r]));
    b.0.nodes.push(call([p], vec![s]).with_attr("slope", AttrValue::Float(0.5)));
    let mut model = b.model(&[p, q, r, s]);
    model.functions = functions();

    let outputs = run(&model, given("x", f32s(&[-1.0, 2.0])));
    let values: Vec<_> = outputs.iter().map(|(_, t)| elements(t)).collect();
    assert_eq!(values, [vec![-0.5, 4.0], vec![-1.0, 2.0], vec![-0.5, 4.0], vec![-0.5, 8.0]]);

    model.functions[0].opset_imports[0].1 = 9;
    let err = Interpreter::new(&model, Options::default()).unwrap_err().to_string();
    assert_eq!(
        err,
        "node `p/inner` (leaky): a function of operator set 9 in a model of operator set 17 is not supported"
    );
}

#[test]
fn functions_that_call_themselves_are_refused() {
    let mut functions = functions();
    let v = functions[0].body.find("v").unwrap();
    let u = functions[0].body.find("u").unwrap();
    functions[0].body.nodes = vec![Node::new("twice", "", [u], [v]).with_domain("local")];
    let mut b = Builder::default();
    let x = b.input("x", &known(&[2]));
    let y = b.node("twice", &[x], "y");
    b.0.nodes[0].domain = "local".to_owned();
    let mut model = b.model(&[y]);
    model.functions = functions;
    let err = Interpreter::new(&model, Options::default()).unwrap_err().to_string();
    assert!(err.ends_with("a function that calls itself is not supported"), "{err}");
}

/// Convolutions with a BatchNormalization, a Clip and a Relu after them, in the combinations that can be one pass and
/// some that cannot.
fn convolutions(followers: &[&str], others: &[&str]) -> Model {
    let mut b = Builder::default();
    let noise = |dims: &[usize], seed: usize| {
        let n: usize = dims.iter().product();
        let values: Vec<f32> =
            (0..n).map(|i| ((i * 37 + seed * 11) % 23) as f32 / 7.0 - 1.4).collect();
        Tensor::from_slice(dims.to_vec(), &values).unwrap()
    };
    let mut x = b.input("x", &known(&[1, 3, 6, 5]));
    let w = b.constant("w", noise(&[3, 3, 2, 3], 1));
    let bias = b.constant("b", noise(&[3], 2));
    let params = [3, 4, 5].map(|seed| b.constant(&format!("p{seed}"), noise(&[3], seed)));
    let var = b.constant("var", f32s(&[0.5, 2.0, 0.01]));
    let bounds = [("lo", -0.5_f32), ("hi", 6.0)].map(|(n, v)| b.constant(n, Tensor::scalar(v)));
    x = b.node("Conv", &[x, w, bias], "conv");
    let mut outputs = Vec::new();
    for (i, op_type) in followers.iter().enumerate() {
        let inputs = match *op_type {
            "BatchNormalization" => vec![x, params[0], params[1], params[2], var],
            "Clip" => vec![x, bounds[0], bounds[1]],
            _ => vec![x],
        };
        x = b.node(op_type, &inputs, &format!("y{i}"));
    }
    for (i, op_type) in others.iter().enumerate() {
        let conv = b.0.find("conv").unwrap();
        outputs.push(b.node(op_type, &[conv], &format!("other{i}")));
    }
    outputs.push(x);
    b.model(&outputs)
}

#[test]
fn what_follows_a_convolution_is_done_with_it_and_gives_the_same_bits() {
    let conv_bn_clip = ["BatchNormalization", "Clip"];
    // The followers, what else uses the convolution's output, and how many nodes an unwatched run still evaluates.
    let cases: [(&[&str], &[&str], usize); 7] = [
        (&conv_bn_clip, &[], 1),
        (&["Relu"], &[], 1),
        (&["Clip", "BatchNormalization"], &[], 2),
        (&["BatchNormalization", "Relu", "Neg", "Relu"], &[], 3),
        (&["BatchNormalization", "BatchNormalization"], &[], 2),
        (&conv_bn_clip, &["Neg"], 4),
        (&[], &[], 1),
    ];
    let mut values: Vec<f32> = (0..90).map(|i| (i * 29 % 31) as f32 / 5.0 - 3.0).collect();
    values[40] = f32::NAN;
    let x = Tensor::from_slice(vec![1, 3, 6, 5], &values).unwrap();
    for (followers, others, n_evaluated) in cases {
        let interpreter =
            Interpreter::new(&convolutions(followers, others), Options::default()).unwrap();
        let mut n_seen = 0;
        let watched = interpreter.run_observed(given("x", x.clone()), &mut |_, _, _| n_seen += 1);
        assert_eq!(
            n_seen,
            2 + followers.len() + others.len(),
            "{followers:?}: every value is seen"
        );
        let (outputs, nodes) = interpreter.run_profiled(given("x", x.clone())).unwrap();
        assert_eq!(nodes.len(), n_evaluated, "{followers:?}, {others:?}");
        let bytes = |outputs: &[(String, Tensor)]| -> Vec<Vec<u8>> {
            outputs.iter().map(|(_, t)| t.as_bytes().to_vec()).collect()
        };
        assert_eq!(bytes(&outputs), bytes(&watched.unwrap()), "{followers:?}, {others:?}");
    }
}
