//! Hessians of inputs that lie on a device.

use candle_core::{DType, Device, Tensor};

use super::{Hessian, QuantizeError, checked_length};

/// A [`Hessian`] in the making: on the CPU by its lower triangle, on a device by whole products there.
pub struct HessianSum {
    /// On the CPU all of it; on a device but for the sum.
    hessian: Hessian,
    device: Device,
    /// `[K, K]` on the device, once there were tokens.
    sum: Option<Tensor>,
}

impl HessianSum {
    /// Of no tokens, for inputs of width `size` on `device`.
    pub fn new(size: usize, device: &Device) -> Self {
        Self { hessian: Hessian::new(size), device: device.clone(), sum: None }
    }

    /// Adds the tokens of `x`, `[n, K]`, with a weight ρ for each, or 1; in f32, as [`Hessian::add`] does.
    ///
    /// # Errors
    /// For shapes that don't fit, and what the device returns.
    pub fn add(&mut self, x: &Tensor, weights: Option<&[f32]>) -> Result<(), QuantizeError> {
        let (tokens, size) = x.dims2()?;
        checked_length(size, self.hessian.size)?;
        let x = x.to_dtype(DType::F32)?.contiguous()?;
        if self.device.is_cpu() {
            return self.hessian.add(&x.flatten_all()?.to_vec1()?, weights);
        }
        self.add_on_device(&x, weights, tokens)
    }

    fn add_on_device(&mut self, x: &Tensor, weights: Option<&[f32]>, tokens: usize) -> Result<(), QuantizeError> {
        let weighted = match weights {
            Some(weights) => {
                checked_length(weights.len(), tokens)?;
                x.broadcast_mul(&Tensor::from_slice(weights, (tokens, 1), x.device())?)?
            }
            None => x.clone(),
        };
        self.hessian.count(tokens, weights);
        let product = weighted.t()?.matmul(x)?;
        self.sum = Some(match self.sum.take() {
            Some(sum) => (sum + product)?,
            None => product,
        });
        Ok(())
    }

    /// The Hessian, in memory.
    ///
    /// # Errors
    /// What the device returns.
    pub fn finish(mut self) -> Result<Hessian, QuantizeError> {
        if let Some(sum) = self.sum {
            self.hessian.sum = sum.flatten_all()?.to_vec1()?;
        }
        Ok(self.hessian)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, normal};

    /// The device's way, here on the CPU, beside the CPU's own, which has been checked against sums by hand.
    #[test]
    fn both_ways_give_one_sum() {
        let (x, weights) = (normal(20 * 7, 1.0, &mut generator(1, 0)), normal(20, 1.0, &mut generator(2, 0)));
        let tensor = Tensor::from_slice(&x, (20, 7), &Device::Cpu).unwrap();
        let mut own = HessianSum::new(7, &Device::Cpu);
        own.add(&tensor, Some(&weights)).unwrap();
        own.add(&tensor, None).unwrap();
        let own = own.finish().unwrap();
        let mut device = HessianSum::new(7, &Device::Cpu);
        device.add_on_device(&tensor, Some(&weights), 20).unwrap();
        device.add_on_device(&tensor, None, 20).unwrap();
        let device = device.finish().unwrap();
        assert_eq!((own.tokens, own.weight, own.squares), (device.tokens, device.weight, device.squares));
        for (a, b) in own.full().iter().zip(device.full()) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
        assert!(HessianSum::new(8, &Device::Cpu).add(&tensor, None).is_err());
        assert!(HessianSum::new(7, &Device::Cpu).add(&tensor, Some(&weights[1..])).is_err());
    }
}
