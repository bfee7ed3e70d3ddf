//! Heads: what turns the backbone's last activation into logits.

use serde::{Deserialize, Serialize};

use super::{BatchNorm, Linear, Pass};
use crate::{
    Device, Error, Result,
    autograd::{Parameter, Parameters, Var},
    ops::{
        batchnorm::Fused,
        pool::{average_pool, concat_pool},
    },
};

/// The kind of a head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum HeadSpec {
    /// fastai 0.7's: max ‖ average pool, then batchnorm → dropout → linear → ReLU per hidden size, and batchnorm →
    /// dropout → linear to the classes.
    Fastai {
        /// Sizes of the hidden layers. Default `[512]`.
        hidden: Vec<usize>,
        /// Dropout before each linear layer (fastai's `ps`): one value for all, or one each. Default 0.25 before
        /// hidden layers, 0.5 before the last.
        dropout: Vec<f32>,
    },
    /// Average pool and one linear layer, as torchvision's classifiers.
    Linear,
}

impl Default for HeadSpec {
    fn default() -> Self {
        HeadSpec::fastai(vec![512])
    }
}

impl HeadSpec {
    /// fastai's head with these hidden sizes and the default dropout.
    pub fn fastai(hidden: Vec<usize>) -> Self {
        let mut dropout = vec![0.25; hidden.len()];
        dropout.push(0.5);
        HeadSpec::Fastai { hidden, dropout }
    }

    /// Whether the values make sense.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the value if not.
    pub fn validate(&self) -> Result<()> {
        let HeadSpec::Fastai { hidden, dropout } = self else { return Ok(()) };
        let layers = hidden.len() + 1;
        if dropout.len() != 1 && dropout.len() != layers {
            let message =
                format!("{} values given; give one, or one for each of the {layers} linear layers", dropout.len());
            return Err(Error::setting("dropout", message));
        }
        if let Some(p) = dropout.iter().find(|p| !(0.0..1.0).contains(*p)) {
            return Err(Error::setting("dropout", format!("{p} is not a probability in [0, 1)")));
        }
        if let Some(size) = hidden.iter().find(|size| !(1..=MAX_HIDDEN).contains(*size)) {
            let message = format!("a hidden layer of {size} units; give between 1 and {MAX_HIDDEN}");
            return Err(Error::setting("hidden", message));
        }
        Ok(())
    }

    /// Name, inputs and outputs of each linear layer of such a head for `classes` on activations of `channels`.
    pub fn plan(&self, channels: usize, classes: usize) -> Vec<(String, usize, usize)> {
        let HeadSpec::Fastai { hidden, .. } = self else { return vec![("fc".into(), channels, classes)] };
        let inputs = std::iter::once(2 * channels).chain(hidden.iter().copied());
        let outputs = hidden.iter().copied().chain([classes]);
        let layers = inputs.zip(outputs).enumerate();
        layers.map(|(index, (inputs, outputs))| (format!("head.{}", 4 * index + 3), inputs, outputs)).collect()
    }
}

/// Units of the largest hidden layer.
const MAX_HIDDEN: usize = 1 << 16;

/// One group of layers of fastai's head.
#[derive(Clone, Debug)]
struct HeadBlock {
    norm: BatchNorm,
    dropout: f32,
    linear: Linear,
    relu: bool,
}

/// A head, its pooling included.
#[derive(Clone, Debug)]
pub struct Head {
    spec: HeadSpec,
    channels: usize,
    classes: usize,
    layers: Layers,
}

#[derive(Clone, Debug)]
enum Layers {
    Fastai(Vec<HeadBlock>),
    Linear(Box<Linear>),
}

impl Head {
    /// A head for `classes` on activations of `channels`. Parameters are named `head.1.*`, `head.3.*` … (fastai's
    /// positions, the pool being 0), those of a linear head `fc.*` as in torchvision.
    ///
    /// # Errors
    /// [`Error::Setting`] if the values of `spec` make no sense.
    pub fn new(spec: HeadSpec, channels: usize, classes: usize, seed: u64, device: &Device) -> Result<Self> {
        spec.validate()?;
        let linear =
            |(name, inputs, outputs): (String, usize, usize)| Linear::new(&name, inputs, outputs, seed, device);
        let layers = match &spec {
            HeadSpec::Linear => Layers::Linear(Box::new(linear(("fc".into(), channels, classes))?)),
            HeadSpec::Fastai { hidden, dropout } => {
                let blocks = spec.plan(channels, classes).into_iter().enumerate().map(|(index, layer)| {
                    Ok(HeadBlock {
                        norm: BatchNorm::new(&format!("head.{}", 4 * index + 1), layer.1, device)?,
                        dropout: dropout[index.min(dropout.len() - 1)],
                        linear: linear(layer)?,
                        relu: index < hidden.len(),
                    })
                });
                Layers::Fastai(blocks.collect::<Result<_>>()?)
            }
        };
        Ok(Self { spec, channels, classes, layers })
    }

    /// The kind.
    pub fn spec(&self) -> &HeadSpec {
        &self.spec
    }

    /// The same head with initial weights drawn anew.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn redrawn(&self, seed: u64, device: &Device) -> Result<Self> {
        Self::new(self.spec.clone(), self.channels, self.classes, seed, device)
    }

    /// Name of the pooling, which decides what the features are.
    pub fn pool_name(&self) -> &'static str {
        match self.layers {
            Layers::Fastai(_) => "max-average",
            Layers::Linear(_) => "average",
        }
    }

    /// Values of an image's pooled features.
    pub fn inputs(&self) -> usize {
        self.spec.plan(self.channels, self.classes)[0].1
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Pools the last activation `[N, h, w, C]` to the features that the rest of the head works on.
    ///
    /// # Errors
    /// [`Error::Shape`] if `activation` is none.
    pub fn pool(&self, pass: &mut Pass, activation: &Var) -> Result<Var> {
        match self.layers {
            Layers::Fastai(_) => concat_pool(&mut pass.tape, activation),
            Layers::Linear(_) => average_pool(&mut pass.tape, activation),
        }
    }

    /// Logits `[N, classes]` from pooled features.
    ///
    /// # Errors
    /// [`Error::Shape`] if extents do not fit.
    pub fn classify(&self, pass: &mut Pass, features: &Var) -> Result<Var> {
        let blocks = match &self.layers {
            Layers::Linear(linear) => return linear.forward(pass, features),
            Layers::Fastai(blocks) => blocks,
        };
        let mut x = features.clone();
        for block in blocks {
            x = block.norm.forward(pass, &x, Fused::default())?;
            x = pass.dropout(block.norm.name(), &x, block.dropout)?;
            x = block.linear.forward(pass, &x)?;
            if block.relu {
                x = crate::ops::elementwise::relu(&mut pass.tape, &x)?;
            }
        }
        Ok(x)
    }

    /// The one layer of a linear head.
    pub(crate) fn linear_mut(&mut self) -> Option<&mut Linear> {
        match &mut self.layers {
            Layers::Linear(linear) => Some(linear),
            Layers::Fastai(_) => None,
        }
    }

    pub(super) fn norms_mut(&mut self) -> impl Iterator<Item = &mut BatchNorm> {
        let blocks = match &mut self.layers {
            Layers::Fastai(blocks) => blocks.as_mut_slice(),
            Layers::Linear(_) => &mut [],
        };
        blocks.iter_mut().map(|block| &mut block.norm)
    }
}

impl Parameters for Head {
    fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Parameter)) {
        match &self.layers {
            Layers::Linear(linear) => linear.visit(visit),
            Layers::Fastai(blocks) => {
                for block in blocks {
                    block.norm.visit(visit);
                    block.linear.visit(visit);
                }
            }
        }
    }

    fn visit_mut<'a>(&'a mut self, visit: &mut dyn FnMut(&'a mut Parameter)) {
        match &mut self.layers {
            Layers::Linear(linear) => linear.visit_mut(visit),
            Layers::Fastai(blocks) => {
                for block in blocks {
                    block.norm.visit_mut(visit);
                    block.linear.visit_mut(visit);
                }
            }
        }
    }
}
