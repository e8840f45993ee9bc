//! Weights the outputs of experts and adds them token by token.

use candle_core::{CpuStorage, DType, InplaceOp3, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::{Arguments, Geometry, elements, elements_mut, int, widened};

/// The rows that each token adds, and their gates.
pub(crate) struct CombineTable {
    tokens: usize,
    /// The start of each token's entries, then the row of each entry, then the gate of each entry
    /// as bits.
    words: Vec<u32>,
}

impl CombineTable {
    /// Creates the table for adding row `i`, times `gates[i]`, to token `tokens[i]`. The rows of a
    /// token are added in their order.
    ///
    /// # Panics
    /// If a token isn't below `count`.
    pub fn new(count: usize, tokens: &[u32], gates: &[f32]) -> Self {
        let mut words = vec![0u32; count + 1 + 2 * tokens.len()];
        let (starts, entries) = words.split_at_mut(count + 1);
        let (rows, weights) = entries.split_at_mut(tokens.len());
        tokens.iter().for_each(|token| starts[*token as usize + 1] += 1);
        (0..count).for_each(|token| starts[token + 1] += starts[token]);
        let mut next = starts.to_vec();
        for (row, (token, gate)) in tokens.iter().zip(gates).enumerate() {
            let entry = &mut next[*token as usize];
            rows[*entry as usize] = row as u32;
            weights[*entry as usize] = gate.to_bits();
            *entry += 1;
        }
        Self { tokens: count, words }
    }

    #[cfg(test)]
    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }
}

/// Adds the rows of `outputs`, `[rows, hidden]` in f32 or bf16, to `sums`, `[tokens, hidden]` in
/// f32, as `table` says.
///
/// # Errors
/// For shapes that don't fit, or if the device fails.
pub(crate) fn add_outputs(sums: &Tensor, outputs: &Tensor, table: &CombineTable) -> Result<()> {
    let (rows, hidden) = outputs.dims2()?;
    if sums.dims() != [table.tokens, hidden] || table.words.len() != table.tokens + 1 + 2 * rows {
        bail!("sums of {:?} for outputs of {:?}", sums.shape(), outputs.shape());
    }
    let words = Tensor::from_slice(&table.words, table.words.len(), sums.device())?;
    sums.inplace_op3(&outputs.contiguous()?, &words, &Adding)
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct CombineKernel {
    pub sums: *mut f32,
    /// Address of f32 values, or of bf16 values as bits.
    pub outputs: *const std::ffi::c_void,
    pub table: *const u32,
    pub tokens: i32,
    pub hidden: i32,
    pub entries: i32,
    /// Chooses the kernel; not read on the device.
    pub halves: i32,
}

// SAFETY: mix.cu declares the same structure; `Adding` passes tensors of the shapes named there.
unsafe impl Arguments for CombineKernel {
    const SOURCE: &'static str = "mix";

    fn kernel(&self) -> &'static str {
        if self.halves == 1 { "mix_bf16" } else { "mix_f32" }
    }

    fn geometry(&self) -> Geometry {
        Geometry::of_rows(self.tokens as usize, self.hidden as usize)
    }
}

pub(super) struct Adding;

impl Adding {
    /// Returns all arguments except the pointers.
    pub(super) fn arguments(
        &self,
        [tokens, hidden, entries]: [usize; 3],
        outputs: DType,
    ) -> Result<CombineKernel> {
        let halves = match outputs {
            DType::F32 => 0,
            DType::BF16 => 1,
            other => bail!("no outputs in {other:?}"),
        };
        Ok(CombineKernel {
            sums: std::ptr::null_mut(),
            outputs: std::ptr::null(),
            table: std::ptr::null(),
            tokens: int(tokens),
            hidden: int(hidden),
            entries: int(entries),
            halves,
        })
    }
}

impl InplaceOp3 for Adding {
    fn name(&self) -> &'static str {
        "sum of experts' outputs"
    }

    fn cpu_fwd(
        &self,
        sums: &mut CpuStorage,
        ls: &Layout,
        outputs: &CpuStorage,
        lo: &Layout,
        table: &CpuStorage,
        lt: &Layout,
    ) -> Result<()> {
        let ((tokens, hidden), (entries, _)) = (ls.shape().dims2()?, lo.shape().dims2()?);
        let outputs = widened(outputs, lo)?;
        let (starts, rest) = elements::<u32>(table, lt)?.split_at(tokens + 1);
        let (rows, gates) = rest.split_at(entries);
        elements_mut(sums, ls)?.par_chunks_mut(hidden.max(1)).zip(starts.par_windows(2)).for_each(
            |(sum, ends)| {
                for entry in ends[0] as usize..ends[1] as usize {
                    let output = &outputs[rows[entry] as usize * hidden..][..hidden];
                    let gate = f32::from_bits(gates[entry]);
                    sum.iter_mut().zip(output).for_each(|(sum, value)| *sum += gate * value);
                }
            },
        );
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        sums: &mut candle_core::CudaStorage,
        ls: &Layout,
        outputs: &candle_core::CudaStorage,
        lo: &Layout,
        table: &candle_core::CudaStorage,
        lt: &Layout,
    ) -> Result<()> {
        use candle_core::backend::BackendStorage;

        use super::cuda::{Floats, launch, read, read_floats, write};
        let ((tokens, hidden), (entries, _)) = (ls.shape().dims2()?, lo.shape().dims2()?);
        let device = sums.device.clone();
        let stream = device.cuda_stream();
        let arguments = self.arguments([tokens, hidden, entries], outputs.dtype())?;
        let (Floats { address: outputs, .. }, _outputs) = read_floats(outputs, lo, &stream)?;
        let (table, _table) = read::<u32>(table, lt, &stream)?;
        let (sums, _sums) = write(sums, ls, &stream)?;
        launch(&device, CombineKernel { sums, outputs, table, ..arguments })
    }
}
