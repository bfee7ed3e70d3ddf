//! The extents of a tensor, up to four of them.

use std::fmt;

/// Extents, outermost first; activations are `[N, H, W, C]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    extents: [usize; 4],
    rank: u8,
}

impl Shape {
    /// The extents as a slice.
    pub fn dims(&self) -> &[usize] {
        &self.extents[..usize::from(self.rank)]
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// Number of elements; 1 for a scalar. A number beyond `usize` counts as its largest value, which no memory holds.
    pub fn elements(&self) -> usize {
        product(self.dims())
    }

    /// The innermost extent (channels, features); 1 for a scalar.
    pub fn last(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// Elements divided by the innermost extent: rows of a matrix, pixels of a batch.
    pub fn rows(&self) -> usize {
        self.dims().split_last().map_or(1, |(_, outer)| product(outer))
    }
}

fn product(extents: &[usize]) -> usize {
    if extents.contains(&0) { 0 } else { extents.iter().fold(1, |product, extent| product.saturating_mul(*extent)) }
}

impl<const R: usize> From<[usize; R]> for Shape {
    fn from(dims: [usize; R]) -> Self {
        const { assert!(R <= 4, "a tensor has at most four dimensions") };
        let mut extents = [1; 4];
        extents[..R].copy_from_slice(&dims);
        Self { extents, rank: R as u8 }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_beyond_usize_does_not_wrap() {
        let shape = Shape::from([usize::MAX / 3 * 2 + 1, 3]);
        assert_eq!(shape.elements(), usize::MAX);
        assert_eq!(Shape::from([usize::MAX, 0, usize::MAX]).elements(), 0);
        let device = crate::Device::cpu(1).unwrap();
        assert!(crate::Tensor::new(vec![0f32], shape, &device).is_err());
    }
}
