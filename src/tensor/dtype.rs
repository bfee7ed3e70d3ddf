//! Element types, and the typed block of elements in host memory.

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit float: activations, parameters.
    F32,
    /// Bytes: images.
    U8,
    /// 32-bit unsigned: labels, positions of maxima.
    U32,
}

/// A block of elements in host memory.
#[derive(Clone)]
pub enum Elements {
    F32(Vec<f32>),
    U8(Vec<u8>),
    U32(Vec<u32>),
}

impl Elements {
    pub(super) fn dtype(&self) -> DType {
        match self {
            Elements::F32(_) => DType::F32,
            Elements::U8(_) => DType::U8,
            Elements::U32(_) => DType::U32,
        }
    }
}

/// A Rust type that can be a tensor's element. Sealed.
pub trait Element: Copy + Send + Sync + sealed::Sealed {
    /// The matching [`DType`].
    const DTYPE: DType;
}

pub(super) mod sealed {
    use super::Elements;

    pub trait Sealed: Sized {
        fn wrap(elements: Vec<Self>) -> Elements;
        fn unwrap(elements: &Elements) -> Option<&[Self]>;
        fn unwrap_mut(elements: &mut Elements) -> Option<&mut [Self]>;
    }
}

macro_rules! element {
    ($type:ty, $variant:ident) => {
        impl Element for $type {
            const DTYPE: DType = DType::$variant;
        }

        impl sealed::Sealed for $type {
            fn wrap(elements: Vec<Self>) -> Elements {
                Elements::$variant(elements)
            }

            fn unwrap(elements: &Elements) -> Option<&[Self]> {
                match elements {
                    Elements::$variant(elements) => Some(elements),
                    _ => None,
                }
            }

            fn unwrap_mut(elements: &mut Elements) -> Option<&mut [Self]> {
                match elements {
                    Elements::$variant(elements) => Some(elements),
                    _ => None,
                }
            }
        }
    };
}

element!(f32, F32);
element!(u8, U8);
element!(u32, U32);
