//! Tests upcycling several dense models into the experts of one.

use moe_model::{Kind, Model, Weight};
use moe_passes::{Identity, Network, NetworkSource, PlannedModel};

use super::{dense, mixture, network, relative_difference, try_plan};
use crate::common::{golden, values};

fn inputs(names: &[&str]) -> Vec<Model> {
    names.iter().map(|n| Model::open(&golden("mergekit/inputs").join(n)).unwrap()).collect()
}

/// mergekit-moe 0.1.5 wrote these experts from the same four models, byte for byte.
#[test]
fn experts_are_those_that_mergekit_makes() {
    let models = inputs(&["a", "b", "c", "d"]);
    let plan = try_plan("experts = 4\ntop-k = 2", &models[0], &models).unwrap();
    let theirs = Model::open(&golden("mergekit/cases/cheap_embed")).unwrap();
    assert_eq!([plan.model.moes().count(), theirs.moes().count()], [2, 2]);
    for (ours, theirs) in plan.model.moes().zip(theirs.moes()) {
        for (a, b) in ours.1.experts.iter().zip(&theirs.1.experts) {
            for (a, b) in a.linears().iter().zip(b.linears()) {
                assert_eq!(a.weight.read().unwrap(), b.weight.read().unwrap(), "layer {}", ours.0);
            }
        }
    }
    assert!(
        matches!(Identity::of(&plan.effects), Identity::Changed { .. }),
        "{:?}",
        Identity::of(&plan.effects)
    );
    // All other tensors are the base's.
    assert_eq!(plan.model.embed.read().unwrap(), theirs.embed.read().unwrap());
    assert_eq!(
        plan.model.layers[1].attention.output().weight.read().unwrap(),
        theirs.layers[1].attention.output().weight.read().unwrap()
    );
}

/// Branch-Train-MiX: all tensors except experts are the mean, computed by hand in f64 and
/// rounded once.
#[test]
fn attention_can_be_the_mean() {
    let models = inputs(&["a", "b", "c"]);
    let plan = try_plan(
        "experts = 6\ntop-k = 2\nrest = 'average'\nexpert-model = ['a', 'b', 'c']",
        &models[0],
        &models,
    )
    .unwrap();
    let check = |found: &Weight, pick: &dyn Fn(&Model) -> Weight| {
        let sources: Vec<Vec<f32>> = models.iter().map(|m| values(&pick(m))).collect();
        for (at, found) in values(found).into_iter().enumerate() {
            let mean = sources.iter().map(|s| f64::from(s[at])).sum::<f64>() / 3.0;
            assert!((f64::from(found) - mean).abs() <= mean.abs() / 256.0, "{found} {mean}");
        }
    };
    check(&plan.model.embed, &|m| m.embed.clone());
    check(&plan.model.final_norm, &|m| m.final_norm.clone());
    check(&plan.model.layers[1].attention.grouped().unwrap().k.weight, &|m| {
        m.layers[1].attention.grouped().unwrap().k.weight.clone()
    });
    check(&plan.model.layers[0].ffn_norm, &|m| m.layers[0].ffn_norm.clone());
    // Experts are dealt out in turn: experts 0 and 3 are a's.
    let moe = mixture(&plan, 0);
    for (expert, model) in moe.experts.iter().zip(models.iter().cycle()) {
        assert_eq!(expert.up.weight.read().unwrap(), network(model, 0).up.weight.read().unwrap());
    }
}

/// The shared expert doesn't come from an expert model: it is the base's, or the mean's.
#[test]
fn the_shared_expert_is_the_bases() {
    let models = inputs(&["a", "b", "c"]);
    let options = "experts = 2\ntop-k = 2\ntarget = 'qwen2_moe'\nexpert-model = ['b', 'c']";
    let shared =
        |plan: &PlannedModel| values(&mixture(plan, 1).shared.as_ref().unwrap().expert.up.weight);
    let base = try_plan(options, &models[0], &models[1..]).unwrap();
    assert_eq!(shared(&base), values(&network(&models[0], 1).up.weight));
    let record = &base.layers[1];
    assert!(record.shared_sentence().unwrap().contains("the base's network"));
    let sources = &record.shared.as_ref().unwrap().network.sources;
    assert_eq!(*sources, [NetworkSource::of(Network::Dense)]);
    let average =
        try_plan(&format!("{options}\nrest = 'average'"), &models[0], &models[1..]).unwrap();
    let (b, c) =
        (values(&network(&models[1], 1).up.weight), values(&network(&models[2], 1).up.weight));
    for (found, (b, c)) in shared(&average).iter().zip(b.iter().zip(&c)) {
        assert!((found - (b + c) / 2.0).abs() <= ((b + c) / 2.0).abs() / 256.0);
    }
}

#[test]
fn copies_of_one_model_keep_the_function() {
    let models = inputs(&["b", "b"]);
    let plan = try_plan(
        "experts = 4\ntop-k = 2\nrest = 'average'\nexpert-model = ['b', 'b']",
        &models[0],
        &models,
    )
    .unwrap();
    assert_eq!(Identity::of(&plan.effects), Identity::Exact);
    let tokens = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(tokens.path(), "[[1, 5, 9, 200, 7, 3]]").unwrap();
    assert!(relative_difference(&models[0], &plan, tokens.path()) < 1e-5);
}

#[test]
fn models_that_do_not_fit_are_refused_by_name() {
    let base = &inputs(&["a"])[0];
    let refusal = |others: &[Model], toml: &str| {
        let error = try_plan(toml, base, others).err().expect("an error");
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        error.to_string()
    };
    let other_family = refusal(&inputs(&["qwen3"]), "experts = 2\ntop-k = 1");
    assert!(
        other_family.contains("qwen3 model can't be an expert of a llama model")
            && other_family.contains("inputs/qwen3")
    );
    let other_shape = refusal(&[dense()], "experts = 2\ntop-k = 1");
    assert!(
        other_shape.contains("tensor: ") && other_shape.contains("[2048, 128]"),
        "{other_shape}"
    );
    let uneven = refusal(
        &inputs(&["a", "b", "c"]),
        "experts = 4\ntop-k = 1\nexpert-model = ['x', 'y', 'z']",
    );
    assert!(uneven.contains("4 experts can't be dealt out evenly to 3 models"), "{uneven}");
}
