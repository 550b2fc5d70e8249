//! How much a model computes.

use std::collections::BTreeMap;

use midtread_exec::{Interpreter, Options};
use midtread_graph::{Model, Node, Tensor};

use crate::error::Error;

/// Multiplications of each node's convolution or matrix product on these inputs, by the node's label: what the
/// operator's definition asks for, whatever a runtime makes of it. Runs the model once.
pub fn multiplications(
    model: &Model,
    inputs: &[(String, Tensor)],
) -> Result<BTreeMap<String, u64>, Error> {
    let interpreter = Interpreter::new(model, Options { max_bytes: None }).map_err(Error::Run)?;
    let graph = interpreter.graph();
    let mut sizes: Vec<Option<Vec<usize>>> = graph
        .values()
        .iter()
        .map(|value| value.constant.as_ref().map(|tensor| tensor.dims().to_vec()))
        .collect();
    let mut observe = |id: midtread_graph::ValueId, _: &str, tensor: &Tensor| {
        sizes[id.idx()] = Some(tensor.dims().to_vec());
    };
    interpreter.run_observed(inputs.to_vec(), &mut observe).map_err(Error::Run)?;
    let of = |node: &Node, i: usize| node.input(i).and_then(|id| sizes[id.idx()].as_deref());
    let count = |node: &Node| -> Option<u64> {
        let out = sizes[node.output(0)?.idx()].as_ref()?.iter().product::<usize>();
        let each = match node.op_type.as_str() {
            "Conv" | "ConvInteger" => window(of(node, 1)?),
            "QLinearConv" => window(of(node, 3)?),
            "MatMul"
            | "MatMulInteger"
            | "FusedMatMul"
            | "QLinearMatMul"
            | "MatMulNBits"
            | "DynamicQuantizeMatMul"
            | "MatMulIntegerToFloat" => *of(node, 0)?.last()?,
            "Gemm" | "QGemm" => {
                let is_turned = node.int("transA").unwrap_or(0) != 0;
                *of(node, 0)?.get(usize::from(!is_turned))?
            }
            _ => return None,
        };
        u64::try_from(out.checked_mul(each)?).ok()
    };
    let nodes = graph.nodes.iter();
    Ok(nodes.filter_map(|node| Some((graph.label(node).to_owned(), count(node)?))).collect())
}

/// Multiplications for one element of the output.
fn window(weights: &[usize]) -> usize {
    weights.iter().skip(1).product()
}
