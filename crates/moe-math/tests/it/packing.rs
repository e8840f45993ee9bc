//! Codes of every bit width, in matrices of any shape, survive every layout of words, and e4m3
//! codes survive decoding.

use moe_math::fp8::{e4m3, e4m3_code};
use moe_math::quantize::pack::{
    pack_columns, pack_gptq, pack_rows, unpack_columns, unpack_gptq, unpack_rows, words,
};
use moe_math::quantize::{Codes, WIDTHS};
use proptest::collection::vec;
use proptest::prelude::*;

/// A bit width, the number of columns of a matrix, and its codes.
fn matrix() -> impl Strategy<Value = (u32, usize, Vec<u8>)> {
    (prop::sample::select(WIDTHS.to_vec()), 1..80usize, 1..12usize).prop_flat_map(
        |(bits, columns, rows)| (Just(bits), Just(columns), codes(rows * columns, bits)),
    )
}

fn codes(count: usize, bits: u32) -> impl Strategy<Value = Vec<u8>> {
    vec(0..=u8::MAX >> (8 - bits), count)
}

/// A matrix that the GPTQ format can hold, with its groups.
fn gptq() -> impl Strategy<Value = (u32, Codes)> {
    let sizes = (
        prop::sample::select(vec![2u32, 3, 4, 8]),
        1..3usize,
        1..5usize,
        prop::sample::select(vec![8usize, 16, 32]),
    );
    sizes.prop_flat_map(|(bits, rows, columns, group)| {
        let shape = [32 * rows, 32 * columns];
        let groups = shape[0] * (shape[1] / group);
        (
            Just(bits),
            codes(shape[0] * shape[1], bits),
            vec(-1e3..1e3f32, groups),
            codes(groups, bits),
        )
            .prop_map(move |(bits, codes, scales, zeros)| {
                (bits, Codes { shape, group, codes, scales, zeros })
            })
    })
}

proptest! {
    #[test]
    fn along_rows_and_columns((bits, columns, codes) in matrix()) {
        let rows = codes.len() / columns;
        let across = pack_rows(&codes, columns, bits).unwrap();
        prop_assert_eq!(across.len(), rows * words(columns, bits));
        prop_assert_eq!(&unpack_rows(&across, columns, bits).unwrap(), &codes);
        let down = pack_columns(&codes, columns, bits).unwrap();
        prop_assert_eq!(down.len(), words(rows, bits) * columns);
        prop_assert_eq!(&unpack_columns(&down, rows, columns, bits).unwrap(), &codes);
    }

    #[test]
    fn as_gptq_stores_them((bits, codes) in gptq()) {
        let packed = pack_gptq(&codes, bits).unwrap();
        prop_assert_eq!(unpack_gptq(&packed, codes.shape, codes.group, bits).unwrap(), codes);
    }

    /// Words from a file can hold any bits.
    #[test]
    fn any_words(bits in prop::sample::select(WIDTHS.to_vec()), columns in 1..80usize, rows in 1..8usize, seed in vec(any::<i32>(), 1..40)) {
        let found: Vec<i32> = seed.iter().copied().cycle().take(rows * words(columns, bits)).collect();
        let codes = unpack_rows(&found, columns, bits).unwrap();
        prop_assert!(codes.iter().all(|code| u32::from(*code) >> bits == 0));
        let again = pack_rows(&codes, columns, bits).unwrap();
        prop_assert_eq!(unpack_rows(&again, columns, bits).unwrap(), codes);
        // One word too many or too few is refused if the words can't be whole rows.
        if words(columns, bits) > 1 {
            prop_assert!(unpack_rows(&found[1..], columns, bits).is_err());
        }
    }

    #[test]
    fn e4m3_codes(code: u8) {
        let value = e4m3(code);
        prop_assume!(!value.is_nan());
        prop_assert_eq!(e4m3(e4m3_code(value)).to_bits(), value.to_bits());
    }
}
