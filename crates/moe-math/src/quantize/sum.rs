//! Hessians of inputs on any device, and their factors.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::factor::{OnDevice, descending};
use super::{Damping, Factor, Hessian, QuantizeError, checked_length, factorize};
use crate::kernels::{add_gram, reverse_cholesky};

/// A [`Hessian`] in f32 that stays on the device of its inputs.
#[derive(Debug, Clone)]
pub struct HessianSum {
    /// The whole Hessian on the CPU; everything except the sum for a device.
    hessian: Hessian,
    /// `[K, K]` on a device, symmetric; None on the CPU.
    sum: Option<Tensor>,
}

impl HessianSum {
    /// Starts without tokens, for inputs of width `size` on `device`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(size: usize, device: &Device) -> Result<Self, QuantizeError> {
        match device {
            Device::Cuda(_) => Self::on_device(size, device),
            Device::Cpu | Device::Metal(_) => Ok(Self { hessian: Hessian::new(size), sum: None }),
        }
    }

    /// Starts as on a GPU; this also works on a CPU.
    fn on_device(size: usize, device: &Device) -> Result<Self, QuantizeError> {
        let hessian = Hessian { size, sum: Vec::new(), weight: 0.0, squares: 0.0, tokens: 0 };
        Ok(Self { hessian, sum: Some(Tensor::zeros((size, size), DType::F32, device)?) })
    }

    /// Adds the tokens of `x`, `[n, K]`, with a weight ρ for each, or 1. On the CPU it works in f32
    /// like [`Hessian::add`]. On a GPU √ρ x is rounded to the dtype of `x` (for bf16) and summed in
    /// f32.
    ///
    /// # Errors
    /// For shapes that don't fit, or if the device fails.
    pub fn add(&mut self, x: &Tensor, weights: Option<&[f32]>) -> Result<(), QuantizeError> {
        let (tokens, size) = x.dims2()?;
        checked_length(size, self.hessian.size)?;
        if let Some(weights) = weights {
            checked_length(weights.len(), tokens)?;
        }
        let Some(sum) = &self.sum else {
            let x = x.to_dtype(DType::F32)?.contiguous()?;
            return self.hessian.add(&x.flatten_all()?.to_vec1()?, weights);
        };
        let x = if x.dtype() == DType::BF16 { x.clone() } else { x.to_dtype(DType::F32)? };
        match weights {
            Some(weights) => {
                let roots: Vec<f32> = weights.iter().map(|weight| weight.sqrt()).collect();
                let roots =
                    Tensor::from_vec(roots, (tokens, 1), x.device())?.to_dtype(x.dtype())?;
                add_gram(sum, &x.broadcast_mul(&roots)?)?;
            }
            None => add_gram(sum, &x)?,
        }
        self.hessian.count(tokens, weights);
        Ok(())
    }

    /// Width of the inputs, K.
    pub fn size(&self) -> usize {
        self.hessian.size
    }

    /// See [`Hessian::effective_tokens`].
    pub fn effective_tokens(&self) -> f64 {
        self.hessian.effective_tokens()
    }

    /// See [`Hessian::shrink`]; `other` must be on the same device.
    ///
    /// # Errors
    /// If the sizes differ, or if the device fails.
    pub fn shrink(&mut self, other: &Self, kappa: f64) -> Result<(), QuantizeError> {
        let (Some(sum), Some(others)) = (&self.sum, &other.sum) else {
            return self.hessian.shrink(&other.hessian, kappa);
        };
        checked_length(other.size(), self.size())?;
        if let Some([own, of_other]) = self.hessian.mixed(&other.hessian, kappa) {
            self.sum = Some((sum.affine(own, 0.0)? + others.affine(of_other, 0.0)?)?);
            self.hessian.weigh(kappa);
        }
        Ok(())
    }
}

/// Factors all `sums` in parallel, each with its `damping`, like [`factorize`] up to rounding.
///
/// # Errors
/// For each sum as for [`factorize`]; one error for all if the device returns one.
pub fn factorize_all(
    sums: Vec<HessianSum>,
    damping: &[Damping],
    act_order: bool,
) -> Result<Vec<Result<Factor<f32>, QuantizeError>>, QuantizeError> {
    checked_length(damping.len(), sums.len())?;
    if sums.iter().all(|sum| sum.sum.is_none()) {
        let all = sums.into_par_iter().zip(damping);
        return Ok(all.map(|(sum, damping)| factorize(&sum.hessian, damping, act_order)).collect());
    }
    let sums = sums.iter().map(|sum| {
        sum.sum.as_ref().ok_or(QuantizeError::Device("sums are on different devices".to_owned()))
    });
    on_device(&sums.collect::<Result<Vec<_>, _>>()?, damping, act_order)
}

/// A factorization in progress: `found` is its result.
struct PendingFactor<'a> {
    sum: &'a Tensor,
    order: Option<Vec<u32>>,
    diagonal: Vec<f32>,
    dead: Vec<bool>,
    damping: &'a Damping,
    /// The λ to try next.
    share: f64,
    attempts: u32,
    found: Option<Result<Factor<f32>, QuantizeError>>,
}

fn on_device<'a>(
    sums: &[&'a Tensor],
    damping: &'a [Damping],
    act_order: bool,
) -> Result<Vec<Result<Factor<f32>, QuantizeError>>, QuantizeError> {
    let Some(first) = sums.first() else { return Ok(Vec::new()) };
    let diagonals = sums.iter().map(|sum| diagonal(&sum.unsqueeze(0)?));
    let diagonals = diagonals.collect::<candle_core::Result<Vec<_>>>()?;
    let diagonals = Tensor::cat(&diagonals, 0)?.to_vec2::<f32>()?;
    let mut all = Vec::with_capacity(sums.len());
    for ((sum, damping), diagonal) in sums.iter().zip(damping).zip(diagonals) {
        all.push(PendingFactor::new(sum, damping, diagonal, act_order));
    }
    let one = Tensor::eye(first.dim(0)?, DType::F32, first.device())?;
    while all.iter().any(|factor| factor.found.is_none()) {
        let pending = all.iter_mut().filter(|factor| factor.found.is_none());
        attempt(&mut pending.collect::<Vec<_>>(), &one)?;
    }
    Ok(all.into_iter().filter_map(|factor| factor.found).collect())
}

/// Tries to factor each of `pending` with its current damping; raises the damping of those that
/// fail.
fn attempt(pending: &mut [&mut PendingFactor<'_>], one: &Tensor) -> Result<(), QuantizeError> {
    // Frees each tensor once it isn't needed: these take up most of the device's memory.
    let matrices =
        pending.iter().map(|factor| factor.damped(one)).collect::<Result<Vec<_>, _>>()?;
    let stacked = Tensor::stack(&matrices, 0)?;
    drop(matrices);
    let (factors, good) = reverse_cholesky(&stacked)?;
    drop(stacked);
    let roots = diagonal(&factors)?;
    let feedback = factors.broadcast_div(&roots.unsqueeze(2)?)?;
    drop(factors);
    let roots = roots.to_vec2::<f32>()?;
    for (index, factor) in pending.iter_mut().enumerate() {
        if good[index] {
            factor.finish(OnDevice { all: feedback.clone(), index }, &roots[index]);
        } else {
            factor.raise()?;
        }
    }
    Ok(())
}

/// The diagonals of `[E, K, K]`, as `[E, K]`.
fn diagonal(matrices: &Tensor) -> candle_core::Result<Tensor> {
    let size = matrices.dim(2)?;
    let places: Vec<u32> = (0..size).map(|k| (k * (size + 1)) as u32).collect();
    matrices.flatten_from(1)?.index_select(&Tensor::from_vec(places, size, matrices.device())?, 1)
}

impl<'a> PendingFactor<'a> {
    fn new(sum: &'a Tensor, damping: &'a Damping, diagonal: Vec<f32>, act_order: bool) -> Self {
        let dead = diagonal.iter().map(|h| *h == 0.0).collect();
        let order = act_order.then(|| descending(&diagonal));
        Self { sum, order, diagonal, dead, damping, share: damping.start, attempts: 1, found: None }
    }

    /// λ mean(diag H), over columns with energy.
    fn added(&self) -> f64 {
        let live = self.dead.iter().filter(|dead| !**dead).count();
        self.share * self.diagonal.iter().map(|h| f64::from(*h)).sum::<f64>() / live.max(1) as f64
    }

    /// H by columns in the order of solving, with damping on its diagonal. A dead column becomes a
    /// column of the identity, `one`.
    fn damped(&self, one: &Tensor) -> Result<Tensor, QuantizeError> {
        let size = self.diagonal.len();
        let device = self.sum.device();
        let mut matrix = self.sum.clone();
        if let Some(order) = &self.order {
            let order = Tensor::from_slice(order, size, device)?;
            matrix = matrix.index_select(&order, 0)?.index_select(&order, 1)?;
        }
        let dead: Vec<bool> = match &self.order {
            Some(order) => order.iter().map(|k| self.dead[*k as usize]).collect(),
            None => self.dead.to_vec(),
        };
        if dead.contains(&true) {
            let live: Vec<f32> = dead.iter().map(|dead| if *dead { 0.0 } else { 1.0 }).collect();
            let live = Tensor::from_vec(live, (1, size), device)?;
            matrix = matrix.broadcast_mul(&live)?.broadcast_mul(&live.t()?)?;
        }
        let added = self.added() as f32;
        let added: Vec<f32> = dead.iter().map(|dead| if *dead { 1.0 } else { added }).collect();
        let added = Tensor::from_vec(added, (1, size), device)?;
        Ok((matrix + one.broadcast_mul(&added)?)?)
    }

    fn finish(&mut self, feedback: OnDevice, roots: &[f32]) {
        self.found = Some(Ok(Factor {
            order: self.order.take(),
            feedback: Vec::new(),
            on_device: Some(feedback),
            pivots: roots.iter().map(|root| root * root).collect(),
            added: self.added(),
            diagonal: std::mem::take(&mut self.diagonal),
            dead: std::mem::take(&mut self.dead),
            damping: self.share,
            attempts: self.attempts,
        }));
    }

    /// Raises the damping, or gives up if the maximum is reached.
    fn raise(&mut self) -> Result<(), QuantizeError> {
        if !self.sum.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
            self.found = Some(Err(QuantizeError::NotFinite));
        } else if let Some(share) = self.damping.after(self.share) {
            self.share = share;
            self.attempts += 1;
        } else {
            self.found = Some(Err(QuantizeError::Singular { damping: self.share }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, normal};

    fn sums(x: &Tensor, weights: Option<&[f32]>) -> [HessianSum; 2] {
        let size = x.dim(1).unwrap();
        let both = [
            HessianSum::new(size, &Device::Cpu).unwrap(),
            HessianSum::on_device(size, &Device::Cpu).unwrap(),
        ];
        both.map(|mut sum| {
            sum.add(x, weights).unwrap();
            sum.add(x, None).unwrap();
            sum
        })
    }

    fn assert_alike(host: &HessianSum, device: &HessianSum, tolerance: f32) {
        let of = |sum: &HessianSum| (sum.hessian.tokens, sum.hessian.weight, sum.hessian.squares);
        assert_eq!(of(host), of(device));
        let (host, device) =
            (host.hessian.full(), device.sum.as_ref().unwrap().flatten_all().unwrap());
        let largest = host.iter().fold(0f32, |most, h| most.max(h.abs()));
        for (a, b) in host.iter().zip(device.to_vec1::<f32>().unwrap()) {
            assert!((a - b).abs() <= tolerance * largest, "{a} {b}");
        }
    }

    /// Compares the device's algorithm, run on the CPU, with the CPU's own, which is tested against
    /// sums by hand.
    #[test]
    fn a_device_has_the_sum_of_the_cpu() {
        let (x, mut weights) =
            (normal(20 * 7, 1.0, &mut generator(1, 0)), normal(20, 1.0, &mut generator(2, 0)));
        weights.iter_mut().for_each(|weight| *weight = weight.abs());
        let x = Tensor::from_vec(x, (20, 7), &Device::Cpu).unwrap();
        let [mut host, mut device] = sums(&x, Some(&weights));
        assert_alike(&host, &device, 1e-6);
        let [other, on_device] = sums(&(&x * 2.0).unwrap(), None);
        host.shrink(&other, 3.0).unwrap();
        device.shrink(&on_device, 3.0).unwrap();
        assert_alike(&host, &device, 1e-6);
        // bf16 is rounded once and summed in f32.
        let [host, device] = sums(&x.to_dtype(DType::BF16).unwrap(), Some(&weights));
        assert_alike(&host, &device, 4e-3);
        let fail = |mut sum: HessianSum| {
            [sum.add(&x, Some(&weights[1..])).is_err(), sum.add(&x.t().unwrap(), None).is_err()]
        };
        assert_eq!([fail(host), fail(device)], [[true; 2]; 2]);
    }

    #[test]
    fn a_device_has_the_factor_of_the_cpu() {
        let size = 150;
        let mut x = normal(40 * size, 1.0, &mut generator(3, 0));
        for (at, value) in x.iter_mut().enumerate() {
            // Columns of different energy, and two dead ones.
            let column = at % size;
            *value *= if [0, 77].contains(&column) { 0.0 } else { 1.0 + column as f32 / 50.0 };
        }
        let x = Tensor::from_vec(x, (40, size), &Device::Cpu).unwrap();
        // A Hessian of 150 columns from 40 tokens is singular: the second needs more damping, and
        // the third may not have more.
        for act_order in [true, false] {
            let none = Damping { start: 0.0, ..Damping::default() };
            let damping = [Damping { start: 0.1, ..none }, none, Damping { growth: 1.0, ..none }];
            let [host, device] = sums(&x, None);
            let factors = |sum: HessianSum| {
                factorize_all(vec![sum.clone(), sum.clone(), sum], &damping, act_order).unwrap()
            };
            let (host, device) = (factors(host), factors(device));
            assert!(matches!(host[2], Err(QuantizeError::Singular { .. })), "{:?}", host[2]);
            assert!(matches!(device[2], Err(QuantizeError::Singular { .. })), "{:?}", device[2]);
            for (host, device) in host[..2].iter().zip(&device) {
                let (host, device) = (host.as_ref().unwrap(), device.as_ref().unwrap());
                assert_eq!(
                    (&host.order, &host.dead, host.attempts),
                    (&device.order, &device.dead, device.attempts)
                );
                assert!(
                    (host.added - device.added).abs() < 1e-6 * host.added
                        && host.damping == device.damping
                );
                let feedback = [host, device]
                    .map(|f| f.feedback_on(&Device::Cpu).unwrap().flatten_all().unwrap());
                let [of_host, of_device] =
                    feedback.map(|feedback| feedback.to_vec1::<f32>().unwrap());
                let worst =
                    of_host.iter().zip(&of_device).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-3, "{worst}");
                let pivots = host.pivots.iter().zip(&device.pivots);
                assert!(
                    pivots.clone().all(|(a, b)| (a - b).abs() < 1e-3 * a),
                    "{:?}",
                    pivots.collect::<Vec<_>>()
                );
            }
        }
        let mut broken = HessianSum::on_device(3, &Device::Cpu).unwrap();
        broken.add(&Tensor::new(&[[1f32, f32::NAN, 2.0]], &Device::Cpu).unwrap(), None).unwrap();
        let found = factorize_all(vec![broken], &[Damping::default()], true).unwrap();
        assert!(matches!(found[0], Err(QuantizeError::NotFinite)));
    }
}
