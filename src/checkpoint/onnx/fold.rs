//! A network with batchnorm folded, as an ONNX file has it, for comparing with one.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{
    EPS, OnnxOptions,
    build::{Graph, Initialiser, Values},
    write::Source,
};
use crate::{
    Result,
    checkpoint::{FileDtype, FileTensor, StoredTensor, TensorSource, architecture, model::zeros},
    nn::Structure,
};

/// A network's tensors, of which none is read yet.
type Network = BTreeMap<String, StoredTensor>;

/// The variance of a batchnorm that was folded into what is before it, as it is read: the factor is 1.
pub(super) const FOLDED_VARIANCE: f32 = 1.0 - EPS;

/// A network that can be folded.
pub(in crate::checkpoint) struct Foldable {
    network: Arc<Network>,
    initialisers: Vec<Initialiser>,
}

impl Foldable {
    /// That of `tensors`; nothing if they are not all those of a network and its head.
    pub fn new(tensors: &Network) -> Option<Self> {
        let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
        let arch = architecture::arch_of(&shapes)?;
        let (head, classes) = architecture::head_of(&shapes)?;
        if !architecture::misfit(&shapes, arch, &head, classes).is_empty() {
            return None;
        }
        let mut network = tensors.clone();
        for (bias, outputs) in architecture::optional_biases(arch, &head, classes) {
            network.entry(bias).or_insert_with(|| zeros(outputs));
        }
        let mut graph = Graph::new(&OnnxOptions::default());
        let features = graph.backbone(&Structure::new(arch), "input");
        graph.head(&features, &head, head.plan(arch.features(), classes));
        let initialisers =
            graph.initialisers.into_iter().filter(|tensor| !matches!(tensor.values, Values::Integers(_)));
        Some(Self { network: Arc::new(network), initialisers: initialisers.collect() })
    }

    /// Whether the batchnorm after every convolution is folded already, as reading such a file leaves it: in `f32`. In
    /// `f16` the variance would be 1, which is also that of a network before its training.
    ///
    /// # Errors
    /// Those of reading the variances.
    pub fn is_folded(&self) -> Result<bool> {
        for initialiser in &self.initialisers {
            let Values::FoldedShift { norm } = &initialiser.values else { continue };
            let Some(variance) = self.network.get(&format!("{norm}.running_var")) else { return Ok(false) };
            let variance = variance.read()?;
            if variance != FileTensor::from_f32(variance.shape.clone(), vec![FOLDED_VARIANCE; variance.elements()])? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The tensors with batchnorm folded: a weight and a bias of each convolution and linear layer, computed when they
    /// are read. Errors of that name `path`.
    pub fn folded(self, path: &Path) -> Network {
        let fold = |tensor: Initialiser| {
            let (network, path) = (self.network.clone(), path.to_owned());
            let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
            let read = move || {
                let values = Source { path: &path, tensors: &*network }.floats(&tensor)?;
                FileTensor::from_f32(tensor.shape.clone(), values)
            };
            (name, StoredTensor::new(FileDtype::F32, shape, read))
        };
        self.initialisers.into_iter().map(fold).collect()
    }
}
