//! Weights: element type, shape, and the source of the bytes.

use std::fmt;
use std::sync::Arc;

use moe_checkpoint::quantization::{Blocks, Integers, Scheme};
use moe_checkpoint::{Dtype, KeptBytes, Result, Stored};

/// Makes a weight's bytes on demand, so that a converted model larger than memory can be planned,
/// validated and written tensor by tensor. Calling it twice gives the same bytes.
pub trait WeightSource: Send + Sync {
    /// Returns the bytes, little-endian in the weight's element type, as many as its shape
    /// requires.
    ///
    /// # Errors
    /// If the weights that it is made from can't be read.
    fn make(&self) -> Result<Vec<u8>>;
}

/// Bytes that were made before.
impl WeightSource for KeptBytes {
    fn make(&self) -> Result<Vec<u8>> {
        self.read()
    }
}

#[derive(Clone)]
enum WeightOrigin {
    Stored(Stored),
    Made { name: Arc<str>, make: Arc<dyn WeightSource> },
}

/// How stored elements become the values of a weight.
#[derive(Debug, Clone)]
pub enum Encoding {
    /// The elements are the values.
    Plain,
    /// The elements are codes; value = code × scale of its block.
    Blocks {
        /// `[⌈rows / block rows⌉, ⌈columns / block columns⌉]`.
        scale: Arc<Weight>,
        /// Rows and columns of a block; blocks at the end of a matrix may be smaller.
        block: [usize; 2],
    },
    /// The elements are integers of a few bits; value = (code − zero) × scale of its group.
    Packed(Arc<PackedIntegers>),
}

/// Integers of a few bits, packed into words.
#[derive(Debug, Clone)]
pub struct PackedIntegers {
    /// The place of each code in the words.
    pub packing: Packing,
    /// Bit width, groups and symmetry of the codes.
    pub integers: Integers,
    /// A scale for each group: `[rows, groups]`, or `[groups, rows]` in GPTQ's layout.
    pub scale: Weight,
    /// The packed zero points; None if the layout stores none, since codes are symmetric.
    pub zero: Option<Weight>,
    /// The other tensor of the layout: the matrix's shape in compressed-tensors, the group of each
    /// column in GPTQ.
    pub shape_or_groups: Weight,
}

/// How codes are packed into words of 32 bits, the lowest bits first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// compressed-tensors' pack-quantized: along a row, `[rows, ⌈columns · bits / 32⌉]`.
    Rows,
    /// GPTQ v1: along a column, `[columns · bits / 32, rows]`.
    Columns,
}

impl Packing {
    /// Returns the shape of the words of a matrix of `rows` and `columns`.
    pub fn words(self, integers: Integers, [rows, columns]: [usize; 2]) -> Vec<usize> {
        let words = integers.words(columns);
        match self {
            Self::Rows => vec![rows, words],
            Self::Columns => vec![words, rows],
        }
    }

    /// Whether the layout stores zero points in addition to scales.
    pub fn has_zeros(self, integers: Integers) -> bool {
        self == Self::Columns || !integers.symmetric
    }

    /// Returns the shape of the packed zero points of a matrix with `groups` groups in each row.
    pub fn zeros(self, integers: Integers, rows: usize, groups: usize) -> Vec<usize> {
        let words = integers.words(rows);
        match self {
            Self::Rows => vec![words, groups],
            Self::Columns => vec![groups, words],
        }
    }

    /// Returns the shape of the scales of a matrix with `groups` groups in each row.
    pub fn scales(self, rows: usize, groups: usize) -> Vec<usize> {
        match self {
            Self::Rows => vec![rows, groups],
            Self::Columns => vec![groups, rows],
        }
    }
}

/// A weight that is read or made only when it is needed.
#[derive(Clone)]
pub struct Weight {
    dtype: Dtype,
    shape: Vec<usize>,
    source: WeightOrigin,
    encoding: Encoding,
}

impl From<Stored> for Weight {
    fn from(stored: Stored) -> Self {
        Self {
            dtype: stored.dtype(),
            shape: stored.shape().to_vec(),
            source: WeightOrigin::Stored(stored),
            encoding: Encoding::Plain,
        }
    }
}

impl Weight {
    /// Creates a weight whose bytes `make` computes; `name` stands for it in messages.
    pub fn made(
        name: impl Into<Arc<str>>,
        dtype: Dtype,
        shape: &[usize],
        make: impl WeightSource + 'static,
    ) -> Self {
        let source = WeightOrigin::Made { name: name.into(), make: Arc::new(make) };
        Self { dtype, shape: shape.to_vec(), source, encoding: Encoding::Plain }
    }

    /// Returns this weight as codes, with a scale for each block.
    #[must_use]
    pub fn in_blocks(self, scale: Weight, block: [usize; 2]) -> Self {
        Self { encoding: Encoding::Blocks { scale: Arc::new(scale), block }, ..self }
    }

    /// Returns these words as the packed integers of a matrix of this `shape`.
    #[must_use]
    pub fn packed(self, shape: [usize; 2], packed: PackedIntegers) -> Self {
        debug_assert_eq!(self.shape, packed.packing.words(packed.integers, shape));
        Self { shape: shape.to_vec(), encoding: Encoding::Packed(Arc::new(packed)), ..self }
    }

    /// Returns the stored codes as a plain weight, without scales.
    #[must_use]
    pub fn codes(&self) -> Self {
        Self { shape: self.stored_shape(), encoding: Encoding::Plain, ..self.clone() }
    }

    /// How the stored elements become values.
    pub fn encoding(&self) -> &Encoding {
        &self.encoding
    }

    /// Returns the quantization scheme, as configs describe it; None for plain elements.
    pub fn scheme(&self) -> Option<Scheme> {
        match &self.encoding {
            Encoding::Plain => None,
            Encoding::Blocks { block: [1, _], .. } => Some(Scheme::Fp8(Blocks::Rows)),
            Encoding::Blocks { block, .. } => Some(Scheme::Fp8(Blocks::Of(*block))),
            Encoding::Packed(packed) => Some(Scheme::Integers(packed.integers)),
        }
    }

    /// Returns the scales of blocks or groups; None for plain elements.
    pub fn scale(&self) -> Option<&Weight> {
        match &self.encoding {
            Encoding::Plain => None,
            Encoding::Blocks { scale, .. } => Some(scale),
            Encoding::Packed(packed) => Some(&packed.scale),
        }
    }

    /// Element type; for a quantized weight, that of the codes.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// ModelShape of the values, outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// ModelShape of the stored tensor, which differs from that of the values for packed integers.
    pub fn stored_shape(&self) -> Vec<usize> {
        match (&self.encoding, self.shape.as_slice()) {
            (Encoding::Packed(packed), &[rows, columns]) => {
                packed.packing.words(packed.integers, [rows, columns])
            }
            _ => self.shape.clone(),
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size in bytes as it is stored, without scales.
    pub fn bytes(&self) -> u64 {
        self.stored_shape().iter().product::<usize>() as u64 * self.dtype.bitsize() as u64 / 8
    }

    /// The name for messages: the tensor's name in its file, or the one given to [`Self::made`].
    pub fn name(&self) -> &str {
        match &self.source {
            WeightOrigin::Stored(stored) => stored.name(),
            WeightOrigin::Made { name, .. } => name,
        }
    }

    /// Returns the tensor in a file that holds the bytes; None if they are made.
    pub fn stored(&self) -> Option<&Stored> {
        match &self.source {
            WeightOrigin::Stored(stored) => Some(stored),
            WeightOrigin::Made { .. } => None,
        }
    }

    /// Whether both are the same bytes of a file, or are made by the same source, so that what is
    /// loaded for one also serves the other.
    pub fn same_source(&self, other: &Self) -> bool {
        let scales = match (self.scale(), other.scale()) {
            (Some(a), Some(b)) => a.same_source(b),
            (None, None) => true,
            _ => false,
        };
        scales && self.same_bytes(other)
    }

    fn same_bytes(&self, other: &Self) -> bool {
        match (&self.source, &other.source) {
            (WeightOrigin::Stored(a), WeightOrigin::Stored(b)) => {
                a.same_bytes(b) && self.shape == other.shape
            }
            (WeightOrigin::Made { make: a, .. }, WeightOrigin::Made { make: b, .. }) => {
                Arc::ptr_eq(a, b)
            }
            _ => false,
        }
    }

    /// Reads all stored bytes, without decoding them.
    ///
    /// # Errors
    /// If the file can't be read, or the source can't make the bytes.
    pub fn read(&self) -> Result<Vec<u8>> {
        match &self.source {
            WeightOrigin::Stored(stored) => {
                let mut bytes = vec![0; stored.bytes() as usize];
                stored.read_at(0, &mut bytes)?;
                Ok(bytes)
            }
            WeightOrigin::Made { make, .. } => {
                let bytes = make.make()?;
                assert_eq!(
                    bytes.len() as u64,
                    self.bytes(),
                    "{}: wrong number of bytes made",
                    self.name()
                );
                Ok(bytes)
            }
        }
    }

    /// Reads all bytes into `buffer`, which has exactly their length.
    ///
    /// # Errors
    /// As for [`Weight::read`].
    pub fn read_into(&self, buffer: &mut [u8]) -> Result<()> {
        match self.stored() {
            Some(stored) => stored.read_at(0, buffer),
            None => self.read().map(|bytes| buffer.copy_from_slice(&bytes)),
        }
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {}", self.name(), self.shape, self.dtype)
    }
}
