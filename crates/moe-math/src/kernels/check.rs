//! Compares each operation on a device with its reference on the CPU. The inputs are made here.

use candle_core::{DType, Device, Result, Tensor};

use super::{
    BLOCK, CombineTable, add_gram, add_outputs, group_grids, reverse_cholesky, round_block, settle,
    upload,
};
use crate::quantize::GridScheme;
use crate::quantize::grid::Grid;
use crate::sampling::{generator, normal};

/// An operation; returns its result on the given device.
type Operation = fn(&Device) -> Result<Tensor>;

const OPERATIONS: [(&str, Operation); 11] = [
    ("upload", uploaded),
    ("round", rounded),
    ("settle", settled),
    ("grids in f32", |device| grids(DType::F32, device)),
    ("grids in f16", |device| grids(DType::F16, device)),
    ("grids in bf16", |device| grids(DType::BF16, device)),
    ("cholesky", factors),
    ("gram of f32", |device| gram(DType::F32, device)),
    ("gram of bf16", |device| gram(DType::BF16, device)),
    ("mix of f32", |device| mixed(DType::F32, device)),
    ("mix of bf16", |device| mixed(DType::BF16, device)),
];

/// The largest difference of each operation's result on `device` from its reference on the CPU,
/// relative to the largest value.
///
/// # Errors
/// If the device fails.
pub fn check(device: &Device) -> Result<Vec<(&'static str, f64)>> {
    let checked = OPERATIONS.into_iter().map(|(name, of)| Ok((name, apart(of, device)?)));
    checked.collect()
}

fn apart(operation: Operation, device: &Device) -> Result<f64> {
    let found = values(operation, device)?;
    let expected = values(operation, &Device::Cpu)?;
    let scale = expected.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
    let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / scale);
    Ok(f64::from(differences.fold(0.0, larger)))
}

fn values(operation: Operation, device: &Device) -> Result<Vec<f32>> {
    operation(device)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()
}

/// The larger of two differences; NaN counts as the largest.
fn larger(largest: f32, difference: f32) -> f32 {
    if difference > largest || difference.is_nan() { difference } else { largest }
}

fn random(stream: u64, shape: &[usize], device: &Device) -> Result<Tensor> {
    let values = normal(shape.iter().product(), 1.0, &mut generator(stream, 0));
    Tensor::from_vec(values, shape, device)
}

/// Uploads three times the size of a buffer, so that buffers take turns.
fn uploaded(device: &Device) -> Result<Tensor> {
    let values = normal(24 << 20, 1.0, &mut generator(12, 0));
    upload(bytemuck::cast_slice(&values), DType::F32, &[values.len()], device)
}

/// Scales are 2 and zeros 1, so that no value is on the border between two codes.
fn rounded(device: &Device) -> Result<Tensor> {
    let block = [3, BLOCK, 200];
    let scales = Tensor::full(2f32, (1, 3, 1, 200), device)?;
    let zeros = Tensor::ones((1, 3, 1, 200), DType::F32, device)?;
    let grids = Tensor::cat(&[scales, zeros], 0)?;
    let feedback = (random(2, &[3, BLOCK, BLOCK], device)? * 0.1)?;
    let (weight, fed) = (random(0, &block, device)?, random(1, &block, device)?);
    let found = round_block(&weight, &fed, &feedback, &grids, [-8.0, 7.0])?;
    Tensor::cat(&[found.errors, found.codes, found.missed], 0)
}

fn settled(device: &Device) -> Result<Tensor> {
    settle(&random(3, &[3, 150, 200], device)?, &(random(4, &[3, 150, 150], device)? * 0.01)?)
}

fn grids(dtype: DType, device: &Device) -> Result<Tensor> {
    let scheme = GridScheme { bits: 4, symmetric: true, group: None, scale_dtype: dtype };
    let members = random(5, &[6, 32, 200], device)?;
    let energy = random(6, &[6, 32], device)?.sqr()?;
    group_grids(&members, &energy, Grid::new(&scheme), true)
}

fn factors(device: &Device) -> Result<Tensor> {
    let x = random(7, &[3, 300, 150], device)?;
    Ok(reverse_cholesky(&x.transpose(1, 2)?.contiguous()?.matmul(&x)?)?.0)
}

fn gram(dtype: DType, device: &Device) -> Result<Tensor> {
    let sum = Tensor::zeros((150, 150), DType::F32, device)?;
    add_gram(&sum, &random(8, &[300, 150], device)?.to_dtype(dtype)?)?;
    Ok(sum)
}

fn mixed(dtype: DType, device: &Device) -> Result<Tensor> {
    let sum = random(9, &[40, 130], device)?;
    let tokens: Vec<u32> = (0..100u32).map(|row| row * 7 % 40).collect();
    let gates = normal(100, 1.0, &mut generator(10, 0));
    let outputs = random(11, &[100, 130], device)?.to_dtype(dtype)?;
    add_outputs(&sum, &outputs, &CombineTable::new(40, &tokens, &gates))?;
    Ok(sum)
}
