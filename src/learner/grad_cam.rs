//! Where in an image a network finds a class: Grad-CAM (Selvaraju et al. 2017,
//! [arXiv 1610.02391](https://arxiv.org/abs/1610.02391)).

use image::{ImageBuffer, Luma, Pixel, imageops};

use super::{Classifier, Learner, Prediction};
use crate::{
    DType, Device, Error, Result, Tensor,
    autograd::Var,
    data::{Batch, RgbImage, Transforms, View},
    nn::{Layer, Model, Pass},
    ops::loss::softmax,
};

const ACTIVATION: &str = "activation";

/// How much each place of an image speaks for a class: `relu(Σ_c w_c · A_c)` over the channels `c` of an activation
/// `A`, where `w_c` is the mean over all places of the gradient of the class's logit with respect to `A_c`.
#[derive(Clone, Debug)]
pub struct GradCam {
    prediction: Prediction,
    class: usize,
    map: ImageBuffer<Luma<f32>, Vec<f32>>,
    image: RgbImage,
}

impl GradCam {
    /// What the network says of the image.
    pub fn prediction(&self) -> &Prediction {
        &self.prediction
    }

    /// Position of the class that the map is about.
    pub fn class(&self) -> usize {
        self.class
    }

    /// Rows and columns of the map.
    pub fn extents(&self) -> [usize; 2] {
        [self.map.height(), self.map.width()].map(|extent| extent as usize)
    }

    /// The map, row by row: 0 where nothing speaks for the class.
    pub fn values(&self) -> &[f32] {
        self.map.as_raw()
    }

    /// What the network saw: the image, scaled and cropped.
    pub fn image(&self) -> &RgbImage {
        &self.image
    }

    /// The map at the size of [`GradCam::image`], between its values linear, and 1 where it is largest.
    pub fn heat(&self) -> Vec<f32> {
        let most = self.values().iter().copied().fold(0.0, f32::max);
        let mut map = self.map.clone();
        // A map of zeros stays one.
        map.iter_mut().for_each(|value| *value /= most.max(f32::MIN_POSITIVE));
        let (width, height) = self.image.dimensions();
        imageops::resize(&map, width, height, imageops::FilterType::Triangle).into_raw()
    }

    /// The image in grey with the map over it: it glows where much speaks for the class, and is dark elsewhere.
    pub fn overlay(&self) -> RgbImage {
        let mut overlay = self.image.clone();
        for (pixel, heat) in overlay.pixels_mut().zip(self.heat()) {
            // Colours are the map's alone.
            let grey = f32::from(pixel.to_luma().0[0]);
            pixel.0 = colour(heat).map(|colour| ((grey + colour) / 2.0).round() as u8);
        }
        overlay
    }
}

/// From dark blue by purple and orange to light yellow, ever lighter: matplotlib's `inferno` at five places, between
/// them linear.
fn colour(heat: f32) -> [f32; 3] {
    const STOPS: [[f32; 3]; 5] =
        [[0.0, 0.0, 4.0], [87.0, 16.0, 110.0], [188.0, 55.0, 84.0], [249.0, 142.0, 9.0], [252.0, 255.0, 164.0]];
    let place = heat.clamp(0.0, 1.0) * (STOPS.len() - 1) as f32;
    let before = (place as usize).min(STOPS.len() - 2);
    let share = place - before as f32;
    std::array::from_fn(|channel| (1.0 - share) * STOPS[before][channel] + share * STOPS[before + 1][channel])
}

impl Classifier {
    /// Where in `image` the network finds `class`, by default the one that it predicts, in the activation after
    /// `layer`, by default the last stage: the earlier the layer, the finer the map, and the less it is about the
    /// class.
    ///
    /// ```no_run
    /// # fn with(classifier: &unfreeze::learner::Classifier) -> unfreeze::Result<()> {
    /// let image = unfreeze::data::decode("ant.jpg")?;
    /// let found = classifier.grad_cam(&image, None, None)?;
    /// unfreeze::data::save_png(&found.overlay(), "why.png")?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Setting`] if there is no such class, or the layer is none that the backbone has with places, or the
    /// image has no pixels.
    pub fn grad_cam(&self, image: &RgbImage, class: Option<usize>, layer: Option<Layer>) -> Result<GradCam> {
        let network = Network { model: self.model(), transforms: self.transforms(), classes: self.classes() };
        network.grad_cam(self.device(), image, class, layer)
    }
}

impl Learner {
    /// As [`Classifier::grad_cam`], of the network as it is now.
    ///
    /// # Errors
    /// As there.
    pub fn grad_cam(&self, image: &RgbImage, class: Option<usize>, layer: Option<Layer>) -> Result<GradCam> {
        let network = Network { model: &self.model, transforms: self.transforms(), classes: self.data.classes() };
        network.grad_cam(&self.device, image, class, layer)
    }
}

/// A network that is looked into.
struct Network<'a> {
    model: &'a Model,
    transforms: &'a Transforms,
    classes: &'a [String],
}

impl Network<'_> {
    fn grad_cam(
        &self,
        device: &Device,
        image: &RgbImage,
        class: Option<usize>,
        layer: Option<Layer>,
    ) -> Result<GradCam> {
        let prepared = self.transforms.prepare(image, View::Clean)?;
        let mut batch = Batch::default();
        batch.push(prepared.clone(), 0, 0);
        let input = batch.upload(self.transforms, device, self.model.precision())?;
        let Looked { logits, activation, gradient, class } = look(self.model, input, class, layer)?;
        let size = self.transforms.size as u32;
        let image = RgbImage::from_raw(size, size, prepared.finish().pixels)
            .ok_or_else(|| Error::shape("Grad-CAM", "the view of the image has too few pixels"))?;
        let prediction = Prediction::new(self.classes, softmax(&logits)?.to_vec()?);
        Ok(GradCam { prediction, class, map: map(&activation, &gradient)?, image })
    }
}

/// What a pass forth and back over one image found.
struct Looked {
    logits: Tensor,
    /// `[1, h, w, C]`.
    activation: Tensor,
    /// Of the class's logit with respect to it.
    gradient: Tensor,
    class: usize,
}

fn look(model: &Model, images: Tensor, class: Option<usize>, layer: Option<Layer>) -> Result<Looked> {
    let backbone = &model.backbone;
    let last = Layer::Stage(model.arch().stages());
    let layer = layer.unwrap_or(last);
    let units = backbone.units_through(layer).ok_or_else(|| {
        let message = format!("{} has no map after {layer}; choose stem or layer1 … {last}", model.arch());
        Error::setting("layer", message)
    })?;
    // In evaluation parameters are constants, so that what is recorded is what depends on the activation.
    let mut pass = Pass::evaluation();
    let activation = backbone.forward_units(&mut pass, &Var::constant(images), 0..units)?.into_value();
    let leaf = pass.tape.leaf(ACTIVATION, activation.clone());
    let end = backbone.forward_units(&mut pass, &leaf, units..backbone.units())?;
    let features = model.head.pool(&mut pass, &end)?;
    let logits = model.head.classify(&mut pass, &features)?;

    let values = logits.value().to_vec::<f32>()?;
    let class = class.unwrap_or_else(|| super::evaluation::best(&values));
    let mut seed = vec![0f32; values.len()];
    match seed.get_mut(class) {
        Some(one) => *one = 1.0,
        None => return Err(Error::setting("class", format!("{class} is not below the {} classes", values.len()))),
    }
    let seed = Tensor::new(seed, logits.value().shape(), logits.value().device())?;
    let gradient = pass.tape.backward_from(&logits, seed)?.remove(ACTIVATION);
    let gradient = gradient.ok_or_else(|| Error::shape("Grad-CAM", "no gradient reached the activation"))?;
    Ok(Looked { logits: logits.into_value(), activation, gradient, class })
}

/// `relu(Σ_c w_c · A_c)` of an activation and its gradient, both `[1, h, w, C]`.
fn map(activation: &Tensor, gradient: &Tensor) -> Result<ImageBuffer<Luma<f32>, Vec<f32>>> {
    let [_, height, width, channels] = *activation.dims() else {
        return Err(Error::shape("Grad-CAM", format!("{} is no activation", activation.shape())));
    };
    let [activation, gradient] = [activation, gradient].map(|tensor| tensor.cast(DType::F32)?.to_vec::<f32>());
    let mut weights = vec![0f64; channels];
    for place in gradient?.chunks_exact(channels) {
        weights.iter_mut().zip(place).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let places = (height * width) as f64;
    let value = |place: &[f32]| -> f32 {
        let sum: f64 = place.iter().zip(&weights).map(|(value, weight)| f64::from(*value) * weight / places).sum();
        sum.max(0.0) as f32
    };
    let values = activation?.chunks_exact(channels).map(value).collect();
    ImageBuffer::from_raw(width as u32, height as u32, values)
        .ok_or_else(|| Error::shape("Grad-CAM", "the activation has no places"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        autograd::Parameters,
        nn::{Arch, HeadSpec},
        random::Random,
    };

    fn noise(shape: [usize; 4], seed: u64, device: &Device) -> Tensor {
        let mut random = Random::stream(seed, "grad cam", &[]);
        let values = (0..shape.iter().product()).map(|_| random.uniform(-1.0, 1.0)).collect::<Vec<f32>>();
        Tensor::new(values, shape, device).unwrap()
    }

    /// With a linear head on the average, every place's gradient is the class's weights over the number of places, so
    /// that the map is the class activation map of Zhou et al. 2016 (arXiv 1512.04150), up to the ReLU and that number.
    #[test]
    fn of_a_linear_head_it_is_the_class_activation_map() -> Result<()> {
        let device = Device::cpu(2)?;
        let model = Model::new(Arch::ResNet20, HeadSpec::Linear, 3, 5, &device)?;
        let looked = look(&model, noise([1, 32, 32, 3], 1, &device), Some(2), None)?;
        let found = map(&looked.activation, &looked.gradient)?;
        let [_, height, width, channels] = *looked.activation.dims() else { panic!("an activation") };
        let mut weight = Vec::new();
        model.visit(&mut |parameter| {
            if &**parameter.name() == "fc.weight" {
                weight = parameter.value.to_vec::<f32>().unwrap()[2 * channels..].to_vec();
            }
        });
        let activation = looked.activation.to_vec::<f32>()?;
        let mut positive = 0;
        for (place, found) in activation.chunks_exact(channels).zip(found.as_raw()) {
            let cam: f32 = place.iter().zip(&weight).map(|(value, weight)| value * weight).sum();
            let expected = cam.max(0.0) / (height * width) as f32;
            assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
            positive += usize::from(expected > 1e-4);
        }
        assert!(positive > 5 && positive < height * width, "{positive}: both sides of the ReLU are met");
        Ok(())
    }

    /// The weight of a channel is what the logit gains where the whole channel is raised, over the number of places.
    #[test]
    fn gradients_equal_differences_at_any_layer() -> Result<()> {
        let device = Device::cpu(2)?;
        for layer in [Layer::Stage(3), Layer::Stage(1)] {
            let model = Model::new(Arch::ResNet20, HeadSpec::fastai(vec![8]), 3, 5, &device)?;
            let looked = look(&model, noise([1, 16, 16, 3], 2, &device), None, Some(layer))?;
            let units = model.backbone.units_through(layer).unwrap_or_default();
            let (activation, gradient) = (looked.activation.to_vec::<f32>()?, looked.gradient.to_vec::<f32>()?);
            let shape = looked.activation.shape();
            let logit = |values: Vec<f32>| -> Result<f64> {
                let input = Var::constant(Tensor::new(values, shape, &device)?);
                let mut pass = Pass::evaluation();
                let end = model.backbone.forward_units(&mut pass, &input, units..model.backbone.units())?;
                let features = model.head.pool(&mut pass, &end)?;
                let logits = model.head.classify(&mut pass, &features)?.into_value().to_vec::<f32>()?;
                Ok(f64::from(logits[looked.class]))
            };
            let (channels, step) = (shape.last(), 3e-4f32);
            let (mut off, mut norm) = (0f64, 0f64);
            for channel in 0..16 {
                let moved = |step: f32| {
                    let raise = |(at, value): (usize, &f32)| value + if at % channels == channel { step } else { 0.0 };
                    logit(activation.iter().enumerate().map(raise).collect())
                };
                let numeric = (moved(step)? - moved(-step)?) / f64::from(2.0 * step);
                let exact: f64 = gradient.iter().skip(channel).step_by(channels).map(|value| f64::from(*value)).sum();
                off += (numeric - exact).powi(2);
                norm += exact.powi(2);
            }
            // Some values pass the bend of a ReLU on the way.
            assert!(norm > 1e-4 && off < 0.05f64.powi(2) * norm, "{layer}: off by {off:e} of {norm:e}, squared");
        }
        Ok(())
    }

    #[test]
    fn the_map_grows_linearly_to_the_image() {
        let map = ImageBuffer::from_raw(2, 1, vec![0.0, 3.0]).unwrap();
        let prediction = Prediction::new(&[String::new()], vec![1.0]);
        let image = RgbImage::from_pixel(4, 2, image::Rgb([100; 3]));
        let mut found = GradCam { prediction, class: 0, map, image };
        let heat = found.heat();
        assert!(heat.iter().zip([0.0, 0.25, 0.75, 1.0].repeat(2)).all(|(a, b)| (a - b).abs() < 1e-6), "{heat:?}");
        let overlay = found.overlay();
        let sums: Vec<u32> = overlay.pixels().map(|pixel| pixel.0.iter().map(|v| u32::from(*v)).sum()).collect();
        assert!(sums[0] < sums[1] && sums[1] < sums[2] && sums[2] < sums[3], "it glows where it counts: {sums:?}");
        found.map = ImageBuffer::from_raw(2, 1, vec![0.0, 0.0]).unwrap();
        assert_eq!(found.heat(), [0.0; 8]);
    }

    #[test]
    fn classes_and_layers_that_are_none_are_named() -> Result<()> {
        let device = Device::cpu(1)?;
        let model = Model::new(Arch::ResNet20, HeadSpec::Linear, 3, 5, &device)?;
        let images = noise([1, 16, 16, 3], 1, &device);
        let error = look(&model, images.clone(), Some(3), None).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("3 is not below the 3 classes")));
        for layer in [Layer::AveragePool, Layer::Stage(4)] {
            let error = look(&model, images.clone(), None, Some(layer)).err().map(|error| error.to_string());
            assert!(error.is_some_and(|error| error.contains("resnet20 has no map after") && error.contains("layer3")));
        }
        Ok(())
    }
}
