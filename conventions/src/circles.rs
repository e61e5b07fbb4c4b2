//! Circles of a directed graph: groups of nodes each of which can be reached from each other one.

use std::collections::{BTreeMap, BTreeSet};

/// For each node, the nodes it has an arrow to.
pub type Graph<N> = BTreeMap<N, BTreeSet<N>>;

/// All groups of at least two nodes that reach each other (strongly connected components), each
/// sorted.
///
/// For a graph of the size of a source tree: it costs the number of nodes times the number of
/// arrows at the most.
pub fn circles<N: Ord + Clone>(graph: &Graph<N>) -> Vec<Vec<N>> {
    let reached: BTreeMap<&N, BTreeSet<&N>> = graph.keys().map(|node| (node, reachable(graph, node))).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for node in graph.keys() {
        if !seen.insert(node) {
            continue;
        }
        let back = |other: &&&N| reached.get(**other).is_some_and(|from| from.contains(node));
        let others: Vec<&N> = reached[node].iter().filter(|other| **other != node).filter(back).copied().collect();
        if others.is_empty() {
            continue;
        }
        seen.extend(others.iter().copied());
        let mut group: Vec<N> = others.into_iter().cloned().chain([node.clone()]).collect();
        group.sort();
        found.push(group);
    }
    found
}

fn reachable<'a, N: Ord>(graph: &'a Graph<N>, from: &'a N) -> BTreeSet<&'a N> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(node) = open.pop() {
        for next in graph.get(node).into_iter().flatten() {
            if reached.insert(next) {
                open.push(next);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(arrows: &[(u8, u8)]) -> Graph<u8> {
        let mut graph = Graph::new();
        for (from, to) in arrows {
            graph.entry(*from).or_insert_with(BTreeSet::new).insert(*to);
            graph.entry(*to).or_insert_with(BTreeSet::new);
        }
        graph
    }

    #[test]
    fn a_chain_has_no_circle() {
        assert!(circles(&graph(&[(1, 2), (2, 3), (1, 3)])).is_empty());
    }

    #[test]
    fn a_node_with_an_arrow_to_itself_is_no_circle() {
        assert!(circles(&graph(&[(1, 1)])).is_empty());
    }

    #[test]
    fn each_circle_is_found_once_and_whole() {
        let found = circles(&graph(&[(1, 2), (2, 3), (3, 1), (3, 4), (4, 5), (5, 4), (6, 1)]));
        assert_eq!(found, vec![vec![1, 2, 3], vec![4, 5]]);
    }
}
