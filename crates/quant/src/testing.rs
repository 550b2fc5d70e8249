//! Small models, built in code.

use std::collections::BTreeMap;

use midtread_graph::{AttrValue, DataType, Graph, Model, Node, Tensor, Type, ValueId};

use crate::plan::{Decision, Plan, Target};

/// A model under construction. Every value is a float of unknown sizes unless it is a constant.
#[derive(Default)]
pub(crate) struct Net {
    pub(crate) model: Model,
}

impl Net {
    pub(crate) fn new(inputs: &[&str]) -> Self {
        let mut net = Self::default();
        net.model.ir_version = 8;
        net.model.set_opset("", 13);
        for name in inputs {
            let id = net.value(name);
            net.graph().inputs.push(id);
        }
        net
    }

    pub(crate) fn graph(&mut self) -> &mut Graph {
        &mut self.model.graph
    }

    pub(crate) fn value(&mut self, name: &str) -> ValueId {
        let id = self.graph().intern(name);
        let value = self.graph().value_mut(id);
        if value.ty.is_none() && value.constant.is_none() {
            value.ty = Some(Type::tensor(DataType::Float, None));
        }
        id
    }

    pub(crate) fn floats(mut self, name: &str, dims: &[usize], values: &[f32]) -> Self {
        let tensor = Tensor::from_slice(dims.to_vec(), values).unwrap();
        let id = self.graph().intern(name);
        self.graph().set_constant(id, tensor);
        self
    }

    /// A constant whose values go up and down within `[-max, max]`.
    pub(crate) fn wave(self, name: &str, dims: &[usize], max: f32) -> Self {
        let n: usize = dims.iter().product();
        let values: Vec<f32> =
            (0..n).map(|i| max * (((i * 37 + 11) % 101) as f32 / 50.0 - 1.0)).collect();
        self.floats(name, dims, &values)
    }

    pub(crate) fn ints(mut self, name: &str, values: &[i64]) -> Self {
        let id = self.graph().intern(name);
        self.graph().set_constant(id, Tensor::vector(values));
        self
    }

    /// A node named after its first output, which is also its name with `_node`.
    pub(crate) fn node(mut self, op_type: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        self.push(op_type, inputs, outputs, Vec::new());
        self
    }

    pub(crate) fn node_with(
        mut self,
        op_type: &str,
        inputs: &[&str],
        outputs: &[&str],
        attrs: &[(&str, AttrValue)],
    ) -> Self {
        self.push(op_type, inputs, outputs, attrs.to_vec());
        self
    }

    fn push(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        outputs: &[&str],
        attrs: Vec<(&str, AttrValue)>,
    ) {
        let ids = |net: &mut Self, names: &[&str]| -> Vec<Option<ValueId>> {
            names.iter().map(|name| (!name.is_empty()).then(|| net.value(name))).collect()
        };
        let (inputs, made) = (ids(self, inputs), ids(self, outputs));
        let mut node = Node { op_type: op_type.into(), inputs, outputs: made, ..Node::default() };
        node.name = format!("{}_node", outputs[0]);
        for (name, value) in attrs {
            node = node.with_attr(name, value);
        }
        self.graph().nodes.push(node);
    }

    pub(crate) fn outputs(mut self, names: &[&str]) -> Model {
        for name in names {
            let id = self.value(name);
            self.graph().outputs.push(id);
        }
        self.model
    }
}

/// `(name, min, max)` as a table of ranges.
pub(crate) fn ranges(list: &[(&str, f32, f32)]) -> BTreeMap<String, (f32, f32)> {
    list.iter().map(|&(name, min, max)| (name.to_owned(), (min, max))).collect()
}

/// Every non-constant value of the model between -1 and 1.
pub(crate) fn unit_ranges(model: &Model) -> BTreeMap<String, (f32, f32)> {
    model.graph.values().iter().map(|v| (v.name().to_owned(), (-1.0, 1.0))).collect()
}

pub(crate) fn ort() -> Target {
    Target::find("onnxruntime_cpu").unwrap()
}

/// Each node's label, status and reason.
pub(crate) fn ledger(plan: &Plan) -> Vec<String> {
    let line = |node: &crate::plan::NodePlan| match node.decision.reason() {
        Some(reason) => format!("{}: {} ({reason})", node.node, node.decision.status()),
        None => format!("{}: {}", node.node, node.decision.status()),
    };
    plan.nodes.iter().map(line).collect()
}

/// `op_type(inputs) -> outputs` of every node, in order.
pub(crate) fn listing(model: &Model) -> Vec<String> {
    let g = &model.graph;
    let names = |ids: &[Option<ValueId>]| {
        ids.iter().map(|id| id.map_or("", |id| g.value_name(id))).collect::<Vec<_>>().join(", ")
    };
    g.nodes
        .iter()
        .map(|n| format!("{}({}) -> {}", n.op_type, names(&n.inputs), names(&n.outputs)))
        .collect()
}

/// Every value a node takes exists by then, names of nodes are unique, and every output is made.
pub(crate) fn check_graph(model: &Model) {
    let g = &model.graph;
    let mut made: Vec<bool> = g.values().iter().map(|v| v.constant.is_some()).collect();
    g.inputs.iter().for_each(|id| made[id.idx()] = true);
    let mut names = std::collections::BTreeSet::new();
    for node in &g.nodes {
        for id in node.inputs.iter().flatten() {
            assert!(
                made[id.idx()],
                "`{}` takes `{}` before it is made",
                node.name,
                g.value_name(*id)
            );
        }
        for id in node.outputs.iter().flatten() {
            assert!(!made[id.idx()], "`{}` is made twice", g.value_name(*id));
            made[id.idx()] = true;
        }
        assert!(names.insert(node.name.clone()), "two nodes are named `{}`", node.name);
    }
    for id in &g.outputs {
        assert!(made[id.idx()], "output `{}` is not made", g.value_name(*id));
    }
}

pub(crate) fn is_quantized(plan: &Plan, label: &str) -> bool {
    let node = plan.nodes.iter().find(|n| n.node == label).unwrap();
    matches!(node.decision, Decision::Quantized { .. })
}
