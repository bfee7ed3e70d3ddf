//! The cells of a comparison, in order of importance.

use clap::Args;
use unfreeze::{Precision, nn::Arch};

use crate::cli::{
    bench::cell::{CLASSES, Cell, Work},
    options::{count, side},
};

/// Which cells are measured; what comes first in a list is measured first, and the first list changes slowest.
#[derive(Args, Clone)]
pub struct Grid {
    /// What networks compute in
    #[arg(long, value_delimiter = ',', default_values = ["bf16", "tf32"], value_name = "NAME,NAME")]
    dtype: Vec<Precision>,
    /// Images per batch
    #[arg(long, value_delimiter = ',', default_values = ["256", "64"], value_name = "N,N", value_parser = count)]
    batch_size: Vec<usize>,
    /// What is done
    #[arg(long, value_delimiter = ',', value_enum, value_name = "NAME,NAME",
          default_values = ["forward", "full", "layer4", "cached", "layer3", "head"])]
    work: Vec<Work>,
    /// Architectures
    #[arg(long, value_delimiter = ',', default_values = ["resnet50", "resnet18", "resnet34"], value_name = "NAME,NAME")]
    arch: Vec<Arch>,
    /// Side of the images in pixels
    #[arg(long, default_value_t = 224, value_name = "N", value_parser = side)]
    size: usize,
    /// Classes of the heads on cached activations; networks have 1000
    #[arg(long, default_value_t = CLASSES, value_name = "N", value_parser = count)]
    classes: usize,
}

impl Grid {
    /// Every cell, each once.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &dtype in &self.dtype {
            for &batch_size in &self.batch_size {
                for &work in &self.work {
                    for &arch in &self.arch {
                        // Cached features are f32 whatever made them.
                        let dtype = if work.is_cached() { Precision::F32 } else { dtype };
                        let classes = if work.is_cached() { self.classes } else { CLASSES };
                        let cell = Cell { arch, size: self.size, batch_size, work, dtype, classes };
                        if !cells.contains(&cell) {
                            cells.push(cell);
                        }
                    }
                }
            }
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        grid: Grid,
    }

    #[test]
    fn the_grid_begins_with_what_matters_and_has_every_cell_once() {
        let cells = Flags::parse_from(["grid"]).grid.cells();
        // Two precisions, but for the cached head.
        assert_eq!(cells.len(), 2 * 2 * 5 * 3 + 2 * 3);
        let (work, dtype) = (Work::Forward, Precision::Bf16);
        let first = Cell { arch: Arch::ResNet50, size: 224, batch_size: 256, work, dtype, classes: CLASSES };
        assert_eq!(cells[0], first);
        let distinct: std::collections::HashSet<_> = cells.iter().collect();
        assert_eq!(distinct.len(), cells.len());
        assert!(cells.iter().all(|cell| cell.validate().is_ok()));
    }
}
