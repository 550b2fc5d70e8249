//! Changing a graph in walks whose cost grows with the graph, not with its square.

use crate::model::{Graph, Node, ValueId};

/// Which node makes a value and which use it, as of when it was built.
#[derive(Clone, Debug)]
pub struct Links {
    producer: Vec<Option<usize>>,
    consumers: Vec<Vec<usize>>,
    is_output: Vec<bool>,
    captured: Vec<bool>,
}

impl Links {
    /// Looks at every node once.
    pub fn new(graph: &Graph) -> Self {
        let n = graph.values().len();
        let mut links = Self {
            producer: vec![None; n],
            consumers: vec![Vec::new(); n],
            is_output: vec![false; n],
            captured: vec![false; n],
        };
        let mut captured = Vec::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            for id in node.outputs.iter().flatten() {
                links.producer[id.idx()] = Some(i);
            }
            for id in node.inputs.iter().flatten() {
                // A node that uses a value twice is in the list twice in a row at most.
                if links.consumers[id.idx()].last() != Some(&i) {
                    links.consumers[id.idx()].push(i);
                }
            }
            node.subgraphs().for_each(|g| g.captures(&mut captured));
        }
        for id in captured.iter().filter_map(|name| graph.find(name)) {
            links.captured[id.idx()] = true;
        }
        for id in &graph.outputs {
            links.is_output[id.idx()] = true;
        }
        links
    }

    /// Index of the node that makes the value; `None` for inputs, constants and values added since.
    pub fn producer(&self, id: ValueId) -> Option<usize> {
        self.producer.get(id.idx()).copied().flatten()
    }

    /// Indices of the nodes that have the value as an input, ascending, each once.
    pub fn consumers(&self, id: ValueId) -> &[usize] {
        self.consumers.get(id.idx()).map_or(&[], Vec::as_slice)
    }

    /// Whether the graph gives the value to its caller.
    pub fn is_output(&self, id: ValueId) -> bool {
        self.is_output.get(id.idx()) == Some(&true)
    }

    /// Whether a subgraph uses the value by name.
    pub fn is_captured(&self, id: ValueId) -> bool {
        self.captured.get(id.idx()) == Some(&true)
    }

    /// The one node that uses the value, if it has no other use of any kind.
    pub fn only_consumer(&self, id: ValueId) -> Option<usize> {
        match self.consumers(id) {
            [one] if !self.is_output(id) && !self.is_captured(id) => Some(*one),
            _ => None,
        }
    }
}

/// Collects changes to a graph's nodes and makes them in one walk.
#[derive(Debug, Default)]
pub struct Rewrite {
    removed: Vec<usize>,
    before: Vec<(usize, Node)>,
    after: Vec<(usize, Node)>,
}

impl Rewrite {
    /// Takes node `i` out.
    pub fn remove(&mut self, i: usize) {
        self.removed.push(i);
    }

    /// Puts `node` before node `i` (several in the order of the calls).
    pub fn insert_before(&mut self, i: usize, node: Node) {
        self.before.push((i, node));
    }

    /// Puts `node` after node `i` (several in the order of the calls).
    pub fn insert_after(&mut self, i: usize, node: Node) {
        self.after.push((i, node));
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.before.is_empty() && self.after.is_empty()
    }

    /// Makes the changes. Node indices from before this call are void after it.
    pub fn apply(mut self, graph: &mut Graph) {
        if self.is_empty() {
            return;
        }
        let mut removed = vec![false; graph.nodes.len()];
        self.removed.iter().for_each(|&i| removed[i] = true);
        // Stable sorts keep the order of the calls.
        self.before.sort_by_key(|&(i, _)| i);
        self.after.sort_by_key(|&(i, _)| i);
        let (mut before, mut after) =
            (self.before.into_iter().peekable(), self.after.into_iter().peekable());
        let n_nodes = graph.nodes.len();
        let mut nodes = Vec::with_capacity(n_nodes);
        for (i, node) in std::mem::take(&mut graph.nodes).into_iter().enumerate() {
            while let Some((_, new)) = before.next_if(|&(at, _)| at == i) {
                nodes.push(new);
            }
            if !removed[i] {
                nodes.push(node);
            }
            while let Some((_, new)) = after.next_if(|&(at, _)| at == i) {
                nodes.push(new);
            }
        }
        // Inserted before the end of a graph.
        nodes.extend(before.map(|(_, node)| node));
        graph.nodes = nodes;
    }
}

/// Replaces uses of values: `map[v]`, followed to its end, instead of `v`, in every node's inputs. Graph outputs
/// keep their names: callers rename the producer's output instead.
pub fn replace_uses(graph: &mut Graph, map: &[(ValueId, ValueId)]) {
    let mut to: Vec<Option<ValueId>> = vec![None; graph.values().len()];
    for &(from, with) in map {
        to[from.idx()] = Some(with);
    }
    let resolve = |mut id: ValueId| {
        // At most one step per entry of the map: a cycle ends too.
        for _ in 0..=map.len() {
            match to[id.idx()] {
                Some(next) => id = next,
                None => break,
            }
        }
        id
    };
    for node in &mut graph.nodes {
        for input in node.inputs.iter_mut().flatten() {
            *input = resolve(*input);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `x -> a -> b -> y`, `a` used twice.
    fn chain() -> Graph {
        let mut g = Graph::default();
        let [x, a, b, y] = ["x", "a", "b", "y"].map(|n| g.intern(n));
        g.inputs = vec![x];
        g.outputs = vec![y];
        g.nodes = vec![
            Node::new("Relu", "n0", [x], [a]),
            Node::new("Mul", "n1", [a, a], [b]),
            Node::new("Add", "n2", [b, a], [y]),
        ];
        g
    }

    fn names(g: &Graph) -> Vec<&str> {
        g.nodes.iter().map(|n| n.name.as_str()).collect()
    }

    #[test]
    fn links_know_producers_consumers_and_outputs() {
        let g = chain();
        let links = Links::new(&g);
        let id = |n| g.find(n).unwrap();
        assert_eq!(links.producer(id("x")), None);
        assert_eq!(links.producer(id("b")), Some(1));
        assert_eq!(links.consumers(id("a")), [1, 2]);
        assert_eq!(links.only_consumer(id("b")), Some(2));
        assert_eq!(links.only_consumer(id("a")), None);
        assert_eq!(links.only_consumer(id("y")), None);
        assert!(links.is_output(id("y")));
    }

    #[test]
    fn rewrite_keeps_the_order_of_the_calls() {
        let mut g = chain();
        let new = |name: &str| Node { name: name.into(), ..Node::default() };
        let mut rewrite = Rewrite::default();
        rewrite.insert_before(1, new("b0"));
        rewrite.insert_after(0, new("a0"));
        rewrite.insert_before(1, new("b1"));
        rewrite.remove(1);
        rewrite.insert_after(1, new("a1"));
        rewrite.apply(&mut g);
        assert_eq!(names(&g), ["n0", "a0", "b0", "b1", "a1", "n2"]);
    }

    #[test]
    fn replaced_uses_are_followed_to_the_end_and_cycles_end() {
        let mut g = chain();
        let [x, a, b] = ["x", "a", "b"].map(|n| g.find(n).unwrap());
        replace_uses(&mut g, &[(b, a), (a, x)]);
        assert_eq!(g.nodes[2].inputs, [Some(x), Some(x)]);
        replace_uses(&mut g, &[(x, a), (a, x)]);
    }
}
