//! Codes in 32-bit words, as loaders expect them.
//!
//! Every layout is a dense stream of bits along a line: element i begins at bit i·b, least
//! significant bits first, and may continue in the next word. compressed-tensors (0.19,
//! `pack_to_int32`) packs weights along rows and zero points along columns; GPTQ packs weights
//! along columns and zero points along rows (AutoGPTQ's three words for 32 codes of 3 bits are the
//! same stream).

use rayon::prelude::*;

use super::{Codes, QuantizeError, WIDTHS, checked_length};

/// Number of words for a line of `length` codes.
pub fn words(length: usize, bits: u32) -> usize {
    (length * bits as usize).div_ceil(32)
}

/// Packs every row of `codes`, `[rows, columns]`, into whole words: `[rows, ⌈columns · b / 32⌉]`.
///
/// # Errors
/// For unsupported bit widths, and a number of codes that doesn't fill rows.
pub fn pack_rows(codes: &[u8], columns: usize, bits: u32) -> Result<Vec<i32>, QuantizeError> {
    checked(bits)?;
    checked_length(codes.len(), codes.len() / columns.max(1) * columns)?;
    let line = words(columns, bits).max(1);
    let mut packed = vec![0; codes.len() / columns.max(1) * line];
    packed.par_chunks_mut(line).zip(codes.par_chunks(columns.max(1))).for_each(|(packed, row)| {
        pack_line(row, bits, packed);
    });
    Ok(packed)
}

fn pack_line(codes: &[u8], bits: u32, packed: &mut [i32]) {
    let (mut held, mut filled, mut words) = (0u64, 0, packed.iter_mut());
    for code in codes {
        held |= u64::from(*code) << filled;
        filled += bits;
        if filled >= 32
            && let Some(word) = words.next()
        {
            *word = held as u32 as i32;
            held >>= 32;
            filled -= 32;
        }
    }
    if let Some(word) = words.next() {
        *word = held as u32 as i32;
    }
}

/// Unpacks words made by [`pack_rows`] into codes `[rows, columns]`.
///
/// # Errors
/// As for [`pack_rows`].
pub fn unpack_rows(packed: &[i32], columns: usize, bits: u32) -> Result<Vec<u8>, QuantizeError> {
    checked(bits)?;
    let words = words(columns, bits).max(1);
    checked_length(packed.len(), packed.len() / words * words)?;
    let mut codes = vec![0; packed.len() / words * columns];
    codes.par_chunks_mut(columns.max(1)).zip(packed.par_chunks(words)).for_each(|(codes, row)| {
        unpack_line(row, bits, codes);
    });
    Ok(codes)
}

fn unpack_line(packed: &[i32], bits: u32, codes: &mut [u8]) {
    let (mut held, mut filled, mut words) = (0u64, 0, packed.iter());
    for code in codes {
        if filled < bits
            && let Some(word) = words.next()
        {
            held |= u64::from(*word as u32) << filled;
            filled += 32;
        }
        *code = (held & ((1 << bits) - 1)) as u8;
        held >>= bits;
        filled -= bits;
    }
}

/// Packs every column of `codes`, `[rows, columns]`: `[⌈rows · b / 32⌉, columns]`, as
/// compressed-tensors stores zero points.
///
/// # Errors
/// As for [`pack_rows`].
pub fn pack_columns(codes: &[u8], columns: usize, bits: u32) -> Result<Vec<i32>, QuantizeError> {
    checked_length(codes.len(), codes.len() / columns.max(1) * columns)?;
    let rows = codes.len() / columns.max(1);
    let packed = pack_rows(&transposed(codes, columns), rows, bits)?;
    Ok(transposed(&packed, words(rows, bits)))
}

/// Unpacks words made by [`pack_columns`] from `rows` rows into codes `[rows, columns]`.
///
/// # Errors
/// As for [`pack_rows`].
pub fn unpack_columns(
    packed: &[i32],
    rows: usize,
    columns: usize,
    bits: u32,
) -> Result<Vec<u8>, QuantizeError> {
    checked_length(packed.len(), words(rows, bits) * columns)?;
    let codes = unpack_rows(&transposed(packed, columns), rows, bits)?;
    Ok(transposed(&codes, rows))
}

/// A matrix in the format GPTQ v1.
#[derive(Debug, Clone, PartialEq)]
pub struct Gptq {
    /// `[K · b / 32, N]`
    pub qweight: Vec<i32>,
    /// `[K / g, N · b / 32]`, each zero minus 1.
    pub qzeros: Vec<i32>,
    /// `[K / g, N]`
    pub scales: Vec<f32>,
}

/// Packs a matrix for GPTQ v1.
///
/// # Errors
/// If K or N isn't a multiple of 32, and for bit widths that the format doesn't have.
pub fn pack_gptq(codes: &Codes, bits: u32) -> Result<Gptq, QuantizeError> {
    let [rows, width] = codes.shape;
    checked_gptq(bits)?;
    if !rows.is_multiple_of(32) || !width.is_multiple_of(32) {
        return Err(QuantizeError::Layout("GPTQ packs 32 rows and 32 columns at a time"));
    }
    let groups = width / codes.group;
    let mut zeros = transposed(&codes.zeros, groups);
    let qzeros = match field_of_ones(bits) {
        Some(ones) => {
            pack_rows(&zeros, rows, bits)?.into_iter().map(|word| word.wrapping_sub(ones)).collect()
        }
        None => {
            zeros.iter_mut().for_each(|zero| *zero = zero.wrapping_sub(1) & 7);
            pack_rows(&zeros, rows, bits)?
        }
    };
    Ok(Gptq {
        qweight: transposed(&pack_rows(&codes.codes, width, bits)?, words(width, bits)),
        qzeros,
        scales: transposed(&codes.scales, groups),
    })
}

/// A word with 1 in each field of `bits` bits; None if fields don't fill words. GPTQModel subtracts
/// it from whole words of zero points, so that a zero point of 0 borrows from its neighbor. Fields
/// of 3 bits, which cross words, wrap one by one (`gptq.odd` in golden/quantize).
fn field_of_ones(bits: u32) -> Option<i32> {
    32u32
        .is_multiple_of(bits)
        .then(|| (0..32).step_by(bits as usize).fold(0u32, |word, bit| word | 1 << bit) as i32)
}

/// Unpacks what [`pack_gptq`] made of a matrix of `shape` in groups of `group` columns.
///
/// # Errors
/// As for [`pack_rows`].
pub fn unpack_gptq(
    packed: &Gptq,
    shape: [usize; 2],
    group: usize,
    bits: u32,
) -> Result<Codes, QuantizeError> {
    let [rows, width] = shape;
    checked_gptq(bits)?;
    let groups = width.div_ceil(group.max(1));
    checked_length(packed.scales.len(), rows * groups)?;
    checked_length(packed.qzeros.len(), words(rows, bits) * groups)?;
    let codes = unpack_columns(&packed.qweight, width, rows, bits)?;
    let zeros = unpack_zeros(&packed.qzeros, rows, bits)?;
    Ok(Codes {
        shape,
        group,
        codes: transposed(&codes, rows),
        scales: transposed(&packed.scales, rows),
        zeros: transposed(&zeros, rows),
    })
}

/// Unpacks zeros, which are stored minus 1.
fn unpack_zeros(packed: &[i32], rows: usize, bits: u32) -> Result<Vec<u8>, QuantizeError> {
    if let Some(ones) = field_of_ones(bits) {
        let words: Vec<i32> = packed.iter().map(|word| word.wrapping_add(ones)).collect();
        return unpack_rows(&words, rows, bits);
    }
    let lessened = unpack_rows(packed, rows, bits)?;
    Ok(lessened.into_iter().map(|less| (less + 1) & 7).collect())
}

/// `[rows, columns]` transposed to `[columns, rows]`.
fn transposed<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|j| values.iter().skip(j).step_by(columns.max(1)).copied()).collect()
}

fn checked(bits: u32) -> Result<(), QuantizeError> {
    if WIDTHS.contains(&bits) { Ok(()) } else { Err(QuantizeError::Bits(bits)) }
}

fn checked_gptq(bits: u32) -> Result<(), QuantizeError> {
    match bits {
        2 | 3 | 4 | 8 => Ok(()),
        _ => Err(QuantizeError::Layout("GPTQ has codes of 2, 3, 4 and 8 bits")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::generator;
    use rand_core::RngCore;

    fn random(count: usize, bits: u32) -> Vec<u8> {
        let mut random = generator(u64::from(bits), 0);
        (0..count).map(|_| (random.next_u32() >> (32 - bits)) as u8).collect()
    }

    /// Bit `at` of a line of words.
    fn bit(words: &[i32], at: usize) -> u32 {
        words[at / 32] as u32 >> (at % 32) & 1
    }

    #[test]
    fn every_bit_is_in_its_place() {
        for bits in WIDTHS {
            for columns in [1, 7, 32, 33, 100] {
                let codes = random(3 * columns, bits);
                let packed = pack_rows(&codes, columns, bits).unwrap();
                let line = words(columns, bits);
                assert_eq!(packed.len(), 3 * line);
                for (row, packed) in codes.chunks(columns).zip(packed.chunks(line)) {
                    for (i, code) in row.iter().enumerate() {
                        let found: u32 = (0..bits)
                            .map(|b| bit(packed, i * bits as usize + b as usize) << b)
                            .sum();
                        assert_eq!(found, u32::from(*code));
                    }
                }
                assert_eq!(unpack_rows(&packed, columns, bits).unwrap(), codes);
                let down = pack_columns(&codes, columns, bits).unwrap();
                assert_eq!(down.len(), words(3, bits) * columns);
                assert_eq!(unpack_columns(&down, 3, columns, bits).unwrap(), codes);
            }
        }
    }

    #[test]
    fn words_by_hand() {
        assert_eq!(pack_rows(&[1, 2, 3, 4, 5, 6, 7, 15], 8, 4).unwrap(), [0xf765_4321_u32 as i32]);
        // With eleven codes of 3 bits, the last begins at bit 30 of the first word and ends in the
        // second.
        assert_eq!(
            pack_rows(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7], 11, 3).unwrap(),
            [0xc000_0000_u32 as i32, 1]
        );
        assert_eq!(pack_columns(&[1, 2, 3, 4], 2, 8).unwrap(), [0x0301, 0x0402]);
    }

    #[test]
    fn gptq_packs_columns_and_stores_zeros_minus_1() {
        let (rows, width, group) = (32, 64, 32);
        for bits in [2, 3, 4, 8] {
            let zeros = random(rows * 2, bits);
            let scales = (0..rows * 2).map(|i| i as f32).collect();
            let codes = Codes {
                shape: [rows, width],
                group,
                codes: random(rows * width, bits),
                scales,
                zeros,
            };
            let packed = pack_gptq(&codes, bits).unwrap();
            let words = words(width, bits);
            assert_eq!((packed.qweight.len(), packed.qzeros.len()), (words * rows, 2 * words / 2));
            for row in 0..rows {
                let line: Vec<i32> =
                    (0..words).map(|word| packed.qweight[word * rows + row]).collect();
                assert_eq!(
                    unpack_rows(&line, width, bits).unwrap(),
                    codes.codes[row * width..][..width]
                );
                (0..2).for_each(|g| {
                    assert_eq!(packed.scales[g * rows + row], codes.scales[row * 2 + g])
                });
            }
            assert_eq!(unpack_gptq(&packed, [rows, width], group, bits).unwrap(), codes);
        }
    }

    #[test]
    fn zero_points_are_stored_minus_1() {
        let codes = Codes { zeros: vec![8; 32], ..Codes::blank([32, 32], 32) };
        assert_eq!(pack_gptq(&codes, 4).unwrap().qzeros, [0x7777_7777; 4]);
        // 0 borrows from the next field; the last field has no field to borrow from.
        let mut zeros = vec![0; 32];
        zeros[1] = 8;
        assert_eq!(
            pack_gptq(&Codes { zeros, ..codes.clone() }, 4).unwrap().qzeros[0],
            0xeeee_ef6f_u32 as i32
        );
    }

    #[test]
    fn matrices_that_gptq_can_not_store_are_refused() {
        let codes = Codes { zeros: vec![8; 32], ..Codes::blank([32, 32], 32) };
        assert!(pack_gptq(&codes, 4).is_ok());
        assert!(matches!(pack_gptq(&Codes::blank([16, 32], 32), 4), Err(QuantizeError::Layout(_))));
        assert!(matches!(pack_gptq(&codes, 5), Err(QuantizeError::Layout(_))));
        assert_eq!(pack_rows(&[0; 32], 32, 7), Err(QuantizeError::Bits(7)));
        assert!(pack_rows(&[0; 33], 32, 4).is_err());
    }
}
