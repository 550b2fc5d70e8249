//! Strings: joined, split, normalized, matched, counted.

use std::collections::HashMap;

use midtread_graph::{AttrValue, Bytes, DataType, Node, Tensor};

use crate::{
    attr,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    shape::{Odometer, broadcast, broadcast_inputs, broadcast_strides},
    sym::SymDim,
    typed::{check_type, indices},
};

/// The strings of an input, which has to hold some.
fn strings(tensor: &Tensor) -> Result<&[Bytes], OpError> {
    check_type(tensor, DataType::String)?;
    Ok(tensor.as_strings().unwrap_or_default())
}

fn utf8(bytes: &[u8]) -> Result<&str, OpError> {
    std::str::from_utf8(bytes).map_err(|_| OpError::Invalid("a string is not UTF-8".to_owned()))
}

/// The strings of two tensors, broadcast to `dims`.
pub(crate) fn pairs(
    a: &Tensor,
    b: &Tensor,
    dims: &[usize],
) -> Result<Vec<(Bytes, Bytes)>, OpError> {
    let (xa, xb) = (strings(a)?, strings(b)?);
    let steps = [a, b].map(|t| broadcast_strides(t.dims(), dims));
    let mut at = Odometer::new(dims, &[&steps[0], &steps[1]]);
    let next = |_| {
        let pair = (xa[at.offsets[0] as usize].clone(), xb[at.offsets[1] as usize].clone());
        at.advance();
        pair
    };
    Ok((0..midtread_graph::tensor::n_elements(dims)?).map(next).collect())
}

/// ONNX StringConcat 20.
pub(crate) static STRING_CONCAT: OpDef = OpDef {
    op_type: "StringConcat",
    domain: "",
    versions: &[20],
    attrs: &[],
    infer: |ctx| {
        ctx.set(0, Some(DataType::String), broadcast_inputs(ctx, 0..2)?);
        Ok(())
    },
    eval: Eval::Tensors(|_, args| {
        let (a, b) = (args.required(0)?, args.required(1)?);
        let dims = broadcast(&[a.dims(), b.dims()])?;
        let joined = pairs(a, b, &dims)?.into_iter().map(|(a, b)| [a, b].concat().into());
        Ok(vec![Tensor::from_strings(dims, joined.collect())?])
    }),
    role: Role::Structural,
};

/// ONNX StringSplit 20: the parts, filled up with empty strings, and how many there are.
pub(crate) static STRING_SPLIT: OpDef = OpDef {
    op_type: "StringSplit",
    domain: "",
    versions: &[20],
    attrs: &["delimiter", "maxsplit"],
    infer: |ctx| {
        let n = ctx.fresh_symbol();
        let dims = ctx.dims(0).map(<[_]>::to_vec);
        ctx.set(0, Some(DataType::String), dims.clone().map(|dims| [dims, vec![n]].concat()));
        ctx.set(1, Some(DataType::Int64), dims);
        Ok(())
    },
    eval: Eval::Tensors(string_split),
    role: Role::Structural,
};

fn string_split(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let delimiter = attr::string(ctx.node, "delimiter", "")?;
    let n_splits = match attr::opt_int(ctx.node, "maxsplit")? {
        Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
        None => usize::MAX,
    };
    let split = |text: &Bytes| -> Result<Vec<Bytes>, OpError> {
        let text = utf8(text)?;
        let parts: Vec<&str> = match delimiter {
            "" => split_at_whitespace(text, n_splits),
            _ => text.splitn(n_splits.saturating_add(1), delimiter).collect(),
        };
        Ok(parts.into_iter().map(|part| Bytes::copy_from_slice(part.as_bytes())).collect())
    };
    let parts = strings(x)?.iter().map(split).collect::<Result<Vec<_>, _>>()?;
    let n = parts.iter().map(Vec::len).max().unwrap_or(0);
    let counts: Vec<i64> = parts.iter().map(|p| p.len() as i64).collect();
    let filled = parts.into_iter().flat_map(|mut parts| {
        parts.resize(n, Bytes::new());
        parts
    });
    let dims = [x.dims(), &[n]].concat();
    Ok(vec![
        Tensor::from_strings(dims, filled.collect())?,
        Tensor::from_slice(x.dims().to_vec(), &counts)?,
    ])
}

/// Words between runs of whitespace; what is left after `n_splits` of them is one part, to its end.
fn split_at_whitespace(text: &str, n_splits: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        match rest.find(char::is_whitespace) {
            Some(end) if parts.len() < n_splits => {
                parts.push(&rest[..end]);
                rest = rest[end..].trim_start();
            }
            _ => {
                parts.push(rest);
                break;
            }
        }
    }
    parts
}

/// ONNX StringNormalizer 10: upper or lower case, and stop words left out. `locale` changes nothing here: case is
/// Unicode's, the same everywhere.
pub(crate) static STRING_NORMALIZER: OpDef = OpDef {
    op_type: "StringNormalizer",
    domain: "",
    versions: &[10],
    attrs: &["case_change_action", "is_case_sensitive", "locale", "stopwords"],
    infer: |ctx| {
        let dims = if ctx.node.attr("stopwords").is_none() {
            ctx.dims(0).map(<[_]>::to_vec)
        } else {
            let n = ctx.fresh_symbol();
            ctx.dims(0).map(|dims| {
                let mut dims = dims.to_vec();
                if let Some(last) = dims.last_mut() {
                    *last = n;
                }
                dims
            })
        };
        ctx.set(0, Some(DataType::String), dims);
        Ok(())
    },
    eval: Eval::Tensors(string_normalizer),
    role: Role::Structural,
};

fn string_list(node: &Node, name: &'static str) -> Result<Vec<Bytes>, OpError> {
    match node.attr(name) {
        None => Ok(Vec::new()),
        Some(AttrValue::Strings(strings)) => Ok(strings.clone()),
        Some(AttrValue::Floats(none)) if none.is_empty() => Ok(Vec::new()),
        Some(_) => Err(OpError::Invalid(format!("attribute `{name}` is not a list of strings"))),
    }
}

fn string_normalizer(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let is_case_sensitive = attr::flag(ctx.node, "is_case_sensitive", false)?;
    let change: fn(&str) -> String = match attr::string(ctx.node, "case_change_action", "NONE")? {
        "NONE" => str::to_owned,
        "LOWER" => str::to_lowercase,
        "UPPER" => str::to_uppercase,
        other => return Err(OpError::Invalid(format!("`case_change_action` is `{other}`"))),
    };
    if !matches!(x.dims(), [_] | [1, _]) {
        return Err(OpError::Invalid(format!("strings of sizes {:?}", x.dims())));
    }
    let compared =
        |text: &str| if is_case_sensitive { text.to_owned() } else { text.to_lowercase() };
    let stop_words = string_list(ctx.node, "stopwords")?;
    let stop_words = stop_words.iter().map(|w| Ok(compared(utf8(w)?)));
    let stop_words = stop_words.collect::<Result<std::collections::HashSet<_>, OpError>>()?;
    let mut kept = Vec::new();
    for text in strings(x)? {
        let text = utf8(text)?;
        if !stop_words.contains(&compared(text)) {
            kept.push(Bytes::from(change(text)));
        }
    }
    if kept.is_empty() {
        kept.push(Bytes::new());
    }
    let mut dims = x.dims().to_vec();
    dims[x.dims().len() - 1] = kept.len();
    Ok(vec![Tensor::from_strings(dims, kept)?])
}

/// Whether a whole string matches a pattern. ONNX RegexFullMatch 20.
///
/// The syntax is RE2's without classes of Unicode properties, which are refused.
pub(crate) static REGEX_FULL_MATCH: OpDef = OpDef {
    op_type: "RegexFullMatch",
    domain: "",
    versions: &[20],
    attrs: &["pattern"],
    infer: |ctx| {
        ctx.set(0, Some(DataType::Bool), ctx.dims(0).map(<[_]>::to_vec));
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        let pattern = attr::string(ctx.node, "pattern", "")?;
        let regex = regex_lite::Regex::new(&format!("^(?:{pattern})$"))
            .map_err(|err| OpError::Invalid(format!("pattern `{pattern}`: {err}")))?;
        let texts = strings(x)?.iter().map(|text| Ok(u8::from(regex.is_match(utf8(text)?))));
        let bits = texts.collect::<Result<Vec<u8>, OpError>>()?;
        Ok(vec![Tensor::from_slice(x.dims().to_vec(), &bits)?.with_dtype(DataType::Bool)?])
    }),
    role: Role::Structural,
};

/// Counts of n-grams, with gaps. ONNX TfIdfVectorizer 9.
pub(crate) static TF_IDF_VECTORIZER: OpDef = OpDef {
    op_type: "TfIdfVectorizer",
    domain: "",
    versions: &[9],
    attrs: &[
        "max_gram_length",
        "max_skip_count",
        "min_gram_length",
        "mode",
        "ngram_counts",
        "ngram_indexes",
        "pool_int64s",
        "pool_strings",
        "weights",
    ],
    infer: |ctx| {
        let n = attr::ints(ctx.node, "ngram_indexes")?.and_then(|i| i.iter().max()).map(|&i| i + 1);
        let n = n.map_or(SymDim::Unknown, SymDim::known);
        let dims = ctx.dims(0).and_then(|dims| match dims {
            [_] => Some(vec![n]),
            [rows, _] => Some(vec![rows.clone(), n]),
            _ => None,
        });
        ctx.set(0, Some(DataType::Float), dims);
        Ok(())
    },
    eval: Eval::Tensors(tf_idf_vectorizer),
    role: Role::Structural,
};

/// An item of an n-gram: what the texts consist of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Item {
    Int(i64),
    Text(Bytes),
}

/// Which columns the n-grams of each length count in, shortest first.
fn grams(node: &Node) -> Result<Vec<HashMap<Vec<Item>, usize>>, OpError> {
    let pool: Vec<Item> = match attr::ints(node, "pool_int64s")?.filter(|ints| !ints.is_empty()) {
        Some(ints) => ints.iter().map(|&i| Item::Int(i)).collect(),
        None => string_list(node, "pool_strings")?.into_iter().map(Item::Text).collect(),
    };
    let counts = attr::sizes(node, "ngram_counts")?.ok_or(OpError::MissingAttr("ngram_counts"))?;
    let indexes =
        attr::sizes(node, "ngram_indexes")?.ok_or(OpError::MissingAttr("ngram_indexes"))?;
    let mut columns = indexes.into_iter();
    let mut grams = Vec::new();
    for (i, &start) in counts.iter().enumerate() {
        let end = counts.get(i + 1).copied().unwrap_or(pool.len());
        let of_length = pool.get(start..end).filter(|items| items.len().is_multiple_of(i + 1));
        let of_length = of_length.ok_or_else(|| {
            OpError::Invalid(format!("{}-grams from {start} to {end} of {}", i + 1, pool.len()))
        })?;
        let mut columns_of = HashMap::new();
        for gram in of_length.chunks_exact(i + 1) {
            let column = columns.next().ok_or_else(|| {
                OpError::Invalid("fewer `ngram_indexes` than there are n-grams".to_owned())
            })?;
            columns_of.insert(gram.to_vec(), column);
        }
        grams.push(columns_of);
    }
    Ok(grams)
}

fn tf_idf_vectorizer(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let (x, node) = (args.required(0)?, ctx.node);
    let length = |name| attr::size(node, name, 1);
    let (min, max) = (length("min_gram_length")?.max(1), length("max_gram_length")?);
    let max_skip = attr::size(node, "max_skip_count", 0)?;
    let grams = grams(node)?;
    let n_columns = attr::sizes(node, "ngram_indexes")?.and_then(|i| i.into_iter().max());
    let n_columns = n_columns.map_or(0, |i| i.saturating_add(1));
    let weights = match node.attr("weights") {
        None => None,
        Some(AttrValue::Floats(weights)) => Some(weights),
        Some(_) => return Err(OpError::Invalid("`weights` is not a list of floats".to_owned())),
    };
    let items: Vec<Item> = match x.as_strings() {
        Some(strings) => strings.iter().cloned().map(Item::Text).collect(),
        None => indices(x)?.into_iter().map(Item::Int).collect(),
    };
    let (rows, len, dims) = match *x.dims() {
        [len] => (1, len, vec![n_columns]),
        [rows, len] => (rows, len, vec![rows, n_columns]),
        _ => return Err(OpError::Invalid(format!("items of sizes {:?}", x.dims()))),
    };
    let mode = attr::string(node, "mode", "TF")?;
    if !matches!(mode, "TF" | "IDF" | "TFIDF") {
        return Err(OpError::Invalid(format!("`mode` is `{mode}`")));
    }
    let y = ctx.pool.fill::<f32>(dims, |y| {
        y.fill(0.0);
        for row in 0..rows {
            let (items, y) = (&items[row * len..][..len], &mut y[row * n_columns..][..n_columns]);
            for n in min..=max.min(grams.len()).min(len) {
                // A single item has no gaps: it counts once.
                for skip in 0..=if n == 1 { 0 } else { max_skip.min(len) } {
                    let span = (n - 1) * (skip + 1) + 1;
                    for start in 0..(len + 1).saturating_sub(span) {
                        let gram = items[start..].iter().step_by(skip + 1).take(n).cloned();
                        if let Some(&column) = grams[n - 1].get(&gram.collect::<Vec<_>>()) {
                            y[column] += 1.0;
                        }
                    }
                }
            }
            for (i, y) in y.iter_mut().enumerate() {
                // The specification's weights are in the order of the columns.
                let weight = weights.and_then(|w| w.get(i)).copied().unwrap_or(1.0);
                match mode {
                    "IDF" if 0.0 < *y => *y = weight,
                    "TFIDF" => *y *= weight,
                    _ => {}
                }
            }
        }
        Ok(())
    })?;
    Ok(vec![y])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitespace_separates_once_however_long_and_the_rest_keeps_its_end() {
        assert_eq!(split_at_whitespace("  a \t b  c ", usize::MAX), ["a", "b", "c"]);
        assert_eq!(split_at_whitespace(" a  b  c ", 1), ["a", "b  c "]);
        assert_eq!(split_at_whitespace("   ", 3), [""; 0]);
    }
}
