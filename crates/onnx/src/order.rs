//! Topological order.

use std::{cmp::Reverse, collections::BinaryHeap};

use midtread_graph::Graph;

use crate::error::Problem;

/// Puts the nodes in an order in which every value is made before it is used, which the specification asks of the
/// file. Nodes that are in order already stay where they are; otherwise, of those that could come next, the one
/// that came first in the file does.
pub(crate) fn sort(graph: &mut Graph) -> Result<(), Problem> {
    let n = graph.nodes.len();
    let mut producer = vec![None; graph.values().len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        for id in node.outputs.iter().flatten() {
            producer[id.idx()] = Some(i);
        }
    }
    // For each node, those it waits for.
    let mut needs: Vec<Vec<usize>> = vec![Vec::new(); n];
    let mut captured = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate() {
        captured.clear();
        node.subgraphs().for_each(|inner| inner.captures(&mut captured));
        let captured = captured.iter().filter_map(|name| graph.find(name));
        needs[i].extend(
            node.inputs
                .iter()
                .flatten()
                .copied()
                .chain(captured)
                .filter_map(|id| producer[id.idx()]),
        );
    }
    if needs.iter().enumerate().all(|(i, needs)| needs.iter().all(|&j| j < i)) {
        return Ok(());
    }

    let mut waits_for: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); n];
    for (i, needs) in needs.iter().enumerate() {
        needs.iter().for_each(|&j| users[j].push(i));
    }
    let mut ready: BinaryHeap<_> = (0..n).filter(|&i| waits_for[i] == 0).map(Reverse).collect();
    let mut rank = vec![n; n];
    let mut n_done = 0;
    while let Some(Reverse(i)) = ready.pop() {
        rank[i] = n_done;
        n_done += 1;
        for &user in &users[i] {
            waits_for[user] -= 1;
            if waits_for[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    if n_done < n {
        let first = rank.iter().position(|&r| r == n).expect("some node was not reached");
        let node = graph.label(&graph.nodes[first]).to_owned();
        return Err(Problem::Cycle { node, n_nodes: n - n_done });
    }
    let mut ranked: Vec<_> = rank.into_iter().zip(std::mem::take(&mut graph.nodes)).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    graph.nodes = ranked.into_iter().map(|(_, node)| node).collect();
    Ok(())
}
