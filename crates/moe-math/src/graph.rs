//! Gradients for values that are computed outside of candle's graph.
//!
//! The forward pass uses our own kernels and candle's fused ones, and candle can differentiate
//! neither. This module attaches a backward pass to their results, so that training runs the same
//! code as inference.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, MetalStorage, Result, Shape, Storage,
    Tensor, bail,
};

/// Attaches `backward` to `value`, which was computed from `x`.
///
/// `backward` gets x, the value and the value's gradient, none of them tracked, and returns the
/// gradient of x.
///
/// # Errors
/// If the device fails.
pub fn tied<B>(value: Tensor, x: &Tensor, backward: B) -> Result<Tensor>
where
    B: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    if !x.track_op() {
        return Ok(value);
    }
    x.apply_op1(KnownResult::new(value, backward)?)
}

/// Like `tied`, for a value of two arguments. The gradient of an untracked argument isn't used, so
/// `backward` may return `None` for it.
///
/// # Errors
/// If the device fails.
pub fn tied_to_both<B>(value: Tensor, a: &Tensor, b: &Tensor, backward: B) -> Result<Tensor>
where
    B: Fn(&Tensor, &Tensor, &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)>
        + Send
        + Sync
        + 'static,
{
    if !a.track_op() && !b.track_op() {
        return Ok(value);
    }
    a.apply_op2(b, KnownResult::new(value, backward)?)
}

/// An operation whose result is already known.
struct KnownResult<B> {
    /// Taken when the operation is applied, so that the graph doesn't hold the value twice.
    value: Mutex<Option<Tensor>>,
    shape: Shape,
    backward: B,
}

impl<B> KnownResult<B> {
    fn new(value: Tensor, backward: B) -> Result<Self> {
        let value = value.contiguous()?;
        Ok(Self { shape: value.shape().clone(), value: Mutex::new(Some(value)), backward })
    }

    /// A copy of the value's storage, if `of` accepts its kind.
    fn storage<S: BackendStorage>(
        &self,
        of: impl Fn(&Storage) -> Option<&S>,
    ) -> Result<(S, Shape)> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(value) = value else { bail!("a known value was used twice") };
        let (storage, layout) = value.storage_and_layout();
        match of(&storage) {
            Some(storage) if layout.start_offset() == 0 => {
                Ok((storage.try_clone(layout)?, self.shape.clone()))
            }
            _ => bail!("a known value is on another device, or a part of another tensor"),
        }
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        self.storage(
            |storage| if let Storage::Cpu(storage) = storage { Some(storage) } else { None },
        )
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        self.storage(
            |storage| if let Storage::Cuda(storage) = storage { Some(storage) } else { None },
        )
    }

    fn metal(&self) -> Result<(MetalStorage, Shape)> {
        self.storage(
            |storage| if let Storage::Metal(storage) = storage { Some(storage) } else { None },
        )
    }
}

const NAME: &str = "a value known beforehand";

impl<B: Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>> CustomOp1 for KnownResult<B> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(&self, x: &Tensor, value: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(&x.detach(), &value.detach(), gradient).map(Some)
    }
}

impl<B> CustomOp2 for KnownResult<B>
where
    B: Fn(&Tensor, &Tensor, &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)>,
{
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        (self.backward)(&a.detach(), &b.detach(), gradient)
    }
}

/// Compares the gradients of Σ weights ∘ f(arguments), with seeded weights, with finite
/// differences. Returns the largest error, relative to the largest gradient of its argument.
#[cfg(test)]
pub(crate) fn differences(
    arguments: &[&candle_core::Var],
    seed: u64,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> f64 {
    use crate::sampling::{generator, normal};
    const STEP: f32 = 1e-2;
    let given: Vec<Tensor> = arguments.iter().map(|a| a.as_tensor().clone()).collect();
    let value = f(&given).unwrap();
    let weights = normal(value.elem_count(), 1.0, &mut generator(seed, 99));
    let weights = Tensor::from_vec(weights, value.shape(), value.device()).unwrap();
    let gradients = (value * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let sum = |tensors: &[Tensor]| -> f64 {
        let product = (f(tensors).unwrap() * &weights)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        product.into_iter().map(f64::from).sum()
    };
    let mut worst = 0f64;
    for (index, argument) in arguments.iter().enumerate() {
        let values: Vec<f32> = argument.flatten_all().unwrap().to_vec1().unwrap();
        let gradient = gradients.get(argument.as_tensor()).expect("a gradient of every argument");
        assert_eq!(gradient.dims(), argument.dims());
        let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        let largest = gradient.iter().fold(0f32, |most, g| most.max(g.abs()));
        for element in 0..values.len() {
            let moved = |by: f32| {
                let mut values = values.clone();
                values[element] += by;
                let mut tensors: Vec<Tensor> = given.iter().map(Tensor::detach).collect();
                tensors[index] =
                    Tensor::from_vec(values, argument.shape(), argument.device()).unwrap();
                sum(&tensors)
            };
            let expected = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
            worst = worst.max((expected - f64::from(gradient[element])).abs() / f64::from(largest));
        }
    }
    worst
}
