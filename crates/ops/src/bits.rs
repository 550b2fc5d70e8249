//! Operators on the bits of integers.

use crate::{
    attr,
    binary::{combine, infer_broadcast},
    def::{Eval, OpDef, Role},
    eval::OpError,
    norm::same_as_first,
    typed::by_type,
    unary::map,
};

macro_rules! bitwise {
    ($(#[$doc:meta])* $name:ident: $op:literal, $f:expr) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &[18],
            attrs: &[],
            infer: infer_broadcast,
            eval: Eval::Tensors(|ctx, mut args| {
                let (a, b) = (args.take(0)?, args.take(1)?);
                by_type!(a.dtype(), T in [i8, i16, i32, i64, u8, u16, u32, u64] => {
                    Ok(vec![combine::<T>(ctx, &a, &b, $f)?])
                })
            }),
            role: Role::Structural,
        };
    };
}

bitwise! {
    /// ONNX BitwiseAnd 18.
    BITWISE_AND: "BitwiseAnd", |a, b| a & b
}
bitwise! {
    /// ONNX BitwiseOr 18.
    BITWISE_OR: "BitwiseOr", |a, b| a | b
}
bitwise! {
    /// ONNX BitwiseXor 18.
    BITWISE_XOR: "BitwiseXor", |a, b| a ^ b
}

/// ONNX BitwiseNot 18.
pub(crate) static BITWISE_NOT: OpDef = OpDef {
    op_type: "BitwiseNot",
    domain: "",
    versions: &[18],
    attrs: &[],
    infer: same_as_first,
    eval: Eval::Tensors(|ctx, mut args| {
        let x = args.take(0)?;
        by_type!(x.dtype(), T in [i8, i16, i32, i64, u8, u16, u32, u64] => {
            Ok(vec![map::<T>(ctx, x, |x| !x)?])
        })
    }),
    role: Role::Structural,
};

/// ONNX BitShift 11 and its later form for signed integers. What is shifted by its width or more is 0 (to the right,
/// of a negative number, -1).
pub(crate) static BIT_SHIFT: OpDef = OpDef {
    op_type: "BitShift",
    domain: "",
    versions: &[11],
    attrs: &["direction"],
    infer: infer_broadcast,
    eval: Eval::Tensors(|ctx, mut args| {
        let (a, b) = (args.take(0)?, args.take(1)?);
        let left = match attr::string(ctx.node, "direction", "")? {
            "LEFT" => true,
            "RIGHT" => false,
            other => return Err(OpError::Invalid(format!("`direction` is {other:?}"))),
        };
        by_type!(a.dtype(), T in [i8, i16, i32, i64, u8, u16, u32, u64] => {
            #[allow(
                clippy::useless_conversion,
                clippy::unnecessary_fallible_conversions,
                reason = "the same text serves every type"
            )]
            let shift: fn(T, T) -> T = if left {
                |a, b| a.checked_shl(u32::try_from(b).unwrap_or(u32::MAX)).unwrap_or(0)
            } else {
                |a, b| {
                    let none_left = a >> (T::BITS - 1) >> 1;
                    a.checked_shr(u32::try_from(b).unwrap_or(u32::MAX)).unwrap_or(none_left)
                }
            };
            Ok(vec![combine::<T>(ctx, &a, &b, shift)?])
        })
    }),
    role: Role::Structural,
};
