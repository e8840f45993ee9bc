//! Compares the computations of merging with scipy and numpy (golden/math).

use crate::common::{Golden, difference, numbers};
use candle_core::{DType, Device, Tensor};
use moe_math::alignment::{distances, negative_products, permutation};
use moe_math::least_squares::LeastSquares;
use moe_math::linkage::{average_linkage, euclidean};
use moe_math::principal::{Principal, Rows};
use moe_math::rank::{jaccard, spearman};

fn wide(golden: &Golden, case: &str, tensor: &str) -> Tensor {
    golden.get(case, tensor).to_dtype(DType::F64).unwrap()
}

#[test]
fn average_linkage_is_that_of_scipy() {
    let golden = Golden::open("linkage");
    for case in golden.cases(5) {
        let distances = match golden.find(case, "points") {
            Some(points) => euclidean(&numbers(points), points.dim(1).unwrap()),
            None => golden.numbers(case, "distances"),
        };
        let labels = golden.integers(case, "labels");
        let n = distances.len().isqrt();
        for (count, labels) in
            golden.integers(case, "clusters").into_iter().zip(labels.chunks_exact(n))
        {
            let found = average_linkage(&distances, count as usize);
            let label = |i| found.iter().position(|cluster| cluster.contains(&i)).unwrap() as i64;
            assert_eq!((0..n).map(label).collect::<Vec<_>>(), labels, "{case}, {count}");
        }
    }
}

#[test]
fn alignments_are_those_of_scipy() {
    let golden = Golden::open("alignment");
    for case in golden.cases(4) {
        let (reference, member) = (wide(&golden, case, "reference"), wide(&golden, case, "member"));
        let (n, d) = reference.dims2().unwrap();
        let product = case.starts_with("product");
        let cost = if product {
            negative_products(reference, member).unwrap()
        } else {
            distances(&numbers(&reference), &numbers(&member), d)
        };
        let found = permutation(&cost, n).unwrap();
        assert_eq!(
            found.iter().map(|c| i64::from(*c)).collect::<Vec<_>>(),
            golden.integers(case, "permutation")
        );
        let total: f64 = found
            .iter()
            .enumerate()
            .map(|(place, neuron)| cost[place * n + *neuron as usize])
            .sum();
        let total = if product { -total } else { total };
        let expected = golden.numbers(case, "total")[0];
        assert!((total / expected - 1.0).abs() < 1e-12, "{case}: {total} is not {expected}");
    }
}

struct Whole(Tensor);

impl Rows for Whole {
    fn width(&self) -> usize {
        self.0.dim(1).unwrap()
    }

    fn parts(&self) -> Vec<usize> {
        vec![self.0.dim(0).unwrap()]
    }

    fn some(&self, _: usize, rows: &[u32]) -> candle_core::Result<Tensor> {
        self.0.index_select(&Tensor::from_slice(rows, rows.len(), &Device::Cpu)?, 0)
    }
}

#[test]
fn principal_components_are_those_of_numpy() {
    let golden = Golden::open("pca");
    for case in golden.cases(5) {
        let expected = golden.numbers(case, "values");
        let points = Whole(wide(&golden, case, "points"));
        let found = Principal::of(&points, expected.len(), 0, &Device::Cpu).unwrap();
        let off = difference(&found.values, &expected);
        assert!(off < 1e-10 * expected[0], "{case}: values differ by {off:e}");
        let scores = found.scores(&points.0.narrow(0, 0, 12).unwrap()).unwrap();
        let between = euclidean(&scores, found.rank());
        let expected = golden.numbers(case, "distances");
        let off = difference(&between, &expected);
        assert!(
            off < 1e-9 * expected.iter().fold(0.0, |most, x| x.max(most)),
            "{case}: distances differ by {off:e}"
        );
    }
}

/// Normal equations square the condition number; `square` has the worst, about 4.
#[test]
fn least_squares_are_those_of_numpy() {
    let golden = Golden::open("least_squares");
    for case in golden.cases(6) {
        let transposed = |name| wide(&golden, case, name).t().unwrap().contiguous().unwrap();
        let (p, q) = (transposed("p"), transposed("q"));
        let mut squares = LeastSquares::new(p.dim(1).unwrap(), q.dim(1).unwrap()).unwrap();
        // In two parts, like blocks of tokens.
        let half = p.dim(0).unwrap() / 2;
        for (start, count) in [(0, half), (half, p.dim(0).unwrap() - half)]
            .into_iter()
            .filter(|(_, count)| *count > 0)
        {
            let part = |t: &Tensor| t.narrow(0, start, count).unwrap();
            squares.add(&part(&p), &part(&q)).unwrap();
        }
        let expected = golden.numbers(case, "t");
        let off = difference(&squares.solve().unwrap(), &expected);
        let largest = expected.iter().fold(0.0, |most: f64, x| x.abs().max(most));
        assert!(off < 1e-9 * largest, "{case}: {off:e} of {largest}");
    }
}

#[test]
fn rank_agreement_is_that_of_scipy() {
    let golden = Golden::open("agreement");
    for case in golden.cases(8) {
        if golden.find(case, "spearman").is_some() {
            let found = spearman(&golden.numbers(case, "a"), &golden.numbers(case, "b"));
            assert!((found - golden.numbers(case, "spearman")[0]).abs() < 1e-12, "{case}: {found}");
        } else {
            let set = |name| {
                golden.integers(case, name).into_iter().map(|i| i as usize).collect::<Vec<_>>()
            };
            let found = jaccard(&set("a"), &set("b"));
            assert!((found - golden.numbers(case, "jaccard")[0]).abs() < 1e-12, "{case}: {found}");
        }
    }
}
