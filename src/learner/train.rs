//! The training loop.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Instant};

use super::{
    EpochRecord, Event, Fit, HeadSteps, Input, Labels, Learner, Objective, Sampling, Step, StepOptions,
    diverged::Place,
    ensemble::snapshot,
    feed::{Fed, Feed},
    freezing::Freezing,
    precompute::Boundary,
    resume::{FitMark, Left},
    watch::RunAway,
};
use crate::{
    Device, Error, Result, Tensor,
    cache::Activations,
    data::{LoaderOptions, Split, batches},
    nn::Pass,
    optim::{Optimizer, PerGroup, Point, Schedule, WarmUp},
};

/// Where an epoch's batches come from.
pub(super) enum Source {
    Images(Box<Feed>),
    Cache { activations: Arc<Activations>, boundary: Boundary, batches: std::vec::IntoIter<Vec<u32>> },
}

/// What a fit keeps from step to step.
pub(super) struct State {
    schedule: Schedule,
    warm_up: Option<WarmUp>,
    freezing: Option<Freezing>,
    lrs: Vec<f32>,
    pub weight_decays: Vec<f32>,
    pub optimizer: Optimizer,
    pub options: StepOptions,
    /// Steps of an epoch in which every image can be decoded.
    steps_per_epoch: usize,
}

/// A step that was made.
pub(super) struct Made {
    pub loss: f32,
    pub samples: usize,
    pub moves: Moves,
    /// Why the loss is not finite, where that is known.
    pub cause: Option<String>,
}

/// A fit that was made.
pub(super) struct Fitted {
    /// Its epochs, as numbered in the history.
    pub records: Range<usize>,
    /// Whether it was ended, rather than coming to its end.
    pub stopped: bool,
}

/// How fast a step moves parameters.
pub(super) struct Moves {
    /// A learning rate per layer group.
    pub lrs: Vec<f32>,
    /// Or AdamW's β₁.
    pub momentum: f32,
}

impl State {
    /// That of rates which follow `schedule` alone.
    pub fn new(
        schedule: Schedule,
        lrs: Vec<f32>,
        weight_decays: Vec<f32>,
        optimizer: Optimizer,
        options: StepOptions,
        steps_per_epoch: usize,
    ) -> Self {
        Self { schedule, warm_up: None, freezing: None, lrs, weight_decays, optimizer, options, steps_per_epoch }
    }

    /// How step `number` of the fit moves.
    pub fn moves(&self, number: usize) -> Moves {
        let Point { lr: factor, momentum, .. } = self.schedule.at(number);
        let factor = factor * self.warm_up.map_or(1.0, |warm_up| warm_up.at(number, self.steps_per_epoch));
        let own = |group: usize| self.freezing.as_ref().map_or(1.0, |freezing| freezing.factor(group, number));
        let lrs = self.lrs.iter().enumerate();
        Moves {
            lrs: lrs.map(|(group, lr)| (f64::from(*lr) * factor * own(group)) as f32).collect(),
            momentum: momentum.map_or(self.optimizer.kind().momentum(), |momentum| momentum as f32),
        }
    }
}

impl Learner {
    /// Trains as `fit` says and returns the records of its epochs. Each epoch ends with a validation.
    ///
    /// # Errors
    /// [`Error::Setting`] for rates that do not fit the layer groups, a fit of no epochs or batches of one sample;
    /// [`Error::Diverged`] if the loss is no longer finite: parameters are those of the step before, but on a GPU that
    /// step has spoiled them; [`Error::Cancelled`]; errors of files. Epochs finished before stay in the history.
    pub fn fit(&mut self, fit: Fit) -> Result<&[EpochRecord]> {
        let fitted = self.fitted(fit)?;
        Ok(&self.history[fitted.records])
    }

    /// As [`Learner::fit`].
    pub(super) fn fitted(&mut self, fit: Fit) -> Result<Fitted> {
        let frozen = self.state.clone();
        let outcome = self.epochs(fit);
        // The memory of a graph is not needed beyond.
        self.stepper.reset();
        if self.state != frozen {
            self.state = frozen;
            self.apply();
        }
        outcome
    }

    /// All epochs of `fit`.
    fn epochs(&mut self, fit: Fit) -> Result<Fitted> {
        let epochs = fit.total_epochs()?;
        fit.options.validate()?;
        self.check_batch_size()?;
        self.check_loss()?;
        self.check_watched(&fit)?;
        let steps = fit.options.steps(batches(self.samples(Split::Train), self.data.batch_size).len());
        fit.warm_up.map_or(Ok(()), |warm_up| warm_up.check(epochs, Some(steps)))?;
        let mut lrs = fit.lr.resolve("lr", &self.state)?;
        // A frozen group has no rate, and is recorded with none.
        lrs.iter_mut().enumerate().filter(|(group, _)| !self.state.is_trainable(*group)).for_each(|(_, lr)| *lr = 0.0);
        let weight_decays = fit.weight_decay.resolve("wd", &self.state)?;
        let data = self.data_digest();
        let (start, optimizer) = match self.progress.left(&fit, epochs, &data)? {
            Left::Nothing(fitted) => return Ok(fitted),
            Left::From(start, optimizer) => (start, *optimizer),
        };
        self.note_frozen_rates(&fit.lr)?;
        if self.cached_at(Split::Train)? != Some(Boundary::Pool) {
            self.check_memory(self.data.batch_size.min(self.samples(Split::Train)), true)?;
        }
        if start == 0 {
            self.begin_averages(&fit);
        }
        let freezing = fit.freeze_out.map(|options| Freezing::new(options, &self.state, epochs * steps));
        let base = lrs.clone();
        let state = State::new(fit.schedule(steps), lrs, weight_decays, optimizer, fit.options.clone(), steps);
        let mut state = State { warm_up: fit.warm_up, freezing, ..state };
        let first = self.history.len() - start;
        if self.precompute && self.boundary().is_none() {
            self.note("precompute is on, but the backbone is trainable: activations are computed anew".into())?;
        }
        let mut stopped = false;
        for epoch in start..epochs {
            if let Some(plateau) = &fit.reduce_on_plateau {
                state.lrs = base.iter().map(|lr| plateau.reduced(*lr, &self.history[first..])).collect();
            }
            // Before it is known where the epoch's batches come from.
            self.freeze_out(state.freezing.as_ref(), epoch * steps);
            let images = self.data.batch_size.min(self.samples(Split::Train));
            let outcome = self.epoch(&fit, epoch, first, &mut state);
            let (record, stop) = outcome.map_err(|error| self.explained(error, images, true))?;
            let end = state.schedule.at((epoch + 1) * steps - 1);
            if let Some(prefix) = fit.snapshots.as_ref().filter(|_| end.ends_cycle && !stop) {
                self.save(snapshot(prefix, end.cycle + 1))?;
            }
            if !stop {
                self.average(&fit, epoch, &end)?;
            }
            self.history.push(record.clone());
            self.save_if_best()?;
            stopped = self.tell(&Event::Epoch(&record))? || stop;
            stopped |= fit.early_stopping.as_ref().is_some_and(|watch| watch.stops(&self.history[first..]));
            let last = stopped || epoch + 1 == epochs;
            if last {
                self.finish_averages()?;
            }
            let mark = FitMark { phase: fit.phase.clone(), epochs, recorded: epoch + 1, stopped, data: data.clone() };
            self.write_progress(mark, (!last).then_some(&state.optimizer))?;
            if last {
                break;
            }
        }
        Ok(Fitted { records: first..self.history.len(), stopped })
    }

    /// Says which of the rates given one by one are of no effect.
    fn note_frozen_rates(&mut self, lr: &PerGroup) -> Result<()> {
        let PerGroup::Each(lrs) = lr else { return Ok(()) };
        let frozen = |&(group, lr): &(usize, &f32)| *lr > 0.0 && !self.state.is_trainable(group);
        let name = |(group, lr): (usize, &f32)| format!("{lr} for {group} {}", self.state.names()[group]);
        let frozen: Vec<String> = lrs.iter().enumerate().filter(frozen).map(name).collect();
        match frozen.is_empty() {
            true => Ok(()),
            false => self.note(format!("lr: frozen groups do not learn: {} has no effect", frozen.join(", "))),
        }
    }

    pub(super) fn check_batch_size(&self) -> Result<()> {
        match self.data.batch_size {
            0 | 1 => {
                let message = format!("{} is too small to train with: batchnorm needs 2 or more", self.data.batch_size);
                Err(Error::setting("batch_size", message))
            }
            _ => Ok(()),
        }
    }

    /// One epoch of a fit whose records begin at `first`: its record, and whether the fit is to end.
    fn epoch(&mut self, fit: &Fit, epoch: usize, first: usize, state: &mut State) -> Result<(EpochRecord, bool)> {
        let start = Instant::now();
        // Epochs are numbered through all fits, so that no two see the same order or views.
        let mut source = self.source(self.history.len() as u64)?;
        let cached = matches!(source, Source::Cache { .. });
        let training = Instant::now();
        let steps = state.options.steps(source.len());
        // Images that cannot be decoded may leave an epoch steps short; the next one starts where it should.
        let first_step = epoch * state.steps_per_epoch;
        let (mut loss_sum, mut seen, mut stop) = (0f64, 0usize, false);
        let (mut lrs, phase) = (state.lrs.clone(), fit.phase.as_str());
        let mut run_away = fit.stop_div.then(|| RunAway::after(&self.history[first..]));
        let mut made = VecDeque::new();
        for step in 0..steps {
            if made.is_empty() {
                if stop {
                    break;
                }
                self.cancel.check()?;
                self.freeze_out(state.freezing.as_ref(), first_step + step);
                made = self.make(&mut source, state, first_step + step)?;
            }
            let Some(Made { loss, samples, moves, cause }) = made.pop_front().flatten() else { continue };
            if !loss.is_finite() {
                return Err(Place { fit, epoch, step }.error("loss", loss, cause));
            }
            let Moves { lrs: own, momentum } = moves;
            lrs = own;
            loss_sum += f64::from(loss) * samples as f64;
            seen += samples;
            stop |= run_away.as_mut().is_some_and(|run_away| run_away.with(loss));
            stop |= self.tell(&Event::Step { phase, epoch, step, steps, loss, lrs: &lrs, momentum })?;
        }
        if seen == 0 {
            return Err(self.no_batches());
        }
        let images_per_second = seen as f64 / training.elapsed().as_secs_f64();
        let valid = self.evaluate(Split::Valid)?;
        if !valid.loss.is_finite() {
            let cause = self.validation_cause()?;
            return Err(Place { fit, epoch, step: steps }.error("validation loss", valid.loss, cause));
        }
        let record = EpochRecord {
            phase: fit.phase.clone(),
            epoch,
            train_loss: (loss_sum / seen as f64) as f32,
            valid_loss: valid.loss,
            metrics: self.measured(&valid),
            lrs,
            seconds: start.elapsed().as_secs_f64(),
            images_per_second,
            device: self.device.to_string(),
            cached,
        };
        self.last_evaluation = Some(valid);
        Ok((record, stop))
    }

    /// Makes step `number` of a fit, or as many from there on as are made at once; `None` for a batch that is of no use.
    pub(super) fn make(
        &mut self,
        source: &mut Source,
        state: &mut State,
        number: usize,
    ) -> Result<VecDeque<Option<Made>>> {
        if let Some(made) = self.make_many(source, state, number)? {
            return Ok(made);
        }
        if state.options.accumulate > 1 {
            return Ok([self.make_accumulated(source, state, number)?].into());
        }
        let Some((input, labels)) = self.next_batch(source)? else { return Ok([None].into()) };
        let (moves, samples) = (state.moves(number), labels.samples(self.model.head.classes()));
        let (input, labels) = self.mixed(input, labels, &state.options, self.steps)?;
        let loss = self.step(&input, labels, &moves, &state.weight_decays, &mut state.optimizer)?;
        source.prefetch();
        self.follow(state.options.ema)?;
        let loss = loss.scalar()?;
        let cause = if loss.is_finite() { None } else { self.cause(&input, self.steps - 1)? };
        Ok([Some(Made { loss, samples, moves, cause })].into())
    }

    /// As [`Learner::make`], where many steps are made at once.
    fn make_many(
        &mut self,
        source: &mut Source,
        state: &mut State,
        number: usize,
    ) -> Result<Option<VecDeque<Option<Made>>>> {
        let Source::Cache { activations, boundary, batches } = source else { return Ok(None) };
        let plain = self.stepper.graphs() && state.options.are_plain() && self.pointwise.is_none();
        let most = if plain { HeadSteps::possible(&self.model, activations, self.data.batch_size) } else { 0 };
        if most == 0 {
            return Ok(None);
        }
        self.place_class_weights()?;
        let taken: Vec<(Vec<u32>, Moves)> =
            batches.take(most).zip(number..).map(|(rows, number)| (rows, state.moves(number))).collect();
        let of_use = |rows: &[u32]| rows.len() > 1;
        let (mut batches, mut lrs, mut momenta) = (Vec::new(), Vec::new(), Vec::new());
        for (rows, Moves { lrs: own, momentum }) in taken.iter().filter(|(rows, _)| of_use(rows)) {
            batches.push(rows.clone());
            lrs.push(own.last().copied().unwrap_or_default());
            momenta.push(*momentum);
        }
        let weight_decay = state.weight_decays.last().copied().unwrap_or_default();
        let (model, optimizer, loss) = (&mut self.model, &mut state.optimizer, &self.loss);
        let head = HeadSteps { model, optimizer, loss, activations, weight_decay };
        let losses = head.run(&batches, &lrs, &momenta)?;
        self.steps += losses.len() as u64;
        // A processor ends with a loss that is not finite.
        let diverged = losses.last().is_some_and(|loss| !loss.is_finite()).then(|| &batches[losses.len() - 1]);
        let mut cause = match diverged {
            Some(rows) => {
                let (batch, _) = activations.gather(rows, &self.device)?;
                self.cause(&boundary.input(batch), self.steps - 1)?
            }
            None => None,
        };
        let mut losses = losses.into_iter();
        let made = taken.into_iter().map(|(rows, moves)| {
            let loss = if of_use(&rows) { losses.next() } else { None };
            loss.map(|loss| {
                let cause = if loss.is_finite() { None } else { cause.take() };
                Made { loss, samples: rows.len(), moves, cause }
            })
        });
        Ok(Some(made.collect()))
    }

    pub(super) fn no_batches(&self) -> Error {
        let message = "fewer than two training images of any batch could be decoded; the notes name the others";
        Error::data(self.data.root(), message)
    }

    /// The batches of an epoch, whose number decides their order and views.
    pub(super) fn source(&mut self, epoch: u64) -> Result<Source> {
        let options = self.training_options(epoch)?;
        let Some((boundary, activations)) = self.cached(Split::Train, &options)? else {
            let weighted = self.sampling == Sampling::Weighted;
            let options = LoaderOptions { weighted, ..options };
            return Ok(Source::Images(Box::new(self.feed(Split::Train, options)?)));
        };
        // As without the cache, where samples that cannot be decoded leave their batches smaller.
        let labels: Vec<u32> = self.data.items(Split::Train).iter().map(|item| item.label).collect();
        let batches = activations.batches(&self.order(&labels, epoch), self.data.batch_size);
        Ok(Source::Cache { activations, boundary, batches: batches.into_iter() })
    }

    /// The next batch, unless too few of its images could be decoded for batch statistics.
    pub(super) fn next_batch(&mut self, source: &mut Source) -> Result<Option<(Input, Labels)>> {
        match source {
            Source::Cache { activations, boundary, batches } => {
                let Some(rows) = batches.next().filter(|rows| rows.len() > 1) else { return Ok(None) };
                let (batch, labels) = activations.gather(&rows, &self.device)?;
                Ok(Some((boundary.input(batch), self.labels(labels)?)))
            }
            Source::Images(feed) => {
                let Some(Fed { batch, images }) = feed.next().transpose()? else { return Ok(None) };
                self.report_failures(&batch)?;
                let images = images.filter(|_| batch.len() > 1);
                let Some(images) = images else { return Ok(None) };
                Ok(Some((Input::Images(images), self.labels(batch.labels)?)))
            }
        }
    }

    /// Why the loss of the last step, on `input`, is not finite; `number` decided what it dropped.
    pub(super) fn cause(&self, input: &Input, number: u64) -> Result<Option<String>> {
        if let Device::Cuda(_) = self.device {
            // That step has changed the parameters: they no longer tell.
            return Ok(None);
        }
        match (self.not_finite()?, input.units()) {
            (None, Some(units)) => {
                // As in that step, which changed nothing of the network.
                self.not_finite_layer(Pass::training(self.seed, number), input.tensor(), units)
            }
            (None, None) => Ok(Some("the output of head is not finite".into())),
            (found, _) => Ok(found),
        }
    }

    /// Forward, backward, optimizer; the loss of the batch, a scalar. See [`Stepper::step`](super::Stepper::step).
    pub(super) fn step(
        &mut self,
        input: &Input,
        labels: Labels,
        moves: &Moves,
        weight_decays: &[f32],
        optimizer: &mut Optimizer,
    ) -> Result<Tensor> {
        let number = self.begin_step()?;
        let (model, loss, seed) = (&mut self.model, Objective::of(&self.loss, self.pointwise), self.seed);
        let Moves { ref lrs, momentum } = *moves;
        let step = Step { model, optimizer, loss, lrs, weight_decays, momentum, seed, number };
        let loss = self.stepper.step(step, input, labels)?;
        if let Some(error) = self.stepper.take_refusal() {
            self.note(format!("steps are launched one by one, for a graph of them was refused: {error}"))?;
        }
        Ok(loss)
    }

    /// Counts a step, which is about to change the network; its number.
    pub(super) fn begin_step(&mut self) -> Result<u64> {
        let number = self.steps;
        self.steps += 1;
        if !self.state.is_head_only() {
            let frozen = self.model.backbone.frozen_units();
            self.backbone_key = self.backbone_key.filter(|(units, _)| *units <= frozen);
            self.progress.backbone_changed();
        }
        self.place_class_weights().map(|()| number)
    }

    /// Brings them to the network's device: set before that was, they may still lie elsewhere.
    fn place_class_weights(&mut self) -> Result<()> {
        if let Some(weights) = &mut self.loss.class_weights {
            *weights = weights.to_device(&self.device)?;
        }
        Ok(())
    }
}

impl Source {
    pub(super) fn len(&self) -> usize {
        match self {
            Source::Images(feed) => feed.len(),
            Source::Cache { batches, .. } => batches.len(),
        }
    }

    /// Gets the next batch ready, to be called while the device is at work.
    pub(super) fn prefetch(&mut self) {
        match self {
            Source::Images(feed) => feed.prefetch(),
            Source::Cache { .. } => {}
        }
    }
}
