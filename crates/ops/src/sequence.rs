//! Sequences of tensors and optional values.

use std::sync::Arc;

use midtread_graph::{DataType, Tensor};

use crate::{
    attr,
    control::ROLE,
    def::{Eval, OpDef, Role},
    eval::{Bodies, Datum, EvalCtx, OpError},
    gather::{entry, joined, part, stacked},
    infer::{InferCtx, Info, normalize_axis},
    quantize::type_attr,
    sym::SymDim,
    typed::indices,
};

/// Input `i`, to be owned.
fn take(inputs: &mut [Option<Datum>], i: usize) -> Result<Datum, OpError> {
    inputs.get_mut(i).and_then(Option::take).ok_or(OpError::MissingInput(i))
}

/// The position in a sequence of `n` that input `i` gives, counted from the front and at most `last`, which it also is
/// where it is left out.
fn position(
    inputs: &mut [Option<Datum>],
    i: usize,
    n: usize,
    last: usize,
) -> Result<usize, OpError> {
    let Ok(at) = take(inputs, i) else { return Ok(last) };
    let at = indices(&at.into_tensor()?)?;
    let from_front = match at.as_slice() {
        &[at] => usize::try_from(if at < 0 { at.saturating_add(n as i64) } else { at }).ok(),
        _ => None,
    };
    from_front
        .filter(|&at| at <= last)
        .ok_or_else(|| OpError::Invalid(format!("position {at:?} in a sequence of {n}")))
}

/// What is known of the tensors in the sequence that is input `i`.
fn element(ctx: &InferCtx<'_>, i: usize) -> Info {
    ctx.input(i).and_then(|x| x.element.as_deref()).cloned().unwrap_or_default()
}

/// ONNX SequenceEmpty 11.
pub(crate) static SEQUENCE_EMPTY: OpDef = OpDef {
    op_type: "SequenceEmpty",
    domain: "",
    versions: &[11],
    attrs: &["dtype"],
    infer: |ctx| {
        let elem = type_attr(ctx.node, "dtype")?.unwrap_or(DataType::Float);
        ctx.set_info(0, Info::sequence(Info::new(Some(elem), None)));
        Ok(())
    },
    eval: Eval::Data(|_, _| Ok(vec![Datum::Sequence(Arc::default())])),
    role: Role::Structural,
};

/// ONNX SequenceConstruct 11.
pub(crate) static SEQUENCE_CONSTRUCT: OpDef = OpDef {
    op_type: "SequenceConstruct",
    domain: "",
    versions: &[11],
    attrs: &[],
    infer: |ctx| {
        let infos: Option<Vec<&Info>> = (0..ctx.n_inputs()).map(|i| ctx.input(i)).collect();
        let common = infos.and_then(|infos| infos.into_iter().cloned().reduce(|a, b| a.common(&b)));
        let common = common.unwrap_or_default();
        ctx.set_info(0, Info::sequence(Info::new(common.elem, common.dims)));
        Ok(())
    },
    eval: Eval::Data(|_, inputs| {
        let tensors = inputs
            .into_iter()
            .enumerate()
            .map(|(i, x)| x.ok_or(OpError::MissingInput(i))?.into_tensor());
        Ok(vec![Datum::Sequence(Arc::new(tensors.collect::<Result<_, _>>()?))])
    }),
    role: Role::Structural,
};

/// ONNX SequenceInsert 11.
pub(crate) static SEQUENCE_INSERT: OpDef = OpDef {
    op_type: "SequenceInsert",
    domain: "",
    versions: &[11],
    attrs: &[],
    infer: |ctx| {
        let (old, new) = (element(ctx, 0), ctx.input(1).cloned().unwrap_or_default());
        let common = old.common(&new);
        ctx.set_info(0, Info::sequence(Info::new(common.elem, common.dims)));
        Ok(())
    },
    eval: Eval::Data(|_, mut inputs| {
        let mut tensors = take(&mut inputs, 0)?.into_sequence()?;
        let new = take(&mut inputs, 1)?.into_tensor()?;
        if tensors.first().is_some_and(|t| t.dtype() != new.dtype()) {
            return Err(OpError::Invalid(format!("a {} tensor in another sequence", new.dtype())));
        }
        let n = tensors.len();
        let at = position(&mut inputs, 2, n, n)?;
        Arc::make_mut(&mut tensors).insert(at, new);
        Ok(vec![Datum::Sequence(tensors)])
    }),
    role: Role::Structural,
};

/// ONNX SequenceErase 11.
pub(crate) static SEQUENCE_ERASE: OpDef = OpDef {
    op_type: "SequenceErase",
    domain: "",
    versions: &[11],
    attrs: &[],
    infer: |ctx| {
        ctx.set_info(0, Info::sequence(element(ctx, 0)));
        Ok(())
    },
    eval: Eval::Data(|_, mut inputs| {
        let mut tensors = take(&mut inputs, 0)?.into_sequence()?;
        let n = tensors.len();
        if n == 0 {
            return Err(OpError::Invalid("nothing to erase in an empty sequence".to_owned()));
        }
        let at = position(&mut inputs, 1, n, n - 1)?;
        Arc::make_mut(&mut tensors).remove(at);
        Ok(vec![Datum::Sequence(tensors)])
    }),
    role: Role::Structural,
};

/// ONNX SequenceAt 11.
pub(crate) static SEQUENCE_AT: OpDef = OpDef {
    op_type: "SequenceAt",
    domain: "",
    versions: &[11],
    attrs: &[],
    infer: |ctx| {
        ctx.set_info(0, element(ctx, 0));
        Ok(())
    },
    eval: Eval::Data(|_, mut inputs| {
        let tensors = take(&mut inputs, 0)?.into_sequence()?;
        let n = tensors.len();
        if n == 0 {
            return Err(OpError::Invalid("nothing to take from an empty sequence".to_owned()));
        }
        let at = position(&mut inputs, 1, n, n - 1)?;
        Ok(vec![tensors[at].clone().into()])
    }),
    role: Role::Structural,
};

/// ONNX SequenceLength 11.
pub(crate) static SEQUENCE_LENGTH: OpDef = OpDef {
    op_type: "SequenceLength",
    domain: "",
    versions: &[11],
    attrs: &[],
    infer: |ctx| {
        ctx.set(0, Some(DataType::Int64), Some(Vec::new()));
        Ok(())
    },
    eval: Eval::Data(|_, mut inputs| {
        let n = take(&mut inputs, 0)?.into_sequence()?.len();
        Ok(vec![Tensor::scalar(n as i64).into()])
    }),
    role: Role::Structural,
};

/// ONNX ConcatFromSequence 11.
pub(crate) static CONCAT_FROM_SEQUENCE: OpDef = OpDef {
    op_type: "ConcatFromSequence",
    domain: "",
    versions: &[11],
    attrs: &["axis", "new_axis"],
    infer: |ctx| {
        let one = element(ctx, 0);
        let (is_new, axis) =
            (attr::flag(ctx.node, "new_axis", false)?, attr::int(ctx.node, "axis", 0)?);
        let dims = match one.dims {
            Some(mut dims) if is_new => {
                dims.insert(normalize_axis(axis, dims.len() + 1)?, SymDim::Unknown);
                Some(dims)
            }
            Some(mut dims) => {
                let axis = normalize_axis(axis, dims.len())?;
                dims[axis] = SymDim::Unknown;
                Some(dims)
            }
            None => None,
        };
        ctx.set(0, one.elem, dims);
        Ok(())
    },
    eval: Eval::Data(|ctx, mut inputs| {
        let tensors = take(&mut inputs, 0)?.into_sequence()?;
        let axis = attr::opt_int(ctx.node, "axis")?.ok_or(OpError::MissingAttr("axis"))?;
        let Some(first) = tensors.first() else {
            return Err(OpError::Invalid("an empty sequence cannot be joined".to_owned()));
        };
        let rank = first.dims().len();
        let y = if attr::flag(ctx.node, "new_axis", false)? {
            stacked(ctx, &tensors, normalize_axis(axis, rank + 1)?)?
        } else {
            joined(ctx, &tensors.iter().collect::<Vec<_>>(), normalize_axis(axis, rank)?)?
        };
        Ok(vec![y.into()])
    }),
    role: Role::Structural,
};

/// ONNX SplitToSequence 11 and 24.
pub(crate) static SPLIT_TO_SEQUENCE: OpDef = OpDef {
    op_type: "SplitToSequence",
    domain: "",
    versions: &[11, 24],
    attrs: &["axis", "keepdims"],
    infer: |ctx| {
        let keeps = ctx.input(1).is_some() || attr::flag(ctx.node, "keepdims", true)?;
        let dims = match ctx.dims(0) {
            Some(dims) => {
                let axis = normalize_axis(attr::int(ctx.node, "axis", 0)?, dims.len())?;
                let mut dims = dims.to_vec();
                dims[axis] =
                    if ctx.input(1).is_some() { SymDim::Unknown } else { SymDim::known(1) };
                if !keeps {
                    dims.remove(axis);
                }
                Some(dims)
            }
            None => None,
        };
        ctx.set_info(0, Info::sequence(Info::new(ctx.elem(0), dims)));
        Ok(())
    },
    eval: Eval::Data(split_to_sequence),
    role: Role::Structural,
};

fn split_to_sequence(
    ctx: &EvalCtx<'_>,
    mut inputs: Vec<Option<Datum>>,
) -> Result<Vec<Datum>, OpError> {
    let x = take(&mut inputs, 0)?.into_tensor()?;
    let axis = normalize_axis(attr::int(ctx.node, "axis", 0)?, x.dims().len())?;
    let n = x.dims()[axis];
    let mut parts = Vec::new();
    let Ok(wanted) = take(&mut inputs, 1) else {
        let keeps = attr::flag(ctx.node, "keepdims", true)?;
        for i in 0..n {
            parts.push(if keeps { part(ctx, &x, axis, i, 1)? } else { entry(ctx, &x, axis, i)? });
        }
        return Ok(vec![Datum::Sequence(Arc::new(parts))]);
    };
    let wanted = wanted.into_tensor()?;
    let sizes = crate::layout::to_sizes(&indices(&wanted)?)?;
    let sizes = match (wanted.dims().is_empty(), sizes.as_slice()) {
        // One number is the size of every part but the last.
        (true, &[size]) if 0 < size => {
            (0..n.div_ceil(size)).map(|i| size.min(n - i * size)).collect()
        }
        (false, sizes) if crate::shape::sum(sizes) == n => sizes.to_vec(),
        _ => return Err(OpError::Invalid(format!("{n} entries in parts of {sizes:?}"))),
    };
    let mut start = 0;
    for size in sizes {
        parts.push(part(ctx, &x, axis, start, size)?);
        start += size;
    }
    Ok(vec![Datum::Sequence(Arc::new(parts))])
}

/// ONNX SequenceMap 17: a graph for every entry of the sequences, which are as long as the first.
pub(crate) static SEQUENCE_MAP: OpDef = OpDef {
    op_type: "SequenceMap",
    domain: "",
    versions: &[17],
    attrs: &["body"],
    infer: |ctx| {
        let inputs = (0..ctx.n_inputs()).map(|i| match ctx.input(i) {
            Some(Info { element: Some(element), .. }) => (**element).clone(),
            Some(info) => info.clone(),
            None => Info::default(),
        });
        let outputs = ctx.body("body", inputs.collect());
        for (i, info) in outputs.into_iter().enumerate() {
            ctx.set_info(i, Info::sequence(Info::new(info.elem, info.dims)));
        }
        Ok(())
    },
    eval: Eval::Bodies(sequence_map),
    role: ROLE,
};

fn sequence_map(
    _: &EvalCtx<'_>,
    inputs: Vec<Option<Datum>>,
    bodies: &dyn Bodies,
) -> Result<Vec<Datum>, OpError> {
    let inputs = inputs.into_iter().enumerate().map(|(i, x)| x.ok_or(OpError::MissingInput(i)));
    let inputs: Vec<Datum> = inputs.collect::<Result<_, _>>()?;
    let n = match inputs.first() {
        Some(Datum::Sequence(tensors)) => tensors.len(),
        _ => return Err(OpError::Invalid("input 0 is not a sequence".to_owned())),
    };
    let mut all: Vec<Vec<Tensor>> = vec![Vec::new(); bodies.outputs("body")?.len()];
    for i in 0..n {
        let args = inputs.iter().map(|x| match x {
            Datum::Sequence(tensors) => {
                tensors.get(i).cloned().map(Datum::Tensor).ok_or_else(|| {
                    OpError::Invalid(format!("sequences of {n} and {} tensors", tensors.len()))
                })
            }
            other => Ok(other.clone()),
        });
        let outputs = bodies.run("body", args.collect::<Result<_, _>>()?)?;
        for (all, y) in all.iter_mut().zip(outputs) {
            all.push(y.into_tensor()?);
        }
    }
    Ok(all.into_iter().map(|tensors| Datum::Sequence(Arc::new(tensors))).collect())
}

/// ONNX Optional 15: a value, or none of the type in an attribute.
pub(crate) static OPTIONAL: OpDef = OpDef {
    op_type: "Optional",
    domain: "",
    versions: &[15],
    attrs: &["type"],
    infer: |ctx| {
        let info = match (ctx.input(0), ctx.node.attr("type")) {
            (Some(info), _) => info.clone(),
            (None, Some(midtread_graph::AttrValue::Type(ty))) => Info::declared(ty),
            _ => Info::default(),
        };
        ctx.set_info(0, info);
        Ok(())
    },
    eval: Eval::Data(|_, mut inputs| Ok(vec![take(&mut inputs, 0).unwrap_or(Datum::Empty)])),
    role: Role::Structural,
};

/// ONNX OptionalHasElement 15 and 18 (of an input left out, and of what is not optional).
pub(crate) static OPTIONAL_HAS_ELEMENT: OpDef = OpDef {
    op_type: "OptionalHasElement",
    domain: "",
    versions: &[15, 18],
    attrs: &[],
    infer: |ctx| {
        ctx.set(0, Some(DataType::Bool), Some(Vec::new()));
        Ok(())
    },
    eval: Eval::Data(|_, inputs| {
        let has = matches!(inputs.first(), Some(Some(Datum::Tensor(_) | Datum::Sequence(_))));
        let y = Tensor::scalar(u8::from(has)).with_dtype(DataType::Bool)?;
        Ok(vec![y.into()])
    }),
    role: Role::Structural,
};

/// ONNX OptionalGetElement 15 and 18.
pub(crate) static OPTIONAL_GET_ELEMENT: OpDef = OpDef {
    op_type: "OptionalGetElement",
    domain: "",
    versions: &[15, 18],
    attrs: &[],
    infer: |ctx| {
        let info = ctx.input(0).cloned().unwrap_or_default();
        ctx.set_info(0, info);
        Ok(())
    },
    eval: Eval::Data(|_, mut inputs| match take(&mut inputs, 0)? {
        Datum::Empty => Err(OpError::Invalid("an optional value that is not there".to_owned())),
        value => Ok(vec![value]),
    }),
    role: Role::Structural,
};
