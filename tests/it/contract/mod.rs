//! Tests the contract of the command line: exit codes, what goes to stdout and stderr, and the
//! content of outputs.

mod bytes;
mod machine;
mod streams;
mod transformers;

const LOGITS: &str =
    "logits golden/models/dense --tokens golden/models/dense.tokens.json -o logits.safetensors";

const UPCYCLE: &str = "upcycle golden/models/dense -o out --experts 4 --top-k 2";
