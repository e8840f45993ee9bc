//! Initialisations of experts: their weights, and their promises about the function.

use std::path::Path;

use moe_forward::{Batch, Silent, logit_difference};
use moe_math::Compute;
use moe_model::{Expert, Ffn, Kind, Model, Moe, Weight};
use moe_passes::{Identity, Network, NetworkSource, Pass, PlannedModel, Sources, UpcycleOptions};

use crate::common::{golden, values};

fn try_plan(toml: &str, dense: &Model, others: &[Model]) -> moe_checkpoint::Result<PlannedModel> {
    let options: UpcycleOptions = toml::from_str(toml).unwrap_or_else(|e| panic!("{toml}: {e}"));
    let others_differ = others.iter().any(|other| other.config_file != dense.config_file);
    let compute = Compute::cpu();
    let plan = options.plan(&Sources { others, others_differ, ..Sources::new(dense, &compute) })?;
    Ok(plan.planned)
}

fn plan(toml: &str, dense: &Model) -> PlannedModel {
    try_plan(toml, dense, &[]).unwrap_or_else(|e| panic!("{toml}: {e}"))
}

fn dense() -> Model {
    Model::open(&golden("models/dense")).unwrap()
}

fn network(model: &Model, layer: usize) -> &Expert {
    match &model.layers[layer].ffn {
        Ffn::Dense(ffn) => ffn,
        Ffn::Moe(_) => panic!("layer {layer} has experts"),
    }
}

fn mixture(plan: &PlannedModel, layer: usize) -> &Moe {
    plan.model.layers[layer].ffn.moe().expect("a layer with experts")
}

/// Neuron `n` of an expert: its gate row, up row and down column.
fn neuron(expert: &Expert, n: usize) -> [Vec<f32>; 3] {
    neurons(expert).swap_remove(n)
}

/// All neurons of an expert.
fn neurons(expert: &Expert) -> Vec<[Vec<f32>; 3]> {
    let (width, hidden) = (expert.width(), expert.gate.weight.shape()[1]);
    let [gate, up, down] =
        [&expert.gate, &expert.up, &expert.down].map(|linear| values(&linear.weight));
    let row = |matrix: &[f32], n: usize| matrix[n * hidden..(n + 1) * hidden].to_vec();
    let column = |n: usize| down.iter().skip(n).step_by(width).copied().collect();
    (0..width).map(|n| [row(&gate, n), row(&up, n), column(n)]).collect()
}

/// Largest |Δlogit| over the largest logit of the dense model, for the planned model as loaders
/// would see it.
fn relative_difference(dense: &Model, plan: &PlannedModel, tokens: &Path) -> f64 {
    let moe = plan.model.declare().unwrap().reread().unwrap();
    let batch = Batch::from_json(tokens).unwrap();
    let d = logit_difference(dense, &moe, &batch, &Compute::cpu(), &mut Silent).unwrap();
    d.max_logit_difference / d.max_logit.max(1.0)
}

#[test]
fn shards_in_virtual_groups_compute_the_dense_function() {
    let (dense, tokens) = (dense(), golden("models/dense.tokens.json"));
    for (options, exact, tolerance) in [
        ("experts = 8\ntop-k = 2\ngranularity = 2", true, 1e-5),
        ("experts = 8\ntop-k = 4\ngranularity = 2\nrouter = 'orthogonal'", true, 1e-5),
        ("experts = 8\ntop-k = 4\ngranularity = 4", true, 1e-5),
        ("experts = 6\ntop-k = 2\ngranularity = 2\nrouter = 'zeros'", true, 1e-5),
        ("experts = 8\ntop-k = 8\ngranularity = 8", true, 1e-5),
        ("experts = 8\ntop-k = 4\ngranularity = 2\ntarget = 'qwen2_moe'", true, 1e-5),
        (
            "experts = 8\ntop-k = 4\ngranularity = 2\ntarget = 'qwen2_moe'\nshared-experts = 2",
            true,
            1e-5,
        ),
        // 3 doesn't divide 512, and ×3 rounds in bf16: granularity 3 is tested on a golden below.
        (
            "experts = 8\ntop-k = 4\ngranularity = 2\ntarget = 'qwen2_moe'\nnorm-topk-prob = false\nrouter = 'zeros'",
            false,
            1e-3,
        ),
    ] {
        let plan = plan(options, &dense);
        assert_eq!(
            Identity::of(&plan.effects) == Identity::Exact,
            exact,
            "{options}: {:?}",
            Identity::of(&plan.effects)
        );
        let difference = relative_difference(&dense, &plan, &tokens);
        assert!(difference < tolerance, "{options}: {difference}");
    }
}

/// For shards without normalised gates the scale is c = E·G/T (2 families).
#[test]
fn scales_of_unnormalised_shards_follow_the_table() {
    for (family, shared) in [("qwen2", "\nshared-fraction = 0.0"), ("qwen3", "")] {
        let mut dirs: Vec<_> = std::fs::read_dir(golden("families").join(family))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        dirs.retain(|d| d.is_dir());
        dirs.sort();
        let dense = Model::open(&dirs[0].join("model")).unwrap();
        let divisor =
            (2..=5).find(|g| network(&dense, 0).width().is_multiple_of(*g)).expect("a divisor");
        let options = format!(
            "experts = {}\ntop-k = {}\ngranularity = {divisor}\nnorm-topk-prob = false\nrouter = 'zeros'{shared}",
            divisor * 4,
            divisor * 2
        );
        let plan = plan(&options, &dense);
        // E = 4 copies, T = 2 of them active: c = E·G/T.
        let expected = 4.0 * divisor as f32 / 2.0;
        let expert = neuron(&mixture(&plan, 0).experts[0], 0);
        let original = neuron(network(&dense, 0), 0);
        for (found, wanted) in expert[2].iter().zip(&original[2]) {
            assert!(
                (found - wanted * expected).abs() <= 4e-3 * (wanted * expected).abs(),
                "{found} {wanted}"
            );
        }
        let difference = relative_difference(&dense, &plan, &dirs[0].join("tokens.json"));
        assert!(difference < 2e-2, "{family}: {difference}");
    }
}

/// The experts of a group, put together, are the dense network bit for bit; the rows of a group are
/// equal.
#[test]
fn shards_give_the_dense_network_back() {
    let dense = dense();
    let g = 4;
    let plan = plan("experts = 8\ntop-k = 4\ngranularity = 4", &dense);
    for layer in 0..dense.layers.len() {
        let (ffn, moe) = (network(&dense, layer), mixture(&plan, layer));
        for group in moe.experts.chunks(g) {
            let rows = |pick: fn(&Expert) -> &Weight| {
                group.iter().flat_map(|e| pick(e).read().unwrap()).collect::<Vec<u8>>()
            };
            assert_eq!(rows(|e| &e.gate.weight), ffn.gate.weight.read().unwrap());
            assert_eq!(rows(|e| &e.up.weight), ffn.up.weight.read().unwrap());
            // Columns, and a scale of 4, which is exact in every encoding.
            let (width, parts) =
                (ffn.width() / g, group.iter().map(|e| values(&e.down.weight)).collect::<Vec<_>>());
            let whole = values(&ffn.down.weight);
            for (at, wanted) in whole.iter().enumerate() {
                let (row, column) = (at / ffn.width(), at % ffn.width());
                let found = parts[column / width][row * width + column % width];
                assert_eq!((found / g as f32).to_bits(), wanted.to_bits());
            }
        }
        let router = values(&moe.router.weight);
        let rows: Vec<&[f32]> = router.chunks(dense.hidden).collect();
        assert!(
            rows.chunks(g).all(|group| group.iter().all(|row| *row == group[0])),
            "a group shares its row"
        );
        assert_ne!(rows[0], rows[g], "groups have rows of their own");
    }
}

/// One set of ⌊r·m⌉ neurons is redrawn in gate, up and down alike; all others are those of the
/// dense network.
#[test]
fn dropped_neurons_are_one_set_with_the_moments_of_the_matrix() {
    let dense = dense();
    let plan =
        plan("experts = 4\ntop-k = 2\ninit = 'drop'\ndrop-fraction = 0.25\nseed = 3", &dense);
    assert!(matches!(Identity::of(&plan.effects), Identity::Changed { .. }));
    let (ffn, moe) = (network(&dense, 1), mixture(&plan, 1));
    let mut sets = Vec::new();
    let originals = neurons(ffn);
    for expert in &moe.experts {
        let redrawn = neurons(expert);
        let changed: Vec<usize> = (0..ffn.width())
            .filter(|n| {
                let same: Vec<bool> =
                    originals[*n].iter().zip(&redrawn[*n]).map(|(a, b)| a == b).collect();
                assert!(
                    same.iter().all(|s| *s == same[0]),
                    "neuron {n} is redrawn in some projections only"
                );
                !same[0]
            })
            .collect();
        assert_eq!(changed.len(), ffn.width() / 4);
        for (pick, original) in [(0, &ffn.gate), (1, &ffn.up), (2, &ffn.down)] {
            let drawn: Vec<f64> =
                changed.iter().flat_map(|n| redrawn[*n][pick].clone()).map(f64::from).collect();
            let all: Vec<f64> = values(&original.weight).into_iter().map(f64::from).collect();
            let moments = |x: &[f64]| {
                let mean = x.iter().sum::<f64>() / x.len() as f64;
                (mean, (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64).sqrt())
            };
            let ((mean, std), (drawn_mean, drawn_std)) = (moments(&all), moments(&drawn));
            let error = std / (drawn.len() as f64).sqrt();
            assert!((drawn_mean - mean).abs() < 5.0 * error, "mean {drawn_mean}, not {mean}");
            assert!((drawn_std - std).abs() < 5.0 * error, "std {drawn_std}, not {std}");
        }
        sets.push(changed);
    }
    assert_ne!(sets[0], sets[1], "experts have sets of their own");
}

/// Every neuron goes to one expert, or the shared one; with all experts and even weights the
/// function is kept.
#[test]
fn partitions_deal_out_every_neuron_once() {
    let (dense, tokens) = (dense(), golden("models/dense.tokens.json"));
    let ffn = network(&dense, 2);
    for by in ["random", "weights"] {
        for target in ["mixtral", "qwen2_moe"] {
            let options = format!(
                "experts = 4\ntop-k = 4\ninit = 'partition'\npartition-by = '{by}'\ntarget = '{target}'\nrouter = 'zeros'"
            );
            let plan = plan(&options, &dense);
            assert!(
                matches!(Identity::of(&plan.effects), Identity::Approximate { .. }),
                "{:?}",
                Identity::of(&plan.effects)
            );
            let difference = relative_difference(&dense, &plan, &tokens);
            assert!(difference < 1e-4, "{options}: {difference}");
            let moe = mixture(&plan, 2);
            let mut rows: Vec<Vec<u8>> = Vec::new();
            let shared = moe.shared.iter().map(|s| &s.expert);
            for expert in moe.experts.iter().chain(shared) {
                let bytes = expert.gate.weight.read().unwrap();
                rows.extend(bytes.chunks(bytes.len() / expert.width()).map(<[u8]>::to_vec));
            }
            let bytes = ffn.gate.weight.read().unwrap();
            let mut wanted: Vec<Vec<u8>> =
                bytes.chunks(bytes.len() / ffn.width()).map(<[u8]>::to_vec).collect();
            rows.sort();
            wanted.sort();
            assert_eq!(rows, wanted, "{options}");
        }
    }
}

/// 2410.07524 §3.3 computed by hand: the cube root of E·G²/K (softmax before top-k) or of G (after
/// it), on all projections.
#[test]
fn nvidia_scales_are_cube_roots() {
    let dense = dense();
    for (options, s) in [
        ("experts = 8\ntop-k = 4\ngranularity = 2", 2.0f64),
        (
            "experts = 8\ntop-k = 4\ngranularity = 2\ntarget = 'qwen2_moe'\nnorm-topk-prob = false\nshared-fraction = 0.0",
            4.0,
        ),
    ] {
        let plan = plan(&format!("{options}\nscale-placement = 'nvidia'"), &dense);
        assert!(matches!(Identity::of(&plan.effects), Identity::Changed { .. }));
        let (original, expert) =
            (neuron(network(&dense, 0), 0), neuron(&mixture(&plan, 0).experts[0], 0));
        for (found, wanted) in expert.iter().flatten().zip(original.iter().flatten()) {
            let wanted = f64::from(*wanted) * s.cbrt();
            assert!((f64::from(*found) - wanted).abs() <= 4e-3 * wanted.abs(), "{found} {wanted}");
        }
    }
}

#[test]
fn chosen_layers_get_experts_and_the_others_stay() {
    let (dense, tokens) = (dense(), golden("models/dense.tokens.json"));
    for (layers, converted) in
        [("every:2", vec![1, 3]), ("0,2-3", vec![0, 2, 3]), ("all", vec![0, 1, 2, 3])]
    {
        let plan = plan(
            &format!("experts = 4\ntop-k = 2\ntarget = 'qwen2_moe'\nlayers = '{layers}'"),
            &dense,
        );
        let found: Vec<usize> = plan.model.moes().map(|(layer, _)| layer).collect();
        assert_eq!(found, converted);
        assert_eq!(Identity::of(&plan.effects), Identity::Exact);
        assert!(relative_difference(&dense, &plan, &tokens) < 1e-5, "{layers}");
        let recorded: Vec<usize> =
            plan.layers.iter().filter(|l| l.router.is_some()).map(|l| l.layer).collect();
        assert_eq!(recorded, converted);
    }
    let refused = plan_error("experts = 4\ntop-k = 2\nlayers = 'every:2'", &dense);
    assert!(
        refused.contains("mixtral")
            && refused.contains("dense layers")
            && refused.contains("qwen2_moe"),
        "{refused}"
    );
}

fn plan_error(toml: &str, dense: &Model) -> String {
    let error = try_plan(toml, dense, &[])
        .and_then(|plan| plan.model.declare())
        .expect_err("it must be refused");
    assert!(matches!(error.kind(), Kind::Usage | Kind::Unsupported), "{error}");
    error.to_string()
}

#[test]
fn impossible_requests_name_what_and_remedy() {
    let dense = dense();
    for (toml, what, remedy) in [
        (
            "experts = 8\ntop-k = 4\ngranularity = 3",
            "multiple of --granularity 3",
            "--experts 9 --top-k 6",
        ),
        (
            "experts = 6\ntop-k = 3\ngranularity = 3",
            "doesn't divide the feed-forward width 512",
            "1, 2, 4, 8",
        ),
        ("experts = 8\ntop-k = 3\ngranularity = 2", "multiple of --granularity 2", "--top-k 4"),
        (
            "experts = 3\ntop-k = 2\ninit = 'partition'",
            "can't be dealt out evenly",
            "--experts as one of 2, 4",
        ),
        ("experts = 4\ntop-k = 2\nrouter = 'kmeans'", "is found on text", "--data"),
        ("experts = 4\ntop-k = 2\nrouter = 'prompts'", "made of prompts", "--prompts"),
        ("experts = 4\ntop-k = 2\nrouter = 'activations'", "--init partition", "--init partition"),
        (
            "experts = 4\ntop-k = 2\nrest = 'average'",
            "--rest average goes with --expert-model",
            "--expert-model",
        ),
        ("experts = 4\ntop-k = 2\nrouter-entropy = 1.0", "--router-entropy 1", "0.9"),
        ("experts = 4\ntop-k = 2\nlayers = '9'", "there are 4", "0 to 3"),
        (
            "experts = 4\ntop-k = 2\nshared-width = 9\ninit = 'partition'",
            "no shared expert",
            "--target",
        ),
        (
            "experts = 4\ntop-k = 2\ninit = 'partition'\ngranularity = 2",
            "deals out the neurons",
            "--granularity",
        ),
        (
            "experts = 4\ntop-k = 2\ngranularity = 2\nrouter = 'zeros'\nrouter-std = 0.0",
            "one shard twice",
            "--router-std",
        ),
        ("experts = 4\ntop-k = 2\nrouter-std = 1e300", "from 0 to 1e6", "--router-std"),
        (
            "experts = 4\ntop-k = 2\ndrop-fraction = 0.3",
            "--drop-fraction goes with --init drop",
            "--init drop",
        ),
        (
            "experts = 4\ntop-k = 2\ninit = 'drop'\ndrop-fraction = 0.0001",
            "less than one neuron",
            "--drop-fraction",
        ),
        ("experts = 4\ntop-k = 2\nrouter-entropy = 0.5", "--router-entropy goes with", "kmeans"),
        ("experts = 4\ntop-k = 2\nshared-experts = 2", "mixtral has no shared expert", "--target"),
        (
            "experts = 500\ntop-k = 2\ninit = 'partition'\ntarget = 'qwen2_moe'",
            "dealt out evenly",
            "--experts as one of 2, 3",
        ),
        (
            "experts = 4\ntop-k = 2\ninit = 'partition'\ntarget = 'qwen2_moe'\nshared-width = 511",
            "511 of them shared",
            "another --shared-width",
        ),
    ] {
        let error = plan_error(toml, &dense);
        assert!(
            error.contains(what) && error.contains("remedy:") && error.contains(remedy),
            "{toml}: {error}"
        );
    }
}

mod several_models {
    use super::*;

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
                    assert_eq!(
                        a.weight.read().unwrap(),
                        b.weight.read().unwrap(),
                        "layer {}",
                        ours.0
                    );
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
            assert_eq!(
                expert.up.weight.read().unwrap(),
                network(model, 0).up.weight.read().unwrap()
            );
        }
    }

    /// The shared expert doesn't come from an expert model: it is the base's, or the mean's.
    #[test]
    fn the_shared_expert_is_the_bases() {
        let models = inputs(&["a", "b", "c"]);
        let options = "experts = 2\ntop-k = 2\ntarget = 'qwen2_moe'\nexpert-model = ['b', 'c']";
        let shared = |plan: &PlannedModel| {
            values(&mixture(plan, 1).shared.as_ref().unwrap().expert.up.weight)
        };
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
}
