//! Options and commands of other tools that mean something else here, or don't exist, and what to
//! give instead. Names that mean the same are accepted (`moe_pipeline::spelling`).

use clap::Command;
use moe_pipeline::spelling::{folded, has};

/// Options of other tools, and what to give instead. A row is used where the command has all
/// options that the row names, and a positional MODEL or OUT if it names one. The first such row
/// counts.
const OPTIONS: &[(&str, &str)] = &[
    // Numbers of experts: mergekit, Megatron-LM, transformers' configs, REAP and its followers.
    (
        "n-experts expert-count num-moe-experts experts-to-keep n-experts-to-keep num-experts-to-keep keep-experts \
         target-experts num-clusters n-clusters",
        "give --experts N, the experts of each layer of the result",
    ),
    (
        "experts-per-tok n-experts-per-tok router-topk num-selected num-selected-experts",
        "give --top-k K",
    ),
    (
        "compression-ratio pruning-ratio prune-ratio sparsity sparsity-ratio drop-ratio merge-ratio ratio",
        "give --keep SHARE, the share of experts that stays and not the one that goes: 75% lets a quarter go",
    ),
    (
        "experts-to-prune n-experts-to-prune num-experts-to-prune prune-experts drop-experts",
        "give --experts N, the number that stays and not the one that goes, or --keep SHARE",
    ),
    (
        "preserve-super-experts perserve-super-experts",
        "leave it out: super experts stay unless --no-super-expert-guard",
    ),
    (
        "gate-mode router-init gate-init",
        "give --router: prompts for mergekit's hidden, cheap-embed, or normal for random",
    ),
    ("positive-prompts negative-prompts", "give --prompts PROMPTS.json with --router prompts"),
    ("noise noise-std-dev init-noise expert-noise", "give --noise-std STD"),
    (
        "prune-method pruning-method metric score ranking importance strategy",
        "give --criterion, what experts are ranked by",
    ),
    ("merge-method merging-method strategy", "give --algorithm, which experts become one, and how"),
    // Quantization: llm-compressor, GPTQModel, AutoAWQ, optimum, ModelOpt, llama.cpp.
    (
        "w-bits nbits n-bits bit weight-bits w",
        "give --scheme w4a16 for 4 bits (w8a16, w3a16, w2a16), or --target-bits for a mean of several",
    ),
    (
        "quant-method quantization quantization-format qformat quant-type q-type ftype quant quant-scheme dtype-weights \
         load-in-4bit load-in-8bit int4 int8 fp8 awq gptq",
        "give --scheme w4a16, or another of its words; --solver says how codes are chosen",
    ),
    ("w-group-size block-size-weights", "give --group-size COLUMNS"),
    ("sym symmetric no-zero-point", "leave it out: groups have no zero point unless --asymmetric"),
    ("zero-point zero-points", "give --asymmetric"),
    ("damp dampening percent-damp", "give --damping SHARE"),
    (
        "desc-act actorder act-order-mode",
        "leave it out: columns are solved in the order of their energy (--act-order), but groups are fixed before, so \
         that files need no order",
    ),
    ("mse search-scale auto-scale clip auto-clip", "give --clip-search"),
    (
        "true-sequential sequential sequential-targets",
        "leave it out: each layer is calibrated on what the quantized ones give",
    ),
    (
        "ignore ignore-layers exclude exclude-modules modules-to-not-convert skip skip-layers skip-modules ignore-patterns \
         leave-output-tensor targets quantize-modules",
        "leave it out: routed experts alone are quantized; --include names what is quantized besides them",
    ),
    ("imatrix", "give --data TEXT: experts are calibrated in the same run"),
    // Text.
    (
        "held-out-data eval-data eval-dataset eval-file validation-file validation-data val-data test-data",
        "give --held-out TEXT",
    ),
    (
        "calib-data calib-dataset calib-file calibration-data calibration-dataset calibration-file calib dataset datasets \
         dataset-name dataset-path data-path data-file train-data train-file train text texts input-file corpus",
        "give --data FILE: a text file, or JSON Lines; nothing is downloaded by name",
    ),
    (
        "num-samples n-samples nsamples num-calibration-samples n-calib num-calib calib-size calib-samples max-samples \
         samples-per-category limit max-calibration-samples",
        "give --data-tokens N, which counts tokens: so many samples times --sequence-length",
    ),
    ("max-tokens max-data-tokens num-tokens n-tokens chunks", "give --data-tokens N"),
    (
        "max-length context-length ctx n-ctx block-size model-max-length max-model-len cutoff-len max-calib-seq-length",
        "give --sequence-length TOKENS",
    ),
    ("packing", "give --pack"),
    // Training: transformers' Trainer, TRL, Axolotl, Megatron-LM.
    (
        "lr learning-rate-init peak-lr",
        "give --relative-learning-rate RATE, which is a share of the size of each matrix",
    ),
    ("learning-rate-init peak-lr", "give --learning-rate RATE"),
    (
        "num-steps train-steps iters iterations num-iterations epochs num-epochs num-train-epochs max-steps train-iters",
        "give --steps N; a step takes --batch-tokens tokens",
    ),
    (
        "batch-size bs micro-batch-size global-batch-size per-device-train-batch-size train-batch-size",
        "give --batch-tokens N: so many sequences times --sequence-length",
    ),
    ("grad-accum gradient-accumulation accumulation-steps", "give --accumulate N"),
    (
        "warmup-ratio lr-warmup-steps warmup-iters",
        "give --warmup STEPS, a number of steps and not a share of them",
    ),
    ("grad-clip gradient-clipping gradient-clip-val", "give --clip NORM"),
    (
        "save-steps save-interval save-every logging-steps",
        "give --eval-every STEPS: what a run goes on from is saved whenever it measures",
    ),
    ("early-stopping", "give --patience N"),
    ("wd", "give --weight-decay DECAY"),
    ("bf16 fp16 mixed-precision amp", "give --precision bf16"),
    (
        "teacher teacher-path distill-from base-model reference-model",
        "give --original ORIGINAL, the model before it was pruned, merged or upcycled",
    ),
    ("kd-weight distill-weight alpha kl-weight", "give --original-weight WEIGHT"),
    (
        "aux-loss-coef router-aux-loss-coef moe-aux-loss-coeff load-balancing-loss balance-loss",
        "give --balance WEIGHT, of E Σ f P, which other tools scale otherwise",
    ),
    ("router-z-loss router-z-loss-coef moe-z-loss-coeff", "give --z-loss WEIGHT"),
    ("moe-expert-capacity-factor expert-capacity capacity", "give --capacity-factor FACTOR"),
    (
        "trainable train-modules unfreeze train-layers parts lora lora-r",
        "give --train router, experts, or other parts",
    ),
    ("resume-from-checkpoint resume-from continue", "give --resume"),
    (
        "hidden-dim ffn-dim intermediate-size ffn-hidden-size dim target-width",
        "give --width NEURONS",
    ),
    ("target-architecture architecture arch target-family student-family", "give --target FAMILY"),
    // Measuring.
    (
        "baseline reference base-model reference-model ref compare compare-to kl-divergence-base",
        "give --original ORIGINAL, a checkpoint",
    ),
    ("held-out", "give --data TEXT: all of it is measured or observed"),
    ("tasks task", "give --data TEXT: loss and --original are measured on it; tasks are lm-eval's"),
    ("threshold max-kld kl-threshold", "give --max-kl NATS"),
    // Options that all tools have.
    (
        "outdir output-path out-path out-folder save-path save save-to export-dir export-path \
         dest destination output-model out-model output-file outfile o",
        "give -o OUT",
    ),
    (
        "model model-path model-dir model-name model-id model-name-or-path pretrained-model pretrained checkpoint \
         checkpoint-dir base-model hf-path input input-dir input-path source src from-model",
        "give the directory by itself: moe-convert COMMAND MODEL",
    ),
    (
        "force force-overwrite exist-ok allow-existing clobber replace",
        "give --overwrite, which replaces results of moe-convert alone",
    ),
    ("plan-only check-only simulate no-write", "give --dry-run"),
    (
        "gpu gpus cuda use-cuda cuda-device device-id device-map accelerator",
        "give --device cuda:0, or auto",
    ),
    ("cpu cpu-only no-cuda no-gpu", "give --device cpu"),
    ("nthreads workers num-workers jobs n-jobs nproc cores", "give --threads N"),
    (
        "max-memory memory mem ram max-ram memory-limit cpu-memory low-memory low-cpu-mem-usage lazy-unpickle \
         max-cpu-memory",
        "give --memory-budget SIZE, such as 8GiB",
    ),
    (
        "gpu-memory max-gpu-memory vram gpu-memory-utilization",
        "give --device-memory SIZE, such as 20GiB",
    ),
    (
        "shard-size out-shard-size split-max-size max-shard",
        "give --max-shard-size SIZE in bytes, such as 5GB",
    ),
    (
        "torch-dtype compute-dtype compute-type",
        "give --dtype f32 or bf16: what products are computed in",
    ),
    ("manual-seed", "give --seed SEED"),
    (
        "verbose debug log-level progress",
        "leave it out: progress is shown unless --quiet; --timings says what took time",
    ),
    ("silent no-progress disable-tqdm", "give --quiet"),
    ("trust-remote-code", "leave it out: a model's own code is carried along and never run"),
    (
        "safe-serialization safetensors use-safetensors",
        "leave it out: weights are always written as safetensors",
    ),
    (
        "copy-tokenizer tokenizer tokenizer-path save-tokenizer",
        "leave it out: the model's own tokenizer is used, and carried along",
    ),
];

/// Commands of other tools.
const COMMANDS: &[(&str, &str)] = &[
    ("evaluate ppl perplexity benchmark-quality compare test kl", "eval"),
    ("train finetune fine-tune sft retrain recover", "heal"),
    ("calibrate calibration collect-stats stats statistics imatrix profile", "observe"),
    ("info show describe ls list dump", "inspect"),
    ("check validate lint", "verify"),
    ("densify dense moe-to-dense", "distill"),
    ("moe dense-to-moe sparsify mergekit-moe moefy", "upcycle"),
    ("compress quant gptq awq", "quantize"),
    ("cluster", "merge"),
    ("recipe apply", "run"),
];

/// What to give to `command` instead of `option`, such as `--gate-mode`, or which of `others` has
/// that option; None if neither is known.
pub fn instead<'c>(
    option: &str,
    command: &Command,
    others: impl IntoIterator<Item = &'c Command>,
) -> Option<String> {
    let bare = option.trim_start_matches('-');
    let name = folded(bare.split('=').next().unwrap_or(bare));
    row(&name, command).or_else(|| {
        let owners: Vec<&str> =
            others.into_iter().filter(|other| has(other, &name)).map(Command::get_name).collect();
        (!owners.is_empty())
            .then(|| format!("--{name} is an option of {}; leave it out here", owners.join(", ")))
    })
}

/// The advice for `command` on another tool's option `name`; None if the option isn't known.
pub fn row(name: &str, command: &Command) -> Option<String> {
    let name = folded(name);
    let (_, said) = OPTIONS.iter().find(|(names, said)| {
        names.split_whitespace().any(|known| known == name) && fits(said, command)
    })?;
    Some(said.replace("COMMAND", command.get_name()))
}

/// As [`instead`], in the words of a recipe for the unknown `key`. None where the answer is the
/// model or the output, which have keys of their own.
pub fn key_instead<'c>(
    key: &str,
    command: &Command,
    others: impl IntoIterator<Item = &'c Command>,
) -> Option<String> {
    let said = instead(key, command, others)?;
    let is_positional = said.contains("moe-convert ") || said.contains("-o OUT");
    (!is_positional).then(|| said.replace("--", ""))
}

/// The command here for another tool's `command`.
pub fn command_instead(command: &str) -> Option<&'static str> {
    let name = folded(command);
    COMMANDS
        .iter()
        .find(|(names, _)| names.split_whitespace().any(|known| known == name))
        .map(|(_, here)| *here)
}

/// Whether `command` has all that `said` names.
fn fits(said: &str, command: &Command) -> bool {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let options = said
        .split("--")
        .skip(1)
        .map(|rest| rest.split(|c| !is_of_name(c)).next().unwrap_or_default());
    let takes = |word: &str, id: &str| {
        !said.contains(word) || command.get_arguments().any(|arg| arg.get_id() == id)
    };
    options.filter(|name| !name.is_empty()).all(|name| has(command, name.trim_end_matches('-')))
        && takes("-o OUT", "output")
        && takes(" MODEL", "model")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cli::program;

    /// Commands, options that peers have there, and a word of what is said instead.
    const PEERS: [(&str, &str, &str); 20] = [
        ("upcycle", "--gate-mode", "--router"),
        ("prune", "--compression-ratio", "--keep SHARE"),
        ("prune", "--prune-method", "--criterion"),
        ("merge", "--merge_method", "--algorithm"),
        ("prune", "--num_samples", "--data-tokens N"),
        ("eval", "--num-samples", "--data-tokens N"),
        ("eval", "--max-length", "--sequence-length"),
        ("eval", "--tasks", "lm-eval"),
        ("quantize", "--nbits=4", "--scheme w4a16"),
        ("quantize", "--ignore", "routed experts alone"),
        ("quantize", "--calib-dataset", "--data FILE"),
        ("heal", "--epochs", "--steps N"),
        ("heal", "--per_device_train_batch_size", "--batch-tokens"),
        ("heal", "--reference-model", "--original ORIGINAL"),
        ("distill", "--lr", "--relative-learning-rate"),
        ("inspect", "--model", "moe-convert inspect MODEL"),
        ("verify", "--trust-remote-code", "never run"),
        ("merge", "--save-path", "-o OUT"),
        ("merge", "--force", "--overwrite"),
        ("prune", "--scheme", "an option of quantize"),
    ];

    #[test]
    fn peers_options_have_their_names_here() {
        let program = program();
        for (command, option, said) in PEERS {
            let found = instead(
                option,
                program.find_subcommand(command).unwrap(),
                program.get_subcommands(),
            );
            assert!(
                found.as_ref().is_some_and(|found| found.contains(said)),
                "{command} {option}: {found:?}"
            );
        }
        assert_eq!(command_instead("evaluate"), Some("eval"));
    }

    #[test]
    fn nothing_is_proposed_for_what_peers_do_not_have() {
        let program = program();
        assert_eq!(
            instead(
                "--nonsense",
                program.find_subcommand("prune").unwrap(),
                program.get_subcommands()
            ),
            None
        );
        assert_eq!(command_instead("nonsense"), None);
    }

    /// Each name in a row is unknown to at least one command that has all options which the row's
    /// advice names.
    #[test]
    fn every_row_is_of_use_to_a_command() {
        let program = program();
        for (names, said) in OPTIONS {
            let fitting: Vec<_> =
                program.get_subcommands().filter(|command| fits(said, command)).collect();
            for name in names.split_whitespace() {
                let is_refused = |command: &&&clap::Command| {
                    !has(command, name) && moe_pipeline::spelling::option(name, command).is_none()
                };
                assert!(fitting.iter().any(|c| is_refused(&c)), "{name}: {said}");
                assert_eq!(name, folded(name));
            }
        }
        let commands: BTreeSet<&str> = program.get_subcommands().map(Command::get_name).collect();
        assert!(COMMANDS.iter().all(|(_, here)| commands.contains(here)));
    }
}
