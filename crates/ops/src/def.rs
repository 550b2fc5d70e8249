//! What an operator is.

use midtread_graph::{Node, Tensor};

use crate::{
    eval::{Args, Bodies, Datum, EvalCtx, NoBodies, OpError},
    infer::InferCtx,
};

/// One operator of one domain, over all the versions of it that this crate knows.
pub struct OpDef {
    /// `NodeProto.op_type`.
    pub op_type: &'static str,
    /// `""` or `com.microsoft`.
    pub domain: &'static str,
    /// The operator set versions in which the specification changed it, ascending; the first is the oldest that
    /// `eval` and `infer` know. A model that imports a version past the last uses the last.
    pub versions: &'static [i64],
    /// The attributes that some of these versions have. [`OpDef::check`] refuses others: a later version may have
    /// added one that changes the result.
    pub attrs: &'static [&'static str],
    /// Types (and values of shape tensors) of the outputs from those of the inputs. Leaves unknown what it cannot
    /// tell; an error is a contradiction in the model.
    pub infer: fn(&mut InferCtx<'_>) -> Result<(), OpError>,
    /// The outputs, exactly as the specification defines them.
    pub eval: Eval,
    /// How a quantizer treats it.
    pub role: Role,
}

/// What a node takes, whatever it is; `None` where an optional input is left out.
pub type Inputs = Vec<Option<Datum>>;

/// What a node makes.
pub type Outputs = Result<Vec<Datum>, OpError>;

/// How an operator is evaluated.
#[derive(Clone, Copy)]
pub enum Eval {
    /// From tensors to tensors, as nearly all are.
    Tensors(fn(&EvalCtx<'_>, Args) -> Result<Vec<Tensor>, OpError>),
    /// Sequences and optional values come or go.
    Data(fn(&EvalCtx<'_>, Inputs) -> Outputs),
    /// It runs the graphs in its attributes.
    Bodies(fn(&EvalCtx<'_>, Inputs, &dyn Bodies) -> Outputs),
}

impl OpDef {
    /// The outputs of a node, whatever it takes and makes.
    pub fn evaluate(
        &self,
        ctx: &EvalCtx<'_>,
        inputs: Vec<Option<Datum>>,
        bodies: &dyn Bodies,
    ) -> Result<Vec<Datum>, OpError> {
        match self.eval {
            Eval::Tensors(eval) => {
                let tensors = inputs.into_iter().map(|x| x.map(Datum::into_tensor).transpose());
                let args = Args(tensors.collect::<Result<_, _>>()?);
                Ok(eval(ctx, args)?.into_iter().map(Datum::Tensor).collect())
            }
            Eval::Data(eval) => eval(ctx, inputs),
            Eval::Bodies(eval) => eval(ctx, inputs, bodies),
        }
    }

    /// The outputs of a node without bodies, all of whose inputs and outputs are tensors.
    pub fn evaluate_tensors(&self, ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
        match self.eval {
            Eval::Tensors(eval) => eval(ctx, args),
            _ => {
                let inputs = args.0.into_iter().map(|x| x.map(Datum::Tensor)).collect();
                let outputs = self.evaluate(ctx, inputs, &NoBodies)?;
                outputs.into_iter().map(Datum::into_tensor).collect()
            }
        }
    }

    /// Whether `eval` and `infer` know this node's version of the operator and all of its attributes. What an
    /// attribute's value asks for is checked when it is evaluated.
    pub fn check(&self, node: &Node, opset: i64) -> Result<(), OpError> {
        let oldest = self.versions.first().copied().unwrap_or(1);
        if opset < oldest {
            return Err(OpError::Unsupported(format!(
                "version {opset} of the operator set (before {oldest})"
            )));
        }
        match node.attrs.iter().find(|attr| !self.attrs.contains(&attr.name.as_str())) {
            Some(attr) => Err(OpError::Unsupported(format!("attribute `{}`", attr.name))),
            None => Ok(()),
        }
    }
}

/// Bounds of a clamp, given the node and the constants among its inputs: lower and upper, infinite where there is
/// none. `None` where they are not constant.
pub type Bounds = fn(&Node, &dyn Fn(usize) -> Option<f32>) -> Option<(f32, f32)>;

/// How a quantizer treats an operator.
pub enum Role {
    /// It has an integer form, or moves values that may be integers.
    Quantized {
        /// One role per input, in schema order. Inputs past the end have the last one's (variadic operators).
        inputs: &'static [InputRole],
        /// Where the parameters of (all) outputs come from.
        output: OutputRole,
    },
    /// It can be absorbed into the range of its input's producer when that has no other use (Relu, Clip): the
    /// function gives the bounds, if they are constant. Otherwise it is quantized like `Calibrated` with one
    /// activation.
    Clamp {
        /// Lower and upper bound; infinite where there is none.
        bounds: Bounds,
    },
    /// It computes on shapes, indices or masks: never quantized, and not worth a line in the ledger.
    Structural,
    /// It stays in float, for the given reason (a clause: "its statistics need float32").
    Float(&'static str),
}

/// The part an input plays.
#[derive(Clone, Copy)]
pub enum InputRole {
    /// Quantized per tensor, over a calibrated range.
    Activation,
    /// Constant (otherwise an activation); quantized per channel along the axis on which the output channels lie.
    Weight {
        /// That axis, given the node and the weight's rank; `None` when it has none (a vector).
        channel_axis: fn(&Node, usize) -> Option<usize>,
    },
    /// Constant `i32` with scale `input_scale * weight_scale` and zero point 0.
    Bias,
    /// Stays as it is: shapes, indices, axes.
    Parameter,
}

/// Where an output's scale and zero point come from.
#[derive(Clone, Copy)]
pub enum OutputRole {
    /// Its own calibrated range.
    Calibrated,
    /// Input `n`'s, because the operator only moves or selects values.
    SameAs(usize),
    /// Every output and every activation input share one set (Concat).
    AllSame,
    /// Known beforehand: `(min, max)` (Softmax: 0 to 1).
    Fixed(f32, f32),
    /// Not quantized (an integer or boolean result).
    Unquantized,
}
