//! Operators of ONNX Runtime (`com.microsoft`, version 1) on weights packed in few bits.

use midtread_graph::{DataType, Tensor};
use midtread_num::formats::{
    bits,
    codebook::{FP4_CODE, NF4_CODE},
};

use crate::{
    attr,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    gather::GATHER,
    infer::normalize_axis,
    matmul::product_transposed_f32,
    shape::product,
    sym::SymDim,
    typed::{elements, in_f32, narrowed, unsupported_type, widened},
};

const ROLE: Role = Role::Float("it is quantized already");

/// Weights in bitsandbytes' NF4 or FP4, decoded to `f32` and multiplied. `com.microsoft` MatMulBnb4.
pub(crate) static MATMUL_BNB4: OpDef = OpDef {
    op_type: "MatMulBnb4",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &["K", "N", "block_size", "quant_type", "training_mode", "transB"],
    infer: |ctx| {
        let n = SymDim::known(attr::int(ctx.node, "N", 0)?);
        let dims = ctx.dims(0).and_then(|d| d.split_last()).map(|(_, head)| [head, &[n]].concat());
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, matmul_bnb4)),
    role: ROLE,
};

fn matmul_bnb4(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (k, n) = (attr::size(ctx.node, "K", 0)?, attr::size(ctx.node, "N", 0)?);
    let block = attr::size(ctx.node, "block_size", 0)?;
    let code = match attr::int(ctx.node, "quant_type", -1)? {
        0 => FP4_CODE,
        1 => NF4_CODE,
        other => return Err(OpError::Invalid(format!("`quant_type` is {other}"))),
    };
    if !attr::flag(ctx.node, "transB", true)? || attr::flag(ctx.node, "training_mode", false)? {
        return Err(OpError::Unsupported("`transB` 0 or `training_mode` 1".to_owned()));
    }
    let (a, packed) = (args.required(0)?, args.required(1)?.as_bytes());
    let scales = elements::<f32>(args.required(2)?)?;
    let n_codes =
        k.checked_mul(n).filter(|&n| 0 < n && block != 0 && packed.len() == n.div_ceil(2));
    let n_codes = n_codes.filter(|n| scales.len() == n.div_ceil(block)).ok_or_else(|| {
        let sizes = format!("{} bytes and {} scales", packed.len(), scales.len());
        OpError::Invalid(format!("{sizes} for {k} x {n} weights in blocks of {block}"))
    })?;
    let codes = bits::unpack_high_first(packed, n_codes);
    let value = |(i, &q): (usize, &i32)| code[q as usize] * scales[i / block];
    let w: Vec<f32> = codes.iter().enumerate().map(value).collect();
    Ok(vec![product_transposed_f32(ctx, a, &Tensor::from_slice(vec![n, k], &w)?)?])
}

/// Rows of a table of codes, as real numbers. `com.microsoft` GatherBlockQuantized.
pub(crate) static GATHER_BLOCK_QUANTIZED: OpDef = OpDef {
    op_type: "GatherBlockQuantized",
    domain: "com.microsoft",
    versions: &[1],
    attrs: &["bits", "block_size", "gather_axis", "quantize_axis"],
    infer: |ctx| {
        let dims = match (ctx.dims(0), ctx.dims(1), ctx.elem(0)) {
            (Some(data), Some(at), Some(elem)) => {
                let axis = normalize_axis(attr::int(ctx.node, "gather_axis", 0)?, data.len())?;
                let mut dims = data.to_vec();
                // Several codes in a byte lie along the last dimension.
                let per_byte = if elem == DataType::Uint8 { 8 / bits_of(ctx.node)? } else { 1 };
                if let Some(last) = dims.last_mut() {
                    *last = last.mul(&SymDim::known(per_byte as i64));
                }
                dims.splice(axis..=axis, at.iter().cloned());
                Some(dims)
            }
            _ => None,
        };
        ctx.set(0, ctx.elem(2), dims);
        Ok(())
    },
    eval: Eval::Tensors(gather_block_quantized),
    role: ROLE,
};

fn bits_of(node: &midtread_graph::Node) -> Result<usize, OpError> {
    match attr::size(node, "bits", 4)? {
        bits @ (2 | 4 | 8) => Ok(bits),
        bits => Err(OpError::Invalid(format!("`bits` is {bits}"))),
    }
}

/// Codes of a tensor, in the order of `dims`; where several lie in a byte the last dimension is so much longer.
fn codes(tensor: &Tensor, bits: usize) -> Result<(Vec<i32>, Vec<usize>), OpError> {
    let mut dims = tensor.dims().to_vec();
    match tensor.dtype() {
        DataType::Uint8 => {
            let per_byte = 8 / bits;
            let mask = if bits == 8 { 0xff } else { (1_u8 << bits) - 1 };
            let each =
                |&byte: &u8| (0..per_byte).map(move |i| i32::from(byte >> (i * bits) & mask));
            let codes = tensor.as_bytes().iter().flat_map(each).collect();
            if let Some(last) = dims.last_mut() {
                *last *= per_byte;
            }
            Ok((codes, dims))
        }
        DataType::Int4 | DataType::Uint4 | DataType::Int8 => {
            Ok((crate::quantize::codes(tensor)?, dims))
        }
        dtype => Err(unsupported_type(dtype)),
    }
}

fn gather_block_quantized(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (data, at, scales) = (args.required(0)?, args.required(1)?, args.required(2)?);
    let rank = data.dims().len();
    let gather_axis = normalize_axis(attr::int(ctx.node, "gather_axis", 0)?, rank)?;
    let quantize_axis = normalize_axis(attr::int(ctx.node, "quantize_axis", 1)?, rank)?;
    let block = attr::size(ctx.node, "block_size", 128)?;
    let bits = bits_of(ctx.node)?;
    if gather_axis == quantize_axis || block == 0 || gather_axis + 1 == rank {
        return Err(OpError::Unsupported(format!(
            "rows along axis {gather_axis} of blocks of {block} along axis {quantize_axis}"
        )));
    }
    let zero_points = args.get(3);
    if scales.dims().len() != rank || zero_points.is_some_and(|z| z.dims().len() != rank) {
        return Err(OpError::Invalid(format!("scales of sizes {:?}", scales.dims())));
    }
    // The rows are taken from codes, scales and zero points alike, so that only they are decoded.
    let rows = |table: &Tensor| -> Result<Tensor, OpError> {
        let mut node = midtread_graph::Node::new("Gather", "", Vec::new(), Vec::new());
        node.set_attr("axis", midtread_graph::AttrValue::Int(gather_axis as i64));
        let gather = EvalCtx { node: &node, opset: 13, pool: ctx.pool };
        let args = Args(vec![Some(table.clone()), Some(at.clone())]);
        Ok(GATHER.evaluate_tensors(&gather, args)?.remove(0))
    };
    let (values, dims) = codes(&rows(data)?, bits)?;
    let scales = rows(scales)?;
    let zero_points = zero_points.map(|z| codes(&rows(z)?, bits)).transpose()?;
    let scale_type = scales.dtype();
    let wide = widened(ctx, &scales)?;
    let scale_values = elements::<f32>(&wide)?;
    // After the gathering the quantized axis lies behind those of the indices, if it was behind the gathered one.
    let axis = if gather_axis < quantize_axis {
        quantize_axis + at.dims().len() - 1
    } else {
        quantize_axis
    };
    let n = dims[axis];
    let n_blocks = n.div_ceil(block);
    let inner = product(&dims[axis + 1..]);
    let mut param_dims = dims.clone();
    param_dims[axis] = n_blocks;
    if scales.dims() != param_dims {
        return Err(OpError::Invalid(format!("scales of {:?} for {dims:?}", scales.dims())));
    }
    // Codes of zero points may be filled up to a whole byte.
    let zero_len = zero_points.as_ref().map_or(n_blocks, |(_, dims)| dims[axis]);
    if zero_len < n_blocks {
        return Err(OpError::Invalid(format!("zero points of {zero_len} blocks, not {n_blocks}")));
    }
    let default_zero = if data.dtype() == DataType::Uint8 { 1 << (bits - 1) } else { 0 };
    let y = ctx.pool.fill::<f32>(dims.clone(), |y| {
        for (i, (y, &q)) in y.iter_mut().zip(&values).enumerate() {
            let (outer, k, j) = (i / (n * inner), i / inner % n, i % inner);
            let param = (outer * n_blocks + k / block) * inner + j;
            let zero = match &zero_points {
                Some((zeros, _)) => zeros[(outer * zero_len + k / block) * inner + j],
                None => default_zero,
            };
            *y = (q - zero) as f32 * scale_values[param];
        }
        Ok(())
    })?;
    Ok(vec![narrowed(ctx, &y, scale_type)?])
}
