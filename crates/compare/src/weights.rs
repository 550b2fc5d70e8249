//! Constants of the float model and what the quantized model has in their place.

use std::collections::BTreeMap;

use midtread_graph::{DataType, Graph, Tensor};
use midtread_num::ErrorSums;
use midtread_quant::plan::constants::floats;

use crate::{
    matching::Matching,
    view::{Grid, View, integers},
};

/// A constant in both models.
#[derive(Clone, Debug)]
pub struct WeightPair {
    /// The float model's name for it.
    pub name: String,
    /// The quantized model's name for what it stores.
    pub quantized_name: String,
    /// Index of the float model's node that takes it, and which of its inputs it is.
    pub of: (usize, usize),
    /// The float model's values.
    pub float: Tensor,
    /// What the quantized model computes with, in the same order and sizes.
    pub dequantized: Tensor,
    /// What is stored, where that is integers (in the order in which it is stored).
    pub codes: Option<Tensor>,
    /// How the integers are read.
    pub grid: Option<Grid>,
}

impl WeightPair {
    /// The sums over the whole constant.
    pub fn sums(&self) -> ErrorSums {
        let (a, b) = self.slices();
        ErrorSums::of(&a, &b)
    }

    /// The floats of both.
    pub fn slices(&self) -> (Vec<f32>, Vec<f32>) {
        let of = |t: &Tensor| floats(t).map(|f| f.into_owned()).unwrap_or_default();
        (of(&self.float), of(&self.dequantized))
    }

    /// Distinct integers in it, of the integers there are.
    pub fn codes_used(&self) -> Option<f64> {
        let (codes, grid) = (self.codes.as_ref()?, self.grid.as_ref()?);
        let n_all = grid.range.n_steps() as usize + 1;
        let mut seen = vec![false; n_all];
        for q in integers(codes)? {
            if let Some(seen) =
                usize::try_from(q - grid.range.qmin()).ok().and_then(|i| seen.get_mut(i))
            {
                *seen = true;
            }
        }
        Some(seen.iter().filter(|&&s| s).count() as f64 / n_all as f64)
    }
}

/// Every float constant of two matched models that the quantized one holds, by name. Constants that are the same in
/// both (a float model's, kept) are among them.
pub fn match_weights(float: &Graph, view: &View<'_>, matching: &Matching) -> Vec<WeightPair> {
    let mut found: BTreeMap<String, WeightPair> = BTreeMap::new();
    for &(i, j) in &matching.nodes {
        let (node, other) = (&float.nodes[i], &view.graph.nodes[j]);
        for k in 0..node.inputs.len() {
            let Some(id) = node.input(k) else { continue };
            let Some(tensor) = float.constant(id) else { continue };
            let name = float.value_name(id);
            if tensor.dtype() != DataType::Float || found.contains_key(name) {
                continue;
            }
            let Some(operand) = view.operand(other, k) else { continue };
            let Some(dequantized) = like(&operand.floats, tensor, node, other) else { continue };
            // Transposed integers have their channels elsewhere: only the floats are compared then.
            let in_place = operand.floats.dims() == tensor.dims();
            found.insert(
                name.to_owned(),
                WeightPair {
                    name: name.to_owned(),
                    quantized_name: operand.name,
                    of: (i, k),
                    float: tensor.to_aligned(),
                    dequantized,
                    codes: operand.codes,
                    grid: operand.grid.filter(|_| in_place),
                },
            );
        }
    }
    found.into_values().collect()
}

/// The quantized model's values with the float model's sizes: as they are, or a matrix transposed where exactly one
/// of the two operators transposes it.
fn like(
    values: &Tensor,
    wanted: &Tensor,
    node: &midtread_graph::Node,
    other: &midtread_graph::Node,
) -> Option<Tensor> {
    let transposes = |n: &midtread_graph::Node| n.int("transB").unwrap_or(0) != 0;
    let is_flipped = transposes(node) != transposes(other);
    if let ([a, b], [c, d]) = (values.dims(), wanted.dims())
        && is_flipped
        && (a, b) == (d, c)
    {
        let from = floats(values).ok()?;
        let (rows, columns) = (*a, *b);
        let mut to = vec![0.0_f32; from.len()];
        for (r, row) in from.chunks(columns.max(1)).enumerate() {
            for (c, x) in row.iter().enumerate() {
                to[c * rows + r] = *x;
            }
        }
        return Tensor::from_slice(vec![columns, rows], &to).ok();
    }
    if values.dims() == wanted.dims() {
        return Some(values.clone());
    }
    // Scalars and vectors may have gained or lost dimensions of size one.
    let squeeze =
        |dims: &[usize]| -> Vec<usize> { dims.iter().copied().filter(|&d| d != 1).collect() };
    (squeeze(values.dims()) == squeeze(wanted.dims()))
        .then(|| values.reshaped(wanted.dims().to_vec()).ok())
        .flatten()
}
