//! AdamW (1711.05101) with moments that can be read out and restored, clipping by the global norm,
//! and the cosine schedule.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Storage, Tensor, Var, bail};
use rayon::prelude::*;

/// Elements that a thread takes at a time. It is fixed, so that sums don't depend on the number of
/// threads.
const PART: usize = 1 << 14;

/// The settings that all parameters share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the running mean of the gradients.
    pub beta1: f64,
    /// Decay of the running mean of the squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean squared gradient.
    pub eps: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8 }
    }
}

/// The settings of one step of one parameter, apart from its gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Number of the step, counted from 1.
    pub number: u64,
    /// η, already multiplied by the schedule's factor.
    pub learning_rate: f64,
    /// λ of the decoupled decay, θ ← θ (1 − ηλ).
    pub weight_decay: f64,
    /// Factor of the gradient, from [`clipping`].
    pub scale: f64,
}

/// The running means of one parameter's gradients, in f32.
pub enum Moments {
    /// On the CPU: m and v.
    Host(Mutex<[Vec<f32>; 2]>),
    /// On a device: m and v.
    Device([Tensor; 2]),
}

impl Moments {
    /// Creates moments of zero for `parameter`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(parameter: &Var) -> Result<Self> {
        if parameter.device().is_cpu() {
            let zeros = vec![0f32; parameter.elem_count()];
            return Ok(Self::Host(Mutex::new([zeros.clone(), zeros])));
        }
        let zeros = parameter.zeros_like()?.detach();
        Ok(Self::Device([zeros.clone(), zeros]))
    }

    /// Restores `moments` that `read` returned for `parameter`.
    ///
    /// # Errors
    /// If their lengths differ from the parameter's, or if the device fails.
    pub fn restore(moments: [Vec<f32>; 2], parameter: &Var) -> Result<Self> {
        if moments.iter().any(|values| values.len() != parameter.elem_count()) {
            bail!("moments of {} values for {:?}", moments[0].len(), parameter.shape());
        }
        if parameter.device().is_cpu() {
            return Ok(Self::Host(Mutex::new(moments)));
        }
        let [m, v] =
            moments.map(|values| Tensor::from_vec(values, parameter.shape(), parameter.device()));
        Ok(Self::Device([m?, v?]))
    }

    /// Reads m and v.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read(&self) -> Result<[Vec<f32>; 2]> {
        match self {
            Self::Host(moments) => {
                Ok(moments.lock().unwrap_or_else(PoisonError::into_inner).clone())
            }
            Self::Device([m, v]) => Ok([m.flatten_all()?.to_vec1()?, v.flatten_all()?.to_vec1()?]),
        }
    }
}

impl AdamW {
    /// Sets θ ← θ (1 − ηλ) − η m̂ / (√v̂ + ε), in f32. m and v are the running means of g and g²;
    /// m̂ and v̂ are corrected for their bias towards 0.
    ///
    /// # Errors
    /// For a parameter that is not in f32, or a gradient of another shape, or if the device fails.
    pub fn step(
        &self,
        parameter: &Var,
        gradient: &Tensor,
        moments: &mut Moments,
        step: &AdamWStep,
    ) -> Result<()> {
        if parameter.dtype() != DType::F32 || parameter.dims() != gradient.dims() {
            let (gradient, parameter) = (gradient.shape(), parameter.shape());
            bail!("a gradient of {gradient:?} for a parameter of {parameter:?}");
        }
        let gradient = gradient.to_dtype(DType::F32)?.contiguous()?;
        let corrections = [self.beta1, self.beta2].map(|beta| 1.0 - beta.powf(step.number as f64));
        let update = Update { adamw: *self, step, corrections };
        match moments {
            Moments::Host(moments) => parameter.inplace_op2(&gradient, &OnHost { update, moments }),
            Moments::Device(moments) => update.on_device(parameter, &gradient, moments),
        }
    }
}

struct Update<'a> {
    adamw: AdamW,
    step: &'a AdamWStep,
    /// 1 − βᵗ for both β.
    corrections: [f64; 2],
}

impl Update<'_> {
    fn on_device(
        &self,
        parameter: &Var,
        gradient: &Tensor,
        [m, v]: &mut [Tensor; 2],
    ) -> Result<()> {
        let (AdamW { beta1, beta2, eps }, step) = (self.adamw, self.step);
        let gradient = (gradient * step.scale)?;
        *m = ((&*m * beta1)? + (&gradient * (1.0 - beta1))?)?;
        *v = ((&*v * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let root = ((v.sqrt()? / self.corrections[1].sqrt())? + eps)?;
        let change = ((&*m / root)? * (step.learning_rate / self.corrections[0]))?;
        let kept =
            (parameter.as_detached_tensor() * (1.0 - step.learning_rate * step.weight_decay))?;
        parameter.set(&(kept - change)?)
    }

    fn on_part(&self, parameter: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32]) {
        let (AdamW { beta1, beta2, eps }, step) = (self.adamw, self.step);
        let [beta1, beta2, eps, scale] = [beta1, beta2, eps, step.scale].map(|x| x as f32);
        let keep = (1.0 - step.learning_rate * step.weight_decay) as f32;
        let rate = (step.learning_rate / self.corrections[0]) as f32;
        let root = self.corrections[1].sqrt() as f32;
        for (((theta, g), m), v) in parameter.iter_mut().zip(gradient).zip(m).zip(v) {
            let g = g * scale;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *theta = *theta * keep - rate * *m / (v.sqrt() / root + eps);
        }
    }
}

struct OnHost<'a> {
    update: Update<'a>,
    moments: &'a Mutex<[Vec<f32>; 2]>,
}

impl InplaceOp2 for OnHost<'_> {
    fn name(&self) -> &'static str {
        "a step of AdamW"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        p: &Layout,
        gradient: &CpuStorage,
        g: &Layout,
    ) -> Result<()> {
        let (CpuStorage::F32(parameter), CpuStorage::F32(gradient)) = (parameter, gradient) else {
            bail!("AdamW works in f32")
        };
        let (Some((p0, p1)), Some((g0, g1))) = (p.contiguous_offsets(), g.contiguous_offsets())
        else {
            bail!("AdamW takes contiguous tensors")
        };
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let [m, v] = &mut *moments;
        let parts = parameter[p0..p1].par_chunks_mut(PART).zip(gradient[g0..g1].par_chunks(PART));
        let parts = parts.zip(m.par_chunks_mut(PART)).zip(v.par_chunks_mut(PART));
        parts.for_each(|(((parameter, gradient), m), v)| {
            self.update.on_part(parameter, gradient, m, v)
        });
        Ok(())
    }
}

/// Σ g² in f64, added in a fixed order. It is not finite if any value isn't.
///
/// # Errors
/// If the device fails.
pub fn square_norm(gradient: &Tensor) -> Result<f64> {
    let gradient =
        gradient.to_dtype(DType::F32)?.contiguous()?.to_device(&candle_core::Device::Cpu)?;
    let (storage, layout) = gradient.storage_and_layout();
    let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) =
        (&*storage, layout.contiguous_offsets())
    else {
        bail!("a gradient that is not in f32")
    };
    let parts = values[start..end]
        .par_chunks(PART)
        .map(|part| part.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>());
    Ok(parts.collect::<Vec<_>>().into_iter().sum())
}

/// The factor that limits a gradient of global norm `norm` to `limit`, as torch's `clip_grad_norm_`
/// computes it.
pub fn clipping(norm: f64, limit: Option<f64>) -> f64 {
    limit.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0))
}

/// The factor of the learning rate at `step` (from 0) of `steps`: it rises linearly over `warmup`
/// steps, then falls to 0 along half a cosine, like transformers'
/// `get_cosine_schedule_with_warmup`.
pub fn cosine(step: u64, warmup: u64, steps: u64) -> f64 {
    if step < warmup {
        return step as f64 / warmup.max(1) as f64;
    }
    let progress = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
    (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// After the first step m̂ = g and v̂ = g², so each element moves by η against its gradient's
    /// sign.
    #[test]
    fn the_first_step_is_the_learning_rate() {
        let parameter = Var::new(&[1.0f32, -2.0, 3.0], &Device::Cpu).unwrap();
        let gradient = Tensor::new(&[0.5f32, -8.0, 0.0], &Device::Cpu).unwrap();
        let mut moments = Moments::new(&parameter).unwrap();
        let step = AdamWStep { number: 1, learning_rate: 0.1, weight_decay: 0.5, scale: 2.0 };
        AdamW::default().step(&parameter, &gradient, &mut moments, &step).unwrap();
        let found: Vec<f32> = parameter.to_vec1().unwrap();
        for (found, expected) in found.iter().zip([0.95 - 0.1, -1.9 + 0.1, 2.85]) {
            assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
        let [m, v] = moments.read().unwrap();
        assert!((m[0] - 0.1).abs() < 1e-7 && (v[1] - 0.05 * 256.0).abs() < 1e-5);
    }

    #[test]
    fn restored_moments_continue_with_the_same_steps() {
        let start = || Var::new(&[1.0f32, -2.0], &Device::Cpu).unwrap();
        let gradient = |i: u64| Tensor::new(&[i as f32, 1.0 - i as f32], &Device::Cpu).unwrap();
        let step = |number| AdamWStep { number, learning_rate: 0.1, weight_decay: 0.1, scale: 1.0 };
        let (whole, broken) = (start(), start());
        let (mut a, mut b) = (Moments::new(&whole).unwrap(), Moments::new(&broken).unwrap());
        for number in 1..6 {
            AdamW::default().step(&whole, &gradient(number), &mut a, &step(number)).unwrap();
            AdamW::default().step(&broken, &gradient(number), &mut b, &step(number)).unwrap();
            b = Moments::restore(b.read().unwrap(), &broken).unwrap();
        }
        assert_eq!(whole.to_vec1::<f32>().unwrap(), broken.to_vec1::<f32>().unwrap());
        assert!(Moments::restore([vec![0.0], vec![0.0]], &broken).is_err());
    }

    #[test]
    fn norms_are_clipped_and_schedules_end_at_zero() {
        let gradient = Tensor::new(&[[3.0f32, 0.0], [0.0, 4.0]], &Device::Cpu).unwrap();
        assert_eq!(square_norm(&gradient).unwrap(), 25.0);
        assert!((clipping(5.0, Some(1.0)) - 0.2).abs() < 1e-6);
        assert_eq!((clipping(5.0, None), clipping(0.5, Some(1.0))), (1.0, 1.0));
        assert_eq!((cosine(0, 2, 8), cosine(1, 2, 8), cosine(2, 2, 8)), (0.0, 0.5, 1.0));
        assert!((cosine(5, 2, 8) - 0.5).abs() < 1e-12 && cosine(8, 2, 8) < 1e-12);
        assert_eq!(cosine(0, 0, 0), 1.0);
        let nan = Tensor::new(&[1.0f32, f32::NAN], &Device::Cpu).unwrap();
        assert!(square_norm(&nan).unwrap().is_nan());
    }
}
