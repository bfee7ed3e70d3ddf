//! Gradients on their way back through the tape.

use super::Slot;
use crate::{Error, Result, Tensor};

/// What the producer of a variable does first with its gradient: a batchnorm with a ReLU masks it and takes sums.
/// Whoever adds the last part of the gradient may do so in the same pass over memory.
#[derive(Clone, Debug)]
pub struct Sink {
    /// Where the variable is positive, u8 `[rows, C / 8]`: bit `j` of a byte stands for channel `8 · byte + j`.
    /// Elsewhere no gradient passes. `None` where all of it does.
    pub mask: Option<Tensor>,
    /// What the batchnorm normalised, like the variable.
    pub input: Tensor,
    /// The mean it normalised by, `[C]`.
    pub mean: Tensor,
}

/// Sums over a gradient `g`, per tile of rows and channel: f32 `[tiles, C]` each.
#[derive(Clone, Debug)]
pub struct TileSums {
    /// Of `g`.
    pub sum: Tensor,
    /// Of `g · (input − mean)`, as [`Sink`] has them.
    pub product: Tensor,
}

/// The gradient of a variable.
#[derive(Clone, Debug)]
pub struct Gradient {
    /// Like the variable.
    pub value: Tensor,
    /// What the variable's [`Sink`] asked for; then the value is masked too. `None` where nobody did it.
    pub sums: Option<TileSums>,
}

/// Parts of a gradient that its last part is added to.
#[derive(Debug, Default)]
pub struct Rest {
    /// Like the variable.
    pub dense: Option<Tensor>,
    /// Another part, which has only every so-many-th pixel.
    pub strided: Option<Strided>,
}

/// The gradient of every `stride`-th pixel of an activation `[N, H, W, C]`, both ways; zero elsewhere.
#[derive(Debug)]
pub struct Strided {
    /// `[N, ⌈H / stride⌉, ⌈W / stride⌉, C]`.
    pub value: Tensor,
    /// Pixels from one to the next.
    pub stride: usize,
}

/// The gradient of one variable, as far as it is known.
struct Place {
    gradient: Option<Gradient>,
    strided: Option<Strided>,
    /// Operations that may still add to it.
    pending: usize,
    /// Whether the last of them takes what is there by [`Gradients::take_rest`].
    completed: bool,
}

/// The gradients collected so far during a backward pass.
pub struct Gradients {
    places: Vec<Place>,
}

impl Gradients {
    /// No gradients yet. Of each slot: how many operations may add to it, and whether the last of them completes it.
    pub(super) fn new(slots: impl IntoIterator<Item = (usize, bool)>) -> Self {
        let place = |(pending, completed)| Place { gradient: None, strided: None, pending, completed };
        Self { places: slots.into_iter().map(place).collect() }
    }

    /// Notes that one of the operations that may add to `slot` is about to, or will not.
    pub(super) fn arrive(&mut self, slot: Slot) {
        self.places[slot.0].pending -= 1;
    }

    /// Adds `gradient` to what `slot` has already received.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ.
    pub fn add(&mut self, slot: Slot, gradient: Tensor) -> Result<()> {
        match &mut self.places[slot.0].gradient {
            Some(sum) => sum.value.add_assign(&gradient),
            empty => {
                *empty = Some(Gradient { value: gradient, sums: None });
                Ok(())
            }
        }
    }

    /// What `slot` has received, if the caller's part is its last; the caller then adds its part to it and hands the
    /// whole to [`Gradients::finish`].
    pub fn take_rest(&mut self, slot: Slot) -> Option<Rest> {
        let place = &mut self.places[slot.0];
        (place.pending == 0).then(|| Rest {
            dense: place.gradient.take().map(|gradient| gradient.value),
            strided: place.strided.take(),
        })
    }

    /// Sets the whole gradient of `slot`.
    pub fn finish(&mut self, slot: Slot, gradient: Gradient) {
        self.places[slot.0].gradient = Some(gradient);
    }

    /// Whether `slot` takes a part that has only every so-many-th pixel: the operation that adds the last part can add
    /// it.
    pub fn takes_strided(&self, slot: Slot) -> bool {
        let place = &self.places[slot.0];
        place.completed && place.pending > 0 && place.strided.is_none()
    }

    /// Adds such a part to a slot that takes it.
    pub fn add_strided(&mut self, slot: Slot, part: Strided) {
        debug_assert!(self.takes_strided(slot));
        self.places[slot.0].strided = Some(part);
    }

    pub(super) fn take(&mut self, slot: Slot) -> Result<Option<Gradient>> {
        let place = &mut self.places[slot.0];
        if place.strided.is_some() {
            return Err(Error::shape("backward", "an operation left out its part of a gradient"));
        }
        Ok(place.gradient.take())
    }
}
