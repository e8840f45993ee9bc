//! Compares rendered templates with those of transformers (`golden/templates/make.py`), and tests
//! templates that never end.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::tokenizer::{TOKENIZER_FILE, TextTokenizer};

/// Noon on 1 December 2026.
fn now() -> NaiveDateTime {
    Clock::at(1_796_126_400).unwrap().now()
}

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/templates").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn constructs_are_rendered_as_transformers_renders_them() {
    let golden = golden("constructs.json");
    let variables: Vec<(String, Value)> =
        golden["variables"].as_object().unwrap().clone().into_iter().collect();
    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let template = case["template"].as_str().unwrap();
        let found = Template::parse(template).and_then(|template| {
            template.render(variables.clone(), now(), TemplateLimits::USUAL, Path::new("t.jinja"))
        });
        let found = found.map(|(text, _)| text);
        if found.as_deref().ok() != case["text"].as_str() {
            let found = found.unwrap_or_else(|error| format!("error: {error}"));
            wrong.push(format!("{template:?}\n  {found:?}\n  {}", case["text"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn folder(files: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": null, "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    });
    std::fs::write(dir.path().join(TOKENIZER_FILE), tokenizer.to_string()).unwrap();
    for (name, content) in files.as_object().unwrap() {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content.as_str().map_or_else(|| content.to_string(), str::to_owned))
            .unwrap();
    }
    dir
}

#[test]
fn conversations_are_rendered_as_transformers_renders_them() {
    let golden = golden("conversations.json");
    let mut wrong = Vec::new();
    for (name, files) in golden["folders"].as_object().unwrap() {
        let dir = folder(files);
        let tokens = TextTokenizer::load(dir.path()).unwrap().named().to_vec();
        let template = ChatTemplate::load(dir.path(), tokens);
        for case in
            golden["cases"].as_array().unwrap().iter().filter(|case| case["folder"] == **name)
        {
            let messages = &golden["messages"][case["messages"].as_str().unwrap()];
            let tools = if case["tools"] == true { Some(&golden["tools"]) } else { None };
            let found = template.as_ref().map_err(|error| error.to_string()).and_then(|template| {
                template.render(messages, tools, now()).map_err(|error| error.to_string())
            });
            let found = found.map(|(text, _)| text);
            if found.as_deref().ok() != case["text"].as_str() {
                wrong.push(format!("{name}, {}: {found:?}\n  {}", case["messages"], case["text"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn render(template: &str, messages: &Value) -> Result<String> {
    let dir = folder(&json!({"chat_template.jinja": template}));
    ChatTemplate::load(dir.path(), vec![("eos_token".into(), "</s>".into())])?
        .render(messages, None, now())
        .map(|(text, _)| text)
}

fn hi() -> Value {
    json!([{"role": "user", "content": "Hi"}])
}

#[test]
fn a_template_that_refuses_says_why_and_in_which_line() {
    let error =
        render("a\n{{ raise_exception('roles must alternate') }}", &hi()).unwrap_err().to_string();
    assert!(error.contains("roles must alternate") && error.contains("line 2"), "{error}");
    for unsupported in [
        "{{ 'a' | wordwrap }}",
        "{{ [1] | pprint }}",
        "{{ 'a' | urlize }}",
        "{{ [1] | random }}",
        "{{ '&amp;' | striptags }}",
        "{{ lipsum() }}",
        "{{ 'a'.encode() }}",
        "{{ 'a'.translate({}) }}",
        "{{ '\\N{BULLET}' }}",
        "{{ [1] | map('abs') }}",
        "{{ 2 ** 200 }}",
    ] {
        let error = render(unsupported, &hi()).unwrap_err().to_string();
        assert!(error.contains("remedy") && error.contains("line 1"), "{unsupported}: {error}");
    }
}

/// Asserts that each template is refused in time, with an error that says the word beside it.
#[track_caller]
fn all_stopped(templates: &[(String, &str)]) {
    for (template, expected) in templates {
        let start = Instant::now();
        let error = render(template, &hi()).unwrap_err().to_string();
        let shown = &template[..template.len().min(60)];
        assert!(error.contains(expected) && error.contains("remedy"), "{shown}: {error}");
        assert!(start.elapsed() < Duration::from_secs(10), "{shown}: {:?}", start.elapsed());
    }
}

fn many(part: &str) -> String {
    part.repeat(50_000)
}

#[test]
fn a_template_without_end_in_its_text_is_stopped() {
    all_stopped(&[
        ("{{".to_owned() + &many("-") + "1 }}", "deep"),
        ("{{ 1".to_owned() + &many("+1") + " }}", "deep"),
        ("{{ messages".to_owned() + &many(".y") + " }}", "deep"),
        ("{{ messages".to_owned() + &many("[0]") + " }}", "deep"),
        ("{{ messages".to_owned() + &many("|list") + " }}", "deep"),
        ("{{ ".to_owned() + &many("not ") + "1 }}", "deep"),
        ("{{ ".to_owned() + &many("(") + "1" + &many(")") + " }}", "deep"),
        ("{{ 1".to_owned() + &many(" if 1 else 1") + " }}", "deep"),
        (many("{% if 1 %}"), "deep"),
    ]);
}

#[test]
fn an_endless_template_is_stopped() {
    let nested =
        "{% set n = namespace(l=[]) %}{% for a in range(5000) %}{% set n.l = [n.l] %}{% endfor %}";
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    all_stopped(&[
        ("{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}".to_owned(), "too often"),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(), "too often"),
        (loops.to_owned(), "fuel"),
        (nested.to_owned(), "nests values"),
    ]);
}

#[test]
fn a_template_that_makes_large_values_is_stopped() {
    let doubled = |part: &str| "{% set s = ['ha'] %}".to_owned() + &part.repeat(60);
    all_stopped(&[
        (doubled("{% set s = s ~ s %}"), "512 MiB"),
        (doubled("{% set s = s + s %}"), "512 MiB"),
        (doubled("{% set s = [s, s] %}") + "{{ s }}", "too large"),
        ("{{ 'a' * 10 ** 12 }}".to_owned(), "512 MiB"),
        ("{{ 'a' | center(10 ** 12) }}".to_owned(), "512 MiB"),
        ("{{ '%999999999d' % 1 }}".to_owned(), "not supported"),
    ]);
}

#[test]
fn templates_within_the_limits_of_python_are_rendered() {
    let long = "{{ 'a'".to_owned() + &many(" ~ 'a'") + " }}";
    assert!(render(&long, &hi()).unwrap().len() > 50_000);
    let depth = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{% endif %}x{% endmacro %}{{ m(250) }}";
    assert_eq!(render(depth, &hi()).unwrap().len(), 251);
}

/// Work on much text takes few steps; the limits end it all the same.
#[test]
fn work_in_few_steps_is_limited_too() {
    let limits = TemplateLimits { time: Duration::from_millis(300), ..TemplateLimits::USUAL };
    let long = "{% set s = 'ab' * 5000000 %}{% set l = range(99999) | list %}{% set words = l | map('string') | list %}";
    let many = |body: &str| {
        format!("{long}{{% for a in l %}}{{% for b in l %}}{body}{{% endfor %}}{{% endfor %}}")
    };
    let templates = [
        many("{% if 'c' in s %}x{% endif %}"),
        many("{% set x = s.replace('a', 'b') %}"),
        many("{% set x = words | sort(reverse=true) %}"),
        many("{% set x = words | join(',') %}"),
        many("{% set x = s[4999999:] %}"),
        many("{% set x = s.count('ba') ~ s.find('c') %}"),
        many("{% set x = [s] * 90 == [s ~ ''] * 90 %}"),
        many("{% set x = s | e | urlencode | length %}"),
        many("{% set x = l | batch(2) | map('join') | unique | list %}"),
        many("{% set x = '%s' % s %}{% set x = s | tojson %}"),
    ];
    for template in templates {
        let parsed = Template::parse(&template).unwrap();
        let start = Instant::now();
        let error =
            parsed.render(Vec::new(), now(), limits, Path::new("t.jinja")).unwrap_err().to_string();
        let took = start.elapsed();
        let is_expected =
            ["fuel", "more than 0.3 s", "512 MiB"].iter().any(|part| error.contains(part));
        assert!(is_expected, "{}: {error}", &template[long.len()..]);
        assert!(
            took < limits.time * 11 / 10 + Duration::from_millis(500),
            "{}: {took:?}",
            &template[long.len()..]
        );
    }
}

/// A value that would take more memory than there is isn't created.
#[test]
fn values_that_do_not_fit_are_not_made() {
    let long = "{% set s = 'a ' * 100000000 %}";
    for body in [
        "{% for c in s %}{% endfor %}",
        "{{ s | list | length }}",
        "{{ s.split() | length }}",
        "{{ s.split(' ') | length }}",
        "{{ s | join('-') | length }}",
        "{{ s ~ s ~ s ~ s }}",
        "{{ ('<' * 300000000) | e | length }}",
        "{{ [[1]] | tojson(indent=s) }}",
        "{{ ([s] * 1000) | join | length }}",
        "{{ [s] * 1000 }}",
    ] {
        let start = Instant::now();
        let error = render(&format!("{long}{body}"), &hi()).unwrap_err().to_string();
        assert!(error.contains("512 MiB") || error.contains("too large"), "{body}: {error}");
        assert!(start.elapsed() < Duration::from_secs(10), "{body}: {:?}", start.elapsed());
    }
}

#[test]
fn dates_that_a_template_wrote_are_returned() {
    let dir = folder(
        &json!({"chat_template.jinja": "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y') }}"}),
    );
    let template = ChatTemplate::load(dir.path(), Vec::new()).unwrap();
    let (text, dates) = template.render(&hi(), None, now()).unwrap();
    assert_eq!(text, "01 Dec 2026 2026");
    assert_eq!(
        dates,
        Dates::from([("%Y".into(), "2026".into()), ("%d %b %Y".into(), "01 Dec 2026".into())])
    );
    let error = render("{{ strftime_now('%Q') }}", &hi()).unwrap_err().to_string();
    assert!(error.contains("time format") && error.contains("line 1"), "{error}");
}

#[test]
fn errors_of_conversations_and_templates_have_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let error = ChatTemplate::load(dir.path(), Vec::new()).err().unwrap().to_string();
    assert!(error.contains("no chat template") && error.contains("remedy"), "{error}");
    for messages in [json!([]), json!({}), json!(["a"]), json!([[{"role": "user"}]])] {
        let error = render("{{ messages }}", &messages).unwrap_err();
        assert!(error.kind() == Kind::Malformed && error.to_string().contains("remedy"), "{error}");
    }
    let dir = folder(&json!({"chat_template.jinja": "x"}));
    let template = ChatTemplate::load(dir.path(), Vec::new()).unwrap();
    assert!(
        template
            .render(&hi(), Some(&json!("no list")), now())
            .unwrap_err()
            .to_string()
            .contains("tools")
    );
}
