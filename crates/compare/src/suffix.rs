//! The part of a model that has to be run again when another model of nearly the same graph was run already.
//!
//! Values are numbered by what makes them ([`Numbering`]): those with equal numbers are equal in every run, whatever
//! they are called in their models. A [`Suffix`] is what is left of a model once everything that a base has too is
//! taken from the base.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use midtread_exec::{Interpreter, Named};
use midtread_graph::{AttrValue, DataType, Model, Node, Rewrite, Tensor, ValueId};
use midtread_ops::{Args, EvalCtx, OpError, Pool};

/// Numbers for the values of several models. Constants of equal bytes are one tensor in all of them, and weights
/// stored as integers are dequantized once for all.
#[derive(Default)]
pub(crate) struct Numbering {
    by_key: HashMap<Key, u32>,
    tensors: HashMap<u32, Tensor>,
    /// Constants by the address of their bytes, so that shared ones are not read again. Each is kept, lest its place
    /// be taken by another.
    by_place: HashMap<Place, (u32, Tensor)>,
    n: u32,
}

/// Where a tensor's bytes lie, and how they are read.
#[derive(PartialEq, Eq, Hash)]
struct Place {
    address: usize,
    n_bytes: usize,
    dtype: DataType,
    dims: Vec<usize>,
}

#[derive(PartialEq, Eq, Hash)]
enum Key {
    Input(String),
    Constant(DataType, Vec<usize>, Bytes),
    Made { how: String, inputs: Vec<Option<u32>>, output: usize },
}

/// A model whose values have numbers.
pub(crate) struct Numbered {
    pub(crate) model: Model,
    numbers: Vec<Option<u32>>,
}

/// Operators whose outputs may differ although their inputs do not.
fn is_fixed(node: &Node) -> bool {
    !node.op_type.starts_with("Random")
        && !matches!(node.op_type.as_str(), "Bernoulli" | "Multinomial" | "Dropout")
        && node.subgraphs().next().is_none()
}

impl Numbering {
    fn fresh(&mut self) -> u32 {
        self.n += 1;
        self.n
    }

    fn of(&mut self, key: Key) -> u32 {
        if let Some(&number) = self.by_key.get(&key) {
            return number;
        }
        let number = self.fresh();
        self.by_key.insert(key, number);
        number
    }

    /// The number of a constant, and the tensor that stands for all that equal it.
    fn constant(&mut self, tensor: &Tensor) -> (u32, Tensor) {
        if tensor.as_strings().is_some() {
            return (self.fresh(), tensor.clone());
        }
        let bytes = tensor.as_bytes();
        let (dtype, dims) = (tensor.dtype(), tensor.dims().to_vec());
        let (address, n_bytes) = (bytes.as_ptr() as usize, bytes.len());
        let place = Place { address, n_bytes, dtype, dims: dims.clone() };
        if let Some((number, _)) = self.by_place.get(&place) {
            return (*number, self.tensors[number].clone());
        }
        let number = self.of(Key::Constant(dtype, dims, tensor.to_shared_bytes()));
        let one = self.tensors.entry(number).or_insert_with(|| tensor.to_aligned()).clone();
        // One that will go away with its model must not be known by its place.
        if one.as_bytes().as_ptr() == bytes.as_ptr() {
            self.by_place.insert(place, (number, tensor.clone()));
        }
        (number, one)
    }

    /// Numbers a model's values.
    pub(crate) fn number(&mut self, mut model: Model) -> Result<Numbered, (String, OpError)> {
        let mut numbers: Vec<Option<u32>> = vec![None; model.graph.values().len()];
        for id in model.graph.initializers.clone() {
            let Some(tensor) = model.graph.constant(id).cloned() else { continue };
            let (number, one) = self.constant(&tensor);
            numbers[id.idx()] = Some(number);
            model.graph.value_mut(id).constant = Some(one);
        }
        for &id in &model.graph.inputs {
            let name = model.graph.value_name(id).to_owned();
            numbers[id.idx()] = Some(self.of(Key::Input(name)));
        }
        let order = midtread_exec::topological_order(&model.graph)
            .unwrap_or_else(|_| (0..model.graph.nodes.len()).collect());
        let mut folded = Rewrite::default();
        for i in order {
            let node = model.graph.nodes[i].clone();
            let opset = model.opset(&node.domain).unwrap_or(1);
            let inputs: Vec<Option<u32>> =
                node.inputs.iter().map(|id| id.and_then(|id| numbers[id.idx()])).collect();
            let how = is_fixed(&node).then(|| how(&node, opset)).flatten();
            for (output, id) in node.outputs.iter().enumerate() {
                let Some(id) = *id else { continue };
                let key = how.clone().map(|how| Key::Made { how, inputs: inputs.clone(), output });
                numbers[id.idx()] = Some(match key {
                    Some(key) => self.of(key),
                    None => self.fresh(),
                });
            }
            let is_constant =
                inputs.iter().flatten().all(|number| self.tensors.contains_key(number));
            if let ("DequantizeLinear", true, &[Some(out)]) =
                (node.op_type.as_str(), is_constant, &node.outputs[..])
            {
                let number = numbers[out.idx()].expect("given above");
                if !self.tensors.contains_key(&number) {
                    let args = inputs.iter().map(|n| n.map(|n| self.tensors[&n].clone())).collect();
                    let pool = Pool::default();
                    let ctx = EvalCtx { node: &node, opset, pool: &pool };
                    let label = || model.graph.label(&node).to_owned();
                    let made = midtread_ops::find(&node.domain, &node.op_type)
                        .ok_or_else(|| OpError::Unsupported("this version".into()))
                        .and_then(|def| def.evaluate_tensors(&ctx, Args(args)))
                        .map_err(|source| (label(), source))?;
                    if let Some(made) = made.into_iter().next() {
                        self.tensors.insert(number, made);
                    }
                }
                if let Some(tensor) = self.tensors.get(&number) {
                    model.graph.set_constant(out, tensor.clone());
                    folded.remove(i);
                }
            }
        }
        folded.apply(&mut model.graph);
        model.graph.drop_unused();
        Ok(Numbered { model, numbers })
    }
}

/// Everything about a node but its operands; `None` where an attribute holds a tensor or a graph.
fn how(node: &Node, opset: i64) -> Option<String> {
    let mut attrs = Vec::new();
    for attr in &node.attrs {
        let value = match &attr.value {
            AttrValue::Float(x) => format!("f{:x}", x.to_bits()),
            AttrValue::Floats(list) => {
                format!("F{:?}", list.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
            }
            AttrValue::Int(i) => format!("i{i}"),
            AttrValue::Ints(list) => format!("I{list:?}"),
            AttrValue::String(s) => format!("s{s:?}"),
            AttrValue::Strings(list) => format!("S{list:?}"),
            _ => return None,
        };
        attrs.push(format!("{}={value}", attr.name));
    }
    attrs.sort();
    Some(format!("{}.{}.{opset} {}", node.domain, node.op_type, attrs.join(" ")))
}

impl Numbered {
    /// The values that are not constants, by number.
    pub(crate) fn values(&self) -> HashMap<u32, ValueId> {
        let graph = &self.model.graph;
        let made = graph.nodes.iter().flat_map(|node| node.outputs.iter().flatten());
        made.chain(&graph.inputs).filter_map(|&id| Some((self.numbers[id.idx()]?, id))).collect()
    }
}

/// What of a model differs from a base.
pub(crate) struct Suffix {
    interpreter: Option<Interpreter>,
    /// Its inputs, by their names, and the values of the base that they are.
    cut: Vec<(String, ValueId)>,
    /// The model's outputs: those of the base, or by name of the suffix.
    outputs: Vec<Output>,
}

enum Output {
    Base(ValueId),
    Own(String),
    Constant(Tensor),
}

impl Suffix {
    /// `base` are the values that the base has ([`Numbered::values`]).
    pub(crate) fn new(
        base: &HashMap<u32, ValueId>,
        variant: Numbered,
        options: midtread_exec::Options,
    ) -> Result<Self, midtread_exec::Error> {
        let Numbered { mut model, numbers } = variant;
        let graph = &mut model.graph;
        let of_base = |id: ValueId| base.get(&numbers[id.idx()]?).copied();
        let mut producer: HashMap<ValueId, usize> = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            producer.extend(node.outputs.iter().flatten().map(|&id| (id, i)));
        }
        let outputs: Vec<Output> = graph
            .outputs
            .iter()
            .map(|&id| match (of_base(id), graph.constant(id)) {
                (Some(base), _) => Output::Base(base),
                (None, Some(tensor)) => Output::Constant(tensor.clone()),
                (None, None) => Output::Own(graph.value_name(id).to_owned()),
            })
            .collect();
        let own = |output: &Output| match output {
            Output::Own(name) => graph.find(name),
            _ => None,
        };
        let wanted: Vec<ValueId> = outputs.iter().filter_map(own).collect();
        let (mut needed, mut cut) = (BTreeSet::new(), BTreeSet::new());
        let mut stack = wanted.clone();
        while let Some(id) = stack.pop() {
            if let Some(base) = of_base(id) {
                cut.insert((id, base));
            } else if let Some(&i) = producer.get(&id).filter(|i| !needed.contains(*i)) {
                needed.insert(i);
                let node = &graph.nodes[i];
                let mut captured = Vec::new();
                node.subgraphs().for_each(|g| g.captures(&mut captured));
                let captured = captured.iter().filter_map(|name| graph.find(name));
                let inputs = node.inputs.iter().flatten().copied().chain(captured);
                stack.extend(inputs.filter(|&id| graph.constant(id).is_none()));
            }
        }
        graph.inputs = cut.iter().map(|&(id, _)| id).collect();
        graph.outputs = wanted;
        let mut i = 0;
        graph.nodes.retain(|_| {
            i += 1;
            needed.contains(&(i - 1))
        });
        graph.drop_unused();
        let cut =
            cut.into_iter().map(|(id, base)| (graph.value_name(id).to_owned(), base)).collect();
        let interpreter = match needed.is_empty() {
            true => None,
            false => Some(Interpreter::new(&model, options)?),
        };
        Ok(Self { interpreter, cut, outputs })
    }

    /// The values of the base that it takes.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = ValueId> {
        let outputs = self.outputs.iter().filter_map(|output| match output {
            Output::Base(id) => Some(*id),
            _ => None,
        });
        self.cut.iter().map(|&(_, id)| id).chain(outputs)
    }

    /// Nodes that a run evaluates.
    pub(crate) fn n_nodes(&self) -> usize {
        self.interpreter.as_ref().map_or(0, Interpreter::n_nodes)
    }

    /// Whether every output is one of the base's.
    pub(crate) fn is_base(&self) -> bool {
        self.outputs.iter().all(|output| matches!(output, Output::Base(_)))
    }

    /// The outputs, in the model's order, from the base's values of the same sample.
    pub(crate) fn run(
        &self,
        base: &HashMap<ValueId, Tensor>,
    ) -> Result<Vec<Tensor>, midtread_exec::Error> {
        let made = match &self.interpreter {
            Some(interpreter) => {
                let inputs: Named =
                    self.cut.iter().map(|(name, id)| (name.clone(), base[id].clone())).collect();
                interpreter.run(inputs)?
            }
            None => Vec::new(),
        };
        let outputs = self.outputs.iter().map(|output| match output {
            Output::Base(id) => base[id].clone(),
            Output::Constant(tensor) => tensor.clone(),
            Output::Own(name) => {
                let found = made.iter().find(|(n, _)| n == name);
                found.map(|(_, tensor)| tensor.clone()).expect("an output of the suffix")
            }
        });
        Ok(outputs.collect())
    }
}
