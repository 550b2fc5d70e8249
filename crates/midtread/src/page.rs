//! What a page of the report shows, gathered from a model, its plan, its statistics and what came of comparing.

use std::collections::BTreeMap;

use midtread_compare::{Comparison, Kind, Sensitivity, run::weight_axis};
use midtread_graph::{Graph, Model, Node, ValueId};
use midtread_num::{QParams, QRange};
use midtread_quant::{
    Plan, Stats,
    calibrate::{CALIBRATORS, Calibrator, RangeGoal, TensorStats, histogram::bins},
    plan::{Params, TensorPlan, Why, constants::floats},
};
use midtread_report::page::{
    Convergence, Group, NodeRow, Page, Profile, TensorRow, Threshold, WeightMap, WeightRow,
};

/// Where a page's data comes from; what is `None` is not shown.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The float model whose values were measured and compared.
    pub model: &'a Model,
    /// What was decided about it.
    pub plan: Option<&'a Plan>,
    /// What values its tensors take; with histograms, if those are to be drawn.
    pub stats: Option<&'a Stats>,
    /// It and the quantized model.
    pub comparison: Option<&'a Comparison>,
    /// Each layer alone.
    pub sensitivity: Option<&'a Sensitivity>,
}

/// A page of all that the sources tell. Variants, steps and the manifest are the caller's to add.
pub fn page(title: &str, subtitle: &str, from: &Sources<'_>) -> Page {
    let json = |value: serde_json::Result<serde_json::Value>| value.expect("plain data");
    Page {
        title: title.to_owned(),
        subtitle: subtitle.to_owned(),
        nodes: nodes(from),
        tensors: from.plan.map(tensors).unwrap_or_default(),
        profiles: profiles(from),
        weights: weights(from),
        comparison: from.comparison.map(|c| json(serde_json::to_value(c))),
        sensitivity: from.sensitivity.map(|s| json(serde_json::to_value(s))),
        convergence: from.stats.and_then(convergence),
        manifest: manifest(from),
        ..Page::default()
    }
}

/// Every node, and what became of it.
fn nodes(from: &Sources<'_>) -> Vec<NodeRow> {
    let graph = &from.model.graph;
    let names = |ids: Vec<ValueId>| ids.iter().map(|&id| graph.value_name(id).to_owned()).collect();
    let row = |(i, node): (usize, &Node)| {
        let label = graph.label(node).to_owned();
        let inputs = || node.inputs.iter().flatten().copied();
        let outputs: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
        let (status, reason) = match from.plan.and_then(|plan| plan.nodes.get(i)) {
            Some(plan) => (plan.decision.status(), plan.decision.reason().unwrap_or_default()),
            None => status(from, &label, &outputs),
        };
        let ty = outputs.first().and_then(|&id| graph.type_of(id));
        let dims = ty.as_ref().and_then(|ty| ty.dims());
        let shape = dims.map(|dims| dims.iter().map(|d| d.to_string()).collect::<Vec<_>>());
        NodeRow {
            name: label,
            op_type: node.op_type.clone(),
            status: status.to_owned(),
            reason,
            inputs: names(inputs().filter(|&id| graph.constant(id).is_none()).collect()),
            constants: names(inputs().filter(|&id| graph.constant(id).is_some()).collect()),
            outputs: names(outputs),
            shape: shape.unwrap_or_default().join("x"),
            macs: macs(graph, node),
        }
    };
    graph.nodes.iter().enumerate().map(row).collect()
}

/// What became of a node of a model that somebody else quantized.
fn status(from: &Sources<'_>, label: &str, outputs: &[ValueId]) -> (&'static str, String) {
    let Some(comparison) = from.comparison else { return ("float", String::new()) };
    let of_node = || comparison.tensors.iter().filter(|t| t.node == label);
    if of_node().any(|t| t.dtype.is_some() && t.kind != Kind::Bias) {
        return ("quantized", String::new());
    }
    let is_missing = |id: &ValueId| {
        let name = from.model.graph.value_name(*id);
        comparison.unmatched.iter().any(|u| u.name == name)
    };
    match outputs.iter().any(is_missing) {
        true => ("absorbed", "the quantized model has no such value".to_owned()),
        false => ("float", String::new()),
    }
}

/// Multiplications for one sample; sizes that the model leaves open count as 1.
pub(crate) fn macs(graph: &Graph, node: &Node) -> Option<u64> {
    let dims = |id: Option<ValueId>| -> Option<Vec<u64>> {
        let ty = graph.type_of(id?)?;
        Some(ty.dims()?.iter().map(|d| d.known().map_or(1, |n| n as u64)).collect())
    };
    let product = |dims: &[u64]| dims.iter().product::<u64>();
    let (x, w, out) = (dims(node.input(0)), dims(node.input(1)), dims(node.output(0)));
    match node.op_type.as_str() {
        // Each output is a sum over one filter; each input of a transposed one goes into all of its filter.
        "Conv" => Some(product(&out?) * product(w.as_ref()?.get(1..)?)),
        "ConvTranspose" => Some(product(&x?) * product(w.as_ref()?.get(1..)?)),
        "MatMul" => Some(product(&out?) * x?.last()?),
        "Gemm" => Some(product(&out?) * product(w.as_ref()?) / out_channels(node, w.as_ref()?)?),
        _ => None,
    }
}

fn out_channels(gemm: &Node, weight: &[u64]) -> Option<u64> {
    let at = if gemm.int("transB").unwrap_or(0) != 0 { 0 } else { 1 };
    weight.get(at).copied().filter(|&n| n != 0)
}

/// How every tensor of a plan is quantized.
fn tensors(plan: &Plan) -> BTreeMap<String, TensorRow> {
    plan.tensors.iter().map(|(name, tensor)| (name.clone(), tensor_row(tensor))).collect()
}

fn tensor_row(plan: &TensorPlan) -> TensorRow {
    let params = plan.params.as_slice();
    let form = match &plan.params {
        Params::PerTensor(_) => "",
        Params::PerAxis { .. } => " per channel",
        Params::Blocked { .. } => " blocked",
    };
    let span = |text: &dyn Fn(&QParams) -> String, lo: &QParams, hi: &QParams| {
        let (lo, hi) = (text(lo), text(hi));
        if lo == hi { lo } else { format!("{lo} … {hi}") }
    };
    let by_scale = |a: &&QParams, b: &&QParams| a.scale().total_cmp(&b.scale());
    let by_zero = |p: &&QParams| p.zero_point();
    let scale = match (params.iter().min_by(by_scale), params.iter().max_by(by_scale)) {
        (Some(lo), Some(hi)) => span(&|p| format!("{:.3e}", p.scale()), lo, hi),
        _ => String::new(),
    };
    let zero_point = match (params.iter().min_by_key(by_zero), params.iter().max_by_key(by_zero)) {
        (Some(lo), Some(hi)) => span(&|p| p.zero_point().to_string(), lo, hi),
        _ => String::new(),
    };
    TensorRow {
        dtype: format!("{}{form}", plan.int_type.name()),
        scale,
        zero_point,
        why: plan.why.to_string(),
    }
}

/// Bins of an activation's histogram.
const N_BINS: usize = 72;

/// The values of every tensor that was measured, with each calibrator's range.
fn profiles(from: &Sources<'_>) -> BTreeMap<String, Profile> {
    let Some(stats) = from.stats else { return BTreeMap::new() };
    let profile = |(name, tensor): (&String, &TensorStats)| {
        Some((name.clone(), profile(from, stats.samples().len(), name, tensor)?))
    };
    stats.tensors().iter().filter_map(profile).collect()
}

fn profile(
    from: &Sources<'_>,
    samples: usize,
    name: &str,
    tensor: &TensorStats,
) -> Option<Profile> {
    let (min, max) = tensor.min_max()?;
    if tensor.counts().total() == 0 || max <= min {
        return None;
    }
    let (lo, hi) = (f64::from(min), f64::from(max));
    let width = (hi - lo) / N_BINS as f64;
    let mut counts = vec![0.0_f64; N_BINS];
    let mut n_zero = 0;
    for bin in bins(tensor.counts()) {
        if bin.lo == bin.hi {
            n_zero += bin.n;
            continue;
        }
        // Its values are taken to lie evenly in it: it is shared out to those it overlaps.
        let (from, to) = (bin.lo.max(lo), bin.hi.min(hi).max(bin.lo.max(lo)));
        let at = |x: f64| (((x - lo) / width) as usize).min(N_BINS - 1);
        let (first, last) = (at(from), at(to));
        for (i, count) in counts.iter_mut().enumerate().take(last + 1).skip(first) {
            let (left, right) = (lo + i as f64 * width, lo + (i + 1) as f64 * width);
            let part = match to - from {
                0.0 => 1.0 / (last - first + 1) as f64,
                all => (right.min(to) - left.max(from)).max(0.0) / all,
            };
            *count += part * bin.n as f64;
        }
    }
    // What is there at all is seen.
    let counts = counts.iter().map(|&n| if n == 0.0 { 0 } else { (n.round() as u64).max(1) });
    let planned = from.plan.and_then(|plan| plan.tensors.get(name));
    let goal = planned.map_or(RangeGoal { range: QRange::U8, symmetric: false }, |plan| {
        RangeGoal { range: plan.range, symmetric: plan.range.qmin() == -plan.range.qmax() }
    });
    let mut thresholds: Vec<Threshold> = CALIBRATORS
        .iter()
        .filter_map(|def| {
            let (min, max) = tensor.range(&Calibrator::named(def.name)?, &goal)?;
            let (min, max) = (f64::from(min), f64::from(max));
            Some(Threshold { calibrator: def.name.to_owned(), min, max, used: false })
        })
        .collect();
    let compared = || {
        let rows = &from.comparison?.tensors;
        rows.iter().find(|t| t.name == name && t.dtype.is_some()).and_then(|t| t.range)
    };
    let range = match planned {
        Some(plan) => plan.params.as_slice().first().map(|p| p.real_range(plan.range)),
        None => compared(),
    };
    if let Some((min, max)) = range {
        let calibrator = match planned.map(|plan| &plan.why) {
            Some(Why::SameAs(other)) => format!("this model, as {other}"),
            _ => "this model".to_owned(),
        };
        let (min, max) = (f64::from(min), f64::from(max));
        thresholds.push(Threshold { calibrator, min, max, used: true });
    }
    let (n, ..) = tensor.n_seen();
    Some(Profile {
        samples,
        n,
        lo,
        hi,
        counts: counts.collect(),
        zeros: n_zero as f64 / n.max(1) as f64,
        thresholds,
    })
}

/// Rows of all weights together, and bins of each.
const N_ROWS: usize = 6000;
const N_WEIGHT_BINS: usize = 40;

/// The quantized weights, channel by channel.
fn weights(from: &Sources<'_>) -> BTreeMap<String, WeightMap> {
    let graph = &from.model.graph;
    let mut found: BTreeMap<String, (usize, usize, ValueId)> = BTreeMap::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        for (k, id) in node.inputs.iter().enumerate() {
            let Some(id) = id.filter(|&id| graph.constant(id).is_some_and(|t| 1 < t.dims().len()))
            else {
                continue;
            };
            let name = graph.value_name(id);
            let compared =
                |c: &Comparison| c.tensors.iter().any(|t| t.kind == Kind::Weight && t.name == name);
            let is_quantized = from.plan.is_some_and(|plan| plan.tensors.contains_key(name))
                || from.comparison.is_some_and(compared);
            if is_quantized {
                found.entry(name.to_owned()).or_insert((i, k, id));
            }
        }
    }
    let most = (N_ROWS / found.len().max(1)).clamp(24, 120);
    let map = |(name, (i, k, id)): (String, (usize, usize, ValueId))| {
        let node = &graph.nodes[i];
        let tensor = graph.constant(id)?;
        let values = floats(tensor).ok()?;
        let dims = tensor.dims();
        let planned = from.plan.and_then(|plan| plan.tensors.get(&name));
        let axis = match planned.map(|plan| &plan.params) {
            Some(Params::PerAxis { axis, .. }) => Some(*axis),
            _ => weight_axis(node, k, dims.len()),
        };
        let ranges: Vec<(f32, f32)> = match planned {
            Some(TensorPlan { params: Params::Blocked { .. }, .. }) => Vec::new(),
            Some(plan) => plan.params.as_slice().iter().map(|p| p.real_range(plan.range)).collect(),
            None => {
                let row = from.comparison?.tensors.iter().find(|t| t.name == name)?;
                let is_one = row.scale.is_some_and(|(least, most)| least == most);
                row.range.filter(|_| is_one).into_iter().collect()
            }
        };
        let channels = axis.map_or(1, |axis| dims[axis]);
        let inner: usize = axis.map_or(values.len(), |axis| dims[axis + 1..].iter().product());
        weight_map(&name, &values, (channels, inner), &ranges, most).map(|map| (name, map))
    };
    found.into_iter().filter_map(map).collect()
}

fn weight_map(
    name: &str,
    values: &[f32],
    (channels, inner): (usize, usize),
    ranges: &[(f32, f32)],
    most: usize,
) -> Option<WeightMap> {
    let (lo, hi) = midtread_kernels::min_max::min_max(values).range().filter(|(lo, hi)| lo < hi)?;
    let per_row = channels.div_ceil(most);
    let n_rows = channels.div_ceil(per_row);
    let mut counts = vec![[0_u32; N_WEIGHT_BINS]; n_rows];
    let to_bin = N_WEIGHT_BINS as f32 / (hi - lo);
    for (run, chunk) in values.chunks(inner.max(1)).enumerate() {
        let row = &mut counts[run % channels / per_row];
        for x in chunk.iter().filter(|x| x.is_finite()) {
            row[(((x - lo) * to_bin) as usize).min(N_WEIGHT_BINS - 1)] += 1;
        }
    }
    // Four digits are more than a screen shows.
    let short = |x: f32| format!("{x:.3e}").parse().unwrap_or(x);
    let row = |(r, counts): (usize, &[u32; N_WEIGHT_BINS])| {
        let fullest = f64::from(counts.iter().copied().max().unwrap_or(0).max(1));
        let digit = |&n: &u32| {
            let level = (9.0 * (f64::from(n) / fullest).sqrt()).ceil() as u32;
            char::from_digit(level.min(9), 10).unwrap_or('0')
        };
        let of_row = match ranges.len() {
            n if n == channels => &ranges[r * per_row..channels.min((r + 1) * per_row)],
            1 => ranges,
            _ => &[],
        };
        let range = of_row.iter().copied().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        WeightRow {
            counts: counts.iter().map(digit).collect(),
            range: range.map(|(lo, hi)| (short(lo), short(hi))),
        }
    };
    Some(WeightMap {
        name: name.to_owned(),
        channels,
        lo: f64::from(lo),
        hi: f64::from(hi),
        bins: N_WEIGHT_BINS,
        rows: counts.iter().enumerate().map(row).collect(),
    })
}

/// How the ranges grew with the samples, in the order of their names.
fn convergence(stats: &Stats) -> Option<Convergence> {
    let n = stats.samples().len();
    let mut curves: Vec<Vec<f64>> = Vec::new();
    for tensor in stats.tensors().values() {
        let Some((lo, hi)) = tensor.min_max().filter(|(lo, hi)| lo < hi) else { continue };
        let whole = f64::from(hi) - f64::from(lo);
        let mut seen: Option<(f32, f32)> = None;
        let curve = tensor.extrema().iter().map(|extrema| {
            seen = match (seen, *extrema) {
                (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
                (one, other) => one.or(other),
            };
            seen.map_or(0.0, |(lo, hi)| (f64::from(hi) - f64::from(lo)) / whole)
        });
        curves.push(curve.collect());
    }
    if n < 2 || curves.is_empty() {
        return None;
    }
    let of = |i: usize| curves.iter().map(move |curve| curve[i]);
    let count = curves.len() as f64;
    // Four digits.
    let short = |x: f64| (x * 1e4).round() / 1e4;
    Some(Convergence {
        n_tensors: curves.len(),
        mean: (0..n).map(|i| short(of(i).sum::<f64>() / count)).collect(),
        least: (0..n).map(|i| short(of(i).fold(1.0, f64::min))).collect(),
        done: (0..n).map(|i| short(of(i).filter(|&x| 0.99 <= x).count() as f64 / count)).collect(),
    })
}

/// What the sources themselves tell of what went in.
fn manifest(from: &Sources<'_>) -> Vec<Group> {
    let mut program = vec![("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
    if let Some(stats) = from.stats {
        program.push(("measured on".to_owned(), format!("{} samples", stats.samples().len())));
    }
    if let Some(comparison) = from.comparison {
        program.push(("compared on".to_owned(), format!("{} samples", comparison.samples)));
    }
    let mut groups = vec![Group { name: "midtread".to_owned(), items: program }];
    if let Some(plan) = from.plan {
        let mut items = vec![
            ("scheme".to_owned(), plan.scheme.to_string()),
            ("target".to_owned(), plan.target.clone()),
            ("prepared model".to_owned(), plan.model.clone()),
        ];
        items.extend(plan.options.clone());
        groups.push(Group { name: "options".to_owned(), items });
    }
    groups
}

#[cfg(test)]
mod tests {
    use midtread_graph::{DataType, Dim, Tensor, Type};

    use super::*;

    #[test]
    fn multiplications_are_counted_as_the_operators_make_them() {
        let mut graph = Graph::default();
        let mut value = |name: &str, dims: &[usize]| {
            let id = graph.intern(name);
            let dims = dims.iter().map(|&d| Dim::Known(d)).collect();
            graph.value_mut(id).ty = Some(Type::tensor(DataType::Float, Some(dims)));
            id
        };
        let (x, w, y) =
            (value("x", &[1, 8, 6, 6]), value("w", &[4, 2, 3, 3]), value("y", &[1, 4, 4, 4]));
        let (a, b, c) = (value("a", &[2, 5, 7]), value("b", &[7, 3]), value("c", &[2, 5, 3]));
        let (d, e) = (value("d", &[5, 7]), value("e", &[5, 3]));
        let node = |op: &str, inputs: [ValueId; 2], out| Node::new(op, op, inputs, [out]);
        assert_eq!(macs(&graph, &node("Conv", [x, w], y)), Some(64 * 18));
        assert_eq!(macs(&graph, &node("ConvTranspose", [x, w], y)), Some(288 * 18));
        assert_eq!(macs(&graph, &node("MatMul", [a, b], c)), Some(30 * 7));
        assert_eq!(macs(&graph, &node("Gemm", [d, b], e)), Some(15 * 7));
        assert_eq!(macs(&graph, &node("Relu", [x, x], x)), None);
    }

    #[test]
    fn every_weight_is_in_a_row_of_its_channel() {
        let values: Vec<f32> = (0..24).map(|i| if i % 4 < 2 { -1.0 } else { 3.0 }).collect();
        let tensor = Tensor::from_slice(vec![2, 3, 4], &values).unwrap();
        // Channels in the middle, then two a row.
        let map = weight_map("w", &values, (3, 4), &[(-1.0, 1.0), (-2.0, 2.0), (-3.0, 3.0)], 2);
        let map = map.unwrap();
        assert_eq!((map.channels, map.rows.len(), tensor.len()), (3, 2, 24));
        assert_eq!(map.rows[0].range, Some((-2.0, 2.0)));
        assert_eq!(map.rows[1].range, Some((-3.0, 3.0)));
        let want = format!("9{}9", "0".repeat(N_WEIGHT_BINS - 2));
        assert!(map.rows.iter().all(|row| row.counts == want), "{map:?}");
    }
}
