//! Compares AdamW, clipping and the schedule with PyTorch's (golden/training).

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor, Var};
use moe_math::adamw::{AdamW, AdamWStep, Moments, clipping, cosine, square_norm};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/training").join(name)
}

#[test]
fn steps_are_those_of_torch() {
    let about: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden("adamw.json")).unwrap()).unwrap();
    let tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(golden("adamw.safetensors"), &Device::Cpu).unwrap();
    for case in ["clipped", "plain"] {
        let about = &about[case];
        let number = |key: &str| about[key].as_f64();
        let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8 };
        let names = ["a", "b", "c"];
        let parameters =
            names.map(|name| Var::from_tensor(&tensors[&format!("start.{name}")]).unwrap());
        let mut moments = parameters.each_ref().map(|parameter| Moments::new(parameter).unwrap());
        let (warmup, steps) =
            (about["warmup_steps"].as_u64().unwrap(), about["steps"].as_u64().unwrap());
        for t in 0..steps {
            let gradients =
                names.map(|name| tensors[&format!("gradients.{name}")].get(t as usize).unwrap());
            let norm = gradients.iter().map(|g| square_norm(g).unwrap()).sum::<f64>().sqrt();
            let learning_rate = number("lr").unwrap() * cosine(t, warmup, steps);
            let close = |a: f64, b: &serde_json::Value| {
                (a - b.as_f64().unwrap()).abs() < 1e-6 * (1.0 + a.abs())
            };
            assert!(
                close(learning_rate, &about["learning_rates"][t as usize]),
                "{case} {t}: {learning_rate}"
            );
            assert!(close(norm, &about["norms"][t as usize]), "{case} {t}: {norm}");
            let step = AdamWStep {
                number: t + 1,
                learning_rate,
                weight_decay: number("weight_decay").unwrap(),
                scale: clipping(norm, number("clip")),
            };
            for (index, name) in names.iter().enumerate() {
                adamw
                    .step(&parameters[index], &gradients[index], &mut moments[index], &step)
                    .unwrap();
                let expected = tensors[&format!("{case}.{name}")].get(t as usize).unwrap();
                let apart = (parameters[index].to_dtype(DType::F64).unwrap() - expected)
                    .unwrap()
                    .abs()
                    .unwrap();
                let apart = apart.max_all().unwrap().to_scalar::<f64>().unwrap();
                assert!(apart < 1e-6, "{case} {name} after step {t}: {apart}");
            }
        }
    }
}
