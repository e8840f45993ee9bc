//! Tests that peak memory is bounded by a layer, not by the model: four times the layers or experts
//! take no more.
//!
//! The test compares live bytes, which are the same on any machine. Resident memory has a bound
//! that follows from these, however the allocator and the system's pages behave.
#![cfg(target_os = "linux")]

use std::path::Path;

use crate::common::Sandbox;
use crate::common::made::Llama;
use crate::common::passes::assert_has_every_pass;

const VOCAB: usize = 512;

/// Writes a llama checkpoint with 2.1 MB of weights in each layer.
fn write_llama(dir: &Path, layers: usize) {
    // 2⁻⁵ keeps every activation finite.
    Llama { layers, hidden: 256, width: 1024, vocab: VOCAB, heads: 4, head_dim: 64 }
        .write(dir, || 0x3d00);
}

/// The peak memory of a run, in bytes.
#[derive(Debug, Clone, Copy)]
struct Peak {
    /// Bytes that it had allocated and not yet freed.
    live: f64,
    /// VmHWM: its peak resident memory.
    resident: f64,
}

impl Peak {
    /// The peak of a run under `settings` of the allocator.
    fn of(sandbox: &Sandbox, line: &str, settings: &str) -> Self {
        let run = format!(
            "_RJEM_MALLOC_CONF={settings} moe-convert {line} --timings --quiet --threads 2"
        );
        let outcome = sandbox.shell(&run);
        assert_eq!(outcome.code, 0, "{line}: {}", outcome.stderr);
        let bytes = |name: &str| {
            let text =
                outcome.stderr.split_once(name).unwrap_or_else(|| panic!("{}", outcome.stderr)).1;
            let mut words = text.split_whitespace();
            let number: f64 = words.next().unwrap().parse().unwrap();
            number
                * [("kB", 1e3), ("MB", 1e6)]
                    .iter()
                    .find(|(unit, _)| words.clone().next() == Some(unit))
                    .unwrap()
                    .1
        };
        let peak = Self { live: bytes("peak live memory "), resident: bytes("peak memory ") };
        assert!(peak.resident < bound(peak.live), "{line}, {settings:?}: {peak:?}");
        peak
    }
}

/// The limit on resident memory of a run with `live` bytes: its promise, which may be somewhat more
/// than it needs, huge pages at the ends of its threads' memory, and memory that was handed out
/// since resident memory was checked.
fn bound(live: f64) -> f64 {
    1.4 * live + 120e6
}

/// A sandbox with dense models of 5 and 20 layers, and token ids. The smaller one is large enough
/// to use every buffer of the writer.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    for layers in [5, 20] {
        write_llama(&sandbox.path(&format!("dense-{layers}")), layers);
    }
    let ids: Vec<usize> = (0..64).map(|i| (i * i + 5) % VOCAB).collect();
    sandbox.write("ids.jsonl", format!("{{\"input_ids\": {ids:?}}}\n").repeat(20));
    sandbox
}

fn peak(sandbox: &Sandbox, line: &str) -> f64 {
    Peak::of(sandbox, line, "").live
}

/// The peak of upcycling to the model "moe-LAYERS-EXPERTS-NOISE".
fn upcycle(sandbox: &Sandbox, [layers, experts]: [usize; 2], noise: f64) -> f64 {
    let line = format!(
        "upcycle dense-{layers} -o moe-{layers}-{experts}-{noise} --experts {experts} --top-k 2 --overwrite"
    );
    peak(sandbox, &format!("{line} --noise-std {noise}"))
}

/// Makes the model "noisy-LAYERS", whose neurons differ, so that selecting and fitting have work to
/// do.
fn make_noisy(sandbox: &Sandbox, layers: usize) {
    let line =
        format!("upcycle dense-{layers} -o noisy-{layers} --experts 4 --top-k 2 --noise-std 1e-3");
    sandbox.run(&line).succeeds();
}

/// Passes that run alone on "noisy-LAYERS", and their options.
const ALONE: [(&str, &str); 2] =
    [("distill", "--width 256 --steps 4"), ("merge", "--experts 2 --no-super-expert-guard")];

/// Passes that run in one sweep on "noisy-LAYERS", and their keys.
const TOGETHER: [(&str, &str); 2] = [
    ("prune", "experts = 2\nno-super-expert-guard = true"),
    ("quantize", "scheme = \"w4a16\"\ntop-up-below = 0.1"),
];

#[test]
fn every_pass_is_measured() {
    let passes = ALONE.iter().chain(&TOGETHER).map(|(pass, _)| *pass);
    // Upcycling has a test of its own. So has healing, whose peak grows with what is trained.
    assert_has_every_pass("tests/it/memory.rs", passes.chain(["upcycle", "heal"]));
}

fn alone(sandbox: &Sandbox, layers: usize, pass: &str, options: &str) -> f64 {
    let line =
        format!("{pass} noisy-{layers} -o {pass}-{layers} {options} --data ids.jsonl --overwrite");
    peak(sandbox, &line)
}

/// The peak of two passes in one sweep: neither may keep anything of a layer that is done.
fn together(sandbox: &Sandbox, layers: usize, settings: &str) -> f64 {
    let passes = TOGETHER.map(|(pass, keys)| {
        format!("[[step.pass]]\nrun = \"{pass}\"\n{keys}\ndata = [\"ids.jsonl\"]\n")
    });
    let step = format!(
        "run = \"convert\"\nmodel = \"noisy-{layers}\"\noutput = \"both-{layers}\"\noverwrite = true"
    );
    let recipe = format!("both-{layers}.toml");
    sandbox.write(&recipe, format!("[[step]]\n{step}\n{}", passes.concat()));
    Peak::of(sandbox, &format!("run {recipe} --fresh"), settings).live
}

/// The limit is a tenth more, since the tokens of an expert differ by layer; plus a megabyte for
/// names and shapes of 15 layers, and one for the buffer of a second thread, which a small model
/// may not need.
fn assert_bounded(what: &str, small: f64, large: f64) {
    println!("{what}: {:.1} MB, then {:.1} MB", small / 1e6, large / 1e6);
    assert!(
        large < 1.1 * small + 2e6,
        "{what}: {:.1} MB became {:.1} MB",
        small / 1e6,
        large / 1e6
    );
}

#[test]
fn peak_memory_of_passes_does_not_grow_with_layers() {
    let sandbox = &sandbox();
    for layers in [5, 20] {
        make_noisy(sandbox, layers);
    }
    for (pass, options) in ALONE {
        let of = |layers| alone(sandbox, layers, pass, options);
        assert_bounded(&format!("{pass}, 4 × layers"), of(5), of(20));
    }
    for (what, settings) in [
        ("prune and quantize together, 4 × layers", ""),
        ("the same without huge pages", "thp:never"),
        ("the same with two heaps", "narenas:2,thp:default"),
    ] {
        assert_bounded(what, together(sandbox, 5, settings), together(sandbox, 20, settings));
    }
}

#[test]
fn peak_memory_of_upcycling_and_looking_does_not_grow_with_layers_or_experts() {
    let sandbox = &sandbox();
    let of = |sizes, noise| upcycle(sandbox, sizes, noise);
    assert_bounded("upcycle, 4 × layers", of([5, 4], 0.0), of([20, 4], 0.0));
    // Noise makes new weights for every expert, and none of them may stay in memory.
    assert_bounded("upcycle with noise, 4 × experts", of([5, 4], 1e-3), of([5, 16], 1e-3));
    for what in ["verify", "inspect"] {
        let of = |layers| peak(sandbox, &format!("{what} moe-{layers}-4-0"));
        assert_bounded(what, of(5), of(20));
    }
}

/// The batches of experts have other sizes in each step; nothing of a step may stay in memory.
#[test]
fn peak_memory_does_not_grow_with_the_steps_of_a_training() {
    let sandbox = Sandbox::new();
    let heal = |steps: usize| {
        let text =
            "--data golden/text/english.calibration.txt --data-tokens 4096 --sequence-length 128";
        let how = format!("--train experts --steps {steps} --batch-tokens 256 {text}");
        Peak::of(&sandbox, &format!("heal golden/models/moe -o healed-{steps} {how}"), "")
    };
    let [few, many] = [heal(20), heal(80)];
    println!("heal, 4 × steps: {few:?}, then {many:?}");
    assert!(many.live < 1.1 * few.live, "{few:?} became {many:?}");
}
