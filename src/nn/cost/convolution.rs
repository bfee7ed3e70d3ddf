//! A convolution and its two gradients: extents, operations, bytes.

use super::{F32, Work};
use crate::{Precision, nn::layers::Kernel, ops::conv::Geometry};

/// A convolution on a batch of square activations.
#[derive(Clone, Debug, PartialEq)]
pub struct Convolution {
    /// Name of the layer, such as `layer1.0.conv1`.
    pub name: String,
    /// Images.
    pub batch: usize,
    /// Side of the input in pixels.
    pub input_side: usize,
    /// Side of the output in pixels.
    pub output_side: usize,
    /// Channels of the input.
    pub inputs: usize,
    /// Channels of the output.
    pub outputs: usize,
    /// Side of the window.
    pub size: usize,
    /// How the window moves.
    pub geometry: Geometry,
}

impl Convolution {
    pub(super) fn new(name: String, batch: usize, side: usize, kernel: Kernel, geometry: Geometry) -> Self {
        let Kernel { inputs, outputs, size } = kernel;
        let output_side = (side + 2 * geometry.padding).saturating_sub(size) / geometry.stride + 1;
        Self { name, batch, input_side: side, output_side, inputs, outputs, size, geometry }
    }

    /// The weight's elements.
    pub fn weights(&self) -> f64 {
        (self.outputs * self.size * self.size * (self.inputs / self.geometry.groups)) as f64
    }

    /// The output's elements.
    pub fn output_elements(&self) -> f64 {
        self.elements(self.output_side, self.outputs)
    }

    /// Operations of each of the three products, those on zeros at the border included.
    pub fn flops(&self) -> f64 {
        2.0 * self.elements(self.output_side, 1) * self.weights()
    }

    /// The convolution: reads input and weight, writes the output.
    pub fn forward(&self, precision: Precision) -> Work {
        let elements = self.read(precision) + self.stored_weights(precision) + self.output_elements();
        self.work(elements * element(precision))
    }

    /// The gradient of the input: reads the output's and the weight, writes a pixel for each that the convolution read.
    pub fn input_grad(&self, precision: Precision) -> Work {
        self.forward(precision)
    }

    /// The gradient of the weight, f32: reads the output's and the input.
    pub fn weight_grad(&self, precision: Precision) -> Work {
        let elements = self.read(precision) + self.output_elements();
        self.work(elements * element(precision) + self.weights() * F32)
    }

    /// Elements of the input that are read: a strided 1×1 window leaves pixels out.
    pub(super) fn read(&self, precision: Precision) -> f64 {
        let side = if self.size == 1 { self.output_side } else { self.input_side };
        self.elements(side, self.stored_inputs(precision))
    }

    fn stored_weights(&self, precision: Precision) -> f64 {
        self.weights() / self.inputs as f64 * self.stored_inputs(precision) as f64
    }

    /// Channels of the input in memory: for tensor cores images have a fourth.
    fn stored_inputs(&self, precision: Precision) -> usize {
        match precision {
            Precision::F32 => self.inputs,
            Precision::Tf32 | Precision::Bf16 => self.inputs.next_multiple_of(4),
        }
    }

    fn elements(&self, side: usize, channels: usize) -> f64 {
        self.batch as f64 * (side * side) as f64 * channels as f64
    }

    fn work(&self, bytes: f64) -> Work {
        Work { flops: self.flops(), bytes }
    }
}

fn element(precision: Precision) -> f64 {
    precision.storage().bytes() as f64
}
