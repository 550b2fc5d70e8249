//! Plans as text: JSON lines, one tensor (bias, node) a line, tensors sorted by name, so that `git diff` shows what
//! changed and a scale can be edited by hand. Scales are written with the fewest digits that give the same `f32`.

use std::collections::BTreeMap;

use midtread_num::{Granularity, QParams, QRange, Span};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::Error,
    plan::{BiasPlan, Decision, IntType, NodePlan, Operand, Params, Plan, TensorPlan, Why},
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderLine {
    midtread_plan: u32,
    model: String,
    scheme: String,
    target: String,
    io: String,
    options: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorLine {
    tensor: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    #[serde(rename = "type")]
    int_type: String,
    qmin: i32,
    qmax: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    axis: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    block_size: Option<std::num::NonZero<usize>>,
    scale: OneOrMany<f32>,
    zero_point: OneOrMany<i32>,
    why: String,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BiasLine {
    bias: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    input: String,
    weight: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeLine {
    node: String,
    op_type: String,
    status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inputs: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outputs: Option<Vec<Option<String>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    into: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The version of the text that this program writes and reads.
const VERSION: u32 = 1;

impl Plan {
    /// As text. The same plan gives the same text.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: &dyn erased::Line| {
            text.push_str(&line.json());
            text.push('\n');
        };
        line(&HeaderLine {
            midtread_plan: VERSION,
            model: self.model.clone(),
            scheme: self.scheme.to_string(),
            target: self.target.clone(),
            io: self.io.to_string(),
            options: self.options.clone(),
        });
        for (name, tensor) in &self.tensors {
            line(&tensor_line(name, tensor));
        }
        for (name, bias) in &self.biases {
            let BiasPlan { of, input, weight } = bias.clone();
            line(&BiasLine { bias: name.clone(), of, input, weight });
        }
        for node in &self.nodes {
            line(&node_line(node));
        }
        text
    }

    /// From text, every value checked.
    pub fn from_text(text: &str) -> Result<Self, Error> {
        let mut plan: Option<Self> = None;
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let added = match &mut plan {
                None => read_header(line).map(|read| plan = Some(read)),
                Some(plan) => plan.read_line(line),
            };
            added.map_err(|problem| Error::File {
                file: "plan".to_owned(),
                line: Some(i + 1),
                problem,
            })?;
        }
        let bad = |problem: String| Error::File { file: "plan".to_owned(), line: None, problem };
        let plan = plan.ok_or_else(|| bad("it is empty".to_owned()))?;
        plan.check_references().map_err(bad)?;
        Ok(plan)
    }

    fn read_line(&mut self, line: &str) -> Result<(), String> {
        let value: Value = serde_json::from_str(line).map_err(|err| err.to_string())?;
        let has = |key: &str| value.get(key).is_some();
        if has("tensor") {
            let (name, tensor) = read_tensor(read(value)?)?;
            let message = format!("tensor `{name}` is there twice");
            return self.tensors.insert(name, tensor).map_or(Ok(()), |_| Err(message));
        }
        if has("bias") {
            let BiasLine { bias, of, input, weight } = read(value)?;
            let message = format!("bias `{bias}` is there twice");
            return self
                .biases
                .insert(bias, BiasPlan { of, input, weight })
                .map_or(Ok(()), |_| Err(message));
        }
        if has("node") {
            self.nodes.push(read_node(read(value)?)?);
            return Ok(());
        }
        Err("a line is about a `tensor`, a `bias` or a `node`".to_owned())
    }

    /// Every name that a line uses is one that another line defines.
    fn check_references(&self) -> Result<(), String> {
        let tensor = |name: &String| match self.tensors.contains_key(name) {
            true => Ok(()),
            false => Err(format!("tensor `{name}` is used and has no line")),
        };
        for (name, bias) in &self.biases {
            tensor(&bias.input)?;
            tensor(&bias.weight)?;
            if !matches!(self.tensors[&bias.input].params, Params::PerTensor(_)) {
                return Err(format!("the input of bias `{name}` is not per tensor"));
            }
            if matches!(self.tensors[&bias.weight].params, Params::Blocked { .. }) {
                return Err(format!("the weight of bias `{name}` is blocked"));
            }
        }
        for node in &self.nodes {
            let Decision::Quantized { inputs, outputs } = &node.decision else { continue };
            for operand in inputs {
                match operand {
                    Operand::Tensor(name) => tensor(name)?,
                    Operand::Bias(name) if !self.biases.contains_key(name) => {
                        return Err(format!("bias `{name}` is used and has no line"));
                    }
                    Operand::Bias(_) | Operand::Keep | Operand::Dynamic => {}
                }
            }
            outputs.iter().flatten().try_for_each(tensor)?;
        }
        Ok(())
    }
}

/// A line without its type.
mod erased {
    pub(super) trait Line {
        fn json(&self) -> String;
    }

    impl<T: serde::Serialize> Line for T {
        fn json(&self) -> String {
            serde_json::to_string(self).expect("strings and finite numbers can be written")
        }
    }
}

fn read<T: for<'a> Deserialize<'a>>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|err| err.to_string())
}

fn read_header(line: &str) -> Result<Plan, String> {
    let value: Value = serde_json::from_str(line).map_err(|err| err.to_string())?;
    match value.get("midtread_plan").and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => {
            return Err(format!("version {version} of plans is not known, only {VERSION}"));
        }
        None => return Err("it does not begin with `midtread_plan`".to_owned()),
    }
    let HeaderLine { model, scheme, target, io, options, .. } = read(value)?;
    Ok(Plan {
        model,
        scheme: scheme.parse()?,
        target,
        io: io.parse()?,
        options,
        tensors: BTreeMap::new(),
        biases: BTreeMap::new(),
        nodes: Vec::new(),
    })
}

fn tensor_line(name: &str, tensor: &TensorPlan) -> TensorLine {
    let params = tensor.params.as_slice();
    let (axis, block_size) = match tensor.params.granularity() {
        Granularity::PerTensor => (None, None),
        Granularity::PerAxis { axis } => (Some(axis), None),
        Granularity::Blocked { axis, block_size } => (Some(axis), Some(block_size)),
    };
    let zero_point = match params {
        // One number stands for all: symmetric weights have thousands of equal ones.
        [first, rest @ ..] if rest.iter().all(|p| p.zero_point() == first.zero_point()) => {
            OneOrMany::One(first.zero_point())
        }
        _ => OneOrMany::Many(params.iter().map(|p| p.zero_point()).collect()),
    };
    let scale = match (axis, params) {
        (None, [one]) => OneOrMany::One(one.scale()),
        _ => OneOrMany::Many(params.iter().map(|p| p.scale()).collect()),
    };
    TensorLine {
        tensor: name.to_owned(),
        of: tensor.of.clone(),
        int_type: tensor.int_type.name().to_owned(),
        qmin: tensor.range.qmin(),
        qmax: tensor.range.qmax(),
        axis,
        block_size,
        scale,
        zero_point,
        why: tensor.why.to_string(),
    }
}

fn read_tensor(line: TensorLine) -> Result<(String, TensorPlan), String> {
    let TensorLine { tensor, of, int_type, qmin, qmax, axis, block_size, scale, zero_point, why } =
        line;
    let about = |problem: String| format!("tensor `{tensor}`: {problem}");
    let int_type: IntType = int_type.parse().map_err(about)?;
    let range = QRange::new(qmin, qmax).map_err(|err| about(err.to_string()))?;
    let whole = int_type.range(Span::Full);
    if !range.is_within(whole) {
        return Err(about(format!("{range} is not within {whole}, the integers of {int_type}")));
    }
    let granularity = match (axis, block_size) {
        (None, None) => Granularity::PerTensor,
        (Some(axis), None) => Granularity::PerAxis { axis },
        (Some(axis), Some(block_size)) => Granularity::Blocked { axis, block_size },
        (None, Some(_)) => return Err(about("`block_size` needs an `axis`".to_owned())),
    };
    let scales = match scale {
        OneOrMany::One(scale) => vec![scale],
        OneOrMany::Many(scales) => scales,
    };
    let zero_points = match zero_point {
        OneOrMany::One(zero_point) => vec![zero_point; scales.len()],
        OneOrMany::Many(zero_points) => zero_points,
    };
    if scales.len() != zero_points.len() {
        let counts = format!("{} scales and {} zero points", scales.len(), zero_points.len());
        return Err(about(counts));
    }
    let params: Result<Vec<QParams>, _> =
        scales.iter().zip(&zero_points).map(|(&s, &z)| QParams::new(s, z, range)).collect();
    let params = params.map_err(|err| about(err.to_string()))?;
    let params = Params::from_parts(granularity, params)
        .ok_or_else(|| about("a tensor without `axis` has one scale".to_owned()))?;
    let why = read_why(&why).ok_or_else(|| about(format!("`{why}` is not a reason")))?;
    Ok((tensor, TensorPlan { of, int_type, range, params, why }))
}

fn read_why(text: &str) -> Option<Why> {
    match text {
        "constant" => return Some(Why::Constant),
        "override" => return Some(Why::Override),
        "trained" => return Some(Why::Trained),
        _ => {}
    }
    let (kind, name) = text.split_once(": ")?;
    let name = name.to_owned();
    Some(match kind {
        "calibrated" => Why::Calibrated(name),
        "shared" => Why::Shared(name),
        "constant, raised for bias" => Why::RaisedForBias(name),
        "same as" => Why::SameAs(name),
        "fixed" => Why::Fixed(name),
        _ => return None,
    })
}

fn node_line(node: &NodePlan) -> NodeLine {
    let mut line = NodeLine {
        node: node.node.clone(),
        op_type: node.op_type.clone(),
        status: node.decision.status().to_owned(),
        inputs: None,
        outputs: None,
        into: None,
        reason: None,
    };
    match &node.decision {
        Decision::Quantized { inputs, outputs } => {
            let operand = |operand: &Operand| match operand {
                Operand::Keep => "keep".to_owned(),
                Operand::Dynamic => "dynamic".to_owned(),
                Operand::Tensor(name) => format!("tensor:{name}"),
                Operand::Bias(name) => format!("bias:{name}"),
            };
            line.inputs = Some(inputs.iter().map(operand).collect());
            line.outputs = Some(outputs.clone());
        }
        Decision::Absorbed { into } => line.into = Some(into.clone()),
        Decision::Float { reason } => line.reason = Some(reason.clone()),
        Decision::Structural => {}
    }
    line
}

fn read_node(line: NodeLine) -> Result<NodePlan, String> {
    let NodeLine { node, op_type, status, inputs, outputs, into, reason } = line;
    let operand = |text: String| match text.split_once(':') {
        Some(("tensor", name)) => Ok(Operand::Tensor(name.to_owned())),
        Some(("bias", name)) => Ok(Operand::Bias(name.to_owned())),
        None if text == "keep" => Ok(Operand::Keep),
        None if text == "dynamic" => Ok(Operand::Dynamic),
        _ => Err(format!("node `{node}`: `{text}` is not tensor:NAME, bias:NAME, dynamic or keep")),
    };
    let decision = match (status.as_str(), inputs, outputs, into, reason) {
        ("quantized", Some(inputs), Some(outputs), None, None) => {
            let inputs = inputs.into_iter().map(operand).collect::<Result<_, _>>()?;
            Decision::Quantized { inputs, outputs }
        }
        ("absorbed", None, None, Some(into), None) => Decision::Absorbed { into },
        ("float", None, None, None, Some(reason)) => Decision::Float { reason },
        ("structural", None, None, None, None) => Decision::Structural,
        _ => {
            return Err(format!(
                "node `{node}`: a quantized one has `inputs` and `outputs`, an absorbed one `into`, one in float a \
                 `reason`, and a structural one none of them"
            ));
        }
    };
    Ok(NodePlan { node, op_type, decision })
}
