//! What happens during a fit, and how an embedding program follows and ends it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::EpochRecord;
use crate::{Error, Result, data::Split};

/// Something that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The activations of some samples were computed for the cache.
    Caching {
        /// Which split.
        split: Split,
        /// Samples done.
        done: usize,
        /// Samples whose activations the cache did not have.
        total: usize,
    },
    /// A training step ended.
    Step {
        /// Name of the fit.
        phase: &'a str,
        /// Epoch of the fit, from 0.
        epoch: usize,
        /// Step of the epoch, from 0.
        step: usize,
        /// Steps of the epoch.
        steps: usize,
        /// Loss of its batch.
        loss: f32,
        /// Learning rate of each layer group.
        lrs: &'a [f32],
        /// Momentum, the same for all groups.
        momentum: f32,
    },
    /// A step of a search for the learning rate ended; no step of a fit.
    Finding {
        /// Step of the search, from 0.
        step: usize,
        /// Steps of the search.
        steps: usize,
        /// Loss of its batch.
        loss: f32,
        /// Learning rate of each layer group.
        lrs: &'a [f32],
    },
    /// A validation batch was evaluated.
    Validating {
        /// Samples done.
        done: usize,
        /// Samples in all.
        total: usize,
    },
    /// An epoch ended.
    Epoch(&'a EpochRecord),
    /// Something a user should know, once.
    Note(&'a str),
}

/// Whether a fit goes on.
#[derive(Debug)]
pub enum Flow {
    /// Yes.
    Continue,
    /// It ends after this step or epoch, and counts as finished. Where steps were made together with this one (see
    /// [`Learner::graphs`](super::Learner::graphs)), after those.
    Stop,
    /// It ends at once, with this error.
    Fail(Error),
}

/// Sees every event; never owns the loop. Closures of the right type are callbacks.
pub trait Callback: Send {
    /// Called for each event. [`Flow::Stop`] counts for steps, those of a search too, and epochs.
    fn event(&mut self, event: &Event) -> Flow;
}

impl<F: FnMut(&Event) -> Flow + Send> Callback for F {
    fn event(&mut self, event: &Event) -> Flow {
        self(event)
    }
}

/// Ends running work from another thread. Clones are the same token.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks the work to end after the current batch, or those that are made together with it; it returns
    /// [`Error::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}
