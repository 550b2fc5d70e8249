//! The default operator set is brought to a newer version.
//!
//! A quantized model needs 10 for `QuantizeLinear`, 13 for scales per channel, 21 for 16-bit and 4-bit integers and
//! for blocks. The whole model changes, or nothing does: an operator that cannot be converted is named.
//!
//! [`CHANGES`] lists every change of an operator's form or meaning from version 8 to [`NEWEST`]. Every other new
//! version of an operator allows more types or has an attribute more, whose default is what the operator did before
//! (compared with the schemas of onnx 1.23.2).

use midtread_graph::{AttrValue, DataType, Graph, Model, Node, Rewrite, Tensor, ValueId};

use crate::{
    error::Error,
    prepare::{Change, Ctx, PassDef, Skip},
};

/// See the module.
pub static DEF: PassDef = PassDef {
    name: "upgrade_opset",
    summary: "operators are brought to the version of the operator set that is asked for",
    is_default: true,
    run,
};

/// The newest version this program upgrades to.
pub const NEWEST: i64 = 25;

/// The oldest version this program upgrades from.
pub const OLDEST: i64 = 7;

fn run(model: &mut Model, ctx: &mut Ctx<'_>) -> Result<(), Error> {
    let Some(target) = ctx.options.opset else { return Ok(()) };
    match upgrade(model, target) {
        Ok(changes) => changes.into_iter().for_each(|c| ctx.change(&c.at, c.what)),
        Err(skips) => skips.into_iter().for_each(|s| ctx.skip(&s.at, s.because)),
    }
    Ok(())
}

/// Brings the default operator set of the model to `target` if it is older, and the IR version to one that may have
/// it. Fails, and changes nothing, where a node cannot be converted.
pub fn upgrade(model: &mut Model, target: i64) -> Result<Vec<Change>, Vec<Skip>> {
    let refuse = |at: &str, because: String| Skip { at: at.to_owned(), because: because.into() };
    let name = model.graph.name.clone();
    let Some(from) = model.opset("") else { return Ok(Vec::new()) };
    if target <= from {
        return Ok(Vec::new());
    }
    if from < OLDEST || NEWEST < target {
        let because = format!(
            "operator sets are upgraded from {OLDEST} to {NEWEST}, not from {from} to {target}"
        );
        return Err(vec![refuse(&name, because)]);
    }
    if !model.functions.is_empty() {
        return Err(vec![refuse(
            &name,
            "it has functions, with operator sets of their own".to_owned(),
        )]);
    }

    let mut walk = Walk { from, target, skips: Vec::new(), changes: Vec::new() };
    let graph = walk.graph(model.graph.clone(), String::new());
    let Walk { skips, mut changes, .. } = walk;
    if !skips.is_empty() {
        return Err(skips);
    }
    model.graph = graph;
    model.set_opset("", target);
    model.ir_version = model.ir_version.max(ir_version(target));
    let what = format!("imports operator set {target} instead of {from}");
    changes.push(Change { at: name, what: what.into() });
    Ok(changes)
}

/// A walk over a graph and those in its nodes.
struct Walk {
    from: i64,
    target: i64,
    skips: Vec<Skip>,
    changes: Vec<Change>,
}

impl Walk {
    /// The graph, converted as far as it can be. New names begin with `prefix`: a body's must differ from those of the
    /// graphs around it.
    fn graph(&mut self, graph: Graph, prefix: String) -> Graph {
        let (from, target) = (self.from, self.target);
        let mut upgrade = Upgrade { graph, rewrite: Rewrite::default(), node: 0, target, prefix };
        for i in 0..upgrade.graph.nodes.len() {
            upgrade.node = i;
            let node = &upgrade.graph.nodes[i];
            let (label, op_type) = (upgrade.graph.label(node).to_owned(), node.op_type.clone());
            let prefix = format!("{}{label}/", upgrade.prefix);
            let mut attrs = std::mem::take(&mut upgrade.graph.nodes[i].attrs);
            for attr in &mut attrs {
                match &mut attr.value {
                    AttrValue::Graph(body) => {
                        **body = self.graph(std::mem::take(&mut **body), prefix.clone());
                    }
                    AttrValue::Graphs(bodies) => bodies.iter_mut().for_each(|body| {
                        *body = self.graph(std::mem::take(body), prefix.clone());
                    }),
                    _ => {}
                }
            }
            upgrade.graph.nodes[i].attrs = attrs;
            let node = &upgrade.graph.nodes[i];
            if !midtread_graph::model::canonical_domain(&node.domain).is_empty() {
                continue;
            }
            let mut refuse = |because: String| {
                self.skips.push(Skip { at: label.clone(), because: because.into() });
            };
            let is_known = midtread_ops::find("", &op_type).is_some()
                || CHANGES.iter().any(|c| c.op_types.contains(&&*op_type));
            if !is_known {
                refuse(format!("operator {op_type} is not supported"));
                continue;
            }
            for change in CHANGES.iter().filter(|c| from < c.version && c.version <= target) {
                // A conversion may rename the operator (Upsample).
                let op_type = upgrade.graph.nodes[i].op_type.as_str();
                if !change.op_types.contains(&op_type) {
                    continue;
                }
                let what = format!("has the form of {op_type}-{}", change.version);
                match (change.convert)(&mut upgrade) {
                    Ok(true) => self.changes.push(Change { at: label.clone(), what: what.into() }),
                    Ok(false) => {}
                    Err(because) => refuse(because),
                }
            }
        }
        let Upgrade { mut graph, rewrite, .. } = upgrade;
        rewrite.apply(&mut graph);
        graph
    }
}

/// The oldest IR version that may import the version of the default operator set (onnx, `helper.py`).
pub fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=8 => 3,
        9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19 | 20 => 9,
        21 | 22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

/// A version that changed the form or the meaning of operators.
struct OpChange {
    version: i64,
    op_types: &'static [&'static str],
    /// Converts the node; `false` where it stays as it is.
    convert: fn(&mut Upgrade) -> Result<bool, String>,
}

const fn change(
    version: i64,
    op_types: &'static [&'static str],
    convert: fn(&mut Upgrade) -> Result<bool, String>,
) -> OpChange {
    OpChange { version, op_types, convert }
}

const REDUCE: &[&str] = &[
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
];

/// Ascending by version.
static CHANGES: &[OpChange] = &[
    change(9, &["BatchNormalization"], |u| match u.take_attr("spatial") {
        None => Ok(false),
        Some(AttrValue::Int(1)) => Ok(true),
        Some(_) => Err("it does not normalize per channel".to_owned()),
    }),
    change(9, &["Scan"], |_| Err("its subgraph has another form".to_owned())),
    change(10, &["Upsample"], upsample_to_resize),
    change(10, &["Slice"], |u| {
        u.ints_to_input("starts", 1)?;
        u.ints_to_input("ends", 2)?;
        u.ints_to_input("axes", 3)
    }),
    change(10, &["TopK"], |u| match u.take_attr("k") {
        Some(AttrValue::Int(k)) => u.set_input(1, "k", Tensor::vector(&[k])),
        _ => Err("it has no `k`".to_owned()),
    }),
    change(10, &["Dropout"], |u| {
        u.outputs_unused(1, "the type of its mask has changed")?;
        Ok(false)
    }),
    change(11, &["Clip"], |u| {
        let mut is_changed = false;
        for (i, name) in ["min", "max"].into_iter().enumerate() {
            if let Some(value) = u.take_attr(name) {
                let bound = u.float_like_input(value)?;
                is_changed |= u.set_input(i + 1, name, bound)?;
            }
        }
        Ok(is_changed)
    }),
    change(11, &["Pad"], |u| {
        u.ints_to_input("pads", 1)?;
        if let Some(value) = u.take_attr("value") {
            let value = u.float_like_input(value)?;
            u.set_input(2, "value", value)?;
        }
        Ok(true)
    }),
    change(11, &["Resize"], resize_11),
    change(11, &["Scatter"], |u| {
        u.node_mut().op_type = "ScatterElements".to_owned();
        Ok(true)
    }),
    change(12, &["Dropout"], |u| {
        // It only matters in training, which no version before 12 could ask for.
        Ok(u.take_attr("ratio").is_some())
    }),
    change(13, &["Softmax", "LogSoftmax", "Hardmax"], softmax_13),
    change(13, &["Squeeze", "Unsqueeze", "ReduceSum"], |u| u.ints_to_input("axes", 1)),
    change(13, &["Split"], |u| u.ints_to_input("split", 1)),
    change(13, &["Resize"], |u| match u.node().str("coordinate_transformation_mode") {
        Some("tf_half_pixel_for_nn") => {
            Err("Resize has no `tf_half_pixel_for_nn` any more since version 13".to_owned())
        }
        _ => Ok(false),
    }),
    change(14, &["BatchNormalization"], |u| {
        u.outputs_unused(1, "it is in training mode")?;
        Ok(false)
    }),
    change(16, &["RoiAlign"], |u| {
        let mode = AttrValue::String("output_half_pixel".into());
        u.node_mut().set_attr("coordinate_transformation_mode", mode);
        Ok(true)
    }),
    change(18, REDUCE, |u| u.ints_to_input("axes", 1)),
    change(18, &["Split"], |u| {
        if u.node().input(1).is_some() {
            return Ok(false);
        }
        let n = i64::try_from(u.node().outputs.len()).unwrap_or(i64::MAX);
        u.node_mut().set_attr("num_outputs", AttrValue::Int(n));
        Ok(true)
    }),
    change(19, &["AveragePool"], |u| match u.node().int("ceil_mode").unwrap_or(0) {
        0 => Ok(false),
        _ => {
            Err("windows that begin in the padding count otherwise since AveragePool-19".to_owned())
        }
    }),
    change(20, &["DFT"], |u| {
        let axis = match u.take_attr("axis") {
            Some(AttrValue::Int(axis)) => axis,
            // The default was 1, and is -2.
            _ => 1,
        };
        u.set_input(2, "axis", Tensor::scalar(axis))
    }),
    change(20, &["GridSample"], |u| {
        let mode = match u.node().str("mode") {
            None | Some("bilinear") => "linear",
            Some("bicubic") => "cubic",
            Some(_) => return Ok(false),
        };
        u.node_mut().set_attr("mode", AttrValue::String(mode.into()));
        Ok(true)
    }),
    change(21, &["GroupNormalization"], group_norm_21),
];

/// A graph while it is converted, and the node that is.
struct Upgrade {
    graph: Graph,
    rewrite: Rewrite,
    node: usize,
    target: i64,
    /// What new names begin with.
    prefix: String,
}

impl Upgrade {
    fn node(&self) -> &Node {
        &self.graph.nodes[self.node]
    }

    fn node_mut(&mut self) -> &mut Node {
        &mut self.graph.nodes[self.node]
    }

    fn take_attr(&mut self, name: &str) -> Option<AttrValue> {
        let attrs = &mut self.node_mut().attrs;
        let i = attrs.iter().position(|a| a.name == name)?;
        Some(attrs.remove(i).value)
    }

    fn set_input(&mut self, i: usize, what: &str, tensor: Tensor) -> Result<bool, String> {
        let name = format!("{}{}_{what}", self.prefix, self.graph.label(self.node()));
        let id = self.graph.add_constant(&name, tensor);
        let inputs = &mut self.node_mut().inputs;
        if inputs.len() <= i {
            inputs.resize(i + 1, None);
        }
        inputs[i] = Some(id);
        Ok(true)
    }

    fn ints_to_input(&mut self, name: &str, i: usize) -> Result<bool, String> {
        match self.take_attr(name) {
            None => Ok(false),
            Some(AttrValue::Ints(ints)) => self.set_input(i, name, Tensor::vector(&ints)),
            Some(_) => Err(format!("`{name}` is not a list of integers")),
        }
    }

    /// A float attribute as a scalar of input 0's type.
    fn float_like_input(&self, value: AttrValue) -> Result<Tensor, String> {
        let AttrValue::Float(value) = value else {
            return Err("a bound is not a number".to_owned());
        };
        let elem = self.node().input(0).and_then(|id| self.graph.type_of(id)?.elem());
        match elem {
            Some(DataType::Float) => Ok(Tensor::scalar(value)),
            Some(DataType::Double) => Ok(Tensor::scalar(f64::from(value))),
            Some(elem) => Err(format!("a bound of type {elem} is not supported")),
            None => Err("the type of its input is not known".to_owned()),
        }
    }

    fn outputs_unused(&self, from: usize, because: &str) -> Result<(), String> {
        match self.node().outputs.iter().skip(from).any(Option::is_some) {
            true => Err(because.to_owned()),
            false => Ok(()),
        }
    }

    fn fresh(&mut self, what: &str) -> ValueId {
        let name = format!("{}{}_{what}", self.prefix, self.graph.label(self.node()));
        self.graph.fresh(&name)
    }
}

/// Before version 13, everything from `axis` on was one axis.
fn softmax_13(u: &mut Upgrade) -> Result<bool, String> {
    let axis = u.node().int("axis").unwrap_or(1);
    let (Some(x), Some(y)) = (u.node().input(0), u.node().output(0)) else {
        return Err("it has no input or output".to_owned());
    };
    let rank = u.graph.type_of(x).and_then(|ty| ty.dims().map(<[_]>::len));
    let is_last =
        rank.is_some_and(|rank| axis == -1 || usize::try_from(axis).is_ok_and(|a| a + 1 == rank));
    u.node_mut().set_attr("axis", AttrValue::Int(-1));
    if is_last || axis == -1 {
        return Ok(true);
    }
    let [flat, soft, shape] = ["flat", "soft", "shape"].map(|what| u.fresh(what));
    let name = u.graph.label(u.node()).to_owned();
    let node = u.node_mut();
    node.inputs[0] = Some(flat);
    node.outputs[0] = Some(soft);
    let i = u.node;
    let flatten = Node::new("Flatten", &format!("{name}_flatten"), [x], [flat]);
    u.rewrite.insert_before(i, flatten.with_attr("axis", AttrValue::Int(axis)));
    u.rewrite.insert_after(i, Node::new("Shape", &format!("{name}_shape"), [x], [shape]));
    u.rewrite.insert_after(i, Node::new("Reshape", &format!("{name}_reshape"), [soft, shape], [y]));
    Ok(true)
}

/// `Upsample` is a `Resize-11` whose pixels lie at multiples of the scale, rounded down.
fn upsample_to_resize(u: &mut Upgrade) -> Result<bool, String> {
    if u.target < 11 {
        return Err("Upsample is converted to operator set 11 or later".to_owned());
    }
    match (u.take_attr("scales"), u.node().input(1)) {
        (Some(AttrValue::Floats(scales)), _) => {
            u.set_input(2, "scales", Tensor::vector(&scales))?;
        }
        (None, Some(scales)) => {
            let inputs = &mut u.node_mut().inputs;
            inputs.resize(3, None);
            inputs[2] = Some(scales);
        }
        _ => return Err("it has no `scales`".to_owned()),
    }
    let roi = u.fresh("roi");
    u.graph.set_constant(roi, Tensor::vector::<f32>(&[]));
    let node = u.node_mut();
    node.op_type = "Resize".to_owned();
    node.inputs[1] = Some(roi);
    node.set_attr("coordinate_transformation_mode", AttrValue::String("asymmetric".into()));
    node.set_attr("nearest_mode", AttrValue::String("floor".into()));
    Ok(true)
}

/// Resize-10 takes pixels at multiples of the scale; the nearest one by cutting off where the picture grows, and the next
/// one where it shrinks (ONNX Runtime; the specification did not say).
fn resize_11(u: &mut Upgrade) -> Result<bool, String> {
    // A Resize that was an Upsample has its new form already.
    if u.node().attr("coordinate_transformation_mode").is_some() {
        return Ok(false);
    }
    let Some(scales) = u.node().input(1) else { return Err("it has no `scales`".to_owned()) };
    let nearest = match u.node().str("mode") {
        Some("linear") => None,
        _ => {
            let constant = u.graph.constant(scales).and_then(|t| t.to_vec::<f32>().ok());
            let scales = constant.ok_or("its `scales` are not constant")?;
            match (scales.iter().all(|&s| 1.0 <= s), scales.iter().all(|&s| s <= 1.0)) {
                (true, _) => Some("floor"),
                (false, true) => Some("ceil"),
                (false, false) => {
                    return Err("it makes one side larger and another smaller".to_owned());
                }
            }
        }
    };
    let roi = u.fresh("roi");
    u.graph.set_constant(roi, Tensor::vector::<f32>(&[]));
    let node = u.node_mut();
    node.inputs = vec![node.inputs[0], Some(roi), Some(scales)];
    node.set_attr("coordinate_transformation_mode", AttrValue::String("asymmetric".into()));
    if let Some(mode) = nearest {
        node.set_attr("nearest_mode", AttrValue::String(mode.into()));
    }
    Ok(true)
}

/// A scale and a bias per channel, which were per group: each is repeated for the channels of its group.
fn group_norm_21(u: &mut Upgrade) -> Result<bool, String> {
    let node = u.node();
    let groups = node.int("num_groups").and_then(|n| usize::try_from(n).ok()).filter(|&n| 0 < n);
    let groups = groups.ok_or("it has no `num_groups`")?;
    let channels = node.input(0).and_then(|x| u.graph.type_of(x)?.dims()?.get(1)?.known());
    let channels = channels.ok_or("the number of its channels is not known")?;
    if channels % groups != 0 {
        return Err(format!("{channels} channels do not divide into {groups} groups"));
    }
    for (i, what) in [(1, "scale"), (2, "bias")] {
        let id = u.node().input(i).ok_or_else(|| format!("it has no `{what}`"))?;
        // One row a group, as wide as the group, and flat again.
        let [column, wide, flat] =
            ["column", "wide", "per_channel"].map(|step| u.fresh(&format!("{what}_{step}")));
        let name = format!("{}{}_{what}", u.prefix, u.graph.label(u.node()));
        let mut constant = |step: &str, ints: &[i64]| {
            u.graph.add_constant(&format!("{name}_{step}"), Tensor::vector(ints))
        };
        let (n, size) = (groups as i64, (channels / groups) as i64);
        let (rows, sizes, all) = (
            constant("rows", &[n, 1]),
            constant("sizes", &[n, size]),
            constant("channels", &[n * size]),
        );
        let at = u.node;
        let nodes = [
            Node::new("Reshape", &format!("{name}_reshape"), [id, rows], [column]),
            Node::new("Expand", &format!("{name}_expand"), [column, sizes], [wide]),
            Node::new("Reshape", &format!("{name}_flatten"), [wide, all], [flat]),
        ];
        nodes.into_iter().for_each(|node| u.rewrite.insert_before(at, node));
        u.node_mut().inputs[i] = Some(flat);
    }
    Ok(true)
}
