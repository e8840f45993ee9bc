//! Results on stdout.

use std::io::Write as _;

use anyhow::Result;
use moe_checkpoint::{Error, json, shown};

/// Writes a result, without control characters that a terminal would obey; JSON has none.
pub fn write_stdout(output: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(shown(output, "\n\t").as_bytes()).and_then(|()| stdout.flush()) {
        // A reader that has seen enough, such as head, is not a failure.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other.map_err(|e| Error::io("cannot write the result", "stdout", e))?),
    }
}

/// Prints `error` as JSON. If stdout can't be written to, the error is on stderr already.
pub fn print_error(error: &Error) {
    _ = write_stdout(&json::to_pretty(&serde_json::json!({ "error": error })));
}
