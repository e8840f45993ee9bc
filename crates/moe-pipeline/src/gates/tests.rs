use moe_forward::Comparison;

use super::*;

fn row(label: &str, kl: f64, change: f64, agreement: f64) -> DomainReport {
    let against = Comparison { original_loss: 2.0, kl, rare_kl: None, top1_agreement: agreement };
    let (loss, against) = (2.0 + change, Some(against));
    DomainReport { label: label.to_owned(), tokens: 10, loss, against, ..DomainReport::default() }
}

fn failed(gates: &Gates, report: &EvalReport) -> Vec<String> {
    let measured = gates.measured(report, Path::new("none")).unwrap();
    measured.into_iter().filter(|gate| !gate.met).map(|gate| gate.gate).collect()
}

#[test]
fn small_figures_are_said() {
    let gate = |limit, measured, met| {
        MeasuredGate { gate: "max-kl".into(), limit, measured, met }.describe()
    };
    assert_eq!(
        gate(1e-20, 4.68e-13, false),
        "max-kl is 1.00e-20, measured 4.68e-13, 4.68e-13 beyond it"
    );
    assert_eq!(
        gate(0.05, 0.0625, false),
        "max-kl is 0.050000, measured 0.062500, 0.012500 beyond it"
    );
    assert_eq!(gate(1e-6, 0.0, true), "max-kl is 1.00e-6, measured 0.000000");
}

fn domain_gate(text: &str) -> DomainGate {
    text.parse().unwrap()
}

fn two_labels() -> EvalReport {
    let domains = vec![row("code", 0.3, 0.2, 0.8), row("text", 0.1, 0.0, 0.9)];
    EvalReport { domains, all: row("all", 0.2, 0.1, 0.85), load: Vec::new() }
}

#[test]
fn limits_hold_overall_and_by_label() {
    let limits = ["code:MAX_KL=0.25", "text:max-kl=0.25", "code:max-loss-increase=0.1"];
    let gates = Gates {
        max_kl: Some(0.2),
        min_agreement: Some(0.86),
        domain: limits.map(domain_gate).into(),
        ..Gates::default()
    };
    let expected = ["min-agreement", "max-kl of code", "max-loss-increase of code"];
    assert_eq!(failed(&gates, &two_labels()), expected);
    assert!(gates.check(false, &["code", "text"]).is_err());
    assert!(gates.check(true, &["code"]).is_err());
    gates.check(true, &["code", "text"]).unwrap();
}

#[test]
fn nothing_that_is_not_a_number_meets_a_gate() {
    let report = EvalReport { all: row("all", f64::NAN, 0.0, 1.0), ..two_labels() };
    assert_eq!(failed(&Gates { max_kl: Some(9.0), ..Gates::default() }, &report), ["max-kl"]);
}

#[test]
fn gates_of_labels_that_do_not_parse_are_refused() {
    for wrong in ["code", "code:max-kl", "code:kl=1", "max-kl=1", "code:max-kl=x"] {
        assert_eq!(wrong.parse::<DomainGate>().unwrap_err().kind(), Kind::Usage, "{wrong}");
    }
}

type Set = fn(&mut Gates, f64);

/// Gates, what is said of their limits, limits that a model can keep, and limits that none can.
const LIMITS: [(Set, &str, &[f64], &[f64]); 4] = [
    (
        |gates, limit| gates.max_kl = Some(limit),
        "from 0 on",
        &[0.0, 1e-12, 9.0],
        &[-1.0, -1e-9, f64::NAN, f64::INFINITY],
    ),
    (
        |gates, limit| gates.max_loss_increase = Some(limit),
        "nats",
        &[0.0, -0.5, 3.0],
        &[f64::NAN, f64::INFINITY, f64::NEG_INFINITY],
    ),
    (
        |gates, limit| gates.min_agreement = Some(limit),
        "above 0, at most 1",
        &[1e-9, 0.9, 1.0],
        &[0.0, 90.0, 1.01, -0.1, f64::NAN, f64::INFINITY],
    ),
    (
        |gates, limit| gates.golden_tolerance = Some(limit),
        "from 0 on",
        &[0.0, 1.0],
        &[-1.0, f64::NAN, f64::INFINITY],
    ),
];

fn checked(set: Set, limit: f64) -> std::result::Result<(), String> {
    let mut gates = Gates { golden: Some("golden.json".into()), ..Gates::default() };
    set(&mut gates, limit);
    gates.check(true, &["code"]).map_err(|error| error.to_string())
}

#[test]
fn limits_that_nothing_keeps_are_refused() {
    for (set, range, good, bad) in LIMITS {
        good.iter().for_each(|limit| checked(set, *limit).unwrap());
        for limit in bad {
            let error = checked(set, *limit).unwrap_err();
            assert!(
                error.contains(range) && error.contains(&limit.to_string()),
                "{limit}: {error}"
            );
        }
    }
    let percent = checked(|gates, limit| gates.min_agreement = Some(limit), 90.0).unwrap_err();
    assert!(percent.contains("0.9 for 90 %"));
}

#[test]
fn limits_of_a_domain_that_nothing_keeps_are_refused() {
    for bad in ["min-agreement=90", "max-kl=-1", "max-kl=nan", "max-loss-increase=inf"] {
        assert!(
            format!("code:{bad}").parse::<DomainGate>().unwrap_err().to_string().contains("remedy"),
            "{bad}"
        );
    }
}

#[test]
fn a_tolerance_without_a_golden_is_refused() {
    let without = Gates { golden_tolerance: Some(0.1), ..Gates::default() };
    assert!(without.check(true, &[]).is_err());
}

#[test]
fn a_golden_holds_for_the_text_it_was_made_with() {
    let dir = tempfile::tempdir().unwrap();
    let report = |loss: f64| EvalReport {
        domains: vec![row("code", 0.3, loss, 0.8)],
        all: row("all", 0.3, loss, 0.8),
        load: Vec::new(),
    };
    let path = dir.path().join("golden.json");
    std::fs::write(&path, serde_json::json!({ "report": report(0.1) }).to_string()).unwrap();
    let gates = Gates { golden: Some(path), ..Gates::default() };
    assert!(failed(&gates, &report(0.1005)).is_empty());
    let found = failed(&gates, &report(0.102));
    assert_eq!(
        found,
        ["golden-tolerance of the loss of code", "golden-tolerance of the loss of all"]
    );
    let other = EvalReport { domains: vec![row("text", 0.3, 0.1, 0.8)], ..report(0.1) };
    assert_eq!(gates.measured(&other, Path::new("none")).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn help_states_the_tolerance() {
    let command = <Gates as clap::Args>::augment_args(clap::Command::new("eval"));
    let tolerance = command.get_arguments().find(|arg| arg.get_id() == "golden_tolerance").unwrap();
    let help = tolerance.get_help().unwrap().to_string();
    assert!(help.contains(&format!("[default: {GOLDEN_TOLERANCE}]")), "{help}");
}
