//! What the fuzz targets share.

pub mod exercise;
pub mod mutate;
