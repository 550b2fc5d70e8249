//! Every operator, one line each.

use midtread_graph::model::canonical_domain;

use crate::def::OpDef;

/// Sorted by domain and name. `docs/reference/operators.md` is generated from this list.
pub static OPS: &[&OpDef] = &[];

/// The definition of an operator, if it is in the table.
pub fn find(domain: &str, op_type: &str) -> Option<&'static OpDef> {
    let domain = canonical_domain(domain);
    OPS.binary_search_by(|op| (op.domain, op.op_type).cmp(&(domain, op_type))).ok().map(|i| OPS[i])
}
