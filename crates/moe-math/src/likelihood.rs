//! Loss, Kullback–Leibler divergence and agreement of next-token distributions.

use candle_core::{D, DType, Result, Tensor};

/// Log-probabilities over the last dimension, in f64.
///
/// # Errors
/// If the device fails.
pub fn log_probabilities(logits: &Tensor) -> Result<Tensor> {
    candle_nn::ops::log_softmax(&logits.to_dtype(DType::F64)?, D::Minus1)
}

/// Σ −log p(target) over rows, in nats. `log_p` is `[rows, vocab]`, `targets` is `[rows]` u32.
///
/// # Errors
/// If the device fails.
pub fn negative_log_likelihood(log_p: &Tensor, targets: &Tensor) -> Result<f64> {
    log_p.gather(&targets.unsqueeze(1)?, 1)?.sum_all()?.to_scalar::<f64>().map(|sum| -sum)
}

/// KL(p ‖ q) of each row in nats, from log-probabilities `[rows, vocab]`; p is the reference.
///
/// # Errors
/// If the device fails.
pub fn divergence(log_p: &Tensor, log_q: &Tensor) -> Result<Vec<f64>> {
    (log_p.exp()? * (log_p - log_q)?)?.sum(D::Minus1)?.to_vec1()
}

/// The number of rows whose most probable entry is the same in both.
///
/// # Errors
/// If the device fails.
pub fn agreements(log_p: &Tensor, log_q: &Tensor) -> Result<u64> {
    let same = log_p.argmax(D::Minus1)?.eq(&log_q.argmax(D::Minus1)?)?;
    Ok(same.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()? as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn values_by_hand() {
        let log = |p: [f64; 3]| p.map(|x| x.ln());
        let p = Tensor::new(&[log([0.5, 0.25, 0.25]), log([0.1, 0.8, 0.1])], &Device::Cpu).unwrap();
        let q = Tensor::new(&[log([0.25, 0.5, 0.25]), log([0.1, 0.8, 0.1])], &Device::Cpu).unwrap();
        let shifted = (log_probabilities(&(&p + 3.0).unwrap()).unwrap() - &p).unwrap();
        assert!(shifted.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap() < 1e-12);
        // 0.5 ln 2 − 0.25 ln 2 = 0.25 ln 2.
        let kl = divergence(&p, &q).unwrap();
        assert!((kl[0] - 0.25 * 2f64.ln()).abs() < 1e-12 && kl[1].abs() < 1e-12, "{kl:?}");
        assert_eq!(agreements(&p, &q).unwrap(), 1);
        let targets = Tensor::new(&[1u32, 1], &Device::Cpu).unwrap();
        let loss = negative_log_likelihood(&p, &targets).unwrap();
        assert!((loss + 0.25f64.ln() + 0.8f64.ln()).abs() < 1e-12, "{loss}");
    }
}
