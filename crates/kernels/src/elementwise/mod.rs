//! Operators that look at one element at a time.
//!
//! Every function of a float gives the same bits on every CPU: [`math`]'s are made of operations that IEEE 754
//! defines, and the rest come from `libm`, not from the platform.

mod binary;
pub mod math;
mod unary;

pub use binary::{BinaryOp, binary, broadcast_dims, broadcast_with, prelu};
pub use unary::{UnaryOp, map, unary, unary_in_place};

use crate::variant::VariantInfo;

/// The implementations, for `midtread inspect --cpu`.
pub(crate) fn describe() -> Vec<VariantInfo> {
    [binary::describe(), unary::describe()].concat()
}

#[cfg(test)]
mod tests;
