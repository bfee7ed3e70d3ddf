//! Convolution and batchnorm on tensor cores, as the network's layers call them.

use unfreeze::{
    Result, Tensor,
    nn::cost::{Convolution, Work},
    ops::{
        batchnorm::{
            FixedNorm, Sink,
            fused::{
                Addend, Coefficients, apply_masked, apply_pooled, input_grad, input_grad_pair, input_grad_pooled,
                reduce, reduce_again, reduce_pooled,
            },
        },
        conv::{
            Epilogue,
            mma::{self, GradFinish},
        },
        pool::Window,
    },
};

use super::{Bench, distinct, moved, shape, shapes};

/// Bytes per element of a mask.
const BIT: f64 = 0.125;

/// Where a batchnorm stands, which decides what its passes take part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// In the stem, before the maximum pool.
    Pooled,
    /// Before another convolution of its block, or a stem's without a pool.
    Inside,
    /// At the end of a block, whose input is added.
    Added,
    /// At the end of a block, to which the batchnorm of a projecting shortcut is added.
    Projected,
}

impl Bench<'_> {
    pub(super) fn tensor_cores(&self, convolutions: &[Convolution]) -> Result<()> {
        shapes(convolutions).into_iter().try_for_each(|(convolution, count)| self.convolution(convolution, count))?;
        let norms = distinct(self.norms(convolutions), |(place, c)| (*place, c.output_side, c.outputs));
        norms.into_iter().try_for_each(|((place, convolution), count)| self.norm(place, convolution, count))?;
        convolutions.last().map_or(Ok(()), |last| self.last_sums(last))
    }

    /// Every batchnorm that has passes of its own, by the convolution before it.
    fn norms<'c>(&self, convolutions: &'c [Convolution]) -> Vec<(Place, &'c Convolution)> {
        let last = if convolutions.iter().any(|c| c.name.ends_with("conv3")) { ".conv3" } else { ".conv2" };
        let mut projects = false;
        let place = |convolution: &'c Convolution| {
            let place = match convolution.name.as_str() {
                // It comes before the block's others, the last of which carries it out.
                name if name.ends_with("downsample.0") => {
                    projects = true;
                    return None;
                }
                name if name.ends_with(last) && std::mem::take(&mut projects) => Place::Projected,
                name if name.ends_with(last) => Place::Added,
                "conv1" if self.is_pooled() => Place::Pooled,
                _ => Place::Inside,
            };
            Some((place, convolution))
        };
        convolutions.iter().filter_map(place).collect()
    }

    fn convolution(&self, convolution: &Convolution, count: usize) -> Result<()> {
        let Convolution { input_side, output_side, inputs, outputs, size, geometry, .. } = *convolution;
        let precision = self.network.precision;
        // Images have a fourth channel.
        let (input, grad) = (self.map(input_side, inputs.next_multiple_of(4))?, self.map(output_side, outputs)?);
        let weight = self.random([outputs, size, size, inputs / geometry.groups])?;
        let Some(packed) = self.packed(&weight, convolution)? else { return Ok(()) };
        let (scale, shift, mean) = (self.random([outputs])?, self.random([outputs])?, self.random([outputs])?);
        let variance = Tensor::full([outputs], 1.0, self.device)?;
        let norm = FixedNorm { scale: &scale, shift: &shift, mean: &mean, variance: &variance, eps: 1e-5 };
        let epilogue = Epilogue { norm: Some(norm), residual: None, relu: true };
        let (shape, forward) = (shape(convolution), convolution.forward(precision));
        self.measure("conv forward", &shape, count, forward, || {
            mma::forward(&input, &packed, geometry, epilogue).map(drop)
        })?;
        self.measure("conv forward + moments", &shape, count, forward, || {
            mma::forward_with_moments(&input, &packed, geometry).map(drop)
        })?;
        self.measure("conv weight gradient", &shape, count, convolution.weight_grad(precision), || {
            mma::weight_grad(&grad, &input, weight.shape(), geometry).map(drop)
        })?;
        let work = convolution.input_grad(precision);
        if packed.flipped.is_none() {
            return Ok(());
        }
        if size == 1 && geometry.stride > 1 {
            return self.measure("conv input gradient", &shape, count, work, || {
                mma::input_grad_strided(&grad, &packed).map(drop)
            });
        }
        // Masked, with the sums of the batchnorm before it.
        let extra = self.elements(input_side, inputs) * (self.element() + BIT);
        let sink = self.sink(input.clone())?;
        self.measure("conv input gradient", &shape, count, Work { bytes: work.bytes + extra, ..work }, || {
            let finish = GradFinish { partial: None, sink: Some(&sink) };
            mma::input_grad(&grad, &packed, input.shape(), geometry, finish).map(drop)
        })
    }

    /// The batchnorm after a convolution.
    fn norm(&self, place: Place, convolution: &Convolution, count: usize) -> Result<()> {
        let (side, channels) = (convolution.output_side, convolution.outputs);
        let name = format!("{channels} {side}x{side}");
        let elements = self.elements(side, channels);
        let (map, bit) = (elements * self.element(), elements * BIT);
        let (input, other) = (self.map(side, channels)?, self.map(side, channels)?);
        let [factor, offset, mean] = [(); 3].map(|()| self.random([channels]));
        let (factor, offset, mean) = (&factor?, &offset?, &mean?);
        let of = Coefficients {
            scale_grad: mean.clone(),
            shift_grad: mean.clone(),
            a: factor.clone(),
            b: offset.clone(),
            c: mean.clone(),
        };
        let measure =
            |op, bytes, step: &mut dyn FnMut() -> Result<()>| self.measure(op, &name, count, moved(bytes), step);
        let apply = |addend| apply_masked(&input, factor, offset, addend, true).map(drop);
        match place {
            Place::Inside => measure("batchnorm apply", 2.0 * map + bit, &mut || apply(None))?,
            Place::Added => {
                measure("batchnorm apply + add", 3.0 * map + bit, &mut || apply(Some(Addend::Value(&other))))?;
            }
            Place::Projected => {
                let addend = Addend::Normed { input: &other, factor, offset };
                measure("batchnorm apply + projection", 3.0 * map + bit, &mut || apply(Some(addend)))?;
                measure("batchnorm sums again", 2.0 * map, &mut || reduce_again(&other, &input, mean).map(drop))?;
                return measure("batchnorm gradient, two", 5.0 * map, &mut || {
                    input_grad_pair(&input, [(&input, &of), (&other, &of)]).map(drop)
                });
            }
            Place::Pooled => return self.pooled(&name, [&input, factor, offset, mean], &of, map),
        }
        measure("batchnorm gradient", 3.0 * map, &mut || input_grad(&other, &input, &of).map(drop))
    }

    /// The stem's, with its pool.
    fn pooled(
        &self,
        name: &str,
        [input, factor, offset, mean]: [&Tensor; 4],
        of: &Coefficients,
        map: f64,
    ) -> Result<()> {
        const WINDOW: Window = Window::STEM;
        let (output, at) = apply_pooled(input, factor, offset, WINDOW)?;
        // Values or gradients, and a byte for the place of each maximum.
        let pooled = output.shape().elements() as f64 * (self.element() + 1.0);
        let measure = |op, bytes, step: &mut dyn FnMut() -> Result<()>| self.measure(op, name, 1, moved(bytes), step);
        measure("batchnorm apply + pool", map + pooled, &mut || apply_pooled(input, factor, offset, WINDOW).map(drop))?;
        measure("batchnorm sums, pool", map + pooled, &mut || {
            reduce_pooled(&output, input, &at, factor, offset, mean, WINDOW).map(drop)
        })?;
        measure("batchnorm gradient, pool", 2.0 * map + pooled, &mut || {
            input_grad_pooled(&output, input, &at, factor, offset, WINDOW, of).map(drop)
        })
    }

    /// The sums of the last batchnorm, which no convolution after it takes.
    fn last_sums(&self, last: &Convolution) -> Result<()> {
        let (side, channels) = (last.output_side, last.outputs);
        let (grad, sink) = (self.map(side, channels)?, self.sink(self.map(side, channels)?)?);
        let bytes = self.elements(side, channels) * (3.0 * self.element() + BIT);
        self.measure("batchnorm sums", &format!("{channels} {side}x{side}"), 1, moved(bytes), || {
            reduce(&grad, &sink).map(drop)
        })
    }

    /// What a batchnorm over `input` asks for: half of its output was positive.
    fn sink(&self, input: Tensor) -> Result<Sink> {
        let (rows, channels) = (input.shape().rows(), input.shape().last());
        let mask = Tensor::new(vec![0b0101_0101u8; rows * channels / 8], [rows, channels / 8], self.device)?;
        Ok(Sink { mask: Some(mask), input, mean: self.random([channels])? })
    }
}
