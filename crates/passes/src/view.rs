//! What passes ask about a graph while they change it.

use midtread_graph::{Graph, Links, Tensor, ValueId};

/// Makers, users and constants as of the start of a walk, with the makers kept up to date by the walk.
pub(crate) struct View {
    pub(crate) links: Links,
    producer: Vec<Option<usize>>,
    is_input: Vec<bool>,
}

impl View {
    pub(crate) fn new(graph: &Graph) -> Self {
        let links = Links::new(graph);
        let producer = graph.value_ids().map(|id| links.producer(id)).collect();
        let mut is_input = vec![false; graph.values().len()];
        graph.inputs.iter().for_each(|id| is_input[id.idx()] = true);
        Self { links, producer, is_input }
    }

    /// Index of the node that makes the value now.
    pub(crate) fn producer(&self, id: ValueId) -> Option<usize> {
        self.producer.get(id.idx()).copied().flatten()
    }

    /// Says that node `i` makes `id` from now on, instead of `before`.
    pub(crate) fn set_producer(&mut self, id: ValueId, before: ValueId, i: usize) {
        self.producer[before.idx()] = None;
        self.producer[id.idx()] = Some(i);
    }

    /// Whether the caller of the graph gives the value.
    pub(crate) fn is_input(&self, id: ValueId) -> bool {
        self.is_input.get(id.idx()) == Some(&true)
    }

    /// [`Graph::constant`], without a search through the inputs.
    pub(crate) fn constant<'g>(&self, graph: &'g Graph, id: ValueId) -> Option<&'g Tensor> {
        if self.is_input(id) {
            return None;
        }
        graph.value(id).constant.as_ref()
    }
}
