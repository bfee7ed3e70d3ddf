//! `unfreeze features`: what a pretrained network sees in images.

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args;
use unfreeze::{
    DType, Error, Result, Tensor,
    autograd::Var,
    checkpoint::{FileTensor, write_safetensors},
    data::{Item, Loader, LoaderOptions, Transforms},
    nn::{HeadSpec, Layer, Model, Pass},
    ops::pool::average_forward,
};

use super::options::{Arithmetic, Compute, Failed, Pretrained, check_output, count, images, side};

/// Write a network's activations for images
///
/// OUT receives one tensor `features`, f32, [N, C] or [N, C, H, W], and in its metadata `files`: a JSON list of the
/// files in row order.
#[derive(Args)]
pub struct Features {
    /// Images, or folders of images
    #[arg(required = true, value_name = "IMAGE|DIR")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    pretrained: Pretrained,
    /// stem, layer1 … layer4, avgpool, or logits (the checkpoint's own classifier)
    #[arg(long, default_value_t = Layer::AveragePool)]
    layer: Layer,
    /// Side of the square that the network sees, in pixels [default: 224, or 32 for CIFAR networks]
    #[arg(long, value_name = "N", value_parser = side)]
    size: Option<usize>,
    /// Short side before the crop, in pixels [default: the size, or in proportion what weights of the catalogue were
    /// published with, such as 256 for 224]
    #[arg(long, value_name = "N", value_parser = side)]
    resize: Option<usize>,
    /// Images per batch
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = count)]
    batch_size: usize,
    /// File to write
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    arithmetic: Arithmetic,
}

impl Features {
    pub fn run(self) -> Result<()> {
        check_output("--out", &self.out, "safetensors")?;
        let device = self.compute.open()?;
        let weights = self.pretrained.read(false)?;
        let mut model = match self.layer {
            Layer::Logits => weights.with_classifier(&device)?,
            _ => weights.with_head(HeadSpec::Linear, 1, self.compute.seed, &device)?,
        };
        model.set_precision(self.arithmetic.dtype)?;
        let size = self.size.unwrap_or(weights.arch().published_size());
        let transforms = Transforms::for_weights(&weights, size);
        let resize = self.resize.unwrap_or(transforms.resize);
        let transforms = transforms.resize(resize);
        let files = images(&self.images)?;
        let order = (0..files.len() as u32).collect();
        let options = LoaderOptions::evaluation().on(&device);

        let mut failed = Failed::default();
        let (mut values, mut rows, mut dims) = (Vec::new(), Vec::new(), Vec::new());
        for batch in Loader::new(Item::unlabelled(&files), &transforms, order, self.batch_size, &options)? {
            let mut batch = batch?;
            failed.report(std::mem::take(&mut batch.failed));
            if batch.is_empty() {
                continue;
            }
            let features = self.activation(&model, batch.upload(&transforms, &device, self.arithmetic.dtype)?)?;
            dims = features.dims()[1..].to_vec();
            values.extend(features.to_vec::<f32>()?);
            rows.extend(batch.indices.iter().map(|&index| files[index as usize].display().to_string()));
        }
        if rows.is_empty() {
            return failed.check(files.len());
        }
        // [H, W, C] becomes PyTorch's [C, H, W].
        if let [h, w, c] = dims[..] {
            let pixels = h * w;
            let images = values.chunks_exact(pixels * c);
            let transposed = |image: &[f32]| -> Vec<f32> {
                (0..c * pixels).map(|at| image[at % pixels * c + at / pixels]).collect()
            };
            values = images.flat_map(transposed).collect();
            dims = vec![c, h, w];
        }
        dims.insert(0, rows.len());
        let tensor = FileTensor::from_f32(dims.clone(), values)?;
        let tensors = BTreeMap::from([("features".to_string(), tensor)]);
        let metadata = BTreeMap::from([
            ("files".to_string(), serde_json::json!(rows).to_string()),
            ("layer".to_string(), self.layer.to_string()),
            ("arch".to_string(), weights.arch().to_string()),
        ]);
        write_safetensors(&self.out, &tensors, &metadata)?;
        errln!("{}: features {dims:?} of {} images", self.out.display(), rows.len());
        failed.check(files.len())
    }

    fn activation(&self, model: &Model, images: Tensor) -> Result<Tensor> {
        let backbone = &model.backbone;
        let units = match self.layer {
            Layer::Logits => return model.logits(&images),
            Layer::AveragePool => backbone.units(),
            layer @ (Layer::Stem | Layer::Stage(_)) => backbone.units_through(layer).ok_or_else(|| {
                let stages = model.arch().stages();
                Error::setting("--layer", format!("{} has no {layer}; its stages end at layer{stages}", model.arch()))
            })?,
        };
        let activation = backbone.forward_units(&mut Pass::evaluation(), &Var::constant(images), 0..units)?;
        match self.layer {
            Layer::AveragePool => average_forward(activation.value()),
            _ => activation.value().cast(DType::F32),
        }
    }
}
