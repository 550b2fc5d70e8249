//! The walk over the graph.
//!
//! Node by node in order, each operator's role says which of its tensors are quantized and which share parameters
//! ([`Walk::draft`]); then every set of tensors gets its range and parameters ([`Walk::resolve`]); then clamps that
//! the parameters already imply are absorbed; then weights and biases, whose scales depend on the activations'. Each
//! step is linear in the graph.

use std::collections::{BTreeMap, HashMap, HashSet};

use midtread_graph::{DataType, Graph, Links, Model, Node, ValueId};
use midtread_num::{Granularity, QParams, QRange, Span, Symmetry, bias};
use midtread_ops::{InputRole, OutputRole, Role, find};

use crate::{
    calibrate::{CalibrateError, Calibrator, RangeGoal, Stats},
    error::Error,
    plan::{
        BiasForm, BiasPlan, Decision, IntType, NodePlan, Operand, Override, Params, Pattern, Plan,
        PlanOptions, Scheme, Target, TensorPlan, WeightGranularity, Why,
        constants::{check_finite, floats, params_of_constant, weight_granularity},
        fingerprint,
        groups::Groups,
        names::nearest,
        options::{span_of, symmetry_word},
    },
};

/// Where calibrated ranges come from.
pub trait Ranges {
    /// Whether the tensor was observed.
    fn contains(&self, tensor: &str) -> bool;

    /// The range that a calibrator chooses for it.
    fn range(
        &self,
        tensor: &str,
        calibrator: &Calibrator,
        goal: &RangeGoal,
    ) -> Result<(f32, f32), CalibrateError>;
}

impl Ranges for Stats {
    fn contains(&self, tensor: &str) -> bool {
        self.contains(tensor)
    }

    fn range(
        &self,
        tensor: &str,
        calibrator: &Calibrator,
        goal: &RangeGoal,
    ) -> Result<(f32, f32), CalibrateError> {
        self.range(tensor, calibrator, goal)
    }
}

/// Ranges by name, known beforehand; whatever the calibrator.
impl Ranges for BTreeMap<String, (f32, f32)> {
    fn contains(&self, tensor: &str) -> bool {
        self.contains_key(tensor)
    }

    fn range(
        &self,
        tensor: &str,
        _: &Calibrator,
        _: &RangeGoal,
    ) -> Result<(f32, f32), CalibrateError> {
        self.get(tensor).copied().ok_or_else(|| CalibrateError::NotObserved(tensor.to_owned()))
    }
}

/// Decides how a model is quantized. Reads nothing but its arguments, so that it can be run again with other options
/// without calibrating again.
///
/// Every option is checked before anything is decided: names against the model, types and forms against the target.
pub fn plan(
    model: &Model,
    stats: Option<&Stats>,
    target: &Target,
    options: &PlanOptions,
) -> Result<Plan, Error> {
    let fingerprint = fingerprint(model);
    if stats.is_some_and(|stats| !stats.model().is_empty() && stats.model() != fingerprint) {
        return Err(Error::StatsOfAnotherModel);
    }
    decide(model, fingerprint, stats.map(|stats| stats as &dyn Ranges), target, options)
}

/// [`plan`], with ranges from anywhere.
pub fn plan_ranges(
    model: &Model,
    ranges: Option<&dyn Ranges>,
    target: &Target,
    options: &PlanOptions,
) -> Result<Plan, Error> {
    decide(model, fingerprint(model), ranges, target, options)
}

fn decide(
    model: &Model,
    fingerprint: String,
    ranges: Option<&dyn Ranges>,
    target: &Target,
    options: &PlanOptions,
) -> Result<Plan, Error> {
    check_options(target, options)?;
    let graph = &model.graph;
    let labels = graph.nodes.iter().map(|n| graph.label(n)).collect();
    let op_types = graph.nodes.iter().map(|n| n.op_type.as_str()).collect();
    let selection = Selection::new(&labels, &op_types, &options.include, options.excluded())?;
    let ranges = match (options.scheme, ranges) {
        (Scheme::Static, None) => return Err(Error::NoStats),
        (_, ranges) => ranges,
    };
    let mut walk = Walk::new(&model.graph, ranges, target, options);
    walk.check_overrides()?;
    for i in 0..model.graph.nodes.len() {
        let draft = walk.draft(i, &selection)?;
        walk.drafts.push(draft);
    }
    walk.resolve()?;
    walk.absorb();
    walk.raise_for_biases()?;
    let (tensors, biases, nodes) = walk.finish();
    Ok(Plan {
        model: fingerprint,
        scheme: options.scheme,
        target: target.name.clone(),
        io: options.io,
        options: describe(options),
        tensors,
        biases,
        nodes,
    })
}

/// The options that differ from one run to another, for people to read.
fn describe(options: &PlanOptions) -> BTreeMap<String, String> {
    let mut text = BTreeMap::new();
    let mut put = |name: &str, value: String| text.insert(name.to_owned(), value);
    if options.scheme == Scheme::Static {
        put("activation_type", options.activation_type.to_string());
        put("activation_symmetry", symmetry_word(options.activation_symmetry).to_owned());
        put("calibrator", format!("{:?}", options.calibrator));
        put("bias", options.bias.to_string());
    }
    put("weight_type", options.weight_type.to_string());
    put("weight_symmetry", symmetry_word(weight_symmetry(options)).to_owned());
    put("granularity", options.granularity.to_string());
    put("reduce_range", options.reduce_range.to_string());
    for (name, bits) in
        [("weight_bits", options.weight_bits), ("activation_bits", options.activation_bits)]
    {
        if let Some(bits) = bits {
            put(name, bits.to_string());
        }
    }
    for (name, patterns) in [("include", &options.include), ("exclude", &options.exclude)] {
        if !patterns.is_empty() {
            let patterns: Vec<String> = patterns.iter().map(Pattern::to_string).collect();
            put(name, patterns.join(" "));
        }
    }
    if !options.overrides.keep_float.is_empty() {
        let patterns: Vec<String> =
            options.overrides.keep_float.iter().map(Pattern::to_string).collect();
        put("keep_float", patterns.join(" "));
    }
    if !options.overrides.tensors.is_empty() {
        let names: Vec<&str> = options.overrides.tensors.keys().map(String::as_str).collect();
        put("overrides", names.join(" "));
    }
    text
}

/// Symmetric for signed types and per-channel weights: integer kernels want one zero point for all channels.
fn weight_symmetry(options: &PlanOptions) -> Symmetry {
    options.weight_symmetry.unwrap_or(match options.granularity {
        _ if options.weight_type.is_signed() => Symmetry::Symmetric,
        WeightGranularity::PerChannel => Symmetry::Symmetric,
        WeightGranularity::PerTensor | WeightGranularity::Blocked(_) => Symmetry::Asymmetric,
    })
}

fn check_options(target: &Target, options: &PlanOptions) -> Result<(), Error> {
    let name = &target.name;
    let refuse = |what: String| Err(Error::Options(what));
    if !target.schemes.contains(&options.scheme) {
        return refuse(format!("target `{name}` does not run {} models", options.scheme));
    }
    if options.scheme == Scheme::Static {
        if !target.activations.types.contains(&options.activation_type) {
            return refuse(format!(
                "target `{name}` has no {} activations",
                options.activation_type
            ));
        }
        if !target.activations.symmetries.contains(&options.activation_symmetry) {
            let word = symmetry_word(options.activation_symmetry);
            return refuse(format!("target `{name}` has no {word} activations"));
        }
    }
    let fits = |int_type: IntType, bits: Option<u32>, span| {
        bits.is_none_or(|bits| 2 <= bits && int_type.range_of_bits(bits, span).is_some())
    };
    let weight_span =
        if options.reduce_range { Span::Reduced } else { span_of(weight_symmetry(options)) };
    if !fits(options.weight_type, options.weight_bits, weight_span) {
        let bits = options.weight_bits.unwrap_or_default();
        return refuse(format!("{} does not hold {bits}-bit weights", options.weight_type));
    }
    if !fits(options.activation_type, options.activation_bits, span_of(options.activation_symmetry))
    {
        let bits = options.activation_bits.unwrap_or_default();
        return refuse(format!("{} does not hold {bits}-bit activations", options.activation_type));
    }
    if !target.weights.types.contains(&options.weight_type) {
        return refuse(format!("target `{name}` has no {} weights", options.weight_type));
    }
    if !target.weights.symmetries.contains(&weight_symmetry(options)) {
        let word = symmetry_word(weight_symmetry(options));
        return refuse(format!("target `{name}` has no {word} weights"));
    }
    if !target.allows(options.granularity) {
        return refuse(format!("target `{name}` has no {} weights", options.granularity));
    }
    match options.scheme {
        Scheme::Dynamic => {
            if options.weight_type.n_bits() != 8 {
                let what = options.weight_type;
                return refuse(format!("dynamic quantization has 8-bit weights only, not {what}"));
            }
            if options.activation_type != IntType::U8
                || options.activation_symmetry != Symmetry::Asymmetric
            {
                return refuse(
                    "dynamic quantization has asymmetric u8 activations only".to_owned(),
                );
            }
        }
        Scheme::Static | Scheme::WeightOnly => {}
    }
    if options.scheme != Scheme::WeightOnly
        && matches!(options.granularity, WeightGranularity::Blocked(_))
    {
        return refuse(format!(
            "blocked weights need the weight_only scheme, not {}",
            options.scheme
        ));
    }
    Ok(())
}

/// Which nodes the include and exclude options leave.
pub(crate) struct Selection<'a> {
    /// Exact names, so that a long list costs no more than a short one.
    included: HashSet<&'a str>,
    excluded: HashMap<&'a str, &'a Pattern>,
    include: Vec<&'a Pattern>,
    exclude: Vec<&'a Pattern>,
    all: bool,
}

impl<'a> Selection<'a> {
    /// Refuses patterns that none of a model's nodes matches.
    pub(crate) fn new(
        labels: &HashSet<&str>,
        op_types: &HashSet<&str>,
        include: &'a [Pattern],
        exclude: impl Iterator<Item = &'a Pattern> + Clone,
    ) -> Result<Self, Error> {
        for pattern in include.iter().chain(exclude.clone()) {
            let (what, name, known, found) = match pattern {
                Pattern::OpType(name) => {
                    ("operator type", name, op_types, op_types.contains(name.as_str()))
                }
                Pattern::Name(name) if pattern.is_glob() => {
                    ("pattern", name, labels, labels.iter().any(|label| pattern.matches(label, "")))
                }
                Pattern::Name(name) => ("node", name, labels, labels.contains(name.as_str())),
            };
            if !found {
                let mut known: Vec<&str> = known.iter().copied().collect();
                known.sort_unstable();
                let problem = match what {
                    "pattern" => "matches no node of the model",
                    _ => "is not in the model",
                };
                return Err(Error::Unknown {
                    what,
                    name: name.clone(),
                    problem: problem.to_owned(),
                    suggest: nearest(name, known),
                });
            }
        }
        let exact = |pattern: &'a Pattern| match pattern {
            Pattern::Name(name) if !pattern.is_glob() => Some(name.as_str()),
            _ => None,
        };
        Ok(Self {
            included: include.iter().filter_map(exact).collect(),
            excluded: exclude.clone().filter_map(|p| Some((exact(p)?, p))).collect(),
            include: include.iter().filter(|p| exact(p).is_none()).collect(),
            exclude: exclude.filter(|p| exact(p).is_none()).collect(),
            all: include.is_empty(),
        })
    }

    /// Why a node is left out, if it is.
    pub(crate) fn refuses(&self, label: &str, op_type: &str) -> Option<String> {
        let by_name = self.excluded.get(label).copied();
        let excluded =
            by_name.or_else(|| self.exclude.iter().copied().find(|p| p.matches(label, op_type)));
        if let Some(pattern) = excluded {
            return Some(format!("excluded by `{pattern}`"));
        }
        let included = self.all
            || self.included.contains(label)
            || self.include.iter().any(|p| p.matches(label, op_type));
        (!included).then(|| "it is not among the nodes to include".to_owned())
    }
}

/// What is intended for a node before parameters are known.
enum Draft {
    Done(Decision),
    Quantized {
        inputs: Vec<DraftOperand>,
        outputs: Vec<Option<ValueId>>,
        /// Whether the outputs have a range of their own, which a clamp may narrow.
        is_calibrated: bool,
    },
    Clamp {
        input: ValueId,
        output: ValueId,
        n_inputs: usize,
        bounds: Option<(f32, f32)>,
        /// Whether the input has no use but this and takes the output's range.
        is_only_use: bool,
    },
}

#[derive(Clone, Copy)]
enum DraftOperand {
    Keep,
    Activation(ValueId),
    /// Index in `Walk::weights`.
    Weight(usize),
    /// The constant, the activation and the index of the weight.
    Bias(ValueId, ValueId, usize),
    Dynamic,
}

/// One set of parameters for a constant.
struct WeightSet {
    value: ValueId,
    int_type: IntType,
    range: QRange,
    params: Params,
    symmetry: Symmetry,
    why: Why,
}

impl WeightSet {
    /// Raises the scales with which `bias`, added to products with an activation of parameters `x`, would not fit.
    fn raise(&mut self, name: &str, x: QParams, bias: &[f32]) -> Result<(), Error> {
        let range = self.range;
        let mut is_raised = false;
        let mut raise = |w: &mut QParams, max_abs: f32| -> Result<(), Error> {
            if let Some(scale) = bias::weight_scale_for_bias(x.scale(), w.scale(), max_abs) {
                let raised = QParams::new(scale, w.zero_point(), range);
                *w = raised.map_err(|source| Error::QParams { tensor: name.to_owned(), source })?;
                is_raised = true;
            }
            Ok(())
        };
        match &mut self.params {
            Params::PerTensor(w) => raise(w, bias.iter().fold(0.0, |max, b| b.abs().max(max)))?,
            Params::PerAxis { params, .. } => {
                for (w, b) in params.iter_mut().zip(bias) {
                    raise(w, b.abs())?;
                }
            }
            Params::Blocked { .. } => unreachable!("blocked weights have no integer bias"),
        }
        if is_raised {
            self.why = Why::RaisedForBias(name.to_owned());
        }
        Ok(())
    }
}

/// Smallest and largest value.
type Bounds = (f32, f32);

/// The bounds of a clamp, given the node and its constant inputs of one element.
type BoundsFn = fn(&Node, &dyn Fn(usize) -> Option<f32>) -> Option<Bounds>;

/// What is known of a value's element type.
enum Kind {
    Float,
    OtherFloat(DataType),
    NotFloat,
    Unknown,
}

struct Walk<'a> {
    graph: &'a Graph,
    links: Links,
    /// By value: whether callers give it (a constant among them is a default, and no constant).
    is_input: Vec<bool>,
    ranges: Option<&'a dyn Ranges>,
    target: &'a Target,
    options: &'a PlanOptions,
    groups: Groups,
    /// By value: whether it is quantized per tensor, as an activation.
    marked: Vec<bool>,
    /// The marked values, in the order in which the walk met them.
    order: Vec<ValueId>,
    /// Ranges known beforehand, and the operator type that says so.
    fixed: HashMap<ValueId, (f32, f32, &'a str)>,
    weights: Vec<WeightSet>,
    weight_idx: HashMap<(ValueId, Granularity), usize>,
    drafts: Vec<Draft>,
    /// Once resolved, by value: parameters and reason.
    activations: HashMap<ValueId, TensorPlan>,
}

/// Operators that are quantized only if every activation is quantized without them, as in onnxruntime. The constant
/// that Where puts in place of masked scores is often the lowest `f32`, and would leave no levels for the others.
const ONLY_AFTER_QUANTIZED: &[&str] = &["Where"];

/// A constant that Gather looks up is worth storing as integers from this many elements.
const MIN_TABLE: usize = 1024;

impl<'a> Walk<'a> {
    fn new(
        graph: &'a Graph,
        ranges: Option<&'a dyn Ranges>,
        target: &'a Target,
        options: &'a PlanOptions,
    ) -> Self {
        let n = graph.values().len();
        let mut is_input = vec![false; n];
        graph.inputs.iter().for_each(|id| is_input[id.idx()] = true);
        Self {
            graph,
            links: Links::new(graph),
            is_input,
            ranges,
            target,
            options,
            groups: Groups::new(n),
            marked: vec![false; n],
            order: Vec::new(),
            fixed: HashMap::new(),
            weights: Vec::new(),
            weight_idx: HashMap::new(),
            drafts: Vec::new(),
            activations: HashMap::new(),
        }
    }

    fn name(&self, id: ValueId) -> &'a str {
        self.graph.value_name(id)
    }

    fn over(&self, id: ValueId) -> Option<&'a Override> {
        self.options.overrides.tensors.get(self.name(id))
    }

    fn is_constant(&self, id: ValueId) -> bool {
        self.graph.value(id).constant.is_some() && !self.is_input[id.idx()]
    }

    fn kind(&self, id: ValueId) -> Kind {
        let value = self.graph.value(id);
        let elem = match &value.constant {
            Some(tensor) => Some(tensor.dtype()),
            None => value.ty.as_ref().and_then(|ty| ty.elem()),
        };
        match elem {
            None => Kind::Unknown,
            Some(DataType::Float) => Kind::Float,
            Some(other) if other.is_float() => Kind::OtherFloat(other),
            Some(_) => Kind::NotFloat,
        }
    }

    /// Every override names a tensor of the model and asks for something the target has.
    fn check_overrides(&self) -> Result<(), Error> {
        for (name, over) in &self.options.overrides.tensors {
            let Some(id) = self.graph.find(name) else {
                return Err(Error::Unknown {
                    what: "tensor",
                    name: name.clone(),
                    problem: "is not in the model".to_owned(),
                    suggest: nearest(name, self.graph.values().iter().map(|v| v.name())),
                });
            };
            let refuse =
                |what: String| Err(Error::Options(format!("override of tensor `{name}`: {what}")));
            match self.kind(id) {
                Kind::Float => {}
                Kind::OtherFloat(dtype) => return refuse(format!("it is {dtype}, not float")),
                Kind::NotFloat => return refuse("it does not hold floats".to_owned()),
                Kind::Unknown => return refuse("its type is not known".to_owned()),
            }
            let is_constant = self.is_constant(id);
            let allowed = if is_constant { &self.target.weights } else { &self.target.activations };
            if let Some(int_type) = over.int_type
                && !allowed.types.contains(&int_type)
            {
                return refuse(format!(
                    "target `{}` does not have {int_type} there",
                    self.target.name
                ));
            }
            if let Some(symmetry) = over.symmetry
                && !allowed.symmetries.contains(&symmetry)
            {
                let word = symmetry_word(symmetry);
                return refuse(format!(
                    "target `{}` has no {word} tensors there",
                    self.target.name
                ));
            }
            if over.granularity.is_some() && !is_constant {
                return refuse("only constants have a granularity".to_owned());
            }
            if let Some(granularity) = over.granularity
                && !self.target.allows(granularity)
            {
                return refuse(format!(
                    "target `{}` has no {granularity} weights",
                    self.target.name
                ));
            }
            if over.calibrator.is_some() && is_constant {
                return refuse("a constant has no calibrator".to_owned());
            }
        }
        Ok(())
    }

    fn draft(&mut self, i: usize, selection: &Selection<'_>) -> Result<Draft, Error> {
        let graph = self.graph;
        let node = &graph.nodes[i];
        let float = |reason: &str| Ok(Draft::Done(Decision::Float { reason: reason.to_owned() }));
        let Some(def) = find(&node.domain, &node.op_type) else {
            return float("its operator is not in the operator table");
        };
        if matches!(def.role, Role::Structural) {
            return Ok(Draft::Done(Decision::Structural));
        }
        // A role that calls for floats says nothing about a node that computes on integers.
        let first =
            node.inputs.iter().flatten().next().or_else(|| node.outputs.iter().flatten().next());
        let on_integers = first.is_some_and(|&id| matches!(self.kind(id), Kind::NotFloat));
        if on_integers && !matches!(def.role, Role::Float(_)) && !self.takes_floats(node, &def.role)
        {
            return Ok(Draft::Done(Decision::Structural));
        }
        if let Some(reason) = selection.refuses(graph.label(node), &node.op_type) {
            return float(&reason);
        }
        match &def.role {
            Role::Structural => Ok(Draft::Done(Decision::Structural)),
            Role::Float(reason) => float(reason),
            _ if !self.target.operators.contains_key(&node.op_type) => {
                float(&format!("target `{}` has no integer form of it", self.target.name))
            }
            Role::Clamp { bounds } => match self.options.scheme {
                Scheme::Static => Ok(self.draft_clamp(i, *bounds)),
                scheme => float(&format!("the {scheme} scheme leaves activations in float")),
            },
            Role::Quantized { inputs, output } => match self.options.scheme {
                Scheme::Static => self.draft_static(i, inputs, *output),
                Scheme::Dynamic => self.draft_dynamic(i, inputs, *output),
                Scheme::WeightOnly => self.draft_weight_only(i, inputs, *output),
            },
        }
    }

    /// Whether an input with the role of an activation or a weight holds floats.
    fn takes_floats(&self, node: &Node, role: &Role) -> bool {
        let Role::Quantized { inputs, .. } = role else { return false };
        let mut data = node
            .inputs
            .iter()
            .enumerate()
            .filter_map(|(k, id)| Some((role_of(inputs, k)?, (*id)?)));
        data.any(|(role, id)| {
            !matches!(role, InputRole::Parameter) && !matches!(self.kind(id), Kind::NotFloat)
        })
    }

    /// Why a tensor cannot be quantized, if it cannot.
    fn problem(&self, id: ValueId) -> Option<String> {
        let name = self.name(id);
        if self.is_input[id.idx()] && self.graph.value(id).constant.is_some() {
            return Some(format!("`{name}` is a default that callers can replace"));
        }
        match self.kind(id) {
            Kind::Float => {}
            Kind::OtherFloat(dtype) => return Some(format!("`{name}` is {dtype}")),
            Kind::NotFloat => return Some(format!("`{name}` does not hold floats")),
            Kind::Unknown => return Some(format!("the type of `{name}` is not known")),
        }
        let is_empty =
            self.graph.value(id).constant.as_ref().is_some_and(|tensor| tensor.is_empty());
        is_empty.then(|| format!("`{name}` has no elements"))
    }

    fn mark(&mut self, id: ValueId) {
        if !self.marked[id.idx()] {
            self.marked[id.idx()] = true;
            self.order.push(id);
        }
    }

    fn draft_clamp(&mut self, i: usize, bounds: BoundsFn) -> Draft {
        let node = &self.graph.nodes[i];
        let float = |reason: String| Draft::Done(Decision::Float { reason });
        let (Some(input), Some(output)) = (node.input(0), node.output(0)) else {
            return float("its input or output is missing".to_owned());
        };
        if !self.marked[input.idx()] {
            return float("its input is not quantized".to_owned());
        }
        if let Some(problem) = self.problem(input).or_else(|| self.problem(output)) {
            return float(problem);
        }
        let constant = |k: usize| {
            let tensor = self.graph.constant(node.input(k)?)?;
            floats(tensor).ok().filter(|v| v.len() == 1).map(|v| v[0])
        };
        let bounds = bounds(node, &constant);
        let is_only_use = self.links.only_consumer(input) == Some(i)
            && !self.is_input[input.idx()]
            && self.groups.follow(input, output);
        self.mark(output);
        Draft::Clamp { input, output, n_inputs: node.inputs.len(), bounds, is_only_use }
    }

    fn draft_static(
        &mut self,
        i: usize,
        roles: &[InputRole],
        output: OutputRole,
    ) -> Result<Draft, Error> {
        let node = &self.graph.nodes[i];
        let float = |reason: String| Ok(Draft::Done(Decision::Float { reason }));
        let rule = &self.target.operators[&node.op_type];

        // What can refuse comes first.
        let mut data = Vec::new();
        for (k, id) in node.inputs.iter().enumerate() {
            let (Some(role), Some(id)) = (role_of(roles, k), *id) else { continue };
            if matches!(role, InputRole::Activation | InputRole::Weight { .. }) {
                if let Some(problem) = self.problem(id) {
                    return float(problem);
                }
                data.push(id);
            }
        }
        let outputs: Vec<Option<ValueId>> = match output {
            OutputRole::Unquantized => vec![None; node.outputs.len()],
            _ if rule.float_output => vec![None; node.outputs.len()],
            // Indices beside values (MaxPool, TopK) are no floats and stay.
            _ => node
                .outputs
                .iter()
                .map(|o| o.filter(|&id| !matches!(self.kind(id), Kind::NotFloat)))
                .collect(),
        };
        if let Some(problem) = outputs.iter().flatten().find_map(|&id| self.problem(id)) {
            return float(problem);
        }
        let is_quantized = |id: ValueId| self.marked[id.idx()];
        if let OutputRole::SameAs(n) = output {
            let moved = node.input(n);
            if !moved.is_some_and(|id| is_quantized(id) || self.is_constant(id)) {
                return float("its input is not quantized".to_owned());
            }
        }
        if ONLY_AFTER_QUANTIZED.contains(&node.op_type.as_str())
            && !data.iter().all(|&id| is_quantized(id))
        {
            return float("its inputs are not all quantized".to_owned());
        }
        if data.is_empty() {
            return float("it has no input to quantize".to_owned());
        }

        let mut operands = vec![DraftOperand::Keep; node.inputs.len()];
        let mut bias = None;
        for (k, id) in node.inputs.iter().enumerate() {
            let (Some(role), Some(id)) = (role_of(roles, k), *id) else { continue };
            operands[k] = match role {
                InputRole::Parameter => DraftOperand::Keep,
                InputRole::Bias => {
                    bias = Some((k, id));
                    DraftOperand::Keep
                }
                // What is looked up has the parameters of the table, which are those of an activation then.
                InputRole::Weight { channel_axis }
                    if self.is_constant(id)
                        && !matches!(output, OutputRole::SameAs(n) if n == k) =>
                {
                    DraftOperand::Weight(self.weight(
                        i,
                        id,
                        channel_axis,
                        rule.per_tensor_weights,
                    )?)
                }
                InputRole::Activation | InputRole::Weight { .. } => {
                    self.mark(id);
                    DraftOperand::Activation(id)
                }
            };
        }
        if let Some((k, id)) = bias
            && let Some((input, weight)) = self.bias_partners(node, id, &operands)
        {
            operands[k] = DraftOperand::Bias(id, input, weight);
        }
        for &id in outputs.iter().flatten() {
            self.mark(id);
            match output {
                OutputRole::SameAs(n) => {
                    if let Some(leader) = node.input(n) {
                        self.groups.follow(id, leader);
                    }
                }
                OutputRole::AllSame => {
                    data.iter().for_each(|&other| self.groups.join(data[0], other));
                    self.groups.follow(id, data[0]);
                }
                OutputRole::Fixed(min, max) => {
                    self.fixed.insert(id, (min, max, &node.op_type));
                }
                OutputRole::Calibrated | OutputRole::Unquantized => {}
            }
        }
        let is_calibrated = matches!(output, OutputRole::Calibrated);
        Ok(Draft::Quantized { inputs: operands, outputs, is_calibrated })
    }

    /// The activation and the weight whose scales a bias can have, if it can.
    fn bias_partners(
        &self,
        node: &Node,
        bias: ValueId,
        operands: &[DraftOperand],
    ) -> Option<(ValueId, usize)> {
        if self.options.bias == BiasForm::Float
            || !self.is_constant(bias)
            || self.problem(bias).is_some()
        {
            return None;
        }
        // alpha * A * B + beta * C: the sum of products has the scale of the bias only without the factors.
        if node.is("Gemm")
            && ["alpha", "beta"].iter().any(|name| node.float(name).unwrap_or(1.0) != 1.0)
        {
            return None;
        }
        let activation = operands.iter().find_map(|o| match o {
            DraftOperand::Activation(id) if !self.is_constant(*id) => Some(*id),
            _ => None,
        })?;
        let weight = operands.iter().find_map(|o| match o {
            DraftOperand::Weight(w) => Some(*w),
            _ => None,
        })?;
        let dims = self.graph.value(bias).constant.as_ref()?.dims();
        bias_axis(dims, &self.weights[weight].params)?;
        Some((activation, weight))
    }

    fn draft_dynamic(
        &mut self,
        i: usize,
        roles: &[InputRole],
        output: OutputRole,
    ) -> Result<Draft, Error> {
        let node = &self.graph.nodes[i];
        let float = |reason: &str| Ok(Draft::Done(Decision::Float { reason: reason.to_owned() }));
        if let Some(draft) = self.draft_table(i, roles, output)? {
            return Ok(draft);
        }
        if !["MatMul", "Gemm", "Conv"].iter().any(|op_type| node.is(op_type)) {
            return float("the dynamic scheme has no integer form of it");
        }
        let (Some(x), Some(w), Some(y)) = (node.input(0), node.input(1), node.output(0)) else {
            return float("an input or output is missing");
        };
        if !self.is_constant(w) {
            return float("its weight is not constant");
        }
        if let Some(problem) = [x, w, y].into_iter().find_map(|id| self.problem(id)) {
            return float(&problem);
        }
        if node.is("Gemm") && node.int("transA").unwrap_or(0) != 0 {
            return float("its activation is transposed, and MatMulInteger has no transposed form");
        }
        let Some(InputRole::Weight { channel_axis }) = role_of(roles, 1) else {
            return float("its operator has no weight");
        };
        let per_tensor = self.target.operators[&node.op_type].per_tensor_weights;
        let weight = self.weight(i, w, channel_axis, per_tensor)?;
        let mut inputs = vec![DraftOperand::Keep; node.inputs.len()];
        inputs[0] = DraftOperand::Dynamic;
        inputs[1] = DraftOperand::Weight(weight);
        Ok(Draft::Quantized {
            inputs,
            outputs: vec![None; node.outputs.len()],
            is_calibrated: false,
        })
    }

    fn draft_weight_only(
        &mut self,
        i: usize,
        roles: &[InputRole],
        output: OutputRole,
    ) -> Result<Draft, Error> {
        let node = &self.graph.nodes[i];
        if let Some(draft) = self.draft_table(i, roles, output)? {
            return Ok(draft);
        }
        let mut inputs = vec![DraftOperand::Keep; node.inputs.len()];
        let mut reason = "it has no constant weight".to_owned();
        for (k, id) in node.inputs.iter().enumerate() {
            let (Some(InputRole::Weight { channel_axis }), Some(id)) = (role_of(roles, k), *id)
            else {
                continue;
            };
            if !self.is_constant(id) {
                continue;
            }
            if let Some(problem) = self.problem(id) {
                reason = problem;
                continue;
            }
            let per_tensor = self.target.operators[&node.op_type].per_tensor_weights;
            inputs[k] = DraftOperand::Weight(self.weight(i, id, channel_axis, per_tensor)?);
        }
        if inputs.iter().all(|o| matches!(o, DraftOperand::Keep)) {
            return Ok(Draft::Done(Decision::Float { reason }));
        }
        Ok(Draft::Quantized {
            inputs,
            outputs: vec![None; node.outputs.len()],
            is_calibrated: false,
        })
    }

    /// A lookup in a large constant (an embedding): the integers are looked up, and what was found is dequantized.
    fn draft_table(
        &mut self,
        i: usize,
        roles: &[InputRole],
        output: OutputRole,
    ) -> Result<Option<Draft>, Error> {
        let node = &self.graph.nodes[i];
        let (true, OutputRole::SameAs(0), Some(table)) = (node.is("Gather"), output, node.input(0))
        else {
            return Ok(None);
        };
        if matches!(role_of(roles, 0), Some(InputRole::Parameter) | None)
            || !self.is_constant(table)
        {
            return Ok(None);
        }
        if self.problem(table).is_some() {
            return Ok(None);
        }
        let n = self.graph.value(table).constant.as_ref().map_or(0, |tensor| tensor.len());
        if n < MIN_TABLE {
            let reason = format!("its table has fewer than {MIN_TABLE} elements");
            return Ok(Some(Draft::Done(Decision::Float { reason })));
        }
        let mut inputs = vec![DraftOperand::Keep; node.inputs.len()];
        inputs[0] = DraftOperand::Weight(self.weight(i, table, |_, _| None, true)?);
        let outputs = vec![None; node.outputs.len()];
        Ok(Some(Draft::Quantized { inputs, outputs, is_calibrated: false }))
    }

    /// The index of the parameters of a constant for node `i`, made if they are not there yet.
    fn weight(
        &mut self,
        i: usize,
        id: ValueId,
        channel_axis: fn(&Node, usize) -> Option<usize>,
        per_tensor: bool,
    ) -> Result<usize, Error> {
        let name = self.name(id);
        let node = &self.graph.nodes[i];
        let tensor =
            self.graph.value(id).constant.as_ref().expect("callers checked that it is constant");
        let over = self.over(id);
        let rank = tensor.dims().len();
        let wanted = match over.and_then(|o| o.granularity) {
            Some(granularity) => granularity,
            None if per_tensor || over.is_some_and(|o| o.range.is_some() || o.params.is_some()) => {
                WeightGranularity::PerTensor
            }
            None => self.options.granularity,
        };
        let axis = channel_axis(node, rank).filter(|&axis| axis < rank);
        let granularity = weight_granularity(wanted, rank, axis);
        if let Some(&idx) = self.weight_idx.get(&(id, granularity)) {
            return Ok(idx);
        }

        let int_type = over.and_then(|o| o.int_type).unwrap_or(self.options.weight_type);
        let symmetry =
            over.and_then(|o| o.symmetry).unwrap_or_else(|| weight_symmetry(self.options));
        let span = if self.options.reduce_range { Span::Reduced } else { span_of(symmetry) };
        let range = match self.options.weight_bits {
            // An override of the type is an override of its width.
            Some(bits) if int_type == self.options.weight_type => {
                int_type.range_of_bits(bits, span).expect("checked with the options")
            }
            _ => int_type.range(span),
        };
        let values = floats(tensor).expect("callers checked the type");
        check_finite(name, &values)?;
        let qparams = |source| Error::QParams { tensor: name.to_owned(), source };
        let mut why = Why::Constant;
        let params = match over {
            Some(Override { params: Some((scale, zero_point)), .. }) => {
                why = Why::Override;
                Params::PerTensor(QParams::new(*scale, *zero_point, range).map_err(qparams)?)
            }
            Some(Override { range: Some((min, max)), .. }) => {
                why = Why::Override;
                Params::PerTensor(symmetry.params(*min, *max, range).map_err(qparams)?)
            }
            _ => params_of_constant(name, &values, tensor.dims(), granularity, range, symmetry)?,
        };
        let idx = self.weights.len();
        self.weights.push(WeightSet { value: id, int_type, range, params, symmetry, why });
        self.weight_idx.insert((id, granularity), idx);
        Ok(idx)
    }

    /// Ranges and parameters of every marked tensor.
    fn resolve(&mut self) -> Result<(), Error> {
        let order = std::mem::take(&mut self.order);
        let mut members: BTreeMap<usize, Vec<ValueId>> = BTreeMap::new();
        for &id in &order {
            members.entry(self.groups.find(id)).or_default().push(id);
        }
        let mut missing = Vec::new();
        for group in members.values() {
            self.resolve_group(group, &mut missing)?;
        }
        if let Some(first) = order.iter().find(|id| missing.contains(*id)) {
            return Err(Error::NotCalibrated {
                first: self.name(*first).to_owned(),
                n_tensors: missing.len(),
            });
        }
        self.order = order;
        Ok(())
    }

    /// Parameters for one set of tensors that share them. Tensors without a range go to `missing`.
    fn resolve_group(
        &mut self,
        group: &[ValueId],
        missing: &mut Vec<ValueId>,
    ) -> Result<(), Error> {
        let agreed = |what: &str, pick: fn(&Override) -> bool| -> Result<Option<&ValueId>, Error> {
            let mut with = group.iter().filter(|&&id| self.over(id).is_some_and(pick));
            let first = with.next();
            match (first, with.next()) {
                (Some(&a), Some(&b)) => Err(Error::Options(format!(
                    "tensors `{}` and `{}` share parameters, and both have an override of {what}",
                    self.name(a),
                    self.name(b)
                ))),
                _ => Ok(first),
            }
        };
        let int_type =
            agreed("the type", |o| o.int_type.is_some())?.and_then(|&id| self.over(id)?.int_type);
        let symmetry = agreed("the symmetry", |o| o.symmetry.is_some())?
            .and_then(|&id| self.over(id)?.symmetry);
        let set = agreed("the range", |o| o.range.is_some() || o.params.is_some())?.copied();
        let int_type = int_type.unwrap_or(self.options.activation_type);
        let symmetry = symmetry.unwrap_or(self.options.activation_symmetry);
        let range = match self.options.activation_bits {
            Some(bits) if int_type == self.options.activation_type => {
                int_type.range_of_bits(bits, span_of(symmetry)).expect("checked with the options")
            }
            _ => int_type.range(span_of(symmetry)),
        };

        let (params, leader, why) = match set {
            Some(id) => {
                let over = self.over(id).expect("it was found by its override");
                let qparams = |source| Error::QParams { tensor: self.name(id).to_owned(), source };
                let params = match (over.params, over.range) {
                    (Some((scale, zero_point)), _) => QParams::new(scale, zero_point, range),
                    (None, Some((min, max))) => symmetry.params(min, max, range),
                    (None, None) => unreachable!("one of them was asked for"),
                };
                (params.map_err(qparams)?, id, Why::Override)
            }
            None => {
                let mut union: Option<(f32, f32)> = None;
                let mut leader = None;
                let mut n_ranges = 0;
                // Those that follow a tensor which is not quantized per tensor have only each other.
                let all_follow = group.iter().all(|&id| self.groups.is_follower(id));
                let goal = RangeGoal { range, symmetric: symmetry == Symmetry::Symmetric };
                for &id in group {
                    if self.groups.is_follower(id) && !all_follow {
                        if self.over(id).is_some_and(|o| o.calibrator.is_some()) {
                            return Err(Error::Options(format!(
                                "override of tensor `{}`: it takes the range of another tensor",
                                self.name(id)
                            )));
                        }
                        continue;
                    }
                    let Some(((min, max), why)) = self.own_range(id, &goal)? else {
                        missing.push(id);
                        continue;
                    };
                    n_ranges += 1;
                    leader.get_or_insert((id, why));
                    union = Some(union.map_or((min, max), |(a, b)| (a.min(min), b.max(max))));
                }
                let (Some((min, max)), Some((id, why))) = (union, leader) else { return Ok(()) };
                let params = symmetry.params(min, max, range).map_err(|source| Error::QParams {
                    tensor: self.name(id).to_owned(),
                    source,
                })?;
                let why = if 1 < n_ranges { Why::Shared(self.name(id).to_owned()) } else { why };
                (params, id, why)
            }
        };
        for &id in group {
            let why = match &why {
                Why::Shared(_) if !self.groups.is_follower(id) => why.clone(),
                _ if id == leader => why.clone(),
                _ => Why::SameAs(self.name(leader).to_owned()),
            };
            let params = Params::PerTensor(params);
            self.activations.insert(id, TensorPlan { of: None, int_type, range, params, why });
        }
        Ok(())
    }

    /// The range of one tensor by itself, and where it is from. `None` if it was not calibrated.
    fn own_range(&self, id: ValueId, goal: &RangeGoal) -> Result<Option<(Bounds, Why)>, Error> {
        let name = self.name(id);
        let calibrator = self.over(id).and_then(|o| o.calibrator);
        if let (Some(&(min, max, op_type)), None) = (self.fixed.get(&id), calibrator) {
            return Ok(Some(((min, max), Why::Fixed(op_type.to_owned()))));
        }
        if self.is_constant(id) {
            let tensor = self.graph.value(id).constant.as_ref().expect("it is constant");
            let values = floats(tensor).expect("its type was checked when it was marked");
            check_finite(name, &values)?;
            let fold = values.iter().fold((0.0_f32, 0.0_f32), |(a, b), &x| (a.min(x), b.max(x)));
            return Ok(Some((fold, Why::Constant)));
        }
        let ranges = self.ranges.expect("the static scheme has them");
        let mut from = name;
        if !ranges.contains(name) {
            // Calibration leaves out what only a clamp uses: beyond the clamp's range its values do not matter.
            let consumer = self.links.only_consumer(id).map(|i| &self.graph.nodes[i]);
            let is_clamp = |n: &Node| {
                find(&n.domain, &n.op_type).is_some_and(|d| matches!(d.role, Role::Clamp { .. }))
            };
            match consumer.filter(|n| is_clamp(n)).and_then(|n| n.output(0)) {
                Some(clamped) if ranges.contains(self.name(clamped)) => from = self.name(clamped),
                _ => return Ok(None),
            }
        }
        let calibrator = calibrator.unwrap_or(self.options.calibrator);
        let range = ranges
            .range(from, &calibrator, goal)
            .map_err(|source| Error::Range { tensor: name.to_owned(), source })?;
        Ok(Some((range, Why::Calibrated(calibrator.def.name.to_owned()))))
    }

    /// Takes out the clamps that the parameters of their producers' outputs imply.
    fn absorb(&mut self) {
        // Which node makes a value and may have its range narrowed.
        let mut maker: HashMap<ValueId, usize> = HashMap::new();
        for i in 0..self.drafts.len() {
            match &self.drafts[i] {
                Draft::Quantized { outputs, is_calibrated: true, .. } => {
                    maker.extend(outputs.iter().flatten().map(|&id| (id, i)));
                }
                &Draft::Clamp { input, output, bounds, is_only_use: true, .. } => {
                    let implied = bounds
                        .is_some_and(|bounds| is_implied(bounds, self.activations.get(&output)));
                    let (Some(&p), true) = (maker.get(&input), implied) else { continue };
                    let label = self.graph.label(&self.graph.nodes[p]).to_owned();
                    if let Draft::Quantized { outputs, .. } = &mut self.drafts[p] {
                        for made in outputs.iter_mut().filter(|made| **made == Some(input)) {
                            *made = Some(output);
                        }
                    }
                    self.drafts[i] = Draft::Done(Decision::Absorbed { into: label });
                    self.marked[input.idx()] = false;
                    maker.insert(output, p);
                }
                Draft::Quantized { .. } | Draft::Clamp { .. } | Draft::Done(_) => {}
            }
        }
    }

    /// Raises weight scales with which a bias would not fit an `i32`. A weight that several nodes use gets the
    /// largest scale that one of them needs. A bias whose scale would be 0 in `f32` stays in float.
    fn raise_for_biases(&mut self) -> Result<(), Error> {
        for draft in &mut self.drafts {
            let Draft::Quantized { inputs, .. } = draft else { continue };
            for operand in inputs {
                let DraftOperand::Bias(bias, input, weight) = *operand else { continue };
                let tensor =
                    self.graph.value(bias).constant.as_ref().expect("only constants are biases");
                let values = floats(tensor).expect("its type was checked");
                let name = self.graph.value_name(bias);
                check_finite(name, &values)?;
                let Params::PerTensor(x) = self.activations[&input].params else {
                    unreachable!("activations are per tensor")
                };
                let set = &mut self.weights[weight];
                if set.symmetry == Symmetry::Symmetric && set.why != Why::Override {
                    set.raise(name, x, &values)?;
                }
                let has_scale = |w: &QParams| bias::bias_scale(x.scale(), w.scale()).is_ok();
                if !set.params.as_slice().iter().all(has_scale) {
                    *operand = DraftOperand::Keep;
                }
            }
        }
        Ok(())
    }

    /// The plan's tables, with names.
    fn finish(self) -> (BTreeMap<String, TensorPlan>, BTreeMap<String, BiasPlan>, Vec<NodePlan>) {
        let mut tensors: BTreeMap<String, TensorPlan> = BTreeMap::new();
        let mut biases: BTreeMap<String, BiasPlan> = BTreeMap::new();
        for id in self.order.iter().filter(|id| self.marked[id.idx()]) {
            tensors.insert(self.name(*id).to_owned(), self.activations[id].clone());
        }
        let graph = self.graph;
        // The constant's own name, or one with a number that neither the model nor the plan has.
        let free = |name: &str, taken: &dyn Fn(&str) -> bool| -> (String, Option<String>) {
            if !taken(name) {
                return (name.to_owned(), None);
            }
            let key = (2..)
                .map(|n| format!("{name}_{n}"))
                .find(|key| !taken(key) && graph.find(key).is_none())
                .expect("there are more numbers than names");
            (key, Some(name.to_owned()))
        };
        let mut weight_keys = Vec::with_capacity(self.weights.len());
        for set in &self.weights {
            let (key, of) = free(graph.value_name(set.value), &|key| tensors.contains_key(key));
            let WeightSet { int_type, range, params, why, .. } = set;
            let tensor = TensorPlan {
                of,
                int_type: *int_type,
                range: *range,
                params: params.clone(),
                why: why.clone(),
            };
            tensors.insert(key.clone(), tensor);
            weight_keys.push(key);
        }
        let mut bias_keys: HashMap<(ValueId, ValueId, usize), String> = HashMap::new();
        let mut nodes = Vec::with_capacity(self.drafts.len());
        for (node, draft) in graph.nodes.iter().zip(self.drafts) {
            let decision = match draft {
                Draft::Done(decision) => decision,
                Draft::Clamp { input, output, n_inputs, .. } => {
                    let mut inputs = vec![Operand::Keep; n_inputs];
                    inputs[0] = Operand::Tensor(graph.value_name(input).to_owned());
                    let outputs = vec![Some(graph.value_name(output).to_owned())];
                    Decision::Quantized { inputs, outputs }
                }
                Draft::Quantized { inputs, outputs, .. } => {
                    let operand = |operand: DraftOperand| match operand {
                        DraftOperand::Keep => Operand::Keep,
                        DraftOperand::Dynamic => Operand::Dynamic,
                        DraftOperand::Activation(id) => {
                            Operand::Tensor(graph.value_name(id).to_owned())
                        }
                        DraftOperand::Weight(w) => Operand::Tensor(weight_keys[w].clone()),
                        DraftOperand::Bias(bias, input, weight) => {
                            let key = bias_keys.entry((bias, input, weight)).or_insert_with(|| {
                                let taken = |key: &str| {
                                    tensors.contains_key(key) || biases.contains_key(key)
                                };
                                let (key, of) = free(graph.value_name(bias), &taken);
                                let input = graph.value_name(input).to_owned();
                                let weight = weight_keys[weight].clone();
                                biases.insert(key.clone(), BiasPlan { of, input, weight });
                                key
                            });
                            Operand::Bias(key.clone())
                        }
                    };
                    let inputs = inputs.into_iter().map(operand).collect();
                    let name = |id: ValueId| graph.value_name(id).to_owned();
                    Decision::Quantized {
                        inputs,
                        outputs: outputs.into_iter().map(|o| o.map(name)).collect(),
                    }
                }
            };
            nodes.push(NodePlan {
                node: graph.label(node).to_owned(),
                op_type: node.op_type.clone(),
                decision,
            });
        }
        (tensors, biases, nodes)
    }
}

/// The role of input `k`: the last one's for those past the end.
fn role_of(roles: &[InputRole], k: usize) -> Option<InputRole> {
    roles.get(k).or(roles.last()).copied()
}

/// Whether quantizing to these parameters clamps to the bounds by itself: no level lies more than half a step
/// outside, which is as near as levels can come.
fn is_implied((min, max): (f32, f32), plan: Option<&TensorPlan>) -> bool {
    let Some(TensorPlan { params: Params::PerTensor(params), range, .. }) = plan else {
        return false;
    };
    let (lo, hi) = params.real_range(*range);
    let half = 0.5 * params.scale();
    min - half <= lo && hi <= max + half
}

/// The axis along which a bias of these sizes has its scales: `Some(None)` for one scale, `None` if the sizes and the
/// weight's channels do not fit together.
pub(crate) fn bias_axis(dims: &[usize], weight: &Params) -> Option<Option<usize>> {
    match weight {
        Params::PerTensor(_) => Some(None),
        Params::PerAxis { params, .. } => {
            let last = dims.len().checked_sub(1)?;
            let fits = dims[last] == params.len() && dims[..last].iter().all(|&d| d == 1);
            fits.then_some(Some(last))
        }
        Params::Blocked { .. } => None,
    }
}

#[cfg(test)]
mod tests;
