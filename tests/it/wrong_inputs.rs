//! Tests options without effect, numbers that suit no model, and recipes that could only fail at a
//! later step: each is refused before any work, and following the remedy works.

use crate::common::{Sandbox, assert_none};

const MOE: &str = "golden/models/moe";
const DENSE: &str = "golden/models/dense";
const CODE: &str = "golden/text/code.calibration.txt";

/// A command line, words of its message, and a command line that follows the remedy.
type Case = (&'static str, &'static [&'static str], &'static str);

/// A user who gives an option expects an effect.
#[test]
fn options_without_an_effect_are_refused() {
    let quantize = "quantize {moe} -o out --dry-run";
    let upcycle = "upcycle golden/models/dense -o out --experts 8 --top-k 2 --dry-run";
    let cases: &[Case] = &[
        (
            "--scheme fp8-block --solver gptq",
            &["e4m3 is rounded to nearest", "leave --solver out"],
            "--scheme fp8-block",
        ),
        (
            "--scheme fp8 --device cpu --device-memory 8GiB",
            &["--device-memory bounds the memory of a GPU", "leave --device-memory out"],
            "--scheme fp8 --device cpu --memory-budget 8GiB",
        ),
        ("--scheme fp8 --group-size 64", &["--group-size is for integers"], "--scheme fp8"),
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
        (
            "--calibrate-on routed --shrinkage 3 --data {code}",
            &["--calibrate-on per-expert"],
            "--shrinkage 3 --data {code}",
        ),
        (
            "--pool-added-tokens 300 --data {code}",
            &["--pool"],
            "--pool-added-tokens 300 --pool {code} --data {code}",
        ),
        (
            "--profile free --data {code}",
            &["--target-bits"],
            "--profile free --target-bits 4.5 --data {code}",
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
        ("--solver rtn --seed 4", &["--seed", "draws nothing", "leave --seed out"], "--solver rtn"),
        (
            "--pool-added-tokens 0 --pool {code} --data {code}",
            &["--pool-added-tokens 0"],
            "--pool {code} --data {code}",
        ),
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
    let reduce: &[Case] = &[
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
    let observe: &[Case] = &[
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
    let heal: &[Case] = &[
        ("--held-out-tokens 99", &["no --held-out"], "--held-out-tokens 99 --held-out {code}"),
        ("--balance 0 --balance-over model", &["--balance-over"], "--balance-over model"),
        ("--steps 0 --learning-rate 1", &["--learning-rate says how steps are taken"], "--steps 0"),
    ];
    let heal_dense: &[Case] = &[
        ("--z-loss 0.1", &["--z-loss is about routers", "golden/models/dense"], ""),
        ("--capacity-factor 2", &["--capacity-factor is about routers"], "--balance 0"),
    ];
    let run: &[Case] = &[("--overwrite", &["--junit"], "--overwrite --junit j.xml")];
    let upcycles: &[Case] = &[
        (
            "--noise-fraction 0.5",
            &["--noise-fraction goes with --noise-std"],
            "--noise-fraction 0.5 --noise-std 0.01",
        ),
        (
            "--router prompts --prompts p.json --router-std 0.1",
            &["--router-std goes with --router normal"],
            "--router-std 0.1",
        ),
        ("--granularity 0", &["--granularity 0", "at least 1"], "--granularity 1"),
        (
            "--noise-std 0 --noise-fraction 0.5",
            &["--noise-std above 0"],
            "--noise-std 0.1 --noise-fraction 0.5",
        ),
        ("--noise-std 0.1 --noise-fraction 0", &["--noise-fraction 0 adds no noise"], ""),
        ("--init drop --drop-fraction 0", &["--drop-fraction 0"], "--init drop"),
        (
            "--init partition --data {code}",
            &["--partition-by activations"],
            "--init partition --partition-by activations --data {code} --data-tokens 256",
        ),
        ("--noise-std 1e38", &["--noise-std 1e38 is not", "0 to 1e6"], "--noise-std 0.02"),
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
    let sandbox = Sandbox::new();
    sandbox.write("p.json", "[]");
    sandbox.write("r.toml", step("inspect", MOE, ""));
    sandbox
        .run(&format!(
            "observe {MOE} -o stats --data {CODE} --data-tokens 256 --sequence-length 64"
        ))
        .succeeds();
    let dense = "heal golden/models/dense -o out --dry-run --train all --data {code}";
    assert_none(
        &[
            follow(&sandbox, quantize, cases),
            follow(&sandbox, upcycle, upcycles),
            follow(&sandbox, "prune {moe} -o out --dry-run --experts 12", reduce),
            follow(&sandbox, "observe {moe} -o sum", observe),
            follow(&sandbox, "heal {moe} -o out --dry-run --data {code}", heal),
            follow(&sandbox, dense, heal_dense),
            follow(&sandbox, "run r.toml", run),
        ]
        .concat(),
    );
}

/// The largest numbers that can be typed, and words that aren't numbers, are refused before any
/// work, or have no effect.
#[test]
fn numbers_beyond_all_bounds_are_no_panics() {
    let sandbox = Sandbox::new();
    let heal = format!("heal {MOE} -o out --data {CODE} --data-tokens 256 --dry-run");
    let distill = format!("distill {MOE} -o out --data {CODE} --data-tokens 256 --dry-run");
    let quantize = format!("quantize {MOE} -o out --data {CODE} --data-tokens 256 --dry-run");
    let merge = format!("merge {MOE} -o out --keep 0.5 --data {CODE} --data-tokens 256 --dry-run");
    const MOST: &str = "18446744073709551615";
    let mut problems = Vec::new();
    for (command, option, value, remedy) in [
        (&heal, "batch-tokens", MOST, "at most 1048576"),
        (&heal, "batch-tokens", "100000000000000", "at most 1048576"),
        (&heal, "accumulate", MOST, "at most 1048576"),
        (&heal, "steps", MOST, "at most 10000000"),
        (&heal, "sequence-length", MOST, "at most 8388608"),
        (&heal, "learning-rate", "nan", "a positive number, such as 1e-4"),
        (&heal, "learning-rate", "-1", "a positive number, such as 1e-4"),
        (&distill, "student-steps", MOST, "at most 10000000"),
        (&distill, "steps", MOST, "at most 10000000"),
        (&quantize, "shrinkage", "1e300", "from 0 to 1e6"),
        (&quantize, "expert-damping", "1e300", "from 0 to 1e6"),
        (&quantize, "top-up-below", "1e300", "from 0 to 1e6"),
    ] {
        problems.extend(sandbox.refuses(&format!("{command} --{option}={value}"), 2, &[remedy]));
    }
    assert_none(&problems);
    sandbox.run(&format!("{merge} --algorithm hc-smoe --all-experts-every {MOST}")).succeeds();
    sandbox.run(&format!("{heal} --memory-budget {MOST}")).succeeds();
}

/// [defaults] are for all steps of a command, so keys for reading text are ignored by steps without
/// text.
#[test]
fn defaults_of_text_pass_by_steps_without_text() {
    let sandbox = Sandbox::new();
    let keys = "data-tokens = 99\nsequence-length = 64\nheld-out-tokens = 99\n";
    let pruned = |more: &str| {
        step("prune", MOE, &format!("output = \"p\"\nexperts = 12\ncriterion = \"random\"\n{more}"))
    };
    sandbox.write("r.toml", format!("[defaults.prune]\n{keys}\n{}", pruned("")));
    sandbox.run("run r.toml --dry-run").succeeds();
    // A choice may leave a step without text.
    sandbox.write("r.toml", pruned(&format!("data = []\nheld-out = []\n{keys}")));
    sandbox.run("run r.toml --dry-run").succeeds();
    sandbox.write("r.toml", pruned(keys));
    assert_none(&Vec::from_iter(sandbox.refuses(
        "run r.toml --dry-run",
        2,
        &["line 9", "`held-out-tokens`"],
    )));
}

/// A default that is useless only for a step's model is ignored in that step, but a key of the step
/// itself is refused. A default that is useless in all steps is refused.
#[test]
fn defaults_pass_by_models_without_use_for_them() {
    let sandbox = Sandbox::new();
    let healed = |model: &str, output: &str, more: &str| {
        let data = format!("data = [{CODE:?}]\ntrain = [\"all\"]\nsteps = 1");
        step("heal", model, &format!("output = {output:?}\n{data}\n{more}"))
    };
    let upcycled = |target: &str, output: &str| {
        step(
            "upcycle",
            DENSE,
            &format!("output = {output:?}\nexperts = 4\ntop-k = 2\ntarget = {target:?}\n"),
        )
    };
    let (moe, dense) = (healed(MOE, "a", ""), healed(DENSE, "b", ""));
    for (defaults, uses, idle, own) in [
        ("[defaults.heal]\nbalance = 0.5\n", &moe, &dense, healed(DENSE, "b", "z-loss = 0.1")),
        (
            "[defaults.heal]\ncapacity-factor = 2.0\nz-loss = 0.1\n",
            &moe,
            &dense,
            healed(DENSE, "b", "balance = 0.5"),
        ),
        (
            "[defaults.upcycle]\nshared-experts = 2\n",
            &upcycled("qwen2_moe", "a"),
            &upcycled("mixtral", "b"),
            upcycled("mixtral", "b") + "shared-fraction = 0.25\n",
        ),
    ] {
        sandbox.write("r.toml", format!("{defaults}{uses}{idle}"));
        sandbox.run("run r.toml --dry-run").succeeds();
        for refused in [format!("{defaults}{idle}"), format!("{defaults}{uses}{own}")] {
            sandbox.write("r.toml", &refused);
            assert_none(&Vec::from_iter(sandbox.refuses(
                "run r.toml --dry-run",
                2,
                &["step ", "leave "],
            )));
        }
    }
}

/// The problems of `cases`, whose options are given to `command`.
fn follow(sandbox: &Sandbox, command: &str, cases: &[Case]) -> Vec<String> {
    let line = |options: &str| {
        format!("{command} {options}").replace("{moe}", MOE).replace("{code}", CODE)
    };
    let mut problems = Vec::new();
    for (options, complaints, followed) in cases {
        problems.extend(sandbox.refuses(&line(options), 2, complaints));
        let outcome = sandbox.run(&line(followed));
        problems
            .extend((outcome.code != 0).then(|| format!("{options}: its remedy fails: {outcome}")));
    }
    problems
}

#[test]
fn numbers_of_experts_have_remedies_that_work() {
    let sandbox = Sandbox::new();
    let cases: &[Case] = &[
        ("--experts 25", &["has 24 experts", "keep 4 to 24"], "--experts 24"),
        ("--experts 1", &["goes to 4 experts", "keep 4 experts or more"], "--experts 4"),
        ("--keep 0.001", &["keep 4 experts or more, of 24"], "--experts 4"),
        (
            "--experts 12 --divisible-by 1000",
            &["--divisible-by 1000", "--divisible-by 24 or less"],
            "--experts 12 --divisible-by 24",
        ),
        (
            "--experts 24 --divisible-by 16",
            &["--divisible-by 16", "--experts 16 or fewer"],
            "--experts 16 --divisible-by 16",
        ),
    ];
    assert_none(&follow(&sandbox, "prune {moe} -o out --criterion random --dry-run", cases));
}

#[test]
fn trainings_have_bounds() {
    let heals: &[Case] = &[
        (
            "--original-logits-per-token 5",
            &["--original-logits-per-token is for"],
            "--original {moe} --original-logits top-k --original-logits-per-token 5",
        ),
        (
            "--original {moe} --original-logits-per-token 5",
            &["--original-logits-per-token is for"],
            "--original {moe}",
        ),
    ];
    let sandbox = Sandbox::new();
    let cases: &[Case] = &[(
        "--batch-tokens 999999999999",
        &["--batch-tokens 999999999999", "at most 1048576"],
        "--batch-tokens 512",
    )];
    assert_none(&follow(&sandbox, "distill {moe} -o out --dry-run --data {code}", cases));
    assert_none(&follow(&sandbox, "heal {moe} -o out --dry-run --data {code}", heals));
    let fast = "distill {moe} -o out --dry-run --data {code} --relative-learning-rate 1e30"
        .replace("{moe}", MOE)
        .replace("{code}", CODE);
    assert!(
        sandbox
            .run(&fast)
            .succeeds()
            .stdout
            .contains("--relative-learning-rate 1e30 moves weights by many times their size")
    );
    let short = "distill {moe} -o out --data {code} --data-tokens 512"
        .replace("{moe}", MOE)
        .replace("{code}", CODE);
    let complaints =
        ["--down ridge fits 512 neurons to 2048 tokens or more", "give --down measured"];
    assert_none(&Vec::from_iter(sandbox.refuses(&short, 2, &complaints)));
}

#[test]
fn paths_of_the_wrong_kind_say_what_to_give() {
    let sandbox = Sandbox::new();
    sandbox.write("ids.json", "[[1, 2]]");
    sandbox.write("recipes/r.toml", "");
    std::fs::create_dir(sandbox.path(".l.partial-moe-convert")).unwrap();
    let logits = format!("logits {MOE} --tokens ids.json -o l");
    sandbox.write("file", "");
    let random = "--experts 12 --criterion random";
    let problems = [
        sandbox.refuses(
            &format!("prune {MOE} -o file {random}"),
            2,
            &["not a directory", "choose another name"],
        ),
        sandbox.refuses(
            &format!("prune {MOE} -o p {random} --held-out x.txt"),
            1,
            &["x.txt", "--held-out"],
        ),
        sandbox.refuses(
            &format!("eval {MOE} --data {CODE} --memory-budget 1"),
            2,
            &["raise --memory-budget"],
        ),
        sandbox.refuses(
            &format!("eval {MOE} --data golden/text"),
            1,
            &["this is a directory", "one of the files in it"],
        ),
        sandbox.refuses("run recipes", 1, &["recipes", "one of the files in it"]),
        sandbox.refuses("run recipes/r", 1, &["recipes/r", "give recipes/r.toml"]),
        sandbox.refuses(&logits, 1, &[".l.partial-moe-convert", "remove this"]),
        sandbox.refuses(
            "bench --data-tokens 1024 --passes prune,distill --scratch .",
            2,
            &["the benchmark of distill", "raise --data-tokens"],
        ),
        sandbox.refuses(
            "bench --like qwen3",
            2,
            &["no built-in model is called \"qwen3\"", "one of qwen3-30b-a3b"],
        ),
    ];
    assert_none(&problems.into_iter().flatten().collect::<Vec<_>>());
    std::fs::remove_dir(sandbox.path(".l.partial-moe-convert")).unwrap();
    sandbox.run(&logits).succeeds();
}

fn step(run: &str, model: &str, keys: &str) -> String {
    format!("[[step]]\nrun = \"{run}\"\nmodel = \"{model}\"\n{keys}\n")
}

fn prune(model: &str, output: &str, experts: usize) -> String {
    step(
        "prune",
        model,
        &format!("output = \"{output}\"\nexperts = {experts}\ncriterion = \"random\""),
    )
}

/// Errors of later steps come before the first step runs, and name the step.
#[test]
fn later_steps_are_checked_first() {
    let data = format!("data = [\"{CODE}\"]");
    let distill = step("distill", MOE, &format!("output = \"dense\"\n{data}"));
    let other = "golden/families/qwen3_moe/base/model";
    let cases: &[(String, &[&str])] = &[
        (
            prune(MOE, "a", 12) + &prune("a", "b", 8) + &prune("b", "c", 9),
            &["step 3 (prune)", "has 8 experts", "keep 4 to 8"],
        ),
        (
            distill.clone() + &prune("dense", "b", 8),
            &["step 2 (prune)", "no mixture of experts", "that distill writes"],
        ),
        (
            distill.clone() + &step("observe", "dense", &format!("output = \"s\"\n{data}")),
            &["step 2 (observe)", "no mixture of experts"],
        ),
        (
            distill
                + &step(
                    "eval",
                    "dense",
                    &format!("original = \"golden/families/llama/base/model\"\n{data}"),
                ),
            &["step 2 (eval)", "vocabularies of 2048 and 101"],
        ),
        (
            step("observe", MOE, &format!("output = \"s\"\n{data}"))
                + &step("prune", other, "output = \"p\"\nexperts = 4\nstats = \"s\""),
            &["step 2 (prune)", "another model, golden/models/moe"],
        ),
        (
            prune(MOE, "a", 12) + &prune(MOE, "b", 8) + "probe-tokens = 99999\n",
            &["line 13, step 2 (prune)", "`probe-tokens` 99999"],
        ),
        (
            prune(MOE, "a", 12)
                + &step("quantize", "a", "output = \"b\"\nscheme = \"fp8\"\nsolver = \"gptq\""),
            &["step 2 (quantize)", "leave `solver` out"],
        ),
    ];
    let mut problems = Vec::new();
    for (recipe, complaints) in cases {
        let sandbox = Sandbox::new();
        sandbox.write("r.toml", recipe);
        let code = if complaints[1].contains("vocabular") || complaints[1].contains("another model")
        {
            1
        } else {
            2
        };
        problems.extend(
            sandbox.refuses("run r.toml", code, complaints).map(|p| format!("{recipe}: {p}")),
        );
    }
    assert_none(&problems);
}

#[test]
fn values_of_recipes_have_remedies_of_their_own() {
    let prune = prune(MOE, "out", 12);
    let vars = "[vars]\nout = \"target\"\nseeds = [0]\n";
    let used = "[[step]]\neach.seed = \"${seeds}\"\n[[step.step]]\nrun = \"inspect\"\nmodel = \"golden/models/moe\"\nlabel = \"${out}${seed}\"\n";
    let cases: &[(String, &str, i32, &[&str])] = &[
        (
            prune.clone() + "seed = 99999999999999999999\n",
            "",
            2,
            &["line 7", "too large", "9223372036854775807"],
        ),
        (
            prune.clone() + "seed = 9223372036854775808\n",
            "",
            2,
            &["line 7", "too large", "9223372036854775807"],
        ),
        (step("eval", MOE, "data = \"x.txt\""), "", 2, &["in `data`", "write data = [\"x.txt\"]"]),
        (step("inspect", "~/moe", ""), "", 1, &["~/moe", "write the path out"]),
        (step("inspect", "golden/models/*", ""), "", 1, &["golden/models/*", "write the path out"]),
        (
            prune.replace("12", "\"${n}\""),
            "",
            2,
            &["line 5, step 1 (prune)", "no variable \"n\" here"],
        ),
        (format!("{vars}{used}"), "--set out=", 2, &["--set out", "empty"]),
        (format!("{vars}{used}"), "--set out=[1", 2, &["--set out", "without quotes or brackets"]),
        (
            format!("{vars}{used}"),
            "--set seeds=[1",
            2,
            &["--set seeds", "not TOML of type array", "'[0]'"],
        ),
    ];
    let mut problems = Vec::new();
    for (recipe, options, code, complaints) in cases {
        let sandbox = Sandbox::new();
        sandbox.write("r.toml", recipe);
        let line = format!("run r.toml {options}");
        problems.extend(
            sandbox.refuses(line.trim(), *code, complaints).map(|p| format!("{recipe}: {p}")),
        );
    }
    assert_none(&problems);
}

/// A million combinations are counted without making them, and some hundreds take no time.
#[test]
fn recipes_of_many_steps_are_checked_quickly() {
    let many = |n: usize| (0..n).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let block = |choices: &str, rest: &str| format!("[[step]]\n{choices}\n[[step.step]]\n{rest}\n");
    let list = many(100);
    let million = block(
        &format!("each.a = [{list}]\neach.b = [{list}]\neach.c = [{list}]"),
        "run = \"inspect\"\nmodel = \"golden/models/moe\"\nlabel = \"${a}${b}${c}\"",
    );
    let hundreds = block(
        &format!("each.seed = [{}]", many(250)),
        "run = \"prune\"\nmodel = \"golden/models/moe\"\noutput = \"p${seed}\"\nseed = \"${seed}\"\nkeep = 0.5\ncriterion = \"random\"\n\
         [[step.step]]\nrun = \"quantize\"\nmodel = \"p${seed}\"\noutput = \"q${seed}\"\nsolver = \"rtn\"\ngroup-size = 33",
    );
    let sandbox = Sandbox::new();
    sandbox.write("million.toml", million);
    sandbox.write("hundreds.toml", hundreds);
    let problems = [
        sandbox.refuses("run million.toml", 2, &["more than 10000 steps", "fewer choices"]),
        sandbox.refuses("run hundreds.toml", 2, &["step 2 (quantize; seed 0)", "groups of 33"]),
    ];
    assert_none(&problems.into_iter().flatten().collect::<Vec<_>>());
}

/// Scripts and recipes of earlier versions still run.
#[test]
fn the_old_name_of_no_baseline_is_known() {
    let sandbox = Sandbox::new();
    let random = format!(
        "prune {MOE} -o out --criterion random --keep 0.5 --held-out {CODE} --held-out-tokens 64"
    );
    sandbox.run(&format!("{random} --no-control --dry-run")).succeeds();
    let measured = format!("no-control = true\nheld-out = [{CODE:?}]\nheld-out-tokens = 64\n");
    sandbox.write("r.toml", prune(MOE, "out", 12) + &measured);
    sandbox.run("run r.toml --dry-run").succeeds();
}
