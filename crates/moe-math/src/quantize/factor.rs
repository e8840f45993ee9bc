//! The order of columns and the triangular factor that GPTQ derives from a Hessian.

use candle_core::{Device, Tensor};

use super::cholesky::upper_cholesky;
use super::{Hessian, QuantizeError, Real};

/// Damping, so that a Hessian can be factored: a share of its mean diagonal is added to the
/// diagonal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Damping {
    /// λ, the share that is tried first.
    pub start: f64,
    /// The share is multiplied by this each time that factoring fails.
    pub growth: f64,
    /// The maximum share to try.
    pub max: f64,
}

impl Default for Damping {
    fn default() -> Self {
        Self { start: 0.01, growth: 10.0, max: 1.0 }
    }
}

impl Damping {
    /// The share to try after `share` was too small; None if there is no other. After 0 comes a
    /// hundredth.
    pub(super) fn after(&self, share: f64) -> Option<f64> {
        let next = if share == 0.0 { Self::default().start } else { share * self.growth };
        (self.growth > 1.0 && next <= self.max).then_some(next)
    }
}

/// The place of a factor's feedback on a device.
#[derive(Debug, Clone)]
pub struct OnDevice {
    /// Aᵀ of all factors that were made together, `[E, K, K]`, 1 on diagonals and 0 above them.
    pub(super) all: Tensor,
    /// Index of this factor in `all`.
    pub(super) index: usize,
}

/// H + λ mean(diag H) I = A D Aᵀ with A unit upper triangular, and columns in the order of solving.
///
/// GPTQ's upper Cholesky factor of H⁻¹ is D^(−1/2) A⁻¹. The solver needs A, for which nothing is
/// inverted.
#[derive(Debug, Clone)]
pub struct Factor<T> {
    /// Columns of the weight in the order of solving; None for the order of the weight.
    pub order: Option<Vec<u32>>,
    /// Aᵀ, `[K, K]`: row k holds the factors by which column k takes the errors of earlier columns.
    /// Only the lower triangle holds values. Empty if it is on a device.
    pub feedback: Vec<T>,
    /// Aᵀ on a device; None if it is in `feedback`.
    pub on_device: Option<OnDevice>,
    /// D, in the order of solving.
    pub pivots: Vec<T>,
    /// diag H before damping, in the order of the weight's columns.
    pub diagonal: Vec<T>,
    /// Whether each column has no energy, in the order of the weight's columns. Such columns
    /// neither give nor take feedback.
    pub dead: Vec<bool>,
    /// The λ that was used.
    pub damping: f64,
    /// λ mean(diag H) over columns with energy, which was added to their diagonal.
    pub added: f64,
    /// Number of factorizations tried.
    pub attempts: u32,
}

impl<T> Factor<T> {
    /// The weight's column that is solved as number `k`.
    pub(super) fn column(&self, k: usize) -> usize {
        self.order.as_ref().map_or(k, |order| order[k] as usize)
    }
}

impl Factor<f32> {
    /// Aᵀ of all `factors` on `device`, `[E, K, K]`; not a copy if these are all that were made
    /// together.
    pub(super) fn feedback_of(factors: &[&Self], device: &Device) -> Result<Tensor, QuantizeError> {
        let first = factors.first().and_then(|factor| factor.on_device.as_ref());
        if let Some(OnDevice { all, .. }) =
            first.filter(|first| first.all.dim(0).is_ok_and(|count| count == factors.len()))
        {
            let in_order = factors.iter().enumerate().all(|(place, factor)| {
                let own = factor.on_device.as_ref();
                own.is_some_and(|own| own.all.id() == all.id() && own.index == place)
            });
            if in_order {
                return Ok(all.clone());
            }
        }
        let each = factors
            .iter()
            .map(|factor| factor.feedback_on(device))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::stack(&each, 0)?)
    }

    /// Aᵀ on `device`, 1 on the diagonal and 0 above it.
    pub(super) fn feedback_on(&self, device: &Device) -> Result<Tensor, QuantizeError> {
        if let Some(OnDevice { all, index }) = &self.on_device {
            return Ok(all.get(*index)?);
        }
        let size = self.pivots.len();
        let mut feedback = self.feedback.clone();
        feedback
            .chunks_exact_mut(size.max(1))
            .enumerate()
            .for_each(|(k, row)| row[k + 1..].fill(0.0));
        Ok(Tensor::from_vec(feedback, (size, size), device)?)
    }
}

/// Factors `hessian`, with more damping if that fails. With `act_order`, columns are solved in
/// descending order of the diagonal, and equal ones in their own order.
///
/// # Errors
/// [`QuantizeError::NotFinite`], and [`QuantizeError::Singular`] if all damping fails.
pub fn factorize<T: Real>(
    hessian: &Hessian<T>,
    damping: &Damping,
    act_order: bool,
) -> Result<Factor<T>, QuantizeError> {
    let columns = HessianColumns::of(hessian, act_order);
    let mean = columns.mean_diagonal();
    let Upper { mut matrix, share, attempts } = columns.upper_factor(hessian, damping, mean)?;
    let pivots = unit_diagonal(&mut matrix, hessian.size);
    let HessianColumns { order, diagonal, dead } = columns;
    Ok(Factor {
        order,
        feedback: matrix,
        on_device: None,
        pivots,
        diagonal,
        dead,
        damping: share,
        added: share * mean,
        attempts,
    })
}

/// The columns of a Hessian.
struct HessianColumns<T> {
    /// The order in which they are solved; None for the order of the weight.
    order: Option<Vec<u32>>,
    diagonal: Vec<T>,
    /// Whether each column has no energy.
    dead: Vec<bool>,
}

/// R of a damped Hessian.
struct Upper<T> {
    /// `[K, K]` by columns.
    matrix: Vec<T>,
    /// The λ that was used.
    share: f64,
    attempts: u32,
}

impl<T: Real> HessianColumns<T> {
    fn of(hessian: &Hessian<T>, act_order: bool) -> Self {
        let size = hessian.size;
        let diagonal: Vec<T> = (0..size).map(|i| hessian.sum[i * size + i]).collect();
        let dead = diagonal.iter().map(|h| *h == T::ZERO).collect();
        let order = act_order.then(|| descending(&diagonal));
        Self { order, diagonal, dead }
    }

    /// mean(diag H), over columns with energy.
    fn mean_diagonal(&self) -> f64 {
        let live = self.dead.iter().filter(|dead| !**dead).count();
        self.diagonal.iter().map(|h| h.to_f64()).sum::<f64>() / live.max(1) as f64
    }

    /// Computes the factor with the first damping, a share of `mean`, for which one exists.
    fn upper_factor(
        &self,
        hessian: &Hessian<T>,
        damping: &Damping,
        mean: f64,
    ) -> Result<Upper<T>, QuantizeError> {
        let order = self.order.as_deref();
        let (mut share, mut attempts) = (damping.start, 1);
        loop {
            let mut matrix = ordered(hessian, order);
            damp(&mut matrix, order, &self.dead, T::from_f64(share * mean));
            if upper_cholesky(&mut matrix, hessian.size) {
                return Ok(Upper { matrix, share, attempts });
            }
            check_finite(hessian)?;
            share = damping.after(share).ok_or(QuantizeError::Singular { damping: share })?;
            attempts += 1;
        }
    }
}

fn check_finite<T: Real>(hessian: &Hessian<T>) -> Result<(), QuantizeError> {
    let size = hessian.size;
    let finite = (0..size).all(|i| hessian.sum[i * size..][..=i].iter().all(|h| h.finite()));
    if finite { Ok(()) } else { Err(QuantizeError::NotFinite) }
}

/// Indices in descending order of value; equal values keep their own order.
pub(super) fn descending<T: Real>(values: &[T]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|a, b| values[*b as usize].to_f64().total_cmp(&values[*a as usize].to_f64()));
    order
}

/// H by columns in the order of solving; at least its upper triangle is filled.
fn ordered<T: Real>(hessian: &Hessian<T>, order: Option<&[u32]>) -> Vec<T> {
    let Some(order) = order else { return hessian.sum.clone() };
    let size = hessian.size;
    let mut places = vec![0; size];
    for (k, column) in order.iter().enumerate() {
        places[*column as usize] = k;
    }
    let mut matrix = vec![T::ZERO; size * size];
    for (i, (row, place)) in hessian.sum.chunks_exact(size.max(1)).zip(&places).enumerate() {
        for (h, other) in row.iter().zip(&places[..=i]) {
            matrix[place.max(other) * size + place.min(other)] = *h;
        }
    }
    matrix
}

/// Adds `added` to the diagonal; a dead column becomes a column of the identity.
fn damp<T: Real>(matrix: &mut [T], order: Option<&[u32]>, dead: &[bool], added: T) {
    let size = dead.len();
    let dead: Vec<bool> =
        (0..size).map(|k| dead[order.map_or(k, |order| order[k] as usize)]).collect();
    let any = dead.contains(&true);
    for (k, column) in matrix.chunks_exact_mut(size.max(1)).enumerate() {
        column[k] += added;
        if any {
            column[..=k]
                .iter_mut()
                .enumerate()
                .filter(|(j, _)| dead[*j] || dead[k])
                .for_each(|(_, value)| *value = T::ZERO);
        }
        if dead[k] {
            column[k] = T::ONE;
        }
    }
}

/// Divides each column of R by its pivot, which gives A, and returns D, the squares of the pivots.
fn unit_diagonal<T: Real>(upper: &mut [T], size: usize) -> Vec<T> {
    let columns = upper.chunks_exact_mut(size.max(1)).enumerate();
    columns
        .map(|(k, column)| {
            let pivot = column[k];
            column[..=k].iter_mut().for_each(|value| *value /= pivot);
            pivot * pivot
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hessian(size: usize, sum: &[f64]) -> Hessian<f64> {
        Hessian { sum: sum.to_vec(), ..Hessian::new(size) }
    }

    const PLAIN: Damping = Damping { start: 0.0, growth: 10.0, max: 1.0 };

    #[test]
    fn a_factor_by_hand() {
        // [[6, 2], [2, 4]] = A D Aᵀ with A₀₁ = 2 / 4, D = (6 − 4 · ¼, 4); damping adds 0.2 · 5.
        let factor = factorize(&hessian(2, &[6.0, 9.0, 2.0, 4.0]), &PLAIN, false).unwrap();
        assert_eq!(factor.feedback[2], 0.5);
        assert!((factor.pivots[0] - 5.0).abs() < 1e-14 && (factor.pivots[1] - 4.0).abs() < 1e-14);
        assert_eq!((factor.order, factor.damping, factor.attempts), (None, 0.0, 1));
        let damped = Damping { start: 0.2, ..PLAIN };
        let factor = factorize(&hessian(2, &[6.0, 9.0, 2.0, 4.0]), &damped, false).unwrap();
        assert!(
            (factor.feedback[2] - 2.0 / 5.0).abs() < 1e-15 && (factor.added - 1.0).abs() < 1e-15
        );
    }

    #[test]
    fn act_order_goes_down_the_diagonal_and_keeps_equal_columns_in_order() {
        let diagonal = [1.0, 5.0, 0.0, 5.0, 7.0];
        let mut sum = vec![0.0; 25];
        diagonal.iter().enumerate().for_each(|(i, d)| sum[i * 6] = *d);
        sum[5] = 0.5;
        let factor = factorize(&hessian(5, &sum), &PLAIN, true).unwrap();
        assert_eq!(factor.order, Some(vec![4, 1, 3, 0, 2]));
        assert_eq!(factor.dead, [false, false, true, false, false]);
        assert_eq!(factor.diagonal, diagonal);
        // Column 0 is solved fourth, and takes half the error of column 1, which is solved second.
        assert_eq!(factor.feedback[3 * 5..][..3], [0.0, 0.5, 0.0]);
    }

    #[test]
    fn damping_rises_until_there_is_a_factor() {
        // The eigenvalues are 3.5 and −1.5, so more than 1.5 must be added: 1.5 times the mean
        // diagonal.
        let indefinite = hessian(2, &[1.0, 0.0, 2.5, 1.0]);
        let found =
            factorize(&indefinite, &Damping { start: 0.01, growth: 10.0, max: 10.0 }, false)
                .unwrap();
        assert_eq!((found.damping, found.attempts), (10.0, 4));
        let error = factorize(&indefinite, &Damping::default(), false).unwrap_err();
        assert_eq!(error, QuantizeError::Singular { damping: 1.0 });
        assert!(error.to_string().contains("stays singular"));
        // A share of 0 can't be multiplied.
        let found = factorize(&indefinite, &Damping { start: 0.0, growth: 10.0, max: 10.0 }, false)
            .unwrap();
        assert_eq!((found.damping, found.attempts), (10.0, 5));
        let constant = Damping { growth: 1.0, ..Damping::default() };
        assert!(factorize(&indefinite, &constant, false).is_err());
    }

    #[test]
    fn hessians_that_are_not_finite_are_refused() {
        for wrong in [f64::NAN, f64::INFINITY] {
            for at in [0, 2, 3] {
                let mut sum = [1.0, 0.0, 0.0, 1.0];
                sum[at] = wrong;
                let found = factorize(&hessian(2, &sum), &Damping::default(), true)
                    .map(|factor| factor.attempts);
                assert_eq!(found, Err(QuantizeError::NotFinite), "{wrong} at {at}");
            }
        }
    }

    #[test]
    fn a_hessian_without_tokens_has_the_identity_as_factor() {
        let factor = factorize(&Hessian::<f32>::new(3), &Damping::default(), true).unwrap();
        assert_eq!((factor.dead, factor.added), (vec![true; 3], 0.0));
        assert_eq!(factor.order, Some(vec![0, 1, 2]));
        assert_eq!([factor.feedback[3], factor.feedback[6], factor.feedback[7]], [0.0; 3]);
    }
}
