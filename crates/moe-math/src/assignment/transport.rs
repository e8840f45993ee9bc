//! [`balanced`]: assigns items to clusters of limited size, as a transportation problem.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::{AssignmentError, checked_rows};

/// The cluster of each item, with at most `capacity` items in each, such that Σ cost is least.
///
/// `cost` is `[items, clusters]`. With items = clusters · capacity every cluster is filled. The
/// transportation problem is solved by successive shortest paths over clusters. The length of the
/// step from cluster a to b is the least c\[i, b\] − c\[i, a\] over the items i of a; a heap for
/// each pair (a, b) keeps it. This takes about O(items · clusters · (clusters + log items)) time
/// and O(items · clusters) memory.
///
/// # Errors
/// [`AssignmentError`].
pub fn balanced(
    cost: &[f64],
    clusters: usize,
    capacity: usize,
) -> Result<Vec<u32>, AssignmentError> {
    let items = checked_rows(cost, clusters)?;
    if items.div_ceil(clusters.max(1)) > capacity {
        return Err(AssignmentError::Capacity { items, clusters, capacity });
    }
    let mut transport = Transport::new(cost, items, clusters, capacity);
    (0..items).for_each(|item| transport.insert(item));
    Ok(transport.cluster_of)
}

/// Moving an item to another cluster, and what that costs.
#[derive(Clone, Copy)]
struct Move {
    delta: f64,
    item: u32,
}

impl Ord for Move {
    /// The greatest is the cheapest move, then the lower item, since a [`BinaryHeap`] yields the
    /// greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.delta.total_cmp(&self.delta).then(other.item.cmp(&self.item))
    }
}

impl PartialOrd for Move {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Move {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Move {}

/// The state of [`balanced`]: an optimal assignment of the items inserted so far.
struct Transport<'a> {
    cost: &'a [f64],
    clusters: usize,
    /// Places left in each cluster.
    free: Vec<usize>,
    /// Dual prices; 0 while a cluster has free places.
    v: Vec<f64>,
    cluster_of: Vec<u32>,
    /// `[clusters, clusters]`: moves from a to b. Moves of items that have left a stay until they
    /// reach the top.
    moves: Vec<BinaryHeap<Move>>,
}

impl<'a> Transport<'a> {
    fn new(cost: &'a [f64], items: usize, clusters: usize, capacity: usize) -> Self {
        let moves = vec![BinaryHeap::new(); clusters * clusters];
        let (free, v) = (vec![capacity; clusters], vec![0f64; clusters]);
        Self { cost, clusters, free, v, cluster_of: vec![u32::MAX; items], moves }
    }

    fn insert(&mut self, item: usize) {
        let costs = &self.cost[item * self.clusters..][..self.clusters];
        let mut search = TransportSearch::new(costs.iter().zip(&self.v).map(|(c, v)| c - v), item);
        let end = loop {
            let a = search.nearest(|a| self.free[a] > 0);
            if self.free[a] > 0 {
                break a;
            }
            let base = search.distance[a] + self.v[a];
            search.scan(a, |b| {
                let Move { delta, item } = self.cheapest_move(a, b);
                (base + delta - self.v[b], item as usize)
            });
        };
        search.update_prices(end, &mut self.v);
        self.free[end] -= 1;
        let mut b = end;
        while search.via[b] != item {
            let moved = search.via[b];
            let a = self.cluster_of[moved] as usize;
            self.place(moved, b);
            b = a;
        }
        self.place(item, b);
    }

    /// The cheapest move of an item of the full cluster `a` to `b`.
    fn cheapest_move(&mut self, a: usize, b: usize) -> Move {
        let heap = &mut self.moves[a * self.clusters + b];
        while let Some(top) = heap.peek() {
            if self.cluster_of[top.item as usize] as usize == a {
                return *top;
            }
            heap.pop();
        }
        Move { delta: f64::INFINITY, item: u32::MAX }
    }

    fn place(&mut self, item: usize, a: usize) {
        self.cluster_of[item] = a as u32;
        let costs = &self.cost[item * self.clusters..][..self.clusters];
        for b in (0..self.clusters).filter(|b| *b != a) {
            self.moves[a * self.clusters + b]
                .push(Move { delta: costs[b] - costs[a], item: item as u32 });
        }
    }
}

/// Dijkstra's search for the shortest path from a new item to a free place, over reduced costs ≥ 0.
struct TransportSearch {
    distance: Vec<f64>,
    /// The item that enters each place on the shortest path to it.
    via: Vec<usize>,
    scanned: Vec<bool>,
}

impl TransportSearch {
    fn new(distance: impl Iterator<Item = f64>, item: usize) -> Self {
        let distance: Vec<f64> = distance.collect();
        Self { via: vec![item; distance.len()], scanned: vec![false; distance.len()], distance }
    }

    /// The nearest place not yet scanned; of equally near ones a free one, then the lowest index.
    fn nearest(&self, is_free: impl Fn(usize) -> bool) -> usize {
        let open = (0..self.distance.len()).filter(|j| !self.scanned[*j]);
        let nearest = open.min_by(|a, b| {
            self.distance[*a]
                .total_cmp(&self.distance[*b])
                .then_with(|| is_free(*b).cmp(&is_free(*a)))
        });
        nearest.expect("a free place is left")
    }

    /// Scans the steps from place `from`: `step(to)` returns the distance of `to` by way of it, and
    /// the item that would move there.
    fn scan(&mut self, from: usize, mut step: impl FnMut(usize) -> (f64, usize)) {
        self.scanned[from] = true;
        for to in (0..self.distance.len()).filter(|to| !self.scanned[*to]) {
            let (distance, item) = step(to);
            if distance < self.distance[to] {
                (self.distance[to], self.via[to]) = (distance, item);
            }
        }
    }

    /// Keeps reduced costs ≥ 0, and = 0 for assigned items: a place nearer than `end` becomes more
    /// expensive by the difference.
    fn update_prices(&self, end: usize, v: &mut [f64]) {
        for j in (0..v.len()).filter(|j| self.scanned[*j]) {
            v[j] += self.distance[j] - self.distance[end];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, unit};

    /// By duality no cheaper assignment exists if v ≤ 0, v = 0 for clusters with free places, and
    /// each item is in a cluster with the least cost − v.
    fn assert_optimal(transport: &Transport, capacity: usize) {
        let mut counts = vec![0; transport.clusters];
        for (item, costs) in transport.cost.chunks_exact(transport.clusters).enumerate() {
            let a = transport.cluster_of[item] as usize;
            counts[a] += 1;
            let own = costs[a] - transport.v[a];
            let least =
                costs.iter().zip(&transport.v).map(|(c, v)| c - v).fold(f64::INFINITY, f64::min);
            assert!(own - least < 1e-9, "item {item}: {own} > {least}");
        }
        for (a, count) in counts.into_iter().enumerate() {
            assert_eq!(count + transport.free[a], capacity);
            assert!(transport.v[a] <= 1e-12 && (transport.free[a] == 0 || transport.v[a] == 0.0));
        }
    }

    #[test]
    fn assignments_are_optimal() {
        let mut random = generator(2, 0);
        for (items, clusters, capacity) in
            [(1, 1, 1), (24, 3, 8), (25, 4, 7), (600, 12, 50), (1001, 9, 300)]
        {
            // Some clusters are cheaper than others, so most items want the same few.
            let bias: Vec<f64> = (0..clusters).map(|a| a as f64 * 0.1).collect();
            let cost: Vec<f64> =
                (0..items * clusters).map(|i| unit(&mut random) + bias[i % clusters]).collect();
            let mut transport = Transport::new(&cost, items, clusters, capacity);
            (0..items).for_each(|item| transport.insert(item));
            assert_optimal(&transport, capacity);
            assert_eq!(transport.cluster_of, balanced(&cost, clusters, capacity).unwrap());
        }
    }

    #[test]
    fn equal_costs_fill_every_cluster() {
        let of = balanced(&[1.0; 12 * 4], 4, 3).unwrap();
        assert!((0..4).all(|a| of.iter().filter(|c| **c == a).count() == 3), "{of:?}");
    }
}
