//! The multiple-choice knapsack: one choice for each item, such that the total size fits a capacity
//! and the total error is minimal.

/// One of the choices for an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Capacity that the choice uses.
    pub size: u64,
    /// Error of the choice; finite.
    pub error: f64,
}

/// Returns the index of the choice for each of `items` that minimizes Σ error subject to Σ size ≤
/// `capacity`, and among equals Σ size. None if even the smallest choices don't fit.
///
/// Exact, by dynamic programming over the states that no other beats in both size and error
/// (Nemhauser & Ullmann 1969). States are dropped if Lagrange's bound, at the linear relaxation's
/// multiplier, shows that they can't beat the relaxation rounded down.
pub fn knapsack(items: &[Vec<Choice>], capacity: u64) -> Option<Vec<usize>> {
    let bounds = Bounds::new(items, capacity)?;
    let mut stages = vec![vec![KnapsackState::default()]];
    for (index, item) in items.iter().enumerate() {
        let grown = grown(&stages[index], item);
        let promising = grown.filter(|state| bounds.allow(state, index + 1));
        stages.push(unbeaten(promising.collect()));
    }
    choices_of(&stages)
}

/// Lower bounds on the size and cost of the remaining items.
struct Bounds {
    capacity: u64,
    /// For each k, the least Σ size of the items from k on.
    sizes: Vec<u64>,
    /// For each k, the least Σ error + multiplier · size of the items from k on.
    costs: Vec<f64>,
    relaxed: Relaxed,
}

impl Bounds {
    /// None if even the smallest choices don't fit, or an item has no choice.
    fn new(items: &[Vec<Choice>], capacity: u64) -> Option<Self> {
        let sizes = suffixes(items, |choice| choice.size, 0, u64::min, |a, b| a + b)?;
        if sizes[0] > capacity {
            return None;
        }
        let relaxed = Relaxed::new(items, capacity);
        let costs = suffixes(items, |choice| relaxed.cost(choice), 0.0, f64::min, |a, b| a + b)?;
        Some(Self { capacity, sizes, costs, relaxed })
    }

    /// Whether `state` of the first `chosen` items can still lead to a result no worse than the
    /// relaxation rounded down.
    fn allow(&self, state: &KnapsackState, chosen: usize) -> bool {
        let Some(free) = self.capacity.checked_sub(state.size) else { return false };
        let enough = self.relaxed.error + 1e-9 * self.relaxed.error.abs();
        let slack = self.relaxed.multiplier * free as f64;
        free >= self.sizes[chosen] && state.error + self.costs[chosen] - slack <= enough
    }
}

/// Combines each state of `before` with each choice of `item`.
fn grown(before: &[KnapsackState], item: &[Choice]) -> impl Iterator<Item = KnapsackState> {
    before.iter().enumerate().flat_map(move |(from, state)| {
        item.iter().enumerate().map(move |(choice, of)| KnapsackState {
            size: state.size + of.size,
            error: state.error + of.error,
            from,
            choice,
        })
    })
}

/// The choices that lead to the best state of the last stage.
fn choices_of(stages: &[Vec<KnapsackState>]) -> Option<Vec<usize>> {
    // Within a stage errors fall from state to state, so the last state is best.
    let mut at = stages.last()?.len().checked_sub(1)?;
    let mut choices: Vec<usize> = Vec::with_capacity(stages.len() - 1);
    for stage in stages[1..].iter().rev() {
        choices.push(stage[at].choice);
        at = stage[at].from;
    }
    choices.reverse();
    Some(choices)
}

/// Total size and error of the choices for the first items.
#[derive(Debug, Clone, Copy, Default)]
struct KnapsackState {
    size: u64,
    error: f64,
    /// Index of the state in the stage before.
    from: usize,
    /// Index of the last item's choice.
    choice: usize,
}

/// States in ascending order of size, each with a smaller error than all before it.
fn unbeaten(mut states: Vec<KnapsackState>) -> Vec<KnapsackState> {
    states.sort_by(|a, b| a.size.cmp(&b.size).then(a.error.total_cmp(&b.error)));
    let mut least = f64::INFINITY;
    states.retain(|state| {
        let better = state.error < least;
        least = least.min(state.error);
        better
    });
    states
}

/// For each k, combines with `sum` the least `value` of each item from k on. None if an item has no
/// choice.
fn suffixes<T: Copy>(
    items: &[Vec<Choice>],
    value: impl Fn(&Choice) -> T,
    zero: T,
    least: impl Fn(T, T) -> T + Copy,
    sum: impl Fn(T, T) -> T,
) -> Option<Vec<T>> {
    let mut sums = vec![zero];
    for item in items.iter().rev() {
        let least = item.iter().map(&value).reduce(least)?;
        sums.push(sum(least, sums[sums.len() - 1]));
    }
    sums.reverse();
    Some(sums)
}

/// The solution of the linear relaxation, which may mix choices, rounded down to whole choices.
struct Relaxed {
    /// Total error of the choices that were taken whole.
    error: f64,
    /// How much another unit of capacity would reduce the relaxation's error.
    multiplier: f64,
}

impl Relaxed {
    /// The smallest choices must fit.
    fn new(items: &[Vec<Choice>], capacity: u64) -> Self {
        let hulls: Vec<Vec<Choice>> = items.iter().map(|item| hull(item)).collect();
        let (mut size, mut error) = (0, 0.0);
        let mut steps = Vec::new();
        for hull in &hulls {
            size += hull[0].size;
            error += hull[0].error;
            steps.extend(
                hull.windows(2)
                    .map(|pair| (pair[1].size - pair[0].size, pair[0].error - pair[1].error)),
            );
        }
        // Steps of one hull get worse from one to the next, so sorting keeps their order.
        steps.sort_by(|a, b| (b.1 / b.0 as f64).total_cmp(&(a.1 / a.0 as f64)));
        let mut multiplier = 0.0;
        for (more, less) in steps {
            if size + more > capacity {
                multiplier = less / more as f64;
                break;
            }
            size += more;
            error -= less;
        }
        Self { error, multiplier }
    }

    /// Error + multiplier · size of a choice.
    fn cost(&self, choice: &Choice) -> f64 {
        choice.error + self.multiplier * choice.size as f64
    }
}

fn slope(a: &Choice, b: &Choice) -> f64 {
    (b.error - a.error) / (b.size - a.size) as f64
}

/// The choices on the lower convex hull of error over size, from the smallest on, while errors
/// fall.
fn hull(item: &[Choice]) -> Vec<Choice> {
    let mut sorted = item.to_vec();
    sorted.sort_by(|a, b| a.size.cmp(&b.size).then(a.error.total_cmp(&b.error)));
    let mut hull: Vec<Choice> = Vec::new();
    for choice in sorted {
        if hull.last().is_some_and(|last| choice.size == last.size || choice.error >= last.error) {
            continue;
        }
        while let [.., a, b] = hull.as_slice()
            && slope(a, b) >= slope(b, &choice)
        {
            hull.pop();
        }
        hull.push(choice);
    }
    hull
}

#[cfg(test)]
mod tests {
    use rand_core::RngCore;

    use super::*;
    use crate::sampling::generator;

    /// Size and error of every combination.
    fn all(items: &[Vec<Choice>]) -> Vec<(u64, f64)> {
        items.iter().fold(vec![(0, 0.0)], |sums, item| {
            let add = |(size, error): &(u64, f64)| {
                let (size, error) = (*size, *error);
                item.iter().map(move |choice| (size + choice.size, error + choice.error))
            };
            sums.iter().flat_map(add).collect()
        })
    }

    fn sum(items: &[Vec<Choice>], choices: &[usize]) -> (u64, f64) {
        let chosen = items.iter().zip(choices).map(|(item, choice)| item[*choice]);
        chosen.fold((0, 0.0), |(size, error), choice| (size + choice.size, error + choice.error))
    }

    /// Compares with all combinations, for errors that fall with size as for codes and for random
    /// errors, and for equal and different sizes.
    #[test]
    fn no_other_combination_that_fits_is_better() {
        let mut random = generator(1, 0);
        let mut below = |n: u32| random.next_u32() % n;
        for case in 0..60 {
            let items: Vec<Vec<Choice>> = (0..1 + below(6))
                .map(|_| {
                    let weights = if case % 3 == 0 { 8 } else { 1 + u64::from(below(50)) };
                    let sensitivity = f64::from(1 + below(1000));
                    let choice = |bits: u64| Choice {
                        size: weights * bits,
                        error: if case % 2 == 0 {
                            sensitivity * 0.25f64.powi(bits as i32) * f64::from(900 + below(200))
                        } else {
                            f64::from(below(100))
                        },
                    };
                    [2, 3, 4, 5, 8].into_iter().map(choice).collect()
                })
                .collect();
            let combinations = all(&items);
            let [least, most] =
                [u64::min, u64::max].map(|of| combinations.iter().map(|c| c.0).reduce(of).unwrap());
            assert_eq!(knapsack(&items, least - 1), None);
            for step in 0..=8 {
                let capacity = least + (most - least) * step / 8;
                let found = sum(&items, &knapsack(&items, capacity).unwrap());
                let fitting = combinations.iter().filter(|(size, _)| *size <= capacity);
                let best = fitting.map(|c| c.1).fold(f64::INFINITY, f64::min);
                assert!(
                    found.0 <= capacity && (found.1 - best).abs() <= 1e-9 * best.abs(),
                    "{found:?} {best}"
                );
            }
        }
    }

    #[test]
    fn the_smallest_of_equal_choices_is_taken() {
        let item = [(4, 1.0), (2, 1.0), (8, 0.5), (9, 0.5)]
            .map(|(size, error)| Choice { size, error })
            .to_vec();
        assert_eq!(knapsack(&[item.clone(), item.clone()], 10), Some(vec![1, 2]));
        assert_eq!(knapsack(&[item.clone(), item], 100), Some(vec![2, 2]));
        assert_eq!(knapsack(&[], 0), Some(vec![]));
        assert_eq!(knapsack(&[vec![]], 10), None);
    }

    /// As many items as the projections in a large model's layers, with sizes of all kinds; the
    /// bounds keep it quick.
    #[test]
    fn many_items_of_odd_sizes_are_quick() {
        let mut random = generator(2, 0);
        let items: Vec<Vec<Choice>> = (0..300)
            .map(|_| {
                let weights = 100_000 + u64::from(random.next_u32() % 100_000);
                let sensitivity = 1.0 + f64::from(random.next_u32() % 1_000_000);
                let choice = |bits: u64| Choice {
                    size: weights * bits,
                    error: sensitivity * 0.25f64.powi(bits as i32),
                };
                [2, 3, 4, 5, 6, 8].into_iter().map(choice).collect()
            })
            .collect();
        let weights: u64 = items.iter().map(|item| item[0].size / 2).sum();
        let start = std::time::Instant::now();
        let (size, error) = sum(&items, &knapsack(&items, weights * 9 / 2).unwrap());
        let uniform: f64 = items.iter().map(|item| item[2].error).sum();
        assert!(size <= weights * 9 / 2 && error < uniform);
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }
}
