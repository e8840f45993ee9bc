//! Tests that text and conversations give the tokens that transformers gives.

use std::fs;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::common::{Sandbox, assert_none};

fn rows(message: impl Fn(usize) -> Value) -> String {
    (0..40).map(|index| json!({ "messages": message(index) }).to_string() + "\n").collect()
}

fn counted(sandbox: &Sandbox) -> u64 {
    let found = sandbox.run("eval model --data chat.jsonl --json").succeeds().json();
    found["report"]["all"]["tokens"].as_u64().unwrap()
}

/// Adds rows for two more tokens to the model's embeddings.
fn two_more_tokens(sandbox: &Sandbox) {
    let path = sandbox.path("model/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let mut tensors = Vec::new();
    for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
        if name == "model.embed_tokens.weight" || name == "lm_head.weight" {
            let row = data.len() / shape[0];
            shape[0] += 2;
            data.extend_from_within(..2 * row);
        }
        tensors.push((name, view.dtype(), shape, data));
    }
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn a_conversation_with_tools_has_the_tokens_of_transformers() {
    let sandbox = Sandbox::new();
    sandbox.copy("models/moe", "model");
    let template = "{% if tools is not none %}TOOLS:{{ tools }}\n{% endif %}{% for m in messages %}\
        {{ m['role'] + ': ' }}{% if m['content'] %}{{ m['content'] }}{% endif %}{% if m['tool_calls'] %}\
        {% for c in m['tool_calls'] %}<tool_call>{{ c.function.arguments | tojson }}</tool_call>{% endfor %}{% endif %}\
        {{ '\\n' }}{% endfor %}";
    sandbox.write("model/chat_template.jinja", template);
    let data = rows(|i| {
        let arguments = json!({
            "z": format!("a < b & c's > {i}"), "left": i, "city": "Zürich", "on": true, "none": null,
        });
        let call = json!({"type": "function", "function": {"name": "cmp", "arguments": arguments}});
        json!([
            {"role": "user", "content": format!("Is {i} < {}?", i + 1)},
            {"role": "assistant", "content": null, "tool_calls": [call]},
        ])
    });
    sandbox.write("chat.jsonl", data);
    // The number that transformers 5.23 gives for the same folder.
    assert_eq!(counted(&sandbox), 3281);
}

/// Numbers of JSON, and what Python 3.11 prints for json.loads of each; -0 is the integer 0.
const NUMBERS: [(&str, &str); 12] = [
    ("NaN", "nan"),
    ("Infinity", "inf"),
    ("-Infinity", "-inf"),
    ("-0", "0"),
    ("-0.0", "-0.0"),
    ("1e400", "inf"),
    ("-1e400", "-inf"),
    ("1e16", "1e+16"),
    ("12345678901234567890", "12345678901234567890"),
    ("1180591620717411303424", "1180591620717411303424"),
    ("-1180591620717411303424", "-1180591620717411303424"),
    ("1.0", "1.0"),
];

/// A sandbox with a model whose template is this.
fn with_template(template: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.copy("models/moe", "model");
    sandbox.write("model/chat_template.jinja", template);
    sandbox
}

/// What is measured on these records.
fn evaluated(sandbox: &Sandbox, records: impl AsRef<[u8]>) -> serde_json::Value {
    sandbox.write("chat.jsonl", records);
    let found = sandbox.run("eval model --data chat.jsonl --json").succeeds().json();
    found["report"]["all"].clone()
}

/// Numbers that only Python reads may stand anywhere in a record, and templates write them as
/// Python does.
#[test]
fn numbers_that_only_python_reads_are_what_python_makes_of_them() {
    let row = |number: &str| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": {number}}}], \"id\": {number}}}\n"
        )
    };
    let sandbox = with_template(
        "{% for m in messages %}{{ m.content }} {{ m.content is number }}\n{% endfor %}",
    );
    let of_numbers = evaluated(&sandbox, NUMBERS.map(|(number, _)| row(number)).concat());
    let sandbox = with_template("{% for m in messages %}{{ m.content }} True\n{% endfor %}");
    let texts = NUMBERS.map(|(_, text)| row(&format!("\"{text}\""))).concat();
    assert_eq!(of_numbers, evaluated(&sandbox, texts));
}

/// The same numbers as masks and ids: NaN is true, -0 is the token 0.
#[test]
fn numbers_that_only_python_reads_may_be_masks_and_ids() {
    let sandbox = with_template("");
    let masked = evaluated(
        &sandbox,
        "{\"input_ids\": [5, -0, 6, 7, 8], \"attention_mask\": [NaN, 1, -0, 1e400, 1180591620717411303424]}\n",
    );
    let plain = "{\"input_ids\": [5, 0, 7, 8], \"attention_mask\": [1, 1, 1, 1]}\n";
    assert_eq!(masked, evaluated(&sandbox, plain));
    for id in ["NaN", "1e400", "1180591620717411303424", "5.0"] {
        sandbox.write("chat.jsonl", format!("{{\"input_ids\": [5, {id}]}}\n"));
        assert_none(
            &sandbox
                .refuses("eval model --data chat.jsonl", 1, &["chat.jsonl", "line 1"])
                .into_iter()
                .collect::<Vec<_>>(),
        );
    }
}

/// A special token as tokenizer_config.json lists it.
fn special_token(content: &str) -> Value {
    json!({"content": content, "lstrip": false, "rstrip": false, "normalized": false,
           "single_word": false, "special": true})
}

#[test]
fn special_tokens_that_only_the_config_lists_are_tokens() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/moe", "model");
    model.set("vocab_size", json!(2050));
    two_more_tokens(&sandbox);
    let listed = [("0", "<|endoftext|>"), ("2048", "<|im_start|>"), ("2049", "<|im_end|>")];
    let listed: Value =
        listed.map(|(id, content)| (id, special_token(content))).into_iter().collect();
    model.edit_json("tokenizer_config.json", |config| {
        config.insert("added_tokens_decoder".into(), listed);
    });
    let message = "'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'";
    let template = format!("{{% for m in messages %}}{{{{ {message} }}}}{{% endfor %}}");
    sandbox.write("model/chat_template.jinja", template);
    let data = rows(|i| {
        json!([
            {"role": "user", "content": format!("What is {i} plus {i}?")},
            {"role": "assistant", "content": format!("It is {}. ", 2 * i).repeat(8)},
        ])
    });
    sandbox.write("chat.jsonl", data);
    // The number that transformers 5.23 gives for the same folder.
    assert_eq!(counted(&sandbox), 3220);
}

/// Python reads the last of two equal keys, and ignores the first.
#[test]
fn the_last_of_two_equal_keys_counts() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/moe", "model");
    let line = "eval model --data golden/text/english.heldout.txt --data-tokens 64 --json";
    let sound = sandbox.run(line).succeeds().stdout;
    for (file, first) in [
        ("config.json", r#""hidden_size": 7"#),
        ("tokenizer_config.json", r#""tokenizer_class": 7"#),
        ("tokenizer.json", r#""added_tokens": []"#),
    ] {
        let path = format!("model/{file}");
        let text = String::from_utf8(sandbox.read(&path)).unwrap();
        let key = first.split(':').next().unwrap();
        assert!(text.contains(key), "{file}");
        model.write(file, text.replacen('{', &format!("{{{first}, "), 1));
        assert_eq!(sandbox.run(line).succeeds().stdout, sound, "{file}");
        model.write(file, text);
    }
}

#[test]
fn tokens_without_an_embedding_are_refused_where_they_are_used() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/dense", "model");
    sandbox.write("text.txt", "some words [PAD] and more of them");
    model.edit_json("tokenizer_config.json", |config| {
        _ = config.insert("pad_token".into(), json!("[PAD]"))
    });
    let complaints = ["\"[PAD]\"", "2048", "tokenizer.json", "resize_token_embeddings"];
    sandbox.must_refuse("eval model --data text.txt", 1, &complaints);
    sandbox.write("text.txt", "some words and more of them");
    sandbox.run("eval model --data text.txt").succeeds();
}

#[test]
fn templates_without_end_are_refused_at_once() {
    let sandbox = Sandbox::new();
    sandbox.copy("models/dense", "model");
    sandbox.write(
        "chat.jsonl",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi there my friend\"}]}\n",
    );
    for expression in [
        "{{".to_owned() + &"-".repeat(20_000) + "1}}",
        "{{ 1".to_owned() + &"+1".repeat(50_000) + "}}",
        "{{ x".to_owned() + &".y".repeat(50_000) + "}}",
    ] {
        sandbox.write("model/chat_template.jinja", expression);
        let complaints = ["chat_template.jinja", "nested more than 1000 deep"];
        sandbox.must_refuse("eval model --data chat.jsonl --data-tokens 8", 1, &complaints);
    }
}

#[test]
fn tokenizers_without_end_are_refused_at_once() {
    let sandbox = Sandbox::new();
    let model = sandbox.copy("models/dense", "model");
    sandbox.write("text.txt", "a few words");
    let replace = json!({"type": "Replace", "pattern": {"String": "e"}, "content": "ee"});
    for normalizer in [
        json!({"type": "Sequence", "normalizers": vec![replace; 60]}),
        json!({"type": "Prepend", "prepend": "e".repeat(100_000)}),
    ] {
        model.edit_json("tokenizer.json", |tokenizer| {
            _ = tokenizer.insert("normalizer".into(), normalizer)
        });
        let complaints = ["tokenizer.json", "multiplies"];
        sandbox.must_refuse("eval model --data text.txt", 1, &complaints);
    }
}
