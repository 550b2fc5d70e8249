//! Telling models apart.

use midtread_graph::{Attr, AttrValue, Graph, Model, Tensor, types::TypeKind};

/// 16 hexadecimal digits that depend on everything a plan depends on: operator sets, names, node attributes, types
/// and every byte of every constant; not on documentation strings or metadata.
///
/// It tells models apart that a user mixed up. It is no defence against one made to collide.
pub fn fingerprint(model: &Model) -> String {
    let mut hash = Hash(0x6d69_6474_7265_6164);
    let mut imports = model.opset_imports.clone();
    imports.sort();
    for (domain, version) in &imports {
        hash.text(domain);
        hash.word(*version as u64);
    }
    hash.graph(&model.graph);
    let mut functions: Vec<_> = model.functions.iter().collect();
    functions
        .sort_by(|a, b| (&a.domain, &a.name, &a.overload).cmp(&(&b.domain, &b.name, &b.overload)));
    for function in functions {
        hash.text(&function.domain);
        hash.text(&function.name);
        hash.text(&function.overload);
        hash.graph(&function.body);
    }
    format!("{:016x}", hash.0)
}

/// Eight bytes at a time, so that gigabytes of weights cost less than reading them.
struct Hash(u64);

impl Hash {
    fn word(&mut self, word: u64) {
        // A step of MurmurHash64A's mixing.
        const M: u64 = 0xc6a4_a793_5bd1_e995;
        let mut k = word.wrapping_mul(M);
        k ^= k >> 47;
        self.0 = (self.0 ^ k.wrapping_mul(M)).wrapping_mul(M).rotate_left(23);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let (words, tail) = bytes.as_chunks::<8>();
        words.iter().for_each(|&w| self.word(u64::from_le_bytes(w)));
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        self.word(u64::from_le_bytes(last));
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn tensor(&mut self, tensor: &Tensor) {
        self.word(tensor.dtype().to_onnx() as u64);
        self.word(tensor.dims().len() as u64);
        tensor.dims().iter().for_each(|&d| self.word(d as u64));
        match tensor.as_strings() {
            Some(strings) => strings.iter().for_each(|s| self.bytes(s)),
            None => self.bytes(tensor.as_bytes()),
        }
    }

    fn graph(&mut self, graph: &Graph) {
        let name = |id| graph.value_name(id);
        for list in [&graph.inputs, &graph.outputs] {
            self.word(list.len() as u64);
            for &id in list {
                self.text(name(id));
                if let Some(ty) = &graph.value(id).ty {
                    self.text(&ty.to_string());
                    self.word(u64::from(matches!(ty.kind, TypeKind::Tensor { .. })));
                }
            }
        }
        // The order of initializers in a file says nothing.
        let mut constants = graph.initializers.clone();
        constants.sort_by_key(|&id| name(id));
        self.word(constants.len() as u64);
        for id in constants {
            self.text(name(id));
            if let Some(tensor) = &graph.value(id).constant {
                self.tensor(tensor);
            }
        }
        self.word(graph.nodes.len() as u64);
        for node in &graph.nodes {
            for text in [&node.domain, &node.op_type, &node.overload, &node.name] {
                self.text(text);
            }
            for list in [&node.inputs, &node.outputs] {
                self.word(list.len() as u64);
                list.iter().for_each(|id| self.text(id.map_or("", name)));
            }
            let mut attrs: Vec<&Attr> = node.attrs.iter().collect();
            attrs.sort_by(|a, b| a.name.cmp(&b.name));
            self.word(attrs.len() as u64);
            for attr in attrs {
                self.text(&attr.name);
                self.attr(&attr.value);
            }
        }
    }

    fn attr(&mut self, value: &AttrValue) {
        match value {
            AttrValue::Float(x) => self.word(u64::from(x.to_bits())),
            AttrValue::Int(i) => self.word(*i as u64),
            AttrValue::String(s) => self.bytes(s),
            AttrValue::Tensor(tensor) => self.tensor(tensor),
            AttrValue::Graph(graph) => self.graph(graph),
            AttrValue::Type(ty) => self.text(&ty.to_string()),
            AttrValue::Floats(xs) => xs.iter().for_each(|x| self.word(u64::from(x.to_bits()))),
            AttrValue::Ints(ints) => ints.iter().for_each(|&i| self.word(i as u64)),
            AttrValue::Strings(strings) => strings.iter().for_each(|s| self.bytes(s)),
            AttrValue::Tensors(tensors) => tensors.iter().for_each(|t| self.tensor(t)),
            AttrValue::Graphs(graphs) => graphs.iter().for_each(|g| self.graph(g)),
            AttrValue::Types(types) => types.iter().for_each(|ty| self.text(&ty.to_string())),
            AttrValue::Ref { name, ty } => {
                self.text(name);
                self.word(*ty as u64);
            }
            AttrValue::Opaque { ty, fields } => {
                self.word(*ty as u64);
                for (number, content) in fields {
                    self.word(u64::from(*number));
                    self.bytes(content);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use midtread_graph::Node;

    use super::*;

    fn model(weight: f32, group: i64, name: &str) -> Model {
        let mut model = Model::default();
        model.set_opset("", 13);
        let g = &mut model.graph;
        let (x, y) = (g.intern("x"), g.intern("y"));
        let w = g.add_constant("w", Tensor::vector(&[1.0_f32, 2.0, weight]));
        g.inputs = vec![x];
        g.outputs = vec![y];
        g.nodes =
            vec![Node::new("Conv", name, [x, w], [y]).with_attr("group", AttrValue::Int(group))];
        model
    }

    #[test]
    fn any_part_that_matters_changes_it_and_what_does_not_matter_does_not() {
        let base = fingerprint(&model(3.0, 1, "n"));
        assert_eq!(base, fingerprint(&model(3.0, 1, "n")));
        assert_ne!(base, fingerprint(&model(3.0000002, 1, "n")));
        assert_ne!(base, fingerprint(&model(3.0, 2, "n")));
        assert_ne!(base, fingerprint(&model(3.0, 1, "m")));
        let mut other = model(3.0, 1, "n");
        other.set_opset("", 14);
        assert_ne!(base, fingerprint(&other));
        let mut same = model(3.0, 1, "n");
        same.doc_string = "a copy".into();
        same.graph.metadata.push(("k".into(), "v".into()));
        assert_eq!(base, fingerprint(&same));
    }
}
