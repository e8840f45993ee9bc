//! Compares GPTQ on matrices of the built-in MoE with the paper's algorithm in float64
//! (golden/quantize/gptq.py).

use std::collections::HashMap;

use candle_core::{DType, Tensor};
use moe_checkpoint::{Error, Kind, Result};
use moe_forward::to_f32;
use moe_math::Compute;
use moe_math::quantize::{
    Codes, Damping, GptqOptions, GridScheme, Hessian, HessianSum, Problem, QuantizeError,
    factorize_all, objective, solve_on,
};
use moe_model::Model;
use serde::Deserialize;

use super::goldens::{Goldens, named};
use super::{CaseError, Check, check, golden, numbers};

/// Maximum share of codes, in rows without ties, that may differ, since f32 rounds differently from
/// f64.
const CODES: f64 = 0.01;
/// Maximum relative error of the objective.
const OBJECTIVE: f64 = 1e-3;

/// A case of gptq.json.
#[derive(Deserialize)]
struct Case {
    name: String,
    problem: String,
    layer: usize,
    expert: usize,
    matrix: String,
    rows: usize,
    wide: bool,
    zeroed: Vec<[usize; 3]>,
    bits: u32,
    symmetric: bool,
    group: i64,
    act_order: bool,
    scale_dtype: String,
    gate_power: i32,
    clip: bool,
    objective: f64,
    code_ties: Vec<Vec<f64>>,
    scale_ties: Vec<Vec<f64>>,
    zero_ties: Vec<Vec<f64>>,
    clip_ties: Vec<Vec<f64>>,
}

pub fn checks(goldens: &Goldens, compute: &Compute) -> Result<Vec<Check>> {
    let cases: Vec<Case> = golden(&goldens.json("quantize/gptq.json")?["cases"])?;
    let tensors = goldens.tensors("quantize/gptq.safetensors")?;
    let model = Model::open(&goldens.path("models/moe"))?;
    let mut codes: Vec<CaseError> = Vec::new();
    let mut objectives: Vec<CaseError> = Vec::new();
    for case in &cases {
        let found = case.found(&tensors, &model, compute)?;
        codes.push((found.other_codes, 0));
        objectives.push((found.objective, 0));
    }
    Ok(vec![
        check("quantize: share of other codes".to_owned(), CODES, &codes),
        check("quantize: objective".to_owned(), OBJECTIVE, &objectives),
    ])
}

/// The distance of a case from its golden.
struct Found {
    /// Share of codes that differ, in rows without ties.
    other_codes: f64,
    /// The increase of the objective over the golden's, relative to the golden's.
    objective: f64,
}

impl Case {
    fn found(
        &self,
        tensors: &HashMap<String, Tensor>,
        model: &Model,
        compute: &Compute,
    ) -> Result<Found> {
        let failed = |e: QuantizeError| {
            Error::new(Kind::Numeric, format!("cannot quantize {}", self.name)).source(e)
        };
        let weight = self.weight(model)?;
        let inputs = named(tensors, &format!("{}.inputs", self.problem))?;
        let gates = self.gates(tensors)?;
        let codes = self.solve(&weight, inputs, gates.as_deref(), compute).map_err(failed)?;
        let expected = numbers(named(tensors, &format!("{}.codes", self.name))?)?;
        let mut hessian = Hessian::<f32>::new(self.columns());
        let values: Vec<f32> = numbers(inputs)?.iter().map(|x| *x as f32).collect();
        hessian.add(&values, gates.as_deref()).map_err(failed)?;
        let [error, _] = objective(&weight, &codes.dequantize(), &hessian).map_err(failed)?;
        Ok(Found {
            other_codes: self.other_codes(&codes.codes, &expected),
            objective: (error / self.objective - 1.0).max(0.0),
        })
    }

    fn columns(&self) -> usize {
        if self.wide { 256 } else { 128 }
    }

    /// Weights of the rows of inputs; None where all have the same.
    fn gates(&self, tensors: &HashMap<String, Tensor>) -> Result<Option<Vec<f32>>> {
        if self.gate_power == 0 {
            return Ok(None);
        }
        let gates = numbers(named(tensors, &format!("{}.gates", self.problem))?)?;
        Ok(Some(gates.iter().map(|gate| gate.powi(self.gate_power) as f32).collect()))
    }

    fn scheme(&self) -> GridScheme {
        GridScheme {
            bits: self.bits,
            symmetric: self.symmetric,
            group: usize::try_from(self.group).ok(),
            scale_dtype: match self.scale_dtype.as_str() {
                "float16" => DType::F16,
                "bfloat16" => DType::BF16,
                _ => DType::F32,
            },
        }
    }

    fn solve(
        &self,
        weight: &[f32],
        inputs: &Tensor,
        gates: Option<&[f32]>,
        compute: &Compute,
    ) -> std::result::Result<Codes, QuantizeError> {
        let shape = [self.rows, self.columns()];
        let inputs = inputs.to_dtype(DType::F32)?.reshape(((), shape[1]))?;
        let mut hessian = HessianSum::new(shape[1], &compute.device)?;
        hessian.add(&inputs.to_device(&compute.device)?, gates)?;
        let factor =
            factorize_all(vec![hessian], &[Damping::default()], self.act_order)?.remove(0)?;
        let problem = Problem { weight, factor: &factor };
        let options = GptqOptions { scheme: self.scheme(), clip_search: self.clip };
        Ok(solve_on(&[problem], shape, &options, &compute.device)?.remove(0).codes)
    }

    /// The share of codes that differ from the `expected` ones, in rows without ties in rounding.
    fn other_codes(&self, codes: &[u8], expected: &[f64]) -> f64 {
        let columns = self.columns();
        let rows = codes.chunks(columns).zip(expected.chunks(columns)).enumerate();
        let mut other = 0;
        let mut all = 0;
        for (_, (found, expected)) in rows.filter(|(row, _)| !self.is_tied(*row)) {
            other += found.iter().zip(expected).filter(|(a, b)| f64::from(**a) != **b).count();
            all += found.len();
        }
        other as f64 / all.max(1) as f64
    }

    fn is_tied(&self, row: usize) -> bool {
        [&self.code_ties, &self.scale_ties, &self.zero_ties, &self.clip_ties]
            .iter()
            .any(|ties| ties.iter().any(|tie| tie[0] == row as f64))
    }

    /// The first rows of the expert's matrix, with some columns of some rows set to zero.
    fn weight(&self, model: &Model) -> Result<Vec<f32>> {
        let columns = self.columns();
        let missing = || {
            Error::new(Kind::Malformed, format!("the built-in MoE has no expert for {}", self.name))
        };
        let moe =
            model.layers.get(self.layer).and_then(|layer| layer.ffn.moe()).ok_or_else(missing)?;
        let [gate, up, down] = moe.experts.get(self.expert).ok_or_else(missing)?.linears();
        let linear = match self.matrix.as_str() {
            "gate" => gate,
            "up" => up,
            _ => down,
        };
        let values = to_f32(&linear.weight, &Compute::cpu())?;
        let mut weight: Vec<f32> = numbers(&values)?.iter().map(|w| *w as f32).collect();
        weight.truncate(self.rows * columns);
        for [row, from, to] in &self.zeroed {
            weight[row * columns + from..row * columns + to].fill(0.0);
        }
        Ok(weight)
    }
}
