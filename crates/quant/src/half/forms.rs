//! Which operators have a form in 16-bit floats, from which version on, and which of their inputs and outputs it
//! concerns: the specification's type constraints, as `tools/half_tables.py` reads them from the onnx package.

use std::{collections::HashMap, sync::LazyLock};

use midtread_graph::{Node, model::canonical_domain};

use super::HalfType;

/// What an input or output may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// float32 or the 16-bit type; all of a node's have the same.
    Half,
    /// float32 alone.
    Float,
    /// No floats.
    Other,
}

/// The ports of one version of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The operator set version that brought it.
    pub since: i64,
    inputs: &'static str,
    outputs: &'static str,
}

impl Form {
    /// What input `i` may hold; those of variadic operators are all alike.
    pub fn input(&self, i: usize) -> Port {
        port(self.inputs, i)
    }

    /// What output `i` may hold.
    pub fn output(&self, i: usize) -> Port {
        port(self.outputs, i)
    }

    /// Whether any port takes the 16-bit type.
    pub fn has_half(&self) -> bool {
        self.inputs.contains('h') || self.outputs.contains('h')
    }
}

fn port(letters: &str, i: usize) -> Port {
    match letters.as_bytes().get(i).or(letters.as_bytes().last()) {
        Some(b'h') => Port::Half,
        Some(b'f') => Port::Float,
        _ => Port::Other,
    }
}

/// By domain and operator: `(float16, bfloat16)` forms in ascending order of versions.
type Table = HashMap<(&'static str, &'static str), Vec<(Form, Form)>>;

static FORMS: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table::new();
    for line in include_str!("forms.txt").lines() {
        let words: Vec<&'static str> = line.split(' ').collect();
        let &[domain, op_type, since, half_in, half_out, brain_in, brain_out] = &words[..] else {
            panic!("forms.txt: {line}")
        };
        let since = since.parse().expect("a version is a number");
        let letters = |text: &'static str| if text == "_" { "" } else { text };
        let form =
            |inputs, outputs| Form { since, inputs: letters(inputs), outputs: letters(outputs) };
        let forms = (form(half_in, half_out), form(brain_in, brain_out));
        table.entry((canonical_domain(domain), op_type)).or_default().push(forms);
    }
    table
});

/// The form of this node in `half`, in version `opset` of its operator set; `None` if the table does not have it.
pub fn find(node: &Node, opset: i64, half: HalfType) -> Option<Form> {
    versions(node, half).filter(|form| form.since <= opset).last()
}

/// The first version in which some port of this node's operator takes `half`.
pub fn first_version(node: &Node, half: HalfType) -> Option<i64> {
    versions(node, half).find(Form::has_half).map(|form| form.since)
}

fn versions(node: &Node, half: HalfType) -> impl Iterator<Item = Form> {
    let found = FORMS.get(&(canonical_domain(&node.domain), node.op_type.as_str()));
    found.into_iter().flatten().map(move |&(float16, bfloat16)| match half {
        HalfType::Float16 => float16,
        HalfType::Bfloat16 => bfloat16,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(op_type: &str) -> Node {
        Node { op_type: op_type.to_owned(), ..Node::default() }
    }

    #[test]
    fn ports_and_versions_are_the_specifications() {
        let resize = find(&node("Resize"), 17, HalfType::Float16).unwrap();
        // x, roi, scales, sizes.
        let ports = [0, 1, 2, 3].map(|i| resize.input(i));
        assert_eq!(ports, [Port::Half, Port::Half, Port::Float, Port::Other]);
        assert!(find(&node("Conv"), 21, HalfType::Float16).unwrap().has_half());
        assert!(!find(&node("Conv"), 21, HalfType::Bfloat16).unwrap().has_half());
        assert!(find(&node("Conv"), 22, HalfType::Bfloat16).unwrap().has_half());
        assert_eq!(first_version(&node("Conv"), HalfType::Bfloat16), Some(22));
        assert_eq!(first_version(&node("NonMaxSuppression"), HalfType::Float16), None);
        // A variadic operator's inputs are all alike.
        assert_eq!(find(&node("Concat"), 13, HalfType::Bfloat16).unwrap().input(7), Port::Half);
        assert_eq!(find(&node("NoSuch"), 13, HalfType::Bfloat16), None);
        let fused = Node { domain: "com.microsoft".into(), ..node("SkipLayerNormalization") };
        assert!(find(&fused, 1, HalfType::Float16).unwrap().has_half());
    }
}
