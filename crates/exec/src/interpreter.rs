//! Construction and runs.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use midtread_graph::{DataType, Dim, Graph, Model, Node, Tensor, Type, ValueId};
use midtread_ops::{Args, Datum, EvalCtx, Followers, OpError, Pool, conv_then};

use crate::{
    body::{Body, Running},
    error::Error,
    inline::inline_functions,
    schedule::{Step, schedule},
};

/// How a model is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Bytes of values (inputs, intermediate results and outputs; not the model's constants) that one call of a
    /// `run` may hold at once. `None` is no limit. Values that are the same in every run (dequantized weights) are
    /// computed by the first run and kept if they fit into an eighth of this, which the other values then lack.
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

/// Tensors by the names of a model's inputs or outputs.
pub type Named = Vec<(String, Tensor)>;

/// Tensors, sequences and optional values by the names of a model's inputs or outputs.
pub type NamedData = Vec<(String, Datum)>;

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
    /// The outputs of steps that are the same in every run (weights stored as integers and dequantized), where they
    /// are kept, and their size.
    computed: Vec<OnceLock<Vec<Datum>>>,
    computed_bytes: AtomicUsize,
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

/// Called with every value as it is made, to put others in its place.
type Rewrite<'a> = &'a mut dyn FnMut(ValueId, &str, &mut Tensor);

/// What a run is watched for.
enum Watch<'a> {
    Nothing,
    Values(Observe<'a>),
    Rewritten(Rewrite<'a>),
    Times(&'a mut Vec<NodeTime>),
}

impl Watch<'_> {
    /// Whether every value has to be made.
    fn wants_values(&self) -> bool {
        matches!(self, Self::Values(_) | Self::Rewritten(_))
    }

    fn value(&mut self, id: ValueId, name: &str, tensor: &mut Tensor) {
        match self {
            Self::Values(observe) => observe(id, name, tensor),
            Self::Rewritten(rewrite) => rewrite(id, name, tensor),
            Self::Nothing | Self::Times(_) => {}
        }
    }

    fn time(&mut self, time: impl FnOnce() -> NodeTime) {
        if let Self::Times(times) = self {
            times.push(time());
        }
    }
}

impl Interpreter {
    /// Checks that every node which the outputs depend on can be evaluated, and decides the order.
    ///
    /// Calls of the model's own functions are expanded. Constants whose bytes are not aligned for their type are
    /// copied; all others are shared with `model`.
    pub fn new(model: &Model, options: Options) -> Result<Self, Error> {
        let expanded = inline_functions(model)?;
        let model = expanded.as_ref().unwrap_or(model);
        let mut steps = schedule(&model.graph, &model.opset_imports)?;
        for step in &mut steps {
            let node = &model.graph.nodes[step.node];
            step.bodies = Body::all(model, node, &step.captured, &options)?;
        }
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
        Ok(Self {
            graph,
            opset_imports: model.opset_imports.clone(),
            computed: steps.iter().map(|_| OnceLock::new()).collect(),
            computed_bytes: AtomicUsize::new(0),
            steps,
            inputs,
            outputs,
            options,
            pools: Mutex::default(),
        })
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
        self.execute(inputs, Watch::Nothing)
    }

    /// Like [`Interpreter::run`], for models of which some inputs or outputs are sequences or optional values.
    pub fn run_data(&self, inputs: NamedData) -> Result<NamedData, Error> {
        let tensors =
            inputs.iter().filter_map(|(name, x)| Some((name.clone(), x.as_tensor()?.clone())));
        // Of what is no tensor, only the name is checked.
        check_given(&self.inputs, &tensors.collect::<Vec<_>>(), &|name| {
            inputs.iter().any(|(n, _)| n == name)
        })?;
        let data = inputs.into_iter().map(|(name, x)| match self.graph.find(&name) {
            Some(id) if self.graph.inputs.contains(&id) => Ok((id, x)),
            _ => {
                let known = self.inputs.iter().map(|port| port.name.clone()).collect();
                Err(Error::UnknownInput { name, known })
            }
        });
        let data = data.collect::<Result<_, _>>()?;
        let outputs = self.execute_data(data, Watch::Nothing)?;
        Ok(self.outputs.iter().map(|port| port.name.clone()).zip(outputs).collect())
    }

    /// Runs a graph of a node: what its inputs are, in their order, to what its outputs are.
    pub(crate) fn run_body(&self, inputs: Vec<Datum>) -> Result<Vec<Datum>, Error> {
        let inputs = self.graph.inputs.iter().copied().zip(inputs).collect();
        self.execute_data(inputs, Watch::Nothing)
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
        self.execute(inputs, Watch::Values(observe))
    }

    /// Like [`Interpreter::run`], with values changed on their way: `rewrite` is given every input, and every value that
    /// a node makes as soon as it is made, and the nodes after it see what `rewrite` leaves there. It must leave type and
    /// sizes as they are.
    ///
    /// This is how number formats that have no operator are simulated.
    pub fn run_rewritten(
        &self,
        inputs: Vec<(String, Tensor)>,
        rewrite: Rewrite<'_>,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        self.execute(inputs, Watch::Rewritten(rewrite))
    }

    /// Like [`Interpreter::run`], and measures every node, in the order in which they ran. Those whose work another
    /// node does in the same pass (a Clip after a Conv) are not listed.
    pub fn run_profiled(
        &self,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<(Named, Vec<NodeTime>), Error> {
        let mut times = Vec::with_capacity(self.steps.len());
        let outputs = self.execute(inputs, Watch::Times(&mut times))?;
        Ok((outputs, times))
    }

    /// Whether `inputs` are what the model asks for: names, types, ranks and sizes. Sizes that the model names may
    /// have any value, but the same one wherever the name stands.
    pub fn check_inputs(&self, inputs: &[(String, Tensor)]) -> Result<(), Error> {
        check_inputs(&self.inputs, inputs)
    }

    fn execute(
        &self,
        inputs: Vec<(String, Tensor)>,
        watch: Watch<'_>,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        self.check_inputs(&inputs)?;
        let inputs = inputs.into_iter().map(|(name, tensor)| {
            (self.graph.find(&name).expect("checked to be an input"), Datum::Tensor(tensor))
        });
        let outputs = self.execute_data(inputs.collect(), watch)?;
        let tensors = self.outputs.iter().zip(outputs).map(|(port, output)| {
            let kind = output.kind();
            let tensor = output
                .into_tensor()
                .map_err(|_| Error::OutputKind { name: port.name.clone(), kind })?;
            Ok((port.name.clone(), tensor))
        });
        tensors.collect()
    }

    fn execute_data(
        &self,
        inputs: Vec<(ValueId, Datum)>,
        watch: Watch<'_>,
    ) -> Result<Vec<Datum>, Error> {
        let pool =
            self.pools.lock().expect("no panic while the lock is held").pop().unwrap_or_default();
        let result = self.execute_with(&pool, inputs, watch);
        self.pools.lock().expect("no panic while the lock is held").push(pool);
        result
    }

    fn execute_with(
        &self,
        pool: &Pool,
        inputs: Vec<(ValueId, Datum)>,
        mut watch: Watch<'_>,
    ) -> Result<Vec<Datum>, Error> {
        let mut values = Values::new(self.graph.values().len());
        for (id, datum) in inputs {
            let datum = match datum {
                Datum::Tensor(tensor) => Datum::Tensor(tensor.to_aligned()),
                other => other,
            };
            let size = n_bytes(&datum);
            values.put(id, datum, size);
        }
        for &id in &self.graph.inputs {
            if values.get(id).is_none()
                && let Some(default) = self.graph.value(id).constant.clone()
            {
                // Counts for nothing: it is the model's.
                values.put(id, Datum::Tensor(default.to_aligned()), 0);
            }
            if let Some(Datum::Tensor(tensor)) = values.get_mut(id) {
                watch.value(id, self.graph.value_name(id), tensor);
            }
        }

        let max_bytes = self.options.max_bytes.unwrap_or(usize::MAX);
        for (step, computed) in self.steps.iter().zip(&self.computed) {
            let fused = step.fused.as_ref().filter(|_| !watch.wants_values());
            if step.is_fused && !watch.wants_values() {
                continue;
            }
            let node = &self.graph.nodes[step.node];
            if let Some(outputs) = computed.get() {
                let args = self.args(node, step, &mut values);
                watch.time(|| self.node_time(node, &ArgTypes::of(&args), Duration::ZERO));
                self.keep(step, outputs.clone(), &mut values, &mut watch, Counts::Nothing)?;
                continue;
            }
            let limit = max_bytes - self.computed_bytes.load(Ordering::Relaxed).min(max_bytes);
            let held = values.n_bytes;
            let args = self.args(node, step, &mut values);
            pool.set_max_tensor(limit.saturating_sub(held));
            // For an error; the tensors themselves go to the operator.
            let types = ArgTypes::of(&args);
            let ctx = EvalCtx { node, opset: step.opset, pool };
            let start = Instant::now();
            let outputs = match fused {
                Some(fused) => fuse(&ctx, args, &fused.followers),
                None => evaluate(step, &ctx, args),
            };
            watch.time(|| self.node_time(node, &types, start.elapsed()));
            let outputs = outputs.map_err(|source| self.op_error(node, &types, held, source))?;
            let is_kept = step.is_constant && self.keep_computed(&outputs, &types, computed);
            let counts = if is_kept { Counts::Nothing } else { Counts::Size };
            let makes = fused.map_or(step, |fused| &self.steps[fused.last]);
            self.keep(makes, outputs, &mut values, &mut watch, counts)?;
            let limit = max_bytes - self.computed_bytes.load(Ordering::Relaxed).min(max_bytes);
            if limit < values.n_bytes {
                return Err(self.memory_error(
                    node,
                    &types,
                    values.n_bytes - held.min(values.n_bytes),
                    held,
                ));
            }
            if limit < usize::MAX {
                pool.trim(limit - values.n_bytes);
            }
        }

        let mut results = Vec::with_capacity(self.graph.outputs.len());
        for &id in &self.graph.outputs {
            let constant = || self.graph.value(id).constant.clone().map(Datum::Tensor);
            let datum = values.get(id).cloned().or_else(constant);
            results.push(datum.expect("the schedule makes every output"));
        }
        Ok(results)
    }

    /// The inputs of a node; those used for the last time leave `values`.
    fn args(&self, node: &Node, step: &Step, values: &mut Values) -> Vec<Option<Datum>> {
        let args = step.inputs(node).zip(&step.is_last_use).map(|(id, &is_last)| {
            let id = id?;
            let made = if is_last { values.take(id) } else { values.get(id).cloned() };
            made.or_else(|| self.graph.value(id).constant.clone().map(Datum::Tensor))
        });
        args.collect()
    }

    /// Shows the outputs to the observer and keeps those that are used again.
    fn keep(
        &self,
        step: &Step,
        outputs: Vec<Datum>,
        values: &mut Values,
        watch: &mut Watch<'_>,
        counts: Counts,
    ) -> Result<(), Error> {
        let node = &self.graph.nodes[step.node];
        let n_wanted = node.outputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        if outputs.len() < n_wanted {
            let (node_label, op_type) = (self.graph.label(node).to_owned(), node.op_type.clone());
            return Err(Error::Output { node: node_label, op_type, index: outputs.len() });
        }
        for ((mut datum, id), &is_used) in outputs.into_iter().zip(&node.outputs).zip(&step.is_used)
        {
            let Some(id) = *id else { continue };
            if let Datum::Tensor(tensor) = &mut datum {
                watch.value(id, self.graph.value_name(id), tensor);
            }
            // What nobody uses is dropped, and goes back to the pool by that.
            if is_used {
                let size = match counts {
                    Counts::Size => n_bytes(&datum),
                    Counts::Nothing => 0,
                };
                values.put(id, datum, size);
            }
        }
        Ok(())
    }

    /// Keeps the outputs of a step that are the same in every run, unless they are large for what they are made of
    /// or for the memory there is.
    fn keep_computed(
        &self,
        outputs: &[Datum],
        types: &ArgTypes,
        computed: &OnceLock<Vec<Datum>>,
    ) -> bool {
        let size: usize = outputs.iter().map(n_bytes).sum();
        // Eight times: a 4-bit weight as float32. What is as large as that out of little is cheap to make.
        let is_small = size <= 8 * types.n_bytes() + 4096;
        let max_bytes = self.options.max_bytes.unwrap_or(usize::MAX);
        let is_room =
            self.computed_bytes.load(Ordering::Relaxed).saturating_add(size) <= max_bytes / 8;
        let is_kept = is_small && is_room && computed.set(outputs.to_vec()).is_ok();
        if is_kept {
            self.computed_bytes.fetch_add(size, Ordering::Relaxed);
        }
        is_kept
    }

    fn node_time(&self, node: &Node, types: &ArgTypes, time: Duration) -> NodeTime {
        NodeTime {
            node: self.graph.label(node).to_owned(),
            op_type: node.op_type.clone(),
            inputs: types.to_string(),
            time,
        }
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
            held: held + self.computed_bytes.load(Ordering::Relaxed),
            limit: self.options.max_bytes.unwrap_or(usize::MAX),
        }
    }
}

/// What a value counts for in the memory of a run.
#[derive(Clone, Copy)]
enum Counts {
    Size,
    /// It is kept from run to run.
    Nothing,
}

/// The values that exist at one moment of a run (not the constants), and their size.
struct Values {
    slots: Vec<Option<Slot>>,
    /// Elements that two values share (a reshaped one, and the one it was made of) count twice.
    n_bytes: usize,
}

struct Slot {
    datum: Datum,
    /// Bytes that it counts for: none, if they are kept elsewhere anyway.
    n_bytes: usize,
}

impl Values {
    fn new(n_values: usize) -> Self {
        Self { slots: (0..n_values).map(|_| None).collect(), n_bytes: 0 }
    }

    fn put(&mut self, id: ValueId, datum: Datum, n_bytes: usize) {
        self.n_bytes += n_bytes;
        if let Some(old) = self.slots[id.idx()].replace(Slot { datum, n_bytes }) {
            self.n_bytes -= old.n_bytes;
        }
    }

    fn get(&self, id: ValueId) -> Option<&Datum> {
        Some(&self.slots[id.idx()].as_ref()?.datum)
    }

    fn get_mut(&mut self, id: ValueId) -> Option<&mut Datum> {
        Some(&mut self.slots[id.idx()].as_mut()?.datum)
    }

    fn take(&mut self, id: ValueId) -> Option<Datum> {
        let slot = self.slots[id.idx()].take()?;
        self.n_bytes -= slot.n_bytes;
        Some(slot.datum)
    }
}

/// The outputs of a step.
fn evaluate(
    step: &Step,
    ctx: &EvalCtx<'_>,
    mut args: Vec<Option<Datum>>,
) -> Result<Vec<Datum>, OpError> {
    let captured = args.split_off(ctx.node.inputs.len());
    step.def.evaluate(ctx, args, &Running { bodies: &step.bodies, captured })
}

/// The output of a convolution and of those that follow it.
fn fuse(
    ctx: &EvalCtx<'_>,
    args: Vec<Option<Datum>>,
    followers: &Followers,
) -> Result<Vec<Datum>, OpError> {
    let tensors = args.into_iter().map(|x| x.map(Datum::into_tensor).transpose());
    let args = Args(tensors.collect::<Result<_, _>>()?);
    Ok(conv_then(ctx, args, followers)?.into_iter().map(Datum::Tensor).collect())
}

fn n_bytes(datum: &Datum) -> usize {
    let size = |t: &Tensor| {
        t.as_bytes().len() + t.as_strings().map_or(0, |s| s.iter().map(|s| s.len() + 32).sum())
    };
    datum.tensors().iter().map(size).sum()
}

/// Types and sizes of a node's inputs, shown as `float[1,3], int64[2], -`.
struct ArgTypes(Vec<ArgType>);

enum ArgType {
    Tensor(DataType, Vec<usize>),
    Sequence { len: usize, n_bytes: usize },
    Absent,
}

impl ArgTypes {
    fn of(args: &[Option<Datum>]) -> Self {
        let one = |arg: &Option<Datum>| match arg {
            Some(Datum::Tensor(t)) => ArgType::Tensor(t.dtype(), t.dims().to_vec()),
            Some(datum @ Datum::Sequence(tensors)) => {
                ArgType::Sequence { len: tensors.len(), n_bytes: n_bytes(datum) }
            }
            Some(Datum::Empty) | None => ArgType::Absent,
        };
        Self(args.iter().map(one).collect())
    }

    fn n_bytes(&self) -> usize {
        let one = |arg: &ArgType| match arg {
            ArgType::Tensor(dtype, dims) => {
                dtype.n_bytes(midtread_graph::tensor::n_elements(dims).ok()?)
            }
            ArgType::Sequence { n_bytes, .. } => Some(*n_bytes),
            ArgType::Absent => None,
        };
        self.0.iter().filter_map(one).sum()
    }
}

impl fmt::Display for ArgTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ty) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            match ty {
                ArgType::Tensor(dtype, dims) => {
                    let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
                    write!(f, "{dtype}[{}]", dims.join(","))?;
                }
                ArgType::Sequence { len, .. } => write!(f, "sequence of {len}")?,
                ArgType::Absent => f.write_str("-")?,
            }
        }
        Ok(())
    }
}

/// Checks names, types and sizes of inputs against what a model says of them.
pub fn check_inputs(ports: &[Port], inputs: &[(String, Tensor)]) -> Result<(), Error> {
    check_given(ports, inputs, &|_| false)
}

/// [`check_inputs`], where `is_given` are there too, and are no tensors.
fn check_given(
    ports: &[Port],
    inputs: &[(String, Tensor)],
    is_given: &dyn Fn(&str) -> bool,
) -> Result<(), Error> {
    let mut given: BTreeMap<&str, &Tensor> = BTreeMap::new();
    for (name, tensor) in inputs {
        if !ports.iter().any(|port| port.name == *name) {
            let known = ports.iter().map(|port| port.name.clone()).collect();
            return Err(Error::UnknownInput { name: name.clone(), known });
        }
        if given.insert(name, tensor).is_some() {
            return Err(Error::InputTwice(name.clone()));
        }
    }
    let mut symbols: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for port in ports {
        match given.get(port.name.as_str()) {
            Some(tensor) => check_input(port, tensor, &mut symbols)?,
            None if port.has_default || is_given(&port.name) => {}
            None => {
                let given = inputs.iter().map(|(name, _)| name.clone()).collect();
                return Err(Error::MissingInput { name: port.name.clone(), given });
            }
        }
    }
    Ok(())
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
    let fits = dims.len() == got.len()
        && dims.iter().zip(got).all(|(d, &n)| d.known().is_none_or(|d| d == n));
    if !fits {
        return Err(Error::InputShape {
            name: port.name.clone(),
            wanted: dims.to_vec(),
            got: got.to_vec(),
        });
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
