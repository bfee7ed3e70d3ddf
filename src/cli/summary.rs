//! `unfreeze summary`: the layer table of a network.

use clap::Args;
use serde_json::json;
use unfreeze::{
    Device, Result, Tensor,
    autograd::{Parameters, Var},
    nn::{Arch, FreezeState, HeadSpec, Model, Pass, Unit},
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
    /// Freeze all layer groups before this one; negative numbers count from the end
    #[arg(long, default_value_t = -1, allow_hyphen_values = true, value_name = "N")]
    freeze_to: isize,
    /// Print one JSON object per layer: layer, shape, parameters, trainable, group
    #[arg(long)]
    json: bool,
}

impl Summary {
    pub fn run(self) -> Result<()> {
        let device = Device::cpu(1)?;
        let mut model = Model::new(self.arch, HeadSpec::default(), self.classes, 0, &device)?;
        let mut state = FreezeState::head_only(self.arch, model.grouping());
        state.freeze_to(self.freeze_to)?;
        model.apply(&state, false);

        let size = self.size.unwrap_or(self.arch.published_size());
        let mut x = Var::constant(Tensor::zeros([1, size, size, 3], &device)?);
        let mut pass = Pass::evaluation();
        if !self.json {
            outln!("{:<12} {:>18} {:>12} {:>12}  group", "layer", "output", "parameters", "trainable");
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
            if self.json {
                let dims = shape.dims();
                outln!(
                    "{}",
                    json!({ "layer": name, "shape": dims, "parameters": all, "trainable": trainable, "group": group })
                );
            } else {
                outln!("{name:<12} {:>18} {all:>12} {trainable:>12}  {group}", shape.to_string());
            }
        }
        if !self.json {
            let (all, trainable) = model.parameter_count();
            outln!("{:<12} {:>18} {all:>12} {trainable:>12}", "total", "");
            outln!("groups: {state}");
        }
        Ok(())
    }
}
