//! A compiled model as data: what is computed from what, in which order.
//!
//! Nothing here depends on the machine: weights are codes in one order, and [`crate::machine`] packs them for the CPU
//! at hand. [`Code::to_bytes`] writes it down, [`Code::from_bytes`] reads it.

use alloc::{boxed::Box, format, string::String, vec::Vec};

use bytes::Bytes;
use midtread_kernels::conv::Conv2d;
use midtread_num::{QRange, requant::Multiplier};

use crate::{dims::Dims, fault::Fault};

/// A compiled model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Code {
    /// What is given.
    pub inputs: Vec<Port>,
    /// What is asked for.
    pub outputs: Vec<Port>,
    /// How many values there are: inputs, constants and what steps make, by number.
    pub n_values: u32,
    /// Values that are the same in every run. An input among them has this value unless it is given.
    pub constants: Vec<(u32, Constant)>,
    /// What is computed, in order.
    pub steps: Vec<Step>,
}

/// An input or an output.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Its name in the model.
    pub name: String,
    /// ONNX number of the element type; 0 where the model does not say.
    pub elem: i32,
    /// Sizes, where the model says how many there are.
    pub dims: Option<Vec<Size>>,
    /// The value.
    pub value: u32,
}

/// A size of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many.
    Known(usize),
    /// Any, but the same for every use of the name.
    Named(String),
    /// Any.
    Unknown,
}

/// A tensor: ONNX number of its element type, sizes, and elements as in ONNX `raw_data`.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// ONNX number of the element type.
    pub elem: i32,
    /// Sizes.
    pub dims: Vec<usize>,
    /// Elements.
    pub data: Bytes,
}

/// One thing that a program does.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The node that it comes from.
    pub node: String,
    /// The node's operator.
    pub op_type: String,
    /// Why it is not done in integers; empty where it is.
    pub why: String,
    /// What is done.
    pub op: Op,
    /// What it reads; `None` where an operator's optional input is left out.
    pub inputs: Vec<Option<u32>>,
    /// What it makes; `None` where nobody wants it.
    pub outputs: Vec<Option<u32>>,
}

/// What a step does. "Last" is an image whose channels come last: (image, row, column, channel).
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// What an operator's definition says, on tensors as ONNX stores them: needs the crate's feature `std`.
    Operator(Operator),
    /// Numbers to codes.
    Quantize(Quant),
    /// Codes to numbers.
    Dequantize(Quant),
    /// Numbers to codes of the range that they have: ONNX DynamicQuantizeLinear. The codes' scale and zero point go
    /// with them.
    DynamicQuantize,
    /// A convolution of codes, last.
    Conv(Conv),
    /// Codes times a matrix.
    Product(Product),
    /// Matrices of codes times matrices of codes.
    Matmul(Matmul),
    /// Softmax along the last dimension.
    Softmax(Single),
    /// A sum of codes, of sizes that broadcast.
    Add(Pair),
    /// A product of codes, of sizes that broadcast.
    Mul(Pair),
    /// Codes joined along a dimension, each input's through a table where there is one.
    Concat {
        /// The dimension, counted from the first as the values are stored.
        axis: usize,
        /// One for each input.
        tables: Vec<Option<Box<[u8; 256]>>>,
    },
    /// The mean over all pixels of each channel, last.
    Mean(Single),
    /// The mean of each window, last. Whether the padding counts as pixels.
    AveragePool(Window, Single, bool),
    /// The greatest code of each window, last. Whether codes are signed.
    MaxPool(Window, bool),
    /// A function of one code. Whether codes are signed, before and after.
    Table(Box<[u8; 256]>, [bool; 2]),
    /// The same elements in other sizes.
    Reshape(Reshape),
    /// Other order of the dimensions: ONNX Transpose.
    Transpose(Vec<usize>),
    /// Channels to the end: (image, channel, row, column) to last.
    ToLast,
    /// From last to (image, channel, row, column).
    ToPlain,
}

/// An operator and its attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Operator {
    /// `""` or `com.microsoft`.
    pub domain: String,
    /// ONNX's name of it.
    pub op_type: String,
    /// Version of the operator set.
    pub opset: i64,
    /// Attributes by name.
    pub attrs: Vec<(String, Attribute)>,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are AttributeProto's")]
pub enum Attribute {
    Float(f32),
    Int(i64),
    String(Bytes),
    Tensor(Constant),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<Bytes>),
}

/// Scale, zero point and type of 8-bit codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quant {
    /// A positive number.
    pub scale: f32,
    /// A code.
    pub zero_point: i32,
    /// Whether codes are `i8`, and not `u8`.
    pub is_signed: bool,
}

impl Quant {
    /// All codes.
    pub fn range(&self) -> QRange {
        if self.is_signed { QRange::I8 } else { QRange::U8 }
    }
}

/// How a window slides over an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Height and width.
    pub kernel: [usize; 2],
    /// Steps, vertical and horizontal.
    pub strides: [usize; 2],
    /// Steps inside the window.
    pub dilations: [usize; 2],
    /// Top, left, bottom, right, where they are said.
    pub pads: Pads,
    /// Whether the last window may reach past the padding.
    pub ceil: bool,
}

/// The padding around an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pads {
    /// Top, left, bottom, right.
    Said([usize; 4]),
    /// So that the output is the input's size over the stride, the odd one at the end.
    SameUpper,
    /// The odd one at the beginning.
    SameLower,
}

/// A convolution. Weights are codes less their zero points, (output channel, row, column, channel of the group).
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// How it slides.
    pub window: Window,
    /// Groups of channels.
    pub groups: usize,
    /// Input channels of one group.
    pub c_in: usize,
    /// Weights, one `i8` a byte.
    pub weights: Bytes,
    /// Added to the sum of codes times weights, one for each output channel; what the zero point adds is taken off.
    pub bias: Vec<i32>,
    /// The input's zero point.
    pub x_zero: i32,
    /// Whether the input's codes are signed.
    pub x_signed: bool,
    /// What becomes of the sums.
    pub to: To,
}

/// A product. Weights are codes less their zero points, (column, row).
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    /// Rows of the matrix.
    pub k: usize,
    /// Weights, one `i8` a byte.
    pub weights: Bytes,
    /// As a convolution's; with [`To::Dynamic`] minus the sum of each column's weights, to be multiplied with the
    /// zero point.
    pub bias: Vec<i32>,
    /// Whether the input's codes are signed.
    pub x_signed: bool,
    /// What becomes of the sums.
    pub to: To,
    /// A row that is added to the codes that came of them.
    pub row: Option<Row>,
}

/// A row of constant codes that is added to every row of codes.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The sum. The row is the second of its inputs.
    pub pair: Pair,
    /// Whether the row is the first of the model's: the order in which it is summed.
    pub is_swapped: bool,
    /// One byte a channel.
    pub codes: Bytes,
}

/// A product of two tensors of codes, as ONNX MatMul has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Matmul {
    /// Of the inputs.
    pub inputs: [Quant; 2],
    /// Of the output; `None` where it is numbers.
    pub output: Option<Quant>,
    /// The least and the greatest code of the output.
    pub codes: [i32; 2],
    /// Orders of dimensions, as ONNX Transpose has them: of both inputs before the product, and of the output after it.
    /// `None` where they stay.
    pub perms: [Option<Vec<usize>>; 3],
    /// Whether it is computed without floating point.
    pub is_fixed: bool,
}

/// What becomes of the sums of each output channel.
#[derive(Clone, Debug, PartialEq)]
pub enum To {
    /// Codes between two, around a zero point.
    Codes {
        /// Factors, one for each channel.
        factors: Factors,
        /// The least and the greatest code.
        codes: [i32; 2],
        /// The output's.
        zero_point: i32,
        /// Whether the output's codes are signed.
        is_signed: bool,
    },
    /// Numbers.
    Numbers {
        /// The factor of each channel.
        scales: Vec<f32>,
    },
    /// Numbers, of codes whose scale and zero point come with them.
    Dynamic {
        /// The weights' scales, one for each channel.
        scales: Vec<f32>,
        /// Added at the end.
        shifts: Option<Vec<f32>>,
    },
}

/// Factors from sums to steps of the output.
#[derive(Clone, Debug, PartialEq)]
pub enum Factors {
    /// `scale_x * scale_w / scale_y`.
    Float(Vec<f32>),
    /// The same, without floating point.
    Fixed(Vec<Multiplier>),
}

/// Two inputs and an output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Of the inputs.
    pub inputs: [Quant; 2],
    /// Of the output.
    pub output: Quant,
    /// The least and the greatest code of the output.
    pub codes: [i32; 2],
    /// Whether it is computed without floating point.
    pub is_fixed: bool,
}

/// An input and an output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Single {
    /// Of the input.
    pub x: Quant,
    /// Of the output.
    pub y: Quant,
    /// Whether it is computed without floating point.
    pub is_fixed: bool,
}

/// Other sizes of the same elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reshape {
    /// The sizes; -1 for what is left over, and 0 for the input's unless `allow_zero`.
    To {
        /// ONNX Reshape's `shape`.
        sizes: Vec<i64>,
        /// ONNX Reshape's `allowzero`.
        allow_zero: bool,
    },
    /// Two sizes: before this dimension, and from it on.
    Flatten(i64),
    /// Without these sizes of 1, or without all.
    Squeeze(Option<Vec<i64>>),
    /// With sizes of 1 in these places of the output.
    Unsqueeze(Vec<i64>),
}

impl Code {
    /// Fails where there are more values than anything makes: files are not to be trusted with how much is reserved.
    pub(crate) fn check_values(&self) -> Result<(), Fault> {
        let n_made = self.inputs.len()
            + self.constants.len()
            + self.steps.iter().map(|step| step.outputs.len()).sum::<usize>();
        if n_made < self.n_values as usize {
            return Err(Fault::new(format!(
                "{} values, of which {n_made} are made",
                self.n_values
            )));
        }
        Ok(())
    }
}

impl Op {
    /// How it is computed, for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Operator(_) => "operator",
            Self::Quantize(_) => "numbers to codes",
            Self::Dequantize(_) => "codes to numbers",
            Self::DynamicQuantize => "numbers to codes of their range",
            Self::Conv(Conv { to: To::Dynamic { .. }, .. }) => "dynamic integer convolution",
            Self::Conv(conv) if conv.c_in == 1 && 1 < conv.groups => {
                "integer depthwise convolution"
            }
            Self::Conv(_) => "integer convolution",
            Self::Product(Product { to: To::Dynamic { .. }, .. }) => "dynamic integer product",
            Self::Product(Product { row: Some(_), .. }) => "integer product and sum",
            Self::Product(_) => "integer product",
            Self::Matmul(_) => "integer product of matrices",
            Self::Softmax(_) => "integer softmax",
            Self::Add(_) => "integer sum",
            Self::Mul(_) => "integer product of two",
            Self::Concat { .. } => "codes joined",
            Self::Mean(_) | Self::AveragePool(..) => "integer mean",
            Self::MaxPool(..) => "integer maximum",
            Self::Table(..) => "table of codes",
            Self::Reshape(_) | Self::Transpose(_) => "codes moved",
            Self::ToLast => "channels last",
            Self::ToPlain => "channels first",
        }
    }
}

impl Window {
    /// Sizes of the convolution of `n` images, and the output's height and width.
    pub(crate) fn over(
        &self,
        [n, c_in, c_out, groups]: [usize; 4],
        input: [usize; 2],
    ) -> Result<(Conv2d, [usize; 2]), Fault> {
        let too_large = || Fault::new(format!("a window that is too large: {self:?}"));
        let (mut pads, mut output) = ([0; 4], [0; 2]);
        for d in 0..2 {
            let (size, stride) = (input[d], self.strides[d]);
            let reach = (self.kernel[d] - 1).checked_mul(self.dilations[d]);
            let reach = reach.and_then(|r| r.checked_add(1)).ok_or_else(too_large)?;
            if let Pads::SameUpper | Pads::SameLower = self.pads {
                if size == 0 {
                    continue;
                }
                output[d] = size.div_ceil(stride);
                let last = output[d].saturating_sub(1).checked_mul(stride);
                let end = last.and_then(|l| l.checked_add(reach)).ok_or_else(too_large)?;
                let total = end.saturating_sub(size);
                let small = total / 2;
                let is_upper = self.pads == Pads::SameUpper;
                pads[d] = if is_upper { small } else { total - small };
                pads[d + 2] = total - pads[d];
                continue;
            }
            let Pads::Said(said) = &self.pads else { unreachable!("the others are above") };
            (pads[d], pads[d + 2]) = (said[d], said[d + 2]);
            let padded = size.checked_add(pads[d]).and_then(|p| p.checked_add(pads[d + 2]));
            let padded = padded.ok_or_else(too_large)?;
            let room = padded.checked_sub(reach).ok_or_else(|| {
                Fault::new(format!(
                    "the window of {reach} is larger than the padded input of {padded}"
                ))
            })?;
            output[d] = if self.ceil { room.div_ceil(stride) } else { room / stride } + 1;
            // A window must not begin in the padding behind the input.
            if self.ceil && size + pads[d] <= (output[d] - 1) * stride {
                output[d] -= 1;
            }
        }
        let conv = Conv2d {
            n,
            c_in,
            c_out,
            input,
            kernel: self.kernel,
            strides: self.strides,
            pads,
            dilations: self.dilations,
            groups,
        };
        Ok((conv, output))
    }

    /// Checks what a constructor of the type would: files are not to be trusted.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        const MOST: usize = 1 << 20;
        let lists = [self.kernel, self.strides, self.dilations];
        let pads = match self.pads {
            Pads::Said(pads) => pads,
            _ => [0; 4],
        };
        let is_large = MOST / self.kernel[0].max(1) < self.kernel[1];
        if is_large
            || lists.as_flattened().iter().any(|&n| n == 0 || MOST < n)
            || pads.iter().any(|&n| MOST < n)
        {
            return Err(Fault::new(format!("a window of impossible sizes: {self:?}")));
        }
        Ok(())
    }
}

impl Reshape {
    /// The sizes of the output.
    pub(crate) fn dims(&self, x: &Dims) -> Result<Dims, Fault> {
        let rank = x.len();
        let mut sizes = [0; crate::dims::MAX_RANK];
        let misfit = || Fault::new(format!("sizes {x:?} do not become {self:?}"));
        let axis = |a: i64, rank: usize| -> Option<usize> {
            let a = if a < 0 { a + rank as i64 } else { a };
            usize::try_from(a).ok().filter(|&a| a < rank)
        };
        let n = match self {
            Self::To { sizes: asked, allow_zero } => {
                if sizes.len() < asked.len() {
                    return Err(misfit());
                }
                let mut rest = None;
                for (d, &size) in asked.iter().enumerate() {
                    sizes[d] = match size {
                        -1 if rest.is_none() => {
                            rest = Some(d);
                            1
                        }
                        0 if !allow_zero => *x.get(d).ok_or_else(misfit)?,
                        size => usize::try_from(size).map_err(|_| misfit())?,
                    };
                }
                if let Some(d) = rest {
                    let others = Dims::new(&sizes[..asked.len()])?.n_elements();
                    let all = x.n_elements();
                    if others == 0 || !all.is_multiple_of(others) {
                        return Err(misfit());
                    }
                    sizes[d] = all / others;
                }
                asked.len()
            }
            Self::Flatten(axis) => {
                let axis = if *axis < 0 { axis + rank as i64 } else { *axis };
                let axis = usize::try_from(axis).ok().filter(|&a| a <= rank).ok_or_else(misfit)?;
                sizes[0] = x[..axis].iter().product();
                sizes[1] = x[axis..].iter().product();
                2
            }
            Self::Squeeze(axes) => {
                let mut gone = [false; crate::dims::MAX_RANK];
                match axes {
                    Some(axes) => {
                        for &a in axes {
                            gone[axis(a, rank).ok_or_else(misfit)?] = true;
                        }
                    }
                    None => {
                        gone.iter_mut().zip(x.iter()).for_each(|(gone, &size)| *gone = size == 1)
                    }
                }
                let mut n = 0;
                for (d, &size) in x.iter().enumerate() {
                    if !gone[d] {
                        sizes[n] = size;
                        n += 1;
                    } else if size != 1 {
                        return Err(misfit());
                    }
                }
                n
            }
            Self::Unsqueeze(axes) => {
                let n = rank + axes.len();
                if sizes.len() < n {
                    return Err(misfit());
                }
                for &a in axes {
                    // Marked by a size that no tensor has.
                    sizes[axis(a, n).ok_or_else(misfit)?] = usize::MAX;
                }
                let mut old = x.iter();
                for size in &mut sizes[..n] {
                    *size = if *size == usize::MAX { 1 } else { *old.next().ok_or_else(misfit)? };
                }
                if old.next().is_some() {
                    return Err(misfit());
                }
                n
            }
        };
        let dims = Dims::new(&sizes[..n])?;
        if dims.n_elements() != x.n_elements() {
            return Err(misfit());
        }
        Ok(dims)
    }
}
