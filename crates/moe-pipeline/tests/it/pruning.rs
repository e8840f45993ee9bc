//! Compares observing and pruning with transformers' own modules, in float64, and with
//! llm-compressor (golden/pruning).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use moe_checkpoint::{Kind, SourceFile};
use moe_forward::{Batch, Sweep, labels};
use moe_math::Compute;
use moe_math::statistics::{Quantity, Sums};
use moe_model::Model;
use moe_passes::{CalibrationOptions, LayerStatistics, LayerTrust, NetworkEdit, PruneOptions};
use moe_pipeline::{ConvertOptions, ObserveOptions, Quiet, StatisticsFile, convert, observe};
use serde_json::Value;

use crate::common::{golden, run_again};

fn read_json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden(path)).unwrap()).unwrap()
}

fn moe() -> PathBuf {
    golden("models/moe")
}

/// Token ids of golden/pruning as `--data` arguments, one label for each domain.
struct Text {
    directory: tempfile::TempDir,
    data: Vec<String>,
}

impl Text {
    fn new(domains: &[(&str, &Value)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |(label, windows): &(&str, &Value)| {
            let path = directory.path().join(format!("{label}.jsonl"));
            let lines = windows.as_array().unwrap().iter();
            let lines: Vec<_> =
                lines.map(|ids| serde_json::json!({ "input_ids": ids }).to_string()).collect();
            std::fs::write(&path, lines.join("\n")).unwrap();
            format!("{label}={}", path.display())
        };
        let data = domains.iter().map(write).collect();
        Self { directory, data }
    }

    fn of_golden() -> Self {
        let tokens = read_json("pruning/tokens.json");
        let order = ["english", "code", "spanish", "arithmetic"];
        Self::new(&order.map(|label| (label, &tokens[label])))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn calibration(&self) -> CalibrationOptions {
        let data = self.data.iter().map(|d| d.parse().unwrap()).collect();
        CalibrationOptions { data, sequence_length: 256, ..CalibrationOptions::default() }
    }

    fn observe(&self, name: &str, change: impl Fn(&mut ObserveOptions)) -> PathBuf {
        let output = self.path(name);
        let mut options = ObserveOptions {
            add: Vec::new(),
            no_left_out: false,
            all_experts_every: 0,
            calibration: self.calibration(),
        };
        change(&mut options);
        observe(&moe(), &options, &output, false, None, &Compute::cpu(), &Quiet).unwrap();
        output
    }

    /// Options of `prune` in TOML, with this text as data.
    fn with_data(&self, toml: &str) -> PruneOptions {
        let mut options: PruneOptions = toml::from_str(toml).unwrap();
        options.reduce.calibration = self.calibration();
        options
    }
}

/// Prunes, and returns the experts that each layer keeps.
fn kept(options: &PruneOptions, model: &Path, output: &Path) -> Vec<Vec<usize>> {
    let done = convert(
        &[options],
        model,
        output,
        &ConvertOptions { probe_tokens: 0, ..run_again() },
        &Quiet,
    )
    .unwrap();
    let mut kept: Vec<Vec<usize>> = done
        .receipt
        .layers
        .iter()
        .map(|layer| layer.experts.iter().flat_map(NetworkEdit::experts).collect())
        .collect();
    kept.iter_mut().for_each(|experts| experts.sort_unstable());
    kept
}

fn indices(value: &Value) -> Vec<Vec<usize>> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The sums of `layer` over both halves, by domain.
fn by_domain(file: &StatisticsFile, layer: usize) -> Vec<Sums> {
    let sums = file.layer(layer).unwrap().unwrap();
    let of = |label: &str| {
        let groups = file.groups().iter().zip(&sums).filter(|(group, _)| group.label == label);
        Sums::pooled(groups.map(|(_, sums)| (sums, 1.0)))
    };
    labels(file.groups()).into_iter().map(of).collect()
}

/// `selftest` checks other criteria: this one looks at tokens, which statistics don't have. In
/// sequential calibration only the first layer is decided on the original's states.
#[test]
fn ranked_choice_keeps_what_an_independent_computation_keeps() {
    let text = Text::of_golden();
    let saliencies = read_json("pruning/saliencies.json");
    for (count, wanted) in saliencies["kept"]["ranked-choice"].as_object().unwrap() {
        let toml = format!(
            "criterion = \"ranked-choice\"\nexperts = {count}\nno-super-expert-guard = true"
        );
        let found = kept(&text.with_data(&toml), &moe(), &text.path("out"));
        assert_eq!(found[0], indices(wanted)[0], "{count}");
    }
}

#[test]
fn reap_in_sequence_keeps_what_llm_compressor_keeps() {
    let text = Text::of_golden();
    let wanted = read_json("pruning/sequential.json");
    let peer = read_json("pruning/llm-compressor.json");
    for (count, sparsity) in [("18", 0.25), ("12", 0.5)] {
        let options = text.with_data(&format!(
            "criterion = \"reap\"\nexperts = {count}\nno-super-expert-guard = true"
        ));
        let found = kept(&options, &moe(), &text.path("out"));
        assert_eq!(found, indices(&wanted["kept"][count]), "{count}");
        let same = |run: &&Value| {
            run["attention"] == "causal" && run["dtype"] == "float32" && run["sparsity"] == sparsity
        };
        let theirs = peer["runs"].as_array().unwrap().iter().find(same).unwrap();
        assert_eq!(found, indices(&theirs["kept"]), "{count}");
    }
}

/// `selftest` checks that they compute what transformers computes with experts masked.
#[test]
fn experts_that_stay_are_copied_byte_for_byte() {
    let text = Text::of_golden();
    let source = Model::open(&moe()).unwrap();
    let count = 12;
    let toml = format!("criterion = \"reap\"\nexperts = {count}\nno-super-expert-guard = true");
    let output = text.path("pruned");
    let kept = kept(&text.with_data(&toml), &moe(), &output);
    let model = Model::open(&output).unwrap();
    assert_eq!(model.config["num_experts"], count);
    assert_eq!(model.config["num_local_experts"], count);
    for ((layer, moe), (kept, (_, before))) in model.moes().zip(kept.iter().zip(source.moes())) {
        let rows = |weight: &moe_model::Weight| weight.read().unwrap();
        let (ours, theirs) = (rows(&moe.router.weight), rows(&before.router.weight));
        let row = ours.len() / count;
        for (place, expert) in kept.iter().enumerate() {
            assert_eq!(ours[place * row..][..row], theirs[expert * row..][..row], "router {layer}");
            let pairs =
                moe.experts[place].linears().into_iter().zip(before.experts[*expert].linears());
            pairs.for_each(|(a, b)| {
                assert_eq!(rows(&a.weight), rows(&b.weight), "{layer} {expert}")
            });
        }
    }
}

#[test]
fn the_best_subset_is_found() {
    let wanted = read_json("pruning/exhaustive.json");
    let text = Text::new(&[("random", &wanted["tokens"])]);
    let model = golden("families")
        .join(wanted["model"].as_str().unwrap().strip_prefix("families/").unwrap())
        .join("model");
    for (count, first) in wanted["layers"][0].as_object().unwrap() {
        let count: usize = count.parse().unwrap();
        let toml =
            format!("criterion = \"exhaustive\"\nexperts = {count}\nno-super-expert-guard = true");
        let found = kept(&text.with_data(&toml), &model, &text.path("out"));
        let best: Vec<usize> = serde_json::from_value(first["best"].clone()).unwrap();
        assert_eq!(found[0], best, "{count}");
    }
}

#[test]
fn statistics_add_up_over_files_blocks_and_scratch_files() {
    let text = Text::of_golden();
    let whole = StatisticsFile::open(&text.observe("whole", |_| {})).unwrap();
    let part = |name: &str, range: std::ops::Range<usize>| {
        text.observe(name, |options| {
            options.calibration.data = text.calibration().data[range.clone()].to_vec()
        })
    };
    let (first, second) = (part("first", 0..1), part("second", 1..4));
    let sum = text.observe("sum", |options| {
        options.add = vec![first.clone(), second.clone()];
        options.calibration.data.clear();
    });
    let both = text.observe("both", |options| {
        options.add = vec![first.clone()];
        options.calibration.data.drain(..1);
    });
    for other in [sum, both] {
        let other = StatisticsFile::open(&other).unwrap();
        for layer in 0..4 {
            for (a, b) in by_domain(&whole, layer).iter().zip(by_domain_of(&other, layer, &whole)) {
                for quantity in Quantity::ALL {
                    let pairs = a.get(quantity).iter().zip(b.get(quantity));
                    let scale = a.get(quantity).iter().fold(0f64, |most, x| most.max(x.abs()));
                    // The rounding of an f32 product depends on how many tokens share it. Sums even
                    // that out, a maximum doesn't.
                    let tolerance = if quantity == Quantity::Largest { 1e-5 } else { 1e-6 } * scale;
                    pairs.for_each(|(a, b)| {
                        assert!((a - b).abs() <= tolerance, "{}: {a} {b}", quantity.name())
                    });
                }
            }
        }
    }
}

/// [`by_domain`] in the order of domains in `like`.
fn by_domain_of(file: &StatisticsFile, layer: usize, like: &StatisticsFile) -> Vec<Sums> {
    let found = by_domain(file, layer);
    let order = labels(file.groups());
    labels(like.groups())
        .iter()
        .map(|l| found[order.iter().position(|o| o == l).unwrap()].clone())
        .collect()
}

/// Hidden states of so much text take more than a quarter of the budget, so they go to a scratch
/// file.
#[test]
fn a_scratch_file_changes_nothing() {
    const TIMES: usize = 32;
    const BUDGET: &str = "90MB";
    let tokens = read_json("pruning/tokens.json");
    let windows = |label: &str| -> Value {
        std::iter::repeat_n(tokens[label].as_array().unwrap(), TIMES).flatten().cloned().collect()
    };
    let text = Text::new(&[("english", &windows("english")), ("code", &windows("code"))]);
    let options = text.with_data("experts = 12\ncriterion = \"frequency\"");
    let bytes = |budget: Option<&str>| {
        let output = text.path("out");
        let run =
            ConvertOptions { memory_budget: budget.map(|b| b.parse().unwrap()), ..run_again() };
        convert(&[&options], &moe(), &output, &run, &Quiet).unwrap();
        std::fs::read(output.join("model.safetensors")).unwrap()
    };
    assert!(bytes(None) == bytes(Some(BUDGET)));
}

#[test]
fn padding_and_masked_tokens_enter_no_statistic() {
    let tokens = read_json("pruning/tokens.json");
    let ids: Vec<u32> = serde_json::from_value(tokens["english"][0].clone()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let observed = |name: &str, line: Value| {
        let path = directory.path().join(format!("{name}.jsonl"));
        std::fs::write(&path, line.to_string()).unwrap();
        let output = directory.path().join(name);
        let options = ObserveOptions {
            add: Vec::new(),
            no_left_out: true,
            all_experts_every: 0,
            calibration: CalibrationOptions {
                data: vec![format!("x={}", path.display()).parse().unwrap()],
                ..CalibrationOptions::default()
            },
        };
        observe(&moe(), &options, &output, false, None, &Compute::cpu(), &Quiet).unwrap();
        let file = StatisticsFile::open(&output).unwrap();
        by_domain(&file, 3).remove(0)
    };
    let plain = observed("plain", serde_json::json!({ "input_ids": ids }));
    let padded = [vec![7; 9], ids.clone(), vec![9; 5]].concat();
    let mask = [vec![0; 9], vec![1; ids.len()], vec![0; 5]].concat();
    let padded =
        observed("padded", serde_json::json!({ "input_ids": padded, "attention_mask": mask }));
    assert_eq!(plain, padded);
    assert_eq!(plain.scalar(Quantity::SeenTokens), ids.len() as f64);
}

#[test]
fn a_report_is_written_and_is_the_same_again() {
    let text = Text::new(&[("english", &read_json("pruning/tokens.json")["english"])]);
    let mut options = text.with_data("experts = 12");
    options.reduce.measuring.held_out = vec![text.data[0].parse().unwrap()];
    options.reduce.measuring.held_out_tokens = 256;
    let report = |name: &str| {
        let output = text.path(name);
        convert(
            &[&options],
            &moe(),
            &output,
            &ConvertOptions { probe_tokens: 0, ..run_again() },
            &Quiet,
        )
        .unwrap();
        assert!(
            std::fs::read_to_string(output.join("SHA256SUMS")).unwrap().contains("  report.html")
        );
        assert!(std::fs::read_to_string(output.join("README.md")).unwrap().contains("report.html"));
        std::fs::read_to_string(output.join("report.html")).unwrap()
    };
    let page = report("one");
    assert_eq!(page, report("two"));
    assert!(["Δ loss", "random choice", "Spearman"].iter().all(|text| page.contains(text)));

    // A decision by weights alone has no figures on layers, and the page says so.
    let options: PruneOptions = toml::from_str("experts = 12\ncriterion = 'aimer'").unwrap();
    convert(
        &[&options],
        &moe(),
        &text.path("weights"),
        &ConvertOptions { probe_tokens: 0, ..run_again() },
        &Quiet,
    )
    .unwrap();
    let page = std::fs::read_to_string(text.path("weights").join("report.html")).unwrap();
    assert!(
        page.contains("no figures by layer")
            && page.contains("this method doesn&#39;t look at data")
    );
}

#[test]
fn statistics_of_another_model_are_refused() {
    let text = Text::of_golden();
    let stats = text.observe("stats", |options| options.no_left_out = true);
    let copy = text.path("copy");
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(moe()).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    let mut options: PruneOptions = toml::from_str("experts = 12").unwrap();
    options.reduce.stats = Some(stats.clone());
    let error = |message: &str| {
        let error = convert(
            &[&options],
            &copy,
            &text.path("out"),
            &ConvertOptions { probe_tokens: 0, ..run_again() },
            &Quiet,
        )
        .unwrap_err();
        assert_eq!(error.kind(), Kind::Mismatch);
        assert!(error.to_string().contains(message), "{error}");
    };
    let map = copy.join("special_tokens_map.json");
    std::fs::write(&map, "{}").unwrap();
    error("another tokenizer");
    std::fs::remove_file(map).unwrap();
    std::fs::write(copy.join("tokenizer.json"), "{}").unwrap();
    error("another tokenizer");
    let weights = copy.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let (_, entries) = SourceFile::open(&weights).unwrap();
    let header = bytes.len() as u64 - entries.iter().map(|e| e.end).max().unwrap();
    bytes[header as usize] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    error("another model");
    assert!(!text.path("out").exists());
    // A ranking by leaving experts out needs statistics of what that does.
    options.criterion =
        toml::from_str::<PruneOptions>("criterion = \"leave-one-out\"").unwrap().criterion;
    let message = convert(
        &[&options],
        &moe(),
        &text.path("out"),
        &ConvertOptions { probe_tokens: 0, ..run_again() },
        &Quiet,
    )
    .unwrap_err()
    .to_string();
    assert!(message.contains("--no-left-out"), "{message}");
}

/// A copy of the checkpoint `model`; `edit` changes the bytes of tensors, given their names.
fn planted(text: &Text, model: &Path, edit: impl Fn(&str, &mut [u8])) -> PathBuf {
    let copy = text.path("planted");
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(model).unwrap().map(|entry| entry.unwrap().path()) {
        std::fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    let weights = copy.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let (_, entries) = SourceFile::open(&weights).unwrap();
    let data = bytes.len() - entries.iter().map(|e| e.end).max().unwrap() as usize;
    for entry in entries {
        edit(&entry.name, &mut bytes[data + entry.start as usize..data + entry.end as usize]);
    }
    std::fs::write(&weights, bytes).unwrap();
    copy
}

#[test]
fn the_guard_keeps_a_planted_super_expert_and_its_loss_would_hurt() {
    let text = Text::of_golden();
    let stats =
        StatisticsFile::open(&text.observe("stats", |options| options.no_left_out = true)).unwrap();
    let sums = by_domain(&stats, 1);
    let pooled = Sums::pooled(sums.iter().map(|sums| (sums, 1.0)));
    let tokens = pooled.get(Quantity::Tokens);
    let rarest = (0..24).min_by(|a, b| tokens[*a].total_cmp(&tokens[*b])).unwrap();
    let name = format!("model.layers.1.mlp.experts.{rarest}.down_proj.weight");
    // Outputs 2⁵ times as large: 5 is added to bf16's exponent.
    let model = planted(&text, &moe(), |tensor, bytes| {
        for value in bytes.as_chunks_mut::<2>().0.iter_mut().filter(|_| tensor == name) {
            *value = (u16::from_le_bytes(*value) + (5 << 7)).to_le_bytes();
        }
    });
    let pruned = |guard: &str| {
        let mut options = text.with_data(&format!(
            "criterion = \"frequency\"\nexperts = 18\nno-baseline = true\n{guard}"
        ));
        options.reduce.measuring.held_out.clone_from(&options.reduce.calibration.data);
        let receipt = convert(
            &[&options],
            &model,
            &text.path("out"),
            &ConvertOptions { probe_tokens: 0, ..run_again() },
            &Quiet,
        )
        .unwrap()
        .receipt;
        let trust: LayerTrust = receipt.layers[1].details().unwrap();
        let kl = receipt.held_out.unwrap().result.all.against.unwrap().kl;
        (trust.clusters.contains(&vec![rarest]), trust.super_experts, kl)
    };
    let (kept, found, with_guard) = pruned("");
    let (kept_without, found_without, without_guard) = pruned("no-super-expert-guard = true");
    assert!(kept && found == [rarest], "{found:?}");
    assert!(!kept_without && found_without.is_empty());
    assert!(with_guard < 0.8 * without_guard, "{with_guard} and {without_guard}");
}

/// Three kinds of tokens, top-2, and a router with two groups of four experts, one of which is
/// chosen for a token. Tokens 0 go to experts 0 and 1, tokens 1 to 4 and 5, tokens 2 to 5 and 6.
fn planted_groups(text: &Text) -> PathBuf {
    const CHOSEN: [[usize; 2]; 3] = [[0, 1], [4, 5], [5, 6]];
    const HIDDEN: usize = 24;
    let set = |bytes: &mut [u8], value: &dyn Fn(usize, usize) -> f32| {
        for (index, bytes) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *bytes = value(index / HIDDEN, index % HIDDEN).to_le_bytes();
        }
    };
    let model =
        planted(text, &golden("families/glm4_moe/base/model"), |tensor, bytes| match tensor {
            // The router's input depends on the token alone: attention, the dense layer and shared
            // experts give 0.
            "model.embed_tokens.weight" => {
                set(bytes, &|token, column| if token == column { 1.0 } else { 0.0 })
            }
            "model.layers.1.post_attention_layernorm.weight" => set(bytes, &|_, _| 1.0),
            "model.layers.1.mlp.gate.weight" => {
                set(bytes, &|expert, column| match CHOSEN.get(column) {
                    Some(chosen) if chosen.contains(&expert) => 1.0,
                    _ => -1.0,
                })
            }
            "model.layers.1.mlp.gate.e_score_correction_bias" => bytes.fill(0),
            name if [
                "o_proj.weight",
                "layers.0.mlp.down_proj.weight",
                "shared_experts.down_proj.weight",
            ]
            .iter()
            .any(|suffix| name.ends_with(suffix)) =>
            {
                bytes.fill(0);
            }
            _ => {}
        });
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in [("n_group", 2), ("topk_group", 1), ("num_experts_per_tok", 2)] {
        config[key] = value.into();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    model
}

#[test]
fn groups_are_kept_apart_and_mixing_them_would_hurt() {
    let ids = [vec![0; 30], vec![1; 35], vec![2; 35]].concat();
    let text = Text::new(&[("planted", &serde_json::json!([ids]))]);
    let model = planted_groups(&text);
    let pruned = |options: &mut PruneOptions| {
        options.reduce.measuring.held_out.clone_from(&text.calibration().data);
        let receipt = convert(
            &[options],
            &model,
            &text.path("out"),
            &ConvertOptions { probe_tokens: 0, ..run_again() },
            &Quiet,
        )
        .unwrap()
        .receipt;
        (
            receipt.layers[0].experts.iter().flat_map(NetworkEdit::experts).collect::<Vec<_>>(),
            receipt.held_out.unwrap().result.all.against.unwrap().kl,
        )
    };
    let mut options =
        text.with_data("criterion = \"frequency\"\nexperts = 4\nno-super-expert-guard = true");
    let (kept, apart) = pruned(&mut options);
    assert_eq!(kept, [0, 1, 4, 5]);
    // The four experts that are chosen most: two of the second group are moved to the first.
    let plan = text.path("plan.json");
    std::fs::write(&plan, r#"{"layers": {"1": {"experts": 8, "keep": [0, 4, 5, 6]}}}"#).unwrap();
    let mut options: PruneOptions = toml::from_str("").unwrap();
    options.plan = Some(plan);
    let (_, mixed) = pruned(&mut options);
    assert!(apart < 0.8 * mixed, "{apart} and {mixed}");
}

/// Counts how often each expert of each layer is chosen.
#[derive(Default)]
struct Choices(BTreeMap<usize, Vec<u64>>);

impl moe_forward::Observer for Choices {
    fn routed(
        &mut self,
        layer: usize,
        _: &Tensor,
        routing: &moe_math::routing::Routing,
    ) -> moe_checkpoint::Result<()> {
        self.0.insert(layer, routing.counts());
        Ok(())
    }
}

#[test]
fn layers_that_keep_fewer_experts_are_padded_with_ones_that_are_never_chosen() {
    let model = golden("families/deepseek_v3/mixed/model");
    let tokens = read_json("families/deepseek_v3/mixed/tokens.json");
    let text = Text::new(&[("random", &tokens)]);
    let stats = text.path("stats");
    let options: ObserveOptions = toml::from_str("").unwrap();
    let options = ObserveOptions { calibration: text.calibration(), ..options };
    observe(&model, &options, &stats, false, None, &Compute::cpu(), &Quiet).unwrap();
    let source = Model::open(&model).unwrap();
    let (_, first) = source.moes().next().unwrap();
    let (before, top_k) = (first.experts.len(), first.router.top_k);
    let mut options: PruneOptions =
        toml::from_str("equal-mass = true\ncriterion = \"reap\"").unwrap();
    options.reduce.stats = Some(stats);
    let mut seen_padding = false;
    for experts in top_k..before {
        options.reduce.experts = Some(experts);
        let output = text.path("out");
        let receipt = convert(
            &[&options],
            &model,
            &output,
            &ConvertOptions { probe_tokens: 0, ..run_again() },
            &Quiet,
        )
        .unwrap()
        .receipt;
        let kept: Vec<usize> =
            receipt.details::<LayerTrust>().iter().map(|(_, trust)| trust.clusters.len()).collect();
        assert_eq!(kept.iter().sum::<usize>(), experts * kept.len());
        let pruned = Model::open(&output).unwrap();
        let most = *kept.iter().max().unwrap();
        assert!(pruned.moes().all(|(_, moe)| moe.experts.len() == most));
        let batch = Batch::from_json(&golden("families/deepseek_v3/mixed/tokens.json")).unwrap();
        let mut choices = Choices::default();
        Sweep::new(&pruned, &batch, &Compute::cpu()).unwrap().run(&mut choices).unwrap();
        for (kept, counts) in kept.iter().zip(choices.0.values()) {
            assert!(counts[*kept..].iter().all(|count| *count == 0), "{counts:?}");
            seen_padding |= *kept < most;
        }
    }
    assert!(seen_padding, "some layer keeps fewer than another");
}
