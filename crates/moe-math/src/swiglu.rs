//! silu(gate) ∘ up: what gated neurons do (Shazeer 2002.05202).

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 14;

/// silu(gate) ∘ up in one pass; both are of one shape.
///
/// candle's own elementwise operations take turns, so that experts which run side by side would wait for each other.
///
/// # Errors
/// For shapes or dtypes that differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if !gate.device().is_cpu() || gate.dtype() != candle_core::DType::F32 {
        return gate.silu()? * up;
    }
    gate.contiguous()?.apply_op2_no_bwd(&up.contiguous()?, &Swiglu)
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "silu(gate) ∘ up"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, g: &Layout, up: &CpuStorage, u: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(gate), CpuStorage::F32(up)) = (gate, up) else { bail!("gate and up differ in dtype") };
        let (Some(of_gate), Some(of_up)) = (g.contiguous_offsets(), u.contiguous_offsets()) else {
            bail!("gate and up are not contiguous")
        };
        if g.shape() != u.shape() {
            bail!("gate is {:?}, up {:?}", g.shape(), u.shape());
        }
        let (gate, up) = (&gate[of_gate.0..of_gate.1], &up[of_up.0..of_up.1]);
        let mut out = vec![0f32; gate.len()];
        let chunks = out.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
        chunks.for_each(|((out, gate), up)| {
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + (-gate).exp()) * up;
            }
        });
        Ok((CpuStorage::F32(out), g.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, normal};
    use candle_core::{DType, Device};

    #[test]
    fn it_is_what_candle_computes_in_two_steps() {
        let random = |seed| {
            let values = normal(300 * 70, 3.0, &mut generator(seed, 0));
            Tensor::from_vec(values, (300, 70), &Device::Cpu).unwrap()
        };
        let (gate, up) = (random(1), random(2));
        let (part, other) = (gate.narrow(1, 3, 60).unwrap(), up.narrow(1, 7, 60).unwrap());
        for (gate, up) in [(&gate, &up), (&part, &other)] {
            let expected = (gate.silu().unwrap() * up).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(swiglu(gate, up).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
        }
        let infinite = Tensor::new(&[f32::NEG_INFINITY, 1e38, f32::NAN], &Device::Cpu).unwrap();
        let found = swiglu(&infinite, &Tensor::ones(3, DType::F32, &Device::Cpu).unwrap()).unwrap();
        assert!(found.to_vec1::<f32>().unwrap()[2].is_nan());
        assert!(swiglu(&gate, &part).is_err());
    }
}
