//! Which network a checkpoint is of, told from the names and shapes of its tensors.

use std::collections::BTreeMap;

use crate::nn::{Arch, HeadSpec};

/// Shapes by name, as files have them.
pub(super) type Shapes = BTreeMap<String, Vec<usize>>;

/// What some tensors' names tell of networks that are not supported: a part of a name, and what has it.
const UNSUPPORTED: [(&str, &str); 4] = [
    ("conv1.0.weight", "a stem of three convolutions: a ResNet-C or -D, as timm's resnet50d, which is not supported"),
    (".se.", "squeeze and excitation: an SE-ResNet, which is not supported"),
    ("stages.0.blocks.0.", "a ResNet with activations first, as timm's resnetv2_50, which is not supported"),
    ("encoder.stages.0.layers.0.", "the names of transformers' ResNets, which are not supported"),
];

/// The architecture whose convolutions are exactly those of `shapes`.
pub(super) fn arch_of(shapes: &Shapes) -> Option<Arch> {
    let found: BTreeMap<&str, &[usize]> = convolutions(shapes).collect();
    let same = |arch: &Arch| {
        let expected = arch.convolutions();
        expected.len() == found.len()
            && expected.iter().all(|(name, shape)| found.get(name.as_str()) == Some(&shape.as_slice()))
    };
    Arch::ALL.into_iter().find(same)
}

fn convolutions(shapes: &Shapes) -> impl Iterator<Item = (&str, &[usize])> {
    shapes.iter().filter(|(_, shape)| shape.len() == 4).map(|(name, shape)| (name.as_str(), shape.as_slice()))
}

/// Why `shapes` are of no known architecture: which one is the nearest, and what it lacks of it or what else it is.
pub(super) fn describe(shapes: &BTreeMap<String, Vec<usize>>) -> String {
    let known = Arch::ALL.map(Arch::name).join(", ");
    let mut text =
        format!("holds none of the known architectures ({known}); `unfreeze inspect FILE` lists its tensors");
    if let Some((sign, what)) = UNSUPPORTED.iter().find(|(part, _)| shapes.keys().any(|name| name.contains(part))) {
        return format!("{text}\n  tensors with '{sign}' in their names are of {what}");
    }
    let likeness = |arch: &Arch| {
        let expected = arch.convolutions();
        let same = expected.iter().filter(|(name, shape)| shapes.get(name) == Some(shape)).count();
        (same * 1000 / expected.len(), same, expected.len())
    };
    if let Some(arch) = Arch::ALL.into_iter().max_by_key(likeness) {
        let (_, same, of) = likeness(&arch);
        if same > 0 {
            text += &format!("\n  the nearest is {arch}: {same} of its {of} convolutions are there in the same shape");
        }
    }
    text
}

/// Name and shape of every tensor of `arch` with such a head for `classes`, as torchvision's and this engine's files
/// have them, counters included.
pub(super) fn tensors_of(arch: Arch, head: &HeadSpec, classes: usize) -> Shapes {
    let mut shapes = Shapes::new();
    for (name, shape) in arch.convolutions() {
        let outputs = shape[0];
        let layer = name.trim_end_matches(".weight");
        let norm = match layer.strip_suffix("downsample.0") {
            Some(block) => format!("{block}downsample.1"),
            None => layer.replace("conv", "bn"),
        };
        batchnorm(&mut shapes, &norm, outputs);
        shapes.insert(name, shape);
    }
    for (index, (name, inputs, outputs)) in head.plan(arch.features(), classes).into_iter().enumerate() {
        if *head != HeadSpec::Linear {
            batchnorm(&mut shapes, &format!("head.{}", 4 * index + 1), inputs);
        }
        shapes.insert(format!("{name}.weight"), vec![outputs, inputs]);
        shapes.insert(format!("{name}.bias"), vec![outputs]);
    }
    shapes
}

fn batchnorm(shapes: &mut Shapes, name: &str, channels: usize) {
    for part in ["weight", "bias", "running_mean", "running_var"] {
        shapes.insert(format!("{name}.{part}"), vec![channels]);
    }
    shapes.insert(format!("{name}.{COUNTER}"), vec![]);
}

/// PyTorch's count of the batches that a batchnorm has seen, which nothing depends on.
pub(super) const COUNTER: &str = "num_batches_tracked";

/// The kind of head that the shapes are of, and its classes: torchvision's `fc`, or fastai's as this engine names it.
pub(super) fn head_of(shapes: &Shapes) -> Option<(HeadSpec, usize)> {
    let outputs = |name: &str| shapes.get(&format!("{name}.weight")).filter(|s| s.len() == 2).map(|shape| shape[0]);
    if let Some(classes) = outputs("fc") {
        return Some((HeadSpec::Linear, classes));
    }
    let mut hidden: Vec<usize> = (0..).map_while(|index| outputs(&format!("head.{}", 4 * index + 3))).collect();
    let classes = hidden.pop()?;
    Some((HeadSpec::fastai(hidden), classes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, autograd::Parameters, checkpoint::collect, nn::Model};

    #[test]
    fn what_an_architecture_should_have_is_what_its_model_has() {
        for (arch, head) in [
            (Arch::ResNet20, HeadSpec::Linear),
            (Arch::ResNet18, HeadSpec::Linear),
            (Arch::ResNet8, HeadSpec::fastai(vec![4, 5])),
            (Arch::ResNet8, HeadSpec::fastai(vec![])),
        ] {
            let model = Model::new(arch, head.clone(), 7, 0, &Device::cpu(1).unwrap()).unwrap();
            let real: Shapes =
                collect(&model as &dyn Parameters).unwrap().into_iter().map(|(name, t)| (name, t.shape)).collect();
            let mut expected = tensors_of(arch, &head, 7);
            expected.retain(|name, _| !name.ends_with(COUNTER));
            assert_eq!(expected, real, "{arch}");
            assert_eq!(head_of(&real), Some((head, 7)));
            assert_eq!(arch_of(&real), Some(arch));
        }
    }
}
