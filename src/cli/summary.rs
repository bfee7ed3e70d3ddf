//! `unfreeze summary`: the layer table of a network.

use clap::Args;
use serde_json::json;
use unfreeze::{
    Device, Precision, Result, Tensor,
    autograd::{Parameters, Var},
    nn::{Arch, FreezeState, Grouping, HeadSpec, Model, Pass, Unit, cost::Network},
};

use super::options::{count, side};

/// Show a network's layers: output shape, parameters, trainable parameters, layer group
#[derive(Args)]
pub struct Summary {
    /// Architecture, such as resnet34
    #[arg(long)]
    arch: Arch,
    /// Side of the input images in pixels [default: 224, or 32 for CIFAR networks]
    #[arg(long, value_name = "N", value_parser = side)]
    size: Option<usize>,
    /// Number of classes
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = count)]
    classes: usize,
    /// How the network is cut into layer groups: fastai (stem and first half, second half, head), stage or block
    #[arg(long, default_value_t, value_name = "NAME")]
    groups: Grouping,
    /// Freeze all layer groups before this one; negative numbers count from the end
    #[arg(long, default_value_t = -1, allow_hyphen_values = true, value_name = "N")]
    freeze_to: isize,
    /// Show memory too: bytes of each layer's output, and what a training step of the fused design keeps of it for its
    /// backward pass
    #[arg(long)]
    memory: bool,
    /// Images per batch, for --memory
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = count, requires = "memory")]
    batch_size: usize,
    /// What activations are stored in, for --memory: f32, tf32 or bf16
    #[arg(long, default_value_t = Precision::F32, value_name = "NAME", requires = "memory")]
    dtype: Precision,
    /// Print one JSON object per layer: layer, shape, parameters, trainable, group; with --memory output_bytes and
    /// saved_bytes
    #[arg(long)]
    json: bool,
}

impl Summary {
    pub fn run(self) -> Result<()> {
        let device = Device::cpu(1)?;
        let mut model = Model::new(self.arch, HeadSpec::default(), self.classes, 0, &device)?;
        model.set_grouping(self.groups);
        let mut state = FreezeState::head_only(self.arch, self.groups);
        state.freeze_to(self.freeze_to)?;
        model.apply(&state, false);

        let size = self.size.unwrap_or(self.arch.published_size());
        let mut x = Var::constant(Tensor::zeros([1, size, size, 3], &device)?);
        let mut pass = Pass::evaluation();
        let saved = self.saved(&model, &state, size);
        let mut bytes = (0.0, 0.0);
        if !self.json {
            let memory = if self.memory { format!(" {:>12} {:>12}", "output, MB", "kept, MB") } else { String::new() };
            outln!("{:<12} {:>18} {:>12} {:>12}{memory}  group", "layer", "output", "parameters", "trainable");
        }
        for (index, unit) in model.units().into_iter().enumerate() {
            let name = match unit {
                Unit::Stem => "stem".to_string(),
                Unit::Block(stage, block) => format!("layer{stage}.{block}"),
                Unit::Head => "head".to_string(),
            };
            x = match unit {
                Unit::Head => {
                    let pooled = model.head.pool(&mut pass, &x)?;
                    model.head.classify(&mut pass, &pooled)?
                }
                Unit::Stem | Unit::Block(..) => model.backbone.forward_units(&mut pass, &x, index..index + 1)?,
            };
            let (mut all, mut trainable) = (0, 0);
            model.visit(&mut |parameter| {
                if Unit::of(parameter.name()) == unit && parameter.role().is_learned() {
                    let elements = parameter.value.shape().elements();
                    all += elements;
                    trainable += if parameter.is_trainable() { elements } else { 0 };
                }
            });
            let group = model.grouping().group(self.arch, unit);
            let shape = x.value().shape();
            // Logits are f32 in any case.
            let element = if unit == Unit::Head { size_of::<f32>() } else { self.dtype.storage().bytes() };
            let output = (shape.elements() * self.batch_size * element) as f64;
            bytes = (bytes.0 + output, bytes.1 + saved[index]);
            if self.json {
                let dims = shape.dims();
                let mut object =
                    json!({ "layer": name, "shape": dims, "parameters": all, "trainable": trainable, "group": group });
                if self.memory {
                    object["output_bytes"] = json!(output);
                    object["saved_bytes"] = json!(saved[index]);
                }
                outln!("{object}");
            } else {
                let memory = self.megabytes(output, saved[index]);
                outln!("{name:<12} {:>18} {all:>12} {trainable:>12}{memory}  {group}", shape.to_string());
            }
        }
        if !self.json {
            let (all, trainable) = model.parameter_count();
            let memory = self.megabytes(bytes.0, bytes.1);
            outln!("{:<12} {:>18} {all:>12} {trainable:>12}{memory}", "total", "");
            outln!("groups: {state}");
        }
        Ok(())
    }

    /// Bytes that a training step keeps of each unit for its backward pass.
    fn saved(&self, model: &Model, state: &FreezeState, size: usize) -> Vec<f64> {
        let Summary { arch, batch_size: batch, classes, dtype: precision, .. } = *self;
        let is_frozen = |unit: &Unit| !state.is_trainable(model.grouping().group(arch, *unit));
        let frozen = model.units().iter().take_while(|unit| is_frozen(unit)).count();
        Network { arch, size, batch, classes, precision }.saved_by_unit(frozen)
    }

    /// Columns of the table.
    fn megabytes(&self, output: f64, saved: f64) -> String {
        if self.memory { format!(" {:>12.1} {:>12.1}", output / 1e6, saved / 1e6) } else { String::new() }
    }
}
