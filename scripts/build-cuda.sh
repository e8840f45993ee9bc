#!/usr/bin/env bash
# Builds the release binary with CUDA on a machine that needs neither a GPU nor a CUDA toolkit:
# nvcc comes from pinned PyPI wheels; the CUDA libraries are opened (dlopen) only when the program runs.
#
#   scripts/build-cuda.sh [cargo options]           builds (12 minutes of nvcc, once) and prints the binary's path
#   scripts/build-cuda.sh --check [cargo options]   clippy on every #[cfg(feature = "cuda")] line, without nvcc
#   scripts/build-cuda.sh --kernels                 our kernels as machine code of three generations of GPUs; fails where registers spill
#
# PTX of compute capability 8.0 is what the driver compiles on for A100, RTX 30, L40, H100 and newer when the program first runs.
# CUDA_COMPUTE_CAP=90 and above gives candle's kernels for one generation alone (90 becomes sm_90a). `-p CRATE` replaces the default, -p moe-convert.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
host=$(rustc -vV | sed -n 's/^host: //p')
if [[ ${1:-} == --check ]]; then
  shift
  # Nothing is linked here, so that cudarc needs no flag, and all that CUDA doesn't change is what clippy without it has compiled.
  export CARGO_TARGET_DIR=$target CUDA_HOME=$target/cuda-check CUDA_COMPUTE_CAP=80
  mkdir -p "$CUDA_HOME/bin"
  cat >"$CUDA_HOME/bin/nvcc" <<'NVCC'
#!/bin/sh
# Stands in for nvcc: names a version for cudarc, leaves empty files for candle-kernels.
[ "$1" != --version ] || printf '\n\n\nCuda compilation tools, release 13.0, V13.0.88\n'
while [ $# -gt 0 ]; do
  case $1 in -o) : >"$2" ;; --output-directory) folder=$2 ;; *.cu) source=$1 ;; esac
  shift
done
[ -z "${folder:-}" ] || : >"$folder/$(basename "$source" .cu).ptx"
NVCC
  chmod +x "$CUDA_HOME/bin/nvcc"
  export PATH=$CUDA_HOME/bin:$PATH
  exec cargo clippy --release --workspace --all-targets --locked --features moe-convert/cuda "$@" -- -D warnings
fi
# CUDA 12's wheels hold no compiler; --no-deps leaves out the libraries, which the build doesn't need.
wheels=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)
toolkit=$(scripts/cached cuda "${wheels[@]}")
export CUDA_HOME=$toolkit/nvidia/cu13
if [[ ! -e $toolkit/.complete ]]; then
  python3 -m pip install -q --root-user-action=ignore --no-deps --upgrade --target "$toolkit" "${wheels[@]}" >&2
  # Empty archives satisfy cudarc's -l flags; the CUDA runtime is linked in statically.
  for lib in cuda cublas cublasLt curand nvrtc cusolver cusparse; do ar rcs "$CUDA_HOME/lib/lib$lib.a"; done
  ln -sf libcudart_static.a "$CUDA_HOME/lib/libcudart.a"
  touch "$toolkit/.complete"
fi
# A target folder of its own: the RUSTFLAGS below would make cargo rebuild the CPU-only artifacts.
export CARGO_TARGET_DIR=$target/cuda
mkdir -p "$CARGO_TARGET_DIR"

if [[ ${1:-} == --kernels ]]; then
  for source in crates/moe-math/kernels/*.cu; do
    for generation in 80 90 100; do
      "$CUDA_HOME/bin/nvcc" -cubin -O3 -std=c++17 -fmad=false -arch=sm_$generation -Werror all-warnings -Xptxas -v,-Werror,--warn-on-spills \
        -o "$target/cuda/${source##*/}.$generation.cubin" "$source" 2>&1 | awk '/Compiling/ { kernel = $7 " for " $9 } /Used/ { print kernel ": " $5, "registers" } !/ptxas info|stack frame/'
    done
  done
  exit
fi

export PATH=$CUDA_HOME/bin:$PATH CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$(nproc)}
# cudarc switches to dlopen on this cfg, though candle asks it for dynamic linking: internals of cudarc 0.19.10, so
# Cargo.toml locks its version and candle's. An explicit --target keeps the flag away from build scripts.
export RUSTFLAGS="${RUSTFLAGS:-} --cfg feature=\"dynamic-loading\""
[[ " $* " == *" -p "* ]] || set -- -p moe-convert "$@"
features=cuda
[[ " $* " != *" -p moe-convert "* ]] || features=cuda,goldens
cargo build --release --locked --features "$features" --target "$host" "$@" >&2
[[ " $* " != *" -p moe-convert "* ]] || echo "$CARGO_TARGET_DIR/$host/release/moe-convert"
