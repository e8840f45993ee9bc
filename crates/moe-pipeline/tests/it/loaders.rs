//! `verify` agrees with transformers' verdict on each checkpoint (`golden/loaders/verdicts.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use moe_checkpoint::json;
use moe_model::{Answer, Kind, Model, Verdict};
use moe_passes::QuantizeOptions;
use moe_pipeline::{ConvertOptions, Quiet, convert, plan, verify};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::common::{golden, run_again};

const NEWER: &str = "5.23.0";
const OLDER: &str = "4.57.6";
/// Values that transformers accepts and this program refuses by name: texts for numbers, patterns
/// that ignore everything, more experts per token than the groups have.
const UNREAD: [&str; 4] = ["\"rope_theta\":\"50\"", "re:.*", "-num_experts_per_tok", "-topk_group"];

#[derive(Deserialize)]
struct Tried {
    case: Case,
    /// The error by version; null where the version loads it.
    says: BTreeMap<String, Option<String>>,
}

#[derive(Deserialize)]
struct Case {
    golden: String,
    config: Map<String, Value>,
    files: Map<String, Value>,
    /// Texts in the header of the weights, and their replacements.
    #[serde(default)]
    header: Vec<(String, String)>,
}

impl Case {
    fn write(&self, to: &Path) {
        copy(&golden(&self.golden), to);
        edit(&to.join("config.json"), |config| {
            self.config.iter().for_each(|(path, value)| set(config, path, value))
        });
        for (name, content) in &self.files {
            match content.as_object() {
                Some(keys) => edit(&to.join(name), |file| {
                    keys.iter().for_each(|(key, value)| file[key] = value.clone())
                }),
                None => fs::write(to.join(name), content.as_str().unwrap()).unwrap(),
            }
        }
        if !self.header.is_empty() {
            edit_header(&to.join("model.safetensors"), &self.header);
        }
    }

    fn said(&self) -> String {
        let (config, files) = (Value::from(self.config.clone()), Value::from(self.files.clone()));
        match self.header.is_empty() {
            true => format!("{} {config} {files}", self.golden),
            false => format!("{} {:?}", self.golden, self.header),
        }
    }
}

fn is_refused(verdict: &Verdict) -> bool {
    verdict.engine.ends_with(NEWER) && verdict.answer == Answer::Refuses
}

fn edit_header(file: &Path, edits: &[(String, String)]) {
    let whole = fs::read(file).unwrap();
    let end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let said = str::from_utf8(&whole[8..end]).unwrap().to_owned();
    let header = edits.iter().fold(said, |header, (old, new)| header.replace(old, new));
    fs::write(
        file,
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &whole[end..]].concat(),
    )
    .unwrap();
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
    }
}

/// The cases of `golden/loaders/verdicts.json`. Some values are valid only in Python's JSON.
fn verdicts() -> Vec<Tried> {
    let text = fs::read_to_string(golden("loaders/verdicts.json")).unwrap();
    serde_json::from_str(&json::keep_python(&text)).unwrap()
}

fn edit(file: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = Value::from(json::read_python(file).unwrap());
    edit(&mut value);
    fs::write(file, json::to_pretty_python(&value)).unwrap();
}

/// Sets the value at `path`, or removes it if the path begins with `-`.
fn set(config: &mut Value, path: &str, value: &Value) {
    let (remove, path) = path.strip_prefix('-').map_or((false, path), |path| (true, path));
    let (parents, key) = path.rsplit_once('/').unwrap_or(("", path));
    let at = if parents.is_empty() {
        config
    } else {
        config.pointer_mut(&format!("/{parents}")).unwrap()
    };
    match remove {
        true => _ = at.as_object_mut().unwrap().remove(key),
        false => at[key] = value.clone(),
    }
}

#[test]
fn what_transformers_refuses_is_not_sound_and_what_it_takes_is() {
    let (mut problems, mut unmended) = (Vec::new(), Vec::new());
    for Tried { case, says } in verdicts() {
        let dir = tempfile::tempdir().unwrap();
        case.write(dir.path());
        let found = verify(dir.path(), &Quiet);
        match (&says[NEWER], found) {
            (None, Err(error)) if error.kind() == Kind::Unsupported => {}
            (None, Err(_)) if UNREAD.iter().any(|part| case.said().contains(part)) => {}
            (None, Err(error)) => {
                problems.push(format!("{}\n  is taken; verify: {error}", case.said()))
            }
            // For quantized experts, each engine has its own verdict.
            (Some(_), Ok(report)) if report.engines.iter().any(is_refused) => {}
            (Some(why), Ok(report)) => problems.push(format!(
                "{}\n  {why}\n  verify: sound; {:?} {:?}",
                case.said(),
                report.notes,
                report.engines
            )),
            _ => {}
        }
        // A pass writes a result that loaders accept, or nothing.
        if let Ok(model) = Model::open(dir.path())
            && let Ok(written) = model.declare()
            && !written.reread().unwrap().refused_config().is_empty()
        {
            unmended.push(case.said());
        }
    }
    // Nothing says which way of choosing experts is meant.
    assert_eq!(unmended, ["families/deepseek_v2/base/model {\"topk_method\":null} {}"]);
    assert!(problems.is_empty(), "{} problems\n\n{}\n", problems.len(), problems.join("\n\n"));
}

/// The problem of the cheapest pass on a tiny mixture of experts with the side files of `case`, if
/// there is one.
fn side_files_problem(case: &Case, is_taken: bool) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let (from, model, output) =
        (dir.path().join("from"), dir.path().join("model"), dir.path().join("out"));
    [&from, &model].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
    case.write(&from);
    ["config.json", "model.safetensors"]
        .iter()
        .for_each(|name| fs::remove_file(from.join(name)).unwrap());
    copy(&golden("families/qwen3_moe/base/model"), &model);
    copy(&from, &model);
    let options: QuantizeOptions =
        toml::from_str("scheme = \"w8a16\"\nsolver = \"rtn\"\ngroup-size = -1").unwrap();
    let run = ConvertOptions { probe_tokens: 0, ..run_again() };
    if is_taken {
        let refused = plan(&[&options], 1, false, &model, &output, &run).err();
        return refused.map(|error| format!("not converted: {error}"));
    }
    match convert(&[&options], &model, &output, &run, &Quiet) {
        Ok(done) => {
            let is_said = done
                .receipt
                .warnings
                .iter()
                .any(|warning| warning.contains("generation_config.json"));
            let unsound = verify(&output, &Quiet).err().map(|error| format!("verify: {error}"));
            unsound.or((!is_said).then(|| "nothing is said of what was left out".to_owned()))
        }
        Err(error) => {
            // Faulty keys of generation_config.json are removed; all others are refused with
            // nothing written.
            let is_right = error.kind() == Kind::Malformed && error.to_string().contains("remedy");
            let can_be = !case.files.contains_key("generation_config.json");
            (!is_right || !can_be || output.exists()).then(|| format!("not converted: {error}"))
        }
    }
}

#[test]
fn what_a_pass_writes_is_sound_whatever_lies_beside_the_source() {
    let problems: Vec<String> = verdicts()
        .iter()
        .filter(|tried| !tried.case.files.is_empty())
        .filter_map(|Tried { case, says }| {
            let problem = side_files_problem(case, says[NEWER].is_none())?;
            Some(format!("{}\n  {problem}", case.said()))
        })
        .collect();
    assert!(problems.is_empty(), "{} problems\n\n{}\n", problems.len(), problems.join("\n\n"));
}

/// The notes of `verify` on a sound case; None where this program can't read it.
fn notes(case: &Case) -> Option<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    case.write(dir.path());
    let found = verify(dir.path(), &Quiet).ok()?;
    let engines = found.engines.iter().map(|verdict| format!("{verdict:?}"));
    Some(found.notes.into_iter().chain(engines).collect())
}

#[test]
fn what_older_versions_refuse_and_the_newer_takes_is_said() {
    let verdicts = verdicts();
    let is_plain =
        |case: &Case| case.config.is_empty() && case.files.is_empty() && case.header.is_empty();
    let plain: BTreeMap<&str, Vec<String>> = verdicts
        .iter()
        .filter(|tried| is_plain(&tried.case) && tried.says[OLDER].is_none())
        .map(|tried| (tried.case.golden.as_str(), notes(&tried.case).unwrap()))
        .collect();
    let mut problems = Vec::new();
    for Tried { case, says } in &verdicts {
        let (Some(plain), Some(why), None) =
            (plain.get(case.golden.as_str()), &says[OLDER], &says[NEWER])
        else {
            continue;
        };
        if notes(case).is_some_and(|notes| notes.iter().all(|note| plain.contains(note))) {
            problems.push(format!("{}\n  {why}", case.said()));
        }
    }
    assert!(problems.is_empty(), "{} problems\n\n{}\n", problems.len(), problems.join("\n\n"));
}
