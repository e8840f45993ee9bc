//! Routers in the model's dtype beside transformers in bfloat16, on the same states
//! (golden/routing).

use std::collections::{BTreeSet, HashMap};

use candle_core::{DType, Device, Tensor};
use moe_forward::LoadedRouter;
use moe_math::routing::Routing;
use moe_math::{Compute, RouterDtype};
use moe_model::{Model, Router, RouterPrecision, families};

use crate::common::golden;

/// How far a gate in f32 and a logit may be off, since sums have another order.
const SUM: f32 = 1e-6;

/// What transformers did with some states.
struct Golden {
    router: Router,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    fn read(family: &str) -> Self {
        let path = golden(&format!("routing/{family}.safetensors"));
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
            .unwrap_or_else(|e| panic!("{family}: {e}"));
        let model = Model::open(&golden(&format!("families/{family}/base/model"))).unwrap();
        let layer = tensors["layer"].to_vec1::<i64>().unwrap()[0] as usize;
        Self { router: model.layers[layer].ffn.moe().unwrap().router.clone(), tensors }
    }

    fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        self.tensors[name].to_dtype(DType::F32).unwrap().to_vec2().unwrap()
    }

    /// The experts of each token, by descending gate.
    fn selected(&self) -> Vec<Vec<u32>> {
        self.tensors["selected"].to_dtype(DType::U32).unwrap().to_vec2().unwrap()
    }

    fn route(&self, router_dtype: RouterDtype) -> (Vec<Vec<f32>>, Routing) {
        let compute = Compute { router_dtype, ..Compute::cpu() };
        let states = self.tensors["states"].to_dtype(DType::F32).unwrap();
        let (logits, routing) =
            LoadedRouter::load(&self.router, &compute).unwrap().route(&states).unwrap();
        (logits.to_vec2().unwrap(), routing)
    }
}

fn apart(found: &[Vec<f32>], wanted: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let pairs = found.iter().flatten().zip(wanted.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn chunks(routing: &Routing) -> Vec<Vec<f32>> {
    routing.weights.chunks(routing.top_k).map(<[f32]>::to_vec).collect()
}

#[test]
fn every_family_routes_as_transformers_does_in_bfloat16() {
    let mut checked = BTreeSet::new();
    for family in families().values().filter(|family| family.moe.is_some()) {
        let name = &family.model_type;
        let golden = Golden::read(name);
        let (logits, routing) = golden.route(RouterDtype::Model);
        let rounds = golden.router.precision != RouterPrecision::F32;
        assert_eq!(rounds, golden.tensors["router_logits"].dtype() == DType::BF16, "{name}");
        let rounds_gates = golden.router.precision == RouterPrecision::Model;
        assert_eq!(rounds_gates, golden.tensors["weights"].dtype() == DType::BF16, "{name}");
        let tolerance = if rounds { 0.0 } else { SUM };
        assert!(apart(&logits, &golden.rows("router_logits")) <= tolerance, "{name}");
        let tolerance = if rounds_gates { 0.0 } else { SUM };
        assert!(apart(&chunks(&routing), &golden.rows("weights")) <= tolerance, "{name}");
        let tied = golden.tensors["tied"].to_vec1::<u8>().unwrap();
        let found = routing.selected.chunks(routing.top_k);
        for ((found, wanted), (tied, logits)) in
            found.zip(golden.selected()).zip(tied.iter().zip(&logits))
        {
            let [ours, theirs] =
                [found, &wanted].map(|experts| experts.iter().copied().collect::<BTreeSet<_>>());
            // transformers takes any of those that tie; we take the first.
            let of = |experts: &BTreeSet<u32>| {
                experts.iter().map(|e| logits[*e as usize]).fold(f32::MAX, f32::min)
            };
            assert!(
                ours == theirs || *tied == 1 && of(&ours) == of(&theirs),
                "{name}: {found:?} and {wanted:?}"
            );
        }
        checked.insert(rounds);
    }
    assert_eq!(checked.len(), 2, "some families round, and some don't");
}

/// What is asked for makes a difference: in f32 the same states have other logits, other gates and,
/// where two experts tie in bfloat16, sometimes other experts.
#[test]
fn in_f32_the_same_states_are_routed_otherwise() {
    for name in ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"] {
        let golden = Golden::read(name);
        let (logits, routing) = golden.route(RouterDtype::F32);
        assert!(apart(&logits, &golden.rows("router_logits")) > 1e-3, "{name}");
        assert!(apart(&chunks(&routing), &golden.rows("weights")) > 1e-3, "{name}");
        let set = |experts: &[u32]| experts.iter().copied().collect::<BTreeSet<_>>();
        let pairs = routing.selected.chunks(routing.top_k).zip(golden.selected());
        assert!(pairs.filter(|(ours, theirs)| set(ours) != set(theirs)).count() >= 4, "{name}");
    }
}
