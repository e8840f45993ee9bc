//! silu(gate) ∘ up, the activation of gated neurons (Shazeer 2002.05202).

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::graph::tied_to_both;

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 14;

/// silu(gate) ∘ up in one pass; both have the same shape.
///
/// candle's own elementwise operations take turns, so experts that run side by side would wait for
/// each other.
///
/// # Errors
/// For shapes or dtypes that differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if !gate.device().is_cpu() || gate.dtype() != candle_core::DType::F32 {
        return gate.silu()? * up;
    }
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let value = gate.apply_op2_no_bwd(&up, &Swiglu)?;
    tied_to_both(value, &gate, &up, |gate, up, gradient| {
        let gradient = gradient.contiguous()?;
        let silu = gate.apply_op2_no_bwd(&gradient, &Swiglu)?;
        let to_gate = gate.apply_op3_no_bwd(up, &gradient, &SwigluBackward)?;
        Ok((Some(to_gate), Some(silu)))
    })
}

/// The gradient with respect to the gate g: ∂ ∘ up ∘ σ(g) (1 + g (1 − σ(g))).
struct SwigluBackward;

impl CustomOp3 for SwigluBackward {
    fn name(&self) -> &'static str {
        "the gradient of a gate"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        g: &Layout,
        up: &CpuStorage,
        u: &Layout,
        gradient: &CpuStorage,
        d: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [gate, up, gradient] = [values(gate, g)?, values(up, u)?, values(gradient, d)?];
        let mut out = vec![0f32; gate.len()];
        let chunks =
            out.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
        chunks.zip(gradient.par_chunks(CHUNK)).for_each(|(((out, gate), up), gradient)| {
            for (((out, gate), up), gradient) in out.iter_mut().zip(gate).zip(up).zip(gradient) {
                let sigmoid = 1.0 / (1.0 + (-gate).exp());
                *out = gradient * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
            }
        });
        Ok((CpuStorage::F32(out), g.shape().clone()))
    }
}

/// The f32 values of a contiguous tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("gate and up are contiguous, in f32"),
    }
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "silu(gate) ∘ up"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        g: &Layout,
        up: &CpuStorage,
        u: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if g.shape() != u.shape() {
            bail!("gate is {:?}, up {:?}", g.shape(), u.shape());
        }
        let (gate, up) = (values(gate, g)?, values(up, u)?);
        let mut out = vec![0f32; gate.len()];
        let chunks =
            out.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
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
    fn gradients_are_those_of_finite_differences() {
        let random = |seed| {
            candle_core::Var::from_vec(
                normal(30, 1.5, &mut generator(seed, 0)),
                (5, 6),
                &Device::Cpu,
            )
        };
        let (gate, up) = (random(3).unwrap(), random(4).unwrap());
        assert!(crate::graph::differences(&[&gate, &up], 2, |t| swiglu(&t[0], &t[1])) < 1e-2);
    }

    #[test]
    fn one_pass_equals_the_two_steps_of_candle() {
        let random = |seed| {
            let values = normal(300 * 70, 3.0, &mut generator(seed, 0));
            Tensor::from_vec(values, (300, 70), &Device::Cpu).unwrap()
        };
        let (gate, up) = (random(1), random(2));
        let (part, other) = (gate.narrow(1, 3, 60).unwrap(), up.narrow(1, 7, 60).unwrap());
        for (gate, up) in [(&gate, &up), (&part, &other)] {
            let expected = (gate.silu().unwrap() * up)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            assert_eq!(
                swiglu(gate, up).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                expected
            );
        }
        let infinite = Tensor::new(&[f32::NEG_INFINITY, 1e38, f32::NAN], &Device::Cpu).unwrap();
        let found = swiglu(&infinite, &Tensor::ones(3, DType::F32, &Device::Cpu).unwrap()).unwrap();
        assert!(found.to_vec1::<f32>().unwrap()[2].is_nan());
        assert!(swiglu(&gate, &part).is_err());
    }
}
