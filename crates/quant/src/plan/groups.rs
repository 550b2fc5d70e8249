//! Tensors that share one scale and zero point: those that an operator only moves, selects or joins.

use midtread_graph::ValueId;

/// Disjoint sets of values, and which members' ranges count for their set.
///
/// A member that follows another (the output of Reshape, the input of Relu) has no say in the range: it takes what
/// the others have.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    parent: Vec<u32>,
    follows: Vec<bool>,
}

impl Groups {
    /// Each of `n` values by itself.
    pub fn new(n: usize) -> Self {
        let parent =
            (0..n).map(|i| u32::try_from(i).expect("as many as a graph has values")).collect();
        Self { parent, follows: vec![false; n] }
    }

    /// The index that stands for the set of `value`.
    pub fn find(&mut self, value: ValueId) -> usize {
        let mut i = value.idx();
        while self.parent[i] as usize != i {
            // Every node on the way is hung one step higher.
            self.parent[i] = self.parent[self.parent[i] as usize];
            i = self.parent[i] as usize;
        }
        i
    }

    /// Puts both in one set.
    pub fn join(&mut self, a: ValueId, b: ValueId) {
        let (a, b) = (self.find(a), self.find(b));
        // The smaller index stands for both, so that the result does not depend on the order of joining.
        let (low, high) = (a.min(b), a.max(b));
        self.parent[high] = low as u32;
    }

    /// Puts `value` in the set of `leader` without a say. `false`, and nothing done, if it follows another already.
    pub fn follow(&mut self, value: ValueId, leader: ValueId) -> bool {
        if self.follows[value.idx()] || value == leader {
            return false;
        }
        self.follows[value.idx()] = true;
        self.join(value, leader);
        true
    }

    /// Whether the value's own range says nothing.
    pub fn is_follower(&self, value: ValueId) -> bool {
        self.follows[value.idx()]
    }
}

#[cfg(test)]
mod tests {
    use midtread_graph::Graph;

    use super::*;

    #[test]
    fn followers_have_one_leader_and_sets_one_representative() {
        let mut g = Graph::default();
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|n| g.intern(n));
        let mut groups = Groups::new(4);
        assert!(groups.follow(c, b));
        assert!(!groups.follow(c, a), "it follows already");
        groups.join(d, c);
        assert_eq!((groups.find(b), groups.find(c), groups.find(d)), (1, 1, 1));
        assert_eq!(groups.find(a), 0);
        assert!(groups.is_follower(c) && !groups.is_follower(b) && !groups.is_follower(d));
    }
}
