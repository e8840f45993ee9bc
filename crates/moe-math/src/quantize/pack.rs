//! Codes in 32-bit words, as loaders expect them.
//!
//! All layouts are one dense stream of bits along a line: element i begins at bit i·b, least significant bits first, and may
//! run on into the next word. compressed-tensors (0.19, `pack_to_int32`) packs weights along rows and zero points along
//! columns; GPTQ packs weights along columns and zero points along rows (AutoGPTQ's three words for 32 codes of 3 bits are
//! the same stream).

use super::{Codes, QuantizeError, checked_length};

/// Words that a line of `length` codes takes.
pub fn words(length: usize, bits: u32) -> usize {
    (length * bits as usize).div_ceil(32)
}

/// Packs every row of `codes`, `[rows, columns]`, into whole words: `[rows, ⌈columns · b / 32⌉]`.
///
/// # Errors
/// For widths that no grid has, and codes that are not as many as rows call for.
pub fn pack_rows(codes: &[u8], columns: usize, bits: u32) -> Result<Vec<i32>, QuantizeError> {
    checked(bits)?;
    checked_length(codes.len(), codes.len() / columns.max(1) * columns)?;
    let mut packed = Vec::with_capacity(codes.len() / columns.max(1) * words(columns, bits));
    for row in codes.chunks_exact(columns.max(1)) {
        pack_line(row, bits, &mut packed);
    }
    Ok(packed)
}

fn pack_line(codes: &[u8], bits: u32, packed: &mut Vec<i32>) {
    let (mut held, mut filled) = (0u64, 0);
    for code in codes {
        held |= u64::from(*code) << filled;
        filled += bits;
        if filled >= 32 {
            packed.push(held as u32 as i32);
            held >>= 32;
            filled -= 32;
        }
    }
    if filled > 0 {
        packed.push(held as u32 as i32);
    }
}

/// Codes from words that [`pack_rows`] made: `[rows, columns]`.
///
/// # Errors
/// As for [`pack_rows`].
pub fn unpack_rows(packed: &[i32], columns: usize, bits: u32) -> Result<Vec<u8>, QuantizeError> {
    checked(bits)?;
    let words = words(columns, bits).max(1);
    checked_length(packed.len(), packed.len() / words * words)?;
    let mut codes = Vec::with_capacity(packed.len() / words * columns);
    let mask = (1u64 << bits) - 1;
    for row in packed.chunks_exact(words) {
        let (mut held, mut filled) = (0u64, 0);
        let mut next = row.iter();
        for _ in 0..columns {
            if filled < bits
                && let Some(word) = next.next()
            {
                held |= u64::from(*word as u32) << filled;
                filled += 32;
            }
            codes.push((held & mask) as u8);
            held >>= bits;
            filled -= bits;
        }
    }
    Ok(codes)
}

/// Packs every column of `codes`, `[rows, columns]`: `[⌈rows · b / 32⌉, columns]`, as compressed-tensors stores zero points.
///
/// # Errors
/// As for [`pack_rows`].
pub fn pack_columns(codes: &[u8], columns: usize, bits: u32) -> Result<Vec<i32>, QuantizeError> {
    checked_length(codes.len(), codes.len() / columns.max(1) * columns)?;
    let rows = codes.len() / columns.max(1);
    let packed = pack_rows(&transposed(codes, columns), rows, bits)?;
    Ok(transposed(&packed, words(rows, bits)))
}

/// Codes from words that [`pack_columns`] made of `rows` rows: `[rows, columns]`.
///
/// # Errors
/// As for [`pack_rows`].
pub fn unpack_columns(packed: &[i32], rows: usize, columns: usize, bits: u32) -> Result<Vec<u8>, QuantizeError> {
    checked_length(packed.len(), words(rows, bits) * columns)?;
    let codes = unpack_rows(&transposed(packed, columns), rows, bits)?;
    Ok(transposed(&codes, rows))
}

/// A matrix as GPTQ v1 stores it.
#[derive(Debug, Clone, PartialEq)]
pub struct Gptq {
    /// `[K · b / 32, N]`
    pub qweight: Vec<i32>,
    /// `[K / g, N · b / 32]`, zero − 1.
    pub qzeros: Vec<i32>,
    /// `[K / g, N]`
    pub scales: Vec<f32>,
}

/// Packs for GPTQ v1.
///
/// # Errors
/// Where K or N is no multiple of 32, or a zero point is 0, which v1 can't store.
pub fn pack_gptq(codes: &Codes, bits: u32) -> Result<Gptq, QuantizeError> {
    let [rows, width] = codes.shape;
    if !rows.is_multiple_of(32) || !width.is_multiple_of(32) {
        return Err(QuantizeError::Layout("GPTQ packs 32 rows and 32 columns at a time"));
    }
    let groups = width / codes.group;
    let less: Option<Vec<u8>> = codes.zeros.iter().map(|zero| zero.checked_sub(1)).collect();
    let less = less.ok_or(QuantizeError::Layout("GPTQ v1 stores zero points less 1, and one is 0"))?;
    Ok(Gptq {
        qweight: transposed(&pack_rows(&codes.codes, width, bits)?, words(width, bits)),
        qzeros: pack_rows(&transposed(&less, groups), rows, bits)?,
        scales: transposed(&codes.scales, groups),
    })
}

/// Codes from what [`pack_gptq`] made of a matrix of the shape `shape` in groups of `group` columns.
///
/// # Errors
/// As for [`pack_rows`]; where a zero point runs over the codes.
pub fn unpack_gptq(packed: &Gptq, shape: [usize; 2], group: usize, bits: u32) -> Result<Codes, QuantizeError> {
    let [rows, width] = shape;
    let groups = width.div_ceil(group.max(1));
    checked_length(packed.scales.len(), rows * groups)?;
    checked_length(packed.qzeros.len(), words(rows, bits) * groups)?;
    let codes = unpack_columns(&packed.qweight, width, rows, bits)?;
    // v1 stores zero − 1.
    let zeros = unpack_rows(&packed.qzeros, rows, bits)?.into_iter().map(|less| less.checked_add(1));
    let zeros: Option<Vec<u8>> = zeros.collect();
    let zeros = zeros.ok_or(QuantizeError::Layout("a zero point of GPTQ v1 is 2^b"))?;
    Ok(Codes {
        shape,
        group,
        codes: transposed(&codes, rows),
        scales: transposed(&packed.scales, rows),
        zeros: transposed(&zeros, rows),
    })
}

/// `[columns, rows]` of `[rows, columns]`.
fn transposed<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|j| values.iter().skip(j).step_by(columns.max(1)).copied()).collect()
}

fn checked(bits: u32) -> Result<(), QuantizeError> {
    if [2, 3, 4, 8].contains(&bits) { Ok(()) } else { Err(QuantizeError::Bits(bits)) }
}
