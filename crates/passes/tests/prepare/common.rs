//! Models built in code, and the question every pass must answer: does the model still compute the same?

use midtread_exec::{Interpreter, Options};
use midtread_graph::{AttrValue, DataType, Dim, Graph, Model, Node, Tensor, Type, ValueId};
use midtread_passes::{PassSet, PrepareOptions, Report, prepare};

/// A model under construction.
#[derive(Default)]
pub(crate) struct Builder {
    pub(crate) graph: Graph,
    pub(crate) seed: u64,
}

impl Builder {
    pub(crate) fn input(&mut self, name: &str, dims: &[&str]) -> ValueId {
        self.typed_input(name, DataType::Float, dims)
    }

    /// Sizes are numbers, names, or `?`.
    pub(crate) fn typed_input(&mut self, name: &str, elem: DataType, dims: &[&str]) -> ValueId {
        let id = self.graph.intern(name);
        self.graph.value_mut(id).ty =
            Some(Type::tensor(elem, Some(dims.iter().map(|d| dim(d)).collect())));
        self.graph.inputs.push(id);
        id
    }

    pub(crate) fn constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        assert!(self.graph.find(name).is_none());
        self.graph.add_constant(name, tensor)
    }

    pub(crate) fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> ValueId {
        self.constant(name, Tensor::from_slice(dims.to_vec(), values).unwrap())
    }

    /// Integers from -4 to 4, so that sums and products of a few are exact.
    pub(crate) fn weights(&mut self, name: &str, dims: &[usize]) -> ValueId {
        let n = dims.iter().product();
        let values: Vec<f32> = (0..n).map(|_| (self.random() % 9) as f32 - 4.0).collect();
        self.floats(name, dims, &values)
    }

    pub(crate) fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.seed >> 33
    }

    pub(crate) fn node(&mut self, op_type: &str, inputs: &[ValueId], output: &str) -> ValueId {
        self.node_with(op_type, inputs, output, &[])
    }

    pub(crate) fn node_with(
        &mut self,
        op_type: &str,
        inputs: &[ValueId],
        output: &str,
        attrs: &[(&str, AttrValue)],
    ) -> ValueId {
        let out = self.graph.intern(output);
        let node = Node::new(op_type, &format!("{output}_node"), inputs.iter().copied(), [out]);
        let node =
            attrs.iter().fold(node, |node, (name, value)| node.with_attr(name, value.clone()));
        self.graph.nodes.push(node);
        out
    }

    pub(crate) fn model(mut self, opset: i64, outputs: &[ValueId]) -> Model {
        self.graph.name = "g".to_owned();
        self.graph.outputs = outputs.to_vec();
        Model {
            ir_version: 8,
            opset_imports: vec![(String::new(), opset)],
            graph: self.graph,
            ..Model::default()
        }
    }
}

fn dim(text: &str) -> Dim {
    match text {
        "?" => Dim::Unknown,
        _ => text.parse().map_or_else(|_| Dim::Symbol(text.to_owned()), Dim::Known),
    }
}

pub(crate) fn ints(values: &[i64]) -> AttrValue {
    AttrValue::Ints(values.to_vec())
}

/// Options with these passes only.
pub(crate) fn only(passes: &[&str]) -> PrepareOptions {
    let passes = passes.iter().fold(PassSet::none(), |set, pass| set.with(pass).unwrap());
    PrepareOptions { passes, ..PrepareOptions::default() }
}

/// Inputs of the model: integers from -4 to 4 (and 0 and 1 of unknown sizes).
pub(crate) fn inputs(model: &Model, size: usize) -> Vec<(String, Tensor)> {
    let graph = &model.graph;
    graph
        .required_inputs()
        .map(|id| {
            let ty = graph.value(id).ty.clone().unwrap();
            let dims: Vec<usize> =
                ty.dims().unwrap().iter().map(|d| d.known().unwrap_or(size)).collect();
            let n: usize = dims.iter().product();
            let ints = (0..n).map(|i| (i * 7 % 9) as i64 - 4);
            let tensor = match ty.elem().unwrap() {
                DataType::Int64 => Tensor::from_slice(dims, &ints.collect::<Vec<_>>()),
                _ => Tensor::from_slice(dims, &ints.map(|i| i as f32).collect::<Vec<_>>()),
            };
            (graph.value_name(id).to_owned(), tensor.unwrap())
        })
        .collect()
}

pub(crate) fn run(model: &Model, inputs: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    Interpreter::new(model, Options::default()).unwrap().run(inputs).unwrap()
}

/// Prepares, and checks what holds for every pass: the model computes the same bit for bit, is still a model, keeps
/// the names of its inputs and outputs, and preparing it again finds nothing to do.
pub(crate) fn prepared(model: &Model, options: &PrepareOptions) -> (Model, Report) {
    let (after, report) = prepared_within(model, options, 0.0);
    (after, report)
}

/// The same with a bound on `|difference| / largest |output|`.
pub(crate) fn prepared_within(
    model: &Model,
    options: &PrepareOptions,
    bound: f32,
) -> (Model, Report) {
    let (after, report) = prepare(model.clone(), options).unwrap();
    assert!(report.is_fixed_point, "{report:#?}");
    let names = |m: &Model, ids: &[ValueId]| -> Vec<String> {
        ids.iter().map(|&id| m.graph.value_name(id).to_owned()).collect()
    };
    assert_eq!(names(model, &model.graph.outputs), names(&after, &after.graph.outputs));
    let required: Vec<_> = model.graph.required_inputs().collect();
    assert_eq!(names(model, &required), names(&after, &after.graph.inputs)[..required.len()]);
    for size in [1, 3] {
        // Sizes that were fixed are so in `after`.
        let given = inputs(&after, size);
        let (before, now) = (run(model, given.clone()), run(&after, given));
        for ((name, a), (_, b)) in before.iter().zip(&now) {
            if bound == 0.0 {
                assert_eq!(a, b, "`{name}`\n{report:#?}\n{after:#?}");
                continue;
            }
            let (a, b): (Vec<f32>, Vec<f32>) = (a.to_vec().unwrap(), b.to_vec().unwrap());
            let largest = a.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let worst = a.iter().zip(&b).fold(0.0_f32, |m, (x, y)| m.max((x - y).abs()));
            assert!(
                a.len() == b.len() && worst <= bound * largest,
                "`{name}`: {worst} of {largest}"
            );
        }
    }
    let again = PrepareOptions { dims: Default::default(), ..options.clone() };
    let (_, again) = prepare(after.clone(), &again).unwrap();
    assert_eq!(again.n_rounds, 1, "{again:#?}");
    (after, report)
}

/// Operators in order.
pub(crate) fn op_types(model: &Model) -> Vec<&str> {
    model.graph.nodes.iter().map(|n| n.op_type.as_str()).collect()
}

/// A constant's elements.
pub(crate) fn values_of(model: &Model, name: &str) -> Vec<f32> {
    let id = model.graph.find(name).unwrap_or_else(|| panic!("no value `{name}`"));
    model.graph.constant(id).unwrap_or_else(|| panic!("`{name}` is not constant")).to_vec().unwrap()
}

/// What a pass refused, as text.
pub(crate) fn skips(report: &Report, pass: &str) -> Vec<String> {
    report.pass(pass).unwrap().skips.iter().map(ToString::to_string).collect()
}

/// What a pass did, as text.
pub(crate) fn changes(report: &Report, pass: &str) -> Vec<String> {
    report.pass(pass).unwrap().changes.iter().map(ToString::to_string).collect()
}
