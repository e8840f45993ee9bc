//! Training losses: next tokens, a teacher's distribution, and routers that use all of their
//! experts.
//!
//! Losses of logits come with their gradient, so that a head with a large vocabulary can run on a
//! few tokens at a time.

use candle_core::{D, DType, Result, Tensor};

use crate::routing::{Scoring, score};

/// A sum of losses over some tokens, with its gradient.
pub struct LogitLoss {
    /// Σ loss, in nats.
    pub sum: f64,
    /// Gradient of `sum` with respect to the logits, `[tokens, vocab]`, in f32.
    pub gradient: Tensor,
}

/// Σ −log p(target) over the tokens that have a target. `logits` is `[tokens, vocab]`, `targets` is
/// `[tokens]`. The gradient is p − onehot(target).
///
/// # Errors
/// If the device fails.
pub fn cross_entropy(logits: &Tensor, targets: &[Option<u32>]) -> Result<LogitLoss> {
    let log_q = log_softmax(logits)?;
    let counted: Vec<f32> =
        targets.iter().map(|target| if target.is_some() { 1.0 } else { 0.0 }).collect();
    let ids: Vec<u32> = targets.iter().map(|target| target.unwrap_or(0)).collect();
    let ids = Tensor::from_vec(ids, (targets.len(), 1), log_q.device())?;
    let chosen: Vec<f32> = log_q.gather(&ids, 1)?.flatten_all()?.to_vec1()?;
    let sum =
        -chosen.iter().zip(&counted).map(|(log, counted)| f64::from(log * counted)).sum::<f64>();
    let ones = Tensor::ones(ids.shape(), DType::F32, log_q.device())?;
    let gradient = log_q.exp()?.scatter_add(&ids, &ones.neg()?, 1)?;
    let counted = Tensor::from_vec(counted, (targets.len(), 1), gradient.device())?;
    Ok(LogitLoss { sum, gradient: gradient.broadcast_mul(&counted)? })
}

/// A teacher's distribution of the next token, for some tokens.
#[derive(Debug, Clone)]
pub enum Teacher {
    /// The whole distribution, as logits `[tokens, vocab]`.
    Logits(Tensor),
    /// A few tokens of the vocabulary: `ids` and `probabilities` are `[tokens, k]`. All other
    /// tokens share the rest of the probability.
    Few {
        /// Token ids, different within a row.
        ids: Tensor,
        /// Probabilities in f32.
        probabilities: Tensor,
    },
}

/// Σ KL(teacher ‖ softmax(logits)) at temperature 1. If the teacher names only a few tokens, all
/// others count as one, the tail, whose mass the student may distribute freely.
///
/// In either case the gradient is q − p, where p distributes the tail as q does: with named tokens
/// K and a tail of mass t, p_j = t q_j / Σ_{i ∉ K} q_i for j ∉ K.
///
/// # Errors
/// For shapes that differ, or if the device fails.
pub fn divergence(logits: &Tensor, teacher: &Teacher) -> Result<LogitLoss> {
    let log_q = log_softmax(logits)?;
    match teacher {
        Teacher::Logits(teacher) => {
            let log_p = log_softmax(teacher)?;
            let p = log_p.exp()?;
            let sums: Vec<f32> = (&p * (log_p - &log_q)?)?.sum(D::Minus1)?.to_vec1()?;
            Ok(LogitLoss {
                sum: sums.into_iter().map(f64::from).sum(),
                gradient: (log_q.exp()? - p)?,
            })
        }
        Teacher::Few { ids, probabilities } => divergence_of_few(&log_q, ids, probabilities),
    }
}

/// Smaller masses count as 0: they are f32's rounding of 1 − Σ p.
const MIN_TAIL: f32 = 1e-6;

fn divergence_of_few(log_q: &Tensor, ids: &Tensor, p: &Tensor) -> Result<LogitLoss> {
    let (rows, k) = ids.dims2()?;
    let q = log_q.exp()?;
    let of_ids = log_q.gather(ids, 1)?.to_vec2::<f32>()?;
    let given = p.to_vec2::<f32>()?;
    let mut sum = 0f64;
    // These are added to q: −p for named tokens, and for the others what turns q into t q / tail.
    let (mut named, mut factors) = (Vec::with_capacity(rows * k), Vec::with_capacity(rows));
    for (log_q, p) in of_ids.iter().zip(&given) {
        let q: Vec<f32> = log_q.iter().map(|log| log.exp()).collect();
        let tail = Tail::of(p, &q);
        for (p, log_q) in p.iter().zip(log_q).filter(|(p, _)| **p > 0.0) {
            sum += f64::from(*p) * (f64::from(*p).ln() - f64::from(*log_q));
        }
        sum += tail.divergence();
        let factor = tail.factor();
        // Every token also gets q · factor below, so that named ones end at q − p.
        named.extend(q.iter().zip(p).map(|(q, p)| q - p - q * factor));
        factors.push(factor);
    }
    let device = log_q.device();
    let everywhere = q.broadcast_mul(&Tensor::from_vec(factors, (rows, 1), device)?)?;
    let gradient = everywhere.scatter_add(ids, &Tensor::from_vec(named, (rows, k), device)?, 1)?;
    Ok(LogitLoss { sum, gradient })
}

/// The teacher's and the student's total mass of the tokens that the teacher doesn't name.
struct Tail {
    p: f32,
    q: f32,
}

impl Tail {
    /// Computes them from the masses `p` and `q` of the named tokens.
    fn of(p: &[f32], q: &[f32]) -> Self {
        let q = (1.0 - q.iter().sum::<f32>()).max(f32::MIN_POSITIVE);
        Self { p: 1.0 - p.iter().sum::<f32>(), q }
    }

    fn counts(&self) -> bool {
        self.p > MIN_TAIL
    }

    fn divergence(&self) -> f64 {
        if !self.counts() {
            return 0.0;
        }
        f64::from(self.p) * (f64::from(self.p).ln() - f64::from(self.q).ln())
    }

    /// 1 − t/tail, the factor of q in the gradient of the tail's tokens.
    fn factor(&self) -> f32 {
        if self.counts() { 1.0 - self.p / self.q } else { 1.0 }
    }
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    candle_nn::ops::log_softmax(&logits.detach().to_dtype(DType::F32)?, D::Minus1)
}

/// The probability that a router gives each expert, as the mean over tokens, `[experts]`. Softmax
/// scores are used as they are, σ scores as shares of their sum. Tracked if the logits are.
///
/// # Errors
/// If the device fails.
pub fn mean_probabilities(logits: &Tensor, scoring: Scoring) -> Result<Tensor> {
    let scores = score(&logits.to_dtype(DType::F32)?, scoring)?;
    let shares = match scoring {
        Scoring::Softmax => scores,
        Scoring::Sigmoid => scores.broadcast_div(&(scores.sum_keepdim(1)? + 1e-20)?)?,
    };
    shares.mean(0)
}

/// E Σ_e f_e P_e (Switch, 2101.03961 eq. 4). f_e is the number of choices of e per token, over all
/// k choices, and counts as a constant; P is the router's mean probabilities. The loss is k if load
/// is even.
///
/// # Errors
/// If the device fails.
pub fn load_balance(mean_probabilities: &Tensor, counts: &[u64], tokens: u64) -> Result<Tensor> {
    let experts = counts.len() as f64;
    let shares: Vec<f32> = counts
        .iter()
        .map(|count| (experts * *count as f64 / tokens.max(1) as f64) as f32)
        .collect();
    (mean_probabilities * Tensor::from_vec(shares, counts.len(), mean_probabilities.device())?)?
        .sum_all()
}

/// The mean over tokens of (log Σ_e exp z_e)² (ST-MoE, 2202.08906 eq. 5); `logits` is `[tokens,
/// experts]`.
///
/// # Errors
/// If the device fails.
pub fn router_z(logits: &Tensor) -> Result<Tensor> {
    let logits = logits.to_dtype(DType::F32)?;
    // The largest logit counts as a constant, since the result doesn't depend on what is
    // subtracted.
    let largest = logits.detach().max_keepdim(1)?;
    let sum = logits.broadcast_sub(&largest)?.exp()?.sum_keepdim(1)?;
    (sum.log()? + largest)?.sqr()?.mean_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::differences;
    use crate::sampling::{generator, normal};
    use candle_core::{Device, Var};

    fn random(seed: u64, rows: usize, columns: usize) -> Var {
        Var::from_vec(
            normal(rows * columns, 1.0, &mut generator(seed, 0)),
            (rows, columns),
            &Device::Cpu,
        )
        .unwrap()
    }

    /// The largest error of a loss's gradient, compared with finite differences of its sum.
    fn error(logits: &Var, loss: impl Fn(&Tensor) -> LogitLoss) -> f64 {
        let gradient = loss(logits).gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
        let moved = |element: usize, by: f32| {
            let mut values = values.clone();
            values[element] += by;
            loss(&Tensor::from_vec(values, logits.shape(), &Device::Cpu).unwrap()).sum
        };
        let errors = gradient.iter().enumerate().map(|(element, gradient)| {
            ((moved(element, 1e-2) - moved(element, -1e-2)) / 2e-2 - f64::from(*gradient)).abs()
        });
        errors.fold(0.0, f64::max)
    }

    #[test]
    fn losses_of_logits_have_their_gradients() {
        let logits = random(1, 4, 9);
        assert!(
            error(&logits, |logits| cross_entropy(logits, &[Some(3), None, Some(8), Some(3)])
                .unwrap())
                < 1e-4
        );
        let teacher = Teacher::Logits(random(2, 4, 9).detach());
        assert!(error(&logits, |logits| divergence(logits, &teacher).unwrap()) < 1e-4);
        let ids = Tensor::new(&[[0u32, 4], [8, 1], [2, 3], [5, 0]], &Device::Cpu).unwrap();
        for tail in [[0.3f32, 0.5], [0.4, 0.6]] {
            let probabilities = Tensor::new(&[tail; 4], &Device::Cpu).unwrap();
            let teacher = Teacher::Few { ids: ids.clone(), probabilities };
            assert!(
                error(&logits, |logits| divergence(logits, &teacher).unwrap()) < 1e-4,
                "{tail:?}"
            );
        }
    }

    #[test]
    fn a_teacher_that_names_all_tokens_equals_its_logits() {
        let (logits, teacher) = (random(1, 3, 5), random(2, 3, 5));
        let p = candle_nn::ops::softmax(&teacher, 1).unwrap().detach();
        let ids = Tensor::new(&[[4u32, 3, 2, 1, 0]; 3], &Device::Cpu).unwrap();
        let probabilities = p.gather(&ids, 1).unwrap();
        let few = divergence(&logits, &Teacher::Few { ids, probabilities }).unwrap();
        let all = divergence(&logits, &Teacher::Logits(teacher.detach())).unwrap();
        assert!((few.sum - all.sum).abs() < 1e-5, "{} {}", few.sum, all.sum);
        let apart = (few.gradient - all.gradient)
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert!(apart < 1e-5, "{apart}");
        let same = divergence(&logits, &Teacher::Logits(logits.detach())).unwrap();
        assert!(same.sum.abs() < 1e-6);
    }

    #[test]
    fn an_even_load_costs_k() {
        let logits = Tensor::zeros((6, 4), DType::F32, &Device::Cpu).unwrap();
        for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
            let p = mean_probabilities(&logits, scoring).unwrap();
            let loss = load_balance(&p, &[3, 3, 3, 3], 6).unwrap().to_scalar::<f32>().unwrap();
            assert!((loss - 2.0).abs() < 1e-6, "{loss}");
        }
        // log Σ exp 0 = ln 4.
        let z = router_z(&logits).unwrap().to_scalar::<f32>().unwrap();
        assert!((z - 4f32.ln().powi(2)).abs() < 1e-6);
    }

    #[test]
    fn losses_of_routers_have_their_gradients() {
        let logits = random(3, 5, 6);
        for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
            let loss = |t: &[Tensor]| {
                load_balance(&mean_probabilities(&t[0], scoring)?, &[1, 2, 3, 4, 5, 0], 5)
            };
            assert!(differences(&[&logits], 1, loss) < 1e-2);
        }
        assert!(differences(&[&logits], 1, |t| router_z(&t[0])) < 1e-2);
    }
}
