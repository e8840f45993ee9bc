//! The sum of gate · output over the experts of each token, added expert by expert, so that outputs
//! don't have to be kept.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::kernels::{CombineTable, add_outputs};

/// Rows that a thread takes at a time.
const ROWS: usize = 64;
/// Outputs on a device are added once they take more than this many bytes.
const HELD_BYTES: usize = 1 << 30;

/// The output of a mixture for some tokens. Sums are in f32, in the order in which experts are
/// added.
pub struct ExpertCombine {
    tokens: usize,
    hidden: usize,
    sum: Sum,
}

enum Sum {
    Host(Vec<f32>),
    Cuda(HeldOutputs),
    /// On a device for which we have no kernels.
    Device(Tensor),
    /// Outputs, gates `[n, 1]` and tokens of each expert. They are added all at once, since the
    /// graph would keep a sum for each expert.
    Tracked(Vec<(Tensor, Tensor, Vec<u32>)>),
}

/// Outputs on a device that are still to be added, so that many can be added together.
struct HeldOutputs {
    sum: Tensor,
    outputs: Vec<Tensor>,
    tokens: Vec<u32>,
    gates: Vec<f32>,
}

impl HeldOutputs {
    fn new(tokens: usize, hidden: usize, device: &Device) -> Result<Self> {
        let sum = Tensor::zeros((tokens, hidden), DType::F32, device)?;
        Ok(Self { sum, outputs: Vec::new(), tokens: Vec::new(), gates: Vec::new() })
    }

    fn add(&mut self, output: &Tensor, tokens: &[u32], gates: &[f32]) -> Result<()> {
        let keeps = [DType::F32, DType::BF16].contains(&output.dtype());
        self.outputs.push(if keeps { output.clone() } else { output.to_dtype(DType::F32)? });
        self.tokens.extend(tokens);
        self.gates.extend(gates);
        let bytes: usize =
            self.outputs.iter().map(|held| held.elem_count() * held.dtype().size_in_bytes()).sum();
        if bytes > HELD_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if !self.outputs.is_empty() {
            let table = CombineTable::new(self.sum.dim(0)?, &self.tokens, &self.gates);
            add_outputs(&self.sum, &Tensor::cat(&self.outputs, 0)?, &table)?;
            self.outputs.clear();
            self.tokens.clear();
            self.gates.clear();
        }
        Ok(())
    }
}

impl ExpertCombine {
    /// Starts with 0 for each of `tokens` tokens of width `hidden`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(tokens: usize, hidden: usize, device: &Device) -> Result<Self> {
        let sum = match device {
            Device::Cpu => Sum::Host(vec![0.0; tokens * hidden]),
            Device::Cuda(_) => Sum::Cuda(HeldOutputs::new(tokens, hidden, device)?),
            Device::Metal(_) => Sum::Device(Tensor::zeros((tokens, hidden), DType::F32, device)?),
        };
        Ok(Self { tokens, hidden, sum })
    }

    /// Like `new`, for outputs and gates that are trained. Use [`ExpertCombine::add_tracked`] to
    /// add them.
    pub fn tracked(tokens: usize, hidden: usize) -> Self {
        Self { tokens, hidden, sum: Sum::Tracked(Vec::new()) }
    }

    /// Adds an expert's `output`, `[n, hidden]`, times `gates` to the sums of `tokens`, which
    /// ascend.
    ///
    /// # Errors
    /// For shapes that don't fit, or if the device fails.
    ///
    /// # Panics
    /// If a token doesn't exist, or the tokens don't ascend.
    pub fn add(&mut self, output: &Tensor, tokens: &[u32], gates: &[f32]) -> Result<()> {
        if output.dims() != [tokens.len(), self.hidden] || gates.len() != tokens.len() {
            let (shape, tokens, gates) = (output.shape(), tokens.len(), gates.len());
            bail!("an output of {shape:?} for {tokens} tokens and {gates} gates");
        }
        match &mut self.sum {
            Sum::Host(sum) => add_on_host(sum, output, tokens, gates)?,
            Sum::Tracked(_) => bail!("gates of a tracked mixture are tensors"),
            Sum::Cuda(held) => held.add(output, tokens, gates)?,
            Sum::Device(sum) => *sum = added(sum, output, tokens, gates)?,
        }
        Ok(())
    }

    /// Adds an expert's `output`, `[n, hidden]`, times `gates`, `[n]`, to the sums of `tokens`,
    /// which ascend.
    ///
    /// # Errors
    /// For shapes that don't fit, or sums that aren't tracked.
    pub fn add_tracked(&mut self, output: &Tensor, tokens: &[u32], gates: &Tensor) -> Result<()> {
        if output.dims() != [tokens.len(), self.hidden] || gates.dims() != [tokens.len()] {
            bail!(
                "an output of {:?} for {} tokens and {:?} gates",
                output.shape(),
                tokens.len(),
                gates.shape()
            );
        }
        let Sum::Tracked(parts) = &mut self.sum else { bail!("this mixture isn't tracked") };
        parts.push((output.to_dtype(DType::F32)?, gates.unsqueeze(1)?, tokens.to_vec()));
        Ok(())
    }

    /// All sums, `[tokens, hidden]`, in `dtype`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn finish(self, dtype: DType) -> Result<Tensor> {
        let sum = match self.sum {
            Sum::Host(sum) => Tensor::from_vec(sum, (self.tokens, self.hidden), &Device::Cpu)?,
            Sum::Cuda(mut held) => {
                held.flush()?;
                held.sum
            }
            Sum::Device(sum) => sum,
            Sum::Tracked(parts) => add_up(self.tokens, &parts)?,
        };
        sum.to_dtype(dtype)
    }
}

fn add_on_host(sum: &mut [f32], output: &Tensor, tokens: &[u32], gates: &[f32]) -> Result<()> {
    let hidden = output.dim(1)?;
    let output = output.to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = output.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        bail!("an output on another device")
    };
    let values = &values[layout.start_offset()..][..tokens.len() * hidden];
    add_rows(sum, values, tokens, gates, hidden);
    Ok(())
}

/// `sum` plus an expert's `output` times `gates`, for `tokens`.
fn added(sum: &Tensor, output: &Tensor, tokens: &[u32], gates: &[f32]) -> Result<Tensor> {
    let gates = Tensor::from_slice(gates, (tokens.len(), 1), output.device())?;
    let tokens = Tensor::from_slice(tokens, tokens.len(), output.device())?;
    sum.index_add(&tokens, &output.to_dtype(DType::F32)?.broadcast_mul(&gates)?, 0)
}

fn joined<'t>(parts: impl Iterator<Item = &'t Tensor>) -> Result<Tensor> {
    Tensor::cat(&parts.collect::<Vec<_>>(), 0)
}

/// Each token's outputs times their gates, added in the order of `parts`.
fn add_up(tokens: usize, parts: &[(Tensor, Tensor, Vec<u32>)]) -> Result<Tensor> {
    let gates = joined(parts.iter().map(|(_, gates, _)| gates))?;
    let weighed = joined(parts.iter().map(|(output, ..)| output))?.broadcast_mul(&gates)?;
    let rows: Vec<u32> = parts.iter().flat_map(|(.., rows)| rows.iter().copied()).collect();
    let rows = Tensor::from_vec(rows, weighed.dim(0)?, weighed.device())?;
    Tensor::zeros((tokens, weighed.dim(1)?), DType::F32, weighed.device())?
        .index_add(&rows, &weighed, 0)
}

/// Adds rows in parallel. Since tokens ascend, each chunk of tokens has its own part of the sums.
fn add_rows(sum: &mut [f32], output: &[f32], tokens: &[u32], gates: &[f32], hidden: usize) {
    let mut rest = sum;
    let mut first = 0;
    let mut parts = Vec::with_capacity(tokens.len().div_ceil(ROWS));
    for (tokens, (output, gates)) in
        tokens.chunks(ROWS).zip(output.chunks(ROWS * hidden).zip(gates.chunks(ROWS)))
    {
        let end = tokens[tokens.len() - 1] as usize + 1;
        let (part, left) = rest.split_at_mut((end - first) * hidden);
        parts.push((first, part, tokens, output, gates));
        (rest, first) = (left, end);
    }
    parts.into_par_iter().for_each(|(first, part, tokens, output, gates)| {
        for ((token, gate), output) in tokens.iter().zip(gates).zip(output.chunks_exact(hidden)) {
            let row = &mut part[(*token as usize - first) * hidden..][..hidden];
            row.iter_mut().zip(output).for_each(|(sum, value)| *sum += gate * value);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{generator, normal};

    /// Compares with sums in f64, for more rows than a thread takes. The other variants give the
    /// same bits.
    #[test]
    fn outputs_are_added_to_their_tokens_times_the_gates() {
        let (tokens, hidden) = (300, 5);
        let mut random = generator(1, 0);
        let mut expected = vec![0f64; tokens * hidden];
        let mut combine = ExpertCombine::new(tokens, hidden, &Device::Cpu).unwrap();
        let mut tracked = ExpertCombine::tracked(tokens, hidden);
        // The sum that GPUs use.
        let held = HeldOutputs::new(tokens, hidden, &Device::Cpu).unwrap();
        let mut device = ExpertCombine { tokens, hidden, sum: Sum::Cuda(held) };
        let zeros = Tensor::zeros((tokens, hidden), DType::F32, &Device::Cpu).unwrap();
        let mut other = ExpertCombine { tokens, hidden, sum: Sum::Device(zeros) };
        for expert in 1..4 {
            let chosen: Vec<u32> = (0..tokens as u32).filter(|token| token % expert != 1).collect();
            let gates = normal(chosen.len(), 1.0, &mut random);
            let output = normal(chosen.len() * hidden, 1.0, &mut random);
            for (row, (token, gate)) in chosen.iter().zip(&gates).enumerate() {
                for i in 0..hidden {
                    expected[*token as usize * hidden + i] +=
                        f64::from(*gate) * f64::from(output[row * hidden + i]);
                }
            }
            let output = Tensor::from_vec(output, (chosen.len(), hidden), &Device::Cpu).unwrap();
            combine.add(&output, &chosen, &gates).unwrap();
            device.add(&output, &chosen, &gates).unwrap();
            other.add(&output, &chosen, &gates).unwrap();
            let gates = Tensor::from_slice(&gates, gates.len(), &Device::Cpu).unwrap();
            tracked.add_tracked(&output, &chosen, &gates).unwrap();
        }
        let values = |combine: ExpertCombine| {
            combine.finish(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let found = values(combine);
        assert_eq!(found, values(tracked));
        assert_eq!(found, values(device));
        assert_eq!(found, values(other));
        let worst =
            found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-6, "{worst}");
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() {
        let mut combine = ExpertCombine::new(4, 3, &Device::Cpu).unwrap();
        let output = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(combine.add(&output, &[0, 1, 2], &[1.0; 3]).is_err());
        assert!(combine.add(&output, &[0, 1], &[1.0]).is_err());
    }
}
