//! Going on after an interruption: at the end of each epoch a learner writes down where it stands.
//!
//! `state.safetensors` holds the head, the optimizer's buffers and, in its metadata, the position and the history; it
//! names the file that holds the backbone, which is written anew only when the backbone has changed. The state is put
//! in place last and in one step, so that whatever moment a run is killed at, the folder holds one whole epoch.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{EpochRecord, Fit, Learner, WeightAverage, train::Fitted};
use crate::{
    Error, Result, Tensor,
    autograd::{Parameter, Parameters},
    cache::KeyBuilder,
    checkpoint::{Checkpoint, FileTensor, LoadOptions, collect, load_into, write_safetensors},
    data::Split,
    files::remove_temporaries,
    optim::{Optimizer, OptimizerKind},
};

/// The layout of the state; readers refuse another one.
const FORMAT_VERSION: u32 = 1;
const STATE: &str = "state.safetensors";
const OPTIMIZER: &str = "optimizer.";

/// A fit that a program asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct FitMark {
    pub phase: String,
    /// Epochs planned.
    pub epochs: usize,
    /// Epochs recorded, fewer if a callback ended it.
    pub recorded: usize,
    /// Whether it was ended, rather than coming to its end.
    #[serde(default)]
    pub stopped: bool,
    /// What the images were.
    #[serde(default)]
    pub data: String,
}

/// The metadata of the state.
#[derive(Serialize, Deserialize)]
struct State {
    format_version: u32,
    /// Fits that are finished, and the one that is not.
    finished: Vec<FitMark>,
    current: Option<FitMark>,
    /// Training steps in all.
    steps: u64,
    history: Vec<EpochRecord>,
    /// The file with the backbone.
    backbone: String,
    /// What the images of the first fit were.
    data: String,
    optimizer: Option<(OptimizerKind, u32)>,
    /// Networks in the average of weights.
    #[serde(default)]
    averaged: u64,
}

/// Where a program of fits stands, and where it stood before an interruption.
#[derive(Default)]
pub(super) struct Progress {
    folder: Option<PathBuf>,
    /// Fits that this program asked for and that are done, in this run or an earlier one.
    finished: Vec<FitMark>,
    restored: Option<Restored>,
    /// The file that holds the backbone as it is.
    backbone: Option<String>,
}

struct Restored {
    finished: Vec<FitMark>,
    current: Option<FitMark>,
    optimizer: Option<Optimizer>,
}

/// What is left of a fit.
pub(super) enum Left {
    /// Nothing.
    Nothing(Fitted),
    /// Its epochs from here on.
    From(usize, Box<Optimizer>),
}

impl Progress {
    /// What of `fit` is left to do.
    pub(super) fn left(&mut self, fit: &Fit, epochs: usize, data: &str) -> Result<Left> {
        let options = &fit.options;
        let fresh = || Optimizer::new(options.optimizer);
        let from = |epoch, optimizer| Ok(Left::From(epoch, Box::new(options.equip(optimizer))));
        let Some(restored) = &mut self.restored else { return from(0, fresh()) };
        let number = self.finished.len();
        let done = restored.finished.get(number);
        let mark = done.or(restored.current.as_ref());
        if mark.is_some_and(|mark| mark.data != data) {
            let message = format!("the images of fit {number}, '{}', are not those that it was begun with", fit.phase);
            return Err(Error::setting("resume", message));
        }
        if let Some(mark) = mark
            && (mark.phase.as_str(), mark.epochs) != (&fit.phase, epochs)
        {
            let message = format!(
                "fit {number} is '{}' of {epochs} epochs, but was '{}' of {} when the run was interrupted",
                fit.phase, mark.phase, mark.epochs
            );
            return Err(Error::setting("resume", message));
        }
        if let Some(mark) = done {
            let first = self.finished.iter().map(|mark| mark.recorded).sum();
            let records = first..first + mark.recorded;
            let stopped = mark.stopped;
            self.finished.push(mark.clone());
            return Ok(Left::Nothing(Fitted { records, stopped }));
        }
        let epoch = restored.current.take().map_or(0, |mark| mark.recorded);
        let optimizer = restored.optimizer.take().unwrap_or_else(fresh);
        self.restored = None;
        from(epoch, optimizer)
    }

    /// Whether the network is further than the fits asked for so far.
    fn is_ahead(&self) -> bool {
        self.restored
            .as_ref()
            .is_some_and(|restored| restored.finished.len() > self.finished.len() || restored.current.is_some())
    }

    /// The backbone is no longer what was written.
    pub(super) fn backbone_changed(&mut self) {
        self.backbone = None;
    }
}

impl Learner {
    /// Writes down at the end of each epoch, in `folder`, all that [`Learner::resume`] needs. Killed at any moment, the
    /// run can go on from its last finished epoch, and ends as if it had not been interrupted, bit for bit.
    pub fn checkpoints(mut self, folder: impl Into<PathBuf>) -> Self {
        self.progress.folder = Some(folder.into());
        self
    }

    /// Takes up what [`Learner::checkpoints`] wrote to `folder`: values, history and position. The program then asks
    /// for the same fits again; those that were finished return their records at once, the interrupted one goes on.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if `folder` holds no such state or one that does not fit; [`Error::Data`] if the images
    /// are others than they were.
    pub fn resume(&mut self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        let file = Checkpoint::read(folder.join(STATE))?;
        let fail = |message: String| Error::checkpoint(&file.path, message);
        let text = file.metadata.get("state").ok_or_else(|| fail("holds no state of a training run".into()))?;
        let mut state: State = serde_json::from_str(text).map_err(|e| fail(format!("has a bad state: {e}")))?;
        if state.format_version != FORMAT_VERSION {
            let message = format!("is of format {}, not this program's {FORMAT_VERSION}", state.format_version);
            return Err(fail(message));
        }
        if state.data != self.data_digest() {
            let message = "the images, or their classes, are not those that the run began with; begin a new one";
            return Err(Error::data(self.data.root(), message));
        }
        // States of earlier versions knew the images of one fit alone.
        let marks = state.finished.iter_mut().chain(&mut state.current);
        marks.filter(|mark| mark.data.is_empty()).for_each(|mark| mark.data.clone_from(&state.data));
        let backbone = Checkpoint::read(folder.join(&state.backbone))?;
        load_into(&mut self.model.backbone, &backbone, &LoadOptions::default())?;
        let averages = WeightAverage::ALL.map(|average| format!("{average}."));
        let allow_unused = averages.into_iter().chain([OPTIMIZER.into()]).collect();
        let options = LoadOptions { allow_unused, ..LoadOptions::default() };
        load_into(&mut self.model.head, &file, &options)?;
        self.model.set_precision(self.model.precision())?;
        let optimizer = state.optimizer.map(|(kind, steps)| self.read_optimizer(&file, kind, steps)).transpose()?;
        self.restore_averages(&file, state.averaged)?;
        self.backbone_key = None;
        self.steps = state.steps;
        self.history = state.history;
        // What a process that was killed here had not come to.
        remove_others(folder, &state.backbone);
        self.progress.backbone = Some(state.backbone);
        self.progress.finished.clear();
        self.progress.restored = Some(Restored { finished: state.finished, current: state.current, optimizer });
        Ok(())
    }

    /// Whether `folder` holds something to [resume](Learner::resume).
    pub fn can_resume(folder: impl AsRef<Path>) -> bool {
        folder.as_ref().join(STATE).exists()
    }

    /// Removes what [`Learner::checkpoints`] wrote to `folder`, and the folder if nothing else is in it.
    pub(super) fn forget(folder: &Path) {
        // What stays is seen by the next look at the folder.
        let _ = fs::remove_file(folder.join(STATE));
        remove_others(folder, "");
        remove_temporaries(folder);
        let _ = fs::remove_dir(folder);
    }

    /// True after a fit that only returned its records, while an interrupted run catches up with itself: the network is
    /// then further trained than at that fit's end.
    pub fn is_catching_up(&self) -> bool {
        self.progress.is_ahead()
    }

    /// Training steps so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Writes down the end of an epoch of the fit that `mark` describes; `optimizer` is `None` after its last one.
    pub(super) fn write_progress(&mut self, mark: FitMark, optimizer: Option<&Optimizer>) -> Result<()> {
        let mut current = Some(mark);
        if optimizer.is_none() {
            self.progress.finished.extend(current.take());
        }
        let Some(folder) = self.progress.folder.clone() else { return Ok(()) };
        fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        let stale = self.progress.backbone.is_none();
        let backbone = match self.progress.backbone.clone() {
            Some(file) => file,
            None => {
                let name = format!("backbone-{}.safetensors", self.steps);
                write_safetensors(folder.join(&name), &collect(&self.model.backbone)?, &BTreeMap::new())?;
                self.progress.backbone.insert(name).clone()
            }
        };
        let first = self.progress.finished.first().or(current.as_ref());
        let data = first.map(|mark| mark.data.clone()).unwrap_or_default();
        let state = State {
            format_version: FORMAT_VERSION,
            data,
            finished: self.progress.finished.clone(),
            current,
            steps: self.steps,
            history: self.history.clone(),
            backbone,
            optimizer: optimizer.map(|optimizer| (optimizer.kind(), optimizer.steps())),
            averaged: self.averages.count(),
        };
        let mut tensors = collect(&self.model.head)?;
        tensors.extend(self.averages.tensors()?);
        for (name, number, buffer) in optimizer.into_iter().flat_map(Optimizer::buffers) {
            let tensor = FileTensor::from_f32(buffer.dims().to_vec(), buffer.to_vec()?)?;
            tensors.insert(format!("{OPTIMIZER}{number}.{name}"), tensor);
        }
        let text = serde_json::to_string(&state)
            .map_err(|error| Error::checkpoint(folder.join(STATE), format!("cannot hold the state: {error}")))?;
        write_safetensors(folder.join(STATE), &tensors, &BTreeMap::from([("state".to_string(), text)]))?;
        if stale {
            remove_others(&folder, &state.backbone);
        }
        Ok(())
    }

    fn read_optimizer(&self, file: &Checkpoint, kind: OptimizerKind, steps: u32) -> Result<Optimizer> {
        let mut parameters: BTreeMap<&str, &Parameter> = BTreeMap::new();
        self.model.visit(&mut |parameter| {
            parameters.insert(parameter.name(), parameter);
        });
        let mut optimizer = Optimizer::restored(kind, steps);
        for (name, tensor) in &file.tensors {
            let Some((number, name)) = name.strip_prefix(OPTIMIZER).and_then(|rest| rest.split_once('.')) else {
                continue;
            };
            let fitting = parameters.get(name).filter(|parameter| parameter.value.dims() == tensor.shape.as_slice());
            let (Some(parameter), Ok(number)) = (fitting, number.parse()) else {
                return Err(Error::checkpoint(&file.path, format!("has a buffer for '{name}' that does not fit")));
            };
            let buffer = Tensor::new(tensor.to_f32(), parameter.value.shape(), &self.device)?;
            optimizer.set_buffer(parameter.name(), number, buffer)?;
        }
        Ok(optimizer)
    }

    /// A digest of the names and labels of the images.
    pub(super) fn data_digest(&self) -> String {
        let mut key = KeyBuilder::new("");
        for split in [Split::Train, Split::Valid] {
            key.text(&split.to_string());
            for item in self.data.items(split).iter() {
                let path = item.path.strip_prefix(self.data.root()).unwrap_or(&item.path);
                key.text(&path.to_string_lossy());
                match self.data.targets().and_then(|targets| targets.row(item.label)) {
                    Some(row) => key.text(&format!("{row:?}")),
                    None => key.text(&item.label.to_string()),
                };
            }
        }
        format!("{:?}", key.finish())
    }
}

/// Removes the backbones of earlier epochs. One that stays does no harm.
fn remove_others(folder: &Path, backbone: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("backbone-") && name != backbone {
            let _ = fs::remove_file(entry.path());
        }
    }
}
