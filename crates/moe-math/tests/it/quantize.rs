//! Compares quantization with the paper's algorithm in float64, and with files made by the formats'
//! own libraries (golden/quantize).

use std::path::{Path, PathBuf};

use candle_core::DType;
use half::{bf16, f16};
use moe_math::fp8::{self, Fp8Matrix};
use moe_math::quantize::pack::{self, Gptq};
use moe_math::quantize::{
    Codes, Damping, GptqOptions, GridScheme, Hessian, Problem, Real, WIDTHS, factorize, objective,
    round_to_nearest, solve,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(path)
}

/// A file of tensors, as bytes.
struct File(Vec<u8>);

impl File {
    fn read(path: &str) -> Self {
        Self(std::fs::read(golden(path)).unwrap())
    }

    fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    fn words(&self, name: &str) -> Vec<i32> {
        self.bytes(name).as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        match tensor.dtype() {
            Dtype::F32 => {
                tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            Dtype::BF16 => tensor
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|b| bf16::from_le_bytes(*b).to_f32())
                .collect(),
            Dtype::F16 => tensor
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|b| f16::from_le_bytes(*b).to_f32())
                .collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    fn doubles(&self, name: &str) -> Vec<f64> {
        self.bytes(name).as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
    }
}

/// A case of gptq.json.
struct Case<'a> {
    said: &'a Value,
    scheme: GridScheme,
    act_order: bool,
    weight: Vec<f32>,
    shape: [usize; 2],
    inputs: Vec<f32>,
    gates: Option<Vec<f32>>,
}

impl<'a> Case<'a> {
    fn new(said: &'a Value, goldens: &File, model: &File) -> Self {
        let text = |key: &str| said[key].as_str().unwrap();
        let number = |key: &str| said[key].as_u64().unwrap() as usize;
        let (layer, expert, matrix) = (number("layer"), number("expert"), text("matrix"));
        let mut weight = model
            .floats(&format!("model.layers.{layer}.mlp.experts.{expert}.{matrix}_proj.weight"));
        let columns = if said["wide"].as_bool().unwrap() { 256 } else { 128 };
        let rows = number("rows");
        weight.truncate(rows * columns);
        for zeroed in said["zeroed"].as_array().unwrap() {
            let [row, from, to] = [0, 1, 2].map(|i| zeroed[i].as_u64().unwrap() as usize);
            weight[row * columns + from..row * columns + to].fill(0.0);
        }
        let problem = text("problem");
        let power = said["gate_power"].as_u64().unwrap() as i32;
        let gates = (power > 0).then(|| {
            goldens.floats(&format!("{problem}.gates")).iter().map(|g| g.powi(power)).collect()
        });
        Self {
            scheme: GridScheme {
                bits: number("bits") as u32,
                symmetric: said["symmetric"].as_bool().unwrap(),
                group: usize::try_from(said["group"].as_i64().unwrap()).ok(),
                scale_dtype: match text("scale_dtype") {
                    "float32" => DType::F32,
                    "float16" => DType::F16,
                    "bfloat16" => DType::BF16,
                    other => panic!("{other}"),
                },
            },
            act_order: said["act_order"].as_bool().unwrap(),
            weight,
            shape: [rows, columns],
            inputs: goldens.floats(&format!("{problem}.inputs")),
            gates,
            said,
        }
    }

    fn hessian<T: Real>(&self) -> Hessian<T> {
        let mut hessian = Hessian::new(self.shape[1]);
        let inputs: Vec<T> = self.inputs.iter().map(|x| T::from_f32(*x)).collect();
        hessian.add(&inputs, self.gates.as_deref()).unwrap();
        hessian
    }

    fn codes<T: Real>(&self) -> Codes {
        let factor = factorize(&self.hessian::<T>(), &Damping::default(), self.act_order).unwrap();
        assert_eq!(factor.damping, 0.01);
        let clip_search = self.said["clip"].as_bool().unwrap();
        let options = GptqOptions { scheme: self.scheme, clip_search };
        solve(&[Problem { weight: &self.weight, factor: &factor }], self.shape, &options)
            .unwrap()
            .remove(0)
            .codes
    }

    /// Whether the golden lists a tie in this row.
    fn ties(&self, row: usize) -> bool {
        let rows = |key: &str| {
            self.said[key].as_array().unwrap().iter().any(|tie| tie[0].as_u64() == Some(row as u64))
        };
        ["code_ties", "scale_ties", "zero_ties", "clip_ties"].into_iter().any(rows)
    }
}

fn cases(check: impl Fn(&str, &Case<'_>, &File)) {
    let said: Value =
        serde_json::from_str(&std::fs::read_to_string(golden("quantize/gptq.json")).unwrap())
            .unwrap();
    let (goldens, model) =
        (File::read("quantize/gptq.safetensors"), File::read("models/moe/model.safetensors"));
    let said = said["cases"].as_array().unwrap();
    assert!(said.len() >= 26);
    for case in said {
        check(case["name"].as_str().unwrap(), &Case::new(case, &goldens, &model), &goldens);
    }
}

#[test]
fn in_f64_codes_are_those_of_the_paper() {
    cases(|name, case, goldens| {
        let found = case.codes::<f64>();
        let (codes, scales) =
            (goldens.bytes(&format!("{name}.codes")), goldens.floats(&format!("{name}.scales")));
        let zeros = goldens.bytes(&format!("{name}.zeros"));
        let groups = case.shape[1] / found.group;
        for row in (0..case.shape[0]).filter(|row| !case.ties(*row)) {
            let (columns, groups) =
                (row * case.shape[1]..(row + 1) * case.shape[1], row * groups..(row + 1) * groups);
            assert_eq!(found.codes[columns.clone()], codes[columns], "{name}, row {row}");
            assert_eq!(found.scales[groups.clone()], scales[groups.clone()], "{name}, row {row}");
            assert_eq!(found.zeros[groups.clone()], zeros[groups], "{name}, row {row}");
        }
    });
}

#[test]
fn in_f32_nearly_all_codes_and_the_objective_are_the_same() {
    cases(|name, case, goldens| {
        let found = case.codes::<f32>();
        let codes = goldens.bytes(&format!("{name}.codes"));
        let rows = found.codes.chunks(case.shape[1]).zip(codes.chunks(case.shape[1])).enumerate();
        let untied =
            rows.filter(|(row, _)| !case.ties(*row)).flat_map(|(_, (a, b))| a.iter().zip(b));
        let (mut same, mut all) = (0, 0);
        untied.for_each(|(a, b)| (same, all) = (same + usize::from(a == b), all + 1));
        assert!(same as f64 >= 0.99 * f64::from(all), "{name}: {same} of {all}");
        let [error, output] =
            objective(&case.weight, &found.dequantize(), &case.hessian()).unwrap();
        let number = |key: &str| case.said[key].as_f64().unwrap();
        assert!(
            (output - number("square_output")).abs() <= 1e-5 * number("square_output"),
            "{name}: {output}"
        );
        let wanted = number("objective");
        // One code that rounds the other way changes those of later columns, for better or worse.
        let least = if found.codes == codes { 1.0 - 1e-5 } else { 0.95 };
        assert!(
            (least..1.001).contains(&(error / wanted)) || wanted == 0.0,
            "{name}: {error} and {wanted}"
        );
        // Here a tie is at one row's largest weight, −7.5, so it changes the error noticeably.
        let nearest = round_to_nearest(&case.weight, case.shape, &case.scheme).unwrap();
        let [nearest, _] = objective(&case.weight, &nearest.dequantize(), &case.hessian()).unwrap();
        assert!(
            (nearest - number("nearest_objective")).abs() <= 0.03 * nearest,
            "{name}: {nearest}"
        );
        assert!(error <= nearest, "{name}: {error} and {nearest}");
    });
}

#[test]
fn hessians_are_sums_in_float64() {
    let goldens = File::read("quantize/gptq.safetensors");
    let inputs: Vec<f64> = goldens.floats("hot.inputs").iter().map(|x| f64::from(*x)).collect();
    let weights: Vec<f32> = goldens.floats("hot.gates").iter().map(|g| g * g).collect();
    for (name, weights, tolerance) in
        [("hot.hessian", None, 1e-12), ("hot.weighted_hessian", Some(weights), 1e-6)]
    {
        let mut hessian = Hessian::<f64>::new(128);
        hessian.add(&inputs, weights.as_deref()).unwrap();
        let full = hessian.full();
        let lower: Vec<f64> =
            full.chunks(128).enumerate().flat_map(|(i, row)| &row[..=i]).copied().collect();
        let wanted = goldens.doubles(name);
        let largest = wanted.iter().fold(0f64, |most, h| most.max(h.abs()));
        assert_eq!(lower.len(), wanted.len());
        let far = lower.iter().zip(&wanted).find(|(a, b)| (*a - *b).abs() > tolerance * largest);
        assert!(far.is_none(), "{name}: {far:?}");
    }
}

#[test]
fn packed_rows_are_those_of_compressed_tensors() {
    for bits in WIDTHS {
        for kind in ["sym", "asym"] {
            let file =
                File::read(&format!("quantize/formats/pack-quantized.w{bits}.{kind}.safetensors"));
            for group in ["g-1", "g32", "g64", "g128"] {
                let of = |part: &str| format!("{group}.{part}");
                let shape: [usize; 2] = file.shape(&of("codes")).try_into().unwrap();
                let [rows, columns] = shape;
                let (codes, zeros) = (file.bytes(&of("codes")), file.bytes(&of("zeros")));
                let packed = pack::pack_rows(&codes, columns, bits).unwrap();
                assert_eq!(packed, file.words(&of("weight_packed")), "{bits} {kind} {group}");
                assert_eq!(pack::unpack_rows(&packed, columns, bits).unwrap(), codes);
                let groups = zeros.len() / rows;
                if file.has(&of("weight_zero_point")) {
                    let packed = pack::pack_columns(&zeros, groups, bits).unwrap();
                    assert_eq!(
                        packed,
                        file.words(&of("weight_zero_point")),
                        "{bits} {kind} {group}"
                    );
                    assert_eq!(pack::unpack_columns(&packed, rows, groups, bits).unwrap(), zeros);
                } else {
                    assert_eq!(kind, "sym");
                }
                let scales = file.floats(&of("weight_scale"));
                let found =
                    Codes { shape, group: columns / groups, codes, scales, zeros }.dequantize();
                close(&found, &file.floats(&of("values")), &format!("{bits} {kind} {group}"));
            }
        }
    }
}

/// Equal up to bf16's rounding, in which libraries dequantize.
fn close(found: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let far = found.iter().zip(wanted).find(|(a, b)| a != b);
    assert!(far.is_none(), "{what}: {far:?}");
}

#[test]
fn packed_columns_are_those_of_gptqmodel() {
    for (bits, name) in [(2, "w2"), (3, "w3"), (4, "w4"), (8, "w8")] {
        let file = File::read(&format!("quantize/formats/gptq.{name}.safetensors"));
        for case in ["asym.g32", "sym.g-1"] {
            let of = |part: &str| format!("{case}.{part}");
            let shape: [usize; 2] = file.shape(&of("codes")).try_into().unwrap();
            let (codes, zeros) = (file.bytes(&of("codes")), file.bytes(&of("zeros")));
            let group = shape[1] / (zeros.len() / shape[0]);
            let [qweight, qzeros] = ["qweight", "qzeros"].map(|part| file.words(&of(part)));
            let stored = Gptq { qweight, qzeros, scales: file.floats(&of("scales")) };
            let found = pack::unpack_gptq(&stored, shape, group, bits).unwrap();
            assert_eq!((&found.codes, &found.zeros), (&codes, &zeros), "{name} {case}");
            assert_eq!(pack::pack_gptq(&found, bits).unwrap(), stored, "{name} {case}");
            close(&found.dequantize(), &file.floats(&of("values")), &format!("{name} {case}"));
        }
    }
}

#[test]
fn a_zero_point_of_0_borrows_as_gptqmodel_does_it() {
    let file = File::read("quantize/formats/gptq.odd.safetensors");
    let [qweight, qzeros] = ["zero.qweight", "zero.qzeros"].map(|name| file.words(name));
    let stored = Gptq { qweight, qzeros, scales: file.floats("zero.scales") };
    let found = pack::unpack_gptq(&stored, [32, 64], 32, 4).unwrap();
    assert_eq!(
        (&found.codes, &found.zeros),
        (&file.bytes("zero.codes"), &file.bytes("zero.zeros"))
    );
    assert!(found.zeros.contains(&0));
    assert_eq!(pack::pack_gptq(&found, 4).unwrap(), stored);
    close(&found.dequantize(), &file.floats("zero.values"), "zero");
}

#[test]
fn e4m3_codes_are_those_of_torch() {
    let file = File::read("quantize/formats/e4m3.safetensors");
    for (value, code) in file.floats("inputs").iter().zip(file.bytes("codes")) {
        let found = fp8::e4m3_code(*value);
        assert!(found == code, "{value}: {found:#x}, {code:#x}");
    }
}

#[test]
fn floats_in_blocks_are_those_of_the_libraries() {
    let file = File::read("quantize/formats/float-quantized.safetensors");
    for (name, block) in
        [("channel", None), ("block.tall", Some([128, 128])), ("block.wide", Some([128, 128]))]
    {
        let of = |part: &str| format!("{name}.{part}");
        let shape: [usize; 2] = file.shape(&of("weight")).try_into().unwrap();
        let block = block.unwrap_or([1, shape[1]]);
        let encoded = fp8::encode(&file.floats(&of("input")), shape, block, DType::BF16).unwrap();
        assert_eq!(encoded.scales, file.floats(&of("weight_scale")), "{name}");
        assert_eq!(encoded.codes, file.bytes(&of("weight")), "{name}");
        let blocks = Fp8Matrix { codes: &encoded.codes, shape, scales: &encoded.scales, block };
        close(&blocks.dequantize().unwrap(), &file.floats(&of("values")), name);
    }
    let file = File::read("quantize/formats/fp8.safetensors");
    let (codes, scales) = (file.bytes("weight"), file.floats("weight_scale_inv"));
    let values = Fp8Matrix { codes: &codes, shape: [256, 128], scales: &scales, block: [128, 128] }
        .dequantize()
        .unwrap();
    let every_64th: Vec<f32> = values.chunks_exact(128).step_by(64).flatten().copied().collect();
    assert_eq!(every_64th, file.floats("values.every_64th_row"));
    // Encoding the values of the library's codes gives the codes back.
    let again = fp8::encode(&values, [256, 128], [128, 128], DType::F32).unwrap();
    assert_eq!(again.codes, codes);
}
