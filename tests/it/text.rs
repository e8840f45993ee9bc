//! Tests text of any size and format: how much of it is read, how much memory that takes, and what
//! messages say.

use std::fs;

use crate::common::{BINARY, Outcome, Sandbox, assert_none};

/// English text, repeated until it has about `bytes`.
fn english(bytes: usize) -> String {
    let text =
        fs::read_to_string(crate::common::root().join("golden/text/english.calibration.txt"))
            .unwrap();
    text.repeat(bytes.div_ceil(text.len()))
}

/// The peak memory that `--timings` printed, in MB.
fn peak(outcome: &Outcome) -> f64 {
    let line = outcome
        .stderr
        .lines()
        .find(|line| line.to_lowercase().contains("peak"))
        .unwrap_or_else(|| panic!("{outcome}"));
    let words: Vec<&str> = line.split_whitespace().collect();
    let unit = words
        .iter()
        .position(|word| word.trim_matches(',').ends_with('B') && word.len() <= 3)
        .unwrap();
    let scale = if words[unit].starts_with('G') { 1000.0 } else { 1.0 };
    words[unit - 1].parse::<f64>().unwrap() * scale
}

const LITTLE: &str = "--data-tokens 64 --sequence-length 64 --timings";

/// Held whole, each of these texts would take 150 times its bytes: 3 GB.
#[test]
fn memory_does_not_grow_with_the_text() {
    let sandbox = Sandbox::new();
    let text = english(20 << 20);
    let line = text.replace('\n', " ");
    sandbox.write("small.txt", english(100_000));
    sandbox.write("prose.txt", &text);
    sandbox.write("line.txt", &line);
    sandbox.write("record.jsonl", serde_json::json!({ "text": line }).to_string());
    let observe = |file: &str| {
        let how = format!("{LITTLE} --overwrite --no-left-out --memory-budget 200MB");
        let line = format!("observe golden/models/moe -o st --data {file} {how}");
        peak(&sandbox.run(&line).succeeds())
    };
    let small = observe("small.txt");
    for file in ["prose.txt", "line.txt", "record.jsonl"] {
        let large = observe(file);
        assert!(large < small + 30.0, "{file}: {large} MB, and {small} MB for a small text");
    }
}

#[test]
fn memory_does_not_grow_with_text_that_is_read_from_its_beginning() {
    let sandbox = Sandbox::new();
    sandbox.write("line.txt", english(20 << 20).replace('\n', " "));
    let line = format!("eval golden/models/dense --data line.txt {LITTLE}");
    let outcome = sandbox.run(&line).succeeds();
    assert!(peak(&outcome) < 200.0, "{outcome}");
}

#[test]
fn a_sample_of_a_large_text_depends_on_the_seed_and_nothing_else() {
    let sandbox = Sandbox::new();
    sandbox.write("large.txt", english(5 << 20));
    let statistics = |options: &str| {
        let line = format!(
            "observe golden/models/moe -o st --overwrite --data large.txt --data-tokens 512 --sequence-length 128 \
             --no-left-out {options}"
        );
        sandbox.run(&line).succeeds().says(&["large.txt", "places"]);
        sandbox.read("st")
    };
    let first = statistics("--threads 1");
    assert!(first == statistics("--threads 2 --memory-budget 150MB"));
    assert!(first != statistics("--seed 1"));
}

/// Asserts that `eval` of `content` in the file `name` is refused with the file's name and
/// `complaints`.
#[track_caller]
fn data_refused(name: &str, content: &[u8], complaints: &[&str]) {
    let sandbox = Sandbox::new();
    sandbox.write(name, content);
    let line = format!("eval golden/models/dense --data {name}");
    sandbox.must_refuse(&line, 1, &[complaints, &[name]].concat());
}

#[test]
fn what_is_not_text_is_refused_with_a_way_on() {
    let utf_16 = "\u{feff}some words here".encode_utf16().flat_map(u16::to_le_bytes);
    data_refused("data.parquet", b"PAR1\0\0\0\0PAR1", &["Parquet", "read_parquet"]);
    data_refused("utf16.txt", &utf_16.collect::<Vec<_>>(), &["UTF-16", "iconv -f UTF-16"]);
    data_refused("object.json", br#"{"data": []}"#, &["line 1", "\"data\""]);
    data_refused("cut.gz", b"\x1f\x8b\x08\x00\x00", &["gzip"]);
}

#[test]
fn records_without_text_are_refused_with_a_way_on() {
    data_refused("pretty.jsonl", b"{\n  \"text\": \"a\"\n}", &["line 1", "jq -c ."]);
    let alpaca = br#"{"instruction": "add", "output": "3"}"#;
    let keys = ["line 1", "\"instruction\", \"output\"", "\"text\""];
    data_refused("alpaca.jsonl", alpaca, &keys);
}

/// The second record isn't text, though only two tokens are wanted.
#[test]
fn half_of_a_surrogate_pair_is_refused_with_its_line() {
    let sandbox = Sandbox::new();
    sandbox.write("half.jsonl", format!("{RECORD}\n{}", r#"{"text": "half \ud83d of it"}"#));
    let line = "eval golden/models/dense --data half.jsonl --data-tokens 2";
    sandbox.must_refuse(line, 1, &["line 2", "surrogate pair", "half.jsonl"]);
}

#[test]
fn a_name_with_an_equals_sign_is_taken_for_a_label_and_a_path() {
    let sandbox = Sandbox::new();
    sandbox.write("a=b.txt", "some words here");
    let eval = "eval golden/models/dense --data";
    sandbox.must_refuse(&format!("{eval} a=b.txt"), 1, &["./a=b.txt", "b.txt"]);
    sandbox.run(&format!("{eval} ./a=b.txt")).succeeds();
}

const RECORD: &str = r#"{"text": "some words here"}"#;

/// A file of data that is refused, its text, and words of the error.
type Refused = (&'static str, String, &'static [&'static str]);

/// Files whose lines are no records.
fn lines() -> Vec<Refused> {
    let (record, cut) = (RECORD, &RECORD[..20]);
    vec![
        ("cut.jsonl", format!("{record}\n{record}\n{cut}"), &["line 3", "head -c "]),
        ("bom.jsonl", format!("\u{feff}{record}\n{cut}"), &["line 2", "head -c "]),
        ("broken.jsonl", format!("{record}\n{cut}\n{record}\n"), &["line 2", "sed '2d'"]),
        ("commas.jsonl", format!("{record},\n{record},\n"), &["line 1", "comma", "sed "]),
        ("prose.json", "some words here\nand there".to_owned(), &["not JSON", "cp "]),
        ("prose.jsonl", "some words here\nand there".to_owned(), &["line 1", "cp "]),
        ("two.jsonl", format!("{record} {record}\n"), &["line 1", "trailing", "jq "]),
    ]
}

/// Files whose records or lists of these have another form.
fn forms() -> Vec<Refused> {
    let record = RECORD;
    vec![
        (
            "list.jsonl",
            r#"{"text": ["some words", "more words"]}"#.to_owned(),
            &["line 1", "a list", "jq "],
        ),
        (
            "data.json",
            format!(r#"{{"version": 1, "data": [{record}]}}"#),
            &["line 1", "\"data\"", "jq "],
        ),
        ("data2.json", format!("{{\n\"version\": 1,\n\"rows\": [{record}]}}"), &["rows", "jq "]),
        (
            "content.jsonl",
            r#"{"content": "some words here", "id": 3}"#.to_owned(),
            &["line 1", "content", "jq "],
        ),
        (
            "texts.json",
            r#"["some words", "more words"]"#.to_owned(),
            &["record 1 of the list, on line 1", "'.[] | {text: .}'", "jq "],
        ),
        ("quotes.jsonl", format!(r#"{{"it's \"it\"": [{record}]}}"#), &["line 1", "jq "]),
        ("lists.json", format!(r#"[{{"rows": [{record}]}}]"#), &["record 1", "\"rows\"", "jq "]),
    ]
}

/// The command that an error proposes turns the file into data.
#[test]
fn what_is_proposed_for_a_file_can_be_followed() {
    let sandbox = Sandbox::new();
    let has_jq = crate::common::has(&["jq"], "what is proposed for JSON is run");
    let mut problems = Vec::new();
    for (name, text, complaints) in lines().into_iter().chain(forms()) {
        sandbox.write(name, text);
        let line = format!("eval golden/models/dense --data {name}");
        problems.extend(sandbox.refuses(&line, 1, &[complaints, &[name]].concat()));
        let refused = sandbox.run(&line).stderr;
        let command = proposed_in(&refused);
        if command.starts_with("jq") && !has_jq {
            continue;
        }
        let made = if command.contains("data.txt") { "data.txt" } else { "data.jsonl" };
        let followed = sandbox
            .shell(&format!("{command} && moe-convert eval golden/models/dense --data {made}"));
        if followed.code != 0 {
            problems.push(format!("{refused}{followed}"));
        }
    }
    assert_none(&problems);
}

/// Where a file is read as text though its name says another format, a note says so.
#[test]
fn tables_and_markup_are_taken_for_text_with_a_note() {
    let sandbox = Sandbox::new();
    for (name, note) in [
        ("t.csv", "CSV"),
        ("t.tsv", "separators"),
        ("t.html", "tags"),
        ("t.yaml", "keys"),
        ("t.csv.gz", "gzip"),
    ] {
        sandbox.write(name, "some, words, here\nand, more, there\n");
        if name.ends_with(".gz") {
            sandbox.shell("cp t.csv t2.csv && gzip -f t2.csv && mv t2.csv.gz t.csv.gz").succeeds();
        }
        let outcome = sandbox.run(&format!("eval golden/models/dense --data {name}")).succeeds();
        outcome.says(&[
            name,
            "taken for plain text, one document",
            if name.ends_with("gz") { "CSV" } else { note },
        ]);
    }
}

#[test]
fn plain_text_and_sources_are_read_without_a_note() {
    let sandbox = Sandbox::new();
    for name in ["t.txt", "t.md", "t.py", "t"] {
        sandbox.write(name, "some words here");
        let outcome = sandbox.run(&format!("eval golden/models/dense --data {name}")).succeeds();
        assert!(!outcome.stderr.contains("taken for"), "{outcome}");
    }
}

/// A path in the wrong place is refused with a message that says what belongs there.
#[test]
fn wrong_places_say_what_belongs_there() {
    let sandbox = Sandbox::new();
    sandbox.write("file.md", "words");
    sandbox.write("prompts.json", "[3]");
    sandbox.shell("mkdir recipes && touch recipes/b.toml recipes/a.toml").succeeds();
    let prompts = "upcycle golden/models/dense -o out --experts 2 --top-k 1 --router prompts --prompts prompts.json";
    let cases: [(&str, i32, &[&str]); 5] = [
        ("run golden/models/moe", 1, &["a recipe is a file", "this is a checkpoint"]),
        ("run recipes", 1, &["a recipe is a file", "recipes/a.toml"]),
        ("run golden/models", 1, &["a recipe is a file", "docs/recipes.md"]),
        ("man file.md", 2, &["file.md", "man pages go to a directory"]),
        (prompts, 1, &["prompts.json", "an object is expected", "positive"]),
    ];
    let problems = cases
        .iter()
        .filter_map(|(line, code, complaints)| sandbox.refuses(line, *code, complaints));
    assert_none(&problems.collect::<Vec<_>>());
}

/// The command that an error proposes, from the first of its programs on.
fn proposed_in(refused: &str) -> &str {
    let programs = ["head -c ", "sed ", "cp ", "jq "];
    let at = programs.iter().filter_map(|program| refused.find(program)).min();
    refused[at.unwrap_or_default()..].trim()
}

/// Records on the second line of a file, and what is said of them.
const BAD_RECORDS: [(&str, &[&str]); 11] = [
    (r#"{"messages": []}"#, &["line 2: \"messages\" has no message"]),
    (r#"{"messages": ["a"]}"#, &["line 2: a message is not an object"]),
    (r#"{"messages": [[{"role": "user"}]]}"#, &["line 2: a message is not an object"]),
    (r#"{"messages": "a"}"#, &["line 2: \"messages\" is not a list"]),
    (
        r#"{"messages": [{"role": "user"}], "tools": "[]"}"#,
        &["line 2: \"tools\" is not a list of objects"],
    ),
    (
        r#"{"messages": [{"role": "system"}]}"#,
        &["line 2 of chat.jsonl", "no user", "model/chat_template.jinja"],
    ),
    (
        r#"{"messages": [{"role": "user", "content": 1}]} {}"#,
        &["line 2: trailing characters", "jq -c ."],
    ),
    (r#"{"text": ["a"]}"#, &["line 2", "expected a string"]),
    (r#"{"input_ids": [[1, 2]]}"#, &["line 2", "token id"]),
    (
        r#"{"input_ids": [1, 2, 3], "attention_mask": [1]}"#,
        &["line 2: 3 token ids, but an attention_mask of 1"],
    ),
    ("// words", &["line 2"]),
];

/// A sandbox with a model whose template wants a user.
fn with_template() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("models/dense", "model");
    sandbox.write(
        "model/chat_template.jinja",
        "{% if messages[0].role != 'user' %}{{ raise_exception('no user') }}{% endif %}{{ messages[0].content }}",
    );
    sandbox
}

/// An error about a record names its line. Where another file is to blame, it names that file and
/// the record's.
#[test]
fn a_record_that_is_refused_is_named_with_its_line() {
    let sandbox = with_template();
    let first = r#"{"messages": [{"role": "user", "content": "some words here"}]}"#;
    let deep =
        format!("{{\"messages\": [{{\"content\": {}{}}}]}}", "[".repeat(200), "]".repeat(200));
    let too_deep = (deep.as_str(), &["line 2: recursion limit", "at most 120 deep"][..]);
    let mut problems = Vec::new();
    for (record, complaints) in BAD_RECORDS.into_iter().chain([too_deep]) {
        sandbox.write("chat.jsonl", format!("{first}\n{record}\n"));
        let complaints = [complaints, &["chat.jsonl"]].concat();
        problems.extend(sandbox.refuses("eval model --data chat.jsonl", 1, &complaints));
    }
    assert_none(&problems);
}

#[test]
fn commas_too_many_in_a_list_are_named() {
    let sandbox = with_template();
    let mut problems = Vec::new();
    for list in [
        "[{\"text\": \"a b c\"},]",
        "[{\"text\": \"a b c\"},,{\"text\": \"d\"}]",
        "[,{\"text\": \"a\"}]",
    ] {
        sandbox.write("list.json", list);
        problems.extend(sandbox.refuses(
            "eval model --data list.json",
            1,
            &["list.json", "comma", "jq"],
        ));
    }
    assert_none(&problems);
}

/// Commands that read the file `pipe`.
const READ_PIPES: [&str; 13] = [
    "eval golden/models/dense --data pipe",
    "eval golden/models/dense --data a=pipe@0.5",
    "logits golden/models/dense --tokens pipe -o out",
    "observe golden/models/moe -o out --data ids.jsonl --add pipe",
    "prune golden/models/moe -o out --experts 12 --data pipe",
    "prune golden/models/moe -o out --experts 12 --stats pipe",
    "prune golden/models/moe -o out --plan pipe",
    "prune golden/models/moe -o out --experts 12 --criterion random --held-out pipe",
    "quantize golden/models/moe -o out --scheme w4a16 --data ids.jsonl --pool pipe --top-up-below 1",
    "heal golden/models/moe -o out --data pipe",
    "heal golden/models/moe -o out --data ids.jsonl --held-out pipe",
    "upcycle golden/models/dense -o out --experts 2 --top-k 1 --router prompts --prompts pipe",
    "run pipe",
];

/// A pipe in place of an input file has no writer, so that opening it would wait.
#[test]
fn no_input_is_waited_for() {
    let sandbox = Sandbox::new();
    sandbox.write("ids.jsonl", "{\"input_ids\": [5, 6, 7]}\n");
    sandbox.shell("mkfifo pipe").succeeds();
    let mut problems = Vec::new();
    for line in READ_PIPES {
        let outcome = sandbox.shell(&format!("timeout -s KILL 20 '{BINARY}' {line}"));
        let said = ["pipe", "remedy"].iter().all(|word| outcome.stderr.contains(word));
        if ![1, 2].contains(&outcome.code) || !said {
            problems.push(outcome.to_string());
        }
    }
    assert_none(&problems);
}

#[test]
fn too_little_text_says_what_became_of_it() {
    let sandbox = Sandbox::new();
    let record = format!(r#"{{"input_ids": {:?}}}"#, (0..33).collect::<Vec<u32>>());
    sandbox.write("some.jsonl", vec![record; 100].join("\n"));
    let line = "distill golden/models/moe -o out --data some.jsonl --sequence-length 32 --data-tokens 1024";
    let problem = sandbox.refuses(
        line,
        2,
        &[
            "here are 896",
            "128 tokens here, is held out",
            "3300 tokens of 100 documents",
            "2176",
            "100 alone at the end",
        ],
    );
    assert_none(&problem.into_iter().collect::<Vec<_>>());
}

/// Python skips a line of white space of any length.
#[test]
fn blank_lines_of_any_length_are_skipped() {
    let sandbox = Sandbox::new();
    let record = "{\"text\": \"The quick brown fox jumps over the lazy dog.\"}\n";
    let tokens = |blank: &str| {
        sandbox.write("t.jsonl", format!("{record}{blank}\n{record}"));
        sandbox.run("eval golden/models/moe --data t.jsonl --json").succeeds().json()["report"]["all"]["tokens"].clone()
    };
    let expected = tokens("");
    assert!(expected.as_u64().is_some_and(|tokens| tokens > 0), "{expected}");
    assert_eq!(tokens(&" ".repeat(3_000_000)), expected);
    let stats =
        "observe golden/models/moe -o stats --data t.jsonl --data-tokens 8 --sequence-length 4";
    sandbox.run(stats).succeeds();
}

#[test]
fn a_tokenizer_that_is_random_is_refused() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/moe", "model");
    let mut tokenizer: serde_json::Value = sandbox.json("model/tokenizer.json");
    tokenizer["model"]["dropout"] = 0.5.into();
    model.write("tokenizer.json", tokenizer.to_string());
    sandbox.write("t.txt", "some text that has tokens");
    let problem =
        sandbox.refuses("eval model --data t.txt", 1, &["tokenizer.json", "dropout", "null"]);
    assert_none(&problem.into_iter().collect::<Vec<_>>());
}
