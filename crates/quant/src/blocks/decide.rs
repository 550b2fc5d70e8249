//! Which nodes' weights are put into blocks.

use std::collections::HashSet;

use midtread_graph::{DataType, Graph, Model, Node, Tensor, ValueId};

use super::{BlockDecision, BlockNode, BlockOptions, BlockPlan, BlockType, ScaleSearch};
use crate::{
    error::Error,
    plan::{
        constants::{check_finite, floats},
        decide::Selection,
        fingerprint,
    },
};

/// A table with fewer elements is not worth an operator of its own.
const MIN_TABLE: usize = 1024;

/// Decides which weights of a prepared model are put into blocks. Reads nothing but its arguments.
pub fn plan(model: &Model, options: &BlockOptions) -> Result<BlockPlan, Error> {
    check_options(options)?;
    let graph = &model.graph;
    let labels: HashSet<&str> = graph.nodes.iter().map(|n| graph.label(n)).collect();
    let op_types: HashSet<&str> = graph.nodes.iter().map(|n| n.op_type.as_str()).collect();
    let selection = Selection::new(&labels, &op_types, &options.include, options.exclude.iter())?;
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let label = graph.label(node);
        let mut decision = decide(graph, node, options)?;
        if !matches!(decision, BlockDecision::NoWeight)
            && let Some(reason) = selection.refuses(label, &node.op_type)
        {
            decision = BlockDecision::Float(reason);
        }
        nodes.push(BlockNode { node: label.to_owned(), op_type: node.op_type.clone(), decision });
    }
    Ok(BlockPlan { model: fingerprint(model), options: options.clone(), nodes })
}

fn check_options(options: &BlockOptions) -> Result<(), Error> {
    let size = options.block_size.get();
    let refuse = |what: String| Err(Error::Options(what));
    if !size.is_power_of_two() || size < 16 {
        return refuse(format!("blocks of {size}: ONNX Runtime has powers of two from 16 on"));
    }
    match options.block_type {
        BlockType::Bits { n_bits, .. } if ![2, 4, 8].contains(&n_bits) => {
            refuse(format!("{n_bits} bits: MatMulNBits has 2, 4 and 8"))
        }
        BlockType::Bits { is_asymmetric: false, n_bits } if options.search == ScaleSearch::Hqq => {
            refuse(format!("hqq searches zero points, and i{n_bits} has none: u{n_bits}"))
        }
        BlockType::Bits { n_bits: 8, .. } if options.search == ScaleSearch::Hqq => refuse(
            "hqq has real zero points, which ONNX Runtime's CPU kernel does not take with 8 bits"
                .to_owned(),
        ),
        BlockType::Nf4 | BlockType::Fp4 if options.search != ScaleSearch::MaxAbs => {
            refuse(format!(
                "{} takes its scales from the largest magnitudes: there is nothing to search",
                options.block_type
            ))
        }
        _ if ![0, 1, 4].contains(&options.accuracy_level) => refuse(format!(
            "accuracy level {}: 0 (any), 1 (float32) and 4 (int8) are known",
            options.accuracy_level
        )),
        _ => Ok(()),
    }
}

fn decide(graph: &Graph, node: &Node, options: &BlockOptions) -> Result<BlockDecision, Error> {
    let float = |reason: &str| Ok(BlockDecision::Float(reason.to_owned()));
    let constant = |k: usize| -> Option<(ValueId, &Tensor)> {
        let id = node.input(k)?;
        Some((id, graph.constant(id)?))
    };
    let (weight, is_transposed) = match node.op_type.as_str() {
        _ if !node.domain.is_empty() && node.domain != "ai.onnx" => {
            return Ok(BlockDecision::NoWeight);
        }
        "MatMul" => (constant(1), false),
        "Gemm" => (constant(1), node.int("transB").unwrap_or(0) != 0),
        "Gather" => (constant(0), true),
        "Conv" | "ConvTranspose" => return float("its weight is no matrix"),
        _ => return Ok(BlockDecision::NoWeight),
    };
    let is_lookup = node.is("Gather");
    let Some((id, weight)) = weight else {
        return if is_lookup {
            Ok(BlockDecision::NoWeight)
        } else {
            float("its second input is not constant")
        };
    };
    if weight.dtype() != DataType::Float {
        return if is_lookup {
            Ok(BlockDecision::NoWeight)
        } else {
            float("its weight is not float32")
        };
    }
    let &[rows, cols] = weight.dims() else {
        return if is_lookup {
            Ok(BlockDecision::NoWeight)
        } else {
            float("its weight is no matrix")
        };
    };
    if rows == 0 || cols == 0 {
        return float("its weight is empty");
    }
    if node.is("Gemm") {
        if node.float("alpha").unwrap_or(1.0) != 1.0 || node.int("transA").unwrap_or(0) != 0 {
            return float("it scales or transposes its first input");
        }
        if node.input(2).is_some() && node.float("beta").unwrap_or(1.0) != 1.0 {
            return float("it scales its bias");
        }
    }
    let block_size = options.block_size.get();
    if is_lookup {
        if rows * cols < MIN_TABLE {
            return float("its table is small");
        }
        if node.int("axis").unwrap_or(0) != 0 {
            return float("it looks up along another axis than the first");
        }
        match options.block_type {
            BlockType::Nf4 | BlockType::Fp4 => {
                return float("GatherBlockQuantized has no NF4 or FP4");
            }
            BlockType::Bits { n_bits: 2, .. } => {
                return float("GatherBlockQuantized is used with 4 and 8 bits");
            }
            BlockType::Bits { .. } if options.search == ScaleSearch::Hqq => {
                return float("GatherBlockQuantized has integer zero points only");
            }
            BlockType::Bits { .. } if !cols.is_multiple_of(block_size) => {
                return float("its rows are not whole blocks");
            }
            BlockType::Bits { .. } => {}
        }
    }
    let values = floats(weight).expect("its type was checked");
    check_finite(graph.value_name(id), &values)?;
    let (k, n) = if is_transposed { (cols, rows) } else { (rows, cols) };
    let format = options.format();
    let bits = format.bits_per_weight(midtread_num::formats::Shape { rows: n, cols: k });
    if 32.0 <= bits {
        return float("its weight would not become smaller");
    }
    Ok(if is_lookup { BlockDecision::Lookup } else { BlockDecision::Product { is_transposed } })
}
