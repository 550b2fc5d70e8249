//! A compiled model and its runs.

use std::sync::Mutex;

use midtread_exec::{Interpreter, Options, Port, topological_order};
use midtread_graph::{Graph, Model, Tensor, ValueId, model::opset_of};
use midtread_ops::{Args, EvalCtx, OpError, Pool};

use crate::{
    cluster::{Cluster, Finder, Kind},
    error::Error,
    layout::Held,
    step::{Step, Work, evaluate},
};

/// A model that is ready to run in integers.
///
/// Steps use the rayon pool that the caller is in (`pool.install(|| program.run(..))`).
pub struct Program {
    /// Checks the inputs, and holds the graph.
    interpreter: Interpreter,
    steps: Vec<Step>,
    /// Values that are the same in every run, by [`ValueId::idx`].
    constants: Vec<Option<Tensor>>,
    /// Free memory: one pool for each run there has been at the same time.
    pools: Mutex<Vec<Pool>>,
}

/// What became of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepInfo {
    /// The node whose attributes the step has.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// How it is computed: "integer convolution", or "operator" for what the interpreter does.
    pub kind: &'static str,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({} steps of `{}`)", self.steps.len(), self.interpreter.graph().name)
    }
}

impl Program {
    /// Finds the integer steps of a model and packs their weights.
    pub fn compile(model: &Model) -> Result<Self, Error> {
        let interpreter = Interpreter::new(model, Options { max_bytes: None })?;
        let graph = interpreter.graph();
        let opsets = interpreter.opset_imports();
        let finder = Finder::new(graph);
        let mut wanted = vec![false; graph.values().len()];
        graph.outputs.iter().for_each(|id| wanted[id.idx()] = true);
        let mut steps = Vec::new();
        // From the outputs back, so that what only a cluster's inside needed is never asked for.
        for i in topological_order(graph)?.into_iter().rev() {
            let node = &graph.nodes[i];
            if !node.outputs.iter().flatten().any(|id| wanted[id.idx()]) {
                continue;
            }
            let step = match integer_step(graph, opsets, &finder, i) {
                Some(step) => step,
                None => operator_step(graph, opsets, i)?,
            };
            step.inputs.iter().flatten().for_each(|id| wanted[id.idx()] = true);
            steps.push(step);
        }
        steps.reverse();
        let mut constants: Vec<Option<Tensor>> =
            graph.value_ids().map(|id| finder.constant(id).filter(|_| wanted[id.idx()])).collect();
        fold(graph, &mut steps, &mut constants)?;
        mark_last_uses(graph, &mut steps);
        Ok(Self { interpreter, steps, constants, pools: Mutex::default() })
    }

    /// The inputs, in the model's order.
    pub fn inputs(&self) -> &[Port] {
        self.interpreter.inputs()
    }

    /// The outputs, in the model's order.
    pub fn outputs(&self) -> &[Port] {
        self.interpreter.outputs()
    }

    /// What is computed how, in the order of a run.
    pub fn steps(&self) -> impl Iterator<Item = StepInfo> {
        let graph = self.interpreter.graph();
        self.steps.iter().map(|step| {
            let node = &graph.nodes[step.node];
            StepInfo {
                node: graph.label(node).to_owned(),
                op_type: node.op_type.clone(),
                kind: step.work.kind(),
            }
        })
    }

    /// Runs the program: names and tensors of the inputs in, of the outputs out, in the model's order.
    pub fn run(&self, inputs: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>, Error> {
        self.run_watched(inputs, &mut |_, _| {})
    }

    /// Like [`Program::run`], and calls `watch` with the index of every step and the time it took.
    pub fn run_watched(
        &self,
        inputs: Vec<(String, Tensor)>,
        watch: &mut dyn FnMut(usize, std::time::Duration),
    ) -> Result<Vec<(String, Tensor)>, Error> {
        self.interpreter.check_inputs(&inputs)?;
        let pool =
            self.pools.lock().expect("no panic while the lock is held").pop().unwrap_or_default();
        let result = self.run_with(&pool, inputs, watch);
        self.pools.lock().expect("no panic while the lock is held").push(pool);
        result
    }

    fn run_with(
        &self,
        pool: &Pool,
        inputs: Vec<(String, Tensor)>,
        watch: &mut dyn FnMut(usize, std::time::Duration),
    ) -> Result<Vec<(String, Tensor)>, Error> {
        let graph = self.interpreter.graph();
        let mut values: Vec<Option<Held>> = vec![None; graph.values().len()];
        for &id in &graph.inputs {
            let default = graph.value(id).constant.as_ref();
            values[id.idx()] = default.map(|tensor| Held::Plain(tensor.to_aligned()));
        }
        for (name, tensor) in inputs {
            let id = graph.find(&name).expect("checked to be an input");
            values[id.idx()] = Some(Held::Plain(tensor.to_aligned()));
        }
        for (i, step) in self.steps.iter().enumerate() {
            let node = &graph.nodes[step.node];
            let inputs = step.inputs.iter().zip(&step.is_last_use).map(|(id, &is_last)| {
                let id = (*id)?;
                let value = &mut values[id.idx()];
                let held = if is_last { value.take() } else { value.clone() };
                held.or_else(|| self.constants[id.idx()].clone().map(Held::Plain))
            });
            let inputs = inputs.collect();
            let start = std::time::Instant::now();
            let outputs =
                step.run(node, inputs, pool).map_err(|e| node_error(graph, step.node, e))?;
            watch(i, start.elapsed());
            for (held, id) in outputs.into_iter().zip(&step.outputs) {
                if let Some(id) = id {
                    values[id.idx()] = Some(held);
                }
            }
        }
        graph
            .outputs
            .iter()
            .map(|&id| {
                let held = values[id.idx()].clone();
                let constant = || Some(Held::Plain(self.constants[id.idx()].clone()?));
                let held = held.or_else(constant).expect("a step makes every output");
                let tensor = held.into_plain(pool).map_err(|e| node_error(graph, 0, e))?;
                Ok((graph.value_name(id).to_owned(), tensor))
            })
            .collect()
    }
}

fn node_error(graph: &Graph, i: usize, source: OpError) -> Error {
    let node = &graph.nodes[i];
    Error::Node { node: graph.label(node).to_owned(), op_type: node.op_type.clone(), source }
}

/// The step of the cluster that ends with node `i`.
fn integer_step(
    graph: &Graph,
    opsets: &[(String, i64)],
    finder: &Finder<'_>,
    i: usize,
) -> Option<Step> {
    let cluster: Cluster = finder.cluster(i)?;
    let node = &graph.nodes[cluster.node];
    let opset = opset_of(opsets, &node.domain)?;
    let (work, inputs) = match (&cluster.kind, cluster.params) {
        (Kind::Table { x }, Some(y)) => {
            let others: Vec<_> = node
                .inputs
                .iter()
                .skip(1)
                .map(|id| id.and_then(|id| finder.constant(id)))
                .collect();
            (Work::table(x.params, y, node, opset, &others)?, vec![Some(x.id)])
        }
        _ => Work::of(&cluster, node, opset)?,
    };
    let codes = cluster.kind.codes().iter().map(|codes| codes.params.dtype()).collect();
    let is_last_use = vec![false; inputs.len()];
    Some(Step {
        work,
        codes,
        node: cluster.node,
        inputs,
        outputs: vec![Some(cluster.output)],
        is_last_use,
    })
}

/// The step that evaluates node `i` as the interpreter does.
fn operator_step(graph: &Graph, opsets: &[(String, i64)], i: usize) -> Result<Step, Error> {
    let node = &graph.nodes[i];
    let unsupported = |what| Error::Unsupported {
        node: graph.label(node).to_owned(),
        op_type: node.op_type.clone(),
        what,
    };
    if node.subgraphs().next().is_some() {
        return Err(unsupported("a subgraph"));
    }
    let def = midtread_ops::find(&node.domain, &node.op_type)
        .ok_or_else(|| unsupported("this operator"))?;
    let opset = opset_of(opsets, &node.domain).ok_or_else(|| unsupported("this operator set"))?;
    Ok(Step {
        work: Work::Operator { def, opset },
        codes: Vec::new(),
        node: i,
        inputs: node.inputs.clone(),
        outputs: node.outputs.clone(),
        is_last_use: vec![false; node.inputs.len()],
    })
}

/// Evaluates the operators whose inputs are all constant, once and for all.
fn fold(
    graph: &Graph,
    steps: &mut Vec<Step>,
    constants: &mut [Option<Tensor>],
) -> Result<(), Error> {
    let pool = Pool::default();
    let mut error = None;
    steps.retain(|step| {
        let Work::Operator { def, opset } = step.work else { return true };
        let node = &graph.nodes[step.node];
        let is_constant = step.inputs.iter().flatten().all(|id| constants[id.idx()].is_some());
        if !is_constant || error.is_some() || node.op_type.starts_with("Random") {
            return true;
        }
        let args = step.inputs.iter().map(|id| constants[(*id)?.idx()].clone()).collect();
        match evaluate(def, &EvalCtx { node, opset, pool: &pool }, Args(args)) {
            Ok(outputs) => {
                for (tensor, id) in outputs.into_iter().zip(&step.outputs) {
                    if let Some(id) = id {
                        constants[id.idx()] = Some(tensor);
                    }
                }
                false
            }
            Err(source) => {
                error = Some(node_error(graph, step.node, source));
                true
            }
        }
    });
    error.map_or(Ok(()), Err)
}

fn mark_last_uses(graph: &Graph, steps: &mut [Step]) {
    let mut used = vec![false; graph.values().len()];
    let mark = |used: &mut Vec<bool>, id: ValueId| std::mem::replace(&mut used[id.idx()], true);
    for &id in &graph.outputs {
        mark(&mut used, id);
    }
    for step in steps.iter_mut().rev() {
        for (is_last, id) in step.is_last_use.iter_mut().zip(&step.inputs).rev() {
            *is_last = id.is_some_and(|id| !mark(&mut used, id));
        }
    }
}
