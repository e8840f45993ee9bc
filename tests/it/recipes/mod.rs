//! Tests `run`: recipes with variables, blocks for combinations, resume, dry runs and gates.

mod before_any_step;
mod combinations;
mod defaults;
mod dry_runs;
mod finished;
mod gates;
mod steps;

use crate::common::Sandbox;

const RECIPE: &str = r#"
[vars]
out = "result"

[[step]]
run = "upcycle"
model = "golden/models/dense"
output = "${out}/moe"
experts = 4
top-k = 2

[[step]]
run = "verify"
model = "${out}/moe"

[[step]]
run = "eval"
model = "${out}/moe"
original = "golden/models/dense"
data = ["english=golden/text/english.heldout.txt"]
data-tokens = 128
gates = { max-kl = 1e-6, min-agreement = 0.99 }
"#;

const SHARED: &str = r#"
[vars]
out = "result"
[[step]]
each.bits = [4, 8]
[[step.step]]
run = "prune"
model = "golden/models/moe"
output = "${out}/pruned"
keep = 0.5
criterion = "random"
[[step.step]]
run = "prune"
model = "golden/models/moe"
output = "${out}/pruned-${bits}"
keep = 0.75
criterion = "random"
[[step.step]]
run = "quantize"
model = "${out}/pruned-${bits}"
output = "${out}/w${bits}"
scheme = "w${bits}a16"
solver = "rtn"
group-size = 32
"#;

fn sandbox(recipe: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", recipe);
    sandbox
}
