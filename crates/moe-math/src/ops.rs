//! candle's fused operations with a backward pass: norms, softmax and rotary embeddings.

use candle_core::{D, DType, Result, Tensor};

use crate::graph::{tied, tied_to_both};

/// `x / √(mean x² + ε) ∘ weight` over the last dimension, whose width `weight` has.
///
/// # Errors
/// For shapes that don't fit, or if the device fails.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let x = x.contiguous()?;
    let value = candle_nn::ops::rms_norm(&x.detach(), &weight.detach(), eps)?;
    let trains = weight.track_op();
    tied_to_both(value, &x, weight, move |x, weight, gradient| {
        rms_norm_backward(x, weight, gradient, eps, trains)
    })
}

fn in_f32(t: &Tensor) -> Result<Tensor> {
    t.to_dtype(DType::F32)?.contiguous()
}

/// With r = 1 / √(mean x² + ε) and width n: ∂x = r (g ∘ w) − x r³ Σ(g ∘ w ∘ x) / n, and ∂w is the
/// sum over rows of g ∘ x r.
fn rms_norm_backward(
    x: &Tensor,
    weight: &Tensor,
    gradient: &Tensor,
    eps: f32,
    trains: bool,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let width = x.dim(D::Minus1)?;
    let xs = in_f32(x)?.reshape(((), width))?;
    let gradient = in_f32(gradient)?.reshape(((), width))?;
    let r = ((xs.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?).recip()?;
    let unit = xs.broadcast_mul(&r)?;
    let to_unit = gradient.broadcast_mul(&in_f32(weight)?)?;
    let along = (&to_unit * &unit)?.mean_keepdim(1)?;
    let to_x = (to_unit - unit.broadcast_mul(&along)?)?.broadcast_mul(&r)?;
    let to_weight =
        trains.then(|| (gradient * unit)?.sum(0)?.to_dtype(weight.dtype())).transpose()?;
    Ok((Some(to_x.reshape(x.shape())?.to_dtype(x.dtype())?), to_weight))
}

/// Softmax over the last dimension.
///
/// # Errors
/// If the device fails.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    tied(candle_nn::ops::softmax_last_dim(&x.detach())?, &x, |_, y, gradient| {
        let weighed = (gradient * y)?;
        let sum = weighed.sum_keepdim(D::Minus1)?;
        weighed - y.broadcast_mul(&sum)?
    })
}

/// Rotates pairs of the last dimension of `x`, `[1, heads, tokens, width]`, by angles given by
/// `cos` and `sin`, `[tokens, width / 2]`. A pair is two neighbors if `interleaved`, else a
/// dimension of the first half with one of the second.
///
/// # Errors
/// For shapes that don't fit, or if the device fails.
pub fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor, interleaved: bool) -> Result<Tensor> {
    let rope =
        if interleaved { candle_nn::rotary_emb::rope_i } else { candle_nn::rotary_emb::rope };
    let x = x.contiguous()?;
    let value = rope(&x.detach(), cos, sin)?;
    let (cos, back) = (cos.clone(), sin.neg()?);
    // The transposed rotation is the rotation by the opposite angle.
    tied(value, &x, move |_, _, gradient| rope(&gradient.contiguous()?, &cos, &back))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::differences;
    use crate::sampling::{generator, normal};
    use candle_core::{Device, Shape, Var};

    fn random(seed: u64, shape: impl Into<Shape>) -> Var {
        let shape = shape.into();
        let values = normal(shape.elem_count(), 1.0, &mut generator(seed, 0));
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn norms_have_the_gradients_of_finite_differences() {
        let (x, w) = (random(1, (5, 3, 8)), random(2, 8));
        assert!(differences(&[&x, &w], 7, |t| rms_norm(&t[0], &t[1], 1e-5)) < 1e-2);
    }

    #[test]
    fn softmax_has_the_gradient_of_finite_differences() {
        let x = random(3, (6, 9));
        assert!(differences(&[&x], 8, |t| softmax(&t[0])) < 1e-2);
    }

    #[test]
    fn rotations_have_the_gradient_of_finite_differences() {
        let x = random(4, (1, 2, 5, 8));
        let angles = random(5, (5, 4));
        // Scaled, like attention factors.
        let (cos, sin) =
            ((angles.cos().unwrap() * 1.3).unwrap(), (angles.sin().unwrap() * 1.3).unwrap());
        let (cos, sin) = (cos.detach(), sin.detach());
        for interleaved in [false, true] {
            assert!(differences(&[&x], 9, |t| rotated(&t[0], &cos, &sin, interleaved)) < 1e-2);
        }
    }
}
