//! Peak memory is bounded by a layer, not by the model: four times the layers or experts change nothing.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::Sandbox;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const HIDDEN: usize = 512;
const WIDTH: usize = 2048;
const VOCAB: usize = 512;

/// A llama checkpoint with 8.4 MB of weights in each layer.
fn write_llama(dir: &Path, layers: usize) {
    std::fs::create_dir(dir).unwrap();
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    shapes.insert("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]);
    shapes.insert("model.norm.weight".into(), vec![HIDDEN]);
    for layer in 0..layers {
        let mut add =
            |name: &str, shape: &[usize]| shapes.insert(format!("model.layers.{layer}.{name}.weight"), shape.into());
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(norm, &[HIDDEN]);
        }
        for projection in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{projection}_proj"), &[HIDDEN, HIDDEN]);
        }
        add("mlp.gate_proj", &[WIDTH, HIDDEN]);
        add("mlp.up_proj", &[WIDTH, HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, WIDTH]);
    }
    // 2⁻⁵ in bf16 keeps every activation finite.
    let bytes = |shape: &[usize]| [0x00u8, 0x3d].repeat(shape.iter().product());
    let data: BTreeMap<_, _> = shapes.iter().map(|(name, shape)| (name, bytes(shape))).collect();
    let views = shapes.iter().map(|(n, shape)| (n, TensorView::new(Dtype::BF16, shape.clone(), &data[n]).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDTH, "num_hidden_layers": layers,
        "num_attention_heads": 4, "vocab_size": VOCAB, "tie_word_embeddings": true,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// The least VmHWM of two runs, in bytes: what threads happen to hold at the same time differs by a buffer or two.
fn peak(sandbox: &Sandbox, line: &str) -> f64 {
    f64::min(peak_of_run(sandbox, line), peak_of_run(sandbox, line))
}

/// VmHWM of a run, in bytes, as `--timings` prints it.
fn peak_of_run(sandbox: &Sandbox, line: &str) -> f64 {
    let outcome = sandbox.run(&format!("{line} --timings --quiet --threads 2"));
    assert_eq!(outcome.code, 0, "{line}: {}", outcome.stderr);
    let text = outcome.stderr.split_once("peak memory ").unwrap_or_else(|| panic!("{}", outcome.stderr)).1;
    let (number, unit) = text.trim().split_once(' ').unwrap();
    number.parse::<f64>().unwrap() * if unit == "MB" { 1e6 } else { panic!("{unit}") }
}

#[test]
#[cfg(target_os = "linux")]
fn peak_memory_does_not_grow_with_layers_or_experts() {
    let sandbox = Sandbox::new();
    // The smaller one is large enough to use every buffer of the writer.
    for layers in [5, 20] {
        write_llama(&sandbox.path(&format!("dense-{layers}")), layers);
    }
    let upcycle = |layers: usize, experts: usize, noise: f64| {
        let line = format!(
            "upcycle dense-{layers} -o moe-{layers}-{experts}-{noise} --experts {experts} --top-k 2 --overwrite"
        );
        peak(&sandbox, &format!("{line} --noise-std {noise}"))
    };
    let ids: Vec<usize> = (0..64).map(|i| (i * i + 5) % VOCAB).collect();
    sandbox.write("ids.jsonl", format!("{{\"input_ids\": {ids:?}}}\n").repeat(20));
    // Noise makes neurons differ, so that there is something to choose and to fit.
    let distill = |layers: usize| {
        sandbox
            .run(&format!("upcycle dense-{layers} -o noisy-{layers} --experts 4 --top-k 2 --noise-std 1e-3"))
            .succeeds();
        peak(
            &sandbox,
            &format!("distill noisy-{layers} -o distilled-{layers} --width 256 --steps 4 --data ids.jsonl --overwrite"),
        )
    };
    // Two passes in one sweep: neither may keep anything of a layer behind it.
    let together = |layers: usize| {
        let of = |pass: &str| format!("[[step.pass]]\n{pass}\ndata = [\"ids.jsonl\"]\n");
        let prune = of("run = \"prune\"\nexperts = 2\nno-super-expert-guard = true");
        let quantize = of("run = \"quantize\"\nscheme = \"w4a16\"\nmin-samples = 0.1");
        let step =
            format!("run = \"convert\"\nmodel = \"noisy-{layers}\"\noutput = \"both-{layers}\"\noverwrite = true");
        sandbox.write(&format!("both-{layers}.toml"), format!("[[step]]\n{step}\n{prune}{quantize}"));
        peak(&sandbox, &format!("run both-{layers}.toml --fresh"))
    };
    let measured = [
        ("distill, 4 × layers", distill(5), distill(20)),
        ("prune and quantize together, 4 × layers", together(5), together(20)),
        ("upcycle, 4 × layers", upcycle(5, 4, 0.0), upcycle(20, 4, 0.0)),
        // Noise makes every expert anew: none of them may stay.
        ("upcycle with noise, 4 × experts", upcycle(5, 4, 1e-3), upcycle(5, 16, 1e-3)),
        ("verify", peak(&sandbox, "verify moe-5-4-0"), peak(&sandbox, "verify moe-20-4-0")),
        ("inspect", peak(&sandbox, "inspect moe-5-4-0"), peak(&sandbox, "inspect moe-20-4-0")),
    ];
    for (what, small, large) in measured {
        println!("{what}: {:.1} MB, then {:.1} MB", small / 1e6, large / 1e6);
        // A tenth, and a megabyte for what the allocator happens to do in a process this small.
        assert!(large < 1.1 * small + 1e6, "{what}: {:.1} MB became {:.1} MB", small / 1e6, large / 1e6);
    }
}

/// Each step has batches of other sizes for its experts; nothing of a step may stay.
#[test]
#[cfg(target_os = "linux")]
fn peak_memory_does_not_grow_with_the_steps_of_a_training() {
    let sandbox = Sandbox::new();
    let heal = |steps: usize| {
        let text = "--data golden/text/english.calibration.txt --data-tokens 4096 --sequence-length 128";
        let how = format!("--train experts --steps {steps} --batch-tokens 256 {text}");
        peak_of_run(&sandbox, &format!("heal golden/models/moe -o healed-{steps} {how}"))
    };
    let [few, many] = [heal(20), heal(80)];
    println!("heal, 4 × steps: {:.1} MB, then {:.1} MB", few / 1e6, many / 1e6);
    // With all that is freed kept, it is 1.4.
    assert!(many < 1.2 * few, "{:.1} MB became {:.1} MB", few / 1e6, many / 1e6);
}
