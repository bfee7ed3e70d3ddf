//! Elements that lie in a file in another order than their own.

/// The elements of `shape` in row-major order: each is of `size` bytes, and `strides` say how many elements it is to
/// the next along each extent. What lies beyond `bytes` is left out.
pub(super) fn in_row_order(bytes: &[u8], shape: &[usize], strides: &[usize], size: usize) -> Vec<u8> {
    let elements = shape.iter().product::<usize>();
    let mut rows = Vec::with_capacity(elements * size);
    let (mut position, mut index) = (vec![0; shape.len()], 0);
    for _ in 0..elements {
        rows.extend_from_slice(bytes.get(index * size..(index + 1) * size).unwrap_or_default());
        for ((at, extent), stride) in position.iter_mut().zip(shape).zip(strides).rev() {
            // The stride of an extent of 1 may be anything.
            if *at + 1 < *extent {
                *at += 1;
                index += stride;
                break;
            }
            index -= *at * stride;
            *at = 0;
        }
    }
    rows
}

/// Strides of elements whose last extent varies fastest.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = column_major(&shape.iter().rev().copied().collect::<Vec<_>>());
    strides.reverse();
    strides
}

/// Strides of elements whose first extent varies fastest.
pub(super) fn column_major(shape: &[usize]) -> Vec<usize> {
    let step = |next: &mut usize, extent: &usize| {
        let stride = *next;
        *next = next.saturating_mul(*extent);
        Some(stride)
    };
    shape.iter().scan(1, step).collect()
}
