//! A small network with a residual sum, and samples for it.

use midtread::{
    graph::{AttrValue, DataType, Dim, Graph, Model, Node, Sample, Tensor, Type, ValueId},
    quant::calibrate::Samples,
};

/// Numbers around zero, from a linear congruential generator, shaped like the sum of four uniform ones.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    fn next(&mut self) -> f32 {
        let mut sum = 0.0;
        for _ in 0..4 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            sum += (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5;
        }
        sum
    }

    pub(crate) fn tensor(&mut self, dims: &[usize], scale: f32) -> Tensor {
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| scale * self.next()).collect();
        Tensor::from_slice(dims.to_vec(), &values).unwrap()
    }
}

pub(crate) const CHANNELS: usize = 8;

pub(crate) fn types(graph: &mut Graph, id: ValueId, dims: &[usize]) {
    let dims = dims.iter().map(|&n| Dim::Known(n)).collect();
    graph.value_mut(id).ty = Some(Type::tensor(DataType::Float, Some(dims)));
}

/// Three convolutions, the third of which is added to the first, and a classifier.
pub(crate) fn residual() -> Model {
    let mut noise = Noise(1);
    let mut graph = Graph::default();
    graph.name = "residual".to_owned();
    let x = graph.intern("x");
    types(&mut graph, x, &[1, 3, 12, 12]);
    graph.inputs.push(x);
    let mut conv = |graph: &mut Graph, input: &str, output: &str, n_in: usize| {
        let w = graph.add_constant(
            &format!("{output}_w"),
            noise.tensor(&[CHANNELS, n_in, 3, 3], 1.0 / (n_in as f32).sqrt()),
        );
        let b = graph.add_constant(&format!("{output}_b"), noise.tensor(&[CHANNELS], 0.1));
        let inputs = vec![Some(graph.intern(input)), Some(w), Some(b)];
        let outputs = vec![Some(graph.intern(output))];
        let mut node = Node { op_type: "Conv".into(), inputs, outputs, ..Node::default() };
        node.name = format!("{output}_node");
        graph.nodes.push(node.with_attr("pads", AttrValue::Ints(vec![1, 1, 1, 1])));
    };
    let push = |graph: &mut Graph, op_type: &str, inputs: &[&str], output: &str| {
        let inputs = inputs.iter().map(|name| Some(graph.intern(name))).collect();
        let outputs = vec![Some(graph.intern(output))];
        let name = format!("{output}_node");
        graph.nodes.push(Node {
            op_type: op_type.into(),
            inputs,
            outputs,
            name,
            ..Node::default()
        });
    };
    conv(&mut graph, "x", "c1", 3);
    push(&mut graph, "Relu", &["c1"], "r1");
    conv(&mut graph, "r1", "c2", CHANNELS);
    push(&mut graph, "Relu", &["c2"], "r2");
    conv(&mut graph, "r2", "c3", CHANNELS);
    push(&mut graph, "Add", &["c3", "r1"], "sum");
    push(&mut graph, "GlobalAveragePool", &["sum"], "pool");
    push(&mut graph, "Flatten", &["pool"], "flat");
    graph.add_constant("fc_w", Noise(2).tensor(&[CHANNELS, 10], 1.0));
    graph.add_constant("fc_b", Noise(3).tensor(&[10], 0.1));
    push(&mut graph, "Gemm", &["flat", "fc_w", "fc_b"], "logits");
    let logits = graph.intern("logits");
    types(&mut graph, logits, &[1, 10]);
    graph.outputs.push(logits);
    let mut model = Model { graph, ..Model::default() };
    model.ir_version = 8;
    model.set_opset("", 13);
    model
}

/// So many pictures of noise.
pub(crate) struct Pictures(pub(crate) usize);

impl Samples for Pictures {
    fn names(&self) -> Vec<String> {
        (0..self.0).map(|i| format!("{i:03}")).collect()
    }

    fn sample(&self, i: usize) -> Result<Sample, Box<dyn std::error::Error + Send + Sync>> {
        let inputs = vec![("x".to_owned(), Noise(100 + i as u64).tensor(&[1, 3, 12, 12], 1.0))];
        Ok(Sample { name: format!("{i:03}"), inputs })
    }
}
