//! What the fusing passes share: a convolution or matrix product with constant weights, seen as
//! `y = linear(x, W) + b` with one weight slice and one bias element for each output channel.

use midtread_graph::{AttrValue, DataType, Dim, Graph, Tensor, ValueId, model::canonical_domain};

use crate::view::View;

/// Why a fusing rule was not applied. `None` where it is not about the node.
pub(crate) type Refusal = Option<(String, &'static str)>;

pub(crate) fn unmet(at: &str, because: &'static str) -> Refusal {
    Some((at.to_owned(), because))
}

/// A node that multiplies by constant weights.
pub(crate) struct Linear {
    /// Its index.
    pub(crate) node: usize,
    weight_dims: Vec<usize>,
    /// Bits are the file's, whatever their alignment.
    pub(crate) weight: Vec<f32>,
    layout: Layout,
    /// What is added to each output channel; `None` where nothing is.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) n_channels: usize,
    /// Rank of the output, where it is known.
    rank: Option<usize>,
    /// The output's axis with the channels, counted from the back (0 is the last).
    axis_from_back: Option<usize>,
}

/// Where an output channel's weights lie.
#[derive(Clone, Copy)]
enum Layout {
    /// (channel, ...): `size` elements each.
    Rows { size: usize },
    /// (..., channel).
    Columns,
    /// Transposed convolution: (input channel, channel in the group, ...).
    Transposed { n_inputs_in_group: usize, n_in_group: usize, size: usize },
}

impl Linear {
    /// The node that makes `y` for `user` alone, if it is one of `op_types`.
    pub(crate) fn before(
        graph: &Graph,
        view: &View,
        y: ValueId,
        user: usize,
        op_types: &[&str],
    ) -> Result<Self, Refusal> {
        let i = view.producer(y).ok_or(None)?;
        let node = &graph.nodes[i];
        if !canonical_domain(&node.domain).is_empty() || !op_types.contains(&node.op_type.as_str())
        {
            return Err(None);
        }
        let w_id = node.input(1).ok_or(None)?;
        if view.constant(graph, w_id).is_none()
            && ["Gemm", "MatMul"].contains(&node.op_type.as_str())
        {
            // A product of two activations has no weight.
            return Err(None);
        }
        let (name, w_name) = (graph.value_name(y), graph.value_name(w_id));
        if view.links.only_consumer(y) != Some(user) {
            return Err(unmet(name, "it has another use"));
        }
        let weight_tensor = view
            .constant(graph, w_id)
            .ok_or_else(|| unmet(w_name, "the weight is not constant"))?;
        let weight =
            floats(weight_tensor).ok_or_else(|| unmet(w_name, "the weight is not float32"))?;
        let dims = weight_tensor.dims().to_vec();
        if dims.contains(&0) {
            return Err(unmet(w_name, "the weight is empty"));
        }
        let bad_weight = || unmet(w_name, "the weight's rank is not the operator's");
        let rest = |from: usize| dims[from..].iter().product::<usize>();

        let (layout, n_channels, rank, axis_from_back) = match node.op_type.as_str() {
            "Conv" if 3 <= dims.len() => {
                (Layout::Rows { size: rest(1) }, dims[0], Some(dims.len()), Some(dims.len() - 2))
            }
            "ConvTranspose" if 3 <= dims.len() => {
                let group = usize::try_from(node.int("group").unwrap_or(1)).unwrap_or(0);
                if group == 0 || dims[0] % group != 0 {
                    return Err(unmet(name, "its groups do not divide its channels"));
                }
                let layout = Layout::Transposed {
                    n_inputs_in_group: dims[0] / group,
                    n_in_group: dims[1],
                    size: rest(2),
                };
                (layout, dims[1] * group, Some(dims.len()), Some(dims.len() - 2))
            }
            "Gemm" if dims.len() == 2 => match node.int("transB").unwrap_or(0) {
                0 => (Layout::Columns, dims[1], Some(2), Some(0)),
                _ => (Layout::Rows { size: dims[1] }, dims[0], Some(2), Some(0)),
            },
            "MatMul" if 2 <= dims.len() => {
                let rank = graph.value(y).ty.as_ref().and_then(|ty| ty.dims()).map(<[Dim]>::len);
                (Layout::Columns, dims[dims.len() - 1], rank, Some(0))
            }
            _ => return Err(bad_weight()),
        };
        let mut linear = Self {
            node: i,
            weight_dims: dims,
            weight,
            layout,
            bias: None,
            n_channels,
            rank,
            axis_from_back,
        };
        if node.op_type != "MatMul"
            && let Some(b_id) = node.input(2)
        {
            let b_name = graph.value_name(b_id);
            let bias = view
                .constant(graph, b_id)
                .ok_or_else(|| unmet(b_name, "the bias is not constant"))?;
            let mut bias = linear
                .per_channel_bias(bias, node.op_type == "Gemm")
                .map_err(|why| unmet(b_name, why))?;
            let beta = if node.op_type == "Gemm" { node.float("beta").unwrap_or(1.0) } else { 1.0 };
            if beta != 1.0 {
                bias.iter_mut().for_each(|b| *b *= beta);
            }
            linear.bias = Some(bias);
        }
        Ok(linear)
    }

    /// Whether both factors are known to be matrices.
    pub(crate) fn is_of_matrices(&self) -> bool {
        self.weight_dims.len() == 2 && self.rank == Some(2)
    }

    fn per_channel_bias(&self, bias: &Tensor, is_gemm: bool) -> Result<Vec<f32>, &'static str> {
        if is_gemm {
            return self.per_channel(bias);
        }
        let values = floats(bias).ok_or("the bias is not float32")?;
        if values.len() != self.n_channels {
            return Err("the bias does not have one value per channel");
        }
        Ok(values)
    }

    /// A constant that is combined with the output, as one value for each channel.
    pub(crate) fn per_channel(&self, constant: &Tensor) -> Result<Vec<f32>, &'static str> {
        let values = floats(constant).ok_or("the constant is not float32")?;
        let dims = constant.dims();
        // Sizes are aligned at the back; a constant of higher rank would raise the output's.
        let max_rank = self.rank.unwrap_or(1);
        let channel_axis = self.axis_from_back.expect("set for every operator");
        let is_per_channel = dims.len() <= max_rank
            && dims.iter().rev().enumerate().all(|(from_back, &d)| {
                d == 1 || (from_back == channel_axis && d == self.n_channels)
            });
        if !is_per_channel {
            return Err("the constant does not have one value per channel");
        }
        if !values.iter().all(|v| v.is_finite()) {
            return Err("the constant is not finite");
        }
        match values[..] {
            [one] => Ok(vec![one; self.n_channels]),
            _ => Ok(values),
        }
    }

    /// The weights, each combined with its channel's factor.
    pub(crate) fn scaled(&self, k: &[f32], f: impl Fn(f32, f32) -> f32) -> Vec<f32> {
        let n = self.n_channels;
        let channel = |i: usize| match self.layout {
            Layout::Rows { size } => i / size,
            Layout::Columns => i % n,
            Layout::Transposed { n_inputs_in_group, n_in_group, size } => {
                let (input, in_group) = (i / (n_in_group * size), i / size % n_in_group);
                input / n_inputs_in_group * n_in_group + in_group
            }
        };
        self.weight.iter().enumerate().map(|(i, &w)| f(w, k[channel(i)])).collect()
    }

    /// Gives the node new weights (`None` keeps them) and a new bias, and lets it make `out`, the output of the node
    /// that it takes in.
    ///
    /// The constants are new ones: another node may use the old, and take in another node itself. A MatMul has no
    /// bias: with one it becomes a Gemm, for which the caller has checked that it [is one](Self::is_of_matrices).
    pub(crate) fn replace(
        &self,
        graph: &mut Graph,
        view: &mut View,
        weight: Option<Vec<f32>>,
        bias: Option<Vec<f32>>,
        out: ValueId,
    ) {
        let name = graph.value_name(out).to_owned();
        if let Some(weight) = weight {
            let tensor =
                Tensor::from_slice(self.weight_dims.clone(), &weight).expect("as many as before");
            let id = graph.add_constant(&format!("{name}_weight"), tensor);
            graph.nodes[self.node].inputs[1] = Some(id);
        }
        if let Some(bias) = bias {
            let id = graph.add_constant(&format!("{name}_bias"), Tensor::vector(&bias));
            let node = &mut graph.nodes[self.node];
            if node.op_type == "MatMul" {
                node.op_type = "Gemm".to_owned();
            }
            node.inputs.resize(3, None);
            node.inputs[2] = Some(id);
            if node.op_type == "Gemm" && node.float("beta").is_some() {
                // The bias holds it.
                node.set_attr("beta", AttrValue::Float(1.0));
            }
        }
        let before = graph.nodes[self.node].output(0).expect("it was found by its output");
        graph.nodes[self.node].outputs[0] = Some(out);
        view.set_producer(out, before, self.node);
    }
}

/// The elements of a float32 tensor.
pub(crate) fn floats(tensor: &Tensor) -> Option<Vec<f32>> {
    (tensor.dtype() == DataType::Float).then(|| tensor.to_vec().ok())?
}

/// Whether arithmetic came out finite.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    values.iter().all(|v| v.is_finite())
}
