//! Which tensors keep their type, and which type the others get.

use midtread_num::formats::{Format, ggml};
use midtread_quant::plan::glob;

use crate::dtype::DType;
use crate::tensor::ggml_rows;

/// Names of tensors that lose more from few bits than they save, and what they are. Case does not matter.
pub static KEPT_NAMES: &[(&str, &str)] = &[
    ("*bias", "a bias"),
    ("*norm*", "a norm"),
    ("*.ln_*", "a norm"),
    ("*embed*", "an embedding"),
    ("*embd*", "an embedding"),
    ("*.wte.*", "an embedding"),
    ("wte.*", "an embedding"),
    ("*.wpe.*", "an embedding"),
    ("wpe.*", "an embedding"),
    ("*lm_head*", "the output layer"),
    ("*router*", "a router of experts"),
    ("*.mlp.gate.weight", "a router of experts"),
];

/// Of those llama.cpp keeps only some: its embeddings and output layers are quantized, and it runs no router or
/// position table that is.
pub static KEPT_NAMES_GGUF: &[(&str, &str)] = &[
    ("*bias", "a bias"),
    ("*norm*", "a norm"),
    ("*ffn_gate_inp*", "a router of experts"),
    ("*position_embd*", "a table of positions"),
    ("*token_types*", "a table of token types"),
    ("*rope_freqs*", "frequencies"),
];

/// What is said of a name that is in such a list.
pub(crate) fn kept_name(names: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    names.iter().find(|(pattern, _)| glob(pattern, &name)).map(|(_, what)| *what)
}

/// The first pattern that a name matches.
pub(crate) fn matched<'a>(patterns: &'a [String], name: &str) -> Option<&'a str> {
    patterns.iter().find(|pattern| glob(pattern, name)).map(String::as_str)
}

/// A mixture of ggml's types by what a tensor is for: llama.cpp's `Q4_K_M` and its kin.
#[derive(Debug)]
pub struct Mix {
    /// `q4_k_m`.
    pub name: &'static str,
    /// One line of help.
    pub summary: &'static str,
    /// `general.file_type`.
    pub(crate) file_type: u32,
    /// Most tensors.
    pub(crate) usual: &'static str,
    /// The output layer, values of attention and the last of each feed-forward part in about half of the layers.
    pub(crate) better: &'static str,
}

/// Every mixture.
pub static MIXES: &[Mix] = &[
    Mix {
        name: "q4_k_m",
        summary: "Q4_K, and Q6_K where llama.cpp's Q4_K_M has it",
        file_type: 15,
        usual: "q4_k",
        better: "q6_k",
    },
    Mix {
        name: "q5_k_m",
        summary: "Q5_K, and Q6_K where llama.cpp's Q5_K_M has it",
        file_type: 17,
        usual: "q5_k",
        better: "q6_k",
    },
];

/// What a mixture has to know of a whole checkpoint.
pub(crate) struct Layers {
    n: usize,
    has_output: bool,
}

impl Layers {
    pub(crate) fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let (mut n, mut has_output) = (0, false);
        for name in names {
            n = n.max(layer(name).map_or(0, |i| i + 1));
            has_output |= name == "output.weight";
        }
        Self { n, has_output }
    }
}

/// The number in `blk.7.attn_v.weight`.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok().filter(|i| *i < 1 << 20)
}

impl Mix {
    /// The type of a tensor. The rule is llama.cpp's (`llama-quant.cpp`) for networks without experts: Q6_K for the
    /// output layer (the embedding, where that is both), and for `attn_v` and `ffn_down` in the first eighth of the
    /// layers, the last, and every third between.
    pub(crate) fn format(&self, name: &str, layers: &Layers) -> &'static str {
        let is_output =
            name == "output.weight" || !layers.has_output && name == "token_embd.weight";
        let gets_more = |i: usize| {
            let eighth = layers.n / 8;
            i < eighth || 7 * layers.n / 8 <= i || (i - eighth) % 3 == 2
        };
        let is_sensitive = name.contains("attn_v.weight") || name.contains("ffn_down.weight");
        if is_output || is_sensitive && layer(name).is_some_and(gets_more) {
            self.better
        } else {
            self.usual
        }
    }
}

/// The format that llama.cpp takes where a row is not whole blocks of `format`; `None` where it is, or there is none.
pub(crate) fn fallback(format: &Format<'_>, dims: &[u64]) -> Option<&'static str> {
    let cols = ggml_rows(dims).cols;
    let blocks = ggml::block_type(format.def)?;
    if cols.is_multiple_of(blocks.block_size) {
        return None;
    }
    let name = match format.def.name {
        "q4_k" => "q5_0",
        "q5_k" => "q5_1",
        "q6_k" => "q8_0",
        "q2_k" | "q3_k" => "iq4_nl",
        _ => "float16",
    };
    Some(if cols.is_multiple_of(32) { name } else { "float16" })
}

/// `general.file_type` of a file whose tensors are mostly in a format.
pub(crate) fn file_type(name: &str) -> Option<u32> {
    Some(match name {
        "float32" => 0,
        "float16" => 1,
        "q4_0" => 2,
        "q4_1" => 3,
        "q8_0" => 7,
        "q5_0" => 8,
        "q5_1" => 9,
        "q2_k" => 10,
        "q3_k" => 11,
        "q4_k" => 14,
        "q5_k" => 16,
        "q6_k" => 18,
        "iq4_nl" => 25,
        "bfloat16" => 32,
        _ => return None,
    })
}

/// The type of a GGUF tensor in a format.
pub(crate) fn ggml_dtype(format: &str) -> Option<&'static DType> {
    crate::dtype::DTYPES
        .iter()
        .find(|ty| ty.name == format && ty.ggml.is_some() && ty.values.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mixture_is_llama_cpps() {
        let names: Vec<String> = (0..18).map(|i| format!("blk.{i}.attn_v.weight")).collect();
        let layers = Layers::of(names.iter().map(String::as_str));
        let better: Vec<usize> = (0..18)
            .filter(|i| MIXES[0].format(&format!("blk.{i}.ffn_down.weight"), &layers) == "q6_k")
            .collect();
        // 18 layers: 0 and 1, from 15 on, and every third after the second.
        assert_eq!(better, [0, 1, 4, 7, 10, 13, 15, 16, 17]);
        assert_eq!(MIXES[0].format("token_embd.weight", &layers), "q6_k");
        assert_eq!(MIXES[0].format("blk.0.attn_q.weight", &layers), "q4_k");
        let layers = Layers::of(["output.weight"].into_iter());
        assert_eq!(MIXES[0].format("token_embd.weight", &layers), "q4_k");
        assert_eq!(MIXES[1].format("output.weight", &layers), "q6_k");
    }

    #[test]
    fn rows_that_are_not_whole_blocks_get_a_format_that_they_are() {
        let fallback = |name, cols| fallback(&Format::named(name).unwrap(), &[4, cols]);
        assert_eq!(fallback("q4_k", 512), None);
        assert_eq!(fallback("q4_k", 640), Some("q5_0"));
        assert_eq!(fallback("q6_k", 640), Some("q8_0"));
        assert_eq!(fallback("q4_k", 100), Some("float16"));
        assert_eq!(fallback("nf4", 100), None);
    }
}
