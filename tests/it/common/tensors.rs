//! Reads tensors with the `safetensors` crate, which is not our implementation.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// A tensor's dtype, shape and bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// The values of an f32 tensor.
    pub fn f32(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// Every tensor of a safetensors file, or of all such files in a directory.
pub fn read(path: &Path) -> BTreeMap<String, Tensor> {
    if path.is_dir() {
        let files = fs::read_dir(path).unwrap().map(|e| e.unwrap().path());
        return files
            .filter(|f| f.extension().is_some_and(|e| e == "safetensors"))
            .flat_map(|f| read(&f))
            .collect();
    }
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: &safetensors::tensor::TensorView<'_>| Tensor {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    parsed.tensors().iter().map(|(name, view)| (name.clone(), tensor(view))).collect()
}

/// The largest absolute difference of two f32 tensors of one shape; infinite where a value is not a
/// number.
pub fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape, b.shape);
    let differences = a.f32().into_iter().zip(b.f32()).map(|(x, y)| (x - y).abs());
    differences.fold(0.0, |max, d| if d.is_nan() { f32::INFINITY } else { max.max(d) })
}
