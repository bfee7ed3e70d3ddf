//! What decides the content of a cache entry, hashed.

use std::fmt;

use crate::{
    Result,
    autograd::{Parameter, Parameters},
};

/// To be raised by every change of the engine that makes activations other bits.
const ROUNDING: u32 = 1;

/// Names an entry by all that decides its content.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub(super) [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Collects what decides an entry's content. Each part is hashed with its length, so that parts cannot run together.
pub struct KeyBuilder(blake3::Hasher);

impl KeyBuilder {
    /// Starts from the engine's version and [what computes](crate::Device::arithmetic), whose rounding differs.
    pub fn new(device: &str) -> Self {
        let mut builder = Self(blake3::Hasher::new());
        builder.text(env!("CARGO_PKG_VERSION")).text(&ROUNDING.to_string()).text(device);
        builder
    }

    /// Adds a text.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Adds another key.
    pub fn key(&mut self, key: &Key) -> &mut Self {
        self.bytes(&key.0)
    }

    /// Adds every parameter and statistic that `counts` says is one: names and values.
    ///
    /// # Errors
    /// Those of fetching a parameter from its device.
    pub fn parameters(&mut self, model: &dyn Parameters, counts: impl Fn(&str) -> bool) -> Result<&mut Self> {
        let mut outcome = Ok(());
        model.visit(&mut |parameter: &Parameter| {
            if !counts(parameter.name()) {
                return;
            }
            self.text(parameter.name());
            match parameter.value.to_vec::<f32>() {
                Ok(values) => drop(self.bytes(bytemuck::cast_slice(&values))),
                Err(error) => outcome = Err(error),
            }
        });
        outcome.map(|()| self)
    }

    /// The key.
    pub fn finish(&self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }

    /// Adds bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        let key = |parts: &[&str]| {
            let mut builder = KeyBuilder::new("cpu");
            for part in parts {
                builder.text(part);
            }
            builder.finish()
        };
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["ab"]), key(&["ab", ""]));
    }
}
