//! Weights: element type, shape, and where the bytes come from.

use std::fmt;
use std::sync::Arc;

use moe_checkpoint::{Dtype, Result, Stored};

/// Makes a weight's bytes on demand, so that a converted model larger than memory can be planned,
/// validated and written tensor by tensor. Making twice gives the same bytes.
pub trait Make: Send + Sync {
    /// The bytes, little-endian in the weight's element type; as many as its shape takes.
    ///
    /// # Errors
    /// What reading the weights it is made from returns.
    fn make(&self) -> Result<Vec<u8>>;
}

#[derive(Clone)]
enum Source {
    Stored(Stored),
    Made { name: Arc<str>, make: Arc<dyn Make> },
}

/// How a weight's elements become values.
#[derive(Debug, Clone)]
pub enum Encoding {
    /// They are the values.
    Plain,
    /// They are codes; value = code × scale of its block.
    Blocks {
        /// `[⌈rows / block rows⌉, ⌈columns / block columns⌉]`.
        scale: Arc<Weight>,
        /// Rows and columns of a block; blocks at the end of a matrix may be smaller.
        block: [usize; 2],
    },
}

/// A weight that is read or made only when it is needed.
#[derive(Clone)]
pub struct Weight {
    dtype: Dtype,
    shape: Vec<usize>,
    source: Source,
    encoding: Encoding,
}

impl From<Stored> for Weight {
    fn from(stored: Stored) -> Self {
        Self {
            dtype: stored.dtype(),
            shape: stored.shape().to_vec(),
            source: Source::Stored(stored),
            encoding: Encoding::Plain,
        }
    }
}

impl Weight {
    /// A weight that `make` computes; `name` says in messages what it is.
    pub fn made(name: impl Into<Arc<str>>, dtype: Dtype, shape: &[usize], make: impl Make + 'static) -> Self {
        let source = Source::Made { name: name.into(), make: Arc::new(make) };
        Self { dtype, shape: shape.to_vec(), source, encoding: Encoding::Plain }
    }

    /// The same codes with a scale for each block.
    #[must_use]
    pub fn in_blocks(self, scale: Weight, block: [usize; 2]) -> Self {
        Self { encoding: Encoding::Blocks { scale: Arc::new(scale), block }, ..self }
    }

    /// How its elements become values.
    pub fn encoding(&self) -> &Encoding {
        &self.encoding
    }

    /// The scales of its blocks, if its elements are codes.
    pub fn scale(&self) -> Option<&Weight> {
        match &self.encoding {
            Encoding::Plain => None,
            Encoding::Blocks { scale, .. } => Some(scale),
        }
    }

    /// Element type: of the codes, where it is quantized.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Shape, outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size in bytes, without scales.
    pub fn bytes(&self) -> u64 {
        self.elements() as u64 * self.dtype.bitsize() as u64 / 8
    }

    /// The name for messages: the tensor's in its file, or what it was made as.
    pub fn name(&self) -> &str {
        match &self.source {
            Source::Stored(stored) => stored.name(),
            Source::Made { name, .. } => name,
        }
    }

    /// The bytes in a file, if that is where they come from.
    pub fn stored(&self) -> Option<&Stored> {
        match &self.source {
            Source::Stored(stored) => Some(stored),
            Source::Made { .. } => None,
        }
    }

    /// Whether both come from the same bytes of a file, or are made by the same maker: what is loaded for
    /// one serves the other.
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
            (Source::Stored(a), Source::Stored(b)) => a.same_bytes(b) && self.shape == other.shape,
            (Source::Made { make: a, .. }, Source::Made { make: b, .. }) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// All bytes, as they are encoded.
    ///
    /// # Errors
    /// What reading the file, or making the bytes, returns.
    pub fn read(&self) -> Result<Vec<u8>> {
        match &self.source {
            Source::Stored(stored) => {
                let mut bytes = vec![0; stored.bytes() as usize];
                stored.read_at(0, &mut bytes)?;
                Ok(bytes)
            }
            Source::Made { make, .. } => {
                let bytes = make.make()?;
                assert_eq!(bytes.len() as u64, self.bytes(), "{}: wrong number of bytes made", self.name());
                Ok(bytes)
            }
        }
    }

    /// All bytes, into `buffer`, which has room for just these.
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
