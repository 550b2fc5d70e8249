//! Why a program could not be read or run.

use alloc::string::String;
use core::fmt;

/// Why a program could not be read, or not run on these inputs: a clause, and the node that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong: "3 input channels where the weights have 2".
    pub what: String,
    /// The step's node and its operator, where it is about one.
    pub node: Option<(String, String)>,
}

impl Fault {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), node: None }
    }

    pub(crate) fn at(self, node: &str, op_type: &str) -> Self {
        let node = self.node.or_else(|| Some((node.into(), op_type.into())));
        Self { node, ..self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some((node, op_type)) => write!(f, "node `{node}` ({op_type}): {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl core::error::Error for Fault {}
