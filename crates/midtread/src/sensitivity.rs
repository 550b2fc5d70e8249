//! What measuring each layer alone ([`midtread_compare::sensitivity()`]) is used for.

use std::fmt::Write as _;

use midtread_compare::Sensitivity;
use serde_json::Value;

/// An overrides file for `plan` and `quantize` that keeps the `n_keep` most sensitive layers in float.
pub fn overrides_text(result: &Sensitivity, n_keep: usize) -> String {
    let mut text = format!(
        "# The {} most sensitive of {} layers, over {} samples. Loss of the outputs: {:.3e} with everything quantized.\n\
         keep_float = [\n",
        n_keep.min(result.layers.len()),
        result.layers.len(),
        result.samples,
        result.quantized.loss
    );
    for layer in result.keep_in_float(n_keep) {
        // A JSON string is a TOML string.
        let name = Value::String(layer.node.clone());
        writeln!(
            text,
            "  {name}, # {}: loss {:.3e} alone, {:.3e} with all others",
            layer.op_type, layer.alone.loss, layer.in_float.loss
        )
        .expect("strings grow");
    }
    text + "]\n"
}
