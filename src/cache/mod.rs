//! Activation cache.
