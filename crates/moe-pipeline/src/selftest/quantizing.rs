//! GPTQ beside the paper's algorithm in float64, and quantized checkpoints beside transformers
//! (golden/quantize).

use std::collections::HashMap;

use candle_core::{DType, Tensor};
use moe_checkpoint::{Error, Kind, Result};
use moe_forward::{Batch, Head, Silent, Sweep, to_f32};
use moe_math::Compute;
use moe_math::quantize::{
    Damping, Hessian, HessianSum, Options, Problem, QuantizeError, Scheme, factorise_all,
    objective, solve_on,
};
use moe_model::Model;
use serde::Deserialize;

use super::{Check, Goldens, Outcome, apart, check, golden, numbers, numeric};

/// Share of codes, in rows without ties, that may be others: f32 rounds otherwise than f64.
const CODES: f64 = 0.01;
/// Of the objective, relative.
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
    let found = cases
        .iter()
        .map(|case| case.found(&tensors, &model, compute))
        .collect::<Result<Vec<_>>>()?;
    let [codes, objectives]: [Vec<Outcome>; 2] =
        [0, 1].map(|of| found.iter().map(|found| (found[of], 0)).collect());
    let mut checks = vec![
        check("quantize: share of other codes".to_owned(), CODES, &codes),
        check("quantize: objective".to_owned(), OBJECTIVE, &objectives),
    ];
    for (name, tokens) in [
        ("qwen3_moe.w4", "families/qwen3_moe/both_names/tokens.json"),
        ("mixtral.w8", "families/mixtral/sliding/tokens.json"),
        ("qwen3_moe.fp8", "quantize/checkpoints/qwen3_moe.fp8/tokens.json"),
    ] {
        checks.push(logits(goldens, name, tokens, compute)?);
    }
    Ok(checks)
}

impl Case {
    /// The share of other codes, and how much worse the objective is.
    fn found(
        &self,
        tensors: &HashMap<String, Tensor>,
        model: &Model,
        compute: &Compute,
    ) -> Result<[f64; 2]> {
        let get = |name: String| {
            tensors.get(&name).ok_or_else(|| {
                Error::new(Kind::Malformed, "this golden lacks a tensor").tensor(name)
            })
        };
        let shape = [self.rows, if self.wide { 256 } else { 128 }];
        let weight = self.weight(model, shape)?;
        let inputs = get(format!("{}.inputs", self.problem))?;
        let gates = match self.gate_power {
            0 => None,
            power => Some(
                numbers(get(format!("{}.gates", self.problem))?)?
                    .iter()
                    .map(|g| g.powi(power) as f32)
                    .collect(),
            ),
        };
        let gates: Option<Vec<f32>> = gates;
        let scheme = Scheme {
            bits: self.bits,
            symmetric: self.symmetric,
            group: usize::try_from(self.group).ok(),
            scale_dtype: match self.scale_dtype.as_str() {
                "float16" => DType::F16,
                "bfloat16" => DType::BF16,
                _ => DType::F32,
            },
        };
        let solve = || {
            let mut hessian = HessianSum::new(shape[1], &compute.device)?;
            let inputs =
                inputs.to_dtype(DType::F32)?.reshape(((), shape[1]))?.to_device(&compute.device)?;
            hessian.add(&inputs, gates.as_deref())?;
            let factor =
                factorise_all(vec![hessian], &[Damping::default()], self.act_order)?.remove(0)?;
            let problem = Problem { weight: &weight, factor: &factor };
            let options = Options { scheme, clip_search: self.clip };
            Ok(solve_on(&[problem], shape, &options, &compute.device)?.remove(0).codes)
        };
        let failed = |e: QuantizeError| {
            Error::new(Kind::Numeric, format!("cannot quantize {}", self.name)).source(e)
        };
        let codes = solve().map_err(failed)?;
        let expected = numbers(get(format!("{}.codes", self.name))?)?;
        let tied = |row: usize| {
            [&self.code_ties, &self.scale_ties, &self.zero_ties, &self.clip_ties]
                .iter()
                .any(|ties| ties.iter().any(|tie| tie[0] == row as f64))
        };
        let rows = codes.codes.chunks(shape[1]).zip(expected.chunks(shape[1])).enumerate();
        let untied = rows.filter(|(row, _)| !tied(*row)).flat_map(|(_, (a, b))| a.iter().zip(b));
        let (mut other, mut all) = (0usize, 0usize);
        untied
            .for_each(|(a, b)| (other, all) = (other + usize::from(f64::from(*a) != *b), all + 1));
        let mut hessian = Hessian::<f32>::new(shape[1]);
        let values: Vec<f32> = numbers(inputs)?.iter().map(|x| *x as f32).collect();
        hessian.add(&values, gates.as_deref()).map_err(failed)?;
        let [error, _] = objective(&weight, &codes.dequantize(), &hessian).map_err(failed)?;
        Ok([other as f64 / all.max(1) as f64, (error / self.objective - 1.0).max(0.0)])
    }

    fn weight(&self, model: &Model, [rows, columns]: [usize; 2]) -> Result<Vec<f32>> {
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
        weight.truncate(rows * columns);
        for [row, from, to] in &self.zeroed {
            weight[row * columns + from..row * columns + to].fill(0.0);
        }
        Ok(weight)
    }
}

fn logits(goldens: &Goldens, name: &str, tokens: &str, compute: &Compute) -> Result<Check> {
    let folder = goldens.path("quantize/checkpoints").join(name);
    let (model, batch) = (Model::open(&folder)?, Batch::from_json(&goldens.path(tokens))?);
    let mut sweep = Sweep::new(&model, &batch, compute)?;
    sweep.run(&mut Silent)?;
    let logits = Head::load(&model, compute)?.logits(&sweep.hidden(0..batch.tokens())?)?;
    let logits = logits.flatten_all().map_err(|e| numeric("the logits of a quantized model", e))?;
    let reference =
        goldens.tensors(&format!("quantize/checkpoints/{name}/reference.safetensors"))?;
    let error = reference
        .get("logits_exact")
        .map(|expected| Ok(apart(&numbers(&logits)?, &numbers(expected)?)));
    Ok(check(format!("quantized {name}"), 1e-5, &[(error.transpose()?.unwrap_or(f64::NAN), 0)]))
}
