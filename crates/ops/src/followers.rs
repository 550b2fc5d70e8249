//! What follows an operator and is done in the same pass over its output.

use midtread_graph::{DataType, Node, Tensor};
use midtread_kernels::{
    gemm::{Bias, Epilogue, Normalize},
    norm::batch_norm_factors,
};

use crate::{attr, unary};

/// The element-wise nodes after a convolution that nothing else uses: a BatchNormalization, then a Clip or Relu.
///
/// [`crate::conv_then`] gives the bits that the nodes one after the other give.
#[derive(Clone, Debug, Default)]
pub struct Followers {
    normalize: Option<[Vec<f32>; 3]>,
    clamp: Option<(f32, f32)>,
}

impl Followers {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.normalize.is_none() && self.clamp.is_none()
    }

    /// Takes `node` in as the next follower of a convolution with `n_channels` output channels, if it can be one.
    /// `constants` gives an input's value where it is the same in every run.
    pub fn push(
        &mut self,
        node: &Node,
        n_channels: usize,
        constants: &dyn Fn(usize) -> Option<Tensor>,
    ) -> bool {
        if !node.domain.is_empty() || self.clamp.is_some() {
            return false;
        }
        match node.op_type.as_str() {
            "BatchNormalization" if self.is_empty() => {
                self.normalize = normalize(node, n_channels, constants);
                self.normalize.is_some()
            }
            "Clip" => {
                let number = |i| {
                    let tensor = constants(i)?;
                    (tensor.dtype() == DataType::Float).then(|| tensor.item())?
                };
                self.clamp = unary::clip_bounds(node, &number);
                self.clamp.is_some()
            }
            "Relu" => {
                self.clamp = Some((0.0, f32::INFINITY));
                true
            }
            _ => false,
        }
    }

    pub(crate) fn epilogue<'a>(&'a self, bias: Bias<'a>) -> Epilogue<'a> {
        let normalize =
            self.normalize.as_ref().map(|[mean, factor, shift]| Normalize { mean, factor, shift });
        Epilogue { bias, normalize, clamp: self.clamp, ..Epilogue::default() }
    }
}

/// Mean, factor and shift of each channel.
fn normalize(
    node: &Node,
    n_channels: usize,
    constants: &dyn Fn(usize) -> Option<Tensor>,
) -> Option<[Vec<f32>; 3]> {
    let flag = |name, default| attr::flag(node, name, default).ok();
    if flag("training_mode", false)? || !flag("spatial", true)? {
        return None;
    }
    let param = |i| constants(i)?.to_vec::<f32>().ok().filter(|values| values.len() == n_channels);
    let epsilon = attr::float(node, "epsilon", 1e-5).ok()?;
    let (scale, shift, mean, var) = (param(1)?, param(2)?, param(3)?, param(4)?);
    Some([mean, batch_norm_factors(&scale, &var, epsilon), shift])
}
