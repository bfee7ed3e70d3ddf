//! Which network a checkpoint is of, told from the names and shapes of its tensors.

use std::{collections::BTreeMap, path::Path};

use super::{
    names::{LISTED, Names, listed, nearest, short_name},
    stored::explained,
};
use crate::nn::{Arch, HeadSpec};

/// Shapes by name, as files have them.
pub(super) type Shapes = BTreeMap<String, Vec<usize>>;

/// What some tensors' names tell of networks that are not supported: a part of a name, and what has it. The first that
/// is found counts.
const UNSUPPORTED: [(&str, &str); 19] = [
    (".aa.filt", "anti-aliasing layers: a ResNet that blurs where it takes strides, as resnetblur50"),
    (".conv_dw.", "a network of depthwise convolutions, such as a ConvNeXt or MobileNet"),
    (".dwconv.", "a ConvNeXt"),
    (".layer_scale", "a ConvNeXt"),
    (".conv2.fc1.", "split attention: a ResNeSt"),
    (".paths.0.conv.", "selective kernels: an SKNet"),
    (".convs.0.weight", "convolutions of several scales: a Res2Net"),
    ("fuse_layers.", "an HRNet"),
    ("attnpool.", "CLIP's ResNet, which pools by attention"),
    ("standardized_conv2d", "Big Transfer's ResNets, of activations first and GroupNorm"),
    ("s1.b1.conv1.", "a RegNet"),
    (".se.", "channel attention: an SE-ResNet or ECA-ResNet"),
    (".se_module.", "squeeze and excitation: an SE-ResNet"),
    ("stage2.0.branch2.", "a ShuffleNet"),
    ("conv1.0.weight", "a stem of three convolutions: a ResNet-C or -D, as timm's resnet50d"),
    ("stages.0.blocks.0.norm1.", "a ResNet with activations first, as timm's resnetv2_50"),
    // As they are without the prefixes `resnet.` and `encoder.`.
    ("stages.0.layers.0.layer.0.convolution", "transformers' ResNets, whose names are not known here"),
    ("res2.0.conv1.", "Detectron2's ResNets, whose names are not known here"),
    ("stages.0.", "another family of timm's networks, such as CSPResNet or NF-ResNet"),
];

/// The architecture whose convolutions are exactly those of `shapes`, if they are normalised by batchnorm.
pub(super) fn arch_of(shapes: &Shapes) -> Option<Arch> {
    arch_by_convolutions(shapes).filter(|_| has_statistics(shapes) && unsupported(shapes).is_none())
}

/// Whether there is a batchnorm, which alone has statistics.
fn has_statistics(shapes: &Shapes) -> bool {
    shapes.keys().any(|name| name.ends_with(".running_var"))
}

fn arch_by_convolutions(shapes: &Shapes) -> Option<Arch> {
    let found: BTreeMap<&str, &[usize]> = convolutions(shapes).collect();
    if found.is_empty() {
        return None;
    }
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
    let text = format!("holds none of the known architectures ({known}); `unfreeze inspect FILE` lists its tensors");
    likeness(shapes).map_or(text.clone(), |likeness| format!("{text}\n  {likeness}"))
}

/// What of `left_out`, by this engine's names, the network needs that `shapes` are the nearest to, in words.
pub(super) fn unread(shapes: &Shapes, left_out: &[(String, &'static str)]) -> Option<String> {
    let (arch, ..) = nearest_arch(shapes).filter(|_| !left_out.is_empty())?;
    let (head, classes) = head_or_published(shapes, arch);
    let expected = tensors_of(arch, &head, classes);
    let needed = left_out.iter().filter(|(name, _)| expected.contains_key(name) && !shapes.contains_key(name));
    let needed: Vec<String> = needed.map(explained).collect();
    (!needed.is_empty()).then(|| format!("lacks what {arch} needs: {}", listed(&needed)))
}

/// Which network that is not supported `shapes` are of, if that can be told.
pub(super) fn unsupported(shapes: &Shapes) -> Option<String> {
    if let Some((sign, what)) = UNSUPPORTED.iter().find(|(part, _)| shapes.keys().any(|name| name.contains(part))) {
        return Some(format!("tensors with '{sign}' in their names are of {what}: not supported"));
    }
    let arch = arch_by_convolutions(shapes).filter(|_| !has_statistics(shapes))?;
    Some(format!(
        "the convolutions are those of {arch}, but no tensor is a batchnorm's statistics (running_var): a network of \
         GroupNorm or the like, which is not supported"
    ))
}

/// That a file is, by its name or its folder's, of timm's networks with anti-aliasing layers: these have no tensors in
/// recent files, so that nothing else tells them from plain ResNets.
pub(super) fn antialiased(path: &Path) -> Option<String> {
    let names = path.iter().rev().take(2).filter_map(|part| part.to_str());
    let parts = names.flat_map(|part| part.split(['-', '.', '_']));
    let name = parts.into_iter().find(|part| ["resnetaa", "resnetblur"].iter().any(|start| part.starts_with(start)))?;
    Some(format!(
        "its name says that it is a {}, which has anti-aliasing layers that are not supported: without them its \
         features are others than those it was trained for",
        short_name(name)
    ))
}

/// What `shapes` of no known architecture are like, if they are like anything; where most of a known one is there, what
/// is missing, unknown or of another shape.
pub(super) fn likeness(shapes: &Shapes) -> Option<String> {
    if let Some(unsupported) = unsupported(shapes) {
        return Some(unsupported);
    }
    if let Some(sets) = sets(shapes) {
        return Some(sets);
    }
    let (arch, same, of) = nearest_arch(shapes)?;
    let text = format!("the nearest is {arch}: {same} of its {of} convolutions are there in the same shape");
    let (head, classes) = head_or_published(shapes, arch);
    Some(if 2 * same > of { text + &misfit(shapes, arch, &head, classes) } else { text })
}

/// Which networks lie beside each other in a file whose format has no dictionaries, under what their names begin with.
fn sets(shapes: &Shapes) -> Option<String> {
    // Those of a hostile file are not all looked at.
    const MOST: usize = 8;
    let mut below = BTreeMap::<&str, Shapes>::new();
    for (name, shape) in shapes {
        if let Some((key, rest)) = name.split_once('.') {
            below.entry(key).or_default().insert(rest.to_owned(), shape.clone());
        }
    }
    let network = |(key, shapes): (&str, Shapes)| {
        let names = Names::of(Path::new(key), shapes.keys()).ok()?;
        let arch = arch_of(&names.rename(shapes))?;
        Some((short_name(key).into_owned(), arch))
    };
    let found: Vec<(String, Arch)> = below.into_iter().take(MOST).filter_map(network).collect();
    let (first, _) = found.first()?;
    let listed: Vec<String> = found.iter().map(|(key, arch)| format!("{key} ({arch})")).collect();
    Some(format!("there are networks under {}: --key {first} takes that one", listed.join(" and ")))
}

/// The architecture with the largest share of its convolutions in `shapes`: how many, and of how many.
pub(super) fn nearest_arch(shapes: &Shapes) -> Option<(Arch, usize, usize)> {
    let likeness = |arch: &Arch| {
        let expected = arch.convolutions();
        let same = expected.iter().filter(|(name, shape)| shapes.get(name) == Some(shape)).count();
        (same * 1000 / expected.len(), same, expected.len())
    };
    let arch = Arch::ALL.into_iter().max_by_key(likeness)?;
    let (_, same, of) = likeness(&arch);
    (same > 0).then_some((arch, same, of))
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

/// Biases that a head of this kind may lack, and their lengths: fastai 2 has none in its head, since batchnorm comes
/// before each linear layer, and a classifier may be trained without.
pub(super) fn optional_biases(arch: Arch, head: &HeadSpec, classes: usize) -> BTreeMap<String, usize> {
    head.plan(arch.features(), classes).into_iter().map(|(name, _, outputs)| (name + ".bias", outputs)).collect()
}

/// What the backbone of `arch` needs and `shapes` lack, or have in another shape; nothing if all is there.
pub(super) fn incomplete(shapes: &Shapes, arch: Arch) -> Option<String> {
    let expected = tensors_of(arch, &HeadSpec::Linear, 1);
    let backbone = expected.iter().filter(|(name, _)| !name.starts_with("fc.") && !name.ends_with(COUNTER));
    let lacking: Vec<String> = backbone
        .filter_map(|(name, shape)| match shapes.get(name) {
            None => Some(name.clone()),
            Some(found) if found != shape => Some(format!("{name} (found {found:?}, expected {shape:?})")),
            Some(_) => None,
        })
        .collect();
    (!lacking.is_empty()).then(|| format!("lacks what {arch} needs, and makes no model: {}", listed(&lacking)))
}

/// What of `shapes` is missing, unknown or of another shape for `arch` with such a head, in lines; empty if all fits.
/// Counters and [`optional_biases`] may be missing.
pub(super) fn misfit(shapes: &Shapes, arch: Arch, head: &HeadSpec, classes: usize) -> String {
    let expected = tensors_of(arch, head, classes);
    let optional = optional_biases(arch, head, classes);
    let may_miss = |name: &str| name.ends_with(COUNTER) || optional.contains_key(name);
    let missing = expected.keys().filter(|name| !shapes.contains_key(*name) && !may_miss(name)).cloned().collect();
    let (mut unknown, mut misshapen) = (Vec::new(), Vec::new());
    for (name, shape) in shapes {
        match expected.get(name) {
            None if unknown.len() < LISTED => {
                let near = nearest(name, expected.keys().map(String::as_str));
                let near = near.map_or(String::new(), |near| format!(" (nearest: {near})"));
                unknown.push(format!("{}{near}", short_name(name)));
            }
            None => unknown.push(name.clone()),
            Some(right) if right != shape => misshapen.push(format!("{name} (found {shape:?}, expected {right:?})")),
            Some(_) => {}
        }
    }
    let problems: [(&str, Vec<String>); 3] =
        [("missing", missing), ("unknown", unknown), ("of another shape", misshapen)];
    let problems = problems.iter().filter(|(_, names)| !names.is_empty());
    problems.map(|(what, names)| format!("\n  {} {what}: {}", names.len(), listed(names))).collect()
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

/// The head that the shapes are of; the published classifier of `arch` if there is none.
pub(super) fn head_or_published(shapes: &Shapes, arch: Arch) -> (HeadSpec, usize) {
    head_of(shapes).unwrap_or((HeadSpec::Linear, arch.published_classes()))
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
