//! The recipe: a pretrained backbone with a new head, trained head first on cached activations, then unfrozen with a
//! learning rate per layer group.

mod accumulation;
mod averaging;
mod class_weights;
mod classifier;
mod control;
mod diverged;
mod ensemble;
mod evaluation;
mod feature_cache;
mod feed;
mod fine_tune;
mod fit;
mod freezing;
mod grad_cam;
mod head;
mod history;
mod interpretation;
mod lr_find;
mod memory;
mod metrics;
mod mixing;
mod model_file;
mod objective;
mod phases;
mod precompute;
mod predictions;
mod recipe;
mod resume;
mod run_folder;
mod sampling;
mod step;
mod step_options;
mod suggestion;
mod train;
mod tta;
mod unfreeze;
mod watch;

pub use averaging::WeightAverage;
pub use class_weights::ClassWeights;
pub use classifier::{Classifier, Prediction};
pub use control::{Callback, CancelToken, Event, Flow};
pub use ensemble::{Ensemble, EnsembleEvaluation};
pub use evaluation::{Evaluation, Mean};
pub use feature_cache::{FeatureCache, Selection};
pub use fine_tune::FineTune;
pub use fit::Fit;
pub use grad_cam::GradCam;
pub use head::HeadSteps;
pub use history::{EpochRecord, PredictionRecord, StepRecord};
pub use interpretation::Interpretation;
pub use lr_find::{LrFind, LrFound};
pub use metrics::{Average, Confusion, Counts, Metric};
pub use mixing::Mixing;
pub use model_file::ModelFile;
pub(crate) use model_file::{model_metadata, model_version};
pub use objective::Objective;
pub use phases::Phase;
pub use predictions::Predictions;
pub use recipe::{Course, Parts, Recipe};
pub use run_folder::RunFolder;
pub use sampling::Sampling;
pub use step::{Input, Labels, Step, Stepper};
pub use step_options::StepOptions;
pub use suggestion::Suggestion;
pub use tta::{Tta, TtaEvaluation};
pub use unfreeze::Unfreeze;
pub use watch::{EarlyStopping, ReduceLrOnPlateau, SaveModel};

use std::collections::HashSet;

use crate::{
    Device, Error, Precision, Result,
    cache::{ActivationCache, FileKeys, Key},
    checkpoint::Weights,
    data::{ImageData, Split, Transforms},
    nn::{FreezeState, Grouping, HeadSpec, Model, ResNet},
    ops::{loss::CrossEntropy, pointwise_loss::Pointwise},
};

/// A network, a data set, and what has been learned so far.
///
/// ```no_run
/// use unfreeze::prelude::*;
/// # fn main() -> unfreeze::Result<()> {
/// let weights = Weights::file("resnet34.safetensors")?;
/// let data = ImageData::from_folders("data/dogscats")?
///     .transforms(Transforms::for_weights(&weights, 224).augment(Augment::SideOn).max_zoom(1.1));
/// let mut learner = Learner::pretrained(weights, data)?.device(Device::auto()?)?.seed(1)?;
/// learner.precompute(true);
/// learner.fit(Fit::epochs(2).lr(1e-2))?;
/// learner.precompute(false);
/// learner.fit(Fit::cycles(3).cycle_len(1).lr(1e-2))?;
/// learner.unfreeze();
/// learner.fit(Fit::cycles(3).cycle_len(1).cycle_mult(2).lr([1e-4, 1e-3, 1e-2]))?;
/// learner.save("model.safetensors")?;
/// # Ok(()) }
/// ```
pub struct Learner {
    model: Model,
    pretrained: bool,
    data: ImageData,
    device: Device,
    seed: u64,
    state: FreezeState,
    freeze_norms: bool,
    precompute: bool,
    shown: precompute::Shown,
    cache: ActivationCache,
    files: FileKeys,
    /// Hash of the values of the backbone's first units, so many; `None` since they may have changed.
    backbone_key: Option<(usize, Key)>,
    loss: CrossEntropy,
    sampling: Sampling,
    metrics: Vec<Metric>,
    /// From which probability on a label is given.
    threshold: f32,
    /// Where images have no single class.
    pointwise: Option<Pointwise>,
    history: Vec<EpochRecord>,
    steps: u64,
    stepper: Stepper,
    progress: resume::Progress,
    averages: averaging::Averages,
    last_evaluation: Option<Evaluation>,
    save_best: Option<SaveModel>,
    /// Passes that are known to fit into memory: images, their size, trainable parameters in training.
    fitting: HashSet<(usize, usize, Option<usize>)>,
    callbacks: Vec<Box<dyn Callback>>,
    cancel: CancelToken,
    reported: HashSet<String>,
}

impl Learner {
    /// The backbone of `weights` with a new fastai head for the classes of `data`, everything but the head frozen.
    /// Works on the processor, with one thread per core, until [`Learner::device`] says otherwise.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] listing tensors by name if the weights do not fit.
    pub fn pretrained(weights: Weights, data: ImageData) -> Result<Self> {
        Self::with_head(weights, data, HeadSpec::default())
    }

    /// As [`Learner::pretrained`], with a head of the caller's choice.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the weights do not fit, [`Error::Setting`] if the head makes no sense.
    pub fn with_head(weights: Weights, data: ImageData, head: HeadSpec) -> Result<Self> {
        let device = Device::cpu(0)?;
        let model = weights.with_head(head, data.classes().len(), 0, &device)?;
        let mut learner = Self {
            state: FreezeState::head_only(model.arch(), model.grouping()),
            model,
            pretrained: weights.checkpoint().is_some(),
            pointwise: objective::pointwise(data.task()),
            data,
            device,
            seed: 0,
            freeze_norms: false,
            precompute: false,
            shown: precompute::Shown::default(),
            cache: ActivationCache::default(),
            files: FileKeys::default(),
            backbone_key: None,
            loss: CrossEntropy::default(),
            sampling: Sampling::default(),
            metrics: Vec::new(),
            threshold: metrics::THRESHOLD,
            history: Vec::new(),
            steps: 0,
            stepper: Stepper::new(true),
            progress: resume::Progress::default(),
            averages: averaging::Averages::default(),
            last_evaluation: None,
            save_best: None,
            fitting: HashSet::new(),
            callbacks: Vec::new(),
            cancel: CancelToken::default(),
            reported: HashSet::new(),
        };
        learner.apply();
        Ok(learner)
    }

    /// Moves the network to `device`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if it does not fit there.
    pub fn device(mut self, device: Device) -> Result<Self> {
        self.model = self.model.to_device(&device)?;
        self.device = device;
        self.backbone_key = None;
        Ok(self)
    }

    /// Chooses what the network computes with; to be called after [`Learner::device`]. Parameters stay f32. Default:
    /// f32.
    ///
    /// # Errors
    /// [`Error::Setting`] if the device cannot compute with it; [`Error::OutOfMemory`].
    pub fn precision(mut self, precision: Precision) -> Result<Self> {
        self.model.set_precision(precision)?;
        self.fitting.clear();
        self.backbone_key = None;
        Ok(self)
    }

    /// Sets the seed that decides every random choice, and draws anew from it whatever started from random weights: the
    /// head, and a backbone that is not pretrained. Default 0.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the device has no room for what is drawn.
    pub fn seed(mut self, seed: u64) -> Result<Self> {
        self.seed = seed;
        if !self.pretrained {
            self.backbone_key = None;
            let precision = self.model.precision();
            self.model.backbone = ResNet::new(self.model.arch(), seed, &self.device)?;
            self.model.set_precision(precision)?;
        }
        self.model.head = self.model.head.redrawn(seed, &self.device)?;
        self.apply();
        Ok(self)
    }

    /// Cuts the network into other layer groups; everything but the head is frozen again.
    pub fn grouping(mut self, grouping: Grouping) -> Self {
        self.model.set_grouping(grouping);
        self.state = FreezeState::head_only(self.model.arch(), grouping);
        self.apply();
        self
    }

    /// Options of the loss: label smoothing, class weights.
    pub fn loss(mut self, loss: CrossEntropy) -> Self {
        self.loss = loss;
        self
    }

    /// Whether the device is told of its work in few calls: a GPU's steps are captured and replayed as CUDA graphs, and
    /// on any device those of a linear head on cached activations are made many at once, so that callbacks hear of up to
    /// [`HeadSteps::MOST`] together, and the fit ends after them if one says so. Otherwise the same bits. A graph keeps
    /// the memory of its step until the fit is over, or others need it. Default true.
    pub fn graphs(mut self, on: bool) -> Self {
        self.stepper = Stepper::new(on);
        self
    }

    /// Adds a callback, which sees every [`Event`] and may end a fit.
    pub fn callback(mut self, callback: impl Callback + 'static) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Keeps the network of the best of all epochs in a file, written at the end of each that is better than those
    /// before.
    ///
    /// # Errors
    /// [`Error::Setting`] if what it watches is not recorded.
    pub fn save_best(self, options: SaveModel) -> Result<Self> {
        options.validate()?;
        Ok(Self { save_best: Some(options), ..self })
    }

    /// A token that ends running work from another thread, for good: a cancelled learner fits no more.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// Freezes everything but the head.
    pub fn freeze(&mut self) {
        self.state = FreezeState::head_only(self.model.arch(), self.model.grouping());
        self.apply();
    }

    /// Makes every layer group trainable.
    pub fn unfreeze(&mut self) {
        self.state.unfreeze();
        self.apply();
    }

    /// Freezes all layer groups before `first`; a negative number counts from the end.
    ///
    /// # Errors
    /// [`Error::Setting`] listing the groups if there is no such one.
    pub fn freeze_to(&mut self, first: isize) -> Result<()> {
        self.state.freeze_to(first)?;
        self.apply();
        Ok(())
    }

    /// Freezes all layer groups but `group`.
    ///
    /// # Errors
    /// [`Error::Setting`] listing the groups if there is no such one.
    pub fn freeze_except(&mut self, group: usize) -> Result<()> {
        self.state.freeze_except(group)?;
        self.apply();
        Ok(())
    }

    /// With `true`, batchnorms of every group use and keep their running statistics, the head's included; their scale
    /// and shift still learn where the group does. Default false: those of trainable groups use the batch's.
    pub fn bn_freeze(&mut self, freeze: bool) {
        self.freeze_norms = freeze;
        self.apply();
    }

    /// Which groups are trained.
    pub fn freeze_state(&self) -> &FreezeState {
        &self.state
    }

    /// The network.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The data set.
    pub fn data(&self) -> &ImageData {
        &self.data
    }

    /// Replaces the data set, for example by one of larger images; weights, groups and what is frozen stay.
    ///
    /// # Errors
    /// [`Error::Data`] if its classes are others.
    pub fn set_data(&mut self, data: ImageData) -> Result<()> {
        self.check_data(&data)?;
        self.data = data;
        Ok(())
    }

    /// Whether `data` can take the place of the data set.
    fn check_data(&self, data: &ImageData) -> Result<()> {
        if (data.task(), data.classes()) != (self.data.task(), self.data.classes()) {
            let message = format!("its classes {:?} are not {:?}", data.classes(), self.data.classes());
            return Err(Error::data(data.root(), message));
        }
        Ok(())
    }

    /// Goes on with images of another size, their short side before the crop in proportion; all else stays as it is.
    pub fn set_size(&mut self, size: usize) {
        self.data.transforms = self.data.transforms.clone().at_size(size);
    }

    /// One record per finished epoch.
    pub fn history(&self) -> &[EpochRecord] {
        &self.history
    }

    /// The validation at the end of the last epoch.
    pub fn last_evaluation(&self) -> Option<&Evaluation> {
        self.last_evaluation.as_ref()
    }

    fn apply(&mut self) {
        self.model.apply(&self.state, self.freeze_norms);
    }

    fn transforms(&self) -> &Transforms {
        &self.data.transforms
    }

    /// Tells the callbacks; true if one of them wants the fit to end.
    fn tell(&mut self, event: &Event) -> Result<bool> {
        let mut stop = false;
        for callback in &mut self.callbacks {
            match callback.event(event) {
                Flow::Continue => {}
                Flow::Stop => stop = true,
                Flow::Fail(error) => return Err(error),
            }
        }
        Ok(stop)
    }

    /// Tells the callbacks something once.
    fn note(&mut self, text: String) -> Result<()> {
        if self.reported.insert(text.clone()) {
            self.tell(&Event::Note(&text))?;
        }
        Ok(())
    }

    fn samples(&self, split: Split) -> usize {
        self.data.items(split).len()
    }
}
