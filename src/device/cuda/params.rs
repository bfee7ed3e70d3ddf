//! Parameter structs of kernels: declared once more in Rust, field by field, with a layout that every compilation of
//! the kernel compares with its own.

/// A struct that a kernel receives by value. Made by [`kernel_params!`].
pub(crate) trait Params {
    /// Its layout.
    const LAYOUT: Layout;

    /// Writes the fields to their places; bytes between them stay as they are.
    fn write(&self, bytes: &mut [u8]);

    /// The bytes as the kernel reads them; zero between the fields.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::LAYOUT.size];
        self.write(&mut bytes);
        bytes
    }
}

/// Where the fields of a struct lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The struct's name, in CUDA C++ and here.
    pub name: &'static str,
    /// Bytes.
    pub size: usize,
    /// Each field's name and offset.
    pub fields: &'static [(&'static str, usize)],
}

impl Layout {
    /// CUDA C++ that does not compile where the kernel's own struct is another.
    pub(crate) fn assertions(&self) -> String {
        let name = self.name;
        let offsets = self.fields.iter().map(|(field, offset)| {
            // NVRTC has no offsetof; this is what the CUDA toolkit's headers make of it.
            format!("static_assert(__INTADDR__(&((({name}*)0)->{field})) == {offset}, \"{name}.{field}\");\n")
        });
        std::iter::once(format!("static_assert(sizeof({name}) == {}, \"size of {name}\");\n", self.size))
            .chain(offsets)
            .collect()
    }
}

/// A type that a field of a parameter struct can have.
pub(crate) trait Field {
    fn write(&self, bytes: &mut [u8]);
}

macro_rules! field {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn write(&self, bytes: &mut [u8]) {
                bytes[..size_of::<$type>()].copy_from_slice(&self.to_ne_bytes());
            }
        }
    )*};
}

field!(u64, i64, u32, i32, f32);

impl<T: Field, const N: usize> Field for [T; N] {
    fn write(&self, bytes: &mut [u8]) {
        self.iter().zip(bytes.chunks_exact_mut(size_of::<T>())).for_each(|(field, bytes)| field.write(bytes));
    }
}

/// Declares the Rust side of a kernel's parameter struct. Fields are `u64` (addresses), `i64`, `u32`, `i32`, `f32`, or
/// arrays of them.
macro_rules! kernel_params {
    ($(#[$meta:meta])* $visibility:vis struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        $visibility struct $name { $($(#[$field_meta])* $field: $type,)* }

        impl $crate::device::cuda::Params for $name {
            const LAYOUT: $crate::device::cuda::Layout = $crate::device::cuda::Layout {
                name: stringify!($name),
                size: size_of::<$name>(),
                fields: &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*],
            };

            fn write(&self, bytes: &mut [u8]) {
                $($crate::device::cuda::Field::write(&self.$field, &mut bytes[std::mem::offset_of!($name, $field)..]);)*
            }
        }
    };
}

pub(crate) use kernel_params;

#[cfg(test)]
mod tests {
    use super::*;

    kernel_params! {
        struct Example {
            input: u64,
            count: u32,
            factor: f32,
            extents: [u32; 3],
            output: u64,
        }
    }

    #[test]
    fn fields_lie_where_c_puts_them() {
        let example = Example { input: 1, count: 2, factor: 1.0, extents: [3, 4, 5], output: 6 };
        let words: Vec<u32> =
            example.to_bytes().chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [1, 0, 2, 0x3F80_0000, 3, 4, 5, 0, 6, 0]);
        let text = Example::LAYOUT.assertions();
        assert!(text.contains("sizeof(Example) == 40") && text.contains("(((Example*)0)->output)) == 32"), "{text}");
    }
}
