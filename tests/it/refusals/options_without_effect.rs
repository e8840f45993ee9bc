//! Tests that options without an effect are refused, and that following the remedy works: a user who
//! gives an option expects an effect.

use super::{CODE, MOE, Remedy, remedies_work};
use crate::common::{Sandbox, step};

const QUANTIZE: &str = "quantize {moe} -o out --dry-run";

#[test]
fn quantize_takes_no_option_of_another_solver() {
    let cases: &[Remedy] = &[
        (
            "--scheme fp8-block --solver gptq",
            &["e4m3 is rounded to nearest", "leave --solver out"],
            "--scheme fp8-block",
        ),
        (
            "--scheme fp8-block --clip-search",
            &["--clip-search is for GPTQ", "leave --clip-search out"],
            "--scheme fp8-block",
        ),
        (
            "--solver rtn --damping 0.2",
            &["--damping is for GPTQ", "--solver gptq"],
            "--damping 0.2 --data {code}",
        ),
        ("--solver rtn --per-expert", &["--per-expert is for GPTQ"], "--solver rtn"),
        ("--solver rtn --top-up-below 1000", &["--top-up-below is for GPTQ"], "--solver rtn"),
        ("--solver rtn --act-order=false", &["--act-order is for GPTQ"], "--solver rtn"),
        ("--solver rtn --seed 4", &["--seed", "draws nothing", "leave --seed out"], "--solver rtn"),
    ];
    remedies_work(&Sandbox::new(), QUANTIZE, cases);
}

#[test]
fn quantize_takes_no_option_of_another_scheme_device_or_profile() {
    let cases: &[Remedy] = &[
        (
            "--scheme fp8 --device cpu --device-memory 8GiB",
            &["--device-memory bounds the memory of a GPU", "leave --device-memory out"],
            "--scheme fp8 --device cpu --memory-budget 8GiB",
        ),
        ("--scheme fp8 --group-size 64", &["--group-size is for integers"], "--scheme fp8"),
        (
            "--profile free --data {code}",
            &["--target-bits"],
            "--profile free --target-bits 4.5 --data {code}",
        ),
    ];
    remedies_work(&Sandbox::new(), QUANTIZE, cases);
}

#[test]
fn quantize_takes_no_option_of_another_calibration() {
    let cases: &[Remedy] = &[
        (
            "--calibrate-on routed --shrinkage 3 --data {code}",
            &["--calibrate-on per-expert"],
            "--shrinkage 3 --data {code}",
        ),
        (
            "--calibrate-on routed --top-up-below 0.2 --data {code}",
            &["--top-up-below"],
            "--top-up-below 0.2 --data {code}",
        ),
        (
            "--calibrate-on all-experts --hot-cap 2 --data {code}",
            &["--hot-cap"],
            "--calibrate-on routed --hot-cap 2 --data {code}",
        ),
        (
            "--calibrate-on all-experts --gate-power 2 --data {code}",
            &["--gate-power"],
            "--gate-power 2 --data {code}",
        ),
    ];
    remedies_work(&Sandbox::new(), QUANTIZE, cases);
}

#[test]
fn quantize_takes_no_option_about_a_pool_that_adds_nothing() {
    let cases: &[Remedy] = &[
        (
            "--pool-added-tokens 300 --data {code}",
            &["--pool"],
            "--pool-added-tokens 300 --pool {code} --data {code}",
        ),
        (
            "--pool-added-tokens 0 --pool {code} --data {code}",
            &["--pool-added-tokens 0"],
            "--pool {code} --data {code}",
        ),
    ];
    remedies_work(&Sandbox::new(), QUANTIZE, cases);
}

#[test]
fn quantize_takes_no_option_about_text_that_it_does_not_read() {
    let cases: &[Remedy] = &[
        ("--solver rtn --data-tokens 99", &["--data-tokens", "no --data to read"], "--solver rtn"),
        ("--scheme fp8 --pack", &["--pack", "no --data to read"], "--scheme fp8"),
        (
            "--scheme fp8 --sequence-length 64",
            &["--sequence-length"],
            "--scheme fp8 --sequence-length 64 --held-out {code}",
        ),
        (
            "--solver rtn --held-out-tokens 99",
            &["no --held-out"],
            "--solver rtn --held-out-tokens 99 --held-out {code}",
        ),
    ];
    remedies_work(&Sandbox::new(), QUANTIZE, cases);
}

/// A sandbox with statistics.
fn observed() -> Sandbox {
    let sandbox = Sandbox::new();
    let observe =
        format!("observe {MOE} -o stats --data {CODE} --data-tokens 256 --sequence-length 64");
    sandbox.run(&observe).succeeds();
    sandbox
}

#[test]
fn prune_takes_no_option_without_an_effect() {
    let cases: &[Remedy] = &[
        (
            "--criterion reap --stats stats --data-tokens 99",
            &["--data-tokens", "no --data to read"],
            "--criterion reap --stats stats",
        ),
        (
            "--criterion reap --stats stats --mask-special",
            &["--mask-special"],
            "--criterion reap --stats stats",
        ),
        ("--criterion aimer --sequence-length 64", &["--sequence-length"], "--criterion aimer"),
        ("--criterion random --held-out-tokens 99", &["no --held-out"], "--criterion random"),
        (
            "--criterion random --no-baseline",
            &["--no-baseline", "--held-out"],
            "--criterion random",
        ),
    ];
    remedies_work(&observed(), "prune {moe} -o out --dry-run --experts 12", cases);
}

#[test]
fn observe_takes_no_option_without_an_effect() {
    let cases: &[Remedy] = &[
        (
            "--add stats --data-tokens 99",
            &["--data-tokens", "no --data to read"],
            "--add stats --overwrite",
        ),
        ("--add stats --no-left-out", &["--no-left-out", "finished"], "--add stats --overwrite"),
        (
            "--add stats --all-experts-every 2",
            &["--all-experts-every", "finished"],
            "--add stats --overwrite",
        ),
    ];
    remedies_work(&observed(), "observe {moe} -o sum", cases);
}

#[test]
fn heal_takes_no_option_without_an_effect() {
    let sandbox = Sandbox::new();
    let cases: &[Remedy] = &[
        ("--held-out-tokens 99", &["no --held-out"], "--held-out-tokens 99 --held-out {code}"),
        ("--balance 0 --balance-over model", &["--balance-over"], "--balance-over model"),
        ("--steps 0 --learning-rate 1", &["--learning-rate says how steps are taken"], "--steps 0"),
    ];
    remedies_work(&sandbox, "heal {moe} -o out --dry-run --data {code}", cases);
    let of_dense: &[Remedy] = &[
        ("--z-loss 0.1", &["--z-loss is about routers", "golden/models/dense"], ""),
        ("--capacity-factor 2", &["--capacity-factor is about routers"], "--balance 0"),
    ];
    let dense = "heal golden/models/dense -o out --dry-run --train all --data {code}";
    remedies_work(&sandbox, dense, of_dense);
}

const UPCYCLE: &str = "upcycle golden/models/dense -o out --experts 8 --top-k 2 --dry-run";

#[test]
fn upcycle_takes_no_noise_without_an_effect() {
    let cases: &[Remedy] = &[
        (
            "--noise-fraction 0.5",
            &["--noise-fraction goes with --noise-std"],
            "--noise-fraction 0.5 --noise-std 0.01",
        ),
        (
            "--noise-std 0 --noise-fraction 0.5",
            &["--noise-std above 0"],
            "--noise-std 0.1 --noise-fraction 0.5",
        ),
        ("--noise-std 0.1 --noise-fraction 0", &["--noise-fraction 0 adds no noise"], ""),
        ("--noise-std 1e38", &["--noise-std 1e38 is not", "0 to 1e6"], "--noise-std 0.02"),
    ];
    remedies_work(&Sandbox::new(), UPCYCLE, cases);
}

#[test]
fn upcycle_takes_no_option_of_another_initialization() {
    let cases: &[Remedy] = &[
        ("--granularity 0", &["--granularity 0", "at least 1"], "--granularity 1"),
        ("--init drop --drop-fraction 0", &["--drop-fraction 0"], "--init drop"),
        (
            "--init partition --data {code}",
            &["--partition-by activations"],
            "--init partition --partition-by activations --data {code} --data-tokens 256",
        ),
    ];
    remedies_work(&Sandbox::new(), UPCYCLE, cases);
}

#[test]
fn upcycle_takes_no_option_of_another_router() {
    let sandbox = Sandbox::new();
    sandbox.write("p.json", "[]");
    let cases: &[Remedy] = &[
        (
            "--router prompts --prompts p.json --router-std 0.1",
            &["--router-std goes with --router normal"],
            "--router-std 0.1",
        ),
        (
            "--data-tokens 99",
            &["--data-tokens", "--router kmeans"],
            "--data-tokens 99 --router kmeans --data {code}",
        ),
        (
            "--sequence-length 64",
            &["--sequence-length"],
            "--sequence-length 64 --router kmeans --data {code}",
        ),
    ];
    remedies_work(&sandbox, UPCYCLE, cases);
}

#[test]
fn run_takes_no_option_without_an_effect() {
    let sandbox = Sandbox::new();
    sandbox.write("r.toml", step("inspect", MOE, ""));
    let cases: &[Remedy] = &[("--overwrite", &["--junit"], "--overwrite --junit j.xml")];
    remedies_work(&sandbox, "run r.toml", cases);
}
