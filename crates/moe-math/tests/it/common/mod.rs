//! Helpers that the integration tests share.

use std::collections::BTreeSet;
use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use moe_math::{DeviceChoice, open_device};

/// Runs `body` on every device that this build and machine have.
#[allow(dead_code, reason = "not every test binary has device code")]
pub fn every_device(body: impl Fn(&Device)) {
    body(&Device::Cpu);
    let other = open_device(DeviceChoice::Auto).unwrap();
    if !other.is_cpu() {
        body(&other);
    }
}

/// The cases of a file in golden/math.
#[allow(dead_code, reason = "not every test binary has goldens")]
pub struct Golden(HashMap<String, Tensor>);

#[allow(dead_code, reason = "not every test binary has goldens")]
impl Golden {
    pub fn open(name: &str) -> Self {
        let path = format!("{}/../../golden/math/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        Self(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
    }

    /// The names of the cases; there must be at least `least`.
    pub fn cases(&self, least: usize) -> BTreeSet<&str> {
        let cases: BTreeSet<&str> =
            self.0.keys().map(|key| key.split_once('.').unwrap().0).collect();
        assert!(cases.len() >= least, "{cases:?}");
        cases
    }

    pub fn find(&self, case: &str, tensor: &str) -> Option<&Tensor> {
        self.0.get(&format!("{case}.{tensor}"))
    }

    pub fn get(&self, case: &str, tensor: &str) -> &Tensor {
        self.find(case, tensor).unwrap_or_else(|| panic!("no {tensor} in {case}"))
    }

    pub fn numbers(&self, case: &str, tensor: &str) -> Vec<f64> {
        numbers(self.get(case, tensor))
    }

    pub fn integers(&self, case: &str, tensor: &str) -> Vec<i64> {
        self.get(case, tensor).flatten_all().unwrap().to_vec1().unwrap()
    }
}

/// All elements in f64.
pub fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest |a − b|.
#[allow(dead_code, reason = "not every test binary compares")]
pub fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}
