//! Compares the sources of `kernels/` with the references here, bit for bit.
//!
//! A C compiler makes host functions of them. Rust needs one for linking anyway.

use std::process::Command;
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use libloading::Library;

use super::cholesky::DiagonalBlock;
use super::grids::{Grids, group_grids};
use super::mix::{Adding, CombineTable, add_outputs};
use super::round::{RoundBlock, Settle, round_block, settle};
use super::{Arguments, Geometry, int};
use crate::quantize::GridScheme;
use crate::quantize::grid::{CLIPS, Grid};
use crate::sampling::{generator, normal};

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("kernels.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/host.c");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut compile = Command::new(compiler);
        compile.args(["-std=c11", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas"]);
        compile.args(["-x", "c", "-shared", "-fPIC", "-pthread", "-o"]);
        let done = compile.arg(&out).arg(source).arg("-lm").output().expect("a C compiler runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        // SAFETY: the library has no initializers.
        unsafe { Library::new(&out) }.unwrap()
    })
}

/// Runs the kernel of `arguments`.
fn on_host<A: Arguments>(arguments: A) {
    type Run<A> = unsafe extern "C" fn(*const A, i32, i32, i32);
    let (library, name, Geometry { blocks: [x, y], threads }) =
        (library(), arguments.kernel(), arguments.geometry());
    // SAFETY: host.c declares both this way; `Arguments` promises that the structure is the
    // kernel's.
    unsafe {
        let size = library
            .get::<unsafe extern "C" fn() -> usize>(format!("size_{name}").as_bytes())
            .unwrap();
        assert_eq!(size(), size_of::<A>(), "C declares the arguments of {name} otherwise");
        let run = library.get::<Run<A>>(format!("host_{name}").as_bytes()).unwrap();
        run(&arguments, int(x), int(y), int(threads));
    }
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_kernel_rounds_the_columns_of_a_block_as_the_reference() {
    for (experts, size, rows, columns) in
        [(2, 32, 130, 32), (3, 7, 128, 1), (1, 1, 5, 1), (2, 32, 300, 1)]
    {
        let random = |count: usize, stream| normal(count, 1.0, &mut generator(1, stream));
        let weight = random(experts * size * rows, 0);
        let fed: Vec<f32> = random(weight.len(), 1).iter().map(|value| value * 0.1).collect();
        let feedback = random(experts * size * size, 2);
        let scales = random(experts * columns * rows, 3).into_iter().map(|scale| 0.1 + scale.abs());
        let zeros = random(experts * columns * rows, 4).into_iter().map(f32::round);
        let grids: Vec<f32> = scales.chain(zeros).collect();
        let block = [experts, size, rows];
        let found = round_block(
            &tensor(&weight, &block),
            &tensor(&fed, &block),
            &tensor(&feedback, &[experts, size, size]),
            &tensor(&grids, &[2, experts, columns, rows]),
            [-8.0, 7.0],
        );
        let found = found.unwrap();
        let mut state = [weight.clone(), fed.clone(), fed.clone()].concat();
        on_host(RoundBlock {
            state: state.as_mut_ptr(),
            feedback: feedback.as_ptr(),
            grids: grids.as_ptr(),
            experts: int(experts),
            size: int(size),
            rows: int(rows),
            columns: int(columns),
            low: -8.0,
            high: 7.0,
        });
        assert_eq!(
            state,
            [values(&found.errors), values(&found.codes), values(&found.missed)].concat()
        );
        // Checks the first column by hand; no other column of the block feeds it.
        for n in 0..rows {
            let (scale, zero) = (grids[n], grids[experts * columns * rows + n]);
            let code = ((weight[n] + fed[n]) / scale + zero).clamp(-8.0, 7.0).round_ties_even();
            let (value, plane) = ((code - zero) * scale, weight.len());
            assert_eq!([state[n], state[plane + n]], [weight[n] - value, code]);
            assert_eq!(state[2 * plane + n], weight[n] + fed[n] - value);
        }
    }
}

#[test]
fn the_kernel_settles_groups_as_the_reference() {
    for (experts, size, rows) in [(2, 150, 130), (1, 32, 7), (3, 1, 4)] {
        let given = normal(experts * size * rows, 1.0, &mut generator(2, 0));
        let feedback: Vec<f32> = normal(experts * size * size, 1.0, &mut generator(2, 1))
            .iter()
            .map(|value| value / size as f32)
            .collect();
        let (shape, square) = ([experts, size, rows], [experts, size, size]);
        let settled = settle(&tensor(&given, &shape), &tensor(&feedback, &square)).unwrap();
        let mut found = given.clone();
        let [experts, size, rows] = shape.map(int);
        on_host(Settle {
            values: found.as_mut_ptr(),
            feedback: feedback.as_ptr(),
            experts,
            size,
            rows,
        });
        assert_eq!(found, values(&settled));
        // Aᵀ X equals the input.
        let (n, k) = (rows as usize, size as usize);
        let row: f32 = (0..k - 1).map(|j| feedback[(k - 1) * k + j] * found[j * n]).sum::<f32>()
            + found[(k - 1) * n];
        assert!((row - given[(k - 1) * n]).abs() < 1e-4);
    }
}

#[test]
fn the_kernel_computes_grids_as_the_reference() {
    let (groups, size, rows) = (3, 32, 130);
    let mut members = normal(groups * size * rows, 1.0, &mut generator(3, 0));
    // Rows of zeros, of values that float16 can't hold, and of its subnormals.
    for k in 0..size {
        members[k * rows] = 0.0;
        members[k * rows + 1] *= 1e6;
        members[k * rows + 2] *= 1e-6;
        members[k * rows + 3] *= 1e-9;
    }
    let energy: Vec<f32> = normal(groups * size, 1.0, &mut generator(3, 1))
        .iter()
        .map(|value| value * value)
        .collect();
    for scale_dtype in [DType::F32, DType::F16, DType::BF16] {
        for (bits, symmetric, clips) in
            [(4, true, 0), (3, false, 0), (4, false, CLIPS), (2, true, CLIPS)]
        {
            let grid = Grid::<f32>::new(&GridScheme { bits, symmetric, group: None, scale_dtype });
            let (all, of_columns) =
                (tensor(&members, &[groups, size, rows]), tensor(&energy, &[groups, size]));
            let expected = values(&group_grids(&all, &of_columns, grid, clips > 0).unwrap());
            let mut found = vec![f32::NAN; 2 * groups * rows];
            let arguments = Grids { grid, clips }.arguments([groups, size, rows]);
            let (members, energy) = (members.as_ptr(), energy.as_ptr());
            on_host(super::grids::GroupGrids {
                members,
                energy,
                grids: found.as_mut_ptr(),
                ..arguments
            });
            assert_eq!(found, expected, "{scale_dtype:?} {bits} {symmetric} {clips}");
            assert!(found[..groups * rows].iter().all(|scale| *scale > 0.0));
        }
    }
}

#[test]
fn the_kernel_factors_diagonal_blocks_as_the_reference() {
    for size in [1, 5, 33, 64] {
        let x =
            tensor(&normal(2 * 3 * size * size, 1.0, &mut generator(4, 0)), &[3, 2 * size, size]);
        let blocks = x.transpose(1, 2).unwrap().matmul(&x).unwrap();
        let signs = tensor(&[1.0, -1.0, 1.0], &[3, 1, 1]);
        let blocks = blocks.broadcast_mul(&signs).unwrap();
        let expected = values(&blocks.apply_op1_no_bwd(&DiagonalBlock).unwrap());
        let (given, mut found) = (values(&blocks), vec![f32::NAN; expected.len()]);
        let arguments = DiagonalBlock.arguments([3, size]);
        on_host(super::cholesky::CholeskyBlock {
            block: given.as_ptr(),
            found: found.as_mut_ptr(),
            ..arguments
        });
        assert_eq!(found, expected);
        let failed: Vec<f32> =
            found.chunks((2 * size + 1) * size).map(|of| of[2 * size * size]).collect();
        assert_eq!(failed, [0.0, 1.0, 0.0]);
    }
}

#[test]
fn the_kernel_adds_outputs_as_the_reference() {
    let (count, hidden, rows) = (40, 130, 100);
    let tokens: Vec<u32> =
        (0..rows as u32).map(|row| (row * 7 + row / 9) % count as u32 / 2).collect();
    let gates = normal(rows, 1.0, &mut generator(5, 0));
    let (outputs, sums) = (
        normal(rows * hidden, 1.0, &mut generator(5, 1)),
        normal(count * hidden, 1.0, &mut generator(5, 2)),
    );
    let table = CombineTable::new(count, &tokens, &gates);
    for dtype in [DType::F32, DType::BF16] {
        let outputs = tensor(&outputs, &[rows, hidden]).to_dtype(dtype).unwrap();
        let expected = tensor(&sums, &[count, hidden]);
        add_outputs(&expected, &outputs, &table).unwrap();
        let mut found = sums.clone();
        let words = table.words();
        let arguments = Adding.arguments([count, hidden, rows], dtype).unwrap();
        let run = |outputs: *const std::ffi::c_void, found: *mut f32| {
            on_host(super::mix::CombineKernel {
                sums: found,
                outputs,
                table: words.as_ptr(),
                ..arguments
            });
        };
        match dtype {
            DType::F32 => run(values(&outputs).as_ptr().cast(), found.as_mut_ptr()),
            _ => run(
                outputs.flatten_all().unwrap().to_vec1::<bf16>().unwrap().as_ptr().cast(),
                found.as_mut_ptr(),
            ),
        }
        assert_eq!(found, values(&expected));
        // Computes token 1's sum by hand.
        let wide = values(&outputs.to_dtype(DType::F32).unwrap());
        let own = (0..rows).filter(|row| tokens[*row] == 1);
        let by_hand = own.fold(sums[hidden], |sum, row| sum + gates[row] * wide[row * hidden]);
        assert_eq!(found[hidden], by_hand);
    }
}
