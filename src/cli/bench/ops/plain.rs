//! Convolution and batchnorm in f32, on any device.

use unfreeze::{
    Precision, Result, Tensor,
    autograd::{Tape, Var},
    nn::cost::Convolution,
    ops::{
        batchnorm::{Affine, Fused, Moments, batchnorm},
        conv::{self, Epilogue},
    },
};

use super::{Bench, distinct, moved, shape, shapes};

impl Bench<'_> {
    pub(super) fn plain(&self, convolutions: &[Convolution]) -> Result<()> {
        shapes(convolutions)
            .into_iter()
            .try_for_each(|(convolution, count)| self.plain_convolution(convolution, count))?;
        let outputs = distinct(convolutions, |c| (c.output_side, c.outputs));
        outputs.into_iter().try_for_each(|(convolution, count)| self.plain_norm(convolution, count))
    }

    fn plain_convolution(&self, convolution: &Convolution, count: usize) -> Result<()> {
        const F32: Precision = Precision::F32;
        let Convolution { input_side, output_side, inputs, outputs, size, geometry, .. } = *convolution;
        let (input, grad) = (self.map(input_side, inputs)?, self.map(output_side, outputs)?);
        let weight = self.random([outputs, size, size, inputs / geometry.groups])?;
        let shape = shape(convolution);
        self.measure("conv forward", &shape, count, convolution.forward(F32), || {
            conv::forward(&input, &weight, geometry, Epilogue::default()).map(drop)
        })?;
        // No gradient of images is asked for.
        if inputs != 3 {
            self.measure("conv input gradient", &shape, count, convolution.input_grad(F32), || {
                conv::input_grad(&grad, &weight, input.shape(), geometry).map(drop)
            })?;
        }
        self.measure("conv weight gradient", &shape, count, convolution.weight_grad(F32), || {
            conv::weight_grad(&grad, &input, weight.shape(), geometry).map(drop)
        })
    }

    /// The batchnorm after a convolution.
    fn plain_norm(&self, convolution: &Convolution, count: usize) -> Result<()> {
        let (side, channels) = (convolution.output_side, convolution.outputs);
        let bytes = self.elements(side, channels) * self.element();
        let name = format!("{channels} {side}x{side}");
        let (input, grad) = (self.map(side, channels)?, self.map(side, channels)?);
        let (ones, zeros) = (Tensor::full([channels], 1.0, self.device)?, Tensor::zeros([channels], self.device)?);
        self.measure("batchnorm moments", &name, count, moved(bytes), || Moments::of(&input).map(drop))?;
        let moments = Moments::of(&input)?;
        let apply = |tape: &mut Tape, input: &Var| {
            let (scale, shift) = (tape.leaf("scale", ones.clone()), tape.leaf("shift", zeros.clone()));
            let affine = Affine { scale: &scale, shift: &shift };
            batchnorm(tape, input, affine, &moments, true, 1e-5, Fused::default())
        };
        let constant = Var::constant(input.clone());
        self.measure("batchnorm apply", &name, count, moved(2.0 * bytes), || {
            apply(&mut Tape::new(), &constant).map(drop)
        })?;
        // Applied, then two passes back: sums of the gradient, and the gradient itself.
        self.measure("batchnorm apply + grad", &name, count, moved(7.0 * bytes), || {
            let mut tape = Tape::new();
            let input = tape.leaf("input", input.clone());
            let output = apply(&mut tape, &input)?;
            tape.backward_from(&output, grad.clone()).map(drop)
        })
    }
}
