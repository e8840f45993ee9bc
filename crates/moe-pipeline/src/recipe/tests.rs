//! Tests on recipes given as text.

use super::*;

const RECIPE: &str = r#"
    [vars]
    out = "target/x"
    [[step]]
    run = "upcycle"
    model = "dense"
    output = "${out}/moe"
    experts = 8
    top-k = 2
    [[step]]
    run = "verify"
    model = "${out}/moe"
"#;

fn message(text: &str, overrides: &[(String, String)]) -> String {
    Recipe::parse(text, overrides, "x").unwrap_err().to_string()
}

/// The options of the only pass of `step`.
fn options(step: &Step) -> serde_json::Value {
    let StepKind::Convert { passes, .. } = &step.kind else { panic!("no pass: {step:?}") };
    let [pass] = passes.as_slice() else { panic!("several passes: {step:?}") };
    pass.options()
}

#[test]
fn variables_are_replaced_and_overridden() {
    let of = |overrides: &[(String, String)]| {
        Recipe::parse(RECIPE, overrides, "x").unwrap().steps[1].model.clone()
    };
    assert_eq!(of(&[]), Path::new("target/x/moe"));
    assert_eq!(of(&[("out".into(), "/y".into())]), Path::new("/y/moe"));
    assert!(message(RECIPE, &[("outt".into(), "/y".into())]).contains("its variables are: out"));
}

#[test]
fn defaults_fill_in_what_a_step_leaves_out() {
    let text = format!("{RECIPE}\n[defaults.upcycle]\ntop-k = 4\nseed = 7");
    let options = options(&Recipe::parse(&text, &[], "x").unwrap().steps[0]);
    assert_eq!((&options["top-k"], &options["seed"]), (&2.into(), &7.into()));
}

#[test]
fn merging_is_a_step() {
    let text = "[[step]]\nrun = \"merge\"\nmodel = \"moe\"\noutput = \"x\"\nexperts = 12\nalgorithm = \"hc-smoe\"\nall-experts-every = 4\ndata = [\"t\"]";
    let options = options(&Recipe::parse(text, &[], "x").unwrap().steps[0]);
    assert_eq!((&options["all-experts-every"], &options["experts"]), (&4.into(), &12.into()));
    assert!(
        message(&format!("{text}\ncap = 3"), &[]).contains("step 1 (merge): unknown field `cap`")
    );
}

const MATRIX: &str = r#"
    [vars]
    out = "x"
    seeds = [0, 1]
    [defaults.quantize]
    model = "moe"
    seed = "${seed}"
    [[step]]
    run = "verify"
    model = "moe"
    [[step]]
    each.bits = [3, 2]
    each.text = [{ text = "all", files = ["a=a.txt", "b.txt"], sizes = [512] }, { text = "one", files = ["a.txt"], sizes = [64, 128] }]
    [[step.step]]
    each.tokens = "${sizes}"
    each.seed = "${seeds}"
    [[step.step.step]]
    run = "quantize"
    output = "${out}/${bits}-${text}-${tokens}-${seed}"
    scheme = "w${bits}a16"
    data = "${files}"
    data-tokens = "${tokens}"
    [[step.step.step]]
    run = "eval"
    label = "${bits} bits, ${text}, ${tokens}"
    model = "${out}/${bits}-${text}-${tokens}-${seed}"
    data = ["b.txt"]
"#;

#[test]
fn blocks_run_for_every_combination() {
    let steps = Recipe::parse(MATRIX, &[], "x").unwrap().steps;
    assert_eq!((steps[0].command.as_str(), steps[0].chosen.as_str()), ("verify", ""));
    let made: Vec<_> = steps[1..].iter().step_by(2).map(|step| step.chosen.as_str()).collect();
    let sizes = ["text all, tokens 512", "text one, tokens 64", "text one, tokens 128"];
    let of_bits = |bits| {
        sizes
            .iter()
            .flat_map(move |size| [0, 1].map(|seed| format!("bits {bits}, {size}, seed {seed}")))
    };
    assert_eq!(made, [3, 2].into_iter().flat_map(of_bits).collect::<Vec<_>>());
    assert_eq!(steps[7].output(), Some((Path::new("x/3-one-64-1"), false)));
    let options = options(&steps[7]);
    assert_eq!((&options["data-tokens"], &options["seed"]), (&64.into(), &1.into()));
    assert_eq!(options["data"].as_array().unwrap().len(), 1);
    assert_eq!(steps[8].row(), "3 bits, one, 64");
    assert_eq!(steps[8].name(), "eval; bits 3, text one, tokens 64, seed 1");
    let fewer = [("seeds".to_owned(), "[7]".to_owned())];
    assert_eq!(Recipe::parse(MATRIX, &fewer, "x").unwrap().steps.len(), 1 + 2 * 2 * 3);
}

/// CI doesn't run the study: three bit widths, each rounded once and for three mixes, three sizes,
/// five ways and three seeds.
#[test]
fn the_full_study_is_a_recipe() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/full/compare-samples.toml");
    let recipe = Recipe::read(&path, &[]).unwrap();
    assert_eq!(recipe.steps.len(), 2 * 3 * (1 + 3 * 3 * 5 * 3));
    let part = [("widths".to_owned(), "[4]".to_owned()), ("seeds".to_owned(), "[0]".to_owned())];
    assert_eq!(Recipe::read(&path, &part).unwrap().steps.len(), 2 * (1 + 3 * 3 * 5));
}

#[test]
fn mistakes_in_blocks_are_named() {
    let with = |from: &str, to: &str| {
        assert!(MATRIX.contains(from), "{from}");
        message(&MATRIX.replace(from, to), &[])
    };
    let bits = "each.bits = [3, 2]";
    assert!(
        with("[3, 2]", "[3, 5]")
            .contains("step 2.1.1 (quantize; bits 5, text all, tokens 512, seed 0): ")
    );
    assert!(
        with(bits, "each.bits = []")
            .contains("step 2 (a block): each.bits: give at least one value")
    );
    assert!(with(bits, "each.bits = 3").contains("each.bits: give a list"));
    assert!(
        with(bits, "each.bits = [3, 2]\neach.nits = [1]")
            .contains("each.nits: no step of the block uses ${nits}")
    );
    assert!(with(bits, "each.out = [1]").contains("each.out: there is a variable \"out\" already"));
    assert!(
        with("w${bits}a16", "w${bit}a16")
            .contains("there is no variable \"bit\" here, only bits, files, out")
    );
    assert!(
        with("data = \"${files}\"", "data = [\"a ${files}\"]")
            .contains("${files} is of type array")
    );
    assert!(
        with("files = [\"a.txt\"], ", "").contains("here are text, files, sizes, and text, sizes")
    );
    assert!(
        with("sizes = [512] }", "sizes = [512], more = 1 }")
            .contains("every value sets the same variables")
    );
    assert!(
        with("[{ text", "[1, { text").contains("each.text: every value sets the same variables")
    );
    assert!(
        with(bits, "each.bits = [3, 2]\nrun = \"verify\"")
            .contains("unknown key `run`, expected each and step")
    );
    assert!(
        with("seeds = [0, 1]", "seeds = [0, 1]\nspare = 1")
            .contains("[vars] spare: nothing uses ${spare}")
    );
    assert!(
        with("-${tokens}-${seed}\"\n    scheme", "\"\n    scheme")
            .contains("writes to x/3-all, as step 2 does")
    );
    assert!(
        with("[\"b.txt\"]\n", "[\"${seed}.txt\"]\n")
            .contains("has the label of step 3, \"3 bits, all, 512\"")
    );
    let block = "[[step]]\n[[step.step]]\nrun = \"verify\"\nmodel = \"x\"";
    assert!(message(block, &[]).contains("step 1 (a block): the key \"each\" is missing"));
    assert!(
        message("[[step]]\neach = {}\n[[step.step]]", &[])
            .contains("step 1 (a block): it has no choice under each")
    );
    assert!(message("[[step]]\neach.a = [1]", &[]).contains("step 1 (a block): it has no step"));
    let set = |value: &str| message(MATRIX, &[("seeds".to_owned(), value.to_owned())]);
    assert!(set("3").contains("--set seeds: \"3\" is not TOML of type array, as [0, 1] is"));
}

#[test]
fn mistakes_are_named() {
    let with = |from: &str, to: &str| message(&RECIPE.replace(from, to), &[]);
    assert!(with("top-k", "top-n").contains("step 1 (upcycle): unknown field `top-n`"));
    assert!(with("top-k", "top-n").contains("; did you mean top-k?"), "{}", with("top-k", "top-n"));
    let mistyped = with("experts = 8", "experts = \"8\"");
    assert!(
        mistyped.contains("line 8, step 1 (upcycle): invalid type")
            && mistyped.contains("in `experts`"),
        "{mistyped}"
    );
    let step = |rest: &str| message(&format!("[[step]]\nmodel = \"m\"\n{rest}"), &[]);
    let prune = "run = \"prune\"\noutput = \"o\"\nseed = 1\ndata = [\"t\"]\n";
    let grouped = step(&format!("{prune}keep = \"half\""));
    assert!(
        grouped.contains(
            "line 7, step 1 (prune): invalid type: string \"half\", expected a number in `keep`"
        ),
        "{grouped}"
    );
    let passes = "run = \"convert\"\noutput = \"o\"\n[[step.pass]]\nrun = \"prune\"\nkeep = 0.5\ndata-tokens = [1]";
    let in_pass = step(passes);
    assert!(
        in_pass.contains("line 8, step 1 (convert): pass 1: invalid")
            && in_pass.contains("in `data-tokens`"),
        "{in_pass}"
    );
    let gate = step("run = \"eval\"\ndata = [\"t\"]\ngates = { max-kl = \"x\" }");
    assert!(gate.contains("line 5, step 1 (eval): ") && gate.contains("max-kl"), "{gate}");
    assert!(with("experts = 8", "").contains("missing field `experts`"));
    let command = with("\"verify\"", "\"verfiy\"");
    assert!(
        command.contains("there is no command \"verfiy\"")
            && command.contains("; did you mean verify?"),
        "{command}"
    );
    assert!(with("run = \"verify\"", "").contains("step 2: every step has a key \"run\""));
    assert!(
        with("${out}/moe\"\n    experts", "${oops}/moe\"\n    experts")
            .contains("no variable \"oops\"")
    );
    assert!(message("step = 3", &[]).contains("line 1"));
    assert!(message(&format!("{RECIPE}\n[defaults.eval]"), &[]).contains("no step runs \"eval\""));
}

/// A mistake in [defaults] is reported there, not in the step that it is filled into.
#[test]
fn mistakes_in_defaults_are_named_there() {
    let with = |defaults: &str| message(&format!("{RECIPE}\n[defaults.upcycle]\n{defaults}"), &[]);
    let line = RECIPE.matches('\n').count() + 3;
    for (defaults, what) in [
        ("top-n = 4", "unknown field `top-n`"),
        ("seed = \"x\"", "in `seed`"),
        ("seed = \"${sed}\"", "there is no variable \"sed\" here, only out in `seed`"),
    ] {
        let error = with(defaults);
        assert!(
            error.contains(&format!("line {line}, [defaults.upcycle]: ")) && error.contains(what),
            "{error}"
        );
    }
    let both = message(
        &format!("{}\n[defaults.upcycle]\nseed = 1", RECIPE.replace("top-k", "top-n")),
        &[],
    );
    assert!(both.contains("line 9, step 1 (upcycle): unknown field `top-n`"), "{both}");
    let passes = "[defaults.prune]\nkeeep = 0.5\n[[step]]\nrun = \"convert\"\nmodel = \"m\"\noutput = \"o\"\n[[step.pass]]\nrun = \"prune\"\ndata = [\"t\"]";
    let error = message(passes, &[]);
    assert!(error.contains("line 2, [defaults.prune]: pass 1: unknown field `keeep`"), "{error}");
    let unused = message(&format!("{RECIPE}\n[defaults.upcyle]"), &[]);
    assert!(unused.contains("no step runs \"upcyle\"; did you mean upcycle?"), "{unused}");
}

/// Each mistake has its own remedy.
#[test]
fn remedies_fit_the_mistake() {
    let step = |rest: &str| message(&format!("[[step]]\nmodel = \"m\"\n{rest}"), &[]);
    let eval = "run = \"eval\"\noriginal = \"n\"\ndata = [\"t\"]\n";
    for (error, remedy) in [
        (step("run = \"verfiy\""), "remedy: give run one of these"),
        (step("run = \"verify\"\nkeep = 1"), "remedy: correct the key or remove it"),
        (step("run = \"prune\""), "remedy: add output = "),
        (
            step("run = \"upcycle\"\noutput = \"o\"\nexperts = 2"),
            "remedy: add this key to the step",
        ),
        (step("output = \"o\""), "remedy: add run = "),
        (
            step(&format!("{eval}gates = {{ max-kl = -1 }}")),
            "remedy: give a number of nats from 0 on",
        ),
        (
            step(&format!("{eval}gates = {{ min-agreement = 90 }}")),
            "remedy: give a share above 0, at most 1: 0.9 for 90 %",
        ),
        (
            step(&format!("{eval}gates = {{ domain = [\"t:max-kl=nan\"] }}")),
            "remedy: give a number of nats from 0 on",
        ),
        (step(&format!("{eval}gates = {{ max-bytes = \"much\" }}")), "remedy: write it as 5GB"),
        (
            step("run = \"eval\"\ndata = [\"t\"]\ngates = { max-kl = 1 }"),
            "remedy: give `original` ORIGINAL",
        ),
        (message("x = ", &[]), "remedy: correct the TOML"),
        (
            message("[[step]]\nrun = \"verify\"\nmodel = \"${x}\"", &[]),
            "remedy: correct the name, or define x",
        ),
    ] {
        assert!(error.contains(remedy), "{remedy}: {error}");
    }
    let gate = step(&format!("{eval}gates = {{ max-kl = -1 }}"));
    assert!(gate.contains("line 6, step 1 (eval): "), "{gate}");
}

/// Where a key or a table of defaults is mistyped, the message is about that, not about the key
/// that the step therefore lacks.
#[test]
fn mistyped_keys_and_tables_are_what_is_named() {
    let step =
        "[[step]]\nrun = \"upcycle\"\nmodel = \"m\"\noutput = \"o\"\nexperts = 4\ntop-k = 2\n";
    let prune =
        "[[step]]\nrun = \"prune\"\nmodel = \"m\"\noutput = \"o\"\ndata = [\"t\"]\nkeep = 0.5\n";
    let passes = "[[step]]\nrun = \"convert\"\nmodel = \"m\"\noutput = \"o\"\n[[step.pass]]\nrun = \"prune\"\n";
    for (text, parts) in [
        (
            step.replace("model", "modle"),
            ["line 3, step 1 (upcycle): unknown field `modle`", "did you mean model?"],
        ),
        (
            step.replace("experts", "expertss"),
            ["line 5, step 1 (upcycle): unknown field `expertss`", "mean experts?"],
        ),
        (
            format!("[defaults.upcycl]\nmodel = \"m\"\n{}", step.replace("model = \"m\"\n", "")),
            ["[defaults.upcycl]: no step runs \"upcycl\"", "did you mean upcycle?"],
        ),
        (
            format!("[defaults.upcycle]\nmodle = \"m\"\n{}", step.replace("model = \"m\"\n", "")),
            ["line 2, [defaults.upcycle]: unknown field `modle`", "did you mean model?"],
        ),
        (format!("{prune}keeep = 1"), ["unknown field `keeep`", "keep, keep-mass, "]),
        (
            format!("{passes}keep = 0.5\nmodel = \"x\""),
            ["pass 1: unknown field `model`", "expected one of run, "],
        ),
        (String::new(), ["the recipe has no step", "add a [[step]]"]),
    ] {
        let error = message(&text, &[]);
        assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
    }
}

/// Mistakes that can be found without a model are reported before the first step runs, even in
/// defaults that all steps override.
#[test]
fn values_are_checked_before_any_step() {
    let step = |rest: &str| format!("[[step]]\nmodel = \"m\"\noutput = \"o\"\n{rest}");
    let prune = "run = \"prune\"\ndata = [\"t\"]\n";
    for (text, what, remedy) in [
        (
            step(&format!("{prune}keep = 75")),
            "line 6, step 1 (prune): `keep` 75 is not a share",
            "0.75 for 75 %",
        ),
        (
            step(&format!("{prune}keep = 0.5\ndivisible-by = 0")),
            "`divisible-by` 0",
            "give at least 1",
        ),
        (
            step(&format!("{prune}keep = 0.5\nexperts = 2")),
            "`experts`, `keep` and `keep-mass`",
            "one of the three",
        ),
        (
            step(&format!("{prune}keep = 0.5\ndata-tokens = 0")),
            "`data-tokens` 0",
            "give at least 2",
        ),
        (
            step(&format!("{prune}keep = 0.5\nsequence-length = 1")),
            "`sequence-length` 1",
            "give at least 2",
        ),
        (
            step("run = \"prune\"\nkeep = 0.5"),
            "nothing says which experts matter",
            "give `data` TEXT",
        ),
        (
            step("run = \"heal\"\ndata = [\"t\"]\nlearning-rate = 0.0"),
            "`learning-rate` 0",
            "give a positive number",
        ),
        (
            step("run = \"distill\"\ndata = [\"t\"]\nwidth = 0"),
            "`width` 0 leaves no network",
            "at least 1",
        ),
        (
            step("run = \"upcycle\"\nexperts = 2\ntop-k = 1\nshared-fraction = 50"),
            "line 7, step 1 (upcycle): `shared-fraction` 50 is not a share",
            "from 0 to 1",
        ),
        (
            step("run = \"merge\"\nkeep = 0.5\ndata = [\"t\"]\ndern-threshold = 2.0"),
            "`dern-threshold` 2 is not a cosine",
            "from -1 to 1",
        ),
        (
            format!("[defaults.prune]\nkeep = 75\n{}", step(&format!("{prune}keep = 0.5"))),
            "line 2, [defaults.prune]: `keep` 75 is not a share",
            "0.75",
        ),
        (
            format!("[defaults.prune]\nkeep = \"half\"\n{}", step(&format!("{prune}keep = 0.5"))),
            "line 2, [defaults.prune]: invalid type",
            "give a value of the kind",
        ),
    ] {
        let error = message(&text, &[]);
        assert!(error.contains(what) && error.contains(remedy), "{text}\n{error}");
    }
    // Defaults that a step overrides needn't go together with its other keys.
    let random = format!(
        "[defaults.prune]\ncriterion = \"reap\"\n{}",
        step("run = \"prune\"\nkeep = 0.5\ncriterion = \"random\"")
    );
    Recipe::parse(&random, &[], "x").unwrap();
}

/// [defaults] are for all steps of a command, and keys in a block for all of its choices: one step
/// may have no use for a key, but a key that no step uses is refused.
#[test]
fn keys_for_several_steps_pass_by_those_without_use_for_them() {
    let text = "data = [\"t\"]\n";
    for (run, default, key, uses, idle) in [
        (
            "quantize",
            "damping = 0.2",
            "",
            "scheme = \"w4a16\"\ndata = [\"t\"]",
            "scheme = \"w8a16\"\nsolver = \"rtn\"\ndata = []",
        ),
        (
            "quantize",
            "damping = 0.2\nseed = 3",
            "",
            "scheme = \"w4a16\"\ndata = [\"t\"]",
            "scheme = \"fp8\"",
        ),
        ("quantize", "data = [\"t\"]", "", "scheme = \"w4a16\"", "scheme = \"fp8\""),
        (
            "quantize",
            "group-size = 64",
            "",
            "scheme = \"w4a16\"\ndata = [\"t\"]",
            "scheme = \"fp8\"",
        ),
        (
            "quantize",
            "shrinkage = 2.0",
            text,
            "calibrate-on = \"per-expert\"",
            "calibrate-on = \"routed\"",
        ),
        (
            "merge",
            "all-experts-every = 4",
            "keep = 0.5\ndata = [\"t\"]",
            "algorithm = \"hc-smoe\"",
            "algorithm = \"dern\"",
        ),
        (
            "merge",
            "group-cap = 4",
            "keep = 0.5\ndata = [\"t\"]",
            "algorithm = \"ream\"",
            "algorithm = \"dern\"",
        ),
        (
            "heal",
            "original-logits-per-token = 8",
            "from = \"m\"\ndata = [\"t\"]",
            "original-logits = \"top-k\"",
            "original-logits = \"full\"",
        ),
        ("heal", "patience = 2", text, "held-out = [\"h\"]", ""),
        ("heal", "patience = 2", text, "held-out = [\"h\"]", "held-out = []"),
        ("heal", "learning-rate = 1e-3", text, "steps = 4", "steps = 0"),
        ("prune", "data = [\"t\"]", "keep = 0.5", "criterion = \"reap\"", "criterion = \"aimer\""),
        (
            "prune",
            "data = [\"t\"]\ndata-tokens = 99",
            "keep = 0.5",
            "criterion = \"reap\"",
            "criterion = \"random\"",
        ),
        ("prune", "no-baseline = true", "keep = 0.5\ndata = [\"t\"]", "held-out = [\"h\"]", ""),
        ("prune", "no-control = true", "keep = 0.5\ndata = [\"t\"]", "held-out = [\"h\"]", ""),
        ("distill", "criterion = \"cp\"", text, "select = \"experts\"", "select = \"neurons\""),
        (
            "upcycle",
            "data = [\"t\"]",
            "experts = 4\ntop-k = 2",
            "router = \"kmeans\"",
            "router = \"normal\"",
        ),
        (
            "upcycle",
            "router-std = 0.1\ndata = [\"t\"]",
            "experts = 4\ntop-k = 2",
            "router = \"normal\"",
            "router = \"kmeans\"",
        ),
    ] {
        let step = |output: &str, more: &str| {
            format!("[[step]]\nrun = {run:?}\nmodel = \"m\"\noutput = {output:?}\n{key}\n{more}\n")
        };
        let defaults = format!("[defaults.{run}]\n{default}\n");
        let both = format!("{defaults}{}{}", step("a", uses), step("b", idle));
        let recipe = Recipe::parse(&both, &[], "x");
        assert!(recipe.is_ok(), "{both}\n{}", recipe.unwrap_err());
        // A step's own key is for that step alone.
        if !idle.contains("[]") {
            let own = step("b", &format!("{idle}\n{default}"));
            assert!(Recipe::parse(&own, &[], "x").is_err(), "{own}");
        }
    }
    let damping = "[defaults.quantize]\ndamping = 0.2\n[[step]]\nrun = \"quantize\"\nmodel = \"m\"\noutput = \"o\"\nscheme = \"fp8\"";
    let none = message(damping, &[]);
    assert!(none.contains("line 2, [defaults.quantize]: `damping` is for GPTQ"), "{none}");
    let passes = "[defaults.quantize]\ndamping = 0.2\n[[step]]\nrun = \"quantize\"\nmodel = \"m\"\noutput = \"o\"\ndata = [\"t\"]\n\
                  [[step]]\nrun = \"convert\"\nmodel = \"m\"\noutput = \"p\"\n[[step.pass]]\nrun = \"quantize\"\nscheme = \"fp8\"\n";
    Recipe::parse(passes, &[], "x").unwrap();
}

/// Gates that compare with an original are left out of evaluations without one.
#[test]
fn gates_pass_by_evaluations_without_an_original() {
    let defaults = "[defaults.eval]\ndata = [\"code=t\"]\n[defaults.eval.gates]\nmax-bytes = 9\n";
    let step = |more: &str| format!("[[step]]\nrun = \"eval\"\nmodel = \"m\"\n{more}\n");
    let against = step("label = \"beside\"\noriginal = \"o\"");
    for gate in [
        "max-kl = 0.1",
        "max-loss-increase = 0.1\nmin-agreement = 0.9",
        "domain = [\"code:max-kl=0.1\"]",
    ] {
        let recipe =
            Recipe::parse(&format!("{defaults}{gate}\n{against}{}", step("")), &[], "x").unwrap();
        let gates = recipe.steps.iter().map(|step| match &step.kind {
            StepKind::Eval { options, .. } => serde_json::json!(options.gates),
            _ => panic!("{step:?}"),
        });
        let gates: Vec<serde_json::Value> = gates.collect();
        let key = gate.split(' ').next().unwrap();
        let is_given = |gate: &serde_json::Value| {
            !gate.is_null() && gate.as_array().is_none_or(|all| !all.is_empty())
        };
        assert!(is_given(&gates[0][key]) && !is_given(&gates[1][key]), "{gate}: {gates:?}");
        assert_eq!(gates[1]["max-bytes"], 9, "{gate}");
        let none = message(&format!("{defaults}{gate}\n{}", step("")), &[]);
        assert!(none.contains("[defaults.eval]: this gate compares with an original"), "{none}");
        // A step's own gates are for that step alone.
        let own = step(&format!("data = [\"code=t\"]\n[step.gates]\n{gate}"));
        let own = message(&format!("{own}{against}data = [\"t\"]"), &[]);
        assert!(own.contains("step 1 (eval): this gate compares with an original"), "{own}");
    }
}

#[test]
fn keys_of_a_block_pass_by_choices_without_use_for_them() {
    let block = |methods: &str| {
        format!(
            "[[step]]\neach.method = {methods}\n[[step.step]]\nrun = \"merge\"\nmodel = \"m\"\noutput = \"${{method}}\"\n\
             algorithm = \"${{method}}\"\nkeep = 0.5\ndata = [\"t\"]\ngroup-cap = 4"
        )
    };
    let steps = Recipe::parse(&block("[\"ream\", \"dern\"]"), &[], "x").unwrap().steps;
    assert_eq!(
        (&options(&steps[0])["group-cap"], &options(&steps[1])["group-cap"]),
        (&4.into(), &().into())
    );
    let none = message(&block("[\"m-smoe\", \"dern\"]"), &[]);
    assert!(
        none.contains(
            "line 10, step 1.1 (merge; method m-smoe): `group-cap` is for `algorithm` ream"
        ),
        "{none}"
    );
}

#[test]
fn sizes_may_be_numbers_of_bytes() {
    let text =
        "[[step]]\nrun = \"eval\"\nmodel = \"m\"\ndata = [\"t\"]\ngates = { max-bytes = 4000000 }";
    Recipe::parse(text, &[], "x").unwrap();
    assert!(message(&text.replace("4000000", "-4"), &[]).contains("is not a size"));
}

#[test]
fn options_become_keys() {
    assert_eq!(
        as_keys("--keep 75: give --experts N, or --device cpu", |key| key != "device"),
        "`keep` 75: give `experts` N, or --device cpu"
    );
    assert_eq!(
        as_keys("give moe-convert x --help; a -- b; observe --add", |key| key != "help"),
        "give moe-convert x --help; a -- b; observe --add"
    );
}

const EARLIER: &str = r#"[defaults.prune]
method = "REAP"

[[step]]
run = "prune"
model = "m"
output = "o"
keep = "75%"
data = ["t"]

[[step]]
run = "eval"
model = "o"
against = "m"
data = ["t"]
max_tokens = 64
gates = { max_kl = 1, min-agreement = "99.5%" }

[[step]]
run = "eval"
model = "p"
against = "m"
data = ["t"]
"#;

#[test]
fn earlier_keys_are_read_with_a_note_for_each() {
    let recipe = Recipe::parse(EARLIER, &[], "x").unwrap();
    let pruned = options(&recipe.steps[0]);
    assert_eq!((&pruned["criterion"], &pruned["keep"]), (&"reap".into(), &0.75.into()));
    let StepKind::Eval { original, options } = &recipe.steps[1].kind else { panic!() };
    assert_eq!((original.as_deref(), options.data_tokens), (Some(Path::new("m")), Some(64)));
    assert_eq!(options.gates.min_agreement, Some(0.995));
    assert_eq!(
        recipe.notes(Path::new("r.toml")),
        [
            "r.toml, line 14, step 2 (eval): `against` is now `original`; the old name goes with 0.3 \
             (also in line 22)",
            "r.toml, line 16, step 2 (eval): `max_tokens` is now `data-tokens`; the old name goes with 0.3",
            "r.toml, line 2, [defaults.prune]: `method` is now `criterion`; the old name goes with 0.3",
        ]
    );
    assert!(Recipe::parse(RECIPE, &[], "x").unwrap().notes(Path::new("r.toml")).is_empty());
}

#[test]
fn a_key_has_one_name_at_a_time() {
    let both =
        message(&EARLIER.replace("keep =", "criterion = \"ean\"\nmethod = \"reap\"\nkeep ="), &[]);
    assert!(
        both.contains(
            "line 8, step 1 (prune): `criterion` and `method` are one key, and both are given"
        ) && both.contains("give `criterion` alone"),
        "{both}"
    );
    let in_defaults = message(&EARLIER.replace("REAP\"\n", "reap\"\ncriterion = \"ean\"\n"), &[]);
    assert!(
        in_defaults.contains("[defaults.prune]: `method` and `criterion` are one key"),
        "{in_defaults}"
    );
}

#[test]
fn keys_of_other_tools_are_read_and_found_by_their_lines() {
    let with = |keys: &str| RECIPE.replace("experts = 8\n    top-k = 2", keys);
    let recipe =
        Recipe::parse(&with("num_local_experts = 8\n    num_experts_per_tok = 2"), &[], "x");
    let recipe = recipe.unwrap();
    assert_eq!(options(&recipe.steps[0])["experts"], 8);
    assert!(recipe.notes(Path::new("r.toml")).is_empty());
    let wrong = message(&with("num_experts = \"8\"\n    topk = 2"), &[]);
    assert!(wrong.contains("line 8, step 1 (upcycle): invalid type"), "{wrong}");
    let bits = "[[step]]\neach.b = [4, 8]\n[[step.step]]\nrun = \"quantize\"\nmodel = \"m\"\noutput = \"o${b}\"\nbits = \"${b}\"\ndata = [\"t\"]";
    let recipe = Recipe::parse(bits, &[], "x").unwrap();
    let schemes: Vec<_> = recipe.steps.iter().map(|step| options(step)["scheme"].clone()).collect();
    assert_eq!(schemes, ["w4a16", "w8a16"]);
}
