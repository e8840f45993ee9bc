//! Loads weights as tensors.

use std::cell::{Cell, RefCell};

use candle_core::{DType, Result as CandleResult, Tensor};
use moe_checkpoint::Result;
use moe_math::Compute;
use moe_math::encoding;
use moe_math::meter::Work;
use moe_math::product::product;
use moe_math::swiglu;
use moe_model::{Encoding, Expert, Linear, Weight};

use crate::context::{Context, tensor_label};
use crate::dtypes::candle_dtype;
use crate::overrides::Overrides;
use crate::prefetcher::{self, Prefetcher};
use crate::quantized::quantized_values;

/// Loads weights in the dtype and on the device of `compute`.
#[derive(Clone, Copy)]
pub(crate) struct Loader<'a> {
    pub compute: &'a Compute,
    /// Tensors that are used instead of files, and a place to keep what is loaded.
    pub shared: Option<&'a Shared>,
    /// The weights that are read in advance.
    pub prefetcher: Option<&'a Prefetcher>,
}

/// Tensors that two models have in common and that are loaded once when the models run in step, and
/// overrides of weights in files.
#[derive(Default)]
pub(crate) struct Shared {
    overrides: Overrides,
    tensors: RefCell<Vec<(Weight, Tensor)>>,
    recording: Cell<bool>,
    /// The weights to keep; None for all.
    wanted: RefCell<Option<Vec<Weight>>>,
}

impl Shared {
    /// Makes a set with `overrides` that keeps nothing.
    pub fn with_overrides(overrides: Overrides) -> Self {
        Self { overrides, ..Self::default() }
    }

    /// Keeps all weights that are loaded from now on, and forgets the earlier ones.
    pub fn record(&self) {
        self.tensors.borrow_mut().clear();
        self.wanted.replace(None);
        self.recording.set(true);
    }

    /// Keeps those of the `wanted` weights that are loaded from now on, and forgets the earlier
    /// ones.
    pub fn record_of(&self, wanted: Vec<Weight>) {
        self.record();
        self.wanted.replace(Some(wanted));
    }

    fn keep(&self, weight: &Weight, tensor: &Tensor) {
        let wanted = self.wanted.borrow();
        if self.recording.get()
            && wanted.as_ref().is_none_or(|all| all.iter().any(|one| one.same_source(weight)))
        {
            self.tensors.borrow_mut().push((weight.clone(), tensor.clone()));
        }
    }

    /// Stops keeping weights; those that were kept stay in use.
    pub fn lend(&self) {
        self.recording.set(false);
    }

    fn find(&self, weight: &Weight) -> Option<Tensor> {
        if let Some(tensor) = self.overrides.find(weight) {
            return Some(tensor.clone());
        }
        let tensors = self.tensors.borrow();
        tensors.iter().find(|(kept, _)| kept.same_source(weight)).map(|(_, tensor)| tensor.clone())
    }
}

/// Loads `weight` as an f32 tensor on the device of `compute`, whatever its encoding.
///
/// # Errors
/// Errors of reading and of the device.
pub fn to_f32(weight: &Weight, compute: &Compute) -> Result<Tensor> {
    let compute = Compute { dtype: DType::F32, ..compute.clone() };
    Loader::new(&compute).tensor(weight)
}

impl<'a> Loader<'a> {
    pub fn new(compute: &'a Compute) -> Self {
        Self { compute, shared: None, prefetcher: None }
    }

    pub fn sharing(compute: &'a Compute, shared: &'a Shared) -> Self {
        Self { shared: Some(shared), ..Self::new(compute) }
    }

    /// Returns whether loading `weight` would read a file.
    pub fn reads(self, weight: &Weight) -> bool {
        self.shared.is_none_or(|shared| shared.find(weight).is_none())
    }

    pub fn tensor(self, weight: &Weight) -> Result<Tensor> {
        let tensor = self.load(weight, |weight| match weight.encoding() {
            Encoding::Plain => {
                let dtype = candle_dtype(weight)?;
                encoding::to_tensor(&weight.read()?, dtype, weight.shape(), self.compute)
                    .context(|| tensor_label(weight))
            }
            _ => self.dequantized(weight),
        })?;
        tensor.to_dtype(self.compute.dtype).context(|| tensor_label(weight))
    }

    /// Loads a matrix that tokens are multiplied by, in the encoding that [`product`] takes.
    pub fn matrix(self, weight: &Weight) -> Result<Tensor> {
        self.load(weight, |weight| match weight.encoding() {
            Encoding::Plain => {
                let values = self
                    .prefetcher
                    .and_then(|prefetcher| prefetcher.take(weight))
                    .unwrap_or_else(|| prefetcher::read(weight))?;
                values.into_matrix(weight.shape(), self.compute).context(|| tensor_label(weight))
            }
            _ => self.dequantized(weight),
        })
    }

    /// Loads the values of a quantized matrix. Activations aren't quantized here, only weights.
    fn dequantized(self, weight: &Weight) -> Result<Tensor> {
        let values = quantized_values(weight)?.expect("the weight is quantized");
        Tensor::from_vec(values, weight.shape(), &self.compute.device)
            .and_then(|values| values.to_dtype(self.compute.dtype))
            .context(|| tensor_label(weight))
    }

    fn load(self, weight: &Weight, read: impl FnOnce(&Weight) -> Result<Tensor>) -> Result<Tensor> {
        if let Some(tensor) = self.shared.and_then(|shared| shared.find(weight)) {
            return Ok(tensor);
        }
        let tensor = self.compute.stage("weights", Work::bytes(weight.bytes()), || read(weight))?;
        if let Some(shared) = self.shared {
            shared.keep(weight, &tensor);
        }
        Ok(tensor)
    }

    /// Loads only the rows `ids` of the matrix `weight`.
    pub fn rows(self, weight: &Weight, ids: &[u32]) -> Result<Tensor> {
        let is_overridden =
            self.shared.is_some_and(|shared| shared.overrides.find(weight).is_some());
        let Some(stored) = weight.stored().filter(|_| !is_overridden) else {
            let ids = Tensor::new(ids, &self.compute.device).context(|| "an index".into())?;
            return self
                .tensor(weight)?
                .index_select(&ids, 0)
                .context(|| format!("rows of {}", weight.name()));
        };
        let columns = weight.shape()[1];
        let row_bytes = (weight.bytes() / weight.shape()[0] as u64) as usize;
        let mut bytes = vec![0; ids.len() * row_bytes];
        for (id, row) in ids.iter().zip(bytes.chunks_exact_mut(row_bytes)) {
            stored.read_at(u64::from(*id) * row_bytes as u64, row)?;
        }
        encoding::to_tensor(&bytes, candle_dtype(weight)?, &[ids.len(), columns], self.compute)
            .context(|| format!("rows of {}", weight.name()))
    }

    pub fn linear(self, linear: &Linear) -> Result<LoadedLinear> {
        let bias = linear.bias.as_ref().map(|b| self.tensor(b)).transpose()?;
        Ok(LoadedLinear { weight: self.matrix(&linear.weight)?, bias })
    }

    pub fn expert(self, expert: &Expert) -> Result<LoadedExpert> {
        Ok(LoadedExpert {
            gate: self.linear(&expert.gate)?,
            up: self.linear(&expert.up)?,
            down: self.linear(&expert.down)?,
        })
    }
}

/// The loaded weights of a linear map.
pub(crate) struct LoadedLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl LoadedLinear {
    /// Maps `x`, `[tokens, in]`, to `[tokens, out]`.
    pub fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let y = product(x, &self.weight)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// The loaded weights of a feed-forward network.
pub(crate) struct LoadedExpert {
    gate: LoadedLinear,
    up: LoadedLinear,
    down: LoadedLinear,
}

impl LoadedExpert {
    /// Returns `down(silu(gate x) ∘ (up x))` for `x` of `[tokens, hidden]`.
    pub fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        self.output(&self.activations(x)?)
    }

    /// Returns `down(activations)` for activations of `[tokens, width]`.
    pub fn output(&self, activations: &Tensor) -> CandleResult<Tensor> {
        self.down.forward(activations)
    }

    /// Returns `silu(gate x) ∘ (up x)`, `[tokens, width]`.
    pub fn activations(&self, x: &Tensor) -> CandleResult<Tensor> {
        swiglu(&self.gate.forward(x)?, &self.up.forward(x)?)
    }
}
