//! Attributes with their defaults. One of the wrong kind is an error, not the default.

use midtread_graph::{AttrValue, Node, Tensor};

use crate::eval::OpError;

fn wrong_kind(name: &str, wanted: &str) -> OpError {
    OpError::Invalid(format!("attribute `{name}` is not {wanted}"))
}

/// An integer.
pub(crate) fn int(node: &Node, name: &'static str, default: i64) -> Result<i64, OpError> {
    Ok(opt_int(node, name)?.unwrap_or(default))
}

/// An integer without a default.
pub(crate) fn opt_int(node: &Node, name: &'static str) -> Result<Option<i64>, OpError> {
    match node.attr(name) {
        None => Ok(None),
        Some(AttrValue::Int(i)) => Ok(Some(*i)),
        Some(_) => Err(wrong_kind(name, "an integer")),
    }
}

/// An integer that is 0 or 1.
pub(crate) fn flag(node: &Node, name: &'static str, default: bool) -> Result<bool, OpError> {
    Ok(int(node, name, i64::from(default))? != 0)
}

/// An integer that is a count or a position.
pub(crate) fn size(node: &Node, name: &'static str, default: usize) -> Result<usize, OpError> {
    match opt_int(node, name)? {
        None => Ok(default),
        Some(i) => usize::try_from(i)
            .map_err(|_| OpError::Invalid(format!("attribute `{name}` is negative: {i}"))),
    }
}

/// A float.
pub(crate) fn float(node: &Node, name: &'static str, default: f32) -> Result<f32, OpError> {
    Ok(opt_float(node, name)?.unwrap_or(default))
}

/// A float without a default.
pub(crate) fn opt_float(node: &Node, name: &'static str) -> Result<Option<f32>, OpError> {
    match node.attr(name) {
        None => Ok(None),
        Some(AttrValue::Float(f)) => Ok(Some(*f)),
        Some(_) => Err(wrong_kind(name, "a float")),
    }
}

/// Integers. An empty list whose kind the file does not say is one too.
pub(crate) fn ints<'a>(node: &'a Node, name: &'static str) -> Result<Option<&'a [i64]>, OpError> {
    match node.attr(name) {
        None => Ok(None),
        Some(AttrValue::Ints(ints)) => Ok(Some(ints)),
        Some(AttrValue::Floats(floats)) if floats.is_empty() => Ok(Some(&[])),
        Some(_) => Err(wrong_kind(name, "a list of integers")),
    }
}

/// Integers that are counts or positions.
pub(crate) fn sizes(node: &Node, name: &'static str) -> Result<Option<Vec<usize>>, OpError> {
    let Some(ints) = ints(node, name)? else { return Ok(None) };
    let sizes = ints.iter().map(|&i| usize::try_from(i)).collect::<Result<_, _>>();
    sizes.map(Some).map_err(|_| {
        OpError::Invalid(format!("attribute `{name}` has a negative element: {ints:?}"))
    })
}

/// A string.
pub(crate) fn string<'a>(
    node: &'a Node,
    name: &'static str,
    default: &'static str,
) -> Result<&'a str, OpError> {
    match node.attr(name) {
        None => Ok(default),
        Some(AttrValue::String(s)) => std::str::from_utf8(s).map_err(|_| wrong_kind(name, "UTF-8")),
        Some(_) => Err(wrong_kind(name, "a string")),
    }
}

/// A tensor.
pub(crate) fn tensor<'a>(
    node: &'a Node,
    name: &'static str,
) -> Result<Option<&'a Tensor>, OpError> {
    match node.attr(name) {
        None => Ok(None),
        Some(AttrValue::Tensor(t)) => Ok(Some(t)),
        Some(_) => Err(wrong_kind(name, "a tensor")),
    }
}
