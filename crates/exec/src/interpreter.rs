//! Construction and runs.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Mutex,
    time::{Duration, Instant},
};

use midtread_graph::{DataType, Dim, Graph, Model, Node, Tensor, Type, ValueId};
use midtread_ops::{Args, EvalCtx, OpError, Pool};

use crate::{
    error::Error,
    inline::inline_functions,
    schedule::{Step, schedule},
};

/// How a model is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Bytes of values (inputs, intermediate results and outputs; not constants) that one call of a `run` may hold
    /// at once. `None` is no limit.
    pub max_bytes: Option<usize>,
}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// What the model says about it.
    pub ty: Option<Type>,
    /// Whether it has a value if the caller gives none (an input that is also an initializer).
    pub has_default: bool,
}

/// What one node took.
#[derive(Clone, Debug)]
pub struct NodeTime {
    /// [`Graph::label`] of the node.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// Types and sizes of its inputs.
    pub inputs: String,
    /// Time in the operator.
    pub time: Duration,
}

/// A model that has been checked and can be run, from several threads at once.
///
/// Operators use the rayon pool that the caller is in (`pool.install(|| interpreter.run(..))`).
pub struct Interpreter {
    graph: Graph,
    opset_imports: Vec<(String, i64)>,
    steps: Vec<Step>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    options: Options,
    /// Free memory: one pool for each run there has been at the same time.
    pools: Mutex<Vec<Pool>>,
}

impl fmt::Debug for Interpreter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interpreter({} nodes of `{}`)", self.steps.len(), self.graph.name)
    }
}

/// Called with every value as it is made.
type Observe<'a> = &'a mut dyn FnMut(ValueId, &str, &Tensor);

impl Interpreter {
    /// Checks that every node which the outputs depend on can be evaluated, and decides the order.
    ///
    /// Calls of the model's own functions are expanded. Constants whose bytes are not aligned for their type are
    /// copied; all others are shared with `model`.
    pub fn new(model: &Model, options: Options) -> Result<Self, Error> {
        let expanded = inline_functions(model)?;
        let model = expanded.as_ref().unwrap_or(model);
        let steps = schedule(&model.graph, &model.opset_imports)?;
        let mut graph = model.graph.clone();
        for step in &steps {
            for i in 0..graph.nodes[step.node].inputs.len() {
                let Some(id) = graph.nodes[step.node].input(i) else { continue };
                let constant = &mut graph.value_mut(id).constant;
                *constant = constant.as_ref().map(Tensor::to_aligned);
            }
        }
        let ports = |ids: &[ValueId]| {
            ids.iter()
                .map(|&id| {
                    let value = graph.value(id);
                    let has_default = value.constant.is_some();
                    Port { name: value.name().to_owned(), ty: value.ty.clone(), has_default }
                })
                .collect()
        };
        let (inputs, outputs) = (ports(&graph.inputs), ports(&graph.outputs));
        let opset_imports = model.opset_imports.clone();
        Ok(Self { graph, opset_imports, steps, inputs, outputs, options, pools: Mutex::default() })
    }

    /// The inputs, in the model's order.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The outputs, in the model's order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// The graph that is run: the model's with calls of functions expanded. [`ValueId`]s that observers see are
    /// this graph's (and the model's own, where the model has no functions).
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The imported version of each operator set.
    pub fn opset_imports(&self) -> &[(String, i64)] {
        &self.opset_imports
    }

    /// How many nodes a run evaluates.
    pub fn n_nodes(&self) -> usize {
        self.steps.len()
    }

    /// Runs the model: names and tensors of the inputs in, of the outputs out, in the model's order.
    pub fn run(&self, inputs: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>, Error> {
        self.execute(inputs, &mut |_, _, _| {}, None)
    }

    /// Like [`Interpreter::run`], and calls `observe` with every input, and with every value that a node makes as
    /// soon as it is made.
    ///
    /// A clone of what `observe` sees keeps its elements: nothing is changed in place that is shared.
    pub fn run_observed(
        &self,
        inputs: Vec<(String, Tensor)>,
        observe: Observe<'_>,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        self.execute(inputs, observe, None)
    }

    /// Like [`Interpreter::run`], and measures every node, in the order in which they ran.
    pub fn run_profiled(
        &self,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<(Vec<(String, Tensor)>, Vec<NodeTime>), Error> {
        let mut times = Vec::with_capacity(self.steps.len());
        let outputs = self.execute(inputs, &mut |_, _, _| {}, Some(&mut times))?;
        Ok((outputs, times))
    }

    /// Whether `inputs` are what the model asks for: names, types, ranks and sizes. Sizes that the model names may
    /// have any value, but the same one wherever the name stands.
    pub fn check_inputs(&self, inputs: &[(String, Tensor)]) -> Result<(), Error> {
        let mut given: BTreeMap<&str, &Tensor> = BTreeMap::new();
        for (name, tensor) in inputs {
            if !self.inputs.iter().any(|port| port.name == *name) {
                let known = self.inputs.iter().map(|port| port.name.clone()).collect();
                return Err(Error::UnknownInput { name: name.clone(), known });
            }
            if given.insert(name, tensor).is_some() {
                return Err(Error::InputTwice(name.clone()));
            }
        }
        let mut symbols: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for port in &self.inputs {
            match given.get(port.name.as_str()) {
                Some(tensor) => check_input(port, tensor, &mut symbols)?,
                None if port.has_default => {}
                None => {
                    let given = inputs.iter().map(|(name, _)| name.clone()).collect();
                    return Err(Error::MissingInput { name: port.name.clone(), given });
                }
            }
        }
        Ok(())
    }

    fn execute(
        &self,
        inputs: Vec<(String, Tensor)>,
        observe: Observe<'_>,
        times: Option<&mut Vec<NodeTime>>,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        self.check_inputs(&inputs)?;
        let pool = self.pools.lock().expect("no panic while the lock is held").pop().unwrap_or_default();
        let result = self.execute_with(&pool, inputs, observe, times);
        self.pools.lock().expect("no panic while the lock is held").push(pool);
        result
    }

    fn execute_with(
        &self,
        pool: &Pool,
        inputs: Vec<(String, Tensor)>,
        observe: Observe<'_>,
        mut times: Option<&mut Vec<NodeTime>>,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        let mut values = Values { slots: vec![None; self.graph.values().len()], n_bytes: 0 };
        for (name, tensor) in inputs {
            let id = self.graph.find(&name).expect("checked to be an input");
            values.put(id, tensor.to_aligned());
        }
        for &id in &self.graph.inputs {
            if values.slots[id.idx()].is_none()
                && let Some(default) = self.graph.value(id).constant.clone()
            {
                values.put(id, default.to_aligned());
            }
            if let Some(tensor) = &values.slots[id.idx()] {
                observe(id, self.graph.value_name(id), tensor);
            }
        }

        let limit = self.options.max_bytes.unwrap_or(usize::MAX);
        for step in &self.steps {
            let node = &self.graph.nodes[step.node];
            let held = values.n_bytes;
            let args = self.args(node, step, &mut values);
            pool.set_max_tensor(limit.saturating_sub(held));
            // For an error; the tensors themselves go to the operator.
            let types = ArgTypes::of(&args);
            let ctx = EvalCtx { node, opset: step.opset, pool };
            let start = Instant::now();
            let outputs = (step.def.eval)(&ctx, args);
            if let Some(times) = times.as_deref_mut() {
                let time = start.elapsed();
                let (node, op_type) = (self.graph.label(node).to_owned(), node.op_type.clone());
                times.push(NodeTime { node, op_type, inputs: types.to_string(), time });
            }
            let outputs = outputs.map_err(|source| self.op_error(node, &types, held, source))?;
            self.keep(step, outputs, &mut values, observe, pool)?;
            if limit < values.n_bytes {
                return Err(self.memory_error(node, &types, values.n_bytes - held.min(values.n_bytes), held));
            }
            if limit < usize::MAX {
                pool.trim(limit - values.n_bytes);
            }
        }

        let mut results = Vec::with_capacity(self.graph.outputs.len());
        for &id in &self.graph.outputs {
            let tensor = values.slots[id.idx()].clone().or_else(|| self.graph.value(id).constant.clone());
            let tensor = tensor.expect("the schedule makes every output");
            results.push((self.graph.value_name(id).to_owned(), tensor));
        }
        Ok(results)
    }

    /// The inputs of a node; those used for the last time leave `values`.
    fn args(&self, node: &Node, step: &Step, values: &mut Values) -> Args {
        let args = node.inputs.iter().zip(&step.is_last_use).map(|(id, &is_last)| {
            let id = (*id)?;
            if values.slots[id.idx()].is_some() {
                return if is_last { values.take(id) } else { values.slots[id.idx()].clone() };
            }
            self.graph.value(id).constant.clone()
        });
        Args(args.collect())
    }

    /// Shows the outputs to the observer and keeps those that are used again.
    fn keep(
        &self,
        step: &Step,
        outputs: Vec<Tensor>,
        values: &mut Values,
        observe: Observe<'_>,
        pool: &Pool,
    ) -> Result<(), Error> {
        let node = &self.graph.nodes[step.node];
        let n_wanted = node.outputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        if outputs.len() < n_wanted {
            let (node_label, op_type) = (self.graph.label(node).to_owned(), node.op_type.clone());
            return Err(Error::Output { node: node_label, op_type, index: outputs.len() });
        }
        for ((tensor, id), &is_used) in outputs.into_iter().zip(&node.outputs).zip(&step.is_used) {
            let Some(id) = *id else { continue };
            observe(id, self.graph.value_name(id), &tensor);
            if is_used {
                values.put(id, tensor);
            } else {
                pool.give_back(tensor);
            }
        }
        Ok(())
    }

    fn op_error(&self, node: &Node, types: &ArgTypes, held: usize, source: OpError) -> Error {
        if let OpError::Memory { needed } = source {
            return self.memory_error(node, types, needed, held);
        }
        let (label, op_type) = (self.graph.label(node).to_owned(), node.op_type.clone());
        Error::Node { node: label, op_type, inputs: types.to_string(), source }
    }

    fn memory_error(&self, node: &Node, types: &ArgTypes, needed: usize, held: usize) -> Error {
        Error::Memory {
            node: self.graph.label(node).to_owned(),
            op_type: node.op_type.clone(),
            inputs: types.to_string(),
            needed,
            held,
            limit: self.options.max_bytes.unwrap_or(usize::MAX),
        }
    }
}

/// The values that exist at one moment of a run (not the constants), and their size.
struct Values {
    slots: Vec<Option<Tensor>>,
    /// Elements that two values share (a reshaped one, and the one it was made of) count twice.
    n_bytes: usize,
}

impl Values {
    fn put(&mut self, id: ValueId, tensor: Tensor) {
        self.n_bytes += n_bytes(&tensor);
        if let Some(old) = self.slots[id.idx()].replace(tensor) {
            self.n_bytes -= n_bytes(&old);
        }
    }

    fn take(&mut self, id: ValueId) -> Option<Tensor> {
        let tensor = self.slots[id.idx()].take()?;
        self.n_bytes -= n_bytes(&tensor);
        Some(tensor)
    }
}

fn n_bytes(tensor: &Tensor) -> usize {
    tensor.as_bytes().len() + tensor.as_strings().map_or(0, |s| s.iter().map(|s| s.len() + 32).sum())
}

/// Types and sizes of a node's inputs, shown as `float[1,3], int64[2], -`.
struct ArgTypes(Vec<Option<(DataType, Vec<usize>)>>);

impl ArgTypes {
    fn of(args: &Args) -> Self {
        Self(args.0.iter().map(|arg| arg.as_ref().map(|t| (t.dtype(), t.dims().to_vec()))).collect())
    }
}

impl fmt::Display for ArgTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ty) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            match ty {
                Some((dtype, dims)) => {
                    let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
                    write!(f, "{dtype}[{}]", dims.join(","))?;
                }
                None => f.write_str("-")?,
            }
        }
        Ok(())
    }
}

fn check_input<'a>(
    port: &'a Port,
    tensor: &Tensor,
    symbols: &mut BTreeMap<&'a str, (usize, &'a str)>,
) -> Result<(), Error> {
    let Some(ty) = &port.ty else { return Ok(()) };
    if let Some(wanted) = ty.elem()
        && wanted != tensor.dtype()
    {
        return Err(Error::InputType { name: port.name.clone(), wanted, got: tensor.dtype() });
    }
    let Some(dims) = ty.dims() else { return Ok(()) };
    let got = tensor.dims();
    let fits = dims.len() == got.len() && dims.iter().zip(got).all(|(d, &n)| d.known().is_none_or(|d| d == n));
    if !fits {
        return Err(Error::InputShape { name: port.name.clone(), wanted: dims.to_vec(), got: got.to_vec() });
    }
    for (dim, &size) in dims.iter().zip(got) {
        let Dim::Symbol(symbol) = dim else { continue };
        let (other_size, other) = *symbols.entry(symbol).or_insert((size, &port.name));
        if other_size != size {
            return Err(Error::InputSymbol {
                name: port.name.clone(),
                got: got.to_vec(),
                symbol: symbol.clone(),
                size,
                other: other.to_owned(),
                other_size,
            });
        }
    }
    Ok(())
}
