//! A network as an ONNX graph: its nodes, and what its tensors are made of.

use super::{
    EPS,
    tensor::number,
    wire::{put_bytes, put_float, put_number},
};
use crate::{
    checkpoint::FileDtype,
    nn::{BlockStructure, ConvLayer, HeadSpec, ShortcutLayer, Structure},
    ops::{conv::Geometry, pool::Window},
};

/// How an ONNX file has its batchnorm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BatchNormForm {
    /// Multiplied into the weights and biases of the convolutions before and the linear layers after it.
    #[default]
    Fold,
    /// As nodes, with all tensors as they are under PyTorch's names: what was written reads back bit for bit.
    Keep,
}

/// How a network is written as ONNX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnnxOptions {
    /// What becomes of batchnorm. Default: folded.
    pub batchnorm: BatchNormForm,
    /// Whether the graph takes images of 0 to 1, and subtracts the mean and divides by the standard deviation itself.
    /// Default: no, they are to be normalised before.
    pub normalise: bool,
    /// Whether it ends in probabilities: a softmax, for several labels a sigmoid. Default: no, in logits.
    pub probabilities: bool,
    /// Whether the network is of `f16`, from the normalised images to the logits, which are `f32` still. Default: no,
    /// all is `f32`.
    pub half: bool,
}

/// What the values of a tensor are.
pub(super) enum Values {
    /// A tensor of the network.
    Network(String),
    /// The weight of a convolution, each filter times the factor of the batchnorm after it.
    FoldedConv { conv: String, norm: String },
    /// What the batchnorm after a convolution without bias adds.
    FoldedShift { norm: String },
    /// The weight of a linear layer, each column times the factor of the batchnorm before it.
    FoldedLinear { linear: String, norm: String },
    /// The bias of a linear layer, and what the shift of the batchnorm before it comes to.
    FoldedBias { linear: String, norm: String, inputs: usize },
    /// These.
    Floats(Vec<f32>),
    /// These.
    Integers(Vec<i64>),
}

/// A tensor of the file.
pub(super) struct Initialiser {
    pub name: String,
    pub dtype: FileDtype,
    pub shape: Vec<usize>,
    pub values: Values,
}

/// A graph in the making.
pub(super) struct Graph {
    fold: bool,
    half: bool,
    /// The fields of all nodes.
    pub nodes: Vec<u8>,
    pub initialisers: Vec<Initialiser>,
}

enum Attribute {
    Int(i64),
    Float(f32),
    Ints(Vec<usize>),
}

impl Graph {
    /// Without nodes.
    pub fn new(options: &OnnxOptions) -> Self {
        let fold = options.batchnorm == BatchNormForm::Fold;
        Self { fold, half: options.half, nodes: Vec::new(), initialisers: Vec::new() }
    }

    /// Adds an operation; its output, `output`.
    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]) -> String {
        let mut node = Vec::new();
        inputs.iter().for_each(|input| put_bytes(&mut node, 1, input));
        put_bytes(&mut node, 2, output);
        put_bytes(&mut node, 3, format!("{op}/{output}"));
        put_bytes(&mut node, 4, op);
        for (name, attribute) in attributes {
            let mut bytes = Vec::new();
            put_bytes(&mut bytes, 1, name);
            // The last field is the number of the type.
            match attribute {
                Attribute::Float(value) => {
                    put_float(&mut bytes, 2, *value);
                    put_number(&mut bytes, 20, 1);
                }
                Attribute::Int(value) => {
                    put_number(&mut bytes, 3, *value);
                    put_number(&mut bytes, 20, 2);
                }
                Attribute::Ints(values) => {
                    values.iter().for_each(|value| put_number(&mut bytes, 8, *value as i64));
                    put_number(&mut bytes, 20, 7);
                }
            }
            put_bytes(&mut node, 5, bytes);
        }
        put_bytes(&mut self.nodes, 1, node);
        output.to_owned()
    }

    fn initialiser(&mut self, name: impl Into<String>, shape: &[usize], values: Values) -> String {
        let name = name.into();
        let dtype = match values {
            Values::Integers(_) => FileDtype::I64,
            Values::Floats(_) => FileDtype::F32,
            _ if self.half => FileDtype::F16,
            _ => FileDtype::F32,
        };
        self.initialisers.push(Initialiser { name: name.clone(), dtype, shape: shape.to_vec(), values });
        name
    }

    /// A tensor of the network as it is.
    fn stored(&mut self, name: String, shape: &[usize]) -> String {
        self.initialiser(name.clone(), shape, Values::Network(name))
    }

    /// `(images − mean) / std`, of each channel its own.
    pub fn normalise(&mut self, images: &str, mean: [f32; 3], std: [f32; 3]) -> String {
        let mean = self.initialiser("normalise.mean", &[1, 3, 1, 1], Values::Floats(mean.into()));
        let std = self.initialiser("normalise.std", &[1, 3, 1, 1], Values::Floats(std.into()));
        let centred = self.node("Sub", &[images, &mean], "centred", &[]);
        self.node("Div", &[&centred, &std], "normalised", &[])
    }

    fn cast(&mut self, x: &str, dtype: FileDtype, output: &str) -> String {
        self.node("Cast", &[x], output, &[("to", Attribute::Int(number(dtype)))])
    }

    /// The last activation.
    pub fn backbone(&mut self, structure: &Structure, images: &str) -> String {
        let images = if self.half { self.cast(images, FileDtype::F16, "input.f16") } else { images.to_owned() };
        let x = self.convolution(&images, &structure.stem);
        let mut x = self.node("Relu", &[&x], "relu", &[]);
        if structure.pooled {
            let Window { size, stride, padding } = Window::STEM;
            let window = [("kernel_shape", vec![size; 2]), ("strides", vec![stride; 2]), ("pads", vec![padding; 4])];
            x = self.node("MaxPool", &[&x], "maxpool", &window.map(|(name, ints)| (name, Attribute::Ints(ints))));
        }
        structure.blocks.iter().fold(x, |x, block| self.block(&x, block))
    }

    fn block(&mut self, x: &str, block: &BlockStructure) -> String {
        let BlockStructure { name, convolutions, shortcut } = block;
        let mut y = x.to_owned();
        for (index, layer) in convolutions.iter().enumerate() {
            if index > 0 {
                y = self.node("Relu", &[&y], &format!("{name}.relu{index}"), &[]);
            }
            y = self.convolution(&y, layer);
        }
        let added = match shortcut {
            ShortcutLayer::Identity => x.to_owned(),
            ShortcutLayer::Projection(layer) => self.convolution(x, layer),
            ShortcutLayer::Padding { stride, channels } => self.padding(x, name, *stride, *channels),
        };
        let sum = self.node("Add", &[&y, &added], &format!("{name}.add"), &[]);
        self.node("Relu", &[&sum], &format!("{name}.relu"), &[])
    }

    fn padding(&mut self, x: &str, block: &str, stride: usize, channels: usize) -> String {
        let mut list = |name: &str, values: Vec<i64>| {
            let name = format!("{block}.shortcut.{name}");
            self.initialiser(name, &[values.len()], Values::Integers(values))
        };
        let (starts, ends) = (list("starts", vec![0; 2]), list("ends", vec![i64::MAX; 2]));
        let (axes, steps) = (list("axes", vec![2, 3]), list("steps", vec![stride as i64; 2]));
        let pads = list("pads", [[0, channels as i64, 0, 0]; 2].concat());
        let strided = [x, &starts, &ends, &axes, &steps];
        let strided = self.node("Slice", &strided, &format!("{block}.shortcut.slice"), &[]);
        self.node("Pad", &[&strided, &pads], &format!("{block}.shortcut"), &[])
    }

    /// A convolution and its batchnorm.
    fn convolution(&mut self, x: &str, layer: &ConvLayer) -> String {
        let ConvLayer { conv, norm, shape, geometry: Geometry { stride, padding, groups } } = layer;
        let attributes = [
            ("kernel_shape", Attribute::Ints(shape[2..].to_vec())),
            ("strides", Attribute::Ints(vec![*stride; 2])),
            ("pads", Attribute::Ints(vec![*padding; 4])),
            ("group", Attribute::Int(*groups as i64)),
        ];
        if !self.fold {
            let weight = self.stored(format!("{conv}.weight"), shape);
            let y = self.node("Conv", &[x, &weight], conv, &attributes);
            return self.batchnorm(&y, norm, shape[0]);
        }
        let folded = Values::FoldedConv { conv: conv.clone(), norm: norm.clone() };
        let weight = self.initialiser(format!("{conv}.weight"), shape, folded);
        let bias = Values::FoldedShift { norm: norm.clone() };
        let bias = self.initialiser(format!("{conv}.bias"), &shape[..1], bias);
        self.node("Conv", &[x, &weight, &bias], conv, &attributes)
    }

    fn batchnorm(&mut self, x: &str, norm: &str, channels: usize) -> String {
        let parts = ["weight", "bias", "running_mean", "running_var"];
        let [scale, shift, mean, variance] = parts.map(|part| self.stored(format!("{norm}.{part}"), &[channels]));
        let inputs = [x, &scale, &shift, &mean, &variance];
        self.node("BatchNormalization", &inputs, norm, &[("epsilon", Attribute::Float(EPS))])
    }

    /// The head of these linear layers.
    pub fn head(&mut self, x: &str, head: &HeadSpec, layers: Vec<(String, usize, usize)>) {
        match head {
            HeadSpec::Linear => layers.into_iter().for_each(|layer| self.linear_head(x, layer)),
            HeadSpec::Fastai { .. } => self.fastai_head(x, layers),
        }
    }

    /// torchvision's head: average and linear layer.
    fn linear_head(&mut self, x: &str, (name, inputs, outputs): (String, usize, usize)) {
        let x = self.node("GlobalAveragePool", &[x], "avgpool", &[]);
        let x = self.node("Flatten", &[&x], "features", &[]);
        let weight = self.stored(format!("{name}.weight"), &[outputs, inputs]);
        let bias = self.stored(format!("{name}.bias"), &[outputs]);
        self.gemm(&x, &weight, &bias, self.logits());
    }

    /// What the last layer's output is called.
    fn logits(&self) -> &'static str {
        if self.half { "logits.f16" } else { "logits" }
    }

    /// fastai's head, of these linear layers. Dropout does nothing where nothing is trained.
    fn fastai_head(&mut self, x: &str, layers: Vec<(String, usize, usize)>) {
        let maximum = self.node("GlobalMaxPool", &[x], "maximum", &[]);
        let average = self.node("GlobalAveragePool", &[x], "average", &[]);
        let both = self.node("Concat", &[&maximum, &average], "pooled", &[("axis", Attribute::Int(1))]);
        let mut x = self.node("Flatten", &[&both], "features", &[]);
        let last = layers.len().saturating_sub(1);
        for (index, (linear, inputs, outputs)) in layers.into_iter().enumerate() {
            let norm = format!("head.{}", 4 * index + 1);
            let (weight, bias) = (format!("{linear}.weight"), format!("{linear}.bias"));
            let (weight, bias) = if self.fold {
                let folded = Values::FoldedLinear { linear: linear.clone(), norm: norm.clone() };
                let weight = self.initialiser(weight, &[outputs, inputs], folded);
                let folded = Values::FoldedBias { linear: linear.clone(), norm, inputs };
                (weight, self.initialiser(bias, &[outputs], folded))
            } else {
                x = self.batchnorm(&x, &norm, inputs);
                (self.stored(weight, &[outputs, inputs]), self.stored(bias, &[outputs]))
            };
            x = self.gemm(&x, &weight, &bias, if index == last { self.logits() } else { &linear });
            if index < last {
                x = self.node("Relu", &[&x], &format!("{linear}.relu"), &[]);
            }
        }
    }

    fn gemm(&mut self, x: &str, weight: &str, bias: &str, output: &str) -> String {
        self.node("Gemm", &[x, weight, bias], output, &[("transB", Attribute::Int(1))])
    }

    /// Turns the last layer's output into logits of `f32`.
    pub fn finish(&mut self) {
        if self.half {
            self.cast(self.logits(), FileDtype::F32, "logits");
        }
    }

    /// Probabilities of the logits, by `op`.
    pub fn probabilities(&mut self, op: &str) {
        // A sigmoid has no axis.
        let axis = [("axis", Attribute::Int(1))];
        self.node(op, &["logits"], "probabilities", if op == "Softmax" { &axis } else { &[] });
    }
}
