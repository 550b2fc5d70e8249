//! Writing a [`BlockPlan`] into a model.

use std::collections::{BTreeSet, HashMap};

use midtread_graph::{AttrValue, DataType, Graph, Model, Node, Rewrite, Tensor, ValueId};
use midtread_num::{
    error::ErrorSums,
    formats::{Encoded, Format, Matrix, Shape},
};
use rayon::prelude::*;

use super::{BlockDecision, BlockOptions, BlockPlan, BlockType, ScaleSearch};
use crate::{
    error::Error,
    plan::{constants::floats, fingerprint},
};

/// One weight as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Its name in the float model.
    pub weight: String,
    /// Rows are what is multiplied or looked up with, columns what is summed over.
    pub rows: usize,
    /// See `rows`.
    pub cols: usize,
    /// Scales, zero points and padding included.
    pub bits_per_weight: f64,
    /// Signal over noise of what is stored, in decibels.
    pub sqnr_db: f64,
}

/// The model with its weights in blocks, and what each weight became, by name. Fails for a plan made for another model.
pub fn apply(model: &Model, plan: &BlockPlan) -> Result<(Model, Vec<Written>), Error> {
    let got = fingerprint(model);
    if plan.model != got || plan.nodes.len() != model.graph.nodes.len() {
        return Err(Error::OtherModel { plan: plan.model.clone(), model: got });
    }
    let mut model = model.clone();
    let graph = &mut model.graph;

    // Each weight once for each way it lies.
    let mut wanted: BTreeSet<(ValueId, Lies)> = BTreeSet::new();
    for (node, p) in graph.nodes.iter().zip(&plan.nodes) {
        match p.decision {
            BlockDecision::Float(_) | BlockDecision::NoWeight => {}
            _ => wanted.extend(weight_of(node, &p.decision)),
        }
    }
    let wanted: Vec<(ValueId, Lies)> = wanted.into_iter().collect();
    let blocks: Vec<Result<Blocks, Error>> = wanted
        .par_iter()
        .map(|&(id, lies)| {
            let tensor = graph.value(id).constant.as_ref();
            let tensor = tensor.ok_or_else(|| {
                Error::Options(format!("`{}` of the plan is not constant", graph.value_name(id)))
            })?;
            blocks(graph.value_name(id), tensor, lies, &plan.options)
        })
        .collect();
    let mut stored = HashMap::new();
    let mut written = Vec::new();
    for (&(id, lies), blocks) in wanted.iter().zip(blocks) {
        let Blocks { parts, shape, report } = blocks?;
        let name = graph.value_name(id).to_owned();
        let ids: Vec<ValueId> = parts
            .into_iter()
            .map(|(what, tensor)| graph.add_constant(&format!("{name}_{what}"), tensor))
            .collect();
        stored.insert((id, lies), (ids, shape));
        written.push(report);
    }
    written.sort_by(|a, b| a.weight.cmp(&b.weight));

    let mut rewrite = Rewrite::default();
    for (i, p) in plan.nodes.iter().enumerate() {
        let Some(weight) = weight_of(&graph.nodes[i], &p.decision) else { continue };
        let (parts, shape) = &stored[&weight];
        let bias = if p.op_type == "Gemm" { graph.nodes[i].input(2) } else { None };
        rewrite_node(graph, i, &p.decision, parts, *shape, &plan.options);
        if let Some(bias) = bias {
            // The sum with the bias, under the node's own output.
            let output = graph.nodes[i].output(0).expect("a product has an output");
            let ty = graph.value(output).ty.clone();
            let product = graph.fresh(&format!("{}_product", graph.value_name(output)));
            graph.value_mut(product).ty = ty;
            graph.nodes[i].outputs[0] = Some(product);
            let name = format!("{}_bias", graph.label(&graph.nodes[i]));
            rewrite.insert_after(i, Node::new("Add", &name, [product, bias], [output]));
        }
    }
    rewrite.apply(graph);
    model.graph.drop_unused();
    if !wanted.is_empty() && model.opset("com.microsoft").is_none() {
        model.set_opset("com.microsoft", 1);
    }
    Ok((model, written))
}

/// How a weight lies in its constant, and in what it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Lies {
    /// `[K, N]`.
    Columns,
    /// `[N, K]`.
    Rows,
    /// `[rows, elements of a row]`, and its codes too.
    Table,
}

/// The constant of a node that is rewritten.
fn weight_of(node: &Node, decision: &BlockDecision) -> Option<(ValueId, Lies)> {
    match decision {
        BlockDecision::Product { is_transposed: false } => Some((node.input(1)?, Lies::Columns)),
        BlockDecision::Product { is_transposed: true } => Some((node.input(1)?, Lies::Rows)),
        BlockDecision::Lookup => Some((node.input(0)?, Lies::Table)),
        BlockDecision::Float(_) | BlockDecision::NoWeight => None,
    }
}

/// Makes node `i` the operator that takes blocks.
fn rewrite_node(
    graph: &mut Graph,
    i: usize,
    decision: &BlockDecision,
    parts: &[ValueId],
    shape: Shape,
    options: &BlockOptions,
) {
    let node = &mut graph.nodes[i];
    node.domain = "com.microsoft".to_owned();
    node.attrs.clear();
    let parts = parts.iter().copied().map(Some);
    let block_size = options.block_size.get() as i64;
    let mut ints: Vec<(&str, i64)> = Vec::new();
    match (decision, options.block_type) {
        (BlockDecision::Lookup, BlockType::Bits { n_bits, .. }) => {
            node.op_type = "GatherBlockQuantized".to_owned();
            let indices = node.input(1);
            let mut parts: Vec<_> = parts.collect();
            parts.insert(1, indices);
            node.inputs = parts;
            ints.extend([
                ("bits", i64::from(n_bits)),
                ("block_size", block_size),
                ("gather_axis", 0),
                ("quantize_axis", 1),
            ]);
        }
        (_, block_type) => {
            node.inputs.truncate(1);
            node.inputs.extend(parts);
            ints.extend([("K", shape.cols as i64), ("N", shape.rows as i64)]);
            ints.push(("block_size", block_size));
            match block_type {
                BlockType::Bits { n_bits, .. } => {
                    node.op_type = "MatMulNBits".to_owned();
                    ints.push(("bits", i64::from(n_bits)));
                    if options.accuracy_level != 0 {
                        ints.push(("accuracy_level", i64::from(options.accuracy_level)));
                    }
                }
                BlockType::Nf4 | BlockType::Fp4 => {
                    node.op_type = "MatMulBnb4".to_owned();
                    ints.push(("quant_type", i64::from(block_type == BlockType::Nf4)));
                }
            }
        }
    }
    for (name, value) in ints {
        node.set_attr(name, AttrValue::Int(value));
    }
}

/// A weight's tensors, by what they are called, in the order of the operator's inputs.
struct Blocks {
    parts: Vec<(&'static str, Tensor)>,
    shape: Shape,
    report: Written,
}

fn blocks(
    name: &str,
    tensor: &Tensor,
    lies: Lies,
    options: &BlockOptions,
) -> Result<Blocks, Error> {
    let values = floats(tensor)
        .map_err(|dtype| Error::Options(format!("`{name}` of the plan is {dtype}")))?;
    let &[rows, cols] = tensor.dims() else {
        return Err(Error::Options(format!("`{name}` of the plan is no matrix")));
    };
    let (values, shape) = match lies {
        Lies::Columns => (transpose(&values, rows, cols).into(), Shape { rows: cols, cols: rows }),
        Lies::Rows | Lies::Table => (values, Shape { rows, cols }),
    };
    let format = options.format();
    let refused =
        |err: midtread_num::formats::FormatError| Error::Options(format!("weight `{name}`: {err}"));
    let matrix = Matrix::new(&values, shape.cols).map_err(refused)?;
    let encoded = format.quantize(&matrix).map_err(refused)?;
    let back = format.dequantize(&encoded, shape);
    let parts = parts(&encoded, &format, shape, lies, options);
    let n_bytes: usize = parts.iter().map(|(_, t)| t.as_bytes().len()).sum();
    let report = Written {
        weight: name.to_owned(),
        rows: shape.rows,
        cols: shape.cols,
        bits_per_weight: 8.0 * n_bytes as f64 / values.len() as f64,
        sqnr_db: ErrorSums::of(&values, &back).sqnr_db(),
    };
    Ok(Blocks { parts, shape, report })
}

fn parts(
    encoded: &Encoded,
    format: &Format<'_>,
    shape: Shape,
    lies: Lies,
    options: &BlockOptions,
) -> Vec<(&'static str, Tensor)> {
    let block_size = options.block_size.get();
    let n_blocks = shape.cols.div_ceil(block_size);
    let u8s = |dims: Vec<usize>, bytes: Vec<u8>| {
        Tensor::from_bytes(DataType::Uint8, dims, bytes.into()).expect("as many as the format says")
    };
    let floats = |dims: Vec<usize>, values: &[f32]| {
        Tensor::from_slice(dims, values).expect("one for each block")
    };
    let BlockType::Bits { n_bits, is_asymmetric } = options.block_type else {
        let absmax = encoded.param("absmax");
        let codes = format.pack(encoded, shape).swap_remove(0);
        return vec![
            ("Bnb4", u8s(vec![codes.len()], codes)),
            ("absmax", floats(vec![absmax.len()], absmax)),
        ];
    };
    let bits = n_bits as usize;
    // HQQ's own packing knows nothing of the operator's.
    let packing = BlockOptions { search: ScaleSearch::MaxAbs, ..options.clone() };
    let is_hqq = options.search == ScaleSearch::Hqq;
    let block_type = BlockType::Bits { n_bits, is_asymmetric: is_asymmetric && !is_hqq };
    let mut packed = BlockOptions { block_type, ..packing }.format().pack(encoded, shape);
    let zero_points = packed.split_off(1);
    let block_bytes = block_size * bits / 8;
    let dims = match lies {
        Lies::Table => vec![shape.rows, n_blocks * block_bytes],
        Lies::Columns | Lies::Rows => vec![shape.rows, n_blocks, block_bytes],
    };
    let codes = u8s(dims, packed.swap_remove(0));
    let what = match n_bits {
        2 => "Q2",
        4 => "Q4",
        _ => "Q8",
    };
    let dims = vec![shape.rows, n_blocks];
    let mut parts = vec![(what, codes), ("scales", floats(dims.clone(), encoded.param("scale")))];
    if is_hqq {
        parts.push(("zero_points", floats(dims, encoded.param("zero_point"))));
    } else if is_asymmetric {
        let bytes = zero_points.into_iter().nth(1).expect("an asymmetric format has zero points");
        parts.push(("zero_points", u8s(vec![shape.rows, (n_blocks * bits).div_ceil(8)], bytes)));
    }
    parts
}

/// Columns as rows.
fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    // Squares of this size stay in the nearest cache, whichever way they are walked.
    const TILE: usize = 32;
    let mut turned = vec![0.0; values.len()];
    for row in (0..rows).step_by(TILE) {
        for col in (0..cols).step_by(TILE) {
            for r in row..rows.min(row + TILE) {
                for c in col..cols.min(col + TILE) {
                    turned[c * rows + r] = values[r * cols + c];
                }
            }
        }
    }
    turned
}
