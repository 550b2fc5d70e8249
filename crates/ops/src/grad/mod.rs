//! Gradients: for each operator that can be trained through, its gradient beside what it reads.
//!
//! [`GRADS`] is to gradients what [`OPS`](crate::OPS) is to evaluation: one line an operator, found by everything that
//! walks it. An operator without a line cannot be trained through, and who asks is told its name.
//!
//! Reading order: this file (what a gradient is and sees), [`moves`] (operators that only move elements),
//! [`elementwise`], [`linear`] (convolutions and products), [`pool`], [`norm`] (normalizations and softmax),
//! [`reduce`], [`recurrent`].

mod elementwise;
mod linear;
mod moves;
mod norm;
mod pool;
mod recurrent;
mod reduce;

use std::borrow::Cow;

use midtread_graph::{Node, Tensor, model::canonical_domain};

use crate::{
    eval::{OpError, Pool},
    shape::{Odometer, broadcast_strides, product},
    typed::elements,
};

/// The gradient of one operator.
pub struct GradDef {
    /// `NodeProto.op_type`.
    pub op_type: &'static str,
    /// `""` or `com.microsoft`.
    pub domain: &'static str,
    /// Which values it reads: the others need not be kept until it runs.
    pub reads: Reads,
    /// For each input, the gradient of `sum(output * its gradient)`, or `None` for those that have none (indices,
    /// shapes) or that nobody wants.
    pub grad: fn(&GradCtx<'_>) -> Result<Vec<Option<Tensor>>, OpError>,
}

/// The values a gradient reads, besides the outputs' gradients and all sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// None.
    Nothing,
    /// The inputs.
    Inputs,
    /// Inputs from this position on.
    InputsFrom(usize),
    /// The outputs.
    Outputs,
    /// All.
    All,
}

impl Reads {
    /// Whether input `i` is read.
    pub fn input(self, i: usize) -> bool {
        match self {
            Self::Nothing | Self::Outputs => false,
            Self::Inputs | Self::All => true,
            Self::InputsFrom(first) => first <= i,
        }
    }

    /// Whether outputs are read.
    pub fn outputs(self) -> bool {
        matches!(self, Self::Outputs | Self::All)
    }
}

/// What a gradient sees.
pub struct GradCtx<'a> {
    /// The node: its attributes.
    pub node: &'a Node,
    /// The version of the node's operator set that the model imports.
    pub opset: i64,
    /// Where results get their memory from.
    pub pool: &'a Pool,
    /// The inputs; `None` where one is left out or [`GradDef::reads`] does not ask for it.
    pub inputs: &'a [Option<Tensor>],
    /// The inputs' sizes; `None` where one is left out.
    pub in_dims: &'a [Option<Vec<usize>>],
    /// The outputs; `None` where one is left out or [`GradDef::reads`] does not ask for it.
    pub outputs: &'a [Option<Tensor>],
    /// The outputs' gradients; `None` where nothing depends on one.
    pub grads: &'a [Option<Tensor>],
    /// For each input, whether its gradient is wanted.
    pub wanted: &'a [bool],
}

impl<'a> GradCtx<'a> {
    /// Input `i`.
    fn x(&self, i: usize) -> Result<Cow<'a, [f32]>, OpError> {
        elements(self.inputs.get(i).and_then(Option::as_ref).ok_or(OpError::MissingInput(i))?)
    }

    /// Input `i`, if it is there.
    fn opt_x(&self, i: usize) -> Result<Option<Cow<'a, [f32]>>, OpError> {
        self.inputs.get(i).and_then(Option::as_ref).map(elements).transpose()
    }

    /// Output 0.
    fn y(&self) -> Result<Cow<'a, [f32]>, OpError> {
        elements(self.outputs.first().and_then(Option::as_ref).ok_or(OpError::MissingInput(0))?)
    }

    /// The gradient of output 0, which something depends on: a node without any is left out.
    fn dy(&self) -> Result<&'a Tensor, OpError> {
        let grad = self.grads.first().and_then(Option::as_ref);
        grad.ok_or_else(|| {
            OpError::Unsupported("a gradient of another output than the first".into())
        })
    }

    /// The sizes of input `i`.
    fn dims(&self, i: usize) -> Result<&'a [usize], OpError> {
        self.in_dims.get(i).and_then(Option::as_deref).ok_or(OpError::MissingInput(i))
    }

    /// As many results as inputs, of which `made` gives those that are wanted.
    fn each(
        &self,
        mut made: impl FnMut(usize) -> Result<Option<Tensor>, OpError>,
    ) -> Result<Vec<Option<Tensor>>, OpError> {
        (0..self.wanted.len()).map(|i| if self.wanted[i] { made(i) } else { Ok(None) }).collect()
    }

    /// A tensor of the sizes of input `i`, written by `write`.
    fn like(
        &self,
        i: usize,
        write: impl FnOnce(&mut [f32]) -> Result<(), OpError>,
    ) -> Result<Option<Tensor>, OpError> {
        self.pool.fill(self.dims(i)?.to_vec(), write).map(Some)
    }
}

/// A gradient summed over the dimensions along which a value of sizes `dims` was repeated.
fn sum_to(pool: &Pool, dy: &Tensor, dims: &[usize]) -> Result<Tensor, OpError> {
    if dy.dims() == dims {
        return Ok(dy.clone());
    }
    if dy.len() == product(dims) {
        return Ok(dy.reshaped(dims.to_vec())?);
    }
    let src = elements::<f32>(dy)?;
    let strides = broadcast_strides(dims, dy.dims());
    // Runs along the last dimension: added up, or added element by element.
    let Some((&n, outer)) = dy.dims().split_last() else { return Ok(dy.clone()) };
    let (step, outer_strides) = (strides[outer.len()], &strides[..outer.len()]);
    let mut sums = vec![0.0_f64; product(dims)];
    let mut odometer = Odometer::new(outer, &[outer_strides]);
    for run in src.chunks_exact(n.max(1)) {
        let at = odometer.offsets[0] as usize;
        if step == 0 {
            sums[at] += run.iter().map(|&x| f64::from(x)).sum::<f64>();
        } else {
            sums[at..at + n].iter_mut().zip(run).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        odometer.advance();
    }
    pool.fill(dims.to_vec(), |to| {
        to.iter_mut().zip(&sums).for_each(|(to, sum)| *to = *sum as f32);
        Ok(())
    })
}

/// Every gradient, by domain and name.
pub static GRADS: &[&GradDef] = &[
    &elementwise::ABS,
    &elementwise::ADD,
    &pool::AVERAGE_POOL,
    &norm::BATCH_NORMALIZATION,
    &elementwise::CAST,
    &elementwise::CLIP,
    &moves::CONCAT,
    &linear::CONV,
    &linear::CONV_TRANSPOSE,
    &elementwise::COS,
    &moves::DEPTH_TO_SPACE,
    &elementwise::DIV,
    &elementwise::DROPOUT,
    &linear::EINSUM,
    &elementwise::ELU,
    &elementwise::ERF,
    &elementwise::EXP,
    &moves::EXPAND,
    &moves::FLATTEN,
    &recurrent::GRU,
    &moves::GATHER,
    &moves::GATHER_ELEMENTS,
    &moves::GATHER_ND,
    &elementwise::GELU,
    &linear::GEMM,
    &pool::GLOBAL_AVERAGE_POOL,
    &pool::GLOBAL_MAX_POOL,
    &norm::GROUP_NORMALIZATION,
    &elementwise::HARD_SIGMOID,
    &elementwise::HARD_SWISH,
    &moves::IDENTITY,
    &norm::INSTANCE_NORMALIZATION,
    &recurrent::LSTM,
    &norm::LAYER_NORMALIZATION,
    &elementwise::LEAKY_RELU,
    &elementwise::LOG,
    &norm::LOG_SOFTMAX,
    &linear::MATMUL,
    &elementwise::MAX,
    &pool::MAX_POOL,
    &elementwise::MEAN,
    &elementwise::MIN,
    &elementwise::MISH,
    &elementwise::MUL,
    &elementwise::NEG,
    &elementwise::PRELU,
    &moves::PAD,
    &elementwise::POW,
    &norm::RMS_NORMALIZATION,
    &elementwise::RECIPROCAL,
    &reduce::REDUCE_L1,
    &reduce::REDUCE_L2,
    &reduce::REDUCE_LOG_SUM_EXP,
    &reduce::REDUCE_MAX,
    &reduce::REDUCE_MEAN,
    &reduce::REDUCE_MIN,
    &reduce::REDUCE_SUM,
    &reduce::REDUCE_SUM_SQUARE,
    &elementwise::RELU,
    &moves::RESHAPE,
    &moves::RESIZE,
    &moves::SCATTER_ELEMENTS,
    &moves::SCATTER_ND,
    &elementwise::SELU,
    &elementwise::SIGMOID,
    &elementwise::SIN,
    &moves::SLICE,
    &norm::SOFTMAX,
    &elementwise::SOFTPLUS,
    &elementwise::SOFTSIGN,
    &moves::SPACE_TO_DEPTH,
    &moves::SPLIT,
    &elementwise::SQRT,
    &moves::SQUEEZE,
    &elementwise::SUB,
    &elementwise::SUM,
    &elementwise::SWISH,
    &elementwise::TANH,
    &moves::TILE,
    &moves::TRANSPOSE,
    &moves::TRILU,
    &moves::UNSQUEEZE,
    &moves::WHERE,
    &elementwise::MS_GELU,
];

/// Operators whose outputs do not change, or change by leaps, with their inputs: nothing flows back through them.
pub static STEPS: &[&str] = &[
    "And",
    "ArgMax",
    "ArgMin",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Ceil",
    "Constant",
    "ConstantOfShape",
    "Equal",
    "EyeLike",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "Hardmax",
    "IsInf",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "NonZero",
    "Not",
    "OneHot",
    "Or",
    "Range",
    "Round",
    "Shape",
    "Sign",
    "Size",
    "Xor",
];

/// The gradient of an operator, if there is one.
pub fn find_grad(domain: &str, op_type: &str) -> Option<&'static GradDef> {
    let domain = canonical_domain(domain);
    GRADS.iter().copied().find(|grad| grad.domain == domain && grad.op_type == op_type)
}
