//! Operators that make tensors from attributes and sizes: Constant, ConstantOfShape, Shape, Size, Range.

use midtread_graph::{AttrValue, DataType, Node, Tensor};

use crate::{
    attr,
    def::{Eval, OpDef, Role},
    eval::{EvalCtx, OpError},
    infer::InferCtx,
    layout::to_sizes,
    sym::SymDim,
    typed::{by_type, elements, indices, reals},
};

/// ONNX Constant 1, 9, 11, 12 (`value_int`, ...), 13, 19, 21, 23, 24 and 25.
pub(crate) static CONSTANT: OpDef = OpDef {
    op_type: "Constant",
    domain: "",
    versions: &[1, 9, 11, 12, 13, 19, 21, 23, 24, 25],
    attrs: &[
        "sparse_value",
        "value",
        "value_float",
        "value_floats",
        "value_int",
        "value_ints",
        "value_string",
        "value_strings",
    ],
    infer: |ctx| {
        let tensor = constant_value(ctx.node)?;
        ctx.set_constant(0, &tensor);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, _| Ok(vec![constant_value(ctx.node)?])),
    role: Role::Structural,
};

/// The tensor that a Constant node stands for.
///
/// Fails for a sparse tensor, and where not exactly one of the `value` attributes is there.
pub fn constant_value(node: &Node) -> Result<Tensor, OpError> {
    let [attr] = node.attrs.as_slice() else {
        return Err(OpError::Invalid(format!(
            "{} attributes where one gives the value",
            node.attrs.len()
        )));
    };
    let wrong_kind = || OpError::Invalid(format!("attribute `{}` is of another kind", attr.name));
    Ok(match (attr.name.as_str(), &attr.value) {
        ("value", AttrValue::Tensor(tensor)) => tensor.to_aligned(),
        ("value_float", &AttrValue::Float(f)) => Tensor::scalar(f),
        ("value_floats", AttrValue::Floats(floats)) => Tensor::vector(floats),
        ("value_int", &AttrValue::Int(i)) => Tensor::scalar(i),
        ("value_ints", AttrValue::Ints(ints)) => Tensor::vector(ints),
        ("value_string", AttrValue::String(s)) => {
            Tensor::from_strings(Vec::new(), vec![s.clone()])?
        }
        ("value_strings", AttrValue::Strings(s)) => Tensor::from_strings(vec![s.len()], s.clone())?,
        ("sparse_value", _) => return Err(OpError::Unsupported("a sparse constant".to_owned())),
        ("value" | "value_float" | "value_floats" | "value_int" | "value_ints", _) => {
            return Err(wrong_kind());
        }
        ("value_string" | "value_strings", _) => return Err(wrong_kind()),
        (other, _) => return Err(OpError::Invalid(format!("attribute `{other}` is not known"))),
    })
}

/// ONNX ConstantOfShape 9, 20, 21, 23, 24 and 25.
pub(crate) static CONSTANT_OF_SHAPE: OpDef = OpDef {
    op_type: "ConstantOfShape",
    domain: "",
    versions: &[9, 20, 21, 23, 24, 25],
    attrs: &["value"],
    infer: |ctx| {
        let value = fill_value(ctx.node)?;
        let dims = match (ctx.value(0), ctx.dims(0)) {
            (Some(dims), _) => Some(dims),
            (None, Some([n])) => {
                n.as_known().and_then(|n| usize::try_from(n).ok()).map(|n| vec![SymDim::Unknown; n])
            }
            _ => None,
        };
        // A short list of one integer takes part in computing shapes.
        let n = match dims.as_deref() {
            Some([n]) => n.as_known().and_then(|n| usize::try_from(n).ok()).filter(|&n| n <= 64),
            Some([]) => Some(1),
            _ => None,
        };
        let element = crate::infer::ints(&value).map(|v| SymDim::known(v[0]));
        ctx.set(0, Some(value.dtype()), dims);
        ctx.set_value(0, n.zip(element).map(|(n, e)| vec![e; n]));
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let dims = to_sizes(&indices(args.required(0)?)?)?;
        let value = fill_value(ctx.node)?;
        let mut out = ctx.pool.tensor(value.dtype(), dims)?;
        if value.dtype().n_bits().is_none_or(|bits| bits < 8) {
            return Err(crate::typed::unsupported_type(value.dtype()));
        }
        for element in out.bytes_mut().chunks_exact_mut(value.as_bytes().len()) {
            element.copy_from_slice(value.as_bytes());
        }
        Ok(vec![out])
    }),
    role: Role::Structural,
};

/// One element: the attribute `value`, or the float 0.
fn fill_value(node: &Node) -> Result<Tensor, OpError> {
    match attr::tensor(node, "value")? {
        None => Ok(Tensor::scalar(0.0_f32)),
        Some(value) if value.len() == 1 => Ok(value.clone()),
        Some(value) => Err(OpError::Invalid(format!("`value` has {} elements", value.len()))),
    }
}

/// ONNX Shape 1, 13, 15 (`start`, `end`), 19, 21, 23, 24 and 25.
pub(crate) static SHAPE: OpDef = OpDef {
    op_type: "Shape",
    domain: "",
    versions: &[1, 13, 15, 19, 21, 23, 24, 25],
    attrs: &["end", "start"],
    infer: |ctx| {
        let dims = match ctx.dims(0) {
            Some(dims) => Some(dims[shape_range(ctx.node, dims.len())?].to_vec()),
            None => None,
        };
        let n = dims.as_ref().map_or(SymDim::Unknown, |d| SymDim::known(d.len() as i64));
        ctx.set(0, Some(DataType::Int64), Some(vec![n]));
        ctx.set_value(0, dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let dims = args.required(0)?.dims();
        let range = shape_range(ctx.node, dims.len())?;
        let dims: Vec<i64> = dims[range].iter().map(|&d| d as i64).collect();
        Ok(vec![Tensor::vector(&dims)])
    }),
    role: Role::Structural,
};

/// `start..end` of the dimensions; both count from the end if negative, and are clamped.
fn shape_range(node: &Node, rank: usize) -> Result<std::ops::Range<usize>, OpError> {
    let n = rank as i64;
    let from_front = |i: i64| (if i < 0 { i.saturating_add(n) } else { i }).clamp(0, n) as usize;
    let start = from_front(attr::int(node, "start", 0)?);
    let end = from_front(attr::int(node, "end", n)?);
    Ok(start..end.max(start))
}

/// ONNX Size 1, 13, 19, 21, 23, 24 and 25.
pub(crate) static SIZE: OpDef = OpDef {
    op_type: "Size",
    domain: "",
    versions: &[1, 13, 19, 21, 23, 24, 25],
    attrs: &[],
    infer: |ctx| {
        let n = ctx.dims(0).map(|dims| dims.iter().fold(SymDim::known(1), |n, d| n.mul(d)));
        ctx.set(0, Some(DataType::Int64), Some(Vec::new()));
        ctx.set_value(0, n.map(|n| vec![n]));
        Ok(())
    },
    eval: Eval::Tensors(|_, args| Ok(vec![Tensor::scalar(args.required(0)?.len() as i64)])),
    role: Role::Structural,
};

/// ONNX Range 11 and 27.
pub(crate) static RANGE: OpDef = OpDef {
    op_type: "Range",
    domain: "",
    versions: &[11, 27],
    attrs: &["stash_type"],
    infer: infer_range,
    eval: Eval::Tensors(|ctx, args| {
        let [start, limit, delta] = [args.required(0)?, args.required(1)?, args.required(2)?];
        if [start, limit, delta].iter().any(|t| t.len() != 1) {
            return Err(OpError::Invalid("a bound of the range is not one number".to_owned()));
        }
        if matches!(start.dtype(), DataType::Float16 | DataType::Bfloat16) {
            let [start_at, limit, delta] = [reals(start)?[0], reals(limit)?[0], reals(delta)?[0]];
            let n = ((limit - start_at) / delta).ceil().max(0.0);
            if !n.is_finite() {
                return Err(OpError::Invalid("a range with a step of 0".to_owned()));
            }
            // Added up in `stash_type`, which is float32, and rounded once.
            let y =
                range(ctx, n as usize, |i| start_at as f32 + i as f32 * delta as f32)?.remove(0);
            return Ok(vec![crate::cast::cast(ctx, y, start.dtype())?]);
        }
        by_type!(start.dtype(), T in [f32, f64, i16, i32, i64] => {
            let [start, limit, delta] = [elements::<T>(start)?[0], elements::<T>(limit)?[0], elements::<T>(delta)?[0]];
            #[allow(clippy::unnecessary_cast, reason = "the type is one of several")]
            let n = ((limit as f64 - start as f64) / delta as f64).ceil().max(0.0);
            if !n.is_finite() {
                return Err(OpError::Invalid("a range with a step of 0".to_owned()));
            }
            range(ctx, n as usize, |i| start + i as T * delta)
        })
    }),
    role: Role::Structural,
};

fn range<T: midtread_graph::Element>(
    ctx: &EvalCtx<'_>,
    n: usize,
    f: impl Fn(usize) -> T,
) -> Result<Vec<Tensor>, OpError> {
    let y = ctx.pool.fill::<T>(vec![n], |dst| {
        dst.iter_mut().enumerate().for_each(|(i, d)| *d = f(i));
        Ok(())
    })?;
    Ok(vec![y])
}

fn infer_range(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let one = |i: usize| ctx.value(i).filter(|v| v.len() == 1).map(|mut v| v.remove(0));
    let mut value = None;
    let n = match (one(0), one(1), one(2)) {
        (Some(start), Some(limit), Some(delta)) => {
            match (start.as_known(), limit.as_known(), delta.as_known()) {
                (_, _, Some(0)) => {
                    return Err(OpError::Invalid("a range with a step of 0".to_owned()));
                }
                (Some(start), Some(limit), Some(delta)) => {
                    let n = ((limit as f64 - start as f64) / delta as f64).ceil().max(0.0) as i64;
                    if n <= 64 {
                        value = Some((0..n).map(|i| SymDim::known(start + i * delta)).collect());
                    }
                    SymDim::known(n)
                }
                // Counts down from nothing, or up to a size: both are sizes.
                (Some(0), None, Some(1)) => limit,
                (_, _, Some(1)) => limit.sub(&start),
                _ => SymDim::Unknown,
            }
        }
        _ => SymDim::Unknown,
    };
    ctx.set(0, ctx.elem(0), Some(vec![n]));
    ctx.set_value(0, value);
    Ok(())
}

/// Ones on a diagonal. ONNX EyeLike 9 and 22.
pub(crate) static EYE_LIKE: OpDef = OpDef {
    op_type: "EyeLike",
    domain: "",
    versions: &[9, 22],
    attrs: &["dtype", "k"],
    infer: |ctx| {
        let elem = crate::quantize::type_attr(ctx.node, "dtype")?.or(ctx.elem(0));
        ctx.set(0, elem, ctx.dims(0).map(<[_]>::to_vec));
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        let dtype = crate::quantize::type_attr(ctx.node, "dtype")?.unwrap_or(x.dtype());
        let k = crate::attr::int(ctx.node, "k", 0)?;
        let &[_, columns] = x.dims() else {
            return Err(OpError::Invalid(format!("a matrix of sizes {:?}", x.dims())));
        };
        let eye = ctx.pool.fill::<f32>(x.dims().to_vec(), |y| {
            for (i, y) in y.iter_mut().enumerate() {
                let (row, column) = (i / columns, i % columns);
                *y = f32::from(u8::from((row as i64).checked_add(k) == Some(column as i64)));
            }
            Ok(())
        })?;
        Ok(vec![crate::cast::cast(ctx, eye, dtype)?])
    }),
    role: Role::Structural,
};
