//! Compiles `kernels/*.cu` to PTX if CUDA is built in, with the nvcc that candle also needs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: [&str; 3] = ["cholesky", "mix", "round"];

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let nvcc = env::var_os("CUDA_HOME")
        .map_or_else(|| "nvcc".into(), |home| Path::new(&home).join("bin/nvcc"));
    for source in SOURCES {
        // The driver compiles PTX of compute capability 8.0 further for the GPU that it finds.
        // -fmad=false rounds products and sums one by one, as the references on the host do;
        // otherwise a code near a tie could differ.
        let status = Command::new(&nvcc)
            .args(["-ptx", "-O3", "-std=c++17", "-fmad=false", "-arch=compute_80", "-o"])
            .arg(out.join(source).with_extension("ptx"))
            .arg(format!("kernels/{source}.cu"))
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("nvcc can't compile kernels/{source}.cu: {status}"),
            Err(error) => {
                panic!("cannot run {}: {error}; scripts/build-cuda.sh gets nvcc", nvcc.display())
            }
        }
    }
}
